//! The erofs snapshotter: committed layers are read-only images, stacked by overlayfs.
//!
//! ```text
//!   <root>/snapshots/<id>/fs           upper directory of an active one; mount point of a committed one
//!   <root>/snapshots/<id>/work         workdir of an active one
//!   <root>/snapshots/<id>/.erofslayer  in an active one: its layer may be given as an image
//!   <root>/snapshots/<id>/layer.erofs  the image of a committed one, made of `fs` by mkfs.erofs; or of an
//!                                      active one, when it was given so
//!   <root>/snapshots/<id>/layer.erofs.new  the same file, from the making to the commit of one that is made
//! ```
//! Invariant: a committed snapshot has its image, whole and on the disk. An image is mounted when a
//! snapshot on top of it is asked for its mounts, and stays mounted until it is removed.

mod holes;
mod sum;

use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::IFlags;
use rustix::io::Errno;
use sys::process::{Spawn, Status};
use types::{
    Code, Context as _, EROFS_IMAGE, EROFS_LAYER, EROFS_PART, Error, Mount, Result, SnapshotKind,
    Usage,
};

use crate::gate::Gate;
use crate::local::{Layout, Local, New};
use crate::overlay::settle::{is_unsettled, settle};
use crate::overlay::stack::{LAYER, Stack, WORK};
use crate::storage::{Chain, Sealed};
use crate::store::{Keeping, Notes, Store, nameable, text};
use crate::tree::{self, at};
use holes::Filling;

/// Name of the image in the directory of a snapshot.
const IMAGE: &str = EROFS_IMAGE;
/// Name of one that is made here, until its snapshot is committed. One that was given has never had it: that
/// tells them apart, and only what was made here can be made again.
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
        // A crash may have kept `sealed` from it. Without its other name the image is not made again, of
        // files that are half gone.
        tree::remove(&directory.join(NEW_IMAGE))?;
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

    /// True when the layer of an active snapshot was given as an image.
    ///
    /// # Errors
    /// `FailedPrecondition` when it has been given files as well: nobody knows how the two belong together.
    fn is_given(directory: &Path) -> Result<bool> {
        let (new, image) = (directory.join(NEW_IMAGE), directory.join(IMAGE));
        let is_file = |path: &Path| std::fs::symlink_metadata(path).is_ok_and(|it| it.is_file());
        if is_file(&new) || !is_file(&image) || !takes_images(directory)? {
            return Ok(false);
        }
        let layer = directory.join(LAYER);
        let mut names = std::fs::read_dir(&layer)
            .map_err(|e| Error::os(format_args!("list {}", layer.display()), e))?;
        if names.next().is_some() {
            return Err(Error::failed_precondition(
                "the snapshot has an image for a layer and files beside it",
            ));
        }
        Ok(true)
    }

    /// Makes a given image durable.
    fn take_image(directory: &Path) -> Result<Usage> {
        let image = directory.join(IMAGE);
        flush(&image)?;
        sys::fs::fsync_dir(directory)?;
        usage_of(&image)
    }

    fn make_image(directory: &Path) -> Result<Usage> {
        let (new, image) = (directory.join(NEW_IMAGE), directory.join(IMAGE));
        let layer = directory.join(LAYER);
        let filling = holes::look(&layer)?;
        unmake(directory)?;
        let made = filled(&new, &layer, filling).and_then(|()| {
            flush(&new)?;
            std::fs::hard_link(&new, &image)
                .map_err(|e| Error::os(format_args!("link {}", new.display()), e))
        });
        if made.is_err() {
            tree::remove(&new)?;
        }
        made?;
        sys::fs::fsync_dir(directory)?;
        usage_of(&image)
    }

    /// Takes away what only an active snapshot needs; the image cannot be changed from here on.
    fn tidy(&self, directory: &Path) -> Result<()> {
        let point = directory.join(LAYER);
        if !sys::mount::is_mount_point(&point)? {
            tree::empty(&point)?;
        }
        for name in [WORK, NEW_IMAGE, EROFS_LAYER, EROFS_PART] {
            tree::remove(&directory.join(name))?;
        }
        if self.set_immutable
            && let Err(error) = set_immutable(&directory.join(IMAGE), true)
        {
            // Not every file system has the flag, and the layer is as good without it.
            tracing::debug!(%error, "layer is not made immutable");
        }
        Ok(())
    }
}

fn flush(path: &Path) -> Result<()> {
    let synced = std::fs::File::open(path).and_then(|file| file.sync_all());
    synced.map_err(|e| Error::os(format_args!("fsync {}", path.display()), e))
}

fn usage_of(image: &Path) -> Result<Usage> {
    let facts = std::fs::metadata(image)
        .map_err(|e| Error::os(format_args!("stat {}", image.display()), e))?;
    Ok(Usage {
        size: facts.blocks() * 512,
        inodes: 1,
    })
}

/// True when the layer of an active snapshot may be given as an image.
fn takes_images(directory: &Path) -> Result<bool> {
    let mark = directory.join(EROFS_LAYER);
    mark.try_exists()
        .map_err(|e| Error::os(format_args!("look for {}", mark.display()), e))
}

/// Takes an image away that was made here, and not one that was given. Where none is taken it was made here
/// whatever its other name says: versions that knew none left it so when they died.
fn unmake(directory: &Path) -> Result<()> {
    let (new, image) = (directory.join(NEW_IMAGE), directory.join(IMAGE));
    let inode = |path: &Path| std::fs::symlink_metadata(path).map(|facts| facts.ino());
    let is_new = matches!((inode(&new), inode(&image)), (Ok(new), Ok(it)) if new == it);
    if is_new || !takes_images(directory)? {
        set_immutable(&image, false)?;
        tree::remove(&image)?;
    }
    tree::remove(&new)
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

impl Layout for Images {
    fn fill(&self, store: &Store, directory: &Path, new: &New<'_>) -> Result<()> {
        // The root belongs to whom that of the parent's image belongs: the directory below it was nobody's
        // when the image was given.
        let parent = new.parents.first().map(|id| self.mounted(store, *id));
        let parent = parent.transpose()?;
        self.stack.fill(directory, new, parent.as_slice())?;
        if new.kind == SnapshotKind::Active {
            let mark = directory.join(EROFS_LAYER);
            std::fs::write(&mark, "")
                .map_err(|e| Error::os(format_args!("write {}", mark.display()), e))?;
        }
        Ok(())
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
        let directory = store.directory(chain.id);
        match std::fs::symlink_metadata(directory.join(IMAGE)) {
            Ok(_) => usage_of(&directory.join(IMAGE)),
            Err(_) => tree::usage(&directory.join(LAYER)),
        }
    }

    fn parts(&self, kind: SnapshotKind) -> &'static [&'static str] {
        match kind {
            SnapshotKind::Active => &[LAYER, WORK],
            SnapshotKind::View => &[LAYER],
            SnapshotKind::Committed => &[LAYER, IMAGE],
        }
    }

    fn seal(&self, store: &Store, chain: &Chain) -> Result<Sealed> {
        let directory = store.directory(chain.id);
        let usage = match Self::is_given(&directory)? {
            true => Self::take_image(&directory)?,
            false => Self::make_image(&directory).ctx("make image of layer")?,
        };
        let print = self.print(store, chain.id)?;
        Ok(Sealed {
            print,
            ..Sealed::from(usage)
        })
    }

    /// Length and a sum of the image: it is one file, so all of it can be read.
    fn print(&self, store: &Store, id: u64) -> Result<Option<u64>> {
        sum::of(&store.directory(id).join(IMAGE)).map(Some)
    }

    fn agrees(&self, known: u64, found: u64) -> bool {
        sum::agrees(known, found)
    }

    fn renews(&self, _store: &Store) -> bool {
        true
    }

    /// Clients have been told where the layer is mounted, and so it is whenever they look: the mount moves
    /// with the directory.
    fn take_place(&self, store: &Store, chain: &Chain) -> Result<()> {
        let mark = store.directory(chain.id).join(EROFS_LAYER);
        // If this goes wrong, the image is as good as one that was given.
        std::fs::write(&mark, "")
            .map_err(|e| Error::os(format_args!("write {}", mark.display()), e))?;
        self.mounted(store, chain.id).map(drop)
    }

    /// What was made here; an image that was given stays.
    fn unseal(&self, store: &Store, chain: &Chain) -> Result<()> {
        let directory = store.directory(chain.id);
        unmake(&directory)?;
        set_immutable(&directory.join(IMAGE), false)?;
        tree::remove(&directory.join(EROFS_PART))
    }

    /// The files are in the image.
    fn sealed(&self, store: &Store, id: u64) {
        let _alone = self.mounting.alone(id);
        if let Err(error) = self.tidy(&store.directory(id)) {
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
