//! A crash at each step of each backend: whatever is left is whole, and the work can be done again.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::storage::Sealed;
use crate::testing::{Disk, directories, image};
use crate::{
    Blockfile, BlockfileConfig, Btrfs, Erofs, ErofsConfig, Native, Overlay, OverlayConfig,
};

/// Steps of every layout at which the process may die.
const STEPS: u32 = 7;

/// A layout whose process dies at the step of that number: nothing of ours runs after it.
#[derive(Debug)]
struct Dying {
    layout: Box<dyn Layout>,
    left: AtomicU32,
}

impl Dying {
    fn step(&self) {
        if self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            std::panic::resume_unwind(Box::new("killed"));
        }
    }
}

impl Layout for Dying {
    fn fill(&self, store: &Store, directory: &Path, new: &New<'_>) -> Result<()> {
        self.step();
        self.layout.fill(store, directory, new)?;
        self.step();
        Ok(())
    }

    fn mounts(&self, store: &Store, chain: &Chain) -> Result<Vec<Mount>> {
        self.step();
        self.layout.mounts(store, chain)
    }

    fn usage(&self, store: &Store, chain: &Chain) -> Result<Usage> {
        self.layout.usage(store, chain)
    }

    fn parts(&self, kind: SnapshotKind) -> &'static [&'static str] {
        self.layout.parts(kind)
    }

    fn loose(&self, store: &Store, id: u64) -> Option<PathBuf> {
        self.layout.loose(store, id)
    }

    fn seal(&self, store: &Store, chain: &Chain) -> Result<Sealed> {
        self.step();
        let usage = self.layout.seal(store, chain)?;
        self.step();
        Ok(usage)
    }

    fn unseal(&self, store: &Store, chain: &Chain) -> Result<()> {
        self.layout.unseal(store, chain)
    }

    fn rebases(&self) -> bool {
        self.layout.rebases()
    }

    fn settle(&self, store: &Store, id: u64, parents: &[u64]) -> Result<()> {
        self.step();
        self.layout.settle(store, id, parents)?;
        self.step();
        Ok(())
    }

    fn sealed(&self, store: &Store, id: u64) {
        self.step();
        self.layout.sealed(store, id);
        self.step();
    }
}

/// The same snapshotter, to die at step `at`.
fn dying(sn: Local, at: u32) -> Local {
    let Inside { store, layout, .. } = Arc::try_unwrap(sn.0).unwrap();
    let left = AtomicU32::new(at);
    Local::new(store, Dying { layout, left }).unwrap()
}

fn key(name: &str) -> SnapshotKey {
    name.parse().unwrap()
}

/// What is done to the files that `mounts` show.
fn within<T>(mounts: &[Mount], work: impl FnOnce(&Path) -> T) -> T {
    let mounted = sys::mount::TempMount::new(mounts, &std::env::temp_dir()).unwrap();
    work(mounted.path())
}

fn write(mounts: &[Mount], text: &str) {
    within(mounts, |path| {
        std::fs::write(path.join("file"), text).unwrap();
    });
}

/// Prepares, writes and commits, on a parent and where possible onto one; what of it was answered.
async fn work(sn: &Local) -> Result<()> {
    let (name, active, base) = (key("top"), key("active"), key("base"));
    let mounts = sn.prepare(&active, Some(&base), Labels::new()).await?;
    write(&mounts, "new");
    sn.commit(&name, &active, Labels::new()).await?;
    if !sn.rebases() {
        return Ok(());
    }
    let (name, active) = (key("side"), key("alone"));
    let mounts = sn.prepare(&active, None, Labels::new()).await?;
    write(&mounts, "new");
    // As an unpacker leaves it that does not know the parent.
    let layer = Path::new(&mounts[0].source);
    std::fs::create_dir(layer.join("dir")).unwrap();
    mark(&layer.join("dir"), types::IMPLIED_DIRECTORY);
    mark(layer, types::UNSETTLED_LAYER);
    sn.rebase(&name, &active, &base, Labels::new()).await
}

fn mark(path: &Path, attribute: &str) {
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(path, attribute, b"y", flags).unwrap();
}

/// Looks at a committed snapshot from above.
async fn shows(sn: &Local, parent: &str, want: &str) {
    let view = key("view");
    let mounts = sn.view(&view, Some(&key(parent)), Labels::new()).await;
    within(&mounts.unwrap(), |path| {
        let text = std::fs::read_to_string(path.join("file"));
        assert_eq!(text.unwrap(), want, "{parent}");
        let mode = std::fs::metadata(path.join("dir")).unwrap().permissions();
        assert_eq!(mode.mode() & 0o7777, 0o750, "{parent}");
    });
    sn.remove(&view).await.unwrap();
}

/// An active snapshot that a crash has left can be used, and committed, and is what it was to be.
async fn goes_on(sn: &Local, info: &SnapshotInfo) {
    let name = key("later");
    let mounts = sn.mounts(&info.name).await.unwrap();
    write(&mounts, "later");
    let base = key("base");
    let done = match info.parent {
        Some(_) => sn.commit(&name, &info.name, Labels::new()).await,
        None => sn.rebase(&name, &info.name, &base, Labels::new()).await,
    };
    done.unwrap();
    // One that died before it was written to has no directory of its own.
    shows(sn, "later", "later").await;
    sn.remove(&name).await.unwrap();
}

async fn sweep(root: &Path, open: impl Fn() -> Local) {
    let sn = open();
    let mounts = sn.prepare(&key("a"), None, Labels::new()).await.unwrap();
    write(&mounts, "old");
    within(&mounts, |path| {
        let dir = path.join("dir");
        std::fs::create_dir(&dir).unwrap();
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o750)).unwrap();
    });
    sn.commit(&key("base"), &key("a"), Labels::new())
        .await
        .unwrap();
    drop(sn);
    for at in 1.. {
        let sn = dying(open(), at);
        let done = work(&sn).await;
        drop(sn);

        let sn = open();
        assert_eq!(sn.verify(None).await.unwrap(), [], "step {at}");
        shows(&sn, "base", "old").await;
        for info in sn.list(&Filter::default()).await.unwrap() {
            match info.kind {
                SnapshotKind::Active => goes_on(&sn, &info).await,
                _ if info.name == key("base") => {}
                _ => {
                    shows(&sn, info.name.as_str(), "new").await;
                    sn.remove(&info.name).await.unwrap();
                }
            }
        }
        work(&sn).await.unwrap();
        shows(&sn, "top", "new").await;
        sn.remove(&key("top")).await.unwrap();
        if sn.rebases() {
            shows(&sn, "side", "new").await;
            sn.remove(&key("side")).await.unwrap();
        }
        sn.cleanup().await.unwrap();
        let left = directories(root).len();
        assert_eq!(left, 1, "step {at} leaves something for ever");
        if done.is_ok() {
            assert!(at > STEPS, "it lived through step {at}: {done:?}");
            break;
        }
    }
    let sn = open();
    sn.remove(&key("base")).await.unwrap();
    sn.cleanup().await.unwrap();
}

fn root() -> (tempfile::TempDir, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("root");
    (temp, root)
}

#[tokio::test]
async fn overlay_survives_a_crash_at_each_step() {
    let (_temp, root) = root();
    sweep(&root, || {
        Overlay::open(&root, OverlayConfig::default()).unwrap()
    })
    .await;
}

#[tokio::test]
async fn native_survives_a_crash_at_each_step() {
    let (_temp, root) = root();
    sweep(&root, || Native::open(&root).unwrap()).await;
}

#[tokio::test]
async fn erofs_survives_a_crash_at_each_step() {
    // On a file system that can make a file immutable.
    let disk = Disk::new("ext4", 64, &["-q"]);
    let root = disk.path().join("root");
    let config = ErofsConfig {
        set_immutable: true,
        ..ErofsConfig::default()
    };
    sweep(&root, || Erofs::open(&root, config.clone()).unwrap()).await;
}

#[tokio::test]
async fn btrfs_survives_a_crash_at_each_step() {
    let disk = Disk::new("btrfs", 256, &["-q"]);
    let root = disk.path().join("root");
    sweep(&root, || Btrfs::open(&root).unwrap()).await;
}

#[tokio::test]
async fn blockfile_survives_a_crash_at_each_step() {
    let (temp, root) = root();
    let config = BlockfileConfig {
        scratch_file: Some(image(temp.path(), "ext4", 8, &["-q"])),
        ..BlockfileConfig::default()
    };
    sweep(&root, || Blockfile::open(&root, config.clone()).unwrap()).await;
}

/// A layout during whose settling somebody tries to take the parent away.
#[derive(Debug)]
struct Contested(Box<dyn Layout>);

impl Layout for Contested {
    fn fill(&self, store: &Store, directory: &Path, new: &New<'_>) -> Result<()> {
        self.0.fill(store, directory, new)
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

    fn rebases(&self) -> bool {
        true
    }

    fn settle(&self, store: &Store, id: u64, parents: &[u64]) -> Result<()> {
        let removed = store.remove(&key("base"));
        assert!(removed.is_err_and(|e| e.is(types::Code::FailedPrecondition)));
        self.0.settle(store, id, parents)
    }
}

#[tokio::test]
async fn a_parent_stays_while_something_is_settled_on_it() {
    let (_temp, root) = root();
    let sn = Overlay::open(&root, OverlayConfig::default()).unwrap();
    let Inside { store, layout, .. } = Arc::try_unwrap(sn.0).unwrap();
    let sn = Local::new(store, Contested(layout)).unwrap();
    for (name, parent) in [("base", None), ("top", Some("base"))] {
        let (name, active) = (key(name), key("active"));
        sn.prepare(&active, None, Labels::new()).await.unwrap();
        match parent.map(key) {
            Some(parent) => sn.rebase(&name, &active, &parent, Labels::new()).await,
            None => sn.commit(&name, &active, Labels::new()).await,
        }
        .unwrap();
    }
    // It is held by nothing but the row in the end.
    for name in ["top", "base"] {
        sn.remove(&key(name)).await.unwrap();
    }
}
