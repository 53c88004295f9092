//! The whole way with real parts: the Go shim and runc of the distribution, a container of busybox.
//!
//! Every test has a private root and state and proves that it left no bundle, socket or process.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on fails"
)]

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use protos::shim::events::ForwardRequest;
use protos::shim::events_ttrpc::{Events, create_events};
use protos::well_known::Empty;
use protos::wire::Wire as _;
use runtime_v2::{Config, CreateOpts, ExecOpts, Status, Stdio, TaskManager, Tasks};
use serde_json::json;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use ttrpc::asynchronous::Server;
use types::{Any, Code, ContainerId, Event, Mount, Namespace, Scope};

/// The distribution's shim. Another one can be tried by hand with this variable.
const SHIM: (&str, &str) = ("SHIM", "/usr/bin/containerd-shim-runc-v2");
const SOON: Duration = Duration::from_secs(30);

/// The daemon's end of the shims' events.
struct Sink {
    tasks: Arc<Tasks>,
    topics: Arc<Mutex<Vec<String>>>,
}

#[async_trait]
impl Events for Sink {
    async fn forward(
        &self,
        _: &ttrpc::asynchronous::TtrpcContext,
        request: ForwardRequest,
    ) -> ttrpc::Result<Empty> {
        let envelope = request.envelope.unwrap_or_default();
        let event = Option::from_wire(envelope.event)
            .unwrap()
            .unwrap_or_default();
        let namespace = envelope.namespace.parse().unwrap();
        self.tasks.observe(&namespace, &envelope.topic, &event);
        self.topics.lock().unwrap().push(envelope.topic);
        Ok(Empty::new())
    }
}

struct Home {
    dir: tempfile::TempDir,
    /// What the daemon published for dead shims.
    events: (UnboundedSender<Event>, Mutex<UnboundedReceiver<Event>>),
    /// What shims published.
    topics: Arc<Mutex<Vec<String>>>,
}

/// A daemon as far as tasks see one.
struct Daemon {
    tasks: Arc<Tasks>,
    _server: Server,
}

impl std::ops::Deref for Daemon {
    type Target = Tasks;
    fn deref(&self) -> &Tasks {
        &self.tasks
    }
}

impl Home {
    fn new() -> Self {
        let (sender, receiver) = unbounded_channel();
        let home = Self {
            dir: tempfile::tempdir().unwrap(),
            events: (sender, Mutex::new(receiver)),
            topics: Arc::default(),
        };
        let rootfs = home.rootfs();
        for dir in ["bin", "proc", "dev", "sys", "tmp"] {
            std::fs::create_dir_all(rootfs.join(dir)).unwrap();
        }
        std::fs::copy("/bin/busybox", rootfs.join("bin/busybox")).unwrap();
        for applet in ["sh", "sleep", "true"] {
            std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
        }
        home
    }

    fn rootfs(&self) -> PathBuf {
        self.dir.path().join("rootfs")
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    async fn open(&self) -> Daemon {
        let events = self.events.0.clone();
        let tasks = Tasks::open(Config {
            root: self.dir.path().join("root"),
            state: self.dir.path().join("state"),
            grpc_address: self.path("grpc.sock"),
            ttrpc_address: self.path("ttrpc.sock"),
            containerd_binary: "/usr/bin/containerd".into(),
            default_runtime: std::env::var(SHIM.0).unwrap_or_else(|_| SHIM.1.to_owned()),
            debug: false,
            sched_core: false,
            publisher: Arc::new(move |_, event| drop(events.send(event))),
            runtime_of: Arc::new(|_, _| None),
        })
        .unwrap();
        let socket = self.path("ttrpc.sock");
        drop(std::fs::remove_file(&socket));
        let sink = Sink {
            tasks: Arc::clone(&tasks),
            topics: Arc::clone(&self.topics),
        };
        let mut server = Server::new()
            .bind(&format!("unix://{socket}"))
            .unwrap()
            .register_service(create_events(Arc::new(sink)));
        server.start().await.unwrap();
        Daemon {
            tasks,
            _server: server,
        }
    }

    /// A cgroup of this test's own, directly below the root: runc removes what it made.
    fn cgroup(&self) -> String {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let home = self.dir.path().file_name().unwrap().to_str().unwrap();
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        format!("/runtime-v2-{}-{serial}", home.trim_start_matches('.'))
    }

    fn opts(&self, script: &str) -> CreateOpts {
        let spec = json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": ["/bin/sh", "-c", script],
                "env": ["PATH=/bin"],
                "cwd": "/"
            },
            "root": {"path": "rootfs"},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {
                "cgroupsPath": self.cgroup(),
                "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}]
            }
        });
        CreateOpts {
            spec: serde_json::to_vec(&spec).unwrap(),
            rootfs: vec![Mount {
                kind: "bind".into(),
                source: self.rootfs().display().to_string(),
                options: vec!["rbind".into(), "rw".into()],
                ..Mount::default()
            }],
            stdio: Stdio::default(),
            runtime: String::new(),
            options: None,
            checkpoint: None,
            sandbox: String::new(),
        }
    }

    /// The next event that the daemon published, without waiting long.
    fn event(&self, wanted: &str) -> &'static str {
        let mut events = self.events.1.lock().unwrap();
        let until = Instant::now() + SOON;
        while Instant::now() < until {
            if let Ok(event) = events.try_recv() {
                return event.topic();
            }
            std::thread::yield_now();
        }
        panic!("no event {wanted}");
    }

    /// Pid of a task's shim.
    fn shim_of(&self, name: &str) -> u32 {
        let (id, socket) = (format!("-id\0{name}\0"), self.path("grpc.sock"));
        for process in std::fs::read_dir("/proc").unwrap().flatten() {
            let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            if line.contains(&id) && line.contains(&socket) {
                return process.file_name().to_str().unwrap().parse().unwrap();
            }
        }
        panic!("no shim of {name}");
    }

    /// Nothing is left below state and root but the directories of the namespaces.
    fn assert_empty(&self) {
        for top in ["state", "root"] {
            let dir = self
                .dir
                .path()
                .join(top)
                .join("io.containerd.runtime.v2.task/test");
            let left: Vec<_> = std::fs::read_dir(&dir).unwrap().collect();
            assert!(left.is_empty(), "{left:?}");
        }
        let runc = self.dir.path().join("state/runc/test");
        let left = std::fs::read_dir(runc).map_or(0, Iterator::count);
        assert_eq!(left, 0, "runc containers are left");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(
            !mounts.contains(self.dir.path().to_str().unwrap()),
            "a mount is left"
        );
        for process in std::fs::read_dir("/proc").unwrap().flatten() {
            let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            let ours = line.contains("shim") && line.contains(self.dir.path().to_str().unwrap());
            assert!(!ours, "a shim is left: {line:?}");
        }
    }
}

fn scope() -> Scope {
    Scope::new("test".parse().unwrap())
}

fn id(text: &str) -> ContainerId {
    text.parse().unwrap()
}

fn ns() -> Namespace {
    scope().namespace
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.expect("in time")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_runs_from_create_to_delete() {
    let home = Home::new();
    let tasks = home.open().await;
    let task = within(tasks.create(&scope(), &id("c1"), home.opts("exit 7")))
        .await
        .unwrap();
    assert_eq!(task.state(None).await.unwrap().status, Status::Created);
    let waiting = {
        let task = Arc::clone(&task);
        tokio::spawn(async move { task.wait(None).await })
    };
    let again = tasks.create(&scope(), &id("c1"), home.opts("true")).await;
    assert!(again.unwrap_err().is_already_exists());
    assert_eq!(within(task.start(None)).await.unwrap(), task.pid());
    let exit = within(waiting).await.unwrap().unwrap();
    assert_eq!((exit.status, exit.pid), (7, task.pid()));
    let state = task.state(None).await.unwrap();
    assert_eq!(
        (state.status, state.exit.unwrap().0, state.stale),
        (Status::Stopped, 7, false)
    );
    assert_eq!(task.known(None).unwrap().status, Status::Stopped);
    let deleted = within(tasks.delete(&ns(), &id("c1"))).await.unwrap();
    assert_eq!(deleted.status, 7);
    assert!(
        tasks
            .get(&ns(), &id("c1"))
            .await
            .unwrap_err()
            .is_not_found()
    );
    home.assert_empty();
    let topics = [
        "/tasks/create",
        "/tasks/start",
        "/tasks/exit",
        "/tasks/delete",
    ];
    assert_eq!(*home.topics.lock().unwrap(), topics);
    let own = home.events.1.lock().unwrap().try_recv();
    assert!(own.is_err(), "the shim publishes its own events: {own:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_runs_beside_init() {
    let home = Home::new();
    let tasks = home.open().await;
    let task = within(tasks.create(&scope(), &id("c1"), home.opts("sleep 300")))
        .await
        .unwrap();
    within(task.start(None)).await.unwrap();
    let running = tasks.delete(&ns(), &id("c1")).await.unwrap_err();
    assert!(
        running.is(Code::Unknown) || running.is(Code::FailedPrecondition),
        "{running}"
    );
    let process = json!({
        "user": {"uid": 0, "gid": 0}, "args": ["/bin/sh", "-c", "exit 5"],
        "env": ["PATH=/bin"], "cwd": "/"
    });
    let exec = "e1".parse().unwrap();
    let opts = || ExecOpts {
        spec: Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
            value: serde_json::to_vec(&process).unwrap(),
        },
        stdio: Stdio::default(),
    };
    within(task.exec(&exec, opts())).await.unwrap();
    assert!(
        task.exec(&exec, opts())
            .await
            .unwrap_err()
            .is_already_exists()
    );
    within(task.start(Some(&exec))).await.unwrap();
    assert_eq!(within(task.wait(Some(&exec))).await.unwrap().status, 5);
    assert_eq!(within(task.delete_exec(&exec)).await.unwrap().status, 5);
    assert!(task.state(Some(&exec)).await.unwrap_err().is_not_found());
    assert!(!within(task.pids()).await.unwrap().is_empty());
    within(task.pause()).await.unwrap();
    assert_eq!(task.state(None).await.unwrap().status, Status::Paused);
    within(task.resume()).await.unwrap();
    assert!(!within(task.stats()).await.unwrap().is_empty());
    within(task.kill(None, 9, false)).await.unwrap();
    assert_eq!(within(task.wait(None)).await.unwrap().status, 137);
    within(tasks.delete(&ns(), &id("c1"))).await.unwrap();
    home.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_create_leaves_nothing() {
    let home = Home::new();
    let tasks = home.open().await;
    let mut broken = home.opts("true");
    broken.spec =
        b"{\"ociVersion\":\"1.0.2\",\"process\":{\"args\":[\"/none\"],\"cwd\":\"/\"}}".to_vec();
    within(tasks.create(&scope(), &id("c1"), broken))
        .await
        .unwrap_err();
    home.assert_empty();
    let mut missing = home.opts("true");
    missing.runtime = "io.containerd.no-such.v2".into();
    let error = tasks
        .create(&scope(), &id("c1"), missing)
        .await
        .unwrap_err();
    assert!(error.is_not_found(), "{error}");
    let mut unstartable = home.opts("true");
    unstartable.runtime = "/bin/false".into();
    let error = within(tasks.create(&scope(), &id("c1"), unstartable))
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("start shim /bin/false"),
        "{error}"
    );
    home.assert_empty();
    // The id is free again.
    within(tasks.create(&scope(), &id("c1"), home.opts("true")))
        .await
        .unwrap();
    within(
        tasks
            .get(&ns(), &id("c1"))
            .await
            .unwrap()
            .kill(None, 9, false),
    )
    .await
    .unwrap();
    within(tasks.get(&ns(), &id("c1")).await.unwrap().wait(None))
        .await
        .unwrap();
    within(tasks.delete(&ns(), &id("c1"))).await.unwrap();
    home.assert_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_shim_is_noticed_and_its_container_ended() {
    let home = Home::new();
    let tasks = home.open().await;
    let task = within(tasks.create(&scope(), &id("c1"), home.opts("sleep 300")))
        .await
        .unwrap();
    within(task.start(None)).await.unwrap();
    let shim = sys::pidfd::open(home.shim_of("c1")).unwrap();
    sys::pidfd::send_signal(&shim, 9).unwrap();
    let exit = within(task.wait(None)).await.unwrap();
    assert_eq!(exit.status, 137);
    assert_eq!(task.state(None).await.unwrap().status, Status::Stopped);
    for topic in ["/tasks/exit", "/tasks/delete"] {
        assert_eq!(home.event(topic), topic);
    }
    home.assert_empty();
    assert_eq!(
        within(tasks.delete(&ns(), &id("c1"))).await.unwrap().status,
        137
    );
    assert!(
        tasks
            .get(&ns(), &id("c1"))
            .await
            .unwrap_err()
            .is_not_found()
    );
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().unwrap()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !done() {
        assert!(Instant::now() < end, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn tasks_are_found_again_after_a_restart() {
    let home = Home::new();
    // Dropping the runtime cuts everything off at once, as killing the daemon does.
    let pids = runtime().block_on(first_life(&home));
    let [live, late, _dead] = pids;
    let dead = sys::pidfd::open(home.shim_of("dead")).unwrap();
    sys::pidfd::send_signal(&dead, 9).unwrap();
    let init = sys::pidfd::open(late).unwrap();
    std::fs::write(home.rootfs().join("go"), "").unwrap();
    until("the container ends", || {
        !sys::pidfd::is_alive(&init).unwrap()
    });
    let silent = sys::pidfd::open(home.shim_of("live")).unwrap();
    sys::pidfd::send_signal(&silent, 19).unwrap();
    runtime().block_on(second_life(&home, live, &silent));
    home.assert_empty();
}

async fn first_life(home: &Home) -> [u32; 3] {
    let daemon = home.open().await;
    let mut pids = [0; 3];
    let gated = "while [ ! -e /go ]; do sleep 0.02; done; exit 4";
    let scripts = [
        ("live", "sleep 300"),
        ("late", gated),
        ("dead", "sleep 300"),
    ];
    for (pid, (name, script)) in pids.iter_mut().zip(scripts) {
        let (scope, id) = (scope(), id(name));
        let created = within(daemon.create(&scope, &id, home.opts(script)));
        let task = created.await.unwrap();
        *pid = within(task.start(None)).await.unwrap();
    }
    pids
}

async fn second_life(home: &Home, live_pid: u32, silent: &OwnedFd) {
    let daemon = home.open().await;
    assert_eq!(daemon.list(Some(&ns())).await.unwrap().len(), 3);
    within(daemon.recover()).await;

    let late = daemon.get(&ns(), &id("late")).await.unwrap();
    let state = within(late.state(None)).await.unwrap();
    assert_eq!((state.status, state.exit.unwrap().0), (Status::Stopped, 4));
    let dead = daemon.get(&ns(), &id("dead")).await.unwrap();
    assert_eq!(within(dead.wait(None)).await.unwrap().status, 137);

    // A silent shim keeps its task; nothing was decided by the deadline.
    let live = daemon.get(&ns(), &id("live")).await.unwrap();
    let state = within(live.state(None)).await.unwrap();
    assert_eq!(
        (state.status, state.pid, state.stale),
        (Status::Running, live_pid, true)
    );
    sys::pidfd::send_signal(silent, 18).unwrap();
    within(live.kill(None, 9, false)).await.unwrap();
    assert_eq!(within(live.wait(None)).await.unwrap().status, 137);
    assert!(!within(live.state(None)).await.unwrap().stale);
    for (name, status) in [("live", 137), ("late", 4), ("dead", 137)] {
        let exit = within(daemon.delete(&ns(), &id(name))).await.unwrap();
        assert_eq!(exit.status, status, "{name}");
    }
}
