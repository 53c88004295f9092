//! One private daemon and the clients that talk to it.

mod clients;
mod start;

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

pub use clients::{archive, layers};

use crate::daemon::{Parts, pinned_namespaces};
use crate::inventory::{Places, traces};
use crate::{Oci, PATIENCE, Program, Whose, until};

/// The service manager's socket, in a host's directory.
const NOTIFY: &str = "notify.sock";
const SIGKILL: i32 = 9;
const SIGUSR2: i32 = 12;
const SIGTERM: i32 = 15;

/// Name of the image that [`Host::image`] imports.
pub const IMAGE: &str = "example.test/demo/busybox:1";

/// The daemon's process.
#[derive(Debug)]
enum Daemon {
    /// Started by the test.
    Child(Child),
    /// Started by the daemon before it: nobody here can wait for it.
    Heir(u32, OwnedFd),
}

impl Daemon {
    fn pid(&self) -> u32 {
        match self {
            Self::Child(child) => child.id(),
            Self::Heir(pid, _) => *pid,
        }
    }

    fn signal(&self, signal: i32) {
        let sent = match self {
            Self::Child(child) => {
                sys::pidfd::open(child.id()).and_then(|fd| sys::pidfd::send_signal(fd, signal))
            }
            Self::Heir(_, process) => sys::pidfd::send_signal(process, signal),
        };
        sent.expect("signal the daemon");
    }

    /// Waits for its end; its status where that can be known.
    fn wait(&mut self) -> Option<ExitStatus> {
        let mut status = None;
        until("the daemon ends", || match self {
            Self::Child(child) => {
                status = child.try_wait().expect("wait");
                status.is_some()
            }
            Self::Heir(_, process) => !sys::pidfd::is_alive(process).expect("poll"),
        });
        status
    }
}

/// A daemon with a root, a state, a socket and a namespace of its own.
#[derive(Debug)]
pub struct Host {
    dir: tempfile::TempDir,
    root: PathBuf,
    namespace: String,
    parts: Parts,
    daemon: Option<Daemon>,
    /// What is more in the daemon's environment.
    env: Vec<(String, String)>,
    /// Hears what the daemon tells a service manager.
    notified: Option<UnixDatagram>,
    /// Descriptors that the daemon had open when it began to serve.
    descriptors: usize,
    /// Pinned network namespaces of the machine before the test.
    pinned: usize,
    finished: bool,
}

impl Host {
    /// Starts a daemon for the test `name` (an identifier, used as namespace) with runc.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self::with(name, Oci::Runc)
    }

    /// Starts a daemon whose containers run with `oci`.
    ///
    /// # Panics
    /// When the daemon does not serve within the limit.
    #[must_use]
    pub fn with(name: &str, oci: Oci) -> Self {
        Self::of(name, Parts::ours(oci), "", None)
    }

    /// Starts a daemon whose root is at `root`, a directory of a file system of the test's own.
    ///
    /// # Panics
    /// When the daemon does not serve within the limit.
    #[must_use]
    pub fn rooted(name: &str, root: &Path) -> Self {
        Self::of(name, Parts::ours(Oci::Runc), "", Some(root))
    }

    /// Starts a daemon of one origin whose containers get shims of another.
    ///
    /// # Panics
    /// When the daemon does not serve within the limit.
    #[must_use]
    pub fn mixed(name: &str, oci: Oci, daemon: Whose, shim: Whose) -> Self {
        Self::of(name, Parts { oci, daemon, shim }, "", None)
    }

    /// Starts a daemon of one origin, with shims of the same, whose configuration has more sections.
    ///
    /// # Panics
    /// When the daemon does not serve within the limit.
    #[must_use]
    pub fn configured(name: &str, whose: Whose, sections: &str) -> Self {
        let parts = Parts {
            oci: Oci::Runc,
            daemon: whose,
            shim: whose,
        };
        Self::of(name, parts, sections, None)
    }

    /// Starts a daemon in a network namespace of its own, whose configuration has more sections.
    ///
    /// # Panics
    /// When the daemon does not serve within the limit.
    #[must_use]
    pub fn apart(name: &str, sections: &str) -> Self {
        Self::of(name, Parts::ours(Oci::Apart), sections, None)
    }

    /// Starts a daemon that has a service manager to notify: this host.
    ///
    /// # Panics
    /// When the daemon does not serve within the limit.
    #[must_use]
    pub fn notifying(name: &str) -> Self {
        let mut host = Self::made(name, Parts::ours(Oci::Runc), "", None);
        let socket = UnixDatagram::bind(host.path(NOTIFY)).expect("bind");
        socket.set_nonblocking(true).expect("set non-blocking");
        host.notified = Some(socket);
        host.start();
        host
    }

    /// What the daemon has told the service manager since this was asked last.
    ///
    /// # Panics
    /// When nobody listens.
    #[must_use]
    pub fn notices(&self) -> Vec<String> {
        let socket = self.notified.as_ref().expect("a host that is notified");
        let mut text = [0; 256];
        let next = || {
            let length = socket.recv(&mut text).ok()?;
            Some(String::from_utf8_lossy(&text[..length]).into_owned())
        };
        std::iter::from_fn(next).collect()
    }

    fn of(name: &str, parts: Parts, sections: &str, root: Option<&Path>) -> Self {
        let mut host = Self::made(name, parts, sections, root);
        host.start();
        host
    }

    fn made(name: &str, parts: Parts, sections: &str, root: Option<&Path>) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "integration tests need root"
        );
        let dir = tempfile::Builder::new()
            .prefix("ctd-")
            .tempdir()
            .expect("make a directory");
        let namespace = format!("{name}-{}", std::process::id());
        let config = parts.config(dir.path()) + sections;
        fs::write(dir.path().join("config.toml"), config).expect("write the config");
        let root = root.map_or_else(|| dir.path().join("root"), Path::to_owned);
        Self {
            dir,
            root,
            namespace,
            parts,
            daemon: None,
            env: Vec::new(),
            notified: None,
            descriptors: 0,
            pinned: pinned_namespaces(),
            finished: false,
        }
    }

    /// The private directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The daemon's state directory.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.dir().join("state")
    }

    /// The daemon's root directory.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.root.clone()
    }

    /// The daemon's socket.
    #[must_use]
    pub fn address(&self) -> PathBuf {
        self.dir().join("c.sock")
    }

    /// The namespace that the clients use.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Pid of the daemon.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn daemon_pid(&self) -> u32 {
        self.daemon.as_ref().expect("the daemon runs").pid()
    }

    /// Has a daemon start over this host's files, with the configuration in the file of this name.
    #[must_use]
    pub fn over(&self, daemon: Program, config: &str) -> Program {
        daemon
            .args(["--root"])
            .args([self.root()])
            .args(["--state"])
            .args([self.state()])
            .args(["--address"])
            .args([self.address()])
            .args(["--config"])
            .args([self.path(config)])
    }

    /// What the daemon has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir().join("daemon.log")).unwrap_or_default()
    }

    /// Kills the daemon with SIGKILL.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill(&mut self) {
        let mut daemon = self.daemon.take().expect("the daemon runs");
        daemon.signal(SIGKILL);
        daemon.wait();
    }

    /// Asks the daemon to hand over to a new one, and waits until that serves and it has ended.
    ///
    /// # Panics
    /// When the daemon goes on, or does not end with 0.
    pub fn hand_over(&mut self) {
        let before = self.log().len();
        let mut old = self.daemon.take().expect("the daemon runs");
        old.signal(SIGUSR2);
        let status = old.wait();
        assert!(
            status.is_none_or(|s| s.success()),
            "{status:?}:\n{}",
            self.log()
        );
        let log = self.log();
        let pid = log[before..]
            .lines()
            .find_map(|line| line.split_once("the new daemon serves: leaving\" pid="))
            .and_then(|(_, pid)| pid.trim().parse().ok())
            .unwrap_or_else(|| panic!("no new daemon:\n{log}"));
        let process = sys::pidfd::open(pid).expect("the new daemon runs");
        self.daemon = Some(Daemon::Heir(pid, process));
    }

    /// Sends the daemon a signal.
    ///
    /// # Panics
    /// When it does not run.
    pub fn signal(&self, signal: i32) {
        self.daemon
            .as_ref()
            .expect("the daemon runs")
            .signal(signal);
    }

    /// What a power cut does beside the disks: daemon, shims and containers end in the middle of what they
    /// do, and mounts, cgroups and the state directory are gone.
    ///
    /// # Panics
    /// When the daemon does not run, or something cannot be removed.
    pub fn power_off(&mut self) {
        self.kill();
        kill_traces(self.dir.path(), &self.root, &self.namespace);
        fs::remove_dir_all(self.state()).expect("remove the state");
    }

    /// Stops the daemon with SIGTERM; it must end by itself with 0.
    ///
    /// # Panics
    /// When it does not.
    pub fn stop(&mut self) {
        let mut daemon = self.daemon.take().expect("the daemon runs");
        daemon.signal(SIGTERM);
        let code = daemon.wait();
        assert!(
            code.is_none_or(|code| code.success()),
            "the daemon ended with {code:?}:\n{}",
            self.log()
        );
    }

    /// Adds a directory for a file of the test.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// Open descriptors of the daemon.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        let dir = format!("/proc/{}/fd", self.daemon_pid());
        fs::read_dir(dir).map_or(0, Iterator::count)
    }

    /// What the machine holds for this host beside the daemon, one line each: see the inventory.
    ///
    /// # Panics
    /// When the daemon does not run.
    #[must_use]
    pub fn leftovers(&self) -> Vec<String> {
        let pid = self.daemon_pid();
        let table = format!("/proc/{pid}/mountinfo");
        traces(&Places {
            dir: self.dir.path(),
            root: &self.root,
            namespaces: vec![self.namespace.clone()],
            mounts: fs::read_to_string(table).expect("mount table"),
            allowed: vec![pid],
        })
    }

    /// Ends the test: no container record may be left, the daemon stops, and nothing remains.
    ///
    /// # Panics
    /// When something is left; the message lists it.
    pub fn finish(mut self) {
        let left = self.ctr(["containers", "ls", "-q"]).ok();
        assert!(left.trim().is_empty(), "containers are left: {left}");
        let tasks = self.ctr(["tasks", "ls", "-q"]).ok();
        assert!(tasks.trim().is_empty(), "tasks are left: {tasks}");
        let leases = self.ctr(["leases", "ls", "-q"]).ok();
        assert!(leases.trim().is_empty(), "leases are left: {leases}");
        // Debian's daemon keeps what it opened for the next time.
        let limit = match self.parts.daemon {
            Whose::Ours => self.descriptors,
            Whose::Debian => usize::MAX,
        };
        let (mut found, mut open, mut pinned);
        // The last shim may still be on its way out, and collection is asynchronous.
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Counted once: a directory that is being emptied is open for a moment.
            (found, open) = (self.leftovers(), self.descriptors());
            // The machine's: another test may be at work with one.
            pinned = pinned_namespaces();
            let settled = found.is_empty() && open <= limit && pinned <= self.pinned;
            if settled || Instant::now() > deadline {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let log = self.log();
        assert!(
            found.is_empty(),
            "left behind:\n{}\n\nlog:\n{log}",
            found.join("\n")
        );
        assert!(
            open <= limit,
            "{open} descriptors are open, {limit} were at the start"
        );
        assert!(pinned <= self.pinned, "a network namespace stays pinned");
        self.stop();
        assert!(!self.address().exists(), "the socket outlived the daemon");
        self.finished = true;
    }
}

impl Drop for Host {
    /// A failed test must not leave its processes and mounts to the next one.
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let log = self.log();
        let tail: Vec<&str> = log.lines().rev().take(60).collect();
        for line in tail.iter().rev() {
            drop(writeln_stderr(line));
        }
        if let Some(daemon) = self.daemon.take() {
            // It may have ended by itself.
            drop(
                sys::pidfd::open(daemon.pid()).and_then(|fd| sys::pidfd::send_signal(fd, SIGKILL)),
            );
            if let Daemon::Child(mut child) = daemon {
                drop(child.wait());
            }
        }
        kill_traces(self.dir.path(), &self.root, &self.namespace);
    }
}

fn writeln_stderr(line: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    writeln!(std::io::stderr(), "{line}")
}

/// Kills by pid what the failed test started, and unmounts what it mounted.
pub(crate) fn kill_traces(dir: &Path, root: &Path, namespace: &str) {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        // The thread may have mounts of its own.
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
        let places = Places {
            dir,
            root,
            namespaces: vec![namespace.to_owned()],
            mounts,
            allowed: Vec::new(),
        };
        let found = traces(&places);
        let mut busy = false;
        for line in &found {
            if let Some(pid) = line
                .strip_prefix("process ")
                .and_then(|rest| rest.split(':').next())
                .and_then(|pid| pid.parse::<i32>().ok())
                .and_then(rustix::process::Pid::from_raw)
            {
                busy = true;
                // It may have ended in between.
                let _gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            } else if let Some(point) = line.strip_prefix("mount: ") {
                busy = true;
                if let Some(point) = point.split(' ').nth(4) {
                    drop(Command::new("umount").args(["-l", point]).output());
                }
            } else if let Some(group) = line.strip_prefix("cgroup: ") {
                // Busy until its processes are gone.
                busy = true;
                drop(fs::remove_dir(group));
            }
        }
        if !busy {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
