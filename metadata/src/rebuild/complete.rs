//! Records of what has none, in a store whose last changes may be lost: what they named would be garbage.
//!
//! Invariant: such a store carries a mark, and nothing of a backend is collected before that backend was
//! asked. That happens at a start only, when nobody is served yet: what lacks a record then has lost it. The
//! mark goes with the transaction that has the records; as long as a snapshotter cannot be asked, it names
//! that one.
//!
//! ```text
//! mark: empty ----> nobody was asked: blobs, tasks, all snapshotters
//!       names ----> these snapshotters are left: not loaded, or silent. None of their snapshots is
//!                   collected before a start at which they answer
//! ```

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, SystemTime};

use types::{Code, Container, Context as _, Namespace, Result, SnapshotInfo, SnapshotKind};

use super::{Builder, Found, Rebuilt, Rootfs};
use crate::codec::damaged;
use crate::key::{Bucket, all, key, names};
use crate::kv::{Flow, INCOMPLETE, Kv, Read, Records, TORN, Tx};
use crate::record::{SnapshotRecord, get_container, get_container_refs};
use crate::{OpenOpts, Policy, namespaces};

/// The snapshotters that a mark names.
type Names = BTreeSet<String>;

/// Between names in the mark: no name holds it.
const END: char = '\0';

/// How long is held what has no record when most likely nothing was lost: it was removed, or never
/// finished. What runs has a container.
const TORN_LEASE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// What a store says of changes that may be lost.
#[derive(Debug)]
struct Mark {
    /// Its journal ended in half a frame, and that was all.
    is_torn: bool,
    /// The snapshotters that are left to be asked; empty: all that there are, and everybody else.
    asked: Names,
}

impl Mark {
    fn load(tx: &dyn Read) -> Result<Option<Self>> {
        let Some(mark) = tx.get(INCOMPLETE)? else {
            return Ok(None);
        };
        let text = std::str::from_utf8(&mark).map_err(|_| damaged())?;
        let names = text.split(END).filter(|name| !name.is_empty());
        Ok(Some(Self {
            is_torn: mark.starts_with(TORN),
            asked: names.map(ToOwned::to_owned).collect(),
        }))
    }

    /// True when all who are left are away.
    fn is_in_vain(&self, opts: &OpenOpts) -> bool {
        let is_away = |name| !opts.snapshotters.contains_key(name);
        !self.asked.is_empty() && self.asked.iter().all(is_away)
    }

    /// Who has not answered of those that had to. The first time that is whoever may have something:
    /// what does not work, is silent, or is not configured any more and has records.
    fn left(&self, found: &Found, named: &Named, opts: &OpenOpts) -> Names {
        let mut left = self.asked.clone();
        if left.is_empty() {
            let known = opts.absent.iter().chain(opts.snapshotters.keys());
            left.extend(known.chain(&named.snapshotters).cloned());
        }
        left.retain(|name| !found.snapshots.contains_key(name));
        left
    }

    /// Leaves these to be asked, and no mark without one.
    fn leave(&self, tx: &mut Tx<'_>, left: &Names) {
        if left.is_empty() {
            return tx.remove(INCOMPLETE.into());
        }
        let names: Vec<&str> = left.iter().map(String::as_str).collect();
        let mut mark = if self.is_torn {
            TORN.into()
        } else {
            Vec::new()
        };
        mark.extend(names.join("\0").into_bytes());
        tx.put(INCOMPLETE.into(), mark);
    }
}

/// Completes a store that has its mark, before anybody is served. Who cannot be asked stays in the mark
/// and is told, so that nothing is collected there.
///
/// # Errors
/// Those of the backends, of the bundles and of the store; the mark stays as it was.
pub(crate) async fn at_start(kv: &Kv, opts: &OpenOpts) -> Result<(Option<Rebuilt>, Names)> {
    let Some(mark) = Mark::load(&kv.read()?)? else {
        return Ok((None, Names::new()));
    };
    if mark.is_in_vain(opts) {
        tell_left(&mark.asked);
        return Ok((None, mark.asked));
    }
    tracing::info!("metadata may lack its last changes: looking for what has no record");
    let found = Found::look(opts, &mark.asked).await;
    let found = found.ctx("complete metadata")?;
    let named = Named::load(&kv.read()?)?;
    let left = mark.left(&found, &named, opts);
    tell_left(&left);
    let now = SystemTime::now();
    let (records, rebuilt) = found.complete(&kv.read()?, named, &mark, opts.policy, now)?;
    let is_needed = !records.is_empty();
    if !is_needed && !left.is_empty() && left == mark.asked {
        return Ok((None, left));
    }
    let rest = left.clone();
    let change = move |tx: &mut Tx<'_>| {
        put_all(tx, records);
        mark.leave(tx, &rest);
        Ok(())
    };
    match kv.write(change).await {
        // A full disk: images can be removed only by who has started.
        Err(error) if !is_needed && error.is(Code::ResourceExhausted) => {
            tracing::warn!(%error, "nothing lacks a record; the next start has to look again");
        }
        done => done?,
    }
    rebuilt.iter().for_each(Rebuilt::tell_what);
    Ok((rebuilt, left))
}

/// Tells which snapshotters are not cleaned up, and why.
fn tell_left(left: &Names) {
    if !left.is_empty() {
        tracing::warn!(
            snapshotters = ?left,
            "changes of the records may be lost, and these snapshotters cannot be asked now for what has no \
             record: nothing is cleaned up there until the next start at which they answer"
        );
    }
}

fn put_all(tx: &mut Tx<'_>, records: Records) {
    for (key, record) in records {
        tx.put(key, record);
    }
}

impl Found {
    /// Leaves what has no record.
    fn retain_lacking(&mut self, named: &Named) {
        for (snapshotter, all) in &mut self.snapshots {
            all.retain(|info| !named.has_snapshot(snapshotter, info));
        }
        self.blobs
            .retain(|blob| !named.blobs.contains(blob.digest.as_str()));
        self.tasks.retain(|task| {
            let at = (task.namespace.clone(), task.id.to_string());
            !named.tasks.contains(&at)
        });
    }

    /// Makes records of what has none, and tells of what there is of that kind.
    ///
    /// # Errors
    /// Those of the store.
    fn complete(
        mut self,
        tx: &dyn Read,
        named: Named,
        mark: &Mark,
        policy: Policy,
        now: SystemTime,
    ) -> Result<(Records, Option<Rebuilt>)> {
        let there: HashSet<String> = self
            .snapshots
            .values()
            .flatten()
            .map(|info| info.name.to_string())
            .collect();
        self.retain_lacking(&named);
        let is_complete = self.is_nothing();
        let mut builder = Builder::new(now)?;
        // The record of a container may be lost alone: it stands on a snapshot that has one.
        builder.rootfs = named.rootfs;
        if !mark.asked.is_empty() {
            // Who left its snapshotter out on purpose is not told from who could not know it.
            builder.bare = named.bare;
        }
        if mark.is_torn {
            builder.end_after(TORN_LEASE)?;
        }
        builder.known = namespaces::known(tx)?.into_iter().collect();
        let (records, rebuilt) = builder.build(&self, policy)?;
        let sequence = key(Bucket::Store, &["sequence"]);
        let mut kept = Records::new();
        for (key, record) in records {
            let is_ours = match tx.get(&key)? {
                old if key == sequence => is_less(&old.unwrap_or_default(), &record),
                None => true,
                // What it names is not there any more: the name was used again.
                Some(old) if key.first() == Some(&(Bucket::Snapshot as u8)) => {
                    !there.contains(&SnapshotRecord::decode(&old)?.backend)
                }
                // One that named no snapshot, and does now: others with a record are not made again.
                Some(_) => key.first() == Some(&(Bucket::Container as u8)),
            };
            if is_ours {
                kept.insert(key, record);
            }
        }
        Ok((kept, (!is_complete).then_some(rebuilt)))
    }
}

/// True when a number in the store, 0 if there is none, is less than another one.
fn is_less(old: &[u8], new: &[u8]) -> bool {
    let number = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
    number(old) < number(new)
}

/// What a store's records name.
#[derive(Debug, Default)]
struct Named {
    blobs: HashSet<String>,
    /// By snapshotter: the names there.
    snapshots: HashMap<String, HashSet<String>>,
    /// Those that may be the roots of containers.
    rootfs: Rootfs,
    /// All that records name.
    snapshotters: Names,
    tasks: HashSet<(Namespace, String)>,
    /// Containers whose records name no snapshot.
    bare: Vec<(Namespace, Container)>,
}

impl Named {
    fn load(tx: &dyn Read) -> Result<Self> {
        let mut named = Self::default();
        for namespace in namespaces::known(tx)? {
            tx.scan(&all(Bucket::Blob, &namespace), &mut |rest, _| {
                let [digest] = names(rest)?;
                named.blobs.insert(digest.to_owned());
                Ok(Flow::Continue(()))
            })?;
            tx.scan(&all(Bucket::Snapshot, &namespace), &mut |rest, record| {
                let [snapshotter, name] = names(rest)?;
                let record = SnapshotRecord::decode(record)?;
                if record.kind != Some(SnapshotKind::Committed) {
                    let at = (namespace.clone(), name.to_owned());
                    let on = named.rootfs.entry(at).or_default();
                    on.insert(snapshotter.to_owned());
                }
                named.add_snapshotter(snapshotter);
                let of = named.snapshots.entry(snapshotter.to_owned()).or_default();
                of.insert(record.backend);
                Ok(Flow::Continue(()))
            })?;
            tx.scan(&all(Bucket::Container, &namespace), &mut |rest, record| {
                let [id] = names(rest)?;
                named.tasks.insert((namespace.clone(), id.to_owned()));
                // One that cannot be read is for the check to tell.
                match get_container_refs(record) {
                    Ok((_, snapshotter, _)) if snapshotter.is_empty() => {
                        if let Ok(container) = get_container(id, record) {
                            named.bare.push((namespace.clone(), container));
                        }
                    }
                    Ok((_, snapshotter, _)) => named.add_snapshotter(&snapshotter),
                    Err(_) => {}
                }
                Ok(Flow::Continue(()))
            })?;
        }
        Ok(named)
    }

    /// Notes one that a record names; a container's may be anything that a client has written.
    fn add_snapshotter(&mut self, name: &str) {
        if !name.contains(END) && !self.snapshotters.contains(name) {
            self.snapshotters.insert(name.to_owned());
        }
    }

    /// True when there is a record of a snapshot.
    fn has_snapshot(&self, snapshotter: &str, info: &SnapshotInfo) -> bool {
        let of = self.snapshots.get(snapshotter);
        of.is_some_and(|of| of.contains(info.name.as_str()))
    }
}

#[cfg(test)]
mod tests;
