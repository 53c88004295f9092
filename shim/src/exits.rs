//! How a process ended, on disk: written before anybody is told, read when the shim is gone.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use types::{Exit, Result, bundle_file};

#[derive(Debug, Deserialize, Serialize)]
struct Record {
    pid: u32,
    status: u32,
    /// Nanoseconds since 1970.
    exited_at: u64,
    /// The kernel ended a process of the container for want of memory before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    oom: bool,
}

/// The record's file: `exit` of the init, `exit-<id>` of an exec.
fn file(bundle: &Path, exec: &str) -> PathBuf {
    if exec.is_empty() {
        bundle.join(bundle_file::EXIT)
    } else {
        bundle.join(format!("{}-{exec}", bundle_file::EXIT))
    }
}

/// Records an exit. Atomic against a killed shim; a power cut takes the container too.
///
/// # Errors
/// The errno of writing.
pub(crate) fn record(bundle: &Path, exec: &str, exit: Exit, oom: bool) -> Result<()> {
    let since = exit
        .at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let exited_at = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
    let record = Record {
        pid: exit.pid,
        status: exit.status,
        exited_at,
        oom,
    };
    let text = serde_json::to_vec(&record).map_err(types::Error::internal)?;
    sys::fs::write_atomic_with(&file(bundle, exec), &text, 0o600, sys::fs::Flush::Volatile)
}

/// Removes the record of an exec with the exec.
pub(crate) fn forget(bundle: &Path, exec: &str) {
    // Absent when it was never started; the bundle goes as a whole in any case.
    drop(std::fs::remove_file(file(bundle, exec)));
}

/// The recorded exit of the init, if there is one that can be read.
pub(crate) fn read(bundle: &Path) -> Option<Exit> {
    let text = std::fs::read(file(bundle, "")).ok()?;
    let record: Record = serde_json::from_slice(&text).ok()?;
    let at = SystemTime::UNIX_EPOCH + Duration::from_nanos(record.exited_at);
    Some(Exit {
        pid: record.pid,
        status: record.status,
        at,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recorded_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()), None);
        let at = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789);
        let exit = Exit {
            pid: 42,
            status: 137,
            at,
        };
        record(dir.path(), "", exit, false).unwrap();
        let text = std::fs::read_to_string(dir.path().join("exit")).unwrap();
        assert!(!text.contains("oom"), "{text}");
        record(dir.path(), "", exit, true).unwrap();
        let text = std::fs::read_to_string(dir.path().join("exit")).unwrap();
        assert!(text.contains("\"oom\":true"), "{text}");
        record(dir.path(), "e1", Exit { status: 1, ..exit }, false).unwrap();
        assert_eq!(read(dir.path()), Some(exit));
        forget(dir.path(), "e1");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        std::fs::write(dir.path().join("exit"), "{").unwrap();
        assert_eq!(read(dir.path()), None);
    }
}
