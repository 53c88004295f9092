//! Round trips: what compare writes, apply turns into the same tree again.

use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::PathBuf;

use proptest::prelude::*;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, XattrFlags};
use sys::mount::TempMount;
use types::{Code, media_type};

use super::*;
use crate::testing::{Bench, bind, tree};

/// A change to a tree; what cannot be done is left.
#[derive(Clone, Debug)]
enum Op {
    Mkdir(String, u32),
    Write(String, u8, usize),
    Symlink(String, String),
    Link(String, String),
    Node(String, bool),
    Remove(String),
    Rename(String, String),
    Chmod(String, u32),
    Chown(String, u32),
    Xattr(String, u8),
}

fn path() -> impl Strategy<Value = String> {
    let name = proptest::sample::select(vec!["a", "b", "d\u{e9}"]);
    // Few paths, so that calls meet.
    proptest::collection::vec(name, 1..=3).prop_map(|parts| parts.join("/"))
}

fn ops(len: usize) -> impl Strategy<Value = Vec<Op>> {
    let mode = proptest::sample::select(vec![0o755, 0o700, 0o4711, 0o1777, 0o2750, 0o644]);
    let op = prop_oneof![
        4 => (path(), mode.clone()).prop_map(|(p, m)| Op::Mkdir(p, m)),
        4 => (path(), any::<u8>(), 0..5000_usize).prop_map(|(p, b, n)| Op::Write(p, b, n)),
        1 => (path(), path()).prop_map(|(p, t)| Op::Symlink(p, t)),
        2 => (path(), path()).prop_map(|(p, t)| Op::Link(p, t)),
        1 => (path(), any::<bool>()).prop_map(|(p, f)| Op::Node(p, f)),
        3 => path().prop_map(Op::Remove),
        1 => (path(), path()).prop_map(|(p, t)| Op::Rename(p, t)),
        1 => (path(), mode).prop_map(|(p, m)| Op::Chmod(p, m)),
        1 => (path(), 0..5_u32).prop_map(|(p, u)| Op::Chown(p, u)),
        1 => (path(), any::<u8>()).prop_map(|(p, v)| Op::Xattr(p, v)),
    ];
    proptest::collection::vec(op, 1..len)
}

/// Does what can be done; links inside the tree point inside it, so none is followed out of it.
fn run(root: &Path, ops: &[Op]) {
    let at = |path: &String| root.join(path);
    let is_link = |path: &PathBuf| std::fs::symlink_metadata(path).is_ok_and(|m| m.is_symlink());
    for op in ops {
        let _outcome: std::io::Result<()> = match op {
            Op::Mkdir(path, mode) => std::fs::create_dir(at(path)).and_then(|()| {
                std::fs::set_permissions(at(path), std::fs::Permissions::from_mode(*mode))
            }),
            Op::Write(path, byte, len) => std::fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                // A fifo must not be waited for.
                .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
                .open(at(path))
                .and_then(|mut file| file.write_all(&vec![*byte; *len])),
            Op::Symlink(path, to) => std::os::unix::fs::symlink(to, at(path)),
            Op::Link(path, to) => std::fs::hard_link(at(to), at(path)),
            Op::Node(path, fifo) => {
                use rustix::fs::FileType;
                let kind = if *fifo {
                    FileType::Fifo
                } else {
                    FileType::CharacterDevice
                };
                let rdev = if *fifo { 0 } else { rustix::fs::makedev(1, 3) };
                rustix::fs::mknodat(CWD, at(path), kind, Mode::RUSR, rdev).map_err(Into::into)
            }
            Op::Remove(path) => {
                std::fs::remove_dir_all(at(path)).or_else(|_| std::fs::remove_file(at(path)))
            }
            Op::Rename(path, to) => std::fs::rename(at(path), at(to)),
            Op::Chmod(path, _) if is_link(&at(path)) => Ok(()),
            Op::Chmod(path, mode) => {
                std::fs::set_permissions(at(path), std::fs::Permissions::from_mode(*mode))
            }
            Op::Chown(path, uid) => std::os::unix::fs::lchown(at(path), Some(*uid), Some(7)),
            Op::Xattr(path, value) => {
                rustix::fs::lsetxattr(at(path), "user.k", &[*value], XattrFlags::empty())
                    .map_err(Into::into)
            }
        };
    }
}

/// Sets times: of directories always the same, of other nodes (when asked) one of their own.
fn settle(root: &Path, files: bool) {
    for (n, path) in tree(root, false).into_keys().rev().enumerate() {
        let path = root.join(path);
        let is_dir = std::fs::symlink_metadata(&path).unwrap().is_dir();
        if !is_dir && !files {
            continue;
        }
        let seconds = if is_dir { 0 } else { i64::try_from(n).unwrap() };
        let time = Timespec {
            tv_sec: 1_600_000_000 + seconds,
            tv_nsec: 5,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

pub(super) async fn diff(bench: &Bench, lower: &[Mount], upper: &[Mount]) -> Descriptor {
    let opts = CompareOpts {
        media_type: media_type::OCI_LAYER.into(),
        ..CompareOpts::default()
    };
    bench
        .walking
        .compare(&bench.store, lower, upper, opts)
        .await
        .unwrap()
}

async fn round_trip(first: Vec<Op>, second: Vec<Op>) {
    let bench = Bench::new();
    let [old, new, copy] = ["old", "new", "copy"].map(|name| bench.dir(name));
    run(&old, &first);
    settle(&old, true);
    let whole = diff(&bench, &[], &bind(&old)).await;
    for to in [&new, &copy] {
        bench.apply(&whole, &bind(to)).await.unwrap();
        assert_eq!(tree(to, true), tree(&old, true), "a whole tree");
    }
    run(&new, &second);
    settle(&new, false);
    let change = diff(&bench, &bind(&old), &bind(&new)).await;
    bench.apply(&change, &bind(&copy)).await.unwrap();
    assert_eq!(tree(&copy, true), tree(&new, true), "onto a plain tree");

    let overlay = bench.overlay("upper", &[&old]);
    bench.apply(&change, &overlay).await.unwrap();
    let mounted = TempMount::new(&overlay, &bench.dir("points")).unwrap();
    assert_eq!(
        tree(mounted.path(), true),
        tree(&new, true),
        "onto an upper directory"
    );
    drop(mounted);

    // The same calls through the kernel's overlay, and both ways to compare it.
    let live = bench.overlay("live", &[&old]);
    let mounted = TempMount::new(&live, &bench.dir("points")).unwrap();
    run(mounted.path(), &second);
    let want = tree(mounted.path(), false);
    drop(mounted);
    let short = diff(&bench, &bind(&old), &live).await;
    let empty = bench.dir("empty");
    let same_lower = vec![Mount {
        options: vec![format!("lowerdir={}:{}", old.display(), empty.display())],
        ..live[0].clone()
    }];
    let long = diff(&bench, &same_lower, &live).await;
    let fresh = bench.overlay("fresh", &[&old]);
    bench.apply(&short, &fresh).await.unwrap();
    let mounted = TempMount::new(&fresh, &bench.dir("points")).unwrap();
    assert_eq!(tree(mounted.path(), false), want, "from an upper directory");
    drop(mounted);
    assert_eq!(short.digest, long.digest, "both ways give the same layer");
    assert!(bench.has_no_mounts());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn trees_survive_compare_and_apply(first in ops(40), second in ops(25)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        runtime.block_on(round_trip(first, second));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn results_are_stored_labelled_and_found_again() {
    let bench = Bench::new();
    let tree = bench.dir("t");
    std::fs::write(tree.join("f"), "text").unwrap();
    let mut diff_ids = Vec::new();
    for media in [
        "",
        media_type::OCI_LAYER_GZIP,
        media_type::OCI_LAYER_ZSTD,
        media_type::OCI_LAYER,
    ] {
        let run = || async {
            let opts = CompareOpts {
                media_type: media.into(),
                ..CompareOpts::default()
            };
            bench
                .walking
                .compare(&bench.store, &[], &bind(&tree), opts)
                .await
                .unwrap()
        };
        let layer = run().await;
        let want = if media.is_empty() {
            media_type::OCI_LAYER_GZIP
        } else {
            media
        };
        assert_eq!(layer.media_type, want);
        assert_eq!(run().await, layer, "the same trees give the same blob");
        let to = bench.dir(&format!("to{}", diff_ids.len()));
        diff_ids.push(bench.apply(&layer, &bind(&to)).await.unwrap().digest);
        assert_eq!(std::fs::read(to.join("f")).unwrap(), b"text");
    }
    diff_ids.dedup();
    assert_eq!(diff_ids.len(), 1);
    assert!(
        bench
            .store
            .statuses(&types::Filter::default())
            .await
            .unwrap()
            .is_empty()
    );
    let opts = CompareOpts {
        media_type: "text/plain".into(),
        ..CompareOpts::default()
    };
    let error = bench
        .walking
        .compare(&bench.store, &[], &bind(&tree), opts)
        .await
        .unwrap_err();
    assert!(error.is(Code::NotImplemented));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_named_ingest_starts_anew_and_failures_leave_none_of_ours() {
    let bench = Bench::new();
    let tree = bench.dir("t");
    let reference: IngestRef = "mine".parse().unwrap();
    let spec = IngestSpec {
        reference: reference.clone(),
        total: None,
        expected: None,
    };
    let mut ingest = bench.store.ingest(spec).await.unwrap();
    ingest.write(Bytes::from_static(b"leftover")).await.unwrap();
    drop(ingest);
    let opts = CompareOpts {
        reference: Some(reference),
        ..CompareOpts::default()
    };
    let layer = bench
        .walking
        .compare(&bench.store, &[], &bind(&tree), opts)
        .await
        .unwrap();
    bench.apply(&layer, &bind(&tree)).await.unwrap();
    let missing = bind(&tree.join("missing"));
    let failed = bench
        .walking
        .compare(&bench.store, &[], &missing, CompareOpts::default())
        .await;
    failed.unwrap_err();
    assert!(
        bench
            .store
            .statuses(&types::Filter::default())
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn times_are_clamped_to_the_epoch() {
    let bench = Bench::new();
    let tree = bench.dir("t");
    std::fs::write(tree.join("new"), "").unwrap();
    std::fs::write(tree.join("old"), "").unwrap();
    settle(&tree, true);
    let later = Timespec {
        tv_sec: 1_700_000_000,
        tv_nsec: 9,
    };
    let times = Timestamps {
        last_access: later,
        last_modification: later,
    };
    rustix::fs::utimensat(CWD, tree.join("new"), &times, AtFlags::empty()).unwrap();
    let epoch = UNIX_EPOCH + std::time::Duration::from_secs(1_650_000_000);
    let opts = CompareOpts {
        source_date_epoch: Some(epoch),
        ..CompareOpts::default()
    };
    let layer = bench
        .walking
        .compare(&bench.store, &[], &bind(&tree), opts)
        .await
        .unwrap();
    let to = bench.dir("to");
    bench.apply(&layer, &bind(&to)).await.unwrap();
    let mtime = |name: &str| std::fs::metadata(to.join(name)).unwrap().mtime();
    assert_eq!(mtime("new"), 1_650_000_000);
    assert!((1_600_000_000..1_600_000_010).contains(&mtime("old")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_name_of_an_old_file_keeps_all_names_together() {
    // Before, between and after the old names.
    for added in ["0", "b", "z"] {
        let bench = Bench::new();
        let [old, new, to] = ["old", "new", "to"].map(|name| bench.dir(name));
        for root in [&old, &new, &to] {
            std::fs::create_dir(root.join("d")).unwrap();
            std::fs::write(root.join("a"), "text").unwrap();
            std::fs::hard_link(root.join("a"), root.join("d/a")).unwrap();
            settle(root, true);
        }
        std::fs::hard_link(new.join("a"), new.join(added)).unwrap();
        let change = diff(&bench, &bind(&old), &bind(&new)).await;
        bench.apply(&change, &bind(&to)).await.unwrap();
        assert_eq!(tree(&to, false), tree(&new, false), "{added}");
        assert_eq!(
            std::fs::metadata(to.join("d/a")).unwrap().nlink(),
            3,
            "{added}"
        );
    }
}
