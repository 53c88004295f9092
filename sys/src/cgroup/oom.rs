//! Watching a group for the out-of-memory killer, by a descriptor that a readiness loop can hold.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use rustix::event::EventfdFlags;
use rustix::fs::inotify;
use types::Result;

use super::text;
use crate::error::{at, op};

/// What a readable [`OomWatch`] means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OomEvent {
    /// The group ran out of memory.
    Oom,
    /// Something else changed, or somebody else read the event.
    Nothing,
    /// The group is gone; the watch is over.
    Gone,
}

/// A watch. Readable when there is something to ask [`OomWatch::check`] for.
#[derive(Debug)]
pub struct OomWatch {
    fd: OwnedFd,
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// Version 1: an eventfd registered with the group. The file must stay open.
    Counter { control: PathBuf, _registered: File },
    /// Version 2: inotify on `memory.events`; how many kills have been told.
    Events { events: PathBuf, told: u64 },
}

impl OomWatch {
    pub(super) fn v1(dir: &Path) -> Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let fd = rustix::event::eventfd(0, flags).map_err(|e| op("eventfd", e))?;
        let control = dir.join("memory.oom_control");
        let file = File::open(&control).map_err(|e| at("open", &control, e))?;
        let register = dir.join("cgroup.event_control");
        let line = format!("{} {}", fd.as_raw_fd(), file.as_raw_fd());
        std::fs::write(&register, line).map_err(|e| at("write", &register, e))?;
        Ok(Self {
            fd,
            source: Source::Counter {
                control,
                _registered: file,
            },
        })
    }

    pub(super) fn v2(dir: &Path) -> Result<Self> {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let fd = inotify::init(flags).map_err(|e| op("inotify_init", e))?;
        let events = dir.join("memory.events");
        let changes = inotify::WatchFlags::MODIFY | inotify::WatchFlags::DELETE_SELF;
        inotify::add_watch(&fd, &events, changes)
            .map_err(|e| at("inotify_add_watch", &events, e))?;
        let told = text::flat(&events).get("oom_kill");
        Ok(Self {
            fd,
            source: Source::Events { events, told },
        })
    }

    /// Takes what is there to read and says what it means. Never blocks.
    pub fn check(&mut self) -> OomEvent {
        let any = self.drain();
        match &mut self.source {
            // The event is given before the kill is counted, so the event itself counts.
            Source::Counter { control, .. } if !control.exists() => OomEvent::Gone,
            Source::Counter { .. } if any => OomEvent::Oom,
            Source::Counter { .. } => OomEvent::Nothing,
            Source::Events { events, told } => {
                if !events.exists() {
                    return OomEvent::Gone;
                }
                let kills = text::flat(events).get("oom_kill");
                let new = kills > *told;
                *told = kills;
                if new {
                    OomEvent::Oom
                } else {
                    OomEvent::Nothing
                }
            }
        }
    }

    fn drain(&self) -> bool {
        let mut buffer = [0_u8; 512];
        let mut any = false;
        while rustix::io::read(&self.fd, &mut buffer).is_ok_and(|read| read > 0) {
            any = true;
        }
        any
    }
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for OomWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
