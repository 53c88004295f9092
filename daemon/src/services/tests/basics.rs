//! What holds for every service: namespace, unknown services, who we are.

use grpc::containers::ContainersClient;
use grpc::health::HealthClient;
use grpc::introspection::IntrospectionClient;
use grpc::streaming::StreamingClient;
use grpc::version::VersionClient;
use protos::health::HealthCheckRequest;
use protos::health::health_check_response::ServingStatus;
use protos::services::containers::{GetContainerRequest, ListContainersRequest};
use protos::services::introspection::{PluginInfoRequest, PluginsRequest};
use protos::types::RuntimeRequest;
use protos::well_known::{Any, Empty};
use protos::wire::Wire as _;
use tonic::{Code, Request};

use super::{Daemon, SOON, refused, scoped};

#[tokio::test]
async fn a_namespace_is_required_and_must_be_an_identifier() {
    let daemon = Daemon::start().await;
    let mut client = ContainersClient::new(daemon.channel());
    let (code, text) = refused(
        client
            .list(Request::new(ListContainersRequest::default()))
            .await,
    );
    assert_eq!(code, Code::FailedPrecondition);
    assert_eq!(text, "namespace is required: failed precondition");

    let mut request = Request::new(ListContainersRequest::default());
    request
        .metadata_mut()
        .insert(grpc::NAMESPACE, "../x".parse().unwrap());
    let (code, text) = refused(client.list(request).await);
    assert_eq!(code, Code::InvalidArgument);
    assert!(text.contains("\"../x\" must match"), "{text}");
}

#[tokio::test]
async fn what_is_not_served_is_unimplemented_by_name() {
    let daemon = Daemon::start_with(|config| {
        let disabled = ["containers", "streaming"];
        let uris = disabled.map(|id| format!("io.containerd.grpc.v1.{id}"));
        config.disabled_plugins.extend(uris);
    })
    .await;
    let mut client = ContainersClient::new(daemon.channel());
    let (code, text) = refused(client.get(scoped(GetContainerRequest::default())).await);
    assert_eq!(code, Code::Unimplemented);
    assert_eq!(
        text,
        "unknown service containerd.services.containers.v1.Containers"
    );

    let mut client = StreamingClient::new(daemon.channel());
    let messages = tokio_stream::iter([Any::default()]);
    let (code, text) = refused(client.stream(scoped(messages)).await);
    assert_eq!(code, Code::Unimplemented);
    assert_eq!(
        text,
        "unknown service containerd.services.streaming.v1.Streaming"
    );
}

#[tokio::test]
async fn version_and_health_need_no_namespace() {
    let daemon = Daemon::start().await;
    let version = VersionClient::new(daemon.channel())
        .version(Empty::new())
        .await
        .unwrap();
    assert_eq!(version.get_ref().version, crate::version::VERSION);

    let mut health = HealthClient::new(daemon.channel());
    let answer = health.check(HealthCheckRequest::default()).await.unwrap();
    assert_eq!(answer.get_ref().status, ServingStatus::SERVING.into());
    let unknown = HealthCheckRequest {
        service: "x".into(),
        ..Default::default()
    };
    assert_eq!(
        refused(health.check(unknown.clone()).await).0,
        Code::NotFound
    );
    let mut watch = health.watch(unknown).await.unwrap().into_inner();
    let first = tokio::time::timeout(SOON, watch.message())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(first.status, ServingStatus::SERVICE_UNKNOWN.into());
}

#[tokio::test]
async fn introspection_lists_what_there_is() {
    let daemon = Daemon::start_with(|config| {
        config
            .disabled_plugins
            .push("io.containerd.snapshotter.v1.native".into());
    })
    .await;
    let mut client = IntrospectionClient::new(daemon.channel());
    let all = client
        .plugins(PluginsRequest::default())
        .await
        .unwrap()
        .into_inner()
        .plugins;
    let has = |kind: &str, id: &str| all.iter().any(|row| row.type_ == kind && row.id == id);
    assert!(has("io.containerd.content.v1", "content"));
    assert!(has("io.containerd.runtime.v2", "task"));
    assert!(has("io.containerd.grpc.v1", "tasks"));
    assert!(!has("io.containerd.snapshotter.v1", "native"));
    assert!(!has("io.containerd.grpc.v1", "cri"));

    let filters = vec!["type==io.containerd.snapshotter.v1,id==overlayfs".to_owned()];
    let request = PluginsRequest {
        filters,
        ..Default::default()
    };
    let rows = client.plugins(request).await.unwrap().into_inner().plugins;
    assert_eq!(rows.len(), 1);
    assert!(rows[0].exports["root"].ends_with("io.containerd.snapshotter.v1.overlayfs"));
    assert_eq!(rows[0].platforms[0].os, "linux");

    let bad = PluginsRequest {
        filters: vec!["==".into()],
        ..Default::default()
    };
    assert_eq!(refused(client.plugins(bad).await).0, Code::InvalidArgument);
}

#[tokio::test]
async fn the_server_and_its_plugins_tell_of_themselves() {
    let daemon = Daemon::start().await;
    let mut client = IntrospectionClient::new(daemon.channel());
    let server = client.server(Empty::new()).await.unwrap().into_inner();
    assert_eq!(
        (server.uuid.len(), server.pid),
        (36, std::process::id().into())
    );
    assert_ne!(server.pidns, 0);

    let info = |kind: &str, id: &str, options: Option<Any>| PluginInfoRequest {
        type_: kind.into(),
        id: id.into(),
        options: options.into(),
        ..Default::default()
    };
    let runtime = RuntimeRequest {
        runtime_path: "io.containerd.nosuch.v1".into(),
        ..Default::default()
    };
    let runtime = protos::any::pack(&runtime).unwrap().to_wire();
    let content = info("io.containerd.content.v1", "content", None);
    let plugin = client
        .plugin_info(content)
        .await
        .unwrap()
        .into_inner()
        .plugin
        .unwrap();
    assert_eq!(plugin.id, "content");
    for (request, code) in [
        (
            info("io.containerd.content.v1", "none", None),
            Code::NotFound,
        ),
        (
            info("io.containerd.content.v1", "content", Some(Any::new())),
            Code::Unimplemented,
        ),
        (
            info("io.containerd.runtime.v2", "task", Some(runtime)),
            Code::NotFound,
        ),
        (
            info("io.containerd.runtime.v2", "task", Some(Any::new())),
            Code::InvalidArgument,
        ),
    ] {
        assert_eq!(refused(client.plugin_info(request).await).0, code);
    }
}
