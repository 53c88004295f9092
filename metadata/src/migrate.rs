//! The layout of keys and records, and how an older one becomes ours.
//!
//! Invariant: a store is of one schema at any moment: a step and the number of the schema that it leads
//! to are one change. Before the first step, the store as it was is beside it as one file that the daemon
//! that wrote it can open, without the journal of this one. Whoever is killed anywhere in here begins again where it was. Called when a
//! store is opened, before anything else reads its records.
//!
//! ```text
//! newer than ours ---> refused, nothing is changed
//! ours --------------> nothing to do
//! older -------------> copy aside -> step -> step -> ours
//! ```

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use ::snapshotters::Snapshotter;
use types::{Context as _, Error, Filter, Result, SnapshotKind};

use crate::codec::damaged;
use crate::db::number;
use crate::key::{Bucket, key, names};
use crate::kv::{Flow, Kv, Read, Records, Tx, files};
use crate::record::SnapshotRecord;

/// What steps may know beside the records.
#[derive(Debug, Default)]
struct Facts {
    /// Kinds of snapshots, by snapshotter and its own key.
    kinds: BTreeMap<String, HashMap<String, SnapshotKind>>,
}

/// From one schema to the next.
type Step = fn(&mut Tx<'_>, &Facts) -> Result<()>;

/// The first leads from schema 1 to schema 2, and so on. Never change one, nor take one away.
const STEPS: [Step; 1] = [note_kinds];

/// Layout of keys and records that this code reads and writes.
const SCHEMA: u64 = STEPS.len() as u64 + 1;

type Backends = BTreeMap<String, Arc<dyn Snapshotter>>;

/// The record that tells the schema.
pub(crate) fn schema() -> Records {
    [(at(), SCHEMA.to_le_bytes().into())].into()
}

fn at() -> Vec<u8> {
    key(Bucket::Store, &["schema"])
}

/// Brings the records of the store at `path` to the schema of this code.
///
/// # Errors
/// `FailedPrecondition` when a newer daemon wrote it; `DataLoss` when it has none; no room for a copy,
/// I/O, those of the snapshotters: then the store is as it was, or some steps on.
pub(crate) async fn bring(kv: &Kv, path: &Path, snapshotters: &Backends) -> Result<()> {
    let found = found(kv).map_err(|error| {
        let [store, journal] = files(path).map(|file| file.display().to_string());
        error.ctx(format!(
            "metadata store {store} tells no schema: put back a copy of it without {journal}, or move both \
             away, and records are rebuilt from what there is"
        ))
    })?;
    if found > SCHEMA {
        return Err(Error::failed_precondition(format_args!(
            "metadata store has schema {found}, this daemon knows {SCHEMA} at most: run the daemon \
             that wrote it, or a newer one"
        )));
    }
    if found < SCHEMA {
        let facts = Facts::ask(snapshotters).await;
        run(
            kv,
            path,
            &STEPS,
            facts.ctx("bring metadata to a new schema")?,
        )
        .await?;
    }
    Ok(())
}

fn found(kv: &Kv) -> Result<u64> {
    match kv.read()?.get(&at())?.as_deref().map(number).transpose()? {
        None | Some(0) => Err(damaged()),
        Some(found) => Ok(found),
    }
}

/// Takes the steps that lead on from where the store is.
async fn run(kv: &Kv, path: &Path, steps: &[Step], facts: Facts) -> Result<()> {
    let (mut schema, facts) = (found(kv)?, Arc::new(facts));
    let done = usize::try_from(schema).unwrap_or(usize::MAX) - 1;
    let steps = steps.get(done..).unwrap_or_default();
    if steps.is_empty() {
        return Ok(());
    }
    let kept = kv.keep(&format!("schema-{schema}"));
    let kept = kept.ctx("keep metadata as it is before a new daemon changes it")?;
    tracing::info!(
        from = schema,
        "metadata goes to a new schema; {}",
        way_back(path, &kept)
    );
    for step in steps {
        let (step, facts) = (*step, Arc::clone(&facts));
        let next = schema + 1;
        let change = move |tx: &mut Tx<'_>| {
            step(tx, &facts)?;
            tx.put(at(), next.to_le_bytes().into());
            Ok(())
        };
        let done = kv.write(change).await;
        done.ctx_with(|| format!("bring metadata from schema {schema} to {next}"))?;
        schema = next;
    }
    tracing::info!(schema, "metadata is of the new schema");
    Ok(())
}

/// How to go back to the store that was `kept`. Its journal is of the store as it is now, and would have
/// the older one taken for damaged.
fn way_back(path: &Path, kept: &Path) -> String {
    let [store, journal] = files(path).map(|file| file.display().to_string());
    let kept = kept.display();
    format!(
        "as it was, it is kept as {kept}. To go back to an older daemon: stop this one, remove {journal}, \
         rename {kept} to {store}. Remove it when no older daemon is needed any more"
    )
}

impl Facts {
    async fn ask(snapshotters: &Backends) -> Result<Self> {
        let mut kinds = BTreeMap::new();
        for (name, snapshotter) in snapshotters {
            // Nobody waits for a program that may be away.
            if snapshotter.is_remote() {
                continue;
            }
            let all = snapshotter.list(&Filter::default()).await?.into_iter();
            let all = all.map(|info| (info.name.to_string(), info.kind));
            kinds.insert(name.clone(), all.collect());
        }
        Ok(Self { kinds })
    }
}

/// Schema 2: a snapshot's record tells its kind, wherever its snapshotter could be asked. What a power cut
/// takes from a snapshotter can only be made again where it is known.
fn note_kinds(tx: &mut Tx<'_>, facts: &Facts) -> Result<()> {
    let prefix = key(Bucket::Snapshot, &[]);
    let mut noted = Vec::new();
    tx.scan(&prefix, &mut |rest, record| {
        let [_, snapshotter, _] = names(rest)?;
        // One that cannot be read is for the check to tell.
        let Ok(mut record) = SnapshotRecord::decode(record) else {
            return Ok(Flow::Continue(()));
        };
        let kinds = facts.kinds.get(snapshotter);
        let known = kinds.and_then(|kinds| kinds.get(&record.backend));
        if let (None, Some(kind)) = (record.kind, known) {
            record.kind = Some(*kind);
            noted.push(([prefix.as_slice(), rest].concat(), record.encode()));
        }
        Ok(Flow::Continue(()))
    })?;
    for (key, record) in noted {
        tx.put(key, record);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
