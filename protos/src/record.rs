//! [`Wire`] for the records of the metadata store and for what stores tell.

use std::time::SystemTime;

use ::types as domain;
use domain::{Labels, Result};
use protobuf::{EnumOrUnknown, MessageField};

use crate::services::{containers, content, images, leases, namespaces, snapshots};
use crate::wire::{Wire, length, signed, time};

/// A time that is always set.
fn some(time: SystemTime) -> MessageField<crate::well_known::Timestamp> {
    MessageField::some(time.to_wire())
}

impl Wire for domain::Runtime {
    type Proto = containers::container::Runtime;

    fn to_wire(&self) -> Self::Proto {
        Self::Proto {
            name: self.name.clone(),
            options: self.options.to_wire(),
            ..Default::default()
        }
    }

    fn from_wire(proto: Self::Proto) -> Result<Self> {
        Ok(Self {
            name: proto.name,
            options: Option::from_wire(proto.options)?,
        })
    }
}

impl Wire for domain::Container {
    type Proto = containers::Container;

    fn to_wire(&self) -> Self::Proto {
        Self::Proto {
            id: self.id.to_string(),
            labels: self.labels.to_wire(),
            image: self.image.clone(),
            runtime: MessageField::some(self.runtime.to_wire()),
            spec: self.spec.to_wire(),
            snapshotter: self.snapshotter.clone(),
            snapshot_key: self.snapshot_key.clone(),
            created_at: some(self.created_at),
            updated_at: some(self.updated_at),
            extensions: self.extensions.to_wire(),
            sandbox: self.sandbox.clone(),
            ..Default::default()
        }
    }

    fn from_wire(proto: Self::Proto) -> Result<Self> {
        Ok(Self {
            id: proto
                .id
                .try_into()
                .map_err(|e: domain::Error| e.ctx("container.ID"))?,
            labels: Labels::from_wire(proto.labels)?,
            image: proto.image,
            runtime: Wire::from_wire(proto.runtime.unwrap_or_default())?,
            spec: Option::from_wire(proto.spec)?,
            snapshotter: proto.snapshotter,
            snapshot_key: proto.snapshot_key,
            extensions: Wire::from_wire(proto.extensions)?,
            sandbox: proto.sandbox,
            created_at: time(proto.created_at)?,
            updated_at: time(proto.updated_at)?,
        })
    }
}

impl Wire for domain::Image {
    type Proto = images::Image;

    fn to_wire(&self) -> Self::Proto {
        Self::Proto {
            name: self.name.clone(),
            labels: self.labels.to_wire(),
            target: MessageField::some(self.target.to_wire()),
            created_at: some(self.created_at),
            updated_at: some(self.updated_at),
            ..Default::default()
        }
    }

    fn from_wire(proto: Self::Proto) -> Result<Self> {
        Ok(Self {
            name: proto.name,
            labels: Labels::from_wire(proto.labels)?,
            target: Wire::from_wire(proto.target.unwrap_or_default())?,
            created_at: time(proto.created_at)?,
            updated_at: time(proto.updated_at)?,
        })
    }
}

impl Wire for domain::NamespaceInfo {
    type Proto = namespaces::Namespace;

    fn to_wire(&self) -> Self::Proto {
        Self::Proto {
            name: self.name.to_string(),
            labels: self.labels.to_wire(),
            ..Default::default()
        }
    }

    fn from_wire(proto: Self::Proto) -> Result<Self> {
        Ok(Self {
            name: proto.name.try_into()?,
            labels: Labels::from_wire(proto.labels)?,
        })
    }
}

impl Wire for domain::Lease {
    type Proto = leases::Lease;

    fn to_wire(&self) -> Self::Proto {
        Self::Proto {
            id: self.id.to_string(),
            created_at: some(self.created_at),
            labels: self.labels.to_wire(),
            ..Default::default()
        }
    }

    fn from_wire(proto: Self::Proto) -> Result<Self> {
        Ok(Self {
            id: proto.id.try_into()?,
            labels: Labels::from_wire(proto.labels)?,
            created_at: time(proto.created_at)?,
        })
    }
}

impl Wire for domain::Resource {
    type Proto = leases::Resource;

    fn to_wire(&self) -> Self::Proto {
        Self::Proto {
            id: self.id(),
            type_: self.kind(),
            ..Default::default()
        }
    }

    fn from_wire(proto: Self::Proto) -> Result<Self> {
        Self::parse(&proto.type_, &proto.id)
    }
}

impl Wire for domain::BlobInfo {
    type Proto = content::Info;

    fn to_wire(&self) -> Self::Proto {
        Self::Proto {
            digest: self.digest.to_string(),
            size: signed(self.size),
            created_at: some(self.created_at),
            updated_at: some(self.updated_at),
            labels: self.labels.to_wire(),
            ..Default::default()
        }
    }

    fn from_wire(proto: Self::Proto) -> Result<Self> {
        Ok(Self {
            digest: proto.digest.parse()?,
            size: length("size", proto.size)?,
            created_at: time(proto.created_at)?,
            updated_at: time(proto.updated_at)?,
            labels: Labels::from_wire(proto.labels)?,
        })
    }
}

impl Wire for domain::IngestStatus {
    type Proto = content::Status;

    fn to_wire(&self) -> Self::Proto {
        Self::Proto {
            started_at: some(self.started_at),
            updated_at: some(self.updated_at),
            ref_: self.reference.to_string(),
            offset: signed(self.offset),
            total: signed(self.total),
            expected: self
                .expected
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            ..Default::default()
        }
    }

    fn from_wire(proto: Self::Proto) -> Result<Self> {
        let expected = Some(proto.expected).filter(|text| !text.is_empty());
        Ok(Self {
            reference: proto.ref_.try_into()?,
            offset: length("offset", proto.offset)?,
            total: length("total", proto.total)?,
            expected: expected.map(|text| text.parse()).transpose()?,
            started_at: time(proto.started_at)?,
            updated_at: time(proto.updated_at)?,
        })
    }
}

impl Wire for domain::SnapshotKind {
    type Proto = EnumOrUnknown<snapshots::Kind>;

    fn to_wire(&self) -> Self::Proto {
        match self {
            Self::View => snapshots::Kind::VIEW.into(),
            Self::Active => snapshots::Kind::ACTIVE.into(),
            Self::Committed => snapshots::Kind::COMMITTED.into(),
        }
    }

    fn from_wire(proto: Self::Proto) -> Result<Self> {
        match proto.enum_value() {
            Ok(snapshots::Kind::VIEW) => Ok(Self::View),
            Ok(snapshots::Kind::ACTIVE) => Ok(Self::Active),
            Ok(snapshots::Kind::COMMITTED) => Ok(Self::Committed),
            Ok(snapshots::Kind::UNKNOWN) | Err(_) => Err(domain::Error::invalid_argument(
                format_args!("unknown snapshot kind {}", proto.value()),
            )),
        }
    }
}

impl Wire for domain::SnapshotInfo {
    type Proto = snapshots::Info;

    fn to_wire(&self) -> Self::Proto {
        Self::Proto {
            name: self.name.to_string(),
            parent: self
                .parent
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            kind: self.kind.to_wire(),
            created_at: some(self.created_at),
            updated_at: some(self.updated_at),
            labels: self.labels.to_wire(),
            ..Default::default()
        }
    }

    fn from_wire(proto: Self::Proto) -> Result<Self> {
        let parent = Some(proto.parent).filter(|text| !text.is_empty());
        Ok(Self {
            kind: Wire::from_wire(proto.kind)?,
            name: proto.name.try_into()?,
            parent: parent.map(TryInto::try_into).transpose()?,
            labels: Labels::from_wire(proto.labels)?,
            created_at: time(proto.created_at)?,
            updated_at: time(proto.updated_at)?,
        })
    }
}

impl Wire for domain::Usage {
    type Proto = snapshots::UsageResponse;

    fn to_wire(&self) -> Self::Proto {
        Self::Proto {
            size: signed(self.size),
            inodes: signed(self.inodes),
            ..Default::default()
        }
    }

    fn from_wire(proto: Self::Proto) -> Result<Self> {
        Ok(Self {
            size: length("size", proto.size)?,
            inodes: length("inodes", proto.inodes)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Debug;
    use std::time::{Duration, UNIX_EPOCH};

    fn same<T: Wire + PartialEq + Debug>(value: &T) {
        assert_eq!(&T::from_wire(value.to_wire()).unwrap(), value);
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::new(seconds, 5)
    }

    fn digest() -> domain::Digest {
        format!("sha256:{}", "b".repeat(64)).parse().unwrap()
    }

    fn any(name: &str) -> domain::Any {
        domain::Any {
            type_url: name.into(),
            value: vec![1],
        }
    }

    #[test]
    fn records_round_trip() {
        let labels = Labels::new().with("k", "v");
        let container = domain::Container {
            id: "c".parse().unwrap(),
            labels: labels.clone(),
            image: "i".into(),
            runtime: domain::Runtime {
                name: "r".into(),
                options: Some(any("o")),
            },
            spec: Some(any("s")),
            snapshotter: "overlayfs".into(),
            snapshot_key: "k".into(),
            extensions: [("x".to_owned(), any("e"))].into(),
            sandbox: "p".into(),
            created_at: at(1),
            updated_at: at(2),
        };
        same(&container);
        same(&domain::Container {
            spec: None,
            ..container
        });
        same(&domain::Image {
            name: "i".into(),
            labels: labels.clone(),
            target: domain::Descriptor {
                media_type: "m".into(),
                digest: digest(),
                size: 3,
                annotations: labels.clone(),
            },
            created_at: at(1),
            updated_at: at(2),
        });
        same(&domain::NamespaceInfo {
            name: "n".parse().unwrap(),
            labels: labels.clone(),
        });
        same(&domain::Lease {
            id: "l".parse().unwrap(),
            labels,
            created_at: at(1),
        });
        same(&domain::Resource::Content(digest()));
        same(&domain::Resource::Snapshot {
            snapshotter: "native".into(),
            key: "k".parse().unwrap(),
        });
    }

    #[test]
    fn what_stores_tell_round_trips() {
        same(&domain::BlobInfo {
            digest: digest(),
            size: 9,
            created_at: at(1),
            updated_at: at(2),
            labels: Labels::new().with("k", "v"),
        });
        for expected in [None, Some(digest())] {
            same(&domain::IngestStatus {
                reference: "r".parse().unwrap(),
                offset: 1,
                total: 2,
                expected,
                started_at: at(1),
                updated_at: at(2),
            });
        }
        use domain::SnapshotKind::{Active, Committed, View};
        for (kind, number) in [(View, 1), (Active, 2), (Committed, 3)] {
            assert_eq!(kind.to_wire().value(), number);
            same(&domain::SnapshotInfo {
                kind,
                name: "n".parse().unwrap(),
                parent: (kind != Committed).then(|| "p".parse().unwrap()),
                labels: Labels::new(),
                created_at: at(1),
                updated_at: at(2),
            });
        }
        same(&domain::Usage { inodes: 4, size: 5 });
    }

    #[test]
    fn bad_ids_and_kinds_are_refused() {
        let bad = containers::Container {
            id: "../x".into(),
            ..Default::default()
        };
        let error = domain::Container::from_wire(bad).unwrap_err();
        assert!(error.is(domain::Code::InvalidArgument), "{error}");
        for number in [0, 9] {
            let kind = EnumOrUnknown::from_i32(number);
            let error = domain::SnapshotKind::from_wire(kind).unwrap_err();
            assert!(error.is(domain::Code::InvalidArgument), "{error}");
        }
    }
}
