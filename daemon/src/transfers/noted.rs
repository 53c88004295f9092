//! Unpacking that is noted: whoever wants the same layer waits for it as long as somebody is at it.

use std::sync::Arc;

use async_trait::async_trait;
use content::ContentStore;
use diff::{Applier, ApplyOpts};
use metadata::Metadata;
use types::{Descriptor, Mount, Result, Scope};

/// An applier, and where its work is noted.
#[derive(Debug)]
pub(super) struct Noted {
    pub(super) metadata: Metadata,
    pub(super) applier: Arc<dyn Applier>,
    /// For whom it is done.
    pub(super) scope: Scope,
}

#[async_trait]
impl Applier for Noted {
    async fn apply(
        &self,
        store: &Arc<dyn ContentStore>,
        layer: &Descriptor,
        mounts: &[Mount],
        opts: ApplyOpts,
    ) -> Result<Descriptor> {
        let opts = ApplyOpts {
            scope: Some(self.scope.clone()),
            ..opts
        };
        let _applying = self.metadata.applying(mounts);
        self.applier.apply(store, layer, mounts, opts).await
    }

    fn follows(&self) -> bool {
        self.applier.follows()
    }

    fn settles(&self) -> bool {
        self.applier.settles()
    }

    fn flushes(&self) -> bool {
        self.applier.flushes()
    }
}
