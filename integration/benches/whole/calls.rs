//! What the bench asks of a daemon, over gRPC.

use std::path::{Path, PathBuf};
use std::time::Instant;

use protos::services::{containers, snapshots, tasks};
use protos::task::Status;
use protos::well_known::Any;
use protos::{Message as _, MessageField};
use tonic::Request;
use tonic::transport::Channel;

use crate::life::Life;
use crate::spec;

/// Namespace of everything that the bench makes.
pub(crate) const NAMESPACE: &str = "ctd-bench";
const RUNTIME: &str = "io.containerd.runc.v2";

/// A client of one daemon.
#[derive(Clone, Debug)]
pub(crate) struct Calls {
    pub(crate) channel: Channel,
    /// Chain id of the test image's only layer.
    pub(crate) parent: String,
    /// Control group of its containers.
    pub(crate) group: String,
    /// The OCI runtime's state, so that the bare runtime can be asked about the same containers.
    pub(crate) root: PathBuf,
}

/// Measures one call after the other.
struct Laps {
    last: Instant,
    all: Vec<Lap>,
}

/// A call and what it took, in ms.
pub(crate) type Lap = (&'static str, f64);

impl Laps {
    fn new() -> Self {
        Self {
            last: Instant::now(),
            all: Vec::new(),
        }
    }

    fn lap(&mut self, name: &'static str) {
        let now = Instant::now();
        let took = now.duration_since(std::mem::replace(&mut self.last, now));
        self.all.push((name, took.as_secs_f64() * 1e3));
    }
}

impl Calls {
    /// Prepare, create, start, wait, delete, remove of `/bin/true`.
    pub(crate) async fn life(&self, binary: &Path, id: &str) -> Life {
        let begin = Instant::now();
        let mut laps = Laps::new();
        self.make(binary, id, &["/bin/true"], "", &mut laps).await;
        self.start(id).await;
        laps.lap("Tasks.Start");
        let running = begin.elapsed();
        self.end(id, &mut laps).await;
        Life {
            running,
            whole: begin.elapsed(),
            laps: laps.all,
        }
    }

    /// A container that stays; its pid.
    pub(crate) async fn sleeper(&self, binary: &Path, id: &str) -> u32 {
        let args = ["/bin/sleep", "1000"];
        let pid = self.created(binary, id, &args, "").await;
        self.start(id).await;
        pid
    }

    /// A container that was not started yet; its pid.
    pub(crate) async fn created(
        &self,
        binary: &Path,
        id: &str,
        args: &[&str],
        stdout: &str,
    ) -> u32 {
        self.make(binary, id, args, stdout, &mut Laps::new()).await
    }

    /// Kills and removes a container.
    pub(crate) async fn remove(&self, id: &str) {
        let kill = tasks::KillRequest {
            container_id: id.into(),
            signal: 9,
            ..Default::default()
        };
        self.tasks().kill(request(kill)).await.expect("kill");
        self.finish(id).await;
    }

    /// Waits for the end of a container and removes it.
    pub(crate) async fn finish(&self, id: &str) {
        self.end(id, &mut Laps::new()).await;
    }

    /// How many tasks it lists as running.
    pub(crate) async fn running(&self) -> usize {
        let list = tasks::ListTasksRequest::default();
        let answer = self.tasks().list(request(list)).await.expect("list");
        let all = answer.into_inner().tasks;
        let running = all
            .iter()
            .filter(|task| task.status.enum_value() == Ok(Status::RUNNING));
        running.filter(|task| task.pid != 0).count()
    }

    /// Runs a program in a container, from its adding to the deletion of its record.
    pub(crate) async fn exec(&self, id: &str, exec: &str, args: &[&str]) -> Vec<Lap> {
        let mut laps = Laps::new();
        let add = tasks::ExecProcessRequest {
            container_id: id.into(),
            exec_id: exec.into(),
            spec: MessageField::some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
                value: spec::process(args).to_string().into_bytes(),
                ..Default::default()
            }),
            ..Default::default()
        };
        self.tasks().exec(request(add)).await.expect("exec");
        laps.lap("Tasks.Exec");
        let start = tasks::StartRequest {
            container_id: id.into(),
            exec_id: exec.into(),
            ..Default::default()
        };
        self.tasks()
            .start(request(start))
            .await
            .expect("start exec");
        laps.lap("Tasks.Start");
        let wait = tasks::WaitRequest {
            container_id: id.into(),
            exec_id: exec.into(),
            ..Default::default()
        };
        let waited = self.tasks().wait(request(wait)).await.expect("wait");
        assert_eq!(waited.into_inner().exit_status, 0, "exit of {exec}");
        laps.lap("Tasks.Wait");
        let delete = tasks::DeleteProcessRequest {
            container_id: id.into(),
            exec_id: exec.into(),
            ..Default::default()
        };
        let deleted = self.tasks().delete_process(request(delete)).await;
        deleted.expect("delete exec");
        laps.lap("Tasks.DeleteProcess");
        laps.all
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

    fn options(&self, binary: &Path) -> Any {
        let options = protos::runc::Options {
            binary_name: binary.to_string_lossy().into_owned(),
            root: self.root.to_string_lossy().into_owned(),
            ..Default::default()
        };
        Any {
            type_url: "containerd.runc.v1.Options".into(),
            value: options.write_to_bytes().expect("encode"),
            ..Default::default()
        }
    }

    async fn make(
        &self,
        binary: &Path,
        id: &str,
        args: &[&str],
        stdout: &str,
        laps: &mut Laps,
    ) -> u32 {
        let prepare = snapshots::PrepareSnapshotRequest {
            snapshotter: "overlayfs".into(),
            key: id.into(),
            parent: self.parent.clone(),
            // Until its container exists, and after that is gone, nothing else keeps it.
            labels: [("containerd.io/gc.root".to_owned(), "bench".to_owned())].into(),
            ..Default::default()
        };
        let prepared = self.snapshots().prepare(request(prepare)).await;
        let mounts = prepared.expect("prepare").into_inner().mounts;
        laps.lap("Snapshots.Prepare");
        let options = self.options(binary);
        let spec = spec::container(args, "rootfs", &format!("/{}/{id}", self.group));
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
        let created = self.containers().create(request(create)).await;
        created.expect("create container");
        laps.lap("Containers.Create");
        let create = tasks::CreateTaskRequest {
            container_id: id.into(),
            rootfs: mounts,
            stdout: stdout.into(),
            // Go's shim takes both or none.
            stderr: stdout.into(),
            options: MessageField::some(options),
            ..Default::default()
        };
        let created = self.tasks().create(request(create)).await;
        laps.lap("Tasks.Create");
        created.expect("create").into_inner().pid
    }

    pub(crate) async fn start(&self, id: &str) {
        let start = tasks::StartRequest {
            container_id: id.into(),
            ..Default::default()
        };
        self.tasks().start(request(start)).await.expect("start");
    }

    async fn end(&self, id: &str, laps: &mut Laps) {
        let wait = tasks::WaitRequest {
            container_id: id.into(),
            ..Default::default()
        };
        self.tasks().wait(request(wait)).await.expect("wait");
        laps.lap("Tasks.Wait");
        let delete = tasks::DeleteTaskRequest {
            container_id: id.into(),
            ..Default::default()
        };
        self.tasks().delete(request(delete)).await.expect("delete");
        laps.lap("Tasks.Delete");
        let delete = containers::DeleteContainerRequest {
            id: id.into(),
            ..Default::default()
        };
        let deleted = self.containers().delete(request(delete)).await;
        deleted.expect("delete container");
        laps.lap("Containers.Delete");
        let remove = snapshots::RemoveSnapshotRequest {
            snapshotter: "overlayfs".into(),
            key: id.into(),
            ..Default::default()
        };
        let removed = self.snapshots().remove(request(remove)).await;
        removed.expect("remove snapshot");
        laps.lap("Snapshots.Remove");
    }
}

fn request<T>(message: T) -> Request<T> {
    within(NAMESPACE, message)
}

/// A request in a namespace.
pub(crate) fn within<T>(namespace: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value = namespace.parse().expect("a header value");
    request.metadata_mut().insert("containerd-namespace", value);
    request
}
