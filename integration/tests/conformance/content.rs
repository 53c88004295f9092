//! Content: blobs and ingests.

mod info;
mod ingests;
mod read;
mod share;
mod write;

use grpc::content::ContentClient;
use protos::MessageField;
use protos::services::content::{
    AbortRequest, DeleteContentRequest, Info, InfoRequest, ListContentRequest, ListStatusesRequest,
    ReadContentRequest, ReadContentResponse, Status as Standing, StatusRequest, UpdateRequest,
    WriteAction, WriteContentRequest, WriteContentResponse,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};
use types::Scope;

use crate::peer::{NAMESPACE, Peer, all, labels, mask};
use crate::stock;

/// sha256 of nothing.
pub(crate) const EMPTY: &str =
    "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// The sha256 digest of some bytes.
pub(crate) fn digest(data: &[u8]) -> String {
    let digest = ::content::Hasher::digest(data).expect("a digest");
    digest.to_string()
}

/// A message of `Write`.
pub(crate) fn message(
    action: WriteAction,
    reference: &str,
    offset: i64,
    data: &[u8],
) -> WriteContentRequest {
    WriteContentRequest {
        action: action.into(),
        ref_: reference.into(),
        offset,
        data: data.to_vec().into(),
        ..WriteContentRequest::default()
    }
}

/// A message that asks where an ingest stands, and opens it when it is the first.
pub(crate) fn stat(reference: &str) -> WriteContentRequest {
    message(WriteAction::STAT, reference, 0, b"")
}

/// The content of a namespace, maybe under a lease.
pub(crate) struct Content {
    client: ContentClient<Channel>,
    scope: Scope,
}

impl Content {
    pub(crate) fn of(peer: &Peer) -> Self {
        Self::within(peer, NAMESPACE)
    }

    pub(crate) fn within(peer: &Peer, namespace: &str) -> Self {
        Self {
            client: ContentClient::new(peer.channel()),
            scope: Scope::new(namespace.parse().expect("a namespace")),
        }
    }

    pub(crate) fn leased(peer: &Peer, lease: &str) -> Self {
        let mut made = Self::of(peer);
        made.scope.lease = Some(lease.parse().expect("a lease"));
        made
    }

    fn request<T>(&self, message: T) -> Request<T> {
        grpc::request(&self.scope, message).expect("a request")
    }

    /// Writes a blob that no collection takes away.
    pub(crate) async fn put(&mut self, data: &[u8]) -> String {
        self.put_with(data, &[(stock::ROOT, "yes")]).await
    }

    /// Writes a blob with these labels and no others.
    pub(crate) async fn put_with(&mut self, data: &[u8], pairs: &[(&str, &str)]) -> String {
        let digest = digest(data);
        let commit = WriteContentRequest {
            labels: labels(pairs),
            ..message(WriteAction::COMMIT, &digest, 0, data)
        };
        let answers = self.write(vec![commit]).await.expect("write");
        assert_eq!(answers[0].digest, digest);
        digest
    }

    pub(crate) async fn info(&mut self, digest: &str) -> Result<Info, Status> {
        let request = self.request(InfoRequest {
            digest: digest.into(),
            ..InfoRequest::default()
        });
        let answer = self.client.info(request).await?;
        Ok(answer.into_inner().info.unwrap_or_default())
    }

    /// True when the namespace has the blob.
    pub(crate) async fn has(&mut self, digest: &str) -> bool {
        match self.info(digest).await {
            Ok(info) => info.digest == digest,
            Err(status) if status.code() == tonic::Code::NotFound => false,
            Err(status) => panic!("{status}"),
        }
    }

    pub(crate) async fn update(
        &mut self,
        digest: &str,
        pairs: &[(&str, &str)],
        paths: Option<&[&str]>,
    ) -> Result<Info, Status> {
        let info = Info {
            digest: digest.into(),
            labels: labels(pairs),
            ..Info::default()
        };
        let request = self.request(UpdateRequest {
            info: MessageField::some(info),
            update_mask: paths.map(mask).unwrap_or_default(),
            ..UpdateRequest::default()
        });
        let answer = self.client.update(request).await?;
        Ok(answer.into_inner().info.unwrap_or_default())
    }

    /// The pages of a list.
    async fn pages(&mut self, filters: &[&str]) -> Result<Vec<Vec<Info>>, Status> {
        let request = self.request(ListContentRequest {
            filters: filters.iter().map(|filter| (*filter).to_owned()).collect(),
            ..ListContentRequest::default()
        });
        let pages = all(self.client.list(request).await).await?;
        Ok(pages.into_iter().map(|page| page.info).collect())
    }

    /// The digests of a list.
    async fn list(&mut self, filters: &[&str]) -> Vec<String> {
        let pages = self.pages(filters).await.expect("list");
        pages
            .into_iter()
            .flatten()
            .map(|info| info.digest)
            .collect()
    }

    pub(crate) async fn delete(&mut self, digest: &str) -> Result<(), Status> {
        let request = self.request(DeleteContentRequest {
            digest: digest.into(),
            ..DeleteContentRequest::default()
        });
        self.client.delete(request).await.map(drop)
    }

    async fn pieces(
        &mut self,
        digest: &str,
        offset: i64,
        size: i64,
    ) -> Result<Vec<ReadContentResponse>, Status> {
        let request = self.request(ReadContentRequest {
            digest: digest.into(),
            offset,
            size,
            ..ReadContentRequest::default()
        });
        all(self.client.read(request).await).await
    }

    /// The bytes of a blob from `offset`, `size` of them; 0: all.
    pub(crate) async fn read(
        &mut self,
        digest: &str,
        offset: i64,
        size: i64,
    ) -> Result<Vec<u8>, Status> {
        let pieces = self.pieces(digest, offset, size).await?;
        Ok(pieces
            .iter()
            .flat_map(|piece| piece.data.to_vec())
            .collect())
    }

    pub(crate) async fn status(&mut self, reference: &str) -> Result<Standing, Status> {
        let request = self.request(StatusRequest {
            ref_: reference.into(),
            ..StatusRequest::default()
        });
        let answer = self.client.status(request).await?;
        Ok(answer.into_inner().status.unwrap_or_default())
    }

    /// The refs of all ingests that pass, in order.
    pub(crate) async fn ingests(&mut self, filters: &[&str]) -> Result<Vec<String>, Status> {
        let request = self.request(ListStatusesRequest {
            filters: filters.iter().map(|filter| (*filter).to_owned()).collect(),
            ..ListStatusesRequest::default()
        });
        let answer = self.client.list_statuses(request).await?;
        let statuses = answer.into_inner().statuses;
        let mut found: Vec<_> = statuses.into_iter().map(|status| status.ref_).collect();
        found.sort();
        Ok(found)
    }

    pub(crate) async fn abort(&mut self, reference: &str) -> Result<(), Status> {
        let request = self.request(AbortRequest {
            ref_: reference.into(),
            ..AbortRequest::default()
        });
        self.client.abort(request).await.map(drop)
    }

    /// Sends the messages on one stream and ends it; all answers. Parity: Go 1.6 repeats the last one
    /// at the end.
    pub(crate) async fn write(
        &mut self,
        messages: Vec<WriteContentRequest>,
    ) -> Result<Vec<WriteContentResponse>, Status> {
        let request = self.request(tokio_stream::iter(messages));
        all(self.client.write(request).await).await
    }

    /// Opens a stream with this message.
    pub(crate) async fn open(
        &mut self,
        first: WriteContentRequest,
    ) -> Result<(Writing, WriteContentResponse), Status> {
        let (requests, receiver) = mpsc::channel(1);
        // Before the call: Go's answer has no head before the first message.
        requests.send(first).await.expect("room for one");
        let request = self.request(ReceiverStream::new(receiver));
        let answers = self.client.write(request).await?.into_inner();
        let mut writing = Writing { requests, answers };
        let answer = writing.answer().await?;
        Ok((writing, answer))
    }
}

/// An open stream of `Write`.
#[derive(Debug)]
pub(crate) struct Writing {
    requests: mpsc::Sender<WriteContentRequest>,
    answers: Streaming<WriteContentResponse>,
}

impl Writing {
    async fn answer(&mut self) -> Result<WriteContentResponse, Status> {
        let ended = || Status::aborted("the stream ended without an answer");
        self.answers.message().await?.ok_or_else(ended)
    }

    /// Sends one message; its answer.
    pub(crate) async fn ask(
        &mut self,
        message: WriteContentRequest,
    ) -> Result<WriteContentResponse, Status> {
        // A stream that has ended takes nothing; its answers say why.
        drop(self.requests.send(message).await);
        self.answer().await
    }

    /// Waits until the daemon ends the stream, which this end leaves open.
    async fn ended(&mut self) -> Result<(), Status> {
        while self.answers.message().await?.is_some() {}
        Ok(())
    }

    /// Ends the stream and waits for the daemon's end.
    pub(crate) async fn close(self) -> Result<(), Status> {
        let Self { requests, answers } = self;
        drop(requests);
        all(Ok(tonic::Response::new(answers))).await.map(drop)
    }
}
