//! Tests of module `namespaces`.

use types::{Code, Labels, NamespaceInfo};

use crate::fixture::{
    House, code, container, fields, image, labels, name, namespace, put, scope, sha,
};

fn info(name: &str, pairs: &[(&str, &str)]) -> NamespaceInfo {
    NamespaceInfo {
        name: namespace(name),
        labels: labels(pairs),
    }
}

#[tokio::test]
async fn get_is_never_not_found() {
    let house = House::new().await;
    let found = house
        .metadata
        .namespaces()
        .get(&namespace("nobody"))
        .await
        .unwrap();
    assert_eq!(found, info("nobody", &[]));
    assert!(house.metadata.namespaces().list().await.unwrap().is_empty());
}

#[tokio::test]
async fn create_lists_by_name_and_refuses_a_second_one() {
    let house = House::new().await;
    let store = house.metadata.namespaces();
    for name in ["b", "a"] {
        store.create(info(name, &[("k", "v")])).await.unwrap();
    }
    assert_eq!(
        code(store.create(info("a", &[])).await),
        Code::AlreadyExists
    );
    let all = store.list().await.unwrap();
    assert_eq!(all, [info("a", &[("k", "v")]), info("b", &[("k", "v")])]);
    let long = info("c", &[("k", &"v".repeat(4096))]);
    assert_eq!(code(store.create(long).await), Code::InvalidArgument);
    assert_eq!(
        house.events().await,
        ["b /namespaces/create", "a /namespaces/create"]
    );
}

#[tokio::test]
async fn any_first_write_makes_the_namespace() {
    let house = House::new().await;
    let metadata = &house.metadata;
    metadata
        .containers(&scope("c"))
        .create(container("x"))
        .await
        .unwrap();
    metadata
        .images(&scope("i"))
        .create(image("x", &sha(b"")), None)
        .await
        .unwrap();
    metadata
        .leases(&namespace("l"))
        .create(None, Labels::new())
        .await
        .unwrap();
    put(house.content(&scope("o")).as_ref(), b"x", Labels::new()).await;
    house
        .snapshots(&scope("s"))
        .prepare(&name("x"), None, Labels::new())
        .await
        .unwrap();
    metadata
        .namespaces()
        .update(info("u", &[]), &fields(&[]))
        .await
        .unwrap();
    let all = metadata.namespaces().list().await.unwrap();
    let names: Vec<_> = all.iter().map(|info| info.name.as_str()).collect();
    assert_eq!(names, ["c", "i", "l", "o", "s", "u"]);
}

#[tokio::test]
async fn update_takes_single_labels_or_all_but_not_plain_labels() {
    let house = House::new().await;
    let store = house.metadata.namespaces();
    store
        .create(info("a", &[("x", "1"), ("y.z/w", "2")]))
        .await
        .unwrap();
    let change = info("a", &[("x", "9"), ("y.z/w", "")]);
    let one = store
        .update(change.clone(), &fields(&["labels.y.z/w"]))
        .await
        .unwrap();
    assert_eq!(one, info("a", &[("x", "1")]));
    for mask in ["labels", "name", "labels.x,y"] {
        let result = store
            .update(change.clone(), &fields(&["labels.x", mask]))
            .await;
        if mask.starts_with("labels.") {
            result.unwrap();
        } else {
            assert_eq!(code(result), Code::InvalidArgument, "{mask}");
        }
    }
    let all = store
        .update(info("a", &[("q", "1")]), &fields(&[]))
        .await
        .unwrap();
    assert_eq!(all, info("a", &[("q", "1")]));
    assert_eq!(store.get(&namespace("a")).await.unwrap(), all);
    assert_eq!(house.events().await.last().unwrap(), "a /namespaces/update");
}

#[tokio::test]
async fn delete_names_what_is_left_and_leases_do_not_count() {
    let house = House::new().await;
    let store = house.metadata.namespaces();
    let scope = scope("a");
    assert_eq!(code(store.delete(&scope.namespace).await), Code::NotFound);
    house
        .metadata
        .containers(&scope)
        .create(container("x"))
        .await
        .unwrap();
    house
        .metadata
        .images(&scope)
        .create(image("x", &sha(b"")), None)
        .await
        .unwrap();
    house
        .metadata
        .leases(&scope.namespace)
        .create(None, Labels::new())
        .await
        .unwrap();
    let digest = put(house.content(&scope).as_ref(), b"x", Labels::new()).await;
    house
        .snapshots(&scope)
        .prepare(&name("x"), None, Labels::new())
        .await
        .unwrap();
    let error = store
        .delete(&scope.namespace)
        .await
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "namespace \"a\" must be empty, but it still has images, blobs, containers, \
         snapshots on \"memory\" snapshotter: failed precondition"
    );
    house
        .metadata
        .containers(&scope)
        .delete(&"x".parse().unwrap())
        .await
        .unwrap();
    house
        .metadata
        .images(&scope)
        .delete("x", None, false)
        .await
        .unwrap();
    house.content(&scope).delete(&digest).await.unwrap();
    house.snapshots(&scope).remove(&name("x")).await.unwrap();
    house
        .content(&scope)
        .ingest(content::testsuite::spec("half"))
        .await
        .unwrap();
    store.delete(&scope.namespace).await.unwrap();
    assert_eq!(house.events().await.last().unwrap(), "a /namespaces/delete");
    let leases = house.metadata.leases(&scope.namespace);
    assert!(
        leases
            .list(&types::Filter::default())
            .await
            .unwrap()
            .is_empty()
    );
    house.metadata.gc().await.unwrap();
    let all = types::Filter::default();
    let left = content::ContentStore::statuses(&house.local, &all)
        .await
        .unwrap();
    assert!(left.is_empty());
}
