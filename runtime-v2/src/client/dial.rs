//! Reaching a shim's socket.
//!
//! Invariant: what [`Dialed`] says is a fact of the kernel. `Refused` means that no process listens
//! there any more; `Absent` that there is no such socket file; everything else means nothing about
//! the shim's life.

use std::io;

use tokio::net::UnixStream;
use types::{Error, Result};

use crate::bootstrap::Address;

/// What the kernel says when asked for a connection.
#[derive(Debug)]
pub(crate) enum Dialed {
    /// Connected.
    Up(UnixStream),
    /// Nobody listens.
    Refused,
    /// No socket file.
    Absent,
    /// No connection now, for a reason that says nothing about the shim (its backlog is full, we
    /// are out of descriptors).
    Failed(io::Error),
}

/// Connects to a shim.
///
/// # Errors
/// `NotImplemented` for a protocol or transport that is not spoken here.
pub(crate) async fn dial(address: &Address) -> Result<Dialed> {
    if address.protocol != "ttrpc" {
        return Err(Error::not_implemented(format_args!(
            "shim protocol {:?}",
            address.protocol
        )));
    }
    let Some(path) = address.unix_path() else {
        return Err(Error::not_implemented(format_args!(
            "shim address {:?}",
            address.address
        )));
    };
    // The kernel never makes a non-blocking connect wait: a full backlog is `WouldBlock`.
    Ok(match UnixStream::connect(path).await {
        Ok(stream) => Dialed::Up(stream),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => Dialed::Refused,
        Err(e) if e.kind() == io::ErrorKind::NotFound => Dialed::Absent,
        Err(e) => Dialed::Failed(e),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(path: &std::path::Path) -> Address {
        Address::parse(path.to_str().unwrap().as_bytes()).unwrap()
    }

    #[tokio::test]
    async fn the_kernel_tells_a_dead_socket_from_a_missing_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        assert!(matches!(dial(&at(&path)).await.unwrap(), Dialed::Absent));
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        assert!(matches!(dial(&at(&path)).await.unwrap(), Dialed::Up(_)));
        drop(listener);
        crate::testing::deserted(&path);
        assert!(matches!(dial(&at(&path)).await.unwrap(), Dialed::Refused));
    }

    #[tokio::test]
    async fn a_full_backlog_says_nothing_about_the_shim() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = tokio::net::UnixSocket::new_stream().unwrap();
        listener.bind(&path).unwrap();
        // One waits, or two: not thousands, each with a descriptor.
        let listener = listener.listen(1).unwrap();
        let mut held = Vec::new();
        let full = loop {
            match dial(&at(&path)).await.unwrap() {
                Dialed::Up(stream) => held.push(stream),
                other => break other,
            }
            assert!(held.len() < 10_000, "the backlog never fills");
        };
        assert!(matches!(full, Dialed::Failed(_)), "{full:?}");
        drop(listener);
    }

    #[tokio::test]
    async fn other_transports_are_not_spoken() {
        let vsock = Address::parse(b"vsock://3:4").unwrap();
        let error = dial(&vsock).await.unwrap_err();
        assert!(error.is(types::Code::NotImplemented), "{error}");
    }
}
