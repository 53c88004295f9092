//! `ctr run`: a container, its task, and our terminal or streams at its end.

use std::path::PathBuf;

use client::spec::Spec;
use client::{Client, CreateTask, RuncOptions, StdioPaths, stdio};
use types::{Any, Container, Descriptor, Error, Mount, Result};

use crate::attached::{Failure, Io, IoFlags, Kind, Session, Signals, Target, start_detached};
use crate::context::Context;
use crate::create::{self, Made};
use crate::flags::ContainerFlags;
use crate::network::container;

/// `SIGKILL`.
const KILL: i32 = 9;

/// Run a container
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Remove the container after running
    #[arg(long, conflicts_with = "detach")]
    rm: bool,
    /// Detach from the task after it has started
    #[arg(short, long)]
    detach: bool,
    /// Send all IO to /dev/null
    #[arg(long, conflicts_with = "tty")]
    null_io: bool,
    /// Write the task's pid to a file
    #[arg(long)]
    pid_file: Option<PathBuf>,
    /// Write the generated OCI config to a file
    #[arg(long)]
    dump_config: Option<PathBuf>,
    /// Disable use of pivot-root
    #[arg(long)]
    no_pivot: bool,
    #[command(flatten)]
    io: IoFlags,
    #[command(flatten)]
    container: ContainerFlags,
    /// `Image|RootFS ID [COMMAND] [ARG...]`; only `ID` with `--config`
    #[arg(trailing_var_arg = true, required = true)]
    words: Vec<String>,
}

pub(crate) async fn run(ctx: &Context, args: Args) -> Result<u8> {
    let target = create::Target::parse(&args.words, args.container.config.is_some())?;
    let client = ctx.client().await?;
    // From here on a signal must not end us between two steps.
    let signals = Signals::catch()?;
    let made = create::create(&client, &args.container, target).await?;
    let done = run_task(&client, &args, &made, signals).await;
    let remove = match &done {
        Ok(_) => args.rm,
        // Nothing that never ran is left behind; what ran and failed later can be looked at.
        Err(failure) => !failure.started,
    };
    if remove && let Err(error) = create::remove(&client, &made.record, true).await {
        tracing::error!(%error, "failed to cleanup container");
    }
    done.map_err(|failure| failure.error)
}

async fn run_task(
    client: &Client,
    args: &Args,
    made: &Made,
    signals: Signals,
) -> Result<u8, Failure> {
    if let Some(path) = &args.dump_config {
        dump(path, &made.spec)?;
    }
    let kind = match (made.spec.terminal(), args.null_io) {
        (true, true) => {
            return Err(Error::invalid_argument("tty and null-io cannot be used together").into());
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
    start
        .task(
            client,
            &made.record,
            &made.spec,
            made.rootfs.clone(),
            signals,
        )
        .await
}

fn dump(path: &PathBuf, spec: &Spec) -> Result<()> {
    let text = serde_json::to_vec_pretty(spec.value())
        .map_err(|e| Error::internal("encode spec").with_source(e))?;
    std::fs::write(path, text).map_err(|e| Error::os(format_args!("write {}", path.display()), e))
}

/// How to start the task of a container that is there. `run` and `tasks start` share it.
#[derive(Debug)]
pub(crate) struct Start<'a> {
    pub(crate) kind: Kind,
    pub(crate) io: &'a IoFlags,
    pub(crate) no_pivot: bool,
    pub(crate) pid_file: Option<&'a PathBuf>,
    pub(crate) detach: bool,
    /// What the task is to go on from, instead of its command.
    pub(crate) checkpoint: Option<Descriptor>,
}

impl Start<'_> {
    /// Makes and starts the task, and follows it to its end unless detached.
    pub(crate) async fn task(
        &self,
        client: &Client,
        record: &Container,
        spec: &Spec,
        rootfs: Vec<Mount>,
        mut signals: Signals,
    ) -> Result<u8, Failure> {
        let io = Io::prepare(self.kind, self.io, record.id.as_str(), self.detach)?;
        let tasks = client.tasks();
        let target = Target {
            tasks: tasks.clone(),
            id: record.id.clone(),
            exec: None,
        };
        let stdio = io.paths();
        let opts = CreateTask {
            rootfs,
            stdio: stdio.clone(),
            options: self.options(record, spec)?,
            checkpoint: self.checkpoint.clone(),
            ..CreateTask::default()
        };
        let create = tasks.create(&record.id, opts);
        let pid = match signals.unless_interrupted(create).await {
            Ok(pid) => pid,
            Err(failure) => return Err(target.uncreated(io, failure, &mut signals).await),
        };
        let mut done = self.started(target.clone(), io, pid, signals).await;
        if let Err(failure) = &mut done
            && !failure.started
        {
            tracing::debug!(error = %failure.error, "removing the task");
            // A task that cannot be removed still needs its container and its root file system.
            failure.started = !kill_and_delete(&target, &stdio).await;
        }
        done
    }

    async fn started(
        &self,
        target: Target,
        io: Io,
        pid: u32,
        mut signals: Signals,
    ) -> Result<u8, Failure> {
        if let Some(path) = self.pid_file {
            let path = std::path::absolute(path).map_err(|e| Error::os("pid file", e))?;
            sys::fs::write_atomic_with(
                &path,
                pid.to_string().as_bytes(),
                0o666,
                sys::fs::Flush::Volatile,
            )?;
        }
        signals.check()?;
        if self.detach {
            return start_detached(&target, io, signals).await;
        }
        let wait = target.wait();
        let exited = Session::new(target.clone(), io, wait, signals)
            .run(true)
            .await?;
        let ran = |error| Failure {
            started: true,
            error,
        };
        match target.tasks.delete(&target.id, None).await {
            Err(e) if !e.is_not_found() => Err(ran(e)),
            _ => Ok(code(exited.status)),
        }
    }

    /// The runtime's options for this task: those of the container with what only a task has.
    fn options(&self, record: &Container, spec: &Spec) -> Result<Option<Any>> {
        let (uid, gid) = spec.root_owner();
        if !self.no_pivot && uid.is_none() && gid.is_none() {
            return Ok(record.runtime.options.clone());
        }
        let mut options = RuncOptions::from_any(record.runtime.options.as_ref())?;
        options.no_pivot_root = self.no_pivot;
        options.io_owner = (uid.unwrap_or(0), gid.unwrap_or(0));
        options.to_any().map(Some)
    }

    /// Starts the task of a container that was made before.
    pub(crate) async fn again(&self, client: &Client, record: &Container) -> Result<u8> {
        let spec = Spec::from_any(record.spec.as_ref())?;
        let rootfs = if record.snapshot_key.is_empty() {
            Vec::new()
        } else {
            let key = record.snapshot_key.parse()?;
            client.snapshotter(&record.snapshotter).mounts(&key).await?
        };
        let signals = Signals::catch()?;
        container::restore(client, record).await?;
        let done = self.task(client, record, &spec, rootfs, signals).await;
        done.map_err(|failure| failure.error)
    }
}

/// Removes a task whatever it does. False when it stays, which is only logged.
async fn kill_and_delete(target: &Target, stdio: &StdioPaths) -> bool {
    let deleted = force_delete(target).await;
    if let Err(error) = &deleted {
        tracing::error!(%error, "failed to cleanup task");
    }
    stdio::remove(stdio);
    deleted.is_ok()
}

/// Kills what runs in the task, waits for its end and removes it; returns its exit code. A task that
/// is gone is no error.
pub(crate) async fn force_delete(target: &Target) -> Result<u32> {
    let (tasks, id) = (&target.tasks, &target.id);
    match tasks
        .kill(id, target.exec.as_ref(), KILL, target.exec.is_none())
        .await
    {
        Ok(()) => drop(tasks.wait(id, target.exec.as_ref()).await),
        // It has ended, or never ran.
        Err(error) => tracing::debug!(%error, "kill before delete"),
    }
    match tasks.delete(id, target.exec.as_ref()).await {
        Ok(exit) => Ok(exit.status),
        Err(error) if error.is_not_found() => Ok(0),
        Err(error) => Err(error),
    }
}

/// An exit status as ours.
pub(crate) fn code(status: u32) -> u8 {
    u8::try_from(status & 0xff).unwrap_or(u8::MAX)
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

    fn parse(line: &str) -> std::result::Result<Args, clap::Error> {
        let words = std::iter::once("ctr").chain(line.split_whitespace());
        Line::try_parse_from(words).map(|line| line.args)
    }

    #[test]
    fn flags_end_at_the_image() {
        let args = parse("--rm -t --env A=1 img id sh -c -- --rm -d").unwrap();
        assert!(args.rm && args.container.tty && !args.detach);
        assert_eq!(args.words, ["img", "id", "sh", "-c", "--", "--rm", "-d"]);
        let args = parse("-d img id -l").unwrap();
        assert!(args.detach);
        assert_eq!(args.words, ["img", "id", "-l"]);
    }

    #[test]
    fn unknown_and_contradicting_flags_are_refused() {
        for line in [
            "--bogus img id",
            "--rm -d img id",
            "--null-io -t img id",
            "--cni --net host img id",
            "--net bridge --config spec.json id",
            "--log-uri file:///x --fifo-dir /y img id",
            "",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn statuses_become_exit_codes() {
        for (status, want) in [(0, 0), (7, 7), (137, 137), (255, 255), (256, 0)] {
            assert_eq!(code(status), want);
        }
    }
}
