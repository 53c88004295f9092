//! Docker archives: `manifest.json` names configs and layers by file; manifests are made here.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use compression::Compression;
use content::ContentStore;
use serde::Deserialize;
use serde_json::{Value, json};
use types::{Context as _, Descriptor, Digest, Error, Labels, Result, media_type as mt};

use super::found::{File, Found};
use crate::blob::put_blob;
use crate::convert::recode;
use crate::model::Entry;
use crate::name::{ANNOTATION_IMAGE_NAME, ANNOTATION_REF_NAME, normalize, tag_of};
use crate::walk::read_config;

/// Most layers of an image: overlayfs stops at 500, and a manifest must stay below its limit.
const MAX_LAYERS: usize = 16_384;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

/// Makes manifests for the images of `manifest.json` and the index of them all. Plain layers are
/// compressed when that is wanted.
pub(super) async fn index(
    manifest: &[u8],
    found: &Found,
    store: &Arc<dyn ContentStore>,
    compress: Option<Compression>,
) -> Result<(Vec<Entry>, Bytes)> {
    let items: Vec<Item> = crate::model::json(manifest, "manifest.json")?;
    let mut layers = Layers {
        store,
        compress,
        made: HashMap::new(),
    };
    let mut images = Vec::new();
    for item in items {
        let entry = image(&item, found, &mut layers).await?;
        let tags = item.repo_tags.unwrap_or_default();
        if tags.is_empty() {
            images.push(entry);
            continue;
        }
        for tag in tags {
            let mut named = entry.clone();
            let name = normalize(&tag)?;
            let annotations = &mut named.descriptor.annotations;
            annotations.set(ANNOTATION_REF_NAME, tag_of(&name));
            annotations.set(ANNOTATION_IMAGE_NAME, &name);
            images.push(named);
        }
    }
    let manifests: Vec<Value> = images.iter().map(entry_json).collect();
    let document = json!({
        "schemaVersion": 2,
        "mediaType": mt::OCI_INDEX,
        "manifests": manifests,
    });
    Ok((images, document.to_string().into()))
}

/// Layers of the archive as the images get them.
struct Layers<'a> {
    store: &'a Arc<dyn ContentStore>,
    compress: Option<Compression>,
    /// Compressed ones, by their digest before: images share them.
    made: HashMap<Digest, Descriptor>,
}

impl Layers<'_> {
    async fn of(&mut self, file: &File, id: &Digest) -> Result<Descriptor> {
        let plain = descriptor(file, file.compression.of_docker());
        let (Compression::Plain, Some(wanted)) = (file.compression, self.compress) else {
            return Ok(plain);
        };
        if let Some(known) = self.made.get(&file.digest) {
            return Ok(known.clone());
        }
        let made = recode(self.store, &plain, Some(id), wanted).await;
        let mut made = made.ctx_with(|| format!("compress layer {}", file.digest))?;
        made.media_type = wanted.of_docker().into();
        self.made.insert(file.digest.clone(), made.clone());
        Ok(made)
    }
}

async fn image(item: &Item, found: &Found, all: &mut Layers<'_>) -> Result<Entry> {
    let store = all.store.as_ref();
    let names = item.layers.as_deref().unwrap_or_default();
    if names.len() > MAX_LAYERS {
        return Err(Error::resource_exhausted(format_args!(
            "image has more than {MAX_LAYERS} layers"
        )));
    }
    let config = descriptor(found.config(&item.config)?, mt::DOCKER_CONFIG);
    let parsed = read_config(store, &config).await.ctx("image config")?;
    if parsed.diff_ids.len() != names.len() {
        return Err(Error::invalid_argument(format_args!(
            "image config {:?} has {} diff ids for {} layers",
            item.config,
            parsed.diff_ids.len(),
            names.len()
        )));
    }
    let mut layers = Vec::with_capacity(names.len());
    for (name, id) in names.iter().zip(&parsed.diff_ids) {
        let layer = all.of(found.file(name, "layer")?, id).await?;
        layers.push(descriptor_json(&layer));
    }
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": mt::DOCKER_MANIFEST,
        "config": descriptor_json(&config),
        "layers": layers,
    });
    let text: Bytes = manifest.to_string().into();
    let size = text.len() as u64;
    let digest = put_blob(store, text, Labels::new()).await?;
    let platform = (!parsed.platform.os.is_empty()).then_some(parsed.platform);
    Ok(Entry {
        descriptor: Descriptor {
            media_type: mt::DOCKER_MANIFEST.into(),
            digest,
            size,
            annotations: Labels::new(),
        },
        platform,
    })
}

fn descriptor(file: &File, media_type: &str) -> Descriptor {
    Descriptor {
        media_type: media_type.into(),
        digest: file.digest.clone(),
        size: file.size,
        annotations: Labels::new(),
    }
}

pub(crate) fn descriptor_json(descriptor: &Descriptor) -> Value {
    let mut value = json!({
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest.as_str(),
        "size": descriptor.size,
    });
    if !descriptor.annotations.is_empty() {
        let all = descriptor.annotations.iter();
        value["annotations"] = all
            .map(|(k, v)| (k.clone(), Value::from(v.as_str())))
            .collect();
    }
    value
}

fn entry_json(entry: &Entry) -> Value {
    let mut value = descriptor_json(&entry.descriptor);
    if let Some(platform) = &entry.platform {
        value["platform"] = json!({ "architecture": platform.architecture, "os": platform.os });
        if !platform.variant.is_empty() {
            value["platform"]["variant"] = platform.variant.clone().into();
        }
    }
    value
}
