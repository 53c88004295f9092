//! Blobs that are in the backend and have not got a record.

use ::content::testsuite::spec;
use bytes::Bytes;
use types::{Code, Labels};

use crate::fixture::{House, code, put, sha};

/// Between the backend's commit and the record there may be an end of the lease.
#[tokio::test]
async fn a_commit_whose_lease_ends_under_it_leaves_nothing_for_good() {
    let house = House::new().await;
    let leased = house.leased("a", Labels::new()).await;
    let mut ingest = house.content(&leased).ingest(spec("r")).await.unwrap();
    ingest.write(Bytes::from_static(b"blob")).await.unwrap();
    let digest = sha(b"blob");
    // It has looked for its lease, and stands before the gate.
    let held = house.metadata.0.digests.alone(digest.as_str()).await;
    let mut commit = ingest.commit(None, None, Labels::new());
    assert!(futures::poll!(&mut commit).is_pending());
    let leases = house.metadata.leases(&leased.namespace);
    leases
        .delete(leased.lease.as_ref().unwrap(), false)
        .await
        .unwrap();
    let outlet = &house.metadata.0.db.outlet;
    drop(outlet.take());
    drop(held);
    assert_eq!(code(commit.await), Code::NotFound);
    assert_eq!(house.blobs().await, [digest]);
    let marks = outlet.take();
    assert_eq!((marks.deletions, marks.content), (1, true), "{marks:?}");
    outlet.add(marks);
    house.metadata.gc().await.unwrap();
    assert!(house.blobs().await.is_empty());
}

#[tokio::test]
async fn a_blob_that_somebody_is_about_to_link_is_looked_at_again() {
    let house = House::new().await;
    let digest = put(&house.local, b"blob", Labels::new()).await;
    let linking = house.metadata.0.digests.together(digest.as_str()).await;
    house.metadata.gc().await.unwrap();
    assert_eq!(house.blobs().await, [digest]);
    // He could not, and nothing else has happened.
    drop(linking);
    house.metadata.gc().await.unwrap();
    assert!(house.blobs().await.is_empty());
    // And no more than that.
    let marks = house.metadata.0.db.outlet.take();
    assert!(!marks.content, "{marks:?}");
}
