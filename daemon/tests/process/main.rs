//! The daemon as a process: how it starts, refuses to start, and ends.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod handover;
mod refused;

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sys::process::{Child, Spawn, Status};
use tempfile::TempDir;

/// Longest wait for something that must come.
const SOON: Duration = Duration::from_secs(60);
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
        Self::with(|spawn| spawn)
    }

    fn with(change: impl FnOnce(Spawn) -> Spawn) -> Self {
        Self::made(|_| String::new(), change)
    }

    /// One whose configuration says more, by where its files are.
    fn configured(sections: impl FnOnce(&dyn Fn(&str) -> PathBuf) -> String) -> Self {
        Self::made(sections, |spawn| spawn)
    }

    fn made(
        sections: impl FnOnce(&dyn Fn(&str) -> PathBuf) -> String,
        change: impl FnOnce(Spawn) -> Spawn,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let notified = UnixDatagram::bind(path("notify")).unwrap();
        notified.set_read_timeout(Some(SOON)).unwrap();
        let config = format!("version = 2\n{}", sections(&path));
        std::fs::write(path("config.toml"), config).unwrap();
        let log = std::fs::File::create(path("log")).unwrap();
        let spawn = Spawn::new(BINARY)
            .args(["--config".into(), path("config.toml")])
            .args(["--root".into(), path("root")])
            .args(["--state".into(), path("state")])
            .args(["--address".into(), path("c.sock")])
            .env("NOTIFY_SOCKET", path("notify"))
            .stderr(log.into())
            .death_signal(9);
        let child = change(spawn).spawn().unwrap();
        let made = Self {
            child,
            notified,
            directory,
        };
        while made.notice() != "READY=1" {}
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

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap()
    }

    /// Waits until the log says `text`.
    fn logs(&self, text: &str) {
        let begun = Instant::now();
        loop {
            let log = self.log();
            if log.contains(text) {
                return;
            }
            assert!(begun.elapsed() < SOON, "{text:?} not in the log:\n{log}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn a_watchdog_is_told_as_long_as_the_daemon_is_alive() {
    let daemon = Daemon::with(|spawn| spawn.env("WATCHDOG_USEC", "100000"));
    for _ in 0..3 {
        assert_eq!(daemon.notice(), "WATCHDOG=1");
    }
    // One that does not get to run says nothing.
    daemon.child.kill(19).unwrap();
    let quiet = Duration::from_millis(300);
    daemon.notified.set_read_timeout(Some(quiet)).unwrap();
    let mut told = [0; 64];
    while daemon.notified.recv(&mut told).is_ok() {}
    daemon.child.kill(18).unwrap();
    daemon.notified.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(daemon.notice(), "WATCHDOG=1");
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
fn a_reload_does_what_can_be_done_and_says_what_waits() {
    let daemon = Daemon::start();
    let write = |text: &str| {
        let text = format!("version = 2\n{text}");
        std::fs::write(daemon.path("config.toml"), text).unwrap();
    };
    let reload = || {
        daemon.child.kill(1).unwrap();
        let told = daemon.notice();
        let (first, time) = told.split_once("\nMONOTONIC_USEC=").unwrap();
        assert_eq!(first, "RELOADING=1");
        assert!(time.parse::<u64>().unwrap() > 0, "{told}");
        assert_eq!(daemon.notice(), "READY=1");
    };
    write("[debug]\nlevel = 'debug'\n[grpc]\ngid = 7\n");
    reload();
    daemon
        .logs("msg=\"configuration reloaded\" changed=\"debug.level\" needs_restart=\"grpc.gid\"");
    write("[debug]\nlevel = 'loud'\n");
    reload();
    daemon.logs("reload refused");
    daemon.logs("config.toml: line 3: level: unknown variant `loud`");
    // The level is that of the last good file, and what waits is told again.
    write("[debug]\nlevel = 'error'\n[grpc]\ngid = 7\n");
    reload();
    write("[debug]\nlevel = 'info'\n");
    reload();
    daemon.logs("changed=\"debug.level\" needs_restart=\"nothing\"");
    let log = daemon.log();
    assert_eq!(log.matches("configuration reloaded").count(), 2, "{log}");
}

/// True when somebody speaks HTTP/2 there.
fn is_served(path: &Path) -> bool {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    stream.write_all(preface).unwrap();
    // The head of its own settings.
    let mut head = [0; 9];
    stream.read_exact(&mut head).is_ok() && head[3] == 4
}

/// What the debug socket answers.
fn looked(path: &Path, at: &str) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let request = format!("GET {at} HTTP/1.0\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn sockets_that_were_passed_are_served_and_stay() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let notified = UnixDatagram::bind(path("notify")).unwrap();
    notified.set_read_timeout(Some(SOON)).unwrap();
    std::fs::write(path("config.toml"), "version = 2\n").unwrap();
    // One goes by its name, one by its path, one is of no use here.
    let bind = |name: &str| UnixListener::bind(path(name)).unwrap();
    let (named, at_path, other) = (bind("named.sock"), bind("named.sock.ttrpc"), bind("other"));
    let debug = bind("debug.sock");
    // Made before the daemon is: it waits.
    let mut early = UnixStream::connect(path("named.sock")).unwrap();
    let log = std::fs::File::create(path("log")).unwrap();
    let child = Spawn::new("/bin/sh")
        .args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\"", BINARY])
        .args(["--config".into(), path("config.toml")])
        .args(["--root".into(), path("root")])
        .args(["--state".into(), path("state")])
        .args(["--address".into(), path("configured.sock")])
        .env("NOTIFY_SOCKET", path("notify"))
        .env("LISTEN_FDS", "4")
        .env("LISTEN_FDNAMES", "grpc:ttrpc:other:debug")
        .fd(named.into(), 3)
        .fd(at_path.into(), 4)
        .fd(other.into(), 5)
        .fd(debug.into(), 6)
        .stderr(log.into())
        .death_signal(9)
        .spawn()
        .unwrap();
    let daemon = Daemon {
        child,
        notified,
        directory,
    };
    assert_eq!(daemon.notice(), "READY=1");
    early.set_read_timeout(Some(SOON)).unwrap();
    // The first that a client of HTTP/2 says: without that there is nothing to answer.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    early.write_all(preface).unwrap();
    early.read_exact(&mut [0; 9]).unwrap();
    assert!(is_served(&daemon.path("named.sock")));
    assert!(!daemon.path("configured.sock").exists());
    UnixStream::connect(daemon.path("named.sock.ttrpc")).unwrap();
    // Without a word of it in the configuration.
    let index = looked(&daemon.path("debug.sock"), "/");
    assert!(
        index.contains("/flights") && index.contains(" 200 OK"),
        "{index}"
    );
    daemon.logs("nothing here serves a socket that was passed: closed\" name=\"other\"");
    // It says so first, and then closes it.
    let begun = Instant::now();
    while UnixStream::connect(daemon.path("other")).is_ok() {
        assert!(begun.elapsed() < SOON, "it stays open");
    }

    // All of them go over to a new daemon.
    daemon.child.kill(12).unwrap();
    let heir = handover::Heir::of(&daemon);
    assert_eq!(daemon.child.wait().unwrap(), Status::Exited(0));
    assert!(is_served(&daemon.path("named.sock")));
    let index = looked(&daemon.path("debug.sock"), "/");
    assert!(index.contains("/flights"), "{index}");

    heir.kill(15);
    assert_eq!(daemon.notice(), "STOPPING=1");
    heir.wait();
    // Who made them removes them.
    for name in ["named.sock", "named.sock.ttrpc", "debug.sock"] {
        assert!(daemon.path(name).exists(), "{name}");
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
fn an_old_file_is_migrated_on_request_and_stays_what_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.toml");
    let old = "[plugins.cri]\nsandbox_image = 'pause'\n";
    std::fs::write(&file, old).unwrap();
    let (status, text) = run(&["-c", &file.display().to_string(), "config", "migrate"]);
    assert_eq!(status, Status::Exited(0));
    for part in [
        "version = 3",
        "io.containerd.cri.v1.images",
        "sandbox = \"pause\"",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), old);
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
