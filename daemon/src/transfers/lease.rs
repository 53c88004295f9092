//! The lease of a transfer.

use std::time::{Duration, SystemTime};

use metadata::{Leases, Metadata};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use types::{Error, Labels, LeaseId, Result, Scope, gc_label};

/// Life of a lease whose daemon died.
const LIFE: Duration = Duration::from_hours(24);

/// The scope of a transfer; a lease that was made for it goes with the value.
#[derive(Debug)]
pub(super) struct Leased {
    /// With a lease, the caller's or ours.
    pub(super) scope: Scope,
    own: Option<(Leases, LeaseId)>,
}

impl Leased {
    /// Makes a lease unless the caller has one.
    ///
    /// # Errors
    /// Those of the records.
    pub(super) async fn hold(metadata: &Metadata, scope: Scope) -> Result<Self> {
        if scope.lease.is_some() {
            return Ok(Self { scope, own: None });
        }
        let end = OffsetDateTime::from(SystemTime::now() + LIFE).format(&Rfc3339);
        let end = end.map_err(|e| Error::internal("time as text").with_source(e))?;
        let leases = metadata.leases(&scope.namespace);
        let labels = Labels::new().with(gc_label::EXPIRE, end);
        let id = leases.create(None, labels).await?.id;
        let scope = Scope {
            lease: Some(id.clone()),
            ..scope
        };
        Ok(Self {
            scope,
            own: Some((leases, id)),
        })
    }

    /// Lets go of what nothing else keeps.
    pub(super) async fn release(mut self) {
        if let Some((leases, id)) = self.own.take() {
            remove(&leases, &id).await;
        }
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        let (Some((leases, id)), Ok(runtime)) =
            (self.own.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        drop(runtime.spawn(async move { remove(&leases, &id).await }));
    }
}

async fn remove(leases: &Leases, id: &LeaseId) {
    if let Err(error) = leases.delete(id, false).await {
        // It expires by itself.
        tracing::warn!(%error, lease = %id, "cannot remove the lease of a transfer");
    }
}

#[cfg(test)]
mod tests {
    use types::Filter;

    use super::*;
    use crate::config::Config;
    use crate::ground::Ground;
    use crate::store::Store;

    #[tokio::test]
    async fn a_lease_of_its_own_ends_after_a_day_by_itself_and_that_of_the_caller_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            root: dir.path().join("root"),
            state: dir.path().join("state"),
            ..Config::default()
        };
        std::fs::create_dir_all(&config.root).unwrap();
        let store = Store::open(Ground::open(&config).unwrap(), &config).await;
        let metadata = store.unwrap().metadata;
        let scope = Scope::new("n".parse().unwrap());
        let leases = metadata.leases(&scope.namespace);

        let begin = OffsetDateTime::now_utc();
        let own = Leased::hold(&metadata, scope.clone()).await.unwrap();
        let [lease] = &leases.list(&Filter::default()).await.unwrap()[..] else {
            panic!("one lease")
        };
        assert_eq!(own.scope.lease.as_ref(), Some(&lease.id));
        let end = lease.labels.get(gc_label::EXPIRE).unwrap();
        let life = OffsetDateTime::parse(end, &Rfc3339).unwrap() - begin;
        assert!(
            life >= LIFE && life < LIFE + Duration::from_mins(5),
            "{life}"
        );
        own.release().await;
        assert!(leases.list(&Filter::default()).await.unwrap().is_empty());

        let made = leases.create(None, Labels::new()).await.unwrap();
        let theirs = Scope {
            lease: Some(made.id.clone()),
            ..scope
        };
        let held = Leased::hold(&metadata, theirs.clone()).await.unwrap();
        assert_eq!(held.scope.lease, theirs.lease);
        held.release().await;
        let left = leases.list(&Filter::default()).await.unwrap();
        assert_eq!(left.len(), 1);
        assert!(left[0].labels.get(gc_label::EXPIRE).is_none());
    }
}
