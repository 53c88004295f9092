//! Messages written from borrowed values: for lists, whose cost is all in copies.
//!
//! Invariant: the bytes are those of the message that [`crate::wire::Wire`] would make, in the order of
//! its fields. Lengths are counted first, so that every byte is written once, where it stays.

use std::time::SystemTime;

use ::types::{AnyRef, ContainerRef, ImageRef};
use bytes::BufMut;

use crate::well_known::Timestamp;
use crate::wire::{Wire as _, signed};

/// Number of `ListContainersResponse.containers`.
const CONTAINERS: u8 = 1;
/// Number of `ListImagesResponse.images`.
const IMAGES: u8 = 1;

/// Wire types of the encoding: a number, and bytes behind their length.
const VARINT: u8 = 0;
const BYTES: u8 = 2;

/// Adds a container to a `ListContainersResponse`.
pub fn add_container(list: &mut impl BufMut, container: &ContainerRef<'_>) {
    let runtime = text_len(container.runtime) + any_len(container.options);
    let times = [container.created_at, container.updated_at].map(|at| at.to_wire());
    let extension_len = |(key, value): &(&str, AnyRef<'_>)| text_len(key) + any_len(Some(*value));
    let extensions = container.extensions.iter();
    let len = text_len(container.id)
        + map_len(&container.labels)
        + text_len(container.image)
        + nested_len(runtime)
        + any_len(container.spec)
        + text_len(container.snapshotter)
        + text_len(container.snapshot_key)
        + times
            .iter()
            .map(|at| nested_len(time_len(at)))
            .sum::<usize>()
        + extensions
            .map(|e| nested_len(extension_len(e)))
            .sum::<usize>()
        + text_len(container.sandbox);
    let [created, updated] = &times;
    head(list, CONTAINERS, len);
    text(list, 1, container.id);
    map(list, 2, &container.labels);
    text(list, 3, container.image);
    head(list, 4, runtime);
    text(list, 1, container.runtime);
    any(list, 2, container.options);
    any(list, 5, container.spec);
    text(list, 6, container.snapshotter);
    text(list, 7, container.snapshot_key);
    time(list, 8, created);
    time(list, 9, updated);
    for extension in &container.extensions {
        head(list, 10, extension_len(extension));
        text(list, 1, extension.0);
        any(list, 2, Some(extension.1));
    }
    text(list, 11, container.sandbox);
}

/// Adds an image to a `ListImagesResponse`.
pub fn add_image(list: &mut impl BufMut, image: &ImageRef<'_>) {
    let target = text_len(image.media_type)
        + text_len(image.digest)
        + number_len(signed(image.size))
        + map_len(&image.annotations);
    let times = [image.created_at, image.updated_at].map(|at: SystemTime| at.to_wire());
    let len = text_len(image.name)
        + map_len(&image.labels)
        + nested_len(target)
        + times
            .iter()
            .map(|at| nested_len(time_len(at)))
            .sum::<usize>();
    let [created, updated] = &times;
    head(list, IMAGES, len);
    text(list, 1, image.name);
    map(list, 2, &image.labels);
    head(list, 3, target);
    text(list, 1, image.media_type);
    text(list, 2, image.digest);
    number(list, 3, signed(image.size));
    map(list, 5, &image.annotations);
    time(list, 7, created);
    time(list, 8, updated);
}

/// Bytes of a number. All fields here have tags of one byte.
const fn varint_len(value: u64) -> usize {
    // Seven bits a byte; zero takes one, too.
    (70 - (value | 1).leading_zeros() as usize) / 7
}

fn varint(out: &mut impl BufMut, mut value: u64) {
    loop {
        let [low, ..] = (value & 0x7f).to_le_bytes();
        value >>= 7;
        if value == 0 {
            return out.put_u8(low);
        }
        out.put_u8(low | 0x80);
    }
}

const fn nested_len(len: usize) -> usize {
    1 + varint_len(len as u64) + len
}

/// What stands before `len` bytes of a field.
fn head(out: &mut impl BufMut, field: u8, len: usize) {
    out.put_u8(field << 3 | BYTES);
    varint(out, len as u64);
}

/// As proto3 has it: what is empty is not written.
const fn text_len(value: &str) -> usize {
    bytes_len(value.as_bytes())
}

fn text(out: &mut impl BufMut, field: u8, value: &str) {
    bytes(out, field, value.as_bytes());
}

const fn bytes_len(value: &[u8]) -> usize {
    if value.is_empty() {
        0
    } else {
        nested_len(value.len())
    }
}

fn bytes(out: &mut impl BufMut, field: u8, value: &[u8]) {
    if !value.is_empty() {
        head(out, field, value.len());
        out.put_slice(value);
    }
}

const fn number_len(value: i64) -> usize {
    if value == 0 {
        0
    } else {
        1 + varint_len(value.cast_unsigned())
    }
}

fn number(out: &mut impl BufMut, field: u8, value: i64) {
    if value != 0 {
        out.put_u8(field << 3 | VARINT);
        varint(out, value.cast_unsigned());
    }
}

fn map_len(pairs: &[(&str, &str)]) -> usize {
    let lens = pairs.iter().map(|pair| nested_len(pair_len(pair)));
    lens.sum()
}

fn map(out: &mut impl BufMut, field: u8, pairs: &[(&str, &str)]) {
    for pair in pairs {
        head(out, field, pair_len(pair));
        text(out, 1, pair.0);
        text(out, 2, pair.1);
    }
}

const fn pair_len(pair: &(&str, &str)) -> usize {
    text_len(pair.0) + text_len(pair.1)
}

/// Bytes of the whole field; a value that is there is written, even when it is empty.
fn any_len(value: Option<AnyRef<'_>>) -> usize {
    value.map_or(0, |any| {
        nested_len(text_len(any.type_url) + bytes_len(any.value))
    })
}

fn any(out: &mut impl BufMut, field: u8, value: Option<AnyRef<'_>>) {
    if let Some(any) = value {
        head(out, field, text_len(any.type_url) + bytes_len(any.value));
        text(out, 1, any.type_url);
        bytes(out, 2, any.value);
    }
}

const fn time_len(at: &Timestamp) -> usize {
    number_len(at.seconds) + number_len(at.nanos as i64)
}

fn time(out: &mut impl BufMut, field: u8, at: &Timestamp) {
    head(out, field, time_len(at));
    number(out, 1, at.seconds);
    number(out, 2, at.nanos.into());
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ::types::{Any, Container, Descriptor, Image, Labels, Runtime};
    use protobuf::Message as _;

    use super::*;
    use crate::services::containers::{self, ListContainersResponse};
    use crate::services::images::ListImagesResponse;

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
        let mut list = Vec::new();
        add_image(&mut list, &view);
        let read = ListImagesResponse::parse_from_bytes(&list);
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
        let mut list = Vec::new();
        for container in &all {
            add_container(&mut list, &view(container));
        }
        let read = ListContainersResponse::parse_from_bytes(&list);
        let want: Vec<containers::Container> = all.iter().map(|c| c.to_wire()).collect();
        assert_eq!(read.unwrap().containers, want);
        let message = ListContainersResponse {
            containers: want,
            ..Default::default()
        };
        assert_eq!(message.write_to_bytes().unwrap().len(), list.len());
    }

    #[test]
    fn numbers_take_as_many_bytes_as_are_counted() {
        let ones = (0..64).map(|bits| u64::MAX >> bits);
        for value in ones.chain((0..64).map(|bits| 1 << bits)).chain([0]) {
            let mut out = Vec::new();
            varint(&mut out, value);
            assert_eq!(out.len(), varint_len(value), "{value}");
        }
    }
}
