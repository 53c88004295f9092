//! Blobs and ingests of namespaces, for the service.

use std::sync::Arc;

use ::content::ContentStore;
use client::serve::Contents;
use metadata::Metadata;
use types::{Result, Scope};

/// Each namespace's view of the content store.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    /// Makes that view.
    pub(crate) metadata: Metadata,
}

impl Contents for Content {
    type Tenant = Scope;

    fn content(&self, scope: &Scope) -> Result<Arc<dyn ContentStore>> {
        Ok(self.metadata.scoped(scope).content())
    }
}
