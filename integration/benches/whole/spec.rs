//! What runs in the bench's containers, and the files that it finds there.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// A process as the runtime spec writes it.
pub(crate) fn process(args: &[&str]) -> Value {
    let caps = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    json!({
        "terminal": false, "user": {"uid": 0, "gid": 0}, "args": args, "cwd": "/",
        "env": ["PATH=/bin"], "noNewPrivileges": true,
        "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
    })
}

/// OCI spec that runs `args` in `root`: what `runc spec` writes, without a terminal.
pub(crate) fn container(args: &[&str], root: &str, cgroup: &str) -> Value {
    json!({
        "ociVersion": "1.0.2",
        "process": process(args),
        "root": {"path": root, "readonly": false},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]},
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"},
                           {"type": "mount"}],
        },
    })
}

/// The image's files in a plain directory.
pub(crate) fn rootfs(dir: &Path) -> PathBuf {
    let to = dir.join("rootfs");
    let bin = to.join("bin");
    fs::create_dir_all(&bin).expect("make the rootfs");
    fs::copy(integration::need("busybox"), bin.join("busybox")).expect("copy busybox");
    for name in ["true", "sleep", "sh", "dd"] {
        std::os::unix::fs::symlink("busybox", bin.join(name)).expect("link");
    }
    for name in ["proc", "sys", "dev"] {
        fs::create_dir_all(to.join(name)).expect("make a mount point");
    }
    to
}
