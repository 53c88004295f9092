//! Whom nobody has asked yet for what a lost end of the journal named, and what was removed there since.
//!
//! Invariant: whoever stands here stays until a start at which it answers, whatever is lost meanwhile: a
//! later loss marks the store beside this, and takes nobody out. What is removed of a snapshotter that
//! stands here is noted, so that its files are not taken for something that has lost its record.
//!
//! ```text
//! mark of the store: without names, everybody is to be asked: blobs, tasks, all snapshotters
//!                    with names, the same as below: an earlier daemon knows no other record
//! unasked:           these snapshotters are to be asked, whatever the mark says
//! removed:           names there that are garbage, as many as there is room for
//! ```

use std::collections::{BTreeSet, HashMap, HashSet};

use types::Result;

use crate::OpenOpts;
use crate::codec::damaged;
use crate::db::number;
use crate::key::{Bucket, below, key, names};
use crate::kv::{self, Flow, INCOMPLETE, Read, TORN, Tx, UNASKED};

/// Names of snapshotters.
pub(super) type Names = BTreeSet<String>;

/// Names of removed snapshots, by snapshotter.
pub(crate) type Removed = HashMap<String, HashSet<String>>;

/// Between names: no name holds it.
pub(super) const END: char = '\0';

/// Removals that are noted for each snapshotter. Those beyond it are taken for losses.
pub(crate) const MOST_REMOVED: u64 = 4096;

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
        let found = tx.get(INCOMPLETE)?;
        if let Some(found) = &found {
            let (is_torn, names) = parse(found)?;
            mark.fresh = names.is_empty().then_some(is_torn);
        }
        if let Some(left) = kv::unasked(found.as_deref(), tx.get(UNASKED)?.as_deref()) {
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

    /// Whether a snapshotter is to be asked at the next start.
    fn asks(&self, snapshotter: &str) -> bool {
        self.asks_all() || self.left.contains(snapshotter)
    }

    /// Leaves these to be asked, and of what was removed only theirs.
    pub(super) fn leave(tx: &mut Tx<'_>, left: &Names, is_torn: bool) -> Result<()> {
        for name in noted(tx)?.difference(left) {
            tx.remove(count_key(name));
            tx.remove_all(&below(Bucket::Removed, &[name]))?;
        }
        if left.is_empty() {
            tx.remove(INCOMPLETE.into());
            tx.remove(UNASKED.into());
            return Ok(());
        }
        let mut record = if is_torn { TORN.into() } else { Vec::new() };
        let names: Vec<&str> = left.iter().map(String::as_str).collect();
        record.extend(names.join("\0").into_bytes());
        // A later loss takes the place of the mark.
        tx.put(UNASKED.into(), record.clone());
        tx.put(INCOMPLETE.into(), record);
        Ok(())
    }
}

/// The key under which the removals of a snapshotter are counted.
fn count_key(snapshotter: &str) -> Vec<u8> {
    key(Bucket::Removed, &[snapshotter])
}

/// The snapshotters of which removals are noted.
fn noted(tx: &dyn Read) -> Result<Names> {
    let mut all = Names::new();
    tx.scan(&[Bucket::Removed as u8], &mut |rest, _| {
        if !rest.contains(&0) {
            let [snapshotter] = names(rest)?;
            all.insert(snapshotter.to_owned());
        }
        Ok(Flow::Continue(()))
    })?;
    Ok(all)
}

/// The record of a snapshot goes: noted while its snapshotter is to be asked, as far as there is room. Where
/// everybody is, the start had no room to say who is left.
///
/// # Errors
/// Those of the store.
pub(crate) fn note_removed(tx: &mut Tx<'_>, snapshotter: &str, backend: &str) -> Result<()> {
    if !Mark::load(tx)?.is_some_and(|mark| mark.asks(snapshotter)) {
        return Ok(());
    }
    let at = key(Bucket::Removed, &[snapshotter, backend]);
    if tx.has(&at)? {
        return Ok(());
    }
    let count = tx.get(&count_key(snapshotter))?;
    let count = count.as_deref().map_or(Ok(0), number)?;
    if count < MOST_REMOVED {
        tx.put(count_key(snapshotter), (count + 1).to_le_bytes().into());
        tx.put(at, Vec::new());
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
pub(crate) fn removed(tx: &dyn Read) -> Result<Removed> {
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
