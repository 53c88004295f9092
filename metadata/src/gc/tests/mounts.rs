//! Activations of mounts live as long as their leases, what their labels name, or what names them.

use std::sync::Arc;

use types::{Labels, gc_label};

use super::Holding;
use crate::fixture::{House, scope};
use crate::gc::Unrecorded as _;

#[tokio::test]
async fn mounts_go_when_nothing_keeps_them() {
    let house = House::new().await;
    let active = Arc::new(Holding::default());
    house.metadata.collect_mounts(Arc::clone(&active) as _);
    let lease = house.leased("a", Labels::new()).await.lease.unwrap();
    let of_container = || Labels::new().with(gc_label::BREF_CONTAINER, "c");
    active.add("a", "leased", Some(&lease), Labels::new());
    active.add("a", "back", None, of_container());
    active.add("a", "named", None, Labels::new());
    // A label of its own makes no root of a mount.
    active.add(
        "a",
        "nobody's",
        None,
        Labels::new().with(gc_label::ROOT, "y"),
    );
    // The container is one of another namespace, and of none.
    active.add("b", "leased", None, of_container());
    active.add("gone", "lost", Some(&lease), of_container());
    let containers = house.metadata.containers(&scope("a"));
    let mut container = crate::fixture::container("c");
    container.labels = Labels::new().with(format!("{}/x", gc_label::REF_MOUNT), "named");
    containers.create(container).await.unwrap();
    house.leased("b", Labels::new()).await;
    house.metadata.gc().await.unwrap();
    assert_eq!(active.names(), ["leased", "back", "named"]);
    let leases = house.metadata.leases(&"a".parse().unwrap());
    leases.delete(&lease, true).await.unwrap();
    assert_eq!(active.names(), ["back", "named"]);
    containers.delete(&"c".parse().unwrap()).await.unwrap();
    house.metadata.gc().await.unwrap();
    assert!(active.names().is_empty());
}

#[tokio::test]
async fn what_is_taken_up_beside_a_run_keeps_its_mounts() {
    use std::time::SystemTime;

    use crate::gc::Beside;
    use crate::gc::mark::Marked;

    let house = House::new().await;
    house.leased("a", Labels::new()).await;
    let active = Holding::default();
    active.add(
        "a",
        "m",
        None,
        Labels::new().with(gc_label::BREF_CONTAINER, "c"),
    );
    let beside = Beside {
        mounts: active.held(),
        ..Beside::default()
    };
    let kv = &house.metadata.0.db.kv;
    let watch = kv.watch().await.unwrap();
    let mut marked = Marked::new(&kv.read().unwrap(), SystemTime::now(), &beside).unwrap();
    assert!(!marked.is_clean());
    let containers = house.metadata.containers(&scope("a"));
    containers
        .create(crate::fixture::container("c"))
        .await
        .unwrap();
    let touched = watch.take().unwrap();
    assert!(marked.spare(&kv.read().unwrap(), &touched).unwrap());
    assert!(marked.is_clean());
}
