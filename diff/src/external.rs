//! Programs that layers go through; and igzip, which is one: a decoder of gzip twice as fast as any
//! library there is.
//!
//! ```text
//!   blob -> thread that hashes and feeds -> pipe -> program -> pipe -> chunks
//! ```
//! Invariant: the process has ended, and was reaped, when the call returns; one that says nothing for
//! [`SILENCE`] is ended. unpigz, which Go's daemon takes where igzip is not there, is slower than the
//! library that is built in, and so is not looked for.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, ErrorKind, Read, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sys::process::{Child, Spawn};
use types::{Context as _, Error, Result};

use crate::tar::stream_error;

/// Environment variable that keeps it from being used, as with Go's daemon.
const DISABLE: &str = "CONTAINERD_DISABLE_IGZIP";
/// Capacity of the pipes: fewer switches between the processes.
const PIPE: usize = 1 << 20;
/// How long it may say nothing.
const SILENCE: Duration = Duration::from_secs(60);
/// `SIGKILL`.
const KILL: i32 = 9;

/// Where igzip is, unless the environment forbids its use.
pub(crate) fn igzip() -> Option<PathBuf> {
    let forbidden = std::env::var(DISABLE).is_ok_and(|value| is_true(&value));
    if forbidden {
        return None;
    }
    sys::process::find(OsStr::new("igzip")).ok()
}

/// Parity: Go's strconv.ParseBool; what is neither true nor false is false.
fn is_true(text: &str) -> bool {
    matches!(text, "1" | "t" | "T" | "true" | "TRUE" | "True")
}

/// Has igzip at `program` decode `blob`: see [`through`].
///
/// # Errors
/// As [`through`].
pub(crate) fn decode<R: BufRead + Send + ?Sized>(
    program: &Path,
    blob: &mut R,
    take: impl FnOnce(&mut (dyn Read + Send)) -> Result<bool>,
) -> Result<()> {
    through(Spawn::new(program).args(["-d", "-c"]), program, blob, take)
}

/// Sends `blob`, all of which is consumed, through a process, and gives what comes out to `take`, which
/// returns false when nobody wants more.
///
/// # Errors
/// `InvalidArgument` when the program fails; `DeadlineExceeded` when it is silent; those of the blob and
/// of `take`.
pub(crate) fn through<R: BufRead + Send + ?Sized>(
    spawn: Spawn,
    program: &Path,
    blob: &mut R,
    take: impl FnOnce(&mut (dyn Read + Send)) -> Result<bool>,
) -> Result<()> {
    let (theirs, ours) = sys::pipe::new()?;
    let (decoded, out) = sys::pipe::new()?;
    for pipe in [&ours, &decoded] {
        // A limit of the machine on large pipes only costs speed.
        let _granted = sys::pipe::set_capacity(pipe, PIPE);
    }
    let child = spawn
        .stdin(theirs)
        .stdout(out)
        .spawn()
        .ctx_with(|| format!("start {}", program.display()))?;
    let (taken, fed) = std::thread::scope(|scope| {
        let feeder = std::thread::Builder::new().name("layer-feed".into());
        let feeding = match feeder.spawn_scoped(scope, || feed(blob, ours)) {
            Ok(feeding) => feeding,
            Err(error) => return (Err(Error::os("start layer thread", error)), Ok(())),
        };
        let taken = take(&mut Patient(File::from(decoded)));
        if !matches!(taken, Ok(true)) {
            // Nobody reads any more: neither it nor who feeds it may wait for that.
            drop(child.kill(KILL));
        }
        let fed = feeding.join();
        (
            taken,
            fed.unwrap_or_else(|_| Err(Error::internal("layer thread panicked"))),
        )
    });
    let status = end(&child)?;
    fed?;
    if !taken? || status.is_success() {
        return Ok(());
    }
    Err(Error::invalid_argument(format_args!(
        "process layer: {} exited with {}",
        program.display(),
        status.code()
    )))
}

/// Reaps a process that has no reason to go on.
fn end(child: &Child) -> Result<sys::process::Status> {
    if !sys::pipe::is_readable_within(child.pidfd(), SILENCE) {
        child.kill(KILL)?;
    }
    child.wait()
}

/// Writes the blob to the process; what it does not want counts for the digest all the same.
fn feed<R: BufRead + ?Sized>(blob: &mut R, to: OwnedFd) -> Result<()> {
    let mut to = Some(File::from(to));
    loop {
        let data = blob.fill_buf().map_err(stream_error)?;
        let len = data.len();
        if len == 0 {
            return Ok(());
        }
        if let Some(pipe) = &mut to {
            match pipe.write_all(data) {
                Ok(()) => {}
                Err(e) if e.kind() == ErrorKind::BrokenPipe => to = None,
                Err(e) => return Err(Error::os("write to decoder", e)),
            }
        }
        blob.consume(len);
    }
}

/// Its output; silence is an error.
struct Patient(File);

impl Read for Patient {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if !sys::pipe::is_readable_within(&self.0, SILENCE) {
            let error = Error::deadline_exceeded("decoder says nothing");
            return Err(std::io::Error::other(error));
        }
        self.0.read(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(program: &str, blob: &[u8]) -> (Result<()>, Vec<u8>, usize) {
        let mut left = blob;
        let mut out = Vec::new();
        let done = decode(Path::new(program), &mut left, |stream| {
            stream.read_to_end(&mut out).map_err(stream_error)?;
            Ok(true)
        });
        (done, out, left.len())
    }

    #[test]
    fn what_comes_out_is_what_the_program_makes_of_the_blob() {
        let blob = vec![b'x'; 3 << 20];
        let (done, out, left) = decoded("/bin/cat", &blob);
        // cat takes -d and -c for options that it does not have.
        assert!(done.is_err_and(|e| e.is(types::Code::InvalidArgument)));
        assert!(out.is_empty());
        assert_eq!(left, 0, "the blob is consumed for its digest");
    }

    #[test]
    fn a_program_that_is_not_there_is_told() {
        let (done, _, _) = decoded("/nowhere/igzip", b"x");
        let error = done.unwrap_err().to_string();
        assert!(error.contains("/nowhere/igzip"), "{error}");
    }

    #[test]
    fn who_takes_no_more_waits_for_nobody() {
        let blob = vec![b'x'; 3 << 20];
        let mut left = blob.as_slice();
        let temp = tempfile::tempdir().unwrap();
        let program = temp.path().join("program");
        crate::testing::script(&program, "#!/bin/sh\nexec sleep 1000\n");
        decode(&program, &mut left, |_| Ok(false)).unwrap();
    }

    #[test]
    fn the_variable_is_read_as_go_reads_it() {
        for yes in ["1", "t", "true", "True", "TRUE", "T"] {
            assert!(is_true(yes), "{yes}");
        }
        for no in ["", "0", "false", "yes", "tRUE"] {
            assert!(!is_true(no), "{no}");
        }
    }
}
