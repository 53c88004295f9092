//! The labels by which the collector finds the children of a document.

use std::collections::BTreeMap;

use content::ContentStore;
use types::{Digest, Fields, Labels, Result, gc_label};

use crate::media::{is_config, is_layer, is_manifest};
use crate::model::Entry;

/// The labels that keep `children` alive as long as their parent is.
///
/// Parity: core/images/handlers.go: `gc.ref.content.config`, `.l.<n>`, `.m.<n>`, `.<n>`.
#[must_use]
pub fn child_labels(children: &[Entry]) -> Labels {
    let mut used: BTreeMap<&str, usize> = BTreeMap::new();
    let mut labels = Labels::new();
    for child in children {
        let media_type = child.descriptor.media_type.as_str();
        let kind = match media_type {
            t if is_config(t) => ".config",
            t if is_manifest(t) => ".m.",
            t if is_layer(t) => ".l.",
            _ => ".",
        };
        let count = used.entry(kind).or_default();
        let key = if kind.ends_with('.') || *count > 0 {
            format!("{}{kind}{count}", gc_label::REF_CONTENT)
        } else {
            format!("{}{kind}", gc_label::REF_CONTENT)
        };
        *count += 1;
        labels.insert(key, child.descriptor.digest.to_string());
    }
    labels
}

/// Sets these labels on `parent`, leaving its other labels alone.
///
/// # Errors
/// Those of the store.
pub async fn label_children(
    store: &dyn ContentStore,
    parent: &Digest,
    children: &[Entry],
) -> Result<()> {
    let labels = child_labels(children);
    if labels.is_empty() {
        return Ok(());
    }
    let fields = Fields::new(labels.keys().map(|key| format!("labels.{key}")).collect());
    store.update(parent, labels, &fields).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::{Descriptor, media_type as mt};

    #[test]
    fn children_are_numbered_by_kind() {
        let types = [
            mt::OCI_CONFIG,
            mt::OCI_LAYER_GZIP,
            mt::OCI_LAYER,
            mt::OCI_MANIFEST,
            mt::OCI_INDEX,
            "application/vnd.in-toto+json",
            mt::DOCKER_CONFIG,
        ];
        let children: Vec<Entry> = (0..)
            .zip(types)
            .map(|(n, media_type)| {
                Entry::from(Descriptor {
                    media_type: media_type.into(),
                    digest: format!("sha256:{}", n.to_string().repeat(64))
                        .parse()
                        .unwrap(),
                    size: 1,
                    annotations: Labels::new(),
                })
            })
            .collect();
        let labels = child_labels(&children);
        let got: Vec<(&str, &str)> = labels
            .iter()
            .map(|(k, v)| {
                (
                    k.trim_start_matches("containerd.io/gc.ref.content"),
                    &v[7..8],
                )
            })
            .collect();
        let want = [
            (".0", "4"),
            (".1", "5"),
            (".config", "0"),
            (".config1", "6"),
            (".l.0", "1"),
            (".l.1", "2"),
            (".m.0", "3"),
        ];
        assert_eq!(got, want);
    }

    #[tokio::test]
    async fn labels_land_on_the_parent_beside_its_others() {
        let store = crate::testsuite::Store::default();
        let root = crate::testsuite::image(&store, "linux/amd64", &[b"x"]).await;
        let own = Labels::new().with("mine", "1");
        let fields = Fields::new(vec!["labels.mine".into()]);
        store.update(&root.digest, own, &fields).await.unwrap();
        let children = crate::children(&store, &root).await.unwrap();
        label_children(&store, &root.digest, &children)
            .await
            .unwrap();
        let labels = store.info(&root.digest).await.unwrap().labels;
        assert_eq!(labels, child_labels(&children).with("mine", "1"));
        label_children(&store, &root.digest, &[]).await.unwrap();
    }
}
