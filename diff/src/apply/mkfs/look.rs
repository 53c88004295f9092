//! Which archives `mkfs.erofs` makes the same tree of as our own extraction does.
//!
//! Invariant: what is not declined comes out the same, and takes the program neither long nor much memory: it
//! looks through the list of a directory for each name in it, and has all names in memory.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};

use types::{Error, Result};

use crate::extract::{Limits, OPAQUE, WHITEOUT};
use crate::root::MAX_NAME;
use crate::seen::Seen;
use crate::tar::{Entry, Kind};

/// Most entries of an archive, and of one directory.
const MOST: u64 = 500_000;
const MOST_IN_ONE: u32 = 20_000;

/// What was seen of an archive.
#[derive(Debug)]
pub(super) struct Look {
    limits: Limits,
    /// Most bytes of files.
    most: u64,
    entries: u64,
    data: u64,
    paths: u64,
    hasher: RandomState,
    directories: Seen,
    names: Seen,
    /// What whiteouts hide.
    hidden: Seen,
    /// Entries of each directory.
    counts: HashMap<u64, u32>,
}

impl Look {
    /// Nothing was seen of a layer with these ceilings, and so many bytes of files at most.
    pub(super) fn new(limits: Limits, data: u64) -> Self {
        Self {
            limits,
            most: data.min(limits.stored),
            entries: 0,
            data: 0,
            paths: 0,
            hasher: RandomState::new(),
            directories: Seen::default(),
            names: Seen::default(),
            hidden: Seen::default(),
            counts: HashMap::new(),
        }
    }

    /// Looks at the next entry.
    ///
    /// # Errors
    /// `NotImplemented` for one of which the program would make something else, or too slowly;
    /// `ResourceExhausted` beyond a ceiling.
    pub(super) fn take(&mut self, entry: &Entry) -> Result<()> {
        self.limited(entry)?;
        taken(entry)?;
        let name = trimmed(&entry.name);
        let (parent, base) = split(name);
        let above = self.hasher.hash_one(parent);
        if !parent.is_empty() && !self.directories.contains(above) {
            return Err(declined(entry, "its directory does not come before it"));
        }
        let count = self.counts.entry(above).or_default();
        *count += 1;
        if *count > MOST_IN_ONE || self.entries > MOST {
            return Err(declined(entry, "there are too many like it"));
        }
        if base == OPAQUE {
            return Ok(());
        }
        // What a layer deletes and has anew stays, whichever comes first. What lies below it has its directory
        // before it, which is such a name.
        let is_twice = match base.strip_prefix(WHITEOUT) {
            Some(target) => {
                let hidden = match parent {
                    b"" => self.hasher.hash_one(target),
                    _ => self
                        .hasher
                        .hash_one([parent, b"/", target].concat().as_slice()),
                };
                self.hidden.insert(hidden);
                self.names.contains(hidden)
            }
            None => {
                let it = self.hasher.hash_one(name);
                self.names.insert(it);
                if entry.kind == Kind::Directory {
                    self.directories.insert(it);
                }
                self.hidden.contains(it)
            }
        };
        match is_twice {
            true => Err(declined(entry, "the layer deletes it as well")),
            false => Ok(()),
        }
    }

    fn limited(&mut self, entry: &Entry) -> Result<()> {
        self.entries += 1;
        self.data = self.data.saturating_add(entry.size);
        if entry.kind == Kind::Directory {
            self.paths += entry.name.len() as u64;
        }
        let (limits, most) = (&self.limits, self.most);
        let why = if self.entries > limits.entries {
            format!("layer has more than {} entries", limits.entries)
        } else if self.paths > limits.paths {
            format!(
                "paths of directories in layer have more than {} bytes",
                limits.paths
            )
        } else if entry.size > limits.bytes || self.data > most {
            format!(
                "files of layer have more than {most} bytes, which is the most for a blob of its size"
            )
        } else {
            return Ok(());
        };
        Err(Error::resource_exhausted(why))
    }
}

/// The name as a path below the root.
fn trimmed(mut name: &[u8]) -> &[u8] {
    while let Some(rest) = name.strip_prefix(b"./").or(name.strip_prefix(b"/")) {
        name = rest;
    }
    name.strip_suffix(b"/").unwrap_or(name)
}

/// The directory, empty for the root, and the name in it.
fn split(name: &[u8]) -> (&[u8], &[u8]) {
    match name.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&name[..at], &name[at + 1..]),
        None => (b"", name),
    }
}

/// Checks that the program makes of an entry what our own extraction makes of it.
pub(super) fn taken(entry: &Entry) -> Result<()> {
    let name = trimmed(&entry.name);
    let (_, base) = split(name);
    let odd = |part: &[u8]| matches!(part, b"" | b"." | b"..");
    let why = if entry.name.len() > MAX_NAME {
        "its name is too long"
    } else if !matches!(name, b"" | b".") && name.split(|byte| *byte == b'/').any(odd) {
        "its name is no plain path"
    } else if base.strip_prefix(WHITEOUT).is_some_and(odd) {
        "it deletes what has no name"
    } else if entry.kind == Kind::Char && (entry.major, entry.minor) == (0, 0) {
        // And what the layer has under that name, and links to it.
        "it deletes as overlayfs does"
    } else if entry.sparse.is_some() {
        "it is sparse"
    } else if entry.kind == Kind::Link && trimmed(&entry.link).split(|b| *b == b'/').any(odd) {
        "it is a link to no plain path"
    } else if entry.xattrs.iter().any(|(key, _)| is_reserved(key)) {
        "it has attributes of overlayfs"
    } else {
        return Ok(());
    };
    Err(declined(entry, why))
}

/// Attributes by which layers would tell overlayfs what only their unpacking may tell it.
fn is_reserved(key: &[u8]) -> bool {
    key.starts_with(b"trusted.") || key.starts_with(b"user.overlay.")
}

/// The error for an entry that is left to the other differ.
pub(super) fn declined(entry: &Entry, why: &str) -> Error {
    let name = String::from_utf8_lossy(&entry.name);
    Error::not_implemented(format_args!("image of entry {name:?}: {why}"))
}

#[cfg(test)]
mod tests {
    use types::Code;

    use super::*;
    use crate::testing::{dir, file};

    fn look() -> Look {
        Look::new(Limits::default(), u64::MAX)
    }

    #[test]
    fn whiteouts_of_overlayfs_are_declined() {
        let mut look = look();
        let device = |minor| Entry {
            minor,
            ..Entry::bare(Kind::Char, b"null".to_vec())
        };
        look.take(&device(3)).unwrap();
        let error = look.take(&device(0)).expect_err("declined");
        assert!(error.is(Code::NotImplemented), "{error}");
    }

    #[test]
    fn what_is_deleted_and_there_is_declined_whichever_comes_first() {
        for names in [
            ["f", ".wh.f"],
            [".wh.f", "./f"],
            ["d/f", "d/.wh.f"],
            ["d/.wh.f", "/d/f"],
            ["d/f", ".wh.d"],
        ] {
            let mut look = look();
            look.take(&dir("d/")).unwrap();
            let done = names.iter().try_for_each(|name| look.take(&file(name)));
            let error = done.expect_err("declined");
            assert!(error.is(Code::NotImplemented), "{names:?}: {error}");
        }
        let mut look = look();
        for name in [".wh.f", "g", ".wh..wh..opq", "d", "d/.wh.g", "d/f"] {
            look.take(&if name == "d" { dir(name) } else { file(name) })
                .unwrap();
        }
        // What deletes is no directory to put something into.
        look.take(&dir(".wh.e")).unwrap();
        look.take(&file(".wh.e/f")).unwrap_err();
    }

    #[test]
    fn what_would_take_the_program_too_long_is_declined() {
        let mut wide = look();
        for number in 0..MOST_IN_ONE {
            wide.take(&file(&format!("{number}"))).unwrap();
        }
        let error = wide.take(&file("one-more")).unwrap_err();
        assert!(error.is(Code::NotImplemented), "{error}");
        let mut many = Look {
            entries: MOST - 1,
            ..look()
        };
        many.take(&dir("d")).unwrap();
        let error = many.take(&file("d/f")).unwrap_err();
        assert!(error.is(Code::NotImplemented), "{error}");
    }

    #[test]
    fn paths_of_directories_have_a_ceiling() {
        let limits = Limits {
            paths: 10,
            ..Limits::default()
        };
        let mut look = Look::new(limits, u64::MAX);
        look.take(&dir("12345")).unwrap();
        look.take(&file("a-file-does-not-count")).unwrap();
        look.take(&dir("67890")).unwrap();
        let error = look.take(&dir("d")).unwrap_err();
        assert!(error.is(Code::ResourceExhausted), "{error}");
    }
}
