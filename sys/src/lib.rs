//! The kernel as this project sees it: synchronous, no runtime, and the only crate with `unsafe`.
//!
//! Invariant: a function here does one thing to the kernel and says, in its error, which operation
//! failed on which path with which errno (class Unknown, as in Go). Text formats of the kernel are
//! parsed by pure functions that take the text; loaders call them. Blocking calls are marked so; an
//! asynchronous caller wraps them in `spawn_blocking` or waits for the descriptor first.

#![allow(
    unsafe_code,
    reason = "sys is the crate that may; every block says why it is sound"
)]

pub mod btrfs;
pub mod cgroup;
pub mod clock;
pub mod damage;
pub mod disk;
mod error;
pub mod fifo;
pub mod fs;
pub mod limits;
pub mod lock;
pub mod loopdev;
pub mod mount;
pub mod netlink;
pub mod netns;
pub mod pidfd;
pub mod pipe;
pub mod process;
pub mod program;
pub mod pty;
pub mod reaper;
pub mod signal;
pub mod socket;
#[cfg(test)]
mod testing;
pub mod tun;
pub mod usage;
pub mod userns;
