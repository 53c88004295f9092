//! Starts on a full disk.

use ::content::ContentStore as _;
use ::snapshotters::Snapshotter as _;

use super::*;
use crate::fixture::{code, fill, small_disk};

/// A store with its mark on a disk without a page of room.
struct Full {
    root: tempfile::TempDir,
    disk: sys::mount::TempMount,
    memory: Arc<Memory>,
    filler: std::path::PathBuf,
}

impl Full {
    /// After something has happened to it while there was room.
    async fn after(early: impl AsyncFnOnce(&Metadata)) -> Self {
        let root = tempfile::tempdir().unwrap();
        let disk = small_disk(root.path());
        let path = store(disk.path());
        let memory = Arc::<Memory>::default();
        let metadata = Metadata::open(&path, opts(root.path(), Some(&memory))).await;
        early(&metadata.unwrap()).await;
        let (kv, _) = Kv::open(&path).unwrap();
        let mark = kv.write(|tx| {
            tx.put(INCOMPLETE.into(), Vec::new());
            Ok(())
        });
        mark.await.unwrap();
        fill(disk.path());
        // What the file has grown by is room still.
        let mut is_full = false;
        for n in 0_u8..=u8::MAX {
            let change = move |tx: &mut Tx<'_>| {
                tx.put(vec![u8::MAX, n], vec![7; 64 << 10]);
                Ok(())
            };
            is_full = kv.write(change).await.is_err();
            if is_full {
                break;
            }
        }
        assert!(is_full);
        drop(kv);
        // No room in the journal but for the zeros of its end; the reserve may not have been made yet.
        let journal = path.with_extension("redb.journal");
        let journal = fs::File::options().write(true).open(journal).unwrap();
        journal.set_len(journal_end(&path) + 16).unwrap();
        drop(journal);
        drop(fs::remove_file(path.with_extension("redb.reserve")));
        let filler = fill(disk.path());
        Self {
            root,
            disk,
            memory,
            filler,
        }
    }

    fn path(&self) -> std::path::PathBuf {
        store(self.disk.path())
    }

    async fn start(&self, tasks: Vec<FoundTask>) -> Result<Metadata> {
        let opts = OpenOpts {
            tasks: Box::new(move || Ok(tasks.clone())),
            ..opts(self.root.path(), Some(&self.memory))
        };
        Metadata::open(&self.path(), opts).await
    }

    fn is_marked(metadata: &Metadata) -> bool {
        let kv = &metadata.0.db.kv;
        kv.read().unwrap().has(INCOMPLETE).unwrap()
    }

    /// The first start with room.
    async fn restart(&self) -> Metadata {
        fs::remove_file(&self.filler).unwrap();
        let metadata = self.start(Vec::new()).await.unwrap();
        assert!(!Self::is_marked(&metadata));
        metadata
    }
}

/// Only who has started can remove images, so that there is room again.
#[tokio::test]
async fn what_lacks_nothing_starts_on_a_full_disk_and_looks_again_when_there_is_room() {
    let full = Full::after(async |_| {}).await;
    let metadata = full.start(Vec::new()).await.unwrap();
    assert!(Full::is_marked(&metadata));
    drop(metadata);
    drop(full.restart().await);
    full.disk.unmount().unwrap();
}

/// It may be what a lost record has named, so it is kept; nothing that is known needs it.
#[tokio::test]
async fn what_nothing_names_is_kept_on_a_full_disk_and_has_records_when_there_is_room() {
    let full = Full::after(async |_| {}).await;
    let backend = crate::fixture::local(full.root.path());
    let blob = put(&backend, b"lost", Labels::new()).await;
    let lost = name("a/70/lost");
    let made = full.memory.prepare(&lost, None, Labels::new()).await;
    made.unwrap();
    let metadata = full.start(Vec::new()).await.unwrap();
    metadata.gc().await.unwrap();
    assert_eq!(full.memory.keys(), ["a/70/lost"]);
    let report = metadata.check(types::CheckOpts {
        repair: true,
        ..types::CheckOpts::default()
    });
    let report = report.await;
    let left = |finding: &types::Finding| finding.repair == types::Repair::Impossible;
    assert!(report.findings.iter().all(left), "{report:?}");
    assert_eq!(report.findings.len(), 2, "{report:?}");
    // Its number may be in use.
    assert!(metadata.0.db.used >= 70);
    drop(metadata);
    let metadata = full.restart().await;
    metadata.gc().await.unwrap();
    let a = metadata.scoped(&scope("a"));
    a.content().info(&blob).await.unwrap();
    let snapshots = a.snapshotter(SNAPSHOTTER).unwrap();
    snapshots.mounts(&name("lost")).await.unwrap();
    drop((a, snapshots, metadata));
    full.disk.unmount().unwrap();
}

/// Else removing it would give no room back, and the next start would hold it for good.
#[tokio::test]
async fn what_is_kept_without_a_record_goes_with_the_record_that_it_gets() {
    let full = Full::after(async |_| {}).await;
    let backend = crate::fixture::local(full.root.path());
    let blob = put(&backend, b"lost", Labels::new()).await;
    let metadata = full.start(Vec::new()).await.unwrap();
    fs::remove_file(&full.filler).unwrap();
    metadata.gc().await.unwrap();
    backend.info(&blob).await.unwrap();
    let content = metadata.scoped(&scope("a")).content();
    put(content.as_ref(), b"lost", Labels::new()).await;
    content.delete(&blob).await.unwrap();
    metadata.gc().await.unwrap();
    assert_eq!(code(backend.info(&blob).await), Code::NotFound);
    drop((content, metadata));
    full.disk.unmount().unwrap();
}

/// The old snapshot was removed, and not collected when its name was given again.
#[tokio::test]
async fn garbage_under_a_name_in_use_keeps_nobody_from_a_start_on_a_full_disk() {
    let full = Full::after(async |metadata| {
        let a = metadata.scoped(&scope("a"));
        let snapshots = a.snapshotter(SNAPSHOTTER).unwrap();
        let made = snapshots.prepare(&name("c1"), None, Labels::new()).await;
        made.unwrap();
        let mut container = container("c1");
        container.snapshotter = SNAPSHOTTER.into();
        container.snapshot_key = "c1".into();
        let containers = metadata.containers(&scope("a"));
        containers.create(container).await.unwrap();
    })
    .await;
    let old = name("a/0/c1");
    let made = full.memory.prepare(&old, None, Labels::new()).await;
    made.unwrap();
    let metadata = full.start(Vec::new()).await.unwrap();
    // It cannot be said who is left, and removals are noted all the same.
    let kv = &metadata.0.db.kv;
    let note = |tx: &mut Tx<'_>| {
        unasked::note_removed(tx, SNAPSHOTTER, "a/0/c1")?;
        unasked::removed(tx).map(drop)
    };
    fs::remove_file(&full.filler).unwrap();
    kv.write(note).await.unwrap();
    let removed = unasked::removed(&kv.read().unwrap()).unwrap();
    assert!(removed[SNAPSHOTTER].contains("a/0/c1"));
    drop(metadata);
    let metadata = full.start(Vec::new()).await.unwrap();
    assert!(!Full::is_marked(&metadata));
    let kv = &metadata.0.db.kv;
    assert!(!kv.read().unwrap().any(&[Bucket::Removed as u8]).unwrap());
    metadata.gc().await.unwrap();
    assert_eq!(full.memory.keys().len(), 1, "{:?}", full.memory.keys());
    drop(metadata);
    full.disk.unmount().unwrap();
}

/// A store that names the snapshot of a container.
async fn contained() -> Full {
    Full::after(async |metadata| {
        let mut container = container("c1");
        container.snapshotter = SNAPSHOTTER.into();
        container.snapshot_key = "c1".into();
        let containers = metadata.containers(&scope("a"));
        containers.create(container).await.unwrap();
    })
    .await
}

#[tokio::test]
async fn what_is_needed_and_has_no_record_does_not_start_on_a_full_disk() {
    for of_task in [true, false] {
        let full = contained().await;
        let mut tasks = Vec::new();
        if of_task {
            let id = "c2".parse().unwrap();
            tasks.push(FoundTask { id, ..task() });
        } else {
            let lost = name("a/70/c1");
            let made = full.memory.prepare(&lost, None, Labels::new()).await;
            made.unwrap();
        }
        let refused = code(full.start(tasks).await);
        assert_eq!(refused, Code::ResourceExhausted);
        drop(full.restart().await);
        full.disk.unmount().unwrap();
    }
}
