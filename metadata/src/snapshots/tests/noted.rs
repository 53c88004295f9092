//! Commits that the records' journal makes durable: a power cut between any two steps.

use types::{Code, Labels, SnapshotKind};

use crate::fixture::{House, SNAPSHOTTER, code, labels, name, scope};
use crate::key::{Bucket, below};
use crate::kv::{Flow, Read as _};

/// How many notes there are.
fn notes(house: &House) -> usize {
    let mut notes = 0;
    let count = &mut |_: &[u8], _: &[u8]| {
        notes += 1;
        Ok(Flow::Continue(()))
    };
    let read = house.metadata.0.db.kv.read().unwrap();
    read.scan(&below(Bucket::Redo, &[SNAPSHOTTER]), count)
        .unwrap();
    notes
}

/// Layers in the order in which no parent comes after its child by name or number, all kept.
async fn layers(house: &House) {
    let a = house.snapshots(&scope("a"));
    let kept = || labels(&[("containerd.io/gc.root", "yes"), ("mine", "1")]);
    for key in ["one", "two"] {
        a.prepare(&name(key), None, Labels::new()).await.unwrap();
    }
    // The one that was made first stands on the other.
    a.commit(&name("z"), &name("two"), kept()).await.unwrap();
    a.rebase(&name("b"), &name("one"), &name("z"), kept())
        .await
        .unwrap();
}

async fn after_power_cut(house: House, lost: usize) -> House {
    assert_eq!(house.memory.cut(), lost);
    house.restart().await
}

#[tokio::test]
async fn commits_that_the_power_has_taken_are_made_again_parents_first() {
    let house = House::new().await;
    layers(&house).await;
    let before = house.memory.keys();
    assert_eq!((before.len(), notes(&house)), (2, 2));
    let house = after_power_cut(house, 2).await;
    assert_eq!(house.memory.keys(), before);
    let a = house.snapshots(&scope("a"));
    let info = a.stat(&name("b")).await.unwrap();
    assert_eq!(info.kind, SnapshotKind::Committed);
    assert_eq!(info.parent, Some(name("z")));
    assert_eq!(info.labels.get("mine").map(String::as_str), Some("1"));
}

#[tokio::test]
async fn what_is_noted_is_flushed_by_the_collector_and_forgotten() {
    let house = House::new().await;
    layers(&house).await;
    house.metadata.gc().await.unwrap();
    assert_eq!(notes(&house), 0);
    let before = house.memory.keys();
    let house = after_power_cut(house, 0).await;
    assert_eq!(house.memory.keys(), before);
}

#[tokio::test]
async fn the_note_of_a_removed_snapshot_brings_nothing_back() {
    let house = House::new().await;
    layers(&house).await;
    let a = house.snapshots(&scope("a"));
    a.remove(&name("b")).await.unwrap();
    assert_eq!(notes(&house), 1);
    drop(a);
    let house = after_power_cut(house, 2).await;
    assert_eq!(house.memory.keys().len(), 1);
    // What the collector removes as well.
    let a = house.snapshots(&scope("a"));
    a.prepare(&name("three"), None, Labels::new())
        .await
        .unwrap();
    a.commit(&name("unkept"), &name("three"), Labels::new())
        .await
        .unwrap();
    house.metadata.gc().await.unwrap();
    assert_eq!((notes(&house), house.memory.keys().len()), (0, 1));
}

#[tokio::test]
async fn nothing_is_cleaned_up_until_all_that_is_noted_was_made_again() {
    let house = House::new().await;
    layers(&house).await;
    let before = house.memory.keys();
    house.memory.fail_next(Code::ResourceExhausted);
    let house = after_power_cut(house, 2).await;
    assert_eq!((notes(&house), house.memory.keys().len()), (2, 0));
    house.memory.fail_next(Code::ResourceExhausted);
    house.metadata.gc().await.unwrap();
    assert_eq!((notes(&house), house.memory.cleanups()), (2, 0));
    house.metadata.gc().await.unwrap();
    assert_eq!(notes(&house), 0);
    assert_eq!(house.memory.keys(), before);
    assert!(house.memory.cleanups() > 0);
}

#[tokio::test]
async fn a_commit_that_cannot_be_made_again_is_not_tried_for_ever() {
    let house = House::new().await;
    layers(&house).await;
    house.memory.damage();
    let house = after_power_cut(house, 2).await;
    assert_eq!((notes(&house), house.memory.keys().len()), (0, 0));
    let a = house.snapshots(&scope("a"));
    assert_eq!(code(a.stat(&name("z")).await), Code::NotFound);
}
