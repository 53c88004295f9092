//! Stories: what users do, against real daemons, shims, runtimes and clients.

#![expect(
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a story fails by panicking, and is not under the shim's reaper"
)]

mod attach_by_descriptor;
mod bad_input;
mod checkpoint;
mod exec;
mod foreign_ctr;
mod images;
mod parallel;
mod records;
mod restart;
mod run;
mod stdio;
