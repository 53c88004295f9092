//! rust-protobuf messages as gRPC payload.
//!
//! Decoding freezes the frame and parses from it: `bytes` fields share the frame instead of being
//! copied, which is what makes content streams cheap.

use std::fmt;
use std::marker::PhantomData;

use bytes::{Buf, BufMut};
use protobuf::{CodedOutputStream, Message};
use tonic::Status;
use tonic::codec::{DecodeBuf, Decoder, EncodeBuf, Encoder};

/// Above this a message is written straight into the frame; below, the stream's own 8 KiB buffer
/// would cost more than one exact allocation.
const DIRECT: u64 = 8 << 10;

/// What can be written into a frame: a message, or what stands for one.
pub trait Outgoing: Sized {
    /// Writes it.
    ///
    /// # Errors
    /// The status that ends the call.
    fn write(self, frame: &mut EncodeBuf<'_>) -> Result<(), Status>;
}

/// Codec of every generated stub: `E` goes out, `D` comes in.
pub struct Codec<E, D>(PhantomData<fn(E) -> D>);

impl<E, D> Default for Codec<E, D> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<E, D> fmt::Debug for Codec<E, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Codec")
    }
}

impl<E: Outgoing + Send + 'static, D: Message> tonic::codec::Codec for Codec<E, D> {
    type Encode = E;
    type Decode = D;
    type Encoder = MessageEncoder<E>;
    type Decoder = MessageDecoder<D>;

    fn encoder(&mut self) -> Self::Encoder {
        MessageEncoder(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        MessageDecoder(PhantomData)
    }
}

/// Writes messages of type `M`.
pub struct MessageEncoder<M>(PhantomData<fn(M)>);

impl<M> fmt::Debug for MessageEncoder<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MessageEncoder")
    }
}

impl<M: Outgoing> Encoder for MessageEncoder<M> {
    type Item = M;
    type Error = Status;

    fn encode(&mut self, message: M, frame: &mut EncodeBuf<'_>) -> Result<(), Status> {
        message.write(frame)
    }
}

impl<M: Message> Outgoing for M {
    fn write(self, frame: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let size = self.compute_size();
        let written = if size <= DIRECT {
            self.write_to_bytes().map(|bytes| frame.put_slice(&bytes))
        } else {
            frame.reserve(usize::try_from(size).unwrap_or(0));
            let mut writer = frame.writer();
            let mut out = CodedOutputStream::new(&mut writer);
            self.write_to_with_cached_sizes(&mut out)
                .and_then(|()| out.flush())
        };
        written.map_err(|e| Status::internal(format!("cannot encode {}: {e}", M::NAME)))
    }
}

/// Reads messages of type `M`.
pub struct MessageDecoder<M>(PhantomData<fn() -> M>);

impl<M> fmt::Debug for MessageDecoder<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MessageDecoder")
    }
}

impl<M: Message> Decoder for MessageDecoder<M> {
    type Item = M;
    type Error = Status;

    fn decode(&mut self, frame: &mut DecodeBuf<'_>) -> Result<Option<M>, Status> {
        let bytes = frame.copy_to_bytes(frame.remaining());
        match M::parse_from_tokio_bytes(&bytes) {
            Ok(message) => Ok(Some(message)),
            Err(e) => Err(Status::internal(format!("cannot decode {}: {e}", M::NAME))),
        }
    }
}
