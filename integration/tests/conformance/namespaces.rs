//! Namespaces.

use std::collections::HashMap;

use grpc::containers::ContainersClient;
use grpc::images::ImagesClient;
use grpc::leases::LeasesClient;
use grpc::namespaces::NamespacesClient;
use protos::MessageField;
use protos::any::Named;
use protos::events::{NamespaceCreate, NamespaceDelete, NamespaceUpdate};
use protos::services::containers::{CreateContainerRequest, DeleteContainerRequest};
use protos::services::leases::CreateRequest;
use protos::services::namespaces::{
    CreateNamespaceRequest, DeleteNamespaceRequest, GetNamespaceRequest, ListNamespacesRequest,
    Namespace, UpdateNamespaceRequest,
};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use crate::containers::container;
use crate::heard::Heard;
use crate::images::{create_image, image};
use crate::peer::{NAMESPACE, Peer, called_invalid, labels, mask, refused, scoped, within};
use crate::stock::{end, lease, prepare, put};

rules! {
    both {
        one_that_is_not_there_is_answered_empty
        the_first_write_makes_it
        one_that_is_there_is_not_made_again
        a_name_is_an_identifier
        a_list_is_in_the_order_of_names_whatever_the_filter
        an_update_sets_the_labels_of_its_mask
        an_update_without_a_mask_replaces_all_labels
        a_mask_of_all_labels_is_refused
        an_empty_value_removes_a_label
        what_is_in_it_keeps_it_and_is_named
        leases_do_not_keep_it
        one_that_is_not_there_cannot_be_deleted
        an_update_makes_one_that_is_not_there
        a_label_has_4096_bytes_at_most
        everything_that_keeps_it_is_named
        creation_update_and_deletion_are_published
    }
    ours {
        a_label_that_is_too_long_is_an_invalid_argument
    }
}

/// Go fails after the change when it has no namespace to publish the event in, and clients always name
/// one.
fn elsewhere<T>(message: T) -> Request<T> {
    within("elsewhere", message)
}

struct Namespaces(NamespacesClient<Channel>);

impl Namespaces {
    fn of(peer: &Peer) -> Self {
        Self(NamespacesClient::new(peer.channel()))
    }

    async fn create(&mut self, name: &str, pairs: &[(&str, &str)]) -> Result<Response<()>, Status> {
        let request = CreateNamespaceRequest {
            namespace: MessageField::some(Namespace {
                name: name.into(),
                labels: labels(pairs),
                ..Namespace::default()
            }),
            ..CreateNamespaceRequest::default()
        };
        self.0
            .create(elsewhere(request))
            .await
            .map(|made| made.map(drop))
    }

    async fn update(
        &mut self,
        name: &str,
        pairs: &[(&str, &str)],
        paths: Option<&[&str]>,
    ) -> Result<Response<()>, Status> {
        let request = UpdateNamespaceRequest {
            namespace: MessageField::some(Namespace {
                name: name.into(),
                labels: labels(pairs),
                ..Namespace::default()
            }),
            update_mask: paths.map(mask).unwrap_or_default(),
            ..UpdateNamespaceRequest::default()
        };
        // Go's answer is empty, whatever the labels are.
        self.0
            .update(elsewhere(request))
            .await
            .map(|done| done.map(drop))
    }

    async fn labels(&mut self, name: &str) -> HashMap<String, String> {
        let request = GetNamespaceRequest {
            name: name.into(),
            ..GetNamespaceRequest::default()
        };
        let answer = self.0.get(request).await.expect("never refused");
        let found = answer.into_inner().namespace.unwrap_or_default();
        assert_eq!(found.name, name);
        found.labels
    }

    async fn names(&mut self, filter: &str) -> Vec<String> {
        let request = ListNamespacesRequest {
            filter: filter.into(),
            ..ListNamespacesRequest::default()
        };
        let answer = self.0.list(request).await.expect("list");
        let found = answer.into_inner().namespaces;
        found.into_iter().map(|namespace| namespace.name).collect()
    }

    async fn delete(&mut self, name: &str) -> Result<Response<()>, Status> {
        let request = DeleteNamespaceRequest {
            name: name.into(),
            ..DeleteNamespaceRequest::default()
        };
        self.0
            .delete(elsewhere(request))
            .await
            .map(|gone| gone.map(drop))
    }
}

async fn one_that_is_not_there_is_answered_empty(peer: &Peer) {
    let mut namespaces = Namespaces::of(peer);
    assert_eq!(namespaces.labels("none").await, HashMap::new());
    assert_eq!(namespaces.names("").await, [""; 0]);
}

async fn the_first_write_makes_it(peer: &Peer) {
    let mut images = ImagesClient::new(peer.channel());
    let request = within("new", create_image(image("i", '1')));
    images.create(request).await.expect("create");
    assert_eq!(Namespaces::of(peer).names("").await, ["new"]);
}

async fn one_that_is_there_is_not_made_again(peer: &Peer) {
    let mut namespaces = Namespaces::of(peer);
    namespaces.create("a", &[("k", "v")]).await.expect("create");
    let again = namespaces.create("a", &[]).await;
    let text = refused(Code::AlreadyExists, again);
    assert_eq!(text, "namespace \"a\": already exists");
    assert_eq!(namespaces.labels("a").await, labels(&[("k", "v")]));
}

async fn a_name_is_an_identifier(peer: &Peer) {
    let mut namespaces = Namespaces::of(peer);
    let long = "x".repeat(77);
    for name in ["", "../a", "a/b", "a b", "-a", "a..b", "a_-b", &long] {
        let text = refused(Code::InvalidArgument, namespaces.create(name, &[]).await);
        assert!(text.ends_with(": invalid argument"), "{text}");
    }
    for name in ["a", "a.b", "a_b-c.d", "0", &long[1..]] {
        namespaces.create(name, &[]).await.expect("create");
    }
}

async fn a_list_is_in_the_order_of_names_whatever_the_filter(peer: &Peer) {
    let mut namespaces = Namespaces::of(peer);
    for name in ["b", "a.b", "a", "B"] {
        namespaces.create(name, &[]).await.expect("create");
    }
    for filter in ["", "name==a", "((("] {
        assert_eq!(namespaces.names(filter).await, ["B", "a", "a.b", "b"]);
    }
}

async fn an_update_sets_the_labels_of_its_mask(peer: &Peer) {
    let mut namespaces = Namespaces::of(peer);
    let before = [("a", "1"), ("b.c/d", "2"), ("e", "3")];
    namespaces.create("n", &before).await.expect("create");
    let new = [("a", "x"), ("b.c/d", "y"), ("f", "z")];
    let paths = ["labels.b.c/d", "labels.f"];
    let answer = namespaces.update("n", &new, Some(&paths)).await;
    let want = labels(&[("a", "1"), ("b.c/d", "y"), ("e", "3"), ("f", "z")]);
    answer.expect("update");
    assert_eq!(namespaces.labels("n").await, want);
}

async fn an_update_without_a_mask_replaces_all_labels(peer: &Peer) {
    let mut namespaces = Namespaces::of(peer);
    let before = [("a", "1"), ("b", "2")];
    namespaces.create("n", &before).await.expect("create");
    let answer = namespaces.update("n", &[("c", "3")], None).await;
    answer.expect("update");
    assert_eq!(namespaces.labels("n").await, labels(&[("c", "3")]));
    let answer = namespaces.update("n", &[("d", "4")], Some(&[])).await;
    answer.expect("update");
    assert_eq!(namespaces.labels("n").await, labels(&[("d", "4")]));
}

async fn a_mask_of_all_labels_is_refused(peer: &Peer) {
    let mut namespaces = Namespaces::of(peer);
    namespaces.create("n", &[("a", "1")]).await.expect("create");
    for path in ["labels", "name", "x"] {
        let answer = namespaces.update("n", &[("a", "2")], Some(&[path])).await;
        refused(Code::InvalidArgument, answer);
    }
    assert_eq!(namespaces.labels("n").await, labels(&[("a", "1")]));
}

async fn an_empty_value_removes_a_label(peer: &Peer) {
    let mut namespaces = Namespaces::of(peer);
    let before = [("a", "1"), ("b", "2")];
    namespaces.create("n", &before).await.expect("create");
    let answer = namespaces.update("n", &[("a", "")], Some(&["labels.a"]));
    answer.await.expect("update");
    assert_eq!(namespaces.labels("n").await, labels(&[("b", "2")]));
}

async fn what_is_in_it_keeps_it_and_is_named(peer: &Peer) {
    let mut namespaces = Namespaces::of(peer);
    let mut images = ImagesClient::new(peer.channel());
    let request = within("full", create_image(image("i", '1')));
    images.create(request).await.expect("create");
    let text = refused(Code::FailedPrecondition, namespaces.delete("full").await);
    assert!(text.contains("namespace \"full\""), "{text}");
    assert!(text.contains("images"), "{text}");
}

async fn leases_do_not_keep_it(peer: &Peer) {
    let mut namespaces = Namespaces::of(peer);
    let mut leases = LeasesClient::new(peer.channel());
    let lease = CreateRequest {
        id: "l".into(),
        ..CreateRequest::default()
    };
    leases.create(within("n", lease)).await.expect("create");
    assert_eq!(namespaces.names("").await, ["n"]);
    namespaces.delete("n").await.expect("delete");
    assert_eq!(namespaces.names("").await, [""; 0]);
}

async fn one_that_is_not_there_cannot_be_deleted(peer: &Peer) {
    let text = refused(Code::NotFound, Namespaces::of(peer).delete("none").await);
    assert_eq!(text, "namespace \"none\": not found");
}

async fn an_update_makes_one_that_is_not_there(peer: &Peer) {
    let mut namespaces = Namespaces::of(peer);
    let answer = namespaces.update("n", &[("a", "1")], None).await;
    answer.expect("update");
    assert_eq!(namespaces.names("").await, ["n"]);
    assert_eq!(namespaces.labels("n").await, labels(&[("a", "1")]));
}

async fn a_label_has_4096_bytes_at_most(peer: &Peer) {
    let mut namespaces = Namespaces::of(peer);
    let long = "v".repeat(4096 - "key".len());
    namespaces
        .create("n", &[("key", &long)])
        .await
        .expect("create");
    let longer = format!("{long}v");
    let answer = namespaces.create("m", &[("key", &longer)]).await;
    let text = called_invalid(answer);
    assert!(text.contains("key"), "{text}");
    for paths in [None, Some(&["labels.key"][..])] {
        let answer = namespaces.update("n", &[("key", &longer)], paths).await;
        called_invalid(answer);
        let answer = namespaces.update("n", &[("key", &long)], paths).await;
        answer.expect("update");
    }
    assert_eq!(namespaces.names("").await, ["n"]);
    assert_eq!(namespaces.labels("n").await, labels(&[("key", &long)]));
}

async fn everything_that_keeps_it_is_named(peer: &Peer) {
    let mut namespaces = Namespaces::of(peer);
    let mut containers = ContainersClient::new(peer.channel());
    lease(peer, "l", &[]).await;
    let what = ["blobs", "containers", "snapshots on \"native\""];
    for at in 0..=what.len() {
        let answer = namespaces.delete(NAMESPACE).await;
        let text = match at {
            // The lease alone does not keep it, and would go with it.
            0 => String::new(),
            _ => refused(Code::FailedPrecondition, answer),
        };
        for (other, name) in what.iter().enumerate() {
            assert_eq!(text.contains(name), other < at, "{at}: {text}");
        }
        match at {
            0 => {
                lease(peer, "l", &[]).await;
                put(peer, "l", "blob", &[]).await;
            }
            1 => {
                let request = CreateContainerRequest {
                    container: MessageField::some(container("c")),
                    ..Default::default()
                };
                let made = containers.create(scoped(request)).await;
                drop(made.expect("create"));
            }
            2 => drop(prepare(peer, "l", ("k", ""), &[]).await.expect("prepare")),
            _ => {}
        }
    }
    let request = DeleteContainerRequest {
        id: "c".into(),
        ..Default::default()
    };
    drop(containers.delete(scoped(request)).await.expect("delete"));
    end(peer, "l").await;
    namespaces
        .delete(NAMESPACE)
        .await
        .expect("nothing is in it");
}

async fn creation_update_and_deletion_are_published(peer: &Peer) {
    let mut namespaces = Namespaces::of(peer);
    let mut heard = Heard::matching(peer, &["topic~=|^/namespaces/|"]).await;
    namespaces.create("n", &[("a", "1")]).await.expect("create");
    let made: NamespaceCreate = told(&mut heard, "/namespaces/create").await;
    assert_eq!(
        (made.name.as_str(), made.labels),
        ("n", labels(&[("a", "1")]))
    );
    let answer = namespaces.update("n", &[("b", "2")], None).await;
    answer.expect("update");
    let changed: NamespaceUpdate = told(&mut heard, "/namespaces/update").await;
    assert_eq!(
        (changed.name.as_str(), changed.labels),
        ("n", labels(&[("b", "2")]))
    );
    namespaces.delete("n").await.expect("delete");
    let gone: NamespaceDelete = told(&mut heard, "/namespaces/delete").await;
    assert_eq!(gone.name, "n");
    // What is refused is not told.
    refused(Code::NotFound, namespaces.delete("n").await);
    refused(Code::InvalidArgument, namespaces.create("-", &[]).await);
    assert!(heard.told(peer).await.is_empty());
}

/// The next event, which is of this topic.
async fn told<M: Named>(heard: &mut Heard, topic: &str) -> M {
    let event = heard.next().await;
    assert_eq!(event.topic, topic);
    assert_eq!(event.event.type_url, M::FULL_NAME);
    M::parse_from_bytes(&event.event.value).expect("the event")
}

async fn a_label_that_is_too_long_is_an_invalid_argument(peer: &Peer) {
    let mut namespaces = Namespaces::of(peer);
    let long = "v".repeat(4096);
    let answer = namespaces.create("n", &[("k", &long)]).await;
    refused(Code::InvalidArgument, answer);
    let answer = namespaces.update("n", &[("k", &long)], None).await;
    refused(Code::InvalidArgument, answer);
    assert_eq!(namespaces.names("").await, [""; 0]);
}
