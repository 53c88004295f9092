//! Leases: the records, and what they list.

use std::collections::HashMap;
use std::time::SystemTime;

use grpc::leases::LeasesClient;
use protos::MessageField;
use protos::services::leases::{
    AddResourceRequest, CreateRequest, DeleteRequest, DeleteResourceRequest, Lease, ListRequest,
    ListResourcesRequest, Resource,
};
use protos::wire::Wire as _;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use crate::heard::Heard;
use crate::peer::{Peer, labels, refused, scoped, texts, within};
use crate::stock::held;

rules! {
    both {
        one_gets_the_id_it_asks_for_or_a_random_one
        one_that_is_there_is_not_made_again
        an_id_is_free_text
        one_keeps_its_labels_and_its_time
        a_list_is_in_the_order_of_ids
        a_list_is_filtered
        namespaces_do_not_share_leases
        one_is_deleted_once
        what_is_not_there_is_named
        nothing_of_them_is_published
        a_resource_is_listed_until_it_is_taken_out
        a_resource_need_not_exist
        a_resource_of_an_unknown_type_is_not_implemented
        a_resource_of_a_bad_form_is_refused
        resources_go_with_their_lease
    }
    ours {
        an_image_is_a_resource
        a_label_has_4096_bytes_at_most
    }
}

struct Leases(LeasesClient<Channel>);

impl Leases {
    fn of(peer: &Peer) -> Self {
        Self(LeasesClient::new(peer.channel()))
    }

    async fn create(
        &mut self,
        id: &str,
        labels: HashMap<String, String>,
    ) -> Result<Response<Lease>, Status> {
        let request = CreateRequest {
            id: id.into(),
            labels,
            ..CreateRequest::default()
        };
        let answer = self.0.create(scoped(request)).await?;
        Ok(answer.map(|made| made.lease.unwrap_or_default()))
    }

    async fn make(&mut self, id: &str) {
        drop(self.create(id, labels(&[])).await.expect("create"));
    }

    async fn delete(&mut self, id: &str, sync: bool) -> Result<Response<()>, Status> {
        let request = DeleteRequest {
            id: id.into(),
            sync,
            ..DeleteRequest::default()
        };
        let answer = self.0.delete(scoped(request)).await;
        answer.map(|gone| gone.map(drop))
    }

    async fn list(&mut self, filters: &[&str]) -> Result<Response<Vec<Lease>>, Status> {
        let request = ListRequest {
            filters: texts(filters),
            ..ListRequest::default()
        };
        let answer = self.0.list(scoped(request)).await?;
        Ok(answer.map(|list| list.leases))
    }

    async fn ids(&mut self, filters: &[&str]) -> Vec<String> {
        let leases = self.list(filters).await.expect("list").into_inner();
        leases.into_iter().map(|lease| lease.id).collect()
    }

    async fn add(&mut self, id: &str, (kind, of): (&str, &str)) -> Result<Response<()>, Status> {
        let request = AddResourceRequest {
            id: id.into(),
            resource: resource(kind, of),
            ..AddResourceRequest::default()
        };
        let answer = self.0.add_resource(scoped(request)).await;
        answer.map(|done| done.map(drop))
    }

    async fn take(&mut self, id: &str, (kind, of): (&str, &str)) -> Result<Response<()>, Status> {
        let request = DeleteResourceRequest {
            id: id.into(),
            resource: resource(kind, of),
            ..DeleteResourceRequest::default()
        };
        let answer = self.0.delete_resource(scoped(request)).await;
        answer.map(|done| done.map(drop))
    }

    async fn resources(&mut self, id: &str) -> Result<Response<usize>, Status> {
        let request = ListResourcesRequest {
            id: id.into(),
            ..ListResourcesRequest::default()
        };
        let answer = self.0.list_resources(scoped(request)).await?;
        Ok(answer.map(|list| list.resources.len()))
    }
}

fn resource(kind: &str, id: &str) -> MessageField<Resource> {
    MessageField::some(Resource {
        id: id.into(),
        type_: kind.into(),
        ..Resource::default()
    })
}

fn digest(digit: char) -> String {
    format!("sha256:{}", digit.to_string().repeat(64))
}

fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    let own = |(kind, id): &(&str, &str)| ((*kind).to_owned(), (*id).to_owned());
    pairs.iter().map(own).collect()
}

async fn one_gets_the_id_it_asks_for_or_a_random_one(peer: &Peer) {
    let mut leases = Leases::of(peer);
    let mut ids = Vec::new();
    for asked in ["mine", "", ""] {
        let made = leases.create(asked, labels(&[])).await.expect("create");
        let made = made.into_inner();
        assert!(!made.id.is_empty());
        assert!(asked.is_empty() || made.id == asked, "{made:?}");
        ids.push(made.id);
    }
    assert_ne!(ids[1], ids[2]);
    ids.sort();
    assert_eq!(leases.ids(&[]).await, ids);
}

async fn one_that_is_there_is_not_made_again(peer: &Peer) {
    let mut leases = Leases::of(peer);
    let kept = labels(&[("a", "1")]);
    leases.create("l", kept.clone()).await.expect("create");
    let again = leases.create("l", labels(&[("a", "2")])).await;
    let text = refused(Code::AlreadyExists, again);
    assert_eq!(text, "lease \"l\": already exists");
    let list = leases.list(&[]).await.expect("list").into_inner();
    assert_eq!((list.len(), &list[0].labels), (1, &kept));
}

async fn an_id_is_free_text(peer: &Peer) {
    let mut leases = Leases::of(peer);
    let long = "x/".repeat(500);
    for id in ["a/b", "../a", "a b:c@d", "-", "é\u{1f433}", &long] {
        leases.make(id).await;
        assert_eq!(leases.ids(&[]).await, [id]);
        let blob = digest('1');
        leases.add(id, ("content", &blob)).await.expect("add");
        assert_eq!(held(peer, id).await, owned(&[("content", &blob)]));
        leases.delete(id, false).await.expect("delete");
    }
}

async fn one_keeps_its_labels_and_its_time(peer: &Peer) {
    let mut leases = Leases::of(peer);
    let before = SystemTime::now().to_wire().seconds;
    let given = labels(&[("a", "1"), ("b.c/d", "2"), ("e", "")]);
    let made = leases
        .create("l", given)
        .await
        .expect("create")
        .into_inner();
    assert!(made.created_at.seconds >= before, "{made:?}");
    let list = leases.list(&[]).await.expect("list").into_inner();
    assert_eq!(list[0].labels, labels(&[("a", "1"), ("b.c/d", "2")]));
    assert_eq!(list, [made]);
}

async fn a_list_is_in_the_order_of_ids(peer: &Peer) {
    let mut leases = Leases::of(peer);
    assert_eq!(leases.ids(&[]).await, [""; 0]);
    for id in ["b", "a/b", "a", "B", "a b"] {
        leases.make(id).await;
    }
    assert_eq!(leases.ids(&[]).await, ["B", "a", "a b", "a/b", "b"]);
}

async fn a_list_is_filtered(peer: &Peer) {
    let mut leases = Leases::of(peer);
    for (id, pairs) in [
        ("a/1", &[("k", "1")][..]),
        ("b", &[("a.b/c", "2")]),
        ("c", &[]),
    ] {
        leases.create(id, labels(pairs)).await.expect("create");
    }
    for (filters, want) in [
        (&["id==a/1"][..], &["a/1"][..]),
        (&["id!=b"], &["a/1", "c"]),
        (&["id~=^[bc]$"], &["b", "c"]),
        (&["labels.k==1"], &["a/1"]),
        (&["labels.\"a.b/c\""], &["b"]),
        (&["labels.k!=1"], &["b", "c"]),
        (&["created_at"], &[]),
        (&["id==b", "labels.k"], &["a/1", "b"]),
    ] {
        assert_eq!(leases.ids(filters).await, want, "{filters:?}");
    }
    refused(Code::InvalidArgument, leases.list(&["id=="]).await);
}

async fn namespaces_do_not_share_leases(peer: &Peer) {
    let mut leases = Leases::of(peer);
    leases.make("l").await;
    let other = within("other", ListRequest::default());
    let answer = leases.0.list(other).await.expect("list").into_inner();
    assert!(answer.leases.is_empty());
    let request = ListResourcesRequest {
        id: "l".into(),
        ..ListResourcesRequest::default()
    };
    let answer = leases.0.list_resources(within("other", request)).await;
    refused(Code::NotFound, answer);
}

async fn one_is_deleted_once(peer: &Peer) {
    let mut leases = Leases::of(peer);
    for sync in [false, true] {
        leases.make("l").await;
        leases.delete("l", sync).await.expect("delete");
        assert_eq!(leases.ids(&[]).await, [""; 0]);
        refused(Code::NotFound, leases.delete("l", sync).await);
    }
}

async fn what_is_not_there_is_named(peer: &Peer) {
    let mut leases = Leases::of(peer);
    let blob = digest('1');
    for _unused_or_used in 0..2 {
        for text in [
            refused(Code::NotFound, leases.delete("none", false).await),
            refused(Code::NotFound, leases.delete("none", true).await),
            refused(Code::NotFound, leases.add("none", ("content", &blob)).await),
            refused(
                Code::NotFound,
                leases.take("none", ("content", &blob)).await,
            ),
            refused(Code::NotFound, leases.resources("none").await),
        ] {
            assert_eq!(text, "lease \"none\": not found");
        }
        drop(leases.create("other", labels(&[])).await);
    }
}

async fn nothing_of_them_is_published(peer: &Peer) {
    let mut leases = Leases::of(peer);
    let mut heard = Heard::all(peer).await;
    leases.make("l").await;
    leases.add("l", ("ingests", "r")).await.expect("add");
    leases.take("l", ("ingests", "r")).await.expect("take");
    leases.delete("l", true).await.expect("delete");
    heard.nothing(peer).await;
}

async fn a_resource_is_listed_until_it_is_taken_out(peer: &Peer) {
    let mut leases = Leases::of(peer);
    leases.make("l").await;
    assert!(held(peer, "l").await.is_empty());
    let (one, two) = (digest('1'), digest('2'));
    let all = [
        ("content", one.as_str()),
        ("content", &two),
        ("ingests", "a b/c:d"),
        ("snapshots/native", "k/1 x"),
        ("snapshots/overlayfs", "k"),
    ];
    for each in all {
        leases.add("l", each).await.expect("add");
        leases.add("l", each).await.expect("once more");
    }
    assert_eq!(held(peer, "l").await, owned(&all));
    for (number, each) in all.into_iter().enumerate() {
        leases.take("l", each).await.expect("take");
        let left = owned(&all[number + 1..]);
        assert_eq!(held(peer, "l").await, left);
        leases.take("l", each).await.expect("once more");
    }
}

async fn a_resource_need_not_exist(peer: &Peer) {
    let mut leases = Leases::of(peer);
    leases.make("l").await;
    let nowhere = ("snapshots/nosuch", "k");
    leases.add("l", nowhere).await.expect("add");
    assert_eq!(held(peer, "l").await, owned(&[nowhere]));
    leases.delete("l", true).await.expect("delete");
}

async fn a_resource_of_an_unknown_type_is_not_implemented(peer: &Peer) {
    let mut leases = Leases::of(peer);
    leases.make("l").await;
    for kind in [
        "",
        "volumes",
        "containers",
        "Content",
        "snapshot/native",
        "/content",
    ] {
        refused(Code::Unimplemented, leases.add("l", (kind, "x")).await);
        refused(Code::Unimplemented, leases.take("l", (kind, "x")).await);
    }
    assert!(held(peer, "l").await.is_empty());
}

async fn a_resource_of_a_bad_form_is_refused(peer: &Peer) {
    let mut leases = Leases::of(peer);
    leases.make("l").await;
    let blob = digest('1');
    for (kind, id) in [
        ("content", "x"),
        ("content", ""),
        ("content", "sha256:abc"),
        ("content/x", blob.as_str()),
        ("ingests/x", "r"),
        ("snapshots", "k"),
        ("snapshots/a/b", "k"),
    ] {
        refused(Code::InvalidArgument, leases.add("l", (kind, id)).await);
        refused(Code::InvalidArgument, leases.take("l", (kind, id)).await);
    }
    assert!(held(peer, "l").await.is_empty());
}

async fn resources_go_with_their_lease(peer: &Peer) {
    let mut leases = Leases::of(peer);
    leases.make("l").await;
    leases.add("l", ("ingests", "r")).await.expect("add");
    leases.delete("l", false).await.expect("delete");
    leases.make("l").await;
    assert!(held(peer, "l").await.is_empty());
}

async fn an_image_is_a_resource(peer: &Peer) {
    let mut leases = Leases::of(peer);
    leases.make("l").await;
    let image = ("images", "docker.io/library/busybox:1");
    leases.add("l", image).await.expect("add");
    assert_eq!(held(peer, "l").await, owned(&[image]));
    leases.take("l", image).await.expect("take");
    assert!(held(peer, "l").await.is_empty());
    refused(Code::InvalidArgument, leases.add("l", ("images", "")).await);
    let answer = leases.add("l", ("images/x", "i")).await;
    refused(Code::InvalidArgument, answer);
}

async fn a_label_has_4096_bytes_at_most(peer: &Peer) {
    let mut leases = Leases::of(peer);
    let with = |length: usize| labels(&[("key", &"v".repeat(length - 3))]);
    refused(Code::InvalidArgument, leases.create("l", with(4097)).await);
    assert_eq!(leases.ids(&[]).await, [""; 0]);
    leases.create("l", with(4096)).await.expect("create");
}
