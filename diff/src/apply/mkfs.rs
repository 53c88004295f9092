//! An EROFS image made of an archive by `mkfs.erofs`, without files in between.
//!
//! ```text
//!   chunks -> tar reader (ceilings, what is declined) -> pipe -> mkfs.erofs --tar=f -> image
//!                                                                   `- watched: does it go on?
//! ```
//! Invariant: what reaches the program has been read as an archive by our own reader, entry by entry, and is
//! within the ceilings; the program has ended, and was reaped, when the call returns.

mod look;

use std::fs::File;
use std::io::{BufRead, ErrorKind, Read, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sys::process::{Child, Spawn, Status};
use types::{Code, Error, Result};

use crate::extract::Limits;
use crate::stream::Source;
use crate::tar::{Entry, Reader, Writer};
use crate::work::Stop;
use look::{Look, declined};

/// How long it may take to say what it can.
const HELP: Duration = Duration::from_secs(10);
/// What is kept of what it says.
const OUTPUT: usize = 64 * 1024;
/// What a program may take at work.
const BOUNDS: Bounds = Bounds {
    silence: Duration::from_secs(120),
    memory: 1 << 30,
};
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

/// What a program may take.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// How long it may neither read nor write anything while it is waited for.
    silence: Duration,
    /// Bytes of its memory that are in no file.
    memory: u64,
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
    /// What the root is when the archive does not say: the program would let everybody write to it.
    pub(super) root: Entry,
    /// Ceilings of a layer, and of the bytes of files of this one.
    pub(super) limits: Limits,
    pub(super) data: u64,
    /// Most bytes on the disk of the file that becomes the image. Until it is written, the program keeps there
    /// what it was given, far behind its beginning: both count, so that less may be all that a layer needs. A
    /// limit of the kernel's would end it at once, since that file is 2 TiB of holes first.
    pub(super) longest: u64,
    pub(super) stop: Stop,
}

impl Making<'_> {
    /// Makes the image of the archive in `source`, which is read to its end.
    ///
    /// # Errors
    /// `NotImplemented` for an archive that the program does not take, or of which it would make another
    /// tree than our own reader, or for which it takes too much room; `InvalidArgument` for a damaged one;
    /// `ResourceExhausted` beyond a ceiling of layers;
    /// `DeadlineExceeded` when the program does not go on; those of the stream.
    pub(super) fn make(&self, source: Source) -> Result<()> {
        self.make_within(source, BOUNDS)
    }

    fn make_within(&self, source: Source, bounds: Bounds) -> Result<()> {
        let (theirs, ours) = sys::pipe::new()?;
        let (said, saying) = sys::pipe::new()?;
        sys::fs::set_nonblocking(&said, true)?;
        let child = self.spawn(theirs, saying)?;
        let watch = Watch {
            child: &child,
            fed: AtomicU64::new(0),
            is_its_turn: AtomicBool::new(false),
            is_unwanted: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            bounds,
            image: self.image,
            longest: self.longest,
        };
        let (fed, ended) = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("layer-mkfs".into());
            let watching = thread.spawn_scoped(scope, || watch.end(said, &self.stop));
            let Ok(watching) = watching else {
                // Nobody waits for it yet: the pid is still its own.
                drop(sys::process::kill_tree(child.pid()));
                return (Ok(()), child.wait().map(|status| (status, Vec::new())));
            };
            let fed = self.feed(source, ours, &watch);
            // Who waits for it ends it: when it is reaped already, its pid may be another's.
            watch.is_unwanted.store(fed.is_err(), Ordering::Relaxed);
            watch.is_its_turn.store(true, Ordering::Relaxed);
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
        let mut to = File::from(to);
        let mut first = Vec::new();
        let written = Writer::new(&mut first).entry(&self.root);
        written.map_err(|e| Error::os("write the root of a layer", e))?;
        // There is room for it in the pipe. What the archive says of the root comes later, and counts.
        let to = to.write_all(&first).is_ok().then_some(to);
        let mut reader = Reader::new(Tee { source, to, watch });
        let mut look = Look::new(self.limits, self.data);
        while let Some(entry) = reader.next()? {
            self.stop.check()?;
            if let Some(why) = reader.unusual() {
                return Err(declined(&entry, why));
            }
            look.take(&entry)?;
        }
        reader.drain()
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
            self.watch.is_its_turn.store(true, Ordering::Relaxed);
            // It may have read all that it wants: its end tells whether it has.
            match to.write_all(data) {
                Ok(()) => self.watch.is_its_turn.store(false, Ordering::Relaxed),
                Err(_) => self.to = None,
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
    /// It is waited for: to read what it is given, or to end. Else it may be waiting for a layer that comes in.
    is_its_turn: AtomicBool,
    /// Nobody wants what it makes.
    is_unwanted: AtomicBool,
    /// It has failed: there is no reason to go on reading.
    is_over: AtomicBool,
    bounds: Bounds,
    image: &'a Path,
    longest: u64,
}

impl Watch<'_> {
    /// Waits for its end, and collects what it says.
    fn end(&self, said: OwnedFd, stop: &Stop) -> Result<(Status, Vec<u8>)> {
        let (mut said, mut text) = (File::from(said), Vec::new());
        let mut silence = Silence::new(self.progress());
        let done = loop {
            collect(&mut said, &mut text);
            if sys::pipe::is_readable_within(self.child.pidfd(), LOOK) {
                break Ok(());
            }
            if self.is_unwanted.load(Ordering::Relaxed) {
                break Err(Error::cancelled("the image of a layer is not wanted"));
            }
            if let Err(error) = stop.check().and_then(|()| self.check()) {
                break Err(error);
            }
            let is_its_turn = self.is_its_turn.load(Ordering::Relaxed);
            if silence.after(self.progress(), is_its_turn, Instant::now()) > self.bounds.silence {
                break Err(Error::deadline_exceeded(
                    "the program that makes the image of a layer does not go on",
                ));
            }
        };
        if done.is_err() {
            drop(sys::process::kill_tree(self.child.pid()));
        }
        let status = self.child.wait();
        // The process is gone, and its number may be another's.
        let done = done.and_then(|()| self.check_image());
        let is_fine = done.is_ok() && status.as_ref().is_ok_and(|status| status.is_success());
        self.is_over.store(!is_fine, Ordering::Relaxed);
        collect(&mut said, &mut text);
        done?;
        Ok((status?, text))
    }

    /// # Errors
    /// `NotImplemented` when the program takes more than it may, of the disk or of memory: what it keeps is not
    /// the layer's fault.
    fn check(&self) -> Result<()> {
        self.check_image()?;
        if self.memory() <= self.bounds.memory {
            return Ok(());
        }
        Err(Error::not_implemented(format_args!(
            "image of layer takes more than {} bytes of memory to make",
            self.bounds.memory
        )))
    }

    fn check_image(&self) -> Result<()> {
        let blocks = std::fs::metadata(self.image).map_or(0, |facts| facts.blocks());
        if blocks.saturating_mul(512) <= self.longest {
            return Ok(());
        }
        Err(Error::not_implemented(format_args!(
            "image of layer takes more than {} bytes while it is made",
            self.longest
        )))
    }

    /// Bytes of its memory that are in no file; none when it has ended.
    fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.pid()));
        let status = status.unwrap_or_default();
        let rss = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:")?.strip_suffix("kB"));
        rss.and_then(|rss| rss.trim().parse::<u64>().ok())
            .map_or(0, |rss| rss.saturating_mul(1024))
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

/// How long nothing has happened that should have.
#[derive(Debug)]
struct Silence {
    progress: u64,
    since: Instant,
}

impl Silence {
    fn new(progress: u64) -> Self {
        Self {
            progress,
            since: Instant::now(),
        }
    }

    /// How long it is at `now`, when the program has come so far, and is waited for or not.
    fn after(&mut self, progress: u64, is_its_turn: bool, now: Instant) -> Duration {
        if progress != self.progress || !is_its_turn {
            *self = Self {
                progress,
                since: now,
            };
        }
        now.saturating_duration_since(self.since)
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
