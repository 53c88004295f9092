//! Events that shims publish, as far as they say something about a task's processes.

use protos::any::{Named, unpack};
use protos::events as wire;
use types::{Any, ContainerId, ExecId, Exit, Result};

use super::exit_time;

/// What an event says. `exec: None` is the init process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// A process ended.
    Exited { exec: Option<ExecId>, exit: Exit },
    /// A process runs.
    Started { exec: Option<ExecId>, pid: u32 },
    /// Memory ran out.
    OutOfMemory,
    /// All processes are frozen.
    Paused,
    /// They are thawed.
    Resumed,
}

/// Reads an event. `None` for the kinds that change nothing.
///
/// # Errors
/// `InvalidArgument` for a damaged event or an id that is none.
pub(crate) fn read(event: &Any) -> Result<Option<(ContainerId, Change)>> {
    let (container, change) = match event.type_name() {
        wire::TaskExit::FULL_NAME => {
            let told: wire::TaskExit = unpack(event)?;
            let exit = Exit {
                pid: told.pid,
                status: told.exit_status,
                at: exit_time(told.exited_at.as_ref()),
            };
            // The id of the init process is the container's.
            let exec = (told.id != told.container_id).then(|| told.id.try_into());
            let exec = exec.transpose()?;
            (told.container_id, Change::Exited { exec, exit })
        }
        wire::TaskStart::FULL_NAME => {
            let told: wire::TaskStart = unpack(event)?;
            let (exec, pid) = (None, told.pid);
            (told.container_id, Change::Started { exec, pid })
        }
        wire::TaskExecStarted::FULL_NAME => {
            let told: wire::TaskExecStarted = unpack(event)?;
            let (exec, pid) = (Some(told.exec_id.try_into()?), told.pid);
            (told.container_id, Change::Started { exec, pid })
        }
        wire::TaskOOM::FULL_NAME => {
            let told: wire::TaskOOM = unpack(event)?;
            (told.container_id, Change::OutOfMemory)
        }
        wire::TaskPaused::FULL_NAME => {
            let told: wire::TaskPaused = unpack(event)?;
            (told.container_id, Change::Paused)
        }
        wire::TaskResumed::FULL_NAME => {
            let told: wire::TaskResumed = unpack(event)?;
            (told.container_id, Change::Resumed)
        }
        _ => return Ok(None),
    };
    Ok(Some((container.try_into()?, change)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use protos::any::pack;

    fn exit_of(process: &str) -> Any {
        let event = wire::TaskExit {
            container_id: "c1".into(),
            id: process.into(),
            pid: 7,
            exit_status: 3,
            ..Default::default()
        };
        pack(&event).unwrap()
    }

    #[test]
    fn init_is_told_from_execs() {
        for (process, is_init) in [("c1", true), ("e1", false)] {
            let (container, change) = read(&exit_of(process)).unwrap().unwrap();
            let Change::Exited { exec, exit } = change else {
                panic!("{change:?}");
            };
            assert_eq!(container.as_str(), "c1");
            assert_eq!((exec.is_none(), exit.pid, exit.status), (is_init, 7, 3));
        }
    }

    #[test]
    fn both_forms_of_the_type_are_read_and_others_are_left_alone() {
        let mut event = exit_of("c1");
        event.type_url.insert_str(0, "type.googleapis.com/");
        assert!(read(&event).unwrap().is_some());
        for other in ["containerd.events.ImageCreate", ""] {
            event.type_url = other.into();
            assert_eq!(read(&event).unwrap(), None);
        }
    }

    #[test]
    fn damaged_events_are_refused() {
        let mut event = exit_of("../x");
        read(&event).unwrap_err();
        event.value = vec![0xff];
        read(&event).unwrap_err();
    }
}
