//! Walking the documents of an image.
//!
//! Invariant: every walk goes through a [`Frontier`], which visits a blob once, goes [`MAX_DEPTH`]
//! documents deep and [`MAX_NODES`] blobs wide, then stops with a named error.

use std::collections::HashSet;

use content::ContentStore;
use types::{Context as _, Descriptor, Digest, Error, Result};

use crate::blob::read_blob;
use crate::media::{is_config, is_index, is_manifest};
use crate::model::{Config, Entry, Index, Manifest};
use crate::platforms::PlatformSet;
use crate::{MAX_CONFIG, MAX_MANIFEST};

/// Deepest nesting of documents: real images have two levels.
const MAX_DEPTH: usize = 32;
/// Most blobs of one image; the largest real indexes have some thousands.
const MAX_NODES: usize = 65_536;

/// What a walk has yet to visit, depth first, in order.
#[derive(Debug)]
pub struct Frontier {
    stack: Vec<(Entry, usize)>,
    seen: HashSet<Digest>,
}

impl Frontier {
    /// A walk that begins at `roots`.
    #[must_use]
    pub fn new(roots: Vec<Entry>) -> Self {
        let seen = roots
            .iter()
            .map(|root| root.descriptor.digest.clone())
            .collect();
        Self {
            stack: roots.into_iter().rev().map(|root| (root, 0)).collect(),
            seen,
        }
    }

    /// The next entry and its depth.
    pub fn take(&mut self) -> Option<(Entry, usize)> {
        self.stack.pop()
    }

    /// Puts the children of an entry of `depth` up next, less those that were seen before.
    ///
    /// # Errors
    /// `ResourceExhausted` when it gets too deep or too wide.
    pub fn push(&mut self, children: Vec<Entry>, depth: usize) -> Result<()> {
        if !children.is_empty() && depth + 1 >= MAX_DEPTH {
            return Err(Error::resource_exhausted(format_args!(
                "image is nested deeper than {MAX_DEPTH} documents"
            )));
        }
        for child in children.into_iter().rev() {
            if self.seen.insert(child.descriptor.digest.clone()) {
                self.stack.push((child, depth + 1));
            }
        }
        if self.seen.len() > MAX_NODES {
            return Err(Error::resource_exhausted(format_args!(
                "image has more than {MAX_NODES} blobs"
            )));
        }
        Ok(())
    }
}

/// Reads an index.
///
/// # Errors
/// Those of [`read_blob`] and [`Index::parse`].
pub async fn read_index(store: &dyn ContentStore, descriptor: &Descriptor) -> Result<Index> {
    let text = read_blob(store, descriptor, MAX_MANIFEST).await?;
    Index::parse(&text, &descriptor.media_type).ctx_with(|| format!("index {}", descriptor.digest))
}

/// Reads a manifest.
///
/// # Errors
/// Those of [`read_blob`] and [`Manifest::parse`].
pub async fn read_manifest(store: &dyn ContentStore, descriptor: &Descriptor) -> Result<Manifest> {
    let text = read_blob(store, descriptor, MAX_MANIFEST).await?;
    Manifest::parse(&text, &descriptor.media_type)
        .ctx_with(|| format!("manifest {}", descriptor.digest))
}

/// Reads an image config.
///
/// # Errors
/// Those of [`read_blob`] and [`Config::parse`].
pub async fn read_config(store: &dyn ContentStore, descriptor: &Descriptor) -> Result<Config> {
    let text = read_blob(store, descriptor, MAX_CONFIG).await?;
    Config::parse(&text).ctx_with(|| format!("config {}", descriptor.digest))
}

/// The children of a blob: a manifest's config and layers, an index's manifests, nothing otherwise.
///
/// # Errors
/// Those of [`read_index`] and [`read_manifest`].
pub async fn children(store: &dyn ContentStore, descriptor: &Descriptor) -> Result<Vec<Entry>> {
    if is_index(&descriptor.media_type) {
        return Ok(read_index(store, descriptor).await?.manifests);
    }
    if is_manifest(&descriptor.media_type) {
        let manifest = read_manifest(store, descriptor).await?;
        let all = std::iter::once(manifest.config).chain(manifest.layers);
        return Ok(all.map(Entry::from).collect());
    }
    Ok(Vec::new())
}

/// The manifests below `root` that are wanted, best first for each platform, with their descriptors.
/// A manifest that an index lists without a platform is judged by its config.
///
/// # Errors
/// `NotFound` when a document is missing; those of [`read_index`] and [`read_manifest`].
pub async fn manifests(
    store: &dyn ContentStore,
    root: &Descriptor,
    wanted: &PlatformSet,
) -> Result<Vec<(Descriptor, Manifest)>> {
    let mut found = Vec::new();
    let mut frontier = Frontier::new(vec![root.clone().into()]);
    while let Some((entry, depth)) = frontier.take() {
        let descriptor = entry.descriptor;
        if is_index(&descriptor.media_type) {
            let index = read_index(store, &descriptor).await?;
            let platforms: Vec<_> = index.manifests.iter().map(|m| m.platform.clone()).collect();
            let chosen = wanted.choose(&platforms);
            let next = chosen
                .into_iter()
                .filter_map(|at| index.manifests.get(at).cloned());
            frontier.push(next.collect(), depth)?;
        } else if is_manifest(&descriptor.media_type) {
            let manifest = read_manifest(store, &descriptor).await?;
            if depth > 0 && entry.platform.is_none() && is_config(&manifest.config.media_type) {
                let config = read_config(store, &manifest.config).await?;
                if !wanted.matches(Some(&config.platform)) {
                    continue;
                }
            }
            found.push((descriptor, manifest));
        } else if depth == 0 {
            return Err(Error::not_found(format_args!(
                "unexpected media type {} for {}",
                descriptor.media_type, descriptor.digest
            )));
        }
    }
    Ok(found)
}

/// The manifest of the image `root` for the wanted platform.
///
/// # Errors
/// `NotFound` when there is none; else as [`manifests`].
pub async fn find_manifest(
    store: &dyn ContentStore,
    root: &Descriptor,
    wanted: &PlatformSet,
) -> Result<(Descriptor, Manifest)> {
    let first = manifests(store, root, wanted).await?.into_iter().next();
    first.ok_or_else(|| {
        Error::not_found(format_args!(
            "no match for platform in manifest {}",
            root.digest
        ))
    })
}

/// The config of the image `root` for the wanted platform.
///
/// # Errors
/// As [`find_manifest`]; `InvalidArgument` when its config is not an image config.
pub async fn config(
    store: &dyn ContentStore,
    root: &Descriptor,
    wanted: &PlatformSet,
) -> Result<Config> {
    let (_, manifest) = find_manifest(store, root, wanted).await?;
    if !is_config(&manifest.config.media_type) {
        return Err(Error::invalid_argument(format_args!(
            "unknown image config media type {}",
            manifest.config.media_type
        )));
    }
    read_config(store, &manifest.config).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testsuite::{Store, image};
    use types::{Code, media_type as mt};

    #[tokio::test]
    async fn the_manifest_for_the_platform_is_found() {
        let store = Store::default();
        let arm = image(&store, "linux/arm64", &[b"a"]).await;
        let amd = image(&store, "linux/amd64", &[b"b"]).await;
        let entries = [
            (&arm, Some("linux/arm64")),
            (&amd, Some("linux/amd64")),
            (&arm, Some("unknown")),
        ];
        let root = store.index(&entries).await;
        for (wanted, want) in [("linux/arm64", &arm), ("linux/amd64", &amd)] {
            let wanted = PlatformSet::Only(vec![wanted.parse().unwrap()]);
            assert_eq!(
                find_manifest(&store, &root, &wanted).await.unwrap().0,
                *want
            );
            let platform = config(&store, &root, &wanted).await.unwrap().platform;
            assert!(wanted.matches(Some(&platform)));
        }
        let none = PlatformSet::Only(vec!["linux/s390x".parse().unwrap()]);
        assert!(
            find_manifest(&store, &root, &none)
                .await
                .unwrap_err()
                .is_not_found()
        );
        assert_eq!(
            manifests(&store, &root, &PlatformSet::All)
                .await
                .unwrap()
                .len(),
            2
        );
        // Without a platform in the index the config decides.
        let root = store.index(&[(&arm, None)]).await;
        assert!(
            find_manifest(&store, &root, &none)
                .await
                .unwrap_err()
                .is_not_found()
        );
        // A bare manifest is what it is.
        assert_eq!(find_manifest(&store, &arm, &none).await.unwrap().0, arm);
    }

    #[tokio::test]
    async fn nesting_has_a_bottom() {
        let store = Store::default();
        let mut root = image(&store, "linux/amd64", &[b"x"]).await;
        for _ in 0..40 {
            root = store.index(&[(&root, None)]).await;
        }
        let error = manifests(&store, &root, &PlatformSet::All)
            .await
            .unwrap_err();
        assert!(error.is(Code::ResourceExhausted), "{error}");
    }

    #[tokio::test]
    async fn sizes_are_checked_before_and_after_opening() {
        let store = Store::default();
        let root = image(&store, "linux/amd64", &[b"x"]).await;
        let wrong = Descriptor {
            size: root.size + 1,
            ..root.clone()
        };
        let error = read_manifest(&store, &wrong).await.unwrap_err();
        assert!(error.is(Code::FailedPrecondition), "{error}");
        let huge = Descriptor {
            size: MAX_MANIFEST + 1,
            ..root.clone()
        };
        let error = read_manifest(&store, &huge).await.unwrap_err();
        assert!(error.is(Code::ResourceExhausted), "{error}");
        let text = Descriptor {
            media_type: mt::OCI_CONFIG.into(),
            ..root
        };
        assert!(
            find_manifest(&store, &text, &PlatformSet::All)
                .await
                .unwrap_err()
                .is_not_found()
        );
    }
}
