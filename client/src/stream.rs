//! Streams between a client and the daemon by name: what each end holds, and the client's way to one.
//!
//! Invariant: both directions are bounded queues, so a slow reader slows its writer and nobody else.
//! An end of the other side is told apart from a connection that broke off.
//!
//! ```text
//! user of the stream: Duplex  <== two bounded queues ==>  Far: who carries the frames
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::StreamExt as _;
use grpc::streaming::StreamingClient;
use protos::wire::Wire as _;
use protos::wire::transfer::stream_init_to_any;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use types::{Any, Context as _, Error, Result};

use crate::call::{Caller, done};
use crate::client::Client;

/// Frames on their way in each direction.
const AHEAD: usize = 4;

/// The near end of a stream. Dropping it ends the stream.
#[derive(Debug)]
pub struct Duplex {
    sender: mpsc::Sender<Any>,
    receiver: mpsc::Receiver<Result<Any>>,
    /// The other side has said that it is done.
    finished: Arc<AtomicBool>,
}

/// The far end, for who carries the frames.
#[derive(Debug)]
pub struct Far {
    /// Frames from the near end; it ends when that is dropped.
    pub receiver: mpsc::Receiver<Any>,
    /// What goes to the near end.
    pub sink: Sink,
}

/// Where frames for the near end go.
#[derive(Debug)]
pub struct Sink {
    sender: mpsc::Sender<Result<Any>>,
    finished: Arc<AtomicBool>,
}

/// The two ends of a new stream.
#[must_use]
pub fn pair() -> (Duplex, Far) {
    let (near, receiver) = mpsc::channel(AHEAD);
    let (sender, incoming) = mpsc::channel(AHEAD);
    let finished = Arc::new(AtomicBool::new(false));
    let sink = Sink {
        sender,
        finished: Arc::clone(&finished),
    };
    let duplex = Duplex {
        sender: near,
        receiver: incoming,
        finished,
    };
    (duplex, Far { receiver, sink })
}

impl Sink {
    /// Hands a frame, or the failure that ends the stream, to the near end; false when nobody reads
    /// there any more.
    pub async fn send(&self, frame: Result<Any>) -> bool {
        self.sender.send(frame).await.is_ok()
    }

    /// The other side is done: after what was sent, the near end reads the end.
    pub fn finish(self) {
        self.finished.store(true, Ordering::Release);
    }
}

impl Duplex {
    /// Sends a frame, waiting for room.
    ///
    /// # Errors
    /// `Cancelled` when the other side is gone.
    pub async fn send(&self, frame: Any) -> Result<()> {
        self.sender.send(frame).await.map_err(|_| gone())
    }

    /// As [`Duplex::send`], on a thread that may block.
    ///
    /// # Errors
    /// `Cancelled` when the other side is gone.
    pub fn send_blocking(&self, frame: Any) -> Result<()> {
        self.sender.blocking_send(frame).map_err(|_| gone())
    }

    /// The next frame; `None` at the end.
    ///
    /// # Errors
    /// That which ended the stream; `Cancelled` when it broke off.
    pub async fn receive(&mut self) -> Result<Option<Any>> {
        let next = self.receiver.recv().await;
        self.next(next)
    }

    /// As [`Duplex::receive`], on a thread that may block.
    ///
    /// # Errors
    /// Those of [`Duplex::receive`].
    pub fn receive_blocking(&mut self) -> Result<Option<Any>> {
        let next = self.receiver.blocking_recv();
        self.next(next)
    }

    /// A frame that is there already.
    pub(crate) fn try_receive(&mut self) -> Option<Result<Any>> {
        self.receiver.try_recv().ok()
    }

    fn next(&self, next: Option<Result<Any>>) -> Result<Option<Any>> {
        match next {
            Some(frame) => frame.map(Some),
            None if self.finished.load(Ordering::Acquire) => Ok(None),
            None => Err(gone()),
        }
    }
}

fn gone() -> Error {
    Error::cancelled("stream broke off")
}

impl Client {
    /// Opens the stream `id`, a name that nobody else has in the namespace. The daemon knows it when
    /// this has answered.
    ///
    /// # Errors
    /// `AlreadyExists`; `NotImplemented` of a daemon without streams.
    pub async fn stream(&self, id: &str) -> Result<Duplex> {
        let (near, far) = pair();
        open(self.caller(), id, far)
            .await
            .ctx_with(|| format!("open stream {id:?}"))?;
        Ok(near)
    }
}

async fn open(caller: &Caller, id: &str, far: Far) -> Result<()> {
    let Far { receiver, sink } = far;
    let init = stream_init_to_any(id)?.to_wire();
    let frames = ReceiverStream::new(receiver).map(|frame| frame.to_wire());
    let requests = futures::stream::iter([init]).chain(frames);
    let mut stub = StreamingClient::new(caller.channel());
    let call = async {
        let mut replies = done(stub.stream(caller.endless(requests)?).await)?;
        let opened = replies.message().await;
        match opened.map_err(|status| grpc::status::to_error(&status))? {
            Some(_) => Ok(replies),
            None => Err(Error::unavailable("the daemon ended the stream at once")),
        }
    };
    let late = |_| Err(Error::deadline_exceeded(""));
    let opened = tokio::time::timeout(crate::call::DEADLINE, call).await;
    let mut replies = opened.unwrap_or_else(late)?;
    tokio::spawn(async move {
        loop {
            let frame = match replies.message().await {
                Ok(Some(frame)) => Any::from_wire(frame),
                Ok(None) => return sink.finish(),
                Err(status) => Err(grpc::status::to_error(&status)),
            };
            let last = frame.is_err();
            // Read to its end also when nobody wants it: giving the answers up would cut off what is
            // still on its way to the daemon.
            let _wanted = sink.send(frame).await;
            if last {
                return;
            }
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::Code;

    fn frame(name: &str) -> Any {
        Any {
            type_url: name.into(),
            value: Vec::new(),
        }
    }

    #[tokio::test]
    async fn an_end_is_no_break() {
        let (mut near, far) = pair();
        assert!(far.sink.send(Ok(frame("a"))).await);
        far.sink.finish();
        assert_eq!(near.receive().await.unwrap(), Some(frame("a")));
        assert_eq!(near.receive().await.unwrap(), None);
        let (mut near, far) = pair();
        drop(far);
        assert!(near.receive().await.unwrap_err().is(Code::Cancelled));
        assert!(near.send(frame("a")).await.unwrap_err().is(Code::Cancelled));
    }

    #[tokio::test]
    async fn a_writer_waits_for_its_reader() {
        let (near, mut far) = pair();
        let mut sent = 0;
        while let Some(done) = futures::FutureExt::now_or_never(near.send(frame("a"))) {
            done.unwrap();
            sent += 1;
        }
        assert_eq!(sent, AHEAD);
        drop(near);
        while far.receiver.recv().await.is_some() {
            sent -= 1;
        }
        assert_eq!(sent, 0);
    }
}
