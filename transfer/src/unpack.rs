//! Unpacking: one committed snapshot per layer, named by chain id.
//!
//! ```text
//! in series     layer n: extraction on chain n-1 ------------------------> commit chain n
//! at once       layer n: extraction on nothing --- chain n-1 is there ---> rebase chain n onto it
//! ```
//! Invariant: a snapshot named by a chain id holds exactly those layers, however it was made; layers
//! become visible in their order; an extraction that fails or is abandoned is removed.

use std::sync::Arc;

use content::Blob;
use futures::stream::{FuturesUnordered, StreamExt as _};
use images::{Config, Manifest, PlatformSet, chain_ids};
use recorder::On;
use tokio::sync::{Semaphore, oneshot, watch};
use types::{
    Code, Context as _, Descriptor, Digest, Error, Fields, Labels, Mount, Result, SnapshotKey,
    SnapshotKind, gc_label,
};

use crate::Deps;
use crate::extract::{Extraction, Incoming, apply, arrived, labels, prepare};
use crate::fetch::Started;
use crate::progress::{OnProgress, Status};
use crate::rooms::{Rooms, at_once};

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
    let rooms = Rooms::new(deps);
    unpack_arriving(deps, manifest, &config, on, Vec::new(), &rooms).await
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
    arrivals: Vec<Arrival>,
    rooms: &Rooms,
) -> Result<Option<Digest>> {
    if manifest.layers.len() != config.diff_ids.len() {
        return Err(Error::invalid_argument(format_args!(
            "number of layers and diffIDs don't match: {} != {}",
            manifest.layers.len(),
            config.diff_ids.len()
        )));
    }
    let chains = chain_ids(&config.diff_ids)?;
    let there = existing(deps, &chains).await?;
    let mut arrivals = arrivals.into_iter().map(Some).collect::<Vec<_>>();
    arrivals.resize_with(chains.len(), || None);
    let layers = Layers {
        deps,
        on,
        chains: &chains,
        done: watch::Sender::new(there),
        rooms,
    };
    let mut left = FuturesUnordered::new();
    for (at, (layer, arrival)) in manifest.layers.iter().zip(arrivals).enumerate() {
        let Some(diff_id) = config.diff_ids.get(at) else {
            break;
        };
        if at < there {
            on.tell(
                &images::ref_key(layer),
                Status::Unpacked,
                layer.size,
                layer.size,
            );
        }
        left.push(layers.layer(at, layer, diff_id, arrival));
    }
    while let Some(done) = left.next().await {
        done?;
    }
    drop(left);
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

/// A layer's blob on its way, for who unpacks it.
pub(crate) struct Arrival {
    /// The blob, as soon as it comes in; closed when it was there.
    started: oneshot::Receiver<Arc<dyn Blob>>,
    /// Told when it is in the store.
    done: watch::Receiver<bool>,
}

/// The same for who fetches it.
pub(crate) struct Arriving {
    pub(crate) started: Started,
    pub(crate) done: watch::Sender<bool>,
}

impl Arrival {
    pub(crate) fn expected() -> (Arriving, Self) {
        let (started, coming) = oneshot::channel();
        let (done, there) = watch::channel(false);
        let arrival = Self {
            started: coming,
            done: there,
        };
        (Arriving { started, done }, arrival)
    }
}

/// The layers of one image on their way to snapshots.
struct Layers<'a> {
    deps: &'a Deps,
    on: &'a OnProgress,
    chains: &'a [Digest],
    /// How many of the chains are there.
    done: watch::Sender<usize>,
    rooms: &'a Rooms,
}

/// How far a layer came without its parent.
enum Early<'a> {
    /// Its chain is there already.
    There,
    /// Extracted; to be committed onto this.
    Made(Extraction, Option<&'a Digest>),
    /// It needs its parent.
    Later,
}

impl<'a> Layers<'a> {
    /// Makes the chain `at`.
    async fn layer(
        &self,
        at: usize,
        layer: &Descriptor,
        diff_id: &Digest,
        arrival: Option<Arrival>,
    ) -> Result<()> {
        let is_there = || at < *self.done.borrow();
        let mut early = None;
        if let (false, Some(mut arrival)) = (is_there(), arrival) {
            early = self.along(at, layer, diff_id, &mut arrival).await;
            if early.is_none() {
                arrived(&mut arrival.done, layer).await?;
            }
        }
        let Some(chain) = self.chains.get(at).filter(|_| !is_there()) else {
            if let Some(Early::Made(extraction, _)) = early {
                extraction.remove().await;
            }
            return Ok(());
        };
        let failed = || format!("failed to extract layer {diff_id}");
        let early = match early {
            Some(early) => early,
            None => {
                let early = self.early(at, layer, diff_id, &self.rooms.here, None).await;
                early.ctx_with(failed)?
            }
        };
        let made = match early {
            Early::There => None,
            Early::Made(extraction, onto) => {
                self.below_of(at, layer).await?;
                Some((extraction, onto))
            }
            Early::Later => {
                // No room is asked for: who has it may wait for this very layer.
                self.below_of(at, layer).await?;
                let made = self.on_parent(at, layer, diff_id, None).await;
                made.ctx_with(failed)?.map(|extraction| (extraction, None))
            }
        };
        if let Some((extraction, onto)) = made {
            let named = || On::named(chain.as_str());
            let _commit = recorder::stage("snapshot of layer to disk", named);
            let labels = labels(layer, diff_id, (self.chains, at));
            let committed = extraction.commit(self.deps, labels, chain, onto).await;
            committed.ctx_with(failed)?;
        }
        let key = images::ref_key(layer);
        self.on.tell(&key, Status::Unpacked, layer.size, layer.size);
        // Whoever made it, what is below it is there as well.
        self.done.send_modify(|done| *done = (*done).max(at + 1));
        Ok(())
    }

    /// Waits until the chain below `at` is there, and tells so of `layer`, which has come in.
    async fn below_of(&self, at: usize, layer: &Descriptor) -> Result<()> {
        if *self.done.borrow() < at {
            let key = images::ref_key(layer);
            self.on.tell(&key, Status::Waiting, layer.size, layer.size);
        }
        self.below(at).await
    }

    /// Waits until the chain below `at` is there.
    async fn below(&self, at: usize) -> Result<()> {
        let _waiting = recorder::stage("the layer below", On::default);
        let mut done = self.done.subscribe();
        let reached = done.wait_for(|count| *count >= at).await;
        reached.map(drop).map_err(Error::internal)
    }

    /// Extracts a layer while it comes in. None when that is not possible, or failed: the outcome of
    /// the fetch says more.
    async fn along(
        &self,
        at: usize,
        layer: &Descriptor,
        diff_id: &Digest,
        arrival: &mut Arrival,
    ) -> Option<Early<'a>> {
        if !self.deps.applier.follows() {
            return None;
        }
        let blob = (&mut arrival.started).await.ok()?;
        let done = &mut arrival.done;
        let incoming = Some(Incoming { blob, done });
        let early = self
            .early(at, layer, diff_id, &self.rooms.along, incoming)
            .await;
        match early {
            // Where it came in meanwhile, or was there, there is no need to hurry.
            Ok(Early::Later) | Err(_) => {
                if let Err(error) = early {
                    tracing::debug!(%error, layer = %layer.digest, "not unpacked on its way");
                }
                None
            }
            Ok(early) => Some(early),
        }
    }

    /// Extracts a layer as soon as there is room; on nothing when its parent is not there yet.
    async fn early(
        &self,
        at: usize,
        layer: &Descriptor,
        diff_id: &Digest,
        room: &Semaphore,
        incoming: Option<Incoming<'_>>,
    ) -> Result<Early<'a>> {
        let Some(chain) = self.chains.get(at) else {
            return Ok(Early::There);
        };
        if !at_once(self.deps) {
            self.below(at).await?;
        }
        // The next in order takes none: who has them may wait for another transfer's layers, and that one
        // for this very layer.
        let _room = tokio::select! {
            biased;
            room = room.acquire() => Some(room.map_err(Error::internal)?),
            reached = self.below(at) => reached.map(|()| None)?,
        };
        let done = *self.done.borrow();
        if done > at {
            return Ok(Early::There);
        }
        if done == at {
            let made = self.on_parent(at, layer, diff_id, incoming).await?;
            return Ok(made.map_or(Early::There, |extraction| Early::Made(extraction, None)));
        }
        let labels = labels(layer, diff_id, (self.chains, at));
        let Some((extraction, mounts)) = prepare(self.deps, &labels, chain, None).await? else {
            return Ok(Early::There);
        };
        let Some(mounts) = detached(mounts) else {
            extraction.remove().await;
            return Ok(Early::Later);
        };
        let onto = at.checked_sub(1).and_then(|below| self.chains.get(below));
        let made = self.extract(layer, diff_id, extraction, &mounts, incoming);
        match made.await {
            Ok(extraction) => Ok(Early::Made(extraction, onto)),
            // It may refer to the layers below: tried once more on top of them.
            Err(error) if error.is(Code::InvalidArgument) => {
                tracing::debug!(%error, layer = %layer.digest, "layer waits for its parent");
                Ok(Early::Later)
            }
            Err(error) => Err(error),
        }
    }

    /// Extracts a layer onto the chain below it, which is there; none when its own is there too.
    async fn on_parent(
        &self,
        at: usize,
        layer: &Descriptor,
        diff_id: &Digest,
        incoming: Option<Incoming<'_>>,
    ) -> Result<Option<Extraction>> {
        let Some(chain) = self.chains.get(at) else {
            return Ok(None);
        };
        let below = at.checked_sub(1).and_then(|below| self.chains.get(below));
        let labels = labels(layer, diff_id, (self.chains, at));
        match prepare(self.deps, &labels, chain, below).await? {
            Some((extraction, mounts)) => {
                let made = self.extract(layer, diff_id, extraction, &mounts, incoming);
                made.await.map(Some)
            }
            None => Ok(None),
        }
    }

    async fn extract(
        &self,
        layer: &Descriptor,
        diff_id: &Digest,
        extraction: Extraction,
        mounts: &[Mount],
        incoming: Option<Incoming<'_>>,
    ) -> Result<Extraction> {
        if incoming.is_none() {
            // What comes in says how far it is by itself.
            let key = images::ref_key(layer);
            self.on.tell(&key, Status::Extracting, 0, layer.size);
        }
        let named = || On::named(layer.digest.as_str());
        let _unpacking = recorder::stage("unpacking layer", named);
        match apply(self.deps, layer, diff_id, mounts, incoming).await {
            Ok(()) => {
                // Another's word is not enough: the commit flushes what he may have left in memory.
                if self.deps.applier.flushes() {
                    self.deps.snapshotter.flushed(&extraction.key);
                }
                Ok(extraction)
            }
            Err(error) => {
                extraction.remove().await;
                Err(error)
            }
        }
    }
}

/// The mount by which a layer is written on its own, as Go's clients ask for it: an overlay of its
/// directory over nothing. None when the snapshotter's mount is of another kind.
fn detached(mounts: Vec<Mount>) -> Option<Vec<Mount>> {
    let [mount] = <[Mount; 1]>::try_from(mounts).ok()?;
    (mount.kind == "bind").then(|| {
        vec![Mount {
            kind: "overlay".into(),
            source: "overlay".into(),
            target: String::new(),
            options: vec![format!("upperdir={}", mount.source)],
        }]
    })
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

pub(crate) async fn committed(deps: &Deps, chain: &Digest) -> Result<bool> {
    let info = deps.snapshotter.stat(&key_of(chain)?).await.absent_ok()?;
    Ok(info.is_some_and(|info| info.kind == SnapshotKind::Committed))
}

pub(crate) fn key_of(chain: &Digest) -> Result<SnapshotKey> {
    chain.as_str().parse()
}

#[cfg(test)]
#[path = "at_once_tests.rs"]
mod at_once;
#[cfg(test)]
#[path = "foreign_tests.rs"]
mod foreign;
#[cfg(test)]
#[path = "settled_tests.rs"]
mod settled;
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
