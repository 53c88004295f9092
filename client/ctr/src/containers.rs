//! `ctr containers`: records, nothing that runs.

use client::Status;
use client::spec::Spec;
use serde_json::{Map, Value, json};
use types::{Container, ContainerId, Context as _, Error, Errors, Fields, Filter, Labels, Result};

use crate::checkpoint;
use crate::context::Context;
use crate::create;
use crate::flags::ContainerFlags;
use crate::out::{self, Pad, Table};
use crate::text;

/// Manage containers.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Checkpoint a container
    Checkpoint(checkpoint::ContainerArgs),
    /// Create a container
    Create(Box<Create>),
    /// Delete one or more existing containers
    #[command(visible_aliases = ["del", "remove", "rm"])]
    Delete(Delete),
    /// Get info about a container
    Info(Info),
    /// List containers
    #[command(visible_alias = "ls")]
    List(List),
    /// Set and clear labels of a container
    Label(Label),
    /// Restore a container from a checkpoint
    Restore(checkpoint::RestoreArgs),
}

#[derive(Debug, clap::Args)]
struct Create {
    #[command(flatten)]
    container: ContainerFlags,
    /// `Image|RootFS CONTAINER [COMMAND] [ARG...]`; only `CONTAINER` with `--config`
    #[arg(trailing_var_arg = true, required = true)]
    words: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct Delete {
    /// Do not clean up the snapshot with the container
    #[arg(long)]
    keep_snapshot: bool,
    /// Containers
    #[arg(required = true)]
    ids: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct Info {
    /// Only display the spec
    #[arg(long)]
    spec: bool,
    /// Container
    id: String,
}

#[derive(Debug, clap::Args)]
struct List {
    /// Print only the container id
    #[arg(short, long)]
    quiet: bool,
    /// Filters
    filters: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct Label {
    /// Container
    id: String,
    /// `key=value`; an empty value clears the label
    labels: Vec<String>,
}

pub(crate) async fn run(ctx: &Context, args: Args) -> Result<u8> {
    match args.command {
        Command::Create(args) => {
            let target = create::Target::parse(&args.words, args.container.config.is_some())?;
            let client = ctx.client().await?;
            create::create(&client, &args.container, target).await?;
            Ok(0)
        }
        Command::Delete(args) => delete(ctx, args).await,
        Command::Info(args) => info(ctx, args).await,
        Command::List(args) => list(ctx, args).await,
        Command::Label(args) => label(ctx, args).await,
        Command::Checkpoint(args) => checkpoint::container(ctx, args).await,
        Command::Restore(args) => checkpoint::restore(ctx, args).await,
    }
}

async fn list(ctx: &Context, args: List) -> Result<u8> {
    let filter = Filter::parse(&args.filters)?;
    let all = ctx.client().await?.containers().list(&filter).await?;
    if args.quiet {
        out::lines(all.iter().map(|container| &container.id))?;
        return Ok(0);
    }
    let mut table = Table::new(Pad::WIDE);
    table.row(["CONTAINER", "IMAGE", "RUNTIME", ""]);
    for container in &all {
        let image = if container.image.is_empty() {
            "-"
        } else {
            &container.image
        };
        table.row([container.id.as_str(), image, &container.runtime.name, ""]);
    }
    table.print()?;
    Ok(0)
}

async fn delete(ctx: &Context, args: Delete) -> Result<u8> {
    let client = ctx.client().await?;
    let mut errors = Errors::default();
    for id in &args.ids {
        let removed = async {
            let id: ContainerId = id.parse()?;
            let record = client.containers().get(&id).await?;
            let tasks = client.tasks();
            if let Some(task) = tasks.get(&id, None).await.absent_ok()? {
                if !matches!(task.status, Status::Stopped | Status::Created) {
                    return Err(Error::failed_precondition(format_args!(
                        "cannot delete a non stopped container: {}",
                        task.status.name().to_lowercase()
                    )));
                }
                tasks.delete(&id, None).await.absent_ok()?;
                client::stdio::remove(&task.stdio);
            }
            create::remove(&client, &record, !args.keep_snapshot).await
        };
        errors.note(
            removed
                .await
                .ctx_with(|| format!("failed to delete container {id:?}")),
        );
    }
    errors.into_result()?;
    Ok(0)
}

async fn info(ctx: &Context, args: Info) -> Result<u8> {
    let id: ContainerId = args.id.parse()?;
    let container = ctx.client().await?.containers().get(&id).await?;
    if args.spec {
        out::json(Spec::from_any(container.spec.as_ref())?.value())?;
        return Ok(0);
    }
    out::json(&record(&container))?;
    Ok(0)
}

/// The record in the form, and the order, in which Go's client prints it.
fn record(container: &Container) -> Value {
    let time = |time| Value::from(text::rfc3339(time));
    let mut made = json!({
        "ID": container.id.as_str(),
        "Labels": labels(&container.labels),
        "Image": container.image,
        "Runtime": {
            "Name": container.runtime.name,
            "Options": client::any_json(container.runtime.options.as_ref()),
        },
        "SnapshotKey": container.snapshot_key,
        "Snapshotter": container.snapshotter,
        "CreatedAt": time(container.created_at),
        "UpdatedAt": time(container.updated_at),
        "Extensions": Value::Null,
    });
    if !container.extensions.is_empty() {
        let all = container.extensions.iter();
        let all = all.map(|(name, any)| (name.clone(), client::any_json(Some(any))));
        made["Extensions"] = Value::Object(all.collect::<Map<_, _>>());
    }
    if !container.sandbox.is_empty() {
        made["SandboxID"] = Value::from(container.sandbox.as_str());
    }
    if let Ok(spec) = Spec::from_any(container.spec.as_ref()) {
        made["Spec"] = spec.value().clone();
    }
    made
}

fn labels(labels: &Labels) -> Value {
    if labels.is_empty() {
        return Value::Null;
    }
    labels
        .iter()
        .map(|(key, value)| (key.clone(), Value::from(value.as_str())))
        .collect()
}

async fn label(ctx: &Context, args: Label) -> Result<u8> {
    let id: ContainerId = args.id.parse()?;
    let containers = ctx.client().await?.containers();
    let mut container = containers.get(&id).await?;
    let labels = text::parse_labels(&args.labels);
    if !labels.is_empty() {
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        container.labels = labels;
        container = containers.update(&container, &Fields::new(paths)).await?;
    }
    out::line(&text::labels(&container.labels))?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn a_record_prints_as_go_prints_it() {
        let at = UNIX_EPOCH + Duration::new(1, 500_000_000);
        let container = Container {
            id: "y1".parse().unwrap(),
            labels: Labels::new().with("b", "2").with("a", "1"),
            image: "img".into(),
            runtime: types::Runtime {
                name: "io.containerd.runc.v2".into(),
                options: Some(types::Any {
                    type_url: "containerd.runc.v1.Options".into(),
                    value: vec![],
                }),
            },
            spec: Some(types::Any {
                type_url: String::new(),
                value: br#"{"ociVersion":"1"}"#.to_vec(),
            }),
            snapshotter: "overlayfs".into(),
            snapshot_key: "y1".into(),
            extensions: Default::default(),
            sandbox: String::new(),
            created_at: at,
            updated_at: at,
        };
        let text = record(&container).to_string();
        assert_eq!(
            text,
            concat!(
                r#"{"ID":"y1","Labels":{"a":"1","b":"2"},"Image":"img","Runtime":{"Name":"#,
                r#""io.containerd.runc.v2","Options":{"type_url":"containerd.runc.v1.Options"}},"#,
                r#""SnapshotKey":"y1","Snapshotter":"overlayfs","CreatedAt":"1970-01-01T00:00:01.5Z","#,
                r#""UpdatedAt":"1970-01-01T00:00:01.5Z","Extensions":null,"Spec":{"ociVersion":"1"}}"#
            )
        );
        let bare = Container {
            labels: Labels::new(),
            spec: None,
            ..container
        };
        let value = record(&bare);
        assert!(value["Labels"].is_null() && value.get("Spec").is_none());
    }
}
