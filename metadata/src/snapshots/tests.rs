//! Tests of module `snapshots`.

use types::{Code, Filter, Labels, SnapshotInfo, SnapshotKind};

use crate::fixture::{House, code, fields, labels, lost, name, scope};

mod at_once;
mod hard;
mod noted;

async fn names(store: &dyn ::snapshotters::Snapshotter, filter: &str) -> Vec<String> {
    let found = store
        .list(&Filter::parse(&[filter]).unwrap())
        .await
        .unwrap();
    found
        .into_iter()
        .map(|info| info.name.to_string())
        .collect()
}

#[tokio::test]
async fn an_empty_or_unknown_snapshotter_is_an_invalid_argument() {
    let house = House::new().await;
    let scoped = house.metadata.scoped(&scope("a"));
    assert_eq!(code(scoped.snapshotter("")), Code::InvalidArgument);
    assert_eq!(code(scoped.snapshotter("nope")), Code::InvalidArgument);
    assert_eq!(
        house.metadata.snapshotters().collect::<Vec<_>>(),
        ["memory"]
    );
}

#[tokio::test]
async fn a_snapshot_lives_from_prepare_to_removal() {
    let house = House::new().await;
    let a = house.snapshots(&scope("a"));
    let mounts = a.prepare(&name("k/1"), None, Labels::new()).await.unwrap();
    assert_eq!(mounts, a.mounts(&name("k/1")).await.unwrap());
    assert_eq!(house.memory.keys(), ["a/1/k/1"]);
    a.commit(&name("base"), &name("k/1"), labels(&[("l", "x")]))
        .await
        .unwrap();
    assert_eq!(
        house.memory.keys(),
        ["a/1/base"],
        "a commit keeps the number"
    );
    assert_eq!(code(a.stat(&name("k/1")).await), Code::NotFound);
    assert_eq!(
        code(a.mounts(&name("base")).await),
        Code::FailedPrecondition
    );
    let base = a.stat(&name("base")).await.unwrap();
    assert_eq!(
        (base.kind, base.labels, base.parent),
        (SnapshotKind::Committed, labels(&[("l", "x")]), None)
    );
    a.prepare(&name("top"), Some(&name("base")), Labels::new())
        .await
        .unwrap();
    let top = a.stat(&name("top")).await.unwrap();
    assert_eq!(
        (top.kind, top.parent),
        (SnapshotKind::Active, Some(name("base")))
    );
    assert_eq!(a.usage(&name("top")).await.unwrap().size, 2);
    a.remove(&name("top")).await.unwrap();
    assert_eq!(code(a.stat(&name("top")).await), Code::NotFound);
    assert_eq!(house.memory.keys().len(), 2, "the disk is freed later");
    assert_eq!(
        house.events().await,
        [
            "a /snapshot/prepare",
            "a /snapshot/commit",
            "a /snapshot/prepare",
            "a /snapshot/remove"
        ]
    );
}

#[tokio::test]
async fn a_view_tells_nobody() {
    let house = House::new().await;
    let a = house.snapshots(&scope("a"));
    a.view(&name("v"), None, Labels::new()).await.unwrap();
    assert_eq!(a.stat(&name("v")).await.unwrap().kind, SnapshotKind::View);
    assert!(house.events().await.is_empty());
    let error = a.commit(&name("base"), &name("v"), Labels::new()).await;
    assert_eq!(code(error), Code::FailedPrecondition);
}

#[tokio::test]
async fn keys_belong_to_a_namespace() {
    let house = House::new().await;
    let (a, b) = (house.snapshots(&scope("a")), house.snapshots(&scope("b")));
    a.prepare(&name("k"), None, Labels::new()).await.unwrap();
    assert_eq!(code(b.stat(&name("k")).await), Code::NotFound);
    assert_eq!(code(b.mounts(&name("k")).await), Code::NotFound);
    b.prepare(&name("k"), None, Labels::new()).await.unwrap();
    assert_eq!(names(b.as_ref(), "").await, ["k"]);
    assert_eq!(house.memory.keys(), ["a/1/k", "b/2/k"]);
}

#[tokio::test]
async fn a_known_key_is_refused_and_joins_the_lease() {
    let house = House::new().await;
    let a = house.snapshots(&scope("a"));
    a.prepare(&name("k"), None, Labels::new()).await.unwrap();
    let leased = house.leased("a", Labels::new()).await;
    let again = house.snapshots(&leased);
    assert_eq!(
        code(again.prepare(&name("k"), None, Labels::new()).await),
        Code::AlreadyExists
    );
    assert_eq!(
        code(again.view(&name("k"), None, Labels::new()).await),
        Code::AlreadyExists
    );
    assert_eq!(house.held(&leased).await, ["snapshots/memory k"]);
    assert_eq!(house.memory.keys().len(), 1);
}

#[tokio::test]
async fn a_commit_to_a_known_name_is_refused_and_joins_the_lease() {
    let house = House::new().await;
    let leased = house.leased("a", Labels::new()).await;
    let a = house.snapshots(&scope("a"));
    a.prepare(&name("k"), None, Labels::new()).await.unwrap();
    a.commit(&name("base"), &name("k"), Labels::new())
        .await
        .unwrap();
    let again = house.snapshots(&leased);
    again
        .prepare(&name("k2"), None, Labels::new())
        .await
        .unwrap();
    let refused = again
        .commit(&name("base"), &name("k2"), Labels::new())
        .await;
    assert_eq!(code(refused), Code::AlreadyExists);
    assert_eq!(
        house.held(&leased).await,
        ["snapshots/memory base", "snapshots/memory k2"]
    );
    assert_eq!(
        again.stat(&name("k2")).await.unwrap().kind,
        SnapshotKind::Active
    );
    let absent = again
        .commit(&name("other"), &name("absent"), Labels::new())
        .await;
    assert_eq!(code(absent), Code::NotFound);
}

#[tokio::test]
async fn a_commit_moves_the_lease_and_the_children_index() {
    let house = House::new().await;
    let leased = house.leased("a", Labels::new()).await;
    let a = house.snapshots(&leased);
    a.prepare(&name("k"), None, Labels::new()).await.unwrap();
    assert_eq!(house.held(&leased).await, ["snapshots/memory k"]);
    a.commit(&name("base"), &name("k"), Labels::new())
        .await
        .unwrap();
    assert_eq!(house.held(&leased).await, ["snapshots/memory base"]);
    a.prepare(&name("k2"), Some(&name("base")), Labels::new())
        .await
        .unwrap();
    a.commit(&name("top"), &name("k2"), Labels::new())
        .await
        .unwrap();
    assert_eq!(
        code(a.remove(&name("base")).await),
        Code::FailedPrecondition
    );
    a.remove(&name("top")).await.unwrap();
    a.remove(&name("base")).await.unwrap();
    assert!(house.held(&leased).await.is_empty());
    assert_eq!(code(a.remove(&name("base")).await), Code::NotFound);
}

#[tokio::test]
async fn parents_must_exist_and_be_committed() {
    let house = House::new().await;
    let a = house.snapshots(&scope("a"));
    let error = a
        .prepare(&name("k"), Some(&name("none")), Labels::new())
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "parent snapshot none does not exist: not found"
    );
    a.prepare(&name("active"), None, Labels::new())
        .await
        .unwrap();
    let error = a
        .prepare(&name("k"), Some(&name("active")), Labels::new())
        .await;
    assert_eq!(code(error), Code::InvalidArgument);
    assert_eq!(names(a.as_ref(), "").await, ["active"]);
}

#[tokio::test]
async fn a_lost_lease_is_not_found_and_nothing_is_made() {
    let house = House::new().await;
    let a = house.snapshots(&lost("a"));
    let error = a
        .prepare(&name("k"), None, Labels::new())
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "lease does not exist: not found");
    assert!(house.memory.keys().is_empty());
}

#[tokio::test]
async fn the_backend_sees_its_labels_only() {
    let house = House::new().await;
    let a = house.snapshots(&scope("a"));
    let all = labels(&[
        ("mine", "1"),
        ("containerd.io/snapshot/x", "2"),
        ("gone", ""),
    ]);
    a.prepare(&name("k"), None, all).await.unwrap();
    assert_eq!(
        house.memory.labels_of("/k"),
        labels(&[("containerd.io/snapshot/x", "2")])
    );
    let info = a.stat(&name("k")).await.unwrap();
    assert_eq!(
        info.labels,
        labels(&[("mine", "1"), ("containerd.io/snapshot/x", "2")])
    );
    let long = labels(&[("k", &"v".repeat(4096))]);
    assert_eq!(
        code(a.prepare(&name("l"), None, long).await),
        Code::InvalidArgument
    );
    // A commit's labels replace those of the key.
    let new = labels(&[("containerd.io/snapshot/y", "3"), ("other", "4")]);
    a.commit(&name("base"), &name("k"), new.clone())
        .await
        .unwrap();
    assert_eq!(a.stat(&name("base")).await.unwrap().labels, new);
    assert_eq!(
        house.memory.labels_of("/base"),
        labels(&[("containerd.io/snapshot/y", "3")])
    );
}

#[tokio::test]
async fn update_changes_labels_only_here_and_there() {
    let house = House::new().await;
    let a = house.snapshots(&scope("a"));
    let first = labels(&[("mine", "1"), ("containerd.io/snapshot/x", "2")]);
    a.prepare(&name("k"), None, first).await.unwrap();
    let info = |pairs: &[(&str, &str)]| SnapshotInfo {
        name: name("k"),
        labels: labels(pairs),
        kind: SnapshotKind::Active,
        parent: None,
        created_at: std::time::SystemTime::UNIX_EPOCH,
        updated_at: std::time::SystemTime::UNIX_EPOCH,
    };
    let mask = fields(&["labels.containerd.io/snapshot/x"]);
    let got = a
        .update(
            info(&[("mine", "9"), ("containerd.io/snapshot/x", "8")]),
            &mask,
        )
        .await;
    let got = got.unwrap();
    assert_eq!(
        got.labels,
        labels(&[("mine", "1"), ("containerd.io/snapshot/x", "8")])
    );
    assert!(got.updated_at > got.created_at);
    assert_eq!(a.stat(&name("k")).await.unwrap(), got);
    assert_eq!(
        house.memory.labels_of("/k"),
        labels(&[("containerd.io/snapshot/x", "8")])
    );
    let got = a
        .update(info(&[("only", "1")]), &fields(&[]))
        .await
        .unwrap();
    assert_eq!(got.labels, labels(&[("only", "1")]));
    assert!(house.memory.labels_of("/k").is_empty());
    for bad in ["kind", "parent", "name"] {
        assert_eq!(
            code(a.update(info(&[]), &fields(&[bad])).await),
            Code::InvalidArgument,
            "{bad}"
        );
    }
    house.memory.fail_next(Code::Unavailable);
    assert_eq!(
        code(a.update(info(&[("x", "y")]), &fields(&[])).await),
        Code::Unavailable
    );
    assert_eq!(
        a.stat(&name("k")).await.unwrap().labels,
        labels(&[("only", "1")])
    );
    let absent = SnapshotInfo {
        name: name("absent"),
        ..info(&[])
    };
    assert_eq!(code(a.update(absent, &fields(&[])).await), Code::NotFound);
}

#[tokio::test]
async fn lists_are_ordered_filtered_and_skip_what_the_backend_lost() {
    let house = House::new().await;
    let a = house.snapshots(&scope("a"));
    for key in ["k2", "k1", "k3"] {
        a.prepare(&name(key), None, labels(&[("x.y", key)]))
            .await
            .unwrap();
    }
    a.commit(&name("base"), &name("k2"), Labels::new())
        .await
        .unwrap();
    a.view(&name("v"), Some(&name("base")), Labels::new())
        .await
        .unwrap();
    for (filter, want) in [
        ("", vec!["base", "k1", "k3", "v"]),
        ("kind==active", vec!["k1", "k3"]),
        ("kind==committed", vec!["base"]),
        ("parent==base", vec!["v"]),
        ("labels.\"x.y\"==k3", vec!["k3"]),
    ] {
        assert_eq!(names(a.as_ref(), filter).await, want, "{filter}");
    }
    house.memory.lose("/k1");
    assert_eq!(names(a.as_ref(), "").await, ["base", "k3", "v"]);
    assert_eq!(code(a.stat(&name("k1")).await), Code::NotFound);
}

/// Each of them knows the labels that the other one has left.
#[tokio::test]
async fn labels_that_two_change_at_once_are_the_same_here_and_in_the_backend() {
    let house = House::new().await;
    let a = house.snapshots(&scope("a"));
    let (x, y) = ("containerd.io/snapshot/x", "containerd.io/snapshot/y");
    let change = |label: &str, pairs: &[(&str, &str)]| {
        let info = SnapshotInfo {
            kind: SnapshotKind::Active,
            name: name("k"),
            parent: None,
            labels: labels(pairs),
            created_at: std::time::SystemTime::UNIX_EPOCH,
            updated_at: std::time::SystemTime::UNIX_EPOCH,
        };
        (info, fields(&[&format!("labels.{label}")]))
    };
    let (remove, set) = (change(x, &[]), change(y, &[(y, "2")]));
    for first in 0..2 {
        a.prepare(&name("k"), None, labels(&[(x, "1")]))
            .await
            .unwrap();
        let mut both = [&remove, &set];
        both.rotate_left(first);
        let [one, other] = both.map(|(info, fields)| a.update(info.clone(), fields));
        let (one, other) = futures::join!(one, other);
        one.and(other).unwrap();
        let want = labels(&[(y, "2")]);
        assert_eq!(a.stat(&name("k")).await.unwrap().labels, want);
        assert_eq!(house.memory.labels_of("/k"), want);
        a.remove(&name("k")).await.unwrap();
        house.metadata.gc().await.unwrap();
    }
}
