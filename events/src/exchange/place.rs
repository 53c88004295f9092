//! Where a subscription stands in its exchange.
//!
//! Invariant: one that ends leaves nothing there, but the note that it was cut when the exchange parts, and
//! what it was owed and has not got.

use std::fmt;
use std::sync::{Arc, Mutex, Weak};

use super::{State, lock, named};
use crate::cut::Cut;

/// The place of a subscription in its exchange; given up when dropped.
pub(crate) struct Place {
    pub(super) state: Weak<Mutex<State>>,
    pub(super) key: u64,
    /// Number up to which the subscriber has got everything, when something waits for it.
    pub(crate) got: u64,
    /// What is replayed waits for it.
    pub(crate) is_replaying: bool,
    /// The process that what is replayed is owed to.
    pub(super) owed_to: Option<u32>,
}

impl Place {
    /// Names the subscriber by its process, too; `None` when the subscription is over.
    pub(crate) fn name(&self, pid: u32) -> Option<Arc<str>> {
        let state = self.state.upgrade()?;
        let mut state = lock(&state);
        let subscriber = state.subscribers.get_mut(&self.key)?;
        subscriber.name = named(self.key, Some(pid), &subscriber.filter).into();
        subscriber.process = Some(pid);
        Some(Arc::clone(&subscriber.name))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(state) = self.state.upgrade() {
            let mut state = lock(&state);
            // Its filter goes when the lock is open again.
            let gone = state.subscribers.remove(&self.key);
            let last = state.ring.last();
            match (&mut state.parted, &gone, self.owed_to) {
                (Some(parted), Some(gone), _) => {
                    let waits = self.is_replaying || gone.load.is_any();
                    parted.extend(gone.cut(if waits { self.got } else { last }));
                }
                (_, _, Some(process)) if self.is_replaying => {
                    let after = self.got;
                    state.cuts.reopen(Cut { process, after });
                }
                _ => {}
            }
            drop(state);
            drop(gone);
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Place").field(&self.key).finish()
    }
}
