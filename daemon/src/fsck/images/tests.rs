//! Tests of module `images`.

use ::images::testsuite::{Store, image};
use ::images::{children, label_children};
use content::ContentStore as _;

use super::*;

/// Texts of what is wrong.
async fn told(store: &Store, root: &Descriptor) -> Vec<String> {
    let found = faults(store, root).await.unwrap();
    found.into_iter().map(|(_, text)| text).collect()
}

async fn pieces(store: &Store, manifest: &Descriptor) -> Vec<Digest> {
    let found = children(store, manifest).await.unwrap();
    found
        .into_iter()
        .map(|entry| entry.descriptor.digest)
        .collect()
}

async fn forget(store: &Store, digest: &Digest) {
    store.delete(digest).await.unwrap();
}

#[tokio::test]
async fn a_missing_config_and_a_missing_layer_are_named() {
    let store = Store::default();
    let root = image(&store, "linux/amd64", &[b"one", b"two"]).await;
    assert_eq!(told(&store, &root).await, [""; 0]);
    let pieces = pieces(&store, &root).await;
    for (at, what) in [(0, "config"), (2, "layer")] {
        forget(&store, &pieces[at]).await;
        let told = told(&store, &root).await;
        let text = format!("its {what} {} is not there; {PULL}", pieces[at]);
        assert!(told.contains(&text), "{told:?}");
    }
    assert_eq!(told(&store, &root).await.len(), 2);
}

#[tokio::test]
async fn what_nobody_has_wanted_is_not_missed() {
    let store = Store::default();
    let one = image(&store, "linux/amd64", &[b"one"]).await;
    let other = image(&store, "linux/arm64", &[b"two"]).await;
    let entries = [(&one, Some("linux/amd64")), (&other, Some("linux/arm64"))];
    let root = store.index(&entries).await;
    let parts = pieces(&store, &other).await;
    // Its documents alone, as of a pull that takes them for all platforms.
    forget(&store, &parts[1]).await;
    assert_eq!(told(&store, &root).await, [""; 0]);
    forget(&store, &parts[0]).await;
    forget(&store, &other.digest).await;
    assert_eq!(told(&store, &root).await, [""; 0]);
    // Of the only one that is there, all is wanted.
    let layer = &pieces(&store, &one).await[1];
    forget(&store, layer).await;
    let text = format!("its layer {layer} is not there; {PULL}");
    assert_eq!(told(&store, &root).await, [text]);
    forget(&store, &one.digest).await;
    let text = format!("no manifest of its index {} is there; {PULL}", root.digest);
    assert_eq!(told(&store, &root).await, [text]);
}

#[tokio::test]
async fn a_layer_that_its_manifest_gave_up_is_not_missed() {
    let store = Store::default();
    let root = image(&store, "linux/amd64", &[b"one", b"two"]).await;
    let found = children(&store, &root).await.unwrap();
    // The config and the first layer are kept, the second one is not.
    label_children(&store, &root.digest, &found[..2])
        .await
        .unwrap();
    forget(&store, &found[2].descriptor.digest).await;
    assert_eq!(told(&store, &root).await, [""; 0]);
    forget(&store, &found[1].descriptor.digest).await;
    assert_eq!(told(&store, &root).await.len(), 1);
}
