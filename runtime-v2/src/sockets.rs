//! Sockets of shims that were left behind: killed together with the daemon that knew them.
//!
//! Invariant: only a socket that nobody listens at, that no bundle names and that is no new one goes. A
//! bundle's own dead socket stays: that it refuses is what tells that the shim is gone.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sys::socket::LOCK;
use types::{Error, Result};

use crate::bootstrap::sockets_of;

/// A socket is bound a moment before it is listened at: one of this age is not in that moment.
const AGE: Duration = Duration::from_secs(60);
/// Characters of a shim's socket: a digest.
const NAME: usize = 64;

/// Removes what was left behind by shims under `state`, but nothing of `named`.
///
/// # Errors
/// The errno of listing them.
pub(crate) fn sweep(state: &Path, named: &HashSet<PathBuf>) -> Result<()> {
    let Some(before) = SystemTime::now().checked_sub(AGE) else {
        return Ok(());
    };
    let directory = sockets_of(state);
    if !directory.starts_with(state) {
        // The path of our own was too long, and this one belongs to another daemon.
        return Ok(());
    }
    for path in leftovers(&directory, named, before)? {
        // One may have been made under that name since.
        match sys::socket::remove_deserted(&path) {
            Ok(true) => tracing::info!(path = %path.display(), "socket without a shim removed"),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, path = %path.display(), "socket without a shim"),
        }
    }
    Ok(())
}

/// The sockets in a directory that may be left over, or whose lock is: they were there `before` that time.
fn leftovers(
    directory: &Path,
    named: &HashSet<PathBuf>,
    before: SystemTime,
) -> Result<BTreeSet<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(BTreeSet::new()),
        entries => {
            entries.map_err(|e| Error::os(format_args!("read {}", directory.display()), e))?
        }
    };
    let left = entries.filter_map(|entry| left(&entry.ok()?.path(), before));
    Ok(left.filter(|path| !named.contains(path)).collect())
}

/// The socket that a file is, or that it was made beside, when it may be left over.
fn left(path: &Path, before: SystemTime) -> Option<PathBuf> {
    let facts = fs::symlink_metadata(path).ok()?;
    if facts.modified().ok()? >= before {
        return None;
    }
    let name = path.file_name()?.to_str()?;
    let (socket, is_left) = match name.strip_suffix(LOCK) {
        // Whoever has it locked is waited for, whoever had is no more.
        Some(socket) => (socket, facts.is_file()),
        // What cannot be asked is not known to be left.
        None => {
            let is_socket = facts.file_type().is_socket();
            let is_deserted = || sys::socket::is_deserted(path).unwrap_or(false);
            (name, is_socket && is_deserted())
        }
    };
    let is_shims = socket.len() == NAME && socket.bytes().all(|b| b.is_ascii_hexdigit());
    (is_left && is_shims).then(|| path.with_file_name(socket))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::testing::dead_socket;

    #[test]
    fn only_an_old_socket_that_nobody_has_is_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = |letter: &str| dir.path().join(letter.repeat(NAME));
        dead_socket(&path("a"));
        dead_socket(&path("b"));
        // Somebody else's.
        dead_socket(&dir.path().join("other.sock"));
        fs::write(path("c"), "").unwrap();
        let _live = UnixListener::bind(path("d")).unwrap();
        let named = HashSet::from([path("b")]);
        let found = |before| leftovers(dir.path(), &named, before).unwrap();
        // Of shims that were killed when they began.
        for letter in ["b", "d", "e"] {
            fs::write(path(letter).with_extension("lock"), "").unwrap();
        }
        fs::write(dir.path().join("other.lock"), "").unwrap();
        let later = SystemTime::now() + AGE;
        assert_eq!(found(later), ["a", "d", "e"].map(path).into());
        assert!(found(SystemTime::now() - AGE).is_empty());
        assert!(
            leftovers(&path("f"), &named, later).unwrap().is_empty(),
            "no directory, nothing left"
        );
    }
}
