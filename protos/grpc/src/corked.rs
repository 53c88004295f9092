//! A connection's socket, whose bytes go out together.
//!
//! Invariant: nothing stays here that could go: whoever polls the connection sends at the end of its poll
//! what was written in it, and what is more than there is room for goes before. All connections together
//! keep back as much as [`ROOMS`] have; whoever finds none of them free writes to the socket at once.
//!
//! HTTP/2 writes a frame and flushes it, and a frame has at most 16 KiB as long as the client allows no more.
//! A write for each wakes the reader for each: that costs more than to copy them behind one another.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWrite as _;
use tokio::net::UnixStream;

/// What a connection keeps back at most, in bytes.
const MOST: usize = 64 << 10;
/// What a connection has in hand for the next poll when nothing is in it.
const LEAST: usize = 512;

/// Connections that may keep something back: those whose clients do not read have it for as long, so that
/// is 4 MiB in all, beside what is counted where it was read.
static ROOMS: AtomicUsize = AtomicUsize::new(64);

/// The right to keep something back.
struct Room(&'static AtomicUsize);

impl Room {
    fn take(free: &'static AtomicUsize) -> Option<Self> {
        let one = |free: usize| free.checked_sub(1);
        let taken = free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one);
        taken.is_ok().then(|| Self(free))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The socket, and what was not sent yet. Clones are of the same.
#[derive(Clone)]
pub(crate) struct Corked(Arc<Mutex<Bottle>>);

struct Bottle {
    socket: UnixStream,
    unsent: Vec<u8>,
    /// How much of that was sent.
    sent: usize,
    rooms: &'static AtomicUsize,
    /// There as long as something is kept back.
    room: Option<Room>,
}

impl fmt::Debug for Corked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bottle = self.bottle();
        let left = bottle.unsent.len() - bottle.sent;
        f.debug_struct("Corked").field("left", &left).finish()
    }
}

impl Corked {
    pub(crate) fn new(socket: UnixStream) -> Self {
        Self::within(socket, &ROOMS)
    }

    fn within(socket: UnixStream, rooms: &'static AtomicUsize) -> Self {
        Self(Arc::new(Mutex::new(Bottle {
            socket,
            unsent: Vec::new(),
            sent: 0,
            rooms,
            room: None,
        })))
    }

    /// Never waited for: one task has all of them.
    fn bottle(&self) -> MutexGuard<'_, Bottle> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what was written. Pending when the socket takes no more now: then the task is woken.
    ///
    /// # Errors
    /// Those of the socket.
    pub(crate) fn poll_send(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.bottle().poll_send(cx)
    }
}

impl Bottle {
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.unsent.len() {
            let socket = Pin::new(&mut self.socket);
            let sent = ready!(socket.poll_write(cx, &self.unsent[self.sent..]))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += sent;
        }
        self.unsent.clear();
        // A connection that only lies there has no more.
        self.unsent.shrink_to(LEAST);
        self.sent = 0;
        self.room = None;
        Poll::Ready(Ok(()))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, all: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let size: usize = all.iter().map(|part| part.len()).sum();
        if self.unsent.len() + size > MOST {
            ready!(self.poll_send(cx))?;
        }
        if self.room.is_none() {
            // That much is worth a write of its own.
            self.room = (size < MOST).then(|| Room::take(self.rooms)).flatten();
        }
        if self.room.is_none() {
            return Pin::new(&mut self.socket).poll_write_vectored(cx, all);
        }
        for part in all {
            self.keep(part);
        }
        Poll::Ready(Ok(size))
    }

    fn keep(&mut self, part: &[u8]) {
        let there = self.unsent.len();
        if there + part.len() > LEAST && there + part.len() > self.unsent.capacity() {
            // What follows a frame is mostly another one.
            self.unsent.reserve_exact(MOST - there);
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
        let bottle = &mut *self.bottle();
        Pin::new(&mut TokioIo::new(&mut bottle.socket)).poll_read(cx, buffer)
    }
}

impl Write for Corked {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.bottle().poll_write(cx, &[IoSlice::new(data)])
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        all: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.bottle().poll_write(cx, all)
    }

    /// Asked for after each frame: what was written goes when the connection's poll ends.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let bottle = &mut *self.bottle();
        ready!(bottle.poll_send(cx))?;
        Pin::new(&mut bottle.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::AsyncReadExt as _;

    use super::*;

    fn rooms(count: usize) -> &'static AtomicUsize {
        Box::leak(Box::new(AtomicUsize::new(count)))
    }

    /// A connection of which the kernel keeps less than a MiB, and its other end.
    fn pair_within(rooms: &'static AtomicUsize) -> (Corked, UnixStream) {
        let (one, other) = UnixStream::pair().unwrap();
        rustix::net::sockopt::set_socket_send_buffer_size(&one, 128 << 10).unwrap();
        (Corked::within(one, rooms), other)
    }

    fn pair() -> (Corked, UnixStream) {
        pair_within(rooms(1))
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

    fn is_silent(other: &UnixStream) -> bool {
        let found = other.try_read(&mut [0]).map_err(|error| error.kind());
        found == Err(io::ErrorKind::WouldBlock)
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
                assert!(corked.bottle().unsent.capacity() <= LEAST);
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
        assert!(is_silent(&other));
        // The fourth frame does not fit.
        write(corked.clone(), &noise(16_393), 16_393).await;
        let mut got = vec![0; MOST];
        other.readable().await.unwrap();
        assert_eq!(other.try_read(&mut got).unwrap(), 100 + 3 * 16_393);
        assert_eq!(corked.bottle().unsent.len(), 16_393);
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
        assert!(corked.bottle().unsent.len() <= MOST);
        drop(other);
        let told = poll_fn(|cx| corked.poll_send(cx)).await;
        assert!(told.is_err());
    }

    #[tokio::test]
    async fn without_room_everything_goes_at_once() {
        let rooms = rooms(2);
        let pairs = [(); 3].map(|()| pair_within(rooms));
        for (corked, _) in &pairs {
            write(corked.clone(), &noise(100), 100).await;
        }
        pairs[2].1.readable().await.unwrap();
        let silent = pairs.each_ref().map(|(_, other)| is_silent(other));
        assert_eq!(silent, [true, true, false]);
        assert_eq!(pairs[2].0.bottle().unsent.capacity(), 0);
        let sent = |corked: &Corked| {
            let corked = corked.clone();
            async move { poll_fn(|cx| corked.poll_send(cx)).await.unwrap() }
        };
        sent(&pairs[0].0).await;
        write(pairs[2].0.clone(), &noise(100), 100).await;
        assert_eq!(pairs[2].0.bottle().unsent.len(), 100);
        drop(pairs);
        assert_eq!(rooms.load(Ordering::Relaxed), 2);
    }
}
