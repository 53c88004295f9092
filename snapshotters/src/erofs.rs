//! The erofs snapshotter: committed layers are read-only images, stacked by overlayfs.
//!
//! ```text
//!   <root>/snapshots/<id>/fs           upper directory of an active one; mount point of a committed one
//!   <root>/snapshots/<id>/work         workdir of an active one
//!   <root>/snapshots/<id>/layer.erofs  the image of a committed one, made of `fs` by mkfs.erofs
//! ```
//! Invariant: a committed snapshot has its image, whole and on the disk. An image is mounted when a
//! snapshot on top of it is asked for its mounts, and stays mounted until it is removed.

mod holes;

use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::IFlags;
use rustix::io::Errno;
use sys::process::{Spawn, Status};
use types::{Code, Context as _, Error, Mount, Result, SnapshotKind, Usage};

use crate::gate::Gate;
use crate::local::{Layout, Local, New};
use crate::overlay::settle::{is_unsettled, settle};
use crate::overlay::stack::{LAYER, Stack, WORK};
use crate::storage::{Chain, Sealed};
use crate::store::{Keeping, Notes, Store, nameable, text};
use crate::tree::{self, at};
use holes::Filling;

/// Name of the image in the directory of a committed snapshot.
const IMAGE: &str = "layer.erofs";
/// Name of one that is being made.
const NEW_IMAGE: &str = "layer.erofs.new";
/// The program that makes images.
const MKFS: &str = "mkfs.erofs";
/// What ends it when the image grows longer than it may.
const SIGXFSZ: u8 = 25;
/// What it may say.
const OUTPUT: usize = 64 * 1024;
/// Longest that the making of an image may take: 100 GiB at 50 MiB/s.
const MKFS_DEADLINE: Duration = Duration::from_secs(35 * 60);

const KEEPING: Keeping = Keeping {
    sync_remove: false,
    notes: Notes::Kept,
    remove,
};

/// Settings of the erofs snapshotter.
#[derive(Clone, Debug, Default)]
pub struct ErofsConfig {
    /// Further options for overlay mounts.
    pub ovl_mount_options: Vec<String>,
    /// Protect images from being changed by accident.
    pub set_immutable: bool,
}

/// The erofs snapshotter.
#[derive(Debug)]
pub struct Erofs;

#[derive(Debug)]
struct Images {
    stack: Stack,
    set_immutable: bool,
    /// Ids whose mount points are at work.
    mounting: Gate,
}

impl Erofs {
    /// Opens or makes the snapshotter in `root`.
    ///
    /// # Errors
    /// `NotImplemented` where the kernel has no erofs or no overlayfs, or mkfs.erofs is not there;
    /// `Unavailable` while another process has it; `DataLoss` for a damaged index; I/O.
    pub fn open(root: &Path, config: ErofsConfig) -> Result<Local> {
        let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
        if !known.lines().any(|line| line.trim() == "erofs") {
            return Err(Error::not_implemented(
                "the kernel does not know erofs (is its module loaded?)",
            ));
        }
        sys::process::find(MKFS.as_ref()).map_err(|e| e.reclass(Code::NotImplemented))?;
        let root = nameable(root)?;
        let stack = Stack::tried(&root, config.ovl_mount_options, false)?;
        let store = Store::open(&root, KEEPING)?;
        let images = Images {
            stack: stack.with_ready(store.directories()),
            set_immutable: config.set_immutable,
            mounting: Gate::default(),
        };
        Local::open(store, images)
    }

    /// Looks at the snapshotter in `root` by a copy of its index in `scratch`, an empty directory:
    /// [`Snapshotter::list`](crate::Snapshotter::list), [`Snapshotter::verify`](crate::Snapshotter::verify)
    /// and the like work, and nothing is changed.
    ///
    /// # Errors
    /// As [`Erofs::open`], but programs and kernel are not asked for.
    pub fn examine(root: &Path, scratch: &Path) -> Result<Local> {
        let images = Images {
            stack: Stack::unused(),
            set_immutable: false,
            mounting: Gate::default(),
        };
        let store = Store::examine(root, scratch, KEEPING)?;
        Local::new(store, images)
    }
}

impl Images {
    /// Where the layer of a committed snapshot is mounted; it is from here on.
    fn mounted(&self, store: &Store, id: u64) -> Result<PathBuf> {
        let directory = store.directory(id);
        let point = directory.join(LAYER);
        let _alone = self.mounting.alone(id);
        if sys::mount::is_mount_point(&point)? {
            return Ok(point);
        }
        let image = directory.join(IMAGE);
        if !image.exists() {
            return Err(Error::data_loss(format_args!(
                "layer {} is not there",
                image.display()
            )));
        }
        // A crash may have kept `sealed` from it.
        tree::empty(&point)?;
        let mut mount = Mount {
            kind: "erofs".into(),
            source: text(&image),
            target: String::new(),
            options: vec!["ro".into()],
        };
        match sys::mount::mount(&mount, &point) {
            // This kernel mounts block devices only.
            Err(e) if e.errno() == Some(Errno::NOTBLK.raw_os_error()) => {
                mount.options.push("loop".into());
                sys::mount::mount(&mount, &point)?;
            }
            done => done?,
        }
        Ok(point)
    }

    fn lowers(&self, store: &Store, ids: &[u64]) -> Result<Vec<PathBuf>> {
        ids.iter().map(|id| self.mounted(store, *id)).collect()
    }

    fn make_image(&self, directory: &Path) -> Result<Usage> {
        let (new, image) = (directory.join(NEW_IMAGE), directory.join(IMAGE));
        let layer = directory.join(LAYER);
        let filling = holes::look(&layer)?;
        tree::remove(&new)?;
        let made = filled(&new, &layer, filling).and_then(|()| {
            let file = std::fs::File::open(&new);
            let synced = file.and_then(|file| file.sync_all());
            synced.map_err(|e| Error::os(format_args!("fsync {}", new.display()), e))?;
            // One that could not be taken away again stands in the way as long as it cannot be changed.
            set_immutable(&image, false)?;
            std::fs::rename(&new, &image)
                .map_err(|e| Error::os(format_args!("rename {}", new.display()), e))
        });
        if made.is_err() {
            tree::remove(&new)?;
        }
        made?;
        sys::fs::fsync_dir(directory)?;
        if self.set_immutable
            && let Err(error) = set_immutable(&image, true)
        {
            // Not every file system has the flag, and the layer is as good without it.
            tracing::debug!(%error, "layer is not made immutable");
        }
        let facts = std::fs::metadata(&image)
            .map_err(|e| Error::os(format_args!("stat {}", image.display()), e))?;
        Ok(Usage {
            size: facts.blocks() * 512,
            inodes: 1,
        })
    }
}

/// Makes an image of a directory with holes.
fn filled(image: &Path, directory: &Path, filling: Filling) -> Result<()> {
    // What it is made of may have grown since it was looked at.
    let most = room_of(directory)?;
    let Filling::Compressed { or_stored } = filling else {
        return mkfs(image, directory, most, &[]);
    };
    match mkfs(image, directory, most, &["-zlz4"]) {
        // It may have been built without.
        Err(error) if or_stored && error.is(Code::Unknown) => {
            tracing::debug!(%error, "layer with many holes is not compressed");
            tree::remove(image)?;
            mkfs(image, directory, most, &[])
        }
        done => done,
    }
}

/// Most bytes that an image may have: a tenth of what is free is left to others.
fn room_of(directory: &Path) -> Result<u64> {
    let facts = rustix::fs::statvfs(directory).map_err(|e| at("statfs", directory, e))?;
    // Not every file system tells.
    if facts.f_blocks == 0 {
        return Ok(u64::MAX);
    }
    let free = facts.f_bavail.saturating_mul(facts.f_frsize);
    Ok(free - free / 10)
}

/// Makes an image of a directory, of no more than `most` bytes.
fn mkfs(image: &Path, directory: &Path, most: u64, options: &[&str]) -> Result<()> {
    // The default is to complain about each file on the terminal.
    let spawn = Spawn::new(MKFS).args(["--quiet", "-d2"]).args(options);
    let answer =
        spawn
            .arg(image)
            .arg(directory)
            .longest_file(most)
            .answer(&[], OUTPUT, MKFS_DEADLINE)?;
    if answer.status.is_success() {
        return Ok(());
    }
    if answer.status == Status::Signaled(SIGXFSZ) {
        return Err(Error::resource_exhausted(format_args!(
            "image of layer has more than {most} bytes, and the file system hardly more room"
        )));
    }
    let said = [answer.text, answer.errors].concat();
    let said = String::from_utf8_lossy(&said);
    let status = answer.status.code();
    Err(Error::unknown(format_args!(
        "{MKFS} failed with status {status}: {}",
        said.trim()
    )))
}

/// Sets or clears the flag that forbids every change of a file.
fn set_immutable(path: &Path, on: bool) -> Result<()> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && !on => return Ok(()),
        Err(e) => return Err(Error::os(format_args!("open {}", path.display()), e)),
    };
    let flags =
        rustix::fs::ioctl_getflags(file.as_fd()).map_err(|e| at("get flags of", path, e))?;
    let mut wanted = flags;
    wanted.set(IFlags::IMMUTABLE, on);
    if wanted == flags {
        return Ok(());
    }
    rustix::fs::ioctl_setflags(file.as_fd(), wanted).map_err(|e| at("set flags of", path, e))
}

/// The parent's own directory, below what may be mounted on it, has the same owner as the image's.
fn roots(store: &Store, ids: &[u64]) -> Vec<PathBuf> {
    let root = |id: &u64| store.directory(*id).join(LAYER);
    ids.iter().map(root).collect()
}

impl Layout for Images {
    fn fill(&self, store: &Store, directory: &Path, new: &New<'_>) -> Result<()> {
        self.stack.fill(directory, new, &roots(store, new.parents))
    }

    fn mounts(&self, store: &Store, chain: &Chain) -> Result<Vec<Mount>> {
        let lowers = self.lowers(store, &chain.parents)?;
        self.stack.mounts(&store.directory(chain.id), chain, lowers)
    }

    /// Images are mounted.
    fn mounts_block(&self) -> bool {
        true
    }

    fn usage(&self, store: &Store, chain: &Chain) -> Result<Usage> {
        tree::usage(&store.directory(chain.id).join(LAYER))
    }

    fn parts(&self, kind: SnapshotKind) -> &'static [&'static str] {
        match kind {
            SnapshotKind::Active => &[LAYER, WORK],
            SnapshotKind::View => &[LAYER],
            SnapshotKind::Committed => &[LAYER, IMAGE],
        }
    }

    fn seal(&self, store: &Store, chain: &Chain) -> Result<Sealed> {
        let made = self.make_image(&store.directory(chain.id));
        let usage = made.ctx("make image of layer")?;
        let print = self.print(store, chain.id)?;
        Ok(Sealed {
            print,
            ..Sealed::from(usage)
        })
    }

    /// The length of the image: one that was cut is no layer any more.
    fn print(&self, store: &Store, id: u64) -> Result<Option<u64>> {
        tree::length(&store.directory(id).join(IMAGE)).map(Some)
    }

    fn unseal(&self, store: &Store, chain: &Chain) -> Result<()> {
        let image = store.directory(chain.id).join(IMAGE);
        set_immutable(&image, false)?;
        tree::remove(&image)
    }

    /// The files are in the image.
    fn sealed(&self, store: &Store, id: u64) {
        let point = store.directory(id).join(LAYER);
        let _alone = self.mounting.alone(id);
        let emptied = sys::mount::is_mount_point(&point).and_then(|is_mounted| match is_mounted {
            true => Ok(()),
            false => tree::empty(&point),
        });
        let work = emptied.and_then(|()| tree::remove(&store.directory(id).join(WORK)));
        if let Err(error) = work {
            tracing::warn!(%error, id, "files of a layer are left beside its image");
        }
    }

    /// As that of an overlay: layers are independent.
    fn rebases(&self) -> bool {
        !self.stack.userxattr
    }

    fn is_unsettled(&self, store: &Store, id: u64) -> bool {
        is_unsettled(&store.directory(id).join(LAYER))
    }

    fn settle(&self, store: &Store, id: u64, parents: &[u64]) -> Result<()> {
        let upper = store.directory(id).join(LAYER);
        // The image is made of it and flushed.
        settle(&upper, &self.lowers(store, parents)?)
    }

    fn capabilities(&self) -> Vec<&'static str> {
        self.stack.capabilities()
    }
}

/// Removes the directory of a snapshot; whoever still uses its image keeps it until the end.
fn remove(directory: &Path) -> Result<()> {
    sys::mount::detach_all(&directory.join(LAYER))?;
    set_immutable(&directory.join(IMAGE), false)?;
    tree::remove(directory)
}

#[cfg(test)]
mod tests;
