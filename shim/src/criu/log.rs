//! What a log of CRIU says of its failure. No more than its end is read.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

/// Only the end of a log is of interest.
const LOG_TAIL: u64 = 64 * 1024;
/// Lines of a log that an error text shows: the cause stands first, what gave up because of it last.
const SHOWN: (usize, usize) = (3, 3);

/// The end of a log; `None` when there is none.
pub(super) fn tail(log: &Path) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))
        .ok()?;
    let mut text = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// The error lines of a log, without time and place; of many the first and the last.
pub(super) fn reasons(log: &str) -> Vec<String> {
    let mut all: Vec<&str> = log.lines().filter_map(reason).collect();
    all.dedup();
    let (first, last) = SHOWN;
    if all.len() > first + last {
        all.drain(first..all.len() - last);
    }
    all.into_iter().map(str::to_owned).collect()
}

/// What an error line says: `(00.0012)  7: Error (criu/vdso.c:381): vdso: Unexpected area bounds`.
fn reason(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once("Error (")?;
    let (_, text) = rest.split_once("): ")?;
    Some(text.trim()).filter(|text| !text.is_empty())
}

/// One of a failure.
#[cfg(test)]
pub(super) const LOG: &str = "(00.000068) Version: 3.17.1 (gitid 0)\n\
    (00.007000) Error (criu/vdso.c:381): vdso: Unexpected rt vDSO area bounds\n\
    (00.008000)      1: Error (criu/vdso.c:613): vdso: Failed to fill self vdso symtable\n\
    (00.009000) Warn  (criu/x.c:1): no error\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_lines_lose_time_and_place() {
        assert_eq!(
            reasons(LOG),
            [
                "vdso: Unexpected rt vDSO area bounds",
                "vdso: Failed to fill self vdso symtable"
            ]
        );
        let long: String = (0..9).map(|n| format!("Error (a.c:{n}): {n}\n")).collect();
        assert_eq!(reasons(&long), ["0", "1", "2", "6", "7", "8"]);
        for bad in ["", "Error", "Error (", "Error (x): ", "no error (x): y"] {
            assert!(reasons(bad).is_empty(), "{bad}");
        }
    }
}
