//! Whether a file system in a file is whole, by the program that its makers have for that.
//!
//! Invariant: the file is only read; a program that is not there, or does not end, finds nothing.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use sys::process::{Spawn, Status};

/// Longest that one look may take.
const DEADLINE: Duration = Duration::from_secs(10 * 60);
/// What is kept of what is said.
const OUTPUT: usize = 64 * 1024;

/// A kind of file system that can be looked at.
struct Kind {
    /// Types as they are configured.
    types: &'static [&'static str],
    /// Where in the file it has its magic number, and that.
    magic: (u64, &'static [u8]),
    program: &'static str,
    args: &'static [&'static str],
    /// Whether exit code and text tell of errors.
    finds: fn(u8, &str) -> bool,
}

const KINDS: [Kind; 2] = [
    Kind {
        types: &["ext2", "ext3", "ext4"],
        magic: (1080, &[0x53, 0xef]),
        program: "e2fsck",
        args: &["-f", "-n"],
        // e2fsck(8): 4: errors left uncorrected; 8: it could not even begin, for which it has other reasons too.
        finds: |code, said| code & 4 != 0 || (code & 8 != 0 && said.contains("superblock")),
    },
    Kind {
        types: &["xfs"],
        magic: (0, b"XFSB"),
        program: "xfs_repair",
        args: &["-n", "-f"],
        // xfs_repair(8): with -n, 1 for a corruption.
        finds: |code, _| code == 1,
    },
];

/// What is wrong with the file system of type `fs_type` in `file`; an empty type is the one that it shows.
pub(super) fn flaw(file: &Path, fs_type: &str) -> Option<String> {
    let known = |kind: &&Kind| match fs_type {
        "" => has_magic(kind, file),
        given => kind.types.contains(&given),
    };
    let kind = KINDS.iter().find(known)?;
    if !has_magic(kind, file) {
        return Some(format!("{} is no {fs_type} any more", file.display()));
    }
    let program = Spawn::new(kind.program).args(kind.args).arg(file);
    let answer = match program.answer(&[], OUTPUT, DEADLINE) {
        Ok(answer) => answer,
        Err(error) => {
            tracing::debug!(%error, "file system is not looked at");
            return None;
        }
    };
    let Status::Exited(code) = answer.status else {
        return None;
    };
    let said = [answer.text, answer.errors].concat();
    if !(kind.finds)(code, &String::from_utf8_lossy(&said)) {
        return None;
    }
    Some(format!(
        "{} finds errors in {}",
        kind.program,
        file.display()
    ))
}

fn has_magic(kind: &Kind, file: &Path) -> bool {
    let (at, magic) = kind.magic;
    let mut found = vec![0; magic.len()];
    let read = File::open(file).and_then(|file| file.read_exact_at(&mut found, at));
    read.is_ok() && found == magic
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use super::*;
    use crate::testing::image;

    #[test]
    fn a_file_system_that_was_harmed_is_told_from_a_whole_one() {
        for (fs_type, mib, at) in [("ext4", 8, 0x410), ("ext4", 8, 0x1000), ("xfs", 320, 0x200)] {
            let temp = tempfile::tempdir().unwrap();
            let path = image(temp.path(), fs_type, mib, &["-q"]);
            for given in [fs_type, ""] {
                assert_eq!(flaw(&path, given), None, "{fs_type} as {given:?}");
            }
            // Not a type that anybody can look at here.
            assert_eq!(flaw(&path, "btrfs"), None);
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            file.write_all_at(&[0x5a; 16], at).unwrap();
            for given in [fs_type, ""] {
                let found = flaw(&path, given).expect(fs_type);
                assert!(found.contains("finds errors"), "{found}");
            }
            file.write_all_at(&[0; 2048], 0).unwrap();
            let found = flaw(&path, fs_type).expect(fs_type);
            assert!(found.contains("any more"), "{found}");
            assert_eq!(flaw(&path, ""), None);
        }
    }
}
