//! `containers restore`.
//!
//! ```text
//! index -> spec, runtime, snapshot of the image (+ layer) -> container -> task (from the dump)
//! ```
//! Invariant: what was made for a task that never ran is removed again; an image from elsewhere gets no more
//! of the host than any other container has, unless the user says so.

use ::images::PlatformSet;
use client::Client;
use client::spec::Spec;
use types::{
    Container, ContainerId, Context as _, Descriptor, Labels, Mount, Result, SnapshotKey,
    media_type,
};

use super::index::Checkpoint;
use super::trust::Trust;
use crate::attached::{Failure, IoFlags, Kind, Signals};
use crate::context::Context;
use crate::create;
use crate::pull::deps;
use crate::run::Start;

/// Arguments of `containers restore`.
#[derive(Debug, clap::Args)]
pub(crate) struct RestoreArgs {
    /// Restore the rw layer from the checkpoint
    #[arg(long)]
    rw: bool,
    /// Restore the runtime and memory data from the checkpoint
    #[arg(long)]
    live: bool,
    // Beyond Go's: whoever has written the image would be root on this host.
    /// Let the checkpoint have hooks, mounts, devices and rights of the host, name the runtime, and be live
    #[arg(long)]
    trust_spec: bool,
    // Beyond Go's: a process that had a file as its output cannot go on with a pipe.
    #[command(flatten)]
    io: IoFlags,
    /// Container to make
    id: String,
    /// Name of the checkpoint's image
    #[arg(value_name = "REF")]
    reference: String,
}

/// `containers restore`: a container like the one of the checkpoint, and its task.
pub(crate) async fn restore(ctx: &Context, args: RestoreArgs) -> Result<u8> {
    let id: ContainerId = args.id.parse().ctx("container.ID")?;
    let client = ctx.client().await?;
    let signals = Signals::catch()?;
    let work = async |client: Client| {
        let checkpoint = Checkpoint::load(&client, &args.reference).await?;
        let trust = match args.trust_spec {
            true => Trust::All,
            false => Trust::Default,
        };
        let dump = match args.live {
            true => Some(checkpoint.need(media_type::CHECKPOINT, "task")?.clone()),
            false => None,
        };
        if dump.is_some() {
            let allowed = trust.live();
            allowed.ctx_with(|| format!("checkpoint {:?}", args.reference))?;
        }
        let record = checkpoint.record(&client, &id, trust).await?;
        let (record, mounts) = make(&client, &checkpoint, record, args.rw).await?;
        Ok((record, mounts, dump))
    };
    let (record, mounts, dump) = client.with_lease(work).await?;
    let done = run(&client, &record, mounts, dump, &args.io, signals).await;
    // Nothing that never ran is left behind.
    if let Err(failure) = &done
        && !failure.started
        && let Err(error) = create::remove(&client, &record, true).await
    {
        tracing::error!(%error, "failed to cleanup container");
    }
    done.map_err(|failure| failure.error)
}

/// Makes snapshot and container; on failure neither is left.
async fn make(
    client: &Client,
    checkpoint: &Checkpoint,
    record: Container,
    changes: bool,
) -> Result<(Container, Vec<Mount>)> {
    let key: SnapshotKey = record.snapshot_key.parse()?;
    let deps = deps(client, &record.snapshotter);
    let image = client.images().get(&record.image).await?;
    let wanted = PlatformSet::default();
    let snapshot = create::snapshot_of(&deps, &image.target, &wanted, &key, Labels::new());
    let (_, mounts) = snapshot.await?;
    let made = async {
        if changes {
            let layer = checkpoint.need(media_type::OCI_LAYER_GZIP, "rw layer")?;
            let (store, opts) = (client.content(), diff::ApplyOpts::default());
            let applied = client.applier().apply(&store, layer, &mounts, opts).await;
            applied.ctx("restore the rw layer")?;
        }
        client.containers().create(&record).await
    };
    match made.await {
        Ok(record) => Ok((record, mounts)),
        Err(error) => {
            if let Err(error) = deps.snapshotter.remove(&key).await {
                tracing::warn!(%error, %key, "cannot remove snapshot");
            }
            Err(error)
        }
    }
}

/// Parity: cmd/ctr/commands/containers/restore.go: without a terminal the task is left alone.
async fn run(
    client: &Client,
    record: &Container,
    rootfs: Vec<Mount>,
    checkpoint: Option<Descriptor>,
    io: &IoFlags,
    signals: Signals,
) -> Result<u8, Failure> {
    let spec = Spec::from_any(record.spec.as_ref())?;
    let (kind, detach) = match spec.terminal() {
        true => (Kind::Terminal, false),
        false => (Kind::Streams, true),
    };
    let start = Start {
        kind,
        io,
        no_pivot: false,
        pid_file: None,
        detach,
        checkpoint,
    };
    start.task(client, record, &spec, rootfs, signals).await
}
