//! Whom nobody has asked yet for what a lost end of the journal named, and what was removed there since.
//!
//! Invariant: whoever stands here stays until a start at which it answers, whatever is lost meanwhile: a
//! later loss marks the store beside this, and takes nobody out. What is removed of a snapshotter that
//! stands here is noted, so that its files are not taken for something that has lost its record.
//!
//! ```text
//! mark of the store: everybody is to be asked: blobs, tasks, all snapshotters
//! unasked:           these snapshotters are, whether or not there is that mark
//! removed:           names of theirs that are garbage, as many as there is room for
//! ```

use std::collections::{BTreeSet, HashMap, HashSet};

use types::Result;

use crate::OpenOpts;
use crate::codec::damaged;
use crate::db::number;
use crate::key::{Bucket, below, key, names};
use crate::kv::{Flow, INCOMPLETE, Read, TORN, Tx};

/// Names of snapshotters.
pub(super) type Names = BTreeSet<String>;

/// Names of removed snapshots, by snapshotter.
pub(super) type Removed = HashMap<String, HashSet<String>>;

/// Between names: no name holds it.
pub(super) const END: char = '\0';

/// Removals that are noted for each snapshotter. Those beyond it are taken for losses.
pub(crate) const MOST_REMOVED: u64 = 4096;

fn at() -> Vec<u8> {
    key(Bucket::Store, &["unasked"])
}

/// What a store says of changes that may be lost.
#[derive(Debug, Default)]
pub(super) struct Mark {
    /// Nobody was asked yet; true when the journal ended in half a frame, and that was all.
    fresh: Option<bool>,
    /// The snapshotters that are left to be asked since an earlier start.
    pub(super) left: Names,
    /// What is found there may be garbage: it is held for some days only.
    is_left_torn: bool,
}

/// Whether all began with half a frame, and names.
fn parse(bytes: &[u8]) -> Result<(bool, Names)> {
    let text = std::str::from_utf8(bytes).map_err(|_| damaged())?;
    let names = text.split(END).filter(|name| !name.is_empty());
    let names = names.map(ToOwned::to_owned).collect();
    Ok((bytes.starts_with(TORN), names))
}

impl Mark {
    pub(super) fn load(tx: &dyn Read) -> Result<Option<Self>> {
        let mut mark = Self::default();
        if let Some(fresh) = tx.get(INCOMPLETE)? {
            mark.fresh = Some(fresh.starts_with(TORN));
        }
        if let Some(left) = tx.get(&at())? {
            (mark.is_left_torn, mark.left) = parse(&left)?;
        }
        let is_there = mark.asks_all() || !mark.left.is_empty();
        Ok(is_there.then_some(mark))
    }

    /// True when everybody is to be asked, and not only those that are left.
    pub(super) fn asks_all(&self) -> bool {
        self.fresh.is_some()
    }

    /// Whom to ask; empty for all.
    pub(super) fn asked(&self) -> Names {
        match self.asks_all() {
            true => Names::new(),
            false => self.left.clone(),
        }
    }

    /// True when most likely nothing was lost, whoever is asked.
    pub(super) fn is_torn(&self) -> bool {
        self.fresh.unwrap_or(true) && (self.left.is_empty() || self.is_left_torn)
    }

    /// True when all who are left are away.
    pub(super) fn is_in_vain(&self, opts: &OpenOpts) -> bool {
        let is_away = |name| !opts.snapshotters.contains_key(name);
        !self.asks_all() && self.left.iter().all(is_away)
    }

    /// Leaves these to be asked, and of what was removed only theirs.
    pub(super) fn leave(&self, tx: &mut Tx<'_>, left: &Names, is_torn: bool) -> Result<()> {
        tx.remove(INCOMPLETE.into());
        for name in self.left.difference(left) {
            tx.remove(count_key(name));
            tx.remove_all(&below(Bucket::Removed, &[name]))?;
        }
        if left.is_empty() {
            tx.remove(at());
            return Ok(());
        }
        let mut record = if is_torn { TORN.into() } else { Vec::new() };
        let names: Vec<&str> = left.iter().map(String::as_str).collect();
        record.extend(names.join("\0").into_bytes());
        tx.put(at(), record);
        Ok(())
    }
}

/// The key under which the removals of a snapshotter are counted.
fn count_key(snapshotter: &str) -> Vec<u8> {
    key(Bucket::Removed, &[snapshotter])
}

/// The record of a snapshot goes: noted while its snapshotter is not asked yet, as far as there is room.
///
/// # Errors
/// Those of the store.
pub(crate) fn note_removed(tx: &mut Tx<'_>, snapshotter: &str, backend: &str) -> Result<()> {
    let Some(left) = tx.get(&at())? else {
        return Ok(());
    };
    if !parse(&left)?.1.contains(snapshotter) {
        return Ok(());
    }
    let count = tx.get(&count_key(snapshotter))?;
    let count = count.as_deref().map_or(Ok(0), number)?;
    if count < MOST_REMOVED {
        tx.put(count_key(snapshotter), (count + 1).to_le_bytes().into());
        tx.put(key(Bucket::Removed, &[snapshotter, backend]), Vec::new());
    }
    Ok(())
}

/// A snapshot that its snapshotter has named has a record, maybe again.
///
/// # Errors
/// Those of the store.
pub(crate) fn note_adopted(tx: &mut Tx<'_>, snapshotter: &str, backend: &str) -> Result<()> {
    let at = key(Bucket::Removed, &[snapshotter, backend]);
    if tx.has(&at)? {
        tx.remove(at);
    }
    Ok(())
}

/// What was removed while it could not be asked for.
///
/// # Errors
/// Those of the store.
pub(super) fn removed(tx: &dyn Read) -> Result<Removed> {
    let mut removed = Removed::new();
    tx.scan(&[Bucket::Removed as u8], &mut |rest, _| {
        // The others count.
        if rest.contains(&0) {
            let [snapshotter, backend] = names(rest)?;
            let of = removed.entry(snapshotter.to_owned()).or_default();
            of.insert(backend.to_owned());
        }
        Ok(Flow::Continue(()))
    })?;
    Ok(removed)
}
