//! What the daemon knows of a task's processes without asking its shim.
//!
//! Invariant: a process that has ended never comes back, however late an older event arrives.

use std::collections::BTreeMap;
use std::time::SystemTime;

use protos::any::{is, unpack};
use protos::events as wire;
use types::{Any, ContainerId, ExecId, Exit, Result};

use crate::client::exit_time;
use crate::{ProcessState, Status, Stdio};

/// Last known states.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    init: ProcessState,
    execs: BTreeMap<ExecId, ProcessState>,
    exit_published: bool,
}

fn fresh(id: String, status: Status, stdio: Stdio) -> ProcessState {
    ProcessState {
        id,
        pid: 0,
        status,
        stdio,
        exit: None,
        stale: false,
    }
}

impl Seen {
    /// Nothing is known but the name.
    pub(crate) fn new(id: &ContainerId, stdio: Stdio) -> Self {
        Self {
            init: fresh(id.to_string(), Status::Unknown, stdio),
            execs: BTreeMap::new(),
            exit_published: false,
        }
    }

    /// State of a process.
    pub(crate) fn get(&self, exec: Option<&ExecId>) -> Option<&ProcessState> {
        match exec {
            None => Some(&self.init),
            Some(id) => self.execs.get(id),
        }
    }

    fn get_mut(&mut self, exec: Option<&ExecId>) -> Option<&mut ProcessState> {
        match exec {
            None => Some(&mut self.init),
            Some(id) => self.execs.get_mut(id),
        }
    }

    /// How init ended.
    pub(crate) fn exit(&self) -> Option<Exit> {
        self.init.exit.map(|(status, at)| Exit {
            pid: self.init.pid,
            status,
            at,
        })
    }

    /// True when the shim's event of init's exit has come.
    pub(crate) fn is_exit_published(&self) -> bool {
        self.exit_published
    }

    /// The shim told the state of a process.
    pub(crate) fn told(&mut self, exec: Option<&ExecId>, state: &ProcessState) {
        match exec {
            None => self.init = state.clone(),
            Some(id) => drop(self.execs.insert(id.clone(), state.clone())),
        }
    }

    /// An exec was added.
    pub(crate) fn added(&mut self, id: &ExecId, stdio: Stdio) {
        let state = fresh(id.to_string(), Status::Created, stdio);
        self.execs.insert(id.clone(), state);
    }

    /// An exec was deleted.
    pub(crate) fn removed(&mut self, id: &ExecId) {
        self.execs.remove(id);
    }

    /// A process entered a state in which it is alive.
    pub(crate) fn alive(&mut self, exec: Option<&ExecId>, status: Status, pid: Option<u32>) {
        if let Some(state) = self.get_mut(exec) {
            if let Some(pid) = pid {
                state.pid = pid;
            }
            if state.exit.is_none() {
                state.status = status;
            }
        }
    }

    /// A process ended.
    pub(crate) fn ended(&mut self, exec: Option<&ExecId>, pid: u32, status: u32, at: SystemTime) {
        if let Some(state) = self.get_mut(exec) {
            if pid != 0 {
                state.pid = pid;
            }
            state.status = Status::Stopped;
            state.exit = Some((status, at));
        }
    }

    /// Takes over what an event of the shim says. Events of other kinds change nothing.
    ///
    /// # Errors
    /// `InvalidArgument` for a damaged event.
    pub(crate) fn apply(&mut self, id: &ContainerId, event: &Any) -> Result<()> {
        if is::<wire::TaskExit>(event) {
            let exit: wire::TaskExit = unpack(event)?;
            let exec = exec_of(id, exit.id);
            self.exit_published |= exec.is_none();
            let at = exit_time(exit.exited_at.as_ref());
            self.ended(exec.as_ref(), exit.pid, exit.exit_status, at);
        } else if is::<wire::TaskStart>(event) {
            let start: wire::TaskStart = unpack(event)?;
            self.alive(None, Status::Running, Some(start.pid));
        } else if is::<wire::TaskExecAdded>(event) {
            let added: wire::TaskExecAdded = unpack(event)?;
            if let Some(exec) = exec_of(id, added.exec_id)
                && !self.execs.contains_key(&exec)
            {
                self.added(&exec, Stdio::default());
            }
        } else if is::<wire::TaskExecStarted>(event) {
            let started: wire::TaskExecStarted = unpack(event)?;
            if let Some(exec) = exec_of(id, started.exec_id) {
                self.alive(Some(&exec), Status::Running, Some(started.pid));
            }
        } else if is::<wire::TaskPaused>(event) {
            self.alive(None, Status::Paused, None);
        } else if is::<wire::TaskResumed>(event) {
            self.alive(None, Status::Running, None);
        }
        Ok(())
    }
}

/// The exec that a process id in an event means; `None` for init, whose id is the container's.
fn exec_of(id: &ContainerId, process: String) -> Option<ExecId> {
    if process == id.as_str() {
        return None;
    }
    process.try_into().ok()
}

/// The container that an event of a shim is about.
pub(crate) fn container_of(event: &Any) -> Option<ContainerId> {
    if !event.type_name().starts_with("containerd.events.Task") {
        return None;
    }
    // Field 1 in all of them; `TaskOOM` has nothing else, so the others parse as one.
    let only: wire::TaskOOM = protobuf::Message::parse_from_bytes(&event.value).ok()?;
    only.container_id.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use protos::any::pack;

    fn id() -> ContainerId {
        "c1".parse().unwrap()
    }

    fn exit_event(process: &str, status: u32) -> Any {
        let event = wire::TaskExit {
            container_id: "c1".into(),
            id: process.into(),
            pid: 7,
            exit_status: status,
            ..Default::default()
        };
        pack(&event).unwrap()
    }

    #[test]
    fn an_ended_process_does_not_come_back() {
        let mut seen = Seen::new(&id(), Stdio::default());
        seen.apply(&id(), &exit_event("c1", 3)).unwrap();
        let late = wire::TaskStart {
            container_id: "c1".into(),
            pid: 7,
            ..Default::default()
        };
        seen.apply(&id(), &pack(&late).unwrap()).unwrap();
        let state = seen.get(None).unwrap();
        assert_eq!((state.status, state.pid), (Status::Stopped, 7));
        assert_eq!(seen.exit().unwrap().status, 3);
    }

    #[test]
    fn execs_are_told_from_init() {
        let mut seen = Seen::new(&id(), Stdio::default());
        let exec: ExecId = "e1".parse().unwrap();
        seen.added(&exec, Stdio::default());
        seen.apply(&id(), &exit_event("e1", 9)).unwrap();
        assert_eq!(seen.get(Some(&exec)).unwrap().status, Status::Stopped);
        assert_eq!(seen.get(None).unwrap().status, Status::Unknown);
        seen.removed(&exec);
        assert!(seen.get(Some(&exec)).is_none());
    }

    #[test]
    fn every_task_event_names_its_container() {
        let exit = exit_event("e1", 1);
        assert_eq!(container_of(&exit), Some(id()));
        let mut prefixed = exit;
        prefixed.type_url.insert_str(0, "type.googleapis.com/");
        assert_eq!(container_of(&prefixed), Some(id()));
        let other = Any {
            type_url: "containerd.events.ImageCreate".into(),
            value: vec![],
        };
        assert_eq!(container_of(&other), None);
    }

    #[test]
    fn damaged_events_are_refused() {
        let mut seen = Seen::new(&id(), Stdio::default());
        let mut event = exit_event("c1", 3);
        event.value = vec![0xff];
        seen.apply(&id(), &event).unwrap_err();
    }
}
