//! Listening sockets that the daemon is started with, as sd_listen_fds(3) has it.
//!
//! Invariant: children inherit neither the descriptors nor the variables that tell of them. A socket is
//! found by its name (`grpc`, `ttrpc`, `debug`) or by the path that the configuration has for it.

use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use types::Result;

use crate::listen::Socket;

/// Number of the first descriptor that is passed.
const FIRST: RawFd = 3;
/// The variables: how many, for whom, under which names.
const VARIABLES: [&str; 3] = ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];

/// One of them.
#[derive(Debug)]
struct One {
    name: String,
    path: PathBuf,
    listener: UnixListener,
}

/// Those that nobody has taken yet.
#[derive(Debug, Default)]
pub(crate) struct Passed(Vec<One>);

impl Passed {
    /// Takes over what a service manager has passed. Called once, before there is a second thread.
    ///
    /// # Errors
    /// `FailedPrecondition` when there is one.
    pub(crate) fn by_manager() -> Result<Self> {
        let [count, pid, names] = VARIABLES.map(|name| std::env::var(name).unwrap_or_default());
        sys::process::forget_env(&VARIABLES)?;
        let mut passed = Self::default();
        for (number, name) in numbered(&count, &pid, &names, std::process::id()) {
            match sys::process::inherited_fd(number) {
                Ok(fd) => passed.add(name, fd),
                Err(error) => tracing::warn!(%error, number, "a socket was not passed"),
            }
        }
        Ok(passed)
    }

    /// Takes a descriptor in, if it is what it should be.
    pub(crate) fn add(&mut self, name: String, fd: OwnedFd) {
        match sys::socket::listens_at(&fd) {
            Some(path) => self.0.push(One {
                name,
                path,
                listener: fd.into(),
            }),
            None => tracing::warn!(name, "what was passed is no listening Unix socket: closed"),
        }
    }

    /// The socket called `name`, or else the one at `path`.
    ///
    /// # Errors
    /// The errno.
    pub(crate) fn take(&mut self, name: &str, path: &Path) -> Result<Option<Socket>> {
        let named = self.0.iter().position(|one| one.name == name);
        let at = named.or_else(|| self.0.iter().position(|one| one.path == path));
        let Some(at) = at else {
            return Ok(None);
        };
        let one = self.0.remove(at);
        Socket::adopt(one.path, one.listener).map(Some)
    }
}

impl Drop for Passed {
    fn drop(&mut self) {
        for One { name, path, .. } in &self.0 {
            let path = path.display();
            tracing::warn!(name, %path, "nothing here serves a socket that was passed: closed");
        }
    }
}

/// Numbers and names of the descriptors that are meant for process `own`.
fn numbered(count: &str, pid: &str, names: &str, own: u32) -> Vec<(RawFd, String)> {
    if pid.parse() != Ok(own) {
        return Vec::new();
    }
    let count: RawFd = count.parse().unwrap_or_default();
    let names = names.split(':').map(str::to_owned);
    let names = names.chain(std::iter::repeat(String::new()));
    (FIRST..FIRST.saturating_add(count)).zip(names).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_those_of_this_process_with_a_name_each() {
        let of = |count, pid, names| numbered(count, pid, names, 7);
        let pair = |number, name: &str| (number, name.to_owned());
        assert_eq!(
            of("2", "7", "grpc:ttrpc"),
            [pair(3, "grpc"), pair(4, "ttrpc")]
        );
        assert_eq!(of("2", "7", "grpc"), [pair(3, "grpc"), pair(4, "")]);
        for (count, pid) in [
            ("2", "8"),
            ("2", ""),
            ("", "7"),
            ("x", "7"),
            ("-1", "7"),
            ("0", "7"),
        ] {
            assert_eq!(of(count, pid, ""), [], "{count} {pid}");
        }
    }

    #[test]
    fn a_socket_is_found_by_name_and_then_by_path() {
        let dir = tempfile::tempdir().unwrap();
        let mut passed = Passed::default();
        for name in ["a", "b"] {
            let listener = UnixListener::bind(dir.path().join(name)).unwrap();
            passed.add(format!("name-{name}"), listener.into());
        }
        passed.add(
            "file".into(),
            std::fs::File::open(dir.path()).unwrap().into(),
        );
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        assert_eq!(passed.take("name-b", &a).unwrap().unwrap().path(), b);
        assert!(passed.take("name-b", &b).unwrap().is_none());
        assert_eq!(passed.take("name-c", &a).unwrap().unwrap().path(), a);
        assert!(passed.take("file", Path::new("/")).unwrap().is_none());
    }
}
