//! User namespaces as a way of writing down which ids stand for which.
//!
//! Invariant: nobody lives in a namespace made here; its descriptor is all that keeps it.

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::path::Path;
use std::str::FromStr;

use types::{Error, Result};

use crate::error::{at, last};
use crate::pidfd;

/// Most lines that the kernel takes in one map.
const MAX_RANGES: usize = 340;

/// A run of ids inside a namespace and what they are outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// First id inside.
    pub inside: u32,
    /// First id outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

impl FromStr for IdRange {
    type Err = Error;

    /// `inside:outside:count`.
    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            Error::invalid_argument(format_args!(
                "id mapping {text:?} is not container-id:host-id:size"
            ))
        };
        let mut parts = text.split(':').map(str::parse);
        let mut next = || {
            parts
                .next()
                .and_then(std::result::Result::ok)
                .ok_or_else(bad)
        };
        let range = Self {
            inside: next()?,
            outside: next()?,
            count: next()?,
        };
        let fits = |first: u32| first.checked_add(range.count).is_some();
        if parts.next().is_some() || !fits(range.inside) || !fits(range.outside) {
            return Err(bad());
        }
        Ok(range)
    }
}

/// Parses a list, `0:100000:65536,65536:1000:1`.
///
/// # Errors
/// `InvalidArgument`.
pub fn parse_ranges(text: &str) -> Result<Vec<IdRange>> {
    let ranges: Vec<IdRange> = text.split(',').map(str::parse).collect::<Result<_>>()?;
    if ranges.len() > MAX_RANGES {
        return Err(Error::invalid_argument(format_args!(
            "{} id mappings, the kernel takes {MAX_RANGES}",
            ranges.len()
        )));
    }
    Ok(ranges)
}

/// Makes a user namespace with these ids.
///
/// # Errors
/// The errno of the step that failed: `EPERM` without the right to map these ids, `EINVAL` for ranges
/// that overlap.
pub fn create(users: &[IdRange], groups: &[IdRange]) -> Result<OwnedFd> {
    let sleeper = Sleeper::start()?;
    let process = format!("/proc/{}", sleeper.pid);
    for (file, ranges) in [("uid_map", users), ("gid_map", groups)] {
        let path = format!("{process}/{file}");
        std::fs::write(&path, text(ranges)).map_err(|e| at("write", Path::new(&path), e))?;
    }
    let path = format!("{process}/ns/user");
    let namespace = std::fs::File::open(&path).map_err(|e| at("open", Path::new(&path), e))?;
    // Had it ended, the pid, and with it the path, could be somebody else's by now.
    pidfd::send_signal(&sleeper.pidfd, 0)?;
    Ok(namespace.into())
}

fn text(ranges: &[IdRange]) -> String {
    let line = |range: &IdRange| format!("{} {} {}\n", range.inside, range.outside, range.count);
    ranges.iter().map(line).collect()
}

/// A process that does nothing in a user namespace of its own; dropping it ends it.
struct Sleeper {
    pid: i64,
    pidfd: OwnedFd,
}

impl Sleeper {
    fn start() -> Result<Self> {
        let mut pidfd: RawFd = -1;
        let flags = libc::CLONE_NEWUSER | libc::CLONE_PIDFD | libc::SIGCHLD;
        let before = crate::signal::block_all();
        // SAFETY: as fork: the child runs on a copy of this memory and of this stack. It makes system
        // calls only, so that no lock that another thread held matters. `pidfd` is where CLONE_PIDFD
        // stores; the other pointers are not used with these flags.
        let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, &raw mut pidfd, 0, 0) };
        if pid == 0 {
            sleep();
        }
        let failed = last("clone");
        crate::signal::restore(&before);
        if pid < 0 {
            return Err(failed);
        }
        // SAFETY: the kernel opened this descriptor for us in the successful call above.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        Ok(Self { pid, pidfd })
    }
}

/// The child: waits to be killed, with all signals blocked that can be.
fn sleep() -> ! {
    // SAFETY: this option takes an integer only.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    loop {
        // SAFETY: no memory involved.
        unsafe { libc::pause() };
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        // It cannot have ended by itself, and nobody else reaps it.
        if let Err(error) = pidfd::send_signal(&self.pidfd, libc::SIGKILL) {
            tracing::warn!(%error, fd = self.pidfd.as_raw_fd(), "helper process stays");
            return;
        }
        drop(pidfd::wait(&self.pidfd));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_read_and_nonsense_is_refused() {
        let ranges = parse_ranges("0:100000:65536,65536:5:1").unwrap();
        let range = |inside, outside, count| IdRange {
            inside,
            outside,
            count,
        };
        assert_eq!(ranges, [range(0, 100_000, 65536), range(65536, 5, 1)]);
        for bad in [
            "",
            "0:1",
            "0:1:2:3",
            "-1:0:1",
            "0:0:x",
            "4294967295:0:2",
            "0:0:1,",
        ] {
            let error = parse_ranges(bad).unwrap_err();
            assert!(error.is(types::Code::InvalidArgument), "{bad}: {error}");
        }
        parse_ranges(&["0:0:1"; MAX_RANGES + 1].join(",")).unwrap_err();
    }

    #[test]
    fn a_namespace_has_its_maps_and_no_process() {
        use std::os::fd::AsFd as _;
        use std::os::unix::fs::MetadataExt as _;
        let ids = parse_ranges("0:100000:10").unwrap();
        let namespace = create(&ids, &ids).unwrap();
        let made = rustix::fs::fstat(namespace.as_fd()).unwrap().st_ino;
        for process in std::fs::read_dir("/proc").unwrap().flatten() {
            let inside = std::fs::metadata(process.path().join("ns/user"));
            assert!(
                inside.is_err() || inside.unwrap().ino() != made,
                "{process:?}"
            );
        }
        let twice = parse_ranges("0:0:2,1:5:1").unwrap();
        assert_eq!(
            create(&twice, &ids).unwrap_err().errno(),
            Some(libc::EINVAL)
        );
    }
}
