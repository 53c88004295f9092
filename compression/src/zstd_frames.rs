//! A zstd stream, decoded frame by frame, in as much memory as was allowed for it.
//!
//! The header of a frame says how much of what was decoded the decoder has to keep, and that is what it
//! asks the allocator for before the first byte comes out: a blob of a few bytes can ask for much.
//!
//! ```text
//!   frame header -> window -> does the caller let it pass? -> decoder
//! ```
//! Invariant: the decoder sees no header that was not let pass.

use std::io::{BufRead, Read};

use types::Result;
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation as _, OutBuffer};

/// Logarithm of the largest window that the library decodes, whatever it is told.
const LIBRARY: u32 = 31;
/// Magic number, descriptor, dictionary, length of the content.
const LONGEST_HEADER: usize = 4 + 1 + 4 + 8;
/// Magic number of a frame.
const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

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
pub(crate) struct Frames<R, A> {
    source: R,
    decoder: Decoder<'static>,
    /// The header of the frame that begins, and how much of it the decoder has.
    header: Vec<u8>,
    given: usize,
    begins: bool,
    /// Behind the decoder: what it holds is for that.
    admit: A,
}

impl<R: BufRead, A: FnMut(u64) -> Result<()>> Frames<R, A> {
    /// Decodes `source`.
    ///
    /// # Errors
    /// That of the library.
    pub(crate) fn new(source: R, admit: A) -> std::io::Result<Self> {
        let mut decoder = Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(LIBRARY))?;
        Ok(Self {
            source,
            decoder,
            header: Vec::with_capacity(LONGEST_HEADER),
            given: 0,
            begins: true,
            admit,
        })
    }

    /// Reads the header of the next frame; false at the end of the stream.
    fn begin(&mut self) -> std::io::Result<bool> {
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
            (self.admit)(window).map_err(std::io::Error::other)?;
        }
        self.decoder.reinit()?;
        self.begins = false;
        Ok(true)
    }

    /// One step; none at the end of the stream.
    fn step(&mut self, out: &mut [u8]) -> std::io::Result<Option<usize>> {
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
            return Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, text));
        }
        Ok(Some(wrote))
    }
}

impl<R: BufRead, A: FnMut(u64) -> Result<()>> Read for Frames<R, A> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
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
    use std::io::{ErrorKind, Write as _};

    use types::{Code, Error};

    use super::*;
    use crate::within;

    const MOST: u64 = 64 << 20;

    fn read(frames: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut out = Vec::new();
        // As it comes: headers are cut where pieces end.
        let pieces = std::io::BufReader::with_capacity(3, frames);
        let mut stream = Frames::new(pieces, |window| within(window, MOST))?;
        stream.read_to_end(&mut out)?;
        Ok(out)
    }

    /// An empty frame with a window of two to the power of `log`, and an eighth for each of `eighths`.
    fn windowed(log: u8, eighths: u8) -> Vec<u8> {
        let byte = (log - 10) << 3 | eighths;
        [&MAGIC[..], &[0, byte, 1, 0, 0]].concat()
    }

    /// One whose window is the length of its content, in so many bytes; that is a lie.
    fn single(len: u64, bytes: usize) -> Vec<u8> {
        let flag = u8::try_from(bytes.ilog2()).unwrap() << 6;
        let len = len.to_le_bytes();
        [&MAGIC[..], &[0x20 | flag], &len[..bytes], &[1, 0, 0]].concat()
    }

    #[test]
    fn what_a_frame_asks_for_is_read_in_its_header() {
        assert_eq!(window(&windowed(10, 0)), Some(1 << 10));
        assert_eq!(window(&windowed(23, 1)), Some(9 << 20));
        assert_eq!(window(&windowed(41, 7)), Some(15 << 38));
        assert_eq!(window(&single(7, 1)), Some(7));
        assert_eq!(window(&single(7, 2)), Some(263));
        assert_eq!(window(&single(1 << 31, 4)), Some(1 << 31));
        assert_eq!(window(&single(u64::MAX, 8)), Some(u64::MAX));
        let dictionary = [&MAGIC[..], &[0x23, 9, 9, 9, 9, 5]].concat();
        assert_eq!(window(&dictionary), Some(5));
        for cut in 0..dictionary.len() {
            assert_eq!(window(&dictionary[..cut]), None);
        }
        assert_eq!(window(&[0x50, 0x2a, 0x4d, 0x18, 0xff, 0, 0, 0, 0]), None);
    }

    #[test]
    fn no_frame_of_a_stream_gets_more_than_the_ceiling() {
        let common = windowed(23, 0);
        let large = windowed(26, 0);
        let skipped = [0x51, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9].to_vec();
        for greedy in [
            windowed(26, 1),
            windowed(41, 0),
            single(MOST + 1, 4),
            single(MOST + 1, 8),
        ] {
            for before in [&[][..], &common, &large, &skipped] {
                let error = read(&[before, &greedy].concat()).unwrap_err();
                let error = error.downcast::<Error>().unwrap();
                assert!(error.is(Code::ResourceExhausted), "{error}");
            }
        }
        let good = [&common[..], &skipped, &large, &common].concat();
        assert_eq!(read(&good).unwrap(), b"");
    }

    #[test]
    fn many_frames_are_one_stream_and_a_cut_one_is_told() {
        let mut all = Vec::new();
        for piece in [&b"one"[..], b"", &[b'2'; 100_000]] {
            all.extend(zstd::encode_all(piece, 0).unwrap());
        }
        let out = read(&all).unwrap();
        assert_eq!(out, [&b"one"[..], &[b'2'; 100_000]].concat());
        for cut in [all.len() - 1, 3, 1] {
            let error = read(&all[..cut]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{error}");
        }
        let trailing = [&all[..], b"no frame"].concat();
        read(&trailing).unwrap_err();
    }

    #[test]
    fn a_match_that_reaches_back_far_is_decoded_with_the_window_for_it() {
        // 9 MiB that do not compress, twice: the second one is the first again.
        let mut state = 1_u64;
        let mut noise = Vec::with_capacity(9 << 20);
        while noise.len() < 9 << 20 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            noise.extend(state.to_le_bytes().into_iter().skip(4));
        }
        let twice = [&noise[..], &noise].concat();
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.long_distance_matching(true).unwrap();
        encoder.window_log(25).unwrap();
        encoder.write_all(&twice).unwrap();
        let packed = encoder.finish().unwrap();
        assert!(
            packed.len() < twice.len() * 2 / 3,
            "nothing was found again"
        );
        assert!(read(&packed).unwrap() == twice);
    }

    #[test]
    fn who_lets_windows_pass_is_asked_of_each() {
        let seen = Cell::new(Vec::new());
        let frames = [windowed(24, 0), windowed(20, 0), windowed(25, 0)].concat();
        let admit = |window| {
            let mut all = seen.take();
            all.push(window);
            seen.set(all);
            Ok(())
        };
        let mut stream = Frames::new(&frames[..], admit).unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
        assert_eq!(seen.take(), [1 << 24, 1 << 20, 1 << 25]);
    }
}
