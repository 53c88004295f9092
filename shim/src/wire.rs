//! One connection of the socket: frames in, answers out, descriptors with them.
//!
//! ```text
//! socket ─ frames ─┬─ a task per call ─ handler ─ answer (and descriptors) ─> socket
//!                  └─ too long, no request, too many: answered or ignored here
//! ```
//! Invariant: nothing that a peer sends or fails to send harms more than its own connection. Memory
//! grows with what has arrived, never with what a header promises; a call that panics is answered,
//! and when the connection ends its calls end with it.

mod client;

use std::io::ErrorKind;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use protos::Message as _;
use protos::frame::{self, Frame, Frames, Kind, LONGEST, Request, Response};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{Mutex, Notify};
use tokio::task::{JoinSet, consume_budget};
use tokio::time::timeout;
use types::{Error, Result};

use crate::caught::caught;
use crate::log;

pub(crate) use client::{Client, Failed};

/// Calls that one connection may have under way.
const CALLS: usize = 32 * 1024;
/// From here on none that waits is added: daemons cannot take one back, and the rest must go on.
const WAITS: usize = CALLS / 2;
/// Read at a time; a usual request fits.
const STEP: usize = 4 * 1024;
/// How long the rest of a frame may take.
const STALL: Duration = Duration::from_secs(30);

/// An answer, and the descriptors that travel with it.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    pub(crate) payload: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
    /// Told when the answer has left, or never will.
    pub(crate) sent: Option<Told>,
}

/// Serves one connection to its end. Every call is given to `handle`.
pub(crate) async fn converse<F>(stream: UnixStream, handle: impl Fn(Request) -> F)
where
    F: Future<Output = Result<Reply>> + Send + 'static,
{
    let peer = Arc::new(Peer {
        stream,
        writing: Mutex::new(()),
    });
    let mut calls = JoinSet::new();
    let mut frames = Frames::of(Kind::Request);
    loop {
        let got = tokio::select! {
            got = next(&mut frames, &peer.stream) => got,
            Some(_) = calls.join_next() => continue,
        };
        match got {
            Some(Frame::Message(stream, body)) => {
                let request = accept(stream, &body, calls.len());
                let peer = Arc::clone(&peer);
                match request {
                    Ok(request) => {
                        let work = within(request.timeout_nano, caught(handle(request)));
                        drop(calls.spawn(async move { peer.answer(stream, work.await).await }));
                    }
                    Err(error) => peer.answer(stream, Err(error)).await,
                }
            }
            Some(Frame::TooLong(stream, length)) => {
                let text = format!("message of {length} bytes: at most {LONGEST}");
                peer.answer(stream, Err(Error::resource_exhausted(text)))
                    .await;
            }
            None => return,
        }
    }
}

fn accept(stream: u32, body: &[u8], under_way: usize) -> Result<Request> {
    if stream.is_multiple_of(2) {
        return Err(Error::invalid_argument("stream id must be odd"));
    }
    let full = || Error::resource_exhausted(format_args!("{under_way} calls under way"));
    if under_way >= CALLS {
        return Err(full());
    }
    let request = Request::parse_from_bytes(body)
        .map_err(|e| Error::invalid_argument(format_args!("request: {e}")))?;
    if under_way >= WAITS && request.method == "Wait" {
        return Err(full());
    }
    Ok(request)
}

/// Ends a call when its caller does not wait any longer. Zero waits for ever.
async fn within(nanoseconds: i64, work: impl Future<Output = Result<Reply>>) -> Result<Reply> {
    match u64::try_from(nanoseconds) {
        Ok(limit @ 1..) => timeout(Duration::from_nanos(limit), work)
            .await
            .unwrap_or_else(|_| Err(Error::deadline_exceeded("the caller's time is over"))),
        _ => work.await,
    }
}

struct Peer {
    stream: UnixStream,
    /// Held for a whole frame.
    writing: Mutex<()>,
}

impl Peer {
    /// Sends an answer. A peer that is gone will never know.
    async fn answer(&self, stream: u32, result: Result<Reply>) {
        let (response, fds, told) = match result {
            Ok(reply) => {
                let response = Response {
                    payload: reply.payload,
                    ..Response::default()
                };
                (response, reply.fds, reply.sent)
            }
            Err(error) => (frame::failure(&error), Vec::new(), None),
        };
        let _told = told;
        let encoded = frame::encode(stream, Kind::Response, &response)
            .or_else(|error| frame::encode(stream, Kind::Response, &frame::failure(&error)));
        let sent = match encoded {
            Ok(bytes) => self.send(&bytes, &fds).await,
            Err(error) => Err((0, std::io::Error::other(error.to_string()))),
        };
        let Err((done, error)) = sent else { return };
        log::debug(format_args!("answer not sent: {error}"));
        // Descriptors may be too many in flight; words always go.
        let why = Error::os("send answer", error);
        let again = match frame::encode(stream, Kind::Response, &frame::failure(&why)) {
            Ok(bytes) if done == 0 => self.send(&bytes, &[]).await.is_ok(),
            _ => false,
        };
        if !again {
            // Who still waits must not wait for ever.
            sys::socket::shutdown(&self.stream).ok();
        }
    }

    /// Sends a frame. On an error also tells how much of it has left.
    async fn send(&self, bytes: &[u8], fds: &[OwnedFd]) -> Result<(), (usize, std::io::Error)> {
        let _whole = self.writing.lock().await;
        let mut fds = fds;
        let mut done = 0;
        while done < bytes.len() {
            done += self
                .stream
                .async_io(Interest::WRITABLE, || {
                    let borrowed: Vec<_> = fds.iter().map(OwnedFd::as_fd).collect();
                    sys::socket::send(&self.stream, &bytes[done..], &borrowed)
                })
                .await
                .map_err(|e| (done, e))?;
            // They went with the first byte.
            fds = &[];
        }
        Ok(())
    }
}

/// Tells when it is dropped.
#[derive(Debug)]
pub(crate) struct Told(pub(crate) Arc<Notify>);

impl Drop for Told {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

/// The next frame that matters; none when the connection is over. Safe to cancel.
async fn next(frames: &mut Frames, stream: &UnixStream) -> Option<Frame> {
    loop {
        if let Some(frame) = frames.take() {
            return Some(frame);
        }
        let in_the_middle = frames.is_begun();
        let ready = if in_the_middle {
            timeout(STALL, stream.readable()).await.ok()?
        } else {
            frames.buffer().shrink_to(0);
            stream.readable().await
        };
        ready.ok()?;
        // A peer that never stops must not keep the shim from everything else.
        consume_budget().await;
        frames.buffer().reserve(STEP);
        match stream.try_read_buf(frames.buffer()) {
            Ok(0) => return None,
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests;
