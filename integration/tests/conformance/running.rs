//! A container of a rule's own and its task, made by nothing but calls: its root is the machine's.

use std::path::Path;

use grpc::containers::ContainersClient;
use grpc::tasks::TasksClient;
use protos::MessageField;
use protos::services::containers::{Container, CreateContainerRequest, DeleteContainerRequest};
use protos::services::tasks::{
    CreateTaskRequest, DeleteResponse, DeleteTaskRequest, GetRequest, KillRequest, StartRequest,
    WaitRequest, WaitResponse,
};
use protos::task::Process;
use protos::types::Mount;
use protos::well_known::Any;
use tonic::{Code, Request, Status};

use crate::containers::{any, runtime};
use crate::peer::{Peer, texts, within};

/// The shim that every daemon has.
const RUNTIME: &str = "io.containerd.runc.v2";

/// A container; id and namespace are its own on the whole machine, since Go's shim keeps runc's state
/// outside of the daemon's.
pub(crate) struct Running {
    name: String,
}

/// The spec of a container that sleeps.
pub(crate) fn spec(name: &str) -> Any {
    let text = format!(
        r#"{{"ociVersion":"1.0.2","process":{{"args":["/bin/sleep","1000"],"cwd":"/","user":{{}}}},
        "root":{{"path":"rootfs","readonly":true}},
        "mounts":[{{"destination":"/proc","type":"proc","source":"proc"}},
        {{"destination":"/dev","type":"tmpfs","source":"tmpfs","options":["mode=755"]}}],
        "linux":{{"cgroupsPath":"/{name}","namespaces":[{{"type":"pid"}},{{"type":"mount"}}]}}}}"#
    );
    any(
        "types.containerd.io/opencontainers/runtime-spec/1/Spec",
        &text,
    )
}

impl Running {
    /// One whose process runs.
    pub(crate) async fn new(peer: &Peer) -> Self {
        let made = Self::created(peer).await;
        made.begin(peer).await;
        made
    }

    /// One whose process waits for its start.
    pub(crate) async fn created(peer: &Peer) -> Self {
        let made = Self::record(peer, RUNTIME, spec).await;
        let mut client = TasksClient::new(peer.channel());
        let created = client.create(made.asks(made.request(""))).await;
        assert!(created.expect("create").into_inner().pid > 0);
        made
    }

    /// A container without a task.
    pub(crate) async fn record(peer: &Peer, kind: &str, spec: impl Fn(&str) -> Any) -> Self {
        let name = peer.host.dir().file_name().unwrap_or_default();
        let name = name.to_string_lossy().into_owned();
        let mut runtime = runtime(kind);
        runtime.mut_or_insert_default().options = MessageField::none();
        let request = CreateContainerRequest {
            container: MessageField::some(Container {
                id: name.clone(),
                runtime,
                spec: MessageField::some(spec(&name)),
                ..Default::default()
            }),
            ..Default::default()
        };
        let mut client = ContainersClient::new(peer.channel());
        client.create(within(&name, request)).await.expect("create");
        Self { name }
    }

    pub(crate) fn id(&self) -> &str {
        &self.name
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.name
    }

    /// A request in its namespace.
    pub(crate) fn asks<T>(&self, message: T) -> Request<T> {
        within(&self.name, message)
    }

    /// What makes the task.
    pub(crate) fn request(&self, runtime_path: &str) -> CreateTaskRequest {
        let root = Mount {
            type_: "bind".into(),
            source: "/".into(),
            options: texts(&["bind", "ro"]),
            ..Default::default()
        };
        CreateTaskRequest {
            container_id: self.name.clone(),
            rootfs: vec![root],
            runtime_path: runtime_path.into(),
            ..Default::default()
        }
    }

    /// Starts its process.
    pub(crate) async fn begin(&self, peer: &Peer) {
        let request = StartRequest {
            container_id: self.name.clone(),
            ..Default::default()
        };
        let mut client = TasksClient::new(peer.channel());
        let started = client.start(self.asks(request)).await.expect("start");
        assert!(started.into_inner().pid > 0);
    }

    /// One of its processes; the first one has no name.
    pub(crate) async fn state(&self, peer: &Peer, exec: &str) -> Result<Process, Status> {
        let request = GetRequest {
            container_id: self.name.clone(),
            exec_id: exec.into(),
            ..Default::default()
        };
        let mut client = TasksClient::new(peer.channel());
        let answer = client.get(self.asks(request)).await?;
        Ok(answer.into_inner().process.unwrap_or_default())
    }

    /// Ends the task, and waits for that.
    pub(crate) async fn kill(&self, peer: &Peer) -> WaitResponse {
        let kill = KillRequest {
            container_id: self.name.clone(),
            signal: 9,
            all: true,
            ..Default::default()
        };
        let wait = WaitRequest {
            container_id: self.name.clone(),
            ..Default::default()
        };
        let mut client = TasksClient::new(peer.channel());
        client.kill(self.asks(kill)).await.expect("kill");
        let exit = client.wait(self.asks(wait)).await.expect("wait");
        exit.into_inner()
    }

    pub(crate) async fn delete(&self, peer: &Peer) -> Result<DeleteResponse, Status> {
        let request = DeleteTaskRequest {
            container_id: self.name.clone(),
            ..Default::default()
        };
        let mut client = TasksClient::new(peer.channel());
        let gone = client.delete(self.asks(request)).await?;
        Ok(gone.into_inner())
    }

    /// Takes away what there is of it.
    pub(crate) async fn end(self, peer: &Peer) {
        match self.state(peer, "").await {
            Ok(found) => {
                if found.exited_at.is_none() || found.exited_at.seconds <= 0 {
                    self.kill(peer).await;
                }
                self.delete(peer).await.expect("delete");
            }
            Err(status) => assert_eq!(status.code(), Code::NotFound, "{status}"),
        }
        let request = DeleteContainerRequest {
            id: self.name.clone(),
            ..Default::default()
        };
        let mut client = ContainersClient::new(peer.channel());
        client.delete(self.asks(request)).await.expect("delete");
        let state = Path::new("/run/containerd/runc").join(&self.name);
        // Go's shim leaves the directory, and only that.
        match std::fs::remove_dir(&state) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => panic!("{state:?}: {e}"),
            _ => {}
        }
    }
}
