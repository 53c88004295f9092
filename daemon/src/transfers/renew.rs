//! After a power cut: layers that are not what they were are unpacked again.
//!
//! Invariant: only what an image of the same namespace brings is replaced, under a lease. The daemon serves
//! meanwhile: that a layer is whole before it is committed does not depend on this.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use types::{Filter, Namespace, Result, Scope, SnapshotKey};

use super::Transfers;
use super::lease::Leased;
use super::select::Target;

impl Transfers {
    /// Looks at the layers that were made after `since`, and unpacks the damaged ones again. What cannot
    /// be done is told in the log.
    pub(crate) async fn renew(&self, since: SystemTime) {
        let mut seen = BTreeSet::new();
        for target in &self.0.targets {
            if !seen.insert(&target.snapshotter) {
                continue;
            }
            let snapshotter = &target.snapshotter;
            let damaged = self.0.metadata.damaged_layers(snapshotter, Some(since));
            let damaged = match damaged.await {
                Ok(damaged) => damaged,
                Err(error) => {
                    tracing::warn!(%error, snapshotter, "layers cannot be looked at");
                    continue;
                }
            };
            let mut all = BTreeMap::<Namespace, BTreeSet<SnapshotKey>>::new();
            for (namespace, layer) in damaged {
                all.entry(namespace).or_default().insert(layer);
            }
            for (namespace, mut layers) in all {
                let scope = Scope::new(namespace);
                // Asked first: an image is not unpacked for nothing.
                let snapshots = self.0.metadata.scoped(&scope).snapshotter(snapshotter);
                if snapshots.is_ok_and(|snapshots| snapshots.renews()) {
                    for layer in &layers {
                        let namespace = &scope.namespace;
                        tracing::warn!(%namespace, snapshotter, %layer, "layer is damaged: unpacking it again");
                    }
                    if let Err(error) = self.renew_in(scope, target, &mut layers).await {
                        tracing::warn!(%error, snapshotter, "damaged layers cannot be unpacked again");
                    }
                }
                for layer in layers {
                    tracing::warn!(snapshotter, %layer, "layer stays damaged");
                }
            }
        }
    }

    /// Replaces `layers` of one namespace, and takes those out of it that are whole again.
    async fn renew_in(
        &self,
        scope: Scope,
        target: &Target,
        layers: &mut BTreeSet<SnapshotKey>,
    ) -> Result<()> {
        let leased = Leased::hold(&self.0.metadata, scope).await?;
        let scope = &leased.scope;
        let deps = self
            .0
            .deps(scope, &target.snapshotter, &Arc::clone(&target.applier))?;
        let (images, mut names) = (self.0.metadata.images(scope), Vec::new());
        images.visit(&Filter::default(), &mut |image| {
            names.push(image.name.to_owned());
            true
        })?;
        for name in names {
            if layers.is_empty() {
                break;
            }
            let renewed = match images.get(&name).await {
                Ok(image) => ::transfer::renew(&deps, &image.target, layers).await,
                Err(error) => Err(error),
            };
            // Others may have the same layers.
            if let Err(error) = renewed {
                tracing::warn!(%error, image = name, "layers of an image cannot be renewed");
            }
        }
        leased.release().await;
        Ok(())
    }
}
