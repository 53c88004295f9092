//! An EROFS image made of an archive by `mkfs.erofs`, without files in between.
//!
//! ```text
//!   chunks -> tar reader (ceilings, what is declined) -> pipe -> mkfs.erofs --tar=f -> image
//!                                                                   `- watched: does it go on?
//! ```
//! Invariant: what reaches the program has been read as an archive by our own reader, entry by entry, and is
//! within the ceilings; the program has ended, and was reaped, when the call returns.

use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{BufRead, ErrorKind, Read, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sys::process::{Child, Spawn, Status};
use types::{Code, Error, Result};

use crate::extract::{Limits, WHITEOUT};
use crate::root::MAX_NAME;
use crate::seen::Seen;
use crate::stream::Source;
use crate::tar::{Entry, Kind, Reader};
use crate::work::Stop;

/// How long it may take to say what it can.
const HELP: Duration = Duration::from_secs(10);
/// What is kept of what it says.
const OUTPUT: usize = 64 * 1024;
/// How long it may neither read nor write anything.
const SILENCE: Duration = Duration::from_secs(120);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);

/// True when `program` makes images of archives: erofs-utils of 1.7 and later.
pub(super) fn packs_archives(program: &Path) -> bool {
    let help = Spawn::new(program).arg("--help").answer(&[], OUTPUT, HELP);
    match help {
        Ok(help) => [help.text, help.errors]
            .iter()
            .any(|said| said.windows(6).any(|word| word == b"--tar=")),
        Err(error) => {
            tracing::info!(%error, "no images are made of archives");
            false
        }
    }
}

/// What to make, and within what.
#[derive(Debug)]
pub(super) struct Making<'a> {
    /// The program, and its further options.
    pub(super) program: &'a Path,
    pub(super) options: &'a [String],
    /// The image; what the program has beside it goes into `directory`.
    pub(super) image: &'a Path,
    pub(super) directory: &'a Path,
    /// Ceilings of a layer, and of the bytes of files of this one.
    pub(super) limits: Limits,
    pub(super) data: u64,
    /// Most bytes of the image on the disk. Beside it the program has no more than it was given: a limit of
    /// the kernel's for all its files would end it at once, since it begins with one of 2 TiB that is a hole.
    pub(super) longest: u64,
    pub(super) stop: Stop,
}

impl Making<'_> {
    /// Makes the image of the archive in `source`, which is read to its end.
    ///
    /// # Errors
    /// `NotImplemented` for an archive that the program does not take, or of which it would make another
    /// tree than our own reader; `InvalidArgument` for a damaged one; `ResourceExhausted` beyond a ceiling;
    /// `DeadlineExceeded` when the program does not go on; those of the stream.
    pub(super) fn make(&self, source: Source) -> Result<()> {
        self.make_within(source, SILENCE)
    }

    fn make_within(&self, source: Source, silence: Duration) -> Result<()> {
        let (theirs, ours) = sys::pipe::new()?;
        let (said, saying) = sys::pipe::new()?;
        sys::fs::set_nonblocking(&said, true)?;
        let child = self.spawn(theirs, saying)?;
        let watch = Watch {
            child: &child,
            fed: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
            silence,
            image: self.image,
            longest: self.longest,
        };
        let (fed, ended) = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("layer-mkfs".into());
            let watching = thread.spawn_scoped(scope, || watch.end(said, &self.stop));
            let Ok(watching) = watching else {
                drop(sys::process::kill_tree(child.pid()));
                return (Ok(()), child.wait().map(|status| (status, Vec::new())));
            };
            let fed = self.feed(source, ours, &watch);
            if fed.is_err() {
                // Nobody wants what it makes.
                drop(sys::process::kill_tree(child.pid()));
            }
            let ended = watching.join();
            let panicked = |_| Err(Error::internal("layer thread panicked"));
            (fed, ended.unwrap_or_else(panicked))
        });
        // What is wrong with the archive says more than how the program ended.
        match fed {
            Err(error) if !error.is(Code::Cancelled) => return Err(error),
            _ => {}
        }
        let (status, said) = ended?;
        self.judge(status, &said)?;
        fed
    }

    fn spawn(&self, stdin: OwnedFd, said: OwnedFd) -> Result<Child> {
        let both = said
            .try_clone()
            .map_err(|e| Error::os("duplicate a pipe", e))?;
        Spawn::new(self.program)
            // Parity: internal/erofsutils: data by itself, so that the page cache maps it.
            .args(["--tar=f", "--aufs", "--quiet", "-Enoinline_data"])
            .args(self.options)
            .arg(self.image)
            // Archives wait there as long as it reads.
            .env("TMPDIR", self.directory)
            .new_group()
            .stdin(stdin)
            .stdout(both)
            .stderr(said)
            .spawn()
    }

    /// Reads the archive, and passes on what was read.
    fn feed(&self, source: Source, to: OwnedFd, watch: &Watch<'_>) -> Result<()> {
        let mut reader = Reader::new(Tee {
            source,
            to: Some(File::from(to)),
            watch,
        });
        let mut tree = Seen::default();
        let hasher = RandomState::new();
        let (mut entries, mut data) = (0_u64, 0_u64);
        while let Some(entry) = reader.next()? {
            self.stop.check()?;
            entries += 1;
            data = data.saturating_add(entry.size);
            self.limited(&entry, entries, data)?;
            taken(&entry)?;
            let name = trimmed(&entry.name);
            let parent = name.iter().rposition(|byte| *byte == b'/');
            if let Some(parent) = parent
                && !tree.contains(hasher.hash_one(&name[..parent]))
            {
                return Err(declined(&entry, "its directory does not come before it"));
            }
            if entry.kind == Kind::Directory {
                tree.insert(hasher.hash_one(name));
            }
        }
        reader.drain()
    }

    fn limited(&self, entry: &Entry, entries: u64, data: u64) -> Result<()> {
        let most = self.data.min(self.limits.stored);
        let why = if entries > self.limits.entries {
            format!("layer has more than {} entries", self.limits.entries)
        } else if entry.size > self.limits.bytes || data > most {
            format!(
                "files of layer have more than {most} bytes, which is the most for a blob of its size"
            )
        } else {
            return Ok(());
        };
        Err(Error::resource_exhausted(why))
    }

    fn judge(&self, status: Status, said: &[u8]) -> Result<()> {
        if status.is_success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(said);
        // Who unpacks it file by file will say what is wrong with it, if anything is.
        Err(Error::not_implemented(format_args!(
            "{} --tar failed with status {}: {}",
            self.program.display(),
            status.code(),
            said.trim()
        )))
    }
}

/// The name as a path below the root.
fn trimmed(mut name: &[u8]) -> &[u8] {
    while let Some(rest) = name.strip_prefix(b"./").or(name.strip_prefix(b"/")) {
        name = rest;
    }
    name.strip_suffix(b"/").unwrap_or(name)
}

/// Checks that the program makes of an entry what our own extraction makes of it.
fn taken(entry: &Entry) -> Result<()> {
    let name = trimmed(&entry.name);
    let base = name.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let odd = |part: &[u8]| matches!(part, b"" | b"." | b"..");
    let why = if entry.name.len() > MAX_NAME {
        "its name is too long"
    } else if !matches!(name, b"" | b".") && name.split(|byte| *byte == b'/').any(odd) {
        "its name is no plain path"
    } else if base.strip_prefix(WHITEOUT).is_some_and(odd) {
        "it deletes what has no name"
    } else if entry.sparse.is_some() {
        "it is sparse"
    } else if entry.kind == Kind::Link && trimmed(&entry.link).split(|b| *b == b'/').any(odd) {
        "it is a link to no plain path"
    } else if entry.xattrs.iter().any(|(key, _)| is_reserved(key)) {
        "it has attributes of overlayfs"
    } else {
        return Ok(());
    };
    Err(declined(entry, why))
}

/// Attributes by which layers would tell overlayfs what only their unpacking may tell it.
fn is_reserved(key: &[u8]) -> bool {
    key.starts_with(b"trusted.") || key.starts_with(b"user.overlay.")
}

fn declined(entry: &Entry, why: &str) -> Error {
    let name = String::from_utf8_lossy(&entry.name);
    Error::not_implemented(format_args!("image of entry {name:?}: {why}"))
}

/// What is read goes to the program as well.
struct Tee<'a> {
    source: Source,
    /// None when it does not want more.
    to: Option<File>,
    watch: &'a Watch<'a>,
}

impl BufRead for Tee<'_> {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        if self.watch.is_over.load(Ordering::Relaxed) {
            let error = Error::cancelled("the program that makes the image has ended");
            return Err(std::io::Error::other(error));
        }
        self.source.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        // What is consumed is in the buffer: nothing is waited for.
        if let (Some(to), Ok(data)) = (&mut self.to, self.source.fill_buf()) {
            let data = &data[..amount.min(data.len())];
            // It may have read all that it wants: its end tells whether it has.
            if to.write_all(data).is_err() {
                self.to = None;
            }
        }
        self.source.consume(amount);
        self.watch.fed.fetch_add(amount as u64, Ordering::Relaxed);
    }
}

impl Read for Tee<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let data = self.fill_buf()?;
        let take = data.len().min(buffer.len());
        buffer[..take].copy_from_slice(&data[..take]);
        self.consume(take);
        Ok(take)
    }
}

/// The program at work.
struct Watch<'a> {
    child: &'a Child,
    /// Bytes that it was given.
    fed: AtomicU64,
    /// It has failed: there is no reason to go on reading.
    is_over: AtomicBool,
    silence: Duration,
    image: &'a Path,
    longest: u64,
}

impl Watch<'_> {
    /// Waits for its end, and collects what it says.
    fn end(&self, said: OwnedFd, stop: &Stop) -> Result<(Status, Vec<u8>)> {
        let (mut said, mut text) = (File::from(said), Vec::new());
        let (mut seen, mut since) = (self.progress(), Instant::now());
        let done = loop {
            collect(&mut said, &mut text);
            if sys::pipe::is_readable_within(self.child.pidfd(), LOOK) {
                break Ok(());
            }
            if let Err(error) = stop.check().and_then(|()| self.check()) {
                break Err(error);
            }
            let now = self.progress();
            if now != seen {
                (seen, since) = (now, Instant::now());
            } else if since.elapsed() > self.silence {
                break Err(Error::deadline_exceeded(
                    "the program that makes the image of a layer does not go on",
                ));
            }
        };
        if done.is_err() {
            drop(sys::process::kill_tree(self.child.pid()));
        }
        let status = self.child.wait();
        let done = done.and_then(|()| self.check());
        let is_fine = done.is_ok() && status.as_ref().is_ok_and(|status| status.is_success());
        self.is_over.store(!is_fine, Ordering::Relaxed);
        collect(&mut said, &mut text);
        done?;
        Ok((status?, text))
    }

    /// # Errors
    /// `ResourceExhausted` when the image takes more than it may.
    fn check(&self) -> Result<()> {
        let blocks = std::fs::metadata(self.image).map_or(0, |facts| facts.blocks());
        if blocks.saturating_mul(512) <= self.longest {
            return Ok(());
        }
        Err(Error::resource_exhausted(format_args!(
            "image of layer has more than {} bytes",
            self.longest
        )))
    }

    /// A number that changes while it does something: bytes that it was given, and that it has read and
    /// written by itself.
    fn progress(&self) -> u64 {
        let io = std::fs::read_to_string(format!("/proc/{}/io", self.child.pid()));
        let io = io.unwrap_or_default();
        let numbers = io.lines().filter_map(|line| {
            let (name, number) = line.split_once(": ")?;
            let counts = matches!(name, "rchar" | "wchar");
            counts.then(|| number.parse::<u64>().ok()).flatten()
        });
        numbers.fold(self.fed.load(Ordering::Relaxed), u64::wrapping_add)
    }
}

/// Takes what was said until now; what is beyond the limit is forgotten.
fn collect(said: &mut File, text: &mut Vec<u8>) {
    let mut buffer = [0; 4096];
    loop {
        match said.read(&mut buffer) {
            Ok(got) if got > 0 => {
                let room = OUTPUT.saturating_sub(text.len());
                text.extend_from_slice(&buffer[..got.min(room)]);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests;
