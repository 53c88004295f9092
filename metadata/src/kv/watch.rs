//! Keys that were changed while somebody looked at an older state.
//!
//! Invariant: a key is noted when it is changed, before anybody can read the change: whoever reads in a
//! transaction finds all changes before it noted. What is noted for a commit that fails does no harm.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::tx::Overlay;

/// Keys that are noted at most.
const MOST: usize = 100_000;

/// What the watches have noted: nothing is, while there is none.
#[derive(Debug, Default)]
pub(super) struct Watches(Mutex<Vec<Weak<Noted>>>);

/// Keys, or `None` when there are too many.
#[derive(Debug)]
struct Noted(Mutex<Option<Vec<Vec<u8>>>>);

impl Noted {
    fn keys(&self) -> MutexGuard<'_, Option<Vec<Vec<u8>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A watch; it ends with its value.
#[derive(Debug)]
pub(crate) struct Watch(Arc<Noted>);

impl Watch {
    /// The keys that were changed since the watch began, or since they were taken last; `None` when
    /// they were too many to note.
    pub(crate) fn take(&self) -> Option<Vec<Vec<u8>>> {
        self.0.keys().replace(Vec::new())
    }
}

impl Watches {
    fn all(&self) -> MutexGuard<'_, Vec<Weak<Noted>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin(&self) -> Watch {
        let noted = Arc::new(Noted(Mutex::new(Some(Vec::new()))));
        self.all().push(Arc::downgrade(&noted));
        Watch(noted)
    }

    pub(super) fn note(&self, changes: &Overlay) {
        self.all().retain(|watch| {
            let Some(watch) = watch.upgrade() else {
                return false;
            };
            let mut keys = watch.keys();
            if let Some(noted) = &mut *keys {
                noted.extend(changes.keys().cloned());
                if noted.len() > MOST {
                    *keys = None;
                }
            }
            true
        });
    }
}
