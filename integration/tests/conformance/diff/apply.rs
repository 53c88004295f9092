//! Applying layers.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

use protos::MessageField;
use protos::services::diff::ApplyRequest;
use protos::well_known::Any;
use tonic::Code;

use super::{Differ, GZIP, PLAIN, ZSTD, archive, bind, directory, filtered, layer, stored};
use crate::content::{Content, digest};
use crate::peer::{Peer, refused, scoped};
use crate::snapshots::{Snapshots, upper};

rules! {
    both {
        the_answer_describes_the_uncompressed_layer
        what_comes_after_the_archive_counts
        a_layer_on_a_snapshot_is_in_it
        a_whiteout_takes_away_what_is_below
        a_blob_that_is_not_there_is_not_found
        a_blob_of_another_namespace_is_not_there
        a_damaged_layer_is_refused
        a_view_takes_no_layer
        no_mount_stays
    }
    ours {
        another_media_type_is_not_handled
        the_file_system_is_flushed_on_request
        payloads_of_nobody_are_passed_over
    }
}

const FILES: [(&str, &str); 2] = [("a", "hello"), ("b/c", "bye")];

async fn the_answer_describes_the_uncompressed_layer(peer: &Peer) {
    let tar = archive(peer, &FILES);
    for (media_type, program) in [
        (PLAIN, "cat"),
        (GZIP, "gzip"),
        (ZSTD, "zstd"),
        // The bytes decide.
        (GZIP, "cat"),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", "gzip"),
    ] {
        let data = filtered(peer, program, &tar);
        let layer = stored(peer, media_type, &data).await;
        let target = directory(peer, "target");
        let applied = Differ::of(peer).apply(layer, vec![bind(&target)]).await;
        let applied = applied.expect("apply");
        assert_eq!(applied.media_type, PLAIN);
        assert_eq!(applied.digest, digest(&tar));
        assert_eq!(usize::try_from(applied.size), Ok(tar.len()));
        for (path, text) in FILES {
            let read = fs::read_to_string(target.join(path)).expect("read");
            assert_eq!(read, text);
        }
        fs::remove_dir_all(&target).expect("remove");
    }
}

async fn what_comes_after_the_archive_counts(peer: &Peer) {
    let mut tar = archive(peer, &FILES);
    tar.extend_from_slice(&[0; 70_000]);
    tar.extend_from_slice(b"something else");
    for (media_type, program) in [(PLAIN, "cat"), (GZIP, "gzip")] {
        let data = filtered(peer, program, &tar);
        let layer = stored(peer, media_type, &data).await;
        let target = directory(peer, "target");
        let applied = Differ::of(peer).apply(layer, vec![bind(&target)]).await;
        let applied = applied.expect("apply");
        assert_eq!(applied.digest, digest(&tar));
        assert_eq!(usize::try_from(applied.size), Ok(tar.len()));
        fs::remove_dir_all(&target).expect("remove");
    }
}

async fn a_layer_on_a_snapshot_is_in_it(peer: &Peer) {
    let layer = stored(peer, PLAIN, &archive(peer, &FILES)).await;
    let mut snapshots = Snapshots::of(peer);
    snapshots.layer("base", "").await;
    for (key, parent) in [("a", ""), ("b", "base")] {
        let mounts = snapshots.prepare(key, parent).await.expect("prepare");
        let applied = Differ::of(peer).apply(layer.clone(), mounts.clone()).await;
        applied.expect("apply");
        let read = fs::read_to_string(upper(&mounts).join("b/c")).expect("read");
        assert_eq!(read, "bye");
    }
}

async fn a_whiteout_takes_away_what_is_below(peer: &Peer) {
    let below = stored(peer, PLAIN, &archive(peer, &FILES)).await;
    let above = archive(
        peer,
        &[(".wh.a", ""), ("b/.wh..wh..opq", ""), ("b/d", "new")],
    );
    let above = stored(peer, PLAIN, &above).await;
    let mut snapshots = Snapshots::of(peer);
    let mut differ = Differ::of(peer);
    let mounts = snapshots.prepare("a", "").await.expect("prepare");
    differ.apply(below, mounts).await.expect("apply");
    snapshots.commit("base", "a").await.expect("commit");
    let mounts = snapshots.prepare("b", "base").await.expect("prepare");
    differ.apply(above, mounts.clone()).await.expect("apply");
    let whiteout = fs::symlink_metadata(upper(&mounts).join("a")).expect("stat");
    assert!(whiteout.file_type().is_char_device());
    assert_eq!(whiteout.rdev(), 0);
    let kept = fs::read_dir(upper(&mounts).join("b")).expect("read");
    let kept: Vec<_> = kept
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    // Either way of hiding what is below will do: the directory's, or one for each name.
    assert!(kept.contains(&"d".into()), "{kept:?}");
    assert!(
        !kept
            .iter()
            .any(|name| name.to_string_lossy().starts_with(".wh."))
    );
    assert_eq!(
        fs::read_to_string(upper(&mounts).join("b/d")).expect("read"),
        "new"
    );
}

async fn a_blob_that_is_not_there_is_not_found(peer: &Peer) {
    let target = directory(peer, "target");
    let layer = layer(PLAIN, &digest(b"none"), 4);
    let applied = Differ::of(peer).apply(layer, vec![bind(&target)]).await;
    refused(Code::NotFound, applied);
}

async fn a_blob_of_another_namespace_is_not_there(peer: &Peer) {
    let target = directory(peer, "target");
    let layer = stored(peer, PLAIN, &archive(peer, &FILES)).await;
    let mounts = vec![bind(&target)];
    let applied = Differ::of(peer).apply_in("other", layer, mounts).await;
    refused(Code::NotFound, applied);
    assert_eq!(fs::read_dir(&target).expect("read").count(), 0);
}

async fn a_damaged_layer_is_refused(peer: &Peer) {
    let tar = archive(peer, &[("a", &"hello".repeat(10_000))]);
    let mut damaged = filtered(peer, "gzip", &tar);
    damaged.truncate(damaged.len() / 2);
    let mut short = tar.clone();
    short.truncate(2000);
    for (media_type, data) in [(GZIP, damaged), (PLAIN, short), (PLAIN, vec![b'x'; 5000])] {
        let layer = stored(peer, media_type, &data).await;
        let target = directory(peer, "target");
        let applied = Differ::of(peer).apply(layer, vec![bind(&target)]).await;
        applied.expect_err("a refusal");
        fs::remove_dir_all(&target).expect("remove");
    }
}

/// Two mounts: no daemon can write into a directory and leave it at that.
async fn no_mount_stays(peer: &Peer) {
    let layer = stored(peer, PLAIN, &archive(peer, &FILES)).await;
    let (one, other) = (directory(peer, "one"), directory(peer, "other"));
    let mounts = vec![bind(&one), bind(&other)];
    Differ::of(peer).apply(layer, mounts).await.expect("apply");
    assert_eq!(fs::read_dir(&one).expect("read").count(), 0);
    assert_eq!(fs::read_to_string(other.join("a")).expect("read"), "hello");
    let table = format!("/proc/{}/mountinfo", peer.host.daemon_pid());
    let table = fs::read_to_string(table).expect("read");
    assert!(!table.contains(&peer.host.dir().display().to_string()));
}

/// Go 1.6 has no class for it.
async fn another_media_type_is_not_handled(peer: &Peer) {
    let tar = archive(peer, &FILES);
    let target = directory(peer, "target");
    for media_type in ["", "text/plain", "application/vnd.oci.image.config.v1+json"] {
        let layer = stored(peer, media_type, &tar).await;
        let applied = Differ::of(peer).apply(layer, vec![bind(&target)]).await;
        refused(Code::Unimplemented, applied);
    }
    assert_eq!(fs::read_dir(&target).expect("read").count(), 0);
    assert!(Content::of(peer).has(&digest(&tar)).await);
}

/// Go knows the field since 2.0.
async fn the_file_system_is_flushed_on_request(peer: &Peer) {
    let target = directory(peer, "target");
    let layer = stored(peer, PLAIN, &archive(peer, &FILES)).await;
    let request = ApplyRequest {
        diff: MessageField::some(layer),
        mounts: vec![bind(&target)],
        sync_fs: true,
        ..ApplyRequest::default()
    };
    let applied = Differ::of(peer).0.apply(scoped(request)).await;
    applied.expect("apply");
    assert_eq!(fs::read_to_string(target.join("a")).expect("read"), "hello");
}

async fn payloads_of_nobody_are_passed_over(peer: &Peer) {
    let target = directory(peer, "target");
    let layer = stored(peer, PLAIN, &archive(peer, &FILES)).await;
    let payload = Any {
        type_url: "example.test/payload".into(),
        value: b"x".to_vec(),
        ..Any::default()
    };
    let request = ApplyRequest {
        diff: MessageField::some(layer),
        mounts: vec![bind(&target)],
        payloads: HashMap::from([("example.test.processor".to_owned(), payload)]),
        ..ApplyRequest::default()
    };
    let applied = Differ::of(peer).0.apply(scoped(request)).await;
    applied.expect("apply");
    assert_eq!(fs::read_to_string(target.join("a")).expect("read"), "hello");
}

async fn a_view_takes_no_layer(peer: &Peer) {
    let layer = stored(peer, PLAIN, &archive(peer, &FILES)).await;
    let mut snapshots = Snapshots::of(peer);
    let mounts = snapshots.prepare("a", "").await.expect("prepare");
    let below = upper(&mounts);
    snapshots.commit("one", "a").await.expect("commit");
    snapshots.layer("two", "one").await;
    for (key, parent) in [("none", ""), ("bind", "one"), ("overlay", "two")] {
        let mounts = snapshots.view(key, parent).await.expect("view");
        let applied = Differ::of(peer).apply(layer.clone(), mounts).await;
        applied.expect_err("a refusal");
    }
    assert_eq!(fs::read_dir(below).expect("read").count(), 0);
}
