//! Limits and scores of processes.

use std::path::Path;
use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit};
use types::{Error, Result};

use crate::error::{at, op};

/// The most and least preferred victims of the out-of-memory killer.
const SCORE_RANGE: std::ops::RangeInclusive<i32> = -1000..=1000;

/// The `oom_score_adj` of a process.
///
/// # Errors
/// The errno of reading, `Internal` when it is no number.
pub fn oom_score(pid: u32) -> Result<i32> {
    let file = format!("/proc/{pid}/oom_score_adj");
    let text = std::fs::read_to_string(&file).map_err(|e| at("read", Path::new(&file), e))?;
    text.trim()
        .parse()
        .map_err(|_| Error::internal(format_args!("{file}: {text:?}")))
}

/// Sets the `oom_score_adj` of a process, kept within the kernel's range. A refusal for lack of
/// privilege is no error: the score is a preference.
///
/// # Errors
/// The errno of writing, other than `EACCES` and `EPERM`.
pub fn set_oom_score(pid: u32, score: i32) -> Result<()> {
    let file = format!("/proc/{pid}/oom_score_adj");
    let score = score.clamp(*SCORE_RANGE.start(), *SCORE_RANGE.end());
    match std::fs::write(&file, score.to_string()) {
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => Ok(()),
        other => other.map_err(|e| at("write", Path::new(&file), e)),
    }
}

/// What children get back, since their limit of open files is none of our business.
static INHERITED: OnceLock<libc::rlimit> = OnceLock::new();

/// The limit of open files for a child, once ours was raised.
pub(crate) fn files_of_children() -> Option<libc::rlimit> {
    INHERITED.get().copied()
}

/// Raises the soft limit of open files to the hard one; returns the limit. Children are started
/// with the limit that was there before.
///
/// # Errors
/// The errno of `setrlimit`.
pub fn raise_open_files() -> Result<u64> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    INHERITED.get_or_init(|| libc::rlimit {
        rlim_cur: limit.current.unwrap_or(libc::RLIM_INFINITY),
        rlim_max: limit.maximum.unwrap_or(libc::RLIM_INFINITY),
    });
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    rustix::process::setrlimit(Resource::Nofile, raised).map_err(|e| op("setrlimit", e))?;
    Ok(limit.maximum.unwrap_or(u64::MAX))
}

/// Tells the allocator to stay small: two arenas however many threads there are, and freed memory
/// beyond a little goes back to the kernel. For daemons, before they start threads.
pub fn tune_heap() {
    /// Arenas: measured best for a server with a few threads (dependencies.md, allocator).
    const ARENAS: i32 = 2;
    /// Free bytes at the top of the heap that are kept.
    const KEPT: i32 = 128 << 10;
    // SAFETY: takes no pointer; the allocator locks itself.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) };
    // SAFETY: as above.
    unsafe { libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT) };
}

/// Gives freed memory back to the kernel. For long-lived processes, after a burst.
pub fn trim_heap() {
    // SAFETY: takes no pointer; the allocator locks itself.
    unsafe { libc::malloc_trim(0) };
}

/// Gives the stack's pages below the caller back to the kernel: what deep calls left there is of no
/// use to anybody. Does something on the main thread only; other stacks are small anyway.
///
/// The frames above stay, so a shallow caller gives back most.
// Its own frame must be a small one: everything of it lies above the page that is left alone.
#[inline(never)]
pub fn trim_stack() {
    /// Left alone below this frame: the red zone, and the frame of the system call.
    const KEPT: usize = 4096;
    /// As deep as anything here goes; the kernel skips what was never touched.
    const DEPTH: usize = 256 << 10;
    if rustix::thread::gettid() != rustix::process::getpid() {
        return;
    }
    let page = rustix::param::page_size();
    let here = 0_u8;
    let end = (&raw const here).addr().saturating_sub(KEPT) & !(page - 1);
    let begin = end.saturating_sub(DEPTH);
    // SAFETY: the range lies below this function's frame and the red zone, where nothing lives until
    // a later call writes there first. Below the main thread's stack the kernel maps nothing for far
    // more than DEPTH bytes (its guard gap and the reserve for the stack limit).
    unsafe {
        libc::madvise(
            std::ptr::without_provenance_mut(begin),
            DEPTH,
            libc::MADV_DONTNEED,
        )
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Spawn;

    #[test]
    fn the_score_of_a_process_is_set_and_kept_in_range() {
        let child = Spawn::new("sleep").arg("60").spawn().unwrap();
        set_oom_score(child.pid(), 5000).unwrap();
        assert_eq!(oom_score(child.pid()).unwrap(), 1000);
        child.kill(libc::SIGKILL).unwrap();
        child.wait().unwrap();
        oom_score(child.pid()).unwrap_err();
    }

    #[test]
    fn open_files_reach_the_hard_limit_for_us_and_not_for_children() {
        let hard = rustix::process::getrlimit(Resource::Nofile).maximum;
        let low = Rlimit {
            current: Some(640),
            maximum: hard,
        };
        rustix::process::setrlimit(Resource::Nofile, low).unwrap();
        let limit = raise_open_files().unwrap();
        let asked = Spawn::new("sh").arg("-c").arg("ulimit -Sn");
        let told = asked
            .output(b"", 64, std::time::Duration::from_secs(20))
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&told.text).trim(), "640");
        let now = rustix::process::getrlimit(Resource::Nofile);
        assert_eq!(now.current, now.maximum);
        assert!(limit > 0);
    }
}
