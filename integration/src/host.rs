//! One private daemon and the clients that talk to it.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::daemon::{Parts, pinned_namespaces};
use crate::inventory::{Places, traces};
use crate::{Oci, Output, Program, Whose, bin_dir, need, until};

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

    fn of(name: &str, parts: Parts, sections: &str, root: Option<&Path>) -> Self {
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
        let mut host = Self {
            dir,
            root,
            namespace,
            parts,
            daemon: None,
            descriptors: 0,
            pinned: pinned_namespaces(),
            finished: false,
        };
        host.start();
        host
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

    /// What the daemon has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir().join("daemon.log")).unwrap_or_default()
    }

    /// Starts the daemon and waits until it answers.
    ///
    /// # Panics
    /// When it ends or does not answer in time.
    pub fn start(&mut self) {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir().join("daemon.log"))
            .expect("open the log");
        let mut child = self
            .parts
            .command(self.dir(), &self.root)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("dup"))
            .stderr(log)
            .spawn()
            .expect("start the daemon");
        until("the daemon answers", || {
            if let Some(status) = child.try_wait().expect("wait") {
                panic!("the daemon ended with {status}:\n{}", self.log());
            }
            self.ctr(["version"]).code == 0
        });
        self.daemon = Some(Daemon::Child(child));
        // The connection of the question that it answered may still be on its way out.
        self.descriptors = self.descriptors();
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

    fn client(&self, program: impl AsRef<std::ffi::OsStr>) -> Program {
        Program::new(program)
            .args(["--address"])
            .args([self.address().as_os_str()])
            .args(["-n", &self.namespace])
            // Not that of whoever runs the tests.
            .env("DOCKER_CONFIG", self.dir())
    }

    /// Runs the `ctr` that came with the daemon.
    #[must_use]
    pub fn ctr<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        self.ctr_program().args(args).run()
    }

    /// That `ctr`, to be given arguments.
    #[must_use]
    pub fn ctr_program(&self) -> Program {
        self.client(self.parts.client())
    }

    /// Runs that `ctr` in a terminal.
    #[must_use]
    pub fn ctr_in_terminal(&self, prepare: &str, args: &str) -> Output {
        let line = format!(
            "{prepare} exec {} --address {} -n {} {args}",
            self.parts.client().display(),
            self.address().display(),
            self.namespace
        );
        Program::new("script")
            .args(["-qec", &line, "/dev/null"])
            .run()
    }

    /// Runs Debian's `ctr`.
    #[must_use]
    pub fn go_ctr<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        self.go_ctr_program().args(args).run()
    }

    /// Debian's `ctr`, to be given arguments.
    #[must_use]
    pub fn go_ctr_program(&self) -> Program {
        self.client(need("ctr"))
    }

    /// Flags of `ctr run` that select this host's shim and OCI runtime.
    #[must_use]
    pub fn runtime_flags(&self) -> Vec<String> {
        self.parts.flags()
    }

    /// Runs `ctr run FLAGS IMAGE ID COMMAND` with this host's runtime.
    #[must_use]
    pub fn run(&self, flags: &[&str], id: &str, command: &[&str]) -> Output {
        self.ctr_program()
            .args(["run"])
            .args(self.runtime_flags())
            .args(flags)
            .args([IMAGE, id])
            .args(command)
            .run()
    }

    /// Starts a detached container that sleeps.
    pub fn sleeper(&self, id: &str) {
        drop(self.run(&["-d", "--null-io"], id, &["sleep", "1000"]).ok());
    }

    /// Pid of a task, from `ctr tasks ls`; `None` when it is not listed with `status`.
    #[must_use]
    pub fn task(&self, id: &str, status: &str) -> Option<u32> {
        let table = self.ctr(["tasks", "ls"]).ok();
        let row = table
            .lines()
            .find(|l| l.split_whitespace().next() == Some(id))?;
        let words: Vec<&str> = row.split_whitespace().collect();
        (words.get(2) == Some(&status))
            .then(|| words.get(1)?.parse().ok())
            .flatten()
    }

    /// Kills the task, waits for its end, and removes task and container.
    pub fn remove(&self, id: &str) {
        drop(self.ctr(["tasks", "kill", "-s", "KILL", id]));
        until("the task stops", || self.task(id, "STOPPED").is_some());
        // Debian's client ends with the task's own code.
        let told = self.ctr(["tasks", "rm", id]);
        assert!([0, 137].contains(&told.code), "{}", told.stderr);
        drop(self.ctr(["containers", "rm", id]).ok());
    }

    /// Imports the test image.
    pub fn image(&self) {
        drop(
            self.ctr(["images", "import", &archive().to_string_lossy()])
                .ok(),
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
        let mut found;
        // The last shim may still be on its way out, and collection is asynchronous.
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        loop {
            found = self.leftovers();
            let settled = found.is_empty() && self.descriptors() <= limit;
            if settled || std::time::Instant::now() > deadline {
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
        let open = self.descriptors();
        assert!(
            open <= limit,
            "{open} descriptors are open, {limit} were at the start"
        );
        assert!(
            pinned_namespaces() <= self.pinned,
            "a network namespace stays pinned"
        );
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
    for _ in 0..50 {
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

/// The test image's archive, which `make` made beside the binaries.
///
/// # Panics
/// When it is not there.
#[must_use]
pub fn archive() -> PathBuf {
    let path = bin_dir().join("../image.tar");
    assert!(
        path.exists(),
        "no {}: run this through make",
        path.display()
    );
    path
}

/// The realistic image: OCI layouts `gzip` and `zstd` below it, tag `latest`.
///
/// # Panics
/// When it is not there.
#[must_use]
pub fn layers() -> PathBuf {
    let path = bin_dir().join("../layers");
    assert!(
        path.exists(),
        "no {}: run this through make",
        path.display()
    );
    path
}
