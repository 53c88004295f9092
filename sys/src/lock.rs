//! Who holds a lock.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;

/// The process that holds a flock(2) of this file, as `/proc/locks` has it: `, process 12 (containerd)`, or
/// nothing where the kernel does not tell. For the message to whoever did not get it.
#[must_use]
pub fn holder(file: &File) -> String {
    let Ok(facts) = file.metadata() else {
        return String::new();
    };
    let (major, minor) = (libc::major(facts.dev()), libc::minor(facts.dev()));
    let place = format!("{major:02x}:{minor:02x}:{}", facts.ino());
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let Some(pid) = held_by(&locks, &place) else {
        return String::new();
    };
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!(", process {pid} ({})", name.trim_end())
}

/// See proc(5): `1: FLOCK  ADVISORY  WRITE 12 08:01:34 0 EOF`, with `->` for those that wait.
fn held_by(locks: &str, place: &str) -> Option<u32> {
    locks.lines().find_map(|line| {
        let words: Vec<_> = line.split_ascii_whitespace().collect();
        match words[..] {
            [_, "FLOCK", _, _, pid, at, ..] if at == place => pid.parse().ok(),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_who_has_it_and_not_who_waits() {
        let locks = "\
1: POSIX  ADVISORY  WRITE 7 fe:00:99 0 EOF
2: FLOCK  ADVISORY  WRITE 12 fe:00:99 0 EOF
2: -> FLOCK  ADVISORY  WRITE 13 fe:00:99 0 EOF
3: FLOCK  ADVISORY  WRITE -1 fe:00:98 0 EOF
";
        assert_eq!(held_by(locks, "fe:00:99"), Some(12));
        assert_eq!(held_by(locks, "fe:00:98"), None);
        assert_eq!(held_by(locks, "fe:00:97"), None);
    }

    #[test]
    fn this_process_is_named() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(holder(&file), "");
        file.try_lock().unwrap();
        let told = holder(&file);
        let me = format!(", process {} (", std::process::id());
        assert!(told.starts_with(&me), "{told}");
    }
}
