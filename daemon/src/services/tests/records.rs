//! Records: namespaces, containers, images, leases; and what refuses bad input, in which words.

use grpc::containers::ContainersClient;
use grpc::images::ImagesClient;
use grpc::leases::LeasesClient;
use grpc::namespaces::NamespacesClient;
use protos::MessageField;
use protos::services::containers::{
    self, Container, CreateContainerRequest, DeleteContainerRequest, GetContainerRequest,
    ListContainersRequest, UpdateContainerRequest,
};
use protos::services::images::{
    CreateImageRequest, DeleteImageRequest, GetImageRequest, Image, ListImagesRequest,
    UpdateImageRequest,
};
use protos::services::leases::{
    AddResourceRequest, CreateRequest, DeleteRequest, ListRequest, ListResourcesRequest, Resource,
};
use protos::services::namespaces::{
    CreateNamespaceRequest, DeleteNamespaceRequest, GetNamespaceRequest, ListNamespacesRequest,
    Namespace, UpdateNamespaceRequest,
};
use protos::types::Descriptor;
use protos::well_known::{Any, FieldMask};
use tonic::Code;

use super::{Daemon, refused, scoped};

fn mask(paths: &[&str]) -> MessageField<FieldMask> {
    let paths = paths.iter().map(|path| (*path).to_owned()).collect();
    MessageField::some(FieldMask {
        paths,
        ..Default::default()
    })
}

fn container(id: &str) -> Container {
    let runtime = containers::container::Runtime {
        name: "r".into(),
        ..Default::default()
    };
    Container {
        id: id.into(),
        runtime: MessageField::some(runtime),
        spec: MessageField::some(Any {
            type_url: "s".into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn create(container: Container) -> CreateContainerRequest {
    CreateContainerRequest {
        container: MessageField::some(container),
        ..Default::default()
    }
}

fn image(name: &str, digit: char) -> Image {
    Image {
        name: name.into(),
        target: MessageField::some(Descriptor {
            media_type: "application/vnd.oci.image.index.v1+json".into(),
            digest: format!("sha256:{}", digit.to_string().repeat(64)),
            size: 7,
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[tokio::test]
async fn namespaces_come_and_go() {
    let daemon = Daemon::start().await;
    let mut client = NamespacesClient::new(daemon.channel());
    let named = |name: &str| Namespace {
        name: name.into(),
        labels: [("k".to_owned(), "v".to_owned())].into(),
        ..Default::default()
    };
    let create = |name: &str| CreateNamespaceRequest {
        namespace: MessageField::some(named(name)),
        ..Default::default()
    };
    client.create(create("a")).await.unwrap();
    let (code, text) = refused(client.create(create("a")).await);
    assert_eq!(code, Code::AlreadyExists);
    assert!(text.ends_with(": already exists"), "{text}");
    assert_eq!(
        refused(client.create(create("../a")).await).0,
        Code::InvalidArgument
    );

    let unknown = GetNamespaceRequest {
        name: "none".into(),
        ..Default::default()
    };
    let found = client
        .get(unknown)
        .await
        .unwrap()
        .into_inner()
        .namespace
        .unwrap();
    assert!(found.labels.is_empty());

    let update = |paths: &[&str]| UpdateNamespaceRequest {
        namespace: MessageField::some(Namespace {
            labels: [("x".to_owned(), "1".to_owned())].into(),
            ..named("a")
        }),
        update_mask: mask(paths),
        ..Default::default()
    };
    assert_eq!(
        refused(client.update(update(&["labels"])).await).0,
        Code::InvalidArgument
    );
    let updated = client
        .update(update(&["labels.x"]))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(updated.namespace.unwrap().labels.len(), 2);

    let listed = client
        .list(ListNamespacesRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(listed.namespaces.len(), 1);
    let delete = DeleteNamespaceRequest {
        name: "a".into(),
        ..Default::default()
    };
    client.delete(delete.clone()).await.unwrap();
    assert_eq!(refused(client.delete(delete).await).0, Code::NotFound);
}

#[tokio::test]
async fn a_namespace_with_contents_is_not_deleted() {
    let daemon = Daemon::start().await;
    ContainersClient::new(daemon.channel())
        .create(scoped(create(container("c"))))
        .await
        .unwrap();
    let mut client = NamespacesClient::new(daemon.channel());
    let delete = DeleteNamespaceRequest {
        name: super::NAMESPACE.into(),
        ..Default::default()
    };
    let (code, text) = refused(client.delete(delete).await);
    assert_eq!(code, Code::FailedPrecondition);
    assert!(text.contains("containers"), "{text}");
}

#[tokio::test]
async fn containers_are_kept_updated_and_streamed() {
    let daemon = Daemon::start().await;
    let mut client = ContainersClient::new(daemon.channel());
    for id in ["b", "a"] {
        client.create(scoped(create(container(id)))).await.unwrap();
    }
    let update = UpdateContainerRequest {
        container: MessageField::some(Container {
            labels: [("l".to_owned(), "1".to_owned())].into(),
            image: "other".into(),
            id: "a".into(),
            ..Default::default()
        }),
        update_mask: mask(&["labels.l"]),
        ..Default::default()
    };
    let updated = client
        .update(scoped(update))
        .await
        .unwrap()
        .into_inner()
        .container
        .unwrap();
    assert_eq!(
        (updated.labels["l"].as_str(), updated.image.as_str()),
        ("1", "")
    );

    let mut stream = client
        .list_stream(scoped(ListContainersRequest::default()))
        .await
        .unwrap()
        .into_inner();
    let mut ids = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        ids.push(message.container.unwrap().id);
    }
    assert_eq!(ids, ["a", "b"]);
    let filters = vec!["labels.l==1".to_owned()];
    let request = ListContainersRequest {
        filters,
        ..Default::default()
    };
    let listed = client
        .list(scoped(request))
        .await
        .unwrap()
        .into_inner()
        .containers;
    assert_eq!(listed.len(), 1);
    let delete = DeleteContainerRequest {
        id: "a".into(),
        ..Default::default()
    };
    client.delete(scoped(delete)).await.unwrap();
}

#[tokio::test]
async fn bad_containers_are_refused_in_their_class() {
    let daemon = Daemon::start().await;
    let mut client = ContainersClient::new(daemon.channel());
    client.create(scoped(create(container("c")))).await.unwrap();
    let long = "v".repeat(5000);
    for (made, code, part) in [
        (container("c"), Code::AlreadyExists, "already exists"),
        (
            container(""),
            Code::InvalidArgument,
            "create container failed validation: container.ID: identifier must not be empty",
        ),
        (container("../c"), Code::InvalidArgument, "must match"),
        (container("a/b"), Code::InvalidArgument, "must match"),
        (
            Container {
                spec: MessageField::none(),
                ..container("d")
            },
            Code::InvalidArgument,
            "container.Spec must be set",
        ),
        (
            Container {
                runtime: MessageField::none(),
                ..container("d")
            },
            Code::InvalidArgument,
            "untime",
        ),
        (
            Container {
                labels: [("k".to_owned(), long)].into(),
                ..container("d")
            },
            Code::InvalidArgument,
            "greater than maximum size",
        ),
        (
            Container {
                snapshot_key: "k".into(),
                ..container("d")
            },
            Code::InvalidArgument,
            "napshot",
        ),
    ] {
        let (found, text) = refused(client.create(scoped(create(made))).await);
        assert_eq!(found, code, "{text}");
        assert!(text.contains(part), "{part:?} not in {text:?}");
    }
    let none = GetContainerRequest {
        id: "none".into(),
        ..Default::default()
    };
    let (code, text) = refused(client.get(scoped(none)).await);
    assert_eq!(
        (code, text.as_str()),
        (
            Code::NotFound,
            "container \"none\" in namespace \"test\": not found"
        )
    );
    let bad = ListContainersRequest {
        filters: vec!["a=b".into()],
        ..Default::default()
    };
    assert_eq!(
        refused(client.list(scoped(bad)).await).0,
        Code::InvalidArgument
    );
}

#[tokio::test]
async fn images_are_named_relabelled_and_deleted_by_target() {
    let daemon = Daemon::start().await;
    let mut client = ImagesClient::new(daemon.channel());
    let request = |image| CreateImageRequest {
        image: MessageField::some(image),
        ..Default::default()
    };
    client
        .create(scoped(request(image("i", 'a'))))
        .await
        .unwrap();

    // As `ctr images label` does: no target.
    let update = UpdateImageRequest {
        image: MessageField::some(Image {
            name: "i".into(),
            labels: [("k".to_owned(), "v".to_owned())].into(),
            ..Default::default()
        }),
        update_mask: mask(&["labels.k"]),
        ..Default::default()
    };
    let updated = client
        .update(scoped(update.clone()))
        .await
        .unwrap()
        .into_inner()
        .image
        .unwrap();
    assert_eq!(updated.labels["k"], "v");
    assert_eq!(updated.target, image("i", 'a').target);
    let whole = UpdateImageRequest {
        update_mask: MessageField::none(),
        ..update
    };
    assert_eq!(
        refused(client.update(scoped(whole)).await).0,
        Code::InvalidArgument
    );
    for (target, code) in [
        ('b', Some(Code::NotFound)),
        ('a', None),
        ('a', Some(Code::NotFound)),
    ] {
        let delete = DeleteImageRequest {
            name: "i".into(),
            sync: true,
            target: image("i", target).target,
            ..Default::default()
        };
        let done = client.delete(scoped(delete)).await;
        assert_eq!(done.err().map(|status| status.code()), code, "{target}");
    }
    let left = client
        .list(scoped(ListImagesRequest::default()))
        .await
        .unwrap()
        .into_inner();
    assert!(left.images.is_empty());
    let none = GetImageRequest {
        name: "i".into(),
        ..Default::default()
    };
    let (code, text) = refused(client.get(scoped(none)).await);
    assert_eq!(
        (code, text.as_str()),
        (Code::NotFound, "image \"i\": not found")
    );
    for bad in [
        image("", 'a'),
        Image {
            target: MessageField::none(),
            ..image("j", 'a')
        },
    ] {
        let (code, _) = refused(client.create(scoped(request(bad))).await);
        assert_eq!(code, Code::InvalidArgument);
    }
}

#[tokio::test]
async fn leases_hold_what_they_are_given() {
    let daemon = Daemon::start().await;
    let mut client = LeasesClient::new(daemon.channel());
    let made = client
        .create(scoped(CreateRequest::default()))
        .await
        .unwrap()
        .into_inner();
    assert!(!made.lease.unwrap().id.is_empty());
    let named = CreateRequest {
        id: "l".into(),
        ..Default::default()
    };
    client.create(scoped(named.clone())).await.unwrap();
    assert_eq!(
        refused(client.create(scoped(named)).await).0,
        Code::AlreadyExists
    );

    let add = |kind: &str, id: &str| AddResourceRequest {
        id: "l".into(),
        resource: MessageField::some(Resource {
            id: id.into(),
            type_: kind.into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    for (kind, id, code) in [
        ("images", "i", None),
        ("snapshots/overlayfs", "k", None),
        ("content", "sha256:x", Some(Code::InvalidArgument)),
        ("volumes", "v", Some(Code::Unimplemented)),
    ] {
        let done = client.add_resource(scoped(add(kind, id))).await;
        assert_eq!(done.err().map(|status| status.code()), code, "{kind}");
    }
    let asked = ListResourcesRequest {
        id: "l".into(),
        ..Default::default()
    };
    let held = client
        .list_resources(scoped(asked))
        .await
        .unwrap()
        .into_inner()
        .resources;
    assert_eq!(held.len(), 2);
    let listed = client
        .list(scoped(ListRequest::default()))
        .await
        .unwrap()
        .into_inner()
        .leases;
    assert_eq!(listed.len(), 2);
    let delete = DeleteRequest {
        id: "l".into(),
        sync: true,
        ..Default::default()
    };
    client.delete(scoped(delete.clone())).await.unwrap();
    let (code, text) = refused(client.delete(scoped(delete)).await);
    assert_eq!(code, Code::NotFound);
    assert!(text.ends_with("not found"), "{text}");
}

/// As in Go: looking for something by a name that nothing can have finds nothing.
#[tokio::test]
async fn what_has_a_bad_name_is_not_found() {
    let daemon = Daemon::start().await;
    let mut client = ContainersClient::new(daemon.channel());
    for id in ["", "../c", "a/b"] {
        let delete = DeleteContainerRequest {
            id: id.into(),
            ..Default::default()
        };
        let (code, text) = refused(client.delete(scoped(delete)).await);
        assert_eq!(
            (code, text),
            (Code::NotFound, format!("container {id:?}: not found"))
        );
    }
    let absent = UpdateImageRequest {
        image: MessageField::some(Image {
            name: "none".into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let mut client = ImagesClient::new(daemon.channel());
    let (code, text) = refused(client.update(scoped(absent)).await);
    assert_eq!(
        (code, text.as_str()),
        (Code::NotFound, "image \"none\": not found")
    );
}

#[tokio::test]
async fn a_request_has_few_regular_expressions_and_many_values() {
    let daemon = Daemon::start().await;
    let mut client = ContainersClient::new(daemon.channel());
    for (filter, count, code) in [
        ("id==a", 1_000, None),
        ("id~=a", 256, None),
        ("id~=a", 257, Some(Code::InvalidArgument)),
        ("id~=a,image~=b", 129, Some(Code::InvalidArgument)),
    ] {
        let request = ListContainersRequest {
            filters: vec![filter.into(); count],
            ..Default::default()
        };
        let done = client.list(scoped(request)).await;
        assert_eq!(done.err().map(|e| e.code()), code, "{count} of {filter}");
    }
}
