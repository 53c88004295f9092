//! Files that may be damaged: how they are read, and how they are kept.
//!
//! Invariant: nothing that is damaged is ever deleted, and what it makes of its reader is an answer.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread::ScopedJoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use types::{Error, Result};

use crate::error::at;

/// Name of the thread that reads a file which may be damaged: a panic there is no bug.
pub const CHECK_THREAD: &str = "check-file";

/// Runs `read` on a thread of its own: an engine is sound, but what it reads may be anything. `None`
/// when it panicked over that.
///
/// # Errors
/// The errno of starting the thread.
pub fn guarded<T: Send>(read: impl FnOnce() -> T + Send) -> Result<Option<T>> {
    let joined = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(CHECK_THREAD.into());
        let reader = thread.spawn_scoped(scope, read);
        reader.map(ScopedJoinHandle::join)
    });
    match joined {
        Ok(read) => Ok(read.ok()),
        Err(error) => Err(Error::os("start a thread", error)),
    }
}

/// Moves what is at `path` out of the way, to `<path>.damaged-<time>`. `None` when nothing was there.
///
/// # Errors
/// The errno, with the path.
pub fn keep_aside(path: &Path) -> Result<Option<PathBuf>> {
    let aside = aside(path)?;
    match std::fs::rename(path, &aside) {
        Ok(()) => Ok(Some(aside)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(at("rename", path, e)),
    }
}

/// Copies what is at `path` to such a name, durably: the original is going to be cut.
///
/// # Errors
/// The errno, with the path.
pub fn keep_copy(path: &Path) -> Result<PathBuf> {
    let aside = aside(path)?;
    std::fs::copy(path, &aside).map_err(|e| at("copy", path, e))?;
    let synced = File::open(&aside).and_then(|file| file.sync_all());
    synced.map_err(|e| at("fsync", &aside, e))?;
    Ok(aside)
}

/// A name that nothing has.
fn aside(path: &Path) -> Result<PathBuf> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let mut stamp = now.map_or(0, |since| since.as_nanos());
    loop {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".damaged-{stamp}"));
        let aside = PathBuf::from(name);
        match aside.symlink_metadata() {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(aside),
            Err(e) => return Err(at("stat", &aside, e)),
            // A clock that went back.
            Ok(_) => stamp += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_panics_is_an_answer() {
        assert_eq!(guarded(|| 7).unwrap(), Some(7));
        let name = guarded(|| std::thread::current().name().map(str::to_owned));
        assert_eq!(name.unwrap().flatten().as_deref(), Some(CHECK_THREAD));
        let read = |bytes: &[u8]| bytes[usize::from(bytes[0])];
        assert_eq!(guarded(|| read(&[9])).unwrap(), None);
    }

    #[test]
    fn what_is_damaged_is_kept_however_often() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("store.db");
        assert_eq!(keep_aside(&path).unwrap(), None);
        let mut kept = Vec::new();
        for round in 0..3 {
            std::fs::write(&path, format!("round {round}")).unwrap();
            kept.push(keep_copy(&path).unwrap());
            kept.push(keep_aside(&path).unwrap().unwrap());
            assert!(!path.exists());
        }
        for (n, aside) in kept.iter().enumerate() {
            let text = std::fs::read_to_string(aside).unwrap();
            assert_eq!(text, format!("round {}", n / 2));
            let name = aside.file_name().unwrap().to_string_lossy();
            assert!(name.starts_with("store.db.damaged-"), "{name}");
        }
    }
}
