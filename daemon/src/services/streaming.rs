//! `containerd.services.streaming.v1.Streaming`: streams by name, which transfers read and write.

use std::time::Duration;

use async_trait::async_trait;
use client::stream::{Far, Sink};
use futures::FutureExt as _;
use grpc::streaming::Streaming as Service;
use grpc::{ResponseStream, Sender, serve_duplex};
use protos::well_known::Any as Wired;
use protos::wire::Wire as _;
use protos::wire::transfer::{stream_init_from_any, stream_opened};
use tokio::sync::mpsc::Receiver;
use tonic::{Request, Response, Status, Streaming as Incoming};
use types::{Any, Error, Result, Scope};

use crate::streams::{Carried, Streams};

/// How long the name of a stream may take to come.
const PATIENCE: Duration = Duration::from_secs(30);

/// Carries the frames of streams.
#[derive(Clone, Debug)]
pub(crate) struct Streaming {
    /// All of them.
    pub(crate) streams: Streams,
}

#[async_trait]
impl Service for Streaming {
    type StreamStream = ResponseStream<Wired>;

    async fn stream(
        &self,
        request: Request<Incoming<Wired>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let streams = self.streams.clone();
        serve_duplex(request, |scope: Scope, incoming, replies| async move {
            carry(&streams, &scope, incoming, replies).await
        })
    }
}

async fn carry(
    streams: &Streams,
    scope: &Scope,
    mut incoming: Incoming<Wired>,
    replies: Sender<Wired>,
) -> Result<()> {
    let first = tokio::time::timeout(PATIENCE, incoming.message()).await;
    let first = first.map_err(|_| Error::deadline_exceeded("waiting for the name of a stream"))?;
    let Some(first) = first.map_err(|status| grpc::status::to_error(&status))? else {
        return Err(Error::invalid_argument("a stream begins with its name"));
    };
    let id = stream_init_from_any(&Any::from_wire(first)?)?;
    // The entry goes when this function ends, however it does.
    let Carried {
        far,
        ended,
        held: _held,
        carrying: _carrying,
    } = streams.register(scope, id)?;
    replies.send(stream_opened()).await?;
    let Far { mut receiver, sink } = far;
    tokio::select! {
        () = inward(incoming, sink, &replies) => Ok(()),
        done = outward(&mut receiver, &replies) => {
            replies.drained().await;
            done
        }
        () = replies.closed() => Err(Error::cancelled("")),
        _ = ended => flush(receiver, &replies).await,
    }
}

/// Frames of the client. Completes only when the client is gone: the other direction goes on after
/// the client's last word.
async fn inward(mut incoming: Incoming<Wired>, sink: Sink, replies: &Sender<Wired>) {
    loop {
        let frame = match incoming.message().await {
            Ok(Some(frame)) => Any::from_wire(frame),
            // A client that hangs up looks the same as one that is done.
            Ok(None) if replies.closed().now_or_never().is_some() => return,
            Ok(None) => {
                sink.finish();
                break;
            }
            Err(status) => Err(grpc::status::to_error(&status)),
        };
        let last = frame.is_err();
        if !sink.send(frame).await || last {
            break;
        }
    }
    replies.closed().await;
}

/// Frames for the client, until the near end is dropped. Dropped itself, it has no frame in its hands.
async fn outward(receiver: &mut Receiver<Any>, replies: &Sender<Wired>) -> Result<()> {
    loop {
        let room = replies.room().await?;
        match receiver.recv().await {
            Some(frame) => room.send(frame.to_wire()),
            None => return Ok(()),
        }
    }
}

/// What was sent before the stream was ended.
async fn flush(mut receiver: Receiver<Any>, replies: &Sender<Wired>) -> Result<()> {
    receiver.close();
    outward(&mut receiver, replies).await?;
    replies.drained().await;
    Ok(())
}
