//! Answers that were written as bytes: a long list needs no copy of itself as a message of messages,
//! and none as a whole.
//!
//! Invariant: the bytes are those of one message of type `M`; whoever writes them answers for that.
//! They stop growing where no client would be sent them any more.
//!
//! ```text
//! fields ─> pieces ─┬─ connection: sends the pieces as they are, behind the message's head
//!                   └─ anybody else's server: one frame, as for every message
//! ```

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue};
use http_body::Frame;
use protobuf::Message;
use tonic::codec::EncodeBuf;
use tonic::{Response, Status};

use crate::codec::Outgoing;

/// Room of the first piece: a short list's.
const SHORT: usize = 8 << 10;
/// A piece is closed beyond this size: small enough to stay in the heap, and to go back to it as soon as
/// it is sent.
const PIECE: usize = 128 << 10;
/// Room for the field that closes it.
const LAST: usize = 8 << 10;
/// Flag and length before a message.
const HEAD: usize = 5;

/// A message of type `M`, as bytes.
pub struct Written<M> {
    pieces: Pieces,
    open: BytesMut,
    closed: usize,
    limit: usize,
    message: PhantomData<fn() -> M>,
}

/// Pieces of a message, for the first who takes them.
#[derive(Clone, Default)]
struct Pieces(Arc<Mutex<VecDeque<Bytes>>>);

impl Pieces {
    fn push(&self, piece: Bytes) {
        let mut pieces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pieces.push_back(piece);
    }

    fn take(&self) -> VecDeque<Bytes> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<M: Message> Written<M> {
    /// A message without a field, on a server that sends messages of at most `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            pieces: Pieces::default(),
            open: BytesMut::with_capacity(SHORT),
            closed: 0,
            limit,
            message: PhantomData,
        }
    }

    /// Where the next field is added.
    pub fn field(&mut self) -> &mut BytesMut {
        if self.open.len() >= PIECE {
            self.close();
            self.open.reserve(PIECE + LAST);
        }
        &mut self.open
    }

    /// True when it will be refused for its size: what is added from here on is in vain.
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        self.closed + self.open.len() > self.limit
    }

    fn close(&mut self) {
        if !self.open.is_empty() {
            self.closed += self.open.len();
            self.pieces.push(self.open.split().freeze());
        }
    }

    /// The answer, which a connection of ours sends piece by piece.
    ///
    /// # Errors
    /// `ResourceExhausted` when it is larger than the server's messages may be.
    pub fn answer(answer: Response<Self>) -> Result<Response<Self>, Status> {
        let (metadata, mut list, mut extensions) = answer.into_parts();
        if list.is_too_large() {
            let (length, limit) = (list.closed + list.open.len(), list.limit);
            // Parity: grpc-go's server.go.
            return Err(Status::resource_exhausted(format!(
                "grpc: trying to send message larger than max ({length} vs. {limit})"
            )));
        }
        list.close();
        extensions.insert(list.pieces.clone());
        Ok(Response::from_parts(metadata, list, extensions))
    }
}

impl<M> Outgoing for Written<M> {
    fn write(self, frame: &mut EncodeBuf<'_>) -> Result<(), Status> {
        frame.reserve(self.closed + self.open.len());
        for piece in self.pieces.take() {
            frame.put(piece);
        }
        frame.put(self.open);
        Ok(())
    }
}

impl<M> fmt::Debug for Written<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let length = self.closed + self.open.len();
        write!(f, "Written({length} bytes)")
    }
}

/// An answer's body: the pieces of its one message, then the status.
struct Body {
    pieces: VecDeque<Bytes>,
    is_ended: bool,
}

/// True for an answer whose body [`in_pieces`] makes: it is there as a whole.
pub(crate) fn is_written(extensions: &http::Extensions) -> bool {
    extensions.get::<Pieces>().is_some()
}

/// The answer with its pieces for a body, where it has some.
pub(crate) fn in_pieces(
    mut answer: http::Response<tonic::body::Body>,
) -> http::Response<tonic::body::Body> {
    let Some(pieces) = answer.extensions_mut().remove::<Pieces>() else {
        return answer;
    };
    let mut pieces = pieces.take();
    let length: usize = pieces.iter().map(Bytes::len).sum();
    let Ok(length) = u32::try_from(length) else {
        return Status::resource_exhausted("a message of more than 4 GiB").into_http();
    };
    let mut head = BytesMut::with_capacity(HEAD);
    head.put_u8(0);
    head.put_u32(length);
    pieces.push_front(head.freeze());
    answer.map(|_| {
        tonic::body::Body::new(Body {
            pieces,
            is_ended: false,
        })
    })
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(piece) = self.pieces.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        if std::mem::replace(&mut self.is_ended, true) {
            return Poll::Ready(None);
        }
        let status = ("grpc-status", HeaderValue::from_static("0"));
        let mut trailers = HeaderMap::with_capacity(1);
        drop(trailers.insert(status.0, status.1));
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_ended
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use protos::services::containers::ListContainersResponse;
    use tonic::Code;

    use super::*;

    /// A list of this many containers, whose field is four bytes: `id: "xy"`.
    fn list(containers: usize, limit: usize) -> Written<ListContainersResponse> {
        let mut list = Written::new(limit);
        for _ in 0..containers {
            list.field().put_slice(&[10, 4, 10, 2, b'x', b'y']);
        }
        list
    }

    #[tokio::test]
    async fn a_list_is_sent_in_pieces_and_reads_as_one_message() {
        for containers in [0, 1, 100_000] {
            let answer = Response::new(list(containers, 1 << 20));
            let extensions = Written::answer(answer).unwrap().into_parts().2;
            let mut answer = http::Response::new(tonic::body::Body::empty());
            *answer.extensions_mut() = extensions;
            let mut body = in_pieces(answer).into_body();
            let (mut bytes, mut frames, mut trailers) = (Vec::new(), 0, HeaderMap::new());
            while let Some(frame) = body.frame().await {
                match frame.unwrap().into_data() {
                    Ok(data) => {
                        frames += 1;
                        assert!(data.len() < PIECE + LAST);
                        bytes.extend(data);
                    }
                    Err(frame) => trailers = frame.into_trailers().unwrap(),
                }
            }
            assert!(http_body::Body::is_end_stream(&body));
            assert_eq!(trailers["grpc-status"], "0");
            assert_eq!(frames > 4, containers > 1000);
            let (head, message) = bytes.split_at(HEAD);
            let length = u32::try_from(message.len()).unwrap().to_be_bytes();
            assert_eq!(head, [&[0][..], &length].concat());
            let read = ListContainersResponse::parse_from_bytes(message).unwrap();
            assert_eq!(read.containers.len(), containers);
            assert!(read.containers.iter().all(|c| c.id == "xy"));
        }
    }

    #[test]
    fn a_list_above_the_limit_stops_and_is_refused_in_go_s_words() {
        let list = list(100, 599);
        assert!(list.is_too_large());
        let refused = Written::answer(Response::new(list)).unwrap_err();
        let text = "grpc: trying to send message larger than max (600 vs. 599)";
        assert_eq!(
            (refused.code(), refused.message()),
            (Code::ResourceExhausted, text)
        );
    }
}
