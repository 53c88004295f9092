//! Image records at the other end of a socket, as `transfer` wants them.

use async_trait::async_trait;
use types::{Context as _, Descriptor, Fields, Image, Labels, Result};

use crate::services::Images;

#[async_trait]
impl images::ImageStore for Images {
    /// Two clients may do this at once: when the record appears or goes between the two steps, the
    /// other step is tried once more.
    async fn put(&self, name: &str, target: Descriptor, labels: Labels) -> Result<Image> {
        let now = std::time::SystemTime::now();
        let mut fields = vec!["target".to_owned()];
        if !labels.is_empty() {
            fields.push("labels".to_owned());
        }
        let fields = Fields::new(fields);
        let image = Image {
            name: name.to_owned(),
            labels,
            target,
            created_at: now,
            updated_at: now,
        };
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
