//! The turn of a task beside the caller of a change.

use std::sync::{Arc, Weak};

use super::writer::Shared;

/// The turn to make what is queued. It is left to the writer's thread when it is not taken, also by a
/// runtime that ends. It keeps no store open: one that is closed leaves all to its thread.
pub(super) struct Turn(Weak<Shared>);

impl Turn {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        Self(Arc::downgrade(shared))
    }

    /// Makes what is queued, if it is brief and nobody else is at work.
    pub(super) fn take(self) {
        if let Some(shared) = self.0.upgrade() {
            shared.at_once();
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(shared) = self.0.upgrade() {
            shared.queue.leave();
        }
    }
}
