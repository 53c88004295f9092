//! A file system of the test's own: one in a file, whose power can be cut, or one in memory, where
//! waiting for the disk costs nothing.
//!
//! Invariant: nothing that others write to the machine's disk slows it down or is flushed with it.
//! After [`Disk::cut`] and [`Disk::remount`] it holds what its journal holds: everything that was
//! flushed, and of the rest, what the kernel happened to have written.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{Program, need, until};

/// Size of the file, which is sparse: the smallest that `mkfs.xfs` accepts.
const SIZE: u64 = 300 << 20;

/// Kind of file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// ext4, as `mkfs.ext4` makes it.
    Ext4,
    /// XFS, as `mkfs.xfs` makes it.
    Xfs,
    /// btrfs, as `mkfs.btrfs` makes it: its power cannot be cut.
    Btrfs,
    /// A tmpfs: it knows no cuts, and ends when it is unmounted.
    Memory,
}

/// The file system, mounted.
#[derive(Debug)]
pub struct Disk {
    dir: tempfile::TempDir,
    kind: FileSystem,
    finished: bool,
}

/// Runs `work` with its own copy of the machine's mounts, on a thread of its own; what it starts shares
/// them. Nobody who makes a copy meanwhile keeps alive what `work` has unmounted.
///
/// # Panics
/// When `work` does, or without the right to make a mount namespace.
pub fn apart(work: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        #[expect(deprecated, reason = "sound without FILES, as its successor says")]
        rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNS).expect("unshare");
        let private = Program::new(need("mount")).args(["--make-rprivate", "/"]);
        drop(private.run().ok());
        work();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

impl Disk {
    /// Makes and mounts one, within [`apart`].
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn new(kind: FileSystem) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("ctd-disk-")
            .tempdir()
            .expect("make a directory");
        let disk = Self {
            dir,
            kind,
            finished: false,
        };
        let make = match kind {
            FileSystem::Ext4 => Some("mkfs.ext4"),
            FileSystem::Xfs => Some("mkfs.xfs"),
            FileSystem::Btrfs => Some("mkfs.btrfs"),
            FileSystem::Memory => None,
        };
        if let Some(make) = make {
            let file = fs::File::create(disk.file()).expect("make the file");
            file.set_len(SIZE).expect("size the file");
            let make = Program::new(need(make)).args(["-q"]).args([disk.file()]);
            drop(make.run().ok());
        }
        fs::create_dir(disk.path()).expect("make the mount point");
        disk.mount();
        disk
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    fn mount(&self) {
        let mount = Program::new(need("mount"));
        let mount = match self.kind {
            FileSystem::Memory => mount.args(["-t", "tmpfs", "tmpfs"]),
            FileSystem::Ext4 | FileSystem::Xfs | FileSystem::Btrfs => {
                mount.args(["-o", "loop"]).args([self.file()])
            }
        };
        drop(mount.args([self.path()]).run().ok());
    }

    /// Cuts the power: nothing is written from now on, not even what the journal has in memory, and
    /// every call that would have to gets an error.
    ///
    /// # Panics
    /// When the file system refuses.
    pub fn cut(&self) {
        // Without its `-f`, which would flush the log. The request is the same for ext4.
        let cut = Program::new(need("xfs_io")).args(["-x", "-c", "shutdown"]);
        drop(cut.args([self.path()]).run().ok());
    }

    /// Takes it away and mounts it again; what was mounted on it is gone then.
    ///
    /// # Panics
    /// When something still uses it, or its journal cannot be replayed.
    pub fn remount(&self) {
        self.unmount();
        self.mount();
    }

    fn unmount(&self) {
        for point in mounts_below(&self.path()) {
            drop(Program::new("umount").args(["-l"]).args([point]).run().ok());
        }
        until("the disk is unmounted", || {
            Program::new("umount").args([self.path()]).run().code == 0
        });
    }

    /// Ends it: it can be unmounted, and its loop device goes with it.
    ///
    /// # Panics
    /// When something still uses it.
    pub fn finish(mut self) {
        self.unmount();
        until("the loop device is free", || {
            let list = Program::new(need("losetup"))
                .args(["-j"])
                .args([self.file()]);
            list.run().ok().is_empty()
        });
        self.finished = true;
    }
}

impl Drop for Disk {
    /// A failed test leaves nothing mounted.
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let mut all = mounts_below(&self.path());
        all.push(self.path());
        for point in all {
            let _told = Program::new("umount").args(["-l"]).args([point]).run();
        }
    }
}

/// Mount points below `path`, the last one first.
fn mounts_below(path: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").expect("mount table");
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    let below = points.map(PathBuf::from);
    let mut below: Vec<PathBuf> = below
        .filter(|point| point != path && point.starts_with(path))
        .collect();
    below.reverse();
    below
}
