//! Runtime: tasks, kept by shims.
//!
//! Invariant: a task whose init process may be alive is never deleted because its shim is silent; only
//! a kernel fact (connection refused, process gone) says that a shim is gone.
//!
//! ```text
//! tasks ─┬─ create ── bundle, log ── bootstrap (shim binaries) ── client ──> shim
//!        ├─ task (calls on one) ─── entry (link, seen) ───────── client ──> shim
//!        ├─ shims (watch, delete, clean up after) ── bundle, bootstrap
//!        └─ recover (after a restart) ── shims
//! ```
//! Called by the daemon's task service and its event service ([`Tasks::observe`]). Wire messages stay
//! in `client` and `bootstrap`.

mod bootstrap;
mod bundle;
mod client;
mod create;
mod ending;
mod entry;
mod exec;
mod found;
mod infos;
mod log;
mod reach;
mod recover;
mod seen;
mod shims;
mod silent;
mod sockets;
mod task;
mod tasks;
#[cfg(test)]
mod testing;
mod turns;
mod undo;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use types::{Any, ContainerId, ExecId, Exit, Mount, Namespace, Result, Scope};

pub use found::{Found, Survey, found, survey, sweep};
pub use tasks::{Config, Publisher, RuntimeOf, Tasks};

/// Standard streams of a process: paths or URIs, empty for none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stdio {
    /// Where standard input comes from.
    pub stdin: String,
    /// Where standard output goes.
    pub stdout: String,
    /// Where standard error goes (not with a terminal).
    pub stderr: String,
    /// A terminal is wanted.
    pub terminal: bool,
}

/// How to create a task.
#[derive(Clone, Debug)]
pub struct CreateOpts {
    /// OCI spec bytes, written to the bundle as they are.
    pub spec: Vec<u8>,
    /// Root file system.
    pub rootfs: Vec<Mount>,
    /// Streams of the init process.
    pub stdio: Stdio,
    /// Name or path of the shim (`io.containerd.runc.v2`).
    pub runtime: String,
    /// Options for the runtime.
    pub options: Option<Any>,
    /// What to restore the task from, when it is not to run its command.
    pub checkpoint: Option<Checkpoint>,
    /// Sandbox id, empty for none.
    pub sandbox: String,
}

/// A checkpoint to restore from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checkpoint {
    /// A directory of the client's, used as it is.
    At(String),
    /// A directory, on the file system of the daemon's root, that becomes the task's: it is moved, and
    /// goes when the task has started or is removed. When the move did not happen, it is still there.
    Given(PathBuf),
}

/// An additional process.
#[derive(Clone, Debug)]
pub struct ExecOpts {
    /// OCI process, JSON in an `Any`.
    pub spec: Any,
    /// Its streams.
    pub stdio: Stdio,
}

/// State of a process. Numbers are those of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Not known.
    Unknown = 0,
    /// Waits for start.
    Created = 1,
    /// Runs.
    Running = 2,
    /// Ended.
    Stopped = 3,
    /// Frozen.
    Paused = 4,
    /// Being frozen.
    Pausing = 5,
}

/// What is known of a process.
#[derive(Clone, Debug)]
pub struct ProcessState {
    /// Container id, or exec id.
    pub id: String,
    /// Pid in the host's namespace.
    pub pid: u32,
    /// State.
    pub status: Status,
    /// Streams.
    pub stdio: Stdio,
    /// Exit status and time, once it ended.
    pub exit: Option<(u32, SystemTime)>,
    /// The answer is from memory: the shim does not respond at the moment.
    pub stale: bool,
}

/// A process in a task: its pid and, when it is an exec, an opaque `Any` with its id.
#[derive(Clone, Debug)]
pub struct ProcessInfo {
    /// Pid in the host's namespace.
    pub pid: u32,
    /// Details as the shim gave them.
    pub details: Option<Any>,
}

/// Keeps all tasks of the daemon.
#[async_trait]
pub trait TaskManager: Send + Sync + fmt::Debug {
    /// Creates the task of a container: bundle, shim, runtime `create`. On failure nothing is left.
    ///
    /// # Errors
    /// `AlreadyExists`; `NotFound` for a missing runtime binary; what the shim answers.
    async fn create(
        &self,
        scope: &Scope,
        id: &ContainerId,
        opts: CreateOpts,
    ) -> Result<Arc<dyn Task>>;

    /// Whether a task of this id can be made, before much is done for it: somebody may be quicker.
    ///
    /// # Errors
    /// `AlreadyExists`.
    fn check_free(&self, namespace: &Namespace, id: &ContainerId) -> Result<()>;

    /// One task.
    ///
    /// # Errors
    /// `NotFound`.
    async fn get(&self, namespace: &Namespace, id: &ContainerId) -> Result<Arc<dyn Task>>;

    /// All tasks of a namespace (`None`: of all), from local state.
    ///
    /// # Errors
    /// None today; the signature leaves room for remote managers.
    async fn list(&self, namespace: Option<&Namespace>) -> Result<Vec<Arc<dyn Task>>>;

    /// Deletes a stopped task, its shim and bundle.
    ///
    /// # Errors
    /// `NotFound`; Unknown "cannot delete a running process"-like errors of the shim.
    async fn delete(&self, namespace: &Namespace, id: &ContainerId) -> Result<Exit>;

    /// What the runtime binary tells of itself (`-info`), as an encoded `containerd.types.RuntimeInfo`.
    ///
    /// # Errors
    /// `NotFound` for a missing binary.
    async fn runtime_info(&self, runtime: &str, options: Option<Any>) -> Result<Any>;
    /// What a runtime's binary told of itself, without options, when it was first asked or has changed
    /// since; `None` of one that is too old to tell anything. What it tells of other programs may have
    /// changed.
    ///
    /// # Errors
    /// As [`Self::runtime_info`]; that of a binary that failed.
    async fn known_info(&self, runtime: &str) -> Result<Option<Any>>;
}

/// One task. `exec: None` is the init process.
#[async_trait]
pub trait Task: Send + Sync + fmt::Debug {
    /// Container id.
    fn id(&self) -> &ContainerId;
    /// Namespace.
    fn namespace(&self) -> &Namespace;
    /// Pid of the init process.
    fn pid(&self) -> u32;
    /// The last known state of a process, from memory: never waits, for lists.
    ///
    /// # Errors
    /// `NotFound` for an unknown exec.
    fn known(&self, exec: Option<&ExecId>) -> Result<ProcessState>;
    /// URL of the shim's socket, for clients that attach to a process.
    ///
    /// # Errors
    /// `Unavailable` as long as it is not known, `NotFound` when the shim is gone.
    fn endpoint(&self) -> Result<String>;
    /// The shim does not answer at the moment, as far as that is known without asking it: it has yet to
    /// answer this daemon, or did not in time when it was asked last.
    fn is_silent(&self) -> bool;
    /// Starts a created process and returns its pid.
    ///
    /// # Errors
    /// `FailedPrecondition` in another state.
    async fn start(&self, exec: Option<&ExecId>) -> Result<u32>;
    /// State of a process.
    ///
    /// # Errors
    /// `NotFound`.
    async fn state(&self, exec: Option<&ExecId>) -> Result<ProcessState>;
    /// Adds a process.
    ///
    /// # Errors
    /// `AlreadyExists`; `FailedPrecondition` after the end of init.
    async fn exec(&self, id: &ExecId, opts: ExecOpts) -> Result<()>;
    /// Sends a signal.
    ///
    /// # Errors
    /// `NotFound` when the process has ended.
    async fn kill(&self, exec: Option<&ExecId>, signal: u32, all: bool) -> Result<()>;
    /// Waits for the end; answers at once when it is over already.
    ///
    /// # Errors
    /// `NotFound` for an unknown exec.
    async fn wait(&self, exec: Option<&ExecId>) -> Result<Exit>;
    /// Deletes an exec.
    ///
    /// # Errors
    /// `NotFound`; an error of class Unknown while it runs.
    async fn delete_exec(&self, id: &ExecId) -> Result<Exit>;
    /// Freezes all processes.
    ///
    /// # Errors
    /// What the runtime answers.
    async fn pause(&self) -> Result<()>;
    /// Thaws them.
    ///
    /// # Errors
    /// What the runtime answers.
    async fn resume(&self) -> Result<()>;
    /// Sets the size of a terminal.
    ///
    /// # Errors
    /// `NotFound`.
    async fn resize(&self, exec: Option<&ExecId>, width: u32, height: u32) -> Result<()>;
    /// Closes standard input.
    ///
    /// # Errors
    /// `NotFound`.
    async fn close_io(&self, exec: Option<&ExecId>) -> Result<()>;
    /// All processes.
    ///
    /// # Errors
    /// `NotFound` before create.
    async fn pids(&self) -> Result<Vec<ProcessInfo>>;
    /// Changes resources (JSON `LinuxResources` in an `Any`).
    ///
    /// # Errors
    /// What the runtime answers.
    async fn update(&self, resources: Any, annotations: Vec<(String, String)>) -> Result<()>;
    /// Writes a checkpoint to `path`.
    ///
    /// # Errors
    /// What the runtime answers.
    async fn checkpoint(&self, path: &str, options: Option<Any>) -> Result<()>;
    /// Statistics as a typed `Any` (cgroup v1 or v2 metrics).
    ///
    /// # Errors
    /// What the shim answers.
    async fn stats(&self) -> Result<Any>;
}
