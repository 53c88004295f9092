//! Tests of module `migrate`.

use std::path::PathBuf;

use types::{Code, Labels};

use super::*;
use crate::fixture::{House, SNAPSHOTTER, namespace};
use crate::kv::{INCOMPLETE, Opened, Source};

/// All records, but for the mark of a store that was restored.
fn dump(kv: &Kv) -> Records {
    let mut all = Records::new();
    let read = kv.read().unwrap();
    read.scan(b"", &mut |key, value| {
        all.insert(key.to_vec(), value.to_vec());
        Ok(Flow::Continue(()))
    })
    .unwrap();
    all.remove(INCOMPLETE);
    all
}

fn of_schema(schema: u64) -> Records {
    [(at(), schema.to_le_bytes().into())].into()
}

fn store(records: &Records) -> (tempfile::TempDir, PathBuf, Kv) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("meta.redb");
    let (kv, _) = Kv::make(&path, records).unwrap();
    (dir, path, kv)
}

/// Makes the store at `path` one that the daemon of schema 1 has written.
fn age(path: &Path) -> Records {
    let (kv, _) = Kv::open(path).unwrap();
    let mut records = dump(&kv);
    drop(kv);
    records.extend(of_schema(1));
    let snapshot = key(Bucket::Snapshot, &[]);
    for (key, value) in &mut records {
        if key.starts_with(&snapshot) {
            let mut record = SnapshotRecord::decode(value).unwrap();
            record.kind = None;
            *value = record.encode();
        }
    }
    drop(Kv::make(path, &records).unwrap());
    records
}

fn kinds(records: &Records) -> Vec<Option<SnapshotKind>> {
    let snapshot = key(Bucket::Snapshot, &[]);
    let records = records.iter().filter(|(key, _)| key.starts_with(&snapshot));
    records
        .map(|(_, value)| SnapshotRecord::decode(value).unwrap().kind)
        .collect()
}

#[tokio::test]
async fn kinds_are_noted_and_the_store_of_before_is_kept_as_it_was() {
    let house = House::new().await;
    let scope = types::Scope::new(namespace("n"));
    let snapshots = house.snapshots(&scope);
    let (a, b, c) = (
        "a".parse().unwrap(),
        "b".parse().unwrap(),
        "c".parse().unwrap(),
    );
    snapshots.prepare(&a, None, Labels::new()).await.unwrap();
    snapshots.commit(&b, &a, Labels::new()).await.unwrap();
    snapshots.view(&c, Some(&b), Labels::new()).await.unwrap();
    snapshots
        .prepare(&a, Some(&b), Labels::new())
        .await
        .unwrap();
    drop(snapshots);
    let mut aged = Records::new();
    let house = house
        .restart_after(|dir| aged = age(&dir.join("meta.redb")), Vec::new())
        .await;
    assert_eq!(kinds(&aged), [None; 3]);
    let now = dump(&house.metadata.0.db.kv);
    let want = [
        SnapshotKind::Active,
        SnapshotKind::Committed,
        SnapshotKind::View,
    ];
    assert_eq!(kinds(&now), want.map(Some));
    assert_eq!(found(&house.metadata.0.db.kv).unwrap(), SCHEMA);
    let kept = house.root.path().join("meta/meta.redb.schema-1");
    let copy = house.root.path().join("copy.redb");
    std::fs::copy(&kept, &copy).unwrap();
    let (before, _) = Kv::open(&copy).unwrap();
    assert_eq!(dump(&before), aged);
    // Once.
    std::fs::remove_file(&kept).unwrap();
    let house = house.restart().await;
    assert_eq!(dump(&house.metadata.0.db.kv), now);
    assert!(!kept.exists());
}

#[tokio::test]
async fn the_way_back_to_an_older_daemon_is_as_it_is_told() {
    let (_dir, path, kv) = store(&of_schema(1));
    let step: Step = |tx, _| {
        mark(tx, "new");
        Ok(())
    };
    run(&kv, &path, &[step], Facts::default()).await.unwrap();
    drop(kv);
    let kept = path.with_file_name("meta.redb.schema-1");
    let journal = path.with_file_name("meta.redb.journal");
    let [store, from, gone] = [&path, &kept, &journal].map(|file| file.display());
    let told = way_back(&path, &kept);
    let steps = format!("stop this one, remove {gone}, rename {from} to {store}.");
    assert!(told.contains(&steps), "{told}");
    std::fs::remove_file(&journal).unwrap();
    std::fs::rename(&kept, &path).unwrap();
    let (kv, opened) = Kv::open(&path).unwrap();
    assert_eq!(dump(&kv), of_schema(1));
    if let Opened::Restored(restored) = opened {
        assert!(matches!(restored.from, Source::File));
    }
    // It works, and what it writes then stays.
    let write = |tx: &mut Tx<'_>| {
        mark(tx, "older");
        Ok(())
    };
    kv.write(write).await.unwrap();
    let written = dump(&kv);
    drop(kv);
    let (kv, opened) = Kv::open(&path).unwrap();
    assert!(matches!(opened, Opened::Whole));
    assert_eq!(dump(&kv), written);
}

#[tokio::test]
async fn what_its_snapshotter_cannot_tell_stays_unknown() {
    let house = House::new().await;
    let scope = types::Scope::new(namespace("n"));
    let snapshots = house.snapshots(&scope);
    let a = "a".parse().unwrap();
    snapshots.prepare(&a, None, Labels::new()).await.unwrap();
    drop(snapshots);
    let path = house.root.path().join("meta/meta.redb");
    let House { metadata, root, .. } = house;
    drop(metadata);
    age(&path);
    let (kv, _) = Kv::open(&path).unwrap();
    let empty: Arc<dyn Snapshotter> = Arc::<crate::fixture::Memory>::default();
    let others = BTreeMap::from([(SNAPSHOTTER.to_owned(), empty)]);
    bring(&kv, &path, &others).await.unwrap();
    assert_eq!(kinds(&dump(&kv)), [None]);
    assert_eq!(found(&kv).unwrap(), SCHEMA);
    drop(root);
}

#[tokio::test]
async fn a_newer_store_is_refused_and_stays_as_it_is() {
    let (dir, path, kv) = store(&of_schema(SCHEMA + 1));
    let error = bring(&kv, &path, &BTreeMap::new()).await.unwrap_err();
    assert!(error.is(Code::FailedPrecondition), "{error}");
    let told = format!(
        "metadata store has schema {}, this daemon knows {SCHEMA} at most: run the daemon that wrote it",
        SCHEMA + 1
    );
    assert!(error.to_string().starts_with(&told), "{error}");
    drop(kv);
    let (kv, _) = Kv::open(&path).unwrap();
    assert_eq!(dump(&kv), of_schema(SCHEMA + 1));
    let mut left = std::fs::read_dir(dir.path()).unwrap();
    let is_copy = |name: std::ffi::OsString| name.to_string_lossy().contains("schema");
    assert!(!left.any(|entry| is_copy(entry.unwrap().file_name())));
}

#[tokio::test]
async fn a_store_without_a_schema_is_damaged() {
    for records in [Records::new(), of_schema(0)] {
        let (_dir, path, kv) = store(&records);
        let error = bring(&kv, &path, &BTreeMap::new()).await.unwrap_err();
        assert!(error.is(Code::DataLoss), "{error}");
        let text = error.to_string();
        for file in files(&path) {
            assert!(text.contains(&format!(" {}", file.display())), "{text}");
        }
        assert_eq!(dump(&kv), records);
    }
}

fn mark(tx: &mut Tx<'_>, name: &str) {
    let at = key(Bucket::Store, &[name]);
    assert!(!tx.has(&at).unwrap(), "{name} was done already");
    tx.put(at, Vec::new());
}

#[tokio::test]
async fn a_step_that_fails_is_taken_again_and_those_before_it_are_not() {
    let first: Step = |tx, _| {
        mark(tx, "first");
        Ok(())
    };
    let fails: Step = |tx, _| {
        mark(tx, "second");
        Err(Error::unknown("power is gone"))
    };
    let second: Step = |tx, _| {
        mark(tx, "second");
        Ok(())
    };
    let (_dir, path, kv) = store(&of_schema(1));
    let error = run(&kv, &path, &[first, fails], Facts::default()).await;
    let error = error.unwrap_err().to_string();
    let told = "bring metadata from schema 2 to 3: power is gone";
    assert!(error.starts_with(told), "{error}");
    assert_eq!(found(&kv).unwrap(), 2);
    drop(kv);
    let (kv, _) = Kv::open(&path).unwrap();
    run(&kv, &path, &[first, second], Facts::default())
        .await
        .unwrap();
    assert_eq!(found(&kv).unwrap(), 3);
    for schema in [1, 2] {
        let kept = path.with_file_name(format!("meta.redb.schema-{schema}"));
        let (kept, _) = Kv::open(&kept).unwrap();
        assert_eq!(found(&kept).unwrap(), schema);
    }
    run(&kv, &path, &[first, second], Facts::default())
        .await
        .unwrap();
}

#[tokio::test]
async fn without_a_copy_nothing_is_changed() {
    let (_dir, path, kv) = store(&of_schema(1));
    // Where the copy is to be made, something is in the way.
    std::fs::create_dir(path.with_file_name("meta.redb.schema-1.new")).unwrap();
    let error = bring(&kv, &path, &BTreeMap::new()).await.unwrap_err();
    assert!(
        error.to_string().starts_with("keep metadata as it is"),
        "{error}"
    );
    assert_eq!(dump(&kv), of_schema(1));
}
