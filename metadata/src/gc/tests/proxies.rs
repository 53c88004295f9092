//! Snapshotters that other programs are.

use types::{Code, Labels};

use super::chain;
use crate::fixture::{House, put, scope, sha};

/// Makes garbage: two snapshots that nothing keeps.
async fn garbage(house: &House) {
    chain(house, &scope("a"), &["one", "two"], &[]).await;
    assert_eq!(house.memory.keys().len(), 2);
}

#[tokio::test]
async fn a_program_that_hangs_holds_up_no_collection() {
    let house = House::new().await;
    house.memory.be_remote();
    garbage(&house).await;
    let hanging = house.memory.removing.lock().await;
    let scope = scope("a");
    put(house.content(&scope).as_ref(), b"blob", Labels::new()).await;
    let stats = house.metadata.gc().await.unwrap();
    assert_eq!(
        (stats.blobs, stats.snapshots),
        (1, 0),
        "what answers is collected"
    );
    assert_eq!(house.memory.keys().len(), 2);
    // It has not come back from the first removal: it is asked for nothing else.
    put(house.content(&scope).as_ref(), b"next", Labels::new()).await;
    let stats = house.metadata.gc().await.unwrap();
    assert_eq!((stats.blobs, stats.snapshots), (1, 0));
    assert!(
        house
            .content(&scope)
            .info(&sha(b"next"))
            .await
            .unwrap_err()
            .is_not_found()
    );
    drop(hanging);
    // What it was at goes on by itself, and a later run finds nothing left.
    while !house.memory.keys().is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_program_that_does_not_answer_is_asked_once_in_a_run() {
    let house = House::new().await;
    house.memory.be_remote();
    garbage(&house).await;
    house.memory.fail_next(Code::DeadlineExceeded);
    let stats = house.metadata.gc().await.unwrap();
    assert_eq!(stats.snapshots, 0);
    assert_eq!(house.memory.keys().len(), 2, "the second was not tried");
    assert_eq!(house.memory.cleanups(), 0);
    let stats = house.metadata.gc().await.unwrap();
    assert_eq!(stats.snapshots, 2);
}
