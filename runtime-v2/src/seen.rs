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
    oom_published: bool,
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
            oom_published: false,
        }
    }

    /// Where the streams of init go, by another source than its shim.
    pub(crate) fn streams(&mut self, stdio: Stdio) {
        self.init.stdio = stdio;
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

    /// True when an event of the shim said that memory ran out.
    pub(crate) fn is_oom_published(&self) -> bool {
        self.oom_published
    }

    /// The shim told the state of a process. An answer may be older than an end that came as event.
    pub(crate) fn told(&mut self, exec: Option<&ExecId>, state: &ProcessState) {
        match self.get_mut(exec) {
            Some(known) if known.exit.is_some() && state.exit.is_none() => {}
            Some(known) => *known = state.clone(),
            None => self
                .execs
                .extend(exec.map(|id| (id.clone(), state.clone()))),
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

    fn is_not_init(&self, pid: u32) -> bool {
        pid != 0 && self.init.pid != 0 && pid != self.init.pid
    }

    /// Takes over what an event of the shim says. Execs are known from the calls that add them; an
    /// event about one that was deleted meanwhile must not bring it back.
    pub(crate) fn apply(&mut self, change: &Change) {
        match change {
            // The event of an exec that is called like its container looks like init's.
            Change::Exited { exec: None, exit } if self.is_not_init(exit.pid) => {
                let mut execs = self.execs.values_mut();
                if let Some(exec) = execs.find(|exec| exec.pid == exit.pid) {
                    exec.status = Status::Stopped;
                    exec.exit = Some((exit.status, exit.at));
                }
            }
            Change::Exited { exec, exit } => {
                self.exit_published |= exec.is_none();
                self.ended(exec.as_ref(), exit.pid, exit.status, exit.at);
            }
            Change::Started { exec, pid } => {
                self.alive(exec.as_ref(), Status::Running, Some(*pid));
            }
            Change::OutOfMemory => self.oom_published = true,
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
        assert!(!seen.is_oom_published());
        let rest = [Change::Paused, Change::Resumed, Change::OutOfMemory];
        for change in rest.into_iter().chain([late]) {
            seen.apply(&change);
        }
        assert!(seen.is_oom_published());
        let state = seen.get(None).unwrap();
        assert_eq!((state.status, state.pid), (Status::Stopped, 7));
        assert_eq!(seen.exit().unwrap().status, 3);
        assert!(seen.is_exit_published());
    }

    #[test]
    fn execs_are_told_from_init() {
        let mut seen = seen();
        let exec: ExecId = "e1".parse().unwrap();
        seen.added(&exec, Stdio::default());
        seen.apply(&exited(Some(&exec), 9));
        assert_eq!(seen.get(Some(&exec)).unwrap().status, Status::Stopped);
        assert_eq!(seen.get(None).unwrap().status, Status::Unknown);
        assert!(!seen.is_exit_published());
        seen.removed(&exec);
        assert!(seen.get(Some(&exec)).is_none());
    }

    #[test]
    fn a_late_event_does_not_bring_a_deleted_exec_back() {
        let mut seen = seen();
        let exec: ExecId = "e1".parse().unwrap();
        seen.added(&exec, Stdio::default());
        seen.removed(&exec);
        let id = Some(exec.clone());
        seen.apply(&Change::Started { exec: id, pid: 9 });
        seen.apply(&exited(Some(&exec), 0));
        assert!(seen.get(Some(&exec)).is_none());
    }

    #[test]
    fn an_answer_that_is_older_than_the_end_is_not_believed() {
        let mut seen = seen();
        let running = fresh("c1".into(), Status::Running, Stdio::default());
        seen.told(None, &running);
        seen.apply(&exited(None, 3));
        seen.told(None, &running);
        assert_eq!(seen.get(None).unwrap().status, Status::Stopped);
        assert_eq!(seen.exit().unwrap().status, 3);
    }

    #[test]
    fn the_end_of_an_exec_called_like_its_container_is_not_the_inits() {
        let mut seen = seen();
        seen.alive(None, Status::Running, Some(40));
        let exec: ExecId = "c1".parse().unwrap();
        seen.added(&exec, Stdio::default());
        seen.alive(Some(&exec), Status::Running, Some(7));
        seen.apply(&exited(None, 5));
        assert_eq!(seen.get(None).unwrap().status, Status::Running);
        assert!(!seen.is_exit_published());
        assert_eq!(seen.get(Some(&exec)).unwrap().status, Status::Stopped);
    }
}
