//! The child's side of a spawn, between `clone` and `exec`.
//!
//! Invariant: it runs in the parent's memory while the parent's thread is suspended (vfork), so it
//! only makes system calls on data that the parent prepared: no allocation, no lock, no panic.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::ptr;

use crate::signal;

/// Room for the child's few frames; pages that it does not touch cost nothing.
const STACK: usize = 32 * 1024;

/// What to execute, and how.
#[derive(Debug)]
pub(super) struct Image<'a> {
    pub(super) program: &'a CStr,
    /// Ends with a null pointer, as `envp` does.
    pub(super) argv: &'a [*const c_char],
    pub(super) envp: &'a [*const c_char],
    pub(super) cwd: Option<&'a CStr>,
    /// (descriptor of the parent, number in the child); numbers are distinct.
    pub(super) fds: &'a mut [(RawFd, RawFd)],
    pub(super) new_group: bool,
    pub(super) death_signal: c_int,
    /// Limit of open files, when it is not to be ours.
    pub(super) files: Option<libc::rlimit>,
    /// Limit of the length of a file.
    pub(super) length: Option<libc::rlimit>,
}

/// The step that failed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Chdir,
    Exec,
    Other(&'static str),
}

/// Why there is no child.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) step: Step,
    pub(super) error: io::Error,
}

struct Job<'a, 'b> {
    image: &'a mut Image<'b>,
    failed: Option<(Step, c_int)>,
}

/// Pointers to the strings, with the null at the end. Valid as long as `strings` is.
pub(super) fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings
        .iter()
        .map(|s| s.as_ptr())
        .chain([ptr::null()])
        .collect()
}

/// Makes the child and returns when it runs its program.
pub(super) fn start(image: &mut Image<'_>) -> Result<(u32, OwnedFd), Failed> {
    let mut stack = MaybeUninit::<[u128; STACK / 16]>::uninit();
    let mut job = Job {
        image,
        failed: None,
    };
    let mut pidfd: RawFd = -1;
    let before = signal::block_all();
    // SAFETY: one past the end of the array is in bounds for pointer arithmetic.
    let top = unsafe { stack.as_mut_ptr().add(1) };
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
    // SAFETY: `run` gets a pointer to `job`, which outlives the child's use of our memory: with
    // CLONE_VFORK this thread sleeps until the child execs or exits. The stack grows down from `top`,
    // is 16-byte aligned (u128) and in this frame. `pidfd` is where CLONE_PIDFD stores.
    let pid = unsafe {
        libc::clone(
            run,
            top.cast(),
            flags,
            (&raw mut job).cast(),
            &raw mut pidfd,
        )
    };
    let cloned = io::Error::last_os_error();
    signal::restore(&before);
    if pid < 0 {
        return Err(Failed {
            step: Step::Other("clone"),
            error: cloned,
        });
    }
    // SAFETY: the kernel opened this descriptor for us in the successful call above.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    if let Some((step, errno)) = job.failed {
        // The child has ended without running anything: reap it, nobody else knows it.
        drop(crate::pidfd::wait(&pidfd));
        return Err(Failed {
            step,
            error: io::Error::from_raw_os_error(errno),
        });
    }
    Ok((pid.cast_unsigned(), pidfd))
}

extern "C" fn run(job: *mut c_void) -> c_int {
    // SAFETY: `start` passes its own `job`, and the parent sleeps meanwhile: exclusive access.
    let job = unsafe { &mut *job.cast::<Job<'_, '_>>() };
    if let Err(step) = prepare_and_exec(job.image) {
        job.failed = Some((step, errno()));
    }
    // SAFETY: ends the child without running the parent's exit handlers.
    unsafe { libc::_exit(127) }
}

fn errno() -> c_int {
    // Neither allocates: the number is packed into the error value.
    io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or(libc::EIO)
}

fn check(result: c_int, step: Step) -> Result<(), Step> {
    if result < 0 { Err(step) } else { Ok(()) }
}

fn prepare_and_exec(image: &mut Image<'_>) -> Result<(), Step> {
    if image.new_group {
        // SAFETY: no memory involved.
        check(unsafe { libc::setpgid(0, 0) }, Step::Other("setpgid"))?;
    }
    if image.death_signal != 0 {
        // SAFETY: this option takes an integer only.
        let set = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, image.death_signal) };
        check(set, Step::Other("prctl"))?;
    }
    place_fds(image.fds)?;
    if let Some(files) = &image.files {
        // SAFETY: a valid limit of the parent.
        let set = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, files) };
        check(set, Step::Other("setrlimit"))?;
    }
    if let Some(length) = &image.length {
        // SAFETY: a valid limit of the parent.
        let set = unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, length) };
        check(set, Step::Other("setrlimit"))?;
    }
    if let Some(dir) = image.cwd {
        // SAFETY: a valid C string of the parent.
        check(unsafe { libc::chdir(dir.as_ptr()) }, Step::Chdir)?;
    }
    reset_signals();
    // SAFETY: program, argv and envp are valid, the latter two end with a null pointer.
    unsafe {
        libc::execve(
            image.program.as_ptr(),
            image.argv.as_ptr(),
            image.envp.as_ptr(),
        )
    };
    Err(Step::Exec)
}

/// Moves the descriptors to their numbers, and closes everything else.
///
/// Here and not by `exec`, which does it after the parent has been woken: until then a pipe or a listener that
/// the parent closes is still open, a lock still held, and a file still written to, in a child that is none of theirs.
fn place_fds(fds: &mut [(RawFd, RawFd)]) -> Result<(), Step> {
    let dup = Step::Other("dup2");
    let highest = fds
        .iter()
        .map(|(_, target)| *target)
        .max()
        .unwrap_or(2)
        .max(2);
    // First out of the way of all targets, so that no source is overwritten before its turn.
    for (source, target) in fds.iter_mut() {
        if *source <= highest && *source != *target {
            // SAFETY: acts on descriptor numbers only.
            let moved = unsafe { libc::fcntl(*source, libc::F_DUPFD_CLOEXEC, highest + 1) };
            check(moved, dup)?;
            *source = moved;
        }
    }
    for target in 0..=highest {
        let result = match fds.iter().find(|(_, number)| *number == target) {
            // SAFETY: acts on descriptor numbers only.
            Some((source, _)) if *source == target => unsafe {
                libc::fcntl(target, libc::F_SETFD, 0)
            },
            // SAFETY: acts on descriptor numbers only.
            Some((source, _)) => unsafe { libc::dup2(*source, target) },
            None => {
                // A number that is not open is as good as closed.
                // SAFETY: acts on descriptor numbers only.
                unsafe { libc::close(target) };
                0
            }
        };
        check(result, dup)?;
    }
    let rest = (highest + 1).cast_unsigned();
    // Where that may not be called `exec` closes them: our own are close-on-exec.
    // SAFETY: the descriptors belong to this child's own table, and nothing uses them until its `exec`.
    unsafe { libc::close_range(rest, libc::c_uint::MAX, 0) };
    Ok(())
}

/// Default dispositions and an empty mask: the parent's handlers must never run here.
fn reset_signals() {
    for signal in 1..=libc::SIGRTMAX() {
        if signal == libc::SIGKILL || signal == libc::SIGSTOP {
            continue;
        }
        // Fails for the two that the C library keeps; those stay as they are.
        // SAFETY: SIG_DFL involves no memory; the table is the child's own (no CLONE_SIGHAND).
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let mut none = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: initialises the set.
    unsafe { libc::sigemptyset(none.as_mut_ptr()) };
    // SAFETY: the set was initialised above; the old one is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut()) };
}
