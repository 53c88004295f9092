//! A container whose root file system only the daemon can mount: it runs, and leaves nothing mounted.

use std::time::Duration;

use grpc::snapshots::SnapshotsClient;
use grpc::tasks::TasksClient;
use integration::{Host, IMAGE, until};
use protos::services::snapshots::MountsRequest;
use protos::services::tasks::{CreateTaskRequest, StartRequest};
use protos::types::Mount;
use tonic::transport::Channel;

/// Longest wait for a connection.
const SOON: Duration = integration::PATIENCE;

fn scoped<T>(host: &Host, message: T) -> tonic::Request<T> {
    let namespace = host.namespace().parse().expect("a namespace");
    grpc::request(&types::Scope::new(namespace), message).expect("a request")
}

/// The container's overlay, whose lower directory is a mount of the daemon's own.
async fn rootfs(host: &Host, channel: Channel) -> Vec<Mount> {
    let request = MountsRequest {
        snapshotter: "overlayfs".into(),
        key: "c".into(),
        ..MountsRequest::default()
    };
    let answer = SnapshotsClient::new(channel)
        .mounts(scoped(host, request))
        .await;
    let mut overlay = answer.expect("mounts").into_inner().mounts.remove(0);
    let mut lower = None;
    for option in &mut overlay.options {
        if let Some(directory) = option.strip_prefix("lowerdir=") {
            lower = Some(directory.to_owned());
            *option = "lowerdir={{ mount 0 }}".into();
        }
    }
    overlay.type_ = "format/overlay".into();
    let below = Mount {
        type_: "bind".into(),
        source: lower.expect("an overlay of one layer"),
        options: vec!["rbind".into(), "ro".into()],
        ..Mount::default()
    };
    vec![below, overlay]
}

/// Mount points of the manager.
pub(crate) fn managed(host: &Host) -> Vec<String> {
    let table = format!("/proc/{}/mountinfo", host.daemon_pid());
    let table = std::fs::read_to_string(table).expect("read");
    let state = host.state().display().to_string();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    let ours = |point: &&str| point.starts_with(&state) && point.contains("mount-manager");
    points.filter(ours).map(str::to_owned).collect()
}

fn start(host: &Host, runtime: &tokio::runtime::Runtime) {
    runtime.block_on(async {
        let address = host.address().display().to_string();
        let channel = client::connect(&address, SOON).await.expect("connect");
        let mut tasks = TasksClient::new(channel.clone());
        let request = CreateTaskRequest {
            container_id: "c".into(),
            rootfs: rootfs(host, channel).await,
            ..CreateTaskRequest::default()
        };
        drop(tasks.create(scoped(host, request)).await.expect("create"));
        let request = StartRequest {
            container_id: "c".into(),
            ..StartRequest::default()
        };
        drop(tasks.start(scoped(host, request)).await.expect("start"));
    });
}

#[test]
fn a_container_runs_on_mounts_that_the_daemon_has_made() {
    let mut host = Host::new("task-mounts");
    host.image();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let create = host.ctr_program().args(["containers", "create"]);
    let create = create
        .args(host.runtime_flags())
        .args([IMAGE, "c", "sleep", "1000"]);
    drop(create.run().ok());
    start(&host, &runtime);
    until("it runs", || host.task("c", "RUNNING").is_some());
    assert_eq!(managed(&host).len(), 1);
    let exec = [
        "tasks",
        "exec",
        "--exec-id",
        "e",
        "c",
        "sh",
        "-c",
        "echo in >/f; cat /f",
    ];
    assert_eq!(host.ctr(exec).ok(), "in\n");
    // The daemon may go: the mounts are still the container's.
    host.kill();
    host.start();
    until("it is known", || host.task("c", "RUNNING").is_some());
    assert_eq!(managed(&host).len(), 1);
    drop(host.ctr(["tasks", "kill", "-s", "KILL", "c"]).ok());
    until("it stops", || host.task("c", "STOPPED").is_some());
    drop(host.ctr(["tasks", "rm", "c"]));
    assert_eq!(managed(&host), Vec::<String>::new());
    // Again, by the same name.
    start(&host, &runtime);
    assert_eq!(managed(&host).len(), 1);
    host.remove("c");
    assert_eq!(managed(&host), Vec::<String>::new());
    drop(runtime);
    host.finish();
}
