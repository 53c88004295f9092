//! Image records at the other end of a socket, as `transfer` wants them.

use async_trait::async_trait;
use types::{Context as _, Descriptor, Image, Labels, Result};

use crate::services::Images;

#[async_trait]
impl images::ImageStore for Images {
    /// Two clients may do this at once: when the record appears or goes between the two steps, the
    /// other step is tried once more.
    async fn put(&self, name: &str, target: Descriptor, labels: Labels) -> Result<Image> {
        let (image, fields) = images::record(name, target, labels);
        match self.create(&image).await {
            Err(e) if e.is_already_exists() => {}
            other => return other,
        }
        match self.update(&image, &fields).await.absent_ok()? {
            Some(updated) => Ok(updated),
            None => self.create(&image).await,
        }
    }
}
