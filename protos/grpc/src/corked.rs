//! A connection's socket, whose bytes go out together.
//!
//! Invariant: nothing stays here that could go: whoever polls the connection sends at the end of its poll
//! what was written in it, and what is more than there is room for goes before.
//!
//! HTTP/2 writes a frame and flushes it, and a frame has at most 16 KiB as long as the client allows no more.
//! A write for each wakes the reader for each: that costs more than to copy them behind one another.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWrite as _;
use tokio::net::UnixStream;

/// What is kept back at most, in bytes.
const MOST: usize = 64 << 10;
/// What is kept for the next poll when nothing is in it: a connection that only lies there has no more.
const LEAST: usize = 512;

/// The socket, and what was not sent yet. Clones are of the same.
#[derive(Clone, Debug)]
pub(crate) struct Corked(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    socket: UnixStream,
    unsent: BytesMut,
}

impl Corked {
    pub(crate) fn new(socket: UnixStream) -> Self {
        let unsent = BytesMut::new();
        Self(Arc::new(Mutex::new(Inner { socket, unsent })))
    }

    /// Never waited for: one task has all of them.
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what was written. Pending when the socket takes no more now: then the task is woken.
    ///
    /// # Errors
    /// Those of the socket.
    pub(crate) fn poll_send(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_send(cx)
    }
}

impl Inner {
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            let sent = ready!(Pin::new(&mut self.socket).poll_write(cx, &self.unsent))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unsent.advance(sent);
        }
        if self.unsent.capacity() > LEAST {
            self.unsent = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, all: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let size: usize = all.iter().map(|part| part.len()).sum();
        if self.unsent.is_empty() && size >= MOST {
            // That much is worth a write of its own.
            return Pin::new(&mut self.socket).poll_write_vectored(cx, all);
        }
        if self.unsent.len() + size > MOST {
            ready!(self.poll_send(cx))?;
        }
        let mut taken = 0;
        for part in all {
            let part = &part[..part.len().min(MOST - self.unsent.len())];
            self.keep(part);
            taken += part.len();
        }
        Poll::Ready(Ok(taken))
    }

    fn keep(&mut self, part: &[u8]) {
        let there = self.unsent.len();
        if there + part.len() > LEAST && there + part.len() > self.unsent.capacity() {
            // What follows a frame is mostly another one.
            self.unsent.reserve(MOST - there);
        }
        self.unsent.extend_from_slice(part);
    }
}

impl Read for Corked {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let inner = &mut *self.inner();
        Pin::new(&mut TokioIo::new(&mut inner.socket)).poll_read(cx, buffer)
    }
}

impl Write for Corked {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.inner().poll_write(cx, &[IoSlice::new(data)])
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        all: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.inner().poll_write(cx, all)
    }

    /// Asked for after each frame: what was written goes when the connection's poll ends.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let inner = &mut *self.inner();
        ready!(inner.poll_send(cx))?;
        Pin::new(&mut inner.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::AsyncReadExt as _;

    use super::*;

    fn pair() -> (Corked, UnixStream) {
        let (one, other) = UnixStream::pair().unwrap();
        (Corked::new(one), other)
    }

    /// Writes all of it, in pieces of `each`; what is kept back stays there.
    async fn write(mut to: Corked, data: &[u8], each: usize) {
        for piece in data.chunks(each) {
            let mut at = 0;
            while at < piece.len() {
                let (head, tail) = piece[at..].split_at((piece.len() - at).min(9));
                let parts = [IoSlice::new(head), IoSlice::new(tail)];
                let write =
                    |cx: &mut Context<'_>| Pin::new(&mut to).poll_write_vectored(cx, &parts);
                at += poll_fn(write).await.unwrap();
            }
        }
    }

    fn noise(len: usize) -> Vec<u8> {
        (0..len)
            .map(|n| (n.wrapping_mul(31) >> 3).to_le_bytes()[0])
            .collect()
    }

    #[tokio::test]
    async fn what_is_written_goes_together_and_whole() {
        for each in [1, 300, 16_393, MOST - 1, MOST, 5 * MOST] {
            let (corked, mut other) = pair();
            let data = noise(if each == 1 { 2000 } else { 10 * MOST + 17 });
            let (mut got, sent) = (Vec::new(), data.clone());
            let sending = async {
                write(corked.clone(), &sent, each).await;
                poll_fn(|cx| corked.poll_send(cx)).await.unwrap();
                assert!(corked.inner().unsent.capacity() <= LEAST);
                drop(corked);
            };
            let (_, read) = tokio::join!(sending, other.read_to_end(&mut got));
            assert_eq!(read.unwrap(), data.len());
            assert_eq!(got, data, "{each}");
        }
    }

    #[tokio::test]
    async fn as_much_as_there_is_room_for_is_kept_back() {
        let (corked, other) = pair();
        for size in [100, 16_393, 16_393, 16_393] {
            write(corked.clone(), &noise(size), size).await;
        }
        let error = other.try_read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        // The fourth frame does not fit.
        write(corked.clone(), &noise(16_393), 16_393).await;
        let mut got = vec![0; MOST];
        other.readable().await.unwrap();
        assert_eq!(other.try_read(&mut got).unwrap(), 100 + 3 * 16_393);
        assert_eq!(corked.inner().unsent.len(), 16_393);
    }

    #[tokio::test]
    async fn the_end_waits_for_what_was_written() {
        let (mut corked, mut other) = pair();
        let data = noise(MOST - 1);
        write(corked.clone(), &data, MOST).await;
        let mut got = Vec::new();
        let end = poll_fn(|cx| Pin::new(&mut corked).poll_shutdown(cx));
        let (ended, read) = tokio::join!(end, other.read_to_end(&mut got));
        ended.unwrap();
        assert_eq!((read.unwrap(), got), (data.len(), data));
    }

    #[tokio::test]
    async fn a_reader_that_does_not_read_holds_back_the_writer() {
        let (corked, other) = pair();
        let data = noise(1 << 20);
        let mut writing = Box::pin(write(corked.clone(), &data, 16_393));
        // As far as socket and room go.
        for _ in 0..100 {
            assert!(futures::poll!(&mut writing).is_pending());
        }
        assert!(corked.inner().unsent.len() <= MOST);
        drop(other);
        let told = poll_fn(|cx| corked.poll_send(cx)).await;
        assert!(told.is_err());
    }
}
