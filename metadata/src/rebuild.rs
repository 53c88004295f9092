//! Records made anew from what they named, when file and journal are both lost.
//!
//! Invariant: nothing that a record may have named is garbage afterwards: blobs and snapshots are held
//! by one lease per namespace, until somebody who knows deletes it. Nothing is invented: what cannot be
//! known again (names of images, labels) is told as lost.

pub(crate) mod complete;
pub(crate) mod unasked;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use types::{
    Any, BlobInfo, Container, ContainerId, Error, Filter, Labels, Lease, LeaseId, Namespace,
    Resource, Result, Runtime, SPEC_URL, SnapshotInfo, SnapshotKind, gc_label,
};

use crate::db::sequence_after;
use crate::key::{Bucket, key, own};
use crate::kv::Records;
use crate::record::{BlobRecord, SnapshotRecord, put_container, put_labels, put_lease};
use crate::snapshots::{child_key, number_of, record_key};
use crate::{OpenOpts, Policy, leases, migrate};

/// Lease that holds what was found, with the time behind it.
const LEASE: &str = "recovered";
/// Where blobs go when there is no namespace: that of clients that name none.
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

/// What the backends hold and what bundles tell, whatever the records say.
#[derive(Debug)]
pub(crate) struct Found {
    blobs: Vec<BlobInfo>,
    snapshots: BTreeMap<String, Vec<SnapshotInfo>>,
    tasks: Vec<FoundTask>,
    /// Snapshotters of other programs that do not answer.
    silent: Vec<String>,
    /// Largest number in a backend's name.
    highest: u64,
}

impl Found {
    /// Looks into the backends and at the bundles, or into these snapshotters alone, if any is named.
    ///
    /// # Errors
    /// Those of the backends.
    pub(crate) async fn look(opts: &OpenOpts, only: &BTreeSet<String>) -> Result<Self> {
        let is_asked = |name: &String| only.is_empty() || only.contains(name);
        let mut snapshots = BTreeMap::new();
        let mut silent = Vec::new();
        for (name, backend) in opts.snapshotters.iter().filter(|(name, _)| is_asked(name)) {
            match backend.list(&Filter::default()).await {
                Err(error) if backend.is_remote() => {
                    tracing::warn!(snapshotter = name, %error, "snapshotter does not answer");
                    silent.push(name.clone());
                }
                all => drop(snapshots.insert(name.clone(), all?)),
            }
        }
        let used = snapshots.values().flatten().map(|info| info.name.as_str());
        let mut found = Self {
            highest: used.filter_map(number_of).max().unwrap_or(0),
            blobs: Vec::new(),
            snapshots,
            tasks: Vec::new(),
            silent,
        };
        if only.is_empty() {
            let ingests = opts.content.statuses(&Filter::default()).await?;
            let used = ingests.iter().map(|ingest| ingest.reference.as_str());
            let highest = used.filter_map(number_of).max().unwrap_or(0);
            found.highest = found.highest.max(highest);
            found.blobs = opts.content.list(&Filter::default()).await?;
            found.tasks = (opts.tasks)()?;
        }
        Ok(found)
    }

    /// Snapshotters of which it is not known what they hold.
    pub(crate) fn silent(&self) -> &[String] {
        &self.silent
    }

    /// True for a root that nobody has used, as far as snapshotters have answered.
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
    /// What nobody knows the owner of is in this namespace.
    aside: Namespace,
    /// How long the lease holds it all.
    held: &'static str,
    /// Nobody knows on which snapshot a container stands.
    has_bare: bool,
}

/// In half a line.
impl fmt::Display for Rebuilt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} containers, {} snapshots and {} blobs",
            self.containers, self.snapshots, self.blobs
        )
    }
}

impl Rebuilt {
    /// True when there is a container that runs and names no snapshot: what it stands on may be held by
    /// nothing but a lease.
    pub(crate) fn has_bare(&self) -> bool {
        self.has_bare
    }

    /// Tells the log, in a few lines.
    pub(crate) fn tell(&self, cause: &dyn fmt::Display, aside: Option<&Path>) {
        let kept = aside.map_or_else(String::new, |path| {
            format!(" (the damaged file is kept as {})", path.display())
        });
        tracing::warn!("metadata was lost: {cause}{kept}");
        self.tell_what();
        tracing::warn!(
            "lost: names of images (pull them again: nothing is downloaded twice), containers without \
             a task, options of runtimes, labels, ingests, other leases"
        );
    }

    /// Tells what there are records of again.
    pub(crate) fn tell_what(&self) {
        let names: Vec<&str> = self.namespaces.iter().map(Namespace::as_str).collect();
        tracing::warn!(
            "records were made of what has none: {} containers that have a task, {} snapshots, {} \
             blobs, in the namespaces {} ({} has what nobody knows the owner of); the lease {} in each \
             of them holds it all {}",
            self.containers,
            self.snapshots,
            self.blobs,
            names.join(", "),
            self.aside,
            self.lease,
            self.held,
        );
    }
}

/// The snapshotters that have a snapshot of a container under a name of a namespace.
type Rootfs = BTreeMap<(Namespace, String), BTreeSet<String>>;

/// True for what can be the root of a container.
fn is_rootfs(info: &SnapshotInfo) -> bool {
    matches!(info.kind, SnapshotKind::Active | SnapshotKind::View)
}

struct Builder {
    records: Records,
    report: Rebuilt,
    now: SystemTime,
    rootfs: Rootfs,
    /// The namespaces that there are still: blobs go there when nothing says whose they are.
    known: BTreeSet<Namespace>,
    /// Containers whose records name no snapshot.
    bare: Vec<(Namespace, Container)>,
    /// How long the lease is to last, unless what it holds may be used by who does not name it.
    lasts: Option<Duration>,
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
        let name = format!("{LEASE}-{seconds}");
        let report = Rebuilt {
            lease: name.parse()?,
            namespaces: BTreeSet::new(),
            containers: 0,
            snapshots: 0,
            blobs: 0,
            aside: name.parse()?,
            held: "until it is deleted",
            has_bare: false,
        };
        Ok(Self {
            records: Records::new(),
            report,
            now,
            rootfs: Rootfs::new(),
            known: BTreeSet::new(),
            bare: Vec::new(),
            lasts: None,
        })
    }

    /// The lease ends by itself after so long, which is some days.
    fn end_after(&mut self, time: Duration) {
        self.lasts = Some(time);
    }

    /// Labels of the lease. It does not end while a container may stand on what it holds without naming it.
    fn lease_labels(&mut self) -> Result<Labels> {
        let mut labels = Labels::new();
        if let Some(time) = self.lasts.filter(|_| !self.report.has_bare) {
            let end = OffsetDateTime::from(self.now + time);
            let end = end.format(&Rfc3339).map_err(Error::internal)?;
            labels.insert(gc_label::EXPIRE.to_owned(), end);
            self.report.held = "for some days, or until it is deleted";
        }
        Ok(labels)
    }

    fn build(mut self, found: &Found, policy: Policy) -> Result<(Records, Rebuilt)> {
        for (snapshotter, all) in &found.snapshots {
            self.snapshots(snapshotter, all);
        }
        for (namespace, container) in std::mem::take(&mut self.bare) {
            self.dress(&namespace, container);
        }
        for task in &found.tasks {
            self.container(task);
        }
        self.blobs(&found.blobs, policy)?;
        let lease_labels = self.lease_labels()?;
        for namespace in self.report.namespaces.clone() {
            let labels = put_labels(&Labels::new());
            self.put(key(Bucket::Namespace, &[namespace.as_str()]), labels);
            let lease = Lease {
                id: self.report.lease.clone(),
                labels: lease_labels.clone(),
                created_at: self.now,
            };
            let at = own(Bucket::Lease, &namespace, lease.id.as_str());
            self.put(at, put_lease(&lease));
        }
        self.records.extend(migrate::schema());
        self.records.extend(sequence_after(found.highest));
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
            let aside = (self.report.aside.clone(), 0, info.name.as_str());
            let (namespace, number, name) = parse(info.name.as_str()).unwrap_or(aside);
            let best = newest.entry((namespace, name)).or_insert((number, info));
            if best.0 <= number {
                *best = (number, info);
            }
        }
        for ((namespace, name), (_, info)) in &newest {
            let parent = info
                .parent
                .as_ref()
                .map(|parent| match parse(parent.as_str()) {
                    Some((_, _, name)) => name.to_owned(),
                    None => parent.to_string(),
                });
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
                kind: Some(info.kind),
            };
            self.put(record_key(namespace, snapshotter, name), record.encode());
            if let Ok(key) = (*name).parse() {
                let snapshotter = snapshotter.to_owned();
                self.hold(namespace, &Resource::Snapshot { snapshotter, key });
            }
            if is_rootfs(info) {
                let at = (namespace.clone(), (*name).to_owned());
                let on = self.rootfs.entry(at).or_default();
                on.insert(snapshotter.to_owned());
            }
            self.report.namespaces.insert(namespace.clone());
            self.report.snapshots += 1;
        }
    }

    /// The snapshotter of a container. Clients name its snapshot as the container: where exactly one
    /// snapshotter has such a snapshot, it is that.
    fn snapshotter_of(&self, namespace: &Namespace, id: &str) -> Option<String> {
        let found = self.rootfs.get(&(namespace.clone(), id.to_owned()));
        let only = found.filter(|on| on.len() == 1).and_then(BTreeSet::first);
        only.cloned()
    }

    /// Its record was made while its snapshotter could not be asked.
    fn dress(&mut self, namespace: &Namespace, mut container: Container) {
        let id = container.id.to_string();
        if let Some(snapshotter) = self.snapshotter_of(namespace, &id) {
            (container.snapshotter, container.snapshot_key) = (snapshotter, id.clone());
            let at = own(Bucket::Container, namespace, &id);
            self.put(at, put_container(&container));
            tracing::info!(%namespace, id, "container has its snapshot again");
        } else {
            let of = self.rootfs.get(&(namespace.clone(), id));
            self.report.has_bare |= of.is_some();
        }
    }

    /// The container of a task.
    fn container(&mut self, task: &FoundTask) {
        let id = task.id.to_string();
        let (snapshotter, snapshot_key) = match self.snapshotter_of(&task.namespace, &id) {
            Some(only) => (only, id.clone()),
            None => (String::new(), String::new()),
        };
        self.report.has_bare |= snapshotter.is_empty();
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
        if all.is_empty() {
            return Ok(());
        }
        if policy == Policy::Isolated {
            self.report.namespaces.insert(self.report.aside.clone());
        } else if self.report.namespaces.is_empty() {
            self.report.namespaces.append(&mut self.known);
            if self.report.namespaces.is_empty() {
                self.report.namespaces.insert(DEFAULT_NAMESPACE.parse()?);
            }
        }
        let tenants = match policy {
            Policy::Isolated => [self.report.aside.clone()].into(),
            Policy::Shared => self.report.namespaces.clone(),
        };
        self.report.blobs = all.len();
        for namespace in tenants {
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
