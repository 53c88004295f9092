//! A tree in memory that unpacks as the real one should, written for nothing but to be plain: no
//! descriptors, no system calls, all paths walked name by name from the top.
//!
//! It knows one root and nothing else, so it cannot reach outside; whatever the real one makes of an
//! archive must look the same.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use crate::root::components;
use crate::tar::{Entry, Kind};

/// Number of a node.
type Id = usize;

/// Links followed on the way to one directory.
const MAX_LINKS: usize = 40;

#[derive(Clone, Debug)]
enum Node {
    Directory(BTreeMap<Vec<u8>, Id>),
    File(Vec<u8>),
    Link(Vec<u8>),
    Fifo,
}

/// The archive is refused.
#[derive(Debug)]
pub(super) struct Refused;

type Done<T = ()> = Result<T, Refused>;

/// The tree.
#[derive(Debug)]
pub(super) struct Naive {
    nodes: Vec<(Node, u32)>,
    /// What the archive at hand has written: directory and name.
    written: BTreeSet<(Id, Vec<u8>)>,
    /// Directories that were emptied: what they hold since is the archive's own.
    emptied: BTreeSet<Id>,
    /// Nodes below this number are those of archives before.
    before: Id,
    /// One of those that is no directory was on the way to something.
    pub(super) is_through_below: bool,
}

impl Naive {
    pub(super) fn new() -> Self {
        Self {
            nodes: vec![(Node::Directory(BTreeMap::new()), 0)],
            written: BTreeSet::new(),
            emptied: BTreeSet::new(),
            before: 0,
            is_through_below: false,
        }
    }

    /// Unpacks an archive, whose files hold their own names.
    pub(super) fn unpack(&mut self, archive: &[Entry]) -> Done {
        self.written.clear();
        self.emptied.clear();
        self.before = self.nodes.len();
        self.is_through_below = false;
        archive.iter().try_for_each(|entry| self.entry(entry))
    }

    fn names(&mut self, directory: Id) -> &mut BTreeMap<Vec<u8>, Id> {
        match &mut self.nodes[directory].0 {
            Node::Directory(names) => names,
            other => unreachable!("{other:?} is no directory"),
        }
    }

    fn get(&mut self, directory: Id, name: &[u8]) -> Option<Id> {
        self.names(directory).get(name).copied()
    }

    fn is_directory(&self, id: Id) -> bool {
        matches!(self.nodes[id].0, Node::Directory(_))
    }

    fn add(&mut self, node: Node, mode: u32) -> Id {
        self.nodes.push((node, mode));
        self.nodes.len() - 1
    }

    /// The directory at a path, links followed, nothing above the root; missing ones are made or are an
    /// error.
    fn walk(&mut self, parts: &[&[u8]], make: bool) -> Done<Option<Id>> {
        let mut todo: Vec<Vec<u8>> = parts.iter().rev().map(|part| part.to_vec()).collect();
        let mut here: Vec<Id> = vec![0];
        let mut links = 0;
        while let Some(part) = todo.pop() {
            let at = *here.last().expect("the root");
            match &*part {
                b"" | b"." => continue,
                b".." => {
                    if here.len() > 1 {
                        here.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let Some(found) = self.get(at, &part) else {
                if !make {
                    return Ok(None);
                }
                let made = self.add(Node::Directory(BTreeMap::new()), 0o755);
                self.names(at).insert(part, made);
                here.push(made);
                continue;
            };
            self.is_through_below |= found < self.before && !self.is_directory(found);
            match self.nodes[found].0.clone() {
                Node::Directory(_) => here.push(found),
                Node::Link(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Refused);
                    }
                    if target.starts_with(b"/") {
                        here.truncate(1);
                    }
                    todo.extend(target.split(|b| *b == b'/').rev().map(<[u8]>::to_vec));
                }
                Node::File(_) | Node::Fifo => return Err(Refused),
            }
        }
        Ok(here.last().copied())
    }

    fn entry(&mut self, entry: &Entry) -> Done {
        let parts = components(&entry.name);
        let Some((base, parents)) = parts.split_last() else {
            return Ok(());
        };
        let directory = self.walk(parents, true)?.ok_or(Refused)?;
        if *base == b".wh..wh..opq" {
            self.empty(directory);
            return Ok(());
        }
        if let Some(target) = base.strip_prefix(b".wh.") {
            if matches!(target, b"" | b"." | b"..") {
                return Err(Refused);
            }
            self.delete(directory, target);
            return Ok(());
        }
        let mode = entry.mode;
        match entry.kind {
            Kind::Directory => match self.get(directory, base) {
                Some(old) if self.is_directory(old) => self.nodes[old].1 = mode,
                _ => self.put(directory, base, Node::Directory(BTreeMap::new()), mode),
            },
            Kind::File => self.put(directory, base, Node::File(entry.name.clone()), mode),
            Kind::Fifo => self.put(directory, base, Node::Fifo, mode),
            Kind::Symlink if entry.link.is_empty() => return Err(Refused),
            Kind::Symlink => self.put(directory, base, Node::Link(entry.link.clone()), 0o777),
            Kind::Link => self.link(directory, base, entry)?,
            Kind::Char | Kind::Block => unreachable!("not in these archives"),
        }
        self.written.insert((directory, base.to_vec()));
        Ok(())
    }

    fn put(&mut self, directory: Id, name: &[u8], node: Node, mode: u32) {
        let made = self.add(node, mode);
        self.names(directory).insert(name.to_vec(), made);
    }

    fn link(&mut self, directory: Id, name: &[u8], entry: &Entry) -> Done {
        let parts = components(&entry.link);
        let (base, parents) = parts.split_last().ok_or(Refused)?;
        let from = self.walk(parents, false)?.ok_or(Refused)?;
        let source = self.get(from, base).ok_or(Refused)?;
        if self.is_directory(source) {
            return Err(Refused);
        }
        if let Some(old) = self.get(directory, name)
            && self.holds(old, from)
        {
            // What stands in the way is taken away first, and the source goes with it.
            self.names(directory).remove(name);
            return Err(Refused);
        }
        self.names(directory).insert(name.to_vec(), source);
        if !matches!(self.nodes[source].0, Node::Link(_)) {
            self.nodes[source].1 = entry.mode;
        }
        Ok(())
    }

    /// True when `inner` is `outer`, or in it at whatever depth.
    fn holds(&mut self, outer: Id, inner: Id) -> bool {
        if !self.is_directory(outer) {
            return false;
        }
        let below: Vec<Id> = self.names(outer).values().copied().collect();
        outer == inner || below.into_iter().any(|id| self.holds(id, inner))
    }

    /// A whiteout: what this archive has written stays, of a directory that it wrote all of that.
    fn delete(&mut self, directory: Id, name: &[u8]) {
        let Some(found) = self.get(directory, name) else {
            return;
        };
        let is_written = self.written.contains(&(directory, name.to_vec()));
        let is_directory = self.is_directory(found);
        if is_directory {
            self.empty(found);
        }
        let is_empty = !is_directory || self.names(found).is_empty();
        if !is_written && is_empty {
            self.names(directory).remove(name);
        }
    }

    fn empty(&mut self, directory: Id) {
        if !self.emptied.insert(directory) {
            return;
        }
        for name in self.names(directory).keys().cloned().collect::<Vec<_>>() {
            self.delete(directory, &name);
        }
    }

    /// Kind and mode, content, and the first path of the same file, by path.
    pub(super) fn shown(&mut self) -> BTreeMap<PathBuf, (u32, Vec<u8>, PathBuf)> {
        let mut found = BTreeMap::new();
        self.show(0, &PathBuf::new(), &mut found);
        let mut firsts: BTreeMap<Id, PathBuf> = BTreeMap::new();
        for (path, (id, _, _)) in &found {
            firsts.entry(*id).or_insert_with(|| path.clone());
        }
        let all = found.into_iter();
        all.map(|(path, (id, mode, data))| (path, (mode, data, firsts[&id].clone())))
            .collect()
    }

    fn show(
        &mut self,
        at: Id,
        path: &std::path::Path,
        found: &mut BTreeMap<PathBuf, (Id, u32, Vec<u8>)>,
    ) {
        use std::os::unix::ffi::OsStrExt as _;
        for (name, id) in self.names(at).clone() {
            let path = path.join(std::ffi::OsStr::from_bytes(&name));
            let (node, mode) = self.nodes[id].clone();
            let (kind, data) = match node {
                Node::Directory(_) => (0o040_000, Vec::new()),
                Node::File(data) => (0o100_000, data),
                Node::Link(target) => (0o120_000, target),
                Node::Fifo => (0o010_000, Vec::new()),
            };
            found.insert(path.clone(), (id, kind | mode, data));
            if kind == 0o040_000 {
                self.show(id, &path, found);
            }
        }
    }
}
