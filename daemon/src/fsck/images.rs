//! What images are made of: their documents name blobs, and those are there.
//!
//! Invariant: only what somebody has wanted is missed. Of an index, the manifests of other platforms need
//! not be there, nor what is below one that came without any of its layers beside one that has some; and
//! layers that the labels of their manifest do not keep were given up on purpose, once they were unpacked.

use std::collections::HashMap;

use ::images::{Frontier, is_index, is_manifest, is_non_distributable, read_index, read_manifest};
use content::ContentStore;
use types::{
    Descriptor, Digest, Fault, Filter, Labels, Namespace, Repair, Report, Result, Scope, gc_label,
};

use super::Checker;

/// What to do about a piece that is missing.
const PULL: &str = "pull the image again";

/// What is wrong with an image, without its name.
type Faults = Vec<(Fault, String)>;

impl Checker {
    /// Names the missing pieces of all images.
    pub(super) async fn images(&self, report: &mut Report) -> Result<()> {
        for namespace in self.metadata.namespaces().list().await? {
            self.images_of(&namespace.name, report).await?;
        }
        Ok(())
    }

    async fn images_of(&self, namespace: &Namespace, report: &mut Report) -> Result<()> {
        let scope = Scope::new(namespace.clone());
        let images = self.metadata.images(&scope);
        let store = self.metadata.scoped(&scope).content();
        let mut names = Vec::new();
        images.visit(&Filter::default(), &mut |image| {
            names.push(image.name.to_owned());
            true
        })?;
        // One image often has several names.
        let mut known = HashMap::<Digest, Faults>::new();
        for name in names {
            // Removed since, or its record cannot be read, which is a finding of its own.
            let Ok(image) = images.get(&name).await else {
                continue;
            };
            let target = image.target;
            if !known.contains_key(&target.digest) {
                let found = faults(&*store, &target).await?;
                known.insert(target.digest.clone(), found);
            }
            let found = known.get(&target.digest).into_iter().flatten();
            // Whoever has removed it meanwhile has removed its pieces, too.
            let stays = images.get(&name).await;
            if !stays.is_ok_and(|image| image.target.digest == target.digest) {
                continue;
            }
            for (fault, text) in found {
                let object = format!("image {namespace}/{name}");
                report.note(*fault, object, text.clone(), Repair::Impossible);
            }
        }
        Ok(())
    }
}

/// A manifest that is there.
struct Part {
    faults: Faults,
    /// It has layers, and one of them is there.
    is_fetched: bool,
}

async fn faults(store: &dyn ContentStore, root: &Descriptor) -> Result<Faults> {
    let mut faults = Faults::new();
    let mut parts = Vec::new();
    let mut frontier = Frontier::new(vec![root.clone().into()]);
    while let Some((entry, depth)) = frontier.take() {
        let descriptor = entry.descriptor;
        // The target's absence is a finding of its own; the others are of other platforms, it may be.
        let Some(labels) = labels(store, &descriptor.digest).await? else {
            continue;
        };
        let told = if is_index(&descriptor.media_type) {
            match read_index(store, &descriptor).await {
                Ok(index) => frontier.push(index.manifests, depth),
                Err(error) => Err(error),
            }
        } else if is_manifest(&descriptor.media_type) {
            let part = part(store, &descriptor, &labels).await;
            part.map(|part| parts.push(part))
        } else {
            Ok(())
        };
        if let Err(error) = told {
            let text = format!("its document {} cannot be read: {error}", descriptor.digest);
            faults.push((Fault::Damaged, text));
        }
    }
    let is_index = is_index(&root.media_type);
    if is_index
        && parts.is_empty()
        && faults.is_empty()
        && labels(store, &root.digest).await?.is_some()
    {
        let text = format!("no manifest of its index {} is there; {PULL}", root.digest);
        faults.push((Fault::Dangling, text));
    }
    let some = parts.iter().any(|part| part.is_fetched);
    let wanted = parts.into_iter().filter(|part| part.is_fetched || !some);
    faults.extend(wanted.flat_map(|part| part.faults));
    Ok(faults)
}

/// The labels of a blob, if it is there.
async fn labels(store: &dyn ContentStore, digest: &Digest) -> Result<Option<Labels>> {
    match store.info(digest).await {
        Ok(info) => Ok(Some(info.labels)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

async fn part(store: &dyn ContentStore, descriptor: &Descriptor, labels: &Labels) -> Result<Part> {
    let manifest = read_manifest(store, descriptor).await?;
    let mut found = Part {
        faults: Faults::new(),
        is_fetched: false,
    };
    let miss = |what: &str, digest: &Digest| {
        let text = format!("its {what} {digest} is not there; {PULL}");
        (Fault::Dangling, text)
    };
    if store
        .info(&manifest.config.digest)
        .await
        .is_err_and(|e| e.is_not_found())
    {
        found.faults.push(miss("config", &manifest.config.digest));
    }
    for layer in &manifest.layers {
        match store.info(&layer.digest).await {
            Ok(_) => found.is_fetched = true,
            Err(error) if error.is_not_found() => {
                let is_given_up = !is_kept(labels, &layer.digest);
                if !is_given_up && !is_non_distributable(&layer.media_type) {
                    found.faults.push(miss("layer", &layer.digest));
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// True for a child that the labels of its document keep, or when they keep none.
fn is_kept(labels: &Labels, digest: &Digest) -> bool {
    let mut kept = labels
        .iter()
        .filter(|(key, _)| key.starts_with(gc_label::REF_CONTENT))
        .map(|(_, value)| value)
        .peekable();
    kept.peek().is_none() || kept.any(|value| value == digest.as_str())
}

#[cfg(test)]
mod tests;
