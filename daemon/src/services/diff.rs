//! The daemon's differs on the content of namespaces, for the service.

use std::sync::Arc;

use ::diff::{ApplyOpts, CompareOpts};
use async_trait::async_trait;
use metadata::Metadata;
use types::{Descriptor, Mount, Result, Scope};

use crate::engine::Differs;

/// Asks the differs in their order.
#[derive(Clone, Debug)]
pub(crate) struct Diff {
    /// The namespace's content comes from here.
    pub(crate) metadata: Metadata,
    /// Who can do it.
    pub(crate) differs: Arc<Differs>,
}

#[async_trait]
impl client::serve::Differs for Diff {
    async fn apply(
        &self,
        scope: &Scope,
        layer: &Descriptor,
        mounts: &[Mount],
        opts: ApplyOpts,
    ) -> Result<Descriptor> {
        let store = self.metadata.scoped(scope).content();
        let _applying = self.metadata.applying(mounts);
        self.differs.apply(&store, layer, mounts, opts).await
    }

    async fn compare(
        &self,
        scope: &Scope,
        lower: &[Mount],
        upper: &[Mount],
        opts: CompareOpts,
    ) -> Result<Descriptor> {
        let store = self.metadata.scoped(scope).content();
        self.differs.compare(&store, lower, upper, opts).await
    }
}
