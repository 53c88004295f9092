//! Btrfs: the suite, and what subvolumes bring with them.

use super::*;
use crate::Snapshotter;
use crate::testing::Disk;
use std::sync::Arc;
use types::{Labels, SnapshotKey};

fn key(name: &str) -> SnapshotKey {
    name.parse().unwrap()
}

fn disk() -> Disk {
    Disk::new("btrfs", 256, &["-q"])
}

async fn prepare(sn: &Local, name: &str, parent: Option<&str>) -> PathBuf {
    let parent = parent.map(key);
    let made = sn.prepare(&key(name), parent.as_ref(), Labels::new()).await;
    PathBuf::from(&made.unwrap()[0].source)
}

async fn commit(sn: &Local, name: &str, from: &str) {
    sn.commit(&key(name), &key(from), Labels::new())
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn conforms() {
    let disk = disk();
    let made = Btrfs::open(&disk.path().join("root")).unwrap();
    let sn: Arc<dyn Snapshotter> = Arc::new(made);
    crate::testsuite::all(&sn).await;
    sn.cleanup().await.unwrap();
    let left = std::fs::read_dir(disk.path().join("root/snapshots")).unwrap();
    assert_eq!(left.count(), 0);
}

#[test]
fn another_file_system_is_refused_with_the_reason() {
    let disk = Disk::new("ext4", 16, &["-q"]);
    let root = disk.path().join("a/b");
    let error = Btrfs::open(&root).unwrap_err();
    assert!(error.is(types::Code::NotImplemented), "{error}");
    assert!(!root.exists());
}

#[tokio::test]
async fn a_committed_subvolume_cannot_be_written_to_and_a_child_shares_it() {
    let disk = disk();
    let sn = Btrfs::open(&disk.path().join("root")).unwrap();
    let base = prepare(&sn, "a", None).await;
    std::fs::write(base.join("large"), vec![7; 4 << 20]).unwrap();
    std::fs::create_dir(base.join("dir")).unwrap();
    // What is not on the disk yet has no blocks.
    sys::fs::syncfs(&base).unwrap();
    commit(&sn, "A", "a").await;
    let whole = sn.usage(&key("A")).await.unwrap();
    assert!(whole.inodes == 3 && whole.size >= 4 << 20, "{whole:?}");
    let error = std::fs::write(base.join("late"), "").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::ROFS.raw_os_error()));

    let child = prepare(&sn, "b", Some("A")).await;
    assert_eq!(sn.usage(&key("b")).await.unwrap(), Usage::default());
    std::fs::write(child.join("dir/new"), "x").unwrap();
    let changed = sn.usage(&key("b")).await.unwrap();
    assert!(changed.inodes == 2 && changed.size < 1 << 20, "{changed:?}");
    commit(&sn, "B", "b").await;
    assert!(!base.join("dir/new").exists());
    let view = sn.view(&key("v"), Some(&key("B")), Labels::new()).await;
    let view = PathBuf::from(&view.unwrap()[0].source);
    assert_eq!(std::fs::read(view.join("dir/new")).unwrap(), b"x");
    assert!(std::fs::write(view.join("dir/new"), "y").is_err());
}

#[tokio::test]
async fn a_refused_commit_leaves_the_snapshot_writable() {
    let disk = disk();
    let sn = Btrfs::open(&disk.path().join("root")).unwrap();
    let base = prepare(&sn, "a", None).await;
    let store = sn.store();
    // The name is taken between the look and the record.
    let seal = |chain: &Chain, _| {
        let usage = Subvolumes.seal(store, chain)?;
        let wanted = crate::store::Wanted {
            kind: SnapshotKind::View,
            key: key("taken"),
            parent: None,
            labels: Labels::new(),
        };
        store.create(wanted, |directory, new| {
            Subvolumes.fill(store, directory, new)
        })?;
        Ok((usage, crate::store::Durable::Now))
    };
    let unseal = |chain: &Chain| Subvolumes.unseal(store, chain);
    let names = (&key("taken"), &key("a"));
    let error = store.commit(names, None, Labels::new(), seal, unseal);
    assert!(error.unwrap_err().is_already_exists());
    std::fs::write(base.join("f"), "").unwrap();
    commit(&sn, "A", "a").await;
    assert!(std::fs::write(base.join("g"), "").is_err());
}

#[tokio::test]
async fn subvolumes_that_a_container_has_made_go_with_its_snapshot() {
    let disk = disk();
    let sn = Btrfs::open(&disk.path().join("root")).unwrap();
    let base = prepare(&sn, "a", None).await;
    let deep = base.join("x/y");
    std::fs::create_dir_all(&deep).unwrap();
    sys::btrfs::create(&base, c"one").unwrap();
    sys::btrfs::create(&deep, c"two").unwrap();
    sys::btrfs::create(&deep.join("two"), c"three").unwrap();
    std::fs::write(deep.join("two/three/file"), "x").unwrap();
    sys::btrfs::set_read_only(&deep.join("two"), true).unwrap();
    commit(&sn, "A", "a").await;
    sn.remove(&key("A")).await.unwrap();
    sn.cleanup().await.unwrap();
    assert!(!base.exists());
}

#[tokio::test]
async fn ids_are_mapped_by_changing_owners() {
    let disk = disk();
    let sn = Btrfs::open(&disk.path().join("root")).unwrap();
    let base = prepare(&sn, "a", None).await;
    std::fs::write(base.join("f"), "").unwrap();
    commit(&sn, "A", "a").await;
    let map = "0:100000:10";
    let labels = Labels::new()
        .with("containerd.io/snapshot/uidmapping", map)
        .with("containerd.io/snapshot/gidmapping", map);
    for kind in [SnapshotKind::Active, SnapshotKind::View] {
        let (name, parent, labels) = (key("m"), key("A"), labels.clone());
        let made = match kind {
            SnapshotKind::View => sn.view(&name, Some(&parent), labels).await,
            _ => sn.prepare(&name, Some(&parent), labels).await,
        };
        let layer = PathBuf::from(&made.unwrap()[0].source);
        assert_eq!(std::fs::metadata(layer.join("f")).unwrap().uid(), 100_000);
        let written = std::fs::write(layer.join("g"), "");
        assert_eq!(written.is_ok(), kind == SnapshotKind::Active);
        sn.remove(&name).await.unwrap();
    }
    assert_eq!(std::fs::metadata(base.join("f")).unwrap().uid(), 0);
}
