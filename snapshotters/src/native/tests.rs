//! Native: the suite, and that copies are independent.

use super::*;

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
