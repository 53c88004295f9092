//! `containerd.services.tasks.v1.Tasks`: what runs.
//!
//! Two methods have parts: `create` gathers container record, options and checkpoint, in `create.rs`;
//! `checkpoint` puts what was dumped into the content store, in `checkpoint.rs`.

mod checkpoint;
mod create;
mod process;

use std::sync::Arc;

use async_trait::async_trait;
use grpc::tasks::Tasks as Service;
use grpc::{serve, serve_cancellable};
use metadata::Metadata;
use mounts::Mounts;
use protos::MessageField;
use protos::services::tasks::{
    CheckpointTaskRequest, CheckpointTaskResponse, CloseIORequest, CreateTaskRequest,
    CreateTaskResponse, DeleteProcessRequest, DeleteResponse, DeleteTaskRequest,
    ExecProcessRequest, GetRequest, GetResponse, KillRequest, ListPidsRequest, ListPidsResponse,
    ListTasksRequest, ListTasksResponse, MetricsRequest, MetricsResponse, PauseTaskRequest,
    ResizePtyRequest, ResumeTaskRequest, StartRequest, StartResponse, UpdateTaskRequest,
    WaitRequest, WaitResponse,
};
use protos::well_known::Empty;
use protos::wire::Wire as _;
use runtime_v2::{ExecOpts, Stdio, Task, TaskManager};
use tonic::{Request, Response, Status};
use types::{Any, Error, ExecId, Result, Scope};

use super::{filter, known};
use crate::activations;
use crate::checkpoints::Checkpoints;

/// Serves the namespace's tasks.
#[derive(Clone, Debug)]
pub(crate) struct Tasks {
    /// Holds the container records and checkpoints.
    pub(crate) metadata: Metadata,
    /// Makes and reads checkpoints.
    pub(crate) checkpoints: Checkpoints,
    /// Mounts what shims cannot.
    pub(crate) mounts: Mounts,
    /// Keeps the tasks.
    pub(crate) manager: Arc<dyn TaskManager>,
}

impl Tasks {
    /// The task that something is done with: the recorder tells whose flight it is.
    async fn acted_on(&self, scope: &Scope, id: &str) -> Result<Arc<dyn Task>> {
        recorder::subject(scope.namespace.as_str(), id);
        self.task(scope, id).await
    }

    async fn task(&self, scope: &Scope, id: &str) -> Result<Arc<dyn Task>> {
        let id = known(id, "task")?;
        self.manager.get(&scope.namespace, &id).await
    }
}

/// The exec that a request means; the empty text is the init process.
fn exec(id: &str) -> Result<Option<ExecId>> {
    match id {
        "" => Ok(None),
        id => known(id, "process").map(Some),
    }
}

#[async_trait]
impl Service for Tasks {
    async fn create(
        &self,
        request: Request<CreateTaskRequest>,
    ) -> Result<Response<CreateTaskResponse>, Status> {
        let tasks = self.clone();
        serve(request, |scope, request| async move {
            recorder::subject(scope.namespace.as_str(), &request.container_id);
            let (id, opts, _unpacked) = create::gather(&tasks, &scope, request).await?;
            let (mounts, manager) = (&tasks.mounts, &*tasks.manager);
            let task = activations::create_task(mounts, manager, &scope, &id, opts).await?;
            let (container_id, pid) = (id.to_string(), task.pid());
            Ok(CreateTaskResponse {
                container_id,
                pid,
                ..Default::default()
            })
        })
        .await
    }

    async fn start(
        &self,
        request: Request<StartRequest>,
    ) -> Result<Response<StartResponse>, Status> {
        let tasks = self.clone();
        serve(request, |scope, request| async move {
            let task = tasks.acted_on(&scope, &request.container_id).await?;
            let pid = task.start(exec(&request.exec_id)?.as_ref()).await?;
            Ok(StartResponse {
                pid,
                ..Default::default()
            })
        })
        .await
    }

    async fn delete(
        &self,
        request: Request<DeleteTaskRequest>,
    ) -> Result<Response<DeleteResponse>, Status> {
        let tasks = self.clone();
        serve(request, |scope, request| async move {
            recorder::subject(scope.namespace.as_str(), &request.container_id);
            let id = known(&request.container_id, "task")?;
            let (mounts, manager) = (&tasks.mounts, &*tasks.manager);
            let exit = activations::delete_task(mounts, manager, &scope.namespace, &id).await?;
            Ok(process::deleted("", &exit))
        })
        .await
    }

    async fn delete_process(
        &self,
        request: Request<DeleteProcessRequest>,
    ) -> Result<Response<DeleteResponse>, Status> {
        let tasks = self.clone();
        serve(request, |scope, request| async move {
            let task = tasks.acted_on(&scope, &request.container_id).await?;
            let exit = task
                .delete_exec(&known(&request.exec_id, "process")?)
                .await?;
            Ok(process::deleted(&request.exec_id, &exit))
        })
        .await
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let tasks = self.clone();
        serve(request, |scope, request| async move {
            let task = tasks.task(&scope, &request.container_id).await?;
            let state = task.state(exec(&request.exec_id)?.as_ref()).await?;
            let process = MessageField::some(process::to_wire(state));
            Ok(GetResponse {
                process,
                ..Default::default()
            })
        })
        .await
    }

    async fn list(
        &self,
        request: Request<ListTasksRequest>,
    ) -> Result<Response<ListTasksResponse>, Status> {
        let tasks = self.clone();
        serve(request, |scope, _| async move {
            let all = tasks.manager.list(Some(&scope.namespace)).await?;
            let tasks = process::states(&all);
            Ok(ListTasksResponse {
                tasks,
                ..Default::default()
            })
        })
        .await
    }

    async fn kill(&self, request: Request<KillRequest>) -> Result<Response<Empty>, Status> {
        let tasks = self.clone();
        serve(request, |scope, request| async move {
            let task = tasks.acted_on(&scope, &request.container_id).await?;
            task.kill(
                exec(&request.exec_id)?.as_ref(),
                request.signal,
                request.all,
            )
            .await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn exec(&self, request: Request<ExecProcessRequest>) -> Result<Response<Empty>, Status> {
        let tasks = self.clone();
        serve(request, |scope, request| async move {
            if request.exec_id.is_empty() {
                return Err(Error::invalid_argument("exec id cannot be empty"));
            }
            let id = request.exec_id.try_into()?;
            let task = tasks.acted_on(&scope, &request.container_id).await?;
            let spec = Any::from_wire(request.spec.unwrap_or_default())?;
            let (stdin, stdout, stderr) = (request.stdin, request.stdout, request.stderr);
            let stdio = Stdio {
                stdin,
                stdout,
                stderr,
                terminal: request.terminal,
            };
            task.exec(&id, ExecOpts { spec, stdio }).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn resize_pty(
        &self,
        request: Request<ResizePtyRequest>,
    ) -> Result<Response<Empty>, Status> {
        let tasks = self.clone();
        serve(request, |scope, request| async move {
            let task = tasks.acted_on(&scope, &request.container_id).await?;
            let exec = exec(&request.exec_id)?;
            task.resize(exec.as_ref(), request.width, request.height)
                .await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn close_i_o(&self, request: Request<CloseIORequest>) -> Result<Response<Empty>, Status> {
        let tasks = self.clone();
        serve(request, |scope, request| async move {
            let task = tasks.acted_on(&scope, &request.container_id).await?;
            if request.stdin {
                task.close_io(exec(&request.exec_id)?.as_ref()).await?;
            }
            Ok(Empty::new())
        })
        .await
    }

    async fn pause(&self, request: Request<PauseTaskRequest>) -> Result<Response<Empty>, Status> {
        let tasks = self.clone();
        serve(request, |scope, request| async move {
            tasks
                .acted_on(&scope, &request.container_id)
                .await?
                .pause()
                .await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn resume(&self, request: Request<ResumeTaskRequest>) -> Result<Response<Empty>, Status> {
        let tasks = self.clone();
        serve(request, |scope, request| async move {
            tasks
                .acted_on(&scope, &request.container_id)
                .await?
                .resume()
                .await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn list_pids(
        &self,
        request: Request<ListPidsRequest>,
    ) -> Result<Response<ListPidsResponse>, Status> {
        let tasks = self.clone();
        serve(request, |scope, request| async move {
            let pids = tasks
                .task(&scope, &request.container_id)
                .await?
                .pids()
                .await?;
            let processes = pids.iter().map(process::info).collect();
            Ok(ListPidsResponse {
                processes,
                ..Default::default()
            })
        })
        .await
    }

    async fn checkpoint(
        &self,
        request: Request<CheckpointTaskRequest>,
    ) -> Result<Response<CheckpointTaskResponse>, Status> {
        let tasks = self.clone();
        serve(request, |scope, request| async move {
            let task = tasks.acted_on(&scope, &request.container_id).await?;
            let options = Option::<Any>::from_wire(request.options)?;
            let made = checkpoint::write(&tasks, &scope, &*task, options).await?;
            Ok(CheckpointTaskResponse {
                descriptors: made.to_wire(),
                ..Default::default()
            })
        })
        .await
    }

    async fn update(&self, request: Request<UpdateTaskRequest>) -> Result<Response<Empty>, Status> {
        let tasks = self.clone();
        serve(request, |scope, request| async move {
            let task = tasks.acted_on(&scope, &request.container_id).await?;
            let resources = Any::from_wire(request.resources.unwrap_or_default())?;
            task.update(resources, request.annotations.into_iter().collect())
                .await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn metrics(
        &self,
        request: Request<MetricsRequest>,
    ) -> Result<Response<MetricsResponse>, Status> {
        let tasks = self.clone();
        serve(request, |scope, request| async move {
            let filter = filter(&request.filters)?;
            let all = tasks.manager.list(Some(&scope.namespace)).await?;
            let metrics = process::metrics(&all, &filter).await;
            Ok(MetricsResponse {
                metrics,
                ..Default::default()
            })
        })
        .await
    }

    async fn wait(&self, request: Request<WaitRequest>) -> Result<Response<WaitResponse>, Status> {
        let tasks = self.clone();
        serve_cancellable(request, |scope, request| async move {
            let task = tasks.acted_on(&scope, &request.container_id).await?;
            let exit = task.wait(exec(&request.exec_id)?.as_ref()).await?;
            let exited_at = MessageField::some(exit.at.to_wire());
            Ok(WaitResponse {
                exit_status: exit.status,
                exited_at,
                ..Default::default()
            })
        })
        .await
    }
}
