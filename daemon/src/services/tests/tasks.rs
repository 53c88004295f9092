//! Tasks: what is refused before any shim is started. What runs is shown by the integration tests.

use grpc::containers::ContainersClient;
use grpc::tasks::TasksClient;
use protos::MessageField;
use protos::services::containers::{Container, CreateContainerRequest, container::Runtime};
use protos::services::tasks::{
    CreateTaskRequest, DeleteTaskRequest, ExecProcessRequest, GetRequest, KillRequest,
    ListTasksRequest, MetricsRequest, WaitRequest,
};
use protos::types::Descriptor;
use protos::well_known::Any;
use tonic::Code;

use super::{Daemon, refused, scoped};

async fn with_container(daemon: &Daemon, runtime: &str) {
    let container = Container {
        id: "c".into(),
        runtime: MessageField::some(Runtime {
            name: runtime.into(),
            ..Default::default()
        }),
        spec: MessageField::some(Any {
            value: b"{}".to_vec(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let request = CreateContainerRequest {
        container: MessageField::some(container),
        ..Default::default()
    };
    ContainersClient::new(daemon.channel())
        .create(scoped(request))
        .await
        .unwrap();
}

fn create(id: &str) -> CreateTaskRequest {
    CreateTaskRequest {
        container_id: id.into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_task_needs_its_container_and_its_runtime() {
    let daemon = Daemon::start().await;
    with_container(&daemon, "io.containerd.nosuch.v1").await;
    let mut client = TasksClient::new(daemon.channel());
    for (request, code, part) in [
        (
            create("none"),
            Code::NotFound,
            "container \"none\" in namespace \"test\": not found",
        ),
        (
            create("../c"),
            Code::NotFound,
            "container \"../c\": not found",
        ),
        (create("c"), Code::NotFound, "containerd-shim-nosuch-v1"),
        (
            CreateTaskRequest {
                task_api_address: "unix:///x".into(),
                ..create("c")
            },
            Code::Unimplemented,
            "endpoint",
        ),
        (
            CreateTaskRequest {
                checkpoint: MessageField::some(Descriptor::default()),
                ..create("c")
            },
            Code::InvalidArgument,
            "digest",
        ),
    ] {
        let (found, text) = refused(client.create(scoped(request)).await);
        assert_eq!(found, code, "{text}");
        assert!(text.contains(part), "{text}");
    }
    let listed = client
        .list(scoped(ListTasksRequest::default()))
        .await
        .unwrap()
        .into_inner();
    assert!(listed.tasks.is_empty());
}

#[tokio::test]
async fn what_does_not_run_is_not_found() {
    let daemon = Daemon::start().await;
    with_container(&daemon, "r").await;
    let mut client = TasksClient::new(daemon.channel());
    let id = || "c".to_owned();
    let get = GetRequest {
        container_id: id(),
        ..Default::default()
    };
    let (code, text) = refused(client.get(scoped(get)).await);
    assert_eq!(
        (code, text.as_str()),
        (Code::NotFound, "task c not found: not found")
    );
    let kill = KillRequest {
        container_id: id(),
        signal: 9,
        ..Default::default()
    };
    assert_eq!(refused(client.kill(scoped(kill)).await).0, Code::NotFound);
    let wait = WaitRequest {
        container_id: id(),
        ..Default::default()
    };
    assert_eq!(refused(client.wait(scoped(wait)).await).0, Code::NotFound);
    let delete = DeleteTaskRequest {
        container_id: id(),
        ..Default::default()
    };
    assert_eq!(
        refused(client.delete(scoped(delete)).await).0,
        Code::NotFound
    );
    for bad in ["", "../c", "a/b"] {
        let get = GetRequest {
            container_id: bad.into(),
            ..Default::default()
        };
        let (code, text) = refused(client.get(scoped(get)).await);
        assert_eq!(
            (code, text),
            (Code::NotFound, format!("task {bad:?}: not found"))
        );
    }
    let exec = ExecProcessRequest {
        container_id: id(),
        ..Default::default()
    };
    let (code, text) = refused(client.exec(scoped(exec)).await);
    assert_eq!(code, Code::InvalidArgument);
    assert_eq!(text, "exec id cannot be empty: invalid argument");
    let bad = MetricsRequest {
        filters: vec!["==".into()],
        ..Default::default()
    };
    assert_eq!(
        refused(client.metrics(scoped(bad)).await).0,
        Code::InvalidArgument
    );
}
