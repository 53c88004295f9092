//! The daemons that a host can run: ours and Debian's, with the shim of either.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{bin_dir, need};

/// Whose program it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The one under test.
    Ours,
    /// That of Debian's packages.
    Debian,
}

/// OCI runtime that the host's containers use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Oci {
    /// Debian's runc.
    Runc,
    /// Debian's runc, and the daemon in a network namespace of its own.
    Apart,
    /// Debian's crun. It refuses a hybrid cgroup mount, so the daemon and its shims get a private
    /// mount namespace without the v2 part.
    Crun,
}

/// Which programs make a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parts {
    pub(crate) oci: Oci,
    pub(crate) daemon: Whose,
    pub(crate) shim: Whose,
}

impl Parts {
    pub(crate) fn ours(oci: Oci) -> Self {
        Self {
            oci,
            daemon: Whose::Ours,
            shim: Whose::Ours,
        }
    }

    /// The client that came with the daemon.
    pub(crate) fn client(self) -> PathBuf {
        match self.daemon {
            Whose::Ours => bin_dir().join("ctr"),
            Whose::Debian => need("ctr"),
        }
    }

    /// Flags of `ctr run` that select shim and OCI runtime.
    pub(crate) fn flags(self) -> Vec<String> {
        let mut flags = Vec::new();
        // Debian's daemon finds shims by the search path, ours takes a path as a name.
        if (self.daemon, self.shim) == (Whose::Ours, Whose::Debian) {
            flags.extend(["--runtime".to_owned(), text(&debian_shim())]);
        }
        if self.oci == Oci::Crun {
            flags.extend(["--runc-binary".to_owned(), text(&need("crun"))]);
        }
        flags
    }

    /// The configuration: the machine's own must not reach a test.
    pub(crate) fn config(self, dir: &Path) -> String {
        match self.daemon {
            Whose::Ours => "version = 2\n".to_owned(),
            Whose::Debian => format!(
                "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
                 [plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{}\"\n",
                dir.join("opt").display()
            ),
        }
    }

    /// The daemon's command line for a host in `dir` with its root at `root`.
    pub(crate) fn command(self, dir: &Path, root: &Path) -> Command {
        let binary = match self.daemon {
            Whose::Ours => bin_dir().join("containerd"),
            Whose::Debian => need("containerd"),
        };
        let mut command = match self.oci {
            Oci::Runc => Command::new(&binary),
            Oci::Apart => {
                let mut command = Command::new("unshare");
                command.arg("--net").arg(&binary);
                command
            }
            Oci::Crun => {
                let mut command = Command::new("unshare");
                command.args(hide_unified()).arg(&binary);
                command
            }
        };
        let path = std::env::var("PATH").unwrap_or_default();
        let shims = match self.shim {
            Whose::Ours => bin_dir(),
            Whose::Debian => debian_shim()
                .parent()
                .map(Path::to_owned)
                .unwrap_or_default(),
        };
        command
            .arg("--root")
            .arg(root)
            .arg("--state")
            .arg(dir.join("state"))
            .arg("--address")
            .arg(dir.join("c.sock"))
            .arg("--config")
            .arg(dir.join("config.toml"))
            .args(["--log-level", "debug"])
            .env(
                "PATH",
                format!("{}:{path}:/usr/sbin:/sbin", shims.display()),
            );
        command
    }
}

fn debian_shim() -> PathBuf {
    need("containerd-shim-runc-v2")
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Arguments of `unshare` that run a command without the v2 part of a hybrid cgroup mount.
pub(crate) fn hide_unified() -> [&'static str; 5] {
    let hide = "if mountpoint -q /sys/fs/cgroup/unified; then \
                umount /sys/fs/cgroup/unified; fi; exec \"$@\"";
    ["-m", "sh", "-c", hide, "sh"]
}

/// Bind mounts that keep a namespace alive without a process.
pub(crate) fn pinned_namespaces() -> usize {
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").expect("mount table");
    let temporary = std::env::temp_dir();
    mounts
        .lines()
        .filter(|line| line.contains(" - nsfs "))
        // Those in a test's own directory are among the mounts of that test.
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|point| !Path::new(point).starts_with(&temporary))
        .count()
}
