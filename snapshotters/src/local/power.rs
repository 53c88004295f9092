//! A power cut after an answer: what was promised to survive it does.
//!
//! The disk is a file, and what has not reached the file is gone with the power. The file system on it
//! writes nothing by itself meanwhile: what is there was flushed by us.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;

use rustix::fs::{CWD, FileType, Mode, XattrFlags};
use types::{IMPLIED_DIRECTORY, UNSETTLED_LAYER};

use super::*;
use crate::directories::NEW;
use crate::store::make_dir;
use crate::testing::Disk;
use crate::{Native, Overlay, OverlayConfig};

fn key(name: &str) -> SnapshotKey {
    name.parse().unwrap()
}

/// A root whose snapshots are on a disk. Its index is elsewhere, and what it has written is durable: no
/// flush of the index takes anything on the disk along by chance.
struct Machine {
    root: tempfile::TempDir,
    disk: Disk,
}

impl Machine {
    fn new() -> Self {
        // A flush of any directory takes all changes along on ext4.
        Self::with(Disk::new("xfs", 300, &["-q"]))
    }

    fn with(disk: Disk) -> Self {
        let root = tempfile::tempdir().unwrap();
        let snapshots = disk.path().join("snapshots");
        make_dir(&snapshots, 0o700).unwrap();
        std::os::unix::fs::symlink(snapshots, root.path().join("snapshots")).unwrap();
        Self { root, disk }
    }

    /// What it is after a power cut: of the index what was flushed into its file, not its log.
    fn after_power_cut(&self) -> Self {
        let cut = Self::with(self.disk.after_power_cut());
        let [file, ..] = crate::index_files(self.root.path());
        let [copy, ..] = crate::index_files(cut.root.path());
        std::fs::copy(file, copy).unwrap();
        cut
    }

    fn overlay(&self) -> Local {
        Overlay::open(self.root.path(), OverlayConfig::default()).unwrap()
    }
}

/// Where an overlay has the layer of a snapshot.
fn layer(sn: &Local, name: &str) -> PathBuf {
    let id = sn.0.store.row(&key(name)).unwrap().id;
    sn.0.store.directory(id).join("fs")
}

#[tokio::test]
async fn a_layer_that_was_made_alone_is_settled_before_its_row() {
    let machine = Machine::new();
    let sn = machine.overlay();
    sn.prepare(&key("a"), None, Labels::new()).await.unwrap();
    let base = layer(&sn, "a").join("d");
    std::fs::create_dir(&base).unwrap();
    std::fs::set_permissions(&base, std::fs::Permissions::from_mode(0o750)).unwrap();
    std::os::unix::fs::chown(&base, Some(9), Some(9)).unwrap();
    sn.commit(&key("base"), &key("a"), Labels::new())
        .await
        .unwrap();
    sn.prepare(&key("alone"), None, Labels::new())
        .await
        .unwrap();
    // What an unpacker leaves that does not know the parent.
    let upper = layer(&sn, "alone");
    std::fs::create_dir(upper.join("d")).unwrap();
    let flags = XattrFlags::empty();
    rustix::fs::setxattr(upper.join("d"), IMPLIED_DIRECTORY, b"y", flags).unwrap();
    let kind = FileType::CharacterDevice;
    rustix::fs::mknodat(CWD, upper.join("d/never"), kind, Mode::empty(), 0).unwrap();
    rustix::fs::setxattr(&upper, UNSETTLED_LAYER, b"y", flags).unwrap();
    sys::fs::syncfs(&upper).unwrap();

    sn.rebase(&key("top"), &key("alone"), &key("base"), Labels::new())
        .await
        .unwrap();
    let cut = machine.after_power_cut();
    let sn = cut.overlay();
    assert_eq!(sn.verify(None).await.unwrap(), []);
    let upper = layer(&sn, "top");
    let facts = std::fs::metadata(upper.join("d")).unwrap();
    assert_eq!((facts.uid(), facts.mode() & 0o7777), (9, 0o750));
    assert!(!upper.join("d/never").exists());

    // Should a layer have come here unsettled all the same, it is told.
    rustix::fs::setxattr(&upper, UNSETTLED_LAYER, b"y", flags).unwrap();
    let broken = sn.verify(None).await.unwrap();
    assert_eq!(broken.len(), 1);
    assert!(broken[0].why.contains("not settled"), "{broken:?}");
}

/// A layout that has all it makes on the disk before it gets its place.
#[derive(Debug)]
struct Eager(Box<dyn Layout>);

impl Layout for Eager {
    fn fill(&self, store: &Store, directory: &Path, new: &New<'_>) -> Result<()> {
        self.0.fill(store, directory, new)?;
        sys::fs::syncfs(directory)
    }

    fn mounts(&self, store: &Store, chain: &Chain) -> Result<Vec<Mount>> {
        self.0.mounts(store, chain)
    }

    fn usage(&self, store: &Store, chain: &Chain) -> Result<Usage> {
        self.0.usage(store, chain)
    }

    fn parts(&self, kind: SnapshotKind) -> &'static [&'static str] {
        self.0.parts(kind)
    }
}

#[tokio::test]
async fn a_row_that_anothers_flush_makes_durable_has_its_directory() {
    let machine = Machine::new();
    let Inside { store, layout, .. } = Arc::try_unwrap(machine.overlay().0).unwrap();
    let sn = Local::new(store, Eager(layout)).unwrap();
    sn.prepare(&key("a"), None, Labels::new()).await.unwrap();
    sn.commit(&key("base"), &key("a"), Labels::new())
        .await
        .unwrap();
    let id = sn.0.store.row(&key("base")).unwrap().id + 1;
    sn.prepare(&key("b"), None, Labels::new()).await.unwrap();
    sn.remove(&key("base")).await.unwrap();

    let cut = machine.after_power_cut();
    let sn = cut.overlay();
    let all = sn.list(&Filter::default()).await.unwrap();
    assert_eq!(all.len(), 1);
    assert_eq!(sn.verify(None).await.unwrap(), []);
    drop(sn);

    // Of a version that did it the other way round: the row goes, and what is half made.
    let snapshots = cut.root.path().join("snapshots");
    let half = snapshots.join(format!("{NEW}{id}"));
    std::fs::rename(snapshots.join(id.to_string()), &half).unwrap();
    let sn = cut.overlay();
    assert!(sn.stat(&key("b")).await.unwrap_err().is_not_found());
    sn.cleanup().await.unwrap();
    assert!(!half.exists());
}

#[tokio::test]
async fn what_was_written_to_a_snapshot_is_there_when_it_is_committed() {
    let machine = Machine::new();
    let sn = machine.overlay();
    let commit = async |name: &str, active: &str| {
        sn.commit(&key(name), &key(active), Labels::new())
            .await
            .unwrap();
    };
    for active in ["written", "flushed", "empty"] {
        sn.prepare(&key(active), None, Labels::new()).await.unwrap();
    }
    let file = layer(&sn, "written").join("file");
    std::fs::write(&file, "text").unwrap();
    std::fs::write(layer(&sn, "flushed").join("file"), "text").unwrap();
    // They say so, and that is all that is asked.
    sn.flushed(&key("flushed"));
    commit("a", "flushed").await;
    commit("b", "empty").await;
    let cut = machine.after_power_cut();
    let text = |sn: &Local, name| std::fs::read_to_string(layer(sn, name).join("file"));
    assert_eq!(
        text(&cut.overlay(), "a").unwrap_or_default(),
        "",
        "a commit flushes what was flushed, or of others"
    );
    commit("c", "written").await;
    let cut = machine.after_power_cut();
    assert_eq!(text(&cut.overlay(), "c").unwrap(), "text");
}

/// Who has a journal: what he has noted.
async fn noted(sn: &Local, name: &str, active: &str, parent: Option<&str>) -> Redo {
    let parent = parent.map(key);
    let labels = Labels::new().with("containerd.io/snapshot/of", name);
    sn.commit_noted(&key(name), &key(active), parent.as_ref(), labels)
        .await
        .unwrap()
        .expect("something to note")
}

/// Everything but the times.
async fn facts(sn: &Local) -> Vec<String> {
    let all = sn.list(&Filter::default()).await.unwrap();
    let mut facts = Vec::new();
    for info in all {
        let row = sn.0.store.row(&info.name).unwrap();
        let (id, usage) = (row.id, row.usage);
        facts.push(format!("{id} {usage:?} {:?} {info:?}", row.print));
    }
    facts
}

#[tokio::test]
async fn a_noted_commit_is_made_again_with_all_that_it_was() {
    let machine = Machine::new();
    let sn = machine.overlay();
    for (active, parent) in [("a", None), ("b", None)] {
        let parent: Option<&str> = parent;
        sn.prepare(&key(active), parent.map(key).as_ref(), Labels::new())
            .await
            .unwrap();
    }
    std::fs::write(layer(&sn, "a").join("file"), "text").unwrap();
    std::fs::write(layer(&sn, "b").join("other"), "text").unwrap();
    std::os::unix::fs::chown(layer(&sn, "a"), Some(7), Some(8)).unwrap();
    let mut all = vec![noted(&sn, "base", "a", None).await];
    all.push(noted(&sn, "middle", "b", Some("base")).await);
    // Of one that nobody has touched there may be nothing left.
    sn.prepare(&key("c"), Some(&key("middle")), Labels::new())
        .await
        .unwrap();
    all.push(noted(&sn, "bare", "c", None).await);
    let before = facts(&sn).await;

    let cut = machine.after_power_cut();
    // That it is nothing without the notes is what the rest of this rests on.
    let sn = cut.overlay();
    let lost = sn.stat(&key("middle")).await.unwrap_err();
    assert!(lost.is_not_found(), "{lost}");
    // In whatever order they are kept.
    all.reverse();
    for gone in [3, 0] {
        let done = sn.redo(&all).await.unwrap();
        assert_eq!((done.made, done.lost.len()), (gone, 0));
        assert_eq!(facts(&sn).await, before);
        assert_eq!(sn.verify(None).await.unwrap(), []);
    }
    let made = sn.0.store.directory(3);
    let bare = std::fs::metadata(made.join("fs")).unwrap();
    assert_eq!(
        (bare.uid(), bare.gid(), bare.mode() & 0o7777),
        (7, 8, 0o755)
    );
    let text = std::fs::read_to_string(layer(&sn, "base").join("file"));
    assert_eq!(text.unwrap(), "text");

    // Once flushed, it needs no note.
    sn.flush().await.unwrap();
    for id in 1..4 {
        assert_eq!(note::Note::read(&sn.0.store.directory(id)), None);
    }
    let again = cut.after_power_cut();
    let sn = again.overlay();
    assert_eq!(facts(&sn).await, before);
    assert_eq!(sn.verify(None).await.unwrap(), []);
    // Ids go on behind it.
    sn.prepare(&key("d"), None, Labels::new()).await.unwrap();
    assert_eq!(sn.0.store.row(&key("d")).unwrap().id, 4);
}

#[tokio::test]
async fn what_was_flushed_on_a_noted_commit_is_found_again_with_it() {
    let machine = Machine::new();
    let sn = machine.overlay();
    sn.prepare(&key("a"), None, Labels::new()).await.unwrap();
    std::fs::write(layer(&sn, "a").join("file"), "text").unwrap();
    let redo = noted(&sn, "base", "a", None).await;
    let base = key("base");
    for name in ["c", "d"] {
        sn.prepare(&key(name), Some(&base), Labels::new())
            .await
            .unwrap();
        std::fs::write(layer(&sn, name).join("own"), name).unwrap();
    }
    // As a container does with its own file.
    sys::fs::syncfs(&layer(&sn, "d")).unwrap();
    let cut = machine.after_power_cut();
    let sn = cut.overlay();
    assert!(sn.stat(&key("c")).await.unwrap_err().is_not_found());
    assert_eq!(sn.redo(&[redo]).await.unwrap().made, 1);
    sn.cleanup().await.unwrap();
    for name in ["c", "d"] {
        let info = sn.stat(&key(name)).await.unwrap();
        assert_eq!(info.parent, Some(key("base")));
        let text = std::fs::read_to_string(layer(&sn, name).join("own"));
        assert_eq!(text.unwrap(), name);
    }
}

#[tokio::test]
async fn a_noted_commit_that_was_set_aside_is_brought_back() {
    let machine = Machine::new();
    let sn = machine.overlay();
    sn.prepare(&key("a"), None, Labels::new()).await.unwrap();
    std::fs::write(layer(&sn, "a").join("file"), "text").unwrap();
    let redo = noted(&sn, "base", "a", None).await;
    let cut = machine.after_power_cut();
    let snapshots = cut.root.path().join("snapshots");
    std::fs::rename(snapshots.join("1"), snapshots.join("lost-1")).unwrap();
    let sn = cut.overlay();
    assert_eq!(sn.redo(&[redo]).await.unwrap().made, 1);
    let text = std::fs::read_to_string(layer(&sn, "base").join("file"));
    assert_eq!(text.unwrap(), "text");
    assert_eq!(sn.strangers().await.unwrap(), []);
}

#[tokio::test]
async fn a_noted_commit_whose_files_are_gone_is_told_and_not_made_empty() {
    let machine = Machine::new();
    let sn = machine.overlay();
    sn.prepare(&key("a"), None, Labels::new()).await.unwrap();
    std::fs::write(layer(&sn, "a").join("file"), "text").unwrap();
    let redo = noted(&sn, "base", "a", None).await;
    let directory = sn.0.store.directory(1);
    let cut = machine.after_power_cut();
    let here = cut.overlay().0.store.directory(1);
    assert!(here.is_dir() && here != directory);
    std::fs::remove_dir_all(&here).unwrap();
    let sn = cut.overlay();
    let mut torn = redo.clone();
    torn.text.truncate(20);
    let done = sn.redo(&[redo, torn]).await.unwrap();
    assert_eq!((done.made, done.lost.len()), (0, 2));
    let (at, error) = &done.lost[0];
    assert!(*at == 0 && error.is(types::Code::DataLoss), "{error}");
    assert!(error.to_string().contains("is gone"), "{error}");
    assert_eq!(sn.list(&Filter::default()).await.unwrap(), []);
}

#[tokio::test]
async fn a_commit_that_its_layout_makes_durable_leaves_nothing_to_note() {
    let machine = Machine::new();
    let native = Native::open(machine.root.path()).unwrap();
    native
        .prepare(&key("a"), None, Labels::new())
        .await
        .unwrap();
    let done = native
        .commit_noted(&key("base"), &key("a"), None, Labels::new())
        .await;
    assert_eq!(done.unwrap(), None);
    let cut = machine.after_power_cut();
    let native = Native::open(cut.root.path()).unwrap();
    native.stat(&key("base")).await.unwrap();
    assert_eq!(native.verify(None).await.unwrap(), []);
}

#[tokio::test]
async fn a_copy_is_on_the_disk_before_anybodys_flush_of_its_row() {
    let machine = Machine::new();
    let native = |machine: &Machine| Native::open(machine.root.path()).unwrap();
    let sn = native(&machine);
    let made = sn.prepare(&key("a"), None, Labels::new()).await.unwrap();
    std::fs::write(Path::new(&made[0].source).join("file"), "text").unwrap();
    sn.commit(&key("base"), &key("a"), Labels::new())
        .await
        .unwrap();
    sn.prepare(&key("other"), None, Labels::new())
        .await
        .unwrap();
    sn.prepare(&key("copy"), Some(&key("base")), Labels::new())
        .await
        .unwrap();
    sn.commit(&key("b"), &key("other"), Labels::new())
        .await
        .unwrap();
    let cut = machine.after_power_cut();
    let found = native(&cut).mounts(&key("copy")).await.unwrap();
    let text = std::fs::read_to_string(Path::new(&found[0].source).join("file"));
    assert_eq!(text.unwrap(), "text");
}
