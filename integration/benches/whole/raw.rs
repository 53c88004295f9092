//! The bare runtime on the same bundle, and figures from /proc.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

use crate::Times;

/// OCI spec that runs `args` in `root`: what `runc spec` writes, without a terminal.
pub(crate) fn spec(args: &[&str], root: &str, cgroup: &str) -> Value {
    let caps = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false, "user": {"uid": 0, "gid": 0}, "args": args, "cwd": "/",
            "env": ["PATH=/bin"], "noNewPrivileges": true,
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
        },
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
    for name in ["true", "sleep", "sh"] {
        std::os::unix::fs::symlink("busybox", bin.join(name)).expect("link");
    }
    for name in ["proc", "sys", "dev"] {
        fs::create_dir_all(to.join(name)).expect("make a mount point");
    }
    to
}

fn runtime(binary: &Path, root: &Path, args: &[&str]) {
    let status = Command::new(binary)
        .arg("--root")
        .arg(root)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status();
    assert!(
        status.expect("run the runtime").success(),
        "{} {args:?}",
        binary.display()
    );
}

/// create, start, wait, delete without any daemon.
pub(crate) fn life(binary: &Path, rootfs: &Path, dir: &Path, id: &str) -> Times {
    let (bundle, root) = (dir.join(format!("bundle-{id}")), dir.join("raw-state"));
    rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1)).expect("subreaper");
    let begin = Instant::now();
    fs::create_dir(&bundle).expect("make the bundle");
    let text = spec(
        &["/bin/true"],
        &rootfs.to_string_lossy(),
        &format!("/ctd-bench-raw/{id}"),
    );
    fs::write(bundle.join("config.json"), text.to_string()).expect("write the spec");
    let (bundle_text, pid_file) = (bundle.to_string_lossy(), bundle.join("pid"));
    let pid_text = pid_file.to_string_lossy();
    runtime(
        binary,
        &root,
        &[
            "create",
            "--bundle",
            &bundle_text,
            "--pid-file",
            &pid_text,
            id,
        ],
    );
    let pid = fs::read_to_string(&pid_file)
        .expect("pid file")
        .trim()
        .parse()
        .expect("a pid");
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    runtime(binary, &root, &["start", id]);
    let running = begin.elapsed();
    rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).expect("wait");
    runtime(binary, &root, &["delete", id]);
    fs::remove_dir_all(&bundle).expect("remove the bundle");
    Times {
        running,
        whole: begin.elapsed(),
    }
}

/// Parent of a process.
pub(crate) fn parent(pid: u32) -> u32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let rest = stat.rsplit(')').next().expect("fields");
    rest.split_whitespace()
        .nth(1)
        .expect("ppid")
        .parse()
        .expect("a number")
}

/// A line of smaps_rollup, in KiB.
pub(crate) fn rollup(pid: u32, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("smaps_rollup");
    let line = text
        .lines()
        .find(|l| l.starts_with(name))
        .expect("the line");
    line.split_whitespace()
        .nth(1)
        .expect("value")
        .parse()
        .expect("a number")
}

/// Threads of a process.
pub(crate) fn threads(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}
