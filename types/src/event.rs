//! What happened, as values. `protos::event` turns an [`Event`] into its wire message.

use std::fmt;
use std::time::SystemTime;

use crate::{ContainerId, Digest, Error, Exit, Identifier, Labels, Result, Runtime};

/// Topic of an event: `/` and identifiers, as in `/tasks/exit`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Topic(String);

impl Topic {
    /// The topic's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Topic {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        let Some(rest) = text.strip_prefix('/') else {
            return Err(Error::invalid_argument(format_args!(
                "topic {text:?} must start with '/'"
            )));
        };
        if rest.is_empty() {
            return Err(Error::invalid_argument(format_args!(
                "topic {text:?} must have at least one component"
            )));
        }
        for part in rest.split('/') {
            Identifier::check(part)
                .map_err(|e| e.ctx(format!("topic {text:?}: component {part:?}")))?;
        }
        Ok(Self(text))
    }
}

impl From<&Event> for Topic {
    fn from(event: &Event) -> Self {
        Self(event.topic().to_owned())
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An event that the daemon itself emits. (Shims publish theirs in wire form.)
#[derive(Clone, Debug, PartialEq)]
#[expect(
    missing_docs,
    reason = "fields carry the names of the wire messages, which document them"
)]
pub enum Event {
    /// A container record was made.
    ContainerCreate {
        id: String,
        image: String,
        runtime: Runtime,
    },
    /// A container record was changed.
    ContainerUpdate {
        id: String,
        image: String,
        labels: Labels,
        snapshot_key: String,
    },
    /// A container record was removed.
    ContainerDelete { id: String },
    /// A blob was committed.
    ContentCreate { digest: Digest, size: u64 },
    /// A blob was unlinked.
    ContentDelete { digest: Digest },
    /// An image record was made.
    ImageCreate { name: String, labels: Labels },
    /// An image record was changed.
    ImageUpdate { name: String, labels: Labels },
    /// An image record was removed.
    ImageDelete { name: String },
    /// A namespace was made.
    NamespaceCreate { name: String, labels: Labels },
    /// A namespace's labels were changed.
    NamespaceUpdate { name: String, labels: Labels },
    /// A namespace was removed.
    NamespaceDelete { name: String },
    /// A network namespace got its name.
    NetworkNamespaceCreate {
        name: String,
        path: String,
        labels: Labels,
    },
    /// A network namespace's labels were changed.
    NetworkNamespaceUpdate { name: String, labels: Labels },
    /// A network namespace lost its name.
    NetworkNamespaceDelete { name: String },
    /// An interface was made.
    NetworkLinkCreate {
        name: String,
        network_namespace: String,
        kind: String,
    },
    /// An interface was changed or moved.
    NetworkLinkUpdate {
        name: String,
        network_namespace: String,
        kind: String,
    },
    /// An interface was taken away.
    NetworkLinkDelete {
        name: String,
        network_namespace: String,
        kind: String,
    },
    /// An active snapshot was made.
    SnapshotPrepare {
        key: String,
        parent: String,
        snapshotter: String,
    },
    /// A snapshot was committed.
    SnapshotCommit {
        key: String,
        name: String,
        snapshotter: String,
    },
    /// A snapshot was removed.
    SnapshotRemove { key: String, snapshotter: String },
    /// A task was created: the runtime's init waits for start.
    TaskCreate {
        container: ContainerId,
        bundle: String,
        pid: u32,
    },
    /// A task's process was started.
    TaskStart { container: ContainerId, pid: u32 },
    /// A task ran out of memory; told by the daemon only for shims that are gone.
    TaskOom { container: ContainerId },
    /// A process ended; told by the daemon only for shims that are gone.
    TaskExit {
        container: ContainerId,
        id: String,
        pid: u32,
        status: u32,
        exited_at: SystemTime,
    },
    /// A task was deleted.
    TaskDelete { container: ContainerId, exit: Exit },
}

impl Event {
    /// The topic under which it is published.
    #[must_use]
    pub const fn topic(&self) -> &'static str {
        match self {
            Self::ContainerCreate { .. } => "/containers/create",
            Self::ContainerUpdate { .. } => "/containers/update",
            Self::ContainerDelete { .. } => "/containers/delete",
            Self::ContentCreate { .. } => "/content/create",
            Self::ContentDelete { .. } => "/content/delete",
            Self::ImageCreate { .. } => "/images/create",
            Self::ImageUpdate { .. } => "/images/update",
            Self::ImageDelete { .. } => "/images/delete",
            Self::NamespaceCreate { .. } => "/namespaces/create",
            Self::NamespaceUpdate { .. } => "/namespaces/update",
            Self::NamespaceDelete { .. } => "/namespaces/delete",
            Self::NetworkNamespaceCreate { .. } => "/networks/namespaces/create",
            Self::NetworkNamespaceUpdate { .. } => "/networks/namespaces/update",
            Self::NetworkNamespaceDelete { .. } => "/networks/namespaces/delete",
            Self::NetworkLinkCreate { .. } => "/networks/links/create",
            Self::NetworkLinkUpdate { .. } => "/networks/links/update",
            Self::NetworkLinkDelete { .. } => "/networks/links/delete",
            Self::SnapshotPrepare { .. } => "/snapshot/prepare",
            Self::SnapshotCommit { .. } => "/snapshot/commit",
            Self::SnapshotRemove { .. } => "/snapshot/remove",
            Self::TaskCreate { .. } => "/tasks/create",
            Self::TaskStart { .. } => "/tasks/start",
            Self::TaskOom { .. } => "/tasks/oom",
            Self::TaskExit { .. } => "/tasks/exit",
            Self::TaskDelete { .. } => "/tasks/delete",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_slash_separated_identifiers() {
        for good in ["/a", "/tasks/exit", "/a.b/c-d_e"] {
            assert!(Topic::try_from(good.to_owned()).is_ok(), "{good}");
        }
        for bad in ["", "/", "a", "/a/", "//a", "/a b", "/a/../b"] {
            assert!(Topic::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }
}
