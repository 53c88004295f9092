//! Records of what has none, in a store whose last changes may be lost: what they named would be garbage.
//!
//! Invariant: such a store carries a mark, and nothing of a backend is collected before that backend was
//! asked. That happens at a start only, when nobody is served yet: what lacks a record then has lost it. The
//! mark goes with the transaction that has the records; a snapshotter that cannot be asked, not loaded or
//! silent, is left in it and in a record of those, and none of its snapshots is collected before a start at
//! which it answers.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use types::{Code, Container, Context as _, Namespace, Result, SnapshotInfo, SnapshotKind};

use super::unasked::{self, END, Mark, Names, Removed};
use super::{Builder, Found, Rebuilt, Rootfs, parse};
use crate::db::number;
use crate::gc::{self, Node};
use crate::key::{Bucket, all, key, names};
use crate::kv::{Flow, Kv, Read, Records, Tx};
use crate::record::{SnapshotRecord, get_container, get_container_refs};
use crate::snapshots::record_key;
use crate::{OpenOpts, Policy, namespaces};

/// How long is held what has no record when most likely nothing was lost: it was removed, or never
/// finished. What runs has a container.
const TORN_LEASE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// How far the numbers of backends are advanced where somebody could not be asked for those that a lost end of
/// the journal gave: more than anybody has ever given.
const UNSEEN_NUMBERS: u64 = 1 << 32;

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Completed {
    /// What has records again.
    pub(crate) rebuilt: Option<Rebuilt>,
    /// The snapshotters that are left to be asked: nothing is collected there.
    pub(crate) left: Names,
    /// What lacks its records still, since there is no room for them.
    pub(crate) spared: Spared,
}

/// What has no record and must not be collected for that, until a start at which the disk has room for one.
#[derive(Debug, Default)]
pub(crate) struct Spared {
    pub(crate) blobs: HashSet<String>,
    /// By snapshotter: the names there.
    pub(crate) snapshots: HashMap<String, HashSet<String>>,
    /// No number up to this one may be given again.
    pub(crate) used: u64,
}

/// Completes a store that has its mark, before anybody is served. Who cannot be asked stays in the mark
/// and is told, so that nothing is collected there.
///
/// # Errors
/// Those of the backends, of the bundles and of the store; the mark stays as it was.
pub(crate) async fn at_start(kv: &Kv, opts: &OpenOpts) -> Result<Completed> {
    let Some(mark) = Mark::load(&kv.read()?)? else {
        return Ok(Completed::default());
    };
    if mark.is_in_vain(opts) {
        tell_left(&mark.left);
        return Ok(Completed {
            left: mark.left,
            ..Completed::default()
        });
    }
    tracing::info!("metadata may lack its last changes: looking for what has no record");
    let found = Found::look(opts, &mark.asked()).await;
    let mut found = found.ctx("complete metadata")?;
    let named = Named::load(&kv.read()?)?;
    let left = mark.left_by(&found, &named, opts);
    tell_left(&left);
    let is_left = !left.is_empty();
    let there = found.backend_names();
    let state = (&mark, is_left, &there);
    let (records, rebuilt) = found.complete(&kv.read()?, named, state, opts.policy)?;
    let mut done = Completed {
        rebuilt,
        left,
        spared: Spared::default(),
    };
    if records.is_empty() && is_left && !mark.asks_all() && done.left == mark.left {
        return Ok(done);
    }
    let is_torn = mark.is_torn() && !done.rebuilt.as_ref().is_some_and(Rebuilt::has_bare);
    let rest = done.left.clone();
    let change = move |tx: &mut Tx<'_>| {
        put_all(tx, records);
        Mark::leave(tx, &rest, is_torn)
    };
    match kv.write(change).await {
        // A full disk: images can be removed only by who has started.
        Err(error)
            if error.is(Code::ResourceExhausted) && !found.is_wanted(&kv.read()?, &there)? =>
        {
            tracing::warn!(
                %error,
                "nothing that is named lacks a record; what has none is kept, and the next start looks again"
            );
            done.rebuilt = None;
            done.spared = found.into_spared();
            return Ok(done);
        }
        written => written?,
    }
    done.rebuilt.iter().for_each(Rebuilt::tell_what);
    Ok(done)
}

impl Mark {
    /// Who has not answered of those that had to. When everybody is asked that is whoever may have something:
    /// what does not work, is silent, or is not configured any more and has records; and whoever was left
    /// before.
    fn left_by(&self, found: &Found, named: &Named, opts: &OpenOpts) -> Names {
        let mut left = self.left.clone();
        if self.asks_all() {
            let known = opts.absent.iter().chain(opts.snapshotters.keys());
            left.extend(known.chain(&named.snapshotters).cloned());
        }
        left.retain(|name| !found.snapshots.contains_key(name));
        left
    }
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
    /// What snapshotters call what they have.
    fn backend_names(&self) -> HashSet<String> {
        let all = self.snapshots.values().flatten();
        all.map(|info| info.name.to_string()).collect()
    }

    /// Leaves what has no record, but for what has lost it by a removal.
    fn retain_lacking(&mut self, named: &Named, removed: &Removed) {
        for (snapshotter, all) in &mut self.snapshots {
            all.retain(|info| !named.has_snapshot(snapshotter, info));
            if let Some(removed) = removed.get(snapshotter) {
                retain_needed(all, removed);
            }
        }
        self.blobs
            .retain(|blob| !named.blobs.contains(blob.digest.as_str()));
        self.tasks.retain(|task| {
            let at = (task.namespace.clone(), task.id.to_string());
            !named.tasks.contains(&at)
        });
    }

    /// Makes records of what has none, and tells of what there is of that kind, which is all that is left of
    /// what was found.
    ///
    /// # Errors
    /// Those of the store.
    fn complete(
        &mut self,
        tx: &dyn Read,
        named: Named,
        (mark, is_left, there): (&Mark, bool, &HashSet<String>),
        policy: Policy,
    ) -> Result<(Records, Option<Rebuilt>)> {
        self.retain_lacking(&named, &unasked::removed(tx)?);
        let sequence = key(Bucket::Store, &["sequence"]);
        if is_left && mark.asks_all() {
            let given = tx.get(&sequence)?.as_deref().map_or(Ok(0), number)?;
            self.highest = self.highest.max(given).saturating_add(UNSEEN_NUMBERS);
        }
        let is_complete = self.is_nothing();
        let mut builder = Builder::new(SystemTime::now())?;
        // The record of a container may be lost alone: it stands on a snapshot that has one.
        builder.rootfs = named.rootfs;
        if !mark.left.is_empty() {
            // Who left its snapshotter out on purpose is not told from who could not know it.
            builder.bare = named.bare;
        }
        if mark.is_torn() {
            builder.end_after(TORN_LEASE);
        }
        builder.known = namespaces::known(tx)?.into_iter().collect();
        let (records, rebuilt) = builder.build(self, policy)?;
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

    /// True when a task runs without a record, or a record names something that has none. A snapshot under a
    /// name whose record is of another one that is `there` is not what is named.
    ///
    /// # Errors
    /// Those of the store.
    fn is_wanted(&self, tx: &dyn Read, there: &HashSet<String>) -> Result<bool> {
        if !self.tasks.is_empty() {
            return Ok(true);
        }
        let blobs: HashSet<&str> = self.blobs.iter().map(|blob| blob.digest.as_str()).collect();
        let mut snapshots = HashSet::new();
        for (snapshotter, all) in &self.snapshots {
            for (namespace, _, name) in all.iter().filter_map(|info| parse(info.name.as_str())) {
                let record = tx.get(&record_key(&namespace, snapshotter, name))?;
                let record = record.as_deref().map(SnapshotRecord::decode).transpose()?;
                if !record.is_some_and(|record| there.contains(&record.backend)) {
                    snapshots.insert((namespace, snapshotter, name));
                }
            }
        }
        gc::names_any(tx, &|namespace, node| match node {
            Node::Content(digest) => blobs.contains(digest.as_str()),
            Node::Snapshot(snapshotter, name) => {
                snapshots.contains(&(namespace.clone(), snapshotter, name))
            }
            _ => false,
        })
    }

    fn into_spared(self) -> Spared {
        let name = |info: SnapshotInfo| info.name.to_string();
        let snapshots = self.snapshots.into_iter();
        Spared {
            blobs: self
                .blobs
                .into_iter()
                .map(|blob| blob.digest.to_string())
                .collect(),
            snapshots: snapshots
                .map(|(snapshotter, all)| (snapshotter, all.into_iter().map(name).collect()))
                .collect(),
            used: self.highest,
        }
    }
}

/// Leaves what was not removed, and what that stands on.
fn retain_needed(all: &mut Vec<SnapshotInfo>, removed: &HashSet<String>) {
    let parent = |info: &SnapshotInfo| info.parent.as_ref().map(ToString::to_string);
    let parents: HashMap<String, Option<String>> = all
        .iter()
        .map(|info| (info.name.to_string(), parent(info)))
        .collect();
    let mut needed = HashSet::new();
    for name in parents.keys().filter(|name| !removed.contains(*name)) {
        let mut at = Some(name);
        while let Some(name) = at
            && needed.insert(name.clone())
        {
            at = parents.get(name).and_then(Option::as_ref);
        }
    }
    all.retain(|info| needed.contains(info.name.as_str()));
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
