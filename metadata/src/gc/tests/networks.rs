//! Networks live as long as their keepers; those without one until they are deleted.

use std::sync::Arc;

use types::{Labels, gc_label};

use super::Holding;
use crate::fixture::House;

#[tokio::test]
async fn a_network_makes_its_tenant_known_and_keeps_it() {
    let house = House::new().await;
    let made = Arc::new(Holding::default());
    house.metadata.collect_networks(Arc::clone(&made) as _);
    let tenant: types::Namespace = "a".parse().unwrap();
    let mut scope = types::Scope::new(tenant.clone());
    scope.lease = Some("gone".parse().unwrap());
    // Without its lease nothing has changed.
    let error = house.metadata.admit(&scope).await.unwrap_err();
    assert!(error.is_not_found(), "{error}");
    assert_eq!(house.metadata.namespaces().list().await.unwrap(), []);
    house
        .metadata
        .leases(&tenant)
        .create(scope.lease.clone(), Labels::new())
        .await
        .unwrap();
    house.metadata.admit(&scope).await.unwrap();
    scope.namespace = "b".parse().unwrap();
    scope.lease = None;
    house.metadata.admit(&scope).await.unwrap();
    assert_eq!(house.metadata.namespaces().list().await.unwrap().len(), 2);
    made.add("a", "n", None, Labels::new());
    let error = house.metadata.namespaces().delete(&tenant).await;
    let error = error.unwrap_err();
    assert!(
        error.is(types::Code::FailedPrecondition) && error.to_string().contains("has networks"),
        "{error}"
    );
    house
        .metadata
        .namespaces()
        .delete(&scope.namespace)
        .await
        .unwrap();
    made.0.lock().unwrap().clear();
    house.metadata.namespaces().delete(&tenant).await.unwrap();
}

#[tokio::test]
async fn networks_go_with_their_keepers_and_others_stay() {
    let house = House::new().await;
    let made = Arc::new(Holding::default());
    house.metadata.collect_networks(Arc::clone(&made) as _);
    let lease = house.leased("a", Labels::new()).await.lease.unwrap();
    let root = || Labels::new().with(gc_label::ROOT, "y");
    made.add("a", "anybody's", None, Labels::new());
    made.add("a", "leased", Some(&lease), Labels::new());
    made.add("a", "/eth0", Some(&lease), Labels::new());
    made.add("a", "rooted", Some(&lease), root());
    made.add("a", "rooted/eth0", Some(&lease), Labels::new());
    made.add("a", "leased/eth0", Some(&lease), Labels::new());
    made.add(
        "a",
        "back",
        None,
        Labels::new().with(gc_label::BREF_CONTAINER, "c"),
    );
    house.metadata.gc().await.unwrap();
    assert_eq!(
        made.names(),
        [
            "anybody's",
            "leased",
            "/eth0",
            "rooted",
            "rooted/eth0",
            "leased/eth0"
        ]
    );
    let ns = "a".parse().unwrap();
    house
        .metadata
        .leases(&ns)
        .delete(&lease, true)
        .await
        .unwrap();
    assert_eq!(made.names(), ["anybody's", "rooted", "rooted/eth0"]);
}
