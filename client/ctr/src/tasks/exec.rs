//! `ctr tasks exec`: a process more in a container, with our terminal or our streams.

use std::path::Path;

use client::ExecTask;
use client::spec::{Spec, UserSpec};
use types::{Context as _, Error, ExecId, Result};

use crate::attached::{Failure, Io, IoFlags, Kind, Session, Signals, Target, start_detached};
use crate::context::Context;
use crate::create;
use crate::run::{code, force_delete};

#[derive(Debug, clap::Args)]
pub(super) struct Exec {
    /// Working directory of the new process
    #[arg(long)]
    cwd: Option<String>,
    /// Allocate a TTY
    #[arg(short, long)]
    pub(super) tty: bool,
    /// Detach from the process after it has started
    #[arg(short, long)]
    pub(super) detach: bool,
    /// Id for the process
    #[arg(long, required = true)]
    pub(super) exec_id: String,
    /// User, `<name|uid>[:<group|gid>]`
    #[arg(long)]
    user: Option<UserSpec>,
    #[command(flatten)]
    io: IoFlags,
    /// `CONTAINER CMD [ARG...]`
    #[arg(trailing_var_arg = true, required = true, num_args = 2..)]
    pub(super) words: Vec<String>,
}

pub(super) async fn run(ctx: &Context, args: Exec) -> Result<u8> {
    let exec: ExecId = args.exec_id.parse().ctx("exec-id")?;
    let Some((id, command)) = args.words.split_first() else {
        return Err(Error::invalid_argument("container id must be provided"));
    };
    let (client, record) = ctx.container(id).await?;
    let mut spec = Spec::from_any(record.spec.as_ref())?;
    if let Some(user) = args.user {
        match record.snapshot_key.as_str() {
            "" => {
                let root = spec.root_dir().map(Path::to_owned);
                let missing = || Error::invalid_argument("rootfs absolute path is required");
                spec.user(&user.resolve(&root.ok_or_else(missing)?)?);
            }
            key => {
                let snapshotter = client.snapshotter(&record.snapshotter);
                let mounts = snapshotter.mounts(&key.parse()?).await?;
                create::resolve_user(&mut spec, user, &mounts).await?;
            }
        }
    }
    spec.args(command.to_vec());
    spec.set_terminal(args.tty);
    if let Some(cwd) = &args.cwd {
        spec.cwd(cwd);
    }
    let signals = Signals::catch()?;
    let kind = if args.tty {
        Kind::Terminal
    } else {
        Kind::Streams
    };
    let io = Io::prepare(kind, &args.io, exec.as_str(), args.detach)?;
    let opts = ExecTask {
        process: spec.process_to_any()?,
        stdio: io.paths(),
    };
    let tasks = client.tasks();
    tasks.exec(&record.id, &exec, opts).await?;
    let target = Target {
        tasks,
        id: record.id,
        exec: Some(exec),
    };
    let done = run_exec(&target, io, args.detach, signals).await;
    let cleaned = match &done {
        // Somebody may attach to it, or see how it ended.
        Ok(_) if args.detach => Ok(()),
        Err(failure) if failure.started => Ok(()),
        Ok(_) => {
            let deleted = target.tasks.delete(&target.id, target.exec.as_ref()).await;
            deleted.absent_ok().map(drop)
        }
        Err(_) => force_delete(&target).await.map(drop),
    };
    if let Err(error) = cleaned {
        tracing::error!(%error, "failed to cleanup process");
    }
    done.map_err(|failure| failure.error)
}

async fn run_exec(target: &Target, io: Io, detach: bool, signals: Signals) -> Result<u8, Failure> {
    if detach {
        return start_detached(target, io, signals).await;
    }
    let wait = target.wait();
    let session = Session::new(target.clone(), io, wait, signals);
    Ok(code(session.run(true).await?.status))
}
