//! Overlay: the suite, the mount forms, what a crash leaves.

mod alone;
mod maps;
mod renew;

use super::*;
use crate::Snapshotter;
use crate::testing::directories;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use sys::mount::TempMount;
use types::{Filter, Labels, SnapshotKey};

fn key(name: &str) -> SnapshotKey {
    name.parse().unwrap()
}

fn open(root: &Path) -> Local {
    Overlay::open(root, OverlayConfig::default()).unwrap()
}

async fn layer(sn: &Local, name: &str, parent: Option<&str>, file: &str) {
    let active = key("building");
    sn.prepare(&active, parent.map(key).as_ref(), Labels::new())
        .await
        .unwrap();
    let id = sn.store().row(&active).unwrap().id;
    std::fs::write(upper(sn.store(), id).join(file), name).unwrap();
    sn.commit(&key(name), &active, Labels::new()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn conforms() {
    let temp = tempfile::tempdir().unwrap();
    let sn: Arc<dyn Snapshotter> = Arc::new(open(temp.path()));
    crate::testsuite::all(&sn).await;
    sn.cleanup().await.unwrap();
    assert!(directories(temp.path()).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn conforms_with_synchronous_removal_and_the_label() {
    let temp = tempfile::tempdir().unwrap();
    let config = OverlayConfig {
        upperdir_label: true,
        sync_remove: true,
        ..Default::default()
    };
    let sn: Arc<dyn Snapshotter> = Arc::new(Overlay::open(temp.path(), config).unwrap());
    crate::testsuite::all(&sn).await;
    assert!(directories(temp.path()).is_empty());
    sn.prepare(&key("a"), None, Labels::new()).await.unwrap();
    let label = sn
        .stat(&key("a"))
        .await
        .unwrap()
        .labels
        .get(UPPERDIR)
        .cloned()
        .unwrap();
    assert!(Path::new(&label).is_dir());
}

#[tokio::test]
async fn mount_forms_are_those_that_clients_parse() {
    let temp = tempfile::tempdir().unwrap();
    let config = OverlayConfig {
        mount_options: vec!["volatile".into()],
        ..Default::default()
    };
    let sn = Overlay::open(temp.path(), config).unwrap();
    let fs = |id: u64| {
        temp.path()
            .join(format!("snapshots/{id}/fs"))
            .display()
            .to_string()
    };
    let bind = sn.prepare(&key("a"), None, Labels::new()).await.unwrap();
    assert_eq!((bind[0].kind.as_str(), &bind[0].source), ("bind", &fs(1)));
    assert_eq!(bind[0].options, ["rw", "rbind"]);
    sn.commit(&key("A"), &key("a"), Labels::new())
        .await
        .unwrap();
    let view = sn
        .view(&key("v"), Some(&key("A")), Labels::new())
        .await
        .unwrap();
    assert_eq!((view[0].kind.as_str(), &view[0].source), ("bind", &fs(1)));
    assert_eq!(view[0].options, ["ro", "rbind"]);

    let overlay = sn
        .prepare(&key("b"), Some(&key("A")), Labels::new())
        .await
        .unwrap();
    let work = temp.path().join("snapshots/3/work").display().to_string();
    let mut want = Vec::new();
    if probe::has_index() {
        want.push("index=off".to_owned());
    }
    want.extend([
        format!("workdir={work}"),
        format!("upperdir={}", fs(3)),
        format!("lowerdir={}", fs(1)),
        "volatile".to_owned(),
    ]);
    assert_eq!(
        (overlay[0].kind.as_str(), overlay[0].source.as_str()),
        ("overlay", "overlay")
    );
    assert_eq!(overlay[0].options, want);
    sn.commit(&key("B"), &key("b"), Labels::new())
        .await
        .unwrap();
    let view = sn
        .view(&key("w"), Some(&key("B")), Labels::new())
        .await
        .unwrap();
    assert_eq!(
        view[0].option("lowerdir"),
        Some(format!("{}:{}", fs(3), fs(1)).as_str())
    );
    assert_eq!(view[0].option("upperdir"), None);
}

#[tokio::test]
async fn layers_stack_and_the_root_belongs_to_whom_the_parents_does() {
    let temp = tempfile::tempdir().unwrap();
    let sn = open(temp.path());
    sn.prepare(&key("a"), None, Labels::new()).await.unwrap();
    let upper = upper(sn.store(), 1);
    std::os::unix::fs::chown(&upper, Some(7), Some(8)).unwrap();
    std::fs::write(upper.join("one"), "1").unwrap();
    sn.commit(&key("A"), &key("a"), Labels::new())
        .await
        .unwrap();
    layer(&sn, "B", Some("A"), "two").await;
    let mounts = sn
        .prepare(&key("c"), Some(&key("B")), Labels::new())
        .await
        .unwrap();
    let point = temp.path().join("point");
    std::fs::create_dir(&point).unwrap();
    let mounted = TempMount::new(&mounts, &point).unwrap();
    assert_eq!(std::fs::read(mounted.path().join("one")).unwrap(), b"1");
    assert_eq!(std::fs::read(mounted.path().join("two")).unwrap(), b"B");
    let facts = std::fs::metadata(mounted.path()).unwrap();
    assert_eq!(
        (facts.uid(), facts.gid(), facts.mode() & 0o7777),
        (7, 8, 0o755)
    );
    assert!(sn.usage(&key("B")).await.unwrap().size >= 512);
}

#[tokio::test]
async fn a_killed_process_loses_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let copy = tempfile::tempdir().unwrap();
    let sn = open(temp.path());
    layer(&sn, "A", None, "f").await;
    sn.prepare(&key("kept"), Some(&key("A")), Labels::new().with("k", "v"))
        .await
        .unwrap();
    sn.prepare(&key("gone"), Some(&key("A")), Labels::new())
        .await
        .unwrap();
    sn.remove(&key("gone")).await.unwrap();
    let mounts = sn.mounts(&key("kept")).await.unwrap();
    // What is on disk now is what a killed process leaves: nothing was closed or flushed.
    crate::copy::tree(Some(temp.path()), &copy.path().join("root")).unwrap();
    let root = copy.path().join("root");
    let again = open(&root);
    let info = again.stat(&key("kept")).await.unwrap();
    assert_eq!(info.labels.get("k").map(String::as_str), Some("v"));
    assert_eq!(
        again.mounts(&key("kept")).await.unwrap().len(),
        mounts.len()
    );
    assert!(again.stat(&key("gone")).await.unwrap_err().is_not_found());
    assert_eq!(directories(&root).len(), 3);
    again.cleanup().await.unwrap();
    assert_eq!(directories(&root).len(), 2);
    // Ids go on after the highest on disk.
    again
        .prepare(&key("new"), None, Labels::new())
        .await
        .unwrap();
    assert_eq!(again.store().row(&key("new")).unwrap().id, 4);
}

#[tokio::test]
async fn a_power_cut_takes_active_snapshots_whole() {
    let temp = tempfile::tempdir().unwrap();
    {
        let sn = open(temp.path());
        layer(&sn, "A", None, "f").await;
        layer(&sn, "B", Some("A"), "g").await;
        sn.prepare(&key("half"), Some(&key("B")), Labels::new())
            .await
            .unwrap();
        std::fs::create_dir(temp.path().join("snapshots/new-77")).unwrap();
    }
    // The directory of `half` was never written to the disk.
    std::fs::remove_dir_all(temp.path().join("snapshots/3")).unwrap();
    let sn = open(temp.path());
    assert!(sn.stat(&key("half")).await.unwrap_err().is_not_found());
    sn.stat(&key("B")).await.unwrap();
    sn.cleanup().await.unwrap();
    assert_eq!(
        directories(temp.path()),
        ["1".to_owned(), "2".to_owned()].into()
    );
    // A lost layer that others stand on is not forgotten.
    drop(sn);
    std::fs::remove_dir_all(temp.path().join("snapshots/1")).unwrap();
    open(temp.path()).stat(&key("A")).await.unwrap();
}

#[tokio::test]
async fn a_torn_or_foreign_log_tail_is_cut() {
    for tail in [
        &b"{\"seq\":99,\"next\""[..],
        &[0; 512][..],
        b"garbage\n{\"seq\":3}\n",
    ] {
        let temp = tempfile::tempdir().unwrap();
        let copy = tempfile::tempdir().unwrap();
        let sn = open(temp.path());
        sn.prepare(&key("a"), None, Labels::new()).await.unwrap();
        let root = copy.path().join("root");
        crate::copy::tree(Some(temp.path()), &root).unwrap();
        let log = root.join("metadata.log");
        let mut text = std::fs::read(&log).unwrap();
        assert!(!text.is_empty());
        text.extend_from_slice(tail);
        std::fs::write(&log, text).unwrap();
        let again = open(&root);
        again.stat(&key("a")).await.unwrap();
        again.prepare(&key("b"), None, Labels::new()).await.unwrap();
        drop(again);
        assert_eq!(open(&root).list(&Filter::default()).await.unwrap().len(), 2);
    }
}

#[tokio::test]
async fn everything_is_there_after_a_reopen_and_a_second_process_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let before = {
        let sn = open(temp.path());
        layer(&sn, "A", None, "f").await;
        sn.view(&key("v"), Some(&key("A")), Labels::new())
            .await
            .unwrap();
        let second = Overlay::open(temp.path(), OverlayConfig::default()).unwrap_err();
        assert_eq!(second.code(), types::Code::Unavailable, "{second}");
        sn.list(&Filter::default()).await.unwrap()
    };
    let sn = open(temp.path());
    assert_eq!(sn.list(&Filter::default()).await.unwrap(), before);
    drop(sn);
    // The index alone holds it all: the log is for a killed process, and for a damaged index.
    for name in ["metadata.log", "metadata.copy"] {
        drop(std::fs::remove_file(temp.path().join(name)));
    }
    assert_eq!(
        open(temp.path()).list(&Filter::default()).await.unwrap(),
        before
    );
}

#[test]
fn roots_that_mount_options_cannot_carry_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let error = Overlay::open(&temp.path().join("a:b"), OverlayConfig::default()).unwrap_err();
    assert_eq!(error.code(), types::Code::InvalidArgument);
}

#[tokio::test]
async fn what_has_lost_its_files_is_named() {
    let temp = tempfile::tempdir().unwrap();
    let sn = open(temp.path());
    layer(&sn, "A", None, "f").await;
    sn.prepare(&key("a"), Some(&key("A")), Labels::new())
        .await
        .unwrap();
    sn.view(&key("v"), Some(&key("A")), Labels::new())
        .await
        .unwrap();
    assert!(sn.verify(None).await.unwrap().is_empty());
    let mounts = sn.mounts(&key("a")).await.unwrap();
    let work = mounts[0]
        .options
        .iter()
        .find_map(|o| o.strip_prefix("workdir="));
    std::fs::remove_dir_all(work.unwrap()).unwrap();
    let broken = sn.verify(None).await.unwrap();
    let [
        crate::Broken {
            key: name,
            why,
            is_gone,
        },
    ] = &broken[..]
    else {
        panic!("{broken:?}");
    };
    assert_eq!((name, is_gone), (&key("a"), &true));
    assert!(why.contains(work.unwrap()), "{why}");
}

/// The index as it is on the disk now.
fn index(root: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let files = ["metadata.redb", "metadata.log", "metadata.copy"].map(|name| root.join(name));
    let read = |path: PathBuf| Some((path.clone(), std::fs::read(path).ok()?));
    files.into_iter().filter_map(read).collect()
}

/// What was in a directory is worth more than the row that led there.
#[tokio::test]
async fn a_row_that_a_power_cut_has_taken_is_made_of_its_directory() {
    let temp = tempfile::tempdir().unwrap();
    let sn = open(temp.path());
    layer(&sn, "base", None, "file").await;
    let base = key("base");
    for gone in ["removed", "committed"] {
        sn.prepare(&key(gone), Some(&base), Labels::new())
            .await
            .unwrap();
    }
    drop(sn);
    let before = index(temp.path());
    let sn = open(temp.path());
    let mut mapped = Labels::new();
    if sn.capabilities().contains(&"remap-ids") {
        for label in crate::idmap::LABELS {
            mapped.set(label, "0:100000:65536");
        }
    }
    let made = sn.prepare(&key("ns/7/a"), Some(&base), mapped).await;
    let made = made.unwrap();
    let id = sn.store().row(&key("ns/7/a")).unwrap().id;
    std::fs::write(upper(sn.store(), id).join("data"), "fsynced").unwrap();
    sn.view(&key("v"), Some(&base), Labels::new())
        .await
        .unwrap();
    // One that stands on what the cut takes as well.
    layer(&sn, "late", Some("base"), "other").await;
    sn.prepare(&key("b"), Some(&key("late")), Labels::new())
        .await
        .unwrap();
    drop(sn);
    for (path, bytes) in &before {
        std::fs::write(path, bytes).unwrap();
    }
    let sn = open(temp.path());
    let all = sn.list(&Filter::default()).await.unwrap();
    let facts: Vec<_> = all.iter().map(|i| (i.name.as_str(), i.kind)).collect();
    let active = SnapshotKind::Active;
    let want = [
        ("base", SnapshotKind::Committed),
        ("committed", active),
        ("ns/7/a", active),
        ("removed", active),
        ("v", SnapshotKind::View),
    ];
    assert_eq!(facts, want);
    assert_eq!(sn.mounts(&key("ns/7/a")).await.unwrap(), made);
    sn.cleanup().await.unwrap();
    let data = std::fs::read_to_string(upper(sn.store(), id).join("data"));
    assert_eq!(data.unwrap(), "fsynced");
    // No id is given again, and what was removed or committed does not come back.
    sn.prepare(&key("new"), None, Labels::new()).await.unwrap();
    assert!(sn.store().row(&key("new")).unwrap().id > id);
    let committed = sn.store().row(&key("committed")).unwrap().id;
    sn.commit(&key("top"), &key("committed"), Labels::new())
        .await
        .unwrap();
    let removed = sn.store().row(&key("removed")).unwrap().id;
    sn.remove(&key("removed")).await.unwrap();
    for id in [committed, removed] {
        let directory = sn.store().directory(id);
        assert!(directory.exists());
        assert_eq!(crate::note::Note::read(&directory), None);
    }
}

#[tokio::test]
async fn a_layer_made_alone_is_committed_onto_its_parent_as_if_made_there() {
    let temp = tempfile::tempdir().unwrap();
    let sn = open(temp.path());
    assert!(sn.rebases());
    layer(&sn, "base", None, "f").await;
    let base = upper(sn.store(), sn.store().row(&key("base")).unwrap().id);
    std::os::unix::fs::chown(&base, Some(7), Some(8)).unwrap();
    sn.prepare(&key("alone"), None, Labels::new())
        .await
        .unwrap();
    let upper = upper(sn.store(), sn.store().row(&key("alone")).unwrap().id);
    let whiteout = |name: &str| {
        let (kind, mode) = (
            rustix::fs::FileType::CharacterDevice,
            rustix::fs::Mode::empty(),
        );
        rustix::fs::mknodat(rustix::fs::CWD, upper.join(name), kind, mode, 0).unwrap();
    };
    whiteout("f");
    whiteout("never");
    let mark = |attribute| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(&upper, attribute, b"y", flags).unwrap();
    };
    mark(types::UNSETTLED_LAYER);
    let rebase = async |name: &str, from: &str, onto: &str| {
        let (name, from, onto) = (key(name), key(from), key(onto));
        sn.rebase(&name, &from, &onto, Labels::new()).await
    };
    for (from, onto, code) in [
        ("alone", "none", types::Code::NotFound),
        ("alone", "alone", types::Code::InvalidArgument),
        ("none", "base", types::Code::NotFound),
        ("base", "base", types::Code::FailedPrecondition),
    ] {
        let error = rebase("top", from, onto).await.unwrap_err();
        assert!(error.is(code), "{from} onto {onto}: {error}");
    }
    // What was settled on one parent, and not committed, is of no use on another.
    layer(&sn, "other-base", None, "f").await;
    let base_id = sn.store().row(&key("other-base")).unwrap().id;
    let directory = upper.parent().unwrap();
    crate::note::settle(directory, Some(base_id)).unwrap();
    let error = rebase("top", "alone", "base").await.unwrap_err();
    assert!(error.is(types::Code::FailedPrecondition), "{error}");
    upper.join("never").symlink_metadata().unwrap();
    crate::note::settled(directory);
    rebase("top", "alone", "base").await.unwrap();
    let facts = std::fs::metadata(&upper).unwrap();
    assert_eq!((facts.uid(), facts.gid()), (7, 8));
    let names = std::fs::read_dir(&upper).unwrap();
    let names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["f"], "only what hides something stays");
    let top = sn.stat(&key("top")).await.unwrap();
    assert_eq!(top.parent, Some(key("base")));
    assert!(
        sn.remove(&key("base"))
            .await
            .is_err_and(|e| e.is(types::Code::FailedPrecondition))
    );
    // Made on one parent it is not committed onto another.
    sn.prepare(&key("more"), Some(&key("top")), Labels::new())
        .await
        .unwrap();
    let error = rebase("other", "more", "base").await.unwrap_err();
    assert!(error.is(types::Code::FailedPrecondition), "{error}");
    rebase("other", "more", "top").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn conforms_with_marks_in_user_attributes() {
    let temp = tempfile::tempdir().unwrap();
    let config = OverlayConfig {
        mount_options: vec!["userxattr".into()],
        ..Default::default()
    };
    let made = Overlay::open(temp.path(), config).unwrap();
    assert!(!made.rebases());
    let sn: Arc<dyn Snapshotter> = Arc::new(made);
    crate::testsuite::all(&sn).await;
}

#[tokio::test]
async fn mounts_that_are_left_in_a_removed_snapshot_are_taken_out_and_not_emptied() {
    let temp = tempfile::tempdir().unwrap();
    let config = OverlayConfig {
        sync_remove: true,
        ..Default::default()
    };
    let sn = Overlay::open(&temp.path().join("root"), config).unwrap();
    let mounts = sn.prepare(&key("a"), None, Labels::new()).await.unwrap();
    let outside = temp.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("canary"), "").unwrap();
    let point = Path::new(&mounts[0].source).join("d/point");
    std::fs::create_dir_all(&point).unwrap();
    sys::mount::mount_all(&bind_of(&outside), &point).unwrap();
    sn.remove(&key("a")).await.unwrap();
    assert!(outside.join("canary").exists());
    assert!(directories(&temp.path().join("root")).is_empty());
}

fn bind_of(path: &Path) -> Vec<Mount> {
    crate::store::bind(path, ["rw", "rbind"])
}
