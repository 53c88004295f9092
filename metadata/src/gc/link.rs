//! What labels say to the collector.

use std::fmt;

use types::{Labels, gc_label};

/// An object of one namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Node {
    /// A blob, by digest.
    Content(String),
    /// A snapshot, by snapshotter and name.
    Snapshot(String, String),
    /// An image, by name.
    Image(String),
    /// An ingest, by ref.
    Ingest(String),
    /// A container, by id.
    Container(String),
    /// A lease, by id.
    Lease(String),
    /// A stream, by id. It has no record.
    Stream(String),
    /// An activation of mounts, by name. It has no record here.
    Mount(String),
    /// A network namespace or an interface, by name. It has no record here.
    Network(String),
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Content(digest) => write!(f, "content {digest}"),
            Self::Snapshot(snapshotter, name) => write!(f, "snapshot {snapshotter}/{name}"),
            Self::Image(name) => write!(f, "image {name}"),
            Self::Ingest(reference) => write!(f, "ingest {reference}"),
            Self::Container(id) => write!(f, "container {id}"),
            Self::Lease(id) => write!(f, "lease {id}"),
            Self::Stream(id) => write!(f, "stream {id}"),
            Self::Mount(name) => write!(f, "mount {name}"),
            Self::Network(name) => write!(f, "network {name}"),
        }
    }
}

/// What one label means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// The object is a root.
    Root,
    /// The object keeps another one.
    Keeps(Node),
    /// Another object keeps this one.
    KeptBy(Node),
}

/// All links in an object's labels.
pub(crate) fn links(labels: &Labels) -> impl Iterator<Item = Link> + '_ {
    labels.iter().filter_map(|(key, value)| link(key, value))
}

fn link(key: &str, value: &str) -> Option<Link> {
    if key.starts_with(gc_label::ROOT) {
        return Some(Link::Root);
    }
    let value = || value.to_owned();
    if named(key, gc_label::REF_CONTENT) {
        return Some(Link::Keeps(Node::Content(value())));
    }
    if named(key, gc_label::REF_STREAM) {
        return Some(Link::Keeps(Node::Stream(value())));
    }
    if named(key, gc_label::REF_MOUNT) {
        return Some(Link::Keeps(Node::Mount(value())));
    }
    if named(key, gc_label::REF_NETWORK) {
        return Some(Link::Keeps(Node::Network(value())));
    }
    if named(key, gc_label::REF_IMAGE) {
        return Some(Link::Keeps(Node::Image(value())));
    }
    if let Some(snapshotter) = snapshotter(key, gc_label::REF_SNAPSHOT) {
        return Some(Link::Keeps(Node::Snapshot(snapshotter, value())));
    }
    if named(key, gc_label::BREF_CONTENT) {
        return Some(Link::KeptBy(Node::Content(value())));
    }
    if named(key, gc_label::BREF_IMAGE) {
        return Some(Link::KeptBy(Node::Image(value())));
    }
    if named(key, gc_label::BREF_CONTAINER) {
        return Some(Link::KeptBy(Node::Container(value())));
    }
    let snapshotter = snapshotter(key, gc_label::BREF_SNAPSHOT)?;
    Some(Link::KeptBy(Node::Snapshot(snapshotter, value())))
}

/// `prefix`, `prefix.<name>` or `prefix/<name>`.
fn named(key: &str, prefix: &str) -> bool {
    key.strip_prefix(prefix)
        .is_some_and(|name| name.is_empty() || name.starts_with(['.', '/']))
}

/// `prefix<snapshotter>[/<name>]`.
fn snapshotter(key: &str, prefix: &str) -> Option<String> {
    let rest = key.strip_prefix(prefix)?;
    let name = rest.split_once('/').map_or(rest, |(name, _)| name);
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_become_links() {
        let content = || Node::Content("v".into());
        let snapshot = || Node::Snapshot("overlayfs".into(), "v".into());
        for (key, want) in [
            ("containerd.io/gc.root", Some(Link::Root)),
            ("containerd.io/gc.root.mine", Some(Link::Root)),
            ("containerd.io/gc.ref.content", Some(Link::Keeps(content()))),
            (
                "containerd.io/gc.ref.content.l.0",
                Some(Link::Keeps(content())),
            ),
            (
                "containerd.io/gc.ref.content/name",
                Some(Link::Keeps(content())),
            ),
            ("containerd.io/gc.ref.contents", None),
            (
                "containerd.io/gc.ref.snapshot.overlayfs",
                Some(Link::Keeps(snapshot())),
            ),
            (
                "containerd.io/gc.ref.snapshot.overlayfs/x",
                Some(Link::Keeps(snapshot())),
            ),
            ("containerd.io/gc.ref.snapshot", None),
            (
                "containerd.io/gc.ref.image.a",
                Some(Link::Keeps(Node::Image("v".into()))),
            ),
            (
                "containerd.io/gc.ref.stream.a",
                Some(Link::Keeps(Node::Stream("v".into()))),
            ),
            (
                "containerd.io/gc.ref.mount",
                Some(Link::Keeps(Node::Mount("v".into()))),
            ),
            (
                "containerd.io/gc.ref.network.a",
                Some(Link::Keeps(Node::Network("v".into()))),
            ),
            (
                "containerd.io/gc.bref.content",
                Some(Link::KeptBy(content())),
            ),
            (
                "containerd.io/gc.bref.image",
                Some(Link::KeptBy(Node::Image("v".into()))),
            ),
            (
                "containerd.io/gc.bref.container.x",
                Some(Link::KeptBy(Node::Container("v".into()))),
            ),
            (
                "containerd.io/gc.bref.snapshot.overlayfs/x",
                Some(Link::KeptBy(snapshot())),
            ),
            ("containerd.io/gc.expire", None),
            ("other", None),
        ] {
            let labels = Labels::new().with(key, "v");
            assert_eq!(links(&labels).next(), want, "{key}");
        }
    }
}
