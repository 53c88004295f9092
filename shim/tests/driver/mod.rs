//! A daemon's side, as small as it can be: starts the shim's binary, speaks Task to it, hears its
//! events. Every driver has directories of its own and takes everything away with it.

mod script;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use protos::Message as _;
use protos::runc::Options;
use protos::shim::bootstrap::{BootstrapParams, BootstrapResult, Extension};
use protos::shim::events::ForwardRequest;
use protos::shim::events_ttrpc::{Events, create_events};
use protos::shim::task as api;
use protos::shim::task_v3_ttrpc::TaskClient;
use protos::well_known::Empty;
use protos::wire::Wire as _;
use sys::process::{Output, Spawn};
use tokio::sync::mpsc;
use ttrpc::asynchronous::{Client, Server, TtrpcContext, transport::Listener, transport::Socket};
use ttrpc::context::Context;

pub(crate) use script::Script;

const SHIM: &str = env!("CARGO_BIN_EXE_containerd-shim-runc-v2");
const LONG: Duration = Duration::from_secs(60);

/// Every scenario within its own runtime: the helpers block on threads of it.
pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
        .block_on(work)
}

pub(crate) fn code(error: &ttrpc::Error) -> ttrpc::Code {
    match error {
        ttrpc::Error::RpcStatus(status) => status.code(),
        other => panic!("{other}"),
    }
}

pub(crate) struct Driver {
    pub(crate) dir: tempfile::TempDir,
    events: mpsc::UnboundedReceiver<String>,
    _server: Server,
    ids: Vec<String>,
    /// Of the shim, besides the test's own.
    pub(crate) env: Vec<(&'static str, &'static str)>,
    /// Hides a second hierarchy of control groups from the shim: crun wants one kind only.
    pub(crate) plain_cgroups: bool,
}

struct Daemon(mpsc::UnboundedSender<String>);

#[async_trait]
impl Events for Daemon {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        drop(self.0.send(request.envelope.unwrap_or_default().topic));
        Ok(Empty::new())
    }
}

impl Driver {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = tokio::net::UnixListener::bind(dir.path().join("c.sock.ttrpc")).unwrap();
        let (tell, events) = mpsc::unbounded_channel();
        let mut server = Server::new()
            .add_listener(Listener::from(listener))
            .register_service(create_events(Arc::new(Daemon(tell))));
        server.start().await.unwrap();
        let bin = dir.path().join("rootfs/bin");
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::create_dir_all(dir.path().join("rootfs/proc")).unwrap();
        std::fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
        std::os::unix::fs::symlink("busybox", bin.join("sh")).unwrap();
        Self {
            dir,
            events,
            _server: server,
            ids: Vec::new(),
            env: Vec::new(),
            plain_cgroups: false,
        }
    }

    pub(crate) fn bundle(&self, id: &str) -> PathBuf {
        self.dir
            .path()
            .join("state/io.containerd.runtime.v2.task/ns")
            .join(id)
    }

    pub(crate) fn address(&self) -> String {
        self.dir.path().join("c.sock").display().to_string()
    }

    /// A bundle whose process runs `script`.
    pub(crate) fn make_bundle(&mut self, id: &str, script: &str, group: &str) -> PathBuf {
        let bundle = self.bundle(id);
        std::fs::create_dir_all(&bundle).unwrap();
        std::fs::set_permissions(&bundle, std::fs::Permissions::from_mode(0o700)).unwrap();
        let unique = self
            .dir
            .path()
            .file_name()
            .unwrap()
            .to_string_lossy()
            .into_owned();
        let unique = unique.trim_start_matches('.');
        let rootfs = self.dir.path().join("rootfs");
        let config = serde_json::json!({
            "ociVersion": "1.0.2",
            "process": process(script),
            "root": {"path": rootfs, "readonly": true},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "annotations": {"io.containerd.runc.v2.group": group},
            "linux": {
                "cgroupsPath": format!("/shim-test-{unique}-{id}"),
                "namespaces": [
                    {"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"},
                ],
            },
        });
        std::fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        self.ids.push(id.to_owned());
        bundle
    }

    /// Changes the spec of a bundle.
    pub(crate) fn edit(&self, id: &str, change: impl FnOnce(&mut serde_json::Value)) {
        let file = self.bundle(id).join("config.json");
        let text = std::fs::read_to_string(&file).unwrap();
        let mut config = serde_json::from_str(&text).unwrap();
        change(&mut config);
        std::fs::write(&file, config.to_string()).unwrap();
    }

    /// Runs an action of the shim's binary.
    pub(crate) async fn action(&self, id: &str, action: &str, stdin: Vec<u8>) -> Output {
        const PLAIN: &str = "umount -q /sys/fs/cgroup/unified; exec \"$@\"";
        let mut spawn = if self.plain_cgroups {
            let args = ["--mount", "sh", "-c", PLAIN, "sh", SHIM];
            Spawn::new("unshare").args(args)
        } else {
            Spawn::new(SHIM)
        };
        spawn = spawn
            .args(["-namespace", "ns", "-address", &self.address(), "-id", id])
            .arg("-bundle")
            .arg(self.bundle(id))
            .arg(action)
            .env("TTRPC_ADDRESS", format!("{}.ttrpc", self.address()))
            .cwd("/");
        for (name, value) in &self.env {
            spawn = spawn.env(*name, *value);
        }
        let run = move || spawn.output(&stdin, 1 << 20, LONG).unwrap();
        tokio::task::spawn_blocking(run).await.unwrap()
    }

    /// `start`: the address of the shim.
    pub(crate) async fn start(&self, id: &str) -> String {
        self.start_with(id, Options::default()).await
    }

    pub(crate) async fn start_with(&self, id: &str, options: Options) -> String {
        let extension = Extension {
            value: Some(protos::any::pack(&options).unwrap().to_wire()).into(),
            ..Extension::default()
        };
        let params = BootstrapParams {
            instance_id: id.to_owned(),
            namespace: "ns".to_owned(),
            containerd_ttrpc_address: format!("{}.ttrpc", self.address()),
            socket_dir: Some(self.dir.path().join("s").display().to_string()),
            extensions: vec![extension],
            ..BootstrapParams::default()
        };
        let output = self
            .action(id, "start", params.write_to_bytes().unwrap())
            .await;
        assert!(
            output.status.is_success(),
            "{}",
            String::from_utf8_lossy(&output.text)
        );
        BootstrapResult::parse_from_bytes(&output.text)
            .unwrap()
            .address
    }

    /// A shim with the task created; its output goes to `<bundle>.out`.
    pub(crate) async fn create(&mut self, id: &str, script: &str) -> Task {
        self.make_bundle(id, script, id);
        let address = self.start(id).await;
        let task = Task::connect(&address, id).await;
        task.create(&self.bundle(id), &self.log(id)).await.unwrap();
        task
    }

    pub(crate) fn log(&self, id: &str) -> String {
        format!("file://{}", self.bundle(id).with_extension("out").display())
    }

    pub(crate) fn output(&self, id: &str) -> String {
        std::fs::read_to_string(self.bundle(id).with_extension("out")).unwrap_or_default()
    }

    /// The next events' topics.
    pub(crate) async fn topics(&mut self, count: usize) -> Vec<String> {
        let mut topics = Vec::new();
        for _ in 0..count {
            let next = tokio::time::timeout(LONG, self.events.recv()).await;
            topics.push(next.expect("an event in time").unwrap());
        }
        topics
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        for id in &self.ids {
            let shim = self.bundle(id).join("test-shim.pid");
            if let Ok(pid) = std::fs::read_to_string(shim)
                && let Ok(pidfd) = sys::pidfd::open(pid.parse().unwrap())
            {
                drop(sys::pidfd::send_signal(pidfd, 9));
            }
            let root = self.dir.path().join("state/runc/ns");
            let delete = Spawn::new("runc")
                .arg("--root")
                .arg(root)
                .args(["delete", "-f", id]);
            drop(delete.output(b"", 1 << 16, LONG));
        }
    }
}

/// A process that runs `script`, as the runtime spec writes it.
pub(crate) fn process(script: &str) -> serde_json::Value {
    serde_json::json!({
        "user": {"uid": 0, "gid": 0},
        "args": ["/bin/sh", "-c", script],
        "cwd": "/",
        "env": ["PATH=/bin"],
    })
}

/// One task over a connection of its own.
pub(crate) struct Task {
    pub(crate) client: TaskClient,
    pub(crate) raw: Client,
    pub(crate) id: String,
    pub(crate) shim: u32,
}

pub(crate) fn context() -> Context {
    ttrpc::context::with_duration(LONG)
}

impl Task {
    pub(crate) async fn connect(address: &str, id: &str) -> Self {
        let path = Path::new(address.strip_prefix("unix://").unwrap());
        let stream = tokio::net::UnixStream::connect(path).await.unwrap();
        let raw = Client::new(Socket::from(stream));
        let client = TaskClient::new(raw.clone());
        let request = api::ConnectRequest {
            id: id.to_owned(),
            ..Default::default()
        };
        let shim = client.connect(context(), &request).await.unwrap().shim_pid;
        Self {
            client,
            raw,
            id: id.to_owned(),
            shim,
        }
    }

    pub(crate) async fn create(&self, bundle: &Path, output: &str) -> ttrpc::Result<u32> {
        self.create_with(bundle, output, Options::default()).await
    }

    pub(crate) async fn create_with(
        &self,
        bundle: &Path,
        output: &str,
        options: Options,
    ) -> ttrpc::Result<u32> {
        std::fs::write(bundle.join("test-shim.pid"), self.shim.to_string()).unwrap();
        let options = protos::any::pack(&options).unwrap().to_wire();
        let request = api::CreateTaskRequest {
            id: self.id.clone(),
            bundle: bundle.display().to_string(),
            stdout: output.to_owned(),
            stderr: output.to_owned(),
            options: Some(options).into(),
            ..Default::default()
        };
        Ok(self.client.create(context(), &request).await?.pid)
    }

    pub(crate) async fn start(&self, exec: &str) -> ttrpc::Result<u32> {
        let request = api::StartRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        Ok(self.client.start(context(), &request).await?.pid)
    }

    pub(crate) async fn exec(&self, exec: &str, script: &str, output: &str) -> ttrpc::Result<()> {
        let spec = protos::well_known::Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned(),
            value: process(script).to_string().into_bytes(),
            ..Default::default()
        };
        let request = api::ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            stdout: output.to_owned(),
            stderr: output.to_owned(),
            spec: Some(spec).into(),
            ..Default::default()
        };
        self.client.exec(context(), &request).await.map(drop)
    }

    pub(crate) async fn wait(&self, exec: &str) -> u32 {
        let request = api::WaitRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        self.client
            .wait(context(), &request)
            .await
            .unwrap()
            .exit_status
    }

    pub(crate) async fn kill(&self, exec: &str, signal: u32) -> ttrpc::Result<()> {
        let request = api::KillRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            signal,
            ..Default::default()
        };
        self.client.kill(context(), &request).await.map(drop)
    }

    pub(crate) async fn delete(&self, exec: &str) -> ttrpc::Result<api::DeleteResponse> {
        let request = api::DeleteRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        self.client.delete(context(), &request).await
    }

    pub(crate) async fn state(&self) -> ttrpc::Result<api::StateResponse> {
        let request = api::StateRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        self.client.state(context(), &request).await
    }

    pub(crate) async fn pause(&self) -> ttrpc::Result<()> {
        let request = api::PauseRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        self.client.pause(context(), &request).await.map(drop)
    }

    pub(crate) async fn resume(&self) -> ttrpc::Result<()> {
        let request = api::ResumeRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        self.client.resume(context(), &request).await.map(drop)
    }

    /// Asks the shim to end, without insisting.
    pub(crate) async fn shutdown(&self) {
        let request = api::ShutdownRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        self.client.shutdown(context(), &request).await.unwrap();
    }

    /// Blocks until the shim has ended.
    pub(crate) async fn shim_ends(&self) {
        let Ok(pidfd) = sys::pidfd::open(self.shim) else {
            return;
        };
        let watch = tokio::time::timeout(LONG, async {
            while sys::pidfd::is_alive(&pidfd).unwrap() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        watch.await.expect("the shim ends in time");
    }
}
