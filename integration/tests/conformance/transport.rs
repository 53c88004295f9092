//! What holds for every service: namespace, unknown names, sizes, health, the socket.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;

use grpc::containers::ContainersClient;
use grpc::health::HealthClient;
use grpc::namespaces::NamespacesClient;
use grpc::version::VersionClient;
use hyper_util::rt::TokioIo;
use protos::any::pack;
use protos::events::ContainerDelete;
use protos::health::HealthCheckRequest;
use protos::health::health_check_response::ServingStatus;
use protos::services::containers::{
    Container, CreateContainerRequest, GetContainerRequest, ListContainersRequest,
    UpdateContainerRequest,
};
use protos::services::namespaces::{GetNamespaceRequest, ListNamespacesRequest};
use protos::well_known::{Any, Empty};
use protos::wire::Wire as _;
use protos::{Message, MessageField};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Response, Status};

use crate::containers::{Containers, container};
use crate::heard::{Heard, publish};
use crate::images::{Images, image};
use crate::peer::{Peer, SOON, refused, scoped};

rules! {
    both {
        the_socket_is_for_its_owner_and_group
        the_socket_for_shims_is_beside_it
        any_authority_is_served
        a_namespace_is_required
        a_namespace_is_an_identifier
        the_first_namespace_counts
        some_services_need_no_namespace
        an_unknown_service_is_named
        an_unknown_method_is_named
        the_server_is_healthy
        a_service_has_no_health_of_its_own
        health_can_be_watched
        a_message_has_16_mib_at_most
        an_answer_has_16_mib_at_most
        a_type_is_understood_without_a_prefix
        the_daemon_writes_types_without_a_prefix
    }
    ours {
        a_type_is_understood_with_a_prefix
    }
}

/// Calls a method by its path; the answer's fields are left unread.
pub(crate) async fn call<M: Message>(
    peer: &Peer,
    path: &str,
    request: Request<M>,
) -> Result<Response<Empty>, Status> {
    let mut client = tonic::client::Grpc::new(peer.channel());
    client.ready().await.expect("a connection");
    let codec = grpc::Codec::default();
    client
        .unary(request, path.parse().expect("a path"), codec)
        .await
}

async fn the_socket_is_for_its_owner_and_group(peer: &Peer) {
    let socket = fs::metadata(peer.host.address()).expect("stat");
    assert!(socket.file_type().is_socket());
    assert_eq!(socket.permissions().mode() & 0o7777, 0o660);
    assert_eq!((socket.uid(), socket.gid()), (0, 0));
}

async fn the_socket_for_shims_is_beside_it(peer: &Peer) {
    let path = PathBuf::from(format!("{}.ttrpc", peer.host.address().display()));
    let socket = fs::metadata(path).expect("stat");
    assert!(socket.file_type().is_socket());
    assert_eq!(socket.permissions().mode() & 0o7777, 0o660);
}

async fn channel_to(peer: &Peer, authority: &'static str) -> Channel {
    let path = peer.host.address();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static(authority);
    let channel = endpoint.connect_with_connector(connector).await;
    channel.expect("connect")
}

async fn any_authority_is_served(peer: &Peer) {
    for authority in ["http://localhost", "http://c.sock", "http://[::]:50051"] {
        let mut client = VersionClient::new(channel_to(peer, authority).await);
        let answer = client.version(Empty::new()).await;
        assert!(!answer.expect(authority).into_inner().version.is_empty());
    }
}

/// Methods that look into a namespace before they look at their message.
const SCOPED: [&str; 15] = [
    "/containerd.services.containers.v1.Containers/Get",
    "/containerd.services.containers.v1.Containers/List",
    "/containerd.services.containers.v1.Containers/Create",
    "/containerd.services.containers.v1.Containers/Delete",
    "/containerd.services.content.v1.Content/ListStatuses",
    "/containerd.services.content.v1.Content/Abort",
    "/containerd.services.images.v1.Images/Get",
    "/containerd.services.images.v1.Images/List",
    "/containerd.services.images.v1.Images/Delete",
    "/containerd.services.leases.v1.Leases/Create",
    "/containerd.services.leases.v1.Leases/Delete",
    "/containerd.services.leases.v1.Leases/List",
    "/containerd.services.leases.v1.Leases/AddResource",
    "/containerd.services.leases.v1.Leases/DeleteResource",
    "/containerd.services.leases.v1.Leases/ListResources",
];

async fn a_namespace_is_required(peer: &Peer) {
    for path in SCOPED {
        for value in [None, Some(""), Some(", b")] {
            let mut request = Request::new(Empty::new());
            let values = value.iter().flat_map(|all| all.split(", "));
            for value in values {
                let value = value.parse().expect("a value");
                request.metadata_mut().append(grpc::NAMESPACE, value);
            }
            let answer = call(peer, path, request).await;
            let text = refused(Code::FailedPrecondition, answer);
            assert_eq!(text, "namespace is required: failed precondition", "{path}");
        }
    }
}

async fn a_namespace_is_an_identifier(peer: &Peer) {
    let long = "x".repeat(77);
    for path in SCOPED {
        for namespace in ["../x", "a/b", "a b", "-a", &long] {
            let mut request = Request::new(Empty::new());
            let value = namespace.parse().expect("a value");
            request.metadata_mut().insert(grpc::NAMESPACE, value);
            let text = refused(Code::InvalidArgument, call(peer, path, request).await);
            assert!(text.starts_with("namespace validation: "), "{path}: {text}");
        }
    }
}

async fn the_first_namespace_counts(peer: &Peer) {
    let mut client = ContainersClient::new(peer.channel());
    let mut request = scoped(create(container("c")));
    let other = "other".parse().expect("a value");
    request.metadata_mut().append(grpc::NAMESPACE, other);
    drop(client.create(request).await.expect("create"));
    let request = scoped(ListContainersRequest::default());
    let list = client.list(request).await.expect("list").into_inner();
    assert_eq!(list.containers.len(), 1);
}

async fn some_services_need_no_namespace(peer: &Peer) {
    let channel = peer.channel();
    let version = VersionClient::new(channel.clone())
        .version(Empty::new())
        .await;
    assert!(!version.expect("version").into_inner().version.is_empty());
    let mut health = HealthClient::new(channel.clone());
    drop(
        health
            .check(HealthCheckRequest::default())
            .await
            .expect("health"),
    );
    let mut namespaces = NamespacesClient::new(channel);
    let list = namespaces.list(ListNamespacesRequest::default()).await;
    drop(list.expect("list"));
    let request = GetNamespaceRequest {
        name: "n".into(),
        ..GetNamespaceRequest::default()
    };
    drop(namespaces.get(request).await.expect("get"));
}

async fn an_unknown_service_is_named(peer: &Peer) {
    for service in [
        "example.v1.Nothing",
        "Nothing",
        "containerd.services.containers.v2.Containers",
    ] {
        for request in [Request::new(Empty::new()), scoped(Empty::new())] {
            let answer = call(peer, &format!("/{service}/Get"), request).await;
            let text = refused(Code::Unimplemented, answer);
            assert_eq!(text, format!("unknown service {service}"));
        }
    }
}

async fn an_unknown_method_is_named(peer: &Peer) {
    let service = "containerd.services.containers.v1.Containers";
    for method in ["Nothing", "get", "ListMore"] {
        let path = format!("/{service}/{method}");
        let answer = call(peer, &path, scoped(Empty::new())).await;
        let text = refused(Code::Unimplemented, answer);
        assert_eq!(
            text,
            format!("unknown method {method} for service {service}")
        );
    }
}

async fn the_server_is_healthy(peer: &Peer) {
    let mut health = HealthClient::new(peer.channel());
    for request in [
        Request::new(HealthCheckRequest::default()),
        scoped(HealthCheckRequest::default()),
    ] {
        let answer = health.check(request).await.expect("check").into_inner();
        assert_eq!(answer.status, ServingStatus::SERVING.into());
    }
}

fn about(service: &str) -> HealthCheckRequest {
    HealthCheckRequest {
        service: service.into(),
        ..HealthCheckRequest::default()
    }
}

async fn a_service_has_no_health_of_its_own(peer: &Peer) {
    let mut health = HealthClient::new(peer.channel());
    for service in ["containerd.services.containers.v1.Containers", "x"] {
        let text = refused(Code::NotFound, health.check(about(service)).await);
        assert!(text.starts_with("unknown service"), "{text}");
    }
}

async fn health_can_be_watched(peer: &Peer) {
    let mut health = HealthClient::new(peer.channel());
    for (service, want) in [
        ("", ServingStatus::SERVING),
        ("x", ServingStatus::SERVICE_UNKNOWN),
    ] {
        let watch = health.watch(about(service)).await.expect("watch");
        let mut watch = watch.into_inner();
        let first = timeout(SOON, watch.message()).await.expect("in time");
        let first = first.expect("no failure").expect("no end");
        assert_eq!(first.status, want.into());
    }
}

pub(crate) fn create(container: Container) -> CreateContainerRequest {
    CreateContainerRequest {
        container: MessageField::some(container),
        ..CreateContainerRequest::default()
    }
}

/// A container with a spec of many bytes.
pub(crate) fn large(id: &str, bytes: usize) -> Container {
    Container {
        spec: MessageField::some(Any {
            type_url: "large".into(),
            value: vec![b'x'; bytes],
            ..Any::default()
        }),
        ..container(id)
    }
}

/// A request of exactly so many bytes: to update a container that is not there.
pub(crate) fn of_size(bytes: usize) -> UpdateContainerRequest {
    let sized = |spec| UpdateContainerRequest {
        container: MessageField::some(large("none", spec)),
        ..UpdateContainerRequest::default()
    };
    let head = sized(bytes).compute_size() - bytes as u64;
    let made = sized(bytes - usize::try_from(head).expect("a size"));
    assert_eq!(made.compute_size(), bytes as u64);
    made
}

async fn a_message_has_16_mib_at_most(peer: &Peer) {
    let limit = 16 << 20;
    let client = ContainersClient::new(peer.channel());
    let mut client = client.max_encoding_message_size(limit * 2);
    refused(Code::NotFound, client.update(scoped(of_size(limit))).await);
    for size in [limit + 1, limit + (1 << 20)] {
        let answer = client.update(scoped(of_size(size))).await;
        let text = refused(Code::ResourceExhausted, answer);
        let want = format!("grpc: received message larger than max ({size} vs. {limit})");
        assert_eq!(text, want);
    }
    // The connection is as good as before.
    refused(Code::NotFound, client.update(scoped(of_size(1000))).await);
}

async fn an_answer_has_16_mib_at_most(peer: &Peer) {
    let client = ContainersClient::new(peer.channel());
    let mut client = client.max_decoding_message_size(64 << 20);
    let half = (8 << 20) + 1;
    for id in ["a", "b"] {
        let request = scoped(create(large(id, half)));
        drop(client.create(request).await.expect("create"));
        let request = GetContainerRequest {
            id: id.into(),
            ..GetContainerRequest::default()
        };
        let found = client.get(scoped(request)).await.expect("get").into_inner();
        assert_eq!(found.container.spec.value.len(), half);
    }
    let answer = client.list(scoped(ListContainersRequest::default())).await;
    let text = refused(Code::ResourceExhausted, answer);
    assert!(
        text.starts_with("grpc: trying to send message larger than max ("),
        "{text}"
    );
    // A stream has room for them all.
    let request = scoped(ListContainersRequest::default());
    let mut stream = client
        .list_stream(request)
        .await
        .expect("list")
        .into_inner();
    let mut ids = Vec::new();
    while let Some(message) = stream.message().await.expect("a message") {
        ids.push(message.container.id.clone());
    }
    assert_eq!(ids, ["a", "b"]);
}

/// Whoever filters by a field has to look into the event.
async fn is_understood(peer: &Peer, prefix: &str) {
    let mut heard = Heard::matching(peer, &["event.id==wanted"]).await;
    for id in ["other", "wanted"] {
        let message = ContainerDelete {
            id: id.into(),
            ..ContainerDelete::default()
        };
        let mut event = pack(&message).expect("pack").to_wire();
        event.type_url.insert_str(0, prefix);
        publish(peer, "/some/topic", event.clone()).await;
        if id == "wanted" {
            // It is handed on as it came.
            assert_eq!(heard.next().await.event.as_ref(), Some(&event));
        }
    }
}

async fn a_type_is_understood_without_a_prefix(peer: &Peer) {
    is_understood(peer, "").await;
}

async fn a_type_is_understood_with_a_prefix(peer: &Peer) {
    is_understood(peer, "type.googleapis.com/").await;
}

async fn the_daemon_writes_types_without_a_prefix(peer: &Peer) {
    let mut heard = Heard::all(peer).await;
    let mut containers = Containers::of(peer);
    containers.create(container("c")).await.expect("create");
    let mut images = Images::of(peer);
    images.create(image("i", '1')).await.expect("create");
    for name in [
        "containerd.events.ContainerCreate",
        "containerd.services.images.v1.ImageCreate",
    ] {
        assert_eq!(heard.next().await.event.type_url, name);
    }
}
