//! Ingests that are kept for who comes back to them.

use std::time::{Duration, SystemTime};

use ::content::testsuite::spec;
use types::{Filter, Labels};

use crate::content::INGEST_LIFETIME;
use crate::fixture::House;
use crate::gc::{Removed, run_at};

#[tokio::test]
async fn a_patient_ingest_outlives_its_lease_by_a_day() {
    let house = House::new().await;
    let leased = house.leased("a", Labels::new()).await;
    let patient = house.metadata.scoped(&leased).patient_content();
    // Begun by somebody without patience, or by itself.
    drop(house.content(&leased).ingest(spec("known")).await.unwrap());
    for name in ["known", "new"] {
        drop(patient.ingest(spec(name)).await.unwrap());
    }
    drop(house.content(&leased).ingest(spec("other")).await.unwrap());
    let after = SystemTime::now() + INGEST_LIFETIME + Duration::from_secs(60);
    let stats = run_at(&house.metadata, after).await.unwrap();
    assert_eq!(stats.records, Removed::default(), "the lease has them");
    let lease = leased.lease.as_ref().unwrap();
    let leases = house.metadata.leases(&leased.namespace);
    leases.delete(lease, true).await.unwrap();
    let left = patient.statuses(&Filter::default()).await.unwrap();
    let mut left: Vec<_> = left.iter().map(|s| s.reference.as_str()).collect();
    left.sort_unstable();
    assert_eq!(left, ["known", "new"]);
    let stats = run_at(&house.metadata, after).await.unwrap();
    assert_eq!(stats.records.ingests, 2);
}
