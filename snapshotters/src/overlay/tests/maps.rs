//! Layers whose ids are mapped.

use super::*;
use stack::Remaps;

/// The labels that map the container's ids to those from 100000 on.
fn mapped() -> Labels {
    let map = "0:100000:65536";
    Labels::new()
        .with("containerd.io/snapshot/uidmapping", map)
        .with("containerd.io/snapshot/gidmapping", map)
}

/// Owner and group of what is at `path` below the mounts.
fn owner(mounts: &[Mount], path: &str) -> (u32, u32) {
    let place = tempfile::tempdir().unwrap();
    let mounted = TempMount::new(mounts, place.path()).unwrap();
    let facts = std::fs::symlink_metadata(mounted.path().join(path)).unwrap();
    (facts.uid(), facts.gid())
}

/// A snapshotter that maps ids so, over two layers with a file each.
async fn mapping(root: &Path, remaps: Remaps) -> Local {
    let layers = Layers {
        stack: Stack {
            remaps,
            userxattr: false,
            leading: vec!["index=off".to_owned()],
            ..Stack::unused()
        },
        upperdir_label: false,
    };
    let sn = Local::new(Store::open(root, keeping(true)).unwrap(), layers).unwrap();
    layer(&sn, "A", None, "one").await;
    layer(&sn, "B", Some("A"), "two").await;
    sn
}

#[tokio::test]
async fn id_mappings_that_nobody_can_make_are_refused_and_not_ignored() {
    let temp = tempfile::tempdir().unwrap();
    let sn = mapping(temp.path(), Remaps::Never).await;
    assert_eq!(sn.capabilities(), ["rebase"]);
    let error = sn.prepare(&key("a"), Some(&key("B")), mapped()).await;
    assert_eq!(error.unwrap_err().code(), types::Code::NotImplemented);
    let bad = Labels::new().with("containerd.io/snapshot/uidmapping", "0:0:1");
    let error = sn.prepare(&key("a"), None, bad).await.unwrap_err();
    assert_eq!(error.code(), types::Code::InvalidArgument, "{error}");
    assert_eq!(directories(temp.path()).len(), 2);
}

#[tokio::test]
async fn ids_are_mapped_by_copies_where_the_kernel_cannot() {
    let temp = tempfile::tempdir().unwrap();
    let sn = mapping(temp.path(), Remaps::Copies).await;
    assert_eq!(sn.capabilities(), ["remap-ids", "rebase"]);
    let (top, bottom) = (key("B"), key("A"));
    let active = sn.prepare(&key("a"), Some(&top), mapped()).await.unwrap();
    let view = sn.view(&key("v"), Some(&bottom), mapped()).await.unwrap();
    let alone = sn.prepare(&key("n"), None, mapped()).await.unwrap();
    for (mounts, path) in [
        (&active, ""),
        (&active, "one"),
        (&active, "two"),
        (&view, ""),
        (&view, "one"),
        (&alone, ""),
    ] {
        assert_eq!(owner(mounts, path), (100_000, 100_000), "{mounts:?} {path}");
    }
    assert_eq!(view[0].option("upperdir"), None);
    assert_eq!(sn.mounts(&key("v")).await.unwrap(), view);
    // The layers themselves are as they were.
    let plain = sn.view(&key("w"), Some(&top), Labels::new()).await.unwrap();
    assert_eq!(owner(&plain, "one"), (0, 0));
    for name in ["a", "v", "n", "w", "B", "A"] {
        sn.remove(&key(name)).await.unwrap();
    }
    assert!(directories(temp.path()).is_empty());
}

#[tokio::test]
async fn mounts_of_layers_that_the_kernel_maps_say_how() {
    let temp = tempfile::tempdir().unwrap();
    let sn = mapping(temp.path(), Remaps::Kernel).await;
    let active = sn.prepare(&key("a"), Some(&key("B")), mapped()).await;
    let active = active.unwrap();
    let names: Vec<_> = active[0]
        .options
        .iter()
        .map(|o| o.split('=').next().unwrap())
        .collect();
    let want = [
        "index", "uidmap", "gidmap", "workdir", "upperdir", "lowerdir",
    ];
    assert_eq!(names, want);
    assert_eq!(active[0].option("uidmap"), Some("0:100000:65536"));
    let own = upper(sn.store(), sn.store().row(&key("a")).unwrap().id);
    assert_eq!(std::fs::metadata(own).unwrap().uid(), 100_000);
    let view = sn.view(&key("v"), Some(&key("A")), mapped()).await.unwrap();
    let want = [
        "uidmap=0:100000:65536",
        "gidmap=0:100000:65536",
        "ro",
        "rbind",
    ];
    assert_eq!(view[0].options, want);
    // Nothing below: the directory belongs to the container's root, there is nothing to map.
    let alone = sn.prepare(&key("n"), None, mapped()).await.unwrap();
    assert_eq!(alone[0].options, ["rw", "rbind"]);
}

#[tokio::test]
async fn a_snapshot_whose_ids_the_kernel_maps_is_read_and_written_by_the_mapped_root() {
    let temp = tempfile::tempdir().unwrap();
    let sn = open(temp.path());
    assert!(
        sn.capabilities().contains(&"remap-ids"),
        "this kernel maps ids"
    );
    layer(&sn, "A", None, "one").await;
    layer(&sn, "B", Some("A"), "two").await;
    let active = sn
        .prepare(&key("a"), Some(&key("B")), mapped())
        .await
        .unwrap();
    for path in ["", "one", "two"] {
        assert_eq!(owner(&active, path), (100_000, 100_000), "{path}");
    }
    let view = sn.view(&key("v"), Some(&key("A")), mapped()).await.unwrap();
    assert_eq!(owner(&view, "one"), (100_000, 100_000));
    let plain = sn
        .view(&key("w"), Some(&key("B")), Labels::new())
        .await
        .unwrap();
    assert_eq!(owner(&plain, "one"), (0, 0));
}
