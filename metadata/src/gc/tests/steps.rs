//! Sweeps that go in steps, and what they tell the scheduler.

use std::time::SystemTime;

use types::{Code, Labels, Resource, gc_label, label};

use super::PAST;
use crate::db::{Marks, WriteTx};
use crate::fixture::{House, SNAPSHOTTER, code, labels, name, scope, sha};
use crate::gc::Beside;
use crate::gc::mark::Marked;
use crate::gc::sweep::STEP;
use crate::key::{Bucket, own};
use crate::kv::{Flow, Read as _};
use crate::record::BlobRecord;

/// Records of blobs that nobody names, and a lease that is over with as many entries: one change.
async fn litter(house: &House, count: u32) {
    let past = labels(&[(gc_label::EXPIRE, PAST)]);
    let leased = house.leased("a", past).await;
    let change = move |tx: &mut WriteTx<'_, '_>| {
        let (namespace, lease) = (&leased.namespace, leased.lease.as_ref().unwrap());
        for n in 0..count {
            let digest = sha(&n.to_le_bytes());
            let record = BlobRecord {
                size: 4,
                labels: Labels::new(),
                created_at: SystemTime::now(),
                updated_at: SystemTime::now(),
            };
            tx.put(
                own(Bucket::Blob, namespace, digest.as_str()),
                record.encode(),
            );
            let entry = crate::leases::leased(namespace, lease, &Resource::Content(digest));
            tx.put(entry, Vec::new());
        }
        Ok(())
    };
    house.metadata.0.db.write(change).await.unwrap();
}

/// How many records there are of a kind.
fn count(house: &House, bucket: Bucket) -> usize {
    let mut found = 0;
    let tx = house.metadata.0.db.kv.read().unwrap();
    tx.scan(
        &crate::key::all(bucket, &scope("a").namespace),
        &mut |_, _| {
            found += 1;
            Ok(Flow::Continue(()))
        },
    )
    .unwrap();
    found
}

#[tokio::test]
async fn a_sweep_goes_in_small_steps_and_one_that_is_cut_off_is_finished_by_the_next_run() {
    let house = House::new().await;
    let (blobs, most) = (1000, 100);
    litter(&house, blobs).await;
    let marked = Marked::new(
        &house.metadata.0.db.kv.read().unwrap(),
        SystemTime::now(),
        &Beside::default(),
    );
    let mut marked = marked.unwrap();
    let mut before = (count(&house, Bucket::Blob), count(&house, Bucket::Leased));
    for _ in 0..5 {
        let step = move |tx: &mut WriteTx<'_, '_>| {
            marked.sweep(tx, most)?;
            Ok(marked)
        };
        marked = house.metadata.0.db.write(step).await.unwrap();
        assert!(!marked.is_clean());
        let after = (count(&house, Bucket::Blob), count(&house, Bucket::Leased));
        let gone = (before.0 - after.0) + (before.1 - after.1);
        assert!((1..=most).contains(&gone), "{gone} in one step");
        before = after;
    }
    // Cut off here: the daemon was killed.
    let house = house.restart().await;
    let stats = house.metadata.gc().await.unwrap();
    assert_eq!(stats.records.content, before.0 as u64);
    assert_eq!(stats.records.leases, 1);
    assert!(stats.longest < stats.pause, "{stats:?}");
    assert_eq!(count(&house, Bucket::Blob), 0);
    assert_eq!(count(&house, Bucket::Leased), 0);
}

/// Each list alone would go in one step: all of them would hold up a writer many times as long.
#[tokio::test]
async fn the_lists_of_many_leases_that_are_over_go_in_small_steps() {
    let house = House::new().await;
    let most = 100;
    for _ in 0..8 {
        litter(&house, 90).await;
    }
    let marked = Marked::new(
        &house.metadata.0.db.kv.read().unwrap(),
        SystemTime::now(),
        &Beside::default(),
    );
    let mut marked = marked.unwrap();
    let there = || {
        [Bucket::Blob, Bucket::Leased, Bucket::Lease]
            .map(|bucket| count(&house, bucket))
            .iter()
            .sum::<usize>()
    };
    assert_eq!(there(), 90 + 8 * 90 + 8);
    let mut steps = 0;
    while !marked.is_clean() {
        let before = there();
        let step = move |tx: &mut WriteTx<'_, '_>| {
            marked.sweep(tx, most)?;
            Ok(marked)
        };
        marked = house.metadata.0.db.write(step).await.unwrap();
        let gone = before - there();
        assert!((1..=most).contains(&gone), "{gone} in step {steps}");
        steps += 1;
    }
    assert_eq!((there(), steps), (0, 9), "no step is wasted");
}

/// Its own work is no reason to collect again.
#[tokio::test]
async fn the_steps_of_a_sweep_make_no_collection_due() {
    let house = House::new().await;
    let many = 4 * STEP;
    litter(&house, u32::try_from(many).unwrap()).await;
    assert_eq!(house.metadata.0.db.outlet.take().mutations, 2);
    let stats = house.metadata.gc().await.unwrap();
    assert_eq!(stats.records.content, many as u64);
    assert_eq!(house.metadata.0.db.outlet.take(), Marks::default());
    litter(&house, 1).await;
    assert_eq!(
        house.metadata.0.db.outlet.take().mutations,
        2,
        "others count"
    );
}

/// A remote snapshotter may be slow about one removal: nobody but who wants that very snapshot waits.
#[tokio::test]
async fn the_removal_of_a_snapshot_holds_up_no_other() {
    let house = House::new().await;
    house.memory.be_remote();
    let a = house.snapshots(&scope("a"));
    let target = |name: &str| labels(&[(label::SNAPSHOT_REF, name)]);
    let prepared = a.prepare(&name("k1"), None, target("chain-1")).await;
    assert_eq!(code(prepared), Code::AlreadyExists);
    let backend = &house.metadata.0.snapshotters[SNAPSHOTTER];
    let removing = backend.adopting.alone("remote-chain-1").await;
    let prepared = a.prepare(&name("k2"), None, target("chain-2")).await;
    assert_eq!(code(prepared), Code::AlreadyExists, "it did not wait");
    a.remove(&name("chain-1")).await.unwrap();
    let key = name("k3");
    let again = a.prepare(&key, None, target("chain-1"));
    tokio::pin!(again);
    assert!(futures::poll!(&mut again).is_pending());
    // As the collector does: it is gone, and the snapshotter is asked for it once more.
    house.memory.lose("remote-chain-1");
    drop(removing);
    assert_eq!(code(again.await), Code::AlreadyExists);
    a.stat(&name("chain-1")).await.unwrap();
}

/// The collector has looked at the records before the adoption: the snapshot stays.
#[tokio::test]
async fn what_is_adopted_during_a_collection_stays() {
    let house = House::new().await;
    house.memory.be_remote();
    let leased = house.leased("a", Labels::new()).await;
    let a = house.snapshots(&leased);
    let backend = &house.metadata.0.snapshotters[SNAPSHOTTER];
    let adoptions = backend.adoptions();
    let target = labels(&[(label::SNAPSHOT_REF, "chain")]);
    let prepared = a.prepare(&name("k"), None, target).await;
    assert_eq!(code(prepared), Code::AlreadyExists);
    assert!(adoptions.has("remote-chain"));
    drop(adoptions);
    house.metadata.gc().await.unwrap();
    assert_eq!(house.memory.keys(), ["remote-chain"]);
}
