//! Directories of active snapshots that are made before anybody asks for one.
//!
//! To make three directories takes longer than all else that a prepare does: a file system that has just
//! removed others looks for inodes that were not theirs. One that is ready is given away by a rename, and
//! new ones are made beside the answer.
//!
//! ```text
//!   <root>/snapshots/ready-<n>/…   as an active snapshot's, of nobody yet
//! ```
//! Invariant: what is ready belongs to nobody and is gone at the next open; nobody waits for it to be made.
//! There is none where a flush of what is in a directory does not take its renaming along.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use types::Result;

use super::settle::flushes_in_order;
use crate::beside;
use crate::directories::{READY, listing};
use crate::tree;

/// How many are made.
const FULL: usize = 8;
/// With how many left more are made: several at a time, so that they are seldom made while one is asked for.
const LOW: usize = 4;

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
    /// Somebody makes more.
    is_filling: bool,
}

impl Ready {
    /// Takes away what was ready in `place` when the last process ended, whose lock is held. `make` makes
    /// one.
    pub(crate) fn open(place: &Path, make: fn(&Path) -> Result<()>) -> Self {
        if let Err(error) = clear(place) {
            tracing::warn!(%error, "directories that were ready are left");
        }
        if !flushes_in_order(place) {
            return Self::default();
        }
        let place = place.to_owned();
        let made = Mutex::default();
        Self(Some(Arc::new(Inside { place, make, made })))
    }

    /// Gives one away as `directory`; none when there is none.
    pub(crate) fn take(&self, directory: &Path) -> Option<()> {
        let inside = self.0.as_ref()?;
        let name = {
            let mut made = inside.made();
            let name = made.names.pop();
            if made.names.len() <= LOW && !made.is_filling {
                made.is_filling = inside.fill();
            }
            name?
        };
        let ready = inside.path(name);
        std::fs::rename(&ready, directory)
            .inspect_err(|error| {
                tracing::debug!(%error, ready = %ready.display(), "a ready directory is of no use");
                drop(tree::remove(&ready));
            })
            .ok()
    }
}

fn clear(place: &Path) -> Result<()> {
    let left = listing(place)?;
    let mut left = left.iter().filter(|name| name.starts_with(READY));
    left.try_for_each(|name| tree::remove(&place.join(name)))
}

impl Inside {
    fn made(&self) -> MutexGuard<'_, Made> {
        // Numbers are whole whoever panicked.
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, name: u64) -> PathBuf {
        self.place.join(format!("{READY}{name}"))
    }

    /// Begins to make more, beside whoever asks for one; false without a thread for it.
    fn fill(self: &Arc<Self>) -> bool {
        let this = Arc::clone(self);
        beside::begin(move || this.make_more())
    }

    fn make_more(&self) {
        while let Some(name) = self.next() {
            let path = self.path(name);
            if let Err(error) = (self.make)(&path) {
                // Whoever asks for one makes it himself then, and hears why that cannot be.
                tracing::debug!(%error, "no directory is made ready");
                drop(tree::remove(&path));
                self.made().is_filling = false;
                return;
            }
            self.made().names.push(name);
        }
    }

    /// The name of one more that is to be made; none when there are enough.
    fn next(&self) -> Option<u64> {
        let mut made = self.made();
        made.is_filling = made.names.len() < FULL;
        made.next += 1;
        made.is_filling.then_some(made.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::make_dir;
    use types::Error;

    fn make(path: &Path) -> Result<()> {
        make_dir(&path.join("inside"), 0o700)
    }

    fn count(root: &Path) -> usize {
        let names = listing(root).unwrap();
        names.iter().filter(|name| name.starts_with(READY)).count()
    }

    /// Waits until nobody makes any.
    fn still(ready: &Ready) {
        while ready.0.as_ref().unwrap().made().is_filling {
            std::thread::yield_now();
        }
    }

    #[test]
    fn directories_are_made_beside_and_given_away_once() {
        let root = tempfile::tempdir().unwrap();
        let ready = Ready::open(root.path(), make);
        for n in 0..3 * FULL {
            let directory = root.path().join(n.to_string());
            while ready.take(&directory).is_none() {
                std::thread::yield_now();
            }
            assert!(directory.join("inside").is_dir());
            assert!(count(root.path()) <= FULL + 1);
        }
        still(&ready);
        assert!(count(root.path()) > LOW);
        drop(ready);
        let ready = Ready::open(root.path(), make);
        assert_eq!(count(root.path()), 0);
        assert!(root.path().join("0/inside").is_dir());
        assert_eq!(ready.take(&root.path().join("first")), None);
    }

    #[test]
    fn without_a_place_there_are_none() {
        let root = tempfile::tempdir().unwrap();
        let ready = Ready::default();
        for _ in 0..2 {
            assert_eq!(ready.take(&root.path().join("x")), None);
        }
        assert_eq!(count(root.path()), 0);
    }

    #[test]
    fn one_that_cannot_be_given_away_is_taken_back() {
        let root = tempfile::tempdir().unwrap();
        let ready = Ready::open(root.path(), make);
        let there = root.path().join("there");
        make_dir(&there.join("full"), 0o700).unwrap();
        assert_eq!(ready.take(&there), None);
        still(&ready);
        let before = count(root.path());
        assert_eq!(ready.take(&there), None);
        assert_eq!(count(root.path()), before - 1);
        assert_eq!(ready.take(&root.path().join("free")), Some(()));
    }

    #[test]
    fn one_that_cannot_be_made_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let fail = |path: &Path| {
            make(path)?;
            Err(Error::resource_exhausted("full"))
        };
        let ready = Ready::open(root.path(), fail);
        assert_eq!(ready.take(&root.path().join("x")), None);
        still(&ready);
        assert_eq!(count(root.path()), 0);
    }
}
