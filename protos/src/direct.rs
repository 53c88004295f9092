//! Messages written from borrowed values: for lists, whose cost is all in copies.
//!
//! Invariant: the bytes are those of the message that [`crate::wire::Wire`] would make, in the order of
//! its fields.

use std::time::SystemTime;

use ::types::{AnyRef, ContainerRef, Error, ImageRef, Result};
use protobuf::rt::WireType;
use protobuf::{CodedOutputStream, Message as _};

use crate::services::containers::ListContainersResponse;
use crate::services::images::ListImagesResponse;
use crate::wire::{Wire as _, signed};

/// Number of `ListContainersResponse.containers`.
const CONTAINERS: u32 = 1;
/// Number of `ListImagesResponse.images`.
const IMAGES: u32 = 1;

/// Adds a container to a list.
///
/// # Errors
/// None in practice: memory is all that it writes to.
pub fn add_container(
    list: &mut ListContainersResponse,
    container: &ContainerRef<'_>,
) -> Result<()> {
    let mut bytes = Vec::with_capacity(size_hint(container));
    let written = write_container(&mut bytes, container);
    written.map_err(|e| Error::internal("encode container").with_source(e))?;
    // Fields that are not known are written as they are: this one is, by its number.
    list.special_fields
        .mut_unknown_fields()
        .add_length_delimited(CONTAINERS, bytes);
    Ok(())
}

/// Adds an image to a list.
///
/// # Errors
/// None in practice: memory is all that it writes to.
pub fn add_image(list: &mut ListImagesResponse, image: &ImageRef<'_>) -> Result<()> {
    let mut bytes = Vec::with_capacity(512);
    let written = write_image(&mut bytes, image);
    written.map_err(|e| Error::internal("encode image").with_source(e))?;
    list.special_fields
        .mut_unknown_fields()
        .add_length_delimited(IMAGES, bytes);
    Ok(())
}

fn write_image(bytes: &mut Vec<u8>, image: &ImageRef<'_>) -> protobuf::Result<()> {
    let mut out = CodedOutputStream::vec(bytes);
    text(&mut out, 1, image.name)?;
    map(&mut out, 2, &image.labels)?;
    nested(&mut out, 3, |target| {
        text(target, 1, image.media_type)?;
        text(target, 2, image.digest)?;
        if image.size > 0 {
            target.write_int64(3, signed(image.size))?;
        }
        map(target, 5, &image.annotations)
    })?;
    time(&mut out, 7, image.created_at)?;
    time(&mut out, 8, image.updated_at)?;
    out.flush()
}

fn map(
    out: &mut CodedOutputStream<'_>,
    field: u32,
    pairs: &[(&str, &str)],
) -> protobuf::Result<()> {
    for (key, value) in pairs {
        nested(out, field, |entry| {
            text(entry, 1, key)?;
            text(entry, 2, value)
        })?;
    }
    Ok(())
}

fn size_hint(container: &ContainerRef<'_>) -> usize {
    let spec = container.spec.map_or(0, |spec| spec.value.len());
    let labels = container.labels.iter().map(|(k, v)| k.len() + v.len() + 8);
    let extensions = container
        .extensions
        .iter()
        .map(|(k, v)| k.len() + v.value.len() + 64);
    512 + spec + labels.sum::<usize>() + extensions.sum::<usize>()
}

fn write_container(bytes: &mut Vec<u8>, container: &ContainerRef<'_>) -> protobuf::Result<()> {
    let mut out = CodedOutputStream::vec(bytes);
    text(&mut out, 1, container.id)?;
    map(&mut out, 2, &container.labels)?;
    text(&mut out, 3, container.image)?;
    nested(&mut out, 4, |runtime| {
        text(runtime, 1, container.runtime)?;
        option(runtime, 2, container.options)
    })?;
    option(&mut out, 5, container.spec)?;
    text(&mut out, 6, container.snapshotter)?;
    text(&mut out, 7, container.snapshot_key)?;
    time(&mut out, 8, container.created_at)?;
    time(&mut out, 9, container.updated_at)?;
    for (key, value) in &container.extensions {
        nested(&mut out, 10, |entry| {
            text(entry, 1, key)?;
            option(entry, 2, Some(*value))
        })?;
    }
    text(&mut out, 11, container.sandbox)?;
    out.flush()
}

/// As proto3 has it: what is empty is not written.
fn text(out: &mut CodedOutputStream<'_>, field: u32, value: &str) -> protobuf::Result<()> {
    if value.is_empty() {
        return Ok(());
    }
    out.write_string(field, value)
}

fn option(
    out: &mut CodedOutputStream<'_>,
    field: u32,
    any: Option<AnyRef<'_>>,
) -> protobuf::Result<()> {
    let Some(any) = any else {
        return Ok(());
    };
    // The value is what is large: its length is known without writing it.
    let mut head = Vec::new();
    {
        let mut out = CodedOutputStream::vec(&mut head);
        text(&mut out, 1, any.type_url)?;
        if !any.value.is_empty() {
            out.write_tag(2, WireType::LengthDelimited)?;
            out.write_raw_varint64(any.value.len() as u64)?;
        }
        out.flush()?;
    }
    out.write_tag(field, WireType::LengthDelimited)?;
    out.write_raw_varint64((head.len() + any.value.len()) as u64)?;
    out.write_raw_bytes(&head)?;
    out.write_raw_bytes(any.value)
}

fn nested(
    out: &mut CodedOutputStream<'_>,
    field: u32,
    write: impl FnOnce(&mut CodedOutputStream<'_>) -> protobuf::Result<()>,
) -> protobuf::Result<()> {
    let mut inner = Vec::new();
    {
        let mut out = CodedOutputStream::vec(&mut inner);
        write(&mut out)?;
        out.flush()?;
    }
    out.write_bytes(field, &inner)
}

fn time(out: &mut CodedOutputStream<'_>, field: u32, at: SystemTime) -> protobuf::Result<()> {
    out.write_bytes(field, &at.to_wire().write_to_bytes()?)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ::types::{Any, Container, Descriptor, Image, Labels, Runtime};
    use protobuf::Message as _;

    use super::*;
    use crate::services::containers;

    fn any(any: &Any) -> AnyRef<'_> {
        AnyRef {
            type_url: &any.type_url,
            value: &any.value,
        }
    }

    fn view(container: &Container) -> ContainerRef<'_> {
        let labels = container.labels.iter();
        let extensions = container.extensions.iter();
        ContainerRef {
            id: container.id.as_str(),
            labels: labels.map(|(k, v)| (k.as_str(), v.as_str())).collect(),
            image: &container.image,
            runtime: &container.runtime.name,
            options: container.runtime.options.as_ref().map(any),
            spec: container.spec.as_ref().map(any),
            snapshotter: &container.snapshotter,
            snapshot_key: &container.snapshot_key,
            extensions: extensions.map(|(k, v)| (k.as_str(), any(v))).collect(),
            sandbox: &container.sandbox,
            created_at: container.created_at,
            updated_at: container.updated_at,
        }
    }

    #[test]
    fn a_list_of_images_reads_as_the_messages_that_it_was_made_of() {
        let image = Image {
            name: "x:1".into(),
            labels: Labels::new().with("a.b/c", "1"),
            target: Descriptor {
                media_type: "m".into(),
                digest: format!("sha256:{}", "ab".repeat(32)).parse().unwrap(),
                size: 70_000,
                annotations: Labels::new().with("n", "v"),
            },
            created_at: SystemTime::UNIX_EPOCH + Duration::new(3, 5),
            updated_at: SystemTime::UNIX_EPOCH - Duration::new(9, 5),
        };
        let view = ImageRef {
            name: &image.name,
            labels: vec![("a.b/c", "1")],
            media_type: &image.target.media_type,
            digest: image.target.digest.as_str(),
            size: image.target.size,
            annotations: vec![("n", "v")],
            created_at: image.created_at,
            updated_at: image.updated_at,
        };
        let mut list = ListImagesResponse::new();
        add_image(&mut list, &view).unwrap();
        let read = ListImagesResponse::parse_from_bytes(&list.write_to_bytes().unwrap());
        assert_eq!(read.unwrap().images, [image.to_wire()]);
    }

    #[test]
    fn a_list_reads_as_the_messages_that_it_was_made_of() {
        let any = |value: &[u8]| Any {
            type_url: "t/u".into(),
            value: value.to_vec(),
        };
        let full = Container {
            id: "c1".parse().unwrap(),
            labels: Labels::new().with("a.b/c", "1").with("d", "2"),
            image: "i".into(),
            runtime: Runtime {
                name: "r".into(),
                options: Some(any(&[0, 255])),
            },
            spec: Some(any(&[7; 5000])),
            snapshotter: "s".into(),
            snapshot_key: "k".into(),
            extensions: [("x".to_owned(), any(b"y")), ("e".to_owned(), any(b""))].into(),
            sandbox: "p".into(),
            created_at: SystemTime::UNIX_EPOCH + Duration::new(3, 5),
            updated_at: SystemTime::UNIX_EPOCH,
        };
        let bare = Container {
            id: "c2".parse().unwrap(),
            labels: Labels::new(),
            image: String::new(),
            runtime: Runtime {
                name: "r".into(),
                options: None,
            },
            spec: None,
            snapshotter: String::new(),
            snapshot_key: String::new(),
            extensions: [].into(),
            sandbox: String::new(),
            ..full.clone()
        };
        let all = [full, bare];
        let mut list = ListContainersResponse::new();
        for container in &all {
            add_container(&mut list, &view(container)).unwrap();
        }
        let read = ListContainersResponse::parse_from_bytes(&list.write_to_bytes().unwrap());
        let want: Vec<containers::Container> = all.iter().map(|c| c.to_wire()).collect();
        assert_eq!(read.unwrap().containers, want);
    }
}
