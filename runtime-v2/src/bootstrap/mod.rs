//! Shim binaries: finding them and running their actions (`start`, `delete`, `-info`).
//!
//! Invariant: every Go shim since 1.6 can be started. Which of the two forms of standard input a
//! binary takes is found out once per binary (path and modification time) and remembered.
//!
//! ```text
//! runtime name --resolve--> Binary --start--> Address
//!                                  --delete-> Exit
//!                                  --info---> RuntimeInfo
//! ```

mod age;
mod answer;
mod direct;
mod resolve;

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use protobuf::{Message, MessageField};
use protos::shim::bootstrap::{BootstrapParams, Extension, LogLevel};
use protos::shim::task::DeleteResponse;
use protos::wire::Wire as _;
use sys::process::Spawn;
use types::{Any, ContainerId, Context as _, Error, Exit, Namespace, Result};

use crate::client;
use crate::exec::{self, Ran, Stderr};
use crate::tasks::Config;

pub(crate) use answer::Address;
pub(crate) use direct::{Started, reap_again, socket_of};
pub(crate) use resolve::resolve;

/// A shim that has not answered `start` by then is broken; Go shims take some 30 ms.
const START: Duration = Duration::from_secs(60);
/// Longest `delete`: it runs the OCI runtime and unmounts. Go's daemon gives it 5 s because its start
/// waits for it. Nobody waits for ours, and one that is killed in the middle on a busy machine leaves
/// mounts and control groups that nobody takes away any more.
const DELETE: Duration = Duration::from_secs(30);
/// Variable that tells `delete` which bundle is meant. One of a daemon that was killed goes on, and by then
/// there may be another container of the same name.
const IDENTITY: &str = "BUNDLE_IDENTITY";
/// So many binaries are known: clients name them.
const MOST: usize = 64;
/// Longest `-v` and `-info`.
const ASK: Duration = Duration::from_secs(10);
/// Room that the kernel gives a socket path, and the length of the socket's own name in it.
const SOCKET_PATH: usize = 106;
const SOCKET_NAME: usize = 64;
/// State directory of an installation with defaults; its shims keep their own default directories.
pub(crate) const DEFAULT_STATE: &str = "/run/containerd";

/// What a binary wants on standard input of `start`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// The options as `Any`: shims up to 2.2.
    Legacy,
    /// `BootstrapParams`.
    Params,
    /// Not known: `BootstrapParams` first.
    Untried,
}

/// What is known of a binary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Habits {
    form: Form,
    /// Serves at once on a socket that it inherits, without `start`.
    inherits: bool,
}

/// A binary: its path, and when it was changed.
type Key = (PathBuf, i64);

type Known = HashMap<Key, Habits>;

/// Runs shim binaries and knows their habits.
#[derive(Debug, Default)]
pub(crate) struct Shims {
    known: Mutex<Known>,
}

/// Whose shim it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    pub(crate) config: &'a Config,
    pub(crate) namespace: &'a Namespace,
    pub(crate) id: &'a ContainerId,
    /// Directory of the bundle; also the working directory.
    pub(crate) bundle: &'a Path,
    pub(crate) binary: &'a Path,
}

impl Shims {
    /// Starts a shim, or finds the one of the task's group, and returns how to reach it.
    ///
    /// # Errors
    /// Unknown with what the shim printed.
    pub(crate) async fn start(
        &self,
        target: Target<'_>,
        spec: &[u8],
        options: Option<&Any>,
    ) -> Result<Started> {
        // Of the one that was there before: it may be replaced while it starts.
        let key = key(target.binary);
        let habits = self.habits(&key).await;
        if habits.inherits
            && direct::fits(target, spec, options)
            && let Some(started) = direct::launch(target)?
        {
            return Ok(started);
        }
        let address = self.ask(target, (key, habits), options).await?;
        Ok(Started {
            address,
            process: None,
        })
    }

    /// Lets the binary start the shim.
    async fn ask(
        &self,
        target: Target<'_>,
        (key, habits): (Key, Habits),
        options: Option<&Any>,
    ) -> Result<Address> {
        let first = match habits.form {
            Form::Legacy => return launch(target, &legacy(options)?).await,
            Form::Params | Form::Untried => launch(target, &params(target, options)?).await,
        };
        let (address, form) = match first {
            Ok(address) => (address, Form::Params),
            Err(error) if habits.form == Form::Untried && !error.is_not_found() => {
                tracing::debug!(binary = %target.binary.display(), %error, "trying legacy start");
                (launch(target, &legacy(options)?).await?, Form::Legacy)
            }
            Err(error) => return Err(error),
        };
        self.learn(key, Habits { form, ..habits });
        Ok(address)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn learn(&self, key: Key, habits: Habits) {
        let mut known = self.known();
        if known.len() >= MOST && !known.contains_key(&key) {
            known.clear();
        }
        known.insert(key, habits);
    }

    /// What is known of the binary; asks it for its version the first time.
    async fn habits(&self, key: &Key) -> Habits {
        if let Some(known) = self.known().get(key) {
            return *known;
        }
        let ran = exec::run(Spawn::new(&key.0).arg("-v"), b"", Stderr::Merged, ASK).await;
        let text = ran.map_or(Vec::new(), |ran| ran.stdout);
        let habits = habits_of(&String::from_utf8_lossy(&text));
        self.learn(key.clone(), habits);
        habits
    }
}

fn key(binary: &Path) -> Key {
    let changed = std::fs::metadata(binary).map_or(0, |meta| {
        meta.mtime().saturating_mul(1_000_000_000) + meta.mtime_nsec()
    });
    (binary.to_owned(), changed)
}

/// Go shims before 2.3 take the legacy form only, and say their version. Our own say that they serve
/// on an inherited socket.
fn habits_of(version_text: &str) -> Habits {
    let field = |name: &str| {
        let mut lines = version_text.lines();
        lines.find_map(|line| line.trim().strip_prefix(name).map(str::trim))
    };
    let go = field("Go version:").and(field("Version:"));
    Habits {
        form: go.map_or(Form::Untried, form_of_go),
        inherits: field("Socket:") == Some("inherited"),
    }
}

fn form_of_go(version: &str) -> Form {
    let mut parts = version
        .trim_start_matches('v')
        .split(['.', '-', '~', '+'])
        .map(str::parse::<u32>);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) < (2, 3) => Form::Legacy,
        (Some(Ok(_)), Some(Ok(_))) => Form::Params,
        _ => Form::Untried,
    }
}

fn legacy(options: Option<&Any>) -> Result<Vec<u8>> {
    options.map_or(Ok(Vec::new()), |any| encode(&any.to_wire()))
}

fn params(target: Target<'_>, options: Option<&Any>) -> Result<Vec<u8>> {
    let config = target.config;
    let level = if config.debug {
        LogLevel::LOG_LEVEL_DEBUG
    } else {
        LogLevel::LOG_LEVEL_INFO
    };
    let extension = |any: &Any| Extension {
        value: MessageField::some(any.to_wire()),
        ..Extension::default()
    };
    encode(&BootstrapParams {
        instance_id: target.id.to_string(),
        namespace: target.namespace.to_string(),
        log_level: level.into(),
        containerd_version: env!("CARGO_PKG_VERSION").to_owned(),
        containerd_ttrpc_address: config.ttrpc_address.clone(),
        containerd_grpc_address: config.grpc_address.clone(),
        containerd_binary: config.containerd_binary.display().to_string(),
        extensions: options.map(extension).into_iter().collect(),
        socket_dir: socket_dir(&config.state),
        ..BootstrapParams::default()
    })
}

/// Where the sockets of the shims of a daemon with this state are.
pub(crate) fn sockets_of(state: &Path) -> PathBuf {
    socket_dir(state).map_or_else(|| Path::new(DEFAULT_STATE).join("s"), PathBuf::from)
}

/// Directory for the shims' sockets when it is not their default one and a socket's path fits.
fn socket_dir(state: &Path) -> Option<String> {
    let dir = state.join("s").to_str()?.to_owned();
    let fits = dir.len() + 1 + SOCKET_NAME <= SOCKET_PATH;
    (fits && state != Path::new(DEFAULT_STATE)).then_some(dir)
}

fn encode(message: &impl Message) -> Result<Vec<u8>> {
    message
        .write_to_bytes()
        .map_err(|e| Error::internal("encode shim input").with_source(e))
}

/// The command line and environment that all actions share.
fn command(target: Target<'_>, action: &str) -> Spawn {
    let config = target.config;
    let mut spawn = Spawn::new(target.binary)
        .args(["-namespace", target.namespace.as_str()])
        .args(["-address", &config.grpc_address])
        .arg("-publish-binary")
        .arg(&config.containerd_binary)
        .args(["-id", target.id.as_str(), "-bundle"])
        .arg(target.bundle)
        .env("GOMAXPROCS", "2")
        // Parity: shim/util_unix: the daemon of 2.x says 2 and takes 3.
        .env("MAX_SHIM_VERSION", "2")
        .env("TTRPC_ADDRESS", &config.ttrpc_address)
        .env("GRPC_ADDRESS", &config.grpc_address)
        .env("NAMESPACE", target.namespace.as_str())
        .unmanaged()
        .cwd(target.bundle);
    if config.sched_core {
        spawn = spawn.env("SCHED_CORE", "1");
    }
    if config.debug {
        spawn = spawn.arg("-debug");
    }
    spawn.arg(action)
}

async fn launch(target: Target<'_>, input: &[u8]) -> Result<Address> {
    let spawn = command(target, "start");
    let ran = exec::run(spawn, input, Stderr::Merged, START)
        .await
        .ctx_with(|| format!("start shim {}", target.binary.display()))?;
    if !ran.status.is_success() {
        return Err(failed(target.binary, "start", &ran));
    }
    Address::parse(&ran.stdout).ctx_with(|| format!("start shim {}", target.binary.display()))
}

fn failed(binary: &Path, action: &str, ran: &Ran) -> Error {
    let output = if ran.stderr.is_empty() {
        &ran.stdout
    } else {
        &ran.stderr
    };
    Error::unknown(format_args!(
        "{action} shim {}: {}: exit status {}",
        binary.display(),
        answer::excerpt(output),
        ran.status.code()
    ))
}

/// What tells a bundle from a later one of the same name: our shim computes the same. A directory may get
/// the number of one that is gone; the spec in it is written once, when it is made.
fn identity(bundle: &Path) -> Option<String> {
    let directory = std::fs::metadata(bundle).ok()?;
    let spec = std::fs::metadata(bundle.join(types::bundle_file::CONFIG)).ok()?;
    let (device, number) = (directory.dev(), directory.ino());
    let (seconds, rest) = (spec.mtime(), spec.mtime_nsec());
    Some(format!("{device}:{number}:{seconds}.{rest:09}"))
}

/// Cleans up after a shim that is gone: kills the container, unmounts its root. Returns the exit that
/// the action reports.
///
/// # Errors
/// Unknown with what the shim printed, `DeadlineExceeded`.
pub(crate) async fn delete(target: Target<'_>) -> Result<Exit> {
    let mut spawn = command(target, "delete");
    if let Some(identity) = identity(target.bundle) {
        spawn = spawn.env(IDENTITY, identity);
    }
    let ran = exec::run(spawn, b"", Stderr::Apart, DELETE)
        .await
        .ctx_with(|| format!("delete shim {}", target.binary.display()))?;
    if !ran.status.is_success() {
        return Err(failed(target.binary, "delete", &ran));
    }
    if !ran.stderr.is_empty() {
        let text = answer::excerpt(&ran.stderr);
        tracing::debug!(namespace = %target.namespace, id = %target.id, "shim delete: {text}");
    }
    let answer = DeleteResponse::parse_from_bytes(&ran.stdout).map_err(|e| {
        Error::unknown(format_args!(
            "delete shim {}: unusable answer",
            target.binary.display()
        ))
        .with_source(e)
    })?;
    Ok(Exit {
        pid: answer.pid,
        status: answer.exit_status,
        at: client::exit_time(answer.exited_at.as_ref()),
    })
}

/// What the binary says of itself.
///
/// # Errors
/// `NotImplemented` for binaries from before 2.0, Unknown with what the shim printed.
pub(crate) async fn info(binary: &Path, options: Option<&Any>) -> Result<Any> {
    let spawn = Spawn::new(binary).arg("-info");
    let ran = exec::run(spawn, &legacy(options)?, Stderr::Apart, ASK)
        .await
        .ctx_with(|| format!("info of shim {}", binary.display()))?;
    if !ran.status.is_success() {
        let old = String::from_utf8_lossy(&ran.stderr).contains("flag provided but not defined");
        return Err(if old {
            Error::not_implemented(format_args!("info of shim {}", binary.display()))
        } else {
            failed(binary, "info of", &ran)
        });
    }
    let told = protos::types::RuntimeInfo::parse_from_bytes(&ran.stdout).map_err(|e| {
        Error::unknown(format_args!(
            "info of shim {}: unusable answer",
            binary.display()
        ))
        .with_source(e)
    })?;
    age::warn_once(&told);
    Ok(Any {
        type_url: "containerd.types.RuntimeInfo".to_owned(),
        value: ran.stdout,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_go_shims_get_the_legacy_form() {
        let text = |version: &str| {
            format!("shim:\n  Version:  {version}\n  Revision: x\n  Go version: go1.19.8\n\n")
        };
        for (version, form) in [
            ("1.6.20~ds1", Form::Legacy),
            ("v1.7.27", Form::Legacy),
            ("2.2.1+unknown", Form::Legacy),
            ("2.3.0", Form::Params),
            ("v2.4.0-beta.1", Form::Params),
            ("(devel)", Form::Untried),
        ] {
            assert_eq!(habits_of(&text(version)).form, form, "{version}");
        }
        for unknown in [
            "Kata Containers: version: 3.2.0",
            "shim:\n  Version: 0.1.0\n",
            "",
        ] {
            let habits = habits_of(unknown);
            assert_eq!((habits.form, habits.inherits), (Form::Untried, false));
        }
        assert!(habits_of("shim:\n  Version: 0.1.0\n  Socket: inherited\n").inherits);
    }

    #[test]
    fn binaries_without_number_are_not_remembered() {
        let shims = Shims::default();
        let habits = habits_of("");
        let fresh = Habits {
            form: Form::Params,
            ..habits
        };
        for n in 0..=MOST {
            let key = (PathBuf::from(n.to_string()), 0);
            shims.learn(key.clone(), habits);
            shims.learn(key.clone(), fresh);
            let known = shims.known();
            assert!(known.len() <= MOST);
            assert_eq!(known.get(&key), Some(&fresh));
        }
    }

    #[tokio::test]
    async fn what_is_learned_of_a_binary_is_not_said_of_the_one_that_replaces_it() {
        let dir = tempfile::tempdir().unwrap();
        let binary = dir.path().join("shim");
        // What it does as it starts is to be replaced.
        let script = "#!/bin/sh\n[ \"$1\" = -v ] && exit\n\
                      cp $0 $0.new && mv $0.new $0 && echo unix:///s\n";
        crate::testing::program(&binary, script);
        let before = key(&binary);
        let config = Config::of(dir.path());
        let target = Target {
            config: &config,
            namespace: &"ns".parse().unwrap(),
            id: &"c1".parse().unwrap(),
            bundle: dir.path(),
            binary: &binary,
        };
        let shims = Shims::default();
        shims.start(target, b"{}", None).await.unwrap();
        assert_ne!(key(&binary), before);
        let known: Vec<_> = shims.known().keys().cloned().collect();
        assert_eq!(known, [before]);
    }

    #[test]
    fn sockets_go_under_the_state_when_their_path_fits() {
        assert_eq!(socket_dir(Path::new("/run/containerd")), None);
        assert_eq!(socket_dir(Path::new("/tmp/x")), Some("/tmp/x/s".into()));
        assert_eq!(socket_dir(&Path::new("/tmp").join("x".repeat(40))), None);
    }
}
