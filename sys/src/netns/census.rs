//! Which process is in which network namespace: one look at all of `/proc` for everybody who asks.
//!
//! Invariant: an answer is of a look that began after it was asked for. Those who ask while somebody looks
//! share the next one.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::fs::{Mode, OFlags};
use types::Result;

use crate::error::at;

/// Pids by the numbers of their namespaces.
pub(super) type Found = HashMap<u64, Vec<u32>>;

#[derive(Debug, Default)]
pub(super) struct Census {
    state: Mutex<State>,
    is_over: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Number of the last look that somebody has begun, and of the last that was finished.
    begun: u64,
    finished: u64,
    is_looking: bool,
    found: Arc<Found>,
    /// How often somebody has waited.
    #[cfg(test)]
    waits: usize,
}

impl Census {
    /// All processes, by what `look` finds.
    ///
    /// # Errors
    /// Those of `look`.
    pub(super) fn taken(&self, look: impl Fn() -> Result<Found>) -> Result<Arc<Found>> {
        let mut state = self.state();
        // What is looked at now may have been passed by already.
        let wanted = state.begun + 1;
        while state.finished < wanted {
            if state.is_looking {
                #[cfg(test)]
                {
                    state.waits += 1;
                }
                let woken = self.is_over.wait(state);
                state = woken.unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.begun += 1;
            state.is_looking = true;
            let number = state.begun;
            drop(state);
            let found = look();
            state = self.state();
            state.is_looking = false;
            // Those who wait look themselves when this one failed.
            self.is_over.notify_all();
            state.found = Arc::new(found?);
            state.finished = number;
        }
        Ok(Arc::clone(&state.found))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks at all processes that this pid namespace has.
///
/// # Errors
/// The errno of reading `/proc`.
pub(super) fn look() -> Result<Found> {
    let proc = Path::new("/proc");
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory =
        rustix::fs::open(proc, flags, Mode::empty()).map_err(|e| at("open", proc, e))?;
    let entries = rustix::fs::Dir::read_from(&directory).map_err(|e| at("read", proc, e))?;
    let mut all = Found::new();
    let mut buffer = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| at("read", proc, e))?;
        let name = entry.file_name().to_str().ok();
        let Some(pid) = name.and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // What has ended meanwhile uses nothing.
        let found = rustix::fs::readlinkat(&directory, format!("{pid}/ns/net"), buffer);
        let Ok(found) = found else {
            buffer = Vec::new();
            continue;
        };
        if let Some(inode) = inode_of(found.as_bytes()) {
            all.entry(inode).or_default().push(pid);
        }
        buffer = found.into_bytes();
    }
    Ok(all)
}

/// The number in `net:[4026531840]`.
fn inode_of(link: &[u8]) -> Option<u64> {
    let number = link.strip_prefix(b"net:[")?.strip_suffix(b"]")?;
    str::from_utf8(number).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use types::Error;

    fn numbered(number: u32) -> Found {
        [(1, vec![number])].into()
    }

    #[test]
    fn who_asks_while_somebody_looks_gets_the_next_look_and_shares_it() {
        const MANY: usize = 8;
        let (census, looks) = (Census::default(), AtomicU32::new(0));
        let ask = || {
            let look = || {
                let number = looks.fetch_add(1, Ordering::SeqCst) + 1;
                // The first is not over before all others wait for the next.
                while number == 1 && census.state().waits < MANY {
                    std::thread::yield_now();
                }
                Ok(numbered(number))
            };
            census.taken(look).unwrap()[&1][0]
        };
        std::thread::scope(|scope| {
            let first = scope.spawn(ask);
            while looks.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            let others: Vec<_> = (0..MANY).map(|_| scope.spawn(ask)).collect();
            assert_eq!(first.join().unwrap(), 1);
            for other in others {
                assert_eq!(other.join().unwrap(), 2);
            }
        });
        assert_eq!(census.taken(|| Ok(numbered(99))).unwrap()[&1], [99]);
    }

    #[test]
    fn a_look_that_failed_is_nobodys_answer() {
        let census = Census::default();
        census.taken(|| Err(Error::internal("no"))).unwrap_err();
        assert_eq!(census.taken(|| Ok(numbered(2))).unwrap()[&1], [2]);
    }

    #[test]
    fn a_link_has_a_number() {
        assert_eq!(inode_of(b"net:[4026531840]"), Some(4_026_531_840));
        for bad in ["", "net:[]", "mnt:[1]", "net:[1", "net:1"] {
            assert_eq!(inode_of(bad.as_bytes()), None, "{bad}");
        }
    }
}
