//! The writer thread and its group commit.
//!
//! Invariant: a caller is answered only after the commit that holds its change, and hooks of committed
//! changes run before their callers are answered, in the order of the changes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use redb::{Database, ReadableTable as _, Table, WriteTransaction};
use tokio::sync::oneshot;
use types::{Code, Error, Result};

use super::journal::Journal;
use super::tx::{Done, Overlay};
use super::watch::{Watch, Watches};
use super::{COMMIT, Engine, RECORDS, STORE, Snapshot, Tx, failure};

/// Most changes that share one commit: bounds what one of them waits for the others.
const MAX_GROUP: usize = 256;

/// Wait before a journal that could not be written is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// A change: fills `Done` on success and returns what answers its caller once the commit is known.
type Job = Box<dyn FnOnce(Tx<'_>) -> (Option<Done>, Answer) + Send>;
type Answer = Box<dyn FnOnce(&Result<()>) + Send>;

/// Owner of the thread.
pub(super) struct Writer {
    queue: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    commits: Arc<AtomicU64>,
    watches: Arc<Watches>,
}

impl Writer {
    pub(super) fn start(engine: Arc<Engine>, journal: Journal) -> Result<Self> {
        let (queue, jobs) = channel();
        let commits = Arc::<AtomicU64>::default();
        let counted = Arc::clone(&commits);
        let watches = Arc::<Watches>::default();
        let noting = Arc::clone(&watches);
        let thread = std::thread::Builder::new()
            .name("metadata-writer".into())
            .spawn(move || serve(&engine, journal, &jobs, &counted, &noting))
            .map_err(|e| Error::os("start metadata writer", e))?;
        Ok(Self {
            queue: Some(queue),
            thread: Some(thread),
            commits,
            watches,
        })
    }

    /// Notes what is changed from now on.
    pub(super) fn watch(&self) -> Watch {
        self.watches.begin()
    }

    /// Commits that were synced to disk so far.
    pub(super) fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    pub(super) async fn run<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Tx<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (sender, answer) = oneshot::channel();
        let job: Job = Box::new(move |mut tx| {
            let result = catch_unwind(AssertUnwindSafe(|| change(&mut tx)))
                .unwrap_or_else(|_| Err(Error::internal("metadata change panicked")));
            let done = result.is_ok().then(|| tx.done());
            let answer: Answer = Box::new(move |commit| {
                let result = match commit {
                    Ok(()) => result,
                    Err(error) => result.and(Err(again(error))),
                };
                // Nobody waits any more: the change stands all the same.
                drop(sender.send(result));
            });
            (done, answer)
        });
        let gone = || Error::unavailable("metadata store is not available");
        let queue = self.queue.as_ref().ok_or_else(gone)?;
        queue.send(job).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        tracing::debug!(commits = self.commits(), "metadata writer ends");
        drop(self.queue.take());
        let Some(thread) = self.thread.take() else {
            return;
        };
        // The last handle may die inside a change; a thread cannot join itself.
        if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
            tracing::error!("metadata writer panicked");
        }
    }
}

fn serve(
    engine: &Engine,
    mut journal: Journal,
    jobs: &Receiver<Job>,
    commits: &AtomicU64,
    watches: &Watches,
) {
    let mut next_try = Instant::now();
    while let Ok(first) = jobs.recv() {
        let group = std::iter::once(first)
            .chain(jobs.try_iter())
            .take(MAX_GROUP);
        let mut answers = Vec::new();
        let mut group_done = Vec::new();
        let committed = begin(engine)
            .and_then(|txn| commit(txn, group, watches, &mut answers, &mut group_done));
        if let Ok(number) = &committed {
            commits.fetch_add(number.is_some().into(), Ordering::Relaxed);
            if let Some(number) = *number {
                // Before the answers: what a caller knows, a killed process has not lost.
                journal.append(number, group_done.iter().map(|done| &done.overlay));
            }
            for hook in group_done.into_iter().flat_map(|done| done.hooks) {
                hook();
            }
        }
        let committed = committed.map(drop);
        if committed.is_err() {
            // Nobody knows whether that commit has reached the disk.
            journal.stop();
            if let Err(error) = engine.reopen() {
                tracing::error!(%error, "metadata store stays closed");
            }
        }
        for answer in answers {
            answer(&committed);
        }
        if journal.is_due()
            && Instant::now() >= next_try
            && let Err(error) = renew(engine, &mut journal)
        {
            tracing::warn!(%error, "metadata has no journal: a damaged store would lose records");
            next_try = Instant::now() + RETRY;
        }
    }
}

/// Makes the journal anew from the store's last commit.
fn renew(engine: &Engine, journal: &mut Journal) -> Result<()> {
    let (snapshot, number) = engine.with(Snapshot::open)?;
    *journal = Journal::make(engine.path(), &snapshot, number)?;
    Ok(())
}

/// Begins a transaction; a store that a failure has closed is opened again first.
fn begin(engine: &Engine) -> Result<WriteTransaction> {
    let begin = |database: &Database| database.begin_write().map_err(failure);
    engine.with(begin).or_else(|error| {
        tracing::warn!(%error, "metadata store cannot begin a transaction");
        engine.reopen()?;
        engine.with(begin)
    })
}

/// Runs a group of changes and commits those that succeeded as one numbered commit; `None` when none
/// of them changed anything, which costs no disk write.
fn commit(
    txn: WriteTransaction,
    group: impl Iterator<Item = Job>,
    watches: &Watches,
    answers: &mut Vec<Answer>,
    group_done: &mut Vec<Done>,
) -> Result<Option<u64>> {
    {
        let mut table = txn.open_table(RECORDS).map_err(failure)?;
        for job in group {
            let (done, answer) = job(Tx::new(&table));
            answers.push(answer);
            let Some(done) = done else { continue };
            watches.note(&done.overlay);
            apply(&mut table, &done.overlay)?;
            group_done.push(done);
        }
    }
    if group_done.iter().all(|done| done.overlay.is_empty()) {
        txn.abort().map_err(failure)?;
        return Ok(None);
    }
    let number = {
        let mut store = txn.open_table(STORE).map_err(failure)?;
        let last = store.get(COMMIT).map_err(failure)?.map(|last| last.value());
        let number = last.unwrap_or(0) + 1;
        store.insert(COMMIT, number).map_err(failure)?;
        number
    };
    txn.commit().map_err(failure)?;
    Ok(Some(number))
}

fn apply(table: &mut Table<'_, &'static [u8], &'static [u8]>, changes: &Overlay) -> Result<()> {
    for (key, value) in changes {
        match value {
            Some(value) => drop(
                table
                    .insert(key.as_slice(), value.as_slice())
                    .map_err(failure)?,
            ),
            None => drop(table.remove(key.as_slice()).map_err(failure)?),
        }
    }
    Ok(())
}

/// The same failure for one more caller.
fn again(error: &Error) -> Error {
    let code = if error.is(Code::Unknown) {
        Code::Internal
    } else {
        error.code()
    };
    Error::from_wire(code, &error.to_string()).ctx("commit")
}
