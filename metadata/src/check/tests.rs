//! Tests of module `check`.

use ::content::ContentStore as _;
use ::snapshotters::Snapshotter as _;
use types::{Code, Labels};

use super::*;
use crate::fixture::{House, SNAPSHOTTER, code, container, image, name, put, scope, sha};

const REPAIR: CheckOpts = CheckOpts {
    repair: true,
    quick: false,
    since: None,
};

/// Each finding as `fault object`.
fn faults(report: &Report) -> Vec<String> {
    let findings = report.findings.iter();
    findings
        .map(|f| format!("{} {}", f.fault, f.object))
        .collect()
}

async fn checked(house: &House, opts: CheckOpts) -> Report {
    house.metadata.check(opts).await
}

/// Other bytes of the same length in a blob's file.
fn flip(house: &House, digest: &types::Digest) {
    let path = house
        .root
        .path()
        .join("content/blobs/sha256")
        .join(digest.hex());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[0] ^= 1;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, bytes).unwrap();
}

#[tokio::test]
async fn nothing_is_wrong_with_what_is_whole() {
    let house = House::new().await;
    let a = scope("a");
    let blob = put(house.content(&a).as_ref(), b"layer", Labels::new()).await;
    house
        .metadata
        .images(&a)
        .create(image("i", &blob), None)
        .await
        .unwrap();
    let snapshots = house.snapshots(&a);
    snapshots
        .prepare(&name("c"), None, Labels::new())
        .await
        .unwrap();
    house
        .metadata
        .containers(&a)
        .create(container("c"))
        .await
        .unwrap();
    let report = checked(&house, CheckOpts::default()).await;
    assert_eq!(
        report,
        Report {
            blobs: 1,
            bytes: 5,
            snapshots: 1,
            images: 1,
            containers: 1,
            ..Report::default()
        }
    );
}

#[tokio::test]
async fn a_damaged_blob_is_taken_from_everybody_and_can_be_brought_again() {
    let house = House::new().await;
    let (a, b) = (scope("a"), scope("b"));
    let blob = put(house.content(&a).as_ref(), b"layer", Labels::new()).await;
    put(house.content(&b).as_ref(), b"layer", Labels::new()).await;
    flip(&house, &blob);
    let quick = CheckOpts {
        quick: true,
        ..CheckOpts::default()
    };
    assert!(checked(&house, quick).await.is_clean());
    let report = checked(&house, CheckOpts::default()).await;
    assert_eq!(faults(&report), [format!("damaged content {blob}")]);
    assert!(report.is_faulty());
    assert!(report.findings[0].text.contains("namespaces a, b"));
    house.content(&a).info(&blob).await.unwrap();

    let report = checked(&house, REPAIR).await;
    assert_eq!(report.findings[0].repair, Repair::Done);
    for tenant in [&a, &b] {
        assert_eq!(
            code(house.content(tenant).info(&blob).await),
            Code::NotFound
        );
    }
    put(house.content(&a).as_ref(), b"layer", Labels::new()).await;
    assert!(checked(&house, CheckOpts::default()).await.is_clean());
}

#[tokio::test]
async fn a_blob_that_is_older_than_asked_is_not_read() {
    let house = House::new().await;
    let blob = put(house.content(&scope("a")).as_ref(), b"layer", Labels::new()).await;
    flip(&house, &blob);
    let now = std::time::SystemTime::now() + std::time::Duration::from_secs(60);
    let since = CheckOpts {
        since: Some(now),
        ..CheckOpts::default()
    };
    assert!(checked(&house, since).await.is_clean());
}

#[tokio::test]
async fn a_record_without_its_file_goes_with_a_repair() {
    let house = House::new().await;
    let a = scope("a");
    let blob = put(house.content(&a).as_ref(), b"layer", Labels::new()).await;
    house.local.delete(&blob).await.unwrap();
    for repair in [false, true] {
        let opts = CheckOpts {
            repair,
            ..CheckOpts::default()
        };
        let report = checked(&house, opts).await;
        assert_eq!(faults(&report), [format!("missing content {blob}")]);
    }
    assert!(checked(&house, CheckOpts::default()).await.is_clean());
}

#[tokio::test]
async fn orphans_are_named_and_collected_by_a_repair() {
    let house = House::new().await;
    let orphan = put(&house.local, b"orphan", Labels::new()).await;
    let begun = house.local.ingest(::content::testsuite::spec("lost")).await;
    drop(begun.unwrap());
    house
        .memory
        .prepare(&name("foreign"), None, Labels::new())
        .await
        .unwrap();
    let report = checked(&house, CheckOpts::default()).await;
    assert_eq!(
        faults(&report),
        [
            format!("orphan content {orphan}"),
            "orphan ingest lost".to_owned(),
            format!("orphan snapshot {SNAPSHOTTER}/foreign"),
        ]
    );
    assert_eq!(house.blobs().await, [orphan]);
    let report = checked(&house, REPAIR).await;
    assert!(!report.is_faulty());
    assert!(checked(&house, CheckOpts::default()).await.is_clean());
}

#[tokio::test]
async fn a_snapshot_that_is_gone_is_forgotten_unless_something_stands_on_it() {
    let house = House::new().await;
    let a = scope("a");
    let snapshots = house.snapshots(&a);
    snapshots
        .prepare(&name("c"), None, Labels::new())
        .await
        .unwrap();
    snapshots
        .prepare(&name("free"), None, Labels::new())
        .await
        .unwrap();
    let mut used = container("c");
    (used.snapshotter, used.snapshot_key) = (SNAPSHOTTER.into(), "c".into());
    house.metadata.containers(&a).create(used).await.unwrap();
    let all = house.memory.list(&Filter::default()).await.unwrap();
    for info in all {
        house.memory.remove(&info.name).await.unwrap();
    }
    let report = checked(&house, REPAIR).await;
    assert_eq!(
        faults(&report),
        [
            format!("missing snapshot a/{SNAPSHOTTER}/c"),
            format!("missing snapshot a/{SNAPSHOTTER}/free"),
        ]
    );
    assert_eq!(report.findings[0].repair, Repair::Impossible);
    assert!(
        report.findings[0].text.contains("container a/c"),
        "{report:?}"
    );
    assert_eq!(report.findings[1].repair, Repair::Done);
    let containers = house.metadata.containers(&a);
    containers.delete(&"c".parse().unwrap()).await.unwrap();
    assert!(!checked(&house, REPAIR).await.is_faulty());
    assert!(checked(&house, CheckOpts::default()).await.is_clean());
}

#[tokio::test]
async fn what_a_killed_daemon_had_begun_is_no_fault_and_no_garbage() {
    let house = House::new().await;
    let a = scope("a");
    // An ingest between its record and its data.
    let content = house.content(&a);
    let begun = content.ingest(::content::testsuite::spec("i")).await;
    drop(begun.unwrap());
    let data = house.local.statuses(&Filter::default()).await;
    house
        .local
        .abort(&data.unwrap()[0].reference)
        .await
        .unwrap();
    // A commit between the backend and its record.
    let snapshots = house.snapshots(&a);
    let active = name("active");
    snapshots
        .prepare(&active, None, Labels::new())
        .await
        .unwrap();
    let key = name(&house.memory.keys()[0]);
    let number = crate::snapshots::number_of(key.as_str()).unwrap();
    let ahead = name(&format!("a/{number}/done"));
    let committed = house.memory.commit(&ahead, &key, Labels::new()).await;
    committed.unwrap();
    assert!(checked(&house, REPAIR).await.is_clean());
    let done = name("done");
    let again = snapshots.commit(&done, &active, Labels::new());
    again.await.unwrap();
    assert!(checked(&house, REPAIR).await.is_clean());
}

#[tokio::test]
async fn names_of_what_is_not_there_are_told() {
    let house = House::new().await;
    let a = scope("a");
    let target = sha(b"never brought");
    house
        .metadata
        .images(&a)
        .create(image("i", &target), None)
        .await
        .unwrap();
    let mut lost = container("c");
    (lost.snapshotter, lost.snapshot_key) = (SNAPSHOTTER.into(), "nowhere".into());
    house.metadata.containers(&a).create(lost).await.unwrap();
    let report = checked(&house, REPAIR).await;
    assert_eq!(
        faults(&report),
        ["dangling image a/i", "dangling container a/c"]
    );
    assert!(report.is_faulty(), "nobody but their owners can decide");
}

#[tokio::test]
async fn a_wrong_length_in_a_record_costs_nobody_the_blob() {
    let house = House::new().await;
    let a = scope("a");
    let blob = put(house.content(&a).as_ref(), b"layer", Labels::new()).await;
    let at = crate::key::own(crate::key::Bucket::Blob, &a.namespace, blob.as_str());
    let wrong = crate::record::BlobRecord {
        size: 7,
        labels: Labels::new(),
        created_at: std::time::SystemTime::now(),
        updated_at: std::time::SystemTime::now(),
    };
    let change = move |tx: &mut crate::db::WriteTx<'_, '_>| {
        tx.put(at, wrong.encode());
        Ok(())
    };
    house.metadata.0.db.write(change).await.unwrap();
    let report = checked(&house, REPAIR).await;
    assert_eq!(faults(&report), [format!("damaged content {blob}")]);
    assert_eq!(house.content(&a).info(&blob).await.unwrap().size, 5);
    assert!(checked(&house, CheckOpts::default()).await.is_clean());
}

#[tokio::test]
async fn an_ingest_that_would_only_link_does_not_link_what_was_taken_away() {
    let house = House::new().await;
    let blob = put(house.content(&scope("a")).as_ref(), b"layer", Labels::new()).await;
    let spec = ::content::IngestSpec {
        expected: Some(blob.clone()),
        ..::content::testsuite::spec("link")
    };
    let b = house.content(&scope("b"));
    let ingest = b.ingest(spec).await.unwrap();
    flip(&house, &blob);
    assert!(!checked(&house, REPAIR).await.is_faulty());
    let linked = ingest.commit(None, Some(blob.clone()), Labels::new()).await;
    assert_eq!(code(linked), Code::NotFound);
    assert_eq!(code(b.info(&blob).await), Code::NotFound);
}

#[tokio::test]
async fn what_cannot_be_removed_is_not_called_repaired() {
    let house = House::new().await;
    let a = scope("a");
    let snapshots = house.snapshots(&a);
    snapshots
        .prepare(&name("k"), None, Labels::new())
        .await
        .unwrap();
    snapshots
        .commit(&name("layer"), &name("k"), Labels::new())
        .await
        .unwrap();
    let labels = Labels::new().with("containerd.io/gc.root", "1");
    let parent = name("layer");
    snapshots
        .prepare(&name("c"), Some(&parent), labels)
        .await
        .unwrap();
    // Nothing is noted of the commit any more.
    house.metadata.gc().await.unwrap();
    let at = crate::snapshots::record_key(&a.namespace, SNAPSHOTTER, "layer");
    let change = move |tx: &mut crate::db::WriteTx<'_, '_>| {
        tx.remove(at);
        Ok(())
    };
    house.metadata.0.db.write(change).await.unwrap();
    let report = checked(&house, REPAIR).await;
    let mut findings = report.findings.iter();
    let orphan = findings.find(|finding| finding.fault == Fault::Orphan);
    assert_eq!(orphan.unwrap().repair, Repair::Impossible, "{report:?}");
}

#[tokio::test]
async fn what_is_among_the_blobs_and_ingests_and_is_none_is_named() {
    let house = House::new().await;
    let content = house.root.path().join("content");
    let foreign = [
        content.join("blobs/notes"),
        content.join("blobs/sha256/short"),
    ];
    for path in &foreign {
        std::fs::write(path, "by hand").unwrap();
    }
    // A crash within its beginning has left it.
    let half = content.join("ingest").join("0".repeat(64));
    std::fs::create_dir(&half).unwrap();
    for (opts, repair) in [
        (CheckOpts::default(), Repair::Possible),
        (REPAIR, Repair::Done),
    ] {
        let report = checked(&house, opts).await;
        let found = report.findings.iter();
        let found: Vec<_> = found
            .map(|f| (f.object.clone(), f.fault, f.repair))
            .collect();
        for path in &foreign {
            let object = path.display().to_string();
            let want = (object, Fault::Orphan, Repair::Impossible);
            assert!(found.contains(&want), "{report:?}");
        }
        let want = (half.display().to_string(), Fault::Orphan, repair);
        assert!(found.contains(&want), "{report:?}");
        assert_eq!(found.len(), 3);
    }
    assert!(!half.exists());
}
