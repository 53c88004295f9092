//! The directories of snapshots: what their names say.
//!
//! ```text
//!   <id>        a snapshot
//!   new-<id>    one that is being made, or was when the machine went down
//!   lost-<id>   one whose row a restored index does not have
//!   ready-<n>   one of nobody yet, made beforehand
//! ```
//! Invariant: what is lost keeps its id and is deleted by nobody but an administrator.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use types::{Error, Result};

use crate::note::Note;

/// Prefix of a directory that is being made.
pub(crate) const NEW: &str = "new-";
/// Prefix of a directory without a row that is no garbage.
const LOST: &str = "lost-";

/// Prefix of a directory that is made before anybody asks for it.
pub(crate) const READY: &str = "ready-";

/// Where the directory of a snapshot is that was set aside.
pub(crate) fn lost_path(directories: &Path, id: u64) -> PathBuf {
    directories.join(format!("{LOST}{id}"))
}

/// The directories at one moment, by id.
#[derive(Debug, Default)]
pub(crate) struct Directories {
    path: PathBuf,
    made: Vec<u64>,
    half: Vec<u64>,
    lost: Vec<u64>,
    /// They belong to somebody else, who is only looked at.
    is_foreign: bool,
    /// They may bear notes.
    are_noted: bool,
}

impl Directories {
    /// Those in `path`.
    ///
    /// # Errors
    /// I/O.
    pub(crate) fn list(path: &Path) -> Result<Self> {
        let names = listing(path)?;
        let with = |prefix| -> Vec<u64> {
            let ids = names.iter().filter_map(|name| name.strip_prefix(prefix));
            ids.filter_map(|id| id.parse().ok()).collect()
        };
        Ok(Self {
            path: path.to_owned(),
            made: with(""),
            half: with(NEW),
            lost: with(LOST),
            is_foreign: false,
            are_noted: false,
        })
    }

    /// The same, which tell of themselves.
    pub(crate) fn noted(self) -> Self {
        Self {
            are_noted: true,
            ..self
        }
    }

    /// The notes of those that are not in `known`.
    pub(crate) fn notes(&self, known: &HashSet<u64>) -> Vec<(u64, Note)> {
        let unknown = self.made.iter().filter(|id| !known.contains(id));
        let unknown = unknown.filter(|_| self.are_noted);
        let note = |id: &u64| Some((*id, Note::read(&self.path.join(id.to_string()))?));
        unknown.filter_map(note).collect()
    }

    /// Those in `path`, if it is there; nothing is going to be moved.
    ///
    /// # Errors
    /// I/O.
    pub(crate) fn look(path: &Path) -> Result<Self> {
        let found = if path.is_dir() {
            Self::list(path)?
        } else {
            Self::default()
        };
        Ok(Self {
            is_foreign: true,
            ..found
        })
    }

    /// Ids of snapshots that were made.
    pub(crate) fn present(&self) -> HashSet<u64> {
        self.made.iter().copied().collect()
    }

    /// Where they are, when they are ours to flush.
    pub(crate) fn to_flush(&self) -> Option<PathBuf> {
        (!self.is_foreign).then(|| self.path.clone())
    }

    /// The highest id that anything bears.
    pub(crate) fn highest(&self) -> Option<u64> {
        let all = self.made.iter().chain(&self.half).chain(&self.lost);
        all.copied().max()
    }

    /// Moves snapshots that are not in `known` out of the way of a cleanup, durably, and tells how many
    /// there are.
    ///
    /// # Errors
    /// I/O.
    pub(crate) fn set_aside(&self, known: &HashSet<u64>) -> Result<usize> {
        let unknown: Vec<_> = self.made.iter().filter(|id| !known.contains(id)).collect();
        if self.is_foreign {
            return Ok(unknown.len());
        }
        for id in &unknown {
            let from = self.path.join(id.to_string());
            let to = lost_path(&self.path, **id);
            match std::fs::rename(&from, &to) {
                Ok(()) => tracing::warn!(
                    kept = %to.display(),
                    "the restored index has no snapshot for this directory: moved aside"
                ),
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(Error::os(format_args!("rename {}", from.display()), e)),
            }
        }
        // Always: an open that was cut off may have moved them.
        sys::fs::fsync_dir(&self.path)?;
        Ok(unknown.len())
    }

    /// Snapshots of these ids in `path`, made or not.
    #[cfg(test)]
    pub(crate) fn of(path: &Path, ids: &[u64]) -> Self {
        Self {
            path: path.to_owned(),
            made: ids.to_vec(),
            ..Self::default()
        }
    }
}

/// Those of `names` that belong neither to a row, nor to one that is being made, nor to an administrator
/// who has to look at them, nor to whoever comes next. What is half made is no row's.
pub(crate) fn garbage(
    names: Vec<String>,
    rows: &HashSet<u64>,
    making: &HashSet<u64>,
) -> Vec<String> {
    let has = |ids: &HashSet<u64>, id: &str| id.parse().is_ok_and(|id| ids.contains(&id));
    let is_garbage = |name: &String| match name.strip_prefix(NEW) {
        Some(half) => !has(making, half),
        None if name.starts_with(LOST) || name.starts_with(READY) => false,
        None => !has(rows, name) && !has(making, name),
    };
    names.into_iter().filter(is_garbage).collect()
}

/// True for the name of one that was set aside.
pub(crate) fn is_lost(name: &str) -> bool {
    name.starts_with(LOST)
}

/// Names of everything in `directory`.
///
/// # Errors
/// I/O.
pub(crate) fn listing(directory: &Path) -> Result<Vec<String>> {
    let os = |e| Error::os(format_args!("read {}", directory.display()), e);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(os)? {
        let name = entry.map_err(os)?.file_name();
        match name.into_string() {
            Ok(name) => names.push(name),
            Err(name) => tracing::warn!(?name, "foreign entry among the snapshots"),
        }
    }
    Ok(names)
}
