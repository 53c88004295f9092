//! What makes a collection due, and what does not.

use super::*;
use crate::fixture::container;

#[tokio::test]
async fn whatever_is_deleted_makes_a_collection_due() {
    let house = House::new().await;
    let a = scope("a");
    blob(&house, &a, "blob", &[]).await;
    let digest = sha(b"blob");
    let images = house.metadata.images(&a);
    images.create(image("image", &digest), None).await.unwrap();
    let containers = house.metadata.containers(&a);
    containers.create(container("c")).await.unwrap();
    let leases = house.metadata.leases(&a.namespace);
    let lease = leases.create(None, Labels::new()).await.unwrap();
    let snapshots = house.snapshots(&a);
    snapshots
        .prepare(&name("k"), None, Labels::new())
        .await
        .unwrap();

    let outlet = &house.metadata.0.db.outlet;
    let is_due = || outlet.take().deletions > 0;
    outlet.take();
    images.delete("image", None, false).await.unwrap();
    assert!(is_due(), "an image");
    containers.delete(&"c".parse().unwrap()).await.unwrap();
    assert!(is_due(), "a container");
    leases.delete(&lease.id, false).await.unwrap();
    assert!(is_due(), "a lease");
    snapshots.remove(&name("k")).await.unwrap();
    assert!(is_due(), "a snapshot");
    house.content(&a).delete(&digest).await.unwrap();
    assert!(is_due(), "a blob");
    images.create(image("other", &digest), None).await.unwrap();
    assert!(!is_due(), "nothing is deleted");
}

/// Time stands still here unless everybody waits for it.
#[tokio::test(start_paused = true)]
async fn without_a_delay_nothing_is_collected_at_the_start() {
    let house = House::new().await;
    let backend: &dyn ::snapshotters::Snapshotter = house.memory.as_ref();
    let leftover = name("a/99/leftover");
    backend
        .prepare(&leftover, None, Labels::new())
        .await
        .unwrap();
    let opts = crate::gc::SchedulerOpts {
        startup_delay: Duration::ZERO,
        ..Default::default()
    };
    let scheduler = tokio::spawn(crate::gc::Scheduler::new(house.metadata.clone(), opts).run());
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(house.memory.keys().len(), 1);
    let a = house.snapshots(&scope("a"));
    a.prepare(&name("k"), None, Labels::new()).await.unwrap();
    a.remove(&name("k")).await.unwrap();
    while !house.memory.keys().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    scheduler.abort();
}
