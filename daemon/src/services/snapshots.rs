//! Snapshots of namespaces, for the service.

use std::sync::Arc;

use client::serve::Snapshotters;
use metadata::Metadata;
use snapshotters::Snapshotter;
use types::{Result, Scope};

/// Each namespace's view of each snapshotter.
#[derive(Clone, Debug)]
pub(crate) struct Snapshots {
    /// Makes that view.
    pub(crate) metadata: Metadata,
}

impl Snapshotters for Snapshots {
    type Tenant = Scope;

    fn pick(&self, scope: &Scope, name: &str) -> Result<Arc<dyn Snapshotter>> {
        self.metadata.scoped(scope).snapshotter(name)
    }
}
