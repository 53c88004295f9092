//! Image records.

use grpc::images::ImagesClient;
use protos::MessageField;
use protos::services::images as wire;
use protos::wire::Wire as _;
use types::{Fields, Filter, Image, Result};

use crate::again::Again;
use crate::call::{done, present};

super::service! {
    /// The image records of a namespace.
    Images, ImagesClient<Again>
}

impl Images {
    /// One image.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn get(&self, name: &str) -> Result<Image> {
        let message = wire::GetImageRequest {
            name: name.to_owned(),
            ..Default::default()
        };
        let answer = done(self.stub().get(self.caller.request(message)?).await)?;
        Image::from_wire(present(answer.image, "image")?)
    }

    /// All images that pass the filter, by name.
    ///
    /// # Errors
    /// Of the call.
    pub async fn list(&self, filter: &Filter) -> Result<Vec<Image>> {
        let message = wire::ListImagesRequest {
            filters: filter.texts().to_vec(),
            ..Default::default()
        };
        let answer = done(self.stub().list(self.caller.request(message)?).await)?;
        Vec::from_wire(answer.images)
    }

    /// Makes a record.
    ///
    /// # Errors
    /// `AlreadyExists`.
    pub async fn create(&self, image: &Image) -> Result<Image> {
        let message = wire::CreateImageRequest {
            image: MessageField::some(image.to_wire()),
            ..Default::default()
        };
        let answer = done(self.stub().create(self.caller.request(message)?).await)?;
        Image::from_wire(present(answer.image, "image")?)
    }

    /// Changes what `fields` names.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for a field that cannot change.
    pub async fn update(&self, image: &Image, fields: &Fields) -> Result<Image> {
        let message = wire::UpdateImageRequest {
            image: MessageField::some(image.to_wire()),
            update_mask: MessageField::some(fields.to_wire()),
            ..Default::default()
        };
        let answer = done(self.stub().update(self.caller.request(message)?).await)?;
        Image::from_wire(present(answer.image, "image")?)
    }

    /// Removes a record; `sync`: answers only when what it held is collected.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn delete(&self, name: &str, sync: bool) -> Result<()> {
        let message = wire::DeleteImageRequest {
            name: name.to_owned(),
            sync,
            ..Default::default()
        };
        let request = self.caller.waiting(sync, message)?;
        done(self.stub().delete(request).await)?;
        Ok(())
    }
}
