//! Making a container: every step with its undoing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use protos::MessageField;
use protos::events::{TaskCreate, TaskIO};
use protos::shim::task::CreateTaskRequest;
use sys::cgroup::Cgroup;
use types::{Error, Result, bundle_file};

use super::restore::Image;
use super::{Container, Oom, rootfs, says_exists};
use crate::caught::caught;
use crate::config::Config;
use crate::console::{Console, ConsoleSocket, Prepared};
use crate::criu::Run;
use crate::log;
use crate::options::Options;
use crate::process::{Attached, Process};
use crate::reap::{Ending, Hold};
use crate::runc::{ChildIo, Runtime};
use crate::service::Shim;
use crate::stdio::{Owner, Paths, Streams};

impl Container {
    /// Makes the container of a request.
    ///
    /// # Errors
    /// What failed: a mount, a stream, the runtime. Nothing is left then.
    pub(crate) async fn create(shim: &Arc<Shim>, request: &CreateTaskRequest) -> Result<Arc<Self>> {
        let bundle = PathBuf::from(&request.bundle);
        let config = Config::load(&bundle)?;
        let options = Options::from_any(request.options.as_ref())?;
        let image = Image::of(request, &options)?;
        options.save(&bundle)?;
        let paths = Paths {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let runtime = Runtime::new(
            Arc::clone(&shim.reap),
            &bundle,
            shim.namespace.as_str(),
            &request.id,
            options,
            shim.limits,
        );
        let mounted = rootfs::mount(&bundle, request)?;
        let made = if image.is_none() {
            let made = make(shim, &runtime, &bundle, &request.id, &paths, Way::Create);
            match caught(made).await {
                Ok(made) => Some(made),
                Err(error) => {
                    undo(&runtime, &bundle, mounted, &error).await;
                    return Err(error);
                }
            }
        } else {
            None
        };
        let container = Arc::new(Self {
            id: request.id.clone(),
            own_pids: config.has_own_pids(),
            mounted,
            init: Arc::new(Process::new("", paths, Vec::new())),
            execs: Mutex::new(BTreeMap::new()),
            cgroup: OnceLock::new(),
            image,
            oom: Oom::default(),
            runtime,
            bundle,
        });
        Ok(container.announce(shim, request, made))
    }

    /// Publishes the creation; from here on the end may be told.
    fn announce(
        self: Arc<Self>,
        shim: &Arc<Shim>,
        request: &CreateTaskRequest,
        made: Option<Made>,
    ) -> Arc<Self> {
        let pid = made.as_ref().map_or(0, |made| made.pid);
        let ending = made.map(|made| {
            self.init.has_started(made.pid, made.attached);
            if let Ok(group) = Cgroup::of(made.pid) {
                self.cgroup.get_or_init(|| group);
            }
            made.ending
        });
        let io = TaskIO {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
            ..TaskIO::default()
        };
        let event = TaskCreate {
            container_id: request.id.clone(),
            bundle: request.bundle.clone(),
            rootfs: request.rootfs.clone(),
            io: MessageField::some(io),
            checkpoint: request.checkpoint.clone(),
            pid,
            ..TaskCreate::default()
        };
        shim.publisher.publish("/tasks/create", &event);
        self.init.announced();
        if let Some(ending) = ending {
            self.watch_oom(shim);
            self.watch(shim, &self.init, pid, ending);
        }
        self
    }
}

/// A process that the runtime made.
pub(super) struct Made {
    pub(super) pid: u32,
    pub(super) ending: Ending,
    pub(super) attached: Attached,
}

/// How the runtime makes an init.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way<'a> {
    /// From the spec.
    Create,
    /// From an image; it runs at once.
    Restore { image: &'a Path, run: &'a Run },
}

impl Way<'_> {
    async fn go(self, runtime: &Runtime, io: Option<ChildIo>, console: Option<&str>) -> Result<()> {
        match self {
            Self::Create => runtime.create(io, console).await,
            Self::Restore { image, run } => runtime.restore(image, run, io, console).await,
        }
    }
}

/// Opens the streams of an init and has the runtime make it.
pub(super) async fn make(
    shim: &Arc<Shim>,
    runtime: &Runtime,
    bundle: &Path,
    id: &str,
    paths: &Paths,
    way: Way<'_>,
) -> Result<Made> {
    #[cfg(test)]
    crate::caught::fault::point("make");
    let owner = Owner {
        reap: &shim.reap,
        options: runtime.options(),
        namespace: shim.namespace.as_str(),
        id,
    };
    let pid_file = bundle.join(bundle_file::INIT_PID);
    if paths.terminal {
        let prepared = Prepared::open(paths, owner).await?;
        let socket = ConsoleSocket::bind(bundle, "init")?;
        let hold = shim.reap.hold();
        way.go(runtime, None, Some(socket.name())).await?;
        let (pid, ending) = claim(shim, &pid_file, hold)?;
        let console = Console::attach(socket.receive()?, prepared)?;
        Ok(Made {
            pid,
            ending,
            attached: Attached::Console(console),
        })
    } else {
        let (streams, io) = Streams::open(paths, owner).await?;
        let hold = shim.reap.hold();
        way.go(runtime, Some(io), None).await?;
        let (pid, ending) = claim(shim, &pid_file, hold)?;
        Ok(Made {
            pid,
            ending,
            attached: Attached::Streams(streams),
        })
    }
}

/// Claims the process whose pid the runtime wrote. The hold ends here.
pub(super) fn claim(shim: &Shim, pid_file: &Path, hold: Hold) -> Result<(u32, Ending)> {
    let text = std::fs::read_to_string(pid_file)
        .map_err(|e| Error::os(format_args!("read {}", pid_file.display()), e))?;
    let pid = text
        .trim()
        .parse()
        .map_err(|_| Error::internal(format_args!("pid file {}: {text:?}", pid_file.display())))?;
    let ending = shim.reap.claim(pid)?;
    drop(hold);
    Ok((pid, ending))
}

async fn undo(runtime: &Runtime, bundle: &Path, mounted: bool, error: &Error) {
    // A container of this name that is there already is somebody else's: it must live.
    if !says_exists(error)
        && let Err(error) = runtime.delete(true).await
    {
        log::warn(format_args!("remove what a failed create left: {error}"));
    }
    if mounted && let Err(error) = rootfs::unmount_deep(bundle).await {
        log::error(format_args!("unmount after a failed create: {error}"));
    }
    for file in [
        bundle_file::INIT_PID,
        bundle_file::RUNTIME,
        bundle_file::OPTIONS,
    ] {
        // Absent when the failure came before it.
        drop(std::fs::remove_file(bundle.join(file)));
    }
}
