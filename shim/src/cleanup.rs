//! `delete`: what is left when a shim is gone, also when half of the bundle is missing.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use protos::shim::task::DeleteResponse;
use protos::wire::Wire as _;
use protos::{Message as _, MessageField};
use sys::process::Spawn;
use types::{Error, Exit, Result, bundle_file};

use crate::exits;
use crate::flags::Flags;
use crate::options::Options;
use crate::runc::is_plain;

/// Daemons wait 5 s for the whole action.
const RUNTIME_TIME: Duration = Duration::from_secs(4);
const RUNTIME_OUTPUT: usize = 64 * 1024;
/// What clean-up ends has been killed.
const KILLED: u32 = 137;
/// Variable in which our daemon says which bundle it means.
const IDENTITY: &str = "BUNDLE_IDENTITY";

/// Removes what the runtime and the shim left, and returns what to print: how the init ended, as the
/// shim recorded it, else as killed now.
///
/// # Errors
/// When the runtime fails and the init lives, or the root file system cannot be unmounted;
/// `FailedPrecondition` when the bundle is another one than the daemon means.
pub(crate) fn delete(flags: &Flags) -> Result<Vec<u8>> {
    delete_meant(flags, std::env::var(IDENTITY).ok().as_deref())
}

fn delete_meant(flags: &Flags, meant: Option<&str>) -> Result<Vec<u8>> {
    let bundle = std::path::absolute(&flags.bundle).map_err(|e| Error::os("bundle", e))?;
    check(&bundle, meant)?;
    let recorded = exits::read(&bundle);
    let pid = std::fs::read_to_string(bundle.join(bundle_file::INIT_PID));
    let pid = pid
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0);
    let options = Options::load(&bundle);
    let root = options.runtime_root(&bundle, &flags.namespace);
    let started = recorded_start(&root.join(&flags.id));
    let removed = remove_container(flags, &options, &root);
    if recorded.is_none() && is_init_alive(pid, started) {
        // What lives keeps its root file system and its record; somebody must come again.
        removed?;
    }
    // The runtime may have taken its time.
    check(&bundle, meant)?;
    sys::mount::unmount_recursive(&bundle.join(bundle_file::ROOTFS))?;
    remove_socket(&bundle);
    let exit = recorded.unwrap_or(Exit {
        pid,
        status: KILLED,
        at: SystemTime::now(),
    });
    let response = DeleteResponse {
        pid: exit.pid,
        exit_status: exit.status,
        exited_at: MessageField::some(exit.at.to_wire()),
        ..DeleteResponse::default()
    };
    response.write_to_bytes().map_err(Error::internal)
}

/// Whether the bundle is the one that was meant. This process may outlive the daemon that has started it, and
/// the next one may have made another container of that name.
fn check(bundle: &Path, meant: Option<&str>) -> Result<()> {
    if meant.is_some_and(|meant| identity(bundle).as_deref() != Some(meant)) {
        let bundle = bundle.display();
        return Err(Error::failed_precondition(format_args!(
            "{bundle} is another bundle by now"
        )));
    }
    Ok(())
}

/// What tells a bundle from a later one of the same name, as our daemon computes it.
fn identity(bundle: &Path) -> Option<String> {
    let directory = std::fs::metadata(bundle).ok()?;
    let spec = std::fs::metadata(bundle.join(bundle_file::CONFIG)).ok()?;
    let (device, number) = (directory.dev(), directory.ino());
    let (seconds, rest) = (spec.mtime(), spec.mtime_nsec());
    Some(format!("{device}:{number}:{seconds}.{rest:09}"))
}

fn remove_container(flags: &Flags, options: &Options, root: &Path) -> Result<()> {
    if is_plain(options.binary()) && !root.join(&flags.id).exists() {
        return Ok(());
    }
    let removed = Spawn::new(options.binary())
        .arg("--root")
        .arg(root)
        .args(["delete", "--force", &flags.id])
        .unmanaged()
        .output(b"", RUNTIME_OUTPUT, RUNTIME_TIME)?;
    if removed.status.is_success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&removed.text);
    Err(Error::unknown(format_args!(
        "{} delete: {}",
        options.binary(),
        text.trim()
    )))
}

/// A pid in a file may be another process's by now: the runtime's record says when the init began.
fn is_init_alive(pid: u32, started: Option<u64>) -> bool {
    let alive = sys::pidfd::open(pid).is_ok_and(|fd| sys::pidfd::is_alive(fd).unwrap_or(false));
    let same = |started| sys::process::start_time(pid) == Some(started);
    alive && started.is_none_or(same)
}

/// When the init began, in the kernel's ticks, as runc (`state.json`) or crun (`status`) keep it.
fn recorded_start(record: &Path) -> Option<u64> {
    let files = [
        ("state.json", "init_process_start"),
        ("status", "process-start-time"),
    ];
    files.into_iter().find_map(|(file, name)| {
        let text = std::fs::read(record.join(file)).ok()?;
        let record: serde_json::Value = serde_json::from_slice(&text).ok()?;
        record.get(name)?.as_u64().filter(|started| *started != 0)
    })
}

/// A shim that was killed leaves its socket file; one that lives (for others of its group) keeps it.
fn remove_socket(bundle: &Path) {
    let Ok(address) = std::fs::read_to_string(bundle.join(bundle_file::ADDRESS)) else {
        return;
    };
    let Some(path) = address.trim().strip_prefix("unix://").map(Path::new) else {
        return;
    };
    let refused = std::os::unix::net::UnixStream::connect(path)
        .is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused);
    if refused {
        drop(std::fs::remove_file(path));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(bundle: &Path) -> Flags {
        let bundle = bundle.display().to_string();
        let line = [
            "-namespace",
            "ns",
            "-id",
            "c1",
            "-address",
            "",
            "-bundle",
            &bundle,
            "delete",
        ];
        Flags::parse(line.map(Into::into)).unwrap()
    }

    #[test]
    fn an_empty_or_absent_bundle_counts_as_killed() {
        let dir = tempfile::tempdir().unwrap();
        for bundle in [dir.path().to_owned(), dir.path().join("absent/x/y")] {
            let answer = delete(&flags(&bundle)).unwrap();
            let answer = DeleteResponse::parse_from_bytes(&answer).unwrap();
            assert_eq!((answer.pid, answer.exit_status), (0, 137));
            assert!(answer.exited_at.seconds > 0);
        }
    }

    #[test]
    fn a_container_that_was_made_since_is_not_the_one_that_was_meant() {
        let dir = tempfile::tempdir().unwrap();
        let called = dir.path().join("called");
        let runtime = dir.path().join("runtime.sh");
        let text = format!("#!/bin/sh\ntouch {}\n", called.display());
        crate::testing::program(&runtime, &text);
        let make = |name: &str| {
            let bundle = dir.path().join(name);
            std::fs::create_dir(&bundle).unwrap();
            std::fs::write(bundle.join("config.json"), "{}").unwrap();
            std::fs::write(
                bundle.join("runtime"),
                runtime.as_os_str().as_encoded_bytes(),
            )
            .unwrap();
            bundle
        };
        let bundle = make("c1");
        let meant = identity(&bundle).unwrap();
        // As the next daemon removes it, and makes another.
        std::fs::rename(&bundle, dir.path().join(".c1")).unwrap();
        let gone = delete_meant(&flags(&bundle), Some(&meant)).unwrap_err();
        make("c1");
        let other = delete_meant(&flags(&bundle), Some(&meant)).unwrap_err();
        for error in [gone, other] {
            assert!(error.is(types::Code::FailedPrecondition), "{error}");
        }
        assert!(!called.exists());
        let meant = identity(&bundle).unwrap();
        delete_meant(&flags(&bundle), Some(&meant)).unwrap();
        assert!(called.exists());
    }

    #[test]
    fn what_lives_is_not_given_up() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("runtime"), "/no/such/runtime").unwrap();
        let child = Spawn::new("sleep").arg("60").spawn().unwrap();
        std::fs::write(dir.path().join("init.pid"), child.pid().to_string()).unwrap();
        let error = delete(&flags(dir.path())).unwrap_err();
        assert!(error.to_string().contains("/no/such/runtime"), "{error}");
        child.kill(libc::SIGKILL).unwrap();
        child.wait().unwrap();
        delete(&flags(dir.path())).unwrap();
    }

    #[test]
    fn a_pid_that_was_used_again_is_not_the_init() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("run");
        let options = serde_json::json!({"root": root, "binary_name": "/no/such/runtime"});
        std::fs::write(dir.path().join("options.json"), options.to_string()).unwrap();
        let me = std::process::id();
        std::fs::write(dir.path().join("init.pid"), me.to_string()).unwrap();
        let start = sys::process::start_time(me).unwrap();
        let record = root.join("ns/c1");
        std::fs::create_dir_all(&record).unwrap();
        for (file, name) in [
            ("state.json", "init_process_start"),
            ("status", "process-start-time"),
        ] {
            let write = |start: u64| {
                let text = serde_json::json!({"id": "c1", name: start}).to_string();
                std::fs::write(record.join(file), text).unwrap();
            };
            write(start);
            delete(&flags(dir.path())).unwrap_err();
            write(start - 1);
            delete(&flags(dir.path())).unwrap();
            std::fs::remove_file(record.join(file)).unwrap();
        }
        // Nobody knows: it may be the init.
        delete(&flags(dir.path())).unwrap_err();
    }

    #[test]
    fn the_recorded_end_is_told_and_a_dead_socket_removed() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        crate::testing::dead_socket(&socket);
        std::fs::write(
            dir.path().join("address"),
            format!("unix://{}", socket.display()),
        )
        .unwrap();
        std::fs::write(dir.path().join("init.pid"), "77").unwrap();
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(5);
        exits::record(
            dir.path(),
            "",
            Exit {
                pid: 77,
                status: 3,
                at,
            },
            false,
        )
        .unwrap();
        let answer = delete(&flags(dir.path())).unwrap();
        let answer = DeleteResponse::parse_from_bytes(&answer).unwrap();
        assert_eq!(
            (answer.pid, answer.exit_status, answer.exited_at.seconds),
            (77, 3, 5)
        );
        assert!(!socket.exists());
    }
}
