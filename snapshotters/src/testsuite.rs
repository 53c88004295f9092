//! Conformance: what every [`Snapshotter`] must do, whatever is behind it.
//!
//! Each function takes a snapshotter that holds nothing under the keys it uses (all begin with
//! `suite-`), and panics at the first broken rule. [`all`] runs them one after the other.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "a broken rule is reported by a panic, as in any test"
)]

mod files;
mod varied;

use std::sync::Arc;

use types::{Code, Fields, Filter, Labels, Mount, SnapshotInfo, SnapshotKey, SnapshotKind};

use crate::Snapshotter;

pub use files::{
    deep_chains, layers_are_seen_from_above_and_never_from_below, usage_is_stored_at_commit,
    views_refuse_to_be_written_to, what_is_mounted_disturbs_nobody,
    what_was_made_alone_gets_a_parent,
};
pub use varied::{AsItIs, Variation, Varied};

fn key(name: &str) -> SnapshotKey {
    format!("suite-{name}").parse().unwrap()
}

fn code<T: std::fmt::Debug>(done: types::Result<T>) -> Code {
    done.unwrap_err().code()
}

/// Names of the snapshots of the suite that pass the filter.
async fn names(sn: &dyn Snapshotter, filter: &str) -> Vec<String> {
    let filter = if filter.is_empty() {
        Filter::default()
    } else {
        Filter::parse(&[filter]).unwrap()
    };
    let all = sn.list(&filter).await.unwrap();
    let names = all.into_iter().map(|info| info.name.to_string());
    names.filter(|name| name.starts_with("suite-")).collect()
}

/// Makes committed `name` on `parent`.
async fn layer(sn: &dyn Snapshotter, name: &str, parent: Option<&str>) {
    let active = key(&format!("{name}-active"));
    sn.prepare(&active, parent.map(key).as_ref(), Labels::new())
        .await
        .unwrap();
    sn.commit(&key(name), &active, Labels::new()).await.unwrap();
}

/// Runs everything.
pub async fn all(sn: &Arc<dyn Snapshotter>) {
    life_of_a_snapshot(&**sn).await;
    refusals(&**sn).await;
    parents_are_held(&**sn).await;
    labels_follow_the_mask(&**sn).await;
    lists_filter_and_are_ordered(&**sn).await;
    usage_is_stored_at_commit(&**sn).await;
    mounts_are_stable_and_fit_the_kind(&**sn).await;
    layers_are_seen_from_above_and_never_from_below(&**sn).await;
    views_refuse_to_be_written_to(&**sn).await;
    what_is_mounted_disturbs_nobody(&**sn).await;
    what_was_made_alone_gets_a_parent(&**sn).await;
    deep_chains(&**sn).await;
    sixteen_tasks_at_once(sn).await;
    one_of_many_wins_a_key(sn).await;
    one_of_many_commits_a_snapshot(sn).await;
    cleaned_up(&**sn).await;
}

/// Prepare, stat, mounts, commit, stat, remove.
pub async fn life_of_a_snapshot(sn: &dyn Snapshotter) {
    let labels = Labels::new().with("containerd.io/snapshot/x", "1");
    let before = std::time::SystemTime::now();
    let mounts = sn.prepare(&key("a"), None, labels.clone()).await.unwrap();
    assert!(!mounts.is_empty());
    assert_eq!(sn.mounts(&key("a")).await.unwrap(), mounts);
    let info = sn.stat(&key("a")).await.unwrap();
    assert_eq!(
        (info.kind, &info.name, &info.parent),
        (SnapshotKind::Active, &key("a"), &None)
    );
    assert_eq!(
        info.labels
            .get("containerd.io/snapshot/x")
            .map(String::as_str),
        Some("1")
    );
    assert!(info.created_at >= before - std::time::Duration::from_secs(1));

    let labels = Labels::new().with("containerd.io/snapshot/y", "2");
    sn.commit(&key("A"), &key("a"), labels).await.unwrap();
    assert_eq!(code(sn.stat(&key("a")).await), Code::NotFound);
    let info = sn.stat(&key("A")).await.unwrap();
    assert_eq!(info.kind, SnapshotKind::Committed);
    assert!(
        !info.labels.contains_key("containerd.io/snapshot/x"),
        "labels are not inherited"
    );
    assert!(info.labels.contains_key("containerd.io/snapshot/y"));

    // The key is free again, and the name can be a parent.
    sn.prepare(&key("a"), Some(&key("A")), Labels::new())
        .await
        .unwrap();
    assert_eq!(sn.stat(&key("a")).await.unwrap().parent, Some(key("A")));
    sn.remove(&key("a")).await.unwrap();
    sn.remove(&key("A")).await.unwrap();
    assert_eq!(code(sn.stat(&key("A")).await), Code::NotFound);
    assert!(names(sn, "").await.is_empty());
}

/// Every refusal of the contract, with its class.
pub async fn refusals(sn: &dyn Snapshotter) {
    let none = Labels::new;
    let gone = key("gone");
    assert_eq!(code(sn.stat(&gone).await), Code::NotFound);
    assert_eq!(code(sn.usage(&gone).await), Code::NotFound);
    assert_eq!(code(sn.mounts(&gone).await), Code::NotFound);
    assert_eq!(code(sn.remove(&gone).await), Code::NotFound);
    assert_eq!(
        code(sn.commit(&key("n"), &gone, none()).await),
        Code::NotFound
    );
    assert_eq!(
        code(sn.prepare(&key("k"), Some(&gone), none()).await),
        Code::NotFound
    );
    assert_eq!(
        code(sn.view(&key("k"), Some(&gone), none()).await),
        Code::NotFound
    );

    layer(sn, "base", None).await;
    sn.prepare(&key("act"), Some(&key("base")), none())
        .await
        .unwrap();
    sn.view(&key("view"), Some(&key("base")), none())
        .await
        .unwrap();
    for taken in ["act", "view", "base"] {
        let again = sn.prepare(&key(taken), None, none()).await;
        assert_eq!(code(again), Code::AlreadyExists, "{taken}");
        assert_eq!(
            code(sn.view(&key(taken), None, none()).await),
            Code::AlreadyExists,
            "{taken}"
        );
    }
    for parent in ["act", "view"] {
        let child = sn.prepare(&key("k"), Some(&key(parent)), none()).await;
        assert_eq!(code(child), Code::InvalidArgument, "{parent}");
    }
    assert_eq!(
        code(sn.mounts(&key("base")).await),
        Code::FailedPrecondition
    );
    for not_active in ["view", "base"] {
        let done = sn.commit(&key("n"), &key(not_active), none()).await;
        assert_eq!(code(done), Code::FailedPrecondition, "{not_active}");
    }
    assert_eq!(
        code(sn.commit(&key("base"), &key("act"), none()).await),
        Code::AlreadyExists
    );
    let long = none().with("containerd.io/snapshot/l", "x".repeat(5000));
    assert_eq!(
        code(sn.prepare(&key("k"), None, long).await),
        Code::InvalidArgument
    );
    assert_eq!(
        names(sn, "").await,
        ["suite-act", "suite-base", "suite-view"]
    );
    for name in ["act", "view", "base"] {
        sn.remove(&key(name)).await.unwrap();
    }
}

/// A snapshot with children of any kind cannot be removed.
pub async fn parents_are_held(sn: &dyn Snapshotter) {
    layer(sn, "p", None).await;
    layer(sn, "c", Some("p")).await;
    assert_eq!(code(sn.remove(&key("p")).await), Code::FailedPrecondition);
    sn.view(&key("v"), Some(&key("c")), Labels::new())
        .await
        .unwrap();
    assert_eq!(code(sn.remove(&key("c")).await), Code::FailedPrecondition);
    sn.remove(&key("v")).await.unwrap();
    sn.prepare(&key("x"), Some(&key("c")), Labels::new())
        .await
        .unwrap();
    assert_eq!(code(sn.remove(&key("c")).await), Code::FailedPrecondition);
    for name in ["x", "c", "p"] {
        sn.remove(&key(name)).await.unwrap();
    }
}

/// Update touches what the mask names.
pub async fn labels_follow_the_mask(sn: &dyn Snapshotter) {
    let two = Labels::new().with("a.b/c", "1").with("d", "2");
    sn.prepare(&key("l"), None, two).await.unwrap();
    let info = |labels: Labels| SnapshotInfo {
        kind: SnapshotKind::Committed,
        name: key("l"),
        parent: None,
        labels,
        created_at: std::time::UNIX_EPOCH,
        updated_at: std::time::UNIX_EPOCH,
    };
    let mask = |paths: &[&str]| Fields::new(paths.iter().map(ToString::to_string).collect());
    let shown = |info: &SnapshotInfo| -> Vec<String> {
        let labels = info
            .labels
            .iter()
            .filter(|(k, _)| !k.starts_with("containerd.io/"));
        labels.map(|(k, v)| format!("{k}={v}")).collect()
    };
    let created = sn.stat(&key("l")).await.unwrap().created_at;
    for (paths, labels, want) in [
        (
            &["labels.a.b/c"][..],
            Labels::new().with("a.b/c", "9").with("d", "9"),
            &["a.b/c=9", "d=2"][..],
        ),
        (&["labels.d"], Labels::new(), &["a.b/c=9"]),
        (&["labels"], Labels::new().with("e", "5"), &["e=5"]),
        (&[], Labels::new().with("f", "6").with("g", ""), &["f=6"]),
    ] {
        let updated = sn.update(info(labels), &mask(paths)).await.unwrap();
        assert_eq!(shown(&updated), want, "{paths:?}");
        let stored = sn.stat(&key("l")).await.unwrap();
        assert_eq!(shown(&stored), want, "{paths:?}");
        assert_eq!(
            (stored.kind, stored.created_at),
            (SnapshotKind::Active, created)
        );
        assert!(stored.updated_at >= created);
    }
    for path in ["parent", "kind", "name", "labelsx"] {
        let refused = sn.update(info(Labels::new()), &mask(&[path])).await;
        assert_eq!(code(refused), Code::InvalidArgument, "{path}");
    }
    sn.remove(&key("l")).await.unwrap();
    assert_eq!(
        code(sn.update(info(Labels::new()), &mask(&[])).await),
        Code::NotFound
    );
}

/// Filters on kind, name, parent and labels; order by key.
pub async fn lists_filter_and_are_ordered(sn: &dyn Snapshotter) {
    layer(sn, "z", None).await;
    layer(sn, "m", Some("z")).await;
    let labels = Labels::new().with("containerd.io/snapshot/q", "v");
    sn.prepare(&key("b"), Some(&key("m")), labels)
        .await
        .unwrap();
    sn.view(&key("w"), Some(&key("m")), Labels::new())
        .await
        .unwrap();
    for (filter, want) in [
        ("", &["suite-b", "suite-m", "suite-w", "suite-z"][..]),
        ("kind==committed", &["suite-m", "suite-z"]),
        ("kind==active", &["suite-b"]),
        ("kind==view", &["suite-w"]),
        ("name==suite-z", &["suite-z"]),
        ("parent==suite-m", &["suite-b", "suite-w"]),
        ("labels.\"containerd.io/snapshot/q\"==v", &["suite-b"]),
        ("kind==view,parent==suite-z", &[]),
    ] {
        assert_eq!(names(sn, filter).await, want, "{filter}");
    }
    for name in ["b", "w", "m", "z"] {
        sn.remove(&key(name)).await.unwrap();
    }
}

/// Mounts of one snapshot are always the same; those of a view are read-only.
pub async fn mounts_are_stable_and_fit_the_kind(sn: &dyn Snapshotter) {
    layer(sn, "m1", None).await;
    layer(sn, "m2", Some("m1")).await;
    let writable = |mounts: &[Mount]| {
        let last = mounts.last().unwrap();
        !last.is_read_only() && (last.kind != "overlay" || last.option("upperdir").is_some())
    };
    for parent in [None, Some(key("m1")), Some(key("m2"))] {
        let active = sn
            .prepare(&key("x"), parent.as_ref(), Labels::new())
            .await
            .unwrap();
        let view = sn
            .view(&key("y"), parent.as_ref(), Labels::new())
            .await
            .unwrap();
        assert!(writable(&active), "{active:?}");
        assert!(!writable(&view), "{view:?}");
        assert_eq!(sn.mounts(&key("x")).await.unwrap(), active);
        assert_eq!(sn.mounts(&key("y")).await.unwrap(), view);
        sn.remove(&key("x")).await.unwrap();
        sn.remove(&key("y")).await.unwrap();
    }
    sn.remove(&key("m2")).await.unwrap();
    sn.remove(&key("m1")).await.unwrap();
}

/// Frees what was removed, where there is something to do.
async fn collected(sn: &dyn Snapshotter) {
    match sn.cleanup().await {
        Ok(()) => {}
        Err(error) => assert_eq!(error.code(), Code::NotImplemented, "{error}"),
    }
}

/// 16 tasks with chains of their own on one base do not disturb each other.
pub async fn sixteen_tasks_at_once(sn: &Arc<dyn Snapshotter>) {
    layer(&**sn, "shared", None).await;
    let tasks: Vec<_> = (0..16)
        .map(|n| {
            let sn = Arc::clone(sn);
            tokio::spawn(async move {
                for round in 0..4 {
                    let (own, top) = (format!("t{n}-{round}"), key(&format!("t{n}-{round}-top")));
                    layer(&*sn, &own, Some("shared")).await;
                    let mounts = sn
                        .prepare(&top, Some(&key(&own)), Labels::new())
                        .await
                        .unwrap();
                    assert_eq!(sn.mounts(&top).await.unwrap(), mounts);
                    assert_eq!(sn.stat(&top).await.unwrap().parent, Some(key(&own)));
                    let mine = names(&*sn, &format!("parent==suite-{own}")).await;
                    assert_eq!(mine, [top.as_str()]);
                    assert_eq!(code(sn.remove(&key(&own)).await), Code::FailedPrecondition);
                    sn.remove(&top).await.unwrap();
                    sn.remove(&key(&own)).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    sn.remove(&key("shared")).await.unwrap();
    assert!(names(&**sn, "").await.is_empty());
}

/// Of 16 that prepare one key, one succeeds and the others hear `AlreadyExists`.
pub async fn one_of_many_wins_a_key(sn: &Arc<dyn Snapshotter>) {
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let sn = Arc::clone(sn);
            tokio::spawn(async move { sn.prepare(&key("one"), None, Labels::new()).await })
        })
        .collect();
    let mut won = 0;
    for task in tasks {
        match task.await.unwrap() {
            Ok(_) => won += 1,
            Err(error) => assert_eq!(error.code(), Code::AlreadyExists, "{error}"),
        }
    }
    assert_eq!(won, 1);
    sn.remove(&key("one")).await.unwrap();
}

/// Of 8 that commit one snapshot under names of their own, one succeeds, and the others hear that there
/// is none.
pub async fn one_of_many_commits_a_snapshot(sn: &Arc<dyn Snapshotter>) {
    sn.prepare(&key("once"), None, Labels::new()).await.unwrap();
    let tasks: Vec<_> = (0..8)
        .map(|n| {
            let (sn, name) = (Arc::clone(sn), key(&format!("name-{n}")));
            tokio::spawn(async move { sn.commit(&name, &key("once"), Labels::new()).await })
        })
        .collect();
    let mut won = 0;
    for task in tasks {
        match task.await.unwrap() {
            Ok(()) => won += 1,
            Err(error) => assert_eq!(error.code(), Code::NotFound, "{error}"),
        }
    }
    assert_eq!(won, 1);
    let left = names(&**sn, "").await;
    assert_eq!(left.len(), 1);
    let winner = left[0].parse().unwrap();
    assert_eq!(
        sn.stat(&winner).await.unwrap().kind,
        SnapshotKind::Committed
    );
    sn.remove(&winner).await.unwrap();
}

/// Cleaning up disturbs nothing that is there.
pub async fn cleaned_up(sn: &dyn Snapshotter) {
    layer(sn, "kept", None).await;
    let mounts = sn
        .prepare(&key("kept-top"), Some(&key("kept")), Labels::new())
        .await
        .unwrap();
    collected(sn).await;
    assert_eq!(sn.mounts(&key("kept-top")).await.unwrap(), mounts);
    sn.remove(&key("kept-top")).await.unwrap();
    sn.remove(&key("kept")).await.unwrap();
}
