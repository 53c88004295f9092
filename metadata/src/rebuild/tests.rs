//! Tests of module `rebuild`.

use std::path::Path;

use types::{Code, Filter, Labels, SnapshotKind};

use super::*;
use crate::fixture::{House, SNAPSHOTTER, code, name, opts, put, scope, store};
use crate::kv::journal_end;

mod random;

/// File and journal are both gone.
fn lost(directory: &Path) {
    for file in std::fs::read_dir(directory).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|end| end != "lock") {
            std::fs::remove_file(path).unwrap();
        }
    }
}

/// File and journal are both unreadable.
fn damaged(directory: &Path) {
    for name in ["meta.redb", "meta.redb.journal"] {
        std::fs::write(directory.join(name), "damaged").unwrap();
    }
}

fn task(namespace: &str, id: &str) -> FoundTask {
    FoundTask {
        namespace: namespace.parse().unwrap(),
        id: id.parse().unwrap(),
        spec: b"{}".to_vec(),
        runtime: "io.containerd.runc.v2".into(),
    }
}

async fn furnished(policy: Policy) -> (House, types::Digest) {
    let house = House::with(policy).await;
    let a = scope("a");
    let blob = put(house.content(&a).as_ref(), b"layer", Labels::new()).await;
    let snapshots = house.snapshots(&a);
    snapshots
        .prepare(&name("work"), None, Labels::new())
        .await
        .unwrap();
    snapshots
        .commit(&name("layer"), &name("work"), Labels::new())
        .await
        .unwrap();
    snapshots
        .prepare(&name("c1"), Some(&name("layer")), Labels::new())
        .await
        .unwrap();
    let b = house.snapshots(&scope("b"));
    b.prepare(&name("c1"), None, Labels::new()).await.unwrap();
    (house, blob)
}

#[tokio::test]
async fn what_is_there_has_records_again_and_is_no_garbage() {
    for accident in [lost, damaged] {
        let (house, blob) = furnished(Policy::Shared).await;
        let tasks = vec![task("a", "c1"), task("c", "c2")];
        let house = house.restart_after(accident, tasks).await;
        house.metadata.gc().await.unwrap();

        let snapshots = house.snapshots(&scope("a"));
        let all = snapshots.list(&Filter::default()).await.unwrap();
        let facts: Vec<_> = all
            .iter()
            .map(|info| {
                (
                    info.name.as_str(),
                    info.kind,
                    info.parent.as_ref().map(|p| p.as_str()),
                )
            })
            .collect();
        assert_eq!(
            facts,
            [
                ("c1", SnapshotKind::Active, Some("layer")),
                ("layer", SnapshotKind::Committed, None)
            ]
        );
        snapshots.mounts(&name("c1")).await.unwrap();
        assert_eq!(
            code(snapshots.remove(&name("layer")).await),
            Code::FailedPrecondition
        );
        for namespace in ["a", "b", "c"] {
            let content = house.content(&scope(namespace));
            assert_eq!(content.info(&blob).await.unwrap().size, 5);
        }
        let containers = house.metadata.containers(&scope("a"));
        let container = containers.get(&"c1".parse().unwrap()).await.unwrap();
        assert_eq!(container.snapshotter, SNAPSHOTTER);
        assert_eq!(container.snapshot_key, "c1");
        assert_eq!(container.spec.unwrap().value, b"{}");
        let other = house.metadata.containers(&scope("c"));
        let other = other.get(&"c2".parse().unwrap()).await.unwrap();
        assert_eq!(other.snapshot_key, "");
    }
}

#[tokio::test]
async fn numbers_of_backend_keys_are_not_given_again() {
    let (house, _) = furnished(Policy::Shared).await;
    let names = |house: &House| {
        let memory = std::sync::Arc::clone(&house.memory);
        async move {
            let filter = Filter::default();
            let all = ::snapshotters::Snapshotter::list(memory.as_ref(), &filter);
            let numbers = all.await.unwrap().into_iter();
            numbers
                .filter_map(|info| number_of(info.name.as_str()))
                .collect::<BTreeSet<u64>>()
        }
    };
    let before = names(&house).await;
    let house = house.restart_after(lost, Vec::new()).await;
    let snapshots = house.snapshots(&scope("a"));
    snapshots
        .prepare(&name("new"), None, Labels::new())
        .await
        .unwrap();
    let after = names(&house).await;
    assert_eq!(after.len(), before.len() + 1);
    assert!(after.last() > before.last());
}

#[tokio::test]
async fn the_lease_lets_go_of_it_all() {
    let (house, blob) = furnished(Policy::Shared).await;
    let house = house.restart_after(lost, vec![task("a", "c1")]).await;
    for namespace in ["a", "b"] {
        let leases = house.metadata.leases(&namespace.parse().unwrap());
        let [lease] = &leases.list(&Filter::default()).await.unwrap()[..] else {
            panic!("one lease");
        };
        assert!(lease.id.as_str().starts_with("recovered-"));
        leases.delete(&lease.id, true).await.unwrap();
    }
    assert_eq!(
        code(house.content(&scope("a")).info(&blob).await),
        Code::NotFound
    );
    assert!(house.blobs().await.is_empty());
    // The container keeps its snapshot, and that its parent.
    let left = house
        .snapshots(&scope("a"))
        .list(&Filter::default())
        .await
        .unwrap();
    assert_eq!(left.len(), 2);
    assert!(
        house
            .snapshots(&scope("b"))
            .list(&Filter::default())
            .await
            .unwrap()
            .is_empty()
    );
}

/// Nobody knows any more whose a blob was.
#[tokio::test]
async fn no_tenant_gets_the_blobs_of_others_by_an_accident() {
    let (house, blob) = furnished(Policy::Isolated).await;
    let house = house.restart_after(damaged, Vec::new()).await;
    for namespace in ["a", "b"] {
        let content = house.content(&scope(namespace));
        assert_eq!(code(content.info(&blob).await), Code::NotFound);
    }
    assert_eq!(
        house
            .snapshots(&scope("a"))
            .list(&Filter::default())
            .await
            .unwrap()
            .len(),
        2
    );
}

#[tokio::test]
async fn a_root_that_nobody_has_used_is_no_loss() {
    let house = House::new().await.restart_after(lost, Vec::new()).await;
    let leases = house.metadata.namespaces().list().await.unwrap();
    assert!(leases.is_empty());
}

/// The journal's last changes are gone with its end: what they named is no garbage.
#[tokio::test]
async fn what_a_torn_journal_does_not_name_is_held() {
    let house = House::new().await;
    let a = scope("a");
    let early = put(house.content(&a).as_ref(), b"early", Labels::new()).await;
    let so_far = journal_end(&house.root.path().join("meta/meta.redb"));
    let late = put(house.content(&a).as_ref(), b"late", Labels::new()).await;
    house
        .snapshots(&a)
        .prepare(&name("c1"), None, Labels::new())
        .await
        .unwrap();
    let cut = move |directory: &Path| {
        std::fs::write(directory.join("meta.redb"), "damaged").unwrap();
        let journal = std::fs::File::options()
            .write(true)
            .open(directory.join("meta.redb.journal"));
        journal.unwrap().set_len(so_far + 9).unwrap();
    };
    let numbers = house.memory.keys();
    let house = house.restart_after(cut, vec![task("a", "c1")]).await;
    house.metadata.gc().await.unwrap();
    let a = scope("a");
    house.content(&a).info(&late).await.unwrap();
    house.snapshots(&a).mounts(&name("c1")).await.unwrap();
    let container = house
        .metadata
        .containers(&a)
        .get(&"c1".parse().unwrap())
        .await;
    assert_eq!(container.unwrap().snapshot_key, "c1");
    // No number is given again.
    house
        .snapshots(&a)
        .prepare(&name("c2"), None, Labels::new())
        .await
        .unwrap();
    let number = |key: &String| number_of(key).unwrap();
    let new = house.memory.keys().iter().map(number).max();
    assert!(new > numbers.iter().map(number).max());
    // The lease holds what was found, and only that.
    let leases = house.metadata.leases(&a.namespace);
    let [lease] = &leases.list(&Filter::default()).await.unwrap()[..] else {
        panic!("one lease");
    };
    let held = leases.resources(&lease.id).await.unwrap();
    assert!(held.contains(&Resource::Content(late)), "{held:?}");
    assert!(!held.contains(&Resource::Content(early)), "{held:?}");
}

/// The journal's end had the container, and its middle the snapshot that it stands on.
#[tokio::test]
async fn a_container_made_anew_keeps_a_snapshot_that_has_its_record_still() {
    let house = House::new().await;
    let leased = house.leased("a", Labels::new()).await;
    let snapshots = house.snapshots(&leased);
    snapshots
        .prepare(&name("base"), None, Labels::new())
        .await
        .unwrap();
    snapshots
        .commit(&name("layer"), &name("base"), Labels::new())
        .await
        .unwrap();
    snapshots
        .prepare(&name("c1"), Some(&name("layer")), Labels::new())
        .await
        .unwrap();
    snapshots
        .view(&name("c2"), Some(&name("layer")), Labels::new())
        .await
        .unwrap();
    let so_far = journal_end(&house.root.path().join("meta/meta.redb"));
    let containers = house.metadata.containers(&leased);
    for id in ["c1", "c2"] {
        let mut container = crate::fixture::container(id);
        container.snapshotter = SNAPSHOTTER.into();
        container.snapshot_key = id.into();
        containers.create(container).await.unwrap();
    }
    let cut = move |directory: &Path| {
        std::fs::write(directory.join("meta.redb"), "damaged").unwrap();
        let journal = std::fs::File::options()
            .write(true)
            .open(directory.join("meta.redb.journal"));
        journal.unwrap().set_len(so_far + 9).unwrap();
    };
    drop((snapshots, containers));
    let tasks = vec![task("a", "c1"), task("a", "c2")];
    let house = house.restart_after(cut, tasks).await;
    let containers = house.metadata.containers(&leased);
    for id in ["c1", "c2"] {
        let container = containers.get(&id.parse().unwrap()).await.unwrap();
        assert_eq!(container.snapshotter, SNAPSHOTTER, "{id}");
        assert_eq!(container.snapshot_key, id);
    }
    // The client has done its work: its lease ends, and the one of the restoration with it.
    let leases = house.metadata.leases(&leased.namespace);
    for lease in leases.list(&Filter::default()).await.unwrap() {
        leases.delete(&lease.id, true).await.unwrap();
    }
    house.metadata.gc().await.unwrap();
    let snapshots = house.snapshots(&scope("a"));
    for id in ["c1", "c2"] {
        snapshots.mounts(&name(id)).await.unwrap();
    }
    assert_eq!(snapshots.list(&Filter::default()).await.unwrap().len(), 3);
}

#[tokio::test]
async fn nothing_is_rebuilt_without_all_snapshotters() {
    let (house, _) = furnished(Policy::Shared).await;
    let (root, _) = house.close();
    let path = store(root.path());
    damaged(path.parent().unwrap());
    let opened = crate::Metadata::open(&path, opts(root.path(), None)).await;
    let error = opened.unwrap_err();
    assert!(error.is(Code::FailedPrecondition), "{error}");
    assert!(error.to_string().contains(SNAPSHOTTER), "{error}");
}
