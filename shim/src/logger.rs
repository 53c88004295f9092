//! Logger binaries: `binary://<path>?<name>=<value>`.
//!
//! The logger gets the container's output on descriptors 3 and 4, says on 5 that it is ready, and
//! ends when the output ends.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use sys::process::Spawn;
use tokio::time::{Instant, timeout, timeout_at};
use types::{Context as _, Error, Result};

use crate::log;
use crate::reap::{Ending, Reap};
use crate::watch::watch;

/// How long a logger may take to get ready.
const READY: Duration = Duration::from_secs(30);
/// How long it has after SIGTERM, as in Go.
const GRACE: Duration = Duration::from_secs(12);

/// A running logger. Whoever drops it before its end ends it, in the background: asks, then insists;
/// but when the shim itself ends it goes on, as its container does.
#[derive(Debug)]
pub(crate) struct Logger {
    reap: Arc<Reap>,
    pid: u32,
    /// None when it has ended.
    ending: Option<Ending>,
}

/// The ends that the container writes to.
#[derive(Debug)]
pub(crate) struct Ends {
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// A logger's program and arguments.
#[derive(Debug, PartialEq, Eq)]
struct Program {
    path: String,
    args: Vec<String>,
    /// It must write a byte; closing the pipe is not enough.
    must_speak: bool,
}

impl Logger {
    /// Starts the logger that `uri` names and waits until it is ready.
    ///
    /// # Errors
    /// `InvalidArgument` for a bad address; an error with its name when it cannot be started, ends
    /// too early or does not get ready (it is ended then).
    pub(crate) async fn start(
        reap: &Arc<Reap>,
        uri: &str,
        namespace: &str,
        id: &str,
    ) -> Result<(Self, Ends)> {
        let program = parse(uri)?;
        let (out, stdout) = sys::pipe::new()?;
        let (err, stderr) = sys::pipe::new()?;
        let (ready, theirs) = sys::pipe::new()?;
        let spawn = Spawn::new(&program.path)
            .args(&program.args)
            .env_clear()
            .env("CONTAINER_ID", id)
            .env("CONTAINER_NAMESPACE", namespace)
            // The kernel hangs up on the group of a shim that is stopped when its parent ends.
            .new_group()
            .fd(out, 3)
            .fd(err, 4)
            .fd(theirs, 5);
        let (pid, ending) = reap.spawn(spawn).ctx("start logging binary")?;
        let mut logger = Self {
            reap: Arc::clone(reap),
            pid,
            ending: Some(ending),
        };
        match logger.until_ready(ready, program.must_speak).await {
            Ok(()) => Ok((logger, Ends { stdout, stderr })),
            Err(error) => {
                logger.kill();
                Err(error.ctx(format!("logging binary {}", program.path)))
            }
        }
    }

    async fn until_ready(&mut self, ready: OwnedFd, must_speak: bool) -> Result<()> {
        sys::fs::set_nonblocking(&ready, true)?;
        let ready = watch(ready)?;
        let told = timeout(READY, ready.readable()).await;
        let _readable = told
            .map_err(|_| Error::deadline_exceeded("did not get ready"))?
            .map_err(|e| Error::os("watch ready pipe", e))?;
        let mut byte = [0];
        let spoke = matches!(sys::pipe::read(ready.get_ref(), &mut byte), Ok(1));
        // A process that has ended has closed its end too.
        if sys::process::is_exiting(self.pid) {
            return Err(Error::failed_precondition("ended before it was ready"));
        }
        if must_speak && !spoke {
            return Err(Error::failed_precondition("did not say that it is ready"));
        }
        Ok(())
    }

    fn kill(mut self) {
        self.ending = None;
        // Ended already is as good.
        drop(self.reap.signal(self.pid, libc::SIGKILL));
    }

    /// Waits for the end, which follows the end of the output, no longer than to `until`.
    pub(crate) async fn stop(mut self, until: Instant) {
        if let Some(ending) = &mut self.ending {
            match timeout_at(until, ending).await {
                Ok(_) => self.ending = None,
                Err(_) => log::warn(format_args!(
                    "logger {} does not end: it is told to",
                    self.pid
                )),
            }
        }
    }
}

impl Drop for Logger {
    fn drop(&mut self) {
        let Some(ending) = self.ending.take() else {
            return;
        };
        let (reap, pid) = (Arc::clone(&self.reap), self.pid);
        if !reap.tell_to_end(pid) {
            return;
        }
        drop(tokio::spawn(async move {
            // The shim's own end waits a little, too.
            let _linger = reap.linger();
            if timeout(GRACE, ending).await.is_err() {
                log::warn(format_args!("logger {pid} does not end: it is killed"));
                // Ended already is as good.
                drop(reap.signal(pid, libc::SIGKILL));
            }
        }));
    }
}

fn parse(uri: &str) -> Result<Program> {
    let (must_speak, rest) = match uri.split_once("://") {
        Some(("binary", rest)) => (false, rest),
        Some(("binary-v2", rest)) => (true, rest),
        _ => {
            return Err(Error::invalid_argument(format_args!(
                "logging address {uri:?}"
            )));
        }
    };
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let path = decode(path);
    if !path.starts_with('/') {
        return Err(Error::invalid_argument(format_args!(
            "logging binary {path:?} is not absolute"
        )));
    }
    let mut args = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        args.push(decode(name));
        if !value.is_empty() {
            args.push(decode(value));
        }
    }
    Ok(Program {
        path,
        args,
        must_speak,
    })
}

/// Undoes percent encoding and `+` for a space.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let hex = text.get(at + 1..at + 3).filter(|_| byte == b'%');
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(decoded) => {
                out.push(decoded);
                at += 3;
            }
            None => {
                out.push(if byte == b'+' { b' ' } else { byte });
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn addresses_become_program_and_arguments() {
        let got = parse("binary:///bin/log?id=a%20b&flag&x=1+2").unwrap();
        assert_eq!(got.path, "/bin/log");
        assert_eq!(got.args, ["id", "a b", "flag", "x", "1 2"]);
        assert!(parse("binary-v2:///bin/log").unwrap().must_speak);
        for bad in ["binary://log", "file:///x", "binary:/x", ""] {
            assert!(
                parse(bad).unwrap_err().is(types::Code::InvalidArgument),
                "{bad}"
            );
        }
    }

    /// A logger that is ready, and then does this.
    async fn ready(reap: &Arc<Reap>, dir: &Path, then: &str) -> Logger {
        let path = dir.join("logger.sh");
        crate::testing::program(&path, &format!("#!/bin/sh\n{then}\n"));
        let uri = format!("binary-v2://{}", path.display());
        let (logger, _ends) = Logger::start(reap, &uri, "ns", "c1").await.unwrap();
        logger
    }

    async fn is_reaped(reap: &Reap, pid: u32) {
        let gone = async {
            while sys::process::start_time(pid).is_some() {
                reap.round();
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(60), gone).await.unwrap();
    }

    #[tokio::test(flavor = "current_thread")]
    async fn who_drops_a_logger_ends_it() {
        let dir = tempfile::tempdir().unwrap();
        let reap = Arc::new(Reap::default());
        let sleeps = "echo >&5; exec sleep 100000";
        let logger = ready(&reap, dir.path(), sleeps).await;
        let pid = logger.pid;
        drop(logger);
        is_reaped(&reap, pid).await;
        // One that does not listen ends with the shim, if not before.
        let deaf = "trap '' TERM; echo >&5; exec sleep 100000";
        let logger = ready(&reap, dir.path(), deaf).await;
        let pid = logger.pid;
        logger.stop(Instant::now()).await;
        assert!(sys::process::start_time(pid).is_some());
        reap.insist();
        is_reaped(&reap, pid).await;
        // The shim is ending: the logger of a container that lives on goes on.
        let logger = ready(&reap, dir.path(), sleeps).await;
        let pid = logger.pid;
        drop(logger);
        assert!(!reap.tell_to_end(pid));
        reap.signal(pid, libc::SIGKILL).unwrap();
        is_reaped(&reap, pid).await;
    }

    #[test]
    fn broken_escapes_stay_as_they_are() {
        assert_eq!(decode("%4"), "%4");
        assert_eq!(decode("%zz%41"), "%zzA");
        assert_eq!(decode("é%"), "é%");
    }
}
