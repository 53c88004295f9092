//! A running daemon hands over to a new one, or goes on.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use sys::fifo::{End, Fifo};
use sys::process::Status;

use super::{Daemon, SOON, is_served, run};

const SIGHUP: i32 = 1;
const SIGUSR2: i32 = 12;

/// A daemon that another one has started. Killed with the value.
pub(super) struct Heir {
    pid: u32,
    process: OwnedFd,
}

impl Drop for Heir {
    fn drop(&mut self) {
        let _ended = sys::pidfd::send_signal(&self.process, 9);
    }
}

impl Heir {
    /// The one that systemd is told of, when it serves.
    pub(super) fn of(daemon: &Daemon) -> Self {
        let told = daemon.notice();
        assert!(told.starts_with("RELOADING=1"), "{told}");
        let told = daemon.notice();
        let (pid, ready) = told
            .strip_prefix("MAINPID=")
            .and_then(|rest| rest.split_once('\n'))
            .unwrap();
        assert_eq!(ready, "READY=1");
        assert_eq!(daemon.notice(), "READY=1");
        let pid = pid.parse().unwrap();
        let process = sys::pidfd::open(pid).unwrap();
        Self { pid, process }
    }

    pub(super) fn kill(&self, signal: i32) {
        sys::pidfd::send_signal(&self.process, signal).unwrap();
    }

    pub(super) fn wait(&self) {
        let begun = Instant::now();
        while sys::pidfd::is_alive(&self.process).unwrap() {
            assert!(begun.elapsed() < SOON, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn a_running_daemon_hands_over_to_a_new_one_and_goes() {
    let daemon = Daemon::start();
    let (socket, ttrpc) = (daemon.path("c.sock"), daemon.path("c.sock.ttrpc"));
    daemon.child.kill(12).unwrap();
    let first = Heir::of(&daemon);
    assert_ne!(first.pid, daemon.child.pid());
    assert_eq!(daemon.child.wait().unwrap(), Status::Exited(0));
    assert!(is_served(&socket));
    UnixStream::connect(&ttrpc).unwrap();
    // The lock was never open, and has the name of the one that holds it now.
    let (status, text) = run(&[
        &PathBuf::from("-c"),
        &daemon.path("config.toml"),
        &"--root".into(),
        &daemon.path("root"),
        &"--state".into(),
        &daemon.path("other"),
        &"-a".into(),
        &daemon.path("other.sock"),
    ]);
    assert_eq!(status, Status::Exited(75));
    let named = format!("is in use by another containerd, process {} (", first.pid);
    assert!(text.contains(&named), "{text}");
    // It is a daemon like any other: it hands over, and it ends in order.
    first.kill(12);
    let second = Heir::of(&daemon);
    first.wait();
    assert!(is_served(&socket));
    second.kill(15);
    assert_eq!(daemon.notice(), "STOPPING=1");
    second.wait();
    assert!(!socket.exists() && !ttrpc.exists());
}

#[test]
fn a_new_daemon_that_fails_leaves_the_old_one_where_it_was() {
    let daemon = Daemon::start();
    let write = |text: &str| std::fs::write(daemon.path("config.toml"), text).unwrap();
    for (config, why) in [
        // Before it gets anything.
        (
            "version = 2\nroot = 5\n",
            "config.toml: line 2: root: invalid type",
        ),
        // When the stores are its own: a plugin that must be there.
        (
            "version = 2\nrequired_plugins = [\"io.containerd.grpc.v1.cri\"]\n",
            "required plugin \\\"io.containerd.grpc.v1.cri\\\" is not there",
        ),
    ] {
        write(config);
        daemon.child.kill(12).unwrap();
        assert!(daemon.notice().starts_with("RELOADING=1"));
        assert_eq!(daemon.notice(), "READY=1");
        daemon.logs("going on\" error=");
        daemon.logs(why);
        assert!(is_served(&daemon.path("c.sock")), "{config}");
    }
    daemon.child.kill(15).unwrap();
    assert_eq!(daemon.notice(), "STOPPING=1");
    assert_eq!(daemon.child.wait().unwrap(), Status::Exited(0));
    assert!(!daemon.path("c.sock").exists());
}

/// A daemon that was killed when it had closed its stores and its successor had yet to tell the service manager of
/// itself, and that successor. `None` when the daemon was gone before.
fn killed_in_between() -> Option<(Daemon, Heir)> {
    let daemon = Daemon::start();
    daemon.child.kill(SIGUSR2).unwrap();
    daemon.logs("starting a new daemon");
    let log = daemon.log();
    let pid = log.split_once("pid=").unwrap().1;
    let pid = pid.split_whitespace().next().unwrap().parse().unwrap();
    let process = sys::pidfd::open(pid).unwrap();
    let heir = Heir { pid, process };
    // Its stores are closed when one thread is left: from then on the new one is at work.
    let tasks = format!("/proc/{}/task", daemon.child.pid());
    let begun = Instant::now();
    while std::fs::read_dir(&tasks).unwrap().count() > 1 {
        assert!(begun.elapsed() < SOON, "it goes on");
    }
    daemon.child.kill(9).unwrap();
    let status = daemon.child.wait().unwrap();
    if status == Status::Exited(0) {
        return None;
    }
    assert_eq!(status, Status::Signaled(9));
    Some((daemon, heir))
}

#[test]
fn a_new_daemon_that_the_service_manager_does_not_know_of_ends() {
    /// The moment is short, and on a busy machine it can pass unseen.
    const TRIES: usize = 20;
    let caught = (0..TRIES).find_map(|_| killed_in_between());
    let (daemon, heir) = caught.unwrap();
    heir.wait();
    let (status, text) = run(&[
        &PathBuf::from("-c"),
        &daemon.path("config.toml"),
        &"--root".into(),
        &daemon.path("root"),
        &"--state".into(),
        &daemon.path("state"),
        &"fsck".into(),
    ]);
    assert_eq!(status, Status::Exited(0), "{text}");
}

/// A daemon whose successor reads its configuration only when the test lets it, which has asked for a
/// reload meanwhile; what is to be written for the successor to go on.
fn asked_meanwhile() -> (Daemon, impl FnOnce(&Daemon, &str)) {
    let daemon = Daemon::start();
    let config = daemon.path("config.toml");
    std::fs::remove_file(&config).unwrap();
    drop(Fifo::make(&config, 0o600).unwrap());
    daemon.child.kill(SIGUSR2).unwrap();
    // Can be had when the successor reads.
    let fifo = Fifo::find(&config).unwrap();
    let begun = Instant::now();
    let mut fifo = loop {
        match fifo.open(End::Write) {
            Ok(opened) => break File::from(opened),
            Err(error) => assert!(begun.elapsed() < SOON, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let new = daemon.path("new.toml");
    std::fs::write(&new, "version = 2\noom_score = 5\n").unwrap();
    std::fs::rename(new, config).unwrap();
    daemon.child.kill(SIGHUP).unwrap();
    daemon.logs("is read again when the hand-over is done");
    let go_on = move |_: &Daemon, text: &str| fifo.write_all(text.as_bytes()).unwrap();
    (daemon, go_on)
}

#[test]
fn a_reload_that_falls_into_a_hand_over_is_the_new_daemon_s() {
    let (daemon, go_on) = asked_meanwhile();
    go_on(&daemon, "version = 2\n");
    daemon.logs("configuration reloaded\" changed=\"oom_score\"");
    let pid = daemon.log();
    let pid = pid
        .split_once("the new daemon serves: leaving\" pid=")
        .unwrap()
        .1;
    let pid: u32 = pid.split_whitespace().next().unwrap().parse().unwrap();
    let process = sys::pidfd::open(pid).unwrap();
    let heir = Heir { pid, process };
    let score = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    assert_eq!(score.trim(), "5");
    heir.kill(15);
    heir.wait();
}

#[test]
fn a_reload_that_falls_into_a_hand_over_that_fails_is_the_old_daemon_s() {
    let (daemon, go_on) = asked_meanwhile();
    go_on(&daemon, "version = 2\nroot = 5\n");
    daemon.logs("configuration reloaded\" changed=\"oom_score\"");
    assert!(daemon.log().contains("going on"));
    let path = format!("/proc/{}/oom_score_adj", daemon.child.pid());
    assert_eq!(std::fs::read_to_string(path).unwrap().trim(), "5");
}

#[test]
fn sockets_that_the_new_configuration_has_elsewhere_are_told_and_stay() {
    let daemon = Daemon::start();
    let other = daemon.path("other.sock");
    let config = format!("version = 2\n[ttrpc]\naddress = '{}'\n", other.display());
    std::fs::write(daemon.path("config.toml"), config).unwrap();
    daemon.child.kill(SIGUSR2).unwrap();
    let heir = Heir::of(&daemon);
    daemon.logs("another address needs a restart\" socket=\"ttrpc\" at=");
    assert!(!daemon.log().contains("socket=\"grpc\""));
    UnixStream::connect(daemon.path("c.sock.ttrpc")).unwrap();
    assert!(!other.exists());
    heir.kill(15);
    heir.wait();
}

#[test]
fn a_configuration_that_has_become_empty_resets_nothing() {
    let daemon = Daemon::start();
    std::fs::write(daemon.path("config.toml"), "").unwrap();
    daemon.child.kill(SIGHUP).unwrap();
    daemon.logs("config.toml is empty, a restart would take the defaults");
    assert!(is_served(&daemon.path("c.sock")));
}
