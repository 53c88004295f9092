//! Processes as messages, and what is asked of many tasks at once.

use std::sync::Arc;
use std::time::SystemTime;

use futures::future::join_all;
use protos::services::tasks::DeleteResponse;
use protos::task::{Process, ProcessInfo, Status};
use protos::types::Metric;
use protos::wire::Wire as _;
use protos::{Enum as _, MessageField};
use runtime_v2::{ProcessState, Task};
use types::{Exit, Filter, Filterable, Result};

/// Parity: tasks/local.go: `container_id` stays empty.
pub(super) fn to_wire(state: ProcessState) -> Process {
    let (exit_status, exited_at) = state.exit.unzip();
    Process {
        id: state.id,
        pid: state.pid,
        status: Status::from_i32(state.status as i32)
            .unwrap_or_default()
            .into(),
        stdin: state.stdio.stdin,
        stdout: state.stdio.stdout,
        stderr: state.stdio.stderr,
        terminal: state.stdio.terminal,
        exit_status: exit_status.unwrap_or_default(),
        exited_at: exited_at.to_wire(),
        ..Default::default()
    }
}

/// One line of `ListPids`.
pub(super) fn info(process: &runtime_v2::ProcessInfo) -> ProcessInfo {
    ProcessInfo {
        pid: process.pid,
        info: process.details.to_wire(),
        ..Default::default()
    }
}

/// The answer to a deletion.
pub(super) fn deleted(id: &str, exit: &Exit) -> DeleteResponse {
    DeleteResponse {
        id: id.to_owned(),
        pid: exit.pid,
        exit_status: exit.status,
        exited_at: MessageField::some(exit.at.to_wire()),
        ..Default::default()
    }
}

/// The states of all tasks, from memory: a shim that does not answer holds up no list.
pub(super) fn states(tasks: &[Arc<dyn Task>]) -> Vec<Process> {
    let told = tasks
        .iter()
        .filter_map(|task| known(&**task, task.known(None)));
    told.map(to_wire).collect()
}

/// The statistics of the tasks that pass the filter; one that has none is left out.
pub(super) async fn metrics(tasks: &[Arc<dyn Task>], filter: &Filter) -> Vec<Metric> {
    let wanted: Vec<_> = tasks
        .iter()
        .filter(|task| filter.matches(&Named(&***task)))
        .collect();
    let asked = join_all(wanted.iter().map(|task| task.stats())).await;
    let timestamp = SystemTime::now().to_wire();
    let told = wanted.iter().zip(asked);
    told.filter_map(|(task, stats)| {
        Some(Metric {
            timestamp: MessageField::some(timestamp.clone()),
            id: task.id().to_string(),
            data: MessageField::some(known(&***task, stats)?.to_wire()),
            ..Default::default()
        })
    })
    .collect()
}

/// Logs a failure other than absence.
fn known<T>(task: &dyn Task, answer: Result<T>) -> Option<T> {
    answer
        .inspect_err(|error| {
            if !error.is_not_found() {
                tracing::warn!(id = %task.id(), %error, "a task was left out of a list");
            }
        })
        .ok()
}

/// A task as filters see it.
struct Named<'a>(&'a dyn Task);

impl Filterable for Named<'_> {
    fn field(&self, path: &[&str]) -> Option<String> {
        match path {
            ["id"] => Some(self.0.id().to_string()),
            ["namespace"] => Some(self.0.namespace().to_string()),
            _ => None,
        }
    }
}
