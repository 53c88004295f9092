//! The store of namespaces.
//!
//! Invariant: a namespace that something lives in has a record; the first write into it makes one.

use types::{Error, Event, Fields, Labels, Namespace, NamespaceInfo, Result, label};

use crate::Metadata;
use crate::db::WriteTx;
use crate::key::{Bucket, all, below, key, names};
use crate::kv::{Flow, Read};
use crate::mask;
use crate::record::{get_labels, put_labels};

/// Namespaces and their labels.
#[derive(Clone, Debug)]
pub struct Namespaces {
    metadata: Metadata,
}

impl Namespaces {
    pub(crate) fn new(metadata: Metadata) -> Self {
        Self { metadata }
    }

    /// The namespace's labels. An unknown namespace has none: it is there as soon as it is used.
    ///
    /// # Errors
    /// I/O.
    pub async fn get(&self, name: &Namespace) -> Result<NamespaceInfo> {
        let snapshot = self.metadata.0.db.kv.read()?;
        Ok(NamespaceInfo {
            name: name.clone(),
            labels: labels_of(&snapshot, name)?.unwrap_or_default(),
        })
    }

    /// All namespaces, ordered by name.
    ///
    /// # Errors
    /// I/O.
    pub async fn list(&self) -> Result<Vec<NamespaceInfo>> {
        let mut found = Vec::new();
        let snapshot = self.metadata.0.db.kv.read()?;
        snapshot.scan(&below(Bucket::Namespace, &[]), &mut |rest, record| {
            let [name] = names(rest)?;
            found.push(NamespaceInfo {
                name: name.parse()?,
                labels: get_labels(record)?,
            });
            Ok(Flow::Continue(()))
        })?;
        Ok(found)
    }

    /// Makes a namespace.
    ///
    /// # Errors
    /// `AlreadyExists`; `InvalidArgument` for labels.
    pub async fn create(&self, namespace: NamespaceInfo) -> Result<NamespaceInfo> {
        namespace
            .labels
            .validate()
            .map_err(|e| e.ctx("namespace.Labels"))?;
        let change = move |tx: &mut WriteTx<'_, '_>| {
            let NamespaceInfo { name, labels } = &namespace;
            let at = key(Bucket::Namespace, &[name.as_str()]);
            if tx.has(&at)? {
                return Err(Error::already_exists(format_args!(
                    "namespace {:?}",
                    name.as_str()
                )));
            }
            tx.put(at, put_labels(&labels.clone().without_empty()));
            tx.event(
                name,
                Event::NamespaceCreate {
                    name: name.to_string(),
                    labels: labels.clone(),
                },
            );
            Ok(namespace)
        };
        self.metadata.0.db.write(change).await
    }

    /// Changes labels: those that the mask names as `labels.<key>`, or all without a mask.
    ///
    /// # Errors
    /// `InvalidArgument` for another mask path, also for plain `labels`, and for labels.
    pub async fn update(&self, namespace: NamespaceInfo, fields: &Fields) -> Result<NamespaceInfo> {
        if let Some(path) = fields.iter().find(|path| !path.starts_with("labels.")) {
            return Fields::refuse(path, "namespace");
        }
        let fields = fields.clone();
        let change = move |tx: &mut WriteTx<'_, '_>| {
            let NamespaceInfo { name, labels } = namespace;
            // Parity: the event has what the request had.
            let asked = labels.clone();
            let current = labels_of(&**tx, &name)?.unwrap_or_default();
            let labels = mask::labels(current, &labels, &fields, "namespace")
                .map_err(|e| e.ctx("namespace.Labels"))?;
            tx.put(
                key(Bucket::Namespace, &[name.as_str()]),
                put_labels(&labels),
            );
            tx.event(
                &name,
                Event::NamespaceUpdate {
                    name: name.to_string(),
                    labels: asked,
                },
            );
            Ok(NamespaceInfo { name, labels })
        };
        self.metadata.0.db.write(change).await
    }

    /// Removes an empty namespace; leases do not count, networks do.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` naming what is left in it.
    pub async fn delete(&self, name: &Namespace) -> Result<()> {
        let name = name.clone();
        let networks = self.metadata.0.collector.networks.get().cloned();
        let change = move |tx: &mut WriteTx<'_, '_>| {
            let at = key(Bucket::Namespace, &[name.as_str()]);
            if !tx.has(&at)? {
                return Err(Error::not_found(format_args!(
                    "namespace {:?}",
                    name.as_str()
                )));
            }
            let mut left = left_in(&**tx, &name)?;
            let networks = networks.map(|networks| networks.held()).unwrap_or_default();
            if networks.iter().any(|one| one.namespace == name) {
                left.push("networks".to_owned());
            }
            if !left.is_empty() {
                return Err(Error::failed_precondition(format_args!(
                    "namespace {:?} must be empty, but it still has {}",
                    name.as_str(),
                    left.join(", ")
                )));
            }
            tx.remove(at);
            for bucket in [Bucket::Lease, Bucket::Leased, Bucket::Ingest] {
                tx.remove_all(&all(bucket, &name))?;
            }
            tx.mark_content();
            tx.event(
                &name,
                Event::NamespaceDelete {
                    name: name.to_string(),
                },
            );
            Ok(())
        };
        self.metadata.0.db.write(change).await
    }
}

/// Labels of a namespace that has a record.
pub(crate) fn labels_of(tx: &dyn Read, name: &Namespace) -> Result<Option<Labels>> {
    tx.get(&key(Bucket::Namespace, &[name.as_str()]))?
        .map(|record| get_labels(&record))
        .transpose()
}

/// All namespaces that have a record.
pub(crate) fn known(tx: &dyn Read) -> Result<Vec<Namespace>> {
    let mut found = Vec::new();
    tx.scan(&below(Bucket::Namespace, &[]), &mut |rest, _| {
        let [name] = names(rest)?;
        found.push(name.parse()?);
        Ok(Flow::Continue(()))
    })?;
    Ok(found)
}

/// True when the namespace lets others link its content.
pub(crate) fn is_shareable(tx: &dyn Read, name: &Namespace) -> Result<bool> {
    let labels = labels_of(tx, name)?.unwrap_or_default();
    Ok(labels
        .get(label::NAMESPACE_SHAREABLE)
        .is_some_and(|v| v == "true"))
}

/// Kinds of objects that keep a namespace.
fn left_in(tx: &dyn Read, name: &Namespace) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for (bucket, what) in [
        (Bucket::Image, "images"),
        (Bucket::Blob, "blobs"),
        (Bucket::Container, "containers"),
    ] {
        if tx.any(&all(bucket, name))? {
            left.push(what.to_owned());
        }
    }
    let mut snapshotters = Vec::new();
    tx.scan(&all(Bucket::Snapshot, name), &mut |rest, _| {
        let [snapshotter, _] = names(rest)?;
        if snapshotters.last().is_none_or(|last| last != snapshotter) {
            snapshotters.push(snapshotter.to_owned());
        }
        Ok(Flow::Continue(()))
    })?;
    left.extend(
        snapshotters
            .iter()
            .map(|s| format!("snapshots on {s:?} snapshotter")),
    );
    Ok(left)
}

#[cfg(test)]
mod tests;
