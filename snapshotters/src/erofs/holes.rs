//! How much larger than a layer its image would be: `mkfs.erofs` fills holes.
//!
//! Holes are no sign of malice: unpacking makes them of zeroes that an archive stores. A layer that has more
//! of them than of anything else is compressed, so that they take next to nothing.
//!
//! Invariant: what is refused has not been begun.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use types::{Error, Result};

use crate::tree::{self, Entry, Failure, Linked, Visitor, at};

/// Bytes of holes that are filled without a thought: a disk has room for so much.
const UNSUSPECTED: u64 = 1 << 30;
/// Most bytes of holes in a layer that has less data than that: five minutes of compressing zeroes. Archives
/// of few bytes do not have more zeroes either.
const MOST: u64 = 64 << 30;
/// Most of them that are filled where images cannot be compressed.
const MOST_FILLED: u64 = 16 << 30;
/// Where the kernel says that it reads compressed images.
const COMPRESSED: &str = "/sys/fs/erofs/features/zero_padding";

/// How an image is made of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filling {
    /// Holes are stored.
    Stored,
    /// Everything is compressed.
    Compressed {
        /// Where that cannot be, holes are stored.
        or_stored: bool,
    },
}

/// Looks at the holes of a layer.
///
/// # Errors
/// `ResourceExhausted` when they are too many; I/O.
pub(super) fn look(layer: &Path) -> Result<Filling> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = rustix::fs::open(layer, flags, Mode::empty()).map_err(|e| at("open", layer, e))?;
    let mut sum = Sum::default();
    tree::walk(&top, layer, "look for holes in", &mut sum)?;
    sum.filling(Path::new(COMPRESSED).exists())
}

/// Bytes of all files, and how many of them are holes.
#[derive(Debug, Default)]
struct Sum {
    all: u64,
    holes: u64,
    linked: Linked<()>,
}

impl Sum {
    fn filling(&self, can_compress: bool) -> Result<Filling> {
        let stored = self.all.saturating_sub(self.holes);
        if self.holes <= stored.max(UNSUSPECTED) {
            return Ok(Filling::Stored);
        }
        let or_stored = self.holes <= MOST_FILLED;
        match (can_compress, or_stored) {
            (true, _) if self.holes <= MOST => Ok(Filling::Compressed { or_stored }),
            (false, true) => Ok(Filling::Stored),
            _ => Err(Error::resource_exhausted(format_args!(
                "files of layer have {} bytes of holes and {stored} bytes of data: of such a layer \
                 an erofs image may have {} bytes of holes",
                self.holes,
                if can_compress { MOST } else { MOST_FILLED }
            ))),
        }
    }
}

impl Visitor for Sum {
    type Kept = ();

    fn enter(&mut self, _: BorrowedFd<'_>, _: &[u8], _: Option<&()>) -> Result<(), Failure> {
        Ok(())
    }

    fn entry(&mut self, (): &mut (), entry: Entry<'_>) -> Result<(), Failure> {
        let facts = entry.facts;
        let is_file = FileType::from_raw_mode(facts.st_mode) == FileType::RegularFile;
        if !is_file || self.linked.again(facts).is_some() {
            return Ok(());
        }
        self.linked.first(facts, ())?;
        let number = |value| u64::try_from(value).unwrap_or(0);
        let len = number(facts.st_size);
        self.all = self.all.saturating_add(len);
        if number(facts.st_blocks) * 512 < len {
            // It may be compressed, or all of it in its inode.
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = rustix::fs::openat(entry.dir, entry.name, flags, Mode::empty())?;
            self.holes = self.holes.saturating_add(len.saturating_sub(data(&file)?));
        }
        Ok(())
    }
}

/// Bytes of a file that are in no hole.
fn data(file: &OwnedFd) -> Result<u64, Errno> {
    let (mut at, mut sum) = (0, 0);
    loop {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => return Ok(sum),
            start => start?,
        };
        at = rustix::fs::seek(file, SeekFrom::Hole(start))?;
        sum += at - start;
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn holes_are_those_of_all_files_and_of_each_once() {
        const PIECE: u64 = 1 << 20;
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir(temp.path().join("d")).unwrap();
        let made = |name: &str, len, data: &[u64]| {
            let file = File::create(temp.path().join(name)).unwrap();
            file.set_len(len).unwrap();
            for at in data {
                file.write_all_at(&vec![b'x'; 1 << 20], *at).unwrap();
            }
        };
        made("d/f", 8 * PIECE, &[0, 5 * PIECE]);
        std::fs::hard_link(temp.path().join("d/f"), temp.path().join("link")).unwrap();
        made("whole", PIECE, &[0]);
        std::fs::write(temp.path().join("short"), "x").unwrap();
        let top = sys::fs::open_dir(temp.path()).unwrap();
        let mut sum = Sum::default();
        tree::walk(&top, temp.path(), "sum", &mut sum).unwrap();
        assert_eq!((sum.all, sum.holes), (9 * PIECE + 1, 6 * PIECE));
    }

    #[test]
    fn the_more_holes_a_layer_has_the_less_they_may_take() {
        let filling = |holes: u64, data, can_compress| {
            let sum = Sum {
                all: holes + data,
                holes,
                ..Sum::default()
            };
            sum.filling(can_compress)
        };
        for can_compress in [true, false] {
            // Little, or no more than there is data.
            for (holes, data) in [(UNSUSPECTED, 0), (MOST + 1, MOST + 1)] {
                let found = filling(holes, data, can_compress).unwrap();
                assert_eq!(found, Filling::Stored);
            }
        }
        let compressed = |or_stored| Filling::Compressed { or_stored };
        assert_eq!(
            filling(UNSUSPECTED + 1, UNSUSPECTED, true).unwrap(),
            compressed(true)
        );
        assert_eq!(filling(MOST, 0, true).unwrap(), compressed(false));
        assert_eq!(filling(MOST_FILLED, 0, false).unwrap(), Filling::Stored);
        for (holes, can_compress) in [(MOST + 1, true), (MOST_FILLED + 1, false)] {
            let error = filling(holes, MOST_FILLED, can_compress).unwrap_err();
            assert!(error.is(types::Code::ResourceExhausted), "{error}");
        }
    }
}
