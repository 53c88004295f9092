//! `tasks checkpoint`, `containers checkpoint` and `containers restore`.
//!
//! ```text
//! checkpoint: [lease: pause - dump to blobs - layer of changes - resume - index - image record]
//! restore:    index -> spec, runtime, snapshot of the image (+ layer) -> container -> task (from the dump)
//! ```
//! Invariant: a task runs again after its checkpoint, come what may, unless it was to end. A checkpoint
//! is an index that clients of Go's read too.

use std::path::PathBuf;
use std::time::SystemTime;

use ::images::{Index, PlatformSet, put_blob, read_blob};
use client::spec::Spec;
use client::{CheckpointOptions, Client, Status};
use serde_json::{Map, Value, json};
use types::{
    Any, Container, ContainerId, Context as _, Descriptor, Error, Image, Labels, Mount, Platform,
    Result, Runtime, SnapshotKey, media_type,
};

use crate::attached::{Failure, IoFlags, Kind, Signals};
use crate::context::Context;
use crate::pull::{deps, interruptible};
use crate::run::Start;
use crate::{changes, create, out, tasks, text};

/// Annotations of a checkpoint's index: the image's name, for a container and for a task; runtime;
/// snapshotter.
const IMAGE: &str = "org.opencontainers.image.ref.name";
const TASK_IMAGE: &str = "image.name";
const RUNTIME: &str = "io.containerd.checkpoint.runtime";
const SNAPSHOTTER: &str = "io.containerd.checkpoint.snapshotter";
/// Label of the image of a task's checkpoint.
const LABEL: &str = "containerd.io/checkpoint";
/// Longest index and longest typed value that are read.
const LIMIT: u64 = 8 << 20;

/// Arguments of `tasks checkpoint`.
#[derive(Debug, clap::Args)]
pub(crate) struct TaskArgs {
    /// Stop the container after the checkpoint
    #[arg(long)]
    exit: bool,
    /// Path to criu image files; without it the checkpoint becomes an image
    #[arg(long)]
    image_path: Option<PathBuf>,
    /// Path to criu work files and logs
    #[arg(long)]
    work_path: Option<PathBuf>,
    /// Container
    id: String,
}

/// Arguments of `containers checkpoint`.
#[derive(Debug, clap::Args)]
pub(crate) struct ContainerArgs {
    /// Include the rw layer in the checkpoint
    #[arg(long)]
    rw: bool,
    /// Include the image in the checkpoint
    #[arg(long)]
    image: bool,
    /// Checkpoint container task
    #[arg(long)]
    task: bool,
    /// Container
    id: String,
    /// Name of the checkpoint's image
    #[arg(value_name = "REF")]
    reference: String,
}

/// Arguments of `containers restore`.
#[derive(Debug, clap::Args)]
pub(crate) struct RestoreArgs {
    /// Restore the rw layer from the checkpoint
    #[arg(long)]
    rw: bool,
    /// Restore the runtime and memory data from the checkpoint
    #[arg(long)]
    live: bool,
    // Beyond Go's: a process that had a file as its output cannot go on with a pipe.
    #[command(flatten)]
    io: IoFlags,
    /// Container to make
    id: String,
    /// Name of the checkpoint's image
    #[arg(value_name = "REF")]
    reference: String,
}

/// `tasks checkpoint`: to a directory, or to an image with everything that a restore needs.
pub(crate) async fn task(ctx: &Context, args: TaskArgs) -> Result<u8> {
    let absolute = |path: Option<PathBuf>| -> Result<String> {
        let Some(path) = path else {
            return Ok(String::new());
        };
        let path = std::path::absolute(path).map_err(|e| Error::os("checkpoint path", e))?;
        Ok(path.display().to_string())
    };
    let options = CheckpointOptions {
        exit: args.exit,
        image_path: absolute(args.image_path)?,
        work_path: absolute(args.work_path)?,
        ..CheckpointOptions::default()
    };
    let (client, record) = tasks::load(ctx, &args.id).await?;
    let to_image = options.image_path.is_empty();
    let name = format!(
        "containerd.io/checkpoint/{}:{}",
        record.id,
        text::checkpoint_date(SystemTime::now())
    );
    let work = async |client: Client| {
        let mut index = Contents::default();
        let collect = async {
            let (tasks, options) = (client.tasks(), options.to_any()?);
            index.all(tasks.checkpoint(&record.id, Some(options)).await?);
            if !to_image {
                return Ok(());
            }
            index.describe(&record);
            index.note(TASK_IMAGE, &record.image);
            index.image(&client, &record).await?;
            index.runtime(&client, &record).await?;
            index.changes(&client, &record).await
        };
        while_paused(&client, &record.id, !options.exit, collect).await?;
        if to_image {
            let labels = Labels::new().with(LABEL, "true");
            index.save(&client, &name, labels).await?;
        }
        Ok(())
    };
    client.with_lease(work).await?;
    if to_image {
        out::line(&name)?;
    }
    Ok(0)
}

/// `containers checkpoint`: to an image with what the flags ask for.
pub(crate) async fn container(ctx: &Context, args: ContainerArgs) -> Result<u8> {
    let (client, record) = tasks::load(ctx, &args.id).await?;
    if record.image.is_empty() {
        return Err(Error::failed_precondition(format_args!(
            "container {} is not of an image",
            record.id
        )));
    }
    let work = async |client: Client| {
        let mut index = Contents::default();
        let collect = async {
            index.describe(&record);
            index.runtime(&client, &record).await?;
            if args.image {
                index.image(&client, &record).await?;
            }
            if args.rw {
                index.changes(&client, &record).await?;
            }
            if args.task {
                index.task(&client, &record).await?;
            }
            Ok(())
        };
        let task = client.tasks().get(&record.id, None).await.absent_ok()?;
        match task.map(|task| task.status) {
            Some(Status::Running) => while_paused(&client, &record.id, true, collect).await?,
            _ => interruptible(collect).await?,
        }
        index.save(&client, &args.reference, Labels::new()).await
    };
    client.with_lease(work).await?;
    Ok(0)
}

/// Does `work` while the task is frozen. It runs on afterwards, unless it was frozen before or its end
/// is what is wanted.
async fn while_paused<T>(
    client: &Client,
    id: &ContainerId,
    goes_on: bool,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let tasks = client.tasks();
    if tasks.get(id, None).await?.status == Status::Paused {
        return interruptible(work).await;
    }
    tasks.pause(id).await?;
    let done = interruptible(work).await;
    match tasks.resume(id).await {
        Err(error) if goes_on => tracing::error!(%error, "task {id} stays paused"),
        Err(error) => tracing::debug!(%error, "resume after the end"),
        Ok(()) => {}
    }
    done
}

/// What goes into the index of a checkpoint.
#[derive(Debug, Default)]
struct Contents {
    manifests: Vec<Value>,
    digests: Vec<String>,
    annotations: Map<String, Value>,
}

impl Contents {
    fn note(&mut self, key: &str, value: &str) {
        if !value.is_empty() {
            self.annotations.insert(key.to_owned(), value.into());
        }
    }

    /// What a restore must know of the container.
    fn describe(&mut self, record: &Container) {
        self.note(IMAGE, &record.image);
        self.note(RUNTIME, &record.runtime.name);
        self.note(SNAPSHOTTER, &record.snapshotter);
    }

    /// Adds a blob that is for this platform, or an image that says for itself what it is for.
    fn add(&mut self, blob: &Descriptor, here: bool) {
        let mut entry = json!({
            "mediaType": blob.media_type,
            "digest": blob.digest.as_str(),
            "size": blob.size,
        });
        if here {
            let host = Platform::host();
            entry["platform"] = json!({"architecture": host.architecture, "os": host.os});
        }
        let notes = blob.annotations.iter();
        let notes: Map<_, _> = notes.map(|(k, v)| (k.clone(), v.as_str().into())).collect();
        if !notes.is_empty() {
            entry["annotations"] = notes.into();
        }
        self.manifests.push(entry);
        self.digests.push(blob.digest.to_string());
    }

    fn all(&mut self, blobs: Vec<Descriptor>) {
        for blob in blobs {
            self.add(&blob, true);
        }
    }

    async fn image(&mut self, client: &Client, record: &Container) -> Result<()> {
        if !record.image.is_empty() {
            let image = client.images().get(&record.image).await?;
            self.add(&image.target, false);
        }
        Ok(())
    }

    async fn runtime(&mut self, client: &Client, record: &Container) -> Result<()> {
        match &record.runtime.options {
            Some(options) if !options.is_empty() => {
                self.value(client, media_type::CHECKPOINT_RUNTIME_OPTIONS, options)
                    .await
            }
            _ => Ok(()),
        }
    }

    /// What the container has written into its root file system.
    async fn changes(&mut self, client: &Client, record: &Container) -> Result<()> {
        if record.snapshot_key.is_empty() {
            return Ok(());
        }
        let key = record.snapshot_key.parse()?;
        let layer = changes::over_parent(client, &record.snapshotter, key).await?;
        self.add(&layer, true);
        Ok(())
    }

    async fn task(&mut self, client: &Client, record: &Container) -> Result<()> {
        let options = CheckpointOptions {
            file_locks: true,
            ..CheckpointOptions::default()
        };
        let options = options.to_any()?;
        let tasks = client.tasks();
        self.all(tasks.checkpoint(&record.id, Some(options.clone())).await?);
        self.value(client, media_type::CHECKPOINT_OPTIONS, &options)
            .await
    }

    async fn value(&mut self, client: &Client, media_type: &str, any: &Any) -> Result<()> {
        let bytes = client::any_to_bytes(any)?;
        let size = bytes.len() as u64;
        let digest = put_blob(&*client.content(), bytes.into(), Labels::new()).await?;
        let blob = Descriptor {
            media_type: media_type.to_owned(),
            digest,
            size,
            annotations: Labels::new(),
        };
        self.add(&blob, true);
        Ok(())
    }

    /// Writes the index and the image that names it.
    async fn save(self, client: &Client, name: &str, labels: Labels) -> Result<()> {
        let numbered = self.digests.iter().enumerate();
        let children: Labels = numbered
            .map(|(n, digest)| (format!("containerd.io/gc.ref.content.{n}"), digest.clone()))
            .collect();
        let text = self.index().to_string().into_bytes();
        let size = text.len() as u64;
        let digest = put_blob(&*client.content(), text.into(), children).await?;
        let now = SystemTime::UNIX_EPOCH;
        let image = Image {
            name: name.to_owned(),
            labels,
            target: Descriptor {
                media_type: media_type::OCI_INDEX.into(),
                digest,
                size,
                annotations: Labels::new(),
            },
            created_at: now,
            updated_at: now,
        };
        client.images().create(&image).await?;
        Ok(())
    }

    fn index(self) -> Value {
        json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_INDEX,
            "manifests": self.manifests,
            "annotations": self.annotations,
        })
    }
}

/// A checkpoint that was read.
#[derive(Debug)]
struct Checkpoint {
    index: Index,
    name: String,
}

impl Checkpoint {
    async fn load(client: &Client, name: &str) -> Result<Self> {
        let image = client.images().get(name).await?;
        let text = read_blob(&*client.content(), &image.target, LIMIT).await?;
        let index = Index::parse(&text, &image.target.media_type)
            .ctx_with(|| format!("image {name:?} is no checkpoint"))?;
        let name = name.to_owned();
        Ok(Self { index, name })
    }

    fn find(&self, media_type: &str) -> Option<&Descriptor> {
        let mut all = self.index.manifests.iter().map(|entry| &entry.descriptor);
        all.find(|blob| blob.media_type == media_type)
    }

    fn need(&self, media_type: &str, what: &str) -> Result<&Descriptor> {
        self.find(media_type).ok_or_else(|| self.lacks(what))
    }

    fn note(&self, keys: &[&str], what: &str) -> Result<&str> {
        let found = keys.iter().find_map(|key| self.index.annotations.get(*key));
        found.map(String::as_str).ok_or_else(|| self.lacks(what))
    }

    fn lacks(&self, what: &str) -> Error {
        Error::failed_precondition(format_args!("checkpoint {:?} has no {what}", self.name))
    }

    /// The container's record, without a snapshot.
    async fn record(&self, client: &Client, id: &ContainerId) -> Result<Container> {
        let store = client.content();
        let config = self.need(
            media_type::CHECKPOINT_CONFIG,
            "spec: it was made without the task",
        )?;
        let spec = client::any_from_bytes(&read_blob(&*store, config, LIMIT).await?)?;
        let mut spec = Spec::from_any(Some(&spec))?;
        spec.move_cgroup(client.namespace(), id);
        let options = match self.find(media_type::CHECKPOINT_RUNTIME_OPTIONS) {
            None => None,
            Some(blob) => Some(client::any_from_bytes(
                &read_blob(&*store, blob, LIMIT).await?,
            )?),
        };
        let now = SystemTime::UNIX_EPOCH;
        Ok(Container {
            id: id.clone(),
            labels: Labels::new(),
            image: self.note(&[IMAGE, TASK_IMAGE], "image name")?.to_owned(),
            runtime: Runtime {
                name: self.note(&[RUNTIME], "runtime name")?.to_owned(),
                options,
            },
            spec: Some(spec.to_any()?),
            snapshotter: self.note(&[SNAPSHOTTER], "snapshotter name")?.to_owned(),
            snapshot_key: id.to_string(),
            extensions: Default::default(),
            sandbox: String::new(),
            created_at: now,
            updated_at: now,
        })
    }
}

/// `containers restore`: a container like the one of the checkpoint, and its task.
pub(crate) async fn restore(ctx: &Context, args: RestoreArgs) -> Result<u8> {
    let id: ContainerId = args.id.parse().ctx("container.ID")?;
    let client = ctx.client().await?;
    let signals = Signals::catch()?;
    let work = async |client: Client| {
        let checkpoint = Checkpoint::load(&client, &args.reference).await?;
        let dump = match args.live {
            true => Some(checkpoint.need(media_type::CHECKPOINT, "task")?.clone()),
            false => None,
        };
        let record = checkpoint.record(&client, &id).await?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(media_type: &str, digit: char) -> Descriptor {
        Descriptor {
            media_type: media_type.into(),
            digest: format!("sha256:{}", digit.to_string().repeat(64))
                .parse()
                .unwrap(),
            size: 3,
            annotations: Labels::new(),
        }
    }

    #[test]
    fn an_index_is_read_as_it_was_written() {
        let mut contents = Contents::default();
        contents.note(IMAGE, "img");
        contents.note(RUNTIME, "");
        contents.add(&blob(media_type::CHECKPOINT, '1'), true);
        contents.add(&blob(media_type::OCI_MANIFEST, '2'), false);
        assert_eq!(contents.digests.len(), 2);
        let text = contents.index().to_string();
        let checkpoint = Checkpoint {
            index: Index::parse(text.as_bytes(), media_type::OCI_INDEX).unwrap(),
            name: "c".into(),
        };
        let found = checkpoint.need(media_type::CHECKPOINT, "task").unwrap();
        assert_eq!(*found, blob(media_type::CHECKPOINT, '1'));
        assert_eq!(checkpoint.note(&[TASK_IMAGE, IMAGE], "x").unwrap(), "img");
        let platforms = checkpoint.index.manifests.iter();
        let platforms = platforms.map(|entry| entry.platform.is_some());
        assert_eq!(platforms.collect::<Vec<_>>(), [true, false]);
        let error = checkpoint.note(&[RUNTIME], "runtime name").unwrap_err();
        assert_eq!(
            error.to_string(),
            "checkpoint \"c\" has no runtime name: failed precondition"
        );
    }
}
