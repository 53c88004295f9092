//! Flushes of a file system, shared by all who wait for one at the same time.
//!
//! Invariant: whoever has his answer was there before a flush that has ended without an error began.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use types::Result;

/// The flushes of one file system.
#[derive(Debug, Default)]
pub(crate) struct Flushes {
    /// How many have asked.
    asked: AtomicU64,
    /// How many of these have been served. Held by whoever flushes.
    served: Mutex<u64>,
}

impl Flushes {
    /// Flushes the file system that `path` is on. Blocks.
    ///
    /// # Errors
    /// I/O.
    pub(crate) fn flush(&self, path: &Path) -> Result<()> {
        self.share(|| sys::fs::syncfs(path))
    }

    fn share(&self, flush: impl FnOnce() -> Result<()>) -> Result<()> {
        let mine = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        if *served >= mine {
            return Ok(());
        }
        let upto = self.asked.load(Ordering::SeqCst);
        flush()?;
        *served = upto;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::Error;

    #[test]
    fn all_who_wait_share_the_next_flush_and_none_that_had_begun() {
        let (flushes, count) = (Flushes::default(), AtomicU64::new(0));
        let done = || {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(())
        };
        std::thread::scope(|scope| {
            let first = flushes.share(|| {
                for _ in 0..8 {
                    scope.spawn(|| flushes.share(done).unwrap());
                }
                while flushes.asked.load(Ordering::SeqCst) < 9 {
                    std::thread::yield_now();
                }
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
}
