//! What collections keep: leases and labels with meaning, on content and on snapshots.

use tonic::Code;

use crate::content::Content;
use crate::heard::Heard;
use crate::peer::{Peer, refused};
use crate::snapshots::Snapshots;
use crate::stock::{ROOT, collect, end, held, lease};

rules! {
    both {
        what_nobody_names_goes
        a_lease_keeps_what_was_made_under_it
        a_root_label_of_any_value_keeps_a_blob
        a_root_label_keeps_a_snapshot_and_its_parents
        a_content_label_keeps_a_blob_whatever_its_ending
        a_content_label_keeps_what_that_blob_names
        a_content_label_on_a_snapshot_keeps_a_blob
        a_snapshot_label_keeps_a_snapshot_and_its_parents
        a_snapshot_label_names_its_snapshotter
        a_label_that_is_taken_away_keeps_nothing
        references_do_not_leave_their_namespace
        collections_take_nothing_from_those_at_work
    }
    ours {
        a_root_label_may_have_an_ending
        a_back_reference_keeps_its_owner_with_what_it_names
        an_event_tells_of_a_snapshot_that_a_collection_took
    }
}

/// Label of what keeps a blob.
const CONTENT: &str = "containerd.io/gc.ref.content";
/// Label of what keeps a snapshot of the overlay snapshotter.
const SNAPSHOT: &str = "containerd.io/gc.ref.snapshot.overlayfs";
/// The same of the native snapshotter.
const NATIVE: &str = "containerd.io/gc.ref.snapshot.native";

/// Both stores of the rules' namespace, under a lease or none.
struct Stores {
    content: Content,
    snapshots: Snapshots,
}

impl Stores {
    /// Under a lease, so that no collection comes between.
    async fn filling(peer: &Peer) -> Self {
        lease(peer, "filling", &[]).await;
        Self {
            content: Content::leased(peer, "filling"),
            snapshots: Snapshots::leased(peer, "filling"),
        }
    }

    /// Lets go of what is not kept otherwise.
    async fn filled(self, peer: &Peer) -> Self {
        end(peer, "filling").await;
        Self {
            content: Content::of(peer),
            snapshots: Snapshots::of(peer),
        }
    }

    /// A chain of committed snapshots, the last one with these labels.
    async fn chain(&mut self, names: &[&str], pairs: &[(&str, &str)]) {
        let mut parent = "";
        for name in names {
            let prepared = self.snapshots.prepare_with("active", parent, &[]).await;
            prepared.expect("prepare");
            let last = Some(name) == names.last();
            let pairs = if last { pairs } else { &[] };
            let committed = self.snapshots.commit_with(name, "active", pairs).await;
            committed.expect("commit");
            parent = name;
        }
    }
}

async fn what_nobody_names_goes(peer: &Peer) {
    let mut stores = Stores::filling(peer).await;
    let blob = stores.content.put_with(b"hello", &[("other", "x")]).await;
    stores.chain(&["below", "above"], &[("other", "x")]).await;
    let prepared = stores.snapshots.prepare_with("active", "above", &[]).await;
    prepared.expect("prepare");
    let mut stores = stores.filled(peer).await;
    assert!(!stores.content.has(&blob).await);
    assert_eq!(stores.snapshots.list(&[]).await, [""; 0]);
}

async fn a_lease_keeps_what_was_made_under_it(peer: &Peer) {
    let mut stores = Stores::filling(peer).await;
    let blob = stores.content.put_with(b"hello", &[]).await;
    stores.chain(&["below", "above"], &[]).await;
    collect(peer).await;
    assert!(stores.content.has(&blob).await);
    assert_eq!(stores.snapshots.list(&[]).await, ["above", "below"]);
    stores.filled(peer).await;
}

async fn a_root_label_of_any_value_keeps_a_blob(peer: &Peer) {
    let mut stores = Stores::filling(peer).await;
    let mut kept = Vec::new();
    for (data, value) in [(&b"one"[..], "2026-01-01T00:00:00Z"), (b"two", "false")] {
        kept.push(stores.content.put_with(data, &[(ROOT, value)]).await);
    }
    let gone = stores.content.put_with(b"four", &[("gc.root", "x")]).await;
    let mut stores = stores.filled(peer).await;
    for blob in kept {
        assert!(stores.content.has(&blob).await);
    }
    assert!(!stores.content.has(&gone).await);
}

/// Of Go 2.
async fn a_root_label_may_have_an_ending(peer: &Peer) {
    let mut stores = Stores::filling(peer).await;
    let named = format!("{ROOT}.why");
    let blob = stores.content.put_with(b"hello", &[(&named, "x")]).await;
    stores.chain(&["a"], &[(&named, "x")]).await;
    let mut stores = stores.filled(peer).await;
    assert!(stores.content.has(&blob).await);
    assert_eq!(stores.snapshots.list(&[]).await, ["a"]);
}

async fn a_root_label_keeps_a_snapshot_and_its_parents(peer: &Peer) {
    let mut stores = Stores::filling(peer).await;
    stores.chain(&["a", "b"], &[(ROOT, "x")]).await;
    stores.chain(&["c", "d"], &[]).await;
    let prepared = stores.snapshots.prepare_with("e", "c", &[(ROOT, "x")]);
    prepared.await.expect("prepare");
    let mut stores = stores.filled(peer).await;
    assert_eq!(stores.snapshots.list(&[]).await, ["a", "b", "c", "e"]);
}

async fn a_content_label_keeps_a_blob_whatever_its_ending(peer: &Peer) {
    let mut stores = Stores::filling(peer).await;
    let mut blobs = Vec::new();
    for data in ["plain", "dot", "slash", "other"] {
        blobs.push(stores.content.put_with(data.as_bytes(), &[]).await);
    }
    let (dot, slash) = (format!("{CONTENT}.l.0"), format!("{CONTENT}/some/name"));
    let other = format!("{CONTENT}s");
    let pairs = [
        (ROOT, "x"),
        (CONTENT, blobs[0].as_str()),
        (dot.as_str(), blobs[1].as_str()),
        (slash.as_str(), blobs[2].as_str()),
        (other.as_str(), blobs[3].as_str()),
    ];
    let root = stores.content.put_with(b"root", &pairs).await;
    let mut stores = stores.filled(peer).await;
    for blob in [&root, &blobs[0], &blobs[1], &blobs[2]] {
        assert!(stores.content.has(blob).await);
    }
    assert!(!stores.content.has(&blobs[3]).await);
}

async fn a_content_label_keeps_what_that_blob_names(peer: &Peer) {
    let mut stores = Stores::filling(peer).await;
    let content = &mut stores.content;
    let layer = content.put_with(b"layer", &[]).await;
    let manifest = content.put_with(b"manifest", &[(CONTENT, &layer)]).await;
    let pairs = [(ROOT, "x"), (CONTENT, manifest.as_str())];
    let index = content.put_with(b"index", &pairs).await;
    let mut stores = stores.filled(peer).await;
    for blob in [&layer, &manifest, &index] {
        assert!(stores.content.has(blob).await);
    }
}

async fn a_content_label_on_a_snapshot_keeps_a_blob(peer: &Peer) {
    let mut stores = Stores::filling(peer).await;
    let blob = stores.content.put_with(b"hello", &[]).await;
    stores.chain(&["a"], &[(ROOT, "x"), (CONTENT, &blob)]).await;
    let mut stores = stores.filled(peer).await;
    assert!(stores.content.has(&blob).await);
}

async fn a_snapshot_label_keeps_a_snapshot_and_its_parents(peer: &Peer) {
    let mut stores = Stores::filling(peer).await;
    stores.chain(&["a", "b"], &[]).await;
    stores.chain(&["c"], &[]).await;
    stores.chain(&["d"], &[]).await;
    let named = format!("{SNAPSHOT}/name");
    let pairs = [(ROOT, "x"), (SNAPSHOT, "b"), (named.as_str(), "c")];
    stores.content.put_with(b"config", &pairs).await;
    let mut stores = stores.filled(peer).await;
    assert_eq!(stores.snapshots.list(&[]).await, ["a", "b", "c"]);
}

async fn a_snapshot_label_names_its_snapshotter(peer: &Peer) {
    let mut stores = Stores::filling(peer).await;
    stores.chain(&["a"], &[]).await;
    stores.chain(&["b"], &[]).await;
    let pairs = [(ROOT, "x"), (NATIVE, "a"), (SNAPSHOT, "b")];
    stores.content.put_with(b"config", &pairs).await;
    let mut stores = stores.filled(peer).await;
    assert_eq!(stores.snapshots.list(&[]).await, ["b"]);
    let mut native = Snapshots::in_snapshotter(peer, "native");
    assert_eq!(native.list(&[]).await, [""; 0]);
}

async fn a_label_that_is_taken_away_keeps_nothing(peer: &Peer) {
    let mut stores = Stores::filling(peer).await;
    let blob = stores.content.put_with(b"hello", &[(ROOT, "x")]).await;
    stores.chain(&["a"], &[(ROOT, "x")]).await;
    let mut stores = stores.filled(peer).await;
    assert!(stores.content.has(&blob).await);
    let cleared = stores.content.update(&blob, &[], None).await;
    cleared.expect("update");
    let cleared = stores.snapshots.update("a", &[], None).await;
    cleared.expect("update");
    collect(peer).await;
    assert!(!stores.content.has(&blob).await);
    assert_eq!(stores.snapshots.list(&[]).await, [""; 0]);
}

async fn references_do_not_leave_their_namespace(peer: &Peer) {
    let mut stores = Stores::filling(peer).await;
    let blob = stores.content.put_with(b"hello", &[]).await;
    let pairs = [(ROOT, "x"), (CONTENT, blob.as_str())];
    let mut other = Content::within(peer, "other");
    other.put_with(b"root", &pairs).await;
    let mut stores = stores.filled(peer).await;
    assert!(!stores.content.has(&blob).await);
}

/// Of Go 2.
async fn a_back_reference_keeps_its_owner_with_what_it_names(peer: &Peer) {
    let mut stores = Stores::filling(peer).await;
    let content = &mut stores.content;
    let kept = content.put_with(b"kept", &[(ROOT, "x")]).await;
    let gone = content.put_with(b"gone", &[]).await;
    let label = "containerd.io/gc.bref.content";
    let named = format!("{label}.name");
    let with_kept = content.put_with(b"1", &[(label, &kept)]).await;
    let with_gone = content.put_with(b"2", &[(&named, &gone)]).await;
    let of_snapshot = "containerd.io/gc.bref.snapshot.overlayfs";
    let with_snapshot = content.put_with(b"3", &[(of_snapshot, "a")]).await;
    stores.chain(&["a"], &[(ROOT, "x")]).await;
    stores.chain(&["b"], &[(label, &kept)]).await;
    stores.chain(&["c"], &[(label, &gone)]).await;
    let mut stores = stores.filled(peer).await;
    for (blob, stays) in [
        (kept, true),
        (gone, false),
        (with_kept, true),
        (with_gone, false),
        (with_snapshot, true),
    ] {
        assert_eq!(stores.content.has(&blob).await, stays);
    }
    assert_eq!(stores.snapshots.list(&[]).await, ["a", "b"]);
    refused(Code::NotFound, stores.snapshots.stat("c").await);
}

/// Go tells since 1.7.
async fn an_event_tells_of_a_snapshot_that_a_collection_took(peer: &Peer) {
    let mut stores = Stores::filling(peer).await;
    stores.content.put_with(b"hello", &[]).await;
    stores.chain(&["a", "b"], &[]).await;
    let mut watch = Heard::matching(peer, &["namespace==test"]).await;
    stores.filled(peer).await;
    let told = watch.told(peer).await;
    let topics: Vec<_> = told.iter().map(|one| one.topic.as_str()).collect();
    assert_eq!(topics, ["/snapshot/remove", "/snapshot/remove"]);
}

async fn collections_take_nothing_from_those_at_work(peer: &Peer) {
    lease(peer, "work", &[]).await;
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..8 {
        let mut content = Content::leased(peer, "work");
        let mut snapshots = Snapshots::leased(peer, "work");
        workers.spawn(async move {
            let mut parent = String::new();
            for number in 0..10 {
                let (name, key) = (format!("{worker} {number}"), format!("a{worker}"));
                let blob = content.put_with(name.as_bytes(), &[]).await;
                let prepared = snapshots.prepare_with(&key, &parent, &[]).await;
                prepared.expect("prepare");
                let committed = snapshots.commit_with(&name, &key, &[]).await;
                committed.expect("commit");
                let read = content.read(&blob, 0, 0).await.expect("read");
                assert_eq!(read, name.as_bytes());
                parent = name;
            }
        });
    }
    while !workers.is_empty() {
        collect(peer).await;
        while let Some(done) = workers.try_join_next() {
            done.expect("a worker");
        }
    }
    assert_eq!(Snapshots::of(peer).list(&[]).await.len(), 80);
    assert_eq!(held(peer, "work").await.len(), 160);
    end(peer, "work").await;
    assert_eq!(Snapshots::of(peer).list(&[]).await, [""; 0]);
}
