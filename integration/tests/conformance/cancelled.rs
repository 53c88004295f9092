//! Calls whose client gives up: what they were about is whole or not there.

use std::time::Duration;

use grpc::containers::ContainersClient;
use grpc::content::ContentClient;
use grpc::leases::LeasesClient;
use grpc::snapshots::SnapshotsClient;
use protos::MessageField;
use protos::services::containers::{CreateContainerRequest, GetContainerRequest};
use protos::services::content::{AbortRequest, WriteAction, WriteContentRequest};
use protos::services::leases::{CreateRequest, DeleteRequest};
use protos::services::snapshots::{MountsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest};
use tokio::time::{Instant, timeout};
use tonic::codegen::tokio_stream::{self, StreamExt as _};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use crate::containers::container;
use crate::peer::{Peer, SOON, labels, leased, scoped};
use crate::stock::{SNAPSHOTTER, held, lease, prepare, write};

rules! {
    both {
        a_snapshot_is_whole_or_not_there
        a_lease_is_whole_or_not_there
        a_container_is_whole_or_not_there
        an_ingest_is_free_for_the_next_writer
    }
    ours {}
}

/// Deadlines from before the call arrives to after its answer.
pub(crate) const STEPS: std::ops::Range<u64> = 0..40;

/// The request with a deadline, shorter with each step down.
pub(crate) fn hasty<T>(step: u64, message: T) -> Request<T> {
    let mut request = leased("l", message);
    request.set_timeout(Duration::from_micros(50 + step * step * 5));
    request
}

/// True when the call was in time; it failed of nothing but its deadline.
#[track_caller]
pub(crate) fn in_time<T>(answer: Result<Response<T>, Status>) -> bool {
    match answer {
        Ok(_) => true,
        Err(status) => {
            let late = [Code::DeadlineExceeded, Code::Cancelled];
            // Go gives some of its own no class.
            let is_late = late.contains(&status.code()) || status.message().contains("context ");
            assert!(is_late, "{status}");
            false
        }
    }
}

/// What a snapshot's name stands for: the answers of `Mounts` and `Remove`.
async fn taken(peer: &Peer, key: &str) -> [Result<Response<()>, Status>; 2] {
    let mut client = SnapshotsClient::new(peer.channel());
    let request = MountsRequest {
        snapshotter: SNAPSHOTTER.into(),
        key: key.into(),
        ..MountsRequest::default()
    };
    let mounts = client.mounts(scoped(request)).await;
    let request = RemoveSnapshotRequest {
        snapshotter: SNAPSHOTTER.into(),
        key: key.into(),
        ..RemoveSnapshotRequest::default()
    };
    let removed = client.remove(scoped(request)).await;
    [mounts.map(|m| m.map(drop)), removed.map(|r| r.map(drop))]
}

async fn hasty_prepare(peer: &Peer, step: u64, key: &str) -> Result<Response<()>, Status> {
    let request = PrepareSnapshotRequest {
        snapshotter: SNAPSHOTTER.into(),
        key: key.into(),
        // A call that was cut off may have made it without its lease.
        labels: labels(&[(crate::stock::ROOT, "yes")]),
        ..PrepareSnapshotRequest::default()
    };
    let mut client = SnapshotsClient::new(peer.channel());
    let answer = client.prepare(hasty(step, request)).await;
    answer.map(|made| made.map(drop))
}

async fn a_snapshot_is_whole_or_not_there(peer: &Peer) {
    // What nothing keeps may be collected at any time.
    lease(peer, "l", &[]).await;
    for step in STEPS {
        let key = format!("k{step}");
        let told = in_time(hasty_prepare(peer, step, &key).await);
        match prepare(peer, "l", (&key, ""), &[]).await {
            Ok(_) => assert!(!told, "{key} was made twice"),
            Err(status) => assert_eq!(status.code(), Code::AlreadyExists, "{status}"),
        }
        for answer in taken(peer, &key).await {
            answer.expect("a whole snapshot");
        }
    }
}

async fn a_lease_is_whole_or_not_there(peer: &Peer) {
    let mut client = LeasesClient::new(peer.channel());
    for step in STEPS {
        let id = format!("l{step}");
        let request = CreateRequest {
            id: id.clone(),
            ..CreateRequest::default()
        };
        let told = in_time(client.create(hasty(step, request.clone())).await);
        match client.create(scoped(request)).await {
            Ok(_) => assert!(!told, "{id} was made twice"),
            Err(status) => assert_eq!(status.code(), Code::AlreadyExists, "{status}"),
        }
        assert!(held(peer, &id).await.is_empty());
        let request = DeleteRequest {
            id,
            ..DeleteRequest::default()
        };
        drop(client.delete(scoped(request)).await.expect("delete"));
    }
}

async fn a_container_is_whole_or_not_there(peer: &Peer) {
    let mut client = ContainersClient::new(peer.channel());
    for step in STEPS {
        let made = container(&format!("c{step}"));
        let request = CreateContainerRequest {
            container: MessageField::some(made.clone()),
            ..CreateContainerRequest::default()
        };
        let told = in_time(client.create(hasty(step, request.clone())).await);
        match client.create(scoped(request)).await {
            Ok(_) => assert!(!told, "{} was made twice", made.id),
            Err(status) => assert_eq!(status.code(), Code::AlreadyExists, "{status}"),
        }
        let request = GetContainerRequest {
            id: made.id,
            ..GetContainerRequest::default()
        };
        let found = client.get(scoped(request)).await.expect("get").into_inner();
        assert_eq!(found.container.spec, made.spec);
    }
}

/// Opens an ingest and waits for the answer; the stream ends with the client.
async fn open(channel: Channel) -> Result<(), Status> {
    let message = WriteContentRequest {
        action: WriteAction::STAT.into(),
        ref_: "r".into(),
        ..WriteContentRequest::default()
    };
    let messages = tokio_stream::once(message).chain(tokio_stream::pending());
    let mut client = ContentClient::new(channel);
    let mut stream = client.write(scoped(messages)).await?.into_inner();
    stream.message().await?;
    Ok(())
}

/// A client that opens an ingest and is gone after a while, whatever it was about: connection and all.
fn gone(address: &str, limit: Duration) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let channel = client::connect(address, SOON).await.expect("connect");
        // In time or not, refused because the last one is not gone yet, or not.
        drop(timeout(limit, open(channel)).await);
    });
}

async fn an_ingest_is_free_for_the_next_writer(peer: &Peer) {
    for step in STEPS {
        let address = peer.host.address().display().to_string();
        let limit = Duration::from_micros(50 + step * step * 5);
        let cut = tokio::task::spawn_blocking(move || gone(&address, limit));
        cut.await.expect("a client");
        let next = WriteContentRequest {
            ref_: "r".into(),
            ..WriteContentRequest::default()
        };
        let until = Instant::now() + SOON;
        while let Err(status) = write(peer, "", vec![next.clone()]).await {
            assert_eq!(status.code(), Code::Unavailable, "{status}");
            assert!(Instant::now() < until, "the ingest stays locked: {status}");
        }
    }
    let request = AbortRequest {
        ref_: "r".into(),
        ..AbortRequest::default()
    };
    let mut client = ContentClient::new(peer.channel());
    drop(client.abort(scoped(request)).await.expect("abort"));
}
