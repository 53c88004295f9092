//! A daemon under measurement, driven over gRPC by the same client whichever it is.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use protos::services::{containers, snapshots, tasks, version};
use protos::well_known::{Any, Empty};
use protos::{Message as _, MessageField};
use tonic::Request;
use tonic::transport::Channel;

use crate::{Times, raw};

const NAMESPACE: &str = "ctd-bench";
const RUNTIME: &str = "io.containerd.runc.v2";

/// Whose daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Ours,
    Debian,
}

/// A running daemon.
#[derive(Debug)]
pub(crate) struct Peer {
    kind: Kind,
    child: Child,
    channel: Channel,
    /// Chain id of the test image's only layer.
    parent: String,
    laps: RefCell<Laps>,
}

/// What each call took, in ms, in the order of the life cycle.
#[derive(Debug)]
struct Laps {
    last: Instant,
    all: Vec<(&'static str, Vec<f64>)>,
}

impl Laps {
    fn new() -> Self {
        Self {
            last: Instant::now(),
            all: Vec::new(),
        }
    }

    fn lap(&mut self, name: &'static str) {
        let now = Instant::now();
        let took = now
            .duration_since(std::mem::replace(&mut self.last, now))
            .as_secs_f64()
            * 1e3;
        match self.all.iter_mut().find(|(known, _)| *known == name) {
            Some((_, times)) => times.push(took),
            None => self.all.push((name, vec![took])),
        }
    }
}

impl Peer {
    /// Starts a daemon and imports the test image.
    pub(crate) fn start(runtime: &tokio::runtime::Runtime, kind: Kind, home: &Path) -> Self {
        let mut peer = Self::start_bare(runtime, kind, home);
        let client = |args: &[&str]| {
            let mut command = Command::new(integration::need("ctr"));
            command
                .arg("--address")
                .arg(home.join("c.sock"))
                .args(["-n", NAMESPACE])
                .args(args);
            let out = command.output().expect("run ctr");
            assert!(
                out.status.success(),
                "{args:?}: {}",
                String::from_utf8_lossy(&out.stderr)
            );
            String::from_utf8(out.stdout).expect("text")
        };
        client(&[
            "images",
            "import",
            &integration::archive().to_string_lossy(),
        ]);
        let table = client(&["snapshots", "ls"]);
        let row = table
            .lines()
            .find(|l| l.contains("Committed"))
            .expect("a layer");
        peer.parent = row.split_whitespace().next().expect("a key").to_owned();
        peer
    }

    /// Starts a daemon and waits for its first answer.
    pub(crate) fn start_bare(runtime: &tokio::runtime::Runtime, kind: Kind, home: &Path) -> Self {
        fs::create_dir_all(home).expect("make the directory");
        let (root, state, socket) = (home.join("root"), home.join("state"), home.join("c.sock"));
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = match kind {
            Kind::Ours => {
                let mut command = Command::new(integration::bin_dir().join("containerd"));
                command.env(
                    "PATH",
                    format!("{}:{path}", integration::bin_dir().display()),
                );
                command
            }
            Kind::Debian => {
                let config = home.join("config.toml");
                let text = "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n";
                fs::write(&config, text).expect("write the config");
                let mut command = Command::new("/usr/bin/containerd");
                command
                    .arg("--config")
                    .arg(config)
                    .env("PATH", format!("/usr/bin:{path}"));
                command
            }
        };
        let log = fs::File::create(home.join("log")).expect("open the log");
        let child = command
            .arg("--root")
            .arg(root)
            .arg("--state")
            .arg(state)
            .arg("--address")
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("dup"))
            .stderr(log)
            .spawn()
            .expect("start the daemon");
        let channel = runtime.block_on(first_answer(&socket));
        Self {
            kind,
            child,
            channel,
            parent: String::new(),
            laps: RefCell::new(Laps::new()),
        }
    }

    fn lap(&self, name: &'static str) {
        self.laps.borrow_mut().lap(name);
    }

    /// The median of each call since the last time it was asked.
    pub(crate) fn calls(&self) -> Vec<(&'static str, f64)> {
        let laps = self.laps.replace(Laps::new());
        laps.all
            .into_iter()
            .map(|(name, times)| (name, crate::median(times)))
            .collect()
    }

    pub(crate) fn name(&self) -> &'static str {
        match self.kind {
            Kind::Ours => "ours",
            Kind::Debian => "debian",
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends the daemon.
    pub(crate) fn stop(mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signal");
        self.child.wait().expect("wait");
    }

    /// Prepare, create, start, wait, delete, remove of `/bin/true`.
    pub(crate) async fn life(&mut self, binary: &Path, id: &str) -> Times {
        let begin = Instant::now();
        self.begin(binary, id, &["/bin/true"]).await;
        let running = begin.elapsed();
        self.end(id).await;
        Times {
            running,
            whole: begin.elapsed(),
        }
    }

    /// A container that stays; its pid.
    pub(crate) async fn sleeper(&mut self, binary: &Path, id: &str) -> u32 {
        self.begin(binary, id, &["/bin/sleep", "1000"]).await
    }

    /// Kills and removes a container.
    pub(crate) async fn remove(&mut self, id: &str) {
        let kill = tasks::KillRequest {
            container_id: id.into(),
            signal: 9,
            ..Default::default()
        };
        self.tasks().kill(request(kill)).await.expect("kill");
        self.end(id).await;
    }

    fn tasks(&self) -> grpc::tasks::TasksClient<Channel> {
        grpc::tasks::TasksClient::new(self.channel.clone())
    }

    fn snapshots(&self) -> grpc::snapshots::SnapshotsClient<Channel> {
        grpc::snapshots::SnapshotsClient::new(self.channel.clone())
    }

    fn containers(&self) -> grpc::containers::ContainersClient<Channel> {
        grpc::containers::ContainersClient::new(self.channel.clone())
    }

    async fn begin(&self, binary: &Path, id: &str, args: &[&str]) -> u32 {
        self.laps.borrow_mut().last = Instant::now();
        let prepare = snapshots::PrepareSnapshotRequest {
            snapshotter: "overlayfs".into(),
            key: id.into(),
            parent: self.parent.clone(),
            // Until its container exists, and after that is gone, nothing else keeps it.
            labels: [("containerd.io/gc.root".to_owned(), "bench".to_owned())].into(),
            ..Default::default()
        };
        let mounts = self
            .snapshots()
            .prepare(request(prepare))
            .await
            .expect("prepare")
            .into_inner()
            .mounts;
        self.lap("Snapshots.Prepare");
        let options = protos::runc::Options {
            binary_name: binary.to_string_lossy().into_owned(),
            ..Default::default()
        };
        let options = Any {
            type_url: "containerd.runc.v1.Options".into(),
            value: options.write_to_bytes().expect("encode"),
            ..Default::default()
        };
        let spec = raw::spec(
            args,
            "rootfs",
            &format!("/{NAMESPACE}-{}/{id}", self.name()),
        );
        let container = containers::Container {
            id: id.into(),
            snapshotter: "overlayfs".into(),
            snapshot_key: id.into(),
            runtime: MessageField::some(containers::container::Runtime {
                name: RUNTIME.into(),
                options: MessageField::some(options.clone()),
                ..Default::default()
            }),
            spec: MessageField::some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".into(),
                value: spec.to_string().into_bytes(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let create = containers::CreateContainerRequest {
            container: MessageField::some(container),
            ..Default::default()
        };
        self.containers()
            .create(request(create))
            .await
            .expect("create container");
        self.lap("Containers.Create");
        let create = tasks::CreateTaskRequest {
            container_id: id.into(),
            rootfs: mounts,
            options: MessageField::some(options),
            ..Default::default()
        };
        let pid = self
            .tasks()
            .create(request(create))
            .await
            .expect("create")
            .into_inner()
            .pid;
        self.lap("Tasks.Create");
        let start = tasks::StartRequest {
            container_id: id.into(),
            ..Default::default()
        };
        self.tasks().start(request(start)).await.expect("start");
        self.lap("Tasks.Start");
        pid
    }

    async fn end(&self, id: &str) {
        let wait = tasks::WaitRequest {
            container_id: id.into(),
            ..Default::default()
        };
        self.tasks().wait(request(wait)).await.expect("wait");
        self.lap("Tasks.Wait");
        let delete = tasks::DeleteTaskRequest {
            container_id: id.into(),
            ..Default::default()
        };
        self.tasks().delete(request(delete)).await.expect("delete");
        self.lap("Tasks.Delete");
        let delete = containers::DeleteContainerRequest {
            id: id.into(),
            ..Default::default()
        };
        self.containers()
            .delete(request(delete))
            .await
            .expect("delete container");
        self.lap("Containers.Delete");
        let remove = snapshots::RemoveSnapshotRequest {
            snapshotter: "overlayfs".into(),
            key: id.into(),
            ..Default::default()
        };
        self.snapshots()
            .remove(request(remove))
            .await
            .expect("remove snapshot");
        self.lap("Snapshots.Remove");
    }
}

impl Drop for Peer {
    /// A bench that fails must not leave its daemon behind. (`stop` has ended it otherwise.)
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value = NAMESPACE.parse().expect("a header value");
    request.metadata_mut().insert("containerd-namespace", value);
    request
}

/// Connects as soon as the socket is there and asks for the version until it is told.
async fn first_answer(socket: &Path) -> Channel {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        assert!(
            Instant::now() < deadline,
            "no answer on {}",
            socket.display()
        );
        let path: PathBuf = socket.to_owned();
        let connector = tower::service_fn(move |_: tonic::codegen::http::Uri| {
            let path = path.clone();
            async move {
                let stream = tokio::net::UnixStream::connect(path).await?;
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
            }
        });
        let endpoint = tonic::transport::Endpoint::from_static("http://localhost");
        if let Ok(channel) = endpoint.connect_with_connector(connector).await {
            let mut client = grpc::version::VersionClient::new(channel.clone());
            let answer: Result<tonic::Response<version::VersionResponse>, _> =
                client.version(Request::new(Empty::new())).await;
            if answer.is_ok() {
                return channel;
            }
        }
        tokio::time::sleep(Duration::from_micros(300)).await;
    }
}
