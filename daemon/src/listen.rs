//! The sockets: bound with mode and owner, never stolen from a living daemon.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::chown;
use std::os::unix::net;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use tokio::net::{UnixListener, UnixStream};
use types::{Code, Error, Result};

use crate::lock;

/// Mode of both sockets.
const SOCKET_MODE: u32 = 0o660;
/// Mode of a directory that is made for a socket.
const DIRECTORY_MODE: u32 = 0o711;
/// Pause after a failed `accept` (no descriptors left, for example).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound socket. Its file goes with it, unless somebody else has made it.
#[derive(Debug)]
pub(crate) struct Socket {
    listener: net::UnixListener,
    path: PathBuf,
    file: OnceLock<File>,
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
        Ok(Self {
            listener,
            path: path.to_owned(),
            file: file.into(),
        })
    }

    /// A socket that is bound already, at `path`. Its mode and owner are the business of whoever bound
    /// it, and so is its file.
    ///
    /// # Errors
    /// The errno.
    pub(crate) fn adopt(path: PathBuf, listener: net::UnixListener) -> Result<Self> {
        let at = |e| Error::os(format_args!("listen {}", path.display()), e);
        listener.set_nonblocking(true).map_err(at)?;
        Ok(Self {
            listener,
            path,
            file: OnceLock::new(),
        })
    }

    /// Makes the file go with the socket from now on.
    pub(crate) fn own(&self) {
        // One that is gone already needs no removal.
        if let Ok(inode) = inode(&self.path) {
            let path = self.path.clone();
            self.file.get_or_init(|| File { path, inode });
        }
    }

    /// Whether its file goes with it.
    pub(crate) fn is_owned(&self) -> bool {
        self.file.get().is_some()
    }

    /// Leaves the file to whoever the socket was passed to.
    pub(crate) fn leave(mut self) {
        if let Some(file) = self.file.get_mut() {
            // No file has it.
            file.inode = 0;
        }
    }

    /// Its descriptor, to be passed on.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Whose it is, user and group, if its file is there.
    pub(crate) fn owner(&self) -> Option<(u32, u32)> {
        use std::os::unix::fs::MetadataExt as _;
        let meta = std::fs::symlink_metadata(&self.path).ok()?;
        Some((meta.uid(), meta.gid()))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The connections, as long as the stream is held; those that come later wait in the socket.
    /// `admit` may turn one away.
    ///
    /// # Errors
    /// The errno.
    pub(crate) fn incoming<F>(
        &self,
        admit: F,
    ) -> Result<impl Stream<Item = io::Result<UnixStream>> + Send + use<F>>
    where
        F: Fn(&UnixStream) -> bool + Send + 'static,
    {
        let listener = self.listener.try_clone().and_then(UnixListener::from_std);
        let path = self.path.clone();
        let listener =
            listener.map_err(|e| Error::os(format_args!("listen {}", path.display()), e))?;
        let accept = |(listener, path, admit): (UnixListener, PathBuf, F)| async move {
            let mut is_told = false;
            loop {
                match listener.accept().await {
                    Ok((stream, _)) if admit(&stream) => {
                        return Some((Ok(stream), (listener, path, admit)));
                    }
                    Ok(_) => {}
                    Err(error) => {
                        // Once, until it goes well again.
                        if !std::mem::replace(&mut is_told, true) {
                            tracing::warn!(%error, path = %path.display(), "cannot accept a connection");
                        }
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        };
        Ok(futures::stream::unfold((listener, path, admit), accept))
    }
}

/// The connections on which something was said, or that have ended: what serves a connection need not be
/// there before.
pub(crate) fn spoken(
    incoming: impl Stream<Item = io::Result<UnixStream>> + Send,
) -> impl Stream<Item = io::Result<UnixStream>> + Send {
    let heard = |stream: io::Result<UnixStream>| async {
        let stream = stream?;
        grpc::connections::heard(&stream).await?;
        Ok(stream)
    };
    incoming.map(heard).buffer_unordered(usize::MAX)
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
        let living = net::UnixListener::bind(&path).unwrap();
        let error = Socket::bind(&path, 0, 0).unwrap_err();
        assert_eq!(error.code(), Code::Unavailable);
        assert!(
            error.to_string().contains("another daemon is serving at"),
            "{error}"
        );
        drop(living);
        assert!(path.exists());
        // A child of another test has it as well until its exec.
        let begun = std::time::Instant::now();
        while net::UnixStream::connect(&path).is_ok() {
            assert!(begun.elapsed() < Duration::from_secs(60), "it stays open");
            std::thread::yield_now();
        }
        Socket::bind(&path, 0, 0).unwrap();
    }

    #[tokio::test]
    async fn a_connection_that_is_not_admitted_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.sock");
        let socket = Socket::bind(&path, 0, 0).unwrap();
        let turn = std::sync::atomic::AtomicBool::new(false);
        let admit = move |_: &UnixStream| turn.fetch_xor(true, std::sync::atomic::Ordering::SeqCst);
        let mut incoming = Box::pin(socket.incoming(admit).unwrap());
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
