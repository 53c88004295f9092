//! Containers: making, finding and removing records.

use std::time::SystemTime;

use grpc::containers::ContainersClient;
use protos::MessageField;
use protos::events::{ContainerCreate, ContainerDelete};
use protos::services::containers::container::Runtime;
use protos::services::containers::{
    Container, CreateContainerRequest, DeleteContainerRequest, GetContainerRequest,
    ListContainersRequest, UpdateContainerRequest,
};
use protos::well_known::{Any, Timestamp};
use protos::wire::Wire as _;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use crate::heard::Heard;
use crate::peer::{Peer, labels, mask, refused, scoped, texts, within};
use crate::stock::{SNAPSHOTTER, collect, commit_snapshot, end, has_snapshot, lease, prepare};

rules! {
    both {
        one_that_is_not_there_is_named
        one_is_stored_whole_and_stamped_by_the_server
        what_it_names_need_not_exist
        one_that_is_there_is_not_made_again
        an_id_is_an_identifier
        one_that_could_not_run_is_refused
        a_label_has_4096_bytes_at_most
        a_label_of_the_empty_value_is_none
        the_making_is_published
        a_list_is_in_the_order_of_ids
        a_list_of_an_unused_namespace_is_empty
        a_stream_has_one_container_per_message
        a_list_is_filtered
        a_filter_of_bad_syntax_is_refused
        namespaces_do_not_share_containers
        one_is_deleted_once_and_it_is_published
        deletion_leaves_the_snapshot_to_its_lease
        a_snapshot_lives_as_long_as_its_container
    }
    ours {
        one_keeps_its_sandbox
    }
}

pub(crate) fn any(kind: &str, value: &str) -> Any {
    Any {
        type_url: kind.into(),
        value: value.into(),
        ..Any::default()
    }
}

/// A container that can be made, with nothing that need not be.
pub(crate) fn container(id: &str) -> Container {
    Container {
        id: id.into(),
        runtime: runtime("r"),
        spec: MessageField::some(any("spec", "1")),
        ..Container::default()
    }
}

pub(crate) fn runtime(name: &str) -> MessageField<Runtime> {
    MessageField::some(Runtime {
        name: name.into(),
        options: MessageField::some(any("options", name)),
        ..Runtime::default()
    })
}

pub(crate) struct Containers(ContainersClient<Channel>);

impl Containers {
    pub(crate) fn of(peer: &Peer) -> Self {
        Self(ContainersClient::new(peer.channel()))
    }

    pub(crate) async fn create(
        &mut self,
        container: Container,
    ) -> Result<Response<Container>, Status> {
        let request = CreateContainerRequest {
            container: MessageField::some(container),
            ..CreateContainerRequest::default()
        };
        let answer = self.0.create(scoped(request)).await?;
        Ok(answer.map(|made| made.container.unwrap_or_default()))
    }

    pub(crate) async fn get(&mut self, id: &str) -> Result<Response<Container>, Status> {
        let request = GetContainerRequest {
            id: id.into(),
            ..GetContainerRequest::default()
        };
        let answer = self.0.get(scoped(request)).await?;
        Ok(answer.map(|found| found.container.unwrap_or_default()))
    }

    pub(crate) async fn found(&mut self, id: &str) -> Container {
        self.get(id).await.expect("get").into_inner()
    }

    pub(crate) async fn update(
        &mut self,
        container: Container,
        paths: Option<&[&str]>,
    ) -> Result<Response<Container>, Status> {
        let request = UpdateContainerRequest {
            container: MessageField::some(container),
            update_mask: paths.map(mask).unwrap_or_default(),
            ..UpdateContainerRequest::default()
        };
        let answer = self.0.update(scoped(request)).await?;
        Ok(answer.map(|done| done.container.unwrap_or_default()))
    }

    pub(crate) async fn delete(&mut self, id: &str) -> Result<Response<()>, Status> {
        let request = DeleteContainerRequest {
            id: id.into(),
            ..DeleteContainerRequest::default()
        };
        let answer = self.0.delete(scoped(request)).await;
        answer.map(|gone| gone.map(drop))
    }

    async fn list(&mut self, filters: &[&str]) -> Result<Response<Vec<String>>, Status> {
        let request = ListContainersRequest {
            filters: texts(filters),
            ..ListContainersRequest::default()
        };
        let answer = self.0.list(scoped(request)).await?;
        Ok(answer.map(|list| list.containers.into_iter().map(|c| c.id).collect()))
    }

    async fn stream(&mut self, filters: &[&str]) -> Result<Response<Vec<String>>, Status> {
        let request = ListContainersRequest {
            filters: texts(filters),
            ..ListContainersRequest::default()
        };
        let mut stream = self.0.list_stream(scoped(request)).await?.into_inner();
        let mut ids = Vec::new();
        while let Some(message) = stream.message().await? {
            ids.push(message.container.id.clone());
        }
        Ok(Response::new(ids))
    }

    /// What both kinds of list say.
    async fn ids(&mut self, filters: &[&str]) -> Vec<String> {
        let list = self.list(filters).await.expect("list").into_inner();
        let stream = self.stream(filters).await.expect("stream");
        assert_eq!(list, stream.into_inner(), "{filters:?}");
        list
    }
}

async fn one_that_is_not_there_is_named(peer: &Peer) {
    let mut containers = Containers::of(peer);
    for _unused_or_used in 0..2 {
        for text in [
            refused(Code::NotFound, containers.get("none").await),
            refused(Code::NotFound, containers.delete("none").await),
            refused(
                Code::NotFound,
                containers.update(container("none"), None).await,
            ),
        ] {
            assert!(
                text.contains("container") && text.contains("none"),
                "{text}"
            );
            assert!(text.ends_with(": not found"), "{text}");
        }
        drop(containers.create(container("other")).await);
    }
}

async fn one_is_stored_whole_and_stamped_by_the_server(peer: &Peer) {
    let mut containers = Containers::of(peer);
    let whole = Container {
        labels: labels(&[("a", "1"), ("b.c/d", "2")]),
        image: "docker.io/library/busybox:1 not a name".into(),
        snapshotter: SNAPSHOTTER.into(),
        snapshot_key: "a b/c".into(),
        extensions: [("x".to_owned(), any("types.containerd.io/x", "7"))].into(),
        created_at: MessageField::some(Timestamp::default()),
        updated_at: MessageField::some(Timestamp::default()),
        ..container("c")
    };
    let before = SystemTime::now().to_wire().seconds;
    let made = containers.create(whole.clone()).await.expect("create");
    let made = made.into_inner();
    assert_eq!(made.created_at, made.updated_at);
    assert!(made.created_at.seconds >= before, "{made:?}");
    let want = Container {
        created_at: made.created_at.clone(),
        updated_at: made.updated_at.clone(),
        ..whole
    };
    assert_eq!(made, want);
    assert_eq!(containers.found("c").await, want);
}

async fn what_it_names_need_not_exist(peer: &Peer) {
    let mut containers = Containers::of(peer);
    let free = Container {
        image: "no such image".into(),
        snapshotter: "no such snapshotter".into(),
        snapshot_key: "no such snapshot".into(),
        ..container("c")
    };
    containers.create(free).await.expect("create");
    assert_eq!(containers.ids(&[]).await, ["c"]);
}

async fn one_that_is_there_is_not_made_again(peer: &Peer) {
    let mut containers = Containers::of(peer);
    containers.create(container("c")).await.expect("create");
    let before = containers.found("c").await;
    let other = Container {
        image: "other".into(),
        ..container("c")
    };
    let text = refused(Code::AlreadyExists, containers.create(other).await);
    assert_eq!(text, "container \"c\": already exists");
    assert_eq!(containers.found("c").await, before);
}

async fn an_id_is_an_identifier(peer: &Peer) {
    let mut containers = Containers::of(peer);
    let long = "x".repeat(77);
    for id in [
        "", "../a", "a/b", "a b", "a:b", "-a", "a-", "a..b", "é", &long,
    ] {
        let text = refused(
            Code::InvalidArgument,
            containers.create(container(id)).await,
        );
        assert!(text.ends_with(": invalid argument"), "{text}");
    }
    assert_eq!(containers.ids(&[]).await, [""; 0]);
    for id in ["a", "a.b", "a_b-c.d", "0", &long[1..]] {
        containers.create(container(id)).await.expect("create");
    }
}

async fn one_that_could_not_run_is_refused(peer: &Peer) {
    let mut containers = Containers::of(peer);
    let without = |change: fn(&mut Container)| {
        let mut made = container("c");
        change(&mut made);
        made
    };
    for bad in [
        without(|c| c.runtime = MessageField::none()),
        without(|c| c.runtime = MessageField::some(Runtime::default())),
        without(|c| c.spec = MessageField::none()),
        without(|c| c.snapshot_key = "k".into()),
        without(|c| drop(c.extensions.insert(String::new(), any("t", "v")))),
    ] {
        let text = refused(Code::InvalidArgument, containers.create(bad).await);
        assert!(text.ends_with(": invalid argument"), "{text}");
    }
    assert_eq!(containers.ids(&[]).await, [""; 0]);
    // A snapshotter without a key is none, nor are options needed.
    let bare = without(|c| {
        c.snapshotter = "s".into();
        c.runtime.mut_or_insert_default().options = MessageField::none();
    });
    containers.create(bare).await.expect("create");
}

async fn a_label_has_4096_bytes_at_most(peer: &Peer) {
    let mut containers = Containers::of(peer);
    let with = |length: usize| Container {
        labels: labels(&[("key", &"v".repeat(length - 3))]),
        ..container("c")
    };
    refused(Code::InvalidArgument, containers.create(with(4097)).await);
    containers.create(with(4096)).await.expect("create");
    for paths in [None, Some(&["labels"][..]), Some(&["labels.key"])] {
        let answer = containers.update(with(4097), paths).await;
        refused(Code::InvalidArgument, answer);
    }
    assert_eq!(containers.found("c").await.labels["key"].len(), 4093);
}

async fn a_label_of_the_empty_value_is_none(peer: &Peer) {
    let mut containers = Containers::of(peer);
    let with = |pairs: &[(&str, &str)]| Container {
        labels: labels(pairs),
        ..container("c")
    };
    let both = with(&[("a", "1"), ("b", "")]);
    containers.create(both.clone()).await.expect("create");
    let want = labels(&[("a", "1")]);
    assert_eq!(containers.found("c").await.labels, want);
    for paths in [None, Some(&["labels"][..]), Some(&["labels.a", "labels.b"])] {
        let emptied = with(&[("a", ""), ("b", "2")]);
        let answer = containers.update(emptied, paths).await.expect("update");
        let want = labels(&[("b", "2")]);
        assert_eq!(answer.into_inner().labels, want);
        assert_eq!(containers.found("c").await.labels, want);
        containers.update(both.clone(), None).await.expect("update");
    }
}

async fn the_making_is_published(peer: &Peer) {
    let mut containers = Containers::of(peer);
    let mut heard = Heard::all(peer).await;
    let made = Container {
        image: "i".into(),
        labels: labels(&[("a", "1")]),
        ..container("c")
    };
    containers.create(made.clone()).await.expect("create");
    let event: ContainerCreate = heard.event("/containers/create").await;
    assert_eq!((event.id.as_str(), event.image.as_str()), ("c", "i"));
    assert_eq!(event.runtime.name, "r");
    assert_eq!(event.runtime.options, made.runtime.options);
    refused(Code::AlreadyExists, containers.create(made).await);
    heard.nothing(peer).await;
}

async fn a_list_is_in_the_order_of_ids(peer: &Peer) {
    let mut containers = Containers::of(peer);
    for id in ["b", "a.b", "a", "B", "a-b", "a0", "10", "9"] {
        containers.create(container(id)).await.expect("create");
    }
    let want = ["10", "9", "B", "a", "a-b", "a.b", "a0", "b"];
    assert_eq!(containers.ids(&[]).await, want);
}

async fn a_list_of_an_unused_namespace_is_empty(peer: &Peer) {
    assert_eq!(Containers::of(peer).ids(&[]).await, [""; 0]);
}

async fn a_stream_has_one_container_per_message(peer: &Peer) {
    let mut containers = Containers::of(peer);
    let ids: Vec<String> = (100..250).map(|n| format!("c{n}")).collect();
    for id in &ids {
        containers.create(container(id)).await.expect("create");
    }
    let stream = containers.stream(&[]).await.expect("stream").into_inner();
    assert_eq!(stream, ids);
}

async fn a_list_is_filtered(peer: &Peer) {
    let mut containers = Containers::of(peer);
    for (id, name, image, pairs) in [
        ("a", "io.containerd.runc.v2", "x:1", &[("k", "1")][..]),
        ("b", "io.containerd.runc.v2", "y:1", &[("a.b/c", "2")]),
        ("c", "other", "", &[("k", "2"), ("a.b/c", "2")]),
    ] {
        let made = Container {
            image: image.into(),
            runtime: runtime(name),
            labels: labels(pairs),
            ..container(id)
        };
        containers.create(made).await.expect("create");
    }
    for (filters, want) in [
        (&["id==b"][..], &["b"][..]),
        (&["id"], &["a", "b", "c"]),
        (&["id!=b"], &["a", "c"]),
        (&["runtime.name==other"], &["c"]),
        (&["runtime.name~=runc"], &["a", "b"]),
        (&["runtime==other"], &[]),
        (&["image==x:1"], &["a"]),
        (&["image"], &["a", "b"]),
        (&["labels.k"], &["a", "c"]),
        (&["labels.k==2"], &["c"]),
        (&["labels.\"a.b/c\"==2"], &["b", "c"]),
        (&["labels"], &[]),
        (&["snapshotter"], &[]),
        (&["snapshotter!=x"], &["a", "b", "c"]),
        (&["labels.k,image"], &["a"]),
        (&["id==c", "id==a"], &["a", "c"]),
        (&["id==none"], &[]),
        (&[""], &["a", "b", "c"]),
    ] {
        assert_eq!(containers.ids(filters).await, want, "{filters:?}");
    }
}

async fn a_filter_of_bad_syntax_is_refused(peer: &Peer) {
    let mut containers = Containers::of(peer);
    for namespace_is_used in [false, true] {
        if namespace_is_used {
            containers.create(container("c")).await.expect("create");
        }
        for filters in [&["id=="][..], &["id==c", "((("]] {
            refused(Code::InvalidArgument, containers.list(filters).await);
            refused(Code::InvalidArgument, containers.stream(filters).await);
        }
    }
}

async fn namespaces_do_not_share_containers(peer: &Peer) {
    let mut containers = Containers::of(peer);
    containers.create(container("c")).await.expect("create");
    let request = GetContainerRequest {
        id: "c".into(),
        ..GetContainerRequest::default()
    };
    let answer = containers.0.get(within("other", request)).await;
    refused(Code::NotFound, answer);
    let list = within("other", ListContainersRequest::default());
    let answer = containers.0.list(list).await.expect("list").into_inner();
    assert!(answer.containers.is_empty());
}

async fn one_is_deleted_once_and_it_is_published(peer: &Peer) {
    let mut containers = Containers::of(peer);
    containers.create(container("c")).await.expect("create");
    let mut heard = Heard::all(peer).await;
    containers.delete("c").await.expect("delete");
    let event: ContainerDelete = heard.event("/containers/delete").await;
    assert_eq!(event.id, "c");
    refused(Code::NotFound, containers.get("c").await);
    refused(Code::NotFound, containers.delete("c").await);
    heard.nothing(peer).await;
}

async fn deletion_leaves_the_snapshot_to_its_lease(peer: &Peer) {
    let mut containers = Containers::of(peer);
    lease(peer, "l", &[]).await;
    prepare(peer, "l", ("k", ""), &[]).await.expect("prepare");
    let with = Container {
        snapshotter: SNAPSHOTTER.into(),
        snapshot_key: "k".into(),
        ..container("c")
    };
    containers.create(with).await.expect("create");
    containers.delete("c").await.expect("delete");
    collect(peer).await;
    assert!(has_snapshot(peer, "k").await);
    end(peer, "l").await;
    assert!(!has_snapshot(peer, "k").await);
}

async fn a_snapshot_lives_as_long_as_its_container(peer: &Peer) {
    let mut containers = Containers::of(peer);
    lease(peer, "l", &[]).await;
    prepare(peer, "l", ("base", ""), &[])
        .await
        .expect("prepare");
    let done = commit_snapshot(peer, "l", ("base", "image")).await;
    done.expect("commit");
    prepare(peer, "l", ("k", "image"), &[])
        .await
        .expect("prepare");
    let with = Container {
        snapshotter: SNAPSHOTTER.into(),
        snapshot_key: "k".into(),
        ..container("c")
    };
    containers.create(with).await.expect("create");
    end(peer, "l").await;
    assert!(has_snapshot(peer, "k").await);
    assert!(has_snapshot(peer, "image").await, "its parent");
    containers.delete("c").await.expect("delete");
    collect(peer).await;
    assert!(!has_snapshot(peer, "k").await);
    assert!(!has_snapshot(peer, "image").await, "its parent");
}

async fn one_keeps_its_sandbox(peer: &Peer) {
    let mut containers = Containers::of(peer);
    let member = Container {
        sandbox: "pod".into(),
        ..container("c")
    };
    containers.create(member.clone()).await.expect("create");
    assert_eq!(containers.found("c").await.sandbox, "pod");
    let moved = Container {
        sandbox: "other".into(),
        ..member
    };
    containers.update(moved, None).await.expect("update");
    assert_eq!(containers.found("c").await.sandbox, "pod");
}
