//! Images: making, finding and removing names of descriptors.

use std::time::SystemTime;

use grpc::images::ImagesClient;
use protos::MessageField;
use protos::services::images::{
    CreateImageRequest, DeleteImageRequest, GetImageRequest, Image, ImageCreate, ImageDelete,
    ListImagesRequest, UpdateImageRequest,
};
use protos::types::Descriptor;
use protos::well_known::Timestamp;
use protos::wire::Wire as _;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use crate::heard::Heard;
use crate::peer::{Peer, labels, leased, mask, refused, scoped, texts, within};
use crate::stock::{collect, end, has_blob, held, lease, put};

rules! {
    both {
        one_that_is_not_there_is_named
        one_is_stored_whole_and_stamped_by_the_server
        its_target_need_not_exist
        a_name_is_free_text
        one_that_is_there_is_not_made_again
        one_without_name_or_whole_target_is_refused
        a_label_has_4096_bytes_at_most
        a_label_of_the_empty_value_is_none
        the_making_is_published_in_the_package_of_images
        a_list_is_in_the_order_of_names
        a_list_is_filtered
        a_filter_of_bad_syntax_is_refused
        namespaces_do_not_share_images
        one_is_deleted_once_and_it_is_published
        a_synchronous_deletion_collects_before_the_answer
        another_deletion_leaves_that_to_the_collector
        one_that_does_not_expire_needs_no_lease
    }
    ours {
        a_deletion_can_ask_for_a_target
        an_epoch_takes_the_place_of_the_clock
        one_that_expires_joins_the_lease
    }
}

/// An image of a name, whose target is of nothing but this digit.
pub(crate) fn image(name: &str, digit: char) -> Image {
    Image {
        name: name.into(),
        target: target(&format!("sha256:{}", digit.to_string().repeat(64))),
        ..Image::default()
    }
}

/// A descriptor of a digest.
pub(crate) fn target(digest: &str) -> MessageField<Descriptor> {
    MessageField::some(Descriptor {
        media_type: "application/vnd.oci.image.index.v1+json".into(),
        digest: digest.into(),
        size: 7,
        ..Descriptor::default()
    })
}

pub(crate) fn create_image(image: Image) -> CreateImageRequest {
    CreateImageRequest {
        image: MessageField::some(image),
        ..CreateImageRequest::default()
    }
}

pub(crate) struct Images(ImagesClient<Channel>);

impl Images {
    pub(crate) fn of(peer: &Peer) -> Self {
        Self(ImagesClient::new(peer.channel()))
    }

    pub(crate) async fn create(&mut self, image: Image) -> Result<Response<Image>, Status> {
        let answer = self.0.create(scoped(create_image(image))).await?;
        Ok(answer.map(|made| made.image.unwrap_or_default()))
    }

    async fn get(&mut self, name: &str) -> Result<Response<Image>, Status> {
        let request = GetImageRequest {
            name: name.into(),
            ..GetImageRequest::default()
        };
        let answer = self.0.get(scoped(request)).await?;
        Ok(answer.map(|found| found.image.unwrap_or_default()))
    }

    pub(crate) async fn found(&mut self, name: &str) -> Image {
        self.get(name).await.expect("get").into_inner()
    }

    pub(crate) async fn update(
        &mut self,
        image: Image,
        paths: Option<&[&str]>,
    ) -> Result<Response<Image>, Status> {
        let request = UpdateImageRequest {
            image: MessageField::some(image),
            update_mask: paths.map(mask).unwrap_or_default(),
            ..UpdateImageRequest::default()
        };
        self.update_with(request).await
    }

    pub(crate) async fn update_with(
        &mut self,
        request: UpdateImageRequest,
    ) -> Result<Response<Image>, Status> {
        let answer = self.0.update(scoped(request)).await?;
        Ok(answer.map(|done| done.image.unwrap_or_default()))
    }

    async fn delete_with(&mut self, request: DeleteImageRequest) -> Result<Response<()>, Status> {
        let answer = self.0.delete(scoped(request)).await;
        answer.map(|gone| gone.map(drop))
    }

    pub(crate) async fn delete(&mut self, name: &str, sync: bool) -> Result<Response<()>, Status> {
        let request = DeleteImageRequest {
            name: name.into(),
            sync,
            ..DeleteImageRequest::default()
        };
        self.delete_with(request).await
    }

    pub(crate) async fn list(&mut self, filters: &[&str]) -> Result<Response<Vec<String>>, Status> {
        let request = ListImagesRequest {
            filters: texts(filters),
            ..ListImagesRequest::default()
        };
        let answer = self.0.list(scoped(request)).await?;
        Ok(answer.map(|list| list.images.into_iter().map(|image| image.name).collect()))
    }

    pub(crate) async fn names(&mut self, filters: &[&str]) -> Vec<String> {
        self.list(filters).await.expect("list").into_inner()
    }
}

async fn one_that_is_not_there_is_named(peer: &Peer) {
    let mut images = Images::of(peer);
    for _unused_or_used in 0..2 {
        for text in [
            refused(Code::NotFound, images.get("none").await),
            refused(Code::NotFound, images.delete("none", false).await),
            refused(Code::NotFound, images.delete("none", true).await),
            refused(
                Code::NotFound,
                images.update(image("none", '1'), None).await,
            ),
        ] {
            assert_eq!(text, "image \"none\": not found");
        }
        drop(images.create(image("other", '1')).await);
    }
}

async fn one_is_stored_whole_and_stamped_by_the_server(peer: &Peer) {
    let mut images = Images::of(peer);
    let mut whole = Image {
        labels: labels(&[("a", "1"), ("b.c/d", "2")]),
        created_at: MessageField::some(Timestamp::default()),
        updated_at: MessageField::some(Timestamp::default()),
        ..image("i", '1')
    };
    whole.target.mut_or_insert_default().annotations = labels(&[("x", "y"), ("z.w/v", "u")]);
    let before = SystemTime::now().to_wire().seconds;
    let made = images
        .create(whole.clone())
        .await
        .expect("create")
        .into_inner();
    assert_eq!(made.created_at, made.updated_at);
    assert!(made.created_at.seconds >= before, "{made:?}");
    let want = Image {
        created_at: made.created_at.clone(),
        updated_at: made.updated_at.clone(),
        ..whole
    };
    assert_eq!(made, want);
    assert_eq!(images.found("i").await, want);
}

async fn its_target_need_not_exist(peer: &Peer) {
    let mut images = Images::of(peer);
    let made = image("i", '1');
    let digest = made.target.digest.clone();
    images.create(made).await.expect("create");
    assert!(!has_blob(peer, &digest).await);
    assert_eq!(images.names(&[]).await, ["i"]);
}

async fn a_name_is_free_text(peer: &Peer) {
    let mut images = Images::of(peer);
    let long = "x/".repeat(500);
    for name in [
        "docker.io/library/busybox:1",
        "a@sha256:0",
        "../a",
        "a b",
        "é\u{1f433}",
        "/",
        ":",
        &long,
    ] {
        let made = images.create(image(name, '1')).await.expect("create");
        assert_eq!(images.found(name).await, made.into_inner());
        images.delete(name, false).await.expect("delete");
    }
}

async fn one_that_is_there_is_not_made_again(peer: &Peer) {
    let mut images = Images::of(peer);
    images.create(image("i", '1')).await.expect("create");
    let before = images.found("i").await;
    let text = refused(Code::AlreadyExists, images.create(image("i", '2')).await);
    assert_eq!(text, "image \"i\": already exists");
    assert_eq!(images.found("i").await, before);
}

async fn one_without_name_or_whole_target_is_refused(peer: &Peer) {
    let mut images = Images::of(peer);
    let changed: [fn(&mut Image); 9] = [
        |i| i.name = String::new(),
        |i| i.target = MessageField::none(),
        |i| i.target.mut_or_insert_default().digest = String::new(),
        |i| i.target.mut_or_insert_default().digest = "sha256:abc".into(),
        |i| i.target.mut_or_insert_default().digest = format!("md5:{}", "0".repeat(32)),
        |i| i.target.mut_or_insert_default().digest = "0".repeat(64),
        |i| i.target.mut_or_insert_default().size = 0,
        |i| i.target.mut_or_insert_default().size = -1,
        |i| i.target.mut_or_insert_default().media_type = String::new(),
    ];
    images.create(image("there", '1')).await.expect("create");
    let there = images.found("there").await;
    for change in changed {
        let mut bad = image("i", '2');
        change(&mut bad);
        refused(Code::InvalidArgument, images.create(bad.clone()).await);
        if !bad.name.is_empty() {
            bad.name = "there".into();
        }
        for paths in [None, Some(&["target"][..])] {
            let answer = images.update(bad.clone(), paths).await;
            refused(Code::InvalidArgument, answer);
        }
    }
    assert_eq!(images.names(&[]).await, ["there"]);
    assert_eq!(images.found("there").await, there);
}

async fn a_label_has_4096_bytes_at_most(peer: &Peer) {
    let mut images = Images::of(peer);
    let with = |length: usize| Image {
        labels: labels(&[("key", &"v".repeat(length - 3))]),
        ..image("i", '1')
    };
    refused(Code::InvalidArgument, images.create(with(4097)).await);
    images.create(with(4096)).await.expect("create");
    for paths in [None, Some(&["labels"][..]), Some(&["labels.key"])] {
        refused(
            Code::InvalidArgument,
            images.update(with(4097), paths).await,
        );
    }
    assert_eq!(images.found("i").await.labels["key"].len(), 4093);
}

async fn a_label_of_the_empty_value_is_none(peer: &Peer) {
    let mut images = Images::of(peer);
    let with = |pairs: &[(&str, &str)]| Image {
        labels: labels(pairs),
        ..image("i", '1')
    };
    let both = with(&[("a", "1"), ("b", "")]);
    images.create(both.clone()).await.expect("create");
    assert_eq!(images.found("i").await.labels, labels(&[("a", "1")]));
    for paths in [None, Some(&["labels"][..]), Some(&["labels.a", "labels.b"])] {
        let emptied = with(&[("a", ""), ("b", "2")]);
        let answer = images.update(emptied, paths).await.expect("update");
        let want = labels(&[("b", "2")]);
        assert_eq!(answer.into_inner().labels, want);
        assert_eq!(images.found("i").await.labels, want);
        images.update(both.clone(), None).await.expect("update");
    }
}

async fn the_making_is_published_in_the_package_of_images(peer: &Peer) {
    let mut images = Images::of(peer);
    let mut heard = Heard::all(peer).await;
    let made = Image {
        labels: labels(&[("a", "1"), ("b", "")]),
        ..image("i", '1')
    };
    images.create(made.clone()).await.expect("create");
    let event: ImageCreate = heard.event("/images/create").await;
    assert_eq!(event.name, "i");
    assert_eq!(event.labels, labels(&[("a", "1")]));
    refused(Code::AlreadyExists, images.create(made).await);
    heard.nothing(peer).await;
}

async fn a_list_is_in_the_order_of_names(peer: &Peer) {
    let mut images = Images::of(peer);
    assert_eq!(images.names(&[]).await, [""; 0]);
    for name in ["b", "a/b", "a", "B", "a b", "é", "a:1", "a.b"] {
        images.create(image(name, '1')).await.expect("create");
    }
    let want = ["B", "a", "a b", "a.b", "a/b", "a:1", "b", "é"];
    assert_eq!(images.names(&[]).await, want);
}

async fn a_list_is_filtered(peer: &Peer) {
    let mut images = Images::of(peer);
    for (name, digit, kind, pairs, notes) in [
        ("x/a:1", '1', "m/1", &[("k", "1")][..], &[("n", "1")][..]),
        ("x/b:1", '2', "m/1", &[("a.b/c", "2")], &[]),
        ("y/c", '2', "m/2", &[("k", "2")], &[("o.p/q", "2")]),
    ] {
        let mut made = Image {
            labels: labels(pairs),
            ..image(name, digit)
        };
        let target = made.target.mut_or_insert_default();
        target.media_type = kind.into();
        target.annotations = labels(notes);
        images.create(made).await.expect("create");
    }
    let digest = format!("target.digest==sha256:{}", "2".repeat(64));
    for (filters, want) in [
        (&["name==x/a:1"][..], &["x/a:1"][..]),
        (&["name~=^x/"], &["x/a:1", "x/b:1"]),
        (&["name~=/b:[0-9]$/"], &["x/b:1"]),
        (&["name!=y/c"], &["x/a:1", "x/b:1"]),
        (&[&digest], &["x/b:1", "y/c"]),
        (&["target.mediatype==m/2"], &["y/c"]),
        (&["target.mediaType==m/2"], &[]),
        (&["target"], &[]),
        (&["target.size"], &[]),
        (&["labels.k"], &["x/a:1", "y/c"]),
        (&["labels.\"a.b/c\"==2"], &["x/b:1"]),
        (&["annotations.n==1"], &["x/a:1"]),
        (&["annotations.\"o.p/q\""], &["y/c"]),
        (&["labels.k,target.mediatype==m/1"], &["x/a:1"]),
        (&["name==y/c", "labels.k==1"], &["x/a:1", "y/c"]),
    ] {
        assert_eq!(images.names(filters).await, want, "{filters:?}");
    }
}

async fn a_filter_of_bad_syntax_is_refused(peer: &Peer) {
    let mut images = Images::of(peer);
    for namespace_is_used in [false, true] {
        if namespace_is_used {
            images.create(image("i", '1')).await.expect("create");
        }
        let text = refused(Code::InvalidArgument, images.list(&["name=="]).await);
        assert!(text.ends_with(": invalid argument"), "{text}");
    }
}

async fn namespaces_do_not_share_images(peer: &Peer) {
    let mut images = Images::of(peer);
    images.create(image("i", '1')).await.expect("create");
    let list = within("other", ListImagesRequest::default());
    let answer = images.0.list(list).await.expect("list").into_inner();
    assert!(answer.images.is_empty());
    let request = within("other", create_image(image("i", '2')));
    drop(images.0.create(request).await.expect("create"));
    assert_eq!(images.found("i").await.target, image("i", '1').target);
}

async fn one_is_deleted_once_and_it_is_published(peer: &Peer) {
    let mut images = Images::of(peer);
    images.create(image("i", '1')).await.expect("create");
    let mut heard = Heard::all(peer).await;
    images.delete("i", false).await.expect("delete");
    let event: ImageDelete = heard.event("/images/delete").await;
    assert_eq!(event.name, "i");
    refused(Code::NotFound, images.get("i").await);
    refused(Code::NotFound, images.delete("i", false).await);
    heard.nothing(peer).await;
}

/// An image whose target is there and held by nothing else.
async fn whole(peer: &Peer, images: &mut Images) -> String {
    lease(peer, "l", &[]).await;
    let digest = put(peer, "l", "data", &[]).await;
    let made = Image {
        target: target(&digest),
        ..image("i", '0')
    };
    images.create(made).await.expect("create");
    end(peer, "l").await;
    assert!(has_blob(peer, &digest).await);
    digest
}

async fn a_synchronous_deletion_collects_before_the_answer(peer: &Peer) {
    let mut images = Images::of(peer);
    let digest = whole(peer, &mut images).await;
    images.delete("i", true).await.expect("delete");
    assert!(!has_blob(peer, &digest).await);
}

async fn another_deletion_leaves_that_to_the_collector(peer: &Peer) {
    let mut images = Images::of(peer);
    let digest = whole(peer, &mut images).await;
    images.delete("i", false).await.expect("delete");
    collect(peer).await;
    assert!(!has_blob(peer, &digest).await);
}

async fn one_that_does_not_expire_needs_no_lease(peer: &Peer) {
    let mut images = Images::of(peer);
    let request = leased("none", create_image(image("i", '1')));
    drop(images.0.create(request).await.expect("create"));
    lease(peer, "l", &[]).await;
    let request = leased("l", create_image(image("j", '1')));
    drop(images.0.create(request).await.expect("create"));
    assert!(held(peer, "l").await.is_empty());
}

async fn a_deletion_can_ask_for_a_target(peer: &Peer) {
    let mut images = Images::of(peer);
    images.create(image("i", '1')).await.expect("create");
    let asking = |digit| DeleteImageRequest {
        name: "i".into(),
        target: image("i", digit).target,
        ..DeleteImageRequest::default()
    };
    refused(Code::NotFound, images.delete_with(asking('2')).await);
    assert_eq!(images.names(&[]).await, ["i"]);
    images.delete_with(asking('1')).await.expect("delete");
    assert_eq!(images.names(&[]).await, [""; 0]);
}

async fn an_epoch_takes_the_place_of_the_clock(peer: &Peer) {
    let mut images = Images::of(peer);
    let at = |seconds| {
        MessageField::some(Timestamp {
            seconds,
            ..Timestamp::default()
        })
    };
    let request = CreateImageRequest {
        source_date_epoch: at(1000),
        ..create_image(image("i", '1'))
    };
    drop(images.0.create(scoped(request)).await.expect("create"));
    let made = images.found("i").await;
    assert_eq!((made.created_at, made.updated_at), (at(1000), at(1000)));
    let request = UpdateImageRequest {
        image: MessageField::some(image("i", '2')),
        source_date_epoch: at(2000),
        ..UpdateImageRequest::default()
    };
    images.update_with(request).await.expect("update");
    let done = images.found("i").await;
    assert_eq!((done.created_at, done.updated_at), (at(1000), at(2000)));
}

async fn one_that_expires_joins_the_lease(peer: &Peer) {
    let mut images = Images::of(peer);
    let expiring = |name| Image {
        labels: labels(&[("containerd.io/gc.expire", "2000-01-01T00:00:00Z")]),
        ..image(name, '1')
    };
    let request = leased("none", create_image(expiring("i")));
    let text = refused(Code::NotFound, images.0.create(request).await);
    assert_eq!(text, "lease does not exist: not found");
    assert_eq!(images.names(&[]).await, [""; 0]);
    lease(peer, "l", &[]).await;
    let request = leased("l", create_image(expiring("i")));
    drop(images.0.create(request).await.expect("create"));
    assert_eq!(
        held(peer, "l").await,
        [("images".to_owned(), "i".to_owned())]
    );
    collect(peer).await;
    assert_eq!(images.names(&[]).await, ["i"]);
    end(peer, "l").await;
    assert_eq!(images.names(&[]).await, [""; 0]);
}
