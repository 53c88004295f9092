//! Formats, rotation, and disks that take nothing.

use super::*;
use proptest::prelude::*;
use std::os::unix::fs::symlink;

const AT: SystemTime = SystemTime::UNIX_EPOCH;
const HEAD: &str = "1970-01-01T00:00:00.000000000Z stdout";

fn paused<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(work)
}

fn cut(pieces: &[&[u8]]) -> String {
    let (mut lines, mut out) = (Lines::default(), Vec::new());
    let heads = Heads::at(Tag::Stdout, AT);
    for piece in pieces {
        lines.cut(&heads, piece, &mut out);
    }
    String::from_utf8(out).unwrap()
}

#[test]
fn output_becomes_lines_with_time_stream_and_mark() {
    assert_eq!(
        cut(&[b"one\ntw", b"o\n\nth"]),
        format!("{HEAD} F one\n{HEAD} F two\n{HEAD} F \n")
    );
    let long = vec![b'x'; 2 * LONGEST_LINE + 3];
    let text = cut(&[&long, b"\n"]);
    let x = "x".repeat(LONGEST_LINE);
    assert_eq!(text, format!("{HEAD} P {x}\n{HEAD} P {x}\n{HEAD} F xxx\n"));
}

proptest! {
    #[test]
    fn no_byte_is_lost_however_output_is_cut(
        bytes in proptest::collection::vec(prop_oneof![4 => any::<u8>(), 1 => Just(b'\n')], 0..4000),
        cuts in proptest::collection::vec(1..700_usize, 1..40),
    ) {
        let (mut lines, mut out) = (Lines::default(), Vec::new());
        let heads = Heads::at(Tag::Stdout, AT);
        let (mut rest, mut cuts) = (&bytes[..], cuts.iter().cycle());
        while !rest.is_empty() {
            let (piece, left) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
            lines.cut(&heads, piece, &mut out);
            rest = left;
        }
        let mut joined = Vec::new();
        for line in out.split_inclusive(|byte| *byte == b'\n') {
            let text = line.strip_suffix(b"\n").unwrap();
            let text = text.strip_prefix(HEAD.as_bytes()).unwrap();
            joined.extend_from_slice(&text[3..]);
            if text[1] == b'F' {
                joined.push(b'\n');
            }
        }
        joined.extend_from_slice(&lines.0);
        prop_assert_eq!(joined, bytes);
    }
}

#[test]
fn an_unfinished_line_is_there_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new/dir/log");
    let mut file = LogFile::open(&path, Format::Cri).unwrap();
    let (mut out, mut err) = (Lines::default(), Lines::default());
    file.append(&mut out, Tag::Stdout, b"half");
    file.append(&mut err, Tag::Stderr, b"whole\n");
    file.finish(&mut out, Tag::Stdout);
    file.finish(&mut err, Tag::Stderr);
    let text = std::fs::read_to_string(&path).unwrap();
    let ends: Vec<_> = text
        .lines()
        .map(|line| line.split_once(' ').unwrap().1)
        .collect();
    assert_eq!(ends, ["stderr F whole", "stdout P half"]);
}

#[test]
fn a_moved_file_is_followed_by_a_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let (path, old) = (dir.path().join("log"), dir.path().join("log.1"));
    let mut file = LogFile::open(&path, Format::Bare).unwrap();
    let mut lines = Lines::default();
    file.append(&mut lines, Tag::Stdout, b"one ");
    std::fs::rename(&path, &old).unwrap();
    file.append(&mut lines, Tag::Stdout, b"two ");
    std::fs::remove_file(&path).unwrap();
    file.append(&mut lines, Tag::Stdout, b"three ");
    std::fs::rename(&path, dir.path().join("log.2")).unwrap();
    file.reopen().unwrap();
    assert!(path.exists());
    assert_eq!(std::fs::read(old).unwrap(), b"one ");
    assert_eq!(std::fs::read(dir.path().join("log.2")).unwrap(), b"three ");
}

/// A log whose disk takes nothing until the test lets it.
struct Full {
    dir: tempfile::TempDir,
    path: PathBuf,
    file: LogFile,
    lines: Lines,
}

impl Full {
    fn new(format: Format) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        symlink("/dev/full", &path).unwrap();
        let file = LogFile::open(&path, format).unwrap();
        Self {
            dir,
            path,
            file,
            lines: Lines::default(),
        }
    }

    fn say(&mut self, text: &[u8]) {
        self.file.append(&mut self.lines, Tag::Stdout, text);
    }

    /// The path leads to a disk with space now.
    fn make_room(&mut self) {
        let link = self.dir.path().join("link");
        symlink(self.dir.path().join("real"), &link).unwrap();
        std::fs::rename(link, &self.path).unwrap();
        self.file.follow();
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("real")).unwrap()
    }
}

#[test]
fn a_disk_that_is_full_for_a_moment_loses_nothing() {
    paused(async {
        let mut full = Full::new(Format::Bare);
        full.say(b"one\n");
        assert!(full.file.is_waiting());
        full.say(b"two\n");
        tokio::time::advance(RETRY).await;
        full.file.retry();
        assert!(full.file.is_waiting());
        full.make_room();
        tokio::time::advance(RETRY).await;
        full.file.retry();
        assert!(!full.file.owes());
        assert_eq!(full.text(), "one\ntwo\n");
    });
}

#[test]
fn what_cannot_wait_longer_is_counted_and_told() {
    for (format, head) in [(Format::Bare, ""), (Format::Cri, "stderr F ")] {
        paused(async {
            let mut full = Full::new(format);
            full.say(b"lost\n");
            tokio::time::advance(PATIENCE).await;
            full.file.retry();
            assert!(!full.file.is_waiting() && full.file.owes());
            // From here on nobody waits.
            full.say(b"lost too\n");
            assert!(!full.file.is_waiting());
            full.make_room();
            tokio::time::advance(RETRY).await;
            full.file.retry();
            assert!(!full.file.owes());
            full.say(b"kept\n");
            let text = full.text();
            let (first, second) = text.trim_end().split_once('\n').unwrap();
            let want = "[containerd-shim: 14 bytes of output are missing here: \
                        No space left on device (os error 28)]";
            assert!(first.ends_with(&format!("{head}{want}")), "{text}");
            assert!(second.ends_with("kept"), "{text}");
        });
    }
}

#[test]
fn what_is_no_file_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    sys::fifo::Fifo::make(&fifo, 0o600).unwrap();
    // With and without somebody who reads it: neither may hold up the shim.
    for reader in [false, true] {
        let _reader = reader.then(|| {
            let fifo = sys::fifo::Fifo::find(&fifo).unwrap();
            fifo.open_nonblocking(sys::fifo::End::Both).unwrap()
        });
        let error = LogFile::open(&fifo, Format::Bare).unwrap_err();
        assert!(error.is(types::Code::InvalidArgument), "{error}");
    }
    let path = dir.path().join("log");
    let mut file = LogFile::open(&path, Format::Bare).unwrap();
    std::fs::rename(&fifo, &path).unwrap();
    file.reopen().unwrap_err();
}

#[test]
fn an_entry_is_never_torn_by_a_rotation() {
    paused(async {
        let mut full = Full::new(Format::Cri);
        full.say(b"torn\nwhole\n");
        // As if the disk had taken the head of the first entry.
        full.file.pending.drain(..10);
        full.file.whole_line = false;
        full.make_room();
        tokio::time::advance(RETRY).await;
        full.file.retry();
        assert!(!full.file.owes());
        let text = full.text();
        let (notice, rest) = text.trim_end().split_once('\n').unwrap();
        assert!(notice.contains(" stderr F [containerd-shim: "), "{text}");
        assert!(rest.ends_with(" stdout F whole"), "{text}");
    });
}
