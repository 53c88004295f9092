//! Tests of module `complete`.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use types::{Code, Digest, Error, Filter, Labels, gc_label};

use super::*;
use crate::fixture::{House, Memory, SNAPSHOTTER, container, name, opts, put, scope, store};
use crate::kv::{INCOMPLETE, UNASKED, journal_end};
use crate::{FoundTask, Metadata};

mod full;
mod left;

/// A root whose journal has lost its end: there is no record of a blob and of the snapshot `c1`.
struct Harmed {
    root: tempfile::TempDir,
    memory: Arc<Memory>,
    blob: Digest,
}

async fn harmed() -> Harmed {
    harmed_after(async |_| {}).await
}

/// The same, with something that has kept its records.
async fn harmed_after(early: impl AsyncFnOnce(&House)) -> Harmed {
    let house = House::new().await;
    let content = house.content(&scope("a"));
    put(content.as_ref(), b"early", Labels::new()).await;
    early(&house).await;
    let so_far = journal_end(&store(house.root.path()));
    let blob = put(content.as_ref(), b"late", Labels::new()).await;
    drop(content);
    prepare(&house, "c1").await;
    let (root, memory) = house.close();
    fs::write(store(root.path()), "damaged").unwrap();
    let journal = store(root.path()).with_extension("redb.journal");
    let journal = fs::File::options().write(true).open(journal).unwrap();
    journal.set_len(so_far + 9).unwrap();
    Harmed { root, memory, blob }
}

/// Unless it is there.
async fn prepare(house: &House, key: &str) {
    let snapshots = house.snapshots(&scope("a"));
    let made = snapshots.prepare(&name(key), None, Labels::new()).await;
    if let Err(error) = made {
        assert!(error.is(Code::AlreadyExists), "{error}");
    }
}

async fn contain(house: &House, id: &str, snapshotter: &str) {
    let mut container = container(id);
    container.snapshotter = snapshotter.into();
    if !snapshotter.is_empty() {
        container.snapshot_key = id.into();
    }
    let containers = house.metadata.containers(&scope("a"));
    containers.create(container).await.unwrap();
}

async fn snapshotter_of(metadata: &Metadata, id: &str) -> String {
    let containers = metadata.containers(&scope("a"));
    let container = containers.get(&id.parse().unwrap()).await;
    container.unwrap().snapshotter
}

/// The leases that hold what was found, with what they say of their end.
async fn leases(house: &House) -> Vec<bool> {
    let leases = house.metadata.leases(&scope("a").namespace);
    let all = leases.list(&Filter::default()).await.unwrap();
    let has_end = |lease: types::Lease| lease.labels.contains_key(gc_label::EXPIRE);
    all.into_iter().map(has_end).collect()
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

/// What a store says of lost changes, and of whom nobody has asked for them.
fn marks_of(path: &Path) -> [Option<Vec<u8>>; 2] {
    let (kv, _) = Kv::open(path).unwrap();
    [INCOMPLETE, UNASKED].map(|key| kv.read().unwrap().get(key).unwrap())
}

/// What it says when only the snapshotter is left: an earlier daemon has to find it, too.
fn only_left() -> [Option<Vec<u8>>; 2] {
    [INCOMPLETE, UNASKED].map(|_| Some(SNAPSHOTTER.into()))
}

/// Half a frame behind the last whole one.
fn tear(path: &Path) {
    let journal = path.with_extension("redb.journal");
    let journal = fs::File::options().write(true).open(journal).unwrap();
    journal.write_all_at(&[7, 0, 0], journal_end(path)).unwrap();
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
    assert_eq!(marks_of(&store(root.path())), [None, None]);
}

#[test]
fn the_marks_are_facts_of_the_store() {
    assert_eq!(INCOMPLETE, key(Bucket::Store, &["incomplete"]));
    assert_eq!(UNASKED, key(Bucket::Store, &["unasked"]));
}

#[tokio::test]
async fn a_restoration_that_is_cut_off_goes_on_at_the_next_start() {
    let harmed = harmed().await;
    assert_eq!(marks_of(&harmed.path()), [Some(Vec::new()), None]);
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
    for is_first in [true, false] {
        let tasks = move || match is_first {
            true => Ok(vec![task()]),
            // Nobody asks while there is nobody who could answer.
            false => Err(Error::unavailable("told to fail")),
        };
        let opts = OpenOpts {
            tasks: Box::new(tasks),
            ..opts(harmed.root.path(), None)
        };
        let metadata = Metadata::open(&harmed.path(), opts).await.unwrap();
        metadata.gc().await.unwrap();
        drop(metadata);
        assert_eq!(marks_of(&harmed.path()), only_left());
    }
    let (house, blob) = harmed.start().await;
    is_held(house, &blob).await;
}

/// It may be taken out of the configuration for one start, or have its data elsewhere.
#[tokio::test]
async fn a_snapshotter_that_only_records_name_is_asked_when_it_is_back() {
    for of_container in [true, false] {
        let harmed = harmed_after(async |house| match of_container {
            true => contain(house, "early", SNAPSHOTTER).await,
            false => prepare(house, "early").await,
        });
        let harmed = harmed.await;
        let opts = OpenOpts {
            tasks: Box::new(|| Ok(vec![task()])),
            absent: Vec::new(),
            ..opts(harmed.root.path(), None)
        };
        let metadata = Metadata::open(&harmed.path(), opts).await.unwrap();
        metadata.gc().await.unwrap();
        drop(metadata);
        let (house, blob) = harmed.start().await;
        is_held(house, &blob).await;
    }
}

#[tokio::test]
async fn a_container_finds_its_snapshot_by_the_record_of_that() {
    let harmed = harmed_after(async |house| prepare(house, "c1").await);
    let harmed = harmed.await;
    let opts = OpenOpts {
        tasks: Box::new(|| Ok(vec![task()])),
        ..opts(harmed.root.path(), None)
    };
    let metadata = Metadata::open(&harmed.path(), opts).await.unwrap();
    assert_eq!(snapshotter_of(&metadata, "c1").await, SNAPSHOTTER);
    drop(metadata);
    let (house, blob) = harmed.start().await;
    house.metadata.gc().await.unwrap();
    house.content(&scope("a")).info(&blob).await.unwrap();
    assert_eq!(snapshotter_of(&house.metadata, "c1").await, SNAPSHOTTER);
    house
        .snapshots(&scope("a"))
        .mounts(&name("c1"))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_container_that_stands_on_no_snapshot_stays_so() {
    let harmed = harmed_after(async |house| contain(house, "c1", "").await);
    let (house, _) = harmed.await.start().await;
    assert_eq!(snapshotter_of(&house.metadata, "c1").await, "");
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
async fn a_silent_snapshotter_is_not_cleaned_before_a_start_at_which_it_answers() {
    let harmed = harmed().await;
    harmed.memory.be_remote();
    harmed.memory.be_silent(true);
    let (house, blob) = harmed.start().await;
    house.metadata.gc().await.unwrap();
    house.memory.be_silent(false);
    prepare(&house, "new").await;
    let snapshots = house.snapshots(&scope("a"));
    snapshots.remove(&name("new")).await.unwrap();
    drop(snapshots);
    let keys = house.memory.keys();
    assert_eq!(house.metadata.gc().await.unwrap().snapshots, 0);
    assert_eq!(house.memory.keys(), keys);
    let marks = house.metadata.0.db.outlet.take();
    assert!(marks.snapshotters.contains(SNAPSHOTTER), "{marks:?}");
    let house = house.restart().await;
    is_held(house, &blob).await;
}

/// Either nobody was told of the journal's last change, or the disk has changed it since. What a container
/// stands on that runs and names nothing may be among what is held: that is held without an end.
#[tokio::test]
async fn what_a_bit_in_the_last_change_takes_is_held() {
    for tasks in [Vec::new(), vec![task()]] {
        let has_end = tasks.is_empty();
        what_a_bit_takes_is_held(tasks, has_end).await;
    }
}

async fn what_a_bit_takes_is_held(tasks: Vec<FoundTask>, has_end: bool) {
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
    let house = house.restart_after(harm, tasks).await;
    assert!(!house.metadata.damages().is_empty());
    house.metadata.gc().await.unwrap();
    house.content(&scope("a")).info(&blob).await.unwrap();
    assert_eq!(leases(&house).await, [has_end], "it is held for some days");
}

#[tokio::test]
async fn what_was_lost_for_certain_is_held_without_end() {
    let harmed = harmed().await;
    let (house, _) = harmed.start().await;
    assert_eq!(leases(&house).await, [false]);
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
    let harm = |directory: &Path| tear(&directory.join("meta.redb"));
    let house = house.restart_after(harm, Vec::new()).await;
    assert_eq!(house.metadata.damages(), []);
    house.metadata.gc().await.unwrap();
    house.content(&scope("a")).info(&blob).await.unwrap();
    assert!(leases(&house).await.is_empty());
    let (root, _) = house.close();
    assert_eq!(marks_of(&store(root.path())), [None, None]);
}
