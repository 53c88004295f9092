//! `tasks checkpoint` and `containers checkpoint`.
//!
//! ```text
//! [lease: image, options, free name - pause - dump to blobs - layer of changes - resume - index - image record]
//! ```
//! Invariant: a task runs again after its checkpoint, come what may, unless it was to end. Then nothing
//! that can be found out before stands between its end and its image.

mod index;
mod restore;
mod trust;

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use client::{CheckpointOptions, Client, Status};
use types::{Container, ContainerId, Context as _, Error, Labels, Result};

use crate::attached::Signals;
use crate::context::Context;
use crate::pull::interruptible;
use crate::{out, text};
use index::Contents;

pub(crate) use restore::{RestoreArgs, restore};

/// Label of the image of a task's checkpoint.
const LABEL: &str = "containerd.io/checkpoint";
/// How often the clock is looked at.
const TICK: Duration = Duration::from_millis(50);

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

impl TaskArgs {
    fn options(&self) -> Result<CheckpointOptions> {
        let absolute = |path: &Option<PathBuf>| -> Result<String> {
            let Some(path) = path else {
                return Ok(String::new());
            };
            let path = std::path::absolute(path).map_err(|e| Error::os("checkpoint path", e))?;
            Ok(path.display().to_string())
        };
        Ok(CheckpointOptions {
            exit: self.exit,
            image_path: absolute(&self.image_path)?,
            work_path: absolute(&self.work_path)?,
            ..CheckpointOptions::default()
        })
    }
}

/// `tasks checkpoint`: to a directory, or to an image with everything that a restore needs.
pub(crate) async fn task(ctx: &Context, args: TaskArgs) -> Result<u8> {
    let options = args.options()?;
    let (client, record) = ctx.container(&args.id).await?;
    // From the dump on there may be no process to come back to: nothing interrupts us then.
    let _caught = options.exit.then(Signals::catch).transpose()?;
    if !options.image_path.is_empty() {
        let dump = async {
            let made = options.to_any()?;
            client.tasks().checkpoint(&record.id, Some(made)).await
        };
        Box::pin(while_paused(&client, &record.id, !options.exit, dump)).await?;
        return Ok(0);
    }
    let work = async |client: Client| Box::pin(to_image(&client, &record, &options)).await;
    let name = client.with_lease(work).await?;
    out::line(&name)?;
    Ok(0)
}

/// A name that no image has.
async fn free_name(client: &Client, id: &ContainerId) -> Result<String> {
    loop {
        let date = text::checkpoint_date(SystemTime::now());
        let name = format!("containerd.io/checkpoint/{id}:{date}");
        match index::is_free(client, &name).await {
            // The name tells the second: the next one is near.
            Err(error) if error.is_already_exists() => tokio::time::sleep(TICK).await,
            other => return other.map(|()| name),
        }
    }
}

/// Everything that can fail comes before the dump; after one that ends the task, what there is of it
/// is kept. The name of the image.
async fn to_image(
    client: &Client,
    record: &Container,
    options: &CheckpointOptions,
) -> Result<String> {
    let name = free_name(client, &record.id).await?;
    let mut index = Contents::of_task(record);
    index.image(client, record).await?;
    index.runtime(client, record).await?;
    let options_any = options.to_any()?;
    let mut lacks = None;
    let collect = Box::pin(async {
        let tasks = client.tasks();
        index.all(tasks.checkpoint(&record.id, Some(options_any)).await?);
        match index.changes(client, record).await {
            Err(error) if options.exit => lacks = Some(error),
            other => other?,
        }
        Ok(())
    });
    while_paused(client, &record.id, !options.exit, collect).await?;
    let labels = Labels::new().with(LABEL, "true");
    index.save(client, &name, labels).await?;
    match lacks {
        None => Ok(name),
        Some(error) => Err(error.ctx(format!("{name} is saved without the rw layer"))),
    }
}

/// `containers checkpoint`: to an image with what the flags ask for.
pub(crate) async fn container(ctx: &Context, args: ContainerArgs) -> Result<u8> {
    let (client, record) = ctx.container(&args.id).await?;
    if record.image.is_empty() {
        return Err(Error::failed_precondition(format_args!(
            "container {} is not of an image",
            record.id
        )));
    }
    let work = async |client: Client| {
        index::is_free(&client, &args.reference).await?;
        let mut index = Contents::default();
        let collect = Box::pin(async {
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
        });
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
/// is what is wanted: then it is not interrupted either.
async fn while_paused<T>(
    client: &Client,
    id: &ContainerId,
    goes_on: bool,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let tasks = client.tasks();
    let work = async {
        match goes_on {
            true => interruptible(work).await,
            false => work.await,
        }
    };
    if tasks.get(id, None).await?.status == Status::Paused {
        return work.await;
    }
    tasks.pause(id).await?;
    let done = work.await;
    match tasks.resume(id).await {
        Err(error) if goes_on => tracing::error!(%error, "task {id} stays paused"),
        Err(error) => tracing::debug!(%error, "resume after the end"),
        Ok(()) => {}
    }
    done
}
