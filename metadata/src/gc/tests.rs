//! Tests of module `gc`.

use std::time::Duration;

use types::{Code, Filter, Labels, Resource, Scope, gc_label};

use crate::fixture::{
    House, SNAPSHOTTER, code, container, fields, image, labels, name, put, scope, sha,
};

mod due;
mod expiry;
mod holders;
mod ingests;
mod kinds;
mod model;
mod mounts;
mod naive;
mod networks;
mod patient;
mod proxies;
mod steps;
mod streams;
mod unlinked;
mod unrecorded;

use unrecorded::Holding;

const PAST: &str = "2001-01-01T00:00:00Z";
const FUTURE: &str = "2999-01-01T00:00:00+02:00";

/// The objects of namespace `a` that are left after a collection: blobs by content, snapshots by name.
async fn left(house: &House) -> (Vec<String>, Vec<String>) {
    house.metadata.gc().await.unwrap();
    let scope = scope("a");
    let mut blobs = Vec::new();
    let content = house.content(&scope);
    for info in content.list(&Filter::default()).await.unwrap() {
        let data = ::content::testsuite::get(content.as_ref(), &info.digest).await;
        blobs.push(String::from_utf8(data).unwrap());
    }
    blobs.sort();
    let snapshots = house
        .snapshots(&scope)
        .list(&Filter::default())
        .await
        .unwrap();
    let snapshots: Vec<_> = snapshots
        .into_iter()
        .map(|info| info.name.to_string())
        .collect();
    assert_eq!(
        house.blobs().await.len(),
        blobs.len(),
        "the backend follows the records"
    );
    assert_eq!(
        house.memory.keys().len(),
        snapshots.len(),
        "the backend follows the records"
    );
    (blobs, snapshots)
}

async fn blob(house: &House, scope: &Scope, data: &str, pairs: &[(&str, &str)]) {
    put(
        house.content(scope).as_ref(),
        data.as_bytes(),
        labels(pairs),
    )
    .await;
}

/// Makes committed snapshots, each on top of the one before.
async fn chain(house: &House, scope: &Scope, names: &[&str], pairs: &[(&str, &str)]) {
    let store = house.snapshots(scope);
    let mut parent = None;
    for next in names {
        let key = name(&format!("key-{next}"));
        store
            .prepare(&key, parent.as_ref(), Labels::new())
            .await
            .unwrap();
        store
            .commit(&name(next), &key, labels(pairs))
            .await
            .unwrap();
        parent = Some(name(next));
    }
}

fn text(data: &str) -> String {
    sha(data.as_bytes()).to_string()
}

#[tokio::test]
async fn what_nobody_names_goes() {
    let house = House::new().await;
    let a = scope("a");
    blob(&house, &a, "loose", &[]).await;
    chain(&house, &a, &["base", "top"], &[]).await;
    house.metadata.gc().await.unwrap();
    assert_eq!(left(&house).await, (vec![], vec![]));
    let events = house.events().await;
    let removed = events.iter().filter(|e| *e == "a /snapshot/remove").count();
    assert_eq!(removed, 2, "the collector tells of snapshots: {events:?}");
    assert!(house.memory.cleanups() > 0);
}

#[tokio::test]
async fn roots_stay_and_keep_what_their_labels_name() {
    let house = House::new().await;
    let a = scope("a");
    blob(&house, &a, "leaf", &[]).await;
    blob(&house, &a, "dotted", &[]).await;
    blob(
        &house,
        &a,
        "middle",
        &[(&format!("{}.l.0", gc_label::REF_CONTENT), &text("leaf"))],
    )
    .await;
    chain(&house, &a, &["base", "top"], &[]).await;
    let snapshot = format!("{}{SNAPSHOTTER}", gc_label::REF_SNAPSHOT);
    let root = [
        (gc_label::ROOT, "any value"),
        (gc_label::REF_CONTENT, &text("middle")),
        ("containerd.io/gc.ref.content/x", &text("dotted")),
        (&snapshot, "top"),
    ];
    blob(&house, &a, "root", &root).await;
    let all = ["dotted", "leaf", "middle", "root"]
        .map(String::from)
        .to_vec();
    let snapshots = vec!["base".to_owned(), "top".to_owned()];
    assert_eq!(left(&house).await, (all, snapshots));
    let content = house.content(&a);
    let root = sha(b"root");
    let mask = fields(&[&format!("labels.{}", gc_label::REF_CONTENT)]);
    content.update(&root, Labels::new(), &mask).await.unwrap();
    let fewer = ["dotted", "root"].map(String::from).to_vec();
    assert_eq!(left(&house).await.0, fewer);
    content
        .update(&root, Labels::new(), &fields(&[]))
        .await
        .unwrap();
    assert_eq!(left(&house).await, (vec![], vec![]));
}

#[tokio::test]
async fn an_image_keeps_its_target_and_a_container_its_snapshot() {
    let house = House::new().await;
    let a = scope("a");
    blob(
        &house,
        &a,
        "manifest",
        &[(gc_label::REF_CONTENT, &text("config"))],
    )
    .await;
    let snapshot = format!("{}{SNAPSHOTTER}", gc_label::REF_SNAPSHOT);
    blob(&house, &a, "config", &[(&snapshot, "unpacked")]).await;
    chain(&house, &a, &["base", "unpacked"], &[]).await;
    let images = house.metadata.images(&a);
    images
        .create(image("i", &sha(b"manifest")), None)
        .await
        .unwrap();
    let store = house.snapshots(&a);
    store
        .prepare(&name("rootfs"), Some(&name("base")), Labels::new())
        .await
        .unwrap();
    let mut c = container("c");
    c.snapshotter = SNAPSHOTTER.into();
    c.snapshot_key = "rootfs".into();
    house
        .metadata
        .containers(&a)
        .create(c.clone())
        .await
        .unwrap();
    let both = ["config", "manifest"].map(String::from).to_vec();
    let all = ["base", "rootfs", "unpacked"].map(String::from).to_vec();
    assert_eq!(left(&house).await, (both, all));
    images.delete("i", None, true).await.unwrap();
    let rest = ["base", "rootfs"].map(String::from).to_vec();
    assert_eq!(left(&house).await, (vec![], rest));
    house.metadata.containers(&a).delete(&c.id).await.unwrap();
    assert_eq!(left(&house).await, (vec![], vec![]));
}

#[tokio::test]
async fn references_do_not_leave_the_namespace() {
    let house = House::new().await;
    let (a, b) = (scope("a"), scope("b"));
    blob(&house, &a, "named elsewhere", &[]).await;
    let root = [
        (gc_label::ROOT, "x"),
        (gc_label::REF_CONTENT, &text("named elsewhere")),
    ];
    blob(&house, &b, "root", &root).await;
    house.metadata.gc().await.unwrap();
    assert_eq!(house.blobs().await, [sha(b"root")]);
}

#[tokio::test]
async fn a_lease_keeps_what_it_lists_and_what_that_names_until_it_goes() {
    let house = House::new().await;
    let leased = house.leased("a", Labels::new()).await;
    blob(&house, &scope("a"), "leaf", &[]).await;
    blob(
        &house,
        &leased,
        "listed",
        &[(gc_label::REF_CONTENT, &text("leaf"))],
    )
    .await;
    chain(&house, &leased, &["base", "top"], &[]).await;
    let both = ["leaf", "listed"].map(String::from).to_vec();
    assert_eq!(
        left(&house).await,
        (both, vec!["base".into(), "top".into()])
    );
    let lease = leased.lease.as_ref().unwrap();
    let leases = house.metadata.leases(&leased.namespace);
    let top = Resource::Snapshot {
        snapshotter: SNAPSHOTTER.into(),
        key: name("top"),
    };
    leases.remove(lease, top).await.unwrap();
    assert_eq!(left(&house).await.1, ["base"]);
    leases.delete(lease, false).await.unwrap();
    assert_eq!(left(&house).await, (vec![], vec![]));
}

#[tokio::test]
async fn a_flat_lease_keeps_only_what_it_lists_and_cannot_do_without() {
    let house = House::new().await;
    let flat = house.leased("a", labels(&[(gc_label::FLAT, "true")])).await;
    let a = scope("a");
    blob(&house, &a, "leaf", &[]).await;
    blob(
        &house,
        &a,
        "target",
        &[(gc_label::REF_CONTENT, &text("leaf"))],
    )
    .await;
    blob(
        &house,
        &flat,
        "listed",
        &[(gc_label::REF_CONTENT, &text("leaf"))],
    )
    .await;
    let content = [(gc_label::REF_CONTENT, text("leaf"))];
    let content: Vec<(&str, &str)> = content.iter().map(|(k, v)| (*k, v.as_str())).collect();
    chain(&house, &a, &["base"], &content).await;
    let store = house.snapshots(&flat);
    store
        .view(&name("listed"), Some(&name("base")), Labels::new())
        .await
        .unwrap();
    let mut expired = image("i", &sha(b"target"));
    expired.labels = labels(&[(gc_label::EXPIRE, PAST)]);
    house
        .metadata
        .images(&flat)
        .create(expired, None)
        .await
        .unwrap();
    let blobs = ["listed", "target"].map(String::from).to_vec();
    let snapshots = ["base", "listed"].map(String::from).to_vec();
    assert_eq!(left(&house).await, (blobs, snapshots));
    house.metadata.images(&a).get("i").await.unwrap();
}

#[tokio::test]
async fn an_expired_lease_keeps_nothing_and_goes() {
    let house = House::new().await;
    for (expiry, stays) in [(PAST, false), (FUTURE, true), ("nonsense", true)] {
        let leased = house
            .leased("a", labels(&[(gc_label::EXPIRE, expiry)]))
            .await;
        blob(&house, &leased, expiry, &[]).await;
        assert_eq!(
            left(&house).await.0.contains(&expiry.to_owned()),
            stays,
            "{expiry}"
        );
        let leases = house.metadata.leases(&leased.namespace);
        let there = leases.resources(leased.lease.as_ref().unwrap()).await;
        assert_eq!(there.is_ok(), stays, "{expiry}");
    }
}

#[tokio::test]
async fn an_expired_image_goes_unless_something_keeps_it() {
    let house = House::new().await;
    let a = scope("a");
    let images = house.metadata.images(&a);
    let expiring = |title: &str, at: &str| {
        let mut image = image(title, &sha(title.as_bytes()));
        image.labels = labels(&[(gc_label::EXPIRE, at)]);
        image
    };
    for title in ["gone", "named", "later"] {
        blob(&house, &a, title, &[]).await;
    }
    images.create(expiring("gone", PAST), None).await.unwrap();
    images.create(expiring("named", PAST), None).await.unwrap();
    images
        .create(expiring("later", FUTURE), None)
        .await
        .unwrap();
    let mut c = container("c");
    c.labels = labels(&[(gc_label::REF_IMAGE, "named")]);
    house.metadata.containers(&a).create(c).await.unwrap();
    // Created after their blobs were written; none of those may be lost in between.
    let blobs = ["later", "named"].map(String::from).to_vec();
    assert_eq!(left(&house).await.0, blobs);
    assert_eq!(code(images.get("gone").await), Code::NotFound);
    images.get("named").await.unwrap();
    let events = house.events().await;
    assert_eq!(
        events.iter().filter(|e| *e == "a /images/delete").count(),
        1
    );
}

#[tokio::test]
async fn a_back_reference_lives_as_long_as_what_it_names() {
    let house = House::new().await;
    let a = scope("a");
    let images = house.metadata.images(&a);
    blob(&house, &a, "target", &[]).await;
    images
        .create(image("i", &sha(b"target")), None)
        .await
        .unwrap();
    house
        .metadata
        .containers(&a)
        .create(container("c"))
        .await
        .unwrap();
    let by_snapshot = format!("{}{SNAPSHOTTER}", gc_label::BREF_SNAPSHOT);
    blob(&house, &a, "by image", &[(gc_label::BREF_IMAGE, "i")]).await;
    blob(
        &house,
        &a,
        "by container",
        &[(gc_label::BREF_CONTAINER, "c")],
    )
    .await;
    blob(
        &house,
        &a,
        "by content",
        &[(gc_label::BREF_CONTENT, &text("by image"))],
    )
    .await;
    blob(&house, &a, "by snapshot", &[(&by_snapshot, "s")]).await;
    blob(&house, &a, "by nobody", &[(gc_label::BREF_IMAGE, "other")]).await;
    chain(&house, &a, &["s"], &[(gc_label::BREF_IMAGE, "i")]).await;
    let all = [
        "by container",
        "by content",
        "by image",
        "by snapshot",
        "target",
    ];
    assert_eq!(
        left(&house).await,
        (all.map(String::from).to_vec(), vec!["s".into()])
    );
    images.delete("i", None, true).await.unwrap();
    assert_eq!(left(&house).await, (vec!["by container".into()], vec![]));
}

#[tokio::test]
async fn a_failing_backend_is_tried_again_and_hides_nothing() {
    let house = House::new().await;
    let a = house.snapshots(&scope("a"));
    a.prepare(&name("k"), None, Labels::new()).await.unwrap();
    a.remove(&name("k")).await.unwrap();
    house.memory.fail_next(Code::Unavailable);
    house.metadata.gc().await.unwrap();
    assert_eq!(house.memory.keys().len(), 1);
    house.metadata.gc().await.unwrap();
    assert!(house.memory.keys().is_empty());
}

#[tokio::test]
async fn the_scheduler_collects_after_the_start_and_after_deletions() {
    let house = House::new().await;
    let a = house.snapshots(&scope("a"));
    let backend: &dyn ::snapshotters::Snapshotter = house.memory.as_ref();
    backend
        .prepare(&name("a/99/leftover"), None, Labels::new())
        .await
        .unwrap();
    let opts = super::SchedulerOpts::default();
    let scheduler = tokio::spawn(super::Scheduler::new(house.metadata.clone(), opts).run());
    let empty = async || {
        while !house.memory.keys().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let limit = Duration::from_secs(20);
    tokio::time::timeout(limit, empty())
        .await
        .expect("collects after the start");
    let leased = house.leased("a", Labels::new()).await;
    house
        .snapshots(&leased)
        .prepare(&name("k"), None, Labels::new())
        .await
        .unwrap();
    a.remove(&name("k")).await.unwrap();
    tokio::time::timeout(limit, empty())
        .await
        .expect("collects after a removal");
    scheduler.abort();
}

#[tokio::test]
async fn a_collection_goes_on_when_its_caller_goes_away() {
    let house = House::new().await;
    let scope = scope("a");
    blob(&house, &scope, "garbage", &[]).await;
    {
        let mut gc = Box::pin(house.metadata.gc());
        assert!(futures::poll!(&mut gc).is_pending());
    }
    let empty = async {
        while !house.blobs().await.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), empty)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_collection_cleans_the_content_backend_up() {
    let house = House::new().await;
    let half = house.root.path().join("content/ingest/half-made");
    std::fs::create_dir(&half).unwrap();
    house.metadata.gc().await.unwrap();
    assert!(!half.exists());
}

#[tokio::test]
async fn what_all_runs_have_done_is_counted() {
    let house = House::new().await;
    let before = house.metadata.gc_totals();
    let stats = house.metadata.gc().await.unwrap();
    let after = house.metadata.gc_totals();
    assert_eq!((after.runs, after.failed), (before.runs + 1, before.failed));
    assert_eq!(after.elapsed, before.elapsed + stats.elapsed);
    assert_eq!(after.took.iter().sum::<u64>(), after.runs);
}
