//! Leases, and the guard that lives as long as one.

use std::time::{Duration, SystemTime};

use grpc::leases::LeasesClient;
use protos::MessageField;
use protos::services::leases as wire;
use protos::wire::Wire as _;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use types::{Error, Filter, Labels, LeaseId, Resource, Result, gc_label};

use crate::again::Again;
use crate::call::{done, present};

/// Longest life of a lease whose owner died.
const LIFE: Duration = Duration::from_hours(24);

super::service! {
    /// The leases of a namespace.
    Leases, LeasesClient<Again>
}

impl Leases {
    /// Makes a lease, optionally one that protects nothing any more after `life`.
    ///
    /// # Errors
    /// `AlreadyExists`.
    pub async fn create(
        &self,
        id: &LeaseId,
        mut labels: Labels,
        life: Option<Duration>,
    ) -> Result<types::Lease> {
        if let Some(life) = life {
            let end = OffsetDateTime::from(SystemTime::now() + life);
            let text = end.format(&Rfc3339);
            let text = text.map_err(|e| Error::internal("format time").with_source(e))?;
            labels.insert(gc_label::EXPIRE.to_owned(), text);
        }
        let message = wire::CreateRequest {
            id: id.to_string(),
            labels: labels.to_wire(),
            ..Default::default()
        };
        let answer = done(self.stub().create(self.caller.request(message)?).await)?;
        types::Lease::from_wire(present(answer.lease, "lease")?)
    }

    /// Removes a lease; `sync`: answers only when what it held is collected.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn delete(&self, id: &LeaseId, sync: bool) -> Result<()> {
        let message = wire::DeleteRequest {
            id: id.to_string(),
            sync,
            ..Default::default()
        };
        let request = self.caller.waiting(sync, message)?;
        done(self.stub().delete(request).await)?;
        Ok(())
    }

    /// All leases that pass the filter.
    ///
    /// # Errors
    /// Of the call.
    pub async fn list(&self, filter: &Filter) -> Result<Vec<types::Lease>> {
        let message = wire::ListRequest {
            filters: filter.texts().to_vec(),
            ..Default::default()
        };
        let answer = done(self.stub().list(self.caller.request(message)?).await)?;
        Vec::from_wire(answer.leases)
    }

    /// Puts a resource under a lease.
    ///
    /// # Errors
    /// `NotFound` for the lease.
    pub async fn add(&self, id: &LeaseId, resource: &Resource) -> Result<()> {
        let message = wire::AddResourceRequest {
            id: id.to_string(),
            resource: MessageField::some(resource.to_wire()),
            ..Default::default()
        };
        done(
            self.stub()
                .add_resource(self.caller.request(message)?)
                .await,
        )?;
        Ok(())
    }

    /// Takes a resource out of a lease.
    ///
    /// # Errors
    /// `NotFound` for the lease.
    pub async fn release(&self, id: &LeaseId, resource: &Resource) -> Result<()> {
        let message = wire::DeleteResourceRequest {
            id: id.to_string(),
            resource: MessageField::some(resource.to_wire()),
            ..Default::default()
        };
        done(
            self.stub()
                .delete_resource(self.caller.request(message)?)
                .await,
        )?;
        Ok(())
    }

    /// What a lease holds.
    ///
    /// # Errors
    /// `NotFound` for the lease.
    pub async fn resources(&self, id: &LeaseId) -> Result<Vec<Resource>> {
        let message = wire::ListResourcesRequest {
            id: id.to_string(),
            ..Default::default()
        };
        let answer = done(
            self.stub()
                .list_resources(self.caller.request(message)?)
                .await,
        )?;
        Vec::from_wire(answer.resources)
    }
}

/// An id that no other lease has: `<nanoseconds>-<four letters>`, as Go makes them.
///
/// # Errors
/// `Internal`: never in practice.
pub fn default_lease_id() -> Result<LeaseId> {
    use rand::Rng as _;
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let mut random = rand::rng();
    let tail: String = (0..4)
        .map(|_| char::from(LETTERS[random.random_range(0..LETTERS.len())]))
        .collect();
    format!("{}-{tail}", now.subsec_nanos()).parse()
}

/// A lease that goes with this value. [`Lease::remove`] waits for that; dropping it only asks.
#[derive(Debug)]
pub struct Lease {
    leases: Leases,
    id: LeaseId,
    removed: bool,
}

impl Lease {
    /// A fresh lease of at most a day.
    ///
    /// # Errors
    /// Of the call.
    pub async fn create(leases: Leases) -> Result<Self> {
        let id = default_lease_id()?;
        leases.create(&id, Labels::new(), Some(LIFE)).await?;
        Ok(Self {
            leases,
            id,
            removed: false,
        })
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &LeaseId {
        &self.id
    }

    /// Removes it.
    ///
    /// # Errors
    /// Of the call; the lease expires by itself then.
    pub async fn remove(mut self) -> Result<()> {
        self.removed = true;
        self.leases.delete(&self.id, false).await
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.removed {
            return;
        }
        let (leases, id) = (self.leases.clone(), self.id.clone());
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = leases.delete(&id, false).await {
                    tracing::warn!(%error, lease = %id, "cannot remove lease");
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_ids_differ() {
        let ids: std::collections::BTreeSet<_> =
            (0..100).map(|_| default_lease_id().unwrap()).collect();
        assert!(ids.len() > 90);
    }
}
