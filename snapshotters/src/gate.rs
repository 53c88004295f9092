//! One at a time for each snapshot, for work that blocks.
//!
//! Invariant: a number is in the set exactly while somebody holds it.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The numbers that are held.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    held: Mutex<HashSet<u64>>,
    freed: Condvar,
}

/// Holds a number; others wait until it is dropped.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    gate: &'a Gate,
    id: u64,
}

impl Gate {
    /// Waits until nobody else has `id`, and takes it. Blocks.
    pub(crate) fn alone(&self, id: u64) -> Held<'_> {
        let mut held = self.held();
        while !held.insert(id) {
            held = self
                .freed
                .wait(held)
                .unwrap_or_else(PoisonError::into_inner);
        }
        Held { gate: self, id }
    }

    fn held(&self) -> MutexGuard<'_, HashSet<u64>> {
        // A set of numbers is whole whoever panicked.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.gate.held().remove(&self.id);
        self.gate.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn one_at_a_time_has_a_number() {
        let (gate, inside) = (Gate::default(), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for n in 0..8_u64 {
                let (gate, inside) = (&gate, &inside);
                scope.spawn(move || {
                    for _ in 0..100 {
                        let _other = gate.alone(100 + n);
                        let _held = gate.alone(1);
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert!(gate.held().is_empty());
    }
}
