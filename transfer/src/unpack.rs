//! Unpacking: one committed snapshot per layer, named by chain id.
//!
//! ```text
//! layer n: prepare "extract-<random> <chain n>" on chain n-1 -> apply -> diff id right? -> commit chain n
//! ```
//! Invariant: a snapshot named by a chain id holds exactly those layers; an extraction that fails or
//! is abandoned is removed.

use std::sync::Arc;
use std::time::SystemTime;

use diff::ApplyOpts;
use images::{Config, Manifest, PlatformSet, chain_ids};
use snapshotters::Snapshotter;
use tokio::sync::oneshot;
use types::{
    Context as _, Descriptor, Digest, Error, Fields, Labels, Mount, Result, SnapshotKey,
    SnapshotKind, gc_label, label,
};

use crate::Deps;
use crate::progress::{OnProgress, Status};

/// Tries for a key that nobody else has.
const ATTEMPTS: usize = 3;

/// Unpacks the image `root` for the best of the wanted platforms and returns the chain id, which is
/// the name of its top snapshot; `None` when it has no layers to unpack.
///
/// # Errors
/// Those of [`images::find_manifest`] and [`unpack`].
pub async fn unpack_image(
    deps: &Deps,
    root: &Descriptor,
    wanted: &PlatformSet,
    on: &OnProgress,
) -> Result<Option<Digest>> {
    let (_, manifest) = images::find_manifest(deps.content.as_ref(), root, wanted).await?;
    unpack(deps, &manifest, on).await
}

/// Unpacks the layers of `manifest`, whose blobs are in the store. Chains that are there already are
/// not made again.
///
/// # Errors
/// `InvalidArgument` when layers and config do not belong together or a layer is damaged; those of
/// the stores.
pub async fn unpack(deps: &Deps, manifest: &Manifest, on: &OnProgress) -> Result<Option<Digest>> {
    if !is_image(manifest) {
        return Ok(None);
    }
    let config = images::read_config(deps.content.as_ref(), &manifest.config).await?;
    unpack_arriving(deps, manifest, &config, on, Vec::new()).await
}

/// True when there is something to unpack: artifacts use manifests too.
pub(crate) fn is_image(manifest: &Manifest) -> bool {
    images::is_config(&manifest.config.media_type)
        && manifest
            .layers
            .iter()
            .all(|layer| images::is_layer(&layer.media_type))
}

/// As [`unpack`], waiting for each layer's blob; an empty list: all are there.
pub(crate) async fn unpack_arriving(
    deps: &Deps,
    manifest: &Manifest,
    config: &Config,
    on: &OnProgress,
    arrivals: Vec<oneshot::Receiver<()>>,
) -> Result<Option<Digest>> {
    if manifest.layers.len() != config.diff_ids.len() {
        return Err(Error::invalid_argument(format_args!(
            "number of layers and diffIDs don't match: {} != {}",
            manifest.layers.len(),
            config.diff_ids.len()
        )));
    }
    let chains = chain_ids(&config.diff_ids)?;
    let mut arrivals = arrivals.into_iter();
    let mut there = existing(deps, &chains).await?;
    for (at, (layer, diff_id)) in manifest.layers.iter().zip(&config.diff_ids).enumerate() {
        if let Some(arrival) = arrivals.next() {
            arrival
                .await
                .map_err(|_| Error::cancelled(format_args!("fetch {}", layer.digest)))?;
        }
        let Some(chain) = chains.get(at) else {
            break;
        };
        let key = images::ref_key(layer);
        if at >= there {
            let below = at.checked_sub(1).and_then(|below| chains.get(below));
            on.tell(&key, Status::Extracting, 0, layer.size);
            let made = extract(deps, layer, diff_id, chain, below).await;
            made.ctx_with(|| format!("failed to extract layer {diff_id}"))?;
            there = at + 1;
        }
        on.tell(&key, Status::Unpacked, layer.size, layer.size);
    }
    if let Some(top) = chains.last() {
        let name = format!("{}{}", gc_label::REF_SNAPSHOT, deps.snapshotter_name);
        let fields = Fields::new(vec![format!("labels.{name}")]);
        let labels = Labels::new().with(name, top.as_str());
        deps.content
            .update(&manifest.config.digest, labels, &fields)
            .await?;
    }
    Ok(chains.into_iter().next_back())
}

/// How many of the chains are there already.
async fn existing(deps: &Deps, chains: &[Digest]) -> Result<usize> {
    for (at, chain) in chains.iter().enumerate().rev() {
        if committed(deps, chain).await? {
            return Ok(at + 1);
        }
    }
    Ok(0)
}

async fn committed(deps: &Deps, chain: &Digest) -> Result<bool> {
    let info = deps.snapshotter.stat(&key_of(chain)?).await.absent_ok()?;
    Ok(info.is_some_and(|info| info.kind == SnapshotKind::Committed))
}

fn key_of(chain: &Digest) -> Result<SnapshotKey> {
    chain.as_str().parse()
}

/// Makes the snapshot `chain` from `layer` on top of `below`.
async fn extract(
    deps: &Deps,
    layer: &Descriptor,
    diff_id: &Digest,
    chain: &Digest,
    below: Option<&Digest>,
) -> Result<()> {
    let labels = layer
        .annotations
        .for_snapshotter()
        .with(label::SNAPSHOT_REF, chain.as_str());
    let Some((extraction, mounts)) = prepare(deps, chain, below, &labels).await? else {
        return Ok(());
    };
    let done = apply(deps, layer, diff_id, &mounts).await;
    let done = match done {
        Ok(()) => {
            let name = key_of(chain)?;
            deps.snapshotter
                .commit(&name, &extraction.key, labels)
                .await
        }
        failed => failed,
    };
    match done {
        Ok(()) => {
            extraction.keep();
            Ok(())
        }
        // Another transfer was faster.
        Err(error) if error.is_already_exists() && committed(deps, chain).await? => {
            extraction.remove().await;
            Ok(())
        }
        Err(error) => {
            extraction.remove().await;
            Err(error)
        }
    }
}

/// An active snapshot to extract to; `None` when the snapshotter has the layer already (a remote
/// snapshotter says so by AlreadyExists).
async fn prepare(
    deps: &Deps,
    chain: &Digest,
    below: Option<&Digest>,
    labels: &Labels,
) -> Result<Option<(Extraction, Vec<Mount>)>> {
    let parent = below.map(key_of).transpose()?;
    let mut last = Error::already_exists(chain);
    for _ in 0..ATTEMPTS {
        let key = extraction_key(chain)?;
        // The guard stands before the call: an abandoned prepare may have been carried out.
        let extraction = Extraction::new(&deps.snapshotter, key);
        match deps
            .snapshotter
            .prepare(&extraction.key, parent.as_ref(), labels.clone())
            .await
        {
            Ok(mounts) => return Ok(Some((extraction, mounts))),
            Err(error) => {
                extraction.keep();
                if !error.is_already_exists() {
                    return Err(error.ctx("failed to prepare extraction snapshot"));
                }
                if committed(deps, chain).await? {
                    return Ok(None);
                }
                last = error;
            }
        }
    }
    Err(last.ctx("failed to prepare extraction snapshot"))
}

async fn apply(deps: &Deps, layer: &Descriptor, diff_id: &Digest, mounts: &[Mount]) -> Result<()> {
    let opts = ApplyOpts {
        sync: true,
        ..ApplyOpts::default()
    };
    let applied = deps
        .applier
        .apply(&deps.content, layer, mounts, opts)
        .await?;
    if applied.digest != *diff_id {
        return Err(Error::invalid_argument(format_args!(
            "wrong diff id {} calculated on extraction of {}, image config says {diff_id}",
            applied.digest, layer.digest
        )));
    }
    let fields = Fields::new(vec![format!("labels.{}", label::UNCOMPRESSED)]);
    let labels = Labels::new().with(label::UNCOMPRESSED, diff_id.as_str());
    deps.content.update(&layer.digest, labels, &fields).await?;
    Ok(())
}

/// Parity: core/unpack: the form by which people and tools know extraction snapshots.
fn extraction_key(chain: &Digest) -> Result<SnapshotKey> {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let random: u32 = rand::random();
    format!("extract-{}-{random:08x} {chain}", now.subsec_nanos()).try_into()
}

/// Removes its snapshot unless told to keep it.
#[derive(Debug)]
struct Extraction {
    snapshotter: Arc<dyn Snapshotter>,
    key: SnapshotKey,
    armed: bool,
}

impl Extraction {
    fn new(snapshotter: &Arc<dyn Snapshotter>, key: SnapshotKey) -> Self {
        Self {
            snapshotter: Arc::clone(snapshotter),
            key,
            armed: true,
        }
    }

    fn keep(mut self) {
        self.armed = false;
    }

    async fn remove(mut self) {
        self.armed = false;
        if let Err(error) = self.snapshotter.remove(&self.key).await {
            tracing::warn!(%error, key = %self.key, "extraction snapshot stays behind");
        }
    }
}

impl Drop for Extraction {
    fn drop(&mut self) {
        let (true, Ok(runtime)) = (self.armed, tokio::runtime::Handle::try_current()) else {
            return;
        };
        let (snapshotter, key) = (Arc::clone(&self.snapshotter), self.key.clone());
        drop(runtime.spawn(async move { snapshotter.remove(&key).await }));
    }
}

#[cfg(test)]
mod tests {
    use images::testsuite::image;
    use types::Code;

    use super::*;
    use crate::fake::{Trick, World};

    async fn run(tricks: &[Trick], layers: &[&[u8]]) -> (World, Result<Option<Digest>>) {
        let world = World::new();
        *world.snapshots.1.lock().unwrap() = tricks.iter().rev().copied().collect();
        let root = image(&world.content, "linux/amd64", layers).await;
        let on = OnProgress::default();
        let done = unpack_image(&world.deps(), &root, &PlatformSet::All, &on).await;
        (world, done)
    }

    #[tokio::test]
    async fn a_clash_of_keys_is_tried_three_times() {
        let layers: [&[u8]; 2] = [b"a", b"b"];
        let (world, done) = run(&[Trick::Clash, Trick::Clash], &layers).await;
        let ids = layers.map(|layer| images::digest_of(layer).unwrap());
        assert_eq!(done.unwrap(), images::chain_of(&ids).unwrap());
        assert_eq!(world.chains().len(), 2);
        let (world, done) = run(&[Trick::Clash; 3], &layers).await;
        assert!(done.unwrap_err().is_already_exists());
        assert!(world.chains().is_empty());
    }

    #[tokio::test]
    async fn what_a_remote_snapshotter_has_is_not_unpacked() {
        let (world, done) = run(&[Trick::Remote], &[b"a", b"bb"]).await;
        assert!(done.unwrap().is_some());
        assert_eq!(world.chains().len(), 2);
        assert_eq!(*world.applier.applied.lock().unwrap(), [2]);
    }

    #[tokio::test]
    async fn one_layer_twice_makes_two_snapshots_and_none_makes_none() {
        let (world, done) = run(&[], &[b"a", b"a"]).await;
        assert!(done.unwrap().is_some());
        assert_eq!(world.chains().len(), 2);
        let (world, done) = run(&[], &[]).await;
        assert_eq!(done.unwrap(), None);
        assert!(world.chains().is_empty());
    }

    #[tokio::test]
    async fn only_what_was_made_before_is_skipped() {
        let (world, done) = run(&[], &[b"a"]).await;
        done.unwrap();
        let root = image(&world.content, "linux/amd64", &[b"a", b"b"]).await;
        let on = OnProgress::default();
        unpack_image(&world.deps(), &root, &PlatformSet::All, &on)
            .await
            .unwrap();
        assert_eq!(*world.applier.applied.lock().unwrap(), [1, 1]);
        assert_eq!(world.chains().len(), 2);
        let missing = image(&world.content, "linux/amd64", &[b"a", b"c"]).await;
        let gone = images::digest_of(b"c").unwrap();
        content::ContentStore::delete(&world.content, &gone)
            .await
            .unwrap();
        let error = unpack_image(&world.deps(), &missing, &PlatformSet::All, &on).await;
        assert!(error.unwrap_err().is(Code::NotFound));
        assert_eq!(world.chains().len(), 2);
    }
}
