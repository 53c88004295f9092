//! Checkpoints: writing one of a container, and a container that comes from one.
//!
//! ```text
//!  create: check image, mount rootfs ─ event           (no process: pid 0)
//!  start:  open streams ─ [hold: runtime restore ─ claim pid] ─ event
//! ```
//! Invariant: a restore that fails leaves the container as it was before the start: created, with no
//! process, nothing of the runtime's. A dump that fails and leaves the container running leaves no
//! image, unless its directory was in use before; an image that was made, or whose container ended over it, is never removed.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use protos::events::{TaskCheckpointed, TaskStart};
use protos::runc::CheckpointOptions;
use protos::shim::task::{CheckpointTaskRequest, CreateTaskRequest};
use protos::{Message as _, any::Named as _};
use sys::cgroup::Cgroup;
use tokio::time::timeout;
use types::{Error, Result, bundle_file};

use super::create::{Made, Way, make};
use super::{Container, says_exists};
use crate::caught::caught;
use crate::criu::{Action, Run, Streams};
use crate::lifecycle::Input;
use crate::log;
use crate::options::{self, Options};
use crate::service::Shim;
use crate::stdio::Target;

/// How long after a failed dump its container may end yet, when it was to end.
const LAST_BREATH: Duration = Duration::from_millis(500);

/// What a container comes from instead of its command.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Image {
    path: PathBuf,
    /// Where CRIU works; empty for a directory of its own.
    work: String,
}

impl Image {
    /// The checkpoint that a request names, if any. The streams are opened at the start; what can be
    /// known to be wrong with them is told now.
    ///
    /// # Errors
    /// `InvalidArgument` for a path that is no directory, and as [`Target::parse`].
    pub(super) fn of(request: &CreateTaskRequest, options: &Options) -> Result<Option<Self>> {
        if request.checkpoint.is_empty() {
            return Ok(None);
        }
        if !request.parent_checkpoint.is_empty() {
            return Err(Error::not_implemented("restore with a parent checkpoint"));
        }
        let path = PathBuf::from(&request.checkpoint);
        if !path.is_dir() {
            return Err(Error::invalid_argument(format_args!(
                "checkpoint {} is no directory",
                path.display()
            )));
        }
        for stream in [&request.stdin, &request.stdout, &request.stderr] {
            Target::parse(stream)?;
        }
        let work = options.criu_work_path.clone();
        Ok(Some(Self { path, work }))
    }
}

impl Container {
    /// True while it waits for its restore: nothing of it is with the runtime.
    pub(super) fn is_image(&self) -> bool {
        self.image.is_some() && self.init.view().pid == 0
    }

    /// Refuses what needs a process while there is none yet.
    ///
    /// # Errors
    /// `FailedPrecondition`.
    pub(super) fn need_process(&self) -> Result<()> {
        if self.is_image() {
            let id = &self.id;
            return Err(Error::failed_precondition(format_args!(
                "container {id} is not restored yet"
            )));
        }
        Ok(())
    }

    /// Starts it from its image. The caller holds the init's gate.
    pub(super) async fn restore(self: &Arc<Self>, shim: &Arc<Shim>, image: &Image) -> Result<u32> {
        let init = &self.init;
        init.starting();
        let made = match caught(self.make_from(shim, image)).await {
            Ok(made) => made,
            Err(error) => {
                self.undo_restore(&error).await;
                init.did_not_start();
                return Err(error);
            }
        };
        init.has_started(made.pid, made.attached);
        if let Ok(group) = Cgroup::of(made.pid) {
            // It is restored once: a pid is never 0 again.
            self.cgroup.get_or_init(|| group);
        }
        init.step(Input::Start)?;
        let event = TaskStart {
            container_id: self.id.clone(),
            pid: made.pid,
            ..TaskStart::default()
        };
        shim.publisher.publish("/tasks/start", &event);
        init.announced();
        self.watch_oom(shim);
        self.watch(shim, init, made.pid, made.ending);
        Ok(made.pid)
    }

    async fn make_from(&self, shim: &Arc<Shim>, image: &Image) -> Result<Made> {
        let mut run = Run::new(Action::Restore, &self.bundle, &image.work)?;
        run.streams(&Streams::load(&image.path)?)?;
        let way = Way::Restore {
            image: &image.path,
            run: &run,
        };
        let made = make(
            shim,
            &self.runtime,
            &self.bundle,
            &self.id,
            &self.init.paths,
            way,
        );
        made.await.map_err(|error| run.explain(error))
    }

    /// Removes what a failed restore left with the runtime.
    async fn undo_restore(&self, error: &Error) {
        // A container of this name that is there already is somebody else's: it must live.
        if !says_exists(error)
            && let Err(error) = self.runtime.delete(true).await
        {
            log::warn(format_args!("remove what a failed restore left: {error}"));
        }
        drop(std::fs::remove_file(
            self.bundle.join(bundle_file::INIT_PID),
        ));
    }

    /// Writes a checkpoint. What a failed one has made is removed, unless the container ended over it:
    /// then it may be all that is left.
    ///
    /// # Errors
    /// `InvalidArgument` for bad options, `FailedPrecondition` when it does not run, else the
    /// runtime's text with CRIU's reason.
    pub(crate) async fn checkpoint(
        &self,
        shim: &Shim,
        request: &CheckpointTaskRequest,
    ) -> Result<()> {
        let options = checkpoint_options(request)?;
        let _gate = self.init.gate.lock().await;
        self.init.check(Input::Checkpoint)?;
        let image = Path::new(&request.path);
        let place = Place::of(image);
        let dumped = self.dump(image, &options).await;
        if let Err(failed) = dumped {
            if !failed.keeps {
                place.restore(image);
            }
            return Err(failed.error);
        }
        let event = TaskCheckpointed {
            container_id: self.id.clone(),
            checkpoint: request.path.clone(),
            ..TaskCheckpointed::default()
        };
        shim.publisher.publish("/tasks/checkpointed", &event);
        Ok(())
    }

    async fn dump(&self, image: &Path, options: &CheckpointOptions) -> Result<(), Failed> {
        let mut run = Run::new(Action::Dump, &self.bundle, &options.work_path)?;
        let streams = Streams::of(self.init.view().pid)?;
        run.streams(&streams)?;
        let staged = streams.stage(image)?;
        let mut args = vec![
            "--image-path".to_owned(),
            image.display().to_string(),
            "--work-path".to_owned(),
            run.work(),
        ];
        args.extend(options::checkpoint_flags(options));
        let dumped = self.runtime.checkpoint(&args, run.options()).await;
        let Err(error) = dumped else {
            // The image is whole, whatever becomes of the list of its streams.
            return staged.keep().map_err(|error| Failed { error, keeps: true });
        };
        let ended = options.exit && timeout(LAST_BREATH, self.init.wait()).await.is_ok();
        if ended {
            // The error that is told is the first one.
            drop(staged.keep());
        }
        let error = run.explain(error);
        Err(Failed {
            error,
            keeps: ended,
        })
    }
}

/// What was where a dump goes, before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Absent,
    Empty,
    /// Others' files: they and what was put among them cannot be told apart.
    Used,
}

impl Place {
    fn of(image: &Path) -> Self {
        match std::fs::read_dir(image).map(|mut entries| entries.next().is_none()) {
            Ok(true) => Self::Empty,
            Err(e) if e.kind() == ErrorKind::NotFound => Self::Absent,
            Ok(false) | Err(_) => Self::Used,
        }
    }

    /// Removes what has come since. Nothing may have come, and nobody can do more than look at a
    /// leftover.
    fn restore(self, image: &Path) {
        match self {
            Self::Absent => drop(std::fs::remove_dir_all(image)),
            Self::Empty => {
                for entry in std::fs::read_dir(image).into_iter().flatten().flatten() {
                    let path = entry.path();
                    if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                        drop(std::fs::remove_dir_all(path));
                    } else {
                        drop(std::fs::remove_file(path));
                    }
                }
            }
            Self::Used => {}
        }
    }
}

/// A dump that came to nothing, or not to all.
struct Failed {
    error: Error,
    /// What is there is worth keeping: the container ended over it, or it is whole.
    keeps: bool,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self {
            error,
            keeps: false,
        }
    }
}

fn checkpoint_options(request: &CheckpointTaskRequest) -> Result<CheckpointOptions> {
    if request.path.is_empty() {
        return Err(Error::invalid_argument("checkpoint without a path"));
    }
    let Some(any) = request.options.as_ref().filter(|a| !a.type_url.is_empty()) else {
        return Ok(CheckpointOptions::default());
    };
    let name = any.type_url.rsplit('/').next().unwrap_or_default();
    if name != CheckpointOptions::FULL_NAME {
        return Err(Error::invalid_argument(format_args!(
            "checkpoint options of type {:?}",
            any.type_url
        )));
    }
    CheckpointOptions::parse_from_bytes(&any.value)
        .map_err(|e| Error::invalid_argument(format_args!("checkpoint options: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use protos::well_known::Any;
    use types::Code;

    #[test]
    fn a_request_names_a_directory_or_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let request = |checkpoint: &str| CreateTaskRequest {
            checkpoint: checkpoint.into(),
            ..CreateTaskRequest::default()
        };
        let options = Options {
            criu_work_path: "/w".into(),
            ..Options::default()
        };
        assert_eq!(Image::of(&request(""), &options).unwrap(), None);
        let path = dir.path().display().to_string();
        let image = Image::of(&request(&path), &options).unwrap().unwrap();
        assert_eq!((image.path.as_path(), &*image.work), (dir.path(), "/w"));
        let absent = request(&format!("{path}/absent"));
        let bad_stream = CreateTaskRequest {
            stdout: "relative".into(),
            ..request(&path)
        };
        let with_parent = CreateTaskRequest {
            parent_checkpoint: "/p".into(),
            ..request(&path)
        };
        for (request, code) in [
            (absent, Code::InvalidArgument),
            (bad_stream, Code::InvalidArgument),
            (with_parent, Code::NotImplemented),
        ] {
            assert_eq!(Image::of(&request, &options).unwrap_err().code(), code);
        }
    }

    #[test]
    fn what_a_failed_dump_has_made_goes_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        let fill = || {
            std::fs::create_dir_all(image.join("d/e")).unwrap();
            std::fs::write(image.join("pages-1.img"), "").unwrap();
        };
        let before = Place::of(&image);
        assert_eq!(before, Place::Absent);
        fill();
        assert_eq!(Place::of(&image), Place::Used);
        Place::of(&image).restore(&image);
        assert!(image.join("d/e").exists());
        before.restore(&image);
        assert!(!image.exists());
        std::fs::create_dir(&image).unwrap();
        let before = Place::of(&image);
        fill();
        before.restore(&image);
        assert_eq!(Place::of(&image), Place::Empty);
    }

    #[test]
    fn options_of_a_checkpoint_are_of_their_type() {
        let wire = CheckpointOptions {
            exit: true,
            ..CheckpointOptions::default()
        };
        let request = |type_url: &str, value: Vec<u8>| {
            let mut any = Any::new();
            any.type_url = type_url.into();
            any.value = value;
            CheckpointTaskRequest {
                path: "/c".into(),
                options: Some(any).into(),
                ..CheckpointTaskRequest::default()
            }
        };
        let name = "containerd.runc.v1.CheckpointOptions";
        let good = request(name, wire.write_to_bytes().unwrap());
        assert!(checkpoint_options(&good).unwrap().exit);
        let none = request("", Vec::new());
        assert!(!checkpoint_options(&none).unwrap().exit);
        let no_path = CheckpointTaskRequest::default();
        for bad in [no_path, request(name, vec![255]), request("x", Vec::new())] {
            let error = checkpoint_options(&bad).unwrap_err();
            assert!(error.is(Code::InvalidArgument), "{error}");
        }
    }
}
