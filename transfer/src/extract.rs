//! One layer's extraction: an active snapshot until it is committed, or removed.
//!
//! Invariant: whatever ends it, a snapshot that nobody commits is removed.

use std::sync::Arc;
use std::time::SystemTime;

use content::Blob;
use diff::ApplyOpts;
use snapshotters::Snapshotter;
use tokio::sync::watch;
use types::{Descriptor, Digest, Error, Fields, Labels, Mount, Result, SnapshotKey, label};

use crate::Deps;
use crate::unpack::{committed, key_of};

/// Tries for a key that nobody else has.
const ATTEMPTS: usize = 3;

/// A layer that comes in.
pub(crate) struct Incoming<'a> {
    /// Its bytes.
    pub(crate) blob: Arc<dyn Blob>,
    /// Told when all of them are there.
    pub(crate) done: &'a mut watch::Receiver<bool>,
}

/// Waits until the layer is in the store.
pub(crate) async fn arrived(done: &mut watch::Receiver<bool>, layer: &Descriptor) -> Result<()> {
    let told = done.wait_for(|done| *done).await.map(drop);
    told.map_err(|_| Error::cancelled(format_args!("fetch {}", layer.digest)))
}

/// Removes its snapshot unless told to keep it.
#[derive(Debug)]
pub(crate) struct Extraction {
    snapshotter: Arc<dyn Snapshotter>,
    pub(crate) key: SnapshotKey,
    armed: bool,
}

/// An active snapshot to extract to; `None` when the chain is there, made by another transfer or by a
/// snapshotter that has the layer already (it says so by AlreadyExists).
pub(crate) async fn prepare(
    deps: &Deps,
    labels: &Labels,
    chain: &Digest,
    below: Option<&Digest>,
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
            Ok(mounts) => {
                deps.snapshotter.attended(&extraction.key);
                return Ok(Some((extraction, mounts)));
            }
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

/// Unpacks the layer to `mounts`, and notes on its blob what it is without compression.
///
/// With `incoming` the layer is read while it comes in; it has come in when this is done.
pub(crate) async fn apply(
    deps: &Deps,
    layer: &Descriptor,
    diff_id: &Digest,
    mounts: &[Mount],
    incoming: Option<Incoming<'_>>,
) -> Result<()> {
    let (blob, arrival) = incoming.map_or((None, None), |it| (Some(it.blob), Some(it.done)));
    let opts = ApplyOpts {
        sync: true,
        blob,
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
    if let Some(arrival) = arrival {
        arrived(arrival, layer).await?;
    }
    let fields = Fields::new(vec![format!("labels.{}", label::UNCOMPRESSED)]);
    let labels = Labels::new().with(label::UNCOMPRESSED, diff_id.as_str());
    deps.content.update(&layer.digest, labels, &fields).await?;
    Ok(())
}

/// Parity: core/unpack: the form by which people and tools know extraction snapshots.
pub(crate) fn extraction_key(chain: &Digest) -> Result<SnapshotKey> {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let random: u32 = rand::random();
    format!("extract-{}-{random:08x} {chain}", now.subsec_nanos()).try_into()
}

/// What a snapshotter is told of the layer at `at` of the chains.
///
/// Parity: core/unpack.
pub(crate) fn labels(
    layer: &Descriptor,
    diff_id: &Digest,
    (chains, at): (&[Digest], usize),
) -> Labels {
    let labels = layer.annotations.for_snapshotter();
    let mut labels = labels.with(label::SNAPSHOT_DIFF_ID, diff_id.as_str());
    if let Some(chain) = chains.get(at) {
        labels = labels.with(label::SNAPSHOT_REF, chain.as_str());
    }
    if let Some(below) = at.checked_sub(1).and_then(|below| chains.get(below)) {
        labels = labels.with(label::SNAPSHOT_PARENT_CHAIN, below.as_str());
    }
    labels
}

impl Extraction {
    pub(crate) fn new(snapshotter: &Arc<dyn Snapshotter>, key: SnapshotKey) -> Self {
        Self {
            snapshotter: Arc::clone(snapshotter),
            key,
            armed: true,
        }
    }

    pub(crate) fn keep(mut self) {
        self.armed = false;
    }

    /// Makes it the snapshot `chain`; with `onto` as a child of that.
    pub(crate) async fn commit(
        self,
        deps: &Deps,
        labels: Labels,
        chain: &Digest,
        onto: Option<&Digest>,
    ) -> Result<()> {
        let name = key_of(chain)?;
        let done = match onto.map(key_of).transpose()? {
            Some(onto) => {
                let onto = deps.snapshotter.rebase(&name, &self.key, &onto, labels);
                onto.await
            }
            None => deps.snapshotter.commit(&name, &self.key, labels).await,
        };
        match done {
            Ok(()) => {
                self.keep();
                Ok(())
            }
            // Another transfer was faster.
            Err(error) if error.is_already_exists() && committed(deps, chain).await? => {
                self.remove().await;
                Ok(())
            }
            Err(error) => {
                self.remove().await;
                Err(error)
            }
        }
    }

    pub(crate) async fn remove(mut self) {
        let removed = self.snapshotter.remove(&self.key).await;
        // Not before: given up in between it is removed once more.
        self.armed = false;
        if let Err(error) = removed {
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
