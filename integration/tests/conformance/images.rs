//! Images.

use protos::MessageField;
use protos::services::images::{CreateImageRequest, Image};
use protos::types::Descriptor;

/// An image of a name, whose target is of nothing but this digit.
pub(crate) fn image(name: &str, digit: char) -> Image {
    Image {
        name: name.into(),
        target: MessageField::some(Descriptor {
            media_type: "application/vnd.oci.image.index.v1+json".into(),
            digest: format!("sha256:{}", digit.to_string().repeat(64)),
            size: 7,
            ..Descriptor::default()
        }),
        ..Image::default()
    }
}

pub(crate) fn create_image(image: Image) -> CreateImageRequest {
    CreateImageRequest {
        image: MessageField::some(image),
        ..CreateImageRequest::default()
    }
}
