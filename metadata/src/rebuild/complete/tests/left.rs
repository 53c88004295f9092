//! Snapshotters that are left to be asked, and what happens until they are.

use ::snapshotters::Snapshotter as _;
use types::{CheckOpts, Repair};

use super::super::super::unasked;
use super::*;
use crate::snapshots::number_of;

/// A root whose snapshotter is another program that does not answer at the first start, and does later.
async fn silent_at_first() -> (House, Digest) {
    let harmed = harmed().await;
    harmed.memory.be_remote();
    harmed.memory.be_silent(true);
    let (house, blob) = harmed.start().await;
    house.memory.be_silent(false);
    (house, blob)
}

async fn names(house: &House) -> Vec<String> {
    let all = house.snapshots(&scope("a")).list(&Filter::default()).await;
    let all = all.unwrap().into_iter();
    all.map(|info| info.name.to_string()).collect()
}

/// Also when nothing else tells of it, and what was lost later is less.
#[tokio::test]
async fn who_is_left_stays_so_when_more_is_lost() {
    for is_back_at_once in [true, false] {
        let harmed = harmed().await;
        let away = || OpenOpts {
            tasks: Box::new(|| Ok(vec![task()])),
            ..opts(harmed.root.path(), None)
        };
        drop(Metadata::open(&harmed.path(), away()).await.unwrap());
        assert_eq!(marks_of(&harmed.path()), only_left());
        tear(&harmed.path());
        if !is_back_at_once {
            let opts = OpenOpts {
                absent: Vec::new(),
                ..away()
            };
            drop(Metadata::open(&harmed.path(), opts).await.unwrap());
            assert_eq!(marks_of(&harmed.path()), only_left());
        }
        let (house, blob) = harmed.start().await;
        assert!(!leases(&house).await.contains(&true));
        is_held(house, &blob).await;
    }
}

/// Writes what an earlier daemon leaves: the names are in the mark, and there is nothing else.
async fn put_earlier_mark(path: &Path, mark: &'static [u8]) {
    let (kv, _) = Kv::open(path).unwrap();
    let change = |tx: &mut Tx<'_>| {
        tx.remove(UNASKED.into());
        tx.put(INCOMPLETE.into(), mark.into());
        Ok(())
    };
    kv.write(change).await.unwrap();
}

/// The container names no snapshot, since its snapshotter could not be asked: it gets it back, and what holds
/// the snapshot has no end unless most likely nothing was lost, whatever is lost later.
#[tokio::test]
async fn the_mark_of_an_earlier_daemon_is_understood() {
    for (mark, is_torn_later, has_end) in [
        (&b"\0memory"[..], false, true),
        (b"memory", false, false),
        (b"\0memory", true, true),
        (b"memory", true, false),
    ] {
        let harmed = harmed().await;
        let away = OpenOpts {
            tasks: Box::new(|| Ok(vec![task()])),
            ..opts(harmed.root.path(), None)
        };
        let metadata = Metadata::open(&harmed.path(), away).await.unwrap();
        // That of this start may have the name of a later one.
        let held = metadata.leases(&scope("a").namespace);
        for lease in held.list(&Filter::default()).await.unwrap() {
            held.delete(&lease.id, false).await.unwrap();
        }
        drop((held, metadata));
        put_earlier_mark(&harmed.path(), mark).await;
        if is_torn_later {
            tear(&harmed.path());
        }
        let opts = OpenOpts {
            // Who is named in the mark is asked, and nobody else.
            tasks: Box::new(move || match is_torn_later {
                true => Ok(vec![task()]),
                false => Err(Error::unavailable("told to fail")),
            }),
            ..opts(harmed.root.path(), Some(&harmed.memory))
        };
        drop(Metadata::open(&harmed.path(), opts).await.unwrap());
        let (house, _) = harmed.start().await;
        assert_eq!(snapshotter_of(&house.metadata, "c1").await, SNAPSHOTTER);
        let ends = leases(&house).await;
        assert_eq!(ends.contains(&true), has_end, "{mark:?}, {is_torn_later}");
        let (root, _) = house.close();
        assert_eq!(marks_of(&store(root.path())), [None, None]);
    }
}

/// A later loss writes the mark anew.
#[tokio::test]
async fn names_in_the_mark_outlive_a_store_that_is_written_anew() {
    let harmed = harmed().await;
    let path = harmed.path();
    drop(Metadata::open(&path, opts(harmed.root.path(), None)).await);
    put_earlier_mark(&path, b"\0memory").await;
    fs::write(&path, "damaged").unwrap();
    let marks = [Some(Vec::new()), Some(b"\0memory".to_vec())];
    assert_eq!(marks_of(&path), marks);
}

/// But for what something stands on that has lost its record.
#[tokio::test]
async fn what_is_removed_there_meanwhile_stays_removed() {
    let (house, blob) = silent_at_first().await;
    prepare(&house, "swept").await;
    house.metadata.gc().await.unwrap();
    assert!(names(&house).await.is_empty());
    let snapshots = house.snapshots(&scope("a"));
    prepare(&house, "removed").await;
    snapshots.remove(&name("removed")).await.unwrap();
    prepare(&house, "work").await;
    let (layer, work) = (name("layer"), name("work"));
    let committed = snapshots.commit(&layer, &work, Labels::new());
    committed.await.unwrap();
    let keys = house.memory.keys();
    let parent = keys.iter().find(|key| key.ends_with("/layer")).unwrap();
    let (child, parent) = (name("a/1/child"), name(parent));
    let made = house.memory.prepare(&child, Some(&parent), Labels::new());
    made.await.unwrap();
    snapshots.remove(&layer).await.unwrap();
    drop(snapshots);
    let house = house.restart().await;
    assert_eq!(names(&house).await, ["c1", "child", "layer"]);
    house.metadata.gc().await.unwrap();
    assert_eq!(house.memory.keys().len(), 3);
    let kv = &house.metadata.0.db.kv;
    let notes = kv.read().unwrap().any(&[Bucket::Removed as u8]).unwrap();
    assert!(!notes, "they go with the mark");
    is_held(house, &blob).await;
}

/// Nobody was told that it is there.
#[tokio::test]
async fn what_never_got_a_record_there_is_not_held_later() {
    let (house, blob) = silent_at_first().await;
    let before = house.memory.keys();
    house.memory.fail_next(Code::Unknown);
    let snapshots = house.snapshots(&scope("a"));
    let made = snapshots.prepare(&name("new"), None, Labels::new()).await;
    made.unwrap_err();
    drop(snapshots);
    let kv = &house.metadata.0.db.kv;
    let noted = unasked::removed(&kv.read().unwrap()).unwrap();
    let [made] = &noted[SNAPSHOTTER].iter().collect::<Vec<_>>()[..] else {
        panic!("{noted:?}");
    };
    assert!(made.ends_with("/new") && !before.contains(made), "{made}");
    // It was made all the same.
    let made = name(made);
    let late = house.memory.prepare(&made, None, Labels::new());
    late.await.unwrap();
    let house = house.restart().await;
    assert_eq!(names(&house).await, ["c1"]);
    is_held(house, &blob).await;
}

#[tokio::test]
async fn removals_are_noted_while_there_is_room() {
    let root = tempfile::tempdir().unwrap();
    let (kv, _) = Kv::make(&store(root.path()), &Records::new()).unwrap();
    let change = |tx: &mut Tx<'_>| {
        tx.put(UNASKED.into(), b"a\0b".into());
        for n in 0..unasked::MOST_REMOVED + 5 {
            // Said twice it is one.
            for _ in 0..2 {
                unasked::note_removed(tx, "a", &format!("ns/{n}/x"))?;
            }
        }
        unasked::note_removed(tx, "b", "ns/1/x")?;
        unasked::note_removed(tx, "c", "ns/1/x")
    };
    kv.write(change).await.unwrap();
    let removed = unasked::removed(&kv.read().unwrap()).unwrap();
    let counts = ["a", "b", "c"].map(|name| removed.get(name).map_or(0, HashSet::len));
    assert_eq!(counts.map(|n| n as u64), [unasked::MOST_REMOVED, 1, 0]);
}

/// The records that told which were given may be lost, and nobody else tells.
#[tokio::test]
async fn numbers_that_nobody_has_told_are_not_given_again() {
    let (house, _) = silent_at_first().await;
    house.memory.be_silent(true);
    let mut last = 0;
    for is_first in [true, false] {
        let before = house.memory.keys();
        let key = if is_first { "one" } else { "two" };
        prepare(&house, key).await;
        let after = house.memory.keys().into_iter();
        let new = after.filter(|key| !before.contains(key));
        let number = new.filter_map(|key| number_of(&key)).max().unwrap();
        assert!(number > UNSEEN_NUMBERS, "{number}");
        assert!(number > last);
        last = number;
    }
    let house = house.restart().await;
    prepare(&house, "three").await;
    let numbers = house.memory.keys().into_iter();
    let highest = numbers.filter_map(|key| number_of(&key)).max().unwrap();
    assert!(highest < 2 * UNSEEN_NUMBERS, "once for each loss is enough");
}

#[tokio::test]
async fn a_check_does_not_call_garbage_what_was_not_asked_yet() {
    let (house, blob) = silent_at_first().await;
    let keys = house.memory.keys();
    assert_eq!(keys.len(), 1);
    // What was removed has not lost its record.
    prepare(&house, "removed").await;
    let snapshots = house.snapshots(&scope("a"));
    snapshots.remove(&name("removed")).await.unwrap();
    drop(snapshots);
    let all = house.memory.keys();
    assert_eq!(all.len(), 2);
    for repair in [false, true] {
        let opts = CheckOpts {
            repair,
            ..CheckOpts::default()
        };
        let report = house.metadata.check(opts).await;
        let [finding] = &report.findings[..] else {
            panic!("{report:?}");
        };
        assert!(finding.object.contains(&keys[0]), "{finding}");
        assert!(finding.text.contains("may be lost"), "{finding}");
        assert_eq!(finding.repair, Repair::Impossible);
        assert_eq!(house.memory.keys(), all);
    }
    let house = house.restart().await;
    is_held(house, &blob).await;
}
