//! The default Linux spec (Go: `oci.WithDefaultSpec` and `oci.WithDefaultUnixDevices`).

use serde_json::{Value, json};

use super::OCI_VERSION;

/// Open files that a container gets, unless this process itself may not have as many.
const OPEN_FILES: u64 = 1024;

/// What a process in a container may do by default. None is inheritable or ambient.
pub(super) const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// Files of the kernel that a container does not see.
pub(super) const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
    "/proc/scsi",
];

/// Those that it does not change.
pub(super) const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Character devices that may be used: null, random, full, tty, zero, urandom, console, any pty, ptmx.
pub(super) const DEVICES: [(u32, Option<u32>); 9] = [
    (1, Some(3)),
    (1, Some(8)),
    (1, Some(7)),
    (5, Some(0)),
    (1, Some(5)),
    (1, Some(9)),
    (5, Some(1)),
    (136, None),
    (5, Some(2)),
];

/// Limit of open files: a process cannot raise its own hard limit for a child.
pub(super) fn open_files() -> u64 {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    hard_open_files(&limits).map_or(OPEN_FILES, |hard| hard.min(OPEN_FILES))
}

/// The hard limit in the text of `/proc/<pid>/limits`; `None` when it is unlimited or unknown.
fn hard_open_files(limits: &str) -> Option<u64> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

pub(super) fn linux(cgroup: &str, open_files: u64) -> Value {
    json!({
        "ociVersion": OCI_VERSION,
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "cwd": "/",
            "capabilities": {
                "bounding": CAPABILITIES,
                "effective": CAPABILITIES,
                "permitted": CAPABILITIES,
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": open_files, "soft": open_files }],
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs" },
        "mounts": mounts(),
        "linux": {
            "resources": { "devices": devices() },
            "cgroupsPath": cgroup,
            "namespaces": [
                { "type": "pid" },
                { "type": "ipc" },
                { "type": "uts" },
                { "type": "mount" },
                { "type": "network" },
            ],
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
        },
    })
}

fn mounts() -> Value {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| {
        json!({
            "destination": destination,
            "type": kind,
            "source": source,
            "options": options,
        })
    };
    let pts = [
        "nosuid",
        "noexec",
        "newinstance",
        "ptmxmode=0666",
        "mode=0620",
        "gid=5",
    ];
    let tmp = ["nosuid", "strictatime", "mode=755", "size=65536k"];
    let shm = ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"];
    json!([
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &tmp),
        mount("/dev/pts", "devpts", "devpts", &pts),
        mount("/dev/shm", "tmpfs", "shm", &shm),
        mount(
            "/dev/mqueue",
            "mqueue",
            "mqueue",
            &["nosuid", "noexec", "nodev"]
        ),
        mount(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", "ro"]
        ),
        mount("/run", "tmpfs", "tmpfs", &tmp),
    ])
}

fn devices() -> Value {
    let allow = DEVICES.iter().map(|(major, minor)| {
        let mut rule = json!({ "allow": true, "type": "c", "major": major });
        if let Some(minor) = minor {
            rule["minor"] = json!(minor);
        }
        rule["access"] = json!("rwm");
        rule
    });
    std::iter::once(json!({ "allow": false, "access": "rwm" }))
        .chain(allow)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hard_limit_is_the_second_column() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max open files            1024                 512                  files     \n";
        assert_eq!(hard_open_files(text), Some(512));
        assert_eq!(
            hard_open_files("Max open files  1024  unlimited  files\n"),
            None
        );
        assert!(open_files() <= OPEN_FILES);
    }
}
