//! From an address to a channel.

use std::path::PathBuf;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::Service;
use types::{Error, Result};

/// What all of containerd's clients send as `:authority`, whatever the socket.
const AUTHORITY: &str = "http://localhost";
/// Flow control windows: content streams in 1 MiB messages, several in flight.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// The socket's path in an address: absolute, or `unix://` and absolute.
///
/// # Errors
/// `InvalidArgument`.
pub fn socket_path(address: &str) -> Result<PathBuf> {
    let path = address.strip_prefix("unix://").unwrap_or(address);
    if path.starts_with('/') && !path.contains('\0') {
        return Ok(PathBuf::from(path));
    }
    Err(Error::invalid_argument(format_args!(
        "address {address:?} is no absolute path of a unix socket"
    )))
}

/// Connects to the socket at `address` within `limit`.
///
/// # Errors
/// `Unavailable` when nobody listens there or does not answer in time; `PermissionDenied`;
/// `InvalidArgument` for another kind of address.
pub async fn connect(address: &str, limit: Duration) -> Result<Channel> {
    let path = socket_path(address)?;
    // Asked first by hand: the error of a channel does not say what the kernel said.
    let probe = tokio::time::timeout(limit, UnixStream::connect(&path)).await;
    let fail = |e: std::io::Error| {
        let code = if e.kind() == std::io::ErrorKind::PermissionDenied {
            types::Code::PermissionDenied
        } else {
            types::Code::Unavailable
        };
        Error::os(format_args!("failed to dial {address:?}"), e).reclass(code)
    };
    let timed_out = || {
        Error::unavailable(format_args!(
            "failed to dial {address:?}: no answer in {limit:?}"
        ))
    };
    let first = probe.map_err(|_| timed_out())?.map_err(fail)?;
    let endpoint = endpoint();
    let connecting = endpoint.connect_with_connector(connector(path, Some(first)));
    match tokio::time::timeout(limit, connecting).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(e)) => {
            Err(Error::unavailable(format_args!("failed to dial {address:?}")).with_source(e))
        }
        Err(_) => Err(timed_out()),
    }
}

/// A channel to the socket at `address`, which connects with the first call and again when the
/// connection is lost; within `limit` each time.
///
/// # Errors
/// `InvalidArgument` for another kind of address.
pub fn connect_lazily(address: &str, limit: Duration) -> Result<Channel> {
    let path = socket_path(address)?;
    let endpoint = endpoint().connect_timeout(limit);
    Ok(endpoint.connect_with_connector_lazy(connector(path, None)))
}

fn endpoint() -> Endpoint {
    Endpoint::from_static(AUTHORITY)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
}

/// What connects to `path`, the first time by `first`.
fn connector(
    path: PathBuf,
    mut first: Option<UnixStream>,
) -> impl Service<
    Uri,
    Response = TokioIo<UnixStream>,
    Error = std::io::Error,
    Future = impl Future<Output = std::io::Result<TokioIo<UnixStream>>> + Send,
> + Send {
    tower::service_fn(move |_: Uri| {
        let (path, first) = (path.clone(), first.take());
        async move {
            let stream = match first {
                Some(stream) => stream,
                None => UnixStream::connect(path).await?,
            };
            Ok(TokioIo::new(stream))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_absolute_unix_sockets() {
        for (address, path) in [("/a/b", "/a/b"), ("unix:///a/b", "/a/b")] {
            assert_eq!(socket_path(address).unwrap(), PathBuf::from(path));
        }
        for bad in [
            "",
            "a/b",
            "unix://a",
            "tcp://127.0.0.1:1",
            "http:///x",
            "/a\0",
        ] {
            assert!(
                socket_path(bad)
                    .unwrap_err()
                    .is(types::Code::InvalidArgument),
                "{bad}"
            );
        }
    }

    #[tokio::test]
    async fn a_socket_without_a_daemon_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("absent.sock");
        let error = connect(&path.to_string_lossy(), Duration::from_secs(60))
            .await
            .unwrap_err();
        assert!(error.is(types::Code::Unavailable), "{error:?}");
        assert!(
            error.to_string().contains("absent.sock\": no such file"),
            "{error}"
        );
    }
}
