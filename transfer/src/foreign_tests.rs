//! Layers that another program unpacks, of which nothing is known.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use content::ContentStore;
use diff::{Applier, ApplyOpts};
use images::testsuite::{Store, image};
use snapshotters::{Overlay, OverlayConfig};

use super::*;
use crate::fake::World;
use crate::rooms::width;

/// It unpacks as ours does, tells nothing of itself, and notes the mounts that it is given.
#[derive(Debug)]
struct Foreign {
    walking: diff::Walking,
    given: Mutex<Vec<Mount>>,
}

#[async_trait]
impl Applier for Foreign {
    async fn apply(
        &self,
        store: &Arc<dyn ContentStore>,
        layer: &Descriptor,
        mounts: &[Mount],
        opts: ApplyOpts,
    ) -> Result<Descriptor> {
        self.given.lock().unwrap().extend_from_slice(mounts);
        // What is below comes later, if it is not there.
        tokio::task::yield_now().await;
        self.walking.apply(store, layer, mounts, opts).await
    }
}

/// A layer of one file.
fn layer(name: &str) -> Vec<u8> {
    let mut made = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(0);
    made.append_data(&mut header, name, &b""[..]).unwrap();
    made.into_inner().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn it_is_given_no_mount_that_only_ours_understands() {
    let temp = tempfile::tempdir().unwrap();
    let overlay = Overlay::open(&temp.path().join("o"), OverlayConfig::default()).unwrap();
    let store = Store::default();
    let layers: Vec<_> = (0..6).map(|n| layer(&format!("file{n}"))).collect();
    let layers: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
    let root = image(&store, "linux/amd64", &layers).await;
    let foreign = Arc::new(Foreign {
        walking: diff::Walking::new(temp.path().join("m")),
        given: Mutex::default(),
    });
    let deps = Deps {
        snapshotter: Arc::new(overlay),
        content: Arc::new(store),
        applier: Arc::clone(&foreign) as _,
        ..World::new().deps()
    };
    assert_eq!(width(&deps), 1);
    let on = OnProgress::default();
    let top = unpack_image(&deps, &root, &PlatformSet::All, &on).await;
    assert!(top.unwrap().is_some());
    let given = foreign.given.lock().unwrap();
    assert_eq!(given.len(), layers.len());
    for mount in &*given {
        let is_whole = mount.kind == "bind" || mount.option("lowerdir").is_some();
        assert!(is_whole, "{mount:?}");
    }
}

#[tokio::test]
async fn its_word_for_a_flush_is_not_enough() {
    for is_foreign in [false, true] {
        let world = World::new();
        let applier = &world.applier.is_foreign;
        applier.store(is_foreign, std::sync::atomic::Ordering::Relaxed);
        let root = image(&world.content, "linux/amd64", &[b"a", b"b"]).await;
        let on = OnProgress::default();
        let top = unpack_image(&world.deps(), &root, &PlatformSet::All, &on).await;
        assert!(top.unwrap().is_some());
        let told = world.snapshots.4.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(told, if is_foreign { 0 } else { 2 }, "{is_foreign}");
    }
}
