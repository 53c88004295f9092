//! Where image records are kept.

use std::fmt;
use std::time::SystemTime;

use async_trait::async_trait;
use types::{Descriptor, Fields, Image, Labels, Result};

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

/// The record that a [`ImageStore::put`] makes, and what it changes of one that is there.
#[must_use]
pub fn record(name: &str, target: Descriptor, labels: Labels) -> (Image, Fields) {
    let now = SystemTime::now();
    let mut fields = vec!["target".to_owned()];
    if !labels.is_empty() {
        fields.push("labels".to_owned());
    }
    let image = Image {
        name: name.to_owned(),
        labels,
        target,
        created_at: now,
        updated_at: now,
    };
    (image, Fields::new(fields))
}
