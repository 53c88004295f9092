//! The daemon as a process: how it starts, refuses to start, and ends.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sys::process::{Child, Spawn, Status};
use tempfile::TempDir;

/// Longest wait for something that must come.
const SOON: Duration = Duration::from_secs(20);
const BINARY: &str = env!("CARGO_BIN_EXE_containerd");

/// A daemon in a directory of its own. Killed with the value.
struct Daemon {
    child: Child,
    notified: UnixDatagram,
    directory: TempDir,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ended = self.child.kill(9);
        let _reaped = self.child.wait();
    }
}

impl Daemon {
    /// Starts one and waits until it says that it is ready.
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let notified = UnixDatagram::bind(path("notify")).unwrap();
        notified.set_read_timeout(Some(SOON)).unwrap();
        std::fs::write(path("config.toml"), "version = 2\n").unwrap();
        let log = std::fs::File::create(path("log")).unwrap();
        let child = Spawn::new(BINARY)
            .args(["--config".into(), path("config.toml")])
            .args(["--root".into(), path("root")])
            .args(["--state".into(), path("state")])
            .args(["--address".into(), path("c.sock")])
            .env("NOTIFY_SOCKET", path("notify"))
            .stderr(log.into())
            .death_signal(9)
            .spawn()
            .unwrap();
        let made = Self {
            child,
            notified,
            directory,
        };
        assert_eq!(made.notice(), "READY=1");
        made
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What it tells the service manager next.
    fn notice(&self) -> String {
        let mut text = [0; 64];
        let read = self.notified.recv(&mut text).unwrap();
        String::from_utf8_lossy(&text[..read]).into_owned()
    }

    /// Waits until the log says `text`.
    fn logs(&self, text: &str) {
        let begun = Instant::now();
        loop {
            let log = std::fs::read_to_string(self.path("log")).unwrap();
            if log.contains(text) {
                return;
            }
            assert!(begun.elapsed() < SOON, "{text:?} not in the log:\n{log}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Runs the binary to its end; exit status and all that it printed.
fn run<A: AsRef<Path>>(args: &[A]) -> (Status, String) {
    let args = args.iter().map(|arg| arg.as_ref().as_os_str());
    let output = Spawn::new(BINARY)
        .args(args)
        .output(b"", 1 << 20, SOON)
        .unwrap();
    (output.status, String::from_utf8(output.text).unwrap())
}

#[test]
fn it_says_when_it_serves_and_ends_in_order() {
    let daemon = Daemon::start();
    for socket in ["c.sock", "c.sock.ttrpc"] {
        UnixStream::connect(daemon.path(socket)).unwrap();
    }
    daemon.child.kill(1).unwrap();
    daemon.logs("SIGHUP");
    daemon.child.kill(10).unwrap();
    daemon.logs("SIGUSR1");
    UnixStream::connect(daemon.path("c.sock")).unwrap();

    daemon.child.kill(15).unwrap();
    assert_eq!(daemon.notice(), "STOPPING=1");
    assert_eq!(daemon.child.wait().unwrap(), Status::Exited(0));
    for socket in ["c.sock", "c.sock.ttrpc"] {
        assert!(!daemon.path(socket).exists(), "{socket}");
    }
}

#[test]
fn a_killed_daemon_leaves_nothing_that_keeps_the_next_one_out() {
    let mut daemon = Daemon::start();
    daemon.child.kill(9).unwrap();
    assert_eq!(daemon.child.wait().unwrap(), Status::Signaled(9));
    assert!(daemon.path("c.sock").exists());
    let log = std::fs::File::create(daemon.path("log")).unwrap();
    daemon.child = Spawn::new(BINARY)
        .args(["-c".into(), daemon.path("config.toml")])
        .args(["--root".into(), daemon.path("root")])
        .args(["--state".into(), daemon.path("state")])
        .args(["-a".into(), daemon.path("c.sock")])
        .env("NOTIFY_SOCKET", daemon.path("notify"))
        .stderr(log.into())
        .death_signal(9)
        .spawn()
        .unwrap();
    assert_eq!(daemon.notice(), "READY=1");
}

#[test]
fn what_cannot_start_says_why_in_one_line() {
    let living = Daemon::start();
    let free = tempfile::tempdir().unwrap();
    let at = |name: &str| free.path().join(name);
    std::fs::write(at("file"), "").unwrap();
    std::fs::write(at("good.toml"), "version = 2\n").unwrap();
    std::fs::write(at("bad.toml"), "version = 2\nroot = 5\n").unwrap();
    let cri = "version = 2\nrequired_plugins = [\"io.containerd.grpc.v1.cri\"]\n";
    std::fs::write(at("cri.toml"), cri).unwrap();
    let (good, root, state, sock) = (at("good.toml"), at("root"), at("state"), at("c.sock"));
    let (theirs, in_use) = (living.path("root"), "is in use by another containerd");
    for (config, root, state, sock, part) in [
        (&good, &theirs, &state, &sock, in_use),
        (&good, &root, &living.path("state"), &sock, in_use),
        (
            &good,
            &root,
            &state,
            &living.path("c.sock"),
            "another daemon is serving at",
        ),
        (&good, &at("file/root"), &state, &sock, "not a directory"),
        (
            &good,
            &PathBuf::from("/proc/root"),
            &state,
            &sock,
            "mkdir /proc/root",
        ),
        (
            &good,
            &root,
            &root,
            &sock,
            "root and state must be different paths",
        ),
        (
            &at("none.toml"),
            &root,
            &state,
            &sock,
            "no such file or directory",
        ),
        (&at("cri.toml"), &root, &state, &sock, "required plugin"),
        (
            &at("bad.toml"),
            &root,
            &state,
            &sock,
            "line 2: invalid type",
        ),
    ] {
        let flag = PathBuf::from;
        let (status, text) = run(&[
            &flag("-l"),
            &flag("error"),
            &flag("-c"),
            config,
            &flag("--root"),
            root,
            &flag("--state"),
            state,
            &flag("-a"),
            sock,
        ]);
        assert_eq!(status, Status::Exited(1), "{text}");
        assert!(
            text.starts_with("containerd: ") && text.contains(part),
            "{part}: {text}"
        );
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!at("c.sock").exists(), "{part}");
    }
    UnixStream::connect(living.path("c.sock")).unwrap();
}

#[test]
fn the_default_configuration_is_one() {
    let (status, text) = run(&["config", "default"]);
    assert_eq!(status, Status::Exited(0));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.toml");
    std::fs::write(&file, &text).unwrap();
    let file = file.display().to_string();
    assert_eq!(
        run(&["-c", &file, "config", "dump"]),
        (Status::Exited(0), text)
    );
}

#[test]
fn the_version_is_three_words() {
    let (status, text) = run(&["--version"]);
    assert_eq!(status, Status::Exited(0));
    let words: Vec<_> = text.split_whitespace().collect();
    assert_eq!(
        (words.len(), words[0], words[2]),
        (3, "containerd", concat!("v", env!("CARGO_PKG_VERSION")))
    );
    assert_eq!(run(&["--nonsense"]).0, Status::Exited(2));
}
