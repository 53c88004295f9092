//! Watching a group for the out-of-memory killer, by a descriptor that a readiness loop can hold.
//!
//! Invariant: one kill is told once, whether the kernel's event or the group's counter is seen first.
//! Several kills between two looks are told together.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::event::EventfdFlags;
use rustix::fs::inotify;
use types::Result;

use super::text::Flat;
use crate::error::{at, op};

/// What a look at an [`OomWatch`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OomEvent {
    /// The group ran out of memory.
    Oom,
    /// Something else changed, or it was told before.
    Nothing,
    /// The group is gone; the watch is over.
    Gone,
}

/// A watch. Ready, as [`OomWatch::is_urgent`] says, when there is something to ask [`OomWatch::check`]
/// for.
#[derive(Debug)]
pub struct OomWatch {
    fd: OwnedFd,
    source: Source,
    /// The file with the counter of kills.
    counter: PathBuf,
    /// How many of them have been told.
    told: AtomicU64,
}

#[derive(Debug)]
enum Source {
    /// Version 1: an eventfd registered with the group. The file must stay open.
    Eventfd { _registered: File },
    /// Version 2: `memory.events` itself. The kernel makes it ready once for a change and anew only
    /// after it was read.
    Events,
    /// Version 2: inotify on `memory.events`, of which a user has few on a host (128 by default).
    Inotify,
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
        let source = Source::Eventfd { _registered: file };
        Ok(Self::new(fd, source, control))
    }

    pub(super) fn v2(dir: &Path) -> Result<Self> {
        Self::events(dir.join("memory.events"))
    }

    /// Of a file of version 2, which tells of its changes.
    pub(super) fn events(file: PathBuf) -> Result<Self> {
        let events = File::open(&file).map_err(|e| at("open", &file, e))?;
        Ok(Self::new(events.into(), Source::Events, file))
    }

    pub(super) fn inotify(dir: &Path) -> Result<Self> {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let fd = inotify::init(flags).map_err(|e| op("inotify_init", e))?;
        let events = dir.join("memory.events");
        let changes = inotify::WatchFlags::MODIFY | inotify::WatchFlags::DELETE_SELF;
        inotify::add_watch(&fd, &events, changes)
            .map_err(|e| at("inotify_add_watch", &events, e))?;
        Ok(Self::new(fd, Source::Inotify, events))
    }

    fn new(fd: OwnedFd, source: Source, counter: PathBuf) -> Self {
        let watch = Self {
            fd,
            source,
            counter,
            told: AtomicU64::new(0),
        };
        let told = watch.kills().unwrap_or(0);
        watch.told.store(told, Ordering::Relaxed);
        watch
    }

    /// Whether it is ready by priority (`POLLPRI`), not by being readable, which it always is then.
    #[must_use]
    pub fn is_urgent(&self) -> bool {
        matches!(self.source, Source::Events)
    }

    /// Takes what is there to read and says what it means. With `count` the counter is looked at
    /// even when there is nothing to read: version 2 tells of changes with a delay. Never blocks.
    pub fn check(&self, count: bool) -> OomEvent {
        let events = match self.source {
            Source::Eventfd { .. } => self.read_sum(),
            // To look is to read the counter.
            Source::Events => 1,
            Source::Inotify => u64::from(self.read_any()),
        };
        if events == 0 && !count {
            return OomEvent::Nothing;
        }
        let by_event = matches!(self.source, Source::Eventfd { .. });
        let Some(kills) = self.kills() else {
            // The group's end is one event of its own.
            return if by_event && events > 1 {
                OomEvent::Oom
            } else {
                OomEvent::Gone
            };
        };
        let told = self.told.load(Ordering::Relaxed);
        // Version 1 gives the event before it counts the kill.
        let early = by_event && events > 0 && kills <= told;
        if kills <= told && !early {
            return OomEvent::Nothing;
        }
        let now = if early { told + 1 } else { kills };
        self.told.store(now, Ordering::Relaxed);
        OomEvent::Oom
    }

    /// The sum of the events of an eventfd.
    fn read_sum(&self) -> u64 {
        let mut buffer = [0; 8];
        match rustix::io::read(&self.fd, &mut buffer) {
            Ok(8) => u64::from_ne_bytes(buffer),
            _ => 0,
        }
    }

    fn read_any(&self) -> bool {
        let mut buffer = [0_u8; 512];
        let mut any = false;
        while rustix::io::read(&self.fd, &mut buffer).is_ok_and(|read| read > 0) {
            any = true;
        }
        any
    }

    /// The counter's value, `None` when the group is gone.
    fn kills(&self) -> Option<u64> {
        /// More than the file is: some names and numbers.
        const SIZE: usize = 1024;
        let text = if self.is_urgent() {
            let mut buffer = [0; SIZE];
            let read = rustix::io::pread(&self.fd, &mut buffer, 0).ok()?;
            String::from_utf8_lossy(&buffer[..read]).into_owned()
        } else {
            std::fs::read_to_string(&self.counter).ok()?
        };
        Some(Flat::parse(&text).get("oom_kill"))
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
