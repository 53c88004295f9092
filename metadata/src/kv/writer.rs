//! The writer thread and its group commit.
//!
//! Invariant: a caller is answered only after the commit that holds its change, and hooks of committed
//! changes run before their callers are answered, in the order of the changes.
//!
//! ```text
//! changes run -> frame in the journal, flushed -> commit in memory: seen -> hooks -> answers
//!                 \-- cannot be written: the commit goes to the store's file, flushed
//! quiet, or many commits later: the store's file catches up
//! ```

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use redb::{Database, Durability, WriteTransaction};
use tokio::sync::oneshot;
use types::{Code, Error, Result};

use super::engine::apply;
use super::journal::Journal;
use super::tx::Done;
use super::watch::{Watch, Watches};
use super::{COMMIT, Engine, RECORDS, STORE, Snapshot, Tx, failure, reserve};

/// Most changes that share one commit: bounds what one of them waits for the others.
const MAX_GROUP: usize = 256;

/// Most bytes of frames that the store's file may lack: bounds what is in memory, and what a start has
/// to catch up with.
const MAX_BEHIND: u64 = 1 << 20;

/// When nobody has changed anything for so long, the file catches up.
const QUIET: Duration = Duration::from_secs(1);

/// Wait before a file that could not be written is tried again.
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
    /// `is_behind` says that the store's file lacks commits that the engine has.
    pub(super) fn start(engine: Arc<Engine>, journal: Journal, is_behind: bool) -> Result<Self> {
        let last = engine.with(super::number)?;
        let (queue, jobs) = channel();
        let commits = Arc::<AtomicU64>::default();
        let counted = Arc::clone(&commits);
        let watches = Arc::<Watches>::default();
        let noting = Arc::clone(&watches);
        let thread = std::thread::Builder::new()
            .name("metadata-writer".into())
            .spawn(move || {
                let thread = Thread {
                    engine: &engine,
                    journal,
                    watches: &noting,
                    last,
                    tried: last,
                    is_open: true,
                    behind: is_behind.into(),
                    next_try: Instant::now(),
                };
                thread.serve(&jobs, &counted);
            })
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

/// What the thread works on.
struct Thread<'a> {
    engine: &'a Engine,
    journal: Journal,
    watches: &'a Watches,
    /// Number of the last commit that stands.
    last: u64,
    /// Number of the last commit that was tried: none is used twice.
    tried: u64,
    /// Not after a failure, until the store could be opened again.
    is_open: bool,
    /// Bytes of the journal that the store's file lacks.
    behind: u64,
    /// No earlier than this is something tried again that failed.
    next_try: Instant,
}

/// A group of changes that ran.
#[derive(Default)]
struct Group {
    answers: Vec<Answer>,
    done: Vec<Done>,
}

impl Thread<'_> {
    fn serve(mut self, jobs: &Receiver<Job>, commits: &AtomicU64) {
        while let Some(first) = self.next(jobs) {
            let rest = jobs.try_iter();
            let jobs = std::iter::once(first).chain(rest).take(MAX_GROUP);
            let mut group = Group::default();
            let begun = self.begin();
            let committed = begun.and_then(|txn| self.commit(txn, jobs, &mut group));
            if let Ok(is_changed) = committed {
                commits.fetch_add(is_changed.into(), Ordering::Relaxed);
                for hook in group.done.into_iter().flat_map(|done| done.hooks) {
                    if catch_unwind(AssertUnwindSafe(hook)).is_err() {
                        tracing::error!("what follows a metadata change panicked");
                    }
                }
            } else if self.is_open {
                // After a failure the engine refuses everything.
                self.reopen();
            }
            let committed = committed.map(drop);
            for answer in group.answers {
                answer(&committed);
            }
            self.keep_up();
        }
        self.save();
    }

    /// What is due between changes, unless it failed a moment ago.
    fn keep_up(&mut self) {
        if Instant::now() < self.next_try {
            return;
        }
        if self.behind >= MAX_BEHIND {
            self.save();
        }
        if self.journal.is_due() {
            self.renew();
        }
    }

    /// The next change; `None` when there will be none. While nobody wants anything, the file catches
    /// up, and a store that could not be opened again is tried.
    fn next(&mut self, jobs: &Receiver<Job>) -> Option<Job> {
        while self.behind > 0 || !self.is_open {
            let patience = self.next_try.saturating_duration_since(Instant::now());
            match jobs.recv_timeout(patience.max(QUIET)) {
                Ok(job) => return Some(job),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) if self.is_open => self.save(),
                Err(RecvTimeoutError::Timeout) => self.reopen(),
            }
        }
        jobs.recv().ok()
    }

    /// Begins a transaction; a store that a failure has closed is opened again first.
    fn begin(&mut self) -> Result<WriteTransaction> {
        let begin = |database: &Database| database.begin_write().map_err(failure);
        self.engine.with(begin).or_else(|error| {
            tracing::warn!(%error, "metadata store cannot begin a transaction");
            self.reopen();
            self.engine.with(begin)
        })
    }

    /// Runs a group of changes and commits those that succeeded as one numbered commit; false when none
    /// of them changed anything, which costs no disk write.
    fn commit(
        &mut self,
        mut txn: WriteTransaction,
        jobs: impl Iterator<Item = Job>,
        group: &mut Group,
    ) -> Result<bool> {
        {
            let mut table = txn.open_table(RECORDS).map_err(failure)?;
            for job in jobs {
                let (done, answer) = job(Tx::new(&table));
                group.answers.push(answer);
                let Some(done) = done else { continue };
                self.watches.note(&done.overlay);
                for (key, value) in &done.overlay {
                    apply(&mut table, (key, value.as_deref()))?;
                }
                group.done.push(done);
            }
        }
        if group.done.iter().all(|done| done.overlay.is_empty()) {
            txn.abort().map_err(failure)?;
            return Ok(false);
        }
        number(&txn, self.tried + 1)?;
        txn.set_durability(Durability::None).map_err(failure)?;
        self.tried += 1;
        // Durable before it is seen. From the frame on the commit stands, whatever the engine says.
        let changes = group.done.iter().map(|done| &done.overlay);
        if let Some(length) = self.journal.append(self.tried, changes) {
            self.last = self.tried;
            self.behind += length;
            if let Err(error) = txn.commit() {
                tracing::warn!(%error, "metadata store could not be written");
                self.reopen();
            }
            return Ok(true);
        }
        // Without a journal it is the store's file that makes it durable.
        txn.set_durability(Durability::Immediate).map_err(failure)?;
        txn.commit().map_err(failure)?;
        (self.last, self.behind) = (self.tried, 0);
        Ok(true)
    }

    /// Opens the store again at its last commit. Until it is saved, what it gets from the journal is in
    /// memory.
    fn reopen(&mut self) {
        self.behind = MAX_BEHIND;
        match self.engine.reopen(self.last) {
            Ok(last) => (self.is_open, self.last) = (true, last),
            Err(error) => {
                tracing::error!(%error, "metadata store stays closed");
                self.is_open = false;
                self.next_try = Instant::now() + RETRY;
            }
        }
    }

    /// Brings the store's file to the last commit. A failure loses nothing: the journal has it all.
    fn save(&mut self) {
        if self.behind == 0 {
            return;
        }
        let saved = self.begin().and_then(|txn| {
            number(&txn, self.tried)?;
            txn.commit().map_err(failure)
        });
        match saved {
            Ok(()) => {
                (self.last, self.behind) = (self.tried, 0);
                reserve::keep(self.engine.path());
            }
            Err(error) => {
                tracing::warn!(%error, "metadata store's file stays behind its journal");
                self.reopen();
                self.next_try = Instant::now() + RETRY;
            }
        }
    }

    /// Makes the journal anew from the store, whose file has all of it first.
    fn renew(&mut self) {
        // Also when nothing is behind: a number that was tried in vain may stand in the old journal.
        self.behind = self.behind.max(1);
        self.save();
        if self.behind > 0 {
            return;
        }
        let made = self
            .engine
            .with(Snapshot::open)
            .and_then(|snapshot| Journal::make(self.engine.path(), &snapshot, self.last));
        match made {
            Ok(made) => self.journal = made,
            Err(error) => {
                tracing::warn!(%error, "metadata has no new journal: each commit waits for the store's file");
                // It may be the new one's already that stands under the name.
                self.journal.stop();
                self.next_try = Instant::now() + RETRY;
            }
        }
    }
}

/// Notes the number of the commit that a transaction is.
fn number(txn: &WriteTransaction, number: u64) -> Result<()> {
    let mut store = txn.open_table(STORE).map_err(failure)?;
    store.insert(COMMIT, number).map_err(failure)?;
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
