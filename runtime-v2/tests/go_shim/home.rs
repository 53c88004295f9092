//! A private place for one test: directories, a daemon as far as tasks see one, and the inventory at
//! the end.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use protos::shim::events::ForwardRequest;
use protos::shim::events_ttrpc::{Events, create_events};
use protos::well_known::Empty;
use protos::wire::Wire as _;
use runtime_v2::{Config, CreateOpts, Stdio, Tasks};
use serde_json::json;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use ttrpc::asynchronous::Server;
use types::{Event, Mount};

/// The distribution's shim. Another one can be tried by hand with this variable.
const SHIM: (&str, &str) = ("SHIM", "/usr/bin/containerd-shim-runc-v2");
pub(crate) const SOON: Duration = Duration::from_secs(30);

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

pub(crate) struct Home {
    pub(crate) dir: tempfile::TempDir,
    /// What the daemon published for dead shims.
    pub(crate) events: (UnboundedSender<Event>, Mutex<UnboundedReceiver<Event>>),
    /// What shims published.
    pub(crate) topics: Arc<Mutex<Vec<String>>>,
}

/// A daemon as far as tasks see one.
pub(crate) struct Daemon {
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
    pub(crate) fn new() -> Self {
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

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.dir.path().join("rootfs")
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    pub(crate) async fn open(&self) -> Daemon {
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
            most_at_once: 0,
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

    pub(crate) fn opts(&self, script: &str) -> CreateOpts {
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
    pub(crate) fn event(&self, wanted: &str) -> &'static str {
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
    pub(crate) fn shim_of(&self, name: &str) -> u32 {
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

    /// Where a task's shim listens.
    pub(crate) fn address_of(&self, name: &str) -> String {
        let tasks = self
            .dir
            .path()
            .join("state/io.containerd.runtime.v2.task/test");
        std::fs::read_to_string(tasks.join(name).join("address")).unwrap()
    }

    /// Nothing is left below state and root but the directories of the namespaces.
    pub(crate) fn assert_empty(&self) {
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
        // On a busy machine a shim may take longer to end than a delete waits for it.
        until("the shims end", || !self.has_shims());
    }

    fn has_shims(&self) -> bool {
        let own = self.dir.path().to_str().unwrap();
        std::fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .any(|process| {
                let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
                let line = String::from_utf8_lossy(&line);
                line.contains("shim") && line.contains(own)
            })
    }
}

/// Waits for a fact.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !done() {
        assert!(Instant::now() < end, "{what}");
        std::thread::yield_now();
    }
}
