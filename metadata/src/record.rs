//! Records and their bytes. The names in a record's key are not repeated in its value.

use std::collections::BTreeMap;
use std::time::SystemTime;

use types::{
    AnyRef, Container, ContainerId, ContainerRef, Descriptor, Digest, Image, ImageRef, Labels,
    Lease, LeaseId, Result, Runtime, SnapshotKind,
};

use crate::codec::{Decoder, Encoder, damaged};

/// Version that this code writes; the only one so far.
const VERSION: u8 = 1;

/// A blob in a namespace.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct BlobRecord {
    pub(crate) size: u64,
    pub(crate) labels: Labels,
    pub(crate) created_at: SystemTime,
    pub(crate) updated_at: SystemTime,
}

/// An ingest in a namespace.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct IngestRecord {
    /// Its name in the backend.
    pub(crate) backend: String,
    /// When it may be collected, if no lease has it; never by time when a lease was all that kept it.
    pub(crate) expires_at: Option<SystemTime>,
    /// A blob of another namespace that this ingest would only link.
    pub(crate) expected: Option<Digest>,
}

/// A snapshot in a namespace.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SnapshotRecord {
    /// Its key in the backend.
    pub(crate) backend: String,
    /// Its parent, by the namespace's name for it.
    pub(crate) parent: Option<String>,
    pub(crate) labels: Labels,
    pub(crate) created_at: SystemTime,
    pub(crate) updated_at: SystemTime,
    /// Its kind; `None` in records from before it was noted.
    pub(crate) kind: Option<SnapshotKind>,
}

fn open(record: &[u8]) -> Result<Decoder<'_>> {
    match Decoder::new(record)? {
        (VERSION, decoder) => Ok(decoder),
        (version, _) => Err(damaged().ctx(format!("unknown record version {version}"))),
    }
}

/// A record that is only labels: a namespace.
pub(crate) fn put_labels(labels: &Labels) -> Vec<u8> {
    let mut e = Encoder::new(VERSION);
    e.labels(labels);
    e.finish()
}

pub(crate) fn get_labels(record: &[u8]) -> Result<Labels> {
    open(record)?.labels()
}

impl BlobRecord {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::new(VERSION);
        e.labels(&self.labels);
        e.number(self.size);
        e.time(self.created_at);
        e.time(self.updated_at);
        e.finish()
    }

    pub(crate) fn decode(record: &[u8]) -> Result<Self> {
        let mut d = open(record)?;
        Ok(Self {
            labels: d.labels()?,
            size: d.number()?,
            created_at: d.time()?,
            updated_at: d.time()?,
        })
    }
}

impl IngestRecord {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::new(VERSION);
        e.text(&self.backend);
        e.option(self.expires_at, Encoder::time);
        e.option(self.expected.as_ref(), |e, d| e.text(d.as_str()));
        e.finish()
    }

    pub(crate) fn decode(record: &[u8]) -> Result<Self> {
        let mut d = open(record)?;
        Ok(Self {
            backend: d.text()?.to_owned(),
            expires_at: d.option(Decoder::time)?,
            expected: d.option(|d| digest(d.text()?))?,
        })
    }
}

impl SnapshotRecord {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::new(VERSION);
        e.labels(&self.labels);
        e.text(&self.backend);
        e.option(self.parent.as_deref(), Encoder::text);
        e.time(self.created_at);
        e.time(self.updated_at);
        if let Some(kind) = self.kind {
            e.number(match kind {
                SnapshotKind::View => 1,
                SnapshotKind::Active => 2,
                SnapshotKind::Committed => 3,
            });
        }
        e.finish()
    }

    pub(crate) fn decode(record: &[u8]) -> Result<Self> {
        let mut d = open(record)?;
        Ok(Self {
            labels: d.labels()?,
            backend: d.text()?.to_owned(),
            parent: d.option(|d| Ok(d.text()?.to_owned()))?,
            created_at: d.time()?,
            updated_at: d.time()?,
            kind: if d.is_empty() {
                None
            } else {
                kind(d.number()?)?
            },
        })
    }
}

fn kind(number: u64) -> Result<Option<SnapshotKind>> {
    Ok(Some(match number {
        1 => SnapshotKind::View,
        2 => SnapshotKind::Active,
        3 => SnapshotKind::Committed,
        _ => return Err(damaged()),
    }))
}

fn digest(text: &str) -> Result<Digest> {
    text.parse().map_err(|_| damaged())
}

pub(crate) fn put_lease(lease: &Lease) -> Vec<u8> {
    let mut e = Encoder::new(VERSION);
    e.labels(&lease.labels);
    e.time(lease.created_at);
    e.finish()
}

pub(crate) fn get_lease(id: &str, record: &[u8]) -> Result<Lease> {
    let mut d = open(record)?;
    Ok(Lease {
        id: LeaseId::try_from(id.to_owned()).map_err(|_| damaged())?,
        labels: d.labels()?,
        created_at: d.time()?,
    })
}

pub(crate) fn put_image(image: &Image) -> Vec<u8> {
    let mut e = Encoder::new(VERSION);
    e.labels(&image.labels);
    e.text(&image.target.media_type);
    e.text(image.target.digest.as_str());
    e.number(image.target.size);
    e.labels(&image.target.annotations);
    e.time(image.created_at);
    e.time(image.updated_at);
    e.finish()
}

pub(crate) fn get_image(name: &str, record: &[u8]) -> Result<Image> {
    let mut d = open(record)?;
    Ok(Image {
        name: name.to_owned(),
        labels: d.labels()?,
        target: Descriptor {
            media_type: d.text()?.to_owned(),
            digest: digest(d.text()?)?,
            size: d.number()?,
            annotations: d.labels()?,
        },
        created_at: d.time()?,
        updated_at: d.time()?,
    })
}

/// An image's record where it is.
pub(crate) fn view_image<'a>(name: &'a str, record: &'a [u8]) -> Result<ImageRef<'a>> {
    let mut d = open(record)?;
    Ok(ImageRef {
        name,
        labels: d.list(|d| Ok((d.text()?, d.text()?)))?,
        media_type: d.text()?,
        digest: d.text()?,
        size: d.number()?,
        annotations: d.list(|d| Ok((d.text()?, d.text()?)))?,
        created_at: d.time()?,
        updated_at: d.time()?,
    })
}

pub(crate) fn put_container(container: &Container) -> Vec<u8> {
    let mut e = Encoder::new(VERSION);
    e.labels(&container.labels);
    e.text(&container.snapshotter);
    e.text(&container.snapshot_key);
    e.text(&container.image);
    e.text(&container.runtime.name);
    e.option(container.runtime.options.as_ref(), Encoder::any);
    e.option(container.spec.as_ref(), Encoder::any);
    e.number(container.extensions.len() as u64);
    for (name, value) in &container.extensions {
        e.text(name);
        e.any(value);
    }
    e.text(&container.sandbox);
    e.time(container.created_at);
    e.time(container.updated_at);
    e.finish()
}

/// What a container's record names: labels, snapshotter and the key there. They stand first, so that
/// the collector need not copy specs.
pub(crate) fn get_container_refs(record: &[u8]) -> Result<(Labels, String, String)> {
    let mut d = open(record)?;
    Ok((d.labels()?, d.text()?.to_owned(), d.text()?.to_owned()))
}

/// A container's record where it is.
pub(crate) fn view_container<'a>(id: &'a str, record: &'a [u8]) -> Result<ContainerRef<'a>> {
    let mut d = open(record)?;
    let labels = d.list(|d| Ok((d.text()?, d.text()?)))?;
    let snapshotter = d.text()?;
    let snapshot_key = d.text()?;
    let image = d.text()?;
    let runtime = d.text()?;
    let options = d.option(any)?;
    let spec = d.option(any)?;
    let extensions = d.list(|d| Ok((d.text()?, any(d)?)))?;
    Ok(ContainerRef {
        id,
        labels,
        image,
        runtime,
        options,
        spec,
        snapshotter,
        snapshot_key,
        extensions,
        sandbox: d.text()?,
        created_at: d.time()?,
        updated_at: d.time()?,
    })
}

fn any<'a>(d: &mut Decoder<'a>) -> Result<AnyRef<'a>> {
    Ok(AnyRef {
        type_url: d.text()?,
        value: d.bytes()?,
    })
}

pub(crate) fn get_container(id: &str, record: &[u8]) -> Result<Container> {
    let mut d = open(record)?;
    Ok(Container {
        id: ContainerId::try_from(id.to_owned()).map_err(|_| damaged())?,
        labels: d.labels()?,
        snapshotter: d.text()?.to_owned(),
        snapshot_key: d.text()?.to_owned(),
        image: d.text()?.to_owned(),
        runtime: Runtime {
            name: d.text()?.to_owned(),
            options: d.option(Decoder::any)?,
        },
        spec: d.option(Decoder::any)?,
        extensions: {
            let mut extensions = BTreeMap::new();
            for _ in 0..d.number()? {
                let name = d.text()?.to_owned();
                extensions.insert(name, d.any()?);
            }
            extensions
        },
        sandbox: d.text()?.to_owned(),
        created_at: d.time()?,
        updated_at: d.time()?,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use types::Any;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::new(seconds, 123)
    }

    fn labels() -> Labels {
        Labels::new().with("a", "1").with("b.c/d", "2")
    }

    fn sha() -> Digest {
        format!("sha256:{}", "ab".repeat(32)).parse().unwrap()
    }

    #[test]
    fn records_read_back() {
        let image = Image {
            name: "docker.io/x:1".into(),
            labels: labels(),
            target: Descriptor {
                media_type: "m".into(),
                digest: sha(),
                size: 77,
                annotations: labels(),
            },
            created_at: at(1),
            updated_at: at(2),
        };
        assert_eq!(get_image(&image.name, &put_image(&image)).unwrap(), image);
        let bytes = put_image(&image);
        let view = view_image(&image.name, &bytes).unwrap();
        assert_eq!((view.media_type, view.size), ("m", 77));
        assert_eq!(view.annotations, [("a", "1"), ("b.c/d", "2")]);
        assert_eq!((view.digest, view.updated_at), (sha().as_str(), at(2)));
        let any = |value: &[u8]| Any {
            type_url: "t/u".into(),
            value: value.to_vec(),
        };
        let container = Container {
            id: "c1".parse().unwrap(),
            labels: labels(),
            image: "i".into(),
            runtime: Runtime {
                name: "r".into(),
                options: Some(any(&[0, 255])),
            },
            spec: Some(any(&[7; 5000])),
            snapshotter: "s".into(),
            snapshot_key: "k".into(),
            extensions: [("x".to_owned(), any(b"y"))].into(),
            sandbox: "p".into(),
            created_at: at(3),
            updated_at: at(4),
        };
        let back = get_container("c1", &put_container(&container)).unwrap();
        assert_eq!(back, container);
        let bytes = put_container(&container);
        let view = view_container("c1", &bytes).unwrap();
        assert_eq!(view.labels, [("a", "1"), ("b.c/d", "2")]);
        assert_eq!(
            (view.runtime, view.snapshot_key, view.sandbox),
            ("r", "k", "p")
        );
        assert_eq!(view.spec.unwrap().value, [7; 5000]);
        assert_eq!(view.extensions[0].0, "x");
        assert_eq!(view.updated_at, at(4));
        assert_eq!(
            get_container_refs(&put_container(&container)).unwrap(),
            (labels(), "s".to_owned(), "k".to_owned())
        );
        let ingest = IngestRecord {
            backend: "ns/1/r".into(),
            expires_at: Some(at(7)),
            expected: Some(sha()),
        };
        assert_eq!(IngestRecord::decode(&ingest.encode()).unwrap(), ingest);
    }

    #[test]
    fn an_unknown_version_is_refused() {
        let mut record = put_labels(&labels());
        record[0] = 99;
        let error = get_labels(&record).unwrap_err();
        assert!(error.to_string().contains("version 99"), "{error}");
    }

    #[test]
    fn snapshots_read_back_with_and_without_their_kind() {
        let snapshot = SnapshotRecord {
            backend: "ns/1/k".into(),
            parent: Some("p".into()),
            labels: labels(),
            created_at: at(5),
            updated_at: at(6),
            kind: None,
        };
        let kinds = [
            SnapshotKind::View,
            SnapshotKind::Active,
            SnapshotKind::Committed,
        ];
        for kind in kinds.map(Some).into_iter().chain([None]) {
            let snapshot = SnapshotRecord {
                kind,
                ..snapshot.clone()
            };
            assert_eq!(
                SnapshotRecord::decode(&snapshot.encode()).unwrap(),
                snapshot
            );
        }
    }
}
