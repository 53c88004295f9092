//! How much of a blob a stream of `Content.Read` has in memory.
//!
//! Invariant: all streams together have [`ROOM`] in their hands, and each of them one small piece beside
//! that: however many there are that nobody reads, any other one goes on. Pieces grow while they are
//! taken, so that a stream that is read has large ones at once, and shrink before there is no room.
//!
//! ```text
//! 16 KiB ─ taken ─> 64 KiB ─ taken ─> 256 KiB ─ taken ─> 1 MiB, read ahead of who takes them
//!    ^── nothing is queued ──┴── no room: a smaller one ──┴──────────'
//! ```

use bytes::Bytes;
use grpc::Sender;
use tokio::sync::{Semaphore, SemaphorePermit};

/// The first piece, and what each stream may always have.
const FIRST: usize = 16 << 10;
/// A piece that was taken is followed by one so many times as large.
const GROWTH: usize = 4;
/// The largest piece: what is read at once.
const LARGEST: usize = FIRST * GROWTH * GROWTH * GROWTH;
/// A piece counts twice: the store may keep a buffer of its size for the next one.
const BUFFERS: usize = 2;
/// Of what room there is a piece takes one part in so many at most: the last of it is for many small ones.
const SHARE: usize = 8;
/// Bytes of a permit.
const UNIT: usize = 1 << 10;

/// The room for all streams of the process: 64 MiB. A dozen of them have the largest pieces at a time.
pub(super) static ROOM: Semaphore = Semaphore::const_new(64 << 10);

/// What one stream reads next.
pub(super) struct Pace {
    room: &'static Semaphore,
    size: usize,
}

/// Room for a piece. None is needed for a small one.
type Room = Option<SemaphorePermit<'static>>;

impl Pace {
    pub(super) fn new(room: &'static Semaphore) -> Self {
        Self { room, size: FIRST }
    }

    /// Length of the next piece of a section of which `left` bytes are left, and room for it. Waits where
    /// what was sent before is to be taken first.
    pub(super) async fn next<R>(&mut self, left: u64, sender: &Sender<R>) -> (usize, Room) {
        if self.size < LARGEST {
            sender.drained().await;
        }
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        loop {
            let length = self.size.min(left);
            if length <= FIRST {
                break;
            }
            if let Some(room) = self.take(length) {
                self.size = LARGEST.min(self.size * GROWTH);
                return (length, Some(room));
            }
            self.size /= GROWTH;
        }
        sender.drained().await;
        self.size = FIRST * GROWTH;
        (left.min(FIRST), None)
    }

    fn take(&self, length: usize) -> Room {
        let units = (length * BUFFERS).div_ceil(UNIT);
        if units * SHARE > self.room.available_permits() {
            return None;
        }
        self.room.try_acquire_many(u32::try_from(units).ok()?).ok()
    }
}

/// A piece in its room, until nobody looks at any part of it any more.
struct Held {
    data: Bytes,
    _room: SemaphorePermit<'static>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

/// The piece; its room is free when all parts of it are gone.
pub(super) fn hold(data: Bytes, room: Room) -> Bytes {
    match room {
        Some(room) => Bytes::from_owner(Held { data, _room: room }),
        None => data,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use async_trait::async_trait;
    use content::Blob;
    use grpc::{ResponseStream, serve_unscoped_stream};
    use protos::services::content::ReadContentResponse;
    use tokio_stream::StreamExt as _;
    use tonic::Request;
    use types::Result;

    use super::super::content::read;
    use super::*;

    /// Permits of a test's own room.
    const UNITS: usize = 64 << 10;

    /// A blob of zeros that notes how much was read at once.
    #[derive(Debug)]
    struct Noted {
        size: u64,
        reads: Mutex<Vec<usize>>,
    }

    impl Noted {
        fn new(size: u64) -> Arc<Self> {
            let reads = Mutex::default();
            Arc::new(Self { size, reads })
        }

        fn reads(&self) -> Vec<usize> {
            self.reads.lock().unwrap().clone()
        }
    }

    #[async_trait]
    impl Blob for Noted {
        fn size(&self) -> u64 {
            self.size
        }

        async fn read_at(&self, _: u64, len: usize) -> Result<Bytes> {
            self.reads.lock().unwrap().push(len);
            Ok(vec![0; len].into())
        }
    }

    fn room(units: usize) -> &'static Semaphore {
        Box::leak(Box::new(Semaphore::new(units)))
    }

    fn served(blob: &Arc<Noted>, room: &'static Semaphore) -> ResponseStream<ReadContentResponse> {
        let blob = Arc::clone(blob);
        let answer = serve_unscoped_stream(Request::new(()), move |(), sender| async move {
            read(blob, 0, 0, sender, Pace::new(room)).await
        });
        answer.unwrap().into_inner()
    }

    /// Lets everything on this thread come as far as it can.
    async fn settle() {
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
    }

    async fn drain(stream: ResponseStream<ReadContentResponse>) -> u64 {
        let lengths = stream.map(|message| message.unwrap().data.len() as u64);
        lengths.fold(0, |all, length| all + length).await
    }

    #[tokio::test]
    async fn a_stream_that_nobody_reads_has_one_small_piece() {
        let blob = Noted::new(100 << 20);
        let _unread = served(&blob, room(UNITS));
        settle().await;
        assert_eq!(blob.reads(), [FIRST]);
    }

    #[tokio::test]
    async fn a_stream_that_is_read_has_large_pieces_and_gives_their_room_back() {
        let (blob, room) = (Noted::new(100 << 20), room(UNITS));
        let mut stream = served(&blob, room);
        let mut taken = 0;
        for _ in 0..50 {
            taken += stream.next().await.unwrap().unwrap().data.len() as u64;
        }
        settle().await;
        let reads = blob.reads();
        assert_eq!(reads[..5], [FIRST, 64 << 10, 256 << 10, LARGEST, LARGEST]);
        let held = UNITS - room.available_permits();
        assert!(
            (LARGEST / UNIT..=4 * LARGEST / UNIT).contains(&held),
            "{held}"
        );
        assert_eq!(taken + drain(stream).await, 100 << 20);
        settle().await;
        assert_eq!(room.available_permits(), UNITS);
    }

    #[tokio::test]
    async fn a_stream_that_is_dropped_gives_its_room_back() {
        let (blob, room) = (Noted::new(100 << 20), room(UNITS));
        let mut stream = served(&blob, room);
        for _ in 0..50 {
            stream.next().await.unwrap().unwrap();
        }
        drop(stream);
        settle().await;
        assert_eq!(room.available_permits(), UNITS);
    }

    #[tokio::test]
    async fn without_room_streams_go_on_in_small_pieces() {
        // For one of 64 KiB at a time, and for none.
        for units in [SHARE * BUFFERS * (64 << 10) / UNIT, 0] {
            let (blob, room) = (Noted::new(1 << 20), room(units));
            let unread: Vec<_> = (0..100).map(|_| served(&blob, room)).collect();
            settle().await;
            assert_eq!(blob.reads(), [FIRST; 100]);
            let read = Noted::new(5 << 20);
            assert_eq!(drain(served(&read, room)).await, 5 << 20);
            let most = read.reads().into_iter().max().unwrap();
            assert_eq!(most, if units == 0 { FIRST } else { 64 << 10 });
            drop(unread);
        }
    }
}
