//! One connection to a shim: the Task service, version 3 or 2, as domain calls.
//!
//! Invariant: this is the only module of the crate that converts wire messages. A failed call says
//! whether the connection is lost, the shim is silent, or the shim answered with an error: callers
//! decide by that and by nothing else.

mod connection;
mod dial;
pub(crate) mod event;
pub(crate) mod options;
mod ping;
mod waits;

use std::time::{Duration, SystemTime};

use protobuf::Message;
use protos::shim::task as wire;
use protos::well_known::{Empty, Timestamp};
use protos::wire::Wire as _;
use protos::{call, frame, status};
use recorder::On;
use tokio::net::UnixStream;
use types::{Any, Code, ContainerId, Error, ExecId, Exit, Mount, Namespace, Result};

use crate::{ExecOpts, ProcessInfo, ProcessState, Status, Stdio};

use connection::Connection;
pub(crate) use dial::{Dialed, dial};
use waits::Waits;

const V3: &str = "containerd.task.v3.Task";
const V2: &str = "containerd.task.v2.Task";

/// Longest answer to `State` and `Stats`, as in Go.
pub(crate) const STATE: Duration = Duration::from_secs(2);
/// Longest answer to what the shim does by itself.
const QUICK: Duration = Duration::from_secs(10);
/// Longest answer to what a runtime or a freezer does, in the time of a busy machine.
const BUSY: Duration = Duration::from_secs(60);
/// Longest answer to what mounts, restores or writes back, on a slow disk. What is not answered by then is
/// not known to have failed: the state tells.
const LONG: Duration = Duration::from_secs(10 * 60);
/// Longest answer to a start: beyond what our shim gives its runtime for that, so that it is the shim that
/// ends it.
const START: Duration = Duration::from_secs(3 * 60);
/// Longest answer to a dump of all memory, and to the start that restores one; the same.
const DUMP: Duration = Duration::from_secs(65 * 60);
/// Longest answer to `Shutdown`, as in Go.
pub(crate) const SHUTDOWN: Duration = Duration::from_secs(3);

/// Why a call has no result.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The connection ended before the answer.
    Lost,
    /// No answer within the deadline.
    Silent,
    /// The shim's answer is an error.
    Answer(Error),
}

impl Failure {
    /// The error for a caller that does not care which it was.
    pub(crate) fn into_error(self, id: &ContainerId) -> Error {
        match self {
            Self::Lost => {
                Error::unavailable(format_args!("task {id}: connection to its shim ended"))
            }
            Self::Silent => {
                Error::deadline_exceeded(format_args!("task {id}: its shim does not respond"))
            }
            Self::Answer(error) => error,
        }
    }
}

/// What `Connect` answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Peer {
    /// The shim's pid.
    pub(crate) shim: u32,
    /// It says its version, as ours does and Go's do not.
    pub(crate) has_version: bool,
}

/// What `Create` wants, beside the ids.
#[derive(Clone, Debug, Default)]
pub(crate) struct NewTask {
    pub(crate) bundle: String,
    pub(crate) rootfs: Vec<Mount>,
    pub(crate) stdio: Stdio,
    pub(crate) checkpoint: String,
    pub(crate) options: Option<Any>,
}

/// A shim that answers.
pub(crate) struct Client {
    connection: Connection,
    waits: Waits,
    service: &'static str,
    namespace: Namespace,
    id: ContainerId,
    peer: Peer,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("service", &self.service)
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Makes a client of a connected stream and asks the shim who it is, with Task version 3 unless
    /// the shim said `version` 2; falls back to 2 when it does not have 3.
    pub(crate) async fn greet(
        stream: UnixStream,
        version: i32,
        namespace: &Namespace,
        id: &ContainerId,
    ) -> Result<Self, Failure> {
        let mut client = Self {
            connection: Connection::new(stream),
            waits: Waits::default(),
            service: if version >= 3 { V3 } else { V2 },
            namespace: namespace.clone(),
            id: id.clone(),
            peer: Peer::default(),
        };
        let request = wire::ConnectRequest {
            id: id.to_string(),
            ..Default::default()
        };
        let mut response = client.send("Connect", &request, None).await?;
        if client.service == V3
            && response
                .status
                .as_ref()
                .is_some_and(status::is_unimplemented)
        {
            client.service = V2;
            response = client.send("Connect", &request, None).await?;
        }
        let answer: wire::ConnectResponse = frame::answer(&response).map_err(Failure::Answer)?;
        client.peer = Peer {
            shim: answer.shim_pid,
            has_version: !answer.version.is_empty(),
        };
        Ok(client)
    }

    /// Who answered.
    pub(crate) fn peer(&self) -> Peer {
        self.peer
    }

    /// Returns when the connection is over.
    pub(crate) async fn over(&self) {
        self.connection.over().await;
    }

    fn request<Q: Message>(
        &self,
        method: &str,
        request: &Q,
        deadline: Option<Duration>,
    ) -> Result<frame::Request, Failure> {
        let encoded = request.write_to_bytes();
        let nanoseconds = |limit: Duration| i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX);
        Ok(frame::Request {
            service: self.service.to_owned(),
            method: method.to_owned(),
            timeout_nano: deadline.map_or(0, nanoseconds),
            metadata: call::metadata(&self.namespace),
            payload: encoded.map_err(|e| Failure::Answer(Error::internal(e)))?,
            ..Default::default()
        })
    }

    async fn send<Q: Message>(
        &self,
        method: &'static str,
        request: &Q,
        deadline: Option<Duration>,
    ) -> Result<frame::Response, Failure> {
        let request = self.request(method, request, deadline)?;
        let _waiting = recorder::stage(method, || On::Process(self.peer.shim));
        let sent = self.connection.call(&request);
        match deadline {
            Some(limit) => tokio::time::timeout(limit, sent)
                .await
                .unwrap_or(Err(Failure::Silent)),
            None => sent.await,
        }
    }

    async fn call<Q: Message, A: Message>(
        &self,
        method: &'static str,
        request: &Q,
        deadline: Option<Duration>,
    ) -> Result<A, Failure> {
        let response = self.send(method, request, deadline).await?;
        frame::answer(&response).map_err(|error| {
            // The shim was told our deadline and may notice it first.
            if deadline.is_some() && error.is(Code::DeadlineExceeded) {
                Failure::Silent
            } else {
                Failure::Answer(error)
            }
        })
    }

    fn exec_id(exec: Option<&ExecId>) -> String {
        exec.map(ExecId::to_string).unwrap_or_default()
    }

    /// Creates the task and returns the pid of its init process.
    pub(crate) async fn create(&self, task: &NewTask) -> Result<u32, Failure> {
        let request = wire::CreateTaskRequest {
            id: self.id.to_string(),
            bundle: task.bundle.clone(),
            rootfs: task.rootfs.to_wire(),
            terminal: task.stdio.terminal,
            stdin: task.stdio.stdin.clone(),
            stdout: task.stdio.stdout.clone(),
            stderr: task.stdio.stderr.clone(),
            checkpoint: task.checkpoint.clone(),
            options: task.options.to_wire(),
            ..Default::default()
        };
        let answer: wire::CreateTaskResponse = self.call("Create", &request, Some(LONG)).await?;
        self.waits.forget(None).await;
        Ok(answer.pid)
    }

    /// Starts a process, or restores it from a checkpoint, and returns its pid.
    pub(crate) async fn start(
        &self,
        exec: Option<&ExecId>,
        restores: bool,
    ) -> Result<u32, Failure> {
        let limit = if restores { DUMP } else { START };
        let request = wire::StartRequest {
            id: self.id.to_string(),
            exec_id: Self::exec_id(exec),
            ..Default::default()
        };
        let answer: wire::StartResponse = self.call("Start", &request, Some(limit)).await?;
        Ok(answer.pid)
    }

    /// State of a process.
    pub(crate) async fn state(&self, exec: Option<&ExecId>) -> Result<ProcessState, Failure> {
        let request = wire::StateRequest {
            id: self.id.to_string(),
            exec_id: Self::exec_id(exec),
            ..Default::default()
        };
        let answer: wire::StateResponse = self.call("State", &request, Some(STATE)).await?;
        let status = status_of(answer.status.value());
        Ok(ProcessState {
            id: exec.map_or_else(|| self.id.to_string(), ExecId::to_string),
            pid: answer.pid,
            status,
            exit: (status == Status::Stopped)
                .then(|| (answer.exit_status, exit_time(answer.exited_at.as_ref()))),
            stdio: Stdio {
                stdin: answer.stdin,
                stdout: answer.stdout,
                stderr: answer.stderr,
                terminal: answer.terminal,
            },
            stale: false,
        })
    }

    /// Adds a process.
    pub(crate) async fn exec(&self, id: &ExecId, opts: &ExecOpts) -> Result<(), Failure> {
        let request = wire::ExecProcessRequest {
            id: self.id.to_string(),
            exec_id: id.to_string(),
            terminal: opts.stdio.terminal,
            stdin: opts.stdio.stdin.clone(),
            stdout: opts.stdio.stdout.clone(),
            stderr: opts.stdio.stderr.clone(),
            spec: Some(opts.spec.clone()).to_wire(),
            ..Default::default()
        };
        self.call::<_, Empty>("Exec", &request, Some(BUSY)).await?;
        self.waits.forget(Some(id)).await;
        Ok(())
    }

    /// Sends a signal.
    pub(crate) async fn kill(
        &self,
        exec: Option<&ExecId>,
        signal: u32,
        all: bool,
    ) -> Result<(), Failure> {
        let request = wire::KillRequest {
            id: self.id.to_string(),
            exec_id: Self::exec_id(exec),
            signal,
            all,
            ..Default::default()
        };
        self.call::<_, Empty>("Kill", &request, Some(BUSY))
            .await
            .map(drop)
    }

    /// Waits for the end of a process: exit status and time. All who wait share one call.
    pub(crate) async fn wait(&self, exec: Option<&ExecId>) -> Result<(u32, SystemTime), Failure> {
        let request = wire::WaitRequest {
            id: self.id.to_string(),
            exec_id: Self::exec_id(exec),
            ..Default::default()
        };
        let request = self.request("Wait", &request, None)?;
        let response = self
            .waits
            .wait(exec, self.connection.begin(&request))
            .await?;
        let answer: wire::WaitResponse = frame::answer(&response).map_err(Failure::Answer)?;
        Ok((answer.exit_status, exit_time(answer.exited_at.as_ref())))
    }

    /// Deletes a process that has ended.
    pub(crate) async fn delete(&self, exec: Option<&ExecId>) -> Result<Exit, Failure> {
        let request = wire::DeleteRequest {
            id: self.id.to_string(),
            exec_id: Self::exec_id(exec),
            ..Default::default()
        };
        let answer: wire::DeleteResponse = self.call("Delete", &request, Some(LONG)).await?;
        self.waits.forget(exec).await;
        Ok(Exit {
            pid: answer.pid,
            status: answer.exit_status,
            at: exit_time(answer.exited_at.as_ref()),
        })
    }

    /// Freezes all processes.
    pub(crate) async fn pause(&self) -> Result<(), Failure> {
        let request = wire::PauseRequest {
            id: self.id.to_string(),
            ..Default::default()
        };
        self.call::<_, Empty>("Pause", &request, Some(BUSY))
            .await
            .map(drop)
    }

    /// Thaws them.
    pub(crate) async fn resume(&self) -> Result<(), Failure> {
        let request = wire::ResumeRequest {
            id: self.id.to_string(),
            ..Default::default()
        };
        self.call::<_, Empty>("Resume", &request, Some(BUSY))
            .await
            .map(drop)
    }

    /// Sets the size of a terminal.
    pub(crate) async fn resize(
        &self,
        exec: Option<&ExecId>,
        width: u32,
        height: u32,
    ) -> Result<(), Failure> {
        let request = wire::ResizePtyRequest {
            id: self.id.to_string(),
            exec_id: Self::exec_id(exec),
            width,
            height,
            ..Default::default()
        };
        self.call::<_, Empty>("ResizePty", &request, Some(QUICK))
            .await
            .map(drop)
    }

    /// Closes standard input.
    pub(crate) async fn close_io(&self, exec: Option<&ExecId>) -> Result<(), Failure> {
        let request = wire::CloseIORequest {
            id: self.id.to_string(),
            exec_id: Self::exec_id(exec),
            stdin: true,
            ..Default::default()
        };
        self.call::<_, Empty>("CloseIO", &request, Some(QUICK))
            .await
            .map(drop)
    }

    /// All processes.
    pub(crate) async fn pids(&self) -> Result<Vec<ProcessInfo>, Failure> {
        let request = wire::PidsRequest {
            id: self.id.to_string(),
            ..Default::default()
        };
        let answer: wire::PidsResponse = self.call("Pids", &request, Some(BUSY)).await?;
        let one = |info: protos::task::ProcessInfo| {
            let details = Option::from_wire(info.info).map_err(Failure::Answer)?;
            Ok(ProcessInfo {
                pid: info.pid,
                details,
            })
        };
        answer.processes.into_iter().map(one).collect()
    }

    /// Changes resources.
    pub(crate) async fn update(
        &self,
        resources: Any,
        annotations: Vec<(String, String)>,
    ) -> Result<(), Failure> {
        let request = wire::UpdateTaskRequest {
            id: self.id.to_string(),
            resources: Some(resources).to_wire(),
            annotations: annotations.into_iter().collect(),
            ..Default::default()
        };
        self.call::<_, Empty>("Update", &request, Some(BUSY))
            .await
            .map(drop)
    }

    /// Writes a checkpoint.
    pub(crate) async fn checkpoint(&self, path: &str, options: Option<Any>) -> Result<(), Failure> {
        let request = wire::CheckpointTaskRequest {
            id: self.id.to_string(),
            path: path.to_owned(),
            options: options.to_wire(),
            ..Default::default()
        };
        self.call::<_, Empty>("Checkpoint", &request, Some(DUMP))
            .await
            .map(drop)
    }

    /// Statistics.
    pub(crate) async fn stats(&self) -> Result<Any, Failure> {
        let request = wire::StatsRequest {
            id: self.id.to_string(),
            ..Default::default()
        };
        let answer: wire::StatsResponse = self.call("Stats", &request, Some(STATE)).await?;
        Any::from_wire(answer.stats.unwrap_or_default()).map_err(Failure::Answer)
    }

    /// Ends the shim when it has no container left (`now`: in any case).
    pub(crate) async fn shutdown(&self, now: bool) -> Result<(), Failure> {
        let request = wire::ShutdownRequest {
            id: self.id.to_string(),
            now,
            ..Default::default()
        };
        self.call::<_, Empty>("Shutdown", &request, Some(SHUTDOWN))
            .await
            .map(drop)
    }
}

fn status_of(number: i32) -> Status {
    match number {
        1 => Status::Created,
        2 => Status::Running,
        3 => Status::Stopped,
        4 => Status::Paused,
        5 => Status::Pausing,
        _ => Status::Unknown,
    }
}

/// Time of an exit; now when the peer gave none or an impossible one.
pub(crate) fn exit_time(time: Option<&Timestamp>) -> SystemTime {
    time.and_then(|time| SystemTime::from_wire(time.clone()).ok())
        .unwrap_or_else(SystemTime::now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_the_wire_are_the_domains() {
        for number in 0..=5 {
            assert_eq!(status_of(number) as i32, number);
        }
        assert_eq!(status_of(6), Status::Unknown);
    }
}
