//! What an image must look like: a number over its length and all its bytes.
//!
//! It is taken at the commit, when the image is in memory still, and again when somebody asks whether the
//! layer is whole. It notices every flipped bit that an accident makes, and nobody who wants to deceive.
//!
//! ```text
//!   bit 63: there is a sum     62..32: length     31..0: CRC-32
//! ```
//! Invariant: a number without bit 63 is a length alone, as earlier versions have noted it.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use types::{Error, Result};

const HAS_SUM: u64 = 1 << 63;
/// Part of the length that is kept.
const LENGTH: u64 = (1 << 31) - 1;
/// Bytes that are read at a time.
const PIECE: usize = 256 * 1024;

/// The number of the image at `path`.
///
/// # Errors
/// I/O: also that of a disk which notices by itself that it does not have the bytes any more.
pub(super) fn of(path: &Path) -> Result<u64> {
    let fail = |e| Error::os(format_args!("read {}", path.display()), e);
    let mut file = File::open(path).map_err(fail)?;
    let (mut sum, mut len) = (crc32fast::Hasher::new(), 0_u64);
    let mut buffer = vec![0; PIECE];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(number(len, sum.finalize())),
            Ok(got) => {
                sum.update(&buffer[..got]);
                len += got as u64;
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(fail(e)),
        }
    }
}

fn number(len: u64, sum: u32) -> u64 {
    HAS_SUM | (len & LENGTH) << 32 | u64::from(sum)
}

/// True when the image that has the number `found` can be the one that had `known`.
pub(super) fn agrees(known: u64, found: u64) -> bool {
    if known & HAS_SUM == 0 {
        return (found >> 32) & LENGTH == known & LENGTH;
    }
    known == found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flipped_bit_and_a_cut_are_noticed_and_an_earlier_number_is_a_length() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("image");
        let mut data = vec![7; 700_000];
        let number_of = |data: &[u8]| {
            std::fs::write(&path, data).unwrap();
            of(&path).unwrap()
        };
        let whole = number_of(&data);
        assert!(agrees(whole, number_of(&data)));
        assert!(agrees(data.len() as u64, whole));
        assert!(!agrees(data.len() as u64 + 1, whole));
        data[600_000] ^= 1;
        assert!(!agrees(whole, number_of(&data)));
        assert!(agrees(data.len() as u64, number_of(&data)));
        data.truncate(600_000);
        assert!(!agrees(whole, number_of(&data)));
        of(&temp.path().join("nowhere")).unwrap_err();
    }
}
