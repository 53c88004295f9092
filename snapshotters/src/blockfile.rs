//! The blockfile snapshotter: every snapshot is a file system in a file, mounted through a loop device.
//!
//! ```text
//!   <root>/scratch              an empty file system, which snapshots without a parent begin with
//!   <root>/snapshots/<id>/block a copy of it, or of the parent's
//! ```
//! Invariant: a committed file is never written to. Copies share blocks where the disk can.

mod look;

use std::fs::{File, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use types::{Error, Mount, Result, SnapshotKind, Usage};

use crate::copy;
use crate::idmap::IdMaps;
use crate::local::{Layout, Local, New};
use crate::storage::{Chain, Sealed};
use crate::store::{Keeping, Notes, Store, absolute, text};
use crate::tree;

/// Name of the file system in the directory of a snapshot.
const BLOCK: &str = "block";
/// Name of the empty one in the root.
const SCRATCH: &str = "scratch";
/// What is mounted when the configuration does not say.
const DEFAULT_TYPE: &str = "ext4";
/// Option without which a file cannot be mounted.
const LOOP: &str = "loop";

/// For how long a commit waits for a file that is still mounted.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks, which nothing else tells about.
const PAUSE: Duration = Duration::from_millis(5);

const KEEPING: Keeping = Keeping {
    sync_remove: false,
    notes: Notes::Kept,
    remove: tree::remove,
};

/// Settings of the blockfile snapshotter.
#[derive(Clone, Debug, Default)]
pub struct BlockfileConfig {
    /// An empty file system to begin with. May be left out when the root has one.
    pub scratch_file: Option<PathBuf>,
    /// Type of the file system; empty: ext4.
    pub fs_type: String,
    /// Options of each mount; `loop` is added.
    pub mount_options: Vec<String>,
    /// Take the configured scratch file also when the root has one.
    pub recreate_scratch: bool,
}

/// The blockfile snapshotter.
#[derive(Debug)]
pub struct Blockfile;

#[derive(Debug)]
struct Files {
    scratch: PathBuf,
    fs_type: String,
    options: Vec<String>,
}

impl Blockfile {
    /// Opens or makes the snapshotter in `root`.
    ///
    /// # Errors
    /// `NotImplemented` without an empty file system to begin with; `Unavailable` while another
    /// process has it; `DataLoss` for a damaged index; I/O.
    pub fn open(root: &Path, config: BlockfileConfig) -> Result<Local> {
        let scratch = root.join(SCRATCH);
        let given = config.scratch_file.as_deref();
        if given.is_none() && (config.recreate_scratch || !scratch.exists()) {
            return Err(Error::not_implemented("no scratch file is configured"));
        }
        let root = absolute(root)?;
        // The lock of the index comes first: another process may be copying of the scratch file.
        let store = Store::open(&root, KEEPING)?;
        if let Some(given) = given
            && (config.recreate_scratch || !scratch.exists())
        {
            install(given, &root)?;
        }
        let mut options = config.mount_options;
        if !options.iter().any(|option| option == LOOP) {
            options.push(LOOP.to_owned());
        }
        let fs_type = match config.fs_type {
            none if none.is_empty() => DEFAULT_TYPE.to_owned(),
            given => given,
        };
        let files = Files {
            scratch: root.join(SCRATCH),
            fs_type,
            options,
        };
        Local::open(store, files)
    }

    /// Looks at the snapshotter in `root` by a copy of its index in `scratch`, an empty directory:
    /// [`Snapshotter::list`](crate::Snapshotter::list), [`Snapshotter::verify`](crate::Snapshotter::verify)
    /// and the like work, and nothing is changed.
    ///
    /// # Errors
    /// As [`Blockfile::open`].
    pub fn examine(root: &Path, scratch: &Path) -> Result<Local> {
        let files = Files {
            scratch: root.join(SCRATCH),
            // The files tell.
            fs_type: String::new(),
            options: Vec::new(),
        };
        let store = Store::examine(root, scratch, KEEPING)?;
        Local::new(store, files)
    }
}

/// Puts a copy of `given` into `root`, durably and at once.
fn install(given: &Path, root: &Path) -> Result<()> {
    let new = root.join(format!(".{SCRATCH}"));
    tree::remove(&new)?;
    copy::file(given, &new)?;
    flush(&new)?;
    std::fs::rename(&new, root.join(SCRATCH))
        .map_err(|e| Error::os(format_args!("rename {}", new.display()), e))?;
    sys::fs::fsync_dir(root)
}

fn flush(path: &Path) -> Result<()> {
    let synced = File::open(path).and_then(|file| file.sync_all());
    synced.map_err(|e| Error::os(format_args!("fsync {}", path.display()), e))
}

/// Waits until nothing has the file system mounted: in the middle of its work it would be one that
/// must be repaired first, and nobody can do that to a committed one. What was unmounted may be in use a
/// little longer, by a mount namespace that was made meanwhile.
fn given_up(block: &Path, patience: Duration) -> Result<()> {
    let begin = Instant::now();
    while let Some(device) = sys::loopdev::device_of(block)? {
        if begin.elapsed() > patience {
            return Err(Error::failed_precondition(format_args!(
                "{} is still in use by {}: unmount it first",
                block.display(),
                device.display()
            )));
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

fn block(store: &Store, id: u64) -> PathBuf {
    store.directory(id).join(BLOCK)
}

impl Layout for Files {
    fn fill(&self, store: &Store, directory: &Path, new: &New<'_>) -> Result<()> {
        IdMaps::refuse(new.labels)?;
        let os = |e| Error::os(format_args!("mkdir {}", directory.display()), e);
        std::fs::create_dir(directory).map_err(os)?;
        std::fs::set_permissions(directory, Permissions::from_mode(0o700)).map_err(os)?;
        let source = match new.parents.first() {
            // A view of a committed file is that file: only its place is made.
            Some(_) if new.kind == SnapshotKind::View => return Ok(()),
            Some(parent) => block(store, *parent),
            None => self.scratch.clone(),
        };
        let block = directory.join(BLOCK);
        copy::file(&source, &block)?;
        // Whoever flushes the index next makes its row durable as well.
        flush(&block)
    }

    fn mounts(&self, store: &Store, chain: &Chain) -> Result<Vec<Mount>> {
        let (id, mode) = match (chain.kind, chain.parents.first()) {
            (SnapshotKind::View, Some(parent)) => (*parent, "ro"),
            (SnapshotKind::View, None) => (chain.id, "ro"),
            _ => (chain.id, "rw"),
        };
        let mut options = self.options.clone();
        options.push(mode.to_owned());
        Ok(vec![Mount {
            kind: self.fs_type.clone(),
            source: text(&block(store, id)),
            target: String::new(),
            options,
        }])
    }

    /// The blocks of the file, those included that it shares with the parent's.
    fn usage(&self, store: &Store, chain: &Chain) -> Result<Usage> {
        let path = block(store, chain.id);
        let facts = std::fs::metadata(&path)
            .map_err(|e| Error::os(format_args!("stat {}", path.display()), e))?;
        Ok(Usage {
            size: facts.blocks() * 512,
            inodes: 1,
        })
    }

    fn parts(&self, kind: SnapshotKind) -> &'static [&'static str] {
        match kind {
            SnapshotKind::View => &[""],
            SnapshotKind::Active | SnapshotKind::Committed => &[BLOCK],
        }
    }

    /// What a check of the file system finds that nobody has mounted: it only reads.
    fn flaw(&self, directory: &Path, kind: SnapshotKind) -> Option<String> {
        let block = directory.join(BLOCK);
        let is_free = || matches!(sys::loopdev::device_of(&block), Ok(None));
        if kind != SnapshotKind::Committed || !is_free() {
            return None;
        }
        look::flaw(&block, &self.fs_type)
    }

    fn seal(&self, store: &Store, chain: &Chain) -> Result<Sealed> {
        let block = block(store, chain.id);
        given_up(&block, PATIENCE)?;
        flush(&block)?;
        sys::fs::fsync_dir(&store.directory(chain.id))?;
        let usage = self.usage(store, chain)?;
        let print = self.print(store, chain.id)?;
        Ok(Sealed {
            print,
            ..Sealed::from(usage)
        })
    }

    /// The length of the file: one that was cut is no file system any more.
    fn print(&self, store: &Store, id: u64) -> Result<Option<u64>> {
        tree::length(&block(store, id)).map(Some)
    }
}

#[cfg(test)]
mod tests;
