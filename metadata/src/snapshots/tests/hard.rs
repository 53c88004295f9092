//! The hard cases: remote snapshots, backends that misbehave, crashes between two steps, races.

use std::collections::BTreeMap;
use std::sync::Arc;

use types::{Code, Filter, Labels, SnapshotKind, label};

use super::names;
use crate::fixture::{House, SNAPSHOTTER, code, exchange, labels, name, scope};
use crate::{Metadata, OpenOpts, Policy};

/// The suite of all snapshotters, through a namespace and over a real one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms() {
    let root = tempfile::tempdir().unwrap();
    let native = ::snapshotters::Native::open(&root.path().join("native")).unwrap();
    let native: Arc<dyn ::snapshotters::Snapshotter> = Arc::new(native);
    let opts = OpenOpts {
        content: Arc::new(::content::Local::open(root.path().join("content")).unwrap()),
        snapshotters: BTreeMap::from([("native".to_owned(), Arc::clone(&native))]),
        events: Arc::new(exchange()),
        policy: Policy::Shared,
        tasks: Box::new(|| Ok(Vec::new())),
        absent: Vec::new(),
    };
    let metadata = Metadata::open(&root.path().join("meta.redb"), opts)
        .await
        .unwrap();
    let scoped = metadata.scoped(&scope("a")).snapshotter("native").unwrap();
    ::snapshotters::testsuite::all(&scoped).await;
    metadata.gc().await.unwrap();
    assert!(native.list(&Filter::default()).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_remote_snapshot_is_adopted_and_answered_with_already_exists() {
    let house = House::new().await;
    house.memory.be_remote();
    let leased = house.leased("a", Labels::new()).await;
    let a = house.snapshots(&leased);
    let target = labels(&[(label::SNAPSHOT_REF, "chain-1"), ("mine", "1")]);
    let error = a
        .prepare(&name("extract-1"), None, target.clone())
        .await
        .unwrap_err();
    assert!(error.is_already_exists(), "{error}");
    let info = a.stat(&name("chain-1")).await.unwrap();
    assert_eq!(
        (info.kind, &info.labels),
        (SnapshotKind::Committed, &target)
    );
    assert_eq!(names(a.as_ref(), "").await, ["chain-1"], "no key was made");
    assert_eq!(house.held(&leased).await, ["snapshots/memory chain-1"]);
    let keys = house.memory.keys();
    assert_eq!(keys, ["remote-chain-1"]);
    // Known by now: the backend is not asked again.
    assert_eq!(
        code(a.prepare(&name("extract-2"), None, target).await),
        Code::AlreadyExists
    );
    let child = labels(&[(label::SNAPSHOT_REF, "chain-2")]);
    let parent = name("chain-1");
    let error = a.prepare(&name("extract-3"), Some(&parent), child).await;
    assert_eq!(code(error), Code::AlreadyExists);
    assert_eq!(a.stat(&name("chain-2")).await.unwrap().parent, Some(parent));
    house.metadata.gc().await.unwrap();
    assert_eq!(
        house.memory.keys(),
        ["remote-chain-1", "remote-chain-2"],
        "held by the lease"
    );
}

/// A collection had the target on its list already, and took it between the answer of the backend and
/// the look for it.
#[tokio::test]
async fn a_remote_snapshot_that_is_collected_before_its_adoption_is_asked_for_again() {
    let house = House::new().await;
    house.memory.be_remote();
    let leased = house.leased("a", Labels::new()).await;
    let a = house.snapshots(&leased);
    let target = labels(&[(label::SNAPSHOT_REF, "chain-1")]);
    house.memory.be_fleeting(2);
    let prepared = a.prepare(&name("extract-1"), None, target).await;
    assert_eq!(code(prepared), Code::AlreadyExists);
    assert_eq!(names(a.as_ref(), "").await, ["chain-1"]);
    assert_eq!(house.held(&leased).await, ["snapshots/memory chain-1"]);
    house.metadata.gc().await.unwrap();
    assert_eq!(
        house.memory.keys(),
        ["remote-chain-1"],
        "what the tries left goes"
    );
    // One that is never there is told of at last.
    let target = labels(&[(label::SNAPSHOT_REF, "chain-2")]);
    house.memory.be_fleeting(usize::MAX);
    let error = a.prepare(&name("extract-2"), None, target).await;
    let error = error.unwrap_err().to_string();
    assert_eq!(error, "target snapshot \"chain-2\" in backend: not found");
}

#[tokio::test]
async fn an_unexpected_already_exists_of_the_backend_is_not_passed_on() {
    let house = House::new().await;
    let a = house.snapshots(&scope("a"));
    house.memory.fail_next(Code::AlreadyExists);
    assert_eq!(
        code(a.prepare(&name("k"), None, Labels::new()).await),
        Code::Unknown
    );
    house.memory.fail_next(Code::ResourceExhausted);
    assert_eq!(
        code(a.prepare(&name("k"), None, Labels::new()).await),
        Code::ResourceExhausted
    );
    a.prepare(&name("k"), None, Labels::new()).await.unwrap();
}

#[tokio::test]
async fn a_commit_that_a_crash_cut_in_two_is_finished_by_the_next_one() {
    let house = House::new().await;
    let a = house.snapshots(&scope("a"));
    a.prepare(&name("k"), None, labels(&[("containerd.io/gc.root", "x")]))
        .await
        .unwrap();
    // The backend has committed, the record has not followed.
    let backend: &dyn ::snapshotters::Snapshotter = house.memory.as_ref();
    backend
        .commit(&name("a/1/base"), &name("a/1/k"), Labels::new())
        .await
        .unwrap();
    drop(a);
    let house = house.restart().await;
    house.metadata.gc().await.unwrap();
    assert_eq!(
        house.memory.keys(),
        ["a/1/base"],
        "the number is still named"
    );
    let a = house.snapshots(&scope("a"));
    a.commit(&name("base"), &name("k"), Labels::new())
        .await
        .unwrap();
    assert_eq!(
        a.stat(&name("base")).await.unwrap().kind,
        SnapshotKind::Committed
    );
}

#[tokio::test]
async fn numbers_go_on_after_a_restart() {
    let house = House::new().await;
    let first = house.snapshots(&scope("a"));
    first
        .prepare(&name("k"), None, Labels::new())
        .await
        .unwrap();
    first.remove(&name("k")).await.unwrap();
    drop(first);
    let house = house.restart().await;
    house
        .snapshots(&scope("a"))
        .prepare(&name("k"), None, Labels::new())
        .await
        .unwrap();
    assert_eq!(
        house.memory.keys().len(),
        2,
        "the leftover is not met again"
    );
    house.metadata.gc().await.unwrap();
    assert!(
        house.memory.keys().is_empty(),
        "nothing named the new one either"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_unpackers_one_commits_a_name() {
    let house = Arc::new(House::new().await);
    let tasks: Vec<_> = (0..8)
        .map(|n| {
            let house = Arc::clone(&house);
            tokio::spawn(async move {
                let a = house.snapshots(&scope("a"));
                let key = name(&format!("extract-{n}"));
                a.prepare(&key, None, Labels::new()).await.unwrap();
                match a.commit(&name("chain"), &key, Labels::new()).await {
                    Ok(()) => 1,
                    Err(error) => {
                        assert!(error.is_already_exists(), "{error}");
                        a.remove(&key).await.unwrap();
                        0
                    }
                }
            })
        })
        .collect();
    let mut won = 0;
    for task in tasks {
        won += task.await.unwrap();
    }
    assert_eq!(won, 1);
    assert_eq!(
        names(house.snapshots(&scope("a")).as_ref(), "").await,
        ["chain"]
    );
}

/// New snapshots and collections at once: what was answered is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn prepares_and_collections_race_without_losing_a_snapshot() {
    let house = Arc::new(House::new().await);
    let leased = house.leased("a", Labels::new()).await;
    let workers: Vec<_> = (0..4)
        .map(|n| {
            let (house, leased) = (Arc::clone(&house), leased.clone());
            tokio::spawn(async move {
                let a = house.snapshots(&leased);
                for round in 0..15 {
                    let key = name(&format!("k-{n}-{round}"));
                    a.prepare(&key, None, Labels::new()).await.unwrap();
                    a.mounts(&key).await.unwrap();
                    let base = name(&format!("base-{n}-{round}"));
                    a.commit(&base, &key, Labels::new()).await.unwrap();
                    a.stat(&base).await.unwrap();
                    if round % 2 == 0 {
                        a.remove(&base).await.unwrap();
                    }
                }
            })
        })
        .collect();
    let mut busy = true;
    while busy {
        house.metadata.gc().await.unwrap();
        busy = workers.iter().any(|worker| !worker.is_finished());
    }
    for worker in workers {
        worker.await.unwrap();
    }
    house.metadata.gc().await.unwrap();
    assert_eq!(house.memory.keys().len(), 4 * 7);
}

/// A request whose client goes away while the backend works leaves a record for what was made.
#[tokio::test]
async fn a_cancelled_prepare_leaves_nothing_without_a_record() {
    let house = House::new().await;
    house.metadata.gc().await.unwrap();
    let leased = house.leased("a", Labels::new()).await;
    let a = house.snapshots(&leased);
    let key = name("k");
    {
        let mut prepare = a.prepare(&key, None, Labels::new());
        while house.memory.keys().is_empty() {
            let step = futures::poll!(&mut prepare);
            assert!(step.is_pending(), "the backend yields before the answer");
            tokio::task::yield_now().await;
        }
    }
    let made = async {
        while a.stat(&key).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), made)
        .await
        .unwrap();
    assert_eq!(house.held(&leased).await.len(), 1);
}

/// What a program makes after nobody waits for it any more has no record: the collector hears of it.
#[tokio::test]
async fn a_prepare_that_was_not_answered_is_left_to_the_collector() {
    let house = House::new().await;
    let a = house.snapshots(&scope("a"));
    let outlet = &house.metadata.0.db.outlet;
    for (failure, marks) in [(Code::DeadlineExceeded, 1), (Code::InvalidArgument, 0)] {
        drop(outlet.take());
        house.memory.fail_next(failure);
        let failed = a.prepare(&name("k"), None, Labels::new()).await;
        assert_eq!(code(failed), failure);
        assert_eq!(outlet.take().deletions, marks, "{failure:?}");
    }
}

/// The active snapshot is removed while its commit is on the way from the backend to the record: the
/// collector hears of what nobody names then.
#[tokio::test]
async fn a_commit_that_meets_a_removal_leaves_nothing_for_good() {
    let house = House::new().await;
    let a = house.snapshots(&scope("a"));
    let (key, base) = (name("k"), name("base"));
    a.prepare(&key, None, Labels::new()).await.unwrap();
    let mut commit = a.commit(&base, &key, Labels::new());
    while !house.memory.keys().iter().any(|key| key.ends_with("/base")) {
        assert!(futures::poll!(&mut commit).is_pending());
        tokio::task::yield_now().await;
    }
    // As a collection does that begins now.
    let outlet = &house.metadata.0.db.outlet;
    drop(outlet.take());
    a.remove(&key).await.unwrap();
    assert_eq!(code(commit.await), Code::NotFound);
    assert_eq!(
        outlet.take().deletions,
        2,
        "one more for what was committed"
    );
    outlet.add(crate::db::Marks {
        snapshotters: [SNAPSHOTTER.to_owned()].into(),
        ..Default::default()
    });
    house.metadata.gc().await.unwrap();
    assert!(house.memory.keys().is_empty());
}

/// The power fails right after the answers: the records are on the disk, the snapshotter's rows not.
#[tokio::test]
async fn a_containers_root_that_the_power_took_is_made_anew_and_nothing_else() {
    let house = House::new().await;
    let leased = house.leased("a", Labels::new()).await;
    let a = house.snapshots(&leased);
    a.prepare(&name("work"), None, Labels::new()).await.unwrap();
    let base = name("base");
    a.commit(&base, &name("work"), Labels::new()).await.unwrap();
    let pairs = [("mine", "1"), ("containerd.io/snapshot/x", "2")];
    a.prepare(&name("c1"), Some(&base), labels(&pairs))
        .await
        .unwrap();
    a.view(&name("c2"), Some(&base), Labels::new())
        .await
        .unwrap();
    a.prepare(&name("extract-1"), Some(&base), Labels::new())
        .await
        .unwrap();
    a.prepare(&name("kept"), Some(&base), Labels::new())
        .await
        .unwrap();
    let containers = house.metadata.containers(&leased);
    for id in ["c1", "c2", "kept"] {
        let mut container = crate::fixture::container(id);
        container.snapshotter = SNAPSHOTTER.into();
        container.snapshot_key = id.into();
        containers.create(container).await.unwrap();
    }
    let before = house.memory.keys();
    for lost in ["/c1", "/c2", "/extract-1"] {
        house.memory.lose(lost);
    }
    drop((a, containers));
    let house = house.restart().await;
    house.metadata.redo_rootfs().await.unwrap();
    let mut want = before;
    want.retain(|key| !key.ends_with("/extract-1"));
    assert_eq!(house.memory.keys(), want, "an unpacker must begin anew");
    let a = house.snapshots(&leased);
    for (id, kind) in [
        ("c1", SnapshotKind::Active),
        ("c2", SnapshotKind::View),
        ("kept", SnapshotKind::Active),
    ] {
        let info = a.stat(&name(id)).await.unwrap();
        assert_eq!((info.kind, info.parent.as_ref()), (kind, Some(&base)));
        a.mounts(&name(id)).await.unwrap();
    }
    assert_eq!(a.stat(&name("c1")).await.unwrap().labels, labels(&pairs));
    assert_eq!(house.memory.labels_of("/c1"), labels(&pairs[1..]));
    // Without its parent it cannot be made.
    house.memory.damage();
    house.memory.lose("/kept");
    house.memory.lose("/c1");
    house.memory.lose("/c2");
    house.memory.lose("/base");
    drop(a);
    let house = house.restart().await;
    house.metadata.redo_rootfs().await.unwrap();
    assert!(house.memory.keys().is_empty());
}
