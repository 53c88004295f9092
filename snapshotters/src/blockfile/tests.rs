//! Blockfile: the suite, and what is in the files.

use super::*;
use crate::Snapshotter;
use crate::testing::image;
use std::sync::Arc;
use sys::mount::TempMount;
use types::{Labels, SnapshotKey};

fn key(name: &str) -> SnapshotKey {
    name.parse().unwrap()
}

fn config(dir: &Path, fs_type: &str, mib: u64, args: &[&str]) -> BlockfileConfig {
    BlockfileConfig {
        scratch_file: Some(image(dir, fs_type, mib, args)),
        fs_type: fs_type.to_owned(),
        ..BlockfileConfig::default()
    }
}

/// With the snapshot mounted.
fn within<T>(mounts: &[Mount], work: impl FnOnce(&Path) -> T) -> T {
    let point = tempfile::tempdir().unwrap();
    let mounted = TempMount::new(mounts, point.path()).unwrap();
    let done = work(mounted.path());
    mounted.unmount().unwrap();
    done
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn conforms() {
    let temp = tempfile::tempdir().unwrap();
    let config = config(temp.path(), "ext4", 8, &["-q"]);
    let root = temp.path().join("root");
    let sn: Arc<dyn Snapshotter> = Arc::new(Blockfile::open(&root, config).unwrap());
    crate::testsuite::all(&sn).await;
    sn.cleanup().await.unwrap();
    assert_eq!(
        std::fs::read_dir(root.join("snapshots")).unwrap().count(),
        0
    );
}

#[tokio::test]
async fn layers_are_file_systems_of_the_configured_type() {
    for (fs_type, mib, args) in [("ext4", 8, &["-q"]), ("xfs", 320, &["-q"])] {
        let temp = tempfile::tempdir().unwrap();
        let mut config = config(temp.path(), fs_type, mib, args);
        config.mount_options = vec!["noatime".into()];
        let sn = Blockfile::open(&temp.path().join("root"), config).unwrap();
        let mounts = sn.prepare(&key("a"), None, Labels::new()).await.unwrap();
        assert_eq!(mounts[0].kind, fs_type);
        assert_eq!(mounts[0].options, ["noatime", "loop", "rw"]);
        within(&mounts, |path| {
            std::fs::write(path.join("f"), "one").unwrap();
        });
        sn.commit(&key("A"), &key("a"), Labels::new())
            .await
            .unwrap();
        let child = sn
            .prepare(&key("b"), Some(&key("A")), Labels::new())
            .await
            .unwrap();
        within(&child, |path| {
            std::fs::write(path.join("f"), "two").unwrap();
        });
        let view = sn
            .view(&key("v"), Some(&key("A")), Labels::new())
            .await
            .unwrap();
        assert_eq!(view[0].options, ["noatime", "loop", "ro"]);
        within(&view, |path| {
            assert_eq!(std::fs::read(path.join("f")).unwrap(), b"one");
            assert!(std::fs::write(path.join("g"), "").is_err());
        });
        let usage = sn.usage(&key("A")).await.unwrap();
        assert!(
            usage.size > 0 && usage.size < mib << 20,
            "holes are filled: {usage:?}"
        );
    }
}

#[tokio::test]
async fn the_scratch_file_is_taken_once_or_as_configured() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("root");
    let none = Blockfile::open(&root, BlockfileConfig::default()).unwrap_err();
    assert!(none.is(types::Code::NotImplemented), "{none}");
    let given = temp.path().join("given");
    for (text, recreate_scratch, want) in [("1", false, "1"), ("2", false, "1"), ("3", true, "3")] {
        std::fs::write(&given, text).unwrap();
        let config = BlockfileConfig {
            scratch_file: Some(given.clone()),
            recreate_scratch,
            ..BlockfileConfig::default()
        };
        drop(Blockfile::open(&root, config).unwrap());
        assert_eq!(std::fs::read_to_string(root.join(SCRATCH)).unwrap(), want);
    }
    // The root has one.
    drop(Blockfile::open(&root, BlockfileConfig::default()).unwrap());
}

#[tokio::test]
async fn ids_cannot_be_mapped_and_nobody_ignores_that() {
    let temp = tempfile::tempdir().unwrap();
    let config = config(temp.path(), "ext4", 8, &["-q"]);
    let sn = Blockfile::open(&temp.path().join("root"), config).unwrap();
    let labels = Labels::new()
        .with("containerd.io/snapshot/uidmapping", "0:1:1")
        .with("containerd.io/snapshot/gidmapping", "0:1:1");
    let error = sn.prepare(&key("a"), None, labels).await.unwrap_err();
    assert!(error.is(types::Code::NotImplemented), "{error}");
    assert!(sn.capabilities().is_empty());
}

#[tokio::test]
async fn what_is_still_mounted_is_committed_when_it_is_given_up() {
    let temp = tempfile::tempdir().unwrap();
    let config = config(temp.path(), "ext4", 8, &["-q"]);
    let sn = Blockfile::open(&temp.path().join("root"), config).unwrap();
    let mounts = sn.prepare(&key("a"), None, Labels::new()).await.unwrap();
    let point = tempfile::tempdir().unwrap();
    let mounted = TempMount::new(&mounts, point.path()).unwrap();
    std::fs::write(mounted.path().join("f"), "one").unwrap();

    let name = key("A");
    let active = key("a");
    let commit = sn.commit(&name, &active, Labels::new());
    let give_up = async {
        tokio::task::yield_now().await;
        tokio::task::spawn_blocking(move || mounted.unmount().unwrap())
            .await
            .unwrap();
    };
    let (done, ()) = tokio::join!(commit, give_up);
    done.unwrap();
    let view = sn
        .view(&key("v"), Some(&key("A")), Labels::new())
        .await
        .unwrap();
    within(&view, |path| {
        assert_eq!(std::fs::read(path.join("f")).unwrap(), b"one");
    });
}

#[test]
fn what_stays_mounted_is_named() {
    let temp = tempfile::tempdir().unwrap();
    let file = image(temp.path(), "ext4", 8, &["-q"]);
    let opts = sys::loopdev::LoopOpts {
        autoclear: true,
        ..Default::default()
    };
    let device = sys::loopdev::LoopDevice::attach(&file, opts).unwrap();
    let error = given_up(&file, Duration::ZERO).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains(&device.path().display().to_string()),
        "{text}"
    );
    assert!(error.is(types::Code::FailedPrecondition), "{text}");
}

#[tokio::test]
async fn a_file_that_was_cut_is_named() {
    let temp = tempfile::tempdir().unwrap();
    let config = config(temp.path(), "ext4", 8, &["-q"]);
    let sn = Blockfile::open(&temp.path().join("root"), config).unwrap();
    sn.prepare(&key("a"), None, Labels::new()).await.unwrap();
    sn.commit(&key("A"), &key("a"), Labels::new())
        .await
        .unwrap();
    assert_eq!(sn.verify(None).await.unwrap(), []);
    let id = sn.store().row(&key("A")).unwrap().id;
    let block = std::fs::OpenOptions::new()
        .write(true)
        .open(block(sn.store(), id));
    block.unwrap().set_len(4 << 20).unwrap();
    let broken = sn.verify(None).await.unwrap();
    assert!(
        broken.len() == 1 && broken[0].key == key("A") && !broken[0].is_gone,
        "{broken:?}"
    );
}
