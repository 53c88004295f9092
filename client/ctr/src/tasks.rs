//! `ctr tasks`: what runs.

mod exec;

use std::path::PathBuf;

use client::spec::Spec;
use client::{Client, stdio};
use types::{Code, Container, ContainerId, Context as _, Error, Errors, ExecId, Result};

use crate::attached::{Io, IoFlags, Kind, Session, Signals, Target};
use crate::checkpoint;
use crate::context::Context;
use crate::create;
use crate::out::{self, Pad, Table};
use crate::run::{Start, code, force_delete};
use crate::text;
use exec::Exec;

/// Manage tasks.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Attach to the IO of a running container
    Attach(One),
    /// Checkpoint a container
    Checkpoint(checkpoint::TaskArgs),
    /// Delete one or more tasks
    #[command(visible_aliases = ["del", "remove", "rm"])]
    Delete(Delete),
    /// Execute an additional process in a container
    Exec(Exec),
    /// List tasks
    #[command(visible_alias = "ls")]
    List(List),
    /// Signal a container (default: its stop signal)
    Kill(Kill),
    /// Get a single data point of metrics of a task
    #[command(visible_alias = "metric")]
    Metrics(Metrics),
    /// Pause a container
    Pause(One),
    /// List processes of a container
    Ps(One),
    /// Resume a paused container
    Resume(One),
    /// Start a container that has been created
    Start(StartArgs),
}

#[derive(Debug, clap::Args)]
struct One {
    /// Container
    id: String,
}

#[derive(Debug, clap::Args)]
struct Delete {
    /// Kill the task first when it runs
    #[arg(short, long)]
    force: bool,
    /// Delete this exec instead of the task
    #[arg(long)]
    exec_id: Option<String>,
    /// Containers
    #[arg(required = true)]
    ids: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct List {
    /// Print only the task id
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, clap::Args)]
struct Kill {
    /// Signal to send, by name or number
    #[arg(short, long)]
    signal: Option<String>,
    /// Exec to signal
    #[arg(long)]
    exec_id: Option<String>,
    /// Send the signal to all processes inside the container
    #[arg(short, long, conflicts_with = "exec_id")]
    all: bool,
    /// Container
    id: String,
}

#[derive(Debug, clap::Args)]
struct Metrics {
    /// `table` or `json`
    #[arg(long, default_value = "table", value_parser = ["table", "json"])]
    format: String,
    /// Container
    id: String,
}

#[derive(Debug, clap::Args)]
struct StartArgs {
    /// Disable use of pivot-root
    #[arg(long)]
    no_pivot: bool,
    /// Send all IO to /dev/null
    #[arg(long)]
    null_io: bool,
    /// Write the task's pid to a file
    #[arg(long)]
    pid_file: Option<PathBuf>,
    /// Detach from the task after it has started
    #[arg(short, long)]
    detach: bool,
    #[command(flatten)]
    io: IoFlags,
    /// Container
    id: String,
}

pub(crate) async fn run(ctx: &Context, args: Args) -> Result<u8> {
    match args.command {
        Command::Attach(args) => attach(ctx, args).await,
        Command::Checkpoint(args) => checkpoint::task(ctx, args).await,
        Command::Delete(args) => delete(ctx, args).await,
        Command::Exec(args) => exec::run(ctx, args).await,
        Command::List(args) => list(ctx, args).await,
        Command::Kill(args) => kill(ctx, args).await,
        Command::Metrics(args) => metrics(ctx, args).await,
        Command::Pause(args) => {
            let (client, record) = ctx.container(&args.id).await?;
            client.tasks().pause(&record.id).await?;
            Ok(0)
        }
        Command::Ps(args) => ps(ctx, args).await,
        Command::Resume(args) => {
            let (client, record) = ctx.container(&args.id).await?;
            client.tasks().resume(&record.id).await?;
            Ok(0)
        }
        Command::Start(args) => start(ctx, args).await,
    }
}

/// The container of a task that is to go. One whose record is gone already has none, and is not kept for
/// that.
async fn owner(client: &Client, id: &ContainerId) -> Result<Option<Container>> {
    match client.containers().get(id).await {
        Err(error) if error.is_not_found() && client.tasks().get(id, None).await.is_ok() => {
            Ok(None)
        }
        other => other.map(Some),
    }
}

async fn list(ctx: &Context, args: List) -> Result<u8> {
    let all = ctx.client().await?.tasks().list().await?;
    if args.quiet {
        out::lines(all.iter().map(|task| &task.id))?;
        return Ok(0);
    }
    let mut table = Table::new(Pad::WIDE);
    table.row(["TASK", "PID", "STATUS", ""]);
    for task in &all {
        table.row([task.id.as_str(), &task.pid.to_string(), task.status.name()]);
    }
    table.print()?;
    Ok(0)
}

async fn ps(ctx: &Context, args: One) -> Result<u8> {
    let (client, record) = ctx.container(&args.id).await?;
    let mut table = Table::new(Pad::WIDE);
    table.row(["PID", "INFO"]);
    for process in client.tasks().pids(&record.id).await? {
        // Parity: cmd/ctr/commands/tasks/ps.go: Go's print of a protobuf message.
        let info = process.exec_id.map(|id| format!("exec_id:{id:?}"));
        table.row([
            process.pid.to_string().as_str(),
            info.as_deref().unwrap_or("-"),
        ]);
    }
    table.print()?;
    Ok(0)
}

async fn metrics(ctx: &Context, args: Metrics) -> Result<u8> {
    let (client, record) = ctx.container(&args.id).await?;
    let metric = client.tasks().metrics(&record.id).await?;
    if args.format == "json" {
        out::line(
            &serde_json::to_string_pretty(&metric.json)
                .map_err(|e| Error::internal("encode metrics").with_source(e))?,
        )?;
        return Ok(0);
    }
    let mut table = Table::new(Pad::WIDE);
    table.row(["ID", "TIMESTAMP", ""]);
    table.row([metric.id.as_str(), &text::go_time(metric.timestamp), ""]);
    table.row([""]);
    table.row(["METRIC", "VALUE", ""]);
    for (name, value) in &metric.rows {
        table.row([name, value.as_str(), ""]);
    }
    table.print()?;
    Ok(0)
}

async fn kill(ctx: &Context, args: Kill) -> Result<u8> {
    let exec = args
        .exec_id
        .as_deref()
        .map(str::parse::<ExecId>)
        .transpose()?;
    let given = args.signal.as_deref().map(signal).transpose()?;
    let (client, id) = (ctx.client().await?, args.id.parse()?);
    let record = owner(&client, &id).await?;
    let labels = record.map(|record| record.labels).unwrap_or_default();
    let number = match given {
        Some(number) => number,
        None => signal(
            labels
                .get(create::STOP_SIGNAL)
                .map_or("SIGTERM", String::as_str),
        )?,
    };
    client
        .tasks()
        .kill(&id, exec.as_ref(), number, args.all)
        .await?;
    Ok(0)
}

fn signal(text: &str) -> Result<i32> {
    sys::signal::parse(text)
        .ok_or_else(|| Error::invalid_argument(format_args!("unknown signal {text:?}")))
}

async fn delete(ctx: &Context, args: Delete) -> Result<u8> {
    let client = ctx.client().await?;
    if let Some(exec) = &args.exec_id {
        let [id] = &args.ids[..] else {
            return Err(Error::invalid_argument("--exec-id takes one container"));
        };
        let target = Target {
            tasks: client.tasks(),
            id: id.parse()?,
            exec: Some(exec.parse()?),
        };
        owner(&client, &target.id).await?;
        return delete_one(&target, args.force).await.map(code);
    }
    let mut errors = Errors::default();
    for id in &args.ids {
        let removed = async {
            let target = Target {
                tasks: client.tasks(),
                id: id.parse()?,
                exec: None,
            };
            owner(&client, &target.id).await?;
            delete_one(&target, args.force).await
        };
        let removed = removed.await.ctx_with(|| format!("unable to delete {id}"));
        if let Some(status) = errors.note(removed).filter(|status| *status != 0) {
            tracing::warn!("task {id} exit with non-zero exit code {status}");
        }
    }
    errors.into_result()?;
    Ok(0)
}

/// Removes a process and its pipes; returns its exit status.
async fn delete_one(target: &Target, force: bool) -> Result<u32> {
    let process = target.tasks.get(&target.id, target.exec.as_ref()).await?;
    let status = if force {
        force_delete(target).await?
    } else {
        target
            .tasks
            .delete(&target.id, target.exec.as_ref())
            .await?
            .status
    };
    stdio::remove(&process.stdio);
    Ok(status)
}

async fn attach(ctx: &Context, args: One) -> Result<u8> {
    let (client, record) = ctx.container(&args.id).await?;
    let target = Target {
        tasks: client.tasks(),
        id: record.id,
        exec: None,
    };
    let task = target.tasks.get(&target.id, None).await?;
    let io = match Io::attach_to(&target, &task.stdio).await {
        Ok(io) => io,
        // Another shim or daemon: the pipes of whoever made it, if there are any.
        Err(error) if error.is(Code::NotImplemented) => Io::attach(&task.stdio)?,
        Err(error) => return Err(error),
    };
    let signals = Signals::catch()?;
    let wait = target.wait();
    let exited = Session::new(target.clone(), io, wait, signals)
        .run(false)
        .await
        .map_err(|failure| failure.error)?;
    // Parity: cmd/ctr/commands/tasks/attach.go: the task goes with the end of the attachment.
    delete_one(&target, false).await.absent_ok()?;
    Ok(code(exited.status))
}

async fn start(ctx: &Context, args: StartArgs) -> Result<u8> {
    let (client, record) = ctx.container(&args.id).await?;
    let terminal = Spec::from_any(record.spec.as_ref())?.terminal();
    let kind = match (terminal, args.null_io) {
        (true, true) => {
            return Err(Error::invalid_argument(
                "tty and null-io cannot be used together",
            ));
        }
        (true, false) => Kind::Terminal,
        (false, true) => Kind::Null,
        (false, false) => Kind::Streams,
    };
    let start = Start {
        kind,
        io: &args.io,
        no_pivot: args.no_pivot,
        pid_file: args.pid_file.as_ref(),
        detach: args.detach,
        checkpoint: None,
    };
    start.again(&client, &record).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &str) -> std::result::Result<Command, clap::Error> {
        let words = std::iter::once("ctr").chain(line.split_whitespace());
        Line::try_parse_from(words).map(|line| line.args.command)
    }

    #[test]
    fn the_command_of_an_exec_keeps_its_dashes() {
        let Command::Exec(exec) = parse("exec --exec-id X -t C ls -l --detach").unwrap() else {
            panic!("no exec");
        };
        assert!(exec.tty && !exec.detach);
        assert_eq!(
            (exec.exec_id.as_str(), exec.words),
            (
                "X",
                ["C", "ls", "-l", "--detach"].map(String::from).to_vec()
            )
        );
        for bad in [
            "exec C ls",
            "exec --exec-id X",
            "exec --exec-id X C",
            "exec --bogus --exec-id X C l",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn aliases_are_those_of_go() {
        assert!(matches!(
            parse("ls -q").unwrap(),
            Command::List(List { quiet: true })
        ));
        for word in ["delete", "del", "remove", "rm"] {
            assert!(matches!(
                parse(&format!("{word} -f a b")).unwrap(),
                Command::Delete(_)
            ));
        }
        assert!(matches!(
            parse("kill -s 9 -a x").unwrap(),
            Command::Kill(Kill { all: true, .. })
        ));
        parse("kill -a --exec-id e x").unwrap_err();
        parse("metrics --format xml x").unwrap_err();
    }

    #[test]
    fn signals_have_names_and_numbers() {
        assert_eq!(signal("KILL").unwrap(), 9);
        assert_eq!(signal("15").unwrap(), 15);
        assert!(signal("SIGNONE").unwrap_err().is(Code::InvalidArgument));
    }
}
