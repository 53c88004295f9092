//! Directories of active snapshots that are made before anybody asks for one.
//!
//! To make three directories takes longer than all else that a prepare does: a file system that has just
//! removed others looks for inodes that were not theirs. One that is ready is given away by a rename, and
//! new ones are made beside the answer.
//!
//! ```text
//!   <root>/ready/<n>/…   as an active snapshot's, of nobody yet
//! ```
//! Invariant: what is here belongs to nobody and is gone at the next open; nobody waits for it to be made.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use types::Result;

use crate::directories::listing;
use crate::store::make_dir;
use crate::tree;

/// How many are made.
const FULL: usize = 16;
/// With how many left more are made: by the dozen, so that they are seldom made while one is asked for.
const LOW: usize = 8;

/// The directories; without a place there are never any.
#[derive(Debug, Default)]
pub(crate) struct Ready(Option<Arc<Inside>>);

#[derive(Debug)]
struct Inside {
    place: PathBuf,
    make: fn(&Path) -> Result<()>,
    made: Mutex<Made>,
}

#[derive(Debug, Default)]
struct Made {
    /// Their names.
    names: Vec<u64>,
    next: u64,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Idle,
    /// Somebody makes more.
    Filling,
    /// They are of no use: the snapshots are on another file system.
    Elsewhere,
}

impl Ready {
    /// Takes its place below `root`, and away what was ready when the last process ended. `make` makes one.
    ///
    /// # Errors
    /// I/O.
    pub(crate) fn open(root: &Path, make: fn(&Path) -> Result<()>) -> Result<Self> {
        let place = root.join("ready");
        make_dir(&place, 0o700)?;
        for name in listing(&place)? {
            tree::remove(&place.join(name))?;
        }
        let made = Mutex::default();
        Ok(Self(Some(Arc::new(Inside { place, make, made }))))
    }

    /// Gives one away as `directory`; none when there is none.
    pub(crate) fn take(&self, directory: &Path) -> Option<()> {
        let inside = self.0.as_ref()?;
        let name = {
            let mut made = inside.made();
            let name = made.names.pop();
            if made.names.len() <= LOW && made.state == State::Idle && inside.fill() {
                made.state = State::Filling;
            }
            name?
        };
        let ready = inside.path(name);
        if let Err(error) = std::fs::rename(&ready, directory) {
            tracing::debug!(%error, ready = %ready.display(), "a ready directory is of no use");
            inside.made().state = State::Elsewhere;
            inside.drop_all(name);
            return None;
        }
        Some(())
    }
}

impl Inside {
    fn made(&self) -> MutexGuard<'_, Made> {
        // Numbers are whole whoever panicked.
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, name: u64) -> PathBuf {
        self.place.join(name.to_string())
    }

    /// Begins to make more, beside whoever asks for one; false without a runtime.
    fn fill(self: &Arc<Self>) -> bool {
        let this = Arc::clone(self);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return false;
        };
        drop(runtime.spawn_blocking(move || this.make_more()));
        true
    }

    fn make_more(&self) {
        loop {
            let name = {
                let mut made = self.made();
                if made.state != State::Filling {
                    return;
                }
                if made.names.len() >= FULL {
                    made.state = State::Idle;
                    return;
                }
                made.next += 1;
                made.next
            };
            let path = self.path(name);
            let done = (self.make)(&path);
            if done.is_ok() && self.keep(name) {
                continue;
            }
            drop(tree::remove(&path));
            // Whoever asks for one makes it himself then, and hears why that cannot be.
            if let Err(error) = done {
                tracing::debug!(%error, "no directory is made ready");
                self.rest();
            }
            return;
        }
    }

    /// Takes one up, unless they are of no use meanwhile.
    fn keep(&self, name: u64) -> bool {
        let mut made = self.made();
        let is_wanted = made.state == State::Filling;
        if is_wanted {
            made.names.push(name);
        }
        is_wanted
    }

    /// Nobody makes more for now.
    fn rest(&self) {
        let mut made = self.made();
        if made.state == State::Filling {
            made.state = State::Idle;
        }
    }

    fn drop_all(&self, first: u64) {
        let names = std::mem::take(&mut self.made().names);
        for name in names.into_iter().chain([first]) {
            drop(tree::remove(&self.path(name)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::Error;

    fn make(path: &Path) -> Result<()> {
        make_dir(&path.join("inside"), 0o700)
    }

    /// Takes one as soon as there is one.
    fn taken(ready: &Ready, directory: &Path) {
        while ready.take(directory).is_none() {
            std::thread::yield_now();
        }
    }

    /// Waits until nobody makes any.
    fn still(ready: &Ready) {
        let inside = ready.0.as_ref().unwrap();
        while inside.made().state == State::Filling {
            std::thread::yield_now();
        }
    }

    fn count(root: &Path) -> usize {
        listing(&root.join("ready")).unwrap().len()
    }

    #[tokio::test]
    async fn directories_are_made_beside_and_given_away_once() {
        let root = tempfile::tempdir().unwrap();
        let ready = Ready::open(root.path(), make).unwrap();
        for n in 0..3 * FULL {
            let directory = root.path().join(n.to_string());
            taken(&ready, &directory);
            assert!(directory.join("inside").is_dir());
            assert!(count(root.path()) <= FULL + 1);
        }
        still(&ready);
        drop(ready);
        std::fs::create_dir_all(root.path().join("ready/left/below")).unwrap();
        let ready = Ready::open(root.path(), make).unwrap();
        assert_eq!(count(root.path()), 0);
        assert_eq!(ready.take(&root.path().join("first")), None);
    }

    #[test]
    fn without_a_runtime_or_a_place_there_are_none() {
        let root = tempfile::tempdir().unwrap();
        for ready in [Ready::open(root.path(), make).unwrap(), Ready::default()] {
            for _ in 0..2 {
                assert_eq!(ready.take(&root.path().join("x")), None);
            }
        }
        assert_eq!(count(root.path()), 0);
    }

    #[tokio::test]
    async fn those_that_cannot_be_given_away_are_taken_back() {
        let root = tempfile::tempdir().unwrap();
        let ready = Ready::open(root.path(), make).unwrap();
        let there = root.path().join("there");
        make_dir(&there.join("full"), 0o700).unwrap();
        while ready.0.as_ref().unwrap().made().state != State::Elsewhere {
            assert_eq!(ready.take(&there), None);
            std::thread::yield_now();
        }
        for _ in 0..3 {
            assert_eq!(ready.take(&root.path().join("free")), None);
        }
    }

    #[tokio::test]
    async fn one_that_cannot_be_made_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let fail = |path: &Path| {
            make(path)?;
            Err(Error::resource_exhausted("full"))
        };
        let ready = Ready::open(root.path(), fail).unwrap();
        let inside = ready.0.as_ref().unwrap();
        assert_eq!(ready.take(&root.path().join("x")), None);
        still(&ready);
        assert_eq!((count(root.path()), inside.made().next), (0, 1));
    }
}
