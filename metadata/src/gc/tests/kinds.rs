//! What labels name is kept, on whatever object they are.

use super::*;

/// Labels that name a blob, a snapshot and an image of that name.
fn naming(title: &str) -> Vec<(String, String)> {
    vec![
        (format!("{}.x", gc_label::REF_CONTENT), text(title)),
        (
            format!("{}{SNAPSHOTTER}/x", gc_label::REF_SNAPSHOT),
            title.into(),
        ),
        (format!("{}/x", gc_label::REF_IMAGE), title.into()),
    ]
}

fn pairs(all: &[(String, String)]) -> Vec<(&str, &str)> {
    let pairs = all
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()));
    pairs.collect()
}

#[tokio::test]
async fn objects_of_every_kind_keep_what_their_labels_name() {
    let house = House::new().await;
    let a = scope("a");
    let images = house.metadata.images(&a);
    // Nothing but a label keeps one of these.
    for kept in ["by blob", "by container", "by image", "by snapshot"] {
        blob(&house, &a, kept, &[]).await;
        chain(&house, &a, &[kept], &[]).await;
        let mut kept = image(kept, &sha(kept.as_bytes()));
        kept.labels = labels(&[(gc_label::EXPIRE, PAST)]);
        images.create(kept, None).await.unwrap();
    }
    let root = (gc_label::ROOT.to_owned(), "1".to_owned());
    let [mut of_blob, mut of_snapshot] = ["by blob", "by snapshot"].map(naming);
    of_blob.push(root.clone());
    of_snapshot.push(root);
    blob(&house, &a, "root", &pairs(&of_blob)).await;
    chain(&house, &a, &["root"], &pairs(&of_snapshot)).await;
    let mut c = container("c");
    c.labels = labels(&pairs(&naming("by container")));
    house
        .metadata
        .containers(&a)
        .create(c.clone())
        .await
        .unwrap();
    let mut i = image("i", &sha(b"root"));
    i.labels = labels(&pairs(&naming("by image")));
    images.create(i, None).await.unwrap();

    let kept = ["by blob", "by container", "by image", "by snapshot", "root"];
    let kept = kept.map(String::from).to_vec();
    assert_eq!(left(&house).await, (kept.clone(), kept.clone()));
    for title in &kept[..4] {
        images.get(title).await.unwrap();
    }
    images.delete("i", None, false).await.unwrap();
    house.metadata.containers(&a).delete(&c.id).await.unwrap();
    let fewer = ["by blob", "by snapshot", "root"]
        .map(String::from)
        .to_vec();
    assert_eq!(left(&house).await, (fewer.clone(), fewer));
    assert_eq!(code(images.get("by image").await), Code::NotFound);
    assert_eq!(code(images.get("by container").await), Code::NotFound);
}
