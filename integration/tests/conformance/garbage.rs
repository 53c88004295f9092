//! Labels that keep things from the collector.

use grpc::images::ImagesClient;
use protos::services::containers::Container;
use protos::services::images::{Image, ImageDelete};
use tonic::Code;

use crate::containers::{Containers, container};
use crate::heard::Heard;
use crate::images::{Images, create_image, image, target};
use crate::peer::{Peer, labels, leased, refused, within};
use crate::stock::{collect, end, has_blob, has_snapshot, lease, prepare, put};

rules! {
    both {
        a_label_on_an_image_keeps_blobs_and_snapshots
        a_label_on_a_container_keeps_blobs_and_snapshots
        a_label_of_no_such_form_keeps_nothing
        what_a_label_names_need_not_exist
        an_image_keeps_all_below_its_target
        references_stay_in_their_namespace
    }
    ours {
        an_image_that_expires_is_collected
        a_label_keeps_an_image_that_has_expired
        an_image_keeps_what_refers_back_to_it
        a_container_keeps_what_refers_back_to_it
        a_blob_keeps_what_refers_back_to_it
        a_snapshot_keeps_what_refers_back_to_it
        what_refers_back_to_nothing_is_not_kept
    }
}

const KEEPS_BLOB: &str = "containerd.io/gc.ref.content";
const KEEPS_SNAPSHOT: &str = "containerd.io/gc.ref.snapshot.native";
const KEEPS_IMAGE: &str = "containerd.io/gc.ref.image";
const BACK_TO: &str = "containerd.io/gc.bref";
/// An image with this has expired.
const EXPIRED: (&str, &str) = ("containerd.io/gc.expire", "2000-01-01T00:00:00Z");

/// Blobs and a snapshot under a lease `l`, and labels that keep them.
async fn kept(peer: &Peer) -> (Vec<String>, Vec<(String, String)>) {
    lease(peer, "l", &[]).await;
    let mut blobs = Vec::new();
    let mut pairs = Vec::new();
    for name in ["", ".name", ".l.0", "/name"] {
        blobs.push(put(peer, "l", &format!("data {name}"), &[]).await);
        let digest = blobs.last().expect("one").clone();
        pairs.push((format!("{KEEPS_BLOB}{name}"), digest));
    }
    prepare(peer, "l", ("k", ""), &[]).await.expect("prepare");
    pairs.push((KEEPS_SNAPSHOT.to_owned(), "k".to_owned()));
    (blobs, pairs)
}

async fn a_label_on_an_image_keeps_blobs_and_snapshots(peer: &Peer) {
    let (blobs, pairs) = kept(peer).await;
    let mut images = Images::of(peer);
    let keeper = Image {
        labels: pairs.into_iter().collect(),
        ..image("i", '1')
    };
    images.create(keeper).await.expect("create");
    end(peer, "l").await;
    for digest in &blobs {
        assert!(has_blob(peer, digest).await);
    }
    assert!(has_snapshot(peer, "k").await);
    images.delete("i", true).await.expect("delete");
    for digest in &blobs {
        assert!(!has_blob(peer, digest).await);
    }
    assert!(!has_snapshot(peer, "k").await);
}

async fn a_label_on_a_container_keeps_blobs_and_snapshots(peer: &Peer) {
    let (blobs, pairs) = kept(peer).await;
    let mut containers = Containers::of(peer);
    let keeper = Container {
        labels: pairs.into_iter().collect(),
        ..container("c")
    };
    containers.create(keeper).await.expect("create");
    end(peer, "l").await;
    for digest in &blobs {
        assert!(has_blob(peer, digest).await);
    }
    assert!(has_snapshot(peer, "k").await);
    // Without the label it is not kept any more.
    let answer = containers.update(container("c"), Some(&["labels"])).await;
    answer.expect("update");
    collect(peer).await;
    for digest in &blobs {
        assert!(!has_blob(peer, digest).await);
    }
    assert!(!has_snapshot(peer, "k").await);
}

async fn a_label_of_no_such_form_keeps_nothing(peer: &Peer) {
    lease(peer, "l", &[]).await;
    let blob = put(peer, "l", "data", &[]).await;
    prepare(peer, "l", ("k", ""), &[]).await.expect("prepare");
    let keeper = Image {
        labels: labels(&[
            ("containerd.io/gc.ref.contents", &blob),
            ("containerd.io/gc.ref.Content", &blob),
            ("gc.ref.content", &blob),
            ("containerd.io/gc.ref.snapshot", "k"),
            ("containerd.io/gc.ref.snapshot.overlayfs", "k"),
            ("containerd.io/gc.ref.snapshotnative", "k"),
            // Only blobs and snapshots can be roots by themselves.
            ("containerd.io/gc.root", "true"),
        ]),
        ..image("i", '1')
    };
    let mut images = Images::of(peer);
    images.create(keeper).await.expect("create");
    end(peer, "l").await;
    assert!(!has_blob(peer, &blob).await);
    assert!(!has_snapshot(peer, "k").await);
}

async fn what_a_label_names_need_not_exist(peer: &Peer) {
    let keeper = Image {
        labels: labels(&[
            (KEEPS_BLOB, "no digest"),
            (KEEPS_SNAPSHOT, "none"),
            ("containerd.io/gc.ref.snapshot.nosuch", "none"),
            ("containerd.io/gc.ref.snapshot.", "none"),
        ]),
        ..image("i", '1')
    };
    let mut images = Images::of(peer);
    images.create(keeper).await.expect("create");
    collect(peer).await;
    assert_eq!(images.names(&[]).await, ["i"]);
}

/// As a pull leaves it: index, manifest, config with the unpacked snapshot, layer.
async fn an_image_keeps_all_below_its_target(peer: &Peer) {
    lease(peer, "l", &[]).await;
    prepare(peer, "l", ("chain", ""), &[])
        .await
        .expect("prepare");
    let layer = put(peer, "l", "layer", &[]).await;
    let unpacked = [(KEEPS_SNAPSHOT, "chain")];
    let config = put(peer, "l", "config", &unpacked).await;
    let children = [
        ("containerd.io/gc.ref.content.config", config.as_str()),
        ("containerd.io/gc.ref.content.l.0", &layer),
    ];
    let manifest = put(peer, "l", "manifest", &children).await;
    let children = [("containerd.io/gc.ref.content.m.0", manifest.as_str())];
    let index = put(peer, "l", "index", &children).await;
    let mut images = Images::of(peer);
    let made = Image {
        target: target(&index),
        ..image("i", '0')
    };
    images.create(made).await.expect("create");
    end(peer, "l").await;
    let all = [&index, &manifest, &config, &layer];
    for digest in all {
        assert!(has_blob(peer, digest).await);
    }
    assert!(has_snapshot(peer, "chain").await);
    images.delete("i", true).await.expect("delete");
    for digest in all {
        assert!(!has_blob(peer, digest).await);
    }
    assert!(!has_snapshot(peer, "chain").await);
}

async fn references_stay_in_their_namespace(peer: &Peer) {
    lease(peer, "l", &[]).await;
    let blob = put(peer, "l", "data", &[]).await;
    let keeper = Image {
        target: target(&blob),
        labels: labels(&[(KEEPS_BLOB, &blob)]),
        ..image("i", '0')
    };
    let request = create_image(keeper);
    let mut client = ImagesClient::new(peer.channel());
    let answer = client.create(within("other", request)).await;
    drop(answer.expect("create"));
    end(peer, "l").await;
    assert!(!has_blob(peer, &blob).await);
}

/// An image that has expired, with a target, kept by lease `l` alone.
async fn expired(peer: &Peer) -> String {
    lease(peer, "l", &[]).await;
    let blob = put(peer, "l", "data", &[]).await;
    let made = Image {
        target: target(&blob),
        labels: labels(&[EXPIRED]),
        ..image("old", '0')
    };
    let request = leased("l", create_image(made));
    let mut client = ImagesClient::new(peer.channel());
    drop(client.create(request).await.expect("create"));
    blob
}

async fn an_image_that_expires_is_collected(peer: &Peer) {
    let blob = expired(peer).await;
    let mut images = Images::of(peer);
    let late = Image {
        labels: labels(&[("containerd.io/gc.expire", "2999-12-31T23:59:59Z")]),
        ..image("late", '1')
    };
    images.create(late).await.expect("create");
    let mut heard = Heard::matching(peer, &["topic==\"/images/delete\""]).await;
    collect(peer).await;
    assert_eq!(images.names(&[]).await, ["late", "old"]);
    end(peer, "l").await;
    assert_eq!(images.names(&[]).await, ["late"]);
    assert!(!has_blob(peer, &blob).await);
    let event: ImageDelete = heard.event("/images/delete").await;
    assert_eq!(event.name, "old");
}

async fn a_label_keeps_an_image_that_has_expired(peer: &Peer) {
    let blob = expired(peer).await;
    let mut images = Images::of(peer);
    let keeper = Image {
        labels: labels(&[(&format!("{KEEPS_IMAGE}.x"), "old")]),
        ..image("i", '1')
    };
    images.create(keeper).await.expect("create");
    end(peer, "l").await;
    assert_eq!(images.names(&[]).await, ["i", "old"]);
    assert!(has_blob(peer, &blob).await);
    images.delete("i", true).await.expect("delete");
    assert_eq!(images.names(&[]).await, [""; 0]);
    assert!(!has_blob(peer, &blob).await);
}

/// A blob, a snapshot and an image that has expired, each with a label that leads back to `of`. The
/// lease that made them has ended.
async fn back(peer: &Peer, kind: &str, of: &str) -> String {
    lease(peer, "back", &[]).await;
    let named = format!("{BACK_TO}.{kind}");
    let blob = put(peer, "back", "back", &[(&named, of)]).await;
    prepare(peer, "back", ("back", ""), &[(&named, of)])
        .await
        .expect("prepare");
    let made = Image {
        labels: labels(&[EXPIRED, (&named, of)]),
        ..image("back", '9')
    };
    let request = leased("back", create_image(made));
    let mut client = ImagesClient::new(peer.channel());
    drop(client.create(request).await.expect("create"));
    end(peer, "back").await;
    blob
}

/// True when all of [`back`] is there, false when nothing is.
async fn is_back(peer: &Peer, blob: &str) -> bool {
    let there = has_blob(peer, blob).await;
    assert_eq!(has_snapshot(peer, "back").await, there);
    let image = Images::of(peer).names(&["name==back"]).await;
    assert_eq!(!image.is_empty(), there);
    there
}

async fn an_image_keeps_what_refers_back_to_it(peer: &Peer) {
    let mut images = Images::of(peer);
    images.create(image("i", '1')).await.expect("create");
    let blob = back(peer, "image", "i").await;
    assert!(is_back(peer, &blob).await);
    images.delete("i", true).await.expect("delete");
    assert!(!is_back(peer, &blob).await);
}

async fn a_container_keeps_what_refers_back_to_it(peer: &Peer) {
    let mut containers = Containers::of(peer);
    containers.create(container("c")).await.expect("create");
    let blob = back(peer, "container.name", "c").await;
    assert!(is_back(peer, &blob).await);
    containers.delete("c").await.expect("delete");
    collect(peer).await;
    assert!(!is_back(peer, &blob).await);
}

async fn a_blob_keeps_what_refers_back_to_it(peer: &Peer) {
    lease(peer, "l", &[]).await;
    let of = put(peer, "l", "of", &[]).await;
    let blob = back(peer, "content", &of).await;
    assert!(is_back(peer, &blob).await);
    end(peer, "l").await;
    assert!(!has_blob(peer, &of).await);
    assert!(!is_back(peer, &blob).await);
}

async fn a_snapshot_keeps_what_refers_back_to_it(peer: &Peer) {
    lease(peer, "l", &[]).await;
    prepare(peer, "l", ("of", ""), &[]).await.expect("prepare");
    let blob = back(peer, "snapshot.native", "of").await;
    assert!(is_back(peer, &blob).await);
    end(peer, "l").await;
    assert!(!is_back(peer, &blob).await);
}

async fn what_refers_back_to_nothing_is_not_kept(peer: &Peer) {
    for (kind, of) in [
        ("image", "none"),
        ("container", "none"),
        ("content", "none"),
        ("snapshot.native", "none"),
        ("images", "i"),
    ] {
        let mut images = Images::of(peer);
        images.create(image("i", '1')).await.expect("create");
        let blob = back(peer, kind, of).await;
        assert!(!is_back(peer, &blob).await, "{kind}");
        refused(Code::NotFound, images.delete("back", false).await);
        images.delete("i", true).await.expect("delete");
    }
}
