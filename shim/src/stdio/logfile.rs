//! A log file: bare output, or lines as the CRI defines them.
//!
//! ```text
//! output ─ format ─> pending ─ write ─> file
//!                       │ full disk: kept for a while, then dropped and counted
//!                       └─ space again: first a line that tells how much is missing
//! ```
//! Invariant: what a disk cannot take is kept within [`PATIENCE`] and counted after it; the writer is
//! never held up for longer. A file that was moved away is followed by a new one at the path.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use types::{Error, Result};

use crate::log;

/// How long output waits for a disk that takes nothing.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);
/// Between two attempts.
pub(crate) const RETRY: Duration = Duration::from_millis(200);
/// Longest piece of a line in the CRI format, as containerd has it.
const LONGEST_LINE: usize = 16 * 1024;

/// How output looks in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Bare,
    Cri,
}

/// Which stream a line belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tag {
    Stdout,
    Stderr,
}

impl Tag {
    fn text(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// The begun line of one stream.
#[derive(Debug, Default)]
pub(crate) struct Lines(Vec<u8>);

/// A log file that one or two streams write to.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    format: Format,
    file: File,
    /// Formatted and not yet taken by the disk; only while it takes nothing.
    pending: Vec<u8>,
    /// Bytes of output that it stands for.
    waiting: u64,
    /// Since when it takes nothing, and when it may be asked again.
    stuck: Option<Stuck>,
    /// Bytes of output that are missing and have not been told of.
    dropped: u64,
    /// The last byte in the file is the end of a line.
    whole_line: bool,
}

#[derive(Debug)]
struct Stuck {
    since: Instant,
    again: Instant,
    why: String,
    given_up: bool,
}

impl LogFile {
    /// Opens the file for appending; makes it and its directory.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no file, else the errno.
    pub(crate) fn open(path: &Path, format: Format) -> Result<Self> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)
                .map_err(|e| Error::os(format_args!("mkdir {}", parent.display()), e))?;
        }
        let file = open(path)?;
        Ok(Self {
            path: path.to_owned(),
            format,
            file,
            pending: Vec::new(),
            waiting: 0,
            stuck: None,
            dropped: 0,
            whole_line: true,
        })
    }

    /// Takes output of a stream.
    pub(crate) fn append(&mut self, lines: &mut Lines, tag: Tag, bytes: &[u8]) {
        let size = bytes.len() as u64;
        match self.format {
            Format::Bare => self.put(bytes, size),
            Format::Cri => {
                let mut text = Vec::with_capacity(bytes.len() + 256);
                lines.cut(&Heads::now(tag), bytes, &mut text);
                self.put(&text, size);
            }
        }
    }

    /// Takes the end of a stream: a line that was begun stays unfinished.
    pub(crate) fn finish(&mut self, lines: &mut Lines, tag: Tag) {
        let rest = std::mem::take(&mut lines.0);
        if !rest.is_empty() {
            let mut text = Vec::new();
            Heads::now(tag).partial(&[&rest], &mut text);
            self.put(&text, rest.len() as u64);
        }
    }

    /// True while there is something that the disk did not take and may still take in time.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.pending.is_empty()
    }

    /// True while something is to be written when the disk takes it again.
    pub(crate) fn owes(&self) -> bool {
        self.dropped > 0 || self.is_waiting()
    }

    /// Tries again; gives up what has waited too long.
    pub(crate) fn retry(&mut self) {
        if !self.owes()
            || self
                .stuck
                .as_ref()
                .is_some_and(|s| Instant::now() < s.again)
        {
            return;
        }
        self.flush();
        let now = Instant::now();
        let path = self.path.display();
        if let Some(stuck) = &mut self.stuck
            && !stuck.given_up
            && now.duration_since(stuck.since) >= PATIENCE
        {
            stuck.given_up = true;
            log::error(format_args!(
                "log {path} is not taken: output is dropped: {}",
                stuck.why
            ));
        }
        if self.stuck.as_ref().is_some_and(|stuck| stuck.given_up) {
            // Some of it may be in the file already.
            let left = std::mem::take(&mut self.pending).len() as u64;
            self.dropped += std::mem::take(&mut self.waiting).min(left);
        }
    }

    /// Opens the path anew.
    ///
    /// # Errors
    /// As [`LogFile::open`]; the old file stays in use.
    pub(crate) fn reopen(&mut self) -> Result<()> {
        let file = open(&self.path)?;
        self.flush();
        self.go_on_in(file);
        Ok(())
    }

    fn go_on_in(&mut self, file: File) {
        self.file = file;
        // The rest of an entry whose head is in the old file is none in the new one.
        if self.format == Format::Cri && !self.whole_line {
            let end = self.pending.iter().position(|byte| *byte == b'\n');
            let cut = end.map_or(self.pending.len(), |end| end + 1);
            self.pending.drain(..cut);
            let missing = self.waiting.min(cut as u64);
            self.dropped += missing;
            self.waiting -= missing;
        }
        self.whole_line = true;
    }

    /// There will be no more output: what is owed now or never.
    pub(crate) fn last_words(&mut self) {
        if self.owes() {
            self.flush();
        }
        if self.owes() {
            log::error(format_args!(
                "log {}: {} bytes of output are missing at its end",
                self.path.display(),
                self.dropped + self.waiting
            ));
        }
    }

    /// Writes or keeps or drops formatted output that stands for `size` bytes.
    fn put(&mut self, text: &[u8], size: u64) {
        if text.is_empty() {
            return;
        }
        self.follow();
        let given_up = self.stuck.as_ref().is_some_and(|stuck| stuck.given_up);
        if given_up {
            self.retry();
            if self.stuck.is_some() {
                self.dropped += size;
                return;
            }
        }
        if self.owes() {
            self.pending.extend_from_slice(text);
            self.waiting += size;
            self.retry();
            return;
        }
        let taken = self.write(text);
        if taken < text.len() {
            self.pending.extend_from_slice(&text[taken..]);
            self.waiting = size;
        }
    }

    /// Writes what is due, the loss first.
    fn flush(&mut self) {
        if self.dropped > 0 {
            let notice = self.notice();
            let taken = self.write(&notice);
            if taken < notice.len() {
                // Half a notice tells nothing: the next one begins on a line of its own.
                return;
            }
            log::warn(format_args!(
                "log {}: {} bytes of output are missing",
                self.path.display(),
                self.dropped
            ));
            self.dropped = 0;
        }
        if !self.pending.is_empty() {
            let pending = std::mem::take(&mut self.pending);
            let taken = self.write(&pending);
            self.pending = pending[taken..].to_vec();
            if self.pending.is_empty() {
                self.waiting = 0;
            }
        }
    }

    fn notice(&self) -> Vec<u8> {
        let why = self.stuck.as_ref().map_or("", |stuck| stuck.why.as_str());
        let text = format!(
            "[containerd-shim: {} bytes of output are missing here: {why}]",
            self.dropped
        );
        let mut notice = Vec::new();
        if !self.whole_line {
            notice.push(b'\n');
        }
        match self.format {
            Format::Bare => {
                notice.extend_from_slice(text.as_bytes());
                notice.push(b'\n');
            }
            Format::Cri => Heads::now(Tag::Stderr).full(&[text.as_bytes()], &mut notice),
        }
        notice
    }

    /// Writes as much as the disk takes, and notes when it does not.
    fn write(&mut self, bytes: &[u8]) -> usize {
        let mut done = 0;
        while done < bytes.len() {
            match self.file.write(&bytes[done..]) {
                Ok(0) => break,
                Ok(written) => {
                    done += written;
                    self.whole_line = bytes[done - 1] == b'\n';
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    self.note(&e);
                    return done;
                }
            }
        }
        self.stuck = None;
        done
    }

    fn note(&mut self, error: &io::Error) {
        let now = Instant::now();
        match &mut self.stuck {
            Some(stuck) => stuck.again = now + RETRY,
            None => {
                log::warn(format_args!("log {}: {error}", self.path.display()));
                self.stuck = Some(Stuck {
                    since: now,
                    again: now + RETRY,
                    why: error.to_string(),
                    given_up: false,
                });
            }
        }
    }

    /// Follows the path when the file was moved or removed. One look for each piece of output.
    fn follow(&mut self) {
        let here = self.file.metadata().map(|meta| (meta.dev(), meta.ino()));
        let there = self.path.metadata().map(|meta| (meta.dev(), meta.ino()));
        if let (Ok(here), there) = (here, there)
            && there.ok() != Some(here)
        {
            match open(&self.path) {
                Ok(file) => self.go_on_in(file),
                // A directory that is gone for a moment: the old file takes what comes.
                Err(error) => log::debug(format_args!("log {}: {error}", self.path.display())),
            }
        }
    }
}

/// Never waits: whatever is at the path, a fifo for one, must not hold up the shim.
fn open(path: &Path) -> Result<File> {
    let failed = |e| Error::os(format_args!("open {}", path.display()), e);
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o644)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(|e| match e.raw_os_error() {
            // A fifo that nobody reads, or a socket.
            Some(libc::ENXIO) => failed(e).reclass(types::Code::InvalidArgument),
            _ => failed(e),
        })?;
    let kind = file.metadata().map_err(failed)?.file_type();
    if kind.is_file() || kind.is_char_device() {
        Ok(file)
    } else {
        Err(Error::invalid_argument(format_args!(
            "log {} is no file",
            path.display()
        )))
    }
}

impl Lines {
    /// Cuts output into entries; what is left of an unfinished line waits for its end.
    fn cut(&mut self, heads: &Heads, mut bytes: &[u8], out: &mut Vec<u8>) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let line = self.long(heads, &bytes[..end], out);
            heads.full(&[&self.0, line], out);
            self.0.clear();
            bytes = &bytes[end + 1..];
        }
        let rest = self.long(heads, bytes, out);
        self.0.extend_from_slice(rest);
    }

    /// Cuts pieces off a line that is too long; returns the rest of it that is not yet in the begun one.
    fn long<'a>(&mut self, heads: &Heads, mut bytes: &'a [u8], out: &mut Vec<u8>) -> &'a [u8] {
        while self.0.len() + bytes.len() > LONGEST_LINE {
            let (piece, rest) = bytes.split_at(LONGEST_LINE - self.0.len());
            heads.partial(&[&self.0, piece], out);
            self.0.clear();
            bytes = rest;
        }
        bytes
    }
}

/// What entries of one stream and one moment begin with: `<time> <stream> <F or P> `.
struct Heads {
    full: String,
    partial: String,
}

impl Heads {
    fn now(tag: Tag) -> Self {
        Self::at(tag, SystemTime::now())
    }

    fn at(tag: Tag, at: SystemTime) -> Self {
        let (at, stream) = (log::rfc3339(at), tag.text());
        Self {
            full: format!("{at} {stream} F "),
            partial: format!("{at} {stream} P "),
        }
    }

    /// An entry of a whole line, or the end of one.
    fn full(&self, text: &[&[u8]], out: &mut Vec<u8>) {
        entry(&self.full, text, out);
    }

    /// An entry of a piece of a line.
    fn partial(&self, text: &[&[u8]], out: &mut Vec<u8>) {
        entry(&self.partial, text, out);
    }
}

fn entry(head: &str, text: &[&[u8]], out: &mut Vec<u8>) {
    out.extend_from_slice(head.as_bytes());
    for part in text {
        out.extend_from_slice(part);
    }
    out.push(b'\n');
}

#[cfg(test)]
mod tests;
