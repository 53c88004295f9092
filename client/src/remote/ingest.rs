//! A writer on the other end's ingest.
//!
//! ```text
//! STAT ->  <- where it stands
//! WRITE -> WRITE -> WRITE ->  <- ack <- ack ...      at most WINDOW unanswered
//! COMMIT -> <- digest; the stream ends
//! ```

use ::content::{Hasher, Ingest, IngestSpec};
use async_trait::async_trait;
use bytes::Bytes;
use grpc::content::ContentClient;
use protos::services::content as wire;
use protos::wire::{Wire as _, length, signed, time};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use types::{Context as _, Digest, Error, IngestRef, IngestStatus, Labels, Result};

use crate::again::Again;
use crate::call::{Caller, done, next};

/// Most unanswered writes.
const WINDOW: usize = 8;
/// Most data in one message: far below the limit of 16 MiB, enough to be cheap.
const CHUNK: usize = 1 << 20;

/// An open `Content.Write` stream.
#[derive(Debug)]
pub(super) struct RemoteIngest {
    caller: Caller,
    stub: ContentClient<Again>,
    requests: mpsc::Sender<wire::WriteContentRequest>,
    answers: Streaming<wire::WriteContentResponse>,
    unanswered: usize,
    status: IngestStatus,
    /// The other end's digest of its first so many bytes.
    digest: Option<(u64, Digest)>,
    /// Hash of all that is there, unless its digest is known beforehand or it was begun by others.
    hash: Option<Hasher>,
}

impl RemoteIngest {
    pub(super) async fn open(
        caller: &Caller,
        mut stub: ContentClient<Again>,
        spec: IngestSpec,
    ) -> Result<Self> {
        let (requests, receiver) = mpsc::channel(WINDOW);
        let now = std::time::SystemTime::now();
        let status = IngestStatus {
            reference: spec.reference,
            offset: 0,
            total: spec.total.unwrap_or(0),
            expected: spec.expected,
            started_at: now,
            updated_at: now,
        };
        let stat = request(&status, wire::WriteAction::STAT);
        // Sent before the call: the answer's head may only come after the first message.
        requests
            .try_send(stat)
            .map_err(|_| Error::internal("queue of one is full"))?;
        let call = caller.endless(ReceiverStream::new(receiver))?;
        let answers = caller
            .long_step(async { done(stub.write(call).await) })
            .await?;
        let mut made = Self {
            caller: caller.clone(),
            stub,
            requests,
            answers,
            unanswered: 1,
            status,
            digest: None,
            hash: None,
        };
        let answer = made.answer().await?;
        made.status.offset = length("offset", answer.offset)?;
        if made.status.offset == 0 && made.status.expected.is_none() {
            made.hash = Some(Hasher::default());
        }
        if let Some(total) = Some(length("total", answer.total)?).filter(|t| *t > 0) {
            made.status.total = total;
        }
        made.status.started_at = time(answer.started_at)?;
        Ok(made)
    }

    async fn send(&mut self, message: wire::WriteContentRequest) -> Result<()> {
        while self.unanswered >= WINDOW {
            self.answer().await?;
        }
        let sending = async { Ok(self.requests.send(message).await) };
        if self.caller.long_step(sending).await?.is_err() {
            // The stream is down: the reason is in the answers.
            while self.unanswered > 0 {
                self.answer().await?;
            }
            return Err(self.ended());
        }
        self.unanswered += 1;
        Ok(())
    }

    /// The next answer.
    async fn answer(&mut self) -> Result<wire::WriteContentResponse> {
        let next = self.caller.long_step(next(&mut self.answers)).await?;
        let Some(answer) = next else {
            return Err(self.ended());
        };
        self.unanswered = self.unanswered.saturating_sub(1);
        if !answer.digest.is_empty() {
            self.digest = Some((length("offset", answer.offset)?, answer.digest.parse()?));
        }
        if answer.updated_at.is_some() {
            self.status.updated_at = time(answer.updated_at.clone())?;
        }
        Ok(answer)
    }

    fn ended(&self) -> Error {
        let reference = &self.status.reference;
        Error::unavailable(format_args!("write of {reference}: stream ended early"))
    }
}

fn request(status: &IngestStatus, action: wire::WriteAction) -> wire::WriteContentRequest {
    wire::WriteContentRequest {
        action: action.into(),
        ref_: status.reference.to_string(),
        total: signed(status.total),
        expected: status
            .expected
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        offset: signed(status.offset),
        ..Default::default()
    }
}

#[async_trait]
impl Ingest for RemoteIngest {
    fn status(&self) -> IngestStatus {
        self.status.clone()
    }

    async fn digest(&mut self) -> Result<Digest> {
        if let Some(hash) = &self.hash {
            return hash.current();
        }
        match &self.digest {
            Some((offset, digest)) if *offset == self.status.offset => Ok(digest.clone()),
            _ => Err(Error::not_implemented(
                "digest of an unfinished remote ingest",
            )),
        }
    }

    async fn write(&mut self, mut data: Bytes) -> Result<()> {
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(CHUNK));
            let length = piece.len() as u64;
            let mut message = request(&self.status, wire::WriteAction::WRITE);
            if let Some(hash) = &mut self.hash {
                hash.update(&piece);
            }
            message.data = piece;
            self.send(message).await?;
            self.status.offset += length;
        }
        Ok(())
    }

    async fn truncate(&mut self, size: u64) -> Result<()> {
        if size > self.status.offset {
            return Err(Error::out_of_range(format_args!(
                "truncate to {size} beyond offset {}",
                self.status.offset
            )));
        }
        if size != self.status.offset && size != 0 {
            return Err(Error::not_implemented(
                "truncate of a remote ingest to other than 0",
            ));
        }
        while self.unanswered > 0 {
            self.answer().await?;
        }
        // The next write says offset 0, which makes the other end start anew.
        self.status.offset = size;
        if size == 0 {
            self.digest = None;
            self.hash = self.status.expected.is_none().then(Hasher::default);
        }
        Ok(())
    }

    async fn commit(
        mut self: Box<Self>,
        size: Option<u64>,
        expected: Option<Digest>,
        labels: Labels,
    ) -> Result<Digest> {
        while self.unanswered > 0 {
            self.answer().await?;
        }
        let mut message = request(&self.status, wire::WriteAction::COMMIT);
        message.total = size.map_or(0, signed);
        message.expected = expected.map(|d| d.to_string()).unwrap_or_default();
        message.labels = labels.to_wire();
        self.send(message).await?;
        let answer = self.answer().await?;
        // To the very end: a stream that is dropped before is reset.
        let Self {
            requests,
            mut answers,
            caller,
            ..
        } = *self;
        drop(requests);
        while caller.long_step(next(&mut answers)).await?.is_some() {}
        answer.digest.parse()
    }

    async fn abandon(self: Box<Self>) -> Result<()> {
        let Self {
            requests,
            mut answers,
            status,
            caller,
            stub,
            ..
        } = *self;
        drop(requests);
        // Until the other end has let it go, whatever it says on the way.
        while let Ok(Some(_)) = caller.long_step(next(&mut answers)).await {}
        abort(&caller, stub, &status.reference).await.absent_ok()?;
        Ok(())
    }
}

/// Removes an ingest by name.
pub(super) async fn abort(
    caller: &Caller,
    mut stub: ContentClient<Again>,
    reference: &IngestRef,
) -> Result<()> {
    let message = wire::AbortRequest {
        ref_: reference.to_string(),
        ..Default::default()
    };
    done(stub.abort(caller.request(message)?).await)?;
    Ok(())
}
