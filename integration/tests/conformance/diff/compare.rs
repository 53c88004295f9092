//! Making layers.

use std::fs;
use std::path::PathBuf;

use protos::MessageField;
use protos::services::content::WriteAction;
use protos::services::diff::DiffRequest;
use protos::well_known::Timestamp;
use tonic::Code;

use super::{
    Differ, GZIP, PLAIN, UNCOMPRESSED, ZSTD, bind, comparison, directory, filtered, layer, listed,
};
use crate::content::{Content, digest, message};
use crate::peer::{Peer, labels, refused};
use crate::snapshots::{Snapshots, upper};
use crate::stock;

rules! {
    both {
        the_default_is_gzip
        a_plain_layer_is_an_archive
        another_media_type_is_not_handled
        what_has_changed_is_in_the_layer
        what_has_changed_in_a_snapshot_is_in_the_layer
        nothing_on_the_left_is_an_empty_tree
        labels_are_those_asked_for_and_the_uncompressed_digest
        the_ref_names_the_ingest_which_starts_anew
        the_same_trees_are_the_same_blob
        a_layer_made_is_a_layer_applied
    }
    ours {
        a_plain_layer_is_labelled_too
        a_zstd_layer_is_one
        no_time_is_later_than_the_epoch_that_is_asked_for
        a_blob_that_is_there_gets_no_labels
    }
}

/// Two trees of which the right one has changed.
fn trees(peer: &Peer) -> (PathBuf, PathBuf) {
    let (left, right) = (directory(peer, "left"), directory(peer, "right"));
    for tree in [&left, &right] {
        fs::create_dir(tree.join("dir")).expect("mkdir");
        for name in ["same", "gone", "changed", "dir/gone", "dir/same"] {
            fs::write(tree.join(name), "before").expect("write");
        }
    }
    for name in ["same", "dir/same", "dir", "."] {
        let time = fs::metadata(left.join(name)).expect("stat").modified();
        let file = fs::File::open(right.join(name)).expect("open");
        file.set_modified(time.expect("a time"))
            .expect("set a time");
    }
    fs::remove_file(right.join("gone")).expect("remove");
    fs::remove_file(right.join("dir/gone")).expect("remove");
    fs::write(right.join("changed"), "after all").expect("write");
    fs::write(right.join("new"), "new").expect("write");
    (left, right)
}

fn request(peer: &Peer) -> DiffRequest {
    let (left, right) = trees(peer);
    comparison(vec![bind(&left)], vec![bind(&right)])
}

/// The paths of the files in a layer.
async fn files(peer: &Peer, digest: &str) -> Vec<String> {
    let data = Content::of(peer).read(digest, 0, 0).await.expect("read");
    let paths = listed(peer, &data).into_iter();
    paths.filter(|path| !path.ends_with('/')).collect()
}

async fn the_default_is_gzip(peer: &Peer) {
    let made = Differ::of(peer).diff(request(peer)).await.expect("diff");
    assert_eq!(made.media_type, GZIP);
    let mut content = Content::of(peer);
    let info = content.info(&made.digest).await.expect("info");
    assert_eq!(info.size, made.size);
    let data = content.read(&made.digest, 0, 0).await.expect("read");
    assert_eq!(data[..2], [0x1f, 0x8b]);
    assert_eq!(digest(&data), made.digest);
    let tar = filtered(peer, "gzip -d", &data);
    assert_eq!(info.labels[UNCOMPRESSED], digest(&tar));
}

async fn a_plain_layer_is_an_archive(peer: &Peer) {
    let request = DiffRequest {
        media_type: PLAIN.into(),
        ..request(peer)
    };
    let made = Differ::of(peer).diff(request).await.expect("diff");
    assert_eq!(made.media_type, PLAIN);
    let mut content = Content::of(peer);
    let data = content.read(&made.digest, 0, 0).await.expect("read");
    assert_eq!(data[257..262], *b"ustar");
}

/// Go leaves it out where it is the blob's own digest.
async fn a_plain_layer_is_labelled_too(peer: &Peer) {
    let request = DiffRequest {
        media_type: PLAIN.into(),
        ..request(peer)
    };
    let made = Differ::of(peer).diff(request).await.expect("diff");
    let info = Content::of(peer).info(&made.digest).await.expect("info");
    assert_eq!(info.labels[UNCOMPRESSED], made.digest);
}

async fn a_zstd_layer_is_one(peer: &Peer) {
    let request = DiffRequest {
        media_type: ZSTD.into(),
        ..request(peer)
    };
    let made = Differ::of(peer).diff(request).await.expect("diff");
    assert_eq!(made.media_type, ZSTD);
    let mut content = Content::of(peer);
    let data = content.read(&made.digest, 0, 0).await.expect("read");
    let tar = filtered(peer, "zstd -d", &data);
    let info = content.info(&made.digest).await.expect("info");
    assert_eq!(info.labels[UNCOMPRESSED], digest(&tar));
}

async fn another_media_type_is_not_handled(peer: &Peer) {
    let before = request(peer);
    for media_type in ["text/plain", "application/vnd.oci.image.manifest.v1+json"] {
        let request = DiffRequest {
            media_type: media_type.into(),
            ..before.clone()
        };
        refused(Code::Unimplemented, Differ::of(peer).diff(request).await);
    }
    let ingests = Content::of(peer).ingests(&[]).await;
    assert_eq!(ingests.expect("list"), [""; 0]);
}

async fn what_has_changed_is_in_the_layer(peer: &Peer) {
    let made = Differ::of(peer).diff(request(peer)).await.expect("diff");
    let want = [".wh.gone", "changed", "dir/.wh.gone", "new"];
    assert_eq!(files(peer, &made.digest).await, want);
}

async fn what_has_changed_in_a_snapshot_is_in_the_layer(peer: &Peer) {
    let mut snapshots = Snapshots::of(peer);
    let mounts = snapshots.prepare("a", "").await.expect("prepare");
    for name in ["same", "changed"] {
        fs::write(upper(&mounts).join(name), "before").expect("write");
    }
    snapshots.commit("base", "a").await.expect("commit");
    let left = snapshots.view("left", "base").await.expect("view");
    let right = snapshots.prepare("right", "base").await.expect("prepare");
    fs::write(upper(&right).join("changed"), "after all").expect("write");
    fs::write(upper(&right).join("new"), "new").expect("write");
    let made = Differ::of(peer).diff(comparison(left, right)).await;
    let made = made.expect("diff");
    assert_eq!(files(peer, &made.digest).await, ["changed", "new"]);
}

async fn nothing_on_the_left_is_an_empty_tree(peer: &Peer) {
    let (_, right) = trees(peer);
    let request = comparison(Vec::new(), vec![bind(&right)]);
    let made = Differ::of(peer).diff(request).await.expect("diff");
    let want = ["changed", "dir/same", "new", "same"];
    assert_eq!(files(peer, &made.digest).await, want);
}

async fn labels_are_those_asked_for_and_the_uncompressed_digest(peer: &Peer) {
    let pairs = [(stock::ROOT, "yes"), ("a.b/c", "d")];
    let request = DiffRequest {
        labels: labels(&pairs),
        ..request(peer)
    };
    let made = Differ::of(peer).diff(request).await.expect("diff");
    let mut content = Content::of(peer);
    let info = content.info(&made.digest).await.expect("info");
    let data = content.read(&made.digest, 0, 0).await.expect("read");
    let mut want = labels(&pairs);
    let tar = filtered(peer, "gzip -d", &data);
    want.insert(UNCOMPRESSED.into(), digest(&tar));
    assert_eq!(info.labels, want);
}

/// A comparison that has no whiteouts: Go stamps those with the time of the comparison.
fn addition(peer: &Peer) -> DiffRequest {
    let (left, right) = (directory(peer, "left"), directory(peer, "right"));
    fs::write(right.join("new"), "new").expect("write");
    comparison(vec![bind(&left)], vec![bind(&right)])
}

async fn the_ref_names_the_ingest_which_starts_anew(peer: &Peer) {
    let mut content = Content::of(peer);
    let junk = message(WriteAction::WRITE, "r", 0, b"something else");
    content.write(vec![junk]).await.expect("write");
    let request = DiffRequest {
        ref_: "r".into(),
        ..addition(peer)
    };
    let mut differ = Differ::of(peer);
    let made = differ.diff(request.clone()).await.expect("diff");
    refused(Code::NotFound, content.status("r").await);
    assert_eq!(files(peer, &made.digest).await, ["new"]);
    let unnamed = DiffRequest {
        ref_: String::new(),
        ..request
    };
    assert_eq!(differ.diff(unnamed).await.expect("diff"), made);
}

async fn the_same_trees_are_the_same_blob(peer: &Peer) {
    let request = addition(peer);
    let mut differ = Differ::of(peer);
    let made = differ.diff(request.clone()).await.expect("diff");
    stock::lease(peer, "l", &[]).await;
    let leased = crate::peer::leased("l", request);
    let again = differ.0.diff(leased).await.expect("diff").into_inner();
    assert_eq!(again.diff.as_ref(), Some(&made));
    let held = ("content".to_owned(), made.digest);
    assert_eq!(stock::held(peer, "l").await, [held]);
    let ingests = Content::of(peer).ingests(&[]).await;
    assert_eq!(ingests.expect("list"), [""; 0]);
}

async fn a_blob_that_is_there_gets_no_labels(peer: &Peer) {
    let request = request(peer);
    let mut differ = Differ::of(peer);
    let made = differ.diff(request.clone()).await.expect("diff");
    let again = DiffRequest {
        labels: labels(&[("other", "x")]),
        ..request
    };
    assert_eq!(differ.diff(again).await.expect("diff"), made);
    let info = Content::of(peer).info(&made.digest).await.expect("info");
    assert!(!info.labels.contains_key("other"));
    assert!(info.labels.contains_key(UNCOMPRESSED));
}

async fn a_layer_made_is_a_layer_applied(peer: &Peer) {
    let request = request(peer);
    let left = PathBuf::from(&request.left[0].source);
    let mut differ = Differ::of(peer);
    let made = differ.diff(request).await.expect("diff");
    let size = usize::try_from(made.size).expect("small");
    let layer = layer(GZIP, &made.digest, size);
    let applied = differ.apply(layer, vec![bind(&left)]).await;
    let info = Content::of(peer).info(&made.digest).await.expect("info");
    assert_eq!(applied.expect("apply").digest, info.labels[UNCOMPRESSED]);
    assert!(!left.join("gone").exists());
    assert!(!left.join("dir/gone").exists());
    for (name, text) in [("same", "before"), ("changed", "after all"), ("new", "new")] {
        let read = fs::read_to_string(left.join(name)).expect("read");
        assert_eq!(read, text);
    }
}

/// Go knows the field since 1.7.
async fn no_time_is_later_than_the_epoch_that_is_asked_for(peer: &Peer) {
    let epoch = 1_000_000_000;
    let request = DiffRequest {
        media_type: PLAIN.into(),
        source_date_epoch: MessageField::some(Timestamp {
            seconds: epoch,
            ..Timestamp::default()
        }),
        ..request(peer)
    };
    let made = Differ::of(peer).diff(request).await.expect("diff");
    let mut content = Content::of(peer);
    let data = content.read(&made.digest, 0, 0).await.expect("read");
    let list = filtered(peer, "TZ=UTC tar -tv --full-time -f -", &data);
    let list = String::from_utf8(list).expect("text");
    let lines: Vec<_> = list.lines().collect();
    assert!(lines.len() >= 4, "{list}");
    // Whiteouts have no time.
    let bounded = |line: &&str| line.contains("2001-09-09 01:46:40") || line.contains("1970-01-01");
    assert!(lines.iter().all(bounded), "{list}");
}
