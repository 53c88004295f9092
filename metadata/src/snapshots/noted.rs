//! Commits that the journal of the records makes durable for their snapshotters: one flush for both.
//!
//! ```text
//!   commit in the snapshotter: there, not flushed - record and note in one transaction - answer
//!   collection: snapshotter flushed - the notes from before go
//!   start after a power cut: what the notes tell is made again
//! ```
//! Invariant: the record of a commit is durable together with its note, and the note goes when the
//! snapshotter has it, or the record.

use std::collections::BTreeMap;

use ::snapshotters::Redo;
use types::{Code, Result};

use super::Backend;
use crate::Metadata;
use crate::codec::damaged;
use crate::db::WriteTx;
use crate::key::{Bucket, below, key, names};
use crate::kv::{Flow, Read};

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
    Ok(())
}

/// True while a commit is noted.
pub(crate) fn is_noted(tx: &dyn Read, of: At<'_>) -> Result<bool> {
    tx.has(&at(of))
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

/// Makes durable in the snapshotter what is noted for it; the notes go.
///
/// # Errors
/// Those of the snapshotter and of the store; what is noted stays so.
pub(crate) async fn flush(metadata: &Metadata, name: &str, backend: &Backend) -> Result<()> {
    let noted = keys(&metadata.0.db.kv.read()?, name)?;
    if noted.is_empty() {
        return Ok(());
    }
    backend.snapshotter.flush().await?;
    drop_all(metadata, noted).await
}

async fn drop_all(metadata: &Metadata, noted: Vec<Vec<u8>>) -> Result<()> {
    for some in noted.chunks(STEP) {
        let some = some.to_vec();
        let change = move |tx: &mut WriteTx<'_, '_>| {
            tx.collecting();
            some.into_iter().for_each(|key| tx.remove(key));
            Ok(())
        };
        metadata.0.db.write(change).await?;
    }
    Ok(())
}

/// Makes again what a power cut has taken. What cannot be made is told, and the layer is unpacked again by
/// whoever wants it.
///
/// # Errors
/// Those of the store.
pub(super) async fn redo(metadata: &Metadata) -> Result<()> {
    let mut all: BTreeMap<String, Vec<(String, Redo)>> = BTreeMap::new();
    let prefix = [Bucket::Redo as u8];
    metadata.0.db.kv.read()?.scan(&prefix, &mut |rest, value| {
        let [snapshotter, backend] = names(rest)?;
        let noted = (backend.to_owned(), decode(value)?);
        all.entry(snapshotter.to_owned()).or_default().push(noted);
        Ok(Flow::Continue(()))
    })?;
    for (name, mut noted) in all {
        // Its notes are kept for when it is there again.
        let Some(backend) = metadata.0.snapshotters.get(&name) else {
            continue;
        };
        noted.sort_by_key(|(_, redo)| redo.sequence);
        let lost = again(&name, backend, &noted).await;
        drop_all(metadata, lost).await?;
    }
    Ok(())
}

/// Makes the commits of one snapshotter again; the keys of those that nobody can make.
async fn again(name: &str, backend: &Backend, noted: &[(String, Redo)]) -> Vec<Vec<u8>> {
    let mut lost = Vec::new();
    for (backend_key, redo) in noted {
        let Err(error) = backend.snapshotter.redo(redo).await else {
            continue;
        };
        tracing::warn!(
            %error, snapshotter = name, key = backend_key,
            "the power has taken the commit of a snapshot, and it cannot be made again"
        );
        if error.is(Code::DataLoss) || error.is_not_found() {
            lost.push(at((name, backend_key)));
        }
    }
    lost
}
