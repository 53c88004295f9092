//! What rules work with: blobs, snapshots, leases, and the collector.

use grpc::content::ContentClient;
use grpc::leases::LeasesClient;
use grpc::snapshots::SnapshotsClient;
use protos::MessageField;
use protos::services::content::{
    InfoRequest, WriteAction, WriteContentRequest, WriteContentResponse,
};
use protos::services::leases::{
    AddResourceRequest, CreateRequest, DeleteRequest, ListResourcesRequest, Resource,
};
use protos::services::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, StatSnapshotRequest,
};
use tonic::codegen::tokio_stream;
use tonic::{Code, Request, Response, Status};

use crate::peer::{Peer, labels, leased, scoped};

/// Label of what is kept for its own sake.
pub(crate) const ROOT: &str = "containerd.io/gc.root";
/// A snapshotter that works on every file system.
pub(crate) const SNAPSHOTTER: &str = "native";

/// A request under a lease, if it has a name.
fn under<T>(lease: &str, message: T) -> Request<T> {
    if lease.is_empty() {
        scoped(message)
    } else {
        leased(lease, message)
    }
}

/// A message that writes all of a blob and commits it.
pub(crate) fn commit(data: &str, pairs: &[(&str, &str)]) -> WriteContentRequest {
    WriteContentRequest {
        action: WriteAction::COMMIT.into(),
        ref_: format!("ref {data}"),
        total: i64::try_from(data.len()).expect("a length"),
        data: data.to_owned().into(),
        labels: labels(pairs),
        ..WriteContentRequest::default()
    }
}

/// Sends messages on one stream: all answers, or the first refusal.
pub(crate) async fn write(
    peer: &Peer,
    lease: &str,
    messages: Vec<WriteContentRequest>,
) -> Result<Response<Vec<WriteContentResponse>>, Status> {
    let mut client = ContentClient::new(peer.channel());
    let messages = under(lease, tokio_stream::iter(messages));
    let mut stream = client.write(messages).await?.into_inner();
    let mut answers = Vec::new();
    while let Some(answer) = stream.message().await? {
        answers.push(answer);
    }
    Ok(Response::new(answers))
}

/// The digest of a new blob.
pub(crate) async fn put(peer: &Peer, lease: &str, data: &str, pairs: &[(&str, &str)]) -> String {
    let answers = write(peer, lease, vec![commit(data, pairs)]).await;
    let answers = answers.expect("write").into_inner();
    answers.last().expect("an answer").digest.clone()
}

pub(crate) async fn has_blob(peer: &Peer, digest: &str) -> bool {
    let request = InfoRequest {
        digest: digest.into(),
        ..InfoRequest::default()
    };
    is_there(
        ContentClient::new(peer.channel())
            .info(scoped(request))
            .await,
    )
}

#[track_caller]
fn is_there<T>(answer: Result<Response<T>, Status>) -> bool {
    match answer {
        Ok(_) => true,
        Err(status) => {
            assert_eq!(status.code(), Code::NotFound, "{status}");
            false
        }
    }
}

/// Prepares a snapshot.
pub(crate) async fn prepare(
    peer: &Peer,
    lease: &str,
    (key, parent): (&str, &str),
    pairs: &[(&str, &str)],
) -> Result<Response<()>, Status> {
    let request = PrepareSnapshotRequest {
        snapshotter: SNAPSHOTTER.into(),
        key: key.into(),
        parent: parent.into(),
        labels: labels(pairs),
        ..PrepareSnapshotRequest::default()
    };
    let mut client = SnapshotsClient::new(peer.channel());
    let answer = client.prepare(under(lease, request)).await;
    answer.map(|made| made.map(drop))
}

/// Commits a snapshot.
pub(crate) async fn commit_snapshot(
    peer: &Peer,
    lease: &str,
    (key, name): (&str, &str),
) -> Result<Response<()>, Status> {
    let request = CommitSnapshotRequest {
        snapshotter: SNAPSHOTTER.into(),
        name: name.into(),
        key: key.into(),
        ..CommitSnapshotRequest::default()
    };
    let mut client = SnapshotsClient::new(peer.channel());
    let answer = client.commit(under(lease, request)).await;
    answer.map(|made| made.map(drop))
}

pub(crate) async fn has_snapshot(peer: &Peer, key: &str) -> bool {
    let request = StatSnapshotRequest {
        snapshotter: SNAPSHOTTER.into(),
        key: key.into(),
        ..StatSnapshotRequest::default()
    };
    let mut client = SnapshotsClient::new(peer.channel());
    is_there(client.stat(scoped(request)).await)
}

/// Makes a lease.
pub(crate) async fn lease(peer: &Peer, id: &str, pairs: &[(&str, &str)]) {
    let request = CreateRequest {
        id: id.into(),
        labels: labels(pairs),
        ..CreateRequest::default()
    };
    let mut client = LeasesClient::new(peer.channel());
    drop(client.create(scoped(request)).await.expect("a lease"));
}

/// Ends a lease; what only it held is gone with the answer.
pub(crate) async fn end(peer: &Peer, id: &str) {
    let request = DeleteRequest {
        id: id.into(),
        sync: true,
        ..DeleteRequest::default()
    };
    let mut client = LeasesClient::new(peer.channel());
    drop(client.delete(scoped(request)).await.expect("a lease"));
}

/// Collects garbage.
pub(crate) async fn collect(peer: &Peer) {
    lease(peer, "collect", &[]).await;
    end(peer, "collect").await;
}

/// Puts an object into a lease.
pub(crate) async fn add(peer: &Peer, lease: &str, (kind, id): (&str, &str)) {
    let request = AddResourceRequest {
        id: lease.into(),
        resource: MessageField::some(Resource {
            id: id.into(),
            type_: kind.into(),
            ..Resource::default()
        }),
        ..AddResourceRequest::default()
    };
    let mut client = LeasesClient::new(peer.channel());
    drop(client.add_resource(scoped(request)).await.expect("add"));
}

/// Types and ids of what a lease holds, in order.
pub(crate) async fn held(peer: &Peer, lease: &str) -> Vec<(String, String)> {
    let request = ListResourcesRequest {
        id: lease.into(),
        ..ListResourcesRequest::default()
    };
    let mut client = LeasesClient::new(peer.channel());
    let answer = client.list_resources(scoped(request)).await.expect("list");
    let resources = answer.into_inner().resources;
    let mut held: Vec<_> = resources.into_iter().map(|r| (r.type_, r.id)).collect();
    held.sort();
    held
}
