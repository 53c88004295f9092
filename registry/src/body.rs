//! What is sent: nothing, bytes in memory, or a blob read piece by piece while it goes out.
//!
//! Invariant: a blob's body has exactly the announced length, or it fails; no more than one piece of
//! it is in memory.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use types::{Error, Result};

/// Largest piece asked of a source at a time.
const PIECE: usize = 256 * 1024;

/// Where a blob that is pushed comes from. Bytes may be asked for again after a connection broke.
#[async_trait::async_trait]
pub trait BlobSource: Send + Sync {
    /// Called before an upload begins, when it is known that the registry does not have the blob; the
    /// upload waits for it.
    ///
    /// # Errors
    /// They end the push as they are.
    async fn ready(&self) -> Result<()> {
        Ok(())
    }

    /// At most `max` bytes from byte `offset` on; at least one, as `offset` is before the end.
    ///
    /// # Errors
    /// Those of the store; they end the push as they are.
    async fn read(&self, offset: u64, max: usize) -> Result<Bytes>;
}

/// A blob in memory.
#[async_trait::async_trait]
impl BlobSource for Bytes {
    async fn read(&self, offset: u64, max: usize) -> Result<Bytes> {
        let from = usize::try_from(offset).map_or(self.len(), |from| from.min(self.len()));
        Ok(self.slice(from..self.len().min(from.saturating_add(max))))
    }
}

/// Is told how many bytes of a blob have been sent.
pub type OnSent = Arc<dyn Fn(u64) + Send + Sync>;

/// What a call sends, as often as it is tried.
#[derive(Clone)]
pub(crate) enum Payload {
    /// These bytes, perhaps none.
    Whole(Bytes),
    /// Bytes `from..to` of a blob.
    Part {
        source: Arc<dyn BlobSource>,
        from: u64,
        to: u64,
        on: OnSent,
    },
}

impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Whole(bytes) => write!(f, "{} bytes", bytes.len()),
            Self::Part { from, to, .. } => write!(f, "bytes {from}..{to}"),
        }
    }
}

impl Payload {
    pub(crate) fn empty() -> Self {
        Self::Whole(Bytes::new())
    }

    /// A body, and what tells how much of it has gone.
    pub(crate) fn body(&self) -> (Outgoing, Arc<Sent>) {
        let sent = Arc::new(Sent::default());
        let body = match self {
            Self::Whole(bytes) => Outgoing::Whole(bytes.clone()),
            Self::Part {
                source,
                from,
                to,
                on,
            } => Outgoing::Part(Part {
                source: Arc::clone(source),
                at: *from,
                to: *to,
                on: Arc::clone(on),
                reading: None,
                sent: Arc::clone(&sent),
            }),
        };
        (body, sent)
    }
}

/// How far a body has gone, and why it failed.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    bytes: AtomicU64,
    error: Mutex<Option<Error>>,
}

impl Sent {
    /// Bytes handed to the connection.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The source's own error; told once.
    pub(crate) fn error(&self) -> Option<Error> {
        let mut error = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        error.take()
    }
}

/// A body on its way.
pub(crate) enum Outgoing {
    Whole(Bytes),
    Part(Part),
}

type Reading = Pin<Box<dyn Future<Output = Result<Bytes>> + Send>>;

pub(crate) struct Part {
    source: Arc<dyn BlobSource>,
    at: u64,
    to: u64,
    on: OnSent,
    reading: Option<Reading>,
    sent: Arc<Sent>,
}

impl Part {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failed>>> {
        if self.at >= self.to {
            return Poll::Ready(None);
        }
        let max = usize::try_from(self.to - self.at).map_or(PIECE, |left| left.min(PIECE));
        let reading = self.reading.get_or_insert_with(|| {
            let (source, at) = (Arc::clone(&self.source), self.at);
            Box::pin(async move { source.read(at, max).await })
        });
        let Poll::Ready(read) = reading.as_mut().poll(cx) else {
            return Poll::Pending;
        };
        self.reading = None;
        let error = match read {
            Ok(data) if !data.is_empty() && data.len() <= max => {
                self.at += data.len() as u64;
                let gone = data.len() as u64;
                self.sent.bytes.fetch_add(gone, Ordering::Relaxed);
                (self.on)(self.at);
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            Ok(data) => Error::failed_precondition(format_args!(
                "blob to push gives {} bytes at byte {} of {}",
                data.len(),
                self.at,
                self.to
            )),
            Err(error) => error,
        };
        *self
            .sent
            .error
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(error);
        Poll::Ready(Some(Err(Failed)))
    }
}

/// The source failed; [`Sent::error`] says how.
#[derive(Debug)]
pub(crate) struct Failed;

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("blob to push cannot be read")
    }
}

impl std::error::Error for Failed {}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Failed;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failed>>> {
        match self.get_mut() {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Part(part) => part.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Part(part) => part.at >= part.to,
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match self {
            Self::Whole(bytes) => bytes.len() as u64,
            Self::Part(part) => part.to - part.at,
        })
    }
}
