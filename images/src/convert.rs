//! Conversion: the same image with other compression or other media types.
//!
//! Invariant: what is unpacked stays the same, byte for byte, so configs and chain ids do too; a layer
//! whose decompressed digest is not what its config says is refused.
//!
//! ```text
//! index -> manifest -> config, layer (recode)
//! ```

mod recode;

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use compression::Compression;
use content::ContentStore;
use serde_json::{Value, json};
use types::{Context as _, Descriptor, Digest, Error, Labels, Result, media_type as mt};

use crate::archive::descriptor_json;
use crate::blob::{put_blob, read_blob};
use crate::media::{is_config, is_docker, is_index, is_layer, is_manifest, is_non_distributable};
use crate::model::{Entry, json as parse};
use crate::platforms::PlatformSet;
use crate::walk::{read_config, read_manifest};
use crate::{MAX_CONFIG, MAX_MANIFEST, label_children};

pub(crate) use recode::recode;

/// Deepest nesting of indexes.
const MAX_DEPTH: usize = 8;

/// Whose media types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Those of the OCI.
    Oci,
    /// Docker's.
    Docker,
}

/// How to convert.
#[derive(Clone, Debug, Default)]
pub struct ConvertOpts {
    /// Compression of layers; `None`: as it is.
    pub compress: Option<Compression>,
    /// Media types; `None`: as they are.
    pub family: Option<Family>,
    /// Which platforms of an index the new one has; this host's by default.
    pub platforms: PlatformSet,
}

/// Converts the image `target` and returns the new one's descriptor, the old one's when nothing
/// changes. Its blobs are in the store; the caller holds a lease and makes the record.
///
/// # Errors
/// `NotFound` for a blob or when no platform is left; `InvalidArgument` for a damaged layer or document;
/// `ResourceExhausted` for a layer that holds too much for its length.
pub async fn convert(
    store: &Arc<dyn ContentStore>,
    target: &Descriptor,
    opts: &ConvertOpts,
) -> Result<Descriptor> {
    let mut convert = Convert {
        store,
        opts,
        made: HashMap::new(),
    };
    Box::pin(convert.document(target, 0)).await
}

struct Convert<'a> {
    store: &'a Arc<dyn ContentStore>,
    opts: &'a ConvertOpts,
    /// Converted layers and documents, by the digest of the old one: images share them.
    made: HashMap<Digest, Descriptor>,
}

impl Convert<'_> {
    async fn document(&mut self, old: &Descriptor, depth: usize) -> Result<Descriptor> {
        // Or an index of indexes of indexes would take as long as there are ways through it.
        if let Some(known) = self.made.get(&old.digest) {
            return Ok(known.clone());
        }
        let new = if is_index(&old.media_type) && depth < MAX_DEPTH {
            self.index(old, depth).await?
        } else if is_manifest(&old.media_type) {
            self.manifest(old).await?
        } else {
            return Err(Error::invalid_argument(format_args!(
                "cannot convert {} of type {:?}",
                old.digest, old.media_type
            )));
        };
        self.made.insert(old.digest.clone(), new.clone());
        Ok(new)
    }

    async fn index(&mut self, old: &Descriptor, depth: usize) -> Result<Descriptor> {
        let text = read_blob(self.store.as_ref(), old, MAX_MANIFEST).await?;
        let index = crate::Index::parse(&text, &old.media_type)?;
        let named: Vec<_> = index.manifests.iter().map(|m| m.platform.clone()).collect();
        let chosen = self.opts.platforms.choose(&named);
        let mut document: Value = parse(&text, "index")?;
        let entries = document["manifests"].take();
        let (mut kept, mut children) = (Vec::new(), Vec::new());
        for at in chosen {
            let Some(entry) = index.manifests.get(at) else {
                continue;
            };
            let new = Box::pin(self.document(&entry.descriptor, depth + 1)).await?;
            let mut value = entries[at].clone();
            point(&mut value, &new);
            kept.push(value);
            children.push(Entry {
                descriptor: new,
                platform: entry.platform.clone(),
            });
        }
        if kept.is_empty() {
            return Err(Error::not_found(format_args!(
                "no match for platform in manifest {}",
                old.digest
            )));
        }
        document["manifests"] = kept.into();
        self.put(old, document, &children).await
    }

    async fn manifest(&mut self, old: &Descriptor) -> Result<Descriptor> {
        let store = self.store.as_ref();
        let manifest = read_manifest(store, old).await?;
        let text = read_blob(store, old, MAX_MANIFEST).await?;
        let mut document: Value = parse(&text, "manifest")?;
        let ids = if is_config(&manifest.config.media_type) {
            read_config(store, &manifest.config).await?.diff_ids
        } else {
            Vec::new()
        };
        let mut children = Vec::new();
        if manifest.config.size > MAX_CONFIG {
            return Err(Error::resource_exhausted("image config is too large"));
        }
        let config = Descriptor {
            media_type: self.media_type(&manifest.config.media_type, None),
            ..manifest.config.clone()
        };
        point(&mut document["config"], &config);
        children.push(Entry::from(config));
        for (at, layer) in manifest.layers.iter().enumerate() {
            let new = self
                .layer(layer, ids.get(at))
                .await
                .ctx_with(|| format!("convert layer {}", layer.digest))?;
            point(&mut document["layers"][at], &new);
            children.push(new.into());
        }
        self.put(old, document, &children).await
    }

    /// Stores a changed document with the labels that keep its children.
    async fn put(
        &self,
        old: &Descriptor,
        mut document: Value,
        children: &[Entry],
    ) -> Result<Descriptor> {
        let media_type = self.media_type(&old.media_type, None);
        if document.get("mediaType").is_some() || is_docker(&media_type) {
            document["mediaType"] = json!(media_type);
        }
        let store = self.store.as_ref();
        let text = read_blob(store, old, MAX_MANIFEST).await?;
        let before: Value = parse(&text, "document")?;
        if before == document {
            return Ok(old.clone());
        }
        let text: Bytes = document.to_string().into();
        let size = text.len() as u64;
        let digest = put_blob(store, text, Labels::new()).await?;
        label_children(store, &digest, children).await?;
        Ok(Descriptor {
            media_type,
            digest,
            size,
            annotations: old.annotations.clone(),
        })
    }

    async fn layer(&mut self, old: &Descriptor, id: Option<&Digest>) -> Result<Descriptor> {
        let media_type = self.media_type(&old.media_type, self.opts.compress);
        let wanted = self.opts.compress.filter(|wanted| {
            is_layer(&old.media_type)
                && !is_non_distributable(&old.media_type)
                // It is mounted as it is: packed, it would be another thing.
                && !mt::is_erofs(&old.media_type)
                && Compression::of_layers(&old.media_type) != Some(*wanted)
        });
        let Some(wanted) = wanted else {
            return Ok(Descriptor {
                media_type,
                ..old.clone()
            });
        };
        let known = self.made.get(&old.digest);
        let mut new = match known {
            Some(known) => known.clone(),
            None => recode(self.store, old, id, wanted).await?,
        };
        self.made.insert(old.digest.clone(), new.clone());
        new.media_type = media_type;
        new.annotations = old.annotations.clone();
        Ok(new)
    }

    /// The media type of what had `old`, of the wanted family and compression.
    fn media_type(&self, old: &str, compress: Option<Compression>) -> String {
        let family = self.opts.family.unwrap_or(if is_docker(old) {
            Family::Docker
        } else {
            Family::Oci
        });
        let docker = family == Family::Docker;
        let pick =
            |of_docker: &str, of_oci: &str| (if docker { of_docker } else { of_oci }).to_owned();
        if is_index(old) {
            return pick(mt::DOCKER_INDEX, mt::OCI_INDEX);
        }
        if is_manifest(old) {
            return pick(mt::DOCKER_MANIFEST, mt::OCI_MANIFEST);
        }
        if is_config(old) {
            return pick(mt::DOCKER_CONFIG, mt::OCI_CONFIG);
        }
        match Compression::of_layers(old) {
            Some(now) => {
                let new = compress.unwrap_or(now);
                pick(new.of_docker(), new.of_oci())
            }
            None => old.to_owned(),
        }
    }
}

/// Makes a descriptor in a document point at another blob, leaving what else it says.
fn point(value: &mut Value, new: &Descriptor) {
    let fresh = descriptor_json(new);
    for key in ["mediaType", "digest", "size"] {
        value[key] = fresh[key].clone();
    }
}

#[cfg(test)]
mod tests;
