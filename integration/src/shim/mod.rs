//! A daemon as far as shims see one: starts the shim's binary in every way that daemons do, hears its
//! events, and speaks Task to it. For testing the shim alone.
//!
//! ```text
//! Driver ─ bundle ─ start ──> Shim ─ task ──> Task: create, start, exec, wait, kill, delete ...
//!    └ events: every envelope, in order          └ raw: bytes on the socket
//! ```
//! Invariant: a driver has directories, a namespace and control groups of its own; at its end the
//! shims are gone and nothing of theirs is left, or it fails. Everything blocks; threads are how a
//! test does several things at once.

mod bundle;
mod events;
mod raw;
mod script;
mod start;
mod task;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sys::process::{Child, Output, Spawn};

use crate::daemon::hide_unified;
use crate::host::kill_traces;
use crate::inventory::{Places, hierarchies, traces};
use crate::{Oci, Program, bin_dir, need, until};

pub use bundle::Bundle;
pub use events::Event;
pub use raw::{Frame, Raw};
pub use script::Script;
pub use start::{Answer, Contract, Form};
pub use task::{Io, Task, process};

/// How long anything may take.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// A daemon as far as shims see one.
#[derive(Debug)]
pub struct Driver {
    dir: tempfile::TempDir,
    namespace: String,
    oci: Oci,
    runtime: tokio::runtime::Runtime,
    heard: Arc<events::Heard>,
    server: Mutex<Option<events::Server>>,
    shims: Mutex<Vec<Shim>>,
    /// Servers that were started directly: children of this process, to be reaped.
    children: Mutex<Vec<Child>>,
    /// Of the shims, besides what daemons give them.
    env: Vec<(String, String)>,
    finished: bool,
}

/// A shim that serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shim {
    /// Its socket, with its scheme.
    pub address: String,
    /// Its process.
    pub pid: u32,
}

/// What a process uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Open descriptors.
    pub descriptors: usize,
    /// Proportional set size, KiB.
    pub pss: u64,
    /// Private pages, clean and dirty, KiB.
    pub private: u64,
    /// Anonymous pages, KiB.
    pub anonymous: u64,
    /// Threads.
    pub threads: usize,
}

impl Driver {
    /// A driver for the test `name` (an identifier) whose containers run with runc.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self::with(name, Oci::Runc)
    }

    /// A driver whose containers run with `oci`.
    ///
    /// # Panics
    /// When the directories or the events' socket cannot be made.
    #[must_use]
    pub fn with(name: &str, oci: Oci) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("ctd-")
            .tempdir()
            .expect("make a directory");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("start a runtime");
        make_rootfs(&dir.path().join("rootfs"));
        let driver = Self {
            dir,
            namespace: format!("{name}-{}", std::process::id()),
            oci,
            runtime,
            heard: Arc::default(),
            server: Mutex::default(),
            shims: Mutex::default(),
            children: Mutex::default(),
            env: Vec::new(),
            finished: false,
        };
        driver.listen();
        driver
    }

    /// Sets a variable for the shims that are started.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The private directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A path in the private directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// The namespace of all its containers.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The runtime's binary.
    #[must_use]
    pub fn binary(&self) -> PathBuf {
        match self.oci {
            Oci::Runc | Oci::Apart => need("runc"),
            Oci::Crun => need("crun"),
        }
    }

    /// Where the runtime keeps its state of a container.
    #[must_use]
    pub fn runtime_state(&self, id: &str) -> PathBuf {
        self.path("state/runc").join(&self.namespace).join(id)
    }

    /// Directory of a container's bundle.
    #[must_use]
    pub fn bundle(&self, id: &str) -> PathBuf {
        let tasks = self.path("state/io.containerd.runtime.v2.task");
        tasks.join(&self.namespace).join(id)
    }

    /// The control groups of a container, in every hierarchy that has one.
    #[must_use]
    pub fn groups(&self, id: &str) -> Vec<PathBuf> {
        let own = |root: PathBuf| root.join(&self.namespace).join(id);
        let groups = hierarchies().into_iter().map(own);
        groups.filter(|group| group.exists()).collect()
    }

    /// A container's own file for its output, as a `file://` address.
    #[must_use]
    pub fn log(&self, id: &str) -> String {
        format!("file://{}", self.path(&format!("{id}.out")).display())
    }

    /// What went to [`Self::log`].
    #[must_use]
    pub fn output(&self, id: &str) -> String {
        fs::read_to_string(self.path(&format!("{id}.out"))).unwrap_or_default()
    }

    /// A fifo in the private directory.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn fifo(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        drop(sys::fifo::Fifo::make(&path, 0o600).expect("make a fifo"));
        path
    }

    /// A bundle and a connection to its own shim; the container is not created yet.
    #[must_use]
    pub fn task(&self, id: &str, bundle: &Bundle) -> Task {
        self.write(id, bundle);
        let shim = self.start(id, Contract::Bootstrap);
        self.connect(&shim, id)
    }

    /// A started container that runs `script`, with its output in [`Self::log`].
    ///
    /// # Panics
    /// When the shim refuses.
    #[must_use]
    pub fn run(&self, id: &str, script: &str) -> Task {
        let task = self.task(id, &Bundle::new(script));
        task.create(&Io::log(&self.log(id))).expect("create");
        task.start("").expect("start");
        task
    }

    /// Runs an action of the shim's binary for a container to its end.
    ///
    /// # Panics
    /// When it cannot be started or does not end.
    #[must_use]
    pub fn action(&self, id: &str, action: &str, input: &[u8]) -> Output {
        let spawn = self.in_bundle(id).arg(action);
        let output = spawn.output(input, 1 << 20, LONG);
        output.expect("run the shim's binary")
    }

    /// The shim's binary with the flags that every daemon gives.
    fn command(&self, id: &str) -> Spawn {
        let binary = bin_dir().join("containerd-shim-runc-v2");
        let spawn = match self.oci {
            Oci::Runc | Oci::Apart => Spawn::new(binary),
            Oci::Crun => Spawn::new("unshare").args(hide_unified()).arg(binary),
        };
        let path = std::env::var("PATH").unwrap_or_default();
        let env = self.env.iter();
        env.fold(spawn, |spawn, (name, value)| spawn.env(name, value))
            .args(["-namespace", &self.namespace, "-id", id, "-address"])
            .arg(self.path("c.sock"))
            .env("TTRPC_ADDRESS", self.path("c.sock.ttrpc"))
            .env("PATH", format!("{path}:/usr/sbin:/sbin"))
            .env_remove("MAX_SHIM_VERSION")
    }

    /// The same for the actions that name the bundle: all but `start`, which runs in it.
    fn in_bundle(&self, id: &str) -> Spawn {
        let command = self.command(id).arg("-bundle").arg(self.bundle(id));
        command.cwd(self.dir())
    }

    /// Ends the test: every shim must end by itself now, and nothing of it may be left.
    ///
    /// # Panics
    /// When something is left; the message lists it.
    pub fn finish(mut self) {
        let shims: Vec<Shim> = self.lock_shims().clone();
        for shim in &shims {
            if let Ok(pidfd) = sys::pidfd::open(shim.pid)
                && alive(&pidfd)
                && let Some(task) = self.try_connect(&shim.address, "")
            {
                // It may be on its way out already.
                drop(task.shutdown(false));
            }
        }
        for shim in &shims {
            until("the shim ends once its containers are gone", || {
                sys::pidfd::open(shim.pid).map_or(true, |fd| !alive(&fd))
            });
            let path = shim.address.trim_start_matches("unix://");
            assert!(!Path::new(path).exists(), "the socket {path} is left");
        }
        self.reap();
        self.deafen();
        let mut found = Vec::new();
        let until = std::time::Instant::now() + crate::PATIENCE;
        while std::time::Instant::now() < until {
            found = self.left();
            if found.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(found.is_empty(), "left behind:\n{}", found.join("\n"));
        self.finished = true;
    }

    /// Traces on the machine but the bundles, which are the daemon's.
    fn left(&self) -> Vec<String> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mount table");
        let places = Places {
            dir: self.dir.path(),
            root: &self.dir.path().join("root"),
            namespaces: vec![self.namespace.clone()],
            mounts,
            allowed: Vec::new(),
        };
        let mut found = traces(&places);
        found.retain(|line| !line.starts_with("bundle: "));
        found
    }

    fn reap(&self) {
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        for child in children.drain(..) {
            drop(child.wait());
        }
    }

    fn lock_shims(&self) -> std::sync::MutexGuard<'_, Vec<Shim>> {
        self.shims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Driver {
    /// A failed test must not leave its processes and mounts to the next one.
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let root = self.dir.path().join("root");
        kill_traces(self.dir.path(), &root, &self.namespace);
        self.reap();
    }
}

impl Shim {
    /// What it uses now.
    ///
    /// # Panics
    /// When it is gone.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let dir = PathBuf::from(format!("/proc/{}", self.pid));
        let table = fs::read_to_string(dir.join("smaps_rollup")).expect("the shim lives");
        let sum = |names: &[&str]| {
            let lines = table.lines().filter_map(|line| line.split_once(':'));
            let of = lines.filter(|(name, _)| names.contains(name));
            of.filter_map(|(_, rest)| rest.split_whitespace().next()?.parse::<u64>().ok())
                .sum()
        };
        let entries = |name: &str| fs::read_dir(dir.join(name)).map_or(0, Iterator::count);
        Usage {
            descriptors: entries("fd"),
            pss: sum(&["Pss"]),
            private: sum(&["Private_Clean", "Private_Dirty"]),
            anonymous: sum(&["Anonymous"]),
            threads: entries("task"),
        }
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it is gone.
    pub fn signal(&self, signal: i32) {
        let pidfd = sys::pidfd::open(self.pid).expect("the shim lives");
        sys::pidfd::send_signal(&pidfd, signal).expect("signal");
    }

    /// Waits until it has ended.
    pub fn ends(&self) {
        until("the shim ends", || {
            sys::pidfd::open(self.pid).map_or(true, |fd| !alive(&fd))
        });
    }
}

fn alive(pidfd: &std::os::fd::OwnedFd) -> bool {
    sys::pidfd::is_alive(pidfd).unwrap_or(false)
}

/// Busybox under all its names.
fn make_rootfs(rootfs: &Path) {
    for dir in ["bin", "proc", "dev", "sys", "tmp", "mnt"] {
        fs::create_dir_all(rootfs.join(dir)).expect("mkdir");
    }
    let busybox = rootfs.join("bin/busybox");
    crate::copy(&need("busybox"), &busybox);
    let applets = Program::new(&busybox).args(["--list"]).run().ok();
    for applet in applets.lines().filter(|name| *name != "busybox") {
        std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(applet)).expect("link");
    }
}
