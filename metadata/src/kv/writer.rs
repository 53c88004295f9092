//! The writer: its thread, its group commit, and the change that is made at once.
//!
//! Invariant: a caller is answered only after the commit that holds its change, and hooks of committed
//! changes run before their callers are answered, in the order of the changes.
//!
//! ```text
//! changes run -> frame in the journal, flushed -> commit in memory: seen -> hooks -> answers
//!                 \-- cannot be written: the commit goes to the store's file, flushed
//! quiet, or many commits later: the store's file catches up
//! ```
//!
//! A way to another thread and back costs half of what a flush does. So while changes are brief and
//! nobody else commits, a task beside its caller makes what is queued, on a thread of the runtime. Never
//! more than one of those is held by that, and no connection, whose calls share a task: what is queued
//! meanwhile is for the writer's thread.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use redb::{Database, Durability, WriteTransaction};
use tokio::sync::oneshot;
use types::{Code, Error, Result};

use super::engine::apply;
use super::journal::Journal;
use super::queue::{Answer, Job, Length, Next, Queue};
use super::turn::Turn;
use super::tx::Done;
use super::upkeep::MAX_BEHIND;
use super::watch::{Watch, Watches};
use super::{COMMIT, Engine, RECORDS, STORE, Tx, failure};

/// Most changes that share one commit: bounds what one of them waits for the others.
const MAX_GROUP: usize = 256;

/// Changes that take no longer than this may hold a thread of the runtime: on a disk that is slower the
/// way to another thread does not matter.
const BRIEF: Duration = Duration::from_millis(1);
/// A slow one is forgotten by an eighth with each that follows: one of a second, after some fifty.
const FORGOTTEN: u32 = 8;

/// Owner of the thread.
pub(super) struct Writer {
    thread: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
}

/// What the thread and those have who make their changes themselves.
pub(super) struct Shared {
    /// Held across a flush; no caller ever waits for it.
    state: Mutex<State>,
    pub(super) queue: Queue,
    /// Changes are brief now.
    is_brief: AtomicBool,
    commits: AtomicU64,
    watches: Watches,
}

impl Writer {
    /// `is_behind` says that the store's file lacks commits that the engine has.
    pub(super) fn start(engine: Arc<Engine>, journal: Journal, is_behind: bool) -> Result<Self> {
        let last = engine.with(super::number)?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                engine,
                journal,
                last,
                tried: last,
                is_open: true,
                behind: is_behind.into(),
                next_try: Instant::now(),
                next_mend: Instant::now(),
                changed: Instant::now(),
                pace: Duration::ZERO,
            }),
            queue: Queue::default(),
            is_brief: AtomicBool::default(),
            commits: AtomicU64::default(),
            watches: Watches::default(),
        });
        let serving = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("metadata-writer".into())
            .spawn(move || serving.serve())
            .map_err(|e| Error::os("start metadata writer", e))?;
        Ok(Self {
            thread: Some(thread),
            shared,
        })
    }

    /// Notes what is changed from now on.
    pub(super) fn watch(&self) -> Watch {
        self.shared.watches.begin()
    }

    /// Commits that were synced to disk so far.
    pub(super) fn commits(&self) -> u64 {
        self.shared.commits.load(Ordering::Relaxed)
    }

    /// Says how long changes take.
    #[cfg(test)]
    pub(super) fn set_pace(&self, pace: Duration) {
        let mut state = self.shared.state();
        state.pace = pace;
        let is_brief = state.is_brief();
        self.shared.is_brief.store(is_brief, Ordering::Relaxed);
    }

    /// Lets the disk of the journal fail.
    #[cfg(test)]
    pub(super) fn fail(&self, faults: super::journal::Faults) {
        self.shared.state().journal.fail(faults);
    }

    /// Does something while no file is written.
    #[cfg(test)]
    pub(super) fn meanwhile(&self, work: impl FnOnce()) {
        let _state = self.shared.state();
        work();
    }

    /// Ends the thread, and waits for its end.
    #[cfg(test)]
    pub(super) fn stop(&self) {
        self.shared.queue.close();
        while self
            .thread
            .as_ref()
            .is_some_and(|thread| !thread.is_finished())
        {
            std::thread::yield_now();
        }
    }

    pub(super) async fn run<T: Send + 'static>(
        &self,
        length: Length,
        change: impl FnOnce(&mut Tx<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (sender, answer) = oneshot::channel();
        let job: Job = Box::new(move |tx| {
            let (result, done) = match tx {
                None => (Err(Error::internal("metadata change was not made")), None),
                Some(mut tx) => {
                    let result = catch_unwind(AssertUnwindSafe(|| change(&mut tx)))
                        .unwrap_or_else(|_| Err(Error::internal("metadata change panicked")));
                    let done = result.is_ok().then(|| tx.done());
                    (result, done)
                }
            };
            let answer: Answer = Box::new(move |commit| {
                // A refusal, too, may be one by what another change of the group did.
                let result = commit
                    .as_ref()
                    .map_or_else(|error| Err(again(error)), |()| result);
                // Nobody waits any more: the change stands all the same.
                drop(sender.send(result));
            });
            (done, answer)
        });
        self.shared.queue.push(job, length);
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if self.shared.is_brief.load(Ordering::Relaxed) => {
                let turn = Turn::new(&self.shared);
                drop(runtime.spawn(async move { turn.take() }));
            }
            _ => self.shared.queue.leave(),
        }
        let gone = |_| Error::unavailable("metadata store is not available");
        answer.await.map_err(gone)?
    }
}

thread_local! {
    /// This thread makes changes.
    static AT_WORK: Cell<bool> = const { Cell::new(false) };
}

impl Drop for Writer {
    fn drop(&mut self) {
        tracing::debug!(commits = self.commits(), "metadata writer ends");
        self.shared.queue.close();
        let Some(thread) = self.thread.take() else {
            return;
        };
        // The last handle may die inside a change, for whose end the thread waits: or is it the thread?
        if !AT_WORK.get() && thread.join().is_err() {
            tracing::error!("metadata writer panicked");
        }
    }
}

/// What a commit works on.
pub(super) struct State {
    pub(super) engine: Arc<Engine>,
    pub(super) journal: Journal,
    /// Number of the last commit that stands.
    pub(super) last: u64,
    /// Number of the last commit that was tried: none is used twice.
    pub(super) tried: u64,
    /// Not after a failure, until the store could be opened again.
    pub(super) is_open: bool,
    /// Bytes of the journal that the store's file lacks.
    pub(super) behind: u64,
    /// No earlier than this is something tried again that failed.
    pub(super) next_try: Instant,
    /// No earlier than this is another journal made again in place of one that keeps what failed.
    pub(super) next_mend: Instant,
    /// When something was changed last.
    pub(super) changed: Instant,
    /// How long changes take: the slowest of the last ones, forgotten little by little.
    pub(super) pace: Duration,
}

/// A group of changes that ran.
#[derive(Default)]
struct Group {
    answers: Vec<Answer>,
    done: Vec<Done>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes what is queued, unless it is for the writer's thread: when somebody else is at work, when it
    /// may take long, and when that thread sleeps for good and has to learn of it.
    pub(super) fn at_once(&self) {
        let mut state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(state)) => state.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        if state.is_brief() {
            self.make(&mut state, self.queue.take_short(MAX_GROUP));
        }
    }

    /// The thread.
    fn serve(&self) {
        let _end = End(self);
        loop {
            let patience = self.state().patience();
            let next = self.queue.wait(patience);
            let mut state = self.state();
            let worked = catch_unwind(AssertUnwindSafe(|| match next {
                // While nobody wants anything, the file catches up, and a store that could not be
                // opened again is tried.
                Next::Nothing => state.rest(),
                Next::Some => {
                    self.make(&mut state, self.queue.take(MAX_GROUP));
                    state.keep_up();
                }
                Next::End => state.save(),
            }));
            if worked.is_err() {
                tracing::error!("metadata store panicked and is opened again");
                state.reopen_or_tell();
            }
            self.is_brief.store(state.is_brief(), Ordering::Relaxed);
            if matches!(next, Next::End) {
                return;
            }
        }
    }

    /// Makes a group of changes: one commit, then hooks and answers.
    fn make(&self, state: &mut State, jobs: Vec<Job>) {
        if jobs.is_empty() {
            return;
        }
        AT_WORK.set(true);
        state.changed = Instant::now();
        let mut jobs = jobs.into_iter();
        let mut group = Group::default();
        let mut has_begun = false;
        let run = AssertUnwindSafe(|| {
            state.mend()?;
            has_begun = true;
            let txn = state.begin()?;
            state.commit(txn, &mut jobs, (&mut group, &self.watches))
        });
        let committed =
            catch_unwind(run).unwrap_or_else(|_| Err(Error::internal("metadata store panicked")));
        // Those that did not run hear of the same failure.
        group.answers.extend(jobs.map(|job| job(None).1));
        if let Ok(is_changed) = committed {
            self.commits.fetch_add(is_changed.into(), Ordering::Relaxed);
            for hook in group.done.into_iter().flat_map(|done| done.hooks) {
                if catch_unwind(AssertUnwindSafe(hook)).is_err() {
                    tracing::error!("what follows a metadata change panicked");
                }
            }
        } else if state.is_open && has_begun {
            // After a failure the engine refuses everything.
            state.reopen_or_tell();
        }
        state.pace = (state.pace - state.pace / FORGOTTEN).max(state.changed.elapsed());
        self.is_brief.store(state.is_brief(), Ordering::Relaxed);
        let committed = committed.map(drop);
        for answer in group.answers {
            answer(&committed);
        }
        AT_WORK.set(false);
    }
}

/// The end of the thread, however it comes: who waits for it hears so.
struct End<'a>(&'a Shared);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.queue.end();
    }
}

impl State {
    /// True while a change takes a caller's thread no longer than a brief flush, and while the thread
    /// will look by itself at what that leaves to do.
    fn is_brief(&self) -> bool {
        let is_awake = 0 < self.behind && self.behind < MAX_BEHIND && !self.journal.is_due();
        self.is_open && is_awake && self.pace <= BRIEF
    }

    /// Begins a transaction; a store that a failure has closed is opened again first.
    pub(super) fn begin(&mut self) -> Result<WriteTransaction> {
        let begin = |database: &Database| database.begin_write().map_err(failure);
        self.engine.with(begin).or_else(|error| {
            tracing::warn!(%error, "metadata store cannot begin a transaction");
            self.reopen()?;
            self.engine.with(begin)
        })
    }

    /// Runs a group of changes and commits those that succeeded as one numbered commit; false when none
    /// of them changed anything, which costs no disk write.
    fn commit(
        &mut self,
        mut txn: WriteTransaction,
        jobs: &mut impl Iterator<Item = Job>,
        (group, watches): (&mut Group, &Watches),
    ) -> Result<bool> {
        {
            let mut table = txn.open_table(RECORDS).map_err(failure)?;
            for job in jobs {
                let (done, answer) = job(Some(Tx::new(&table)));
                group.answers.push(answer);
                let Some(done) = done else { continue };
                watches.note(&done.overlay);
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
            match catch_unwind(AssertUnwindSafe(|| txn.commit())) {
                Ok(Ok(())) => return Ok(true),
                Ok(Err(error)) => tracing::warn!(%error, "metadata store could not be written"),
                Err(_) => tracing::error!("metadata store panicked"),
            }
            self.reopen_or_tell();
            return Ok(true);
        }
        // Without a journal it is the store's file that makes it durable.
        txn.set_durability(Durability::Immediate).map_err(failure)?;
        txn.commit().map_err(failure)?;
        (self.last, self.behind) = (self.tried, 0);
        self.journal.stands();
        Ok(true)
    }
}

/// Notes the number of the commit that a transaction is.
pub(super) fn number(txn: &WriteTransaction, number: u64) -> Result<()> {
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
