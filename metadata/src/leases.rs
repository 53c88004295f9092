//! The store of leases and what they hold.
//!
//! Invariant: what is made under a lease joins it in the same transaction. A request that names a
//! lease which is not there fails before it changes anything.

use std::time::SystemTime;

use types::{
    Error, Filter, Identifier, Labels, Lease, LeaseId, Namespace, Resource, Result, Scope,
};

use crate::codec::damaged;
use crate::db::WriteTx;
use crate::key::{self, Bucket, all, below, names, own};
use crate::kv::{Flow, Read};
use crate::record::{get_lease, put_lease};
use crate::{Metadata, gc};

/// The leases of one namespace.
#[derive(Clone, Debug)]
pub struct Leases {
    metadata: Metadata,
    namespace: Namespace,
}

impl Leases {
    pub(crate) fn new(metadata: Metadata, namespace: Namespace) -> Self {
        Self {
            metadata,
            namespace,
        }
    }

    /// Makes a lease; without an id it gets a random one.
    ///
    /// # Errors
    /// `AlreadyExists`; `InvalidArgument` for labels.
    pub async fn create(&self, id: Option<LeaseId>, labels: Labels) -> Result<Lease> {
        let id = id.map_or_else(random_id, Ok)?;
        labels.validate().map_err(|e| e.ctx("lease.Labels"))?;
        let namespace = self.namespace.clone();
        let change = move |tx: &mut WriteTx<'_, '_>| {
            let at = own(Bucket::Lease, &namespace, id.as_str());
            if tx.has(&at)? {
                return Err(Error::already_exists(format_args!(
                    "lease {:?}",
                    id.as_str()
                )));
            }
            tx.touch(&namespace)?;
            let lease = Lease {
                id,
                labels: labels.without_empty(),
                created_at: SystemTime::now(),
            };
            tx.put(at, put_lease(&lease));
            tx.expires(gc::expiry(&lease.labels));
            Ok(lease)
        };
        self.metadata.0.db.write(change).await
    }

    /// Removes a lease. `sync` also collects what it alone held before the answer.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn delete(&self, id: &LeaseId, sync: bool) -> Result<()> {
        let namespace = self.namespace.clone();
        let id = id.clone();
        let change = move |tx: &mut WriteTx<'_, '_>| {
            require(&**tx, &namespace, &id)?;
            remove(tx, &namespace, id.as_str())?;
            tx.mark();
            Ok(())
        };
        self.metadata.0.db.write(change).await?;
        if sync {
            self.metadata.gc().await?;
        }
        Ok(())
    }

    /// The leases that pass the filter, ordered by id.
    ///
    /// # Errors
    /// I/O.
    pub async fn list(&self, filter: &Filter) -> Result<Vec<Lease>> {
        let mut found = Vec::new();
        let snapshot = self.metadata.0.db.kv.read()?;
        snapshot.scan(&all(Bucket::Lease, &self.namespace), &mut |rest, record| {
            let [id] = names(rest)?;
            let lease = get_lease(id, record)?;
            if filter.matches(&lease) {
                found.push(lease);
            }
            Ok(Flow::Continue(()))
        })?;
        Ok(found)
    }

    /// Adds a resource, which need not exist yet.
    ///
    /// # Errors
    /// `NotFound` for the lease; `InvalidArgument` for a name that cannot exist.
    pub async fn add(&self, id: &LeaseId, resource: Resource) -> Result<()> {
        if let Resource::Image(name) = &resource {
            Identifier::check_free(name, "image name")?;
        }
        if let Resource::Snapshot { snapshotter, .. } = &resource {
            Identifier::check_free(snapshotter, "snapshotter")?;
        }
        let namespace = self.namespace.clone();
        let id = id.clone();
        let change = move |tx: &mut WriteTx<'_, '_>| {
            require(&**tx, &namespace, &id)?;
            tx.put(leased(&namespace, &id, &resource), Vec::new());
            Ok(())
        };
        self.metadata.0.db.write(change).await
    }

    /// Takes a resource out of a lease, if it is in it.
    ///
    /// # Errors
    /// `NotFound` for the lease.
    pub async fn remove(&self, id: &LeaseId, resource: Resource) -> Result<()> {
        let namespace = self.namespace.clone();
        let id = id.clone();
        let change = move |tx: &mut WriteTx<'_, '_>| {
            require(&**tx, &namespace, &id)?;
            tx.remove(leased(&namespace, &id, &resource));
            tx.mark();
            Ok(())
        };
        self.metadata.0.db.write(change).await
    }

    /// What a lease holds.
    ///
    /// # Errors
    /// `NotFound` for the lease.
    pub async fn resources(&self, id: &LeaseId) -> Result<Vec<Resource>> {
        let snapshot = self.metadata.0.db.kv.read()?;
        require(&snapshot, &self.namespace, id)?;
        resources_of(&snapshot, &self.namespace, id.as_str())
    }
}

/// What a lease holds, ordered by kind and name.
pub(crate) fn resources_of(tx: &dyn Read, ns: &Namespace, id: &str) -> Result<Vec<Resource>> {
    let mut found = Vec::new();
    let prefix = below(Bucket::Leased, &[ns.as_str(), id]);
    tx.scan(&prefix, &mut |rest, _| {
        found.push(resource(std::str::from_utf8(rest).map_err(|_| damaged())?)?);
        Ok(Flow::Continue(()))
    })?;
    Ok(found)
}

/// The resource that the end of a key names.
pub(crate) fn resource(text: &str) -> Result<Resource> {
    let [kind, name] = names(text.as_bytes())?;
    Ok(match kind {
        "content" => Resource::Content(name.parse().map_err(|_| damaged())?),
        "images" => Resource::Image(name.to_owned()),
        "ingests" => Resource::Ingest(name.parse().map_err(|_| damaged())?),
        "snapshots" => {
            let [snapshotter, key] = names(name.as_bytes())?;
            Resource::Snapshot {
                snapshotter: snapshotter.to_owned(),
                key: key.parse().map_err(|_| damaged())?,
            }
        }
        _ => return Err(damaged()),
    })
}

/// Adds to the scope's lease; false when the scope has none.
pub(crate) fn add_resource(
    tx: &mut WriteTx<'_, '_>,
    scope: &Scope,
    resource: &Resource,
) -> Result<bool> {
    check(&**tx, scope)?;
    let Some(lease) = &scope.lease else {
        return Ok(false);
    };
    let at = leased(&scope.namespace, lease, resource);
    if !tx.has(&at)? {
        tx.put(at, Vec::new());
    }
    Ok(true)
}

/// Takes a resource out of the scope's lease; other leases keep it.
pub(crate) fn drop_resource(tx: &mut WriteTx<'_, '_>, scope: &Scope, resource: &Resource) {
    if let Some(lease) = &scope.lease {
        tx.remove(leased(&scope.namespace, lease, resource));
    }
}

/// Fails when the scope names a lease that is not there.
pub(crate) fn check(tx: &dyn Read, scope: &Scope) -> Result<()> {
    let Some(lease) = &scope.lease else {
        return Ok(());
    };
    if tx.has(&own(Bucket::Lease, &scope.namespace, lease.as_str()))? {
        return Ok(());
    }
    Err(Error::not_found("lease does not exist"))
}

/// Removes up to `most` entries of a lease's list and returns how many, fewer than `most` when nothing
/// of it is left: a list of any length goes in steps. Only for a lease that keeps nothing.
pub(crate) fn shorten(
    tx: &mut WriteTx<'_, '_>,
    namespace: &Namespace,
    id: &str,
    most: usize,
) -> Result<usize> {
    let prefix = below(Bucket::Leased, &[namespace.as_str(), id]);
    let mut found = Vec::new();
    tx.scan(&prefix, &mut |rest, _| {
        if found.len() == most {
            return Ok(Flow::Break(()));
        }
        found.push([&prefix, rest].concat());
        Ok(Flow::Continue(()))
    })?;
    let entries = found.len();
    for entry in found {
        tx.remove(entry);
    }
    Ok(entries)
}

/// Removes a lease and its list.
pub(crate) fn remove(tx: &mut WriteTx<'_, '_>, namespace: &Namespace, id: &str) -> Result<()> {
    tx.remove(own(Bucket::Lease, namespace, id));
    tx.remove_all(&below(Bucket::Leased, &[namespace.as_str(), id]))
}

/// See [`Metadata::admit`].
pub(crate) async fn admit(metadata: &Metadata, scope: Scope) -> Result<()> {
    // Nearly always both are there already, and nothing is to be written.
    if is_admitted(&metadata.0.db.kv.read()?, &scope)? {
        return Ok(());
    }
    let change = move |tx: &mut WriteTx<'_, '_>| {
        if let Some(lease) = &scope.lease {
            require(&**tx, &scope.namespace, lease)?;
        }
        tx.touch(&scope.namespace)
    };
    metadata.0.db.write(change).await
}

fn is_admitted(tx: &dyn Read, scope: &Scope) -> Result<bool> {
    if let Some(lease) = &scope.lease {
        require(tx, &scope.namespace, lease)?;
    }
    tx.has(&key::key(Bucket::Namespace, &[scope.namespace.as_str()]))
}

fn require(tx: &dyn Read, namespace: &Namespace, id: &LeaseId) -> Result<()> {
    if tx.has(&own(Bucket::Lease, namespace, id.as_str()))? {
        return Ok(());
    }
    Err(Error::not_found(format_args!("lease {:?}", id.as_str())))
}

/// The key that notes a resource under a lease.
pub(crate) fn leased(namespace: &Namespace, lease: &LeaseId, resource: &Resource) -> Vec<u8> {
    let (ns, lease) = (namespace.as_str(), lease.as_str());
    let names: [&str; 5] = match resource {
        Resource::Content(digest) => [ns, lease, "content", digest.as_str(), ""],
        Resource::Image(name) => [ns, lease, "images", name, ""],
        Resource::Ingest(reference) => [ns, lease, "ingests", reference.as_str(), ""],
        Resource::Snapshot { snapshotter, key } => {
            [ns, lease, "snapshots", snapshotter, key.as_str()]
        }
    };
    let used = if names[4].is_empty() { 4 } else { 5 };
    key::key(Bucket::Leased, &names[..used])
}

/// As Go's: the time, and something random.
fn random_id() -> Result<LeaseId> {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    format!("{}-{:06x}", now.as_nanos(), rand::random::<u32>() >> 8).try_into()
}

#[cfg(test)]
mod tests;
