//! Flushes of a file system, shared by all who wait for one at the same time.
//!
//! Invariant: whoever has his answer was there before the flush began that it is of. The kernel tells an
//! error once to each open file: one is kept, so that nobody else who flushes takes what is for us, and an
//! error is told to all who were there before it came, also to those who wait for the next flush.
//! What remains: who wrote before a flush that failed and asks only when it is over hears nothing of it,
//! since what could not be written counts as clean from then on.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::io::Errno;
use types::{Code, Error, Result};

/// What became of one flush: empty as long as it has not ended.
type Round = OnceLock<Result<(), (Code, String)>>;

/// The flushes of one file system.
#[derive(Debug)]
pub(crate) struct Flushes {
    /// Open since before anything was written that is to be flushed; none where there is nothing yet, which
    /// only who looks at a store finds.
    on: Option<File>,
    path: PathBuf,
    /// The one that has not begun.
    coming: Mutex<Arc<Round>>,
    /// Held by whoever flushes.
    turn: Mutex<()>,
}

impl Flushes {
    /// Those of the file system that `path` is on.
    ///
    /// # Errors
    /// The path cannot be opened. That it is not there is none.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let on = match File::open(path) {
            Ok(on) => Some(on),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(Error::os(format_args!("open {}", path.display()), error)),
        };
        Ok(Self {
            on,
            path: path.to_owned(),
            coming: Mutex::default(),
            turn: Mutex::default(),
        })
    }

    /// Flushes the file system. Blocks.
    ///
    /// # Errors
    /// I/O, since the last flush.
    pub(crate) fn flush(&self) -> Result<()> {
        let fail = |e| crate::tree::at("syncfs", &self.path, e);
        self.share(|| match &self.on {
            Some(on) => rustix::fs::syncfs(on).map_err(fail),
            None => Err(fail(Errno::NOENT)),
        })
    }

    fn share(&self, flush: impl FnOnce() -> Result<()>) -> Result<()> {
        let mine = Arc::clone(&self.coming());
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(done) = mine.get() {
            let again = |(code, text): &(Code, String)| Error::from_wire(*code, text);
            return done.as_ref().copied().map_err(again);
        }
        // Whoever comes from here on may have written what this one does not take.
        *self.coming() = Arc::default();
        let done = flush();
        let told = done.as_ref().copied();
        let told = told.map_err(|error| (error.code(), error.to_string()));
        if told.is_err() {
            // What failed may be theirs who came meanwhile, and no later flush would tell it.
            let next = std::mem::take(&mut *self.coming());
            let _first = next.set(told.clone());
        }
        // Set by nobody else: that takes the turn.
        let _first = mine.set(told);
        done
    }

    fn coming(&self) -> MutexGuard<'_, Arc<Round>> {
        self.coming.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn flushes() -> Flushes {
        Flushes::open(&std::env::temp_dir()).unwrap()
    }

    /// Waits until so many wait for the flush that has not begun.
    fn joined(flushes: &Flushes, count: usize) {
        while Arc::strong_count(&flushes.coming()) < 1 + count {
            std::thread::yield_now();
        }
    }

    #[test]
    fn all_who_wait_share_the_next_flush_and_none_that_had_begun() {
        let (flushes, count) = (flushes(), AtomicU64::new(0));
        let done = || {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(())
        };
        std::thread::scope(|scope| {
            let first = flushes.share(|| {
                for _ in 0..8 {
                    scope.spawn(|| flushes.share(done).unwrap());
                }
                joined(&flushes, 8);
                done()
            });
            first.unwrap();
        });
        assert_eq!(count.load(Ordering::SeqCst), 2);
        let failed = flushes.share(|| Err(Error::unknown("disk")));
        failed.unwrap_err();
        flushes.share(done).unwrap();
        assert_eq!(count.load(Ordering::SeqCst), 3);
    }

    #[test]
    fn an_error_is_told_to_all_who_waited_for_that_flush_and_to_nobody_else() {
        let (flushes, count) = (flushes(), AtomicU64::new(0));
        // As the kernel has it: whoever asks first hears of it.
        let flush = || match count.fetch_add(1, Ordering::SeqCst) {
            0 => Err(Error::data_loss("disk")),
            _ => Ok(()),
        };
        std::thread::scope(|scope| {
            let (mut waiting, mut later) = (Vec::new(), None);
            let first = flushes.share(|| {
                waiting.extend((0..4).map(|_| scope.spawn(|| flushes.share(flush))));
                joined(&flushes, 4);
                Ok(())
            });
            first.unwrap();
            for one in waiting {
                let error = one.join().unwrap().unwrap_err();
                assert!(error.is(Code::DataLoss), "{error}");
                // Whoever comes when that is over is served anew.
                later.get_or_insert_with(|| flushes.share(flush));
            }
            later.unwrap().unwrap();
        });
        assert_eq!(count.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn whoever_joins_while_a_flush_fails_hears_of_it_and_the_next_one_does_not() {
        let (flushes, count) = (flushes(), AtomicU64::new(0));
        // What they wrote was among what could not be written: asked again, the kernel says nothing.
        let done = || {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(())
        };
        std::thread::scope(|scope| {
            let mut waiting = Vec::new();
            let first = flushes.share(|| {
                waiting.extend((0..4).map(|_| scope.spawn(|| flushes.share(done))));
                joined(&flushes, 4);
                Err(Error::data_loss("disk"))
            });
            first.unwrap_err();
            for one in waiting {
                let error = one.join().unwrap().unwrap_err();
                assert!(error.is(Code::DataLoss), "{error}");
            }
        });
        assert_eq!(count.load(Ordering::SeqCst), 0);
        flushes.share(done).unwrap();
        assert_eq!(count.load(Ordering::SeqCst), 1);
        flushes.flush().unwrap();
    }
}
