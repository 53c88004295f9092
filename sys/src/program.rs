//! The pages of the running program's code.

use std::path::Path;

use rustix::mm::{Advice, madvise};
use types::Result;

use crate::error::{at, op};

/// A mapping of code, as it is in its file.
#[derive(Debug, PartialEq, Eq)]
struct Code {
    begin: usize,
    length: usize,
    /// Bytes.
    resident: u64,
}

/// Lets go of the pages of this program's code; they come back from the page cache as they are needed.
/// Most of them only the start has needed, or nobody: around each page that is used the kernel maps
/// fifteen more that are at hand. What is not mapped it can take for something else. Returns how many
/// bytes were there; none where the code was changed, as debuggers do.
///
/// # Errors
/// The errno of reading what is mapped, or of unmapping.
///
/// Source: madvise(2), `proc_pid_smaps(5)`.
pub fn unmap_code() -> Result<u64> {
    const MAPS: &str = "/proc/self/smaps";
    const PROGRAM: &str = "/proc/self/exe";
    let program = std::fs::read_link(PROGRAM).map_err(|e| at("read", Path::new(PROGRAM), e))?;
    let maps = std::fs::read_to_string(MAPS).map_err(|e| at("read", Path::new(MAPS), e))?;
    let mut unmapped = 0;
    for code in code_of(&program, &maps) {
        let begin = std::ptr::without_provenance_mut(code.begin);
        // SAFETY: the mapping is of the running program's file, nobody can write to it, and no page of it
        // differs from the file: what is read there next is what was there.
        unsafe { madvise(begin, code.length, Advice::LinuxDontNeed) }
            .map_err(|e| op("unmap code", e))?;
        unmapped += code.resident;
    }
    Ok(unmapped)
}

/// The mappings of `program` that are executed and not changed, by the words of `smaps`.
fn code_of(program: &Path, smaps: &str) -> Vec<Code> {
    let mut lines = smaps.lines().peekable();
    let mut found = Vec::new();
    while let Some(head) = lines.next() {
        let mut sizes = [("Rss:", 0), ("Anonymous:", 0)];
        // A figure's name ends in a colon; a range of addresses does not.
        while let Some(line) = lines.next_if(|line| named(line).is_some()) {
            let (name, size) = named(line).unwrap_or_default();
            for wanted in sizes.iter_mut().filter(|wanted| wanted.0 == name) {
                wanted.1 = size;
            }
        }
        let [(_, resident), (_, changed)] = sizes;
        if let Some((begin, length)) = executed(program, head)
            && changed == 0
        {
            found.push(Code {
                begin,
                length,
                resident: resident << 10,
            });
        }
    }
    found
}

/// Name and number of a line that has them.
fn named(line: &str) -> Option<(&str, u64)> {
    let mut words = line.split_ascii_whitespace();
    let name = words.next().filter(|name| name.ends_with(':'))?;
    Some((name, words.next().and_then(|n| n.parse().ok()).unwrap_or(0)))
}

/// Begin and length of a mapping of `program` that is executed and cannot be written to.
fn executed(program: &Path, head: &str) -> Option<(usize, usize)> {
    // Range, permissions, offset, device, inode, and after some room the path.
    let mut words = head.splitn(6, ' ');
    let (begin, end) = words.next()?.split_once('-')?;
    let is_code = words.next()? == "r-xp";
    let path = words.nth(3)?.trim_start();
    if !is_code || Path::new(path) != program {
        return None;
    }
    let begin = usize::from_str_radix(begin, 16).ok()?;
    let end = usize::from_str_radix(end, 16).ok()?;
    Some((begin, end.checked_sub(begin)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
557e1000-557f2000 r--p 00000000 fe:00 1001                   /usr/bin/a program
Size:                 68 kB
Rss:                  60 kB
Anonymous:             0 kB
VmFlags: rd mr mw me sd
557f2000-55800000 r-xp 00011000 fe:00 1001                   /usr/bin/a program
Size:                 56 kB
Rss:                  40 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me sd
55800000-55801000 r-xp 0001f000 fe:00 1001                   /usr/bin/a program
Rss:                   4 kB
Anonymous:             4 kB
55802000-55803000 r-xp 00000000 fe:00 1002                   /usr/lib/libc.so.6
Rss:                   4 kB
Anonymous:             0 kB
7ffd1000-7ffd3000 r-xp 00000000 00:00 0                      [vdso]
Rss:                   4 kB
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
";

    #[test]
    fn only_unchanged_code_of_the_program_is_let_go() {
        let code = code_of(Path::new("/usr/bin/a program"), MAPS);
        let wanted = Code {
            begin: 0x557f_2000,
            length: 0xe000,
            resident: 40 << 10,
        };
        assert_eq!(code, [wanted]);
        assert_eq!(code_of(Path::new("/usr/bin/a"), MAPS), []);
        assert_eq!(code_of(Path::new("/usr/bin/a program"), "\n\nRss:"), []);
    }

    #[test]
    fn a_program_without_its_pages_runs_on() {
        let gone = unmap_code().unwrap();
        assert!(gone > 0);
        let text: String = (0..100_u32).map(|n| n.to_string()).collect();
        assert_eq!(text.len(), 190);
        // What runs here has been brought back, and no more than was there.
        assert!(unmap_code().unwrap() > 0);
    }
}
