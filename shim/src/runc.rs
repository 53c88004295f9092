//! Calls of the OCI runtime (runc, crun or their like), and what its log says when one fails.
//!
//! Invariant: a call is a child of the shim, waited for through the reaper and not for ever; its error
//! text is the last error line that this very call wrote to its log. Of a call that hung or was killed
//! no process is left but those that the runtime has on record.

mod fate;
mod limits;

use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use serde::Deserialize;
use sys::process::{Spawn, Status};
use tokio::time::{sleep, timeout};
use types::{Code, Error, Result};

use crate::criu::{OPTIONS_VARIABLE, Run};
use crate::log;
use crate::options::Options;
use crate::reap::{Ending, Reap};

pub(crate) use fate::Fate;
pub(crate) use limits::Limits;

/// Standard descriptors of the process that a call makes.
#[derive(Debug)]
pub(crate) struct ChildIo {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// The runtime of one container.
#[derive(Debug)]
pub(crate) struct Runtime {
    pub(crate) reap: Arc<Reap>,
    binary: String,
    /// Where the binary was found.
    program: OnceLock<PathBuf>,
    root: PathBuf,
    bundle: PathBuf,
    id: String,
    options: Options,
    limits: Limits,
    fate: Fate,
}

/// What some calls have besides arguments.
struct Extra<'a> {
    /// Standard descriptors of the process that the call makes.
    io: Option<ChildIo>,
    /// File with options for CRIU.
    criu: Option<&'a Path>,
}

/// The log of all calls about the container itself.
const LOG: &str = "log.json";
/// Only the end of a log is of interest.
const LOG_TAIL: u64 = 64 * 1024;

impl Runtime {
    pub(crate) fn new(
        reap: Arc<Reap>,
        bundle: &Path,
        namespace: &str,
        id: &str,
        options: Options,
        limits: Limits,
    ) -> Self {
        Self {
            reap,
            binary: options.binary().to_owned(),
            program: OnceLock::new(),
            root: options.runtime_root(bundle, namespace),
            bundle: bundle.to_owned(),
            id: id.to_owned(),
            options,
            limits,
            fate: Fate::default(),
        }
    }

    pub(crate) fn fate(&self) -> &Fate {
        &self.fate
    }

    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    /// True for runtimes whose init is the very process that `init.pid` names, so that a signal can
    /// go to it directly.
    pub(crate) fn has_plain_processes(&self) -> bool {
        is_plain(&self.binary)
    }

    pub(crate) async fn create(&self, io: Option<ChildIo>, console: Option<&str>) -> Result<()> {
        let mut args = vec!["create", "--bundle"];
        let bundle = self.bundle.display().to_string();
        let pid_file = self
            .bundle
            .join(types::bundle_file::INIT_PID)
            .display()
            .to_string();
        args.extend([bundle.as_str(), "--pid-file", &pid_file]);
        if let Some(socket) = console {
            args.extend(["--console-socket", socket]);
        }
        if self.options.no_pivot_root {
            args.push("--no-pivot");
        }
        if self.options.no_new_keyring {
            args.push("--no-new-keyring");
        }
        args.push(&self.id);
        self.call("OCI runtime create failed", LOG, &args, io).await
    }

    pub(crate) async fn start(&self) -> Result<()> {
        self.call("OCI runtime start failed", LOG, &["start", &self.id], None)
            .await
    }

    /// Runs the process described in `spec` in the container; its pid is in `pid_file` after.
    pub(crate) async fn exec(
        &self,
        spec: &str,
        pid_file: &str,
        log: &str,
        io: Option<ChildIo>,
        console: Option<&str>,
    ) -> Result<()> {
        let mut args = vec![
            "exec",
            "--process",
            spec,
            "--detach",
            "--pid-file",
            pid_file,
        ];
        if let Some(socket) = console {
            args.extend(["--console-socket", socket]);
        }
        args.push(&self.id);
        self.call("OCI runtime exec failed", log, &args, io).await
    }

    /// Removes the container; one that is not there is no error.
    pub(crate) async fn delete(&self, force: bool) -> Result<()> {
        let args: &[&str] = if force {
            &["delete", "--force", &self.id]
        } else {
            &["delete", &self.id]
        };
        match self.call("failed to delete task", LOG, args, None).await {
            Err(error) if error.is_not_found() => Ok(()),
            other => other,
        }
    }

    pub(crate) async fn kill(&self, signal: u32, all: bool) -> Result<()> {
        let signal = signal.to_string();
        let mut args = vec!["kill"];
        if all {
            args.push("--all");
        }
        args.extend([self.id.as_str(), &signal]);
        self.call("kill", LOG, &args, None).await
    }

    pub(crate) async fn pause(&self) -> Result<()> {
        self.call("OCI runtime pause failed", LOG, &["pause", &self.id], None)
            .await
    }

    pub(crate) async fn resume(&self) -> Result<()> {
        self.call(
            "OCI runtime resume failed",
            LOG,
            &["resume", &self.id],
            None,
        )
        .await
    }

    /// Changes resources; `file` holds them as the runtime spec writes them.
    pub(crate) async fn update(&self, file: &str) -> Result<()> {
        let args = ["update", "--resources", file, &self.id];
        self.call("OCI runtime update failed", LOG, &args, None)
            .await
    }

    /// Writes an image; `criu` is a file with more options for CRIU.
    pub(crate) async fn checkpoint(&self, options: &[String], criu: Option<&Path>) -> Result<()> {
        let mut args = vec!["checkpoint"];
        args.extend(options.iter().map(String::as_str));
        args.push(&self.id);
        let extra = Extra { io: None, criu };
        self.call_with("OCI runtime checkpoint failed", LOG, &args, extra)
            .await
    }

    /// Makes and starts the container from an image.
    pub(crate) async fn restore(
        &self,
        image: &Path,
        run: &Run,
        io: Option<ChildIo>,
        console: Option<&str>,
    ) -> Result<()> {
        let image = image.display().to_string();
        let (work, bundle) = (run.work(), self.bundle.display().to_string());
        let pid_file = self.bundle.join(types::bundle_file::INIT_PID);
        let pid_file = pid_file.display().to_string();
        let mut args = vec!["restore", "--detach", "--bundle", &bundle];
        args.extend(["--pid-file", &pid_file, "--image-path", &image]);
        args.extend(["--work-path", &work]);
        // What the image may hold: the one who made it has decided.
        args.extend(["--tcp-established", "--ext-unix-sk", "--file-locks"]);
        if !self.is_crun() {
            args.push("--no-subreaper");
        }
        if let Some(socket) = console {
            args.extend(["--console-socket", socket]);
        }
        if self.options.no_pivot_root {
            args.push("--no-pivot");
        }
        args.push(&self.id);
        let criu = run.options();
        self.call_with("OCI runtime restore failed", LOG, &args, Extra { io, criu })
            .await
    }

    fn is_crun(&self) -> bool {
        Path::new(&self.binary)
            .file_name()
            .is_some_and(|name| name == "crun")
    }

    async fn call(&self, what: &str, log: &str, args: &[&str], io: Option<ChildIo>) -> Result<()> {
        let extra = Extra { io, criu: None };
        self.call_with(what, log, args, extra).await
    }

    async fn call_with(
        &self,
        what: &str,
        log: &str,
        args: &[&str],
        extra: Extra<'_>,
    ) -> Result<()> {
        let Extra { io, criu } = extra;
        let log = self.bundle.join(log);
        let before = std::fs::metadata(&log).map_or(0, |meta| meta.len());
        let mut spawn = self.command(&log).args(args.iter().copied());
        if let Some(criu) = criu {
            spawn = spawn.env(OPTIONS_VARIABLE, criu);
        }
        if let Some(io) = io {
            spawn = spawn.stdin(io.stdin).stdout(io.stdout).stderr(io.stderr);
        }
        // A missing binary is the container's failure, not a missing container.
        let (pid, ending) = self
            .reap
            .spawn(spawn)
            .map_err(|e| e.reclass(Code::Unknown).ctx(what.to_owned()))?;
        let verb = args.first().copied().unwrap_or_default();
        let status = self.until_end(verb, pid, ending).await;
        let status = status.map_err(|e| e.ctx(what.to_owned()));
        if !matches!(status, Ok(Status::Exited(_))) {
            self.kill_left(&log, args);
        }
        let said = match status? {
            Status::Exited(0) => return Ok(()),
            Status::Exited(code) => {
                let silent = || format!("{}: exit status {code}", self.binary);
                last_error(&log, before).unwrap_or_else(silent)
            }
            Status::Signaled(signal) => {
                let signal = sys::signal::name(signal.into());
                format!("{} {verb} was killed by {signal}", self.binary)
            }
        };
        let text = format!("{what}: {said}");
        Err(Error::new(classify(&text), text))
    }

    /// Waits for the end of a call. One that hangs is killed with all that it started.
    async fn until_end(&self, verb: &str, pid: u32, mut ending: Ending) -> Result<Status> {
        let gone = || Error::internal("reaper is gone");
        let given_up = tokio::select! {
            biased;
            ended = &mut ending => {
                return ended.map(|ended| ended.status).map_err(|_| gone());
            }
            why = self.given_up(verb) => why,
        };
        log::error(format_args!("{}: {given_up}", self.id));
        self.reap.kill_tree(pid);
        if timeout(limits::KILLED, ending).await.is_err() {
            log::error(format_args!("process {pid} survives its SIGKILL"));
        }
        Err(given_up)
    }

    /// Waits until a call need not be waited for any longer. Returns the reason.
    async fn given_up(&self, verb: &str) -> Error {
        let limit = self.limits.of(verb);
        let hung = async {
            sleep(limit).await;
            let text = format!("{} {verb} hung for {limit:?} and was killed", self.binary);
            // Not `DeadlineExceeded`, which leaves open whether it happened all the same.
            Error::aborted(text)
        };
        // The init's exit is told after those of all execs and after its start: none of them may hold it
        // back.
        let in_vain = async {
            self.fate.makes_vain(verb).await;
            let text = format!("{} {verb} was killed: the container has ended", self.binary);
            Error::failed_precondition(text)
        };
        tokio::select! {
            error = hung => error,
            error = in_vain => error,
        }
    }

    /// A runtime that was killed leaves what it was making: the process that it has named already, and
    /// its own copies that were to become one.
    fn kill_left(&self, log: &Path, args: &[&str]) {
        let copy = self.command(log).args(args.iter().copied()).command_line();
        let file = args.iter().skip_while(|arg| **arg != "--pid-file").nth(1);
        let named = file
            .and_then(|file| std::fs::read_to_string(file).ok())
            .and_then(|text| text.trim().parse().ok());
        self.reap
            .kill_left(|pid| named == Some(pid) || sys::process::command_line(pid) == copy);
    }

    /// The binary's path, looked for until it is found: a search of `PATH` is ten calls of the kernel.
    fn program(&self) -> &Path {
        if let Some(found) = self.program.get() {
            return found;
        }
        match sys::process::find(self.binary.as_ref()) {
            Ok(found) => self.program.get_or_init(|| found),
            // Whoever starts it learns why.
            Err(_) => Path::new(&self.binary),
        }
    }

    fn command(&self, log: &Path) -> Spawn {
        let mut spawn = Spawn::new(self.program())
            .arg("--root")
            .arg(&self.root)
            .arg("--log")
            .arg(log)
            .args(["--log-format", "json"]);
        if self.options.systemd_cgroup {
            spawn = spawn.arg("--systemd-cgroup");
        }
        // The shim's one thread lives as long as the shim: the signal means that the shim is gone.
        spawn
            .cwd(&self.bundle)
            .unmanaged()
            .new_group()
            .death_signal(libc::SIGKILL)
    }
}

/// True for the runtimes that are known to start plain processes and to keep `<root>/<id>`.
pub(crate) fn is_plain(binary: &str) -> bool {
    let name = Path::new(binary).file_name().unwrap_or_default();
    name == "runc" || name == "crun"
}

/// Class of a runtime's error text; only texts about what is not there have one.
fn classify(text: &str) -> Code {
    const ABSENT: [&str; 5] = [
        "process already finished",
        "container not running",
        "container is not running",
        "no such process",
        "does not exist",
    ];
    let lower = text.to_ascii_lowercase();
    // Only kill and delete ask for what may be gone; elsewhere the text can be about any file.
    let asks = lower.starts_with("kill") || lower.starts_with("failed to delete task");
    if asks && ABSENT.iter().any(|absent| lower.contains(absent)) {
        Code::NotFound
    } else {
        Code::Unknown
    }
}

#[derive(Deserialize)]
struct LogLine {
    #[serde(default)]
    level: String,
    #[serde(default)]
    msg: String,
}

/// The last error line that was written to the log after `from`.
fn last_error(log: &Path, from: u64) -> Option<String> {
    let mut file = std::fs::File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    // Shorter than before: the runtime made a new one.
    let from = if from > length { 0 } else { from };
    file.seek(SeekFrom::Start(from.max(length.saturating_sub(LOG_TAIL))))
        .ok()?;
    let mut text = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut text).ok()?;
    last_error_in(&String::from_utf8_lossy(&text))
}

fn last_error_in(text: &str) -> Option<String> {
    let lines = text.lines().rev();
    let mut known = lines.filter_map(|line| serde_json::from_str::<LogLine>(line).ok());
    known
        .find(|line| line.level == "error")
        .map(|line| line.msg.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_line_of_this_call_counts() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log.json");
        assert_eq!(last_error(&log, 0), None);
        let old = "{\"level\":\"error\",\"msg\":\"old\",\"time\":\"x\"}\n";
        std::fs::write(&log, old).unwrap();
        let size = old.len() as u64;
        assert_eq!(last_error(&log, 0).as_deref(), Some("old"));
        assert_eq!(last_error(&log, size), None);
        let new = "{\"level\":\"error\",\"msg\":\"first\"}\nnot json\n\
                   {\"level\":\"error\",\"msg\":\"runc create failed: \\\"x\\\" \"}\n\
                   {\"level\":\"warning\",\"msg\":\"late\"}\n";
        std::fs::write(&log, format!("{old}{new}")).unwrap();
        assert_eq!(
            last_error(&log, size).as_deref(),
            Some("runc create failed: \"x\"")
        );
        assert_eq!(
            last_error(&log, 1 << 40).as_deref(),
            Some("runc create failed: \"x\"")
        );
    }

    #[test]
    fn texts_about_a_gone_process_are_not_found() {
        let cases = [
            ("kill: container not running", Code::NotFound),
            ("kill: os: process already finished", Code::NotFound),
            (
                "failed to delete task: container does not exist",
                Code::NotFound,
            ),
            ("kill: permission denied", Code::Unknown),
            (
                "OCI runtime create failed: file does not exist",
                Code::Unknown,
            ),
        ];
        for (text, code) in cases {
            assert_eq!(classify(text), code, "{text}");
        }
    }

    #[test]
    fn known_runtimes_are_told_by_name() {
        assert!(is_plain("runc") && is_plain("/usr/bin/crun"));
        assert!(!is_plain("runsc") && !is_plain("/opt/kata-runtime"));
    }
}
