//! A crash at each step of each backend: whatever is left is whole, and the work can be done again.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::testing::{Disk, image};
use crate::{
    Blockfile, BlockfileConfig, Btrfs, Erofs, ErofsConfig, Native, Overlay, OverlayConfig,
};

/// Steps of a layout at which the process may die.
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

    fn seal(&self, store: &Store, chain: &Chain) -> Result<Sealed> {
        self.step();
        let usage = self.layout.seal(store, chain)?;
        self.step();
        Ok(usage)
    }

    fn unseal(&self, store: &Store, chain: &Chain) -> Result<()> {
        self.layout.unseal(store, chain)
    }

    fn sealed(&self, store: &Store, id: u64) {
        self.step();
        self.layout.sealed(store, id);
        self.step();
    }
}

/// The same snapshotter, to die at step `at`.
fn dying(sn: Local, at: u32) -> Local {
    let Inside { store, layout } = Arc::try_unwrap(sn.0).unwrap();
    let left = AtomicU32::new(at);
    Local::new(store, Dying { layout, left })
}

fn key(name: &str) -> SnapshotKey {
    name.parse().unwrap()
}

/// Prepares, writes and commits; what of it was answered.
async fn work(sn: &Local) -> Result<()> {
    let (name, active, base) = (key("top"), key("active"), key("base"));
    let mounts = sn.prepare(&active, Some(&base), Labels::new()).await?;
    {
        let mounted = sys::mount::TempMount::new(&mounts, &std::env::temp_dir())?;
        std::fs::write(mounted.path().join("file"), "new").unwrap();
    }
    sn.commit(&name, &active, Labels::new()).await
}

async fn shows(sn: &Local, parent: &str, want: &str) {
    let view = key("view");
    let mounts = sn.view(&view, Some(&key(parent)), Labels::new()).await;
    {
        let place = std::env::temp_dir();
        let mounted = sys::mount::TempMount::new(&mounts.unwrap(), &place).unwrap();
        let text = std::fs::read_to_string(mounted.path().join("file"));
        assert_eq!(text.unwrap(), want);
    }
    sn.remove(&view).await.unwrap();
}

async fn sweep(root: &Path, open: impl Fn() -> Local) {
    let sn = open();
    let mounts = sn.prepare(&key("a"), None, Labels::new()).await.unwrap();
    {
        let place = std::env::temp_dir();
        let mounted = sys::mount::TempMount::new(&mounts, &place).unwrap();
        std::fs::write(mounted.path().join("file"), "old").unwrap();
    }
    sn.commit(&key("base"), &key("a"), Labels::new())
        .await
        .unwrap();
    drop(sn);
    for at in 1..=STEPS + 1 {
        let sn = dying(open(), at);
        let done = work(&sn).await;
        assert_eq!(done.is_err(), at <= STEPS, "step {at}: {done:?}");
        drop(sn);

        let sn = open();
        assert_eq!(sn.verify(None).await.unwrap(), [], "step {at}");
        shows(&sn, "base", "old").await;
        for info in sn.list(&Filter::default()).await.unwrap() {
            match info.kind {
                SnapshotKind::Active => sn.remove(&info.name).await.unwrap(),
                _ if info.name == key("base") => {}
                _ => {
                    shows(&sn, "top", "new").await;
                    sn.remove(&info.name).await.unwrap();
                }
            }
        }
        work(&sn).await.unwrap();
        shows(&sn, "top", "new").await;
        sn.remove(&key("top")).await.unwrap();
        sn.cleanup().await.unwrap();
        let left = std::fs::read_dir(root.join("snapshots")).unwrap().count();
        assert_eq!(left, 1, "step {at} leaves something for ever");
        drop(sn);
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
    let (_temp, root) = root();
    sweep(&root, || {
        Erofs::open(&root, ErofsConfig::default()).unwrap()
    })
    .await;
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
