//! Changes as archive entries: parents, hard links, whiteouts, attributes.
//!
//! Invariant: every entry's parent directories stand before it; a file with several names has its data
//! at the first one written and links for the others.

use std::collections::HashMap;
use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{Read as _, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;
use types::{Error, Result};

use super::ids::Ids;
use super::sources::Sources;
use crate::extract::{Xattrs, list_xattrs};
use crate::root::{entry_error, file_type, open_regular, through_fd};
use crate::seen::Seen;
use crate::stream::CHUNK;
use crate::tar::{Entry, Kind, Time, Writer, stream_error};

/// A node of the newer tree.
pub(super) struct Node<'a> {
    pub(super) dir: &'a OwnedFd,
    pub(super) name: &'a [u8],
    pub(super) path: &'a [u8],
    pub(super) stat: &'a Stat,
}

/// Most bytes that the names of files with further names may take until all of those have been seen.
const NAMES: usize = 256 << 20;
/// What remembering one takes besides its bytes.
const EACH: usize = 64;

/// What is known of an inode with several names, until all of them have been seen.
enum Linked {
    /// Its data stands under this name, and so many were seen.
    Written(Vec<u8>, usize),
    /// Unchanged so far, under these names.
    Unchanged(Vec<Vec<u8>>),
}

/// The archive of changes.
pub(super) struct Layer<'a, W: Write> {
    sources: &'a Sources,
    writer: Writer<W>,
    epoch: Option<Time>,
    /// Hashes of the paths of directories that stand in the archive.
    written: Seen,
    hasher: RandomState,
    linked: HashMap<(u64, u64), Linked>,
    /// Bytes that those may still take.
    room: usize,
    buffer: Vec<u8>,
}

/// Bytes that are taken for a name.
fn taken(name: &[u8]) -> usize {
    name.len() + EACH
}

/// The extended attributes that belong into a layer, and can be in one, sorted: the others are the host's
/// or overlayfs'.
pub(super) fn wanted_xattrs(path: &Path, ids: &Ids) -> Result<Xattrs, Errno> {
    xattrs(path, ids, |_| ())
}

/// The same, when those that a layer cannot hold are told.
fn xattrs(path: &Path, ids: &Ids, mut left_out: impl FnMut(&[u8])) -> Result<Xattrs, Errno> {
    let mut all = list_xattrs(path, false)?;
    all.retain(|(name, _)| {
        let is_wanted = is_wanted(name);
        // A record's name ends at its first `=`: it would come out as another one. Go's layers have no
        // attributes of users at all.
        let can_be = !name.contains(&b'=');
        if is_wanted && !can_be {
            left_out(name);
        }
        is_wanted && can_be
    });
    all.sort();
    Ok(ids.attributes(all))
}

fn is_wanted(name: &[u8]) -> bool {
    let user = name.starts_with(b"user.") && !name.starts_with(b"user.overlay.");
    user || name == b"security.capability" || name.starts_with(b"system.posix_acl_")
}

fn kind(stat: &Stat) -> Kind {
    match file_type(stat) {
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        FileType::CharacterDevice => Kind::Char,
        FileType::BlockDevice => Kind::Block,
        FileType::Fifo => Kind::Fifo,
        _ => Kind::File,
    }
}

impl<'a, W: Write> Layer<'a, W> {
    pub(super) fn new(sources: &'a Sources, writer: Writer<W>, epoch: Option<Time>) -> Self {
        Self {
            sources,
            writer,
            epoch,
            written: Seen::default(),
            hasher: RandomState::new(),
            linked: HashMap::new(),
            room: NAMES,
            buffer: Vec::new(),
        }
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// Those of the stream.
    pub(super) fn finish(self) -> Result<W> {
        self.writer.finish().map_err(stream_error)
    }

    /// A name of the older tree that is gone.
    pub(super) fn deleted(&mut self, path: &[u8]) -> Result<()> {
        let cut = path
            .iter()
            .rposition(|b| *b == b'/')
            .map_or(0, |slash| slash + 1);
        let name = [&path[..cut], b".wh.", &path[cut..]].concat();
        self.parents(path)?;
        // Parity: the time of a deletion is 1970.
        self.put(&Entry::bare(Kind::File, name))
    }

    /// A node that is as before: written only as a further name of a file that changed.
    pub(super) fn unchanged(&mut self, node: &Node<'_>) -> Result<()> {
        if !has_names(node.stat) {
            return Ok(());
        }
        let inode = (node.stat.st_dev, node.stat.st_ino);
        let before = match self.linked.get(&inode) {
            Some(Linked::Written(..)) => return self.another(node),
            Some(Linked::Unchanged(names)) => names.len(),
            None => 0,
        };
        if before + 1 >= name_count(node.stat) {
            if let Some(Linked::Unchanged(names)) = self.linked.remove(&inode) {
                self.room += names.iter().map(|name| taken(name)).sum::<usize>();
            }
            return Ok(());
        }
        self.remember(node.path)?;
        let none = || Linked::Unchanged(Vec::new());
        if let Linked::Unchanged(names) = self.linked.entry(inode).or_insert_with(none) {
            names.push(node.path.to_vec());
        }
        Ok(())
    }

    /// Takes room for a name.
    fn remember(&mut self, name: &[u8]) -> Result<()> {
        self.room = self.room.checked_sub(taken(name)).ok_or_else(|| {
            Error::resource_exhausted(format_args!(
                "names of hard-linked files take more than {NAMES} bytes until all of them are seen"
            ))
        })?;
        Ok(())
    }

    /// A further name of a file whose data stands in the archive.
    fn another(&mut self, node: &Node<'_>) -> Result<()> {
        let inode = (node.stat.st_dev, node.stat.st_ino);
        let Some(Linked::Written(first, seen)) = self.linked.get_mut(&inode) else {
            return Ok(());
        };
        *seen += 1;
        let first = if *seen < name_count(node.stat) {
            first.clone()
        } else {
            // It was the last one: nobody asks again.
            let first = std::mem::take(first);
            self.room += taken(&first);
            self.linked.remove(&inode);
            first
        };
        self.link(node, node.path, first)
    }

    /// A node that is new or other than before.
    pub(super) fn changed(&mut self, node: &Node<'_>) -> Result<()> {
        if !has_names(node.stat) {
            return self.whole(node);
        }
        let inode = (node.stat.st_dev, node.stat.st_ino);
        if let Some(Linked::Written(..)) = self.linked.get(&inode) {
            return self.another(node);
        }
        self.whole(node)?;
        let names = match self.linked.remove(&inode) {
            Some(Linked::Unchanged(names)) => names,
            _ => Vec::new(),
        };
        let seen = names.len() + 1;
        for name in names {
            self.room += taken(&name);
            self.link(node, &name, node.path.to_vec())?;
        }
        if seen < name_count(node.stat) {
            self.remember(node.path)?;
            let written = Linked::Written(node.path.to_vec(), seen);
            self.linked.insert(inode, written);
        }
        Ok(())
    }

    fn link(&mut self, node: &Node<'_>, path: &[u8], to: Vec<u8>) -> Result<()> {
        // Its attributes stand with the first name.
        let mut entry = self
            .describe(node, |_| ())
            .map_err(|e| entry_error("read", path, e))?;
        entry.kind = Kind::Link;
        entry.name = path.to_vec();
        entry.link = to;
        entry.size = 0;
        self.parents(path)?;
        self.put(&entry)
    }

    fn whole(&mut self, node: &Node<'_>) -> Result<()> {
        let entry = self
            .describe(node, |name| told_left_out(node.path, name))
            .map_err(|e| entry_error("read", node.path, e))?;
        self.parents(node.path)?;
        if entry.kind == Kind::Directory {
            self.note(node.path);
        }
        self.put(&entry)?;
        if entry.kind == Kind::File && entry.size > 0 {
            self.data(node, entry.size)
        } else {
            Ok(())
        }
    }

    fn put(&mut self, entry: &Entry) -> Result<()> {
        self.writer.entry(entry).map_err(stream_error)
    }

    fn describe(&self, node: &Node<'_>, left_out: impl FnMut(&[u8])) -> Result<Entry, Errno> {
        let Node {
            dir,
            name,
            path,
            stat,
        } = node;
        let kind = kind(stat);
        let mut mtime = Time {
            seconds: stat.st_mtime,
            nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        };
        if let Some(epoch) = self.epoch {
            mtime = mtime.min(epoch);
        }
        let device = matches!(kind, Kind::Char | Kind::Block);
        let number = if device { stat.st_rdev } else { 0 };
        let mut full = path.to_vec();
        if kind == Kind::Directory {
            full.push(b'/');
        }
        Ok(Entry {
            kind,
            name: full,
            link: if kind == Kind::Symlink {
                rustix::fs::readlinkat(dir, *name, Vec::new())?.into_bytes()
            } else {
                Vec::new()
            },
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: if kind == Kind::File {
                u64::try_from(stat.st_size).unwrap_or(0)
            } else {
                0
            },
            mtime,
            atime: None,
            major: rustix::fs::major(number),
            minor: rustix::fs::minor(number),
            xattrs: xattrs(&through_fd(dir, name), &self.sources.upper_ids, left_out)?,
            sparse: None,
        })
    }

    /// Notes that a directory stands in the archive.
    fn note(&mut self, directory: &[u8]) {
        self.written.insert(self.hasher.hash_one(directory));
    }

    /// Writes the directories above `path` that are not in the archive yet.
    fn parents(&mut self, path: &[u8]) -> Result<()> {
        let slashes = path
            .iter()
            .enumerate()
            .filter(|(_, b)| **b == b'/')
            .map(|(at, _)| at);
        for at in slashes.collect::<Vec<_>>() {
            let parent = &path[..at];
            if self.written.contains(self.hasher.hash_one(parent)) {
                continue;
            }
            let fail = |e| entry_error("read", parent, e);
            let dir = self.sources.upper.plain_directory(parent).map_err(fail)?;
            let stat = rustix::fs::fstat(&dir).map_err(fail)?;
            let stat = self.sources.upper_ids.facts(stat);
            let node = Node {
                dir: &dir,
                name: b".",
                path: parent,
                stat: &stat,
            };
            let told = |name: &[u8]| told_left_out(parent, name);
            let entry = self.describe(&node, told).map_err(fail)?;
            self.note(parent);
            self.put(&entry)?;
        }
        Ok(())
    }

    fn data(&mut self, node: &Node<'_>, size: u64) -> Result<()> {
        let fd = open_regular(node.dir, node.name, node.stat)
            .map_err(|e| entry_error("open", node.path, e))?;
        let mut file = File::from(fd);
        self.buffer.resize(CHUNK, 0);
        let mut left = size;
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            let got = file.read(&mut self.buffer[..want]).map_err(|e| {
                entry_error(
                    "read",
                    node.path,
                    Errno::from_io_error(&e).unwrap_or(Errno::IO),
                )
            })?;
            if got == 0 {
                return Err(Error::aborted(format_args!(
                    "{:?} shrank while it was read",
                    String::from_utf8_lossy(node.path)
                )));
            }
            self.writer
                .data(&self.buffer[..got])
                .map_err(stream_error)?;
            left -= got as u64;
        }
        Ok(())
    }
}

fn told_left_out(path: &[u8], name: &[u8]) {
    let [path, name] = [path, name].map(String::from_utf8_lossy);
    tracing::warn!(%path, %name, "a layer cannot hold this extended attribute");
}

fn has_names(stat: &Stat) -> bool {
    stat.st_nlink > 1 && file_type(stat) != FileType::Directory
}

fn name_count(stat: &Stat) -> usize {
    usize::try_from(stat.st_nlink).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use rustix::fs::FileType;

    use super::*;
    use crate::testing::{Bench, bind};

    #[test]
    fn names_that_wait_for_others_have_a_ceiling_and_give_their_room_back() {
        let bench = Bench::new();
        let [lower, upper] = ["lower", "upper"].map(|name| bench.dir(name));
        for (name, more) in [("a", "b"), ("c", "d"), ("e", "f")] {
            std::fs::write(upper.join(name), name).unwrap();
            std::fs::hard_link(upper.join(name), upper.join(more)).unwrap();
        }
        let temporary = bench.dir("mounts");
        let sources = Sources::open(&temporary, &bind(&lower), &bind(&upper)).unwrap();
        let dir = sources.upper.plain_directory(b"").unwrap();
        let mut layer = Layer::new(&sources, Writer::new(Vec::new()), None);
        layer.room = 2 * (EACH + 1);
        let mut show = |name: &str, is_changed: bool| {
            let stat = crate::root::stat(&dir, name.as_bytes()).unwrap().unwrap();
            assert_eq!(file_type(&stat), FileType::RegularFile);
            let node = Node {
                dir: &dir,
                name: name.as_bytes(),
                path: name.as_bytes(),
                stat: &stat,
            };
            let done = match is_changed {
                true => layer.changed(&node),
                false => layer.unchanged(&node),
            };
            (done, layer.room)
        };
        for (name, is_changed, left) in [
            ("a", false, EACH + 1),
            ("c", true, 0),
            ("b", false, EACH + 1),
            ("d", false, 2 * (EACH + 1)),
            ("a", false, EACH + 1),
            ("b", true, 2 * (EACH + 1)),
            ("c", false, EACH + 1),
            ("a", true, 0),
        ] {
            let (done, room) = show(name, is_changed);
            done.unwrap();
            assert_eq!(room, left, "{name}");
        }
        for is_changed in [false, true] {
            let error = show("e", is_changed).0.unwrap_err();
            assert!(error.is(types::Code::ResourceExhausted), "{error}");
        }
    }
}
