//! Labels: short texts on records, some of which steer the collector and the snapshotters.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};

use crate::{Error, Filterable, Result};

/// Label keys with a meaning that several crates share (surface: "Labels with meaning").
pub mod label {
    /// diff id of a compressed layer blob.
    pub const UNCOMPRESSED: &str = "containerd.io/uncompressed";
    /// Prefix of `distribution.source.<host>`: where a blob can be mounted from.
    pub const DISTRIBUTION_SOURCE: &str = "containerd.io/distribution.source";
    /// Target name of a remote snapshot.
    pub const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";
    /// diff id of the layer that an extraction snapshot is for.
    pub const SNAPSHOT_DIFF_ID: &str = "containerd.io/snapshot/diff-id";
    /// Chain id of what is below that layer.
    pub const SNAPSHOT_PARENT_CHAIN: &str = "containerd.io/snapshot/parent-chain-id";
    /// Labels with this prefix are handed to the snapshotter.
    pub const SNAPSHOT_PREFIX: &str = "containerd.io/snapshot/";
    /// Makes a namespace's content linkable by others.
    pub const NAMESPACE_SHAREABLE: &str = "containerd.io/namespace.shareable";
    /// Default snapshotter of a namespace, read by clients.
    pub const DEFAULT_SNAPSHOTTER: &str = "containerd.io/defaults/snapshotter";
    /// Default runtime of a namespace, read by clients.
    pub const DEFAULT_RUNTIME: &str = "containerd.io/defaults/runtime";
}

/// Labels of the garbage collector.
pub mod gc_label {
    /// The object is a root.
    pub const ROOT: &str = "containerd.io/gc.root";
    /// Prefix: keeps a blob.
    pub const REF_CONTENT: &str = "containerd.io/gc.ref.content";
    /// Prefix: keeps a snapshot.
    pub const REF_SNAPSHOT: &str = "containerd.io/gc.ref.snapshot.";
    /// Prefix: keeps an image.
    pub const REF_IMAGE: &str = "containerd.io/gc.ref.image";
    /// Prefix: keeps a stream between a client and the daemon.
    pub const REF_STREAM: &str = "containerd.io/gc.ref.stream";
    /// Prefix: keeps mounts that the daemon has activated.
    pub const REF_MOUNT: &str = "containerd.io/gc.ref.mount";
    /// Prefix: keeps a network namespace.
    pub const REF_NETWORK: &str = "containerd.io/gc.ref.network";
    /// Prefix: is kept by an image.
    pub const BREF_IMAGE: &str = "containerd.io/gc.bref.image";
    /// Prefix: is kept by a container.
    pub const BREF_CONTAINER: &str = "containerd.io/gc.bref.container";
    /// Prefix: is kept by a blob.
    pub const BREF_CONTENT: &str = "containerd.io/gc.bref.content";
    /// Prefix: is kept by a snapshot.
    pub const BREF_SNAPSHOT: &str = "containerd.io/gc.bref.snapshot.";
    /// RFC 3339 time after which a lease or an image protects nothing.
    pub const EXPIRE: &str = "containerd.io/gc.expire";
    /// On a lease: protect only what it lists, not what that refers to.
    pub const FLAT: &str = "containerd.io/gc.flat";
    /// Prefix, on an image or a blob: keeps a snapshot as long as a condition on its values holds.
    pub const COND_SNAPSHOT: &str = "containerd.io/gc.cond.snapshot";
    /// Prefix, on a snapshot: RFC 3339 time of its last use, a value for conditions.
    pub const COND_USED_AT: &str = "containerd.io/gc.cond.value-usedat";
}

/// Labels of a record, ordered by key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(BTreeMap<String, String>);

impl Labels {
    /// Longest key plus value, in bytes.
    pub const MAX: usize = 4096;

    /// No labels.
    #[must_use]
    pub const fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// The same labels with one more.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.0.insert(key.into(), value.into());
        self
    }

    /// Checks the length of every label.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub fn validate(&self) -> Result<()> {
        for (key, value) in &self.0 {
            let total = key.len() + value.len();
            if total > Self::MAX {
                let mut cut = key.len().min(10);
                while !key.is_char_boundary(cut) {
                    cut -= 1;
                }
                return Err(Error::invalid_argument(format_args!(
                    "label key and value length ({total} bytes) greater than maximum size ({} bytes), key: {}",
                    Self::MAX,
                    &key[..cut],
                )));
            }
        }
        Ok(())
    }

    /// Sets one label; the empty value removes it.
    pub fn set(&mut self, key: &str, value: &str) {
        if value.is_empty() {
            self.0.remove(key);
        } else {
            self.0.insert(key.to_owned(), value.to_owned());
        }
    }

    /// The same labels without those whose value is empty.
    #[must_use]
    pub fn without_empty(mut self) -> Self {
        self.0.retain(|_, value| !value.is_empty());
        self
    }

    /// Those labels that a snapshotter may see.
    #[must_use]
    pub fn for_snapshotter(&self) -> Self {
        let seen = |key: &&String| {
            key.starts_with(label::SNAPSHOT_PREFIX) || key.as_str() == label::SNAPSHOT_REF
        };
        Self(
            self.0
                .iter()
                .filter(|(k, _)| seen(k))
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect(),
        )
    }
}

impl Filterable for Labels {
    /// Keys contain dots: the path's parts are joined again.
    fn field(&self, path: &[&str]) -> Option<String> {
        self.0.get(&path.join(".")).cloned()
    }
}

impl Deref for Labels {
    type Target = BTreeMap<String, String>;
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Labels {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        Self(
            pairs
                .into_iter()
                .map(|(k, v)| (k.into(), v.into()))
                .collect(),
        )
    }
}

impl IntoIterator for Labels {
    type Item = (String, String);
    type IntoIter = std::collections::btree_map::IntoIter<String, String>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_and_value_share_4096_bytes() {
        Labels::new()
            .with("k", "v".repeat(4095))
            .validate()
            .unwrap();
        let error = Labels::new()
            .with("k", "v".repeat(4096))
            .validate()
            .unwrap_err();
        assert!(error.is(crate::Code::InvalidArgument));
        assert!(Labels::new().with("é".repeat(3000), "").validate().is_err());
    }

    #[test]
    fn the_empty_value_removes() {
        let mut labels = Labels::new().with("a", "1").with("b", "2");
        labels.set("a", "");
        labels.set("c", "3");
        assert_eq!(labels, Labels::new().with("b", "2").with("c", "3"));
    }

    #[test]
    fn snapshotters_see_their_labels_only() {
        let labels = Labels::new()
            .with("containerd.io/snapshot/x", "1")
            .with("containerd.io/snapshot.ref", "2")
            .with("containerd.io/gc.root", "3");
        assert_eq!(labels.for_snapshotter().len(), 2);
    }
}
