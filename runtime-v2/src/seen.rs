//! What the daemon knows of a task's processes without asking its shim.
//!
//! Invariant: a process that has ended never comes back, however late an older event arrives.

use std::collections::BTreeMap;
use std::time::SystemTime;

use types::{ContainerId, ExecId, Exit};

use crate::client::event::Change;
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

    /// Takes over what an event of the shim says.
    pub(crate) fn apply(&mut self, change: &Change) {
        match change {
            Change::Exited { exec, exit } => {
                self.exit_published |= exec.is_none();
                self.ended(exec.as_ref(), exit.pid, exit.status, exit.at);
            }
            Change::Started { exec, pid } => {
                self.alive(exec.as_ref(), Status::Running, Some(*pid));
            }
            Change::Added(exec) if !self.execs.contains_key(exec) => {
                self.added(exec, Stdio::default());
            }
            Change::Added(_) => {}
            Change::Paused => self.alive(None, Status::Paused, None),
            Change::Resumed => self.alive(None, Status::Running, None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen() -> Seen {
        Seen::new(&"c1".parse().unwrap(), Stdio::default())
    }

    fn exited(exec: Option<&ExecId>, status: u32) -> Change {
        Change::Exited {
            exec: exec.cloned(),
            exit: Exit {
                pid: 7,
                status,
                at: SystemTime::UNIX_EPOCH,
            },
        }
    }

    #[test]
    fn an_ended_process_does_not_come_back() {
        let mut seen = seen();
        seen.apply(&exited(None, 3));
        let late = Change::Started { exec: None, pid: 7 };
        for change in [late, Change::Paused, Change::Resumed] {
            seen.apply(&change);
        }
        let state = seen.get(None).unwrap();
        assert_eq!((state.status, state.pid), (Status::Stopped, 7));
        assert_eq!(seen.exit().unwrap().status, 3);
        assert!(seen.is_exit_published());
    }

    #[test]
    fn execs_are_told_from_init() {
        let mut seen = seen();
        let exec: ExecId = "e1".parse().unwrap();
        seen.apply(&Change::Added(exec.clone()));
        seen.apply(&exited(Some(&exec), 9));
        assert_eq!(seen.get(Some(&exec)).unwrap().status, Status::Stopped);
        assert_eq!(seen.get(None).unwrap().status, Status::Unknown);
        assert!(!seen.is_exit_published());
        seen.removed(&exec);
        assert!(seen.get(Some(&exec)).is_none());
    }

    #[test]
    fn an_exec_that_is_known_keeps_its_streams() {
        let mut seen = seen();
        let exec: ExecId = "e1".parse().unwrap();
        let stdio = Stdio {
            stdout: "/out".into(),
            ..Stdio::default()
        };
        seen.added(&exec, stdio.clone());
        seen.apply(&Change::Added(exec.clone()));
        assert_eq!(seen.get(Some(&exec)).unwrap().stdio, stdio);
    }
}
