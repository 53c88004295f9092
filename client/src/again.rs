//! Calls that no server has begun are made again: what a connection refused on its way out is lost for
//! nobody.
//!
//! Invariant: a call is made a second time only when the server surely did nothing about the first: it was
//! never written to a connection, or the server said by GOAWAY or REFUSED_STREAM that it did not take it.
//! Whatever else goes wrong is the caller's to judge.
//!
//! ```text
//! stub ── request ──> Again ── parts, Player ──> Channel ── refused ──┐
//!                       ^        └ reads the Tape from its begin       │
//!                       └──────────────────────────────────────────────┘
//! ```

use std::error::Error;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::transport::{self, Channel};

/// How often a call is made. Each new attempt is one on a new connection, so two are enough unless a
/// daemon goes while it takes up the second.
const ATTEMPTS: u32 = 4;
/// What is kept of a call's messages until its answer begins. A call that has sent more is not made again.
const KEPT: usize = 4 << 20;

/// A channel on which calls that were never begun are made again. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Again(Channel);

impl Again {
    pub(crate) fn new(channel: Channel) -> Self {
        Self(channel)
    }
}

type Answer = Result<Response<Body>, transport::Error>;

impl Service<Request<Body>> for Again {
    type Response = Response<Body>;
    type Error = transport::Error;
    type Future = Pin<Box<dyn Future<Output = Answer> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), transport::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The one that was asked whether it is ready goes with the call.
        let other = self.0.clone();
        let mut channel = std::mem::replace(&mut self.0, other);
        let (parts, body) = request.into_parts();
        let tape = Arc::new(Mutex::new(Tape::new(body)));
        Box::pin(async move {
            let mut attempt = 1;
            loop {
                let body = Body::new(Player {
                    tape: Arc::clone(&tape),
                    attempt,
                    at: 0,
                });
                let request = Request::from_parts(parts.clone(), body);
                let error = match channel.call(request).await {
                    Err(error) if attempt < ATTEMPTS && is_unbegun(&error) => error,
                    done => {
                        locked(&tape).forget();
                        return done;
                    }
                };
                attempt += 1;
                if !locked(&tape).rewind(attempt) {
                    return Err(error);
                }
                tracing::debug!(attempt, %error, "the call was not begun: once more");
                poll_fn(|cx| channel.poll_ready(cx)).await?;
            }
        })
    }
}

/// True when no server has seen the call, or the server said that it did nothing about it.
fn is_unbegun(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            let is_refused = error.reason() == Some(h2::Reason::REFUSED_STREAM);
            // A stream ends with a GOAWAY when its number is beyond the last one that was taken.
            let is_beyond = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
            return error.is_remote() && (is_refused || is_beyond);
        }
        // It was still in the queue when its connection ended.
        if let Some(error) = error.downcast_ref::<hyper::Error>()
            && error.is_canceled()
        {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The messages of a call: those that were sent, then those that are to come.
struct Tape {
    body: Body,
    sent: Vec<Bytes>,
    size: usize,
    /// All that was sent is still here.
    is_whole: bool,
    /// Who may read: a connection may look for more messages of a call that it has refused.
    attempt: u32,
}

impl Tape {
    fn new(body: Body) -> Self {
        Self {
            body,
            sent: Vec::new(),
            size: 0,
            is_whole: true,
            attempt: 1,
        }
    }

    fn keep(&mut self, data: &Bytes) {
        self.size = self.size.saturating_add(data.len());
        if self.size > KEPT {
            self.forget();
        } else if self.is_whole {
            self.sent.push(data.clone());
        }
    }

    /// Makes it that of the next attempt, if all is there.
    fn rewind(&mut self, attempt: u32) -> bool {
        self.attempt = attempt;
        self.is_whole
    }

    fn forget(&mut self) {
        self.is_whole = false;
        self.sent = Vec::new();
    }
}

fn locked(tape: &Mutex<Tape>) -> MutexGuard<'_, Tape> {
    tape.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The body of one attempt.
struct Player {
    tape: Arc<Mutex<Tape>>,
    attempt: u32,
    at: usize,
}

impl http_body::Body for Player {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let mut tape = locked(&this.tape);
        if tape.attempt != this.attempt {
            return Poll::Ready(None);
        }
        if let Some(data) = tape.sent.get(this.at) {
            this.at += 1;
            return Poll::Ready(Some(Ok(Frame::data(data.clone()))));
        }
        let polled = Pin::new(&mut tape.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            tape.keep(data);
            this.at += 1;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        let tape = locked(&self.tape);
        tape.attempt == self.attempt && self.at >= tape.sent.len() && tape.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests;
