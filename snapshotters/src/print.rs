//! What a committed layer must look like: a number over the facts of all its files.
//!
//! It is taken at the commit, beside the usage and in the same walk, and again when somebody asks whether
//! the layer is still whole. It notices files that are gone, cut short, new, or have other owners, modes or
//! times; it does not read data, so it does not notice a flipped bit.
//!
//! Invariant: the same tree has the same number on every machine, by every version and in whatever order
//! its entries are listed: the number is on disk.

use std::ffi::CStr;

use rustix::fs::{FileType, Stat};

/// Of FNV-1a.
const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0100_0000_01b3;

/// The number of a tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Print(u64);

impl Print {
    /// As it is kept.
    pub(crate) fn number(self) -> u64 {
        self.0
    }

    /// Adds the entry `name` of the directory `parent`.
    pub(crate) fn add(&mut self, parent: &[u8], name: &CStr, facts: &Stat) {
        let mut hash = fnv(OFFSET, parent);
        hash = fnv(hash, b"/");
        hash = fnv(hash, name.to_bytes_with_nul());
        for number in [
            u64::from(facts.st_mode),
            u64::from(facts.st_uid),
            u64::from(facts.st_gid),
        ] {
            hash = fnv(hash, &number.to_le_bytes());
        }
        // A directory's length is the file system's affair, and its time is changed by the mount point
        // that somebody makes below.
        if FileType::from_raw_mode(facts.st_mode) != FileType::Directory {
            hash = fnv(hash, &facts.st_rdev.to_le_bytes());
            hash = fnv(hash, &facts.st_size.to_le_bytes());
            hash = fnv(hash, &facts.st_mtime.to_le_bytes());
            hash = fnv(hash, &facts.st_mtime_nsec.to_le_bytes());
        }
        // A sum has no order.
        self.0 = self.0.wrapping_add(mixed(hash));
    }
}

fn fnv(hash: u64, bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(PRIME);
    bytes.iter().fold(hash, step)
}

/// Every bit depends on all of them (splitmix64's end).
fn mixed(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, chown};
    use std::path::Path;
    use std::time::{Duration, SystemTime};

    use crate::tree;

    /// A tree whose times do not depend on the clock.
    fn make(root: &Path, names: &[&str]) {
        fs::create_dir_all(root.join("dir")).unwrap();
        for name in names {
            fs::write(root.join(name), "some text").unwrap();
            touch(&root.join(name), 1_000_000_000);
        }
    }

    fn touch(path: &Path, second: u64) {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        let file = fs::File::options().append(true).open(path).unwrap();
        file.set_modified(time).unwrap();
    }

    fn print(root: &Path) -> u64 {
        tree::measure(root).unwrap().1.number()
    }

    #[test]
    fn equal_trees_have_equal_prints_in_whatever_order_they_were_made() {
        let temp = tempfile::tempdir().unwrap();
        let names = ["a", "dir/b", "c", "dir/d"];
        make(&temp.path().join("one"), &names);
        let backwards: Vec<_> = names.iter().rev().copied().collect();
        make(&temp.path().join("other"), &backwards);
        let one = print(&temp.path().join("one"));
        assert_eq!(one, print(&temp.path().join("other")));
        // On disk: another number for the same tree would condemn every layer that there is.
        make(&temp.path().join("fixed"), &["a"]);
        for path in ["fixed", "fixed/dir", "fixed/a"] {
            let path = temp.path().join(path);
            let mode = if path.is_dir() { 0o755 } else { 0o644 };
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        // Owners differ by who runs the test.
        if rustix::process::geteuid().is_root() && rustix::process::getegid().is_root() {
            assert_eq!(
                print(&temp.path().join("fixed")),
                10_634_880_074_631_315_246
            );
        }
    }

    #[test]
    fn every_change_but_that_of_data_is_noticed() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path();
        make(root, &["a", "dir/b"]);
        let mut known = vec![print(root)];
        let mut changed = |what: &str| {
            let now = print(root);
            assert!(!known.contains(&now), "{what}");
            known.push(now);
        };
        fs::write(root.join("a"), "").unwrap();
        touch(&root.join("a"), 1_000_000_000);
        changed("cut short");
        touch(&root.join("a"), 1_000_000_001);
        changed("another time");
        fs::set_permissions(root.join("dir"), fs::Permissions::from_mode(0o711)).unwrap();
        changed("another mode");
        fs::rename(root.join("a"), root.join("dir/a")).unwrap();
        changed("another place");
        fs::remove_file(root.join("dir/b")).unwrap();
        changed("gone");
        if rustix::process::geteuid().is_root() {
            chown(root.join("dir/a"), Some(1), None).unwrap();
            changed("another owner");
        }
    }
}
