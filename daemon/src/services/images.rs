//! `containerd.services.images.v1.Images`: names for descriptors.

use async_trait::async_trait;
use grpc::images::Images as Service;
use grpc::{Written, serve};
use metadata::{Images as Records, Metadata};
use protos::MessageField;
use protos::direct::add_image;
use protos::services::images as wire;
use protos::services::images::{
    CreateImageRequest, CreateImageResponse, DeleteImageRequest, GetImageRequest, GetImageResponse,
    ListImagesRequest, ListImagesResponse, UpdateImageRequest, UpdateImageResponse,
};
use protos::well_known::Empty;
use protos::wire::{Wire as _, mask};
use tonic::{Request, Response, Status};
use types::{Fields, Image, Result};

use super::filter;

/// Serves the namespace's images.
#[derive(Clone, Debug)]
pub(crate) struct Images {
    /// Holds them.
    pub(crate) metadata: Metadata,
    /// Bytes of an answer that is still sent.
    pub(crate) max_message: usize,
}

#[async_trait]
impl Service for Images {
    async fn get(
        &self,
        request: Request<GetImageRequest>,
    ) -> Result<Response<GetImageResponse>, Status> {
        let metadata = self.metadata.clone();
        serve(request, |scope, request| async move {
            let image = metadata.images(&scope).get(&request.name).await?;
            let image = MessageField::some(image.to_wire());
            Ok(GetImageResponse {
                image,
                ..Default::default()
            })
        })
        .await
    }

    async fn list(
        &self,
        request: Request<ListImagesRequest>,
    ) -> Result<Response<Written<ListImagesResponse>>, Status> {
        let (metadata, limit) = (self.metadata.clone(), self.max_message);
        serve(request, move |scope, request| async move {
            let filter = filter(&request.filters)?;
            let mut list = Written::new(limit);
            metadata.images(&scope).visit(&filter, &mut |image| {
                add_image(list.field(), image);
                !list.is_too_large()
            })?;
            Ok(list)
        })
        .await
        .and_then(Written::answer)
    }

    async fn create(
        &self,
        request: Request<CreateImageRequest>,
    ) -> Result<Response<CreateImageResponse>, Status> {
        let metadata = self.metadata.clone();
        serve(request, |scope, request| async move {
            let image = Image::from_wire(request.image.unwrap_or_default())?;
            let epoch = Option::from_wire(request.source_date_epoch)?;
            let image = metadata.images(&scope).create(image, epoch).await?;
            let image = MessageField::some(image.to_wire());
            Ok(CreateImageResponse {
                image,
                ..Default::default()
            })
        })
        .await
    }

    async fn update(
        &self,
        request: Request<UpdateImageRequest>,
    ) -> Result<Response<UpdateImageResponse>, Status> {
        let metadata = self.metadata.clone();
        serve(request, |scope, request| async move {
            let (images, fields) = (metadata.images(&scope), mask(request.update_mask)?);
            let image = changed(&images, request.image.unwrap_or_default(), &fields).await?;
            let epoch = Option::from_wire(request.source_date_epoch)?;
            let image = images.update(image, &fields, epoch).await?;
            let image = MessageField::some(image.to_wire());
            Ok(UpdateImageResponse {
                image,
                ..Default::default()
            })
        })
        .await
    }

    async fn delete(
        &self,
        request: Request<DeleteImageRequest>,
    ) -> Result<Response<Empty>, Status> {
        let metadata = self.metadata.clone();
        serve(request, |scope, request| async move {
            // One without a digest is no condition.
            let target = request.target.into_option().map(|target| target.digest);
            let target = target.filter(|digest| !digest.is_empty());
            let target = target.map(|digest| digest.parse()).transpose()?;
            metadata
                .images(&scope)
                .delete(&request.name, target.as_ref(), request.sync)
                .await?;
            Ok(Empty::new())
        })
        .await
    }
}

/// The image of an update. Clients leave out a target that their mask does not name.
async fn changed(images: &Records, mut image: wire::Image, fields: &Fields) -> Result<Image> {
    let untouched = !fields.is_all() && fields.iter().all(|path| path != "target");
    if untouched && image.target.digest.is_empty() {
        let annotations = std::mem::take(&mut image.target.mut_or_insert_default().annotations);
        let current = images.get(&image.name).await?.target.to_wire();
        image.target = MessageField::some(protos::types::Descriptor {
            annotations,
            ..current
        });
    }
    let name = image.name.clone();
    match Image::from_wire(image) {
        // That there is no such image comes before what is wrong with the change.
        Err(refused) if !name.is_empty() => Err(images.get(&name).await.err().unwrap_or(refused)),
        made => made,
    }
}
