//! Records of the metadata store: what clients assemble containers from.

use std::collections::BTreeMap;
use std::time::SystemTime;

use crate::{
    Any, ContainerId, Descriptor, Digest, Error, Filterable, IngestRef, Labels, LeaseId, Namespace,
    Result, SnapshotKey,
};

/// A namespace and its labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceInfo {
    /// Name.
    pub name: Namespace,
    /// Labels.
    pub labels: Labels,
}

/// An image: a name for a descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Name, a free non-empty string.
    pub name: String,
    /// Labels.
    pub labels: Labels,
    /// What it names.
    pub target: Descriptor,
    /// When it was made.
    pub created_at: SystemTime,
    /// When it last changed.
    pub updated_at: SystemTime,
}

impl Filterable for Image {
    fn field(&self, path: &[&str]) -> Option<String> {
        match path {
            ["name"] => Some(self.name.clone()),
            ["target", "digest"] => Some(self.target.digest.to_string()),
            ["target", "mediatype"] => Some(self.target.media_type.clone()),
            ["labels", key @ ..] => self.labels.field(key),
            ["annotations", key @ ..] => self.target.annotations.field(key),
            _ => None,
        }
    }
}

/// Which runtime runs a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runtime {
    /// Name or path of the shim.
    pub name: String,
    /// Options for it.
    pub options: Option<Any>,
}

/// A container: all that is needed to start a task, nothing that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Id.
    pub id: ContainerId,
    /// Labels.
    pub labels: Labels,
    /// Image name, may be empty.
    pub image: String,
    /// Runtime.
    pub runtime: Runtime,
    /// OCI spec; opaque here.
    pub spec: Option<Any>,
    /// Snapshotter of the root file system, may be empty.
    pub snapshotter: String,
    /// Key of the root file system's snapshot, may be empty.
    pub snapshot_key: String,
    /// Client data.
    pub extensions: BTreeMap<String, Any>,
    /// Sandbox that it belongs to, may be empty.
    pub sandbox: String,
    /// When it was made.
    pub created_at: SystemTime,
    /// When it last changed.
    pub updated_at: SystemTime,
}

impl Filterable for Container {
    fn field(&self, path: &[&str]) -> Option<String> {
        match path {
            ["id"] => Some(self.id.to_string()),
            ["runtime", "name"] => Some(self.runtime.name.clone()),
            ["image"] => Some(self.image.clone()).filter(|image| !image.is_empty()),
            ["labels", key @ ..] => self.labels.field(key),
            _ => None,
        }
    }
}

/// A container's record where it is: for those who only hand it on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerRef<'a> {
    /// Id.
    pub id: &'a str,
    /// Labels.
    pub labels: Vec<(&'a str, &'a str)>,
    /// Name of its image.
    pub image: &'a str,
    /// Name of its runtime.
    pub runtime: &'a str,
    /// Options of its runtime.
    pub options: Option<AnyRef<'a>>,
    /// OCI spec.
    pub spec: Option<AnyRef<'a>>,
    /// Snapshotter of its root file system.
    pub snapshotter: &'a str,
    /// Key there.
    pub snapshot_key: &'a str,
    /// Values of clients, by name.
    pub extensions: Vec<(&'a str, AnyRef<'a>)>,
    /// Sandbox that it belongs to.
    pub sandbox: &'a str,
    /// When it was made.
    pub created_at: SystemTime,
    /// When it last changed.
    pub updated_at: SystemTime,
}

/// An image's record where it is: for those who only hand it on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRef<'a> {
    /// Name.
    pub name: &'a str,
    /// Labels.
    pub labels: Vec<(&'a str, &'a str)>,
    /// Media type of its target.
    pub media_type: &'a str,
    /// Digest of its target.
    pub digest: &'a str,
    /// Size of its target, in bytes.
    pub size: u64,
    /// Annotations of its target.
    pub annotations: Vec<(&'a str, &'a str)>,
    /// When it was made.
    pub created_at: SystemTime,
    /// When it last changed.
    pub updated_at: SystemTime,
}

/// A typed value where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnyRef<'a> {
    /// Type.
    pub type_url: &'a str,
    /// Value.
    pub value: &'a [u8],
}

/// A lease: what it lists is not collected while it lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Id.
    pub id: LeaseId,
    /// Labels, among them the expiry.
    pub labels: Labels,
    /// When it was made.
    pub created_at: SystemTime,
}

impl Filterable for Lease {
    fn field(&self, path: &[&str]) -> Option<String> {
        match path {
            ["id"] => Some(self.id.to_string()),
            ["labels", key @ ..] => self.labels.field(key),
            _ => None,
        }
    }
}

/// Something that a lease can hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Resource {
    /// A blob.
    Content(Digest),
    /// An unfinished ingest.
    Ingest(IngestRef),
    /// An image, by name.
    Image(String),
    /// A snapshot.
    Snapshot {
        /// Its snapshotter.
        snapshotter: String,
        /// Its key or name.
        key: SnapshotKey,
    },
}

impl Resource {
    /// A resource from the wire's words.
    ///
    /// # Errors
    /// `NotImplemented` for an unknown type, `InvalidArgument` for one with parts too many or too few,
    /// for a bad digest and for an empty id.
    pub fn parse(kind: &str, id: &str) -> Result<Self> {
        let malformed = |why: &str| {
            Err(Error::invalid_argument(format_args!(
                "invalid resource type {kind:?}: {why}"
            )))
        };
        match kind.split_once('/').unwrap_or((kind, "")) {
            ("content" | "ingests" | "images", _) if kind.contains('/') => {
                malformed("it has no parts")
            }
            ("content", _) => Ok(Self::Content(id.parse()?)),
            ("ingests", _) => Ok(Self::Ingest(id.parse()?)),
            ("images", _) if id.is_empty() => {
                Err(Error::invalid_argument("image name must not be empty"))
            }
            ("images", _) => Ok(Self::Image(id.to_owned())),
            ("snapshots", "") => malformed("snapshotter missing"),
            ("snapshots", name) if name.contains('/') => malformed("it has two parts"),
            ("snapshots", snapshotter) => Ok(Self::Snapshot {
                snapshotter: snapshotter.to_owned(),
                key: id.parse()?,
            }),
            _ => Err(Error::not_implemented(format_args!(
                "resource type {kind:?}"
            ))),
        }
    }

    /// The wire's word for its type.
    #[must_use]
    pub fn kind(&self) -> String {
        match self {
            Self::Content(_) => "content".into(),
            Self::Ingest(_) => "ingests".into(),
            Self::Image(_) => "images".into(),
            Self::Snapshot { snapshotter, .. } => format!("snapshots/{snapshotter}"),
        }
    }

    /// Its id on the wire.
    #[must_use]
    pub fn id(&self) -> String {
        match self {
            Self::Content(digest) => digest.to_string(),
            Self::Ingest(reference) => reference.to_string(),
            Self::Image(name) => name.clone(),
            Self::Snapshot { key, .. } => key.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Code;

    #[test]
    fn resources_round_trip_through_the_wire_words() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for (kind, id) in [
            ("content", digest.as_str()),
            ("ingests", "layer-1"),
            ("images", "docker.io/x:1"),
            ("snapshots/overlayfs", "a b/c"),
        ] {
            let resource = Resource::parse(kind, id).unwrap();
            assert_eq!(
                (resource.kind().as_str(), resource.id().as_str()),
                (kind, id)
            );
        }
        let (invalid, unknown) = (Code::InvalidArgument, Code::NotImplemented);
        for (kind, id, code) in [
            ("content", "x", invalid),
            ("content/x", &digest, invalid),
            ("ingests", "", invalid),
            ("ingests/x", "r", invalid),
            ("images", "", invalid),
            ("images/", "i", invalid),
            ("snapshots", "k", invalid),
            ("snapshots/", "k", invalid),
            ("snapshots/a/b", "k", invalid),
            ("volumes", "x", unknown),
            ("volumes/x", "x", unknown),
            ("/content", "x", unknown),
            ("", "x", unknown),
        ] {
            let error = Resource::parse(kind, id).unwrap_err();
            assert!(error.is(code), "{kind} {id}: {error:?}");
        }
    }
}
