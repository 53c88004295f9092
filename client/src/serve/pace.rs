//! How much of a blob a stream of `Content.Read` has in memory.
//!
//! Invariant: all streams together have [`ROOM`] in their hands, and each of them one small piece beside
//! that: however many there are that nobody reads, any other one goes on. Clients ask for a blob in many
//! short streams as well as in one long one, so the first piece is a large one where most of the room is
//! free. Else pieces grow while they are taken, and shrink before there is no room.
//!
//! ```text
//!           most is free ─> 256 KiB, read ahead of who takes them
//! 64 KiB ─ taken ─> 256 KiB ──'        `─ taken after a long while ─> 64 KiB
//!    `── no room: a smaller one ──┴── none at all: 16 KiB when nothing is queued
//! ```

use std::time::Duration;

use bytes::Bytes;
use grpc::Sender;
use tokio::sync::{Semaphore, SemaphorePermit};

/// What each stream may always have.
const LEAST: usize = 16 << 10;
/// The first piece where much of the room is taken.
const FIRST: usize = LEAST * GROWTH;
/// A piece that was taken is followed by one so many times as large.
const GROWTH: usize = 4;
/// The largest piece: what is read at once. It is still in the processor's own cache when it is sent.
const LARGEST: usize = FIRST * GROWTH;
/// A piece counts twice: the store may keep a buffer of its size for the next one.
const BUFFERS: usize = 2;
/// Of what room there is a piece takes one part in so many at most: the last of it is for many small ones.
const SHARE: usize = 8;
/// Bytes of a permit.
const UNIT: usize = 1 << 10;
/// A stream whose piece was taken so soon is read: it finds room where those that are not have all else.
const SOON: Duration = Duration::from_millis(100);
/// One whose piece took so long may stand still again: the next one is not large.
const LONG: Duration = Duration::from_secs(1);

/// The room for all streams of the process: 64 MiB. A dozen of them have the largest pieces at a time.
/// Beside it 8 MiB for those that are read, when others stand still.
pub(super) static ROOM: Rooms = Rooms::new(64 << 10, 8 << 10);

/// What room there is for pieces, in permits.
pub(super) struct Rooms {
    all: Semaphore,
    /// How much that is when nobody has any.
    whole: usize,
    /// For streams whose last piece was taken soon.
    read: Semaphore,
}

impl Rooms {
    const fn new(all: usize, read: usize) -> Self {
        Self {
            all: Semaphore::const_new(all),
            whole: all,
            read: Semaphore::const_new(read),
        }
    }

    /// More than half of it is free.
    fn is_wide(&self) -> bool {
        self.all.available_permits() > self.whole / 2
    }
}

/// What one stream reads next.
pub(super) struct Pace {
    room: &'static Rooms,
    /// Of the next piece, at most; none before the first one.
    size: Option<usize>,
    /// The last piece was a large one: it may still be queued when the next is read.
    is_ahead: bool,
    /// The last piece was taken soon.
    is_read: bool,
}

/// Room for a piece. None is needed for a small one.
type Room = Option<SemaphorePermit<'static>>;

impl Pace {
    pub(super) fn new(room: &'static Rooms) -> Self {
        Self {
            room,
            size: None,
            is_ahead: false,
            is_read: false,
        }
    }

    /// Length of the next piece of a section of which `left` bytes are left, and room for it. Waits where
    /// what was sent before is to be taken first.
    pub(super) async fn next<R>(&mut self, left: u64, sender: &Sender<R>) -> (usize, Room) {
        let mut size = match self.size {
            None if self.room.is_wide() => LARGEST,
            None => FIRST,
            Some(size) => size,
        };
        if size < LARGEST || !self.is_ahead {
            sender.drained().await;
        }
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        loop {
            let length = size.min(left);
            if length <= LEAST {
                break;
            }
            if let Some(room) = self.take(length) {
                self.is_ahead = size == LARGEST;
                self.size = Some(LARGEST.min(size * GROWTH));
                return (length, Some(room));
            }
            size /= GROWTH;
        }
        sender.drained().await;
        self.is_ahead = false;
        self.size = Some(FIRST);
        (left.min(LEAST), None)
    }

    /// Notes how long a piece has taken to be sent, all but what the queue has room for.
    pub(super) fn sent(&mut self, took: Duration) {
        self.is_read = took <= SOON;
        if took >= LONG {
            self.size = Some(FIRST);
        }
    }

    fn take(&self, length: usize) -> Room {
        let units = (length * BUFFERS).div_ceil(UNIT);
        let of = |room: &'static Semaphore| {
            if units * SHARE > room.available_permits() {
                return None;
            }
            room.try_acquire_many(u32::try_from(units).ok()?).ok()
        };
        let room = of(&self.room.all);
        room.or_else(|| self.is_read.then(|| of(&self.room.read)).flatten())
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

    fn room(units: usize, read: usize) -> &'static Rooms {
        Box::leak(Box::new(Rooms::new(units, read)))
    }

    fn served(blob: &Arc<Noted>, room: &'static Rooms) -> ResponseStream<ReadContentResponse> {
        section(blob, 0, room)
    }

    fn section(
        blob: &Arc<Noted>,
        size: i64,
        room: &'static Rooms,
    ) -> ResponseStream<ReadContentResponse> {
        let blob = Arc::clone(blob);
        let answer = serve_unscoped_stream(Request::new(()), move |(), sender| async move {
            read(blob, 0, size, sender, Pace::new(room)).await
        });
        answer.unwrap().into_inner()
    }

    /// Of a client that is gone: nothing waits for it.
    fn sender() -> Sender<u8> {
        let mut made = None;
        let answer = serve_unscoped_stream(Request::new(()), |(), sender| {
            made = Some(sender);
            async { Ok(()) }
        });
        drop(answer);
        made.unwrap()
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
    async fn a_short_section_is_one_piece_and_a_stream_that_nobody_reads_has_two() {
        for size in [1000, 64 << 10, LARGEST] {
            let (blob, room) = (Noted::new(100 << 20), room(UNITS, 0));
            let section = section(&blob, i64::try_from(size).unwrap(), room);
            assert_eq!(drain(section).await, size as u64);
            assert_eq!(blob.reads(), [size]);
        }
        let blob = Noted::new(100 << 20);
        let _unread = served(&blob, room(UNITS, 0));
        settle().await;
        // What the queue takes, and the one that waits for it.
        assert_eq!(blob.reads(), [LARGEST, LARGEST]);
    }

    #[tokio::test]
    async fn streams_that_nobody_reads_have_large_pieces_as_long_as_most_of_the_room_is_free() {
        let (blob, room) = (Noted::new(100 << 20), room(UNITS, 0));
        let unread: Vec<_> = (0..1000).map(|_| served(&blob, room)).collect();
        settle().await;
        let reads = blob.reads();
        let of = |size| reads.iter().filter(|read| **read == size).count();
        // One that has a large piece may have another one.
        let large = UNITS * UNIT / 2 / (LARGEST * BUFFERS);
        assert!(
            (large..=2 * large).contains(&of(LARGEST)),
            "{}",
            of(LARGEST)
        );
        let all = of(FIRST) + of(LEAST) + of(LARGEST);
        assert!((1000..=1000 + large).contains(&all), "{all}");
        assert!(of(FIRST) > 100, "{}", of(FIRST));
        let free = room.all.available_permits();
        assert!(
            (1..SHARE * BUFFERS * FIRST / UNIT).contains(&free),
            "{free}"
        );
        drop(unread);
    }

    #[tokio::test]
    async fn a_stream_that_is_read_has_large_pieces_and_gives_their_room_back() {
        let (blob, room) = (Noted::new(100 << 20), room(UNITS, 0));
        let most = room.all.try_acquire_many(33 << 10).unwrap();
        let mut stream = served(&blob, room);
        let mut taken = 0;
        for _ in 0..50 {
            taken += stream.next().await.unwrap().unwrap().data.len() as u64;
        }
        settle().await;
        let reads = blob.reads();
        // How soon depends on how soon each is taken.
        assert_eq!(reads[0], FIRST);
        assert!(reads.contains(&LARGEST), "{reads:?}");
        let held = UNITS - most.num_permits() - room.all.available_permits();
        assert!(
            (LARGEST / UNIT..=4 * LARGEST / UNIT).contains(&held),
            "{held}"
        );
        assert_eq!(taken + drain(stream).await, 100 << 20);
        settle().await;
        drop(most);
        assert_eq!(room.all.available_permits(), UNITS);
    }

    #[tokio::test]
    async fn a_stream_that_is_dropped_gives_its_room_back() {
        let (blob, room) = (Noted::new(100 << 20), room(UNITS, 0));
        let mut stream = served(&blob, room);
        for _ in 0..50 {
            stream.next().await.unwrap().unwrap();
        }
        drop(stream);
        settle().await;
        assert_eq!(room.all.available_permits(), UNITS);
    }

    #[tokio::test]
    async fn without_room_streams_go_on_in_small_pieces() {
        // For one of 64 KiB at a time, and for none.
        for units in [SHARE * BUFFERS * FIRST / UNIT, 0] {
            let (blob, room) = (Noted::new(1 << 20), room(units, 0));
            let unread: Vec<_> = (0..100).map(|_| served(&blob, room)).collect();
            settle().await;
            let small = blob.reads().into_iter().filter(|read| *read == LEAST);
            assert_eq!(small.count(), if units == 0 { 100 } else { 99 });
            let read = Noted::new(5 << 20);
            assert_eq!(drain(served(&read, room)).await, 5 << 20);
            // What is left of the room is enough for its end.
            assert!(read.reads().into_iter().all(|length| length < FIRST));
            drop(unread);
            settle().await;
            let read = Noted::new(5 << 20);
            assert_eq!(drain(served(&read, room)).await, 5 << 20);
            let most = if units == 0 { LEAST } else { FIRST };
            assert_eq!(read.reads().into_iter().max(), Some(most));
        }
    }

    #[tokio::test]
    async fn a_stream_that_stood_still_has_no_large_piece_and_one_that_is_read_finds_room() {
        let (sender, room) = (sender(), room(UNITS, 8 << 10));
        let mut pace = Pace::new(room);
        let next = async |pace: &mut Pace| {
            let (length, _room) = pace.next(u64::MAX, &sender).await;
            length
        };
        assert_eq!(next(&mut pace).await, LARGEST);
        pace.sent(LONG);
        assert_eq!(next(&mut pace).await, FIRST);
        let _all = room.all.try_acquire_many(64 << 10).unwrap();
        pace.sent(SOON * 2);
        assert_eq!(next(&mut pace).await, LEAST);
        pace.sent(SOON);
        assert_eq!(next(&mut pace).await, FIRST);
        pace.sent(SOON);
        assert_eq!(next(&mut pace).await, 256 << 10);
    }
}
