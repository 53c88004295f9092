//! Pipes, and moving bytes between descriptors without copying them through this process.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::pipe::{PipeFlags, SpliceFlags};
use types::Result;

use crate::error::op;

/// A pipe, close-on-exec: (read end, write end).
///
/// # Errors
/// The errno of `pipe2`.
pub fn new() -> Result<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|e| op("pipe2", e))
}

/// Moves up to `length` bytes; one side must be a pipe. Does not block: `WouldBlock` when there is
/// nothing to move or no room. `Ok(0)` is the end of the input.
///
/// # Errors
/// The errno, as an `io::Error` for the caller's readiness loop; `InvalidInput` when the kernel
/// cannot splice these two.
pub fn splice(from: impl AsFd, to: impl AsFd, length: usize) -> io::Result<usize> {
    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
    Ok(rustix::pipe::splice(from, None, to, None, length, flags)?)
}

/// Duplicates up to `length` bytes from one pipe into another without taking them. Does not block.
///
/// # Errors
/// As [`splice`].
pub fn tee(from: impl AsFd, to: impl AsFd, length: usize) -> io::Result<usize> {
    Ok(rustix::pipe::tee(from, to, length, SpliceFlags::NONBLOCK)?)
}

/// Reads what is there. `WouldBlock` on a descriptor that does not block; `Ok(0)` is the end.
///
/// # Errors
/// The errno, as an `io::Error` for the caller's readiness loop.
pub fn read(fd: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(rustix::io::read(fd, buffer)?)
}

/// Writes what there is room for.
///
/// # Errors
/// The errno, as an `io::Error` for the caller's readiness loop.
pub fn write(fd: impl AsFd, data: &[u8]) -> io::Result<usize> {
    Ok(rustix::io::write(fd, data)?)
}

/// Bytes that wait in a pipe or terminal.
///
/// # Errors
/// The errno of `ioctl`.
pub fn pending(fd: impl AsFd) -> Result<u64> {
    rustix::io::ioctl_fionread(fd).map_err(|e| op("ioctl FIONREAD", e))
}

/// Sets the capacity of a pipe and returns what the kernel made of it.
///
/// # Errors
/// The errno of `fcntl`.
pub fn set_capacity(fd: impl AsFd, bytes: usize) -> Result<usize> {
    rustix::pipe::fcntl_setpipe_size(fd, bytes).map_err(|e| op("fcntl F_SETPIPE_SZ", e))
}

/// True while somebody has the other end of this write end open for reading.
#[must_use]
pub fn has_reader(write_end: impl AsFd) -> bool {
    !poll_now(write_end, PollFlags::OUT).contains(PollFlags::ERR)
}

/// True unless all write ends of this read end were closed. A read end that never met a writer does
/// not say so; open and close a write end first.
#[must_use]
pub fn has_writer(read_end: impl AsFd) -> bool {
    !poll_now(read_end, PollFlags::IN).contains(PollFlags::HUP)
}

/// True when a read would not block now.
#[must_use]
pub fn is_readable(fd: impl AsFd) -> bool {
    !poll_now(fd, PollFlags::IN).is_empty()
}

/// True when a write would not block now.
#[must_use]
pub fn is_writable(fd: impl AsFd) -> bool {
    !poll_now(fd, PollFlags::OUT).is_empty()
}

/// Blocks until a read would not block, at most for `limit`; true when it would not.
#[must_use]
pub fn is_readable_within(fd: impl AsFd, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // A signal cuts the waiting short: it goes on.
        if !poll(&fd, PollFlags::IN, left).is_empty() {
            return true;
        }
        if left.is_zero() {
            return false;
        }
    }
}

fn poll_now(fd: impl AsFd, events: PollFlags) -> PollFlags {
    poll(fd, events, Duration::ZERO)
}

fn poll(fd: impl AsFd, events: PollFlags, limit: Duration) -> PollFlags {
    let mut fds = [PollFd::new(&fd, events)];
    let limit = Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    };
    // With one valid descriptor it fails for a signal only.
    match rustix::event::poll(&mut fds, Some(&limit)) {
        Ok(_) => fds[0].revents(),
        Err(_) => PollFlags::empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read as _, Write as _};

    use crate::testing::until;

    #[test]
    fn bytes_move_and_the_ends_are_told() {
        let (read_a, write_a) = new().unwrap();
        let (read_b, write_b) = new().unwrap();
        let empty = splice(&read_a, &write_b, 100).unwrap_err();
        assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
        let mut write_a = File::from(write_a);
        write_a.write_all(b"hello").unwrap();
        assert_eq!(pending(&read_a).unwrap(), 5);
        assert_eq!(tee(&read_a, &write_b, 100).unwrap(), 5);
        assert_eq!(splice(&read_a, &write_b, 100).unwrap(), 5);
        drop((write_a, write_b.try_clone().unwrap()));
        until("the end comes", || !has_writer(&read_a));
        assert_eq!(splice(&read_a, &write_b, 100).unwrap(), 0);
        drop(write_b);
        let mut text = String::new();
        File::from(read_b).read_to_string(&mut text).unwrap();
        assert_eq!(text, "hellohello");
    }

    #[test]
    fn room_is_told() {
        let (read, write) = new().unwrap();
        let length = set_capacity(&write, 4096).unwrap();
        assert!(is_writable(&write));
        let mut file = File::from(write);
        file.write_all(&vec![0; length]).unwrap();
        assert!(!is_writable(&file));
        drop(read);
        until("the error is there to be had", || is_writable(&file));
    }

    #[test]
    fn bytes_and_the_end_are_waited_for_and_silence_is_not_for_ever() {
        let soon = Duration::from_secs(20);
        let (read, write) = new().unwrap();
        assert!(!is_readable_within(&read, Duration::from_millis(20)));
        let mut write = File::from(write);
        let late = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            write.write_all(b"x").unwrap();
            write
        });
        assert!(is_readable_within(&read, soon));
        let mut read = File::from(read);
        read.read_exact(&mut [0]).unwrap();
        drop(late.join().unwrap());
        assert!(is_readable_within(&read, soon));
    }
}
