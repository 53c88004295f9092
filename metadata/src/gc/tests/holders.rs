//! What keeps an object is told as a collection would find it.

use super::*;

async fn told(house: &House, of: &Resource) -> Vec<String> {
    let holders = house.metadata.holders(&scope("a").namespace, of, ()).await;
    let mut chains: Vec<_> = holders
        .unwrap()
        .chains
        .iter()
        .map(|chain| chain.join(" -> "))
        .collect();
    chains.sort();
    chains
}

fn snapshot(key: &str) -> Resource {
    Resource::Snapshot {
        snapshotter: SNAPSHOTTER.into(),
        key: name(key),
    }
}

fn content(title: &str) -> Resource {
    Resource::Content(sha(title.as_bytes()))
}

#[tokio::test]
async fn each_root_is_told_with_the_way_to_the_object() {
    let house = House::new().await;
    let a = scope("a");
    let full = house.leased("a", Labels::new()).await;
    let flat = house.leased("a", labels(&[(gc_label::FLAT, "true")])).await;
    let leases = house.metadata.leases(&a.namespace);
    blob(&house, &a, "layer", &[]).await;
    let layer = text("layer");
    let refers = format!("{}.l.0", gc_label::REF_CONTENT);
    blob(&house, &a, "manifest", &[(&refers, &layer)]).await;
    blob(
        &house,
        &a,
        "rooted",
        &[(&refers, &layer), (gc_label::ROOT, "1")],
    )
    .await;
    let mut expired = image("expired", &sha(b"layer"));
    expired.labels = labels(&[(gc_label::EXPIRE, PAST)]);
    let images = house.metadata.images(&a);
    images.create(expired, None).await.unwrap();
    let made = images.create(image("i", &sha(b"manifest")), None);
    made.await.unwrap();
    let [full, flat] = [full, flat].map(|scope| scope.lease.unwrap());
    for lease in [&full, &flat] {
        leases.add(lease, content("manifest")).await.unwrap();
    }
    let manifest = format!("content {}", text("manifest"));
    let layer = format!("content {layer}");
    let rooted = format!("content {}", text("rooted"));
    let mut want = vec![
        format!("image i -> {manifest} -> {layer}"),
        format!("label containerd.io/gc.root of {rooted} -> {rooted} -> {layer}"),
        format!("lease {full} -> {manifest} -> {layer}"),
    ];
    want.sort();
    assert_eq!(told(&house, &content("layer")).await, want);
    let mut want = vec![
        format!("image i -> {manifest}"),
        format!("lease {flat} -> {manifest}"),
        format!("lease {full} -> {manifest}"),
    ];
    want.sort();
    assert_eq!(told(&house, &content("manifest")).await, want);
}

#[tokio::test]
async fn what_is_under_a_container_is_told_and_what_nothing_keeps() {
    let house = House::new().await;
    let a = scope("a");
    chain(&house, &a, &["below", "above"], &[]).await;
    let snapshots = house.snapshots(&a);
    let (c, above) = (name("c"), name("above"));
    let made = snapshots.prepare(&c, Some(&above), Labels::new());
    made.await.unwrap();
    let below = snapshot("below");
    assert!(told(&house, &below).await.is_empty());
    let mut c = container("c");
    (c.snapshotter, c.snapshot_key) = (SNAPSHOTTER.into(), "c".into());
    house.metadata.containers(&a).create(c).await.unwrap();
    let way = ["container c", "snapshot memory/c", "snapshot memory/above"];
    let way = way.join(" -> ") + " -> snapshot memory/below";
    assert_eq!(told(&house, &below).await, [way]);
    let holders = house.metadata.holders(&a.namespace, &below, ());
    assert_eq!(
        holders.await.unwrap().freed(),
        Some(2),
        "what the snapshotter says"
    );
}

#[tokio::test]
async fn bytes_that_another_namespace_has_stay() {
    let house = House::new().await;
    let a = scope("a");
    blob(&house, &a, "blob", &[]).await;
    let of = content("blob");
    let holders = house.metadata.holders(&a.namespace, &of, ()).await.unwrap();
    assert_eq!((holders.size, holders.freed()), (Some(4), Some(4)));
    blob(&house, &scope("b"), "blob", &[]).await;
    let holders = house.metadata.holders(&a.namespace, &of, ()).await.unwrap();
    assert_eq!((holders.size, holders.freed()), (Some(4), Some(0)));
    assert_eq!(holders.elsewhere, ["b"]);
    let c = scope("c").namespace;
    for of in [of, snapshot("none")] {
        assert_eq!(
            code(house.metadata.holders(&c, &of, ()).await),
            Code::NotFound
        );
    }
    let image = Resource::Image("i".into());
    assert_eq!(
        code(house.metadata.holders(&c, &image, ()).await),
        Code::NotImplemented
    );
}

/// Its lease keeps it, though it is none by itself any more.
#[tokio::test]
async fn a_leased_image_is_told_once_for_each_root() {
    let house = House::new().await;
    let a = scope("a");
    blob(&house, &a, "layer", &[]).await;
    let lease = house.leased("a", Labels::new()).await.lease.unwrap();
    let images = house.metadata.images(&a);
    let leases = house.metadata.leases(&a.namespace);
    for id in ["expired", "lasting"] {
        let mut image = image(id, &sha(b"layer"));
        if id == "expired" {
            image.labels = labels(&[(gc_label::EXPIRE, PAST)]);
        }
        images.create(image, None).await.unwrap();
    }
    for (id, also) in [("expired", None), ("lasting", Some("image lasting"))] {
        let resource = Resource::Image(id.into());
        leases.add(&lease, resource.clone()).await.unwrap();
        let layer = format!("content {}", text("layer"));
        let all = told(&house, &content("layer")).await;
        let ours: Vec<_> = all.iter().filter(|way| way.contains(id)).collect();
        let mut want = vec![format!("lease {lease} -> image {id} -> {layer}")];
        want.extend(also.map(|image| format!("{image} -> {layer}")));
        want.sort();
        assert_eq!(ours, want.iter().collect::<Vec<_>>());
        leases.remove(&lease, resource).await.unwrap();
    }
}

/// What two have adopted stays while one has it, and one that does not tell its size hides nothing else.
#[tokio::test]
async fn a_snapshot_of_two_namespaces_frees_nothing_and_may_have_no_size() {
    let house = House::new().await;
    house.memory.be_remote();
    let (a, of) = (scope("a").namespace, snapshot("layer"));
    for ns in ["a", "b"] {
        let target = labels(&[("containerd.io/snapshot.ref", "layer")]);
        let snapshots = house.snapshots(&scope(ns));
        let made = snapshots.prepare(&name("extract"), None, target).await;
        assert_eq!(code(made), Code::AlreadyExists);
        let holders = house.metadata.holders(&a, &of, ());
        let freed = if ns == "a" { 2 } else { 0 };
        assert_eq!(holders.await.unwrap().freed(), Some(freed), "{ns}");
    }
    house.memory.be_silent(true);
    let holders = house.metadata.holders(&a, &of, ());
    let holders = holders.await.unwrap();
    assert_eq!((holders.size, holders.elsewhere), (None, vec!["b".into()]));
}

/// Somebody reads it.
#[tokio::test]
async fn an_answer_has_an_end() {
    let house = House::new().await;
    let a = scope("a");
    blob(&house, &a, "blob", &[]).await;
    let images = house.metadata.images(&a);
    for n in 0..130 {
        let made = images.create(image(&format!("i{n}"), &sha(b"blob")), None);
        made.await.unwrap();
    }
    let holders = house
        .metadata
        .holders(&a.namespace, &content("blob"), ())
        .await;
    let holders = holders.unwrap();
    assert_eq!((holders.chains.len(), holders.more), (100, 30));
}
