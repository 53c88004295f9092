//! Commits, removals, labels and usage.

use std::collections::HashMap;
use std::fs;

use integration::until;
use protos::events::{SnapshotCommit, SnapshotRemove};
use protos::services::snapshots::{CommitSnapshotRequest, Kind};
use protos::well_known::Empty;
use tonic::{Code, Response, Status};

use super::{OVERLAY, Snapshots, upper};
use crate::events::event;
use crate::heard::Heard;
use crate::peer::{NAMESPACE, Peer, labels, refused};
use crate::stock;

rules! {
    both {
        a_commit_makes_an_active_snapshot_a_committed_one
        labels_of_a_commit_are_its_own
        a_name_that_is_taken_is_refused
        only_an_active_snapshot_can_be_committed
        a_commit_is_told
        one_name_goes_to_one_of_many_commits
        one_with_children_stays
        a_parent_goes_or_gets_a_child
        what_is_removed_is_not_there_and_an_event_tells
        the_disk_is_freed_by_a_collection
        what_is_not_there_is_not_found
        an_update_sets_the_labels_of_its_mask
        a_mask_of_all_labels_and_no_mask_replace_them
        no_other_field_can_be_updated
        usage_of_an_active_snapshot_is_what_it_takes_now
        usage_of_a_committed_snapshot_is_that_of_its_commit
    }
    ours {
        a_name_that_is_taken_is_leased
        a_commit_onto_another_parent_makes_a_child_of_it
        a_commit_onto_another_parent_is_not_offered_by_native
        a_cleanup_is_done
    }
}

async fn a_commit_makes_an_active_snapshot_a_committed_one(peer: &Peer) {
    let mut snapshots = Snapshots::of(peer);
    snapshots.layer("one", "").await;
    let mounts = snapshots.prepare("a", "one").await.expect("prepare");
    fs::write(upper(&mounts).join("file"), "hello").expect("write");
    snapshots.commit("two", "a").await.expect("commit");
    refused(Code::NotFound, snapshots.stat("a").await);
    let info = snapshots.stat("two").await.expect("stat");
    assert_eq!(info.kind, Kind::COMMITTED.into());
    assert_eq!((info.name.as_str(), info.parent.as_str()), ("two", "one"));
    // What was written is in it, and the key is free.
    let view = snapshots.prepare("a", "two").await.expect("prepare");
    let lower = super::option(&view[0], "lowerdir").expect("parents");
    let top = lower.split(':').next().expect("one");
    let read = fs::read_to_string(format!("{top}/file")).expect("read");
    assert_eq!(read, "hello");
}

async fn labels_of_a_commit_are_its_own(peer: &Peer) {
    let mut snapshots = Snapshots::of(peer);
    let before = [(stock::ROOT, "yes"), ("active", "1")];
    let prepared = snapshots.prepare_with("a", "", &before).await;
    prepared.expect("prepare");
    let info = snapshots.stat("a").await.expect("stat");
    assert_eq!(info.labels, labels(&before));
    let after = [(stock::ROOT, "yes"), ("committed", "2")];
    let committed = snapshots.commit_with("b", "a", &after).await;
    committed.expect("commit");
    let info = snapshots.stat("b").await.expect("stat");
    assert_eq!(info.labels, labels(&after));
}

async fn a_name_that_is_taken_is_leased(peer: &Peer) {
    let mut snapshots = Snapshots::of(peer);
    snapshots.layer("one", "").await;
    snapshots.prepare("a", "").await.expect("prepare");
    stock::lease(peer, "l", &[]).await;
    let mut leased = Snapshots::leased(peer, "l");
    refused(Code::AlreadyExists, leased.commit("one", "a").await);
    let held = (format!("snapshots/{OVERLAY}"), "one".to_owned());
    assert_eq!(stock::held(peer, "l").await, [held]);
}

async fn a_name_that_is_taken_is_refused(peer: &Peer) {
    let mut snapshots = Snapshots::of(peer);
    snapshots.layer("one", "").await;
    snapshots.prepare("a", "").await.expect("prepare");
    let text = refused(Code::AlreadyExists, snapshots.commit("one", "a").await);
    assert!(text.ends_with(": already exists"), "{text}");
    // The active one is as it was.
    let info = snapshots.stat("a").await.expect("stat");
    assert_eq!(info.kind, Kind::ACTIVE.into());
}

async fn only_an_active_snapshot_can_be_committed(peer: &Peer) {
    let mut snapshots = Snapshots::of(peer);
    snapshots.layer("one", "").await;
    snapshots.view("view", "one").await.expect("view");
    for key in ["one", "view"] {
        refused(Code::FailedPrecondition, snapshots.commit("two", key).await);
    }
    refused(Code::NotFound, snapshots.commit("two", "none").await);
    assert_eq!(snapshots.list(&[]).await, ["one", "view"]);
}

async fn a_commit_is_told(peer: &Peer) {
    let mut snapshots = Snapshots::of(peer);
    snapshots.prepare("a", "").await.expect("prepare");
    let mut watch = Heard::matching(peer, &["topic~=|^/snapshot/|"]).await;
    snapshots.commit("b", "a").await.expect("commit");
    refused(Code::NotFound, snapshots.commit("c", "a").await);
    let told = watch.told(peer).await;
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].topic, "/snapshot/commit");
    assert_eq!(told[0].namespace, NAMESPACE);
    let event: SnapshotCommit = event(&told[0]);
    assert_eq!((event.key.as_str(), event.name.as_str()), ("a", "b"));
}

/// As Go 2.2 has it, for layers that are unpacked at the same time.
async fn a_commit_onto_another_parent_makes_a_child_of_it(peer: &Peer) {
    let mut snapshots = Snapshots::of(peer);
    snapshots.layer("one", "").await;
    snapshots.layer("base", "").await;
    snapshots.prepare("a", "").await.expect("prepare");
    snapshots.prepare("b", "base").await.expect("prepare");
    for (key, parent, code) in [
        ("a", "none", Code::NotFound),
        ("b", "one", Code::FailedPrecondition),
        ("none", "one", Code::NotFound),
    ] {
        refused(code, onto(&mut snapshots, OVERLAY, key, parent).await);
    }
    onto(&mut snapshots, OVERLAY, "a", "one")
        .await
        .expect("commit");
    assert_eq!(snapshots.stat("two").await.expect("stat").parent, "one");
    assert_eq!(snapshots.list(&[]).await, ["b", "base", "one", "two"]);
}

/// A copy of its parent has no layer of its own that could go elsewhere.
async fn a_commit_onto_another_parent_is_not_offered_by_native(peer: &Peer) {
    let mut snapshots = Snapshots::in_snapshotter(peer, "native");
    snapshots.prepare("a", "").await.expect("prepare");
    let answer = onto(&mut snapshots, "native", "a", "one").await;
    refused(Code::Unimplemented, answer);
    snapshots.commit("one", "a").await.expect("commit");
    snapshots.prepare("b", "one").await.expect("prepare");
    // The parent that it has anyway is no other.
    onto(&mut snapshots, "native", "b", "one")
        .await
        .expect("commit");
}

async fn onto(
    snapshots: &mut Snapshots,
    snapshotter: &str,
    key: &str,
    parent: &str,
) -> Result<Response<Empty>, Status> {
    let request = snapshots.request(CommitSnapshotRequest {
        snapshotter: snapshotter.into(),
        name: "two".into(),
        key: key.into(),
        parent: parent.into(),
        // No collection takes it away.
        labels: labels(&[(stock::ROOT, "yes")]),
        ..CommitSnapshotRequest::default()
    });
    snapshots.client.commit(request).await
}

async fn one_with_children_stays(peer: &Peer) {
    let mut snapshots = Snapshots::of(peer);
    snapshots.layer("one", "").await;
    snapshots.layer("two", "one").await;
    let removed = snapshots.remove("one").await;
    let text = refused(Code::FailedPrecondition, removed);
    assert!(text.contains("cannot remove snapshot with child"), "{text}");
    snapshots.view("view", "two").await.expect("view");
    snapshots.prepare("active", "two").await.expect("prepare");
    for key in ["view", "active"] {
        refused(Code::FailedPrecondition, snapshots.remove("two").await);
        snapshots.remove(key).await.expect("remove");
    }
    snapshots.remove("two").await.expect("remove");
    snapshots.remove("one").await.expect("remove");
    assert_eq!(snapshots.list(&[]).await, [""; 0]);
}

async fn what_is_removed_is_not_there_and_an_event_tells(peer: &Peer) {
    let mut snapshots = Snapshots::of(peer);
    snapshots.prepare("a", "").await.expect("prepare");
    let mut watch = Heard::matching(peer, &["topic~=|^/snapshot/|"]).await;
    snapshots.remove("a").await.expect("remove");
    refused(Code::NotFound, snapshots.stat("a").await);
    refused(Code::NotFound, snapshots.remove("a").await);
    assert_eq!(snapshots.list(&[]).await, [""; 0]);
    let told = watch.told(peer).await;
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].topic, "/snapshot/remove");
    assert_eq!(told[0].namespace, NAMESPACE);
    assert_eq!(event::<SnapshotRemove>(&told[0]).key, "a");
    // The key is free, for a snapshot that has nothing of the old one.
    let mounts = snapshots.prepare("a", "").await.expect("prepare");
    assert_eq!(fs::read_dir(upper(&mounts)).expect("read").count(), 0);
}

async fn the_disk_is_freed_by_a_collection(peer: &Peer) {
    for name in [OVERLAY, "native"] {
        let mut snapshots = Snapshots::in_snapshotter(peer, name);
        let mounts = snapshots.prepare("a", "").await.expect("prepare");
        let directory = upper(&mounts);
        fs::write(directory.join("file"), "hello").expect("write");
        snapshots.remove("a").await.expect("remove");
        stock::collect(peer).await;
        // Some daemons answer before the last step.
        until("the directory is gone", || !directory.exists());
    }
}

async fn a_cleanup_is_done(peer: &Peer) {
    let mut snapshots = Snapshots::of(peer);
    let mounts = snapshots.prepare("a", "").await.expect("prepare");
    snapshots.cleanup().await.expect("cleanup");
    assert!(upper(&mounts).exists());
}

async fn what_is_not_there_is_not_found(peer: &Peer) {
    let mut snapshots = Snapshots::of(peer);
    Snapshots::within(peer, "other").layer("a", "").await;
    for answer in [
        snapshots.stat("a").await.map(drop),
        snapshots.update("a", &[], None).await.map(drop),
        snapshots.mounts("a").await.map(drop),
        snapshots.usage("a").await.map(drop),
        snapshots.remove("a").await,
        snapshots.commit("b", "a").await,
    ] {
        let text = refused(Code::NotFound, answer);
        assert!(text.ends_with(": not found"), "{text}");
    }
}

async fn an_update_sets_the_labels_of_its_mask(peer: &Peer) {
    let mut snapshots = Snapshots::of(peer);
    let before = [(stock::ROOT, "yes"), ("b.c/d", "2"), ("e", "3"), ("g", "4")];
    let prepared = snapshots.prepare_with("a", "", &before).await;
    prepared.expect("prepare");
    let new = [("b.c/d", "x"), ("e", "y"), ("f", "z"), ("g", "")];
    let paths = ["labels.b.c/d", "labels.f", "labels.g"];
    let updated = snapshots.update("a", &new, Some(&paths)).await;
    let updated = updated.expect("update");
    let want = [(stock::ROOT, "yes"), ("b.c/d", "x"), ("e", "3"), ("f", "z")];
    assert_eq!(updated.labels, labels(&want));
    assert_eq!(updated.kind, Kind::ACTIVE.into());
    assert_eq!(snapshots.stat("a").await.expect("stat"), updated);
}

async fn a_mask_of_all_labels_and_no_mask_replace_them(peer: &Peer) {
    let mut snapshots = Snapshots::of(peer);
    snapshots.layer("a", "").await;
    for (value, paths) in [("2", Some(&["labels"][..])), ("3", None), ("4", Some(&[]))] {
        let new = [(stock::ROOT, "yes"), ("b", value)];
        let updated = snapshots.update("a", &new, paths).await;
        assert_eq!(updated.expect("update").labels, labels(&new));
    }
    let updated = snapshots.update("a", &[], None).await.expect("update");
    assert_eq!(updated.labels, HashMap::new());
    assert_eq!(snapshots.stat("a").await.expect("stat"), updated);
}

async fn no_other_field_can_be_updated(peer: &Peer) {
    let mut snapshots = Snapshots::of(peer);
    snapshots.layer("a", "").await;
    for path in ["name", "parent", "kind", "created_at", "x", "Labels", ""] {
        let updated = snapshots.update("a", &[("b", "1")], Some(&[path])).await;
        refused(Code::InvalidArgument, updated);
        let paths = ["labels.b", path];
        let updated = snapshots.update("a", &[("b", "1")], Some(&paths)).await;
        refused(Code::InvalidArgument, updated);
    }
    let info = snapshots.stat("a").await.expect("stat");
    assert_eq!(info.labels, labels(&[(stock::ROOT, "yes")]));
}

/// More than a block, so that metadata does not count.
const FILE: i64 = 1 << 20;

async fn usage_of_an_active_snapshot_is_what_it_takes_now(peer: &Peer) {
    let mut snapshots = Snapshots::of(peer);
    let mounts = snapshots.prepare("a", "").await.expect("prepare");
    let before = snapshots.usage("a").await.expect("usage");
    let data = vec![1; usize::try_from(FILE).expect("small")];
    fs::write(upper(&mounts).join("one"), &data).expect("write");
    fs::hard_link(upper(&mounts).join("one"), upper(&mounts).join("link")).expect("link");
    let after = snapshots.usage("a").await.expect("usage");
    assert_eq!(after.inodes, before.inodes + 1);
    assert!((FILE..FILE + FILE / 2).contains(&(after.size - before.size)));
    fs::write(upper(&mounts).join("two"), &data).expect("write");
    let last = snapshots.usage("a").await.expect("usage");
    assert_eq!(last.inodes, before.inodes + 2);
    assert!(last.size >= after.size + FILE);
}

async fn usage_of_a_committed_snapshot_is_that_of_its_commit(peer: &Peer) {
    let mut snapshots = Snapshots::of(peer);
    let mounts = snapshots.prepare("a", "").await.expect("prepare");
    let data = vec![1; usize::try_from(FILE).expect("small")];
    fs::write(upper(&mounts).join("one"), &data).expect("write");
    let active = snapshots.usage("a").await.expect("usage");
    snapshots.commit("b", "a").await.expect("commit");
    let committed = snapshots.usage("b").await.expect("usage");
    assert_eq!(committed, active);
    fs::write(upper(&mounts).join("two"), &data).expect("write");
    assert_eq!(snapshots.usage("b").await.expect("usage"), active);
    // Parents do not count.
    snapshots.prepare("c", "b").await.expect("prepare");
    assert!(snapshots.usage("c").await.expect("usage").size < FILE);
}

async fn one_name_goes_to_one_of_many_commits(peer: &Peer) {
    let mut commits = tokio::task::JoinSet::new();
    for number in 0..16 {
        let mut snapshots = Snapshots::of(peer);
        let key = format!("k{number}");
        snapshots.prepare(&key, "").await.expect("prepare");
        commits.spawn(async move { snapshots.commit("one", &key).await });
    }
    let mut made = 0;
    while let Some(done) = commits.join_next().await {
        match done.expect("a commit") {
            Ok(()) => made += 1,
            Err(status) => assert_eq!(status.code(), Code::AlreadyExists, "{status}"),
        }
    }
    assert_eq!(made, 1);
    let mut snapshots = Snapshots::of(peer);
    assert_eq!(snapshots.list(&["kind==active"]).await.len(), 15);
    assert_eq!(snapshots.list(&["kind==committed"]).await, ["one"]);
}

async fn a_parent_goes_or_gets_a_child(peer: &Peer) {
    let mut snapshots = Snapshots::of(peer);
    let mut remover = Snapshots::of(peer);
    for number in 0..20 {
        let (parent, child) = (format!("p{number}"), format!("c{number}"));
        snapshots.layer(&parent, "").await;
        let (prepared, removed) =
            tokio::join!(snapshots.prepare(&child, &parent), remover.remove(&parent));
        if removed.is_ok() {
            refused(Code::NotFound, prepared);
            refused(Code::NotFound, snapshots.stat(&child).await);
        } else {
            refused(Code::FailedPrecondition, removed);
            prepared.expect("prepare");
            let info = snapshots.stat(&child).await.expect("stat");
            assert_eq!(info.parent, parent);
        }
    }
}
