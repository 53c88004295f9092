//! What stands behind the last whole frame of a journal: room, half a frame, or frames behind a hole.
//!
//! Invariant: each frame waits for the flush of the one before. So nothing whole stands behind a frame that
//! was on its way when the power went, whichever of its blocks have reached the disk; and where something
//! whole stands, what is before it was answered, and is damaged.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use super::scan::Frame;
use super::{HEAD, Kind, MAX_FRAME, PART, VERSION};

/// A frame up to its commit's number, and no longer.
const START: usize = HEAD + 2 + 10;
/// How often the tail may be read again, for what looks like a frame in it and is none. Who writes more
/// of that into a record gets his journal called damaged.
const EFFORT: u64 = 64;

/// What is behind the last whole frame.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tail {
    /// Where the last byte ends that is not zero.
    pub(super) end: u64,
    /// There is a whole frame of a later commit.
    pub(super) has_frame: bool,
}

/// A journal of `size` bytes, of which those before `at` are whole, up to commit `last`.
#[derive(Debug)]
pub(super) struct Behind<'a> {
    pub(super) file: &'a File,
    pub(super) size: u64,
    pub(super) at: u64,
    pub(super) last: u64,
}

impl Behind<'_> {
    /// Looks through all of it.
    pub(super) fn look(&self) -> std::io::Result<Tail> {
        let mut tail = Tail {
            end: self.at,
            has_frame: false,
        };
        let mut effort = self.size.saturating_sub(self.at) * EFFORT;
        // One byte more than is looked through: a frame is known by two.
        let mut part = vec![0; PART + 1];
        let mut from = self.at;
        while from < self.size {
            let len = fill(self.file, &mut part, from)?;
            if len == 0 {
                break;
            }
            let step = len.min(PART);
            if let Some(last) = part[..step].iter().rposition(|byte| *byte != 0) {
                tail.end = from + last as u64 + 1;
                let pairs = part[..len].windows(2).enumerate();
                for (n, _) in pairs.filter(|(_, pair)| *pair == [VERSION, Kind::Change as u8]) {
                    let payload = from + n as u64;
                    tail.has_frame = tail.has_frame
                        || (payload >= self.at + HEAD as u64
                            && self.is_frame(payload - HEAD as u64, &mut effort)?);
                }
            }
            from += step as u64;
        }
        Ok(tail)
    }

    /// True when a whole frame of a later commit stands at `at`, and when looking has become too much.
    fn is_frame(&self, at: u64, effort: &mut u64) -> std::io::Result<bool> {
        let mut start = [0; START];
        let read = fill(self.file, &mut start, at)?;
        let [l0, l1, l2, l3, c0, c1, c2, c3, ..] = start;
        let len = u32::from_le_bytes([l0, l1, l2, l3]);
        let left = self.size.saturating_sub(at + HEAD as u64);
        let payload = &start[HEAD..read.max(HEAD)];
        if len as usize > MAX_FRAME || u64::from(len) > left {
            return Ok(false);
        }
        let payload = payload.get(..len as usize).unwrap_or(payload);
        let commit = Frame::parse(payload).map_or(0, |frame| frame.commit);
        // No more commits than there are bytes.
        if commit <= self.last || commit - self.last > self.size {
            return Ok(false);
        }
        if u64::from(len) > *effort {
            return Ok(true);
        }
        *effort -= u64::from(len);
        let sum = self.sum(at + HEAD as u64, len)?;
        Ok(sum == u32::from_le_bytes([c0, c1, c2, c3]))
    }

    /// The checksum of `len` bytes.
    fn sum(&self, mut at: u64, len: u32) -> std::io::Result<u32> {
        let mut sum = crc32fast::Hasher::new();
        let mut left = len as usize;
        let mut part = vec![0; left.min(PART)];
        while left > 0 {
            let most = left.min(PART);
            let read = fill(self.file, &mut part[..most], at)?;
            if read == 0 {
                break;
            }
            sum.update(&part[..read]);
            at += read as u64;
            left -= read;
        }
        Ok(sum.finalize())
    }
}

/// Reads until `buffer` is full or the file ends, and tells how much.
fn fill(file: &File, buffer: &mut [u8], at: u64) -> std::io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match file.read_at(&mut buffer[len..], at + len as u64) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(len)
}
