//! Tasks and their processes.

use grpc::tasks::TasksClient;
use protos::services::tasks as wire;
use protos::wire::{Wire as _, time};
use types::{Any, ContainerId, Descriptor, Error, ExecId, Exit, Labels, Mount, Result};

use super::metrics;
use super::process::{Exited, Metric, Process, ProcessEntry, StdioPaths};
use crate::again::Again;
use crate::call::{Caller, done, present};

super::service! {
    /// The tasks of a namespace.
    Tasks, TasksClient<Again>
}

/// How to make a task.
#[derive(Clone, Debug, Default)]
pub struct CreateTask {
    /// Mounts of the root file system.
    pub rootfs: Vec<Mount>,
    /// Where its stdio goes.
    pub stdio: StdioPaths,
    /// Options for the runtime.
    pub options: Option<Any>,
    /// Checkpoint to restore.
    pub checkpoint: Option<Descriptor>,
    /// Path of another shim than the container's.
    pub runtime_path: String,
}

/// How to make an exec.
#[derive(Clone, Debug)]
pub struct ExecTask {
    /// The process, as the runtime spec has it.
    pub process: Any,
    /// Where its stdio goes.
    pub stdio: StdioPaths,
}

/// The wire's id of a process: empty for the task's init.
fn exec(id: Option<&ExecId>) -> String {
    id.map(ToString::to_string).unwrap_or_default()
}

impl Tasks {
    /// Who calls.
    pub(crate) fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Makes the task of a container; returns the pid of its init, which waits for the start. With a
    /// checkpoint, as long as that takes: its memory is read back first.
    ///
    /// # Errors
    /// `NotFound` for the container, `AlreadyExists` for the task, else what shim or runtime said.
    pub async fn create(&self, id: &ContainerId, opts: CreateTask) -> Result<u32> {
        let message = wire::CreateTaskRequest {
            container_id: id.to_string(),
            rootfs: opts.rootfs.to_wire(),
            stdin: opts.stdio.stdin,
            stdout: opts.stdio.stdout,
            stderr: opts.stdio.stderr,
            terminal: opts.stdio.terminal,
            checkpoint: opts.checkpoint.to_wire(),
            options: opts.options.to_wire(),
            runtime_path: opts.runtime_path,
            ..Default::default()
        };
        let restores = message.checkpoint.is_some();
        let request = self.caller.waiting(restores, message)?;
        Ok(done(self.stub().create(request).await)?.pid)
    }

    /// Starts the init or an exec; returns its pid. An init has no limit here: its start may be a
    /// restore, and the shim limits every call of the runtime itself.
    ///
    /// # Errors
    /// `NotFound`, else what the runtime said.
    pub async fn start(&self, id: &ContainerId, process: Option<&ExecId>) -> Result<u32> {
        let message = wire::StartRequest {
            container_id: id.to_string(),
            exec_id: exec(process),
            ..Default::default()
        };
        let request = self.caller.waiting(process.is_none(), message)?;
        Ok(done(self.stub().start(request).await)?.pid)
    }

    /// State of the init or an exec.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn get(&self, id: &ContainerId, process: Option<&ExecId>) -> Result<Process> {
        let message = wire::GetRequest {
            container_id: id.to_string(),
            exec_id: exec(process),
            ..Default::default()
        };
        let answer = done(self.stub().get(self.caller.request(message)?).await)?;
        Process::from_proto(present(answer.process, "process")?)
    }

    /// All tasks.
    ///
    /// # Errors
    /// Of the call.
    pub async fn list(&self) -> Result<Vec<Process>> {
        let message = wire::ListTasksRequest::default();
        let answer = done(self.stub().list(self.caller.request(message)?).await)?;
        answer.tasks.into_iter().map(Process::from_proto).collect()
    }

    /// Makes an additional process in a task; it waits for the start.
    ///
    /// # Errors
    /// `NotFound` for the task, `AlreadyExists` for the exec.
    pub async fn exec(&self, id: &ContainerId, process: &ExecId, opts: ExecTask) -> Result<()> {
        let message = wire::ExecProcessRequest {
            container_id: id.to_string(),
            exec_id: process.to_string(),
            stdin: opts.stdio.stdin,
            stdout: opts.stdio.stdout,
            stderr: opts.stdio.stderr,
            terminal: opts.stdio.terminal,
            spec: Some(opts.process).to_wire(),
            ..Default::default()
        };
        done(self.stub().exec(self.caller.request(message)?).await)?;
        Ok(())
    }

    /// Sends a signal to the init, an exec, or to all processes of the task.
    ///
    /// # Errors
    /// `NotFound` when it is gone or has ended.
    pub async fn kill(
        &self,
        id: &ContainerId,
        process: Option<&ExecId>,
        signal: i32,
        all: bool,
    ) -> Result<()> {
        let number = u32::try_from(signal);
        let message = wire::KillRequest {
            container_id: id.to_string(),
            exec_id: exec(process),
            signal: number.map_err(|_| Error::invalid_argument("negative signal"))?,
            all,
            ..Default::default()
        };
        done(self.stub().kill(self.caller.request(message)?).await)?;
        Ok(())
    }

    /// Waits until the init or an exec has ended. May be asked before the start and after the end.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn wait(&self, id: &ContainerId, process: Option<&ExecId>) -> Result<Exited> {
        let message = wire::WaitRequest {
            container_id: id.to_string(),
            exec_id: exec(process),
            ..Default::default()
        };
        let answer = done(self.stub().wait(self.caller.endless(message)?).await)?;
        Ok(Exited {
            status: answer.exit_status,
            at: time(answer.exited_at)?,
        })
    }

    /// Removes a task that has ended, or an exec of it.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` or Unknown while it runs.
    pub async fn delete(&self, id: &ContainerId, process: Option<&ExecId>) -> Result<Exit> {
        let answer = match process {
            None => {
                let message = wire::DeleteTaskRequest {
                    container_id: id.to_string(),
                    ..Default::default()
                };
                done(self.stub().delete(self.caller.request(message)?).await)?
            }
            Some(process) => {
                let message = wire::DeleteProcessRequest {
                    container_id: id.to_string(),
                    exec_id: process.to_string(),
                    ..Default::default()
                };
                done(
                    self.stub()
                        .delete_process(self.caller.request(message)?)
                        .await,
                )?
            }
        };
        Ok(Exit {
            pid: answer.pid,
            status: answer.exit_status,
            at: time(answer.exited_at)?,
        })
    }

    /// Freezes the task.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn pause(&self, id: &ContainerId) -> Result<()> {
        let message = wire::PauseTaskRequest {
            container_id: id.to_string(),
            ..Default::default()
        };
        done(self.stub().pause(self.caller.request(message)?).await)?;
        Ok(())
    }

    /// Thaws the task.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn resume(&self, id: &ContainerId) -> Result<()> {
        let message = wire::ResumeTaskRequest {
            container_id: id.to_string(),
            ..Default::default()
        };
        done(self.stub().resume(self.caller.request(message)?).await)?;
        Ok(())
    }

    /// Sets the size of the terminal.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn resize(
        &self,
        id: &ContainerId,
        process: Option<&ExecId>,
        (columns, rows): (u16, u16),
    ) -> Result<()> {
        let message = wire::ResizePtyRequest {
            container_id: id.to_string(),
            exec_id: exec(process),
            width: columns.into(),
            height: rows.into(),
            ..Default::default()
        };
        done(self.stub().resize_pty(self.caller.request(message)?).await)?;
        Ok(())
    }

    /// Lets the process see the end of its input.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn close_stdin(&self, id: &ContainerId, process: Option<&ExecId>) -> Result<()> {
        let message = wire::CloseIORequest {
            container_id: id.to_string(),
            exec_id: exec(process),
            stdin: true,
            ..Default::default()
        };
        done(self.stub().close_i_o(self.caller.request(message)?).await)?;
        Ok(())
    }

    /// The processes in the task.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn pids(&self, id: &ContainerId) -> Result<Vec<ProcessEntry>> {
        let message = wire::ListPidsRequest {
            container_id: id.to_string(),
            ..Default::default()
        };
        let answer = done(self.stub().list_pids(self.caller.request(message)?).await)?;
        let entry = |process: protos::task::ProcessInfo| -> Result<ProcessEntry> {
            let info = Option::<Any>::from_wire(process.info)?;
            let details = info.map(|i| protos::any::unpack::<protos::runc::ProcessDetails>(&i));
            let exec_id = details.transpose()?.map(|d| d.exec_id);
            Ok(ProcessEntry {
                pid: process.pid,
                exec_id,
            })
        };
        answer.processes.into_iter().map(entry).collect()
    }

    /// Resource usage of one task.
    ///
    /// # Errors
    /// `NotFound`; `NotImplemented` for metrics of an unknown type.
    pub async fn metrics(&self, id: &ContainerId) -> Result<Metric> {
        let message = wire::MetricsRequest {
            filters: vec![format!("id=={id}")],
            ..Default::default()
        };
        let answer = done(self.stub().metrics(self.caller.request(message)?).await)?;
        let first = answer.metrics.into_iter().next();
        metrics::read(first.ok_or_else(|| Error::not_found("metrics"))?)
    }

    /// Changes the limits of a running task.
    ///
    /// # Errors
    /// `NotFound`, else what the runtime said.
    pub async fn update(&self, id: &ContainerId, resources: Any, notes: &Labels) -> Result<()> {
        let message = wire::UpdateTaskRequest {
            container_id: id.to_string(),
            resources: Some(resources).to_wire(),
            annotations: notes.to_wire(),
            ..Default::default()
        };
        done(self.stub().update(self.caller.request(message)?).await)?;
        Ok(())
    }

    /// Writes the task's state to a checkpoint.
    ///
    /// # Errors
    /// `NotFound`, else what the runtime said.
    pub async fn checkpoint(
        &self,
        id: &ContainerId,
        options: Option<Any>,
    ) -> Result<Vec<Descriptor>> {
        let message = wire::CheckpointTaskRequest {
            container_id: id.to_string(),
            options: options.to_wire(),
            ..Default::default()
        };
        let answer = done(self.stub().checkpoint(self.caller.endless(message)?).await)?;
        Vec::from_wire(answer.descriptors)
    }
}

/// Options of the runc shim, as `ctr run` has flags for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuncOptions {
    /// Runtime binary.
    pub binary: String,
    /// State directory of the runtime.
    pub root: String,
    /// Let systemd make the cgroup.
    pub systemd_cgroup: bool,
    /// Do not pivot into the root file system.
    pub no_pivot_root: bool,
    /// Owner of the stdio, for user namespaces.
    pub io_owner: (u32, u32),
}

impl RuncOptions {
    /// The options as a typed value.
    ///
    /// # Errors
    /// `Internal`: never in practice.
    pub fn to_any(&self) -> Result<Any> {
        protos::any::pack(&protos::runc::Options {
            binary_name: self.binary.clone(),
            root: self.root.clone(),
            systemd_cgroup: self.systemd_cgroup,
            no_pivot_root: self.no_pivot_root,
            io_uid: self.io_owner.0,
            io_gid: self.io_owner.1,
            ..Default::default()
        })
    }

    /// Options from a container's record; the default when there are none.
    ///
    /// # Errors
    /// `InvalidArgument` when they are of another type.
    pub fn from_any(any: Option<&Any>) -> Result<Self> {
        let Some(any) = any else {
            return Ok(Self::default());
        };
        let options: protos::runc::Options = protos::any::unpack(any)?;
        Ok(Self {
            binary: options.binary_name,
            root: options.root,
            systemd_cgroup: options.systemd_cgroup,
            no_pivot_root: options.no_pivot_root,
            io_owner: (options.io_uid, options.io_gid),
        })
    }

    /// Options of a runtime that reads a file of its own.
    ///
    /// # Errors
    /// `Internal`: never in practice.
    pub fn config_path(path: &str) -> Result<Any> {
        protos::any::pack(&protos::runtimeoptions::Options {
            config_path: path.to_owned(),
            ..Default::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtime_options_round_trip() {
        let options = RuncOptions {
            binary: "crun".into(),
            root: "/r".into(),
            systemd_cgroup: true,
            no_pivot_root: true,
            io_owner: (1, 2),
        };
        let any = options.to_any().unwrap();
        assert_eq!(any.type_url, "containerd.runc.v1.Options");
        assert_eq!(RuncOptions::from_any(Some(&any)).unwrap(), options);
        assert_eq!(RuncOptions::from_any(None).unwrap(), RuncOptions::default());
        let other = RuncOptions::config_path("/x").unwrap();
        RuncOptions::from_any(Some(&other)).unwrap_err();
    }
}
