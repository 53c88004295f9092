//! The names of a directory in order, some at a time.
//!
//! In no file system do names come in order, and a directory holds as many as its owner likes: what does
//! not fit is left, and read again when the names before it are done.
//!
//! Invariant: what all levels of a walk hold together is bounded, but for [`LEAST`] of each.

use std::os::fd::AsFd;

use rustix::io::Errno;

use crate::root::each_name;

/// Bytes of names that a walk may hold.
const ROOM: usize = 16 << 20;
/// Bytes that each directory may hold in any case.
const LEAST: usize = 64 << 10;
/// Bytes that a name takes besides its own.
const EACH: usize = 40;

/// How much room the names of a walk take.
#[derive(Debug, Default)]
pub(super) struct Room(usize);

/// Names of one directory.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// The next ones, last first.
    next: Vec<Vec<u8>>,
    /// Those after this one were left.
    left_after: Option<Vec<u8>>,
}

impl Names {
    /// The next name. None when those at hand are done: [`Names::is_done`].
    pub(super) fn next(&mut self, room: &mut Room) -> Option<Vec<u8>> {
        let name = self.next.pop()?;
        room.0 -= size(&name);
        Some(name)
    }

    /// True when there is no other name.
    pub(super) fn is_done(&self) -> bool {
        self.next.is_empty() && self.left_after.is_none()
    }

    /// Reads the first names of directories, or those that were left.
    ///
    /// # Errors
    /// Those of reading them.
    pub(super) fn read<D: AsFd>(
        &mut self,
        directories: impl IntoIterator<Item = D>,
        room: &mut Room,
    ) -> Result<(), Errno> {
        // Half of what is left: there are levels below.
        let most = LEAST.max(ROOM.saturating_sub(room.0) / 2);
        let after = self.left_after.take();
        let mut found = Smallest {
            names: Vec::new(),
            bytes: 0,
            most,
            last: None,
        };
        for directory in directories {
            each_name(directory, |name| {
                if after.as_deref().is_none_or(|after| name > after) {
                    found.add(name);
                }
                Ok(())
            })?;
        }
        found.cut();
        found.names.reverse();
        room.0 += found.bytes;
        self.next = found.names;
        self.left_after = found.last;
        Ok(())
    }
}

fn size(name: &[u8]) -> usize {
    name.len() + EACH
}

/// The smallest names that fit, each of them once.
struct Smallest {
    names: Vec<Vec<u8>>,
    bytes: usize,
    most: usize,
    /// What comes after this one did not fit, and does not.
    last: Option<Vec<u8>>,
}

impl Smallest {
    fn add(&mut self, name: &[u8]) {
        if self.last.as_deref().is_some_and(|last| name > last) {
            return;
        }
        self.names.push(name.to_vec());
        self.bytes += size(name);
        // Twice as many, so that what is cut pays for the sorting.
        if self.bytes > 2 * self.most {
            self.cut();
        }
    }

    fn cut(&mut self) {
        self.names.sort_unstable();
        self.names.dedup();
        self.bytes = 0;
        let mut fits = |name: &Vec<u8>| {
            let before = self.bytes;
            self.bytes += size(name);
            // One at least, or there would be no end.
            let fits = before == 0 || self.bytes <= self.most;
            if !fits {
                self.bytes = before;
            }
            fits
        };
        let count = self.names.iter().take_while(|name| fits(name)).count();
        if count < self.names.len() {
            self.names.truncate(count);
            self.last = self.names.last().cloned();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn files(names: &[String]) -> tempfile::TempDir {
        let temp = tempfile::tempdir().unwrap();
        for name in names {
            std::fs::write(temp.path().join(name), "").unwrap();
        }
        temp
    }

    #[test]
    fn names_come_in_order_and_once_however_little_fits() {
        let long = "x".repeat(200);
        let all: Vec<_> = (0..600_u32)
            .map(|n| format!("{:08x}-{long}", n.wrapping_mul(2_654_435_761)))
            .collect();
        let (one, two) = (files(&all[..400]), files(&all[200..]));
        let open = |dir: &tempfile::TempDir| std::fs::File::open(dir.path()).unwrap();
        let both = [open(&one), open(&two)];
        let want: BTreeSet<_> = all.iter().map(|name| name.clone().into_bytes()).collect();
        let want: Vec<_> = want.into_iter().collect();
        // All of the room, and none: what each directory has in any case.
        for used in [0, ROOM, 2 * ROOM] {
            let mut room = Room(used);
            let mut names = Names::default();
            let (mut found, mut reads) = (Vec::new(), 0);
            loop {
                names.read(&both, &mut room).unwrap();
                reads += 1;
                assert!(used == 0 || room.0 - used <= LEAST, "{} bytes", room.0);
                while let Some(name) = names.next(&mut room) {
                    found.push(name);
                }
                if names.is_done() {
                    break;
                }
            }
            assert!(found == want, "{} names of {}", found.len(), want.len());
            assert_eq!(room.0, used);
            assert_eq!(reads > 1, used > 0, "{reads} times");
        }
    }

    #[test]
    fn a_directory_without_names_is_done_at_once() {
        let none = std::fs::File::open(files(&[]).path()).unwrap();
        let mut names = Names::default();
        names.read([&none], &mut Room::default()).unwrap();
        assert!(names.is_done() && names.next(&mut Room::default()).is_none());
    }
}
