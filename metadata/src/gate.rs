//! Gates by name: many may pass one together, or one alone.
//!
//! Invariant: gates of different names never wait for each other, and a gate that nobody uses takes
//! no memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

/// Entries above which dead ones are swept out.
const SWEEP: usize = 64;

/// A set of gates.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    gates: Mutex<HashMap<String, Weak<RwLock<()>>>>,
}

/// Passage together with others.
pub(crate) type Together = OwnedRwLockReadGuard<()>;
/// Passage alone.
pub(crate) type Alone = OwnedRwLockWriteGuard<()>;

impl Gate {
    /// Waits until nobody is alone in the gate of `name`.
    pub(crate) async fn together(&self, name: &str) -> Together {
        self.gate(name).read_owned().await
    }

    /// Waits until the gate of `name` is empty.
    pub(crate) async fn alone(&self, name: &str) -> Alone {
        self.gate(name).write_owned().await
    }

    /// Passes alone if the gate of `name` is empty now.
    pub(crate) fn try_alone(&self, name: &str) -> Option<Alone> {
        self.gate(name).try_write_owned().ok()
    }

    fn gate(&self, name: &str) -> Arc<RwLock<()>> {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gate) = gates.get(name).and_then(Weak::upgrade) {
            return gate;
        }
        if gates.len() >= SWEEP {
            gates.retain(|_, gate| gate.strong_count() > 0);
        }
        let gate = Arc::<RwLock<()>>::default();
        gates.insert(name.to_owned(), Arc::downgrade(&gate));
        gate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_gate_is_for_many_or_for_one() {
        let gate = Gate::default();
        let first = gate.together("a").await;
        let second = gate.together("a").await;
        assert!(gate.try_alone("a").is_none());
        let other = gate.try_alone("b").unwrap();
        drop((first, second));
        let alone = gate.try_alone("a").unwrap();
        assert!(gate.try_alone("a").is_none());
        drop((alone, other));
        drop(gate.alone("a").await);
    }

    #[tokio::test]
    async fn unused_gates_are_forgotten() {
        let gate = Gate::default();
        for n in 0..1000 {
            drop(gate.together(&n.to_string()).await);
        }
        assert!(gate.gates.lock().unwrap().len() <= SWEEP);
    }
}
