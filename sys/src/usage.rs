//! What this process uses of the machine.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use rustix::process::{Resource, getrlimit};
use types::Result;

use crate::error::op;
use crate::limits::Memory;
use crate::process;

/// What a process uses.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Resident memory, in bytes.
    pub resident: u64,
    /// Address space, in bytes.
    pub size: u64,
    /// Open descriptors.
    pub files: u64,
    /// How many there may be.
    pub most_files: u64,
    /// Threads.
    pub threads: u64,
    /// CPU time.
    pub cpu: Duration,
    /// When it was started.
    pub began: SystemTime,
}

impl Usage {
    /// That of the caller's process.
    ///
    /// # Errors
    /// The errno of reading `/proc`.
    pub fn of_this_process() -> Result<Self> {
        static BEGAN: OnceLock<SystemTime> = OnceLock::new();
        let me = std::process::id();
        let field = |number| process::stat_field(me, number).unwrap_or_default();
        let files = std::fs::read_dir("/proc/self/fd").map_err(|e| op("read /proc/self/fd", e))?;
        let age = process::look(me).map_or(Duration::ZERO, |look| look.age);
        let now = SystemTime::now();
        Ok(Self {
            resident: Memory::of_this_process()?.resident,
            size: field(23),
            // Without the one by which they are counted.
            files: (files.count() as u64).saturating_sub(1),
            most_files: getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
            threads: field(20),
            cpu: process::ticks(field(14).saturating_add(field(15))),
            // One figure for the whole life: who watches it takes another one for a restart.
            began: *BEGAN.get_or_init(|| now.checked_sub(age).unwrap_or(now)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_knows_what_it_uses() {
        let before = Usage::of_this_process().unwrap();
        let held = std::fs::File::open("/dev/null").unwrap();
        let after = Usage::of_this_process().unwrap();
        drop(held);
        assert!(after.resident > 0 && after.size > after.resident);
        assert!(after.files > 0 && after.most_files >= after.files);
        assert!(after.threads > 0 && after.cpu >= before.cpu);
        let age = SystemTime::now().duration_since(after.began).unwrap();
        assert!(age < Duration::from_secs(24 * 3600), "{age:?}");
    }
}
