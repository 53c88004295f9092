//! Layers that were found damaged: unpacked once more, in the place of what is left of them.
//!
//! Invariant: a layer is replaced by a whole one or stays as it is; what stands on it stays where it is.

use std::collections::BTreeSet;

use images::PlatformSet;
use types::{Context as _, Descriptor, Digest, Error, Labels, Result, SnapshotKey};

use crate::Deps;
use crate::extract::{Extraction, apply, extraction_key};
use crate::unpack::{is_image, key_of};

/// Unpacks those layers of the image `root` again that are among `damaged`, the lowest first, and takes
/// them out of it. Their blobs are in the store.
///
/// # Errors
/// `NotImplemented` when the snapshotter cannot replace a layer; those of [`crate::unpack()`].
pub async fn renew(
    deps: &Deps,
    root: &Descriptor,
    damaged: &mut BTreeSet<SnapshotKey>,
) -> Result<()> {
    if !deps.snapshotter.renews() {
        // Not after a layer was unpacked in vain.
        return Err(Error::not_implemented("replace a damaged layer"));
    }
    let host = PlatformSet::default();
    let (_, manifest) = images::find_manifest(deps.content.as_ref(), root, &host).await?;
    if !is_image(&manifest) {
        return Ok(());
    }
    let config = images::read_config(deps.content.as_ref(), &manifest.config).await?;
    let chains = images::chain_ids(&config.diff_ids)?;
    let mut below = None;
    for ((layer, diff_id), chain) in manifest.layers.iter().zip(&config.diff_ids).zip(&chains) {
        let name = key_of(chain)?;
        if damaged.contains(&name) {
            let made = replace(deps, layer, diff_id, chain, below).await;
            made.ctx_with(|| format!("renew layer {diff_id}"))?;
            damaged.remove(&name);
        }
        below = Some(chain);
    }
    Ok(())
}

async fn replace(
    deps: &Deps,
    layer: &Descriptor,
    diff_id: &Digest,
    chain: &Digest,
    below: Option<&Digest>,
) -> Result<()> {
    let parent = below.map(key_of).transpose()?;
    let extraction = Extraction::new(&deps.snapshotter, extraction_key(chain)?);
    // Without a label that says what it is for: the answer would be that this is there.
    let key = &extraction.key;
    let mounts = deps
        .snapshotter
        .prepare(key, parent.as_ref(), Labels::new());
    let mounts = match mounts.await {
        Ok(mounts) => mounts,
        Err(error) => {
            extraction.keep();
            return Err(error);
        }
    };
    let applied = apply(deps, layer, diff_id, &mounts, None).await;
    let done = match applied {
        Ok(()) => {
            deps.snapshotter
                .renew(&key_of(chain)?, &extraction.key)
                .await
        }
        Err(error) => Err(error),
    };
    if done.is_ok() {
        extraction.keep();
    } else {
        extraction.remove().await;
    }
    done
}

#[cfg(test)]
mod tests {
    use images::testsuite::image;
    use types::Code;

    use super::*;
    use crate::fake::World;

    #[tokio::test]
    async fn nothing_is_unpacked_for_a_snapshotter_that_cannot_replace_a_layer() {
        let world = World::new();
        let layers: [&[u8]; 2] = [b"one", b"two"];
        let root = image(&world.content, "linux/amd64", &layers).await;
        let lowest = key_of(&images::digest_of(layers[0]).unwrap()).unwrap();
        let mut damaged = BTreeSet::from([lowest.clone()]);
        let error = renew(&world.deps(), &root, &mut damaged).await.unwrap_err();
        assert!(error.is(Code::NotImplemented), "{error}");
        assert!(world.applier.applied.lock().unwrap().is_empty());
        assert!(damaged.contains(&lowest));
        assert!(world.chains().is_empty());
    }
}
