//! One change on its way: the last state with an overlay of what the change has done so far.

use std::collections::BTreeMap;
use std::ops::Bound;

use redb::{ReadableTable as _, Table};
use types::Result;

use super::{Read, Visit, failure};

/// Runs after the commit, in the order of commits.
pub(super) type Hook = Box<dyn FnOnce() + Send>;

/// What a change does to one key.
pub(super) type Overlay = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// A transaction. Its changes touch the store only when its closure has succeeded.
pub(crate) struct Tx<'a> {
    base: &'a Table<'a, &'static [u8], &'static [u8]>,
    overlay: Overlay,
    hooks: Vec<Hook>,
}

/// What a transaction that succeeded leaves to do.
pub(super) struct Done {
    pub(super) overlay: Overlay,
    pub(super) hooks: Vec<Hook>,
}

impl<'a> Tx<'a> {
    pub(super) fn new(base: &'a Table<'a, &'static [u8], &'static [u8]>) -> Self {
        Self {
            base,
            overlay: Overlay::new(),
            hooks: Vec::new(),
        }
    }

    pub(super) fn done(self) -> Done {
        Done {
            overlay: self.overlay,
            hooks: self.hooks,
        }
    }

    /// True when something was set or removed.
    pub(crate) fn is_changed(&self) -> bool {
        !self.overlay.is_empty()
    }

    /// Sets a key.
    pub(crate) fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.overlay.insert(key, Some(value));
    }

    /// Removes a key, if it is there.
    pub(crate) fn remove(&mut self, key: Vec<u8>) {
        self.overlay.insert(key, None);
    }

    /// Removes all keys that begin with `prefix`.
    pub(crate) fn remove_all(&mut self, prefix: &[u8]) -> Result<()> {
        let mut keys = Vec::new();
        self.scan(prefix, &mut |rest, _| {
            keys.push([prefix, rest].concat());
            Ok(super::Flow::Continue(()))
        })?;
        for key in keys {
            self.remove(key);
        }
        Ok(())
    }

    /// Calls `hook` when, and only when, this transaction is durable. It must not block.
    pub(crate) fn on_commit(&mut self, hook: impl FnOnce() + Send + 'static) {
        self.hooks.push(Box::new(hook));
    }
}

impl Read for Tx<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        if let Some(changed) = self.overlay.get(key) {
            return Ok(changed.clone());
        }
        let found = self.base.get(key).map_err(failure)?;
        Ok(found.map(|value| value.value().to_vec()))
    }

    /// Merges two ordered streams; the overlay wins.
    fn scan(&self, prefix: &[u8], visit: &mut Visit<'_>) -> Result<()> {
        let from = (Bound::Included(prefix), Bound::Unbounded);
        let mut changes = self
            .overlay
            .range::<[u8], _>(from)
            .take_while(|(key, _)| key.starts_with(prefix))
            .peekable();
        for entry in self.base.range(prefix..).map_err(failure)? {
            let (key, value) = entry.map_err(failure)?;
            let key = key.value();
            if !key.starts_with(prefix) {
                break;
            }
            while let Some((changed, new)) =
                changes.next_if(|(changed, _)| changed.as_slice() < key)
            {
                if let Some(new) = new
                    && visit(&changed[prefix.len()..], new)?.is_break()
                {
                    return Ok(());
                }
            }
            let value = match changes.next_if(|(changed, _)| changed.as_slice() == key) {
                Some((_, None)) => continue,
                Some((_, Some(new))) => new.as_slice(),
                None => value.value(),
            };
            if visit(&key[prefix.len()..], value)?.is_break() {
                return Ok(());
            }
        }
        for (changed, new) in changes {
            if let Some(new) = new
                && visit(&changed[prefix.len()..], new)?.is_break()
            {
                return Ok(());
            }
        }
        Ok(())
    }
}
