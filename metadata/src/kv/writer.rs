//! The writer thread and its group commit.
//!
//! Invariant: a caller is answered only after the commit that holds its change, and hooks of committed
//! changes run before their callers are answered, in the order of the changes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use redb::{Database, WriteTransaction};
use tokio::sync::oneshot;
use types::{Code, Error, Result};

use super::tx::Done;
use super::{Engine, RECORDS, Tx, failure};

/// Most changes that share one commit: bounds what one of them waits for the others.
const MAX_GROUP: usize = 256;

/// A change: fills `Done` on success and returns what answers its caller once the commit is known.
type Job = Box<dyn FnOnce(Tx<'_>) -> (Option<Done>, Answer) + Send>;
type Answer = Box<dyn FnOnce(&Result<()>) + Send>;

/// Owner of the thread.
pub(super) struct Writer {
    queue: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    commits: Arc<AtomicU64>,
}

impl Writer {
    pub(super) fn start(engine: Arc<Engine>) -> Result<Self> {
        let (queue, jobs) = channel();
        let commits = Arc::<AtomicU64>::default();
        let counted = Arc::clone(&commits);
        let thread = std::thread::Builder::new()
            .name("metadata-writer".into())
            .spawn(move || serve(&engine, &jobs, &counted))
            .map_err(|e| Error::os("start metadata writer", e))?;
        Ok(Self {
            queue: Some(queue),
            thread: Some(thread),
            commits,
        })
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

fn serve(engine: &Engine, jobs: &Receiver<Job>, commits: &AtomicU64) {
    while let Ok(first) = jobs.recv() {
        let group = std::iter::once(first)
            .chain(jobs.try_iter())
            .take(MAX_GROUP);
        let mut answers = Vec::new();
        let mut hooks = Vec::new();
        let committed = begin(engine).and_then(|txn| commit(txn, group, &mut answers, &mut hooks));
        if let Ok(synced) = &committed {
            commits.fetch_add((*synced).into(), Ordering::Relaxed);
            for hook in hooks {
                hook();
            }
        }
        let committed = committed.map(drop);
        if committed.is_err()
            && let Err(error) = engine.reopen()
        {
            tracing::error!(%error, "metadata store stays closed");
        }
        for answer in answers {
            answer(&committed);
        }
    }
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

/// Runs a group of changes and commits those that succeeded; false when none of them changed anything,
/// which costs no disk write.
fn commit(
    txn: WriteTransaction,
    group: impl Iterator<Item = Job>,
    answers: &mut Vec<Answer>,
    hooks: &mut Vec<super::tx::Hook>,
) -> Result<bool> {
    let mut changed = false;
    {
        let mut table = txn.open_table(RECORDS).map_err(failure)?;
        for job in group {
            let (done, answer) = job(Tx::new(&table));
            answers.push(answer);
            let Some(done) = done else { continue };
            hooks.extend(done.hooks);
            for (key, value) in done.overlay {
                changed = true;
                match value {
                    Some(value) => {
                        table
                            .insert(key.as_slice(), value.as_slice())
                            .map_err(failure)?;
                    }
                    None => {
                        table.remove(key.as_slice()).map_err(failure)?;
                    }
                }
            }
        }
    }
    if changed {
        txn.commit().map_err(failure)?;
    } else {
        txn.abort().map_err(failure)?;
    }
    Ok(changed)
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
