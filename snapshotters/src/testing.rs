//! File systems of a test's own, each in a file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sys::mount::TempMount;
use sys::process::Spawn;
use types::Mount;

/// A file system that is there as long as this value.
pub(crate) struct Disk {
    mounted: Option<TempMount>,
    /// What it is in.
    file: PathBuf,
    kind: String,
    dir: tempfile::TempDir,
}

/// Option with which a file system may be mounted beside its copy.
const TWICE: &str = "nouuid";

impl Disk {
    /// Makes a file system of `mib` MiB with `mkfs.<kind>` and mounts it.
    pub(crate) fn new(kind: &str, mib: u64, args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = image(dir.path(), kind, mib, args);
        Self::of(dir, file, kind)
    }

    fn of(dir: tempfile::TempDir, file: PathBuf, kind: &str) -> Self {
        let mut options = vec!["loop".into()];
        if kind == "xfs" {
            options.push(TWICE.into());
        }
        let mount = Mount {
            kind: kind.into(),
            source: file.to_str().unwrap().into(),
            target: String::new(),
            options,
        };
        let mounted = TempMount::new(&[mount], dir.path()).unwrap();
        Self {
            mounted: Some(mounted),
            file,
            kind: kind.to_owned(),
            dir,
        }
    }

    /// The disk as it would be found had the power gone now: only what was written through to it.
    pub(crate) fn after_power_cut(&self) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cut.img");
        // What is in the file has left the file system in it, whether the file itself is flushed or not.
        crate::copy::file(&self.file, &file).unwrap();
        Self::of(dir, file, &self.kind)
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        self.mounted.as_ref().unwrap().path()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Before the directory that its file is in.
        drop(self.mounted.take());
        assert!(self.dir.path().exists());
    }
}

/// A file with an empty file system in it.
pub(crate) fn image(dir: &Path, kind: &str, mib: u64, args: &[&str]) -> PathBuf {
    let file = dir.join(format!("{kind}.img"));
    std::fs::File::create(&file)
        .unwrap()
        .set_len(mib << 20)
        .unwrap();
    let made = Spawn::new(format!("mkfs.{kind}"))
        .args(args.iter().copied())
        .arg(&file)
        .answer(&[], 4096, Duration::from_secs(60))
        .unwrap();
    assert!(made.status.is_success(), "{made:?}");
    file
}

/// Names of the directories of snapshots below a root; those that are ready are nobody's.
pub(crate) fn directories(root: &Path) -> std::collections::BTreeSet<String> {
    let names = crate::directories::listing(&root.join("snapshots")).unwrap();
    let is_ready = |name: &String| name.starts_with(crate::directories::READY);
    names.into_iter().filter(|name| !is_ready(name)).collect()
}
