//! Daemons that do not know a method, or a whole service: the client does without.

use std::time::Duration;

use grpc::Written;
use grpc::containers::{Containers, ContainersServer};
use protos::Message as _;
use protos::services::containers as wire;
use protos::well_known::Empty;
use tokio::net::UnixListener;
use tonic::{Request, Response, Status};
use types::{Filter, Mount};

use crate::Client;

type Answer<T> = Result<Response<T>, Status>;

/// Lists two containers in one message, and knows nothing else.
#[derive(Debug)]
struct Old;

#[tonic::async_trait]
impl Containers for Old {
    type ListStreamStream = futures::stream::Pending<Result<wire::ListContainerMessage, Status>>;

    async fn list(
        &self,
        request: Request<wire::ListContainersRequest>,
    ) -> Answer<Written<wire::ListContainersResponse>> {
        assert_eq!(request.into_inner().filters, ["id==1"]);
        let container = |id: &str| wire::Container {
            id: id.into(),
            ..Default::default()
        };
        let list = wire::ListContainersResponse {
            containers: vec![container("a"), container("b")],
            ..Default::default()
        };
        let mut written = Written::new(grpc::MAX_MESSAGE);
        let bytes = list.write_to_bytes().unwrap();
        written.field().extend_from_slice(&bytes);
        Written::answer(Response::new(written))
    }

    async fn list_stream(
        &self,
        _: Request<wire::ListContainersRequest>,
    ) -> Answer<Self::ListStreamStream> {
        Err(Status::unimplemented("unknown method ListStream"))
    }

    async fn get(
        &self,
        _: Request<wire::GetContainerRequest>,
    ) -> Answer<wire::GetContainerResponse> {
        Err(Status::unimplemented("get"))
    }

    async fn create(
        &self,
        _: Request<wire::CreateContainerRequest>,
    ) -> Answer<wire::CreateContainerResponse> {
        Err(Status::unimplemented("create"))
    }

    async fn update(
        &self,
        _: Request<wire::UpdateContainerRequest>,
    ) -> Answer<wire::UpdateContainerResponse> {
        Err(Status::unimplemented("update"))
    }

    async fn delete(&self, _: Request<wire::DeleteContainerRequest>) -> Answer<Empty> {
        Err(Status::unimplemented("delete"))
    }
}

/// A client of that daemon; the directory holds the socket.
async fn client() -> (Client, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let incoming = futures::stream::unfold(listener, |listener| async {
        let stream = listener.accept().await.map(|(stream, _)| stream);
        Some((stream, listener))
    });
    let routes = grpc::Routes::of(ContainersServer::new(Old));
    tokio::spawn(grpc::connections::serve(
        routes,
        incoming,
        std::future::pending(),
    ));
    let address = path.to_str().unwrap();
    let client = Client::connect(address, "ns".parse().unwrap(), Duration::from_secs(60)).await;
    (client.unwrap(), dir)
}

#[tokio::test]
async fn a_daemon_that_streams_no_containers_is_asked_for_all_in_one() {
    let (client, _dir) = client().await;
    let filter = Filter::parse(&["id==1"]).unwrap();
    let found = client.containers().list(&filter).await.unwrap();
    let ids: Vec<_> = found.iter().map(|one| one.id.as_str()).collect();
    assert_eq!(ids, ["a", "b"]);
}

#[tokio::test]
async fn a_daemon_that_performs_no_mounts_leaves_them_to_its_client() {
    let (client, _dir) = client().await;
    let mounts = vec![Mount {
        kind: "bind".into(),
        source: "/a".into(),
        ..Mount::default()
    }];
    let left = client.mounts().activate("m", mounts.clone()).await;
    assert_eq!(left.unwrap(), mounts);
    client.mounts().deactivate("m").await.unwrap();
}
