//! Tests of module `containers`.

use std::collections::BTreeMap;

use types::{Any, Code, Container, Filter};

use crate::Containers;
use crate::fixture::{House, code, container, fields, labels, scope};

fn any(text: &str) -> Any {
    Any {
        type_url: "t".into(),
        value: text.as_bytes().to_vec(),
    }
}

#[tokio::test]
async fn create_stamps_keeps_every_byte_and_refuses_a_second_one() {
    let house = House::new().await;
    let store = house.metadata.containers(&scope("a"));
    let mut new = container("c1");
    new.spec = Some(Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".into(),
        value: (0..=255).collect(),
    });
    new.runtime.options = Some(any("o"));
    new.extensions = BTreeMap::from([("e".into(), any("x"))]);
    new.sandbox = "s".into();
    new.labels = labels(&[("gone", ""), ("k", "v")]);
    let made = store.create(new.clone()).await.unwrap();
    assert!(made.created_at > new.created_at && made.created_at == made.updated_at);
    let want = Container {
        labels: labels(&[("k", "v")]),
        created_at: made.created_at,
        updated_at: made.updated_at,
        ..new.clone()
    };
    assert_eq!(store.get(&new.id).await.unwrap(), want);
    assert_eq!(code(store.create(new).await), Code::AlreadyExists);
    assert_eq!(house.events().await, ["a /containers/create"]);
    let other = house.metadata.containers(&scope("b"));
    let error = other.get(&made.id).await.unwrap_err().to_string();
    assert_eq!(error, "container \"c1\" in namespace \"b\": not found");
}

#[tokio::test]
async fn create_validates() {
    let house = House::new().await;
    let store = house.metadata.containers(&scope("a"));
    let bad: [fn(&mut Container); 5] = [
        |c| c.runtime.name = String::new(),
        |c| c.spec = None,
        |c| c.snapshot_key = "k".into(),
        |c| c.labels = labels(&[("k", &"v".repeat(4096))]),
        |c| drop(c.extensions.insert(String::new(), Any::default())),
    ];
    for spoil in bad {
        let mut container = container("c1");
        spoil(&mut container);
        assert_eq!(code(store.create(container).await), Code::InvalidArgument);
    }
    assert!(house.events().await.is_empty());
}

/// What each mask makes of `first` with the values of `new`.
fn by_mask(first: &Container, new: &Container) -> Vec<(&'static str, Container)> {
    let was = || first.clone();
    vec![
        (
            "labels.b.c/d",
            Container {
                labels: labels(&[("a", "1"), ("b.c/d", "8")]),
                ..was()
            },
        ),
        (
            "labels",
            Container {
                labels: new.labels.clone(),
                ..was()
            },
        ),
        (
            "image",
            Container {
                image: "new".into(),
                ..was()
            },
        ),
        (
            "spec",
            Container {
                spec: new.spec.clone(),
                ..was()
            },
        ),
        (
            "snapshotkey",
            Container {
                snapshot_key: "new".into(),
                ..was()
            },
        ),
        (
            "extensions",
            Container {
                extensions: new.extensions.clone(),
                ..was()
            },
        ),
        (
            "extensions.e",
            Container {
                extensions: BTreeMap::from([("f.g".into(), any("2"))]),
                ..was()
            },
        ),
        (
            "extensions.f.g",
            Container {
                extensions: BTreeMap::from([("e".into(), any("1")), ("f.g".into(), any("9"))]),
                ..was()
            },
        ),
    ]
}

#[tokio::test]
async fn update_changes_what_the_mask_names() {
    let house = House::new().await;
    let store = house.metadata.containers(&scope("a"));
    let mut first = container("c1");
    first.labels = labels(&[("a", "1"), ("b.c/d", "2")]);
    first.extensions = BTreeMap::from([("e".into(), any("1")), ("f.g".into(), any("2"))]);
    first.snapshotter = "sn".into();
    first.snapshot_key = "old".into();
    first.sandbox = "kept".into();
    let first = store.create(first).await.unwrap();
    let new = Container {
        labels: labels(&[("b.c/d", "8")]),
        extensions: BTreeMap::from([("f.g".into(), any("9"))]),
        image: "new".into(),
        spec: Some(any("new")),
        snapshot_key: "new".into(),
        sandbox: "ignored".into(),
        ..first.clone()
    };
    for (mask, want) in by_mask(&first, &new) {
        let got = store.update(new.clone(), &fields(&[mask])).await.unwrap();
        let want = Container {
            updated_at: got.updated_at,
            ..want
        };
        assert_eq!(got, want, "{mask}");
        assert_eq!(store.get(&new.id).await.unwrap(), want, "{mask}");
        store.update(first.clone(), &fields(&[])).await.unwrap();
    }
    let all = store.update(new.clone(), &fields(&[])).await.unwrap();
    let want = Container {
        sandbox: "kept".into(),
        updated_at: all.updated_at,
        ..new.clone()
    };
    assert_eq!(all, want);
    for mask in ["id", "runtime", "snapshotter", "sandbox", "spec.x"] {
        let result = store.update(new.clone(), &fields(&[mask])).await;
        assert_eq!(code(result), Code::InvalidArgument, "{mask}");
    }
    assert!(
        house
            .events()
            .await
            .iter()
            .skip(1)
            .all(|e| e == "a /containers/update")
    );
}

#[tokio::test]
async fn update_without_a_mask_refuses_another_snapshotter_or_runtime() {
    let house = House::new().await;
    let store = house.metadata.containers(&scope("a"));
    let first = store.create(container("c1")).await.unwrap();
    let snapshotter = Container {
        snapshotter: "other".into(),
        ..first.clone()
    };
    let mut runtime = first.clone();
    runtime.runtime.name = "other".into();
    for changed in [snapshotter, runtime] {
        assert_eq!(
            code(store.update(changed.clone(), &fields(&[])).await),
            Code::InvalidArgument
        );
        store.update(changed, &fields(&["image"])).await.unwrap();
    }
    let mut broken = first.clone();
    broken.spec = None;
    assert_eq!(
        code(store.update(broken, &fields(&["spec"])).await),
        Code::InvalidArgument
    );
    let absent = container("absent");
    assert_eq!(
        code(store.update(absent, &fields(&[])).await),
        Code::NotFound
    );
}

#[tokio::test]
async fn delete_removes_the_record_only_once() {
    let house = House::new().await;
    let store = house.metadata.containers(&scope("a"));
    let made = store.create(container("c1")).await.unwrap();
    store.delete(&made.id).await.unwrap();
    assert_eq!(code(store.get(&made.id).await), Code::NotFound);
    assert_eq!(code(store.delete(&made.id).await), Code::NotFound);
    assert_eq!(
        house.events().await,
        ["a /containers/create", "a /containers/delete"]
    );
}

#[tokio::test]
async fn lists_are_ordered_and_filtered() {
    let house = House::new().await;
    let store = house.metadata.containers(&scope("a"));
    for id in ["c", "a", "b"] {
        let mut new = container(id);
        new.image = format!("image-{id}");
        new.labels = labels(&[("x.y", id)]);
        store.create(new).await.unwrap();
    }
    for (filter, want) in [
        ("", "abc"),
        ("id==b", "b"),
        ("image==image-c", "c"),
        ("labels.\"x.y\"!=a", "bc"),
        ("runtime.name==io.containerd.runc.v2,id~=[ac]", "ac"),
        ("nothing", ""),
    ] {
        let ids = ids(&store, &Filter::parse(&[filter]).unwrap()).concat();
        assert_eq!(ids, want, "{filter}");
    }
}

#[tokio::test]
async fn pages_together_are_the_list() {
    let house = House::new().await;
    let containers = house.metadata.containers(&scope("a"));
    for n in 0..250 {
        let made = containers.create(container(&format!("c{n}")));
        made.await.unwrap();
    }
    for filter in ["", "id~=^c1"] {
        let filter = Filter::parse(&[filter]).unwrap();
        let list = ids(&containers, &filter);
        let mut pages = containers.pages(filter);
        let mut all = Vec::new();
        loop {
            let page = pages.page().unwrap();
            if page.is_empty() {
                break;
            }
            assert!(page.len() <= 100);
            // What comes meanwhile before the page is in none.
            drop(
                containers
                    .create(container(&format!("b{}", all.len())))
                    .await,
            );
            all.extend(page);
        }
        let all = all.iter().map(|container| container.id.to_string());
        assert_eq!(all.collect::<Vec<_>>(), list);
    }
}

/// Ids of the containers that pass.
fn ids(containers: &Containers, filter: &Filter) -> Vec<String> {
    let mut ids = Vec::new();
    let mut see = |container: &types::ContainerRef<'_>| {
        ids.push(container.id.to_owned());
        true
    };
    containers.visit(filter, &mut see).unwrap();
    ids
}
