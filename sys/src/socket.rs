//! Unix sockets: listening with a mode, who is at the other end, descriptors as messages.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{
    FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use types::{Error, Result};

use crate::error::{at, last, op};

/// Longest path of a socket.
pub const PATH_MAX: usize = 106;
/// Longest path of a socket that somebody else has made: `unix(7)`, 108 bytes with the zero at the end.
pub const DIALLED_MAX: usize = 107;

/// The process at the other end of a connection, as it was when it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Process id; 0 for one of another pid namespace.
    pub pid: u32,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// Who is at the other end.
///
/// # Errors
/// The errno of `getsockopt`.
pub fn peer(socket: impl AsFd) -> Result<Peer> {
    // Not rustix's, which has no pid 0.
    let mut peer = MaybeUninit::<libc::ucred>::zeroed();
    let size = size_of::<libc::ucred>();
    let mut length = libc::socklen_t::try_from(size).unwrap_or_default();
    // SAFETY: `peer` is writable for `length` bytes.
    let done = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            peer.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if done != 0 {
        return Err(last("getsockopt SO_PEERCRED"));
    }
    // SAFETY: all-zero is a valid ucred, and the kernel has overwritten it.
    let peer = unsafe { peer.assume_init() };
    Ok(Peer {
        pid: peer.pid.unsigned_abs(),
        uid: peer.uid,
        gid: peer.gid,
    })
}

/// True when the other end runs under this process's effective user, or did when it listened.
///
/// # Errors
/// The errno of `getsockopt`.
pub fn same_user(socket: impl AsFd) -> Result<bool> {
    Ok(peer(socket)?.uid == crate::process::effective_uid())
}

/// Listens at `path`. A socket file that nobody listens at any more is replaced.
///
/// # Errors
/// `AlreadyExists` when somebody listens there, `InvalidArgument` for too long a path, else the errno.
pub fn listen(path: &Path, mode: u32) -> Result<UnixListener> {
    if path.as_os_str().len() > PATH_MAX {
        return Err(Error::invalid_argument(format_args!(
            "socket path {} is longer than {PATH_MAX} bytes",
            path.display()
        )));
    }
    // One at a time: a socket that is bound and does not listen yet, and one that has just replaced a dead
    // one, must not be taken for dead by the next.
    let _turn = Turn::take(path)?;
    let listener = bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(|e| at("chmod", path, e))?;
    Ok(listener)
}

/// Listens, in the place of a socket that nobody listens at if there is one.
fn bind(path: &Path) -> Result<UnixListener> {
    loop {
        let taken = match UnixListener::bind(path) {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => e,
            bound => return bound.map_err(|e| at("listen", path, e)),
        };
        if !is_deserted(path).map_err(|e| at("connect", path, e))? {
            return Err(at("listen", path, taken).reclass(types::Code::AlreadyExists));
        }
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(at("remove", path, e)),
            _ => {}
        }
    }
}

/// True when the kernel says that nobody listens at `path`. Never waits: who is too busy to be connected
/// to is there. One that is bound and does not listen yet is not told from one that was left.
///
/// # Errors
/// The errno of `connect`.
pub fn is_deserted(path: &Path) -> io::Result<bool> {
    use rustix::io::Errno;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &rustix::net::SocketAddrUnix::new(path)?) {
        Ok(()) | Err(Errno::AGAIN) => Ok(false),
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Removes a socket that nobody listens at, and what a process that was killed left beside it; whether there
/// was one. Somebody who makes a socket of that name meanwhile keeps it.
///
/// # Errors
/// The errno.
pub fn remove_deserted(path: &Path) -> Result<bool> {
    let _turn = Turn::take(path)?;
    let facts = std::fs::symlink_metadata(path);
    let is_socket = facts.is_ok_and(|facts| facts.file_type().is_socket());
    if !is_socket || !is_deserted(path).map_err(|e| at("connect", path, e))? {
        return Ok(false);
    }
    std::fs::remove_file(path).map_err(|e| at("remove", path, e))?;
    Ok(true)
}

/// What the file beside a socket has behind its name.
pub const LOCK: &str = ".lock";

/// The right to make a socket: a locked file beside it, which goes with it.
struct Turn {
    file: File,
    path: PathBuf,
}

impl Turn {
    fn take(socket: &Path) -> Result<Self> {
        let mut path = socket.as_os_str().to_owned();
        path.push(LOCK);
        let path = PathBuf::from(path);
        loop {
            let file = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .open(&path)
                .map_err(|e| at("open", &path, e))?;
            // Whoever has it does not wait for anything.
            file.lock().map_err(|e| at("lock", &path, e))?;
            let ours = file.metadata().map_err(|e| at("stat", &path, e))?;
            // The one before may have removed it meanwhile.
            if std::fs::metadata(&path).is_ok_and(|now| now.ino() == ours.ino()) {
                return Ok(Self { file, path });
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Removed while it is locked; who waits for it looks again.
        drop(std::fs::remove_file(&self.path));
        drop(self.file.unlock());
    }
}

/// The path at which a Unix stream socket listens; `None` for any other descriptor.
#[must_use]
pub fn listens_at(socket: impl AsFd) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStrExt as _;
    let socket = socket.as_fd();
    if !rustix::net::sockopt::socket_acceptconn(socket).ok()?
        || rustix::net::sockopt::socket_type(socket).ok()? != SocketType::STREAM
    {
        return None;
    }
    let address = rustix::net::getsockname(socket).ok()?;
    let address = rustix::net::SocketAddrUnix::try_from(address).ok()?;
    let path = address.path()?;
    Some(Path::new(std::ffi::OsStr::from_bytes(path.to_bytes())).to_owned())
}

/// Ends a connection in both directions, whoever else has it open.
///
/// # Errors
/// The errno of `shutdown`.
pub fn shutdown(socket: impl AsFd) -> Result<()> {
    rustix::net::shutdown(socket, rustix::net::Shutdown::Both).map_err(|e| op("shutdown", e))
}

/// Most descriptors of one message here; the kernel allows 253.
const MOST_FDS: usize = 8;

/// Receives one descriptor. Blocks unless the socket does not.
///
/// # Errors
/// The errno of `recvmsg`; `InvalidArgument` when the message carries none.
pub fn receive_fd(socket: impl AsFd) -> Result<OwnedFd> {
    let mut data = [0; 4096];
    let (_, fds) = receive(socket, &mut data).map_err(|e| Error::os("recvmsg", e))?;
    // Further ones are dropped, that is closed.
    fds.into_iter()
        .next()
        .ok_or_else(|| Error::invalid_argument("message without a descriptor"))
}

/// Receives what is there with the descriptors that came along, close-on-exec. No bytes are the end.
///
/// # Errors
/// The errno of `recvmsg`, as an `io::Error` for the caller's readiness loop.
pub fn receive(socket: impl AsFd, data: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(data)], &mut ancillary, flags)?;
    let mut all = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            all.extend(fds);
        }
    }
    Ok((got.bytes, all))
}

/// Sends descriptors with a message.
///
/// # Errors
/// The errno of `sendmsg`; `InvalidArgument` for too many descriptors.
pub fn send_fds(socket: impl AsFd, data: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
    send(socket, data, fds)
        .map(drop)
        .map_err(|e| match e.kind() {
            io::ErrorKind::InvalidInput => Error::invalid_argument(e),
            _ => Error::os("sendmsg", e),
        })
}

/// Sends bytes, and with the first of them descriptors. Returns how many bytes were taken.
///
/// # Errors
/// The errno of `sendmsg`, as an `io::Error` for the caller's readiness loop; `InvalidInput` for too
/// many descriptors. A vanished peer is `EPIPE`, never a signal.
pub fn send(socket: impl AsFd, data: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "too many descriptors for one message",
        ));
    }
    let flags = SendFlags::NOSIGNAL;
    Ok(rustix::net::sendmsg(
        socket,
        &[IoSlice::new(data)],
        &mut ancillary,
        flags,
    )?)
}

/// A connected pair whose messages stay apart and whose end is seen: close-on-exec, not blocking.
///
/// # Errors
/// The errno of `socketpair`.
pub fn message_pair() -> Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .map_err(|e| op("socketpair", e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    use crate::testing::{dead_socket, deserted};

    #[test]
    fn a_dead_socket_file_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let live = listen(&path, 0o600).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(listen(&path, 0o600).unwrap_err().is_already_exists());
        drop(live);
        deserted(&path);
        listen(&path, 0o600).unwrap();
        let long = dir.path().join("x".repeat(120));
        assert!(
            listen(&long, 0o600)
                .unwrap_err()
                .is(types::Code::InvalidArgument)
        );
    }

    #[test]
    fn only_a_deserted_socket_is_removed_and_not_before_its_maker_is_done() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        assert!(!remove_deserted(&path).unwrap());
        std::fs::write(&path, "").unwrap();
        assert!(!remove_deserted(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        dead_socket(&path);
        std::fs::write(dir.path().join("s.lock"), "").unwrap();
        assert!(remove_deserted(&path).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        // Somebody takes the place of a dead socket: the remover has its turn after him.
        dead_socket(&path);
        let turn = Turn::take(&path).unwrap();
        let remover = std::thread::spawn({
            let path = path.clone();
            move || remove_deserted(&path).unwrap()
        });
        let live = bind(&path).unwrap();
        drop(turn);
        assert!(!remover.join().unwrap());
        UnixStream::connect(&path).unwrap();
        drop(live);
    }

    #[test]
    fn of_many_that_find_a_dead_socket_one_listens() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        for _ in 0..20 {
            dead_socket(&path);
            let listeners: Vec<_> = std::thread::scope(|scope| {
                let all: Vec<_> = (0..8)
                    .map(|_| scope.spawn(|| listen(&path, 0o600)))
                    .collect();
                all.into_iter().map(|one| one.join().unwrap()).collect()
            });
            let told = listeners.iter().filter_map(|one| one.as_ref().err());
            assert!(told.clone().all(Error::is_already_exists));
            assert_eq!(told.count(), 7);
            UnixStream::connect(&path).unwrap();
            std::fs::remove_file(&path).unwrap();
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn one_that_is_too_busy_to_be_connected_to_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = listen(&path, 0o600).unwrap();
        // One waits, or two: not thousands, each with a descriptor.
        rustix::net::listen(&listener, 1).unwrap();
        let mut held = Vec::new();
        // Until its backlog is full.
        loop {
            let flags = SocketFlags::NONBLOCK;
            let socket =
                rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
            let socket = socket.unwrap();
            let address = rustix::net::SocketAddrUnix::new(&path).unwrap();
            match rustix::net::connect(&socket, &address) {
                Ok(()) => held.push(socket),
                Err(error) => break assert_eq!(error, rustix::io::Errno::AGAIN),
            }
        }
        assert!(listen(&path, 0o600).unwrap_err().is_already_exists());
    }

    #[test]
    fn a_listener_knows_its_path_and_nothing_else_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = listen(&path, 0o600).unwrap();
        assert_eq!(listens_at(&listener), Some(path.clone()));
        assert_eq!(listens_at(UnixStream::connect(&path).unwrap()), None);
        assert_eq!(listens_at(File::open(dir.path()).unwrap()), None);
        let bytes = std::os::unix::net::UnixDatagram::bind(dir.path().join("d")).unwrap();
        assert_eq!(listens_at(bytes), None);
    }

    #[test]
    fn a_listener_of_another_user_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
        let own = UnixListener::bind(&ours).unwrap();
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
        let path = theirs.clone();
        let other = std::thread::spawn(move || {
            // SAFETY: the system call itself, unlike the C library's function, is about this thread
            // alone, which ends here.
            let done = unsafe { libc::syscall(libc::SYS_setresuid, -1, 65534, -1) };
            assert_eq!(done, 0);
            UnixListener::bind(path).unwrap()
        })
        .join()
        .unwrap();
        assert!(same_user(UnixStream::connect(&ours).unwrap()).unwrap());
        assert!(!same_user(UnixStream::connect(&theirs).unwrap()).unwrap());
        drop((own, other));
    }

    #[test]
    fn descriptors_travel_and_the_peer_is_known() {
        let (a, b) = UnixStream::pair().unwrap();
        assert_eq!(peer(&a).unwrap().pid, std::process::id());
        let (read, write) = crate::pipe::new().unwrap();
        send_fds(&a, b"name", &[write.as_fd()]).unwrap();
        drop(write);
        let mut got = File::from(receive_fd(&b).unwrap());
        got.write_all(b"through").unwrap();
        drop(got);
        let mut text = String::new();
        File::from(read).read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        (&a).write_all(b"bare").unwrap();
        assert!(receive_fd(&b).unwrap_err().is(types::Code::InvalidArgument));
    }
}
