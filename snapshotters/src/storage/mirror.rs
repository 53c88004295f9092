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
    let at = |e| os("write", &draft, e);
    let mut file = BufWriter::new(File::create(&draft).map_err(at)?);
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
    std::fs::rename(&draft, path).map_err(|e| os("rename", &draft, e))?;
    sys::fs::fsync_dir(path.parent().unwrap_or_else(|| Path::new(".")))?;
    Ok(len)
}

/// What copy and log tell together.
#[derive(Debug, Default)]
pub(super) struct Mirror {
    pub(super) loaded: Loaded,
    /// Length of the copy.
    pub(super) len: u64,
    /// Its last group: the file held it before the copy was made.
    pub(super) copied: u64,
}

/// Reads copy and log; `None` when a part is missing.
///
/// # Errors
/// I/O.
pub(super) fn read(path: &Path, log: &[Group]) -> Result<Option<Mirror>> {
    let (mut rows, mut sequence, mut next_id, mut len) = (BTreeMap::new(), 0, 0, 0);
    match std::fs::read(path) {
        Ok(text) => {
            let Some(last) = copy(&text, &mut rows) else {
                return Ok(None);
            };
            (sequence, next_id, len) = (last.seq, last.next, text.len() as u64);
        }
        // An index that has never been copied is all in its log.
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(os("read", path, e)),
    }
    let copied = sequence;
    for group in log.iter().filter(|group| group.seq > copied) {
        if group.seq != sequence + 1 {
            return Ok(None);
        }
        apply(&mut rows, &group.changes);
        (sequence, next_id) = (group.seq, next_id.max(group.next));
    }
    let loaded = Loaded {
        rows: rows.into_iter().collect(),
        sequence,
        next_id,
    };
    let mirror = Mirror {
        loaded,
        len,
        copied,
    };
    Ok((sequence > 0).then_some(mirror))
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
