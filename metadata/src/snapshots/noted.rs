//! Commits that the journal of the records makes durable for their snapshotters: one flush for both.
//!
//! ```text
//!   commit in the snapshotter: there, not flushed - record and note in one transaction - answer
//!   collection: snapshotter flushed - the notes from before go
//!   start after a power cut: what the notes tell is made again
//! ```
//! Invariant: the record of a commit is durable together with its note, and the note goes when the
//! snapshotter has it, or the record.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use ::snapshotters::{Redo, Redone, Snapshotter};
use types::Result;

use super::{Backend, number_of};
use crate::Metadata;
use crate::codec::damaged;
use crate::db::WriteTx;
use crate::key::{Bucket, below, key, names};
use crate::kv::{Flow, Kv, Read, Tx};
use crate::rebuild::unasked;

/// Notes that go in one transaction.
const STEP: usize = 256;

/// A snapshotter, and its own name for a snapshot.
type At<'a> = (&'a str, &'a str);

fn at((snapshotter, backend): At<'_>) -> Vec<u8> {
    key(Bucket::Redo, &[snapshotter, backend])
}

/// Notes a commit beside its record.
pub(super) fn note(tx: &mut WriteTx<'_, '_>, of: At<'_>, redo: &Redo) {
    let sequence = redo.sequence.to_le_bytes();
    tx.put(at(of), [sequence.as_slice(), &redo.text].concat());
}

fn decode(value: &[u8]) -> Result<Redo> {
    let (sequence, text) = value.split_first_chunk().ok_or_else(damaged)?;
    Ok(Redo {
        sequence: u64::from_le_bytes(*sequence),
        text: text.to_vec(),
    })
}

/// The record goes, and with it the note.
pub(crate) fn forget(tx: &mut WriteTx<'_, '_>, of: At<'_>) -> Result<()> {
    let at = at(of);
    if tx.has(&at)? {
        tx.remove(at);
    }
    let (snapshotter, backend) = of;
    unasked::note_removed(tx, snapshotter, backend)
}

/// The keys of all notes for a snapshotter.
fn keys(tx: &dyn Read, snapshotter: &str) -> Result<Vec<Vec<u8>>> {
    let prefix = below(Bucket::Redo, &[snapshotter]);
    let mut keys = Vec::new();
    tx.scan(&prefix, &mut |rest, _| {
        keys.push([prefix.as_slice(), rest].concat());
        Ok(Flow::Continue(()))
    })?;
    Ok(keys)
}

/// The numbers of the snapshots that are noted for a snapshotter.
///
/// # Errors
/// Those of the store.
pub(crate) fn numbers(tx: &dyn Read, snapshotter: &str) -> Result<HashSet<u64>> {
    let mut numbers = HashSet::new();
    tx.scan(&below(Bucket::Redo, &[snapshotter]), &mut |rest, _| {
        let [backend] = names(rest)?;
        numbers.extend(number_of(backend));
        Ok(Flow::Continue(()))
    })?;
    Ok(numbers)
}

/// Makes durable in the snapshotter what is noted for it; the notes go. First, what could not be made again
/// at the start is tried once more: until then nothing is cleaned up there.
///
/// # Errors
/// Those of the snapshotter and of the store; what is noted stays so.
pub(crate) async fn flush(metadata: &Metadata, name: &str, backend: &Backend) -> Result<()> {
    let kv = &metadata.0.db.kv;
    if backend.is_unsettled() {
        redo_of(kv, name, backend.snapshotter.as_ref()).await?;
        backend.settle();
    }
    let noted = keys(&kv.read()?, name)?;
    if noted.is_empty() {
        return Ok(());
    }
    backend.snapshotter.flush().await?;
    drop_all(kv, noted).await
}

async fn drop_all(kv: &Kv, noted: Vec<Vec<u8>>) -> Result<()> {
    for some in noted.chunks(STEP) {
        let some = some.to_vec();
        let change = move |tx: &mut Tx<'_>| {
            some.into_iter().for_each(|key| tx.remove(key));
            Ok(())
        };
        kv.write(change).await?;
    }
    Ok(())
}

/// Makes again what a power cut has taken, before anybody asks the snapshotters for what they have. The
/// answer names those in which nothing must be cleaned up, since not all could be made for now.
///
/// # Errors
/// Those of the store.
pub(crate) async fn redo(
    kv: &Kv,
    snapshotters: &BTreeMap<String, Arc<dyn Snapshotter>>,
) -> Result<HashSet<String>> {
    let mut unsettled = HashSet::new();
    for (name, snapshotter) in snapshotters {
        if let Err(error) = redo_of(kv, name, snapshotter.as_ref()).await {
            tracing::warn!(
                %error, snapshotter = name,
                "commits that the power may have taken cannot be made again now: nothing is cleaned up there"
            );
            unsettled.insert(name.clone());
        }
    }
    Ok(unsettled)
}

/// The same in one snapshotter. What nobody can make is told; its record stays for the check, which finds
/// that there is nothing left.
async fn redo_of(kv: &Kv, name: &str, snapshotter: &dyn Snapshotter) -> Result<()> {
    let (mut keys, mut all) = (Vec::new(), Vec::new());
    let prefix = below(Bucket::Redo, &[name]);
    kv.read()?.scan(&prefix, &mut |rest, value| {
        keys.push([prefix.as_slice(), rest].concat());
        all.push(decode(value)?);
        Ok(Flow::Continue(()))
    })?;
    if all.is_empty() {
        return Ok(());
    }
    let Redone { made, lost } = snapshotter.redo(&all).await?;
    for (at, error) in &lost {
        let [_, key] = keys.get(*at).map_or(Ok(["", ""]), |key| names(&key[1..]))?;
        tracing::error!(
            %error, snapshotter = name, key,
            "the power has taken the commit of a snapshot, and it cannot be made again"
        );
    }
    // Sequences begin anew: notes of both epochs must not be mixed.
    match made == 0 && lost.is_empty() {
        true => Ok(()),
        false => drop_all(kv, keys).await,
    }
}
