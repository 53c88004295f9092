//! The key-value store under the records: ordered bytes, one writer, durable transactions.
//!
//! Invariant: what [`Kv::write`] has answered survives a power cut; what failed left no trace. Writers
//! queue, and one of them, or a thread for it, makes all that wait one synced commit. Readers see the
//! last commit and never wait. Knows nothing of records; the engine (redb) appears nowhere else.
//!
//! ```text
//! write(f) --queue--> one writer: begin; f1 f2 f3 (each on its own overlay); journal; commit; answer all
//! read()   --------> snapshot of the last commit
//! ```

mod engine;
mod journal;
mod queue;
mod reserve;
mod restore;
mod turn;
mod tx;
mod upkeep;
mod watch;
mod writer;

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, TryLockError};
use std::io::ErrorKind;
use std::ops::{Bound, ControlFlow};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use redb::{Database, ReadOnlyTable, ReadableDatabase as _, TableDefinition, TableError};
use types::{Code, Error, Result};

use self::engine::{Engine, failure};
use self::journal::Journal;
use self::queue::Length;
use self::restore::LOST;
use self::restore::Store;
pub(crate) use self::restore::{INCOMPLETE, Opened, Restored, Source, TORN, UNASKED, unasked};
pub(crate) use self::tx::Tx;
pub(crate) use self::watch::Watch;
use self::writer::Writer;

/// All records live in one ordered table; the first byte of a key is its bucket.
const RECORDS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("records");
/// Facts of the store that are no records.
const STORE: TableDefinition<'_, &str, u64> = TableDefinition::new("store");
/// Number of the last commit.
const COMMIT: &str = "commit";

/// Page cache: the engine's default takes a hundred megabytes and more under load.
const CACHE_BYTES: usize = 8 << 20;

/// All records of a store.
pub(crate) type Records = BTreeMap<Vec<u8>, Vec<u8>>;

/// Whether a scan goes on.
pub(crate) type Flow = ControlFlow<()>;

/// Sees one record of a scan: its key without the prefix, and its value.
pub(crate) type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> Result<Flow> + 'a;

/// What can be read from: a snapshot, or a transaction with its own changes.
pub(crate) trait Read {
    /// The value of a key.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>>;

    /// Visits all keys that begin with `prefix`, in order.
    fn scan(&self, prefix: &[u8], visit: &mut Visit<'_>) -> Result<()>;

    /// True when a key is there.
    fn has(&self, key: &[u8]) -> Result<bool> {
        Ok(self.get(key)?.is_some())
    }

    /// True when a key begins with `prefix`.
    fn any(&self, prefix: &[u8]) -> Result<bool> {
        let mut found = false;
        self.scan(prefix, &mut |_, _| {
            found = true;
            Ok(Flow::Break(()))
        })?;
        Ok(found)
    }
}

/// The store. Clones share it; the last one to go closes it.
#[derive(Clone)]
pub(crate) struct Kv(Arc<Open>);

struct Open {
    // Field order is drop order: the writer ends before the database closes and the lock is freed.
    writer: Writer,
    engine: Arc<Engine>,
    _lock: Lock,
}

/// How long the lock of a store is waited for, and the pause between two looks.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_LOOK: Duration = Duration::from_millis(10);

/// The lock of a store, given up when it is dropped.
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Not by closing alone: a child between its fork and its exec has the descriptor, too.
        if let Err(error) = self.0.unlock() {
            tracing::debug!(%error, "cannot unlock the store");
        }
    }
}

impl Kv {
    /// Opens the store at `path`. A damaged one, and one that is gone, is restored from its journal;
    /// what is damaged is kept aside.
    ///
    /// # Errors
    /// `Unavailable` when another process (or handle) has it; without a journal, `DataLoss` when it is
    /// damaged and `NotFound` when it is not there; I/O.
    pub(crate) fn open(path: &Path) -> Result<(Self, Opened)> {
        let lock = lock(path)?;
        let (store, opened) = match restore::open(path) {
            // Nothing that it leaves half done stands in the way of the next.
            Err(error) if error.is(Code::ResourceExhausted) && reserve::give(path)? => {
                restore::open(path)?
            }
            opened => opened?,
        };
        Ok((Self::start(lock, store)?, opened))
    }

    /// Makes a store of these records at `path`; tells where what was there is kept.
    ///
    /// # Errors
    /// `Unavailable` when another process (or handle) has it; I/O.
    pub(crate) fn make(path: &Path, records: &Records) -> Result<(Self, Option<PathBuf>)> {
        let lock = lock(path)?;
        let (store, aside) = restore::make(path, records)?;
        Ok((Self::start(lock, store)?, aside))
    }

    fn start(lock: Lock, store: Store) -> Result<Self> {
        let engine = Arc::new(store.engine);
        let writer = Writer::start(Arc::clone(&engine), store.journal, store.is_behind)?;
        Ok(Self(Arc::new(Open {
            writer,
            engine,
            _lock: lock,
        })))
    }

    /// Notes the keys that are changed from now on. What was changed before shows in every read after
    /// this.
    ///
    /// # Errors
    /// I/O.
    pub(crate) async fn watch(&self) -> Result<Watch> {
        let watch = self.0.writer.watch();
        // Behind whatever was on its way.
        self.write(|_| Ok(())).await?;
        Ok(watch)
    }

    /// Writes a store of the last committed state beside this one, durably, in place of an earlier one of
    /// that name, and tells where. It has no journal: it is whole without.
    ///
    /// # Errors
    /// I/O.
    pub(crate) fn keep(&self, suffix: &str) -> Result<PathBuf> {
        let engine = &self.0.engine;
        let (state, commit) = engine.with(|db| Ok((Snapshot::open(db)?, number(db)?)))?;
        restore::keep(&beside(engine.path(), suffix), &state, commit)
    }

    /// The last committed state.
    ///
    /// # Errors
    /// I/O; `DataLoss` for a damaged file.
    pub(crate) fn read(&self) -> Result<Snapshot> {
        self.0.engine.with(Snapshot::open)
    }

    /// Runs `change` as one transaction and waits until it is durable. When `change` fails, nothing
    /// of it stays. Other changes may share the commit. A caller that goes away stops nothing.
    ///
    /// # Errors
    /// Those of `change`; I/O.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Tx<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.0.writer.run(Length::Short, change).await
    }

    /// The same of a change that may look at all there is: others do not wait for it on their threads.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub(crate) async fn write_long<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Tx<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.0.writer.run(Length::Long, change).await
    }
}

/// A consistent view of one moment.
pub(crate) struct Snapshot {
    table: ReadOnlyTable<&'static [u8], &'static [u8]>,
}

impl Snapshot {
    /// The last committed state.
    fn open(database: &Database) -> Result<Self> {
        let txn = database.begin_read().map_err(failure)?;
        let table = txn.open_table(RECORDS).map_err(failure)?;
        Ok(Self { table })
    }
}

/// Number of the last commit that the file has, or will have with what is in memory.
fn number(database: &Database) -> Result<u64> {
    let txn = database.begin_read().map_err(failure)?;
    let store = match txn.open_table(STORE) {
        Ok(store) => store,
        Err(TableError::TableDoesNotExist(_)) => return Ok(0),
        Err(error) => return Err(failure(error)),
    };
    let last = store.get(COMMIT).map_err(failure)?;
    Ok(last.map_or(0, |last| last.value()))
}

impl Snapshot {
    /// Visits the keys that begin with `prefix` and come after that of `last`, in order.
    pub(crate) fn scan_after(
        &self,
        prefix: &[u8],
        last: &[u8],
        visit: &mut Visit<'_>,
    ) -> Result<()> {
        let last = [prefix, last].concat();
        self.scan_from(prefix, Bound::Excluded(&last), visit)
    }

    fn scan_from(&self, prefix: &[u8], from: Bound<&[u8]>, visit: &mut Visit<'_>) -> Result<()> {
        let range = (from, Bound::Unbounded);
        for entry in self.table.range::<&[u8]>(range).map_err(failure)? {
            let (key, value) = entry.map_err(failure)?;
            let Some(rest) = key.value().strip_prefix(prefix) else {
                break;
            };
            if visit(rest, value.value())?.is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl Read for Snapshot {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let found = self.table.get(key).map_err(failure)?;
        Ok(found.map(|value| value.value().to_vec()))
    }

    fn scan(&self, prefix: &[u8], visit: &mut Visit<'_>) -> Result<()> {
        self.scan_from(prefix, Bound::Included(prefix), visit)
    }
}

impl Read for Records {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(BTreeMap::get(self, key).cloned())
    }

    fn scan(&self, prefix: &[u8], visit: &mut Visit<'_>) -> Result<()> {
        let from = (Bound::Included(prefix), Bound::Unbounded);
        for (key, value) in self.range::<[u8], _>(from) {
            let Some(rest) = key.strip_prefix(prefix) else {
                break;
            };
            if visit(rest, value)?.is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// The files of the store at `path`.
pub(crate) fn files(path: &Path) -> [PathBuf; 2] {
    [path.to_owned(), Journal::beside(path)]
}

/// Where the next change would be in the journal of the store at `path`.
#[cfg(test)]
pub(crate) fn journal_end(path: &Path) -> u64 {
    Journal::survey(path).unwrap().unwrap().end()
}

/// Takes the lock file beside the store, with the directory. Who has it is about to go, as a rule: a
/// daemon that hands over, or a child of one between its fork and its exec. It gets a moment.
fn lock(path: &Path) -> Result<Lock> {
    if let Some(parent) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)
            .map_err(|e| os("make directory", parent, e))?;
    }
    let path = beside(path, "lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|e| os("open", &path, e))?;
    let begun = Instant::now();
    let taken = loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if begun.elapsed() < LOCK_PATIENCE => {
                std::thread::sleep(LOCK_LOOK);
            }
            taken => break taken,
        }
    };
    match taken {
        Ok(()) => Ok(Lock(file)),
        Err(TryLockError::WouldBlock) => Err(Error::unavailable(format_args!(
            "metadata {} is in use by another daemon{}: stop it or choose another root",
            path.display(),
            sys::lock::holder(&file)
        ))),
        Err(TryLockError::Error(e)) => Err(os("lock", &path, e)),
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// Makes the entry of a file durable.
fn sync_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or_else(|| Path::new("."));
    File::open(parent)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| os("sync directory", parent, e))
}

fn os(operation: &str, path: &Path, error: std::io::Error) -> Error {
    if error.kind() == ErrorKind::StorageFull {
        let what = format_args!("{operation} {}: no space left on device", path.display());
        return Error::resource_exhausted(what).with_source(error);
    }
    Error::os(format_args!("{operation} {}", path.display()), error)
}

#[cfg(test)]
mod tests;
