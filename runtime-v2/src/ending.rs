//! Bundles that are to go: what a later daemon must know of them when this one has no time to remove them.
//!
//! Invariant: a bundle is marked only by who ends its task, or while a fact of the kernel says that its shim
//! is dead; and it is marked before the socket of its shim may go.

use std::sync::Arc;

use crate::client::{Dialed, dial};
use crate::entry::Entry;
use crate::tasks::Shared;

/// Remembers in the bundle that it is to go. A socket that nobody listens at goes for all who share it:
/// their shim is gone with this one's.
pub(crate) async fn mark(shared: &Shared, entry: &Entry) {
    let looking = async {
        match entry.address.get() {
            Some(address) => matches!(dial(address).await, Ok(Dialed::Refused)),
            None => false,
        }
    };
    let dead = dead_with(shared, entry, looking).await;
    note_ending(entry);
    dead.iter().for_each(|one| note_ending(one));
}

/// The others of a shim, if it proves to be dead.
async fn dead_with(
    shared: &Shared,
    entry: &Entry,
    is_dead: impl Future<Output = bool>,
) -> Vec<Arc<Entry>> {
    // Taken before it is looked at: who comes later may have a new shim there, which lives.
    let others = shared.sharing(entry);
    if is_dead.await { others } else { Vec::new() }
}

/// Remembers that this bundle is to go.
pub(crate) fn note_ending(entry: &Entry) {
    if let Err(error) = entry.bundle.write_ending() {
        let (namespace, id) = (&entry.namespace, &entry.id);
        tracing::warn!(%namespace, %id, %error, "remember that the bundle is to go");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bootstrap::Address;
    use crate::tasks::{Config, Tasks};
    use crate::{Stdio, TaskManager as _};

    #[tokio::test]
    async fn who_comes_to_a_new_shim_while_the_old_one_is_looked_at_is_not_taken_for_dead() {
        let dir = tempfile::tempdir().unwrap();
        let tasks = Tasks::open(Config::of(dir.path())).unwrap();
        let shared = &tasks.shared;
        let comes = |name: &str| {
            let key = ("ns".parse().unwrap(), name.parse().unwrap());
            let bundle = shared.bundles.create(&key.0, &key.1, b"{}", "").unwrap();
            let entry = Entry::new(key.0.clone(), key.1.clone(), bundle, Stdio::default());
            entry
                .address
                .set(Address::parse(b"/s/group").unwrap())
                .unwrap();
            let entry = Arc::new(entry);
            shared.reserve(key).unwrap().fill(&entry);
            entry
        };
        let (first, second) = (comes("c1"), comes("c2"));
        let looking = async {
            comes("c3");
            true
        };
        let dead = dead_with(shared, &first, looking).await;
        let names: Vec<_> = dead.iter().map(|entry| entry.id.as_str()).collect();
        assert_eq!(names, [second.id.as_str()]);
        assert!(dead_with(shared, &first, async { false }).await.is_empty());
        assert_eq!(tasks.list(None).await.unwrap().len(), 3);
    }
}
