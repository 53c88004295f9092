//! Ingests that nobody finishes, and those that somebody is at work on.

use std::time::{Duration, SystemTime};

use ::content::testsuite::spec;
use bytes::Bytes;
use types::{Filter, Labels};

use super::super::{Removed, run_at};
use crate::content::INGEST_LIFETIME;
use crate::fixture::{House, namespace, scope};
use crate::ingest::RENEWAL;
use crate::key::{Bucket, own};
use crate::kv::Read as _;
use crate::record::IngestRecord;

/// References of the ingests of namespace `a`, in order.
async fn ingests(house: &House) -> Vec<String> {
    let content = house.content(&scope("a"));
    let all = content.statuses(&Filter::default()).await.unwrap();
    let all = all.into_iter();
    let mut all: Vec<_> = all.map(|one| one.reference.to_string()).collect();
    all.sort();
    all
}

#[tokio::test]
async fn an_ingest_expires_after_a_day_unless_a_lease_has_it() {
    let house = House::new().await;
    let leased = house.leased("a", Labels::new()).await;
    drop(
        house
            .content(&scope("a"))
            .ingest(spec("free"))
            .await
            .unwrap(),
    );
    drop(house.content(&leased).ingest(spec("leased")).await.unwrap());
    let before = SystemTime::now() + INGEST_LIFETIME - Duration::from_secs(60);
    assert_eq!(
        run_at(&house.metadata, before).await.unwrap().records,
        Removed::default()
    );
    assert_eq!(ingests(&house).await, ["free", "leased"]);
    let after = SystemTime::now() + INGEST_LIFETIME + Duration::from_secs(60);
    let stats = run_at(&house.metadata, after).await.unwrap();
    assert_eq!((stats.records.ingests, stats.ingests), (1, 1));
    assert_eq!(ingests(&house).await, ["leased"]);
    let leases = house.metadata.leases(&leased.namespace);
    leases
        .delete(leased.lease.as_ref().unwrap(), true)
        .await
        .unwrap();
    assert!(ingests(&house).await.is_empty());
    let backend = ::content::ContentStore::statuses(&house.local, &Filter::default()).await;
    assert!(backend.unwrap().is_empty());
}

/// Lets the clock of writers go on.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

/// Lets the time of ingest `r` come: as if it had been begun a day ago.
async fn age(house: &House) {
    let at = own(Bucket::Ingest, &namespace("a"), "r");
    let change = move |tx: &mut crate::db::WriteTx<'_, '_>| {
        let mut record = IngestRecord::decode(&tx.get(&at)?.unwrap()).unwrap();
        assert!(record.expires_at.unwrap() > SystemTime::now());
        record.expires_at = Some(SystemTime::now() - Duration::from_secs(1));
        tx.put(at, record.encode());
        Ok(())
    };
    house.metadata.0.db.write(change).await.unwrap();
}

#[tokio::test]
async fn an_ingest_does_not_expire_while_it_is_written_to() {
    let house = House::new().await;
    let content = house.content(&scope("a"));
    let mut ingest = content.ingest(spec("r")).await.unwrap();
    ingest.write(Bytes::from_static(b"a")).await.unwrap();
    for _ in 0..3 {
        age(&house).await;
        pass(RENEWAL).await;
        ingest.write(Bytes::from_static(b"b")).await.unwrap();
        let stats = house.metadata.gc().await.unwrap();
        assert_eq!(stats.records, Removed::default());
        // Not with each of them.
        age(&house).await;
        ingest.write(Bytes::from_static(b"c")).await.unwrap();
        pass(RENEWAL).await;
        ingest.write(Bytes::from_static(b"d")).await.unwrap();
        let before = SystemTime::now() + INGEST_LIFETIME - Duration::from_secs(60);
        let stats = run_at(&house.metadata, before).await.unwrap();
        assert_eq!(stats.records, Removed::default());
    }
    let digest = ingest.commit(None, None, Labels::new()).await.unwrap();
    assert_eq!(content.info(&digest).await.unwrap().size, 10);
}

#[tokio::test]
async fn an_ingest_that_was_written_to_expires_when_nobody_does_any_more() {
    let house = House::new().await;
    let content = house.content(&scope("a"));
    let mut ingest = content.ingest(spec("r")).await.unwrap();
    age(&house).await;
    pass(RENEWAL).await;
    ingest.write(Bytes::from_static(b"a")).await.unwrap();
    drop(ingest);
    let before = SystemTime::now() + INGEST_LIFETIME - Duration::from_secs(60);
    run_at(&house.metadata, before).await.unwrap();
    assert_eq!(ingests(&house).await, ["r"]);
    let after = SystemTime::now() + INGEST_LIFETIME + Duration::from_secs(60);
    let stats = run_at(&house.metadata, after).await.unwrap();
    assert_eq!((stats.records.ingests, stats.ingests), (1, 1));
    assert!(ingests(&house).await.is_empty());
}

/// What has no time of its own gets none by being written to: its lease keeps it, and no longer.
#[tokio::test]
async fn an_ingest_of_a_lease_goes_with_it_however_it_was_written_to() {
    let house = House::new().await;
    let leased = house.leased("a", Labels::new()).await;
    let mut ingest = house.content(&leased).ingest(spec("r")).await.unwrap();
    pass(RENEWAL).await;
    ingest.write(Bytes::from_static(b"a")).await.unwrap();
    drop(ingest);
    let leases = house.metadata.leases(&leased.namespace);
    leases
        .delete(leased.lease.as_ref().unwrap(), true)
        .await
        .unwrap();
    assert!(ingests(&house).await.is_empty());
}
