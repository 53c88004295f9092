//! The Task service, versions 2 and 3 on one socket: decode, one call, encode.
//!
//! Invariant: a request that changes something runs on a task of its own, so that a client which
//! hangs up cannot stop it half-way and a bug in it ends only that request.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use protos::any::pack;
use protos::events::TaskCheckpointed;
use protos::runc::{CheckpointOptions, ProcessDetails};
use protos::shim::task as api;
use protos::shim::task_v3_ttrpc::{Task, create_task};
use protos::task::ProcessInfo;
use protos::well_known::{Any, Empty, Timestamp};
use protos::wire::Wire as _;
use protos::{EnumOrUnknown, Message as _, MessageField, status};
use sys::cgroup::Cgroup;
use tokio::sync::Notify;
use ttrpc::asynchronous::{MethodHandler, Service as Table, TtrpcContext};
use types::{Context as _, Error, Exit, Namespace, Result};

use crate::container::Container;
use crate::lifecycle::Input;
use crate::log;
use crate::publish::Publisher;
use crate::reap::Reap;
use crate::stats;

/// Everything that this shim keeps.
#[derive(Debug)]
pub(crate) struct Shim {
    pub(crate) namespace: Namespace,
    pub(crate) reap: Arc<Reap>,
    pub(crate) publisher: Arc<Publisher>,
    containers: Mutex<Containers>,
    /// The shim shall end.
    pub(crate) stop: Notify,
}

#[derive(Debug, Default)]
struct Containers {
    made: BTreeMap<String, Arc<Container>>,
    in_the_making: BTreeSet<String>,
}

impl Shim {
    pub(crate) fn new(namespace: Namespace) -> Self {
        Self {
            publisher: Arc::new(Publisher::new(namespace.clone())),
            namespace,
            reap: Arc::new(Reap::default()),
            containers: Mutex::new(Containers::default()),
            stop: Notify::new(),
        }
    }

    fn containers(&self) -> MutexGuard<'_, Containers> {
        self.containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn container(&self, id: &str) -> Result<Arc<Container>> {
        let found = self.containers().made.get(id).map(Arc::clone);
        found.ok_or_else(|| Error::not_found("container not created"))
    }

    async fn create(self: &Arc<Self>, request: api::CreateTaskRequest) -> Result<u32> {
        types::Identifier::check(&request.id)?;
        {
            let mut containers = self.containers();
            let taken = containers.made.contains_key(&request.id)
                || !containers.in_the_making.insert(request.id.clone());
            if taken {
                return Err(Error::already_exists(format_args!("task {}", request.id)));
            }
        }
        let made = Container::create(self, &request).await;
        let mut containers = self.containers();
        containers.in_the_making.remove(&request.id);
        let container = made?;
        let pid = container.init.view().pid;
        containers.made.insert(request.id, container);
        Ok(pid)
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
        let options = match request.options.as_ref() {
            Some(any) => CheckpointOptions::parse_from_bytes(&any.value)
                .map_err(|e| Error::invalid_argument(format_args!("checkpoint options: {e}")))?,
            None => CheckpointOptions::default(),
        };
        let mut args = vec!["--image-path".to_owned(), request.path.clone()];
        args.extend(crate::options::checkpoint_flags(&options));
        container.runtime.checkpoint(&args).await?;
        let event = TaskCheckpointed {
            container_id: request.id.clone(),
            checkpoint: request.path.clone(),
            ..TaskCheckpointed::default()
        };
        self.publisher.publish("/tasks/checkpointed", &event);
        Ok(())
    }

    fn state(&self, request: &api::StateRequest) -> Result<api::StateResponse> {
        let container = self.container(&request.id)?;
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
        let group = container.cgroup.as_ref();
        let group = group.ok_or_else(|| Error::not_found("control group of the container"))?;
        stats::to_any(&group.stats()?)
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

    fn shutdown(&self, now: bool) {
        let containers = self.containers();
        let busy = !containers.made.is_empty() || !containers.in_the_making.is_empty();
        if busy && !now {
            return;
        }
        log::debug(format_args!("shutdown"));
        self.stop.notify_one();
    }
}

fn time(exit: Exit) -> MessageField<Timestamp> {
    MessageField::some(exit.at.to_wire())
}

/// The service over a shim.
#[derive(Clone, Debug)]
struct Service(Arc<Shim>);

/// Version 3, version 2 under its own name, and answers for services that are not offered.
pub(crate) fn tables(shim: &Arc<Shim>) -> HashMap<String, Table> {
    const V3: &str = "containerd.task.v3.Task";
    const V2: &str = "containerd.task.v2.Task";
    let mut tables = create_task(Arc::new(Service(Arc::clone(shim))));
    if let Some(table) = create_task(Arc::new(Service(Arc::clone(shim)))).remove(V3) {
        tables.insert(V2.to_owned(), table);
    }
    tables.extend(ABSENT.map(|name| (name.to_owned(), absent())));
    tables
}

/// Services that daemons ask shims for and that are not offered here. Of a service that it has never
/// heard of the server says that the argument is invalid, and daemons would not know what that means.
const ABSENT: [&str; 3] = [
    "containerd.runtime.sandbox.v1.Sandbox",
    "containerd.services.streaming.v1.Streaming",
    "grpc.health.v1.Health",
];

/// A service without methods: every call is answered with `Unimplemented`.
fn absent() -> Table {
    let methods: HashMap<String, Box<dyn MethodHandler + Send + Sync>> = HashMap::new();
    Table {
        methods,
        streams: HashMap::new(),
    }
}

/// Runs a change to its end whatever becomes of the caller.
async fn run<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> ttrpc::Result<T> {
    let done = match tokio::spawn(work).await {
        Ok(done) => done,
        Err(_) => Err(Error::internal("request failed in the shim")),
    };
    done.map_err(|error| status::to_ttrpc(&error))
}

fn answer<T>(result: Result<T>) -> ttrpc::Result<T> {
    result.map_err(|error| status::to_ttrpc(&error))
}

#[async_trait]
impl Task for Service {
    async fn state(
        &self,
        _: &TtrpcContext,
        request: api::StateRequest,
    ) -> ttrpc::Result<api::StateResponse> {
        answer(self.0.state(&request))
    }

    async fn create(
        &self,
        _: &TtrpcContext,
        request: api::CreateTaskRequest,
    ) -> ttrpc::Result<api::CreateTaskResponse> {
        let shim = Arc::clone(&self.0);
        let pid = run(async move { shim.create(request).await }).await?;
        Ok(api::CreateTaskResponse {
            pid,
            ..Default::default()
        })
    }

    async fn start(
        &self,
        _: &TtrpcContext,
        request: api::StartRequest,
    ) -> ttrpc::Result<api::StartResponse> {
        let shim = Arc::clone(&self.0);
        let pid = run(async move {
            let container = shim.container(&request.id)?;
            if request.exec_id.is_empty() {
                container.start(&shim).await
            } else {
                container.start_exec(&shim, &request.exec_id).await
            }
        })
        .await?;
        Ok(api::StartResponse {
            pid,
            ..Default::default()
        })
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        request: api::DeleteRequest,
    ) -> ttrpc::Result<api::DeleteResponse> {
        let shim = Arc::clone(&self.0);
        let exit = run(async move { shim.delete(&request).await }).await?;
        Ok(api::DeleteResponse {
            pid: exit.pid,
            exit_status: exit.status,
            exited_at: time(exit),
            ..Default::default()
        })
    }

    async fn pids(
        &self,
        _: &TtrpcContext,
        request: api::PidsRequest,
    ) -> ttrpc::Result<api::PidsResponse> {
        let processes = answer(self.0.pids(&request.id))?;
        Ok(api::PidsResponse {
            processes,
            ..Default::default()
        })
    }

    async fn pause(&self, _: &TtrpcContext, request: api::PauseRequest) -> ttrpc::Result<Empty> {
        let shim = Arc::clone(&self.0);
        run(async move { shim.container(&request.id)?.pause(&shim).await }).await?;
        Ok(Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, request: api::ResumeRequest) -> ttrpc::Result<Empty> {
        let shim = Arc::clone(&self.0);
        run(async move { shim.container(&request.id)?.resume(&shim).await }).await?;
        Ok(Empty::new())
    }

    async fn checkpoint(
        &self,
        _: &TtrpcContext,
        request: api::CheckpointTaskRequest,
    ) -> ttrpc::Result<Empty> {
        let shim = Arc::clone(&self.0);
        run(async move { shim.checkpoint(&request).await }).await?;
        Ok(Empty::new())
    }

    async fn kill(&self, _: &TtrpcContext, request: api::KillRequest) -> ttrpc::Result<Empty> {
        let shim = Arc::clone(&self.0);
        run(async move {
            let container = shim.container(&request.id)?;
            container
                .kill(&request.exec_id, request.signal, request.all)
                .await
        })
        .await?;
        Ok(Empty::new())
    }

    async fn exec(
        &self,
        _: &TtrpcContext,
        request: api::ExecProcessRequest,
    ) -> ttrpc::Result<Empty> {
        let container = answer(self.0.container(&request.id))?;
        answer(container.add_exec(&self.0, &request))?;
        Ok(Empty::new())
    }

    async fn resize_pty(
        &self,
        _: &TtrpcContext,
        request: api::ResizePtyRequest,
    ) -> ttrpc::Result<Empty> {
        let container = answer(self.0.container(&request.id))?;
        let process = answer(container.process(&request.exec_id))?;
        answer(process.resize(request.width, request.height).ctx("resize"))?;
        Ok(Empty::new())
    }

    async fn close_io(
        &self,
        _: &TtrpcContext,
        request: api::CloseIORequest,
    ) -> ttrpc::Result<Empty> {
        let container = answer(self.0.container(&request.id))?;
        let process = answer(container.process(&request.exec_id))?;
        if request.stdin {
            process.close_stdin();
        }
        Ok(Empty::new())
    }

    async fn update(
        &self,
        _: &TtrpcContext,
        request: api::UpdateTaskRequest,
    ) -> ttrpc::Result<Empty> {
        let shim = Arc::clone(&self.0);
        run(async move {
            shim.container(&request.id)?
                .update(&request.resources.value)
                .await
        })
        .await?;
        Ok(Empty::new())
    }

    async fn wait(
        &self,
        _: &TtrpcContext,
        request: api::WaitRequest,
    ) -> ttrpc::Result<api::WaitResponse> {
        let container = answer(self.0.container(&request.id))?;
        let process = answer(container.process(&request.exec_id))?;
        // The record may be deleted while somebody waits; the end is told all the same.
        drop(container);
        let exit = answer(process.wait().await)?;
        Ok(api::WaitResponse {
            exit_status: exit.status,
            exited_at: time(exit),
            ..Default::default()
        })
    }

    async fn stats(
        &self,
        _: &TtrpcContext,
        request: api::StatsRequest,
    ) -> ttrpc::Result<api::StatsResponse> {
        let stats = answer(self.0.stats(&request.id))?;
        Ok(api::StatsResponse {
            stats: MessageField::some(stats),
            ..Default::default()
        })
    }

    async fn connect(
        &self,
        _: &TtrpcContext,
        request: api::ConnectRequest,
    ) -> ttrpc::Result<api::ConnectResponse> {
        Ok(self.0.connect(&request.id))
    }

    async fn shutdown(
        &self,
        _: &TtrpcContext,
        request: api::ShutdownRequest,
    ) -> ttrpc::Result<Empty> {
        self.0.shutdown(request.now);
        Ok(Empty::new())
    }
}
