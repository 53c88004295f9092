//! Where image records are kept.

use std::fmt;

use async_trait::async_trait;
use types::{Descriptor, Image, Labels, Result};

/// Keeps image records: the metadata store of this process, or a daemon at the other end of a socket.
///
/// When a call has answered, the record survives a power cut and its target is protected from the
/// collector. Calls may run concurrently; for one name the last one wins.
#[async_trait]
pub trait ImageStore: Send + Sync + fmt::Debug {
    /// Makes the record `name`, or points the existing one at `target`. The labels of an existing
    /// record are replaced when `labels` has any, else kept.
    ///
    /// # Errors
    /// `InvalidArgument` for an empty name or a target that cannot be.
    async fn put(&self, name: &str, target: Descriptor, labels: Labels) -> Result<Image>;
}
