//! The walk over both trees.
//!
//! Invariant: names in byte order, a directory before its entries; at most [`OPEN`] levels hold
//! descriptors, whatever the depth. Unchanged directories are written only as parents of changes.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Stat};
use types::Result;

use super::contents::{Contents, IsGone, is_to_be_read};
use super::layer::{Layer, Node, wanted_xattrs};
use super::names::{Names, Room};
use super::sources::Sources;
use crate::lower::is_opaque;
use crate::root::{Root, entry_error, file_type, is_whiteout, stat, through_fd};
use crate::tar::{Time, Writer};

/// Levels of directories that are kept open.
const OPEN: usize = 64;

/// A comparison under way.
pub(super) struct Walk<'a, W: Write> {
    sources: &'a Sources,
    layer: Layer<'a, W>,
    room: Room,
    contents: Contents<'a>,
}

/// A directory being walked.
struct Level {
    path: Vec<u8>,
    names: Names,
    /// False when nothing of the older tree is below.
    has_lower: bool,
    /// Descriptors, while near the top of the stack.
    open: Option<Pair>,
}

struct Pair {
    lower: Option<OwnedFd>,
    upper: OwnedFd,
}

impl<'a, W: Write> Walk<'a, W> {
    /// A walk that writes to `writer`, no time later than `epoch`, until whoever reads that is gone.
    pub(super) fn new(
        sources: &'a Sources,
        writer: Writer<W>,
        epoch: Option<Time>,
        is_gone: IsGone<'a>,
    ) -> Self {
        Self {
            sources,
            layer: Layer::new(sources, writer, epoch),
            room: Room::default(),
            contents: Contents::new(is_gone),
        }
    }

    /// Walks to the end and returns the finished archive's stream.
    ///
    /// # Errors
    /// I/O on the trees or the stream; `Cancelled`.
    pub(super) fn run(mut self) -> Result<W> {
        let top = self.level(Vec::new(), self.sources.lower.is_some())?;
        let mut stack = vec![top];
        while let Some(level) = stack.last_mut() {
            if level.names.is_done() {
                stack.pop();
                continue;
            }
            if level.open.is_none() {
                level.open = Some(self.pair(&level.path, level.has_lower)?);
            }
            let Some(pair) = &level.open else { continue };
            let Some(name) = level.names.next(&mut self.room) else {
                self.read(&level.path, pair, &mut level.names)?;
                continue;
            };
            let path = join(&level.path, &name);
            let below = self.entry(pair, &name, &path)?;
            if let Some(has_lower) = below {
                let next = self.level(path, has_lower)?;
                let depth = stack.len();
                if depth >= OPEN {
                    stack[depth - OPEN].open = None;
                }
                stack.push(next);
            }
        }
        self.layer.finish()
    }

    fn pair(&self, path: &[u8], has_lower: bool) -> Result<Pair> {
        let open = |root: &Root| {
            root.plain_directory(path)
                .map_err(|e| entry_error("open", path, e))
        };
        let lower = match &self.sources.lower {
            Some(lower) if has_lower => Some(open(lower)?),
            _ => None,
        };
        Ok(Pair {
            lower,
            upper: open(&self.sources.upper)?,
        })
    }

    fn level(&mut self, path: Vec<u8>, has_lower: bool) -> Result<Level> {
        let pair = self.pair(&path, has_lower)?;
        let mut names = Names::default();
        self.read(&path, &pair, &mut names)?;
        Ok(Level {
            path,
            names,
            has_lower,
            open: Some(pair),
        })
    }

    /// Reads the next names of a directory.
    fn read(&mut self, path: &[u8], pair: &Pair, names: &mut Names) -> Result<()> {
        // What an upper directory does not name is as below, unless the directory is opaque.
        let merged = self
            .sources
            .opaque
            .is_some_and(|opaque| !is_opaque(&pair.upper, opaque));
        let lower = pair.lower.as_ref().filter(|_| !merged);
        let directories = lower.into_iter().chain([&pair.upper]);
        names
            .read(directories, &mut self.room)
            .map_err(|e| entry_error("read", path, e))
    }

    /// Handles one name; for a directory to walk, whether there is an older one.
    fn entry(&mut self, pair: &Pair, name: &[u8], path: &[u8]) -> Result<Option<bool>> {
        // Where nothing changed, nothing is written that could fail.
        self.contents.check()?;
        let (sources, layer) = (self.sources, &mut self.layer);
        let fail = |e| entry_error("compare", path, e);
        let lower = match &pair.lower {
            Some(lower) => stat(lower, name).map_err(fail)?,
            None => None,
        };
        let lower = lower.map(|facts| sources.lower_ids.facts(facts));
        let upper = stat(&pair.upper, name).map_err(fail)?;
        let upper = upper.map(|facts| sources.upper_ids.facts(facts));
        let upper = upper.filter(|upper| {
            let deleted = sources.opaque.is_some() && is_whiteout(upper);
            // Parity: sockets are not archived.
            !deleted && file_type(upper) != FileType::Socket
        });
        let Some(upper) = upper else {
            if lower.is_some() {
                layer.deleted(path)?;
            }
            return Ok(None);
        };
        if name.starts_with(b".wh.") {
            tracing::warn!(path = %String::from_utf8_lossy(path), "a layer cannot hold this name");
            return Ok(None);
        }
        let node = Node {
            dir: &pair.upper,
            name,
            path,
            stat: &upper,
        };
        let same = match (&lower, &pair.lower) {
            (Some(old), Some(dir)) => same(dir, old, &node, sources, &mut self.contents)?,
            _ => false,
        };
        if same {
            layer.unchanged(&node)?;
        } else {
            layer.changed(&node)?;
        }
        let directory = |stat: &Stat| file_type(stat) == FileType::Directory;
        Ok(directory(&upper).then(|| lower.as_ref().is_some_and(directory)))
    }
}

/// `parent/name`.
fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() {
        name.to_vec()
    } else {
        [parent, b"/", name].concat()
    }
}

/// True when an entry is the same in both trees.
fn same(
    dir: &OwnedFd,
    old: &Stat,
    new: &Node<'_>,
    sources: &Sources,
    contents: &mut Contents<'_>,
) -> Result<bool> {
    let fail = |e| entry_error("compare", new.path, e);
    let stat = new.stat;
    // The newer one lies in an upper directory: something about it was touched, and its contents are
    // worth a look.
    let copied_up = sources.opaque.is_some();
    if (old.st_mode, old.st_uid, old.st_gid, old.st_rdev)
        != (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_rdev)
    {
        return Ok(false);
    }
    let kind = file_type(stat);
    let xattrs = |dir: &OwnedFd, ids| wanted_xattrs(&through_fd(dir, new.name), ids);
    if kind != FileType::Directory {
        if old.st_size != stat.st_size || old.st_mtime != stat.st_mtime {
            return Ok(false);
        }
        let (a, b) = (old.st_mtime_nsec, stat.st_mtime_nsec);
        // Parity: archives may have cut the time to seconds.
        if a != b && a != 0 && b != 0 {
            return Ok(false);
        }
        if kind == FileType::Symlink {
            let text = |dir| rustix::fs::readlinkat(dir, new.name, Vec::new());
            if text(dir.as_fd()).map_err(fail)? != text(new.dir.as_fd()).map_err(fail)? {
                return Ok(false);
            }
        }
        if kind == FileType::RegularFile
            && is_to_be_read(old, stat, copied_up)
            && !contents.are_same(dir, old, new)?
        {
            return Ok(false);
        }
    }
    let before = xattrs(dir, &sources.lower_ids).map_err(fail)?;
    Ok(before == xattrs(new.dir, &sources.upper_ids).map_err(fail)?)
}
