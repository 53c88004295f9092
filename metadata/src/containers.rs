//! The store of containers. What a record names (image, snapshot, spec) need not exist.

use std::time::SystemTime;

use types::{
    Container, ContainerId, ContainerRef, Error, Event, Fields, Filter, Namespace, Result,
};

use crate::db::WriteTx;
use crate::key::{Bucket, all, names, own};
use crate::kv::{Flow, Read};
use crate::record::{get_container, put_container, view_container};
use crate::{Metadata, mask};

/// Containers in one page.
const PAGE: usize = 100;
/// Bytes of records after which a page ends.
const PAGE_BYTES: usize = 1 << 20;

/// The containers of one namespace.
#[derive(Clone, Debug)]
pub struct Containers {
    metadata: Metadata,
    namespace: Namespace,
}

/// Containers in pages, each of its own moment: whoever takes his time holds nothing back.
#[derive(Debug)]
pub struct Pages {
    metadata: Metadata,
    prefix: Vec<u8>,
    filter: Filter,
    /// Id of the last one that was looked at.
    last: String,
}

impl Pages {
    /// The next containers, ordered by id; none at the end.
    ///
    /// # Errors
    /// I/O.
    pub fn page(&mut self) -> Result<Vec<Container>> {
        let mut page = Vec::new();
        let mut bytes = 0;
        let Self {
            metadata,
            prefix,
            filter,
            last,
        } = self;
        let from = last.clone().into_bytes();
        let snapshot = metadata.0.db.kv.read()?;
        snapshot.scan_after(prefix, &from, &mut |rest, record| {
            let [id] = names(rest)?;
            id.clone_into(last);
            let container = get_container(id, record)?;
            if filter.matches(&container) {
                bytes += record.len();
                page.push(container);
            }
            Ok(if page.len() < PAGE && bytes < PAGE_BYTES {
                Flow::Continue(())
            } else {
                Flow::Break(())
            })
        })?;
        Ok(page)
    }
}

impl Containers {
    pub(crate) fn new(metadata: Metadata, namespace: Namespace) -> Self {
        Self {
            metadata,
            namespace,
        }
    }

    /// The container of this id.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn get(&self, id: &ContainerId) -> Result<Container> {
        load(&self.metadata.0.db.kv.read()?, &self.namespace, id)
    }

    /// Shows the containers that pass the filter, ordered by id, where they are: for those who only hand
    /// them on. Ends early when `see` says so.
    ///
    /// # Errors
    /// I/O.
    pub fn visit(
        &self,
        filter: &Filter,
        see: &mut dyn FnMut(&ContainerRef<'_>) -> bool,
    ) -> Result<()> {
        let snapshot = self.metadata.0.db.kv.read()?;
        let prefix = all(Bucket::Container, &self.namespace);
        snapshot.scan(&prefix, &mut |rest, record| {
            let [id] = names(rest)?;
            let passes = filter.is_empty() || filter.matches(&get_container(id, record)?);
            if passes && !see(&view_container(id, record)?) {
                return Ok(Flow::Break(()));
            }
            Ok(Flow::Continue(()))
        })
    }

    /// The same in pages: memory for one of them is enough.
    #[must_use]
    pub fn pages(&self, filter: Filter) -> Pages {
        Pages {
            metadata: self.metadata.clone(),
            prefix: all(Bucket::Container, &self.namespace),
            filter,
            last: String::new(),
        }
    }

    /// Makes a container record; the store stamps it.
    ///
    /// # Errors
    /// `AlreadyExists`; `InvalidArgument`.
    pub async fn create(&self, container: Container) -> Result<Container> {
        validate(&container).map_err(|e| e.ctx("create container failed validation"))?;
        let namespace = self.namespace.clone();
        let change = move |tx: &mut WriteTx<'_, '_>| {
            let mut container = container;
            let at = own(Bucket::Container, &namespace, container.id.as_str());
            if tx.has(&at)? {
                return Err(Error::already_exists(format_args!(
                    "container {:?}",
                    container.id.as_str()
                )));
            }
            tx.touch(&namespace)?;
            container.created_at = SystemTime::now();
            container.updated_at = container.created_at;
            container.labels = container.labels.without_empty();
            tx.put(at, put_container(&container));
            tx.event(
                &namespace,
                Event::ContainerCreate {
                    id: container.id.to_string(),
                    image: container.image.clone(),
                    runtime: container.runtime.clone(),
                },
            );
            Ok(container)
        };
        self.metadata.0.db.write(change).await
    }

    /// Changes what the mask names: `labels`, `labels.<key>`, `spec`, `extensions`,
    /// `extensions.<name>`, `image`, `snapshotkey`; without a mask all of these.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument`, also when there is no mask and snapshotter or runtime differ.
    pub async fn update(&self, container: Container, fields: &Fields) -> Result<Container> {
        let namespace = self.namespace.clone();
        let fields = fields.clone();
        let change = move |tx: &mut WriteTx<'_, '_>| {
            let current = load(&**tx, &namespace, &container.id)?;
            let before = (current.snapshot_key.clone(), current.labels.clone());
            let mut updated = apply(current, container, &fields)?;
            validate(&updated).map_err(|e| e.ctx("update failed validation"))?;
            updated.updated_at = SystemTime::now();
            updated.labels = updated.labels.without_empty();
            let at = own(Bucket::Container, &namespace, updated.id.as_str());
            tx.put(at, put_container(&updated));
            // Another snapshot or other references: what was kept may be garbage now.
            if before != (updated.snapshot_key.clone(), updated.labels.clone()) {
                tx.mark();
            }
            tx.event(
                &namespace,
                Event::ContainerUpdate {
                    id: updated.id.to_string(),
                    image: updated.image.clone(),
                    labels: updated.labels.clone(),
                    snapshot_key: updated.snapshot_key.clone(),
                },
            );
            Ok(updated)
        };
        self.metadata.0.db.write(change).await
    }

    /// Removes a container record; its task and snapshot are not touched.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn delete(&self, id: &ContainerId) -> Result<()> {
        let namespace = self.namespace.clone();
        let id = id.clone();
        let change = move |tx: &mut WriteTx<'_, '_>| {
            let at = own(Bucket::Container, &namespace, id.as_str());
            if !tx.has(&at)? {
                return Err(Error::not_found(format_args!(
                    "container {:?}",
                    id.as_str()
                )));
            }
            tx.remove(at);
            tx.mark();
            tx.event(&namespace, Event::ContainerDelete { id: id.to_string() });
            Ok(())
        };
        self.metadata.0.db.write(change).await
    }
}

fn load(tx: &dyn Read, namespace: &Namespace, id: &ContainerId) -> Result<Container> {
    let record = tx.get(&own(Bucket::Container, namespace, id.as_str()))?;
    let record = record.ok_or_else(|| {
        Error::not_found(format_args!(
            "container {:?} in namespace {:?}",
            id.as_str(),
            namespace.as_str()
        ))
    })?;
    get_container(id.as_str(), &record)
}

fn validate(container: &Container) -> Result<()> {
    if container.extensions.contains_key("") {
        return Err(Error::invalid_argument(
            "container.Extension keys must not be zero-length",
        ));
    }
    container
        .labels
        .validate()
        .map_err(|e| e.ctx("containers.Labels"))?;
    if container.runtime.name.is_empty() {
        return Err(Error::invalid_argument(
            "container.Runtime.Name must be set",
        ));
    }
    if container.spec.is_none() {
        return Err(Error::invalid_argument("container.Spec must be set"));
    }
    if !container.snapshot_key.is_empty() && container.snapshotter.is_empty() {
        return Err(Error::invalid_argument(
            "container.Snapshotter must be set if container.SnapshotKey is set",
        ));
    }
    Ok(())
}

fn apply(mut current: Container, new: Container, fields: &Fields) -> Result<Container> {
    if fields.is_all() {
        for (same, what) in [
            (current.snapshotter == new.snapshotter, "Snapshotter"),
            (current.runtime.name == new.runtime.name, "Runtime.Name"),
        ] {
            if !same {
                return Err(Error::invalid_argument(format_args!(
                    "container.{what} field is immutable"
                )));
            }
        }
        return Ok(Container {
            labels: new.labels,
            spec: new.spec,
            extensions: new.extensions,
            image: new.image,
            snapshot_key: new.snapshot_key,
            ..current
        });
    }
    for (path, split) in fields.iter().zip(fields.split()) {
        match split {
            ("labels", None) => current.labels.clone_from(&new.labels),
            ("labels", Some(key)) => mask::set(&mut current.labels, key, &new.labels),
            ("spec", None) => current.spec.clone_from(&new.spec),
            ("extensions", None) => current.extensions.clone_from(&new.extensions),
            ("extensions", Some(name)) => match new.extensions.get(name) {
                Some(value) => drop(current.extensions.insert(name.to_owned(), value.clone())),
                None => drop(current.extensions.remove(name)),
            },
            ("image", None) => current.image.clone_from(&new.image),
            ("snapshotkey", None) => current.snapshot_key.clone_from(&new.snapshot_key),
            _ => return Fields::refuse(path, &format!("{:?}", current.id.as_str())),
        }
    }
    Ok(current)
}

#[cfg(test)]
mod tests;
