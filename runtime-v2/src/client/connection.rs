//! Calls on one connection to a shim, any number at a time.
//!
//! ```text
//! call ─ stream id, who waits for it ─ frame ─> socket ─> shim
//!   ^                                                      │
//!   └──────────── reader: who waits for this id <─ socket ─┘
//! ```
//! A caller writes its frame itself and the reader wakes it: no task in between. Invariants: stream ids
//! grow in the order of their frames; a frame that was begun is sent to its end, whatever becomes of
//! its caller; an answer goes to the call that it is of, or nowhere; when the connection is over, so
//! are all its calls.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use protobuf::Message as _;
use protos::frame::{self, Frame, Frames, Kind, Request, Response};
use tokio::net::UnixStream;
use tokio::sync::{Mutex as Turn, OwnedMutexGuard, oneshot, watch};
use tokio::task::AbortHandle;
use types::{Error, Result};

use super::Failure;

/// Read at a time; a usual answer fits.
const STEP: usize = 4 * 1024;

/// A connection; it ends when it is dropped.
#[derive(Debug)]
pub(super) struct Connection {
    shared: Arc<Shared>,
    reader: AbortHandle,
    over: watch::Receiver<bool>,
}

#[derive(Debug)]
struct Shared {
    stream: UnixStream,
    /// The id of the next call; held until its frame is sent.
    next: Arc<Turn<u32>>,
    waiting: Mutex<Waiting>,
}

/// Who waits for which answer.
#[derive(Debug)]
enum Waiting {
    For(HashMap<u32, oneshot::Sender<Result<Response>>>),
    /// Nothing comes any more.
    Over,
}

impl Connection {
    /// Speaks on this stream.
    pub(super) fn new(stream: UnixStream) -> Self {
        let (tell, over) = watch::channel(false);
        let shared = Arc::new(Shared {
            stream,
            next: Arc::new(Turn::new(1)),
            waiting: Mutex::new(Waiting::For(HashMap::new())),
        });
        let reading = Arc::clone(&shared);
        let reader = tokio::spawn(async move {
            reading.read().await;
            *reading.waiting() = Waiting::Over;
            tell.send_replace(true);
        });
        Self {
            shared,
            reader: reader.abort_handle(),
            over,
        }
    }

    /// Returns when the connection is over.
    pub(super) async fn over(&self) {
        // An error means that the reader is gone: over as well.
        drop(self.over.clone().wait_for(|over| *over).await);
    }

    /// Calls and waits for the answer, which may be an error of the peer's. Safe to cancel.
    ///
    /// # Errors
    /// `Lost` when the connection is or gets over, `Answer` for what cannot be sent or read.
    pub(super) async fn call(&self, request: &Request) -> Result<Response, Failure> {
        match self.begin(request).await?.answer().await {
            Some(response) => response.map_err(Failure::Answer),
            None => Err(Failure::Lost),
        }
    }

    /// Sends a call. Safe to cancel: then it was not sent.
    ///
    /// # Errors
    /// `Lost` when the connection is over, `Answer` for what cannot be sent.
    pub(super) async fn begin(&self, request: &Request) -> Result<Waiter, Failure> {
        let mut next = Arc::clone(&self.shared.next).lock_owned().await;
        let id = *next;
        let frame = frame::encode(id, Kind::Request, request).map_err(Failure::Answer)?;
        let used_up = || Failure::Answer(Error::resource_exhausted("stream ids of the connection"));
        *next = id.checked_add(2).ok_or_else(used_up)?;
        let waiter = self.shared.wait_for(id).ok_or(Failure::Lost)?;
        self.shared.send(frame, next)?;
        Ok(waiter)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
        // Who is in the middle of a frame learns it, too.
        self.shared.give_up();
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// None when the connection is over.
    fn wait_for(self: &Arc<Self>, id: u32) -> Option<Waiter> {
        let (tell, told) = oneshot::channel();
        match &mut *self.waiting() {
            Waiting::For(calls) => drop(calls.insert(id, tell)),
            Waiting::Over => return None,
        }
        Some(Waiter {
            shared: Arc::clone(self),
            id,
            told,
        })
    }

    /// Sends a frame, in this call as far as the socket has room.
    fn send(
        self: &Arc<Self>,
        mut frame: Vec<u8>,
        turn: OwnedMutexGuard<u32>,
    ) -> Result<(), Failure> {
        loop {
            match self.stream.try_write(&frame) {
                Ok(sent) if sent == frame.len() => return Ok(()),
                Ok(sent) => drop(frame.drain(..sent)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.give_up();
                    return Err(Failure::Lost);
                }
            }
        }
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            let _turn = turn;
            shared.send_rest(&frame).await;
        });
        Ok(())
    }

    async fn send_rest(&self, mut rest: &[u8]) {
        while !rest.is_empty() {
            if self.stream.writable().await.is_err() {
                return self.give_up();
            }
            match self.stream.try_write(rest) {
                Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return self.give_up(),
            }
        }
    }

    /// Half a frame may be out, and not all errors of a write (memory, buffers) end the connection by
    /// themselves. The reader notices, and tells who waits.
    fn give_up(&self) {
        // It may be over already.
        sys::socket::shutdown(&self.stream).ok();
    }

    /// Hands out answers to the connection's end.
    async fn read(&self) {
        let mut frames = Frames::of(Kind::Response);
        loop {
            while let Some(frame) = frames.take() {
                self.hand_out(frame);
            }
            if !frames.is_begun() {
                frames.buffer().shrink_to(0);
            }
            if self.stream.readable().await.is_err() {
                return;
            }
            frames.buffer().reserve(STEP);
            match self.stream.try_read_buf(frames.buffer()) {
                Ok(0) => return,
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    }

    fn hand_out(&self, frame: Frame) {
        let (id, response) = match frame {
            Frame::Message(id, body) => {
                let broken = |e| Error::internal(format_args!("ttrpc answer: {e}"));
                (id, Response::parse_from_bytes(&body).map_err(broken))
            }
            Frame::TooLong(id, length) => {
                let text = format_args!("answer of {length} bytes");
                (id, Err(Error::resource_exhausted(text)))
            }
        };
        let waiter = match &mut *self.waiting() {
            Waiting::For(calls) => calls.remove(&id),
            Waiting::Over => None,
        };
        if let Some(waiter) = waiter {
            // Given up a moment ago.
            waiter.send(response).ok();
        }
    }
}

/// Waits for one answer, and is forgotten when it is dropped.
#[derive(Debug)]
pub(super) struct Waiter {
    shared: Arc<Shared>,
    id: u32,
    told: oneshot::Receiver<Result<Response>>,
}

impl Waiter {
    /// None when the connection ends before.
    pub(super) async fn answer(mut self) -> Option<Result<Response>> {
        (&mut self.told).await.ok()
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if let Waiting::For(calls) = &mut *self.shared.waiting() {
            calls.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests;
