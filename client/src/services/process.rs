//! What the task service tells about processes.

use std::time::SystemTime;

use protos::task as wire;
use protos::wire::time;
use protos::{Enum as _, EnumOrUnknown};
use serde_json::Value;
use types::Result;

/// State of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Not known, or of a newer daemon.
    Unknown,
    /// Made, not started.
    Created,
    /// Running.
    Running,
    /// Ended.
    Stopped,
    /// Frozen.
    Paused,
    /// On the way to being frozen.
    Pausing,
}

impl Status {
    /// The word on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "UNKNOWN",
            Self::Created => "CREATED",
            Self::Running => "RUNNING",
            Self::Stopped => "STOPPED",
            Self::Paused => "PAUSED",
            Self::Pausing => "PAUSING",
        }
    }

    fn from_proto(status: EnumOrUnknown<wire::Status>) -> Self {
        match wire::Status::from_i32(status.value()) {
            None | Some(wire::Status::UNKNOWN) => Self::Unknown,
            Some(wire::Status::CREATED) => Self::Created,
            Some(wire::Status::RUNNING) => Self::Running,
            Some(wire::Status::STOPPED) => Self::Stopped,
            Some(wire::Status::PAUSED) => Self::Paused,
            Some(wire::Status::PAUSING) => Self::Pausing,
        }
    }
}

/// Where the stdio of a process goes: paths of named pipes, log addresses, or empty for nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StdioPaths {
    /// Input.
    pub stdin: String,
    /// Output.
    pub stdout: String,
    /// Errors; empty with a terminal.
    pub stderr: String,
    /// True when the process has a terminal.
    pub terminal: bool,
}

/// A task's init or an exec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Id of the container or of the exec.
    pub id: String,
    /// Pid on the host.
    pub pid: u32,
    /// State.
    pub status: Status,
    /// Where its stdio goes.
    pub stdio: StdioPaths,
    /// How it ended, once it is stopped.
    pub exit: Exited,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exited {
    /// Exit code, or 128 + signal.
    pub status: u32,
    /// When; the epoch when it has not.
    pub at: SystemTime,
}

impl Process {
    pub(super) fn from_proto(process: wire::Process) -> Result<Self> {
        Ok(Self {
            id: process.id,
            pid: process.pid,
            status: Status::from_proto(process.status),
            stdio: StdioPaths {
                stdin: process.stdin,
                stdout: process.stdout,
                stderr: process.stderr,
                terminal: process.terminal,
            },
            exit: Exited {
                status: process.exit_status,
                at: time(process.exited_at)?,
            },
        })
    }
}

/// A process that lives in a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessEntry {
    /// Pid on the host.
    pub pid: u32,
    /// Id of the exec that it is, when it is one.
    pub exec_id: Option<String>,
}

/// Resource usage of a task.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// Id of the task.
    pub id: String,
    /// When it was read.
    pub timestamp: SystemTime,
    /// Name and value, in the order and under the names that people know from `ctr`.
    pub rows: Vec<(&'static str, String)>,
    /// All of it.
    pub json: Value,
}
