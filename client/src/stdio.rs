//! The client's end of a process's stdio: named pipes in a private directory, and the copying
//! between them and this process.
//!
//! Invariant: an end is opened before the daemon hears of the pipe, so that nobody on the other side
//! ever waits for this one. Our write end of the input is a both-ways end: what is written before
//! the reader comes is kept, and the reader sees the end only when the daemon was told to close.
//!
//! ```text
//! our stdin  --> <id>-stdin  --> shim or process
//! our stdout <-- <id>-stdout <--
//! our stderr <-- <id>-stderr <--       (not with a terminal)
//! ```

use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rand::Rng as _;
use sys::fifo::{End, Fifo};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::JoinSet;
use types::{Error, Result};

use crate::attach;
use crate::services::StdioPaths;

/// Address of streams that the shim keeps for whoever attaches.
pub const HELD: &str = "attach://";
/// Where clients keep their pipes.
pub const FIFO_DIR: &str = "/run/containerd/fifo";
/// After the process has ended: longest silence before the rest of its output is given up. Its end
/// normally comes at once; a grandchild that keeps the pipe open must not hang us.
const GRACE: Duration = Duration::from_secs(2);
/// Size of one read: what a pipe holds.
const BUFFER: usize = 64 << 10;

/// Pipes made for one process. They go when this is dropped, unless they are kept for later.
#[derive(Debug)]
pub struct Fifos {
    dir: PathBuf,
    paths: StdioPaths,
    keep: bool,
}

impl Fifos {
    /// Makes the pipes of process `id` in a fresh directory below `base`.
    ///
    /// # Errors
    /// The errno, with the path.
    pub fn create(base: &Path, id: &str, terminal: bool) -> Result<Self> {
        let mut builder = std::fs::DirBuilder::new();
        builder.mode(0o700);
        let made = builder.recursive(true).create(base);
        made.map_err(|e| Error::os(format_args!("mkdir {}", base.display()), e))?;
        let dir = fresh(base)?;
        let name = |stream: &str| {
            dir.join(format!("{id}-{stream}"))
                .to_string_lossy()
                .into_owned()
        };
        let paths = StdioPaths {
            stdin: name("stdin"),
            stdout: name("stdout"),
            stderr: if terminal {
                String::new()
            } else {
                name("stderr")
            },
            terminal,
        };
        // From here on a failure removes the directory.
        let fifos = Self {
            dir,
            paths,
            keep: false,
        };
        for path in [&fifos.paths.stdin, &fifos.paths.stdout, &fifos.paths.stderr] {
            if !path.is_empty() {
                Fifo::make(Path::new(path), 0o600)?;
            }
        }
        Ok(fifos)
    }

    /// Where they are.
    #[must_use]
    pub fn paths(&self) -> &StdioPaths {
        &self.paths
    }

    /// Leaves them in place for whoever attaches later.
    pub fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for Fifos {
    fn drop(&mut self) {
        if !self.keep {
            remove(&self.paths);
            // Nothing to tell anybody: the directory may hold what others put there.
            drop(std::fs::remove_dir(&self.dir));
        }
    }
}

/// A directory that was not there before.
fn fresh(base: &Path) -> Result<PathBuf> {
    loop {
        let dir = base.join(rand::rng().random::<u32>().to_string());
        match std::fs::DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => return Ok(dir),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(Error::os(format_args!("mkdir {}", dir.display()), e)),
        }
    }
}

/// Removes the pipes of a process that is gone, and their directories when nothing else is in them.
/// Whatever is not a pipe (a log file, an address) is left alone.
pub fn remove(paths: &StdioPaths) {
    for path in [&paths.stdin, &paths.stdout, &paths.stderr] {
        let path = Path::new(path);
        let is_fifo = path
            .symlink_metadata()
            .is_ok_and(|m| m.file_type().is_fifo());
        if path.is_absolute() && is_fifo && std::fs::remove_file(path).is_ok() {
            // Fails while the others are there; the last one takes the directory along.
            drop(path.parent().map(std::fs::remove_dir));
        }
    }
}

/// Our ends of a process's streams.
#[derive(Debug)]
pub struct Streams {
    stdin: Option<Sink>,
    stdout: Option<Source>,
    stderr: Option<Source>,
}

/// Where the process's input is written to.
#[derive(Debug)]
enum Sink {
    Fifo(pipe::Sender),
    Attached(attach::Writer),
}

impl Sink {
    async fn write_all(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Fifo(to) => to.write_all(bytes).await,
            Self::Attached(to) => to.write_all(bytes).await,
        }
    }
}

/// Where its output is read from.
#[derive(Debug)]
enum Source {
    Fifo(pipe::Receiver),
    Attached(attach::Reader),
}

impl Source {
    async fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Fifo(from) => from.read(buffer).await,
            Self::Attached(from) => from.read(buffer).await,
        }
    }
}

impl From<attach::Attached> for Streams {
    fn from(attached: attach::Attached) -> Self {
        Self {
            stdin: attached.stdin.map(Sink::Attached),
            stdout: attached.stdout.map(Source::Attached),
            stderr: attached.stderr.map(Source::Attached),
        }
    }
}

impl Streams {
    /// Opens our ends. An empty path is no stream. Must be called inside of a runtime.
    ///
    /// # Errors
    /// `NotFound` or `InvalidArgument` when there is no pipe at a path.
    pub fn open(paths: &StdioPaths) -> Result<Self> {
        let receiver = |path: &str| -> Result<Option<Source>> {
            let Some(end) = open(path, End::Read)? else {
                return Ok(None);
            };
            let made = pipe::Receiver::from_owned_fd(end);
            made.map(|end| Some(Source::Fifo(end)))
                .map_err(|e| Error::os(format_args!("read {path}"), e))
        };
        let stdin = match open(&paths.stdin, End::Both)? {
            Some(end) => {
                let made = pipe::Sender::from_owned_fd(end);
                let failed = |e| Error::os(format_args!("write {}", paths.stdin), e);
                Some(Sink::Fifo(made.map_err(failed)?))
            }
            None => None,
        };
        Ok(Self {
            stdin,
            stdout: receiver(&paths.stdout)?,
            stderr: receiver(&paths.stderr)?,
        })
    }

    /// Begins to copy the process's output to `stdout` and `stderr`.
    #[must_use]
    pub fn copy(
        self,
        stdout: impl AsyncWrite + Send + Unpin + 'static,
        stderr: impl AsyncWrite + Send + Unpin + 'static,
    ) -> (Option<Input>, Output) {
        let (progress, seen) = watch::channel(0);
        let (refusal, refused) = watch::channel(false);
        let mut copies = JoinSet::new();
        if let Some(from) = self.stdout {
            copies.spawn(copy_out(from, stdout, progress.clone(), refusal.clone()));
        }
        if let Some(from) = self.stderr {
            copies.spawn(copy_out(from, stderr, progress, refusal));
        }
        let output = Output {
            copies,
            seen,
            refused,
        };
        (self.stdin.map(Input), output)
    }
}

fn open(path: &str, end: End) -> Result<Option<OwnedFd>> {
    if path.is_empty() {
        return Ok(None);
    }
    Fifo::find(Path::new(path))?.open_nonblocking(end).map(Some)
}

/// Our end of the process's input.
#[derive(Debug)]
pub struct Input(Sink);

impl Input {
    /// Copies `from` into the process until `from` ends, then runs `close`, which tells the daemon;
    /// only after that our end goes.
    ///
    /// # Errors
    /// Of reading, writing or `close`.
    pub async fn feed(
        mut self,
        mut from: impl AsyncRead + Unpin,
        close: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        let mut buffer = vec![0; BUFFER];
        loop {
            let length = from
                .read(&mut buffer)
                .await
                .map_err(|e| Error::os("read standard input", e))?;
            if length == 0 {
                break;
            }
            let written = self.0.write_all(&buffer[..length]).await;
            written.map_err(|e| Error::os("write to the process", e))?;
        }
        close.await
    }
}

/// The copying of a process's output.
#[derive(Debug)]
pub struct Output {
    copies: JoinSet<Result<()>>,
    seen: watch::Receiver<u64>,
    refused: watch::Receiver<bool>,
}

impl Output {
    /// Returns when somebody who read the output is gone, never when all of them stay. Safe to
    /// cancel.
    pub async fn refused(&mut self) {
        if self.refused.wait_for(|refused| *refused).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits for the end of the output of a process that has ended.
    ///
    /// # Errors
    /// Of reading it: then some of it is missing. `DeadlineExceeded` when the shim cut us off because
    /// we did not read in time.
    pub async fn drain(mut self) -> Result<()> {
        let mut quiet = false;
        let mut done = Ok(());
        while !self.copies.is_empty() {
            tokio::select! {
                Some(copied) = self.copies.join_next() => done = done.and(ended(copied)),
                moved = tokio::time::timeout(GRACE, self.seen.changed()) => match moved {
                    Ok(Ok(())) => {}
                    // All senders gone: every copy is at its end.
                    Ok(Err(_)) => quiet = true,
                    Err(_) => {
                        tracing::debug!("output stays open after the end of the process");
                        return done;
                    }
                },
            }
            if quiet {
                while let Some(copied) = self.copies.join_next().await {
                    done = done.and(ended(copied));
                }
            }
        }
        done
    }
}

/// How a copy ended.
fn ended(copied: std::result::Result<Result<()>, tokio::task::JoinError>) -> Result<()> {
    copied.map_err(|e| Error::internal("copy output").with_source(e))?
}

/// Copies until the end; what cannot be read any more is not its end. When our side does not take it any more, the process's output is thrown
/// away: it must not be blocked by that.
async fn copy_out(
    mut from: Source,
    mut to: impl AsyncWrite + Unpin,
    progress: watch::Sender<u64>,
    refusal: watch::Sender<bool>,
) -> Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut taken = true;
    loop {
        let length = match from.read(&mut buffer).await {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(e) if e.kind() == std::io::ErrorKind::TimedOut => {
                return Err(Error::deadline_exceeded(
                    "output was not read in time, the rest is lost",
                ));
            }
            Err(error) => return Err(Error::os("read output", error)),
        };
        if taken {
            let written = async {
                to.write_all(&buffer[..length]).await?;
                to.flush().await
            };
            if let Err(error) = written.await {
                tracing::debug!(%error, "output is not taken any more");
                taken = false;
                refusal.send_replace(true);
            }
        }
        progress.send_modify(|count| *count += length as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn pipes_go_with_their_directory_and_nothing_else_does() {
        let base = tempfile::tempdir().unwrap();
        let fifos = Fifos::create(&base.path().join("fifo"), "c", false).unwrap();
        let paths = fifos.paths().clone();
        assert!(paths.stderr.ends_with("/c-stderr"));
        let log = Path::new(&paths.stdin).with_file_name("log");
        std::fs::write(&log, "").unwrap();
        drop(fifos);
        assert!(!Path::new(&paths.stdout).exists() && log.exists());
        let mixed = StdioPaths {
            stdout: log.to_string_lossy().into(),
            ..StdioPaths::default()
        };
        remove(&mixed);
        assert!(log.exists());
    }

    #[test]
    fn kept_pipes_stay_until_they_are_removed_by_path() {
        let base = tempfile::tempdir().unwrap();
        let fifos = Fifos::create(base.path(), "c", true).unwrap();
        let paths = fifos.paths().clone();
        assert_eq!(paths.stderr, "");
        fifos.keep();
        assert!(Path::new(&paths.stdin).exists());
        remove(&paths);
        assert_eq!(std::fs::read_dir(base.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn input_waits_for_its_reader_and_closes_before_it_goes() {
        use std::io::Read as _;
        let base = tempfile::tempdir().unwrap();
        let fifos = Fifos::create(base.path(), "c", false).unwrap();
        let streams = Streams::open(fifos.paths()).unwrap();
        let path = fifos.paths().stdin.clone();
        let (tell, told) = tokio::sync::oneshot::channel();
        let read = tokio::task::spawn_blocking(move || {
            let mut file = std::fs::File::open(path).unwrap();
            let mut text = [0; 5];
            file.read_exact(&mut text).unwrap();
            tell.send(text).unwrap();
            let mut rest = Vec::new();
            file.read_to_end(&mut rest).unwrap();
            rest
        });
        let fed = Input(streams.stdin.unwrap()).feed(&b"hello"[..], async move {
            assert_eq!(&told.await.unwrap(), b"hello");
            Ok(())
        });
        let (fed, rest) = tokio::join!(fed, read);
        fed.unwrap();
        assert!(rest.unwrap().is_empty());
    }

    #[tokio::test]
    async fn output_before_the_first_writer_is_not_its_end() {
        let base = tempfile::tempdir().unwrap();
        let fifos = Fifos::create(base.path(), "c", true).unwrap();
        let streams = Streams::open(fifos.paths()).unwrap();
        let (sender, receiver) = tokio::io::duplex(1024);
        let (progress, _seen) = watch::channel(0);
        let copy = tokio::spawn(copy_out(
            streams.stdout.unwrap(),
            sender,
            progress,
            watch::Sender::new(false),
        ));
        let path = fifos.paths().stdout.clone();
        let written = tokio::task::spawn_blocking(move || {
            let mut file = std::fs::OpenOptions::new().write(true).open(path)?;
            file.write_all(b"out")
        });
        written.await.unwrap().unwrap();
        copy.await.unwrap().unwrap();
        let mut text = String::new();
        let mut receiver = receiver;
        receiver.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "out");
    }

    #[tokio::test]
    async fn a_reader_that_is_gone_is_told_of_and_blocks_nobody() {
        let base = tempfile::tempdir().unwrap();
        let fifos = Fifos::create(base.path(), "c", false).unwrap();
        let streams = Streams::open(fifos.paths()).unwrap();
        let (gone, _) = tokio::io::duplex(1);
        let (_input, mut output) = streams.copy(gone, tokio::io::sink());
        let path = fifos.paths().stdout.clone();
        let written = tokio::task::spawn_blocking(move || {
            let mut file = std::fs::OpenOptions::new().write(true).open(path)?;
            file.write_all(&vec![0; 4 * BUFFER])
        });
        output.refused().await;
        written.await.unwrap().unwrap();
        drop(fifos);
        output.drain().await.unwrap();
    }

    #[tokio::test]
    async fn an_output_that_cannot_be_read_to_its_end_is_an_error() {
        let (progress, seen) = watch::channel(0);
        let (_refusal, refused) = watch::channel(false);
        let mut copies = JoinSet::new();
        copies.spawn(async { Ok(()) });
        copies.spawn(async move {
            drop(progress);
            Err(Error::deadline_exceeded("cut off"))
        });
        let output = Output {
            copies,
            seen,
            refused,
        };
        let error = output.drain().await.unwrap_err();
        assert!(error.is(types::Code::DeadlineExceeded), "{error}");
    }
}
