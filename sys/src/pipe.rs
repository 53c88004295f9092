//! Pipes, and moving bytes between descriptors without copying them through this process.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read as _, Write as _};

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
        assert_eq!(splice(&read_a, &write_b, 100).unwrap(), 0);
        drop(write_b);
        let mut text = String::new();
        File::from(read_b).read_to_string(&mut text).unwrap();
        assert_eq!(text, "hellohello");
    }
}
