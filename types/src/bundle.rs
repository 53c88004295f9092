//! What a bundle directory holds: the names that daemon and shim must agree on, and the exit record.

use std::time::SystemTime;

/// Names of the files in a bundle directory (surface: `$STATE/io.containerd.runtime.v2.task/<ns>/<id>`).
pub mod bundle_file {
    /// OCI spec, the exact bytes of the container's record.
    pub const CONFIG: &str = "config.json";
    /// Mount point of the root file system.
    pub const ROOTFS: &str = "rootfs";
    /// Link to the directory of the same name under the daemon's root.
    pub const WORK: &str = "work";
    /// FIFO of the shim's log.
    pub const LOG: &str = "log";
    /// Plain address of the shim's socket, written by the shim.
    pub const ADDRESS: &str = "address";
    /// Link to the directory of the shim's socket, made by the shim.
    pub const SOCKET_DIR: &str = "s";
    /// How to reach the shim, written by the daemon.
    pub const BOOTSTRAP: &str = "bootstrap.json";
    /// Resolved path of the shim's binary.
    pub const SHIM_BINARY: &str = "shim-binary-path";
    /// Exit record of the init process, written by the shim before it tells anybody.
    pub const EXIT: &str = "exit";
    /// OCI runtime binary, for `delete`.
    pub const RUNTIME: &str = "runtime";
    /// Runtime options as JSON, for `delete`.
    pub const OPTIONS: &str = "options.json";
    /// Pid of the init process, written by the runtime.
    pub const INIT_PID: &str = "init.pid";
}

/// Type of an OCI spec in a container's record.
pub const SPEC_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// Runtime of containers that name none.
pub const DEFAULT_RUNTIME: &str = "io.containerd.runc.v2";

/// Name of the bundle directories' parent, under the daemon's state and root.
pub const BUNDLES_DIR: &str = "io.containerd.runtime.v2.task";

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Pid that it had.
    pub pid: u32,
    /// Exit code, or 128 + signal; 255 when nobody can tell any more; 137 when clean-up killed it.
    pub status: u32,
    /// When it ended.
    pub at: SystemTime,
}
