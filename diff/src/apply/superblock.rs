//! What an EROFS image says of itself, looked at before the kernel is asked to mount it.
//!
//! ```text
//!   0     1024         1 << block bits
//!   any   superblock   inodes, names, data …
//!         `------ checksum -----'
//! ```
//! Invariant: an image that passes is one by its magic, is as long as it says, uses nothing that is not known
//! here, needs no other file, and has a directory for a root. What is in it beyond that the kernel judges.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use types::{Error, Result};

/// Where the superblock is, in every image.
const AT: u64 = 1024;
/// The part of it that all images have.
const LEN: usize = 128;
const MAGIC: u32 = 0xe0f5_e1e2;
/// Blocks have 512 bytes at least, and the kernel mounts none that are larger than its pages.
const LEAST_BITS: u8 = 9;
const MOST_BITS: u8 = 16;
/// Unit in which inodes are counted, and where in one its mode is.
const SLOT: u64 = 32;
const MODE: u64 = 4;
/// `S_IFMT` and `S_IFDIR`.
const TYPE: u16 = 0o170_000;
const DIRECTORY: u16 = 0o040_000;
/// Compatible feature: there is a checksum.
const HAS_CHECKSUM: u32 = 1;
/// Incompatible features: numbers of blocks have 48 bits; and all that kernels know by now.
const WIDE: u32 = 0x80;
const KNOWN: u32 = 0x1ff;

/// Numbers of the superblock, by their place.
struct Block([u8; LEN]);

impl Block {
    fn byte(&self, at: usize) -> u8 {
        self.0[at]
    }

    fn half(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }

    fn word(&self, at: usize) -> u32 {
        u32::from(self.half(at)) | u32::from(self.half(at + 2)) << 16
    }

    fn double(&self, at: usize) -> u64 {
        u64::from(self.word(at)) | u64::from(self.word(at + 4)) << 32
    }
}

/// Looks at the image in `file`.
///
/// # Errors
/// `InvalidArgument` for what is no image, or a damaged one; `FailedPrecondition` for one that is not for
/// this machine; I/O.
pub(super) fn check(file: &File) -> Result<()> {
    let len = file.metadata().map_err(|e| Error::os("stat image", e))?;
    let len = len.len();
    let mut block = Block([0; LEN]);
    read(file, &mut block.0, AT, len)?;
    if block.word(0) != MAGIC {
        return Err(damaged("it has not the magic number"));
    }
    let (bits, features) = (block.byte(12), block.word(80));
    let largest = rustix::param::page_size().trailing_zeros();
    if !(LEAST_BITS..=MOST_BITS).contains(&bits) {
        return Err(damaged(format_args!("blocks of 2^{bits} bytes")));
    }
    if u32::from(bits) > largest {
        return Err(foreign(format_args!("blocks of 2^{bits} bytes")));
    }
    if features & !KNOWN != 0 {
        let unknown = features & !KNOWN;
        return Err(foreign(format_args!("features {unknown:#x}")));
    }
    // Parity: of the kernel: the short numbers count where the long one of the root is not given.
    let is_wide = features & WIDE != 0 && block.double(112) != 0;
    let more = if is_wide {
        u64::from(block.half(14))
    } else {
        0
    };
    let blocks = u64::from(block.word(36)) | more << 32;
    if blocks == 0 || blocks > len >> bits {
        return Err(damaged(format_args!(
            "it has {len} bytes, and says {blocks} blocks of 2^{bits}"
        )));
    }
    if block.half(86) != 0 {
        return Err(damaged("parts of it are in other files"));
    }
    if block.word(8) & HAS_CHECKSUM != 0 {
        checksum(file, &block, 1 << bits, len)?;
    }
    let number = if is_wide {
        block.double(112)
    } else {
        u64::from(block.half(14))
    };
    root(file, u64::from(block.word(40)) << bits, number, len)
}

/// Parity: of the kernel: what follows the first KiB of the first block, without the sum itself, and without
/// the inversion at the end.
fn checksum(file: &File, block: &Block, size: u64, len: u64) -> Result<()> {
    let covered = if size > AT { size - AT } else { size };
    let mut bytes = vec![0; usize::try_from(covered).unwrap_or(LEN)];
    read(file, &mut bytes, AT, len)?;
    bytes[4..8].fill(0);
    if crc32c(&bytes) == block.word(4) {
        return Ok(());
    }
    Err(damaged("its checksum is wrong"))
}

fn crc32c(bytes: &[u8]) -> u32 {
    /// Castagnoli's, reversed.
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let bit = |sum: u32| (sum >> 1) ^ (POLYNOMIAL & (sum & 1).wrapping_neg());
    bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| bit(sum))
    })
}

/// The root is a directory.
fn root(file: &File, inodes: u64, number: u64, len: u64) -> Result<()> {
    let at = number
        .checked_mul(SLOT)
        .and_then(|at| at.checked_add(inodes));
    let at = at.and_then(|at| at.checked_add(MODE));
    let mut mode = [0; 2];
    read(file, &mut mode, at.unwrap_or(u64::MAX), len)?;
    if u16::from_le_bytes(mode) & TYPE == DIRECTORY {
        return Ok(());
    }
    Err(damaged("its root is no directory"))
}

/// Reads what must be there.
fn read(file: &File, buffer: &mut [u8], at: u64, len: u64) -> Result<()> {
    if at.saturating_add(buffer.len() as u64) > len {
        return Err(damaged(format_args!("it ends after {len} bytes")));
    }
    file.read_exact_at(buffer, at)
        .map_err(|e| Error::os("read image", e))
}

fn damaged(why: impl std::fmt::Display) -> Error {
    Error::invalid_argument(format_args!("layer is no whole EROFS image: {why}"))
}

fn foreign(what: impl std::fmt::Display) -> Error {
    Error::failed_precondition(format_args!(
        "layer is an EROFS image with {what}, which is not for this machine"
    ))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use types::Code;

    use super::*;
    use crate::apply::erofs::testing::image;

    fn checked(image: &[u8]) -> Result<()> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(image).unwrap();
        check(&file)
    }

    /// The image with other bytes at a place of its superblock, and the checksum that fits.
    fn with(image: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut image = image.to_vec();
        image[1024 + at..1024 + at + bytes.len()].copy_from_slice(bytes);
        image[1028..1032].fill(0);
        let sum = crc32c(&image[1024..4096]);
        image[1028..1032].copy_from_slice(&sum.to_le_bytes());
        image
    }

    #[test]
    fn what_mkfs_makes_passes_and_what_is_not_whole_does_not() {
        let good = image(|dir| std::fs::write(dir.join("f"), vec![b'x'; 9000]).unwrap());
        checked(&good).unwrap();
        // As many as there is no checksum for.
        checked(&with(&good, 8, &2_u32.to_le_bytes())).unwrap();
        let mut flipped = good.clone();
        flipped[2000] ^= 1;
        let bad = [
            ("nothing", Vec::new()),
            ("short", good[..1100].to_vec()),
            ("cut", good[..good.len() - 1].to_vec()),
            ("magic", with(&good, 0, b"x")),
            ("flipped", flipped),
            ("blocks", with(&good, 36, &u32::MAX.to_le_bytes())),
            ("no blocks", with(&good, 36, &[0; 4])),
            ("tiny blocks", with(&good, 12, &[0])),
            ("huge blocks", with(&good, 12, &[200])),
            ("devices", with(&good, 86, &[1, 0])),
            ("far root", with(&good, 14, &[0xff, 0xff])),
            ("far inodes", with(&good, 40, &u32::MAX.to_le_bytes())),
            // In front of the superblock, where there are zeroes.
            ("odd root", with(&good, 14, &[1, 0])),
        ];
        for (what, image) in bad {
            let error = checked(&image).expect_err(what);
            assert!(error.is(Code::InvalidArgument), "{what}: {error}");
        }
        let far = [("feature", with(&good, 80, &0x8000_u32.to_le_bytes()))];
        for (what, image) in far {
            let error = checked(&image).expect_err(what);
            assert!(error.is(Code::FailedPrecondition), "{what}: {error}");
        }
    }

    #[test]
    fn the_checksum_is_castagnolis() {
        // RFC 3720, B.4: 32 zeroes; there it is inverted.
        assert_eq!(!crc32c(&[0; 32]), 0x8a91_36aa);
    }
}
