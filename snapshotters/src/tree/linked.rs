//! Inodes with several names, as long as not all of them have been met.
//!
//! Invariant: what is forgotten was met under its last name; what is remembered has a ceiling.

use std::collections::HashMap;

use rustix::fs::{FileType, Stat};
use types::{Error, Result};

/// Most inodes that wait for further names: as many as a layer may have entries. Seventeen bytes for each
/// in a table that may be half empty, where four are noted of them.
const MOST: usize = 4_000_000;

/// What goes with each of them.
#[derive(Debug)]
pub(crate) struct Linked<T> {
    /// By device, of which a tree has one or two, and inode.
    devices: Vec<(u64, HashMap<u64, Waiting<T>>)>,
    waiting: usize,
    most: usize,
}

#[derive(Debug)]
struct Waiting<T> {
    noted: T,
    /// Names that were not met.
    left: u32,
}

impl<T> Default for Linked<T> {
    fn default() -> Self {
        Self {
            devices: Vec::new(),
            waiting: 0,
            most: MOST,
        }
    }
}

/// One that can have several names, and has.
fn key(facts: &Stat) -> Option<(u64, u64)> {
    let is_directory = FileType::from_raw_mode(facts.st_mode) == FileType::Directory;
    (facts.st_nlink > 1 && !is_directory).then_some((facts.st_dev, facts.st_ino))
}

impl<T: Copy> Linked<T> {
    /// True when none is remembered.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// What was noted when the inode was met first; nothing when this is the first time.
    pub(crate) fn again(&mut self, facts: &Stat) -> Option<T> {
        let (device, inode) = key(facts)?;
        let (_, inodes) = self.devices.iter_mut().find(|of| of.0 == device)?;
        let found = inodes.get_mut(&inode)?;
        let noted = found.noted;
        found.left -= 1;
        if found.left == 0 {
            inodes.remove(&inode);
            self.waiting -= 1;
        }
        Some(noted)
    }

    /// Notes something about an inode that is met for the first time, if it has further names.
    ///
    /// # Errors
    /// `ResourceExhausted` when too many wait.
    pub(crate) fn first(&mut self, facts: &Stat, noted: T) -> Result<()> {
        let Some((device, inode)) = key(facts) else {
            return Ok(());
        };
        if self.waiting >= self.most {
            return Err(Error::resource_exhausted(format_args!(
                "more than {} hard-linked files have further names that were not met",
                self.most
            )));
        }
        let left = u32::try_from(facts.st_nlink).unwrap_or(u32::MAX) - 1;
        let at = self.devices.iter().position(|of| of.0 == device);
        let at = at.unwrap_or_else(|| {
            self.devices.push((device, HashMap::new()));
            self.devices.len() - 1
        });
        let before = self.devices[at].1.insert(inode, Waiting { noted, left });
        self.waiting += usize::from(before.is_none());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_is_forgotten_with_its_last_name_and_too_many_are_refused() {
        let temp = tempfile::tempdir().unwrap();
        let path = |name: &str| temp.path().join(name);
        let made = |name: &str, links: usize| {
            std::fs::write(path(name), "").unwrap();
            for n in 1..links {
                std::fs::hard_link(path(name), path(&format!("{name}{n}"))).unwrap();
            }
            rustix::fs::stat(path(name)).unwrap()
        };
        let mut linked = Linked {
            most: 1,
            ..Linked::default()
        };
        let [alone, three, two] = [made("a", 1), made("b", 3), made("c", 2)];
        assert_eq!(linked.again(&alone), None);
        linked.first(&alone, 'a').unwrap();
        linked.first(&three, 'b').unwrap();
        let error = linked.first(&two, 'c').unwrap_err();
        assert!(error.is(types::Code::ResourceExhausted), "{error}");
        assert_eq!(linked.again(&three), Some('b'));
        assert_eq!(linked.again(&three), Some('b'));
        assert!(linked.is_empty());
        linked.first(&two, 'c').unwrap();
        assert_eq!(linked.again(&two), Some('c'));
        let directory = rustix::fs::stat(temp.path()).unwrap();
        linked.first(&directory, 'd').unwrap();
        assert!(linked.is_empty());
    }

    #[test]
    fn inodes_of_one_number_on_two_devices_are_two() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("a"), "").unwrap();
        std::fs::hard_link(temp.path().join("a"), temp.path().join("b")).unwrap();
        let one = rustix::fs::stat(temp.path().join("a")).unwrap();
        let mut other = one;
        other.st_dev += 1;
        let mut linked = Linked::default();
        linked.first(&one, 'a').unwrap();
        assert_eq!(linked.again(&other), None);
        linked.first(&other, 'b').unwrap();
        assert_eq!(linked.again(&one), Some('a'));
        assert_eq!(linked.again(&other), Some('b'));
        assert!(linked.is_empty());
    }

    #[test]
    fn as_many_inodes_may_wait_as_a_layer_has_entries_in_little_memory() {
        type Noted = Waiting<u32>;
        assert!(size_of::<(u64, Noted)>() == 16 && MOST >= 4_000_000);
    }
}
