//! One container of a shim, over a connection of its own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use protos::Message;
use protos::shim::task as api;
use protos::task::{ProcessInfo, Status};
use protos::well_known::{Any, Empty};
use serde_json::{Value, json};
use ttrpc::asynchronous::{Client, transport::Socket};
use types::{Error, Result};

use super::{Driver, LONG, Raw, Shim};

/// Where a process's streams go. Empty is nowhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Io {
    /// A fifo.
    pub stdin: String,
    /// A fifo, or an address with a scheme.
    pub stdout: String,
    /// As `stdout`.
    pub stderr: String,
    /// A terminal in place of three streams.
    pub terminal: bool,
}

impl Io {
    /// Nothing goes anywhere.
    #[must_use]
    pub fn null() -> Self {
        Self::default()
    }

    /// Both outputs to one address.
    #[must_use]
    pub fn log(address: &str) -> Self {
        Self {
            stdout: address.to_owned(),
            stderr: address.to_owned(),
            ..Self::default()
        }
    }

    /// Standard output to a fifo or an address, nothing else.
    #[must_use]
    pub fn stdout(path: &Path) -> Self {
        Self {
            stdout: path.display().to_string(),
            ..Self::default()
        }
    }
}

/// One container of a shim.
#[derive(Clone)]
pub struct Task {
    runtime: tokio::runtime::Handle,
    client: Client,
    service: &'static str,
    options: Any,
    address: String,
    /// Its id.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Pid of the shim.
    pub shim: u32,
}

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Task({} at {})", self.id, self.address)
    }
}

/// A process that runs `script` in a shell, as the runtime spec writes it.
#[must_use]
pub fn process(script: &str) -> Value {
    json!({
        "user": {"uid": 0, "gid": 0},
        "args": ["/bin/sh", "-c", script],
        "cwd": "/",
        "env": ["PATH=/bin"],
    })
}

impl Task {
    pub(super) fn open(driver: &Driver, address: &str, id: &str) -> Option<Self> {
        let runtime = driver.runtime.handle().clone();
        let path = address.strip_prefix("unix://").unwrap_or(address);
        let stream = runtime
            .block_on(tokio::net::UnixStream::connect(path))
            .ok()?;
        let _inside = runtime.enter();
        Some(Self {
            client: Client::new(Socket::from(stream)),
            service: "containerd.task.v3.Task",
            options: driver.options(),
            address: address.to_owned(),
            id: id.to_owned(),
            bundle: driver.bundle(id),
            shim: 0,
            runtime,
        })
    }

    /// The same over version 2 of the service.
    #[must_use]
    pub fn version_2(mut self) -> Self {
        self.service = "containerd.task.v2.Task";
        self
    }

    /// The same with another runtime in its options.
    #[must_use]
    pub fn runtime(mut self, options: Any) -> Self {
        self.options = options;
        self
    }

    /// Its shim.
    #[must_use]
    pub fn shim(&self) -> Shim {
        Shim {
            address: self.address.clone(),
            pid: self.shim,
        }
    }

    /// Bytes on the shim's socket.
    #[must_use]
    pub fn raw(&self) -> Raw {
        Raw::connect(&self.address)
    }

    /// A call of the Task service.
    ///
    /// # Errors
    /// What the shim says; `Unavailable` when it is gone, `DeadlineExceeded` after a minute.
    pub fn call<Q: Message, A: Message>(&self, method: &str, request: &Q) -> Result<A> {
        self.call_of(self.service, method, request, LONG)
    }

    /// A call of any service, with a deadline.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn call_of<Q: Message, A: Message>(
        &self,
        service: &str,
        method: &str,
        request: &Q,
        limit: Duration,
    ) -> Result<A> {
        let payload = request.write_to_bytes().map_err(Error::internal)?;
        let call = ttrpc::Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload,
            timeout_nano: i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX),
            ..Default::default()
        };
        let answer = self.runtime.block_on(self.client.request(call));
        let answer = answer.map_err(|e| protos::status::from_ttrpc(&e))?;
        A::parse_from_bytes(&answer.payload).map_err(Error::internal)
    }

    /// Creates the container; pid of its init.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn create(&self, io: &Io) -> Result<u32> {
        let answer: api::CreateTaskResponse = self.call("Create", &self.create_request(io))?;
        Ok(answer.pid)
    }

    /// What [`Self::create`] asks.
    #[must_use]
    pub fn create_request(&self, io: &Io) -> api::CreateTaskRequest {
        api::CreateTaskRequest {
            id: self.id.clone(),
            bundle: self.bundle.display().to_string(),
            terminal: io.terminal,
            stdin: io.stdin.clone(),
            stdout: io.stdout.clone(),
            stderr: io.stderr.clone(),
            options: Some(self.options.clone()).into(),
            ..Default::default()
        }
    }

    /// Starts the init (empty `exec`) or an exec; its pid.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn start(&self, exec: &str) -> Result<u32> {
        let request = api::StartRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        let answer: api::StartResponse = self.call("Start", &request)?;
        Ok(answer.pid)
    }

    /// Adds a process that runs `script`, to be started.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn exec(&self, exec: &str, script: &str, io: &Io) -> Result<()> {
        let spec = Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned(),
            value: process(script).to_string().into_bytes(),
            ..Default::default()
        };
        let request = api::ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            terminal: io.terminal,
            stdin: io.stdin.clone(),
            stdout: io.stdout.clone(),
            stderr: io.stderr.clone(),
            spec: Some(spec).into(),
            ..Default::default()
        };
        self.call::<_, Empty>("Exec", &request).map(drop)
    }

    /// Runs `script` in the container to its end and removes its record; how it ended.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn run(&self, exec: &str, script: &str, io: &Io) -> Result<u32> {
        self.exec(exec, script, io)?;
        self.start(exec)?;
        let status = self.wait(exec)?;
        self.delete(exec)?;
        Ok(status)
    }

    /// Waits for an end; how it ended.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn wait(&self, exec: &str) -> Result<u32> {
        let request = api::WaitRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        let answer: api::WaitResponse = self.call("Wait", &request)?;
        Ok(answer.exit_status)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn kill(&self, exec: &str, signal: u32) -> Result<()> {
        let request = api::KillRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            signal,
            ..Default::default()
        };
        self.call::<_, Empty>("Kill", &request).map(drop)
    }

    /// Removes the container (empty `exec`) or an exec's record.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn delete(&self, exec: &str) -> Result<api::DeleteResponse> {
        let request = api::DeleteRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        self.call("Delete", &request)
    }

    /// Kills the init, waits for its end and removes the container; how it ended.
    ///
    /// # Panics
    /// When the shim refuses.
    pub fn end(&self) -> u32 {
        self.kill("", 9).expect("kill");
        let status = self.wait("").expect("wait");
        self.delete("").expect("delete");
        status
    }

    /// All that the shim knows of a process.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn state(&self, exec: &str) -> Result<api::StateResponse> {
        let request = api::StateRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        self.call("State", &request)
    }

    /// Status of the init.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn status(&self) -> Result<Status> {
        let state = self.state("")?;
        Ok(state.status.enum_value_or_default())
    }

    /// Its processes.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn pids(&self) -> Result<Vec<ProcessInfo>> {
        let request = api::PidsRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        let answer: api::PidsResponse = self.call("Pids", &request)?;
        Ok(answer.processes)
    }

    /// Freezes it.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn pause(&self) -> Result<()> {
        let request = api::PauseRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        self.call::<_, Empty>("Pause", &request).map(drop)
    }

    /// Thaws it.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn resume(&self) -> Result<()> {
        let request = api::ResumeRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        self.call::<_, Empty>("Resume", &request).map(drop)
    }

    /// Changes its limits, given as the runtime spec writes them.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn update(&self, resources: &Value) -> Result<()> {
        let resources = Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".to_owned(),
            value: resources.to_string().into_bytes(),
            ..Default::default()
        };
        let request = api::UpdateTaskRequest {
            id: self.id.clone(),
            resources: Some(resources).into(),
            ..Default::default()
        };
        self.call::<_, Empty>("Update", &request).map(drop)
    }

    /// What it uses, in the form of the machine's control groups.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn stats(&self) -> Result<Any> {
        let request = api::StatsRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        let answer: api::StatsResponse = self.call("Stats", &request)?;
        Ok(answer.stats.unwrap_or_default())
    }

    /// Sets the size of a terminal.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn resize(&self, exec: &str, width: u32, height: u32) -> Result<()> {
        let request = api::ResizePtyRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            width,
            height,
            ..Default::default()
        };
        self.call::<_, Empty>("ResizePty", &request).map(drop)
    }

    /// No more input.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn close_stdin(&self, exec: &str) -> Result<()> {
        let request = api::CloseIORequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            stdin: true,
            ..Default::default()
        };
        self.call::<_, Empty>("CloseIO", &request).map(drop)
    }

    /// Asks the shim to end: `now`, or only when it keeps nothing any more.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn shutdown(&self, now: bool) -> Result<()> {
        let request = api::ShutdownRequest {
            id: self.id.clone(),
            now,
            ..Default::default()
        };
        self.call::<_, Empty>("Shutdown", &request).map(drop)
    }
}
