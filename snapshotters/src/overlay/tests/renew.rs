//! Layers that are not what they were: noticed, and replaced under what stands on them.

use std::time::{Duration, SystemTime};

use super::*;

async fn broken(sn: &Local) -> Vec<(String, bool)> {
    let broken = sn.verify(None).await.unwrap().into_iter();
    broken.map(|it| (it.key.to_string(), it.is_gone)).collect()
}

fn file(sn: &Local, name: &str, file: &str) -> PathBuf {
    upper(sn.store(), sn.store().row(&key(name)).unwrap().id).join(file)
}

#[tokio::test]
async fn a_layer_that_lost_data_is_noticed_also_after_a_restart() {
    let temp = tempfile::tempdir().unwrap();
    let sn = open(temp.path());
    layer(&sn, "A", None, "one").await;
    layer(&sn, "B", Some("A"), "two").await;
    assert_eq!(broken(&sn).await, []);
    std::fs::write(file(&sn, "A", "one"), "").unwrap();
    drop(sn);
    let sn = open(temp.path());
    assert_eq!(broken(&sn).await, [("A".into(), false)]);
    let later = SystemTime::now() + Duration::from_secs(60);
    assert_eq!(sn.verify(Some(later)).await.unwrap(), []);
    std::fs::remove_dir_all(file(&sn, "B", "")).unwrap();
    let both = [("A".into(), false), ("B".into(), true)];
    assert_eq!(broken(&sn).await, both);
}

#[tokio::test]
async fn a_layer_is_replaced_under_its_children() {
    let temp = tempfile::tempdir().unwrap();
    let sn = open(temp.path());
    assert!(sn.renews());
    layer(&sn, "A", None, "one").await;
    layer(&sn, "B", Some("A"), "two").await;
    let top = key("B");
    let on_it = sn.prepare(&key("c"), Some(&top), Labels::new()).await;
    let on_it = on_it.unwrap();
    for name in ["A", "B"] {
        // Of the one a file is gone, of the other everything.
        match name {
            "A" => std::fs::remove_file(file(&sn, "A", "one")).unwrap(),
            _ => std::fs::remove_dir_all(file(&sn, "B", "").parent().unwrap()).unwrap(),
        }
        let parent = sn.stat(&key(name)).await.unwrap().parent;
        sn.prepare(&key("new"), parent.as_ref(), Labels::new())
            .await
            .unwrap();
        std::fs::write(
            file(&sn, "new", if name == "A" { "one" } else { "two" }),
            name,
        )
        .unwrap();
        sn.renew(&key(name), &key("new")).await.unwrap();
        assert!(sn.stat(&key("new")).await.unwrap_err().is_not_found());
    }
    sn.cleanup().await.unwrap();
    assert_eq!(broken(&sn).await, []);
    assert_eq!(directories(temp.path()).len(), 3);
    assert_eq!(sn.mounts(&key("c")).await.unwrap(), on_it);
    let place = tempfile::tempdir().unwrap();
    let mounted = TempMount::new(&on_it, place.path()).unwrap();
    for (name, text) in [("one", "A"), ("two", "B")] {
        let read = std::fs::read_to_string(mounted.path().join(name));
        assert_eq!(read.unwrap(), text);
    }
    drop(mounted);
    drop(sn);
    let sn = open(temp.path());
    assert_eq!(broken(&sn).await, []);
}

#[tokio::test]
async fn only_a_snapshot_of_the_same_parent_replaces_a_committed_one() {
    let temp = tempfile::tempdir().unwrap();
    let sn = open(temp.path());
    layer(&sn, "A", None, "one").await;
    layer(&sn, "B", Some("A"), "two").await;
    sn.prepare(&key("c"), Some(&key("B")), Labels::new())
        .await
        .unwrap();
    for (name, from, code) in [
        ("none", "c", types::Code::NotFound),
        ("A", "none", types::Code::NotFound),
        ("c", "c", types::Code::FailedPrecondition),
        ("A", "A", types::Code::FailedPrecondition),
        ("B", "c", types::Code::FailedPrecondition),
    ] {
        let error = sn.renew(&key(name), &key(from)).await.unwrap_err();
        assert!(error.is(code), "{name} from {from}: {error}");
    }
    assert_eq!(broken(&sn).await, []);
}
