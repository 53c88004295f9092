//! Debian's dockerd on one of our daemons, and its client.
//!
//! Invariant: it has the mounts, the network and the firewall of its thread alone (see [`alone`]), its
//! files in a directory of the test, its containers in the host's namespace and control group: the
//! host's inventory sees them, and no dockerd of the machine does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::host::{archive, kill_traces};
use crate::inventory::{Places, traces};
use crate::{Host, Output, PATIENCE, Program, apart, bin_dir, need, until};

/// Name of the image that [`Docker::image`] imports.
const IMAGE: &str = "busybox";
const SIGTERM: i32 = 15;

/// Runs `work` on a thread with its own copy of the machine's mounts and a network of its own, which has
/// nothing but its loopback device. What it starts shares them.
///
/// # Panics
/// When `work` does, or without the right to make namespaces.
pub fn alone(work: impl FnOnce() + Send + 'static) {
    apart(|| {
        #[expect(deprecated, reason = "sound without FILES, as its successor says")]
        rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET).expect("unshare");
        let up = Program::new(need("ip")).args(["link", "set", "lo", "up"]);
        drop(up.run().ok());
        // Runtimes and dockerd look at a hybrid mount's v2 part and find nothing of theirs.
        let unified = Path::new("/sys/fs/cgroup/unified");
        if unified.is_dir() {
            // It is a directory of the machine when nothing is mounted.
            let _told = Program::new(need("umount")).args([unified]).run();
        }
        // A containerd of the machine's would be used by a dockerd that is to start its own.
        let usual = Path::new("/run/containerd");
        if usual.is_dir() {
            let hide = Program::new(need("mount")).args(["-t", "tmpfs", "tmpfs"]);
            drop(hide.args([usual]).run().ok());
        }
        work();
        let network = fs::read_link("/proc/thread-self/ns/net").expect("a namespace");
        until("nobody is left in the network", || !is_inhabited(&network));
    });
}

/// True when a process has this network. (This one's is that of its first thread.)
fn is_inhabited(network: &Path) -> bool {
    let processes = fs::read_dir("/proc").expect("read /proc").flatten();
    let is_pid = |name: &std::ffi::OsStr| name.to_string_lossy().parse::<u32>().is_ok();
    let processes = processes.filter(|p| is_pid(&p.file_name()));
    // One that has ended has none.
    let networks = processes.filter_map(|p| fs::read_link(p.path().join("ns/net")).ok());
    networks.into_iter().any(|n| n == network)
}

/// A dockerd, within [`alone`].
#[derive(Debug)]
pub struct Docker {
    /// Its files, and what the client keeps.
    home: PathBuf,
    namespace: String,
    args: Vec<String>,
    child: Option<Child>,
    finished: bool,
}

impl Docker {
    /// Starts one on the host's daemon, with further flags.
    ///
    /// # Panics
    /// When it does not serve within the limit.
    #[must_use]
    pub fn on(host: &Host, flags: &[&str]) -> Self {
        let address = host.address();
        let mut args = vec!["--containerd".to_owned(), text(&address)];
        args.extend(flags.iter().map(|&flag| flag.to_owned()));
        Self::begin(host.path("docker"), host.namespace(), args)
    }

    /// Starts one that starts our daemon, which is the first in its search path.
    ///
    /// # Panics
    /// When it does not serve within the limit.
    #[must_use]
    pub fn managing(dir: &Path, name: &str) -> Self {
        let namespace = format!("{name}-{}", std::process::id());
        Self::begin(dir.join("docker"), &namespace, Vec::new())
    }

    fn begin(home: PathBuf, namespace: &str, mut args: Vec<String>) -> Self {
        fs::create_dir(&home).expect("make a directory");
        let file = |name: &str| text(&home.join(name));
        // The machine's own configuration must not reach a test, nor a test its key.
        let config = format!("{{\"deprecated-key-path\": \"{}\"}}", file("key.json"));
        fs::write(home.join("daemon.json"), config).expect("write the configuration");
        let own = [
            ("--config-file", file("daemon.json")),
            ("--data-root", file("data")),
            ("--exec-root", file("exec")),
            ("--pidfile", file("pid")),
            ("--host", format!("unix://{}", file("d.sock"))),
            ("--containerd-namespace", namespace.to_owned()),
            (
                "--containerd-plugins-namespace",
                format!("{namespace}-plugins"),
            ),
            ("--cgroup-parent", format!("/{namespace}")),
            ("--exec-opt", "native.cgroupdriver=cgroupfs".to_owned()),
            ("--storage-driver", "overlay2".to_owned()),
            // It says what it is asked for.
            ("--log-level", "debug".to_owned()),
        ];
        args.extend(own.into_iter().flat_map(|(flag, v)| [flag.to_owned(), v]));
        let mut docker = Self {
            home,
            namespace: namespace.to_owned(),
            args,
            child: None,
            finished: false,
        };
        docker.start();
        docker
    }

    /// Where its files are.
    #[must_use]
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.home.join("log")).unwrap_or_default()
    }

    /// Starts it and waits until it answers.
    ///
    /// # Panics
    /// When it ends or does not answer in time.
    pub fn start(&mut self) {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.home.join("log"))
            .expect("open the log");
        let path = std::env::var("PATH").unwrap_or_default();
        let child = Command::new(need("dockerd"))
            .args(&self.args)
            .env(
                "PATH",
                format!("{}:{path}:/usr/sbin:/sbin", bin_dir().display()),
            )
            .env("HOME", &self.home)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("dup"))
            .stderr(log)
            .spawn()
            .expect("start dockerd");
        let child = self.child.insert(child);
        let id = child.id();
        until("dockerd answers", || {
            let ended = self
                .child
                .as_mut()
                .and_then(|c| c.try_wait().expect("wait"));
            assert!(ended.is_none(), "{id} ended: {ended:?}\n{}", self.log());
            self.run(["version"]).code == 0
        });
    }

    /// Kills it with SIGKILL.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("dockerd runs");
        child.kill().expect("kill");
        child.wait().expect("wait");
    }

    /// Stops it with SIGTERM; it must end by itself with 0.
    ///
    /// # Panics
    /// When it does not.
    pub fn stop(&mut self) {
        let mut child = self.child.take().expect("dockerd runs");
        let process = sys::pidfd::open(child.id()).expect("dockerd runs");
        sys::pidfd::send_signal(&process, SIGTERM).expect("signal");
        let mut status = None;
        until("dockerd ends", || {
            status = child.try_wait().expect("wait");
            status.is_some()
        });
        assert!(status.is_some_and(|s| s.success()), "{}", self.log());
    }

    /// Its client, to be given arguments.
    #[must_use]
    pub fn program(&self) -> Program {
        Program::new(Self::client())
            .env("DOCKER_HOST", self.socket())
            // Not that of whoever runs the tests.
            .env("DOCKER_CONFIG", &self.home)
            // The other builder is not part of Debian's package.
            .env("DOCKER_BUILDKIT", "0")
    }

    /// Debian's: what is called `docker` elsewhere may be something else.
    fn client() -> PathBuf {
        let path = PathBuf::from("/usr/bin/docker");
        assert!(path.exists(), "docker.io is not installed: run make deps");
        path
    }

    /// Its socket, as clients name it.
    #[must_use]
    pub fn socket(&self) -> String {
        format!("unix://{}", self.home.join("d.sock").display())
    }

    /// Runs its client.
    #[must_use]
    pub fn run<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        self.program().args(args).run()
    }

    /// Starts its client, whose output can be read while it runs.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn spawn(&self, args: &[&str]) -> Child {
        let mut client = Command::new(Self::client());
        client.args(["-H", &self.socket()]).args(args);
        client.env("DOCKER_CONFIG", &self.home);
        client.stdin(Stdio::null()).stdout(Stdio::piped());
        client.spawn().expect("start docker")
    }

    /// Runs its client with these words, which must succeed: what it printed.
    ///
    /// # Panics
    /// When it fails.
    #[must_use]
    pub fn ok(&self, words: &str) -> String {
        self.run(words.split_whitespace()).ok()
    }

    /// Blocks until somebody has asked for something whose path has this in it.
    pub fn until_asked(&self, path: &str) {
        until(&format!("somebody asks for {path}"), || {
            let log = self.log();
            let mut calls = log.lines().filter(|line| line.contains("Calling "));
            calls.any(|line| line.contains(path))
        });
    }

    /// Runs its client in a terminal of this size.
    #[must_use]
    pub fn in_terminal(&self, rows: u16, columns: u16, args: &str) -> Output {
        let client = Self::client();
        let line = format!(
            "stty rows {rows} cols {columns}; exec {} -H {} --config {} {args}",
            client.display(),
            self.socket(),
            self.home.display()
        );
        let script = Program::new("script");
        script.args(["-qec", &line, "/dev/null"]).run()
    }

    /// A detached container that runs a script.
    pub fn script(&self, flags: &str, name: &str, script: &str) {
        let mut args = vec!["run", "-d", "--name", name];
        args.extend(flags.split_whitespace());
        args.extend([IMAGE, "sh", "-c", script]);
        drop(self.run(args).ok());
    }

    /// What `docker inspect` tells, by a template.
    ///
    /// # Panics
    /// When there is no such container.
    #[must_use]
    pub fn inspect(&self, name: &str, template: &str) -> String {
        let told = self.run(["inspect", "-f", template, name]).ok();
        told.trim().to_owned()
    }

    /// Pid of a container's first process.
    ///
    /// # Panics
    /// When there is no such container.
    #[must_use]
    pub fn pid(&self, name: &str) -> u32 {
        let pid = self.inspect(name, "{{.State.Pid}}");
        pid.parse().expect("a pid")
    }

    /// Imports the test image's layer as `busybox`.
    ///
    /// # Panics
    /// When the archive is not what `make` made.
    pub fn image(&self) {
        let dir = self.home.join("layout");
        let layer = layer(&dir);
        let mut import = vec!["import".to_owned(), "--change".to_owned()];
        import.extend(["CMD [\"/bin/sh\"]".to_owned(), text(&layer), IMAGE.into()]);
        assert!(self.run(import).ok().starts_with("sha256:"));
        fs::remove_dir_all(dir).expect("remove the layout");
    }

    /// Ends the test of a dockerd: no container may be left, it stops, and of what it started nothing
    /// remains.
    ///
    /// # Panics
    /// When something is left; the message lists it.
    pub fn finish(mut self) {
        let left = self.ok("ps -aq");
        assert!(left.is_empty(), "containers are left: {left}");
        self.stop();
        // Kept by dockerd for its next life.
        let exec = self.home.join("exec");
        for kept in [self.home.join("data"), exec.join("netns/default")] {
            // Not each was made.
            let _told = Program::new(need("umount")).args([kept]).run();
        }
        // A shim or a proxy may still be on its way out.
        let deadline = Instant::now() + PATIENCE;
        let mut found = self.traces();
        while !found.is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
            found = self.traces();
        }
        assert!(found.is_empty(), "left behind:\n{}", found.join("\n"));
        self.finished = true;
    }

    fn traces(&self) -> Vec<String> {
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").expect("mount table");
        traces(&Places {
            dir: &self.home,
            root: &self.home.join("data/containerd/daemon"),
            namespaces: vec![self.namespace.clone()],
            mounts,
            allowed: Vec::new(),
        })
    }
}

impl Drop for Docker {
    /// A failed test must not leave its processes and mounts to the next one.
    fn drop(&mut self) {
        use std::io::Write as _;
        if self.finished {
            return;
        }
        let log = self.log();
        let tail: Vec<&str> = log.lines().rev().take(30).collect();
        for line in tail.iter().rev() {
            drop(writeln!(std::io::stderr(), "{line}"));
        }
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            drop(child.kill());
            drop(child.wait());
        }
        kill_traces(&self.home, &self.home.join("data"), &self.namespace);
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// The only layer of the test image, out of its archive into a new directory.
///
/// # Panics
/// When the archive is not what `make` made.
#[must_use]
pub fn layer(dir: &Path) -> PathBuf {
    fs::create_dir(dir).expect("make a directory");
    let unpack = Program::new(need("tar")).limit(Duration::from_secs(20));
    let unpack = unpack.args(["-xf", &text(&archive()), "-C", &text(dir)]);
    drop(unpack.run().ok());
    let json = |path: &Path| -> serde_json::Value {
        serde_json::from_slice(&fs::read(path).expect("read")).expect("JSON")
    };
    let blob = |descriptor: &serde_json::Value| {
        let digest = descriptor["digest"].as_str().expect("a digest");
        dir.join("blobs").join(digest.replace(':', "/"))
    };
    let index = json(&dir.join("index.json"));
    let manifest = json(&blob(&index["manifests"][0]));
    blob(&manifest["layers"][0])
}
