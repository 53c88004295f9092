//! The btrfs snapshotter: every snapshot is a subvolume that shares what it has not changed.
//!
//! ```text
//!   <root>/snapshots/<id>/fs   the subvolume, read-only once it is committed
//! ```
//! Invariant: a committed subvolume cannot be written to. What a snapshot takes is found by walking
//! beside its parent, not from quota groups, which a file system has only where they were turned on
//! and which cost every write.

use std::ffi::CString;
use std::fs::Permissions;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use types::{Error, Mount, Result, SnapshotKind, Usage};

use crate::idmap::IdMaps;
use crate::local::{Layout, Local, New};
use crate::storage::{Chain, Sealed};
use crate::store::{Keeping, Notes, Store, absolute, bind};
use crate::tree::{self, Entry, Failure, Visitor, at, open_deep};

/// Name of the subvolume in the directory of a snapshot.
const LAYER: &str = "fs";
const LAYER_C: &std::ffi::CStr = c"fs";

const KEEPING: Keeping = Keeping {
    sync_remove: false,
    notes: Notes::Kept,
    remove,
};

/// The btrfs snapshotter.
#[derive(Debug)]
pub struct Btrfs;

#[derive(Debug)]
struct Subvolumes;

impl Btrfs {
    /// Opens or makes the snapshotter in `root`.
    ///
    /// # Errors
    /// `NotImplemented` where `root` does not lie on btrfs; `Unavailable` while another process has
    /// it; `DataLoss` for a damaged index; I/O.
    pub fn open(root: &Path) -> Result<Local> {
        // A root that is not there yet will lie where what is above it lies.
        let there = root.ancestors().find(|path| path.exists());
        if !sys::btrfs::is_btrfs(there.unwrap_or(root))? {
            return Err(Error::not_implemented(format_args!(
                "path {} must be a btrfs filesystem to be used with the btrfs snapshotter",
                root.display()
            )));
        }
        let store = Store::open(&absolute(root)?, KEEPING)?;
        Local::open(store, Subvolumes)
    }

    /// Looks at the snapshotter in `root` by a copy of its index in `scratch`, an empty directory:
    /// [`Snapshotter::list`](crate::Snapshotter::list), [`Snapshotter::verify`](crate::Snapshotter::verify)
    /// and the like work, and nothing is changed.
    ///
    /// # Errors
    /// As [`Btrfs::open`].
    pub fn examine(root: &Path, scratch: &Path) -> Result<Local> {
        let store = Store::examine(root, scratch, KEEPING)?;
        Local::new(store, Subvolumes)
    }
}

fn subvolume(store: &Store, id: u64) -> PathBuf {
    store.directory(id).join(LAYER)
}

impl Layout for Subvolumes {
    fn fill(&self, store: &Store, directory: &Path, new: &New<'_>) -> Result<()> {
        let os = |e| Error::os(format_args!("mkdir {}", directory.display()), e);
        std::fs::create_dir(directory).map_err(os)?;
        std::fs::set_permissions(directory, Permissions::from_mode(0o700)).map_err(os)?;
        let (layer, maps) = (directory.join(LAYER), IdMaps::of(new.labels)?);
        let is_view = new.kind == SnapshotKind::View;
        match new.parents.first() {
            Some(parent) => {
                let read_only = is_view && maps.is_none();
                sys::btrfs::snapshot(&subvolume(store, *parent), directory, LAYER_C, read_only)?;
            }
            None => {
                sys::btrfs::create(directory, LAYER_C)?;
                let mode = Permissions::from_mode(0o755);
                std::fs::set_permissions(&layer, mode)
                    .map_err(|e| Error::os(format_args!("chmod {}", layer.display()), e))?;
            }
        }
        if let Some(maps) = maps {
            maps.chown(&layer)?;
            if is_view {
                sys::btrfs::set_read_only(&layer, true)?;
            }
        }
        Ok(())
    }

    fn mounts(&self, store: &Store, chain: &Chain) -> Result<Vec<Mount>> {
        let mode = match chain.kind {
            SnapshotKind::Active => "rw",
            SnapshotKind::View | SnapshotKind::Committed => "ro",
        };
        Ok(bind(&subvolume(store, chain.id), [mode, "rbind"]))
    }

    fn usage(&self, store: &Store, chain: &Chain) -> Result<Usage> {
        let base = chain.parents.first().map(|id| subvolume(store, *id));
        tree::usage_beside(&subvolume(store, chain.id), base.as_deref())
    }

    fn loose(&self, store: &Store, id: u64) -> Option<PathBuf> {
        Some(subvolume(store, id))
    }

    fn parts(&self, _kind: SnapshotKind) -> &'static [&'static str] {
        &[LAYER]
    }

    fn seal(&self, store: &Store, chain: &Chain) -> Result<Sealed> {
        let usage = self.usage(store, chain)?;
        sys::btrfs::set_read_only(&subvolume(store, chain.id), true)?;
        Ok(usage.into())
    }

    fn unseal(&self, store: &Store, chain: &Chain) -> Result<()> {
        sys::btrfs::set_read_only(&subvolume(store, chain.id), false)
    }

    fn capabilities(&self) -> Vec<&'static str> {
        vec!["remap-ids"]
    }
}

/// Removes the directory of a snapshot with its subvolume, and with those that a container has made
/// in there.
fn remove(directory: &Path) -> Result<()> {
    let layer = directory.join(LAYER);
    match std::fs::symlink_metadata(&layer) {
        Ok(facts) if facts.is_dir() && sys::btrfs::is_subvolume(facts.ino()) => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let dir = rustix::fs::open(directory, flags, Mode::empty())
                .map_err(|e| at("open", directory, e))?;
            let full = Some(Errno::NOTEMPTY.raw_os_error());
            match sys::btrfs::delete(&dir, LAYER_C) {
                Err(e) if e.errno() == full => {
                    nested(&layer)?;
                    sys::btrfs::delete(&dir, LAYER_C)?;
                }
                done => done?,
            }
        }
        // Half made, or half removed.
        _ => {}
    }
    tree::remove(directory)
}

/// Deletes the subvolumes in a subvolume, deepest first.
fn nested(top: &Path) -> Result<()> {
    sys::btrfs::set_read_only(top, false)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::open(top, flags, Mode::empty()).map_err(|e| at("open", top, e))?;
    tree::walk(&dir, top, "delete subvolumes", &mut Nested(&dir))
}

/// Deletes each subvolume below a directory when what is below that is gone.
struct Nested<'a>(&'a OwnedFd);

impl Visitor for Nested<'_> {
    /// It is a subvolume.
    type Kept = bool;

    fn enter(
        &mut self,
        dir: BorrowedFd<'_>,
        path: &[u8],
        _above: Option<&bool>,
    ) -> Result<bool, Failure> {
        let facts = rustix::fs::fstat(dir)?;
        Ok(!path.is_empty() && sys::btrfs::is_subvolume(facts.st_ino))
    }

    fn entry(&mut self, _of: &mut bool, entry: Entry<'_>) -> Result<(), Failure> {
        let kind = FileType::from_raw_mode(entry.facts.st_mode);
        if kind == FileType::Directory && sys::btrfs::is_subvolume(entry.facts.st_ino) {
            // Nothing can be deleted in one that is read-only.
            let path = tree::through_fd(entry.dir, entry.name);
            sys::btrfs::set_read_only(&path, false)?;
        }
        Ok(())
    }

    fn leave(&mut self, is_subvolume: bool, path: &[u8]) -> Result<(), Failure> {
        if is_subvolume {
            let (parent, name) = tree::split(path);
            let parent = open_deep(self.0, parent)?;
            let name = CString::new(name).map_err(|_| Errno::INVAL)?;
            sys::btrfs::delete(&parent, &name)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
