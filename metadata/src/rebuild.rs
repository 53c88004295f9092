//! Records made anew from what they named, when file and journal are both lost.
//!
//! Invariant: nothing that a record may have named is garbage afterwards: blobs and snapshots are held
//! by one lease per namespace, until somebody who knows deletes it. Nothing is invented: what cannot be
//! known again (names of images, labels) is told as lost.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use types::{
    Any, BlobInfo, Container, ContainerId, Filter, Labels, Lease, LeaseId, Namespace, Resource,
    Result, Runtime, SnapshotInfo, SnapshotKind,
};

use crate::db::{first_records, sequence_after};
use crate::key::{Bucket, key, own};
use crate::kv::Records;
use crate::record::{BlobRecord, SnapshotRecord, put_container, put_labels, put_lease};
use crate::snapshots::{child_key, record_key};
use crate::{OpenOpts, Policy, leases};

/// Type of the spec in a container's record.
const SPEC_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
/// Lease that holds what was found, with the time behind it.
const LEASE: &str = "recovered";
/// Where blobs go when nothing says whose they are: the namespace of clients that name none.
const DEFAULT_NAMESPACE: &str = "default";

/// What the bundle of a task tells about its container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundTask {
    /// Namespace of the container.
    pub namespace: Namespace,
    /// Its id.
    pub id: ContainerId,
    /// Its OCI spec, as JSON.
    pub spec: Vec<u8>,
    /// Its runtime, by name or path.
    pub runtime: String,
}

/// What there is without records.
#[derive(Debug)]
pub(crate) struct Found {
    blobs: Vec<BlobInfo>,
    snapshots: BTreeMap<String, Vec<SnapshotInfo>>,
    tasks: Vec<FoundTask>,
}

impl Found {
    /// Looks into the backends and at the bundles.
    ///
    /// # Errors
    /// Those of the backends.
    pub(crate) async fn look(opts: &OpenOpts) -> Result<Self> {
        let mut snapshots = BTreeMap::new();
        for (name, backend) in &opts.snapshotters {
            snapshots.insert(name.clone(), backend.list(&Filter::default()).await?);
        }
        Ok(Self {
            blobs: opts.content.list(&Filter::default()).await?,
            snapshots,
            tasks: (opts.tasks)()?,
        })
    }

    /// True for a root that nobody has used.
    pub(crate) fn is_nothing(&self) -> bool {
        self.blobs.is_empty() && self.tasks.is_empty() && self.snapshots.values().all(Vec::is_empty)
    }

    /// Makes the records.
    ///
    /// # Errors
    /// None but those of a lease's name.
    pub(crate) fn rebuild(&self, policy: Policy, now: SystemTime) -> Result<(Records, Rebuilt)> {
        Builder::new(now)?.build(self, policy)
    }
}

/// What was made anew.
#[derive(Debug)]
pub(crate) struct Rebuilt {
    lease: LeaseId,
    namespaces: BTreeSet<Namespace>,
    containers: usize,
    snapshots: usize,
    blobs: usize,
    /// Blobs that no namespace may see, because nobody knows whose they are.
    withheld: usize,
    /// Snapshots whose names are not ours.
    foreign: usize,
}

impl Rebuilt {
    /// Tells the log, in a few lines.
    pub(crate) fn tell(&self, cause: &dyn fmt::Display, aside: Option<&Path>) {
        let kept = aside.map_or_else(String::new, |path| {
            format!(" (the damaged file is kept as {})", path.display())
        });
        tracing::warn!("metadata was lost: {cause}{kept}");
        let names: Vec<&str> = self.namespaces.iter().map(Namespace::as_str).collect();
        tracing::warn!(
            "metadata was rebuilt from what is there: {} containers that have a task, {} snapshots, {} \
             blobs, in the namespaces {}; the lease {} in each of them holds it all until it is deleted",
            self.containers,
            self.snapshots,
            self.blobs,
            names.join(", "),
            self.lease,
        );
        tracing::warn!(
            "lost: names of images (pull them again: nothing is downloaded twice), containers without \
             a task, options of runtimes, labels, other leases; {} blobs whose tenant is not known and \
             {} snapshots of foreign names are garbage now",
            self.withheld,
            self.foreign,
        );
    }
}

struct Builder {
    records: Records,
    report: Rebuilt,
    now: SystemTime,
    /// Largest number in a backend key.
    highest: u64,
    /// Where each name of a namespace is an active snapshot.
    active: BTreeMap<(Namespace, String), Vec<String>>,
}

/// A backend key of ours, taken apart.
fn parse(backend: &str) -> Option<(Namespace, u64, &str)> {
    let mut parts = backend.splitn(3, '/');
    let namespace = parts.next()?.parse().ok()?;
    let number = parts.next()?.parse().ok()?;
    let name = parts.next().filter(|name| !name.is_empty())?;
    Some((namespace, number, name))
}

impl Builder {
    fn new(now: SystemTime) -> Result<Self> {
        let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |at| at.as_secs());
        let report = Rebuilt {
            lease: format!("{LEASE}-{seconds}").parse()?,
            namespaces: BTreeSet::new(),
            containers: 0,
            snapshots: 0,
            blobs: 0,
            withheld: 0,
            foreign: 0,
        };
        Ok(Self {
            records: Records::new(),
            report,
            now,
            highest: 0,
            active: BTreeMap::new(),
        })
    }

    fn build(mut self, found: &Found, policy: Policy) -> Result<(Records, Rebuilt)> {
        for (snapshotter, all) in &found.snapshots {
            self.snapshots(snapshotter, all);
        }
        for task in &found.tasks {
            self.container(task);
        }
        self.blobs(&found.blobs, policy)?;
        for namespace in self.report.namespaces.clone() {
            let labels = put_labels(&Labels::new());
            self.put(key(Bucket::Namespace, &[namespace.as_str()]), labels);
            let lease = Lease {
                id: self.report.lease.clone(),
                labels: Labels::new(),
                created_at: self.now,
            };
            let at = own(Bucket::Lease, &namespace, lease.id.as_str());
            self.put(at, put_lease(&lease));
        }
        self.records.extend(first_records());
        self.records.extend(sequence_after(self.highest));
        Ok((self.records, self.report))
    }

    fn put(&mut self, key: Vec<u8>, record: Vec<u8>) {
        self.records.insert(key, record);
    }

    fn hold(&mut self, namespace: &Namespace, resource: &Resource) {
        let at = leases::leased(namespace, &self.report.lease, resource);
        self.put(at, Vec::new());
    }

    fn snapshots(&mut self, snapshotter: &str, all: &[SnapshotInfo]) {
        // A name may be there twice: what the backend has not given up yet has the lower number.
        let mut newest = BTreeMap::new();
        for info in all {
            let Some((namespace, number, name)) = parse(info.name.as_str()) else {
                self.report.foreign += 1;
                continue;
            };
            self.highest = self.highest.max(number);
            let best = newest.entry((namespace, name)).or_insert((number, info));
            if best.0 <= number {
                *best = (number, info);
            }
        }
        for ((namespace, name), (_, info)) in &newest {
            let parent = info.parent.as_ref().and_then(|p| parse(p.as_str()));
            let parent = parent.map(|(_, _, name)| name.to_owned());
            if let Some(parent) = &parent {
                let at = child_key(namespace, snapshotter, parent, name);
                self.put(at, Vec::new());
            }
            let record = SnapshotRecord {
                backend: info.name.to_string(),
                parent,
                labels: info.labels.clone(),
                created_at: info.created_at,
                updated_at: info.updated_at,
            };
            self.put(record_key(namespace, snapshotter, name), record.encode());
            if let Ok(key) = (*name).parse() {
                let snapshotter = snapshotter.to_owned();
                self.hold(namespace, &Resource::Snapshot { snapshotter, key });
            }
            if info.kind == SnapshotKind::Active {
                let at = (namespace.clone(), (*name).to_owned());
                self.active
                    .entry(at)
                    .or_default()
                    .push(snapshotter.to_owned());
            }
            self.report.namespaces.insert(namespace.clone());
            self.report.snapshots += 1;
        }
    }

    /// The container of a task. Clients name its snapshot as the container: where there is exactly one
    /// such snapshot, it is that.
    fn container(&mut self, task: &FoundTask) {
        let id = task.id.to_string();
        let found = self.active.get(&(task.namespace.clone(), id.clone()));
        let (snapshotter, snapshot_key) = match found.map(Vec::as_slice) {
            Some([only]) => (only.clone(), id.clone()),
            _ => (String::new(), String::new()),
        };
        let container = Container {
            id: task.id.clone(),
            labels: Labels::new(),
            image: String::new(),
            runtime: Runtime {
                name: task.runtime.clone(),
                options: None,
            },
            spec: Some(Any {
                type_url: SPEC_URL.into(),
                value: task.spec.clone(),
            }),
            snapshotter,
            snapshot_key,
            extensions: BTreeMap::new(),
            sandbox: String::new(),
            created_at: self.now,
            updated_at: self.now,
        };
        let at = own(Bucket::Container, &task.namespace, &id);
        self.put(at, put_container(&container));
        self.report.namespaces.insert(task.namespace.clone());
        self.report.containers += 1;
    }

    /// Every tenant may link every blob where naming it is enough; else nobody gets what may be
    /// another's.
    fn blobs(&mut self, all: &[BlobInfo], policy: Policy) -> Result<()> {
        if policy == Policy::Isolated {
            self.report.withheld = all.len();
            return Ok(());
        }
        if self.report.namespaces.is_empty() && !all.is_empty() {
            self.report.namespaces.insert(DEFAULT_NAMESPACE.parse()?);
        }
        self.report.blobs = all.len();
        for namespace in self.report.namespaces.clone() {
            for blob in all {
                let record = BlobRecord {
                    size: blob.size,
                    labels: Labels::new(),
                    created_at: blob.created_at,
                    updated_at: blob.updated_at,
                };
                let at = own(Bucket::Blob, &namespace, blob.digest.as_str());
                self.put(at, record.encode());
                self.hold(&namespace, &Resource::Content(blob.digest.clone()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
