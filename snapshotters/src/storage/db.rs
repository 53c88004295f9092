//! The index on disk: a redb file for what is durable. Beside it is the log of groups ([`super::log`]).
//!
//! Invariant: redb holds every group up to the sequence number it stores.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use types::{Error, Result, SnapshotKey};

use super::row::{Change, Row};

/// Name of the file in the root.
pub(crate) const FILE: &str = "metadata.redb";
const SNAPSHOTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshots");
const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");
/// Counter: the last group in the file.
const SEQUENCE: &str = "sequence";
/// Counter: the first free id.
const NEXT_ID: &str = "next-id";
/// The index is small and kept in memory by us: the engine needs next to no cache.
const CACHE: usize = 512 * 1024;

/// What the disk knew at start.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    pub(super) rows: Vec<(SnapshotKey, Row)>,
    pub(super) sequence: u64,
    pub(super) next_id: u64,
}

/// The durable file.
#[derive(Debug)]
pub(super) struct Db {
    path: PathBuf,
    /// `None` after a failed write, until it can be opened again.
    file: Option<Database>,
}

fn engine(what: &'static str, error: impl Into<redb::Error>) -> Error {
    let error = error.into();
    let made = match &error {
        redb::Error::DatabaseAlreadyOpen => {
            Error::unavailable("the snapshot index is in use by another process")
        }
        redb::Error::Corrupted(why) => {
            Error::data_loss(format_args!("snapshot index is damaged: {why}"))
        }
        redb::Error::Io(io) => match io.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Error::resource_exhausted(io),
            // Answers about the file's bytes, not about the disk.
            ErrorKind::InvalidData | ErrorKind::UnexpectedEof | ErrorKind::InvalidInput => {
                Error::data_loss(format_args!("snapshot index is damaged: {io}"))
            }
            _ => Error::unknown(io),
        },
        other => Error::unknown(other),
    };
    made.with_source(error).ctx(what)
}

/// How long a file that another process has is waited for, and the pause between two looks.
const PATIENCE: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(10);

/// Never makes the file: one that was cut to nothing must not become an empty index. Who has it is about
/// to go, as a rule: a daemon that hands over, or a child of one between its fork and its exec.
fn database(path: &Path) -> Result<Database> {
    patiently(path, || std::thread::sleep(LOOK))
}

fn patiently(path: &Path, mut wait: impl FnMut()) -> Result<Database> {
    let begun = Instant::now();
    loop {
        match redb::Builder::new().set_cache_size(CACHE).open(path) {
            Err(redb::DatabaseError::DatabaseAlreadyOpen) if begun.elapsed() < PATIENCE => wait(),
            opened => return opened.map_err(|e| engine("open snapshot index", e)),
        }
    }
}

impl Db {
    /// Opens the file at `path` and reads it, once all of it is known to be whole.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable` while another process has it; `DataLoss` when it is damaged; I/O.
    pub(super) fn open(path: &Path) -> Result<(Self, Loaded)> {
        let gone = || Error::not_found(format_args!("snapshot index {}", path.display()));
        if !path.exists() {
            return Err(gone());
        }
        match sys::damage::guarded(|| Self::whole(path))? {
            Some(opened) => opened,
            None => Err(Error::data_loss("snapshot index is damaged")),
        }
    }

    fn whole(path: &Path) -> Result<(Self, Loaded)> {
        let mut file = database(path)?;
        file.check_integrity()
            .map_err(|e| engine("check snapshot index", e))?;
        let mut db = Self {
            path: path.to_owned(),
            file: Some(file),
        };
        let loaded = db.load()?;
        Ok((db, loaded))
    }

    /// Makes the file, with these rows; what was there is kept aside, and told.
    ///
    /// # Errors
    /// I/O.
    pub(super) fn make(path: &Path, loaded: &Loaded) -> Result<(Self, Option<PathBuf>)> {
        let draft = path.with_extension("new");
        match std::fs::remove_file(&draft) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                return Err(Error::os(format_args!("remove {}", draft.display()), e));
            }
            _ => {}
        }
        let made = redb::Builder::new()
            .set_cache_size(CACHE)
            .create(&draft)
            .map_err(|e| engine("make snapshot index", e))?;
        let mut made = Self {
            path: draft.clone(),
            file: Some(made),
        };
        let rows: Vec<Change> = loaded
            .rows
            .iter()
            .map(|(key, row)| Change {
                key: key.clone(),
                row: Some(row.clone()),
            })
            .collect();
        made.write(&rows, loaded.sequence, loaded.next_id)?;
        drop(made);
        let aside = sys::damage::keep_aside(path)?;
        std::fs::rename(&draft, path)
            .map_err(|e| Error::os(format_args!("rename {}", draft.display()), e))?;
        sys::fs::fsync_dir(path.parent().unwrap_or_else(|| Path::new(".")))?;
        Ok((Self::open(path)?.0, aside))
    }

    fn database(&mut self) -> Result<&Database> {
        if self.file.is_none() {
            self.file = Some(database(&self.path)?);
        }
        self.file
            .as_ref()
            .ok_or_else(|| Error::internal("snapshot index is closed"))
    }

    /// Everything in the file.
    ///
    /// # Errors
    /// `DataLoss` for a row that does not decode; I/O.
    fn load(&mut self) -> Result<Loaded> {
        let tx = self
            .database()?
            .begin_read()
            .map_err(|e| engine("read snapshot index", e))?;
        let mut loaded = Loaded::default();
        let counters = match tx.open_table(COUNTERS) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(loaded),
            Err(e) => return Err(engine("read snapshot index", e)),
        };
        let counter = |name| -> Result<u64> {
            let value = counters
                .get(name)
                .map_err(|e| engine("read snapshot index", e))?;
            Ok(value.map_or(0, |v| v.value()))
        };
        loaded.sequence = counter(SEQUENCE)?;
        loaded.next_id = counter(NEXT_ID)?;
        let table = tx
            .open_table(SNAPSHOTS)
            .map_err(|e| engine("read snapshot index", e))?;
        for entry in table.iter().map_err(|e| engine("read snapshot index", e))? {
            let (key, value) = entry.map_err(|e| engine("read snapshot index", e))?;
            let key = SnapshotKey::try_from(key.value().to_owned())?;
            let row = Row::decode(value.value())
                .map_err(|e| e.ctx(format!("snapshot {:?}", key.as_str())))?;
            loaded.rows.push((key, row));
        }
        Ok(loaded)
    }

    /// Writes changes in order, durably, as everything up to `sequence`.
    ///
    /// # Errors
    /// `ResourceExhausted` on a full disk, I/O. The file then holds what it held before.
    pub(super) fn write(&mut self, changes: &[Change], sequence: u64, next_id: u64) -> Result<()> {
        let done = self.try_write(changes, sequence, next_id);
        if done.is_err() {
            // The engine refuses all work after an I/O error; the next write opens it anew.
            self.file = None;
        }
        done
    }

    fn try_write(&mut self, changes: &[Change], sequence: u64, next_id: u64) -> Result<()> {
        const WHAT: &str = "write snapshot index";
        let tx = self
            .database()?
            .begin_write()
            .map_err(|e| engine(WHAT, e))?;
        {
            let mut table = tx.open_table(SNAPSHOTS).map_err(|e| engine(WHAT, e))?;
            for change in changes {
                match &change.row {
                    Some(row) => {
                        let text = row.encode()?;
                        drop(
                            table
                                .insert(change.key.as_str(), text.as_slice())
                                .map_err(|e| engine(WHAT, e))?,
                        );
                    }
                    None => {
                        drop(
                            table
                                .remove(change.key.as_str())
                                .map_err(|e| engine(WHAT, e))?,
                        );
                    }
                }
            }
            let mut counters = tx.open_table(COUNTERS).map_err(|e| engine(WHAT, e))?;
            for (name, value) in [(SEQUENCE, sequence), (NEXT_ID, next_id)] {
                drop(counters.insert(name, value).map_err(|e| engine(WHAT, e))?);
            }
        }
        tx.commit().map_err(|e| engine(WHAT, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_is_about_to_be_closed_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let mut held = Some(redb::Builder::new().create(&path).unwrap());
        let mut waits = 0;
        let opened = patiently(&path, || {
            waits += 1;
            if waits == 3 {
                held = None;
            }
        });
        drop(opened.unwrap());
        assert_eq!(waits, 3);
    }
}
