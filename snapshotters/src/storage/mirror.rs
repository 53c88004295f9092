//! The second copy of the index, for the day when its file is damaged.
//!
//! Invariant: the copy with the groups of the log behind it is the whole index at the log's last group,
//! or it is not taken. Copy and log hold the same kind of line; the copy's last line has no changes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, ErrorKind, Write as _};
use std::path::Path;

use types::{Error, Result, SnapshotKey};

use super::db::Loaded;
use super::row::{Change, Group, Row};

/// Rows in one line of the copy.
const LINE: usize = 256;

fn os(what: &str, path: &Path, error: std::io::Error) -> Error {
    Error::os(format_args!("{what} {}", path.display()), error)
}

/// Writes the copy, durably; what was there stays until it is complete. Returns its length.
///
/// # Errors
/// I/O.
pub(super) fn write(
    path: &Path,
    rows: &[(SnapshotKey, Row)],
    sequence: u64,
    next_id: u64,
) -> Result<u64> {
    let draft = path.with_extension("copy-new");
    let done = fill(&draft, rows, sequence, next_id).and_then(|len| {
        std::fs::rename(&draft, path).map_err(|e| os("rename", &draft, e))?;
        sys::fs::fsync_dir(path.parent().unwrap_or_else(|| Path::new(".")))?;
        Ok(len)
    });
    if done.is_err() {
        // On a full disk its half is what is missing elsewhere.
        drop(std::fs::remove_file(&draft));
    }
    done
}

fn fill(draft: &Path, rows: &[(SnapshotKey, Row)], sequence: u64, next_id: u64) -> Result<u64> {
    let at = |e| os("write", draft, e);
    let mut file = BufWriter::new(File::create(draft).map_err(at)?);
    let mut len = 0;
    for part in rows.chunks(LINE).chain([[].as_slice()]) {
        let changes: Vec<Change> = part
            .iter()
            .map(|(key, row)| Change {
                key: key.clone(),
                row: Some(row.clone()),
            })
            .collect();
        let line = Group::encode(sequence, next_id, &changes)?;
        file.write_all(&line).map_err(at)?;
        len += line.len() as u64;
    }
    let file = file.into_inner().map_err(|e| at(e.into_error()))?;
    file.sync_data().map_err(at)?;
    Ok(len)
}

/// What copy and log tell together: the copy first, then each group of the log.
#[derive(Debug, Default)]
pub(super) struct Mirror {
    rows: BTreeMap<SnapshotKey, Row>,
    sequence: u64,
    next_id: u64,
    /// Length of the copy.
    pub(super) len: u64,
    /// Its last group: the file held it before the copy was made.
    pub(super) copied: u64,
    /// A part is missing: nothing of it can be taken.
    is_broken: bool,
}

impl Mirror {
    /// Reads the copy. One that cannot be read is told and not taken: the file may be whole.
    pub(super) fn read(path: &Path) -> Self {
        let mut mirror = Self::default();
        match std::fs::read(path) {
            Ok(text) => match copy(&text, &mut mirror.rows) {
                Some(last) => {
                    (mirror.sequence, mirror.next_id) = (last.seq, last.next);
                    (mirror.copied, mirror.len) = (last.seq, text.len() as u64);
                }
                None => mirror.is_broken = true,
            },
            // An index that has never been copied is all in its log.
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => {
                tracing::warn!(error = %os("read", path, e), "snapshot index has no copy");
                mirror.is_broken = true;
            }
        }
        mirror
    }

    /// Goes on with a group of the log.
    pub(super) fn add(&mut self, group: &Group) {
        if self.is_broken || group.seq <= self.copied {
            return;
        }
        if group.seq != self.sequence + 1 {
            self.is_broken = true;
            return;
        }
        apply(&mut self.rows, &group.changes);
        (self.sequence, self.next_id) = (group.seq, self.next_id.max(group.next));
    }

    /// The last group of an index that is all here.
    pub(super) fn sequence(&self) -> Option<u64> {
        (!self.is_broken).then_some(self.sequence)
    }

    /// The index, when it is all here.
    pub(super) fn loaded(self) -> Option<Loaded> {
        let is_any = self.sequence().is_some_and(|last| last > 0);
        is_any.then(|| Loaded {
            rows: self.rows.into_iter().collect(),
            sequence: self.sequence,
            next_id: self.next_id,
        })
    }
}

/// Reads a copy's rows; its last line when it is complete.
fn copy(text: &[u8], rows: &mut BTreeMap<SnapshotKey, Row>) -> Option<Group> {
    for line in text.split_inclusive(|b| *b == b'\n') {
        let group = Group::decode(line).ok()?;
        if group.changes.is_empty() {
            return Some(group);
        }
        apply(rows, &group.changes);
    }
    None
}

fn apply(rows: &mut BTreeMap<SnapshotKey, Row>, changes: &[Change]) {
    for Change { key, row } in changes {
        match row {
            Some(row) => drop(rows.insert(key.clone(), row.clone())),
            None => drop(rows.remove(key)),
        }
    }
}

#[cfg(test)]
mod tests;
