//! What the mounts of snapshots show. Needs the right to mount.

use std::path::{Path, PathBuf};

use sys::mount::TempMount;
use types::{Code, Labels, Mount};

use super::{code, collected, key};
use crate::Snapshotter;

/// The mounts of a snapshot, at a place of their own for the time of `work`.
fn within<T>(mounts: &[Mount], work: impl FnOnce(&Path) -> T) -> T {
    let place = std::env::temp_dir();
    let mounted = TempMount::new(mounts, &place).unwrap();
    let done = work(mounted.path());
    mounted.unmount().unwrap();
    done
}

/// What the files at `path` have in them, in order of their names.
fn texts(path: &Path) -> Vec<String> {
    let names = std::fs::read_dir(path).unwrap();
    let mut names: Vec<PathBuf> = names.map(|entry| entry.unwrap().path()).collect();
    names.retain(|path| path.is_file());
    names.sort();
    let read = |path: &PathBuf| std::fs::read_to_string(path).unwrap();
    names.iter().map(read).collect()
}

/// Makes committed `name` on `parent`; `work` is done in it.
async fn filled(
    sn: &dyn Snapshotter,
    name: &str,
    parent: Option<&str>,
    work: impl FnOnce(&Path) + Send,
) {
    let active = key(&format!("{name}-active"));
    let parent = parent.map(key);
    let mounts = sn.prepare(&active, parent.as_ref(), Labels::new()).await;
    within(&mounts.unwrap(), work);
    sn.commit(&key(name), &active, Labels::new()).await.unwrap();
}

/// What a layer adds, changes and takes away is so for all on top of it, and for nobody below.
pub async fn layers_are_seen_from_above_and_never_from_below(sn: &dyn Snapshotter) {
    filled(sn, "f1", None, |path| {
        std::fs::write(path.join("changed"), "1").unwrap();
        std::fs::write(path.join("gone"), "1").unwrap();
        std::fs::create_dir(path.join("dir")).unwrap();
        std::fs::write(path.join("dir/below"), "1").unwrap();
        std::os::unix::fs::chown(path.join("dir"), Some(70_001), Some(70_002)).unwrap();
    })
    .await;
    filled(sn, "f2", Some("f1"), |path| {
        assert_eq!(texts(path), ["1", "1"]);
        std::fs::write(path.join("changed"), "2").unwrap();
        std::fs::remove_file(path.join("gone")).unwrap();
        std::fs::write(path.join("new"), "2").unwrap();
        std::fs::remove_dir_all(path.join("dir")).unwrap();
        std::fs::create_dir(path.join("dir")).unwrap();
    })
    .await;
    let (one, two) = (key("f1"), key("f2"));
    let below = sn
        .view(&key("v1"), Some(&one), Labels::new())
        .await
        .unwrap();
    within(&below, |path| {
        use std::os::unix::fs::MetadataExt as _;
        assert_eq!(texts(path), ["1", "1"]);
        assert_eq!(texts(&path.join("dir")), ["1"]);
        let facts = std::fs::metadata(path.join("dir")).unwrap();
        assert_eq!((facts.uid(), facts.gid()), (70_001, 70_002));
    });
    let above = sn
        .view(&key("v2"), Some(&two), Labels::new())
        .await
        .unwrap();
    within(&above, |path| {
        assert_eq!(texts(path), ["2", "2"]);
        assert!(!path.join("gone").exists());
        assert!(texts(&path.join("dir")).is_empty());
    });
    // Beside each other.
    let left = sn
        .prepare(&key("l"), Some(&two), Labels::new())
        .await
        .unwrap();
    let right = sn
        .prepare(&key("r"), Some(&two), Labels::new())
        .await
        .unwrap();
    within(&left, |path| {
        std::fs::write(path.join("new"), "left").unwrap();
    });
    within(&right, |path| assert_eq!(texts(path), ["2", "2"]));
    for name in ["l", "r", "v2", "v1", "f2", "f1"] {
        sn.remove(&key(name)).await.unwrap();
    }
}

/// Usage of a committed snapshot is what its files take, and does not change.
pub async fn usage_is_stored_at_commit(sn: &dyn Snapshotter) {
    const LEN: usize = 512 << 10;
    // Without any order, so that nothing makes less of it.
    let mut bits = 1_u64;
    let mut byte = || {
        bits ^= bits << 13;
        bits ^= bits >> 7;
        bits ^= bits << 17;
        bits.to_le_bytes()[0]
    };
    let data: Vec<u8> = (0..LEN).map(|_| byte()).collect();
    let mounts = sn.prepare(&key("u"), None, Labels::new()).await.unwrap();
    let empty = sn.usage(&key("u")).await.unwrap();
    within(&mounts, |path| {
        std::fs::write(path.join("one"), &data[..LEN / 2]).unwrap();
        std::fs::write(path.join("two"), &data[LEN / 2..]).unwrap();
    });
    sn.commit(&key("U"), &key("u"), Labels::new())
        .await
        .unwrap();
    let stored = sn.usage(&key("U")).await.unwrap();
    // Metadata of a file system on top, no multiple of the data.
    let len = LEN as u64;
    assert!((len..8 * len).contains(&stored.size), "{stored:?}");
    // Where files are not in one, each counts.
    let is_each = stored.inodes == empty.inodes + 2;
    assert!(is_each || stored.inodes == 1, "{empty:?} {stored:?}");
    assert_eq!(sn.usage(&key("U")).await.unwrap(), stored);
    sn.remove(&key("U")).await.unwrap();
}

/// Nothing can be written through the mounts of a view, on a parent or on none.
pub async fn views_refuse_to_be_written_to(sn: &dyn Snapshotter) {
    filled(sn, "ro", None, |path| {
        std::fs::write(path.join("f"), "1").unwrap();
    })
    .await;
    for parent in [None, Some(key("ro"))] {
        let view = sn.view(&key("v"), parent.as_ref(), Labels::new()).await;
        within(&view.unwrap(), |path| {
            for name in ["f", "g"] {
                assert!(std::fs::write(path.join(name), "2").is_err(), "{parent:?}");
            }
        });
        sn.remove(&key("v")).await.unwrap();
    }
    sn.remove(&key("ro")).await.unwrap();
}

/// Snapshots that are mounted hold nobody up: they are committed beside and removed, their keys are
/// free, and what is mounted of a parent stays readable.
pub async fn what_is_mounted_disturbs_nobody(sn: &dyn Snapshotter) {
    filled(sn, "b1", None, |path| {
        std::fs::write(path.join("f"), "1").unwrap();
    })
    .await;
    let base = key("b1");
    let view = sn
        .view(&key("v"), Some(&base), Labels::new())
        .await
        .unwrap();
    let active = sn
        .prepare(&key("x"), Some(&base), Labels::new())
        .await
        .unwrap();
    let place = std::env::temp_dir();
    let viewed = TempMount::new(&view, &place).unwrap();
    let used = TempMount::new(&active, &place).unwrap();
    std::fs::write(used.path().join("f"), "2").unwrap();
    filled(sn, "b2", Some("b1"), |path| assert_eq!(texts(path), ["1"])).await;
    assert_eq!(code(sn.remove(&base).await), Code::FailedPrecondition);
    sn.remove(&key("x")).await.unwrap();
    assert_eq!(code(sn.stat(&key("x")).await), Code::NotFound);
    // The same key is another snapshot.
    let again = sn
        .prepare(&key("x"), Some(&base), Labels::new())
        .await
        .unwrap();
    within(&again, |path| assert_eq!(texts(path), ["1"]));
    assert_eq!(texts(viewed.path()), ["1"]);
    drop(used);
    drop(viewed);
    for name in ["x", "v", "b2", "b1"] {
        sn.remove(&key(name)).await.unwrap();
    }
    collected(sn).await;
}

/// A snapshot that was made without a parent is committed onto one, where that is possible.
pub async fn what_was_made_alone_gets_a_parent(sn: &dyn Snapshotter) {
    filled(sn, "r1", None, |path| {
        std::fs::write(path.join("a"), "1").unwrap();
    })
    .await;
    let mounts = sn
        .prepare(&key("alone"), None, Labels::new())
        .await
        .unwrap();
    within(&mounts, |path| {
        std::fs::write(path.join("b"), "2").unwrap();
    });
    let (name, from, onto) = (key("r2"), key("alone"), key("r1"));
    let done = sn.rebase(&name, &from, &onto, Labels::new()).await;
    if !sn.rebases() {
        assert_eq!(code(done), Code::NotImplemented);
        for name in [from, onto] {
            sn.remove(&name).await.unwrap();
        }
        return;
    }
    done.unwrap();
    assert_eq!(sn.stat(&name).await.unwrap().parent, Some(onto.clone()));
    let view = sn
        .view(&key("v"), Some(&name), Labels::new())
        .await
        .unwrap();
    within(&view, |path| assert_eq!(texts(path), ["1", "2"]));
    for name in [key("v"), name, onto] {
        sn.remove(&name).await.unwrap();
    }
}

/// A chain of 128 layers, each with a file that is seen from the top, removed top down.
pub async fn deep_chains(sn: &dyn Snapshotter) {
    const DEPTH: usize = 128;
    for n in 0..DEPTH {
        let parent = n.checked_sub(1).map(|p| format!("chain-{p}"));
        filled(sn, &format!("chain-{n}"), parent.as_deref(), |path| {
            std::fs::write(path.join(format!("file-{n:03}")), n.to_string()).unwrap();
        })
        .await;
    }
    let top = key(&format!("chain-{}", DEPTH - 1));
    let want: Vec<_> = (0..DEPTH).map(|n| n.to_string()).collect();
    for (writable, name) in [(true, key("leaf")), (false, key("look"))] {
        let mounts = if writable {
            sn.prepare(&name, Some(&top), Labels::new()).await
        } else {
            sn.view(&name, Some(&top), Labels::new()).await
        };
        within(&mounts.unwrap(), |path| assert_eq!(texts(path), want));
        sn.remove(&name).await.unwrap();
    }
    for n in (0..DEPTH).rev() {
        sn.remove(&key(&format!("chain-{n}"))).await.unwrap();
    }
    collected(sn).await;
}
