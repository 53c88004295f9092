//! The other side: calls of the daemon, one after the other.

use std::path::Path;
use std::time::Duration;

use protos::Message;
use protos::call;
use protos::frame::{self, Frame, Frames, Kind, Request, Response};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::time::timeout;
use types::{Error, Namespace, Result};

use super::next;

/// A connection to a daemon. After a lost call it is of no more use.
#[derive(Debug)]
pub(crate) struct Client {
    stream: UnixStream,
    frames: Frames,
    /// Stream id of the next call.
    next: u32,
}

/// Why a call came to nothing.
#[derive(Debug)]
pub(crate) enum Failed {
    /// Nobody there, gone in the middle, or silent.
    Lost(Error),
    /// Answered with an error; `InvalidArgument` also for what is too long to be asked.
    Refused(Error),
}

impl Client {
    /// Connects to the socket at `path`, whose owner must be our own user: what happens in a
    /// container is nobody else's business.
    ///
    /// # Errors
    /// The errno; `DeadlineExceeded` when nobody accepts in time; `PermissionDenied` for a listener of
    /// another user.
    pub(crate) async fn connect(path: &Path, limit: Duration) -> Result<Self> {
        let stream = timeout(limit, UnixStream::connect(path))
            .await
            .map_err(|_| Error::deadline_exceeded(format_args!("connect {}", path.display())))?
            .map_err(|e| Error::os(format_args!("connect {}", path.display()), e))?;
        if !sys::socket::same_user(&stream)? {
            let path = path.display();
            return Err(Error::permission_denied(format_args!(
                "{path}: another user listens there"
            )));
        }
        Ok(Self {
            stream,
            frames: Frames::of(Kind::Response),
            next: 1,
        })
    }

    /// Calls a method, its request encoded, in a namespace and waits for its answer, at most `limit`.
    ///
    /// # Errors
    /// See [`Failed`].
    pub(crate) async fn call<M: Message>(
        &mut self,
        method: (&str, &str),
        body: &[u8],
        namespace: &Namespace,
        limit: Duration,
    ) -> Result<M, Failed> {
        let stream = self.next;
        self.next = self.next.wrapping_add(2);
        let request = Request {
            service: method.0.to_owned(),
            method: method.1.to_owned(),
            payload: body.to_vec(),
            timeout_nano: i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX),
            metadata: call::metadata(namespace),
            ..Request::default()
        };
        let bytes = frame::encode(stream, Kind::Request, &request)
            .map_err(|e| Failed::Refused(Error::invalid_argument(e)))?;
        let response = timeout(limit, self.exchange(stream, &bytes))
            .await
            .map_err(|_| Failed::Lost(Error::deadline_exceeded(method.1)))?
            .map_err(Failed::Lost)?;
        frame::answer(&response).map_err(Failed::Refused)
    }

    async fn exchange(&mut self, stream: u32, bytes: &[u8]) -> Result<Response> {
        let sent = self.stream.write_all(bytes).await;
        sent.map_err(|e| Error::os("send", e))?;
        loop {
            match next(&mut self.frames, &self.stream).await {
                Some(Frame::Message(id, body)) if id == stream => {
                    return Response::parse_from_bytes(&body).map_err(Error::internal);
                }
                // Of a call that was given up.
                Some(Frame::Message(..)) => {}
                Some(Frame::TooLong(..)) | None => {
                    return Err(Error::unavailable("ttrpc: closed"));
                }
            }
        }
    }
}
