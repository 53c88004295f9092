//! A zstd stream, frame by frame, in as much memory as there is for it.
//!
//! The header of a frame says how much the decoder has to keep, and that is what it asks the allocator for:
//! a stream of a few bytes can ask for much.
//!
//! Invariant: the decoder sees no header that was not let pass; of decoders with a large window there is one
//! in the process for streams that come in, and one for those out of the store, which nobody can stop on
//! their way. (Layers that are unpacked have the same rule, and turns of their own.)

use std::io::{self, BufRead, Read};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use types::{Error, Result};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation as _, OutBuffer};

/// Windows that everybody gets: what the builders write at any level, zstd itself up to level 19, and what
/// RFC 8878 asks of each decoder.
const COMMON: u64 = 8 << 20;
/// The largest one: what `zstd --ultra -22` writes.
const MOST: u64 = 128 << 20;
/// Logarithm of the largest window that the library decodes, whatever it is told.
const LIBRARY: u32 = 31;
/// Magic number, descriptor, dictionary, length of the content.
const LONGEST_HEADER: usize = 4 + 1 + 4 + 8;
/// Magic number of a frame.
const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// How often who waits for a turn looks whether it is still to wait.
const LOOK: Duration = Duration::from_millis(100);
/// So long an archive waits for another one, whose sender may have stopped for good.
const PATIENCE: Duration = Duration::from_secs(60);

/// Room for one large window.
#[derive(Debug)]
struct Room {
    is_taken: Mutex<bool>,
    freed: Condvar,
}

static ARRIVING: Room = Room::new();
static STORED: Room = Room::new();

/// Where a stream comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whence {
    /// From a client, who may stop in the middle.
    Outside,
    /// From the store.
    Store,
}

impl Whence {
    pub(super) fn turns(self) -> Turns {
        match self {
            Self::Outside => Turns(&ARRIVING, Some(PATIENCE)),
            Self::Store => Turns(&STORED, None),
        }
    }
}

/// Which room a decoder needs for a large window, and how long it waits for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turns(&'static Room, Option<Duration>);

/// The room, until it is dropped.
#[derive(Debug)]
struct Turn(&'static Room);

impl Room {
    const fn new() -> Self {
        Self {
            is_taken: Mutex::new(false),
            freed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.is_taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the room.
    ///
    /// # Errors
    /// `Cancelled` when nobody wants it any more, `Unavailable` when it is not free in time.
    fn wait(
        &'static self,
        patience: Option<Duration>,
        is_unwanted: &dyn Fn() -> bool,
    ) -> Result<Turn> {
        let since = Instant::now();
        let mut taken = self.lock();
        while *taken {
            if is_unwanted() {
                return Err(Error::cancelled("nobody waits for it"));
            }
            if patience.is_some_and(|patience| since.elapsed() >= patience) {
                return Err(Error::unavailable(
                    "another archive with a large window is coming in",
                ));
            }
            let woken = self.freed.wait_timeout(taken, LOOK);
            taken = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        *taken = true;
        Ok(Turn(self))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *self.0.lock() = false;
        self.0.freed.notify_one();
    }
}

/// The window that a frame asks for. None for what is not the whole header of one, and for a frame that
/// is to be skipped.
fn window(header: &[u8]) -> Option<u64> {
    let (magic, rest) = header.split_at_checked(MAGIC.len())?;
    let (descriptor, rest) = rest.split_first()?;
    if magic != MAGIC {
        return None;
    }
    if descriptor & 0x20 == 0 {
        let byte = rest.first()?;
        let base = 1_u64 << (10 + (byte >> 3));
        return Some(base + base / 8 * u64::from(byte & 7));
    }
    // One segment: the window is the content.
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let len = [1, 2, 4, 8][usize::from(descriptor >> 6)];
    let mut number = [0; 8];
    number[..len].copy_from_slice(rest.get(dictionary..dictionary + len)?);
    let more = if len == 2 { 256 } else { 0 };
    Some(u64::from_le_bytes(number).saturating_add(more))
}

/// The decoder.
pub(super) struct Frames<R> {
    source: R,
    decoder: Decoder<'static>,
    turns: Turns,
    is_unwanted: Box<dyn Fn() -> bool>,
    /// The header of the frame that begins, and how much of it the decoder has.
    header: Vec<u8>,
    given: usize,
    begins: bool,
    /// Held as long as there is a decoder, which keeps what it has for the frames that follow.
    turn: Option<Turn>,
}

impl<R: BufRead> Frames<R> {
    pub(super) fn new(
        source: R,
        turns: Turns,
        is_unwanted: Box<dyn Fn() -> bool>,
    ) -> io::Result<Self> {
        let mut decoder = Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(LIBRARY))?;
        Ok(Self {
            source,
            decoder,
            turns,
            is_unwanted,
            header: Vec::with_capacity(LONGEST_HEADER),
            given: 0,
            begins: true,
            turn: None,
        })
    }

    fn admit(&mut self, window: u64) -> Result<()> {
        if window > MOST {
            return Err(Error::resource_exhausted(format_args!(
                "zstd window of {window} bytes, more than {MOST}"
            )));
        }
        if window > COMMON && self.turn.is_none() {
            let Turns(room, patience) = self.turns;
            self.turn = Some(room.wait(patience, &*self.is_unwanted)?);
        }
        Ok(())
    }

    /// Reads the header of the next frame; false at the end of the stream.
    fn begin(&mut self) -> io::Result<bool> {
        self.header.clear();
        self.given = 0;
        let wanted = loop {
            let wanted = window(&self.header);
            let is_other = self.header.len() >= MAGIC.len() && !self.header.starts_with(&MAGIC);
            if wanted.is_some() || is_other {
                break wanted;
            }
            let Some(byte) = self.source.fill_buf()?.first().copied() else {
                break None;
            };
            self.header.push(byte);
            self.source.consume(1);
        };
        if self.header.is_empty() {
            return Ok(false);
        }
        if let Some(window) = wanted {
            self.admit(window).map_err(io::Error::other)?;
        }
        self.decoder.reinit()?;
        self.begins = false;
        Ok(true)
    }

    /// One step; none at the end of the stream.
    fn step(&mut self, out: &mut [u8]) -> io::Result<Option<usize>> {
        if self.begins && !self.begin()? {
            return Ok(None);
        }
        let mut out = OutBuffer::around(out);
        let from_header = self.given < self.header.len();
        let input = if from_header {
            &self.header[self.given..]
        } else {
            self.source.fill_buf()?
        };
        let is_end = input.is_empty();
        let mut input = InBuffer::around(input);
        let left = self.decoder.run(&mut input, &mut out)?;
        let (read, wrote) = (input.pos(), out.pos());
        if from_header {
            self.given += read;
        } else {
            self.source.consume(read);
        }
        self.begins = left == 0;
        if is_end && wrote == 0 && left != 0 {
            let text = "incomplete frame";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        Ok(Some(wrote))
    }
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match self.step(buffer)? {
                Some(0) => {}
                Some(wrote) => return Ok(wrote),
                None => return Ok(0),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::Write as _;
    use std::rc::Rc;

    use types::Code;

    use super::*;

    fn packed(data: &[u8], log: u32) -> Vec<u8> {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(log).unwrap();
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn unpacked(stream: &[u8], is_unwanted: bool) -> io::Result<Vec<u8>> {
        // In pieces that split a header.
        let source = io::BufReader::with_capacity(3, stream);
        let mut all = Vec::new();
        let turns = Whence::Store.turns();
        Frames::new(source, turns, Box::new(move || is_unwanted))?.read_to_end(&mut all)?;
        Ok(all)
    }

    fn class(result: io::Result<Vec<u8>>) -> Code {
        result
            .unwrap_err()
            .downcast::<Error>()
            .map(|error| error.code())
            .unwrap()
    }

    #[test]
    fn frames_follow_one_another_and_may_be_skipped() {
        let mut stream = b"\x50\x2a\x4d\x18\x04\0\0\0note".to_vec();
        stream.extend(packed(b"one", 10));
        stream.extend(packed(b"two", 20));
        assert_eq!(unpacked(&stream, true).unwrap(), b"onetwo");
        let cut = unpacked(&stream[..stream.len() - 1], true).unwrap_err();
        assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof);
        stream.extend(b"no frame");
        unpacked(&stream, true).unwrap_err();
    }

    #[test]
    fn a_window_that_nobody_has_memory_for_is_refused() {
        assert_eq!(
            class(unpacked(&packed(b"x", 28), false)),
            Code::ResourceExhausted
        );
        // One segment of so many bytes.
        let mut header = MAGIC.to_vec();
        header.push(0xe0);
        header.extend((1_u64 << 40).to_le_bytes());
        assert_eq!(class(unpacked(&header, false)), Code::ResourceExhausted);
    }

    #[test]
    fn who_comes_in_behind_one_that_has_stopped_is_told() {
        static ROOM: Room = Room::new();
        let large = packed(b"y", 27);
        let unpacked = |patience| {
            let turns = Turns(&ROOM, patience);
            let frames = Frames::new(large.as_slice(), turns, Box::new(|| false));
            let mut all = Vec::new();
            frames.unwrap().read_to_end(&mut all).map(|_| all)
        };
        let turn = ROOM.wait(None, &|| false).unwrap();
        let error = unpacked(Some(LOOK / 2)).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("another archive with a large window"),
            "{error}"
        );
        assert_eq!(class(Err(error)), Code::Unavailable);
        drop(turn);
        assert_eq!(unpacked(Some(Duration::ZERO)).unwrap(), b"y");
        // Nobody holds up what is in the store, and the other way round.
        let Turns(arriving, patience) = Whence::Outside.turns();
        let Turns(stored, endless) = Whence::Store.turns();
        assert!(!std::ptr::eq(arriving, stored));
        assert_eq!((patience, endless), (Some(PATIENCE), None));
    }

    /// The one test that takes the room: it is the process's.
    #[test]
    fn large_windows_have_their_turn_one_after_another() {
        let (common, large) = (packed(b"x", 23), packed(b"y", 27));
        let turn = STORED.wait(None, &|| false).unwrap();
        assert_eq!(unpacked(&common, true).unwrap(), b"x");
        assert_eq!(class(unpacked(&large, true)), Code::Cancelled);
        let (asked, held) = (Rc::new(Cell::new(0)), Cell::new(Some(turn)));
        let counting = Rc::clone(&asked);
        let is_unwanted = move || {
            counting.set(counting.get() + 1);
            if counting.get() == 3 {
                // Who asks holds the lock that this takes.
                let turn = held.take();
                drop(std::thread::spawn(move || drop(turn)));
            }
            false
        };
        let mut all = Vec::new();
        let source = io::BufReader::new(large.as_slice());
        let turns = Whence::Store.turns();
        let mut frames = Frames::new(source, turns, Box::new(is_unwanted)).unwrap();
        frames.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"y");
        assert!(asked.get() >= 3 && *STORED.lock());
        drop(frames);
        assert!(!*STORED.lock());
    }
}
