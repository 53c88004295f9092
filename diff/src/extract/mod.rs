//! Extraction of one layer archive into a tree.
//!
//! ```text
//!   tar::Reader -> entry -> parent directory (cached, made when missing) -> whiteout | node | data
//!                                                                       -> owner, xattrs, mode, times
//! ```
//! Invariant: everything goes through [`Root`]; an entry replaces what stands in its place and never
//! writes through it; directories get their times last. Called by the applier and by fuzz targets.

mod attributes;
mod copy;
mod node;
mod parents;
mod prune;
mod times;
mod whiteout;

use std::hash::{BuildHasher as _, RandomState};
use std::io::BufRead;
use std::path::PathBuf;
use std::rc::Rc;

use rustix::fs::XattrFlags;
use types::{Error, Result, UNSETTLED_LAYER};

use crate::lower::Lowers;
use crate::root::{MAX_NAME, Root, components, entry_error};
use crate::seen::Seen;
use crate::tar::{Entry, Kind, Reader};
use crate::work::Stop;
use attributes::Attributes;
pub(crate) use attributes::{Xattrs, list as list_xattrs};
use node::Room;
use parents::{Directory, Parents};
use times::Times;

/// Name of the entry that makes its directory opaque.
pub(crate) const OPAQUE: &[u8] = b".wh..wh..opq";
/// Attribute of an opaque directory.
const TRUSTED_OPAQUE: &str = "trusted.overlay.opaque";
/// Prefix of the entries that delete.
pub(crate) const WHITEOUT: &[u8] = b".wh.";

/// Ceilings for one layer: high, but not endless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the uncompressed stream.
    pub bytes: u64,
    /// Entries.
    pub entries: u64,
    /// Bytes of the paths of all directories together, also of those that only the names of others imply.
    /// They are remembered to the end, on the disk, and whoever walks through them later meets them again.
    pub paths: u64,
    /// Bytes that the data of files takes, in whole blocks, without zeroes that become holes, and those of
    /// extended attributes.
    pub stored: u64,
    /// How many times the bytes of a compressed blob that data may have, beyond [`UNSUSPECTED`]. The first
    /// piece of a file counts for its bytes here, and not for its blocks: very many tiny files compress well.
    /// The stream itself may have ten times as many, beyond a 16th of what any may have.
    pub ratio: u64,
    /// Bytes of a window of zstd, which a decoder has in memory, as far as the data reaches. One above
    /// 8 MiB at a time.
    pub window: u64,
}

/// Data that no ratio is asked about: a disk has room for so much.
pub const UNSUSPECTED: u64 = 1 << 30;

/// How much more a stream may have than what is stored of it, which is all but the holes: no stream of gzip
/// has a thousand times the bytes of its blob.
const ZEROES: u64 = 10;
/// Part of the longest stream that no ratio is asked about: 64 GiB, some minutes of a core. A disk image of
/// zeroes is honest, and next to nothing in zstd.
const PART: u64 = 16;

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 1 << 40,
            entries: 4_000_000,
            paths: 256 << 20,
            stored: 1 << 40,
            ratio: 200,
            window: compression::LARGEST_WINDOW,
        }
    }
}

impl Limits {
    /// Most bytes of data of a blob of so many bytes.
    pub(crate) fn data_of(&self, bytes: u64) -> u64 {
        bytes.saturating_mul(self.ratio).max(UNSUSPECTED)
    }

    /// Most bytes of the stream of a blob of so many bytes.
    pub(crate) fn stream_of(&self, bytes: u64) -> u64 {
        let by_ratio = bytes.saturating_mul(self.ratio).saturating_mul(ZEROES);
        self.bytes.min(by_ratio.max(self.bytes / PART))
    }
}

/// What the tree is, which decides how deletions are written.
#[derive(Clone, Debug, Default)]
pub enum Target {
    /// A plain tree: what an entry deletes is removed.
    #[default]
    Merged,
    /// The upper directory of an overlay: deletions become whiteouts and opaque marks.
    Upper {
        /// Layers below, top first.
        lowers: Vec<PathBuf>,
        /// Marks are `user.overlay.` attributes.
        userxattr: bool,
    },
    /// The upper directory of an overlay whose layers below are not known yet. What depends on them is
    /// marked, [`UNSETTLED_LAYER`] and [`IMPLIED_DIRECTORY`](types::IMPLIED_DIRECTORY), or refused.
    Detached,
}

/// How to extract.
#[derive(Clone, Debug, Default)]
pub struct TreeOpts {
    /// What the tree is.
    pub target: Target,
    /// Ceilings.
    pub limits: Limits,
    /// Bytes of the blob, which [`Limits::ratio`] is about.
    pub blob: Option<u64>,
    /// Leave device nodes out (a user namespace cannot make them).
    pub skip_devices: bool,
    /// Told when nobody waits for it any more.
    pub stop: Stop,
}

/// Extracts the archive in `stream` below `root`, and reads `stream` to its end.
///
/// # Errors
/// `InvalidArgument` for a damaged or hostile archive, `ResourceExhausted` beyond a limit or on a full
/// disk, I/O. What was extracted stays.
pub fn apply_tar(stream: impl BufRead, root: &Root, opts: &TreeOpts) -> Result<()> {
    let mut reader = Reader::new(stream);
    let mut tree = Tree::new(root, opts)?;
    let mut entries = 0_u64;
    while let Some(entry) = reader.next()? {
        opts.stop.check()?;
        entries += 1;
        if entries > opts.limits.entries {
            return Err(Error::resource_exhausted(format_args!(
                "layer has more than {} entries",
                opts.limits.entries
            )));
        }
        // Holes are not in the stream, and so not in its length.
        if entry.size > opts.limits.bytes {
            return Err(Error::resource_exhausted(format_args!(
                "file of {} bytes in layer, more than {}",
                entry.size, opts.limits.bytes
            )));
        }
        tree.entry(&entry, &mut reader)?;
        tree.room.check()?;
        if tree.times.bytes > opts.limits.paths {
            return Err(Error::resource_exhausted(format_args!(
                "paths of directories in layer have more than {} bytes",
                opts.limits.paths
            )));
        }
    }
    tree.finish()?;
    reader.drain()
}

/// How marks and whiteouts are written in an upper directory.
#[derive(Debug)]
struct Upper {
    lowers: Lowers,
    opaque: &'static str,
    /// The lowers are not known.
    detached: bool,
}

/// The tree being written.
#[derive(Debug)]
struct Tree<'a> {
    root: &'a Root,
    upper: Option<Upper>,
    parents: Parents,
    attributes: Attributes,
    skip_devices: bool,
    room: Room,
    stop: Stop,
    /// Hashes of (directory inode, name) of what this archive wrote: deletions spare it.
    written: Seen,
    /// Hashes of the inodes of directories that were emptied before: what they hold now is this archive's.
    emptied: Seen,
    /// Hashes of what this archive has as devices 0/0: a hard link to one is one more.
    devices: Seen,
    hasher: RandomState,
    times: Times,
    /// Each name that the layers below have in the root was hidden.
    root_is_hidden: bool,
    /// Something was made that depends on layers which are not known.
    unsettled: bool,
}

impl<'a> Tree<'a> {
    fn new(root: &'a Root, opts: &TreeOpts) -> Result<Self> {
        let upper = match &opts.target {
            Target::Merged => None,
            Target::Detached => Some(Upper {
                lowers: Lowers::open(&[], TRUSTED_OPAQUE)?,
                opaque: TRUSTED_OPAQUE,
                detached: true,
            }),
            Target::Upper { lowers, userxattr } => {
                let opaque = if *userxattr {
                    "user.overlay.opaque"
                } else {
                    TRUSTED_OPAQUE
                };
                Some(Upper {
                    lowers: Lowers::open(lowers, opaque)?,
                    opaque,
                    detached: false,
                })
            }
        };
        let data = opts.blob.map_or(u64::MAX, |len| opts.limits.data_of(len));
        Ok(Self {
            root,
            upper,
            parents: Parents::default(),
            attributes: Attributes::of_process(),
            skip_devices: opts.skip_devices,
            room: Room::new(opts.limits.stored, data),
            stop: opts.stop.clone(),
            written: Seen::default(),
            emptied: Seen::default(),
            devices: Seen::default(),
            hasher: RandomState::new(),
            times: Times::default(),
            root_is_hidden: false,
            unsettled: false,
        })
    }

    fn entry<R: BufRead>(&mut self, entry: &Entry, reader: &mut Reader<R>) -> Result<()> {
        let parts = components(&entry.name);
        // Parity: containerd leaves the root directory as it is.
        let Some((base, parents)) = parts.split_last() else {
            return Ok(());
        };
        if entry.name.len() > MAX_NAME {
            return Err(Error::invalid_argument(format_args!(
                "entry name of {} bytes is too long",
                entry.name.len()
            )));
        }
        // A layer may hold what overlayfs has in place of a whiteout: on an overlay that is one, and it cannot
        // be made through a mount of one.
        let number = (entry.kind, entry.major, entry.minor);
        let is_whiteout = number == (Kind::Char, 0, 0);
        if self.skip_devices && !is_whiteout && matches!(entry.kind, Kind::Char | Kind::Block) {
            tracing::warn!(name = %String::from_utf8_lossy(&entry.name), "device left out");
            return Ok(());
        }
        let fail = |call: &'static str| move |e| entry_error(call, &entry.name, e);
        let dir = self.parent(parents)?;
        if *base == OPAQUE {
            return self.opaque(&dir).map_err(fail("opaque"));
        }
        if let Some(target) = base.strip_prefix(WHITEOUT) {
            if matches!(target, b"" | b"." | b"..") {
                return Err(Error::invalid_argument(format_args!(
                    "invalid whiteout name: {:?}",
                    String::from_utf8_lossy(base)
                )));
            }
            return self.whiteout(&dir, target, entry).map_err(fail("whiteout"));
        }
        if is_whiteout || self.is_link_to_whiteout(entry).map_err(fail("link"))? {
            let hash = self.hash(dir.inode, base);
            self.devices.insert(hash);
            return self.whiteout(&dir, base, entry).map_err(fail("whiteout"));
        }
        self.node(&dir, base, &parts, entry, reader)?;
        self.mark(&dir, base);
        Ok(())
    }

    /// True when nobody can tell what is below; noted.
    fn is_detached(&mut self) -> bool {
        let detached = self.upper.as_ref().is_some_and(|upper| upper.detached);
        self.unsettled |= detached;
        detached
    }

    fn hash(&self, inode: u64, name: &[u8]) -> u64 {
        self.hasher.hash_one((inode, name))
    }

    fn mark(&mut self, dir: &Directory, name: &[u8]) {
        let hash = self.hash(dir.inode, name);
        self.written.insert(hash);
    }

    /// The directory `parts`, made when missing.
    fn parent(&mut self, parts: &[&[u8]]) -> Result<Rc<Directory>> {
        let path = parts.join(&b'/');
        if let Some(dir) = self.parents.get(&path) {
            return Ok(dir);
        }
        let fail = |e| entry_error("open parent of entry in", &path, e);
        let fd = match self.root.directory(&path) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => {
                self.make_parents(parts)?
            }
            Err(e) => return Err(fail(e)),
        };
        let dir = Directory::new(fd).map_err(fail)?;
        Ok(self.parents.put(path, dir))
    }

    /// Sets the times of directories, which every later entry in them would have changed.
    fn finish(&mut self) -> Result<()> {
        self.parents.clear();
        if self.unsettled {
            rustix::fs::fsetxattr(self.root.fd(), UNSETTLED_LAYER, b"y", XattrFlags::empty())
                .map_err(|e| entry_error("mark", b"/", e))?;
        }
        let (root, stop) = (self.root, &self.stop);
        std::mem::take(&mut self.times).each(|path, mtime, atime| {
            stop.check()?;
            let parts = components(path);
            let Some((base, parents)) = parts.split_last() else {
                return Ok(());
            };
            let Ok(parent) = root.directory(&parents.join(&b'/')) else {
                return Ok(());
            };
            attributes::directory_times(&parent, base, mtime, atime)
                .map_err(|e| entry_error("set times of", path, e))
        })
    }
}

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod limit_tests;
#[cfg(test)]
mod link_tests;
#[cfg(test)]
mod naive;
#[cfg(test)]
mod node_tests;
#[cfg(test)]
mod sparse_tests;
#[cfg(test)]
mod tests;
