//! Small steps, and locks that nobody else needs: collections beside requests.

use std::time::SystemTime;

use types::{Code, Labels, Resource, gc_label, label};

use super::PAST;
use crate::db::WriteTx;
use crate::fixture::{House, SNAPSHOTTER, code, labels, name, scope, sha};
use crate::gc::mark::Marked;
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
        &[],
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
        assert!((1..=2 * most + 1).contains(&gone), "{gone} in one step");
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
