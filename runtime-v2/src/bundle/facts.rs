//! What a bundle tells of its task.
//!
//! Invariant: only a file that is not there counts as none. What cannot be read is an error, and whoever
//! asked does not know.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use types::{Code, Error, Exit, Result, bundle_file};

use super::{Bundle, at};
use crate::Stdio;
use crate::bootstrap::Address;

/// File with init's pid and when that process began, in ticks since boot: with both it is that process.
const STARTED: &str = "init.started";
/// File that says that the bundle is to go: what is missing then was removed, or never was.
const ENDING: &str = "ending";
/// File with where the streams of init go.
const STDIO: &str = "stdio.json";
/// Small files of a bundle are not read beyond this.
const SMALL: u64 = 64 * 1024;

/// How init ended, as the shim has recorded it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) exit: Exit,
    /// Memory ran out before.
    pub(crate) oom: bool,
}

#[derive(Debug, Deserialize)]
struct ExitRecord {
    pid: u32,
    status: u32,
    /// Nanoseconds since the epoch.
    exited_at: u64,
    /// A process of the container was ended for want of memory before.
    #[serde(default)]
    oom: bool,
}

#[derive(Debug, Deserialize, Serialize)]
struct StdioRecord {
    stdin: String,
    stdout: String,
    stderr: String,
    terminal: bool,
}

impl Bundle {
    /// Remembers where the streams of init go: who removes the task removes them, and its shim may be gone
    /// by then.
    ///
    /// # Errors
    /// The errno.
    pub(crate) fn write_stdio(&self, stdio: &Stdio) -> Result<()> {
        let record = StdioRecord {
            stdin: stdio.stdin.clone(),
            stdout: stdio.stdout.clone(),
            stderr: stdio.stderr.clone(),
            terminal: stdio.terminal,
        };
        let text = serde_json::to_vec(&record).map_err(Error::internal)?;
        self.put(STDIO, &text, 0o600)
    }

    /// Where the streams of init go, when that is remembered.
    ///
    /// # Errors
    /// The errno; `DataLoss` for what says nothing.
    pub(crate) fn stdio(&self) -> Result<Option<Stdio>> {
        let Some(text) = self.text(STDIO)? else {
            return Ok(None);
        };
        let record: StdioRecord = serde_json::from_str(&text).map_err(|e| {
            let path = self.file(STDIO);
            Error::data_loss(format_args!("{} says nothing", path.display())).with_source(e)
        })?;
        Ok(Some(Stdio {
            stdin: record.stdin,
            stdout: record.stdout,
            stderr: record.stderr,
            terminal: record.terminal,
        }))
    }

    /// The shim's binary, as remembered.
    ///
    /// # Errors
    /// The errno; `DataLoss` for what is no small file.
    pub(crate) fn binary(&self) -> Result<Option<PathBuf>> {
        let text = self.text(bundle_file::SHIM_BINARY)?;
        Ok(text.filter(|text| !text.is_empty()).map(PathBuf::from))
    }

    /// How to reach the shim: `bootstrap.json`, else the `address` file of older generations. `None` when
    /// neither is there.
    ///
    /// # Errors
    /// The errno; `NotImplemented` for a generation that we do not know, `DataLoss` for what says nothing.
    pub(crate) fn address(&self) -> Result<Option<Address>> {
        let read = |name| match self.text(name)? {
            None => Ok(None),
            Some(text) => match Address::parse(text.as_bytes()) {
                Ok(address) => Ok(Some(address)),
                Err(error) if error.is(Code::NotImplemented) => Err(error),
                Err(error) => Err(error.reclass(Code::DataLoss)),
            },
        };
        match read(bundle_file::BOOTSTRAP) {
            Ok(None) => read(bundle_file::ADDRESS),
            Err(error) if error.is(Code::DataLoss) => {
                let older = read(bundle_file::ADDRESS)?;
                older.map(Some).ok_or(error)
            }
            known => known,
        }
    }

    /// Pid of the init process as the runtime wrote it.
    ///
    /// # Errors
    /// The errno; `DataLoss` for what is no small file, or says none: there may be one.
    pub(crate) fn init_pid(&self) -> Result<Option<u32>> {
        let Some(text) = self.text(bundle_file::INIT_PID)? else {
            return Ok(None);
        };
        match text.trim().parse() {
            Ok(pid) if pid > 0 => Ok(Some(pid)),
            _ => {
                let path = self.file(bundle_file::INIT_PID);
                let path = path.display();
                Err(Error::data_loss(format_args!("{path} says no pid")))
            }
        }
    }

    /// True when the bundle was made before the machine was started: nothing of it lives.
    pub(crate) fn is_of_earlier_boot(&self) -> bool {
        self.made()
            .zip(sys::clock::booted())
            .is_some_and(|(made, booted)| made < booted)
    }

    /// True when the bundle was made within that time.
    pub(crate) fn is_younger_than(&self, age: Duration) -> bool {
        // One of a time to come tells of a clock that was set, not of its age.
        let past = self.made().and_then(|made| made.elapsed().ok());
        past.is_some_and(|past| past < age)
    }

    /// When the bundle was made, as far as that is known.
    fn made(&self) -> Option<SystemTime> {
        // Written once, when the bundle was made; the directory changes later.
        let made = fs::metadata(self.file(bundle_file::CONFIG));
        made.and_then(|facts| facts.modified()).ok()
    }

    /// Remembers that the bundle is to go, before the socket of its shim may: a later daemon that finds no
    /// socket knows why.
    ///
    /// # Errors
    /// The errno.
    pub(crate) fn write_ending(&self) -> Result<()> {
        self.replace(ENDING, b"", 0o600)
    }

    /// True when the bundle was to go.
    pub(crate) fn is_ending(&self) -> bool {
        // What cannot be asked is not known to be so.
        self.file(ENDING).try_exists().unwrap_or(false)
    }

    /// Remembers when the init process began.
    pub(crate) fn write_started(&self, pid: u32, ticks: u64) -> Result<()> {
        self.replace(STARTED, format!("{pid} {ticks}").as_bytes(), 0o600)
    }

    /// When the init process with this pid began, as remembered.
    ///
    /// # Errors
    /// The errno; `DataLoss` for what is no small file.
    pub(crate) fn started(&self, pid: u32) -> Result<Option<u64>> {
        let text = self.text(STARTED)?;
        Ok(text.and_then(|text| {
            let (of, ticks) = text.split_once(' ')?;
            ticks.parse().ok().filter(|_| of.parse() == Ok(pid))
        }))
    }

    /// How init ended, when the shim has recorded it. Junk is no record.
    ///
    /// # Errors
    /// The errno: there may be a record.
    pub(crate) fn ended(&self) -> Result<Option<Ended>> {
        let text = match self.text(bundle_file::EXIT) {
            Err(error) if error.is(Code::DataLoss) => {
                tracing::warn!(%error, "record of an exit");
                None
            }
            text => text?,
        };
        Ok(text.and_then(|text| parse_ended(&text)))
    }

    /// A small file; `None` only when there is none.
    fn text(&self, name: &str) -> Result<Option<String>> {
        let path = self.file(name);
        let unreadable = |what: &str| {
            let path = path.display();
            Err(Error::data_loss(format_args!("{path} {what}")))
        };
        let read = fs::symlink_metadata(&path).and_then(|meta| {
            let is_small = meta.is_file() && meta.len() <= SMALL;
            is_small.then(|| fs::read(&path)).transpose()
        });
        match read {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(at("read", &path, e)),
            Ok(None) => unreadable("is no small file"),
            Ok(Some(bytes)) => match String::from_utf8(bytes) {
                Ok(text) => Ok(Some(text)),
                Err(_) => unreadable("is no text"),
            },
        }
    }
}

pub(super) fn parse_ended(text: &str) -> Option<Ended> {
    let record: ExitRecord = serde_json::from_str(text).ok()?;
    let exit = Exit {
        pid: record.pid,
        status: record.status,
        at: UNIX_EPOCH + Duration::from_nanos(record.exited_at),
    };
    Some(Ended {
        exit,
        oom: record.oom,
    })
}
