//! Starting processes: the one way from which children come in this project.
//!
//! Invariant: a child gets exactly the descriptors that it was given, default signal dispositions and
//! an empty signal mask; a failure before its `exec` is reported to the caller with errno and leaves
//! no process. A child is known by its pidfd, made by the same call that makes the child, so its pid
//! can never mean another process. Children are made as vfork does, the cost does not grow with the
//! caller's memory.
//!
//! ```text
//! Spawn --spawn()--> Child --wait()/try_wait()--> Status
//!       --output()--> Output                     (feed, collect, deadline)
//! ```

mod exec;
mod look;
mod output;
mod own;
mod tree;

use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use types::{Error, Result};

use crate::error::at;
use crate::pidfd;

pub(crate) use look::ticks;
pub use look::{Look, look};
pub use output::{Answer, Output};
pub use own::{
    Fork, close_from, forget_env, fork, inherited_fd, new_group, redirect, share_no_core, threads,
};
pub use tree::{children, command_line, kill_tree};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// By itself, with this code.
    Exited(u8),
    /// By this signal.
    Signaled(u8),
}

impl Status {
    /// Exit code as containerd tells it: 128 + n for signal n.
    #[must_use]
    pub fn code(self) -> u32 {
        match self {
            Self::Exited(code) => u32::from(code),
            Self::Signaled(signal) => 128 + u32::from(signal),
        }
    }

    /// True for exit code 0.
    #[must_use]
    pub fn is_success(self) -> bool {
        self == Self::Exited(0)
    }
}

/// A process about to be started. Standard descriptors that are not given are `/dev/null`.
#[derive(Debug)]
pub struct Spawn {
    program: OsString,
    args: Vec<OsString>,
    clear_env: bool,
    env: Vec<(OsString, Option<OsString>)>,
    cwd: Option<PathBuf>,
    fds: Vec<(OwnedFd, RawFd)>,
    own_group: bool,
    death_signal: i32,
    longest_file: Option<u64>,
}

impl Spawn {
    /// `program` is searched in this process's `PATH` unless it has a slash.
    pub fn new(program: impl Into<OsString>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            clear_env: false,
            env: Vec::new(),
            cwd: None,
            fds: Vec::new(),
            own_group: false,
            death_signal: 0,
            longest_file: None,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Starts from an empty environment instead of the caller's.
    #[must_use]
    pub fn env_clear(mut self) -> Self {
        self.clear_env = true;
        self
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), Some(value.into())));
        self
    }

    /// Leaves a variable of the caller out.
    #[must_use]
    pub fn env_remove(mut self, name: impl Into<OsString>) -> Self {
        self.env.push((name.into(), None));
        self
    }

    /// Leaves out what a service manager has told the caller: a runtime that finds `NOTIFY_SOCKET` waits
    /// until its container says that it is ready (`sd_notify(3)`).
    #[must_use]
    pub fn unmanaged(self) -> Self {
        ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"]
            .into_iter()
            .fold(self, Self::env_remove)
    }

    /// Working directory; a relative program path is taken from the caller's.
    #[must_use]
    pub fn cwd(mut self, dir: impl Into<PathBuf>) -> Self {
        self.cwd = Some(dir.into());
        self
    }

    /// Gives the child descriptor `fd` under the number `target`; the last one for a number wins.
    #[must_use]
    pub fn fd(mut self, fd: OwnedFd, target: RawFd) -> Self {
        self.fds.retain(|(_, taken)| *taken != target);
        self.fds.push((fd, target));
        self
    }

    /// Standard input.
    #[must_use]
    pub fn stdin(self, fd: OwnedFd) -> Self {
        self.fd(fd, 0)
    }

    /// Standard output.
    #[must_use]
    pub fn stdout(self, fd: OwnedFd) -> Self {
        self.fd(fd, 1)
    }

    /// Standard error.
    #[must_use]
    pub fn stderr(self, fd: OwnedFd) -> Self {
        self.fd(fd, 2)
    }

    /// A process group of its own.
    #[must_use]
    pub fn new_group(mut self) -> Self {
        self.own_group = true;
        self
    }

    /// Signal that the child gets when the *thread* that spawns it ends: only for callers whose
    /// spawning thread lives as long as the process.
    #[must_use]
    pub fn death_signal(mut self, signal: i32) -> Self {
        self.death_signal = signal;
        self
    }

    /// Most bytes that a file may get by what the process writes; it ends by `SIGXFSZ` beyond that, as a rule.
    #[must_use]
    pub fn longest_file(mut self, bytes: u64) -> Self {
        self.longest_file = Some(bytes);
        self
    }

    /// The command line that the process will have, as [`command_line`] shows it.
    #[must_use]
    pub fn command_line(&self) -> Vec<u8> {
        let mut line = Vec::new();
        for part in std::iter::once(&self.program).chain(&self.args) {
            line.extend_from_slice(part.as_bytes());
            line.push(0);
        }
        line
    }

    /// Starts the process.
    ///
    /// # Errors
    /// `NotFound` when the program does not exist or is not in `PATH`, `InvalidArgument` for a NUL
    /// byte, else the errno of the step that failed.
    pub fn spawn(mut self) -> Result<Child> {
        let program = find(&self.program)?;
        let mut argv = vec![c_string(&self.program)?];
        for arg in &self.args {
            argv.push(c_string(arg)?);
        }
        let envp = self.environment()?;
        let cwd = self
            .cwd
            .as_ref()
            .map(|dir| c_string(dir.as_os_str()))
            .transpose()?;
        for standard in 0..3 {
            if !self.fds.iter().any(|(_, target)| *target == standard) {
                self.fds.push((null()?, standard));
            }
        }
        let mut fds: Vec<(RawFd, RawFd)> = self
            .fds
            .iter()
            .map(|(fd, target)| (fd.as_raw_fd(), *target))
            .collect();
        let mut image = exec::Image {
            program: &c_string(program.as_os_str())?,
            argv: &exec::pointers(&argv),
            envp: &exec::pointers(&envp),
            cwd: cwd.as_deref(),
            fds: &mut fds,
            new_group: self.own_group,
            death_signal: self.death_signal,
            files: crate::limits::files_of_children(),
            length: self.longest_file.map(crate::limits::length_of_files),
        };
        let (pid, pidfd) = exec::start(&mut image).map_err(|failed| match failed.step {
            exec::Step::Chdir => at(
                "chdir",
                self.cwd.as_deref().unwrap_or(Path::new("")),
                failed.error,
            ),
            exec::Step::Exec => at("exec", &program, failed.error),
            exec::Step::Other(what) => at(what, &program, failed.error),
        })?;
        Ok(Child { pid, pidfd })
    }

    fn environment(&self) -> Result<Vec<CString>> {
        let mut all: Vec<(OsString, OsString)> = Vec::new();
        if !self.clear_env {
            all.extend(std::env::vars_os());
        }
        for (name, value) in &self.env {
            all.retain(|(present, _)| present != name);
            if let Some(value) = value {
                all.push((name.clone(), value.clone()));
            }
        }
        all.into_iter()
            .map(|(mut pair, value)| {
                pair.push("=");
                pair.push(value);
                CString::new(pair.into_vec())
                    .map_err(|_| Error::invalid_argument("environment contains a NUL byte"))
            })
            .collect()
    }
}

fn c_string(text: &OsStr) -> Result<CString> {
    CString::new(text.as_bytes())
        .map_err(|_| Error::invalid_argument(format_args!("{text:?} contains a NUL byte")))
}

/// The file that `program` means: itself with a slash in it, else the first executable in `PATH`.
///
/// # Errors
/// `NotFound`.
pub fn find(program: &OsStr) -> Result<PathBuf> {
    if program.as_bytes().contains(&b'/') {
        return Ok(PathBuf::from(program));
    }
    let path = std::env::var_os("PATH")
        .unwrap_or_else(|| "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into());
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| is_executable(file))
        .ok_or_else(|| {
            Error::not_found(format_args!(
                "exec: {program:?}: executable file not in $PATH"
            ))
        })
}

fn is_executable(file: &Path) -> bool {
    file.is_file() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok()
}

/// True for a process that is on its way out, or gone. Its descriptors are closed before it can be
/// waited for: in between only this tells it from one that closed them itself.
#[must_use]
pub fn is_exiting(pid: u32) -> bool {
    /// `PF_EXITING` of the kernel's task flags, field 9 of the file (proc_pid_stat(5)).
    const EXITING: u64 = 0x4;
    stat_field(pid, 9).is_none_or(|flags| flags & EXITING != 0)
}

/// When a process was started, in the kernel's ticks since boot: with the pid it names one process
/// for ever. `None` when there is no such process.
#[must_use]
pub fn start_time(pid: u32) -> Option<u64> {
    stat_field(pid, 22)
}

/// A number in `/proc/<pid>/stat`, counted as in proc_pid_stat(5), from 4 on.
pub(crate) fn stat_field(pid: u32, number: usize) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, field 2, may hold anything; what follows its last parenthesis is field 3.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(number - 3)?.parse().ok()
}

/// The user that this process acts as.
#[must_use]
pub fn effective_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// `/dev/null`, for reading and writing.
///
/// # Errors
/// The errno of `open`.
pub fn null() -> Result<OwnedFd> {
    let path = Path::new("/dev/null");
    let file = std::fs::File::options().read(true).write(true).open(path);
    Ok(file.map_err(|e| at("open", path, e))?.into())
}

/// A started process. Dropping it neither ends nor reaps the process.
#[derive(Debug)]
pub struct Child {
    pid: u32,
    pidfd: OwnedFd,
}

impl Child {
    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Readable when the process has ended; for a poll loop or an asynchronous runtime.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Keeps only the pidfd.
    #[must_use]
    pub fn into_pidfd(self) -> OwnedFd {
        self.pidfd
    }

    /// Waits for the end and reaps. Blocks.
    ///
    /// # Errors
    /// The errno of `waitid`.
    pub fn wait(&self) -> Result<Status> {
        pidfd::wait(&self.pidfd)
    }

    /// Reaps when the process has ended.
    ///
    /// # Errors
    /// The errno of `waitid`.
    pub fn try_wait(&self) -> Result<Option<Status>> {
        pidfd::try_wait(&self.pidfd)
    }

    /// Sends a signal. A process that has ended already is no error.
    ///
    /// # Errors
    /// The errno of `pidfd_send_signal`.
    pub fn kill(&self, signal: i32) -> Result<()> {
        match pidfd::send_signal(&self.pidfd, signal) {
            Err(e) if e.errno() == Some(libc::ESRCH) => Ok(()),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests;
