//! The shim's log: a named pipe in the bundle, copied line by line into the daemon's log.
//!
//! Invariant: the read end is open before the shim starts (it would wait for a reader) and again
//! after a restart of the daemon. A line is bounded, the rest of an overlong one is dropped.

use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use types::{ContainerId, Error, Namespace, Result, bundle_file};

use crate::bundle::Bundle;

/// Longest line that is passed on.
const LINE: usize = 8 * 1024;
const CHUNK: usize = 4 * 1024;

/// Copies as long as it lives; what is in the pipe at its end is still copied.
#[derive(Debug)]
pub(crate) struct Tap {
    /// Dropped with the tap: the signal for the copier.
    _alive: watch::Sender<()>,
}

impl Tap {
    /// Makes the pipe when it is missing, opens it and starts to copy.
    ///
    /// # Errors
    /// The errno of the step that failed.
    pub(crate) fn open(bundle: &Bundle, namespace: &Namespace, id: &ContainerId) -> Result<Self> {
        let path = bundle.file(bundle_file::LOG);
        let fifo = sys::fifo::Fifo::make(&path, 0o700)?;
        // Both ends: with the read end alone every pause between two shims would be an end of file.
        let fd = fifo.open_nonblocking(sys::fifo::End::Both)?;
        let pipe = pipe::Receiver::from_owned_fd(fd)
            .map_err(|e| Error::os(format_args!("register {}", path.display()), e))?;
        let (alive, gone) = watch::channel(());
        let lines = Lines::new(namespace, id);
        tokio::spawn(copy(pipe, lines, gone));
        Ok(Self { _alive: alive })
    }
}

async fn copy(mut pipe: pipe::Receiver, mut lines: Lines, mut gone: watch::Receiver<()>) {
    let mut chunk = vec![0; CHUNK];
    loop {
        tokio::select! {
            read = pipe.read(&mut chunk) => match read {
                Ok(read) if read > 0 => lines.push(&chunk[..read]),
                _ => break,
            },
            // Nobody sends: this is the tap's end.
            _ = gone.changed() => {
                while let Ok(read @ 1..) = pipe.try_read(&mut chunk) {
                    lines.push(&chunk[..read]);
                }
                break;
            }
        }
    }
    lines.flush();
}

/// Cuts a stream into lines.
struct Lines {
    namespace: String,
    id: String,
    line: Vec<u8>,
}

impl Lines {
    fn new(namespace: &Namespace, id: &ContainerId) -> Self {
        Self {
            namespace: namespace.to_string(),
            id: id.to_string(),
            line: Vec::new(),
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|b| *b == b'\n') {
            self.append(&rest[..end]);
            self.flush();
            rest = &rest[end + 1..];
        }
        self.append(rest);
    }

    fn append(&mut self, part: &[u8]) {
        let room = LINE - self.line.len();
        self.line.extend_from_slice(&part[..part.len().min(room)]);
    }

    fn flush(&mut self) {
        if self.line.is_empty() {
            return;
        }
        let text = String::from_utf8_lossy(&self.line);
        let (namespace, id) = (&*self.namespace, &*self.id);
        match level(&text) {
            Level::Error => tracing::error!(namespace, id, "shim: {text}"),
            Level::Warning => tracing::warn!(namespace, id, "shim: {text}"),
            Level::Other => tracing::debug!(namespace, id, "shim: {text}"),
        }
        self.line.clear();
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Level {
    Error,
    Warning,
    Other,
}

/// Level as logrus writes it (`level=warning`), which Go shims use and others imitate.
fn level(line: &str) -> Level {
    let Some((_, rest)) = line.split_once("level=") else {
        return Level::Other;
    };
    let word = rest.trim_start_matches('"');
    if ["error", "fatal", "panic"]
        .iter()
        .any(|w| word.starts_with(w))
    {
        Level::Error
    } else if word.starts_with("warn") {
        Level::Warning
    } else {
        Level::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_and_bounded() {
        let mut lines = Lines::new(&"ns".parse().unwrap(), &"c".parse().unwrap());
        lines.push(b"one\ntwo\nthr");
        assert_eq!(lines.line, b"thr");
        lines.push(&vec![b'x'; 3 * LINE]);
        assert_eq!(lines.line.len(), LINE);
        lines.push(b"\n");
        assert!(lines.line.is_empty());
    }

    #[test]
    fn levels_are_those_of_logrus() {
        for (line, expected) in [
            ("time=\"x\" level=error msg=\"y\"", Level::Error),
            ("time=\"x\" level=warning msg=\"y\"", Level::Warning),
            ("time=\"x\" level=info msg=\"y\"", Level::Other),
            ("plain", Level::Other),
        ] {
            assert_eq!(level(line), expected, "{line}");
        }
    }
}
