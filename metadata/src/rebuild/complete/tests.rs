//! Tests of module `complete`.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use types::{Digest, Error, Filter, Labels, SnapshotKind};

use super::*;
use crate::FoundTask;
use crate::fixture::{House, Memory, SNAPSHOTTER, name, opts, put, scope, store};
use crate::kv::journal_end;

/// A root whose journal has lost its end: there is no record of a blob and of the snapshot `c1`.
struct Harmed {
    root: tempfile::TempDir,
    memory: Arc<Memory>,
    blob: Digest,
}

async fn harmed() -> Harmed {
    let house = House::new().await;
    let content = house.content(&scope("a"));
    put(content.as_ref(), b"early", Labels::new()).await;
    let so_far = journal_end(&store(house.root.path()));
    let blob = put(content.as_ref(), b"late", Labels::new()).await;
    let snapshots = house.snapshots(&scope("a"));
    snapshots
        .prepare(&name("c1"), None, Labels::new())
        .await
        .unwrap();
    drop((content, snapshots));
    let (root, memory) = house.close();
    fs::write(store(root.path()), "damaged").unwrap();
    let journal = store(root.path()).with_extension("redb.journal");
    let journal = fs::File::options().write(true).open(journal).unwrap();
    journal.set_len(so_far + 9).unwrap();
    Harmed { root, memory, blob }
}

fn task() -> FoundTask {
    FoundTask {
        namespace: "a".parse().unwrap(),
        id: "c1".parse().unwrap(),
        spec: b"{}".to_vec(),
        runtime: "io.containerd.runc.v2".into(),
    }
}

impl Harmed {
    fn path(&self) -> std::path::PathBuf {
        store(self.root.path())
    }

    /// The next start.
    async fn start(self) -> (House, Digest) {
        let policy = Policy::Shared;
        let house = House::on(self.root, self.memory, policy, vec![task()]).await;
        (house, self.blob)
    }
}

fn mark_of(path: &Path) -> Option<Vec<u8>> {
    let (kv, _) = Kv::open(path).unwrap();
    kv.read().unwrap().get(INCOMPLETE).unwrap()
}

/// What has lost its records outlives a collection, and the store says no more that it lacks something.
async fn is_held(house: House, blob: &Digest) {
    assert!(!house.metadata.damages().is_empty());
    house.metadata.gc().await.unwrap();
    let a = scope("a");
    house.content(&a).info(blob).await.unwrap();
    house.snapshots(&a).mounts(&name("c1")).await.unwrap();
    let containers = house.metadata.containers(&a);
    let container = containers.get(&"c1".parse().unwrap()).await.unwrap();
    assert_eq!(container.snapshotter, SNAPSHOTTER);
    assert_eq!(container.snapshot_key, "c1");
    drop(containers);
    let (root, _) = house.close();
    assert_eq!(mark_of(&store(root.path())), None);
}

#[test]
fn the_mark_is_a_fact_of_the_store() {
    assert_eq!(INCOMPLETE, key(Bucket::Store, &["incomplete"]));
}

#[tokio::test]
async fn a_restoration_that_is_cut_off_goes_on_at_the_next_start() {
    let harmed = harmed().await;
    assert_eq!(mark_of(&harmed.path()), Some(Vec::new()));
    let (house, blob) = harmed.start().await;
    is_held(house, &blob).await;
}

#[tokio::test]
async fn a_restoration_whose_look_fails_goes_on_at_the_next_start() {
    let harmed = harmed().await;
    for _ in 0..2 {
        let opts = OpenOpts {
            tasks: Box::new(|| Err(Error::unavailable("told to fail"))),
            ..opts(harmed.root.path(), Some(&harmed.memory))
        };
        let error = Metadata::open(&harmed.path(), opts).await.unwrap_err();
        assert!(error.to_string().contains("told to fail"), "{error}");
    }
    let (house, blob) = harmed.start().await;
    is_held(house, &blob).await;
}

#[tokio::test]
async fn a_snapshotter_that_is_away_is_asked_when_it_is_back() {
    let harmed = harmed().await;
    for _ in 0..2 {
        let opts = OpenOpts {
            tasks: Box::new(|| Ok(vec![task()])),
            ..opts(harmed.root.path(), None)
        };
        let metadata = Metadata::open(&harmed.path(), opts).await.unwrap();
        metadata.gc().await.unwrap();
        drop(metadata);
        assert_eq!(mark_of(&harmed.path()), Some(SNAPSHOTTER.into()));
    }
    let (house, blob) = harmed.start().await;
    is_held(house, &blob).await;
}

/// Blobs were looked for already: what has lost its record since is garbage.
#[tokio::test]
async fn what_was_asked_already_is_not_asked_again() {
    let harmed = harmed().await;
    let opts = opts(harmed.root.path(), None);
    let metadata = Metadata::open(&harmed.path(), opts).await.unwrap();
    let content = metadata.scoped(&scope("a")).content();
    content.delete(&harmed.blob).await.unwrap();
    drop((content, metadata));
    let (house, blob) = harmed.start().await;
    house.metadata.gc().await.unwrap();
    assert!(!house.blobs().await.contains(&blob));
    house
        .snapshots(&scope("a"))
        .mounts(&name("c1"))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_silent_snapshotter_is_asked_before_it_is_cleaned() {
    let harmed = harmed().await;
    harmed.memory.be_remote();
    harmed.memory.be_silent(true);
    let (house, blob) = harmed.start().await;
    house.metadata.gc().await.unwrap();
    let snapshots = house.snapshots(&scope("a"));
    snapshots
        .prepare(&name("new"), None, Labels::new())
        .await
        .unwrap();
    house.memory.be_silent(false);
    snapshots.remove(&name("new")).await.unwrap();
    house.metadata.gc().await.unwrap();
    let left = snapshots.list(&Filter::default()).await.unwrap();
    assert!(left.iter().any(|info| info.name == name("c1")), "{left:?}");
    drop(snapshots);
    let house = house.restart().await;
    let left = house.snapshots(&scope("a")).stat(&name("c1")).await;
    assert_eq!(left.unwrap().kind, SnapshotKind::Active);
    house.content(&scope("a")).info(&blob).await.unwrap();
    let (root, _) = house.close();
    assert_eq!(mark_of(&store(root.path())), None);
}

/// Either nobody was told of the journal's last change, or the disk has changed it since.
#[tokio::test]
async fn what_a_bit_in_the_last_change_takes_is_held() {
    let house = House::new().await;
    let content = house.content(&scope("a"));
    put(content.as_ref(), b"early", Labels::new()).await;
    let path = store(house.root.path());
    let behind = fs::read(&path).unwrap();
    let blob = put(content.as_ref(), b"late", Labels::new()).await;
    let end = journal_end(&path);
    drop(content);
    let harm = move |directory: &Path| {
        fs::write(directory.join("meta.redb"), behind).unwrap();
        let journal = directory.join("meta.redb.journal");
        let journal = fs::File::options().read(true).write(true).open(journal);
        let journal = journal.unwrap();
        let mut last = [0];
        journal.read_exact_at(&mut last, end - 1).unwrap();
        journal.write_all_at(&[last[0] ^ 1], end - 1).unwrap();
    };
    let house = house.restart_after(harm, Vec::new()).await;
    assert!(!house.metadata.damages().is_empty());
    house.metadata.gc().await.unwrap();
    house.content(&scope("a")).info(&blob).await.unwrap();
}

#[tokio::test]
async fn half_a_change_that_has_named_nothing_is_no_damage() {
    let house = House::new().await;
    let blob = put(
        house.content(&scope("a")).as_ref(),
        b"blob",
        Labels::new().with("containerd.io/gc.root", "1"),
    )
    .await;
    let end = journal_end(&store(house.root.path()));
    let harm = move |directory: &Path| {
        let journal = directory.join("meta.redb.journal");
        let journal = fs::File::options().write(true).open(journal).unwrap();
        journal.write_all_at(&[7, 0, 0], end).unwrap();
    };
    let house = house.restart_after(harm, Vec::new()).await;
    assert_eq!(house.metadata.damages(), []);
    house.metadata.gc().await.unwrap();
    house.content(&scope("a")).info(&blob).await.unwrap();
    let leases = house.metadata.leases(&scope("a").namespace);
    assert!(leases.list(&Filter::default()).await.unwrap().is_empty());
    drop(leases);
    let (root, _) = house.close();
    assert_eq!(mark_of(&store(root.path())), None);
}
