//! Telling systemd how far we are (sd_notify(3)): a datagram to the socket that it names.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;

use types::{Error, Result};

/// The daemon serves.
pub(crate) const READY: &str = "READY=1";
/// The daemon is about to end.
pub(crate) const STOPPING: &str = "STOPPING=1";

/// Sends `state` to the service manager; nothing when there is none.
pub(crate) fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = send(Path::new(&path), state) {
        tracing::warn!(%error, state, "cannot notify the service manager");
    }
}

/// Sends to a path or, when it begins with `@`, to an abstract name.
fn send(path: &Path, state: &str) -> Result<()> {
    let fail = |e| Error::os("notify", e);
    let address = match path.as_os_str().as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(path),
    };
    let socket = UnixDatagram::unbound().map_err(fail)?;
    socket
        .send_to_addr(state.as_bytes(), &address.map_err(fail)?)
        .map_err(fail)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_arrives_at_a_path_and_at_an_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("containerd-notify-{}", std::process::id());
        let abstract_name = SocketAddr::from_abstract_name(&name).unwrap();
        for (socket, target) in [
            (UnixDatagram::bind(&path).unwrap(), path.clone()),
            (
                UnixDatagram::bind_addr(&abstract_name).unwrap(),
                format!("@{name}").into(),
            ),
        ] {
            send(&target, READY).unwrap();
            let mut text = [0; 32];
            let read = socket.recv(&mut text).unwrap();
            assert_eq!(&text[..read], READY.as_bytes());
        }
        let said = send(&dir.path().join("none"), READY)
            .unwrap_err()
            .to_string();
        assert_eq!(said, "notify: no such file or directory");
    }
}
