//! The Task service, versions 2 and 3 on one socket: decode, one call, encode.
//!
//! Invariant: a request that changes something runs on a task of its own from the moment it was read,
//! so that a client which hangs up cannot stop it, neither half-way nor before it began, and a bug in
//! it ends only that request.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use protos::any::pack;
use protos::frame::Request;
use protos::runc::ProcessDetails;
use protos::shim::task as api;
use protos::task::ProcessInfo;
use protos::well_known::{Any, Empty, Timestamp};
use protos::wire::Wire as _;
use protos::{EnumOrUnknown, Message, MessageField};
use sys::cgroup::Cgroup;
use tokio::sync::Notify;
use tokio::time::sleep;
use types::{Context as _, Error, Exit, Namespace, Result};

use crate::attach;
use crate::container::Container;
use crate::lifecycle::Input;
use crate::log;
use crate::publish::Publisher;
use crate::reap::Reap;
use crate::runc::Limits;
use crate::stats;
use crate::wire::{Reply, Told};

/// How long the answer that the shim ends may take to leave: its caller may be gone.
const LAST_ANSWER: Duration = Duration::from_millis(500);

/// Everything that this shim keeps.
#[derive(Debug)]
pub(crate) struct Shim {
    pub(crate) namespace: Namespace,
    pub(crate) reap: Arc<Reap>,
    pub(crate) publisher: Arc<Publisher>,
    /// Of calls of the runtime.
    pub(crate) limits: Limits,
    containers: Mutex<Containers>,
    /// The shim shall end.
    pub(crate) stop: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Containers {
    made: BTreeMap<String, Arc<Container>>,
    in_the_making: BTreeSet<String>,
}

/// An id in the making, until this goes.
struct Making {
    shim: Arc<Shim>,
    id: String,
}

impl Drop for Making {
    fn drop(&mut self) {
        self.shim.containers().in_the_making.remove(&self.id);
    }
}

impl Shim {
    pub(crate) fn new(namespace: Namespace) -> Self {
        Self {
            publisher: Arc::new(Publisher::new(namespace.clone())),
            namespace,
            reap: Arc::new(Reap::default()),
            limits: Limits::from_environment(),
            containers: Mutex::new(Containers::default()),
            stop: Arc::default(),
        }
    }

    fn containers(&self) -> MutexGuard<'_, Containers> {
        self.containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>> {
        let found = self.containers().made.get(id).map(Arc::clone);
        found.ok_or_else(|| Error::not_found("container not created"))
    }

    pub(crate) async fn create(self: &Arc<Self>, request: api::CreateTaskRequest) -> Result<u32> {
        types::Identifier::check(&request.id)?;
        let _making = self.reserve(&request.id)?;
        let container = Container::create(self, &request).await?;
        let pid = container.init.view().pid;
        self.containers().made.insert(request.id, container);
        Ok(pid)
    }

    /// Keeps an id for a container that is being made.
    fn reserve(self: &Arc<Self>, id: &str) -> Result<Making> {
        let mut containers = self.containers();
        let taken =
            containers.made.contains_key(id) || !containers.in_the_making.insert(id.to_owned());
        if taken {
            return Err(Error::already_exists(format_args!("task {id}")));
        }
        Ok(Making {
            shim: Arc::clone(self),
            id: id.to_owned(),
        })
    }

    async fn delete(&self, request: &api::DeleteRequest) -> Result<Exit> {
        let container = self.container(&request.id)?;
        let deleted = container.delete(self, &request.exec_id).await;
        if request.exec_id.is_empty() && container.init.check(Input::Touch).is_err() {
            let gone = matches!(
                container.init.view().phase,
                crate::lifecycle::Phase::Deleted
            );
            if gone {
                self.containers().made.remove(&request.id);
            }
        }
        deleted
    }

    async fn checkpoint(&self, request: &api::CheckpointTaskRequest) -> Result<()> {
        let container = self.container(&request.id)?;
        container.checkpoint(self, request).await
    }

    /// One that is being made is neither there nor absent, and a daemon that ends what is absent asks.
    fn settled(&self, id: &str) -> Result<Arc<Container>> {
        let containers = self.containers();
        if !containers.made.contains_key(id) && containers.in_the_making.contains(id) {
            return Err(Error::unavailable("container is being made"));
        }
        drop(containers);
        self.container(id)
    }

    fn state(&self, request: &api::StateRequest) -> Result<api::StateResponse> {
        let container = self.settled(&request.id)?;
        let process = container.process(&request.exec_id)?;
        let (view, exit) = (process.view(), process.exit());
        let exited = view.phase.exit().is_some();
        let id = if request.exec_id.is_empty() {
            &request.id
        } else {
            &request.exec_id
        };
        Ok(api::StateResponse {
            id: id.clone(),
            bundle: container.bundle.display().to_string(),
            pid: view.pid,
            status: EnumOrUnknown::new(view.status()),
            stdin: process.paths.stdin.clone(),
            stdout: process.paths.stdout.clone(),
            stderr: process.paths.stderr.clone(),
            terminal: process.paths.terminal,
            exit_status: exit.status,
            exited_at: if exited {
                time(exit)
            } else {
                MessageField::none()
            },
            exec_id: request.exec_id.clone(),
            ..api::StateResponse::default()
        })
    }

    fn pids(&self, id: &str) -> Result<Vec<ProcessInfo>> {
        let container = self.container(id)?;
        // A container in the shim's group has none of its own.
        let own = Cgroup::of(std::process::id()).ok();
        let pids = container.pids(own.as_ref());
        pids.into_iter()
            .map(|(pid, exec)| {
                let details = exec.map(|exec_id| {
                    pack(&ProcessDetails {
                        exec_id,
                        ..ProcessDetails::default()
                    })
                });
                let info = details.transpose()?.map(|any| any.to_wire());
                Ok(ProcessInfo {
                    pid,
                    info: info.into(),
                    ..ProcessInfo::default()
                })
            })
            .collect()
    }

    fn stats(&self, id: &str) -> Result<Any> {
        let container = self.container(id)?;
        let group = container.cgroup.get();
        let group = group.ok_or_else(|| Error::not_found("control group of the container"))?;
        stats::to_any(&group.stats()?)
    }

    async fn start(self: &Arc<Self>, request: &api::StartRequest) -> Result<u32> {
        let container = self.container(&request.id)?;
        if request.exec_id.is_empty() {
            container.start(self).await
        } else {
            container.start_exec(self, &request.exec_id).await
        }
    }

    async fn kill(&self, request: &api::KillRequest) -> Result<()> {
        let container = self.container(&request.id)?;
        container
            .kill(&request.exec_id, request.signal, request.all)
            .await
    }

    async fn update(&self, request: &api::UpdateTaskRequest) -> Result<()> {
        let container = self.container(&request.id)?;
        container.update(&request.resources.value).await
    }

    fn add_exec(&self, request: &api::ExecProcessRequest) -> Result<()> {
        self.container(&request.id)?.add_exec(self, request)
    }

    fn resize(&self, request: &api::ResizePtyRequest) -> Result<()> {
        let process = self.container(&request.id)?.process(&request.exec_id)?;
        process.resize(request.width, request.height).ctx("resize")
    }

    fn close_io(&self, request: &api::CloseIORequest) -> Result<()> {
        let process = self.container(&request.id)?.process(&request.exec_id)?;
        if request.stdin {
            process.close_stdin();
        }
        Ok(())
    }

    fn answer_pids(&self, request: &api::PidsRequest) -> Result<Reply> {
        message(&api::PidsResponse {
            processes: self.pids(&request.id)?,
            ..Default::default()
        })
    }

    fn answer_stats(&self, request: &api::StatsRequest) -> Result<Reply> {
        message(&api::StatsResponse {
            stats: MessageField::some(self.stats(&request.id)?),
            ..Default::default()
        })
    }

    fn connect(&self, id: &str) -> api::ConnectResponse {
        self.publisher.hurry();
        let task = self
            .container(id)
            .map_or(0, |container| container.init.view().pid);
        api::ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: task,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..api::ConnectResponse::default()
        }
    }

    /// Ends the shim when its answer has left or nobody takes it, unless it is of use.
    fn shutdown(&self, now: bool) -> Result<Reply> {
        let containers = self.containers();
        let busy = !containers.made.is_empty() || !containers.in_the_making.is_empty();
        let ends = now || !busy;
        log::debug(format_args!("shutdown: {ends}"));
        if ends {
            let stop = Arc::clone(&self.stop);
            drop(tokio::spawn(async move {
                sleep(LAST_ANSWER).await;
                stop.notify_one();
            }));
        }
        Ok(Reply {
            sent: ends.then(|| Told(Arc::clone(&self.stop))),
            ..message(&Empty::new())?
        })
    }
}

fn time(exit: Exit) -> MessageField<Timestamp> {
    MessageField::some(exit.at.to_wire())
}

/// The Task service under both of its names: version 2 differs in nothing else.
const TASK: [&str; 2] = ["containerd.task.v3.Task", "containerd.task.v2.Task"];

/// An answer to come.
pub(crate) type Answer = Pin<Box<dyn Future<Output = Result<Reply>> + Send>>;

/// Answers a call. One that changes something is under way when this returns, whatever becomes of the
/// answer; what changes nothing is of no use to a caller that is gone.
///
/// # Errors
/// `NotImplemented` for a service or method that is not here, else the method's own.
pub(crate) fn dispatch(shim: Arc<Shim>, request: Request) -> Answer {
    // Apart, since a wait lasts as long as its process: its future must be a small one.
    match (request.service.as_str(), request.method.as_str()) {
        (attach::SERVICE, _) => Box::pin(async move { attach::dispatch(&shim, &request).await }),
        (service, _) if !TASK.contains(&service) => {
            let error = Error::not_implemented(format_args!("service {service}"));
            Box::pin(async move { Err(error) })
        }
        (_, "Wait") => Box::pin(async move { wait(&shim, &decode(&request.payload)?).await }),
        (_, "State" | "Pids" | "Stats" | "Connect") => {
            Box::pin(async move { read(&shim, &request) })
        }
        _ => Box::pin(run(change(shim, request))),
    }
}

fn read(shim: &Shim, request: &Request) -> Result<Reply> {
    let body = request.payload.as_slice();
    match request.method.as_str() {
        "State" => message(&shim.state(&decode(body)?)?),
        "Pids" => shim.answer_pids(&decode(body)?),
        "Stats" => shim.answer_stats(&decode(body)?),
        _ => message(&shim.connect(&decode::<api::ConnectRequest>(body)?.id)),
    }
}

async fn change(shim: Arc<Shim>, request: Request) -> Result<Reply> {
    let body = request.payload.as_slice();
    match request.method.as_str() {
        "Exec" => done(shim.add_exec(&decode(body)?)),
        "ResizePty" => done(shim.resize(&decode(body)?)),
        "CloseIO" => done(shim.close_io(&decode(body)?)),
        "Shutdown" => {
            let request: api::ShutdownRequest = decode(body)?;
            shim.shutdown(request.now)
        }
        "Create" => {
            let pid = shim.create(decode(body)?).await?;
            message(&api::CreateTaskResponse {
                pid,
                ..Default::default()
            })
        }
        "Start" => {
            let pid = shim.start(&decode(body)?).await?;
            message(&api::StartResponse {
                pid,
                ..Default::default()
            })
        }
        "Delete" => {
            let exit = shim.delete(&decode(body)?).await?;
            message(&api::DeleteResponse {
                pid: exit.pid,
                exit_status: exit.status,
                exited_at: time(exit),
                ..Default::default()
            })
        }
        "Pause" => {
            let request: api::PauseRequest = decode(body)?;
            done(shim.container(&request.id)?.pause(&shim).await)
        }
        "Resume" => {
            let request: api::ResumeRequest = decode(body)?;
            done(shim.container(&request.id)?.resume(&shim).await)
        }
        "Checkpoint" => done(shim.checkpoint(&decode(body)?).await),
        "Kill" => done(shim.kill(&decode(body)?).await),
        "Update" => done(shim.update(&decode(body)?).await),
        other => Err(Error::not_implemented(format_args!("method {other}"))),
    }
}

/// Waits for an end. The record may be deleted meanwhile; the end is told all the same.
async fn wait(shim: &Shim, request: &api::WaitRequest) -> Result<Reply> {
    let process = shim.container(&request.id)?.process(&request.exec_id)?;
    let exit = process.wait().await?;
    message(&api::WaitResponse {
        exit_status: exit.status,
        exited_at: time(exit),
        ..Default::default()
    })
}

/// Begins a change that comes to its end whatever becomes of the caller, and of what this returns.
pub(crate) fn run<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> impl Future<Output = Result<T>> + Send {
    let running = tokio::spawn(work);
    async move {
        running
            .await
            .unwrap_or_else(|_| Err(Error::internal("request failed in the shim")))
    }
}

pub(crate) fn decode<M: Message>(body: &[u8]) -> Result<M> {
    M::parse_from_bytes(body).map_err(|e| Error::invalid_argument(format_args!("request: {e}")))
}

pub(crate) fn message(message: &impl Message) -> Result<Reply> {
    Ok(Reply {
        payload: message.write_to_bytes().map_err(Error::internal)?,
        ..Reply::default()
    })
}

fn done(result: Result<()>) -> Result<Reply> {
    result.and_then(|()| message(&Empty::new()))
}

#[cfg(test)]
mod tests;
