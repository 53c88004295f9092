//! Native: the suite, and that copies are independent.

use super::*;
use crate::Snapshotter;
use std::sync::Arc;
use types::{Labels, SnapshotKey};

fn key(name: &str) -> SnapshotKey {
    name.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn conforms() {
    let temp = tempfile::tempdir().unwrap();
    let sn: Arc<dyn Snapshotter> = Arc::new(Native::open(temp.path()).unwrap());
    crate::testsuite::all(&sn).await;
    sn.cleanup().await.unwrap();
    assert_eq!(
        std::fs::read_dir(temp.path().join("snapshots"))
            .unwrap()
            .count(),
        0
    );
}

#[tokio::test]
async fn a_child_is_a_copy_of_its_own() {
    let temp = tempfile::tempdir().unwrap();
    let sn = Native::open(temp.path()).unwrap();
    let mounts = sn.prepare(&key("a"), None, Labels::new()).await.unwrap();
    assert_eq!(mounts[0].options, ["rbind", "rw"]);
    std::fs::write(Path::new(&mounts[0].source).join("f"), "one").unwrap();
    sn.commit(&key("A"), &key("a"), Labels::new())
        .await
        .unwrap();
    let child = sn
        .prepare(&key("b"), Some(&key("A")), Labels::new())
        .await
        .unwrap();
    let view = sn
        .view(&key("v"), Some(&key("A")), Labels::new())
        .await
        .unwrap();
    assert_eq!(view[0].options, ["rbind", "ro"]);
    let file = Path::new(&child[0].source).join("f");
    assert_eq!(std::fs::read(&file).unwrap(), b"one");
    std::fs::write(&file, "two").unwrap();
    assert_eq!(
        std::fs::read(Path::new(&view[0].source).join("f")).unwrap(),
        b"one"
    );
    assert_eq!(sn.usage(&key("A")).await.unwrap().inodes, 2);
}

#[tokio::test]
async fn directories_without_an_index_are_not_taken_for_garbage() {
    let temp = tempfile::tempdir().unwrap();
    let sn = Native::open(temp.path()).unwrap();
    sn.prepare(&key("a"), None, Labels::new()).await.unwrap();
    drop(sn);
    let elsewhere = temp.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    for name in ["metadata.redb", "metadata.log"] {
        std::fs::rename(temp.path().join(name), elsewhere.join(name)).unwrap();
    }
    for _ in 0..2 {
        let error = Native::open(temp.path()).unwrap_err();
        assert!(error.is(types::Code::FailedPrecondition), "{error}");
    }
    std::fs::rename(
        elsewhere.join("metadata.redb"),
        temp.path().join("metadata.redb"),
    )
    .unwrap();
    let sn = Native::open(temp.path()).unwrap();
    sn.cleanup().await.unwrap();
    sn.stat(&key("a")).await.unwrap();
}

#[tokio::test]
async fn what_a_crash_left_half_made_is_in_nobodys_way() {
    let temp = tempfile::tempdir().unwrap();
    let sn = Native::open(temp.path()).unwrap();
    sn.prepare(&key("a"), None, Labels::new()).await.unwrap();
    drop(sn);
    let half = temp.path().join("snapshots/new-2");
    std::fs::create_dir(&half).unwrap();
    let sn = Native::open(temp.path()).unwrap();
    sn.prepare(&key("b"), None, Labels::new()).await.unwrap();
    sn.cleanup().await.unwrap();
    assert!(!half.exists());
    sn.stat(&key("b")).await.unwrap();
}

async fn layer(sn: &Local, name: &str) {
    let active = key("building");
    sn.prepare(&active, None, Labels::new()).await.unwrap();
    sn.commit(&key(name), &active, Labels::new()).await.unwrap();
}

#[tokio::test]
async fn a_snapshot_that_a_restored_index_has_lost_is_moved_aside_and_never_cleaned_up() {
    let temp = tempfile::tempdir().unwrap();
    let sn = Native::open(temp.path()).unwrap();
    for name in ["a", "b", "c"] {
        layer(&sn, name).await;
    }
    sn.remove(&key("b")).await.unwrap();
    drop(sn);
    // What a power cut leaves of a log that nobody flushes: all but the groups of c, and b's removal.
    let log = temp.path().join("metadata.log");
    let text = std::fs::read_to_string(&log).unwrap();
    let kept: String = text.split_inclusive('\n').take(4).collect();
    std::fs::write(&log, kept).unwrap();
    std::fs::write(temp.path().join("metadata.redb"), "").unwrap();
    let at = |name: &str| temp.path().join("snapshots").join(name);
    std::fs::create_dir(at("new-4")).unwrap();
    for _ in 0..2 {
        let sn = Native::open(temp.path()).unwrap();
        sn.cleanup().await.unwrap();
        assert!(sn.stat(&key("c")).await.unwrap_err().is_not_found());
        sn.stat(&key("b")).await.unwrap();
        assert!(at("lost-3").is_dir() && !at("3").exists());
        assert!(at("1").is_dir() && at("2").is_dir());
        assert!(!at("new-4").exists(), "what was never made is garbage");
    }
    // The highest id is a lost one's.
    let sn = Native::open(temp.path()).unwrap();
    layer(&sn, "d").await;
    assert!(at("4").is_dir());
    let lost = (at("lost-3"), false);
    assert_eq!(sn.strangers().await.unwrap(), std::slice::from_ref(&lost));
    // An index that was not restored has garbage as ever.
    sn.remove(&key("d")).await.unwrap();
    assert_eq!(sn.strangers().await.unwrap(), [(at("4"), true), lost]);
    sn.cleanup().await.unwrap();
    assert!(!at("4").exists() && at("lost-3").is_dir());
}

/// Bytes that the file system of `path` has left.
fn free(path: &Path) -> u64 {
    sys::fs::syncfs(path).unwrap();
    sys::fs::free_bytes(path).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn copies_share_their_blocks_where_the_disk_can() {
    const LARGE: usize = 48 << 20;
    for (kind, mib, args) in [
        ("xfs", 400, &["-q", "-m", "reflink=1"][..]),
        ("btrfs", 400, &["-q"]),
    ] {
        let disk = crate::testing::Disk::new(kind, mib, args);
        let made = Native::open(&disk.path().join("root")).unwrap();
        let mounts = made.prepare(&key("a"), None, Labels::new()).await.unwrap();
        let layer = Path::new(&mounts[0].source).to_owned();
        std::fs::write(layer.join("large"), vec![5; LARGE]).unwrap();
        made.commit(&key("A"), &key("a"), Labels::new())
            .await
            .unwrap();
        let before = free(disk.path());
        for n in 0..4 {
            let name = key(&format!("c{n}"));
            let mounts = made.prepare(&name, Some(&key("A")), Labels::new()).await;
            let copy = Path::new(&mounts.unwrap()[0].source).join("large");
            assert_eq!(std::fs::metadata(&copy).unwrap().len(), LARGE as u64);
        }
        let used = before.saturating_sub(free(disk.path()));
        assert!(used < LARGE as u64 / 4, "{kind}: four copies took {used}");
        // And one changes alone.
        let copy = layer.with_file_name("2").join("large");
        std::fs::write(&copy, "x").unwrap();
        assert_eq!(
            std::fs::metadata(layer.join("large")).unwrap().len(),
            LARGE as u64
        );
        for n in 0..4 {
            made.remove(&key(&format!("c{n}"))).await.unwrap();
        }
        let sn: Arc<dyn Snapshotter> = Arc::new(made);
        crate::testsuite::all(&sn).await;
    }
}

#[tokio::test]
async fn ids_are_mapped_in_the_copy() {
    use std::os::unix::fs::MetadataExt as _;
    let temp = tempfile::tempdir().unwrap();
    let sn = Native::open(temp.path()).unwrap();
    let mounts = sn.prepare(&key("a"), None, Labels::new()).await.unwrap();
    let layer = Path::new(&mounts[0].source).to_owned();
    std::fs::write(layer.join("f"), "").unwrap();
    sn.commit(&key("A"), &key("a"), Labels::new())
        .await
        .unwrap();
    let labels = Labels::new()
        .with("containerd.io/snapshot/uidmapping", "0:100000:10")
        .with("containerd.io/snapshot/gidmapping", "0:200000:10");
    let active = sn.prepare(&key("b"), Some(&key("A")), labels.clone()).await;
    let view = sn.view(&key("v"), Some(&key("A")), labels).await;
    for mounts in [active.unwrap(), view.unwrap()] {
        let facts = std::fs::metadata(Path::new(&mounts[0].source).join("f")).unwrap();
        assert_eq!((facts.uid(), facts.gid()), (100_000, 200_000));
    }
    assert_eq!(std::fs::metadata(layer.join("f")).unwrap().uid(), 0);
}
