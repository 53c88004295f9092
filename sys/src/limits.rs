//! Limits and scores of processes.

use std::path::Path;
use std::sync::OnceLock;
use std::thread::JoinHandle;

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

/// The limit of the length of files for a child; a lower one of ours stays, which not everybody may raise.
pub(crate) fn length_of_files(bytes: u64) -> libc::rlimit {
    let limit = rustix::process::getrlimit(Resource::Fsize);
    libc::rlimit {
        rlim_cur: bytes.min(limit.current.unwrap_or(libc::RLIM_INFINITY)),
        rlim_max: bytes.min(limit.maximum.unwrap_or(libc::RLIM_INFINITY)),
    }
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

/// The calling thread gives way to others from now on: for work that nobody waits for. It is for threads
/// of their own, because only a privileged process could take it back.
pub fn give_way() {
    /// Half of what there is: it goes on all the same when everybody else is busy.
    const NICE: i32 = 10;
    // On Linux it is the thread's own (setpriority(2), "C library/kernel differences"). A refusal costs
    // others a little time and nothing else.
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!(%error, "a thread does not give way");
    }
}

/// Tells the allocator to stay small: two arenas however many threads there are, and freed memory
/// beyond a little goes back to the kernel. For daemons, before they start threads.
pub fn tune_heap() {
    /// Arenas: measured best for a server with a few threads (dependencies.md, allocator).
    const ARENAS: i32 = 2;
    /// Free bytes at the top of the heap that are kept: a message or two of content. Giving them
    /// back and getting them again for each message costs more than copying it: 256 page faults.
    const KEPT: i32 = 2 << 20;
    /// Blocks from this size on are mapped for themselves: larger than a message of content.
    const MAPPED: i32 = 2 << 20;
    // SAFETY: takes no pointer; the allocator locks itself.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) };
    // SAFETY: as above.
    unsafe { libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT) };
    // SAFETY: as above.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED) };
}

/// What this process has of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Resident bytes, those of files included.
    pub resident: u64,
    /// Resident bytes of no file: heap and stacks.
    pub anonymous: u64,
}

impl Memory {
    /// As the kernel counts it now.
    ///
    /// # Errors
    /// The errno of reading the kernel's answer.
    pub fn of_this_process() -> Result<Self> {
        const FILE: &str = "/proc/self/statm";
        let text = std::fs::read_to_string(FILE).map_err(|e| at("read", Path::new(FILE), e))?;
        let page = rustix::param::page_size() as u64;
        let mut fields = text
            .split(' ')
            .map(|pages| pages.parse().unwrap_or(0) * page);
        let (resident, shared) = (fields.nth(1).unwrap_or(0), fields.next().unwrap_or(0));
        Ok(Self {
            resident,
            anonymous: resident.saturating_sub(shared),
        })
    }
}

/// Bytes that the allocator has given out. It counts its free blocks for this, so not for every day.
#[must_use]
pub fn heap_in_use() -> u64 {
    // SAFETY: takes nothing and returns a plain value; the allocator locks itself.
    let facts = unsafe { libc::mallinfo2() };
    (facts.uordblks + facts.hblkhd) as u64
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

/// As [`trim_heap`], with the freed blocks that glibc keeps at hand for the calling thread: a few of
/// each small size, which after a burst lie anywhere and hold a page each. For processes of one
/// thread.
pub fn trim_heap_of_thread() {
    // They go back for good when a thread ends: another one frees them, and ends.
    let kept = KeptBlocks::take();
    // Without the thread (it is out of resources) they are freed here, and stay at hand.
    if let Ok(other) = spawn_small(move || drop(kept)) {
        // It does nothing that could fail.
        drop(other.join());
    }
    trim_heap();
}

/// Starts a thread that leaves no memory behind, for one thing that blocks. For processes of one thread:
/// from now on all threads use the one heap there is.
///
/// All such threads have stacks of one size: of one that ended glibc keeps the stack for the next.
///
/// # Errors
/// The errno; `work` is dropped then.
pub fn spawn_small<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>> {
    /// Enough for a loop over `free`, or a table of mounts: the data are on the heap.
    const STACK: usize = 64 << 10;
    // SAFETY: takes no pointer; the allocator locks itself.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    let thread = std::thread::Builder::new().stack_size(STACK);
    thread.spawn(work).map_err(|e| op("start thread", e))
}

/// Blocks of all sizes that are kept at hand, as many as are kept of each.
struct KeptBlocks(Vec<usize>);

impl KeptBlocks {
    /// Sizes that have a list of their own in glibc's malloc, and the length of a list.
    const SIZES: std::ops::Range<usize> = 24..1033;
    const STEP: usize = 16;
    const EACH: usize = 7;

    fn take() -> Self {
        let sizes = Self::SIZES.step_by(Self::STEP);
        let mut blocks = Vec::with_capacity(Self::EACH * sizes.len());
        for size in sizes {
            for _ in 0..Self::EACH {
                // SAFETY: any size may be asked for; the result is only kept and freed.
                let block = unsafe { libc::malloc(size) };
                blocks.push(block.expose_provenance());
            }
        }
        Self(blocks)
    }
}

impl Drop for KeptBlocks {
    fn drop(&mut self) {
        for block in self.0.drain(..) {
            // SAFETY: it came from malloc (or is null), nobody else has it, and it goes once.
            unsafe { libc::free(std::ptr::with_exposed_provenance_mut(block)) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Spawn;

    #[test]
    fn memory_in_use_is_counted_and_resident() {
        const SIZE: usize = 32 << 20;
        let before = (heap_in_use(), Memory::of_this_process().unwrap());
        let block = vec![7_u8; SIZE];
        let now = (heap_in_use(), Memory::of_this_process().unwrap());
        assert!(now.0 >= before.0 + SIZE as u64 / 2, "{before:?} {now:?}");
        assert!(now.1.anonymous >= SIZE as u64, "{now:?}");
        assert!(now.1.resident >= now.1.anonymous, "{now:?}");
        drop(block);
    }

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
        // The limit is that of all tests of a process.
        let name = "limits::tests::open_files_reach_the_hard_limit_for_us_and_not_for_children";
        crate::testing::alone(name, raise_a_low_limit);
    }

    fn raise_a_low_limit() {
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

    #[test]
    fn a_small_thread_reads_the_table_of_mounts() {
        let thread = spawn_small(|| crate::mount::info::load().map(|mounts| mounts.len()));
        assert!(thread.unwrap().join().unwrap().unwrap() > 0);
    }

    #[test]
    fn a_trimmed_heap_is_as_good_as_before() {
        let kept: Vec<String> = (0..500).map(|n| n.to_string().repeat(n)).collect();
        for _ in 0..3 {
            trim_heap_of_thread();
            assert!(
                kept.iter()
                    .enumerate()
                    .all(|(n, text)| *text == n.to_string().repeat(n))
            );
        }
    }
}
