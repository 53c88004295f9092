//! Tests of module `leases`.

use types::{Code, Filter, LeaseId, Resource};

use crate::fixture::{House, code, labels, namespace, put, scope, sha};

fn id(text: &str) -> LeaseId {
    text.parse().unwrap()
}

#[tokio::test]
async fn create_takes_an_id_or_makes_one() {
    let house = House::new().await;
    let store = house.metadata.leases(&namespace("a"));
    let made = store
        .create(Some(id("a b/c")), labels(&[("k", "v")]))
        .await
        .unwrap();
    assert_eq!(
        (made.id.as_str(), &made.labels),
        ("a b/c", &labels(&[("k", "v")]))
    );
    assert_eq!(
        code(store.create(Some(id("a b/c")), labels(&[])).await),
        Code::AlreadyExists
    );
    let one = store.create(None, labels(&[])).await.unwrap();
    let two = store.create(None, labels(&[])).await.unwrap();
    assert_ne!(one.id, two.id);
    let long = labels(&[("k", &"v".repeat(4096))]);
    assert_eq!(code(store.create(None, long).await), Code::InvalidArgument);
    let listed = store
        .list(&Filter::parse(&["labels.k==v"]).unwrap())
        .await
        .unwrap();
    assert_eq!(listed, [made]);
    assert_eq!(
        store
            .list(&Filter::parse(&["id"]).unwrap())
            .await
            .unwrap()
            .len(),
        3
    );
}

#[tokio::test]
async fn resources_need_not_exist_and_come_and_go() {
    let house = House::new().await;
    let store = house.metadata.leases(&namespace("a"));
    let lease = store.create(Some(id("l")), labels(&[])).await.unwrap().id;
    let neighbour = store.create(Some(id("l2")), labels(&[])).await.unwrap().id;
    let all = [
        Resource::Content(sha(b"x")),
        Resource::Image("docker.io/x:1".into()),
        Resource::Ingest("a ref/1".parse().unwrap()),
        Resource::Snapshot {
            snapshotter: "overlayfs".into(),
            key: "a key/1".parse().unwrap(),
        },
    ];
    for resource in &all {
        store.add(&lease, resource.clone()).await.unwrap();
        store.add(&lease, resource.clone()).await.unwrap();
    }
    assert_eq!(store.resources(&lease).await.unwrap(), all);
    assert!(store.resources(&neighbour).await.unwrap().is_empty());
    store.remove(&lease, all[1].clone()).await.unwrap();
    store.remove(&lease, all[1].clone()).await.unwrap();
    assert_eq!(store.resources(&lease).await.unwrap().len(), 3);
    let nul = Resource::Image("a\0b".into());
    assert_eq!(code(store.add(&lease, nul).await), Code::InvalidArgument);
    let absent = id("absent");
    assert_eq!(
        code(store.add(&absent, all[0].clone()).await),
        Code::NotFound
    );
    assert_eq!(
        code(store.remove(&absent, all[0].clone()).await),
        Code::NotFound
    );
    assert_eq!(code(store.resources(&absent).await), Code::NotFound);
}

#[tokio::test]
async fn delete_forgets_the_resources_too() {
    let house = House::new().await;
    let store = house.metadata.leases(&namespace("a"));
    let lease = store.create(Some(id("l")), labels(&[])).await.unwrap().id;
    store
        .add(&lease, Resource::Content(sha(b"x")))
        .await
        .unwrap();
    store.delete(&lease, false).await.unwrap();
    assert_eq!(code(store.delete(&lease, false).await), Code::NotFound);
    store.create(Some(id("l")), labels(&[])).await.unwrap();
    assert!(store.resources(&lease).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_synchronous_delete_has_collected_before_its_answer() {
    let house = House::new().await;
    let leased = house.leased("a", labels(&[])).await;
    put(house.content(&leased).as_ref(), b"held", labels(&[])).await;
    house.metadata.gc().await.unwrap();
    assert_eq!(house.blobs().await, [sha(b"held")]);
    let leases = house.metadata.leases(&leased.namespace);
    leases
        .delete(leased.lease.as_ref().unwrap(), true)
        .await
        .unwrap();
    assert!(house.blobs().await.is_empty());
    let gone = house.content(&scope("a")).info(&sha(b"held")).await;
    assert_eq!(code(gone), Code::NotFound);
}
