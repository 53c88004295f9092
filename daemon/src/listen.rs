//! The sockets: bound with mode and owner, never stolen from a living daemon.

use std::io;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::Stream;
use tokio::net::{UnixListener, UnixStream};
use types::{Code, Error, Result};

use crate::lock;

/// Mode of both sockets.
const SOCKET_MODE: u32 = 0o660;
/// Mode of a directory that is made for a socket.
const DIRECTORY_MODE: u32 = 0o711;
/// Pause after a failed `accept` (no descriptors left, for example).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound socket. Its file goes with it.
#[derive(Debug)]
pub(crate) struct Socket {
    listener: UnixListener,
    file: File,
}

/// The file of a socket, removed at the end unless somebody put another one there.
#[derive(Debug)]
struct File {
    path: PathBuf,
    inode: u64,
}

impl Drop for File {
    fn drop(&mut self) {
        if inode(&self.path).ok() == Some(self.inode)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::debug!(%error, path = %self.path.display(), "cannot remove the socket");
        }
    }
}

impl Socket {
    /// Binds `path` for `uid` and `gid`; makes its directory. A socket file that nobody listens at
    /// any more is replaced.
    ///
    /// # Errors
    /// `AlreadyExists` while another daemon serves there; the errno otherwise.
    pub(crate) fn bind(path: &Path, uid: u32, gid: u32) -> Result<Self> {
        let at = |what, e| Error::os(format_args!("{what} {}", path.display()), e);
        if let Some(directory) = path.parent()
            && !directory.exists()
        {
            lock::create(directory, DIRECTORY_MODE)?;
        }
        let listener = sys::socket::listen(path, SOCKET_MODE).map_err(|e| match e.code() {
            Code::AlreadyExists => Error::unavailable(format_args!(
                "another daemon is serving at {}",
                path.display()
            )),
            _ => e,
        })?;
        let file = File {
            path: path.to_owned(),
            inode: inode(path).map_err(|e| at("stat", e))?,
        };
        chown(path, Some(uid), Some(gid)).map_err(|e| at("chown", e))?;
        listener
            .set_nonblocking(true)
            .map_err(|e| at("listen", e))?;
        let listener = UnixListener::from_std(listener).map_err(|e| at("listen", e))?;
        Ok(Self { listener, file })
    }

    /// The connections, as long as the stream is held. `admit` may turn one away.
    pub(crate) fn incoming(
        self,
        admit: impl Fn(&UnixStream) -> bool + Send + 'static,
    ) -> impl Stream<Item = io::Result<UnixStream>> + Send {
        futures::stream::unfold((self, admit), |(socket, admit)| async move {
            loop {
                match socket.listener.accept().await {
                    Ok((stream, _)) if admit(&stream) => {
                        return Some((Ok(stream), (socket, admit)));
                    }
                    Ok(_) => {}
                    Err(error) => {
                        let path = socket.file.path.display();
                        tracing::warn!(%error, %path, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        })
    }
}

/// True when the other end runs under the daemon's own user: what a shim does.
pub(crate) fn same_user(stream: &UnixStream) -> bool {
    let same = sys::socket::same_user(stream);
    if !matches!(same, Ok(true)) {
        tracing::warn!(peer = ?sys::socket::peer(stream), "connection of another user turned away");
    }
    matches!(same, Ok(true))
}

fn inode(path: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::symlink_metadata(path).map(|m| m.ino())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    use futures::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn a_socket_has_mode_and_owner_and_takes_its_file_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/c.sock");
        let socket = Socket::bind(&path, 12, 34).unwrap();
        let meta = std::fs::metadata(&path).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (12, 34));
        assert_eq!(meta.permissions().mode() & 0o777, SOCKET_MODE);
        let parent = std::fs::metadata(path.parent().unwrap()).unwrap();
        assert_eq!(parent.permissions().mode() & 0o777, DIRECTORY_MODE);
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_living_socket_is_refused_and_a_dead_one_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.sock");
        let living = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let error = Socket::bind(&path, 0, 0).unwrap_err();
        assert_eq!(error.code(), Code::Unavailable);
        assert!(
            error.to_string().contains("another daemon is serving at"),
            "{error}"
        );
        drop(living);
        assert!(path.exists());
        Socket::bind(&path, 0, 0).unwrap();
    }

    #[tokio::test]
    async fn a_connection_that_is_not_admitted_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.sock");
        let socket = Socket::bind(&path, 0, 0).unwrap();
        let turn = std::sync::atomic::AtomicBool::new(false);
        let admit = move |_: &UnixStream| turn.fetch_xor(true, std::sync::atomic::Ordering::SeqCst);
        let mut incoming = Box::pin(socket.incoming(admit));
        let first = UnixStream::connect(&path).await.unwrap();
        let _second = UnixStream::connect(&path).await.unwrap();
        let admitted = incoming.next().await.unwrap().unwrap();
        assert!(same_user(&admitted));
        // The first one sees the end at once.
        let mut byte = [0];
        assert_eq!(
            tokio::io::AsyncReadExt::read(&mut { first }, &mut byte)
                .await
                .unwrap(),
            0
        );
    }
}
