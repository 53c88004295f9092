//! Content over a socket, against a service that answers as told.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::content::{ContentStore as _, IngestSpec};
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use grpc::content::{Content, ContentServer};
use protos::services::content as wire;
use protos::well_known::Empty;
use tokio::net::UnixListener;
use tonic::{Request, Response, Status, Streaming};
use types::{Code, Digest, Labels};

use super::RemoteContent;
use crate::Client;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Answer<T> = Result<Response<T>, Status>;

/// Keeps what is written to it; fails or ends after so many messages.
#[derive(Clone, Debug, Default)]
struct Fake {
    written: Arc<Mutex<Vec<u8>>>,
    fail_after: Option<usize>,
    end_after: Option<usize>,
}

impl Fake {
    fn take(&self, message: &wire::WriteContentRequest) -> wire::WriteContentResponse {
        let mut written = self.written.lock().unwrap();
        if message.offset == 0 {
            written.clear();
        }
        written.extend_from_slice(&message.data);
        let digest = Digest::from_bytes(types::Algorithm::Sha256, &[7; 32]).unwrap();
        let committed = message.action == wire::WriteAction::COMMIT.into();
        wire::WriteContentResponse {
            action: message.action,
            offset: i64::try_from(written.len()).unwrap(),
            digest: if committed {
                digest.to_string()
            } else {
                String::new()
            },
            ..Default::default()
        }
    }
}

#[tonic::async_trait]
impl Content for Fake {
    type ListStream = Answers<wire::ListContentResponse>;
    type ReadStream = Answers<wire::ReadContentResponse>;
    type WriteStream = Answers<wire::WriteContentResponse>;

    async fn info(&self, _: Request<wire::InfoRequest>) -> Answer<wire::InfoResponse> {
        Err(Status::unimplemented("info"))
    }

    async fn update(&self, _: Request<wire::UpdateRequest>) -> Answer<wire::UpdateResponse> {
        Err(Status::unimplemented("update"))
    }

    async fn list(&self, _: Request<wire::ListContentRequest>) -> Answer<Self::ListStream> {
        Err(Status::unimplemented("list"))
    }

    async fn delete(&self, _: Request<wire::DeleteContentRequest>) -> Answer<Empty> {
        Err(Status::unimplemented("delete"))
    }

    async fn read(&self, _: Request<wire::ReadContentRequest>) -> Answer<Self::ReadStream> {
        Err(Status::unimplemented("read"))
    }

    async fn status(&self, _: Request<wire::StatusRequest>) -> Answer<wire::StatusResponse> {
        Err(Status::unimplemented("status"))
    }

    async fn list_statuses(
        &self,
        _: Request<wire::ListStatusesRequest>,
    ) -> Answer<wire::ListStatusesResponse> {
        Err(Status::unimplemented("list statuses"))
    }

    async fn write(
        &self,
        request: Request<Streaming<wire::WriteContentRequest>>,
    ) -> Answer<Self::WriteStream> {
        let fake = self.clone();
        let (fail, end) = (self.fail_after, self.end_after.unwrap_or(usize::MAX));
        let answers = request.into_inner().enumerate().take(end);
        let answers = answers.map(move |(at, message)| {
            if fail.is_some_and(|fail| at >= fail) {
                return Err(Status::resource_exhausted("disk full: resource exhausted"));
            }
            Ok(fake.take(&message?))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn abort(&self, _: Request<wire::AbortRequest>) -> Answer<Empty> {
        Err(Status::unimplemented("abort"))
    }
}

/// A store whose other end is `fake`; the directory holds the socket.
async fn store(fake: Fake) -> (RemoteContent, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let incoming = futures::stream::unfold(listener, |listener| async {
        let stream = listener.accept().await.map(|(stream, _)| stream);
        Some((stream, listener))
    });
    let routes = grpc::Routes::of(ContentServer::new(fake));
    tokio::spawn(grpc::connections::serve(
        routes,
        incoming,
        std::future::pending(),
    ));
    let address = path.to_str().unwrap();
    let client = Client::connect(address, "ns".parse().unwrap(), Duration::from_secs(60)).await;
    (RemoteContent::new(client.unwrap().caller().clone()), dir)
}

fn spec() -> IngestSpec {
    IngestSpec {
        reference: "r".parse().unwrap(),
        total: None,
        expected: None,
    }
}

#[tokio::test]
async fn large_writes_arrive_whole_and_in_order() {
    let fake = Fake::default();
    let (store, _dir) = store(fake.clone()).await;
    let data: Vec<u8> = (0..24_u32 << 20)
        .map(|n| u8::try_from(n % 251).unwrap())
        .collect();
    let mut ingest = store.ingest(spec()).await.unwrap();
    ingest.write(Bytes::from(data.clone())).await.unwrap();
    assert_eq!(ingest.status().offset, data.len() as u64);
    let hash = ingest.digest().await.unwrap();
    let digest = ingest
        .commit(Some(data.len() as u64), None, Labels::new())
        .await
        .unwrap();
    assert_eq!(digest.hex(), "07".repeat(32));
    assert_ne!(hash, digest);
    assert!(*fake.written.lock().unwrap() == data);
}

#[tokio::test]
async fn truncation_begins_anew_with_the_next_write() {
    let fake = Fake::default();
    let (store, _dir) = store(fake.clone()).await;
    let mut ingest = store.ingest(spec()).await.unwrap();
    ingest.write(Bytes::from_static(b"first")).await.unwrap();
    let error = ingest.truncate(9).await.unwrap_err();
    assert!(error.is(Code::OutOfRange), "{error}");
    let error = ingest.truncate(2).await.unwrap_err();
    assert!(error.is(Code::NotImplemented), "{error}");
    ingest.truncate(0).await.unwrap();
    ingest.write(Bytes::from_static(b"second")).await.unwrap();
    ingest.commit(None, None, Labels::new()).await.unwrap();
    assert_eq!(*fake.written.lock().unwrap(), b"second");
}

#[tokio::test]
async fn the_reason_of_a_failed_write_reaches_the_writer() {
    let fake = Fake {
        fail_after: Some(3),
        ..Fake::default()
    };
    let (store, _dir) = store(fake).await;
    let mut ingest = store.ingest(spec()).await.unwrap();
    // More than the window: the failure must be met while writing.
    let error = ingest
        .write(Bytes::from(vec![0; 24 << 20]))
        .await
        .unwrap_err();
    assert!(error.is(Code::ResourceExhausted), "{error}");
    assert_eq!(error.to_string(), "disk full: resource exhausted");
}

#[tokio::test]
async fn an_early_end_is_no_success() {
    let fake = Fake {
        end_after: Some(2),
        ..Fake::default()
    };
    let (store, _dir) = store(fake).await;
    let mut ingest = store.ingest(spec()).await.unwrap();
    ingest.write(Bytes::from_static(b"x")).await.unwrap();
    let error = ingest.commit(None, None, Labels::new()).await.unwrap_err();
    assert!(error.is(Code::Unavailable), "{error:?}");
}
