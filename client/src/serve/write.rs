//! `Content.Write`: one ingest, driven by the client's messages.
//!
//! ```text
//! first message (has ref) --> open --> STAT: tell  --> STAT …
//!                                      WRITE: append -> WRITE …
//!                                      COMMIT: commit, answer, end
//! ```
//! Invariant: the ingest belongs to the stream; when the stream ends without a commit the data stays
//! for a later resume and the name is free again.

use std::sync::Arc;

use content::{ContentStore, Ingest, IngestSpec};
use grpc::Sender;
use protos::services::content::{WriteAction, WriteContentRequest, WriteContentResponse};
use protos::wire::Wire as _;
use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;
use types::{Context as _, Digest, Error, IngestRef, Labels, Result};

/// Serves one stream.
///
/// # Errors
/// `InvalidArgument` for a first message without a ref; `OutOfRange` for an offset that is not the
/// current one; those of the store.
pub(super) async fn serve(
    store: Arc<dyn ContentStore>,
    mut requests: impl Stream<Item = Result<WriteContentRequest, Status>> + Unpin + Send,
    replies: Sender<WriteContentResponse>,
) -> Result<()> {
    let first = next(&mut requests).await?;
    let Some(mut request) = first.filter(|request| !request.ref_.is_empty()) else {
        return Err(Error::invalid_argument(
            "first message must have a reference",
        ));
    };
    let mut session = Session::open(store, &request).await?;
    loop {
        if session.learn(&request).await? {
            return session.give_up().await;
        }
        let reply = match request.action.enum_value() {
            Ok(WriteAction::STAT) => session.reply(WriteAction::STAT).await?,
            Ok(WriteAction::WRITE) => session.write(request).await?,
            Ok(WriteAction::COMMIT) => return replies.send(session.commit(request).await?).await,
            Err(number) => {
                return Err(Error::invalid_argument(format_args!(
                    "write action {number}"
                )));
            }
        };
        replies.send(reply).await?;
        match next(&mut requests).await? {
            Some(following) => request = following,
            None => return Ok(()),
        }
    }
}

async fn next(
    requests: &mut (impl Stream<Item = Result<WriteContentRequest, Status>> + Unpin),
) -> Result<Option<WriteContentRequest>> {
    requests
        .next()
        .await
        .transpose()
        .map_err(|status| grpc::status::to_error(&status))
}

/// An open ingest and what the client has said about it so far.
struct Session {
    store: Arc<dyn ContentStore>,
    reference: IngestRef,
    ingest: Box<dyn Ingest>,
    total: Option<u64>,
    expected: Option<Digest>,
}

impl Session {
    async fn open(store: Arc<dyn ContentStore>, request: &WriteContentRequest) -> Result<Self> {
        let reference: IngestRef = request.ref_.parse()?;
        let (total, expected) = announced(request)?;
        let spec = IngestSpec {
            reference: reference.clone(),
            total,
            expected: expected.clone(),
        };
        let ingest = store.ingest(spec).await?;
        Ok(Self {
            store,
            reference,
            ingest,
            total,
            expected,
        })
    }

    /// Notes a length or digest that the client learnt under way; true when a blob of that digest
    /// is there already, so that the client need not send the rest.
    async fn learn(&mut self, request: &WriteContentRequest) -> Result<bool> {
        let (total, expected) = announced(request)?;
        self.total = total.or(self.total);
        let Some(digest) = expected.filter(|digest| self.expected.as_ref() != Some(digest)) else {
            return Ok(false);
        };
        // A commit finds out by itself.
        let known = request.action != WriteAction::COMMIT.into()
            && self.store.info(&digest).await.absent_ok()?.is_some();
        self.expected = Some(digest);
        Ok(known)
    }

    /// Gives up the ingest for a blob that exists. Asking for it once more makes the store say so
    /// and add the blob to the caller's lease.
    async fn give_up(self) -> Result<()> {
        let Self {
            store,
            reference,
            ingest,
            total,
            expected,
        } = self;
        ingest.abandon().await?;
        let again = IngestSpec {
            reference: reference.clone(),
            total,
            expected,
        };
        // The blob was removed in between: the client has to start anew.
        store.ingest(again).await?.abandon().await?;
        Err(Error::aborted("blob was removed while it was written"))
    }

    async fn reply(&mut self, action: WriteAction) -> Result<WriteContentResponse> {
        let digest = self.ingest.digest().await?;
        let status = self.ingest.status();
        Ok(WriteContentResponse {
            action: action.into(),
            offset: signed(status.offset),
            digest: digest.to_string(),
            started_at: Some(status.started_at.to_wire()).into(),
            updated_at: Some(status.updated_at.to_wire()).into(),
            total: signed(self.total.unwrap_or(0)),
            ..Default::default()
        })
    }

    async fn write(&mut self, request: WriteContentRequest) -> Result<WriteContentResponse> {
        self.append(request.offset, request.data).await?;
        self.reply(WriteAction::WRITE).await
    }

    async fn commit(mut self, request: WriteContentRequest) -> Result<WriteContentResponse> {
        self.append(request.offset, request.data).await?;
        let reply = self.reply(WriteAction::COMMIT).await?;
        let labels = Labels::from_wire(request.labels)?;
        let digest = self
            .ingest
            .commit(self.total, self.expected, labels)
            .await?;
        Ok(WriteContentResponse {
            digest: digest.to_string(),
            ..reply
        })
    }

    /// Appends at `offset`. 0 starts anew; any other must be where the ingest stands.
    async fn append(&mut self, offset: i64, data: bytes::Bytes) -> Result<()> {
        let current = self.ingest.status().offset;
        if offset == 0 && current > 0 {
            self.ingest.truncate(0).await.ctx("truncate failed")?;
        } else if offset != 0 && u64::try_from(offset) != Ok(current) {
            return Err(Error::out_of_range(format_args!(
                "write @{offset} must occur at current offset {current}"
            )));
        }
        if data.is_empty() {
            return Ok(());
        }
        self.ingest.write(data).await
    }
}

/// Length and digest that a message announces.
fn announced(request: &WriteContentRequest) -> Result<(Option<u64>, Option<Digest>)> {
    let total = u64::try_from(request.total).ok().filter(|total| *total > 0);
    let expected = match request.expected.as_str() {
        "" => None,
        digest => Some(digest.parse()?),
    };
    Ok((total, expected))
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
