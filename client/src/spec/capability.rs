//! Capabilities by name and by bit.

use types::{Error, Result};

/// All capabilities of Linux 5.9 and later, in the order of their bits.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The capabilities that this process has: no container can be given more.
///
/// # Errors
/// The errno of reading `/proc/self/status`.
pub fn current_capabilities() -> Result<Vec<String>> {
    let status = std::fs::read_to_string("/proc/self/status")
        .map_err(|e| Error::os("read /proc/self/status", e))?;
    Ok(effective(&status))
}

/// The effective capabilities in the text of `/proc/<pid>/status`; those without a name are left out.
fn effective(status: &str) -> Vec<String> {
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = mask
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    let held = NAMES
        .iter()
        .enumerate()
        .filter(|(bit, _)| mask >> bit & 1 == 1);
    held.map(|(_, name)| format!("CAP_{name}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_have_the_kernel_s_names() {
        for (mask, want) in [
            ("0000000000000000", &[][..]),
            ("0000000000000001", &["CAP_CHOWN"]),
            (
                "0000010000200000",
                &["CAP_SYS_ADMIN", "CAP_CHECKPOINT_RESTORE"],
            ),
            ("ffff000000000000", &[]),
        ] {
            let status = format!("Name:\tx\nCapPrm:\tffffffffffffffff\nCapEff:\t{mask}\n");
            assert_eq!(effective(&status), want, "{mask}");
        }
        assert!(effective("").is_empty());
    }
}
