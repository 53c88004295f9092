//! The engine, and how it comes back after a failed disk.
//!
//! Invariant: after any I/O error the engine refuses everything until it is opened again; the writer
//! thread does that, from the journal's last commit, so a disk that was full for a while costs those
//! requests that met it and nothing else.

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use redb::{
    Database, DatabaseError, Durability, ReadableDatabase as _, ReadableTable as _, StorageError,
    Table,
};
use types::{Error, Result};

use super::journal::Journal;
use super::{
    CACHE_BYTES, COMMIT, INCOMPLETE, LOST, RECORDS, STORE, TORN, UNASKED, number, unasked,
};

/// How often, and how long apart, a new opening waits for readers of the old one.
const REOPEN_TRIES: u32 = 50;
const REOPEN_WAIT: Duration = Duration::from_millis(10);

/// The open database, or none between a failure and its repair.
pub(super) struct Engine {
    path: PathBuf,
    slot: RwLock<Option<Database>>,
}

impl Engine {
    /// Opens the store at `path` once all of it is known to be whole, and tells its file's last commit.
    ///
    /// # Errors
    /// `DataLoss` when the file is damaged; `Unavailable` while another process has it; I/O.
    pub(super) fn open(path: &Path) -> Result<(Self, u64)> {
        let database =
            guarded(path).map_err(|e| e.ctx(format!("open metadata {}", path.display())))?;
        let engine = Self {
            path: path.to_owned(),
            slot: RwLock::new(Some(database)),
        };
        let commit = engine.with(number)?;
        Ok((engine, commit))
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Uses the open database for something short.
    pub(super) fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T>) -> Result<T> {
        let slot = self.slot.read().unwrap_or_else(PoisonError::into_inner);
        let closed = || Error::unavailable("metadata store is closed after a failure");
        work(slot.as_ref().ok_or_else(closed)?)
    }

    /// Closes the database, opens it again, and brings it to commit `expected` of its journal. A commit
    /// that failed may have reached the file all the same: the last one is told.
    ///
    /// # Errors
    /// `DataLoss` when file and journal do not lead there; the store stays closed. I/O.
    pub(super) fn reopen(&self, expected: u64) -> Result<u64> {
        let mut slot = self.slot.write().unwrap_or_else(PoisonError::into_inner);
        let old = slot.take();
        let again = || {
            // Its end looks at the file, too.
            drop(old);
            self.open_again(expected)
        };
        let (database, last) = sys::damage::guarded(again)?
            .unwrap_or_else(|| Err(damage(&self.path, "its structure")))?;
        tracing::warn!(path = %self.path.display(), "metadata store was opened again");
        *slot = Some(database);
        Ok(last)
    }

    fn open_again(&self, expected: u64) -> Result<(Database, u64)> {
        let mut tries = 0;
        let mut database = loop {
            match open(&self.path) {
                Ok(database) => break database,
                // Readers of the old one hold it for a moment longer.
                Err(DatabaseError::DatabaseAlreadyOpen) if tries < REOPEN_TRIES => {
                    tries += 1;
                    std::thread::sleep(REOPEN_WAIT);
                }
                Err(error) => return Err(opening(&self.path, error)),
            }
        };
        check(&mut database, &self.path)?;
        // In memory: on a full disk reads go on.
        let last = catch_up(&database, &self.path, expected, Durability::None)?;
        if last < expected {
            return Err(Error::data_loss(format_args!(
                "{} and its journal end at commit {last}, not at {expected}: start the daemon anew",
                self.path.display()
            )));
        }
        Ok((database, last))
    }
}

/// Brings the store to the last commit of its journal, but not beyond `until`, and tells which that is.
pub(super) fn catch_up(
    database: &Database,
    path: &Path,
    until: u64,
    durability: Durability,
) -> Result<u64> {
    let commit = number(database)?;
    let mut txn = database.begin_write().map_err(failure)?;
    txn.set_durability(durability).map_err(failure)?;
    let last = {
        let mut table = txn.open_table(RECORDS).map_err(failure)?;
        let mut apply = |entry: (&[u8], Option<&[u8]>)| apply(&mut table, entry);
        let last = Journal::follow(path, commit, until, &mut apply)?;
        let mut store = txn.open_table(STORE).map_err(failure)?;
        store.insert(COMMIT, last).map_err(failure)?;
        last
    };
    if last == commit {
        txn.abort().map_err(failure)?;
    } else {
        txn.commit().map_err(failure)?;
    }
    Ok(last)
}

/// Makes durable what is in memory, and that the last changes may be lost: `mark`, but for a mark that says
/// of more than a torn end. Names in an earlier one are kept beside it.
pub(super) fn mark(database: &Database, mark: &[u8]) -> Result<()> {
    let txn = database.begin_write().map_err(failure)?;
    {
        let mut table = txn.open_table(RECORDS).map_err(failure)?;
        let value = |key: &[u8]| -> Result<Option<Vec<u8>>> {
            let found = table.get(key).map_err(failure)?;
            Ok(found.map(|found| found.value().to_vec()))
        };
        let (old, kept) = (value(INCOMPLETE)?, value(UNASKED)?);
        if let Some(names) = unasked(old.as_deref(), kept.as_deref()) {
            apply(&mut table, (UNASKED, Some(&names)))?;
        }
        let is_worse = old.is_some_and(|old| !old.starts_with(TORN));
        let mark = if is_worse { LOST } else { mark };
        apply(&mut table, (INCOMPLETE, Some(mark)))?;
    }
    txn.commit().map_err(failure)
}

/// Sets or removes one key.
pub(super) fn apply(
    table: &mut Table<'_, &'static [u8], &'static [u8]>,
    (key, value): (&[u8], Option<&[u8]>),
) -> Result<()> {
    match value {
        Some(value) => drop(table.insert(key, value).map_err(failure)?),
        None => drop(table.remove(key).map_err(failure)?),
    }
    Ok(())
}

/// [`whole`], where a panic is an answer.
fn guarded(path: &Path) -> Result<Database> {
    match sys::damage::guarded(|| whole(path))? {
        Some(opened) => opened,
        None => Err(damage(path, "its structure")),
    }
}

/// Opens the file and checks every page of it: the engine itself only does that after a crash.
fn whole(path: &Path) -> Result<Database> {
    let mut database = open(path).map_err(|e| opening(path, e))?;
    check(&mut database, path)?;
    Ok(database)
}

fn check(database: &mut Database, path: &Path) -> Result<()> {
    let sound = database.check_integrity().map_err(|e| opening(path, e))?;
    if !sound {
        tracing::warn!(path = %path.display(), "metadata store was repaired by its engine");
    }
    let records = database.begin_read().map_err(failure)?.open_table(RECORDS);
    records.map(drop).map_err(|error| damage(path, error))
}

/// Never `create` here: a file that was cut to nothing must not become an empty store.
fn open(path: &Path) -> Result<Database, DatabaseError> {
    redb::Builder::new().set_cache_size(CACHE_BYTES).open(path)
}

/// An error of opening the file.
pub(super) fn opening(path: &Path, error: DatabaseError) -> Error {
    match error {
        DatabaseError::DatabaseAlreadyOpen => Error::unavailable(format_args!(
            "metadata {} is in use by another process",
            path.display()
        )),
        DatabaseError::UpgradeRequired(version) => Error::failed_precondition(format_args!(
            "it is of format {version}, which this daemon does not read: run the daemon that wrote it"
        )),
        DatabaseError::Storage(StorageError::Io(io)) if !is_damage(&io) => {
            failure(StorageError::Io(io))
        }
        error => damage(path, &error).with_source(error),
    }
}

/// True for an answer about the file's bytes, false for one about the disk or our rights.
fn is_damage(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::InvalidData | ErrorKind::UnexpectedEof | ErrorKind::InvalidInput
    )
}

fn damage(path: &Path, what: impl fmt::Display) -> Error {
    Error::data_loss(format_args!("{} is damaged: {what}", path.display()))
}

/// An error of the engine.
pub(super) fn failure(error: impl Into<redb::Error>) -> Error {
    let error = error.into();
    let made = match &error {
        redb::Error::Corrupted(what) => {
            Error::data_loss(format_args!("metadata store is damaged: {what}"))
        }
        redb::Error::PreviousIo | redb::Error::DatabaseClosed => {
            Error::unavailable("metadata store is being opened again after a failure")
        }
        redb::Error::Io(io) if io.kind() == ErrorKind::StorageFull => {
            Error::resource_exhausted("metadata store: no space left on device")
        }
        error => Error::unknown(format_args!("metadata store: {error}")),
    };
    made.with_source(error)
}
