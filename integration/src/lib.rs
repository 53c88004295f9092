//! Harness of the integration tests: a private daemon per test, and proof that nothing is left.
//!
//! Invariant: every [`Host`] has its own root, state, socket and namespace, so that tests run beside
//! each other and beside other daemons; at its end it compares what the machine holds for it (mounts,
//! processes, cgroups, bundles, sockets, snapshots, descriptors) with nothing, and fails if there is
//! something. Needs root, and the binaries that `make` built (directory in `BIN_DIR`).

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a harness fails its test by panicking, and is not under the shim's reaper"
)]

mod daemon;
mod disk;
mod docker;
mod host;
mod inventory;
mod memory;
pub mod net;
mod process;
mod program;
mod proxy;
mod registry;
pub mod shim;
mod trap;
mod watch;

pub use daemon::{Oci, Whose};
pub use disk::{Disk, FileSystem, apart};
pub use docker::{Docker, alone, layer};
pub use host::{Host, IMAGE, archive, layers};
pub use inventory::snapshots_in;
pub use memory::{figure, forget_peak, peak, resident};
pub use process::{is_there, parent};
pub use program::{Output, PATIENCE, Program, bin_dir, copy, need, script, until, until_told};
pub use proxy::Proxy;
pub use registry::Registry;
pub use trap::Trap;
pub use watch::Watch;
