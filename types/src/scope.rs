//! Who asks: the namespace and, if there is one, the lease of a request.

use crate::{LeaseId, Namespace};

/// Built once at the edge from request metadata; passed on explicitly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Tenant.
    pub namespace: Namespace,
    /// Lease that new objects are added to.
    pub lease: Option<LeaseId>,
}

impl Scope {
    /// A scope without a lease.
    #[must_use]
    pub const fn new(namespace: Namespace) -> Self {
        Self {
            namespace,
            lease: None,
        }
    }
}
