//! Calling one plugin: its environment, its input, its time, and what its answer means.
//!
//! Invariant: a call ends by its deadline, and with it everything that the plugin has started; what it
//! writes costs a fixed amount of memory; an error names the plugin. A plugin does not outlive this
//! process, and while it lives, or anything that it started, it holds the lock that it was given.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use sys::process::{Answer, Spawn, Status};
use types::{Code, Error, Result};

use super::version::Version;

/// Most bytes of an answer, and of what is kept of its complaints.
const MAX_OUTPUT: usize = 1024 * 1024;
/// Most bytes of complaints in an error.
const MAX_TOLD: usize = 1000;
/// Number of the lock's descriptor in a plugin; the first after the standard ones.
const LOCK_FD: i32 = 3;
/// A signal that cannot be caught, for when we die.
const SIGKILL: i32 = 9;

/// Variables of the protocol. What a call does not set is not inherited either.
const VARIABLES: [&str; 6] = [
    "CNI_COMMAND",
    "CNI_CONTAINERID",
    "CNI_NETNS",
    "CNI_IFNAME",
    "CNI_ARGS",
    "CNI_PATH",
];

/// What is asked of a plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Command {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }
}

/// Where plugins are, and how long each call may take.
#[derive(Clone, Debug)]
pub(super) struct Plugins {
    pub(super) directories: Vec<PathBuf>,
    pub(super) patience: Duration,
}

/// What a call is about: values of `CNI_*`, and the lock that the plugin holds meanwhile.
#[derive(Debug, Default)]
pub(super) struct About {
    pub(super) container: String,
    pub(super) netns: PathBuf,
    pub(super) interface: String,
    pub(super) args: String,
    pub(super) lock: Option<OwnedFd>,
}

impl Plugins {
    /// The program of this name.
    ///
    /// # Errors
    /// `NotFound`.
    pub(super) fn find(&self, program: &str) -> Result<PathBuf> {
        let mut places = self.directories.iter().map(|dir| dir.join(program));
        places.find(|place| place.is_file()).ok_or_else(|| {
            let searched: Vec<_> = self
                .directories
                .iter()
                .map(|d| d.to_string_lossy())
                .collect();
            Error::not_found(format_args!(
                "CNI plugin {program:?} in {}",
                searched.join(":")
            ))
        })
    }

    /// Calls a plugin; its answer, if it has one.
    ///
    /// # Errors
    /// `NotFound` without the program, `DeadlineExceeded`, `ResourceExhausted` for an answer without
    /// end, else the class of the plugin's own error; each with the plugin's name.
    pub(super) fn call(
        &self,
        program: &str,
        command: Command,
        about: &About,
        input: &Value,
    ) -> Result<Option<Value>> {
        let path = self.find(program)?;
        let called = || format!("CNI plugin {program:?}: {}", command.as_str());
        let spawn = self.spawn(&path, command, about)?;
        let input = input.to_string();
        let answer = spawn.answer(input.as_bytes(), MAX_OUTPUT, self.patience);
        let answer = answer.map_err(|e| e.ctx(called()))?;
        for line in String::from_utf8_lossy(&answer.errors).lines() {
            tracing::debug!(plugin = program, command = command.as_str(), "{line}");
        }
        judge(command, &answer).map_err(|e| e.ctx(called()))
    }

    fn spawn(&self, path: &Path, command: Command, about: &About) -> Result<Spawn> {
        let mut spawn = VARIABLES
            .into_iter()
            .fold(Spawn::new(path).unmanaged(), Spawn::env_remove)
            .env("CNI_COMMAND", command.as_str())
            .env("CNI_PATH", self.search_path()?)
            // The thread that spawns waits for it: it is gone only when this process is.
            .death_signal(SIGKILL);
        if !about.container.is_empty() {
            spawn = spawn
                .env("CNI_CONTAINERID", &about.container)
                .env("CNI_IFNAME", &about.interface)
                .env("CNI_NETNS", &about.netns)
                .env("CNI_ARGS", &about.args);
        }
        if let Some(lock) = &about.lock {
            let lock = lock.try_clone().map_err(|e| Error::os("dup", e))?;
            spawn = spawn.fd(lock, LOCK_FD);
        }
        Ok(spawn)
    }

    fn search_path(&self) -> Result<std::ffi::OsString> {
        std::env::join_paths(&self.directories)
            .map_err(|e| Error::invalid_argument(format_args!("directories of CNI plugins: {e}")))
    }

    /// The versions that a plugin says it speaks; those unknown here are left out.
    ///
    /// # Errors
    /// As [`Plugins::call`].
    pub(super) fn versions(&self, program: &str) -> Result<Vec<Version>> {
        #[derive(Deserialize)]
        struct Spoken {
            #[serde(default, rename = "supportedVersions")]
            versions: Vec<String>,
        }
        let input = serde_json::json!({"cniVersion": Version::V1_1_0.as_str()});
        let answer = self.call(program, Command::Version, &About::default(), &input)?;
        let spoken = Spoken::deserialize(answer.unwrap_or_default()).map_err(|e| {
            Error::unknown(format_args!(
                "CNI plugin {program:?}: VERSION: no answer: {e}"
            ))
        })?;
        let spoken = spoken.versions.iter();
        Ok(spoken.filter_map(|version| version.parse().ok()).collect())
    }
}

/// An error as plugins write it.
#[derive(Default, Deserialize)]
struct Complaint {
    #[serde(default)]
    code: u32,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

fn judge(command: Command, answer: &Answer) -> Result<Option<Value>> {
    let is_asked = matches!(command, Command::Add | Command::Version);
    if answer.status.is_success() && !is_asked {
        // Nobody asked what it says: that it is done, it says by its code.
        return Ok(None);
    }
    if answer.is_cut {
        return Err(Error::resource_exhausted(format_args!(
            "an answer of more than {MAX_OUTPUT} bytes"
        )));
    }
    if !answer.status.is_success() {
        return Err(complaint(answer));
    }
    if answer.text.trim_ascii().is_empty() {
        return Ok(None);
    }
    types::bound_json(&answer.text)?;
    let parsed = serde_json::from_slice(&answer.text);
    let parsed: Value = parsed.map_err(|e| {
        let begins = told(&answer.text);
        Error::unknown(format_args!("answered what is no JSON ({e}): {begins}"))
    })?;
    match parsed.as_object() {
        // Some write an error and forget to fail.
        Some(fields) if fields.contains_key("code") => Err(complaint(answer)),
        Some(fields) if fields.is_empty() => Err(Error::unknown("answered nothing: {}")),
        _ => Ok(Some(parsed)),
    }
}

/// What a failed plugin says, in our words.
fn complaint(answer: &Answer) -> Error {
    let ended = match answer.status {
        Status::Exited(code) => format!("ended with code {code}"),
        Status::Signaled(signal) => format!("was killed by signal {signal}"),
    };
    let parsed = types::bound_json(&answer.text).ok();
    let parsed = parsed.and_then(|()| serde_json::from_slice::<Complaint>(&answer.text).ok());
    let said = parsed.unwrap_or_default();
    if said.code == 0 && said.msg.is_empty() {
        let all = [told(&answer.text), told(&answer.errors)];
        let all: Vec<_> = all.into_iter().filter(|text| !text.is_empty()).collect();
        let text = if all.is_empty() {
            ended
        } else {
            format!("{ended}: {}", all.join(" "))
        };
        return Error::unknown(text);
    }
    let text = match (said.msg.trim(), said.details.trim()) {
        (msg, "") => msg.to_owned(),
        ("", details) => details.to_owned(),
        (msg, details) => format!("{msg}: {details}"),
    };
    Error::new(
        class(said.code),
        format_args!("{} (code {})", told(text.as_bytes()), said.code),
    )
}

/// Class of an error by the number that the specification gives it.
const fn class(code: u32) -> Code {
    match code {
        1 => Code::FailedPrecondition,
        2 | 4 | 7 => Code::InvalidArgument,
        3 => Code::NotFound,
        11 | 50 | 51 => Code::Unavailable,
        _ => Code::Unknown,
    }
}

fn told(text: &[u8]) -> String {
    let text = &text[..text.len().min(MAX_TOLD)];
    String::from_utf8_lossy(text.trim_ascii()).replace('\n', " ")
}
