//! Calls to a shim, past the daemon.
//!
//! Invariant: descriptors that came with an answer are the caller's or are closed.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use protos::Message;
use protos::call::NAMESPACE;
use protos::frame::{self, HEADER, Header, KeyValue, Kind, LONGEST, Request, Response};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::timeout;
use types::{Error, Namespace, Result};

/// Where the service of the streams is.
const SERVICE: &str = "containerd.runtime.stdio.v1.Stdio";
/// Longest that a shim may take to answer; it may have to ask another client.
const LIMIT: Duration = Duration::from_secs(10);

/// Asks for a method of the Stdio service.
///
/// # Errors
/// `NotImplemented` for another transport than Unix sockets, `Unavailable` when nobody listens there,
/// `DeadlineExceeded`. What the shim says is in the response.
pub(crate) async fn ask(
    address: &str,
    namespace: &Namespace,
    method: &str,
    message: &impl Message,
) -> Result<(Response, Vec<OwnedFd>)> {
    let payload = message.write_to_bytes().map_err(Error::internal)?;
    let asked = timeout(LIMIT, call(address, namespace, method, payload)).await;
    asked.map_err(|_| Error::deadline_exceeded(format_args!("shim's {method}")))?
}

/// One call, by hand: descriptors come with the answer's first byte.
async fn call(
    address: &str,
    namespace: &Namespace,
    method: &str,
    payload: Vec<u8>,
) -> Result<(Response, Vec<OwnedFd>)> {
    let path = match address.split_once("://") {
        Some(("unix", path)) => Path::new(path),
        None => Path::new(address),
        Some((scheme, _)) => {
            let text = format_args!("attaching to a shim by {scheme}");
            return Err(Error::not_implemented(text));
        }
    };
    let at = |e| Error::os(format_args!("shim at {}", path.display()), e);
    let stream = UnixStream::connect(path)
        .await
        .map_err(|e| at(e).reclass(types::Code::Unavailable))?;
    let request = Request {
        service: SERVICE.to_owned(),
        method: method.to_owned(),
        payload,
        timeout_nano: i64::try_from(LIMIT.as_nanos()).unwrap_or(i64::MAX),
        metadata: vec![KeyValue {
            key: NAMESPACE.to_owned(),
            value: namespace.to_string(),
            ..KeyValue::default()
        }],
        ..Request::default()
    };
    let bytes = frame::encode(1, Kind::Request, &request)?;
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        let sent = stream
            .async_io(Interest::WRITABLE, || sys::socket::send(&stream, rest, &[]))
            .await;
        rest = &rest[sent.map_err(at)?..];
    }
    let (mut got, mut fds) = (Vec::new(), Vec::new());
    let mut chunk = [0; 4096];
    loop {
        let (length, more) = stream
            .async_io(Interest::READABLE, || {
                sys::socket::receive(&stream, &mut chunk)
            })
            .await
            .map_err(at)?;
        if length == 0 {
            return Err(Error::unavailable("shim closed the connection"));
        }
        got.extend_from_slice(&chunk[..length]);
        fds.extend(more);
        let Some((head, body)) = got.split_first_chunk::<HEADER>() else {
            continue;
        };
        let header = Header::parse(head);
        if header.kind != Kind::Response || header.length > LONGEST {
            return Err(Error::internal("shim does not answer in ttrpc"));
        }
        if let Some(body) = body.get(..header.length) {
            let response = Response::parse_from_bytes(body).map_err(Error::internal)?;
            return Ok((response, fds));
        }
    }
}
