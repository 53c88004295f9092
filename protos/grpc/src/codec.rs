//! rust-protobuf messages as gRPC payload.
//!
//! Decoding freezes the frame and parses from it: `bytes` fields share the frame instead of being
//! copied, which is what makes content streams cheap.

use std::fmt;
use std::marker::PhantomData;

use bytes::{Buf, BufMut};
use protobuf::rt::skip_field_for_tag;
use protobuf::{CodedInputStream, CodedOutputStream, Message};
use tonic::Status;
use tonic::codec::{DecodeBuf, Decoder, EncodeBuf, Encoder};

/// Above this a message is written straight into the frame; below, the stream's own 8 KiB buffer
/// would cost more than one exact allocation.
const DIRECT: u64 = 8 << 10;

/// Elements of a request, those of all its lists together: each takes two bytes of its message, and ten
/// times as much when it is parsed. What is inside of them does not count.
const MAX_FIELDS: usize = 64 << 10;

/// True for a message of more elements than that. What cannot be read counts as the end: the parser says
/// what is wrong with it.
fn has_many(message: &[u8]) -> bool {
    let mut input = CodedInputStream::from_bytes(message);
    let mut next = || {
        let tag = input.read_raw_tag_or_eof().ok()??;
        skip_field_for_tag(tag, &mut input).ok()
    };
    (0..=MAX_FIELDS).all(|_| next().is_some())
}

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
        if M::NAME.ends_with("Request") && bytes.len() > MAX_FIELDS && has_many(&bytes) {
            return Err(Status::invalid_argument(format!(
                "a request with more than {MAX_FIELDS} elements: invalid argument"
            )));
        }
        match M::parse_from_tokio_bytes(&bytes) {
            Ok(message) => Ok(Some(message)),
            Err(e) => Err(Status::internal(format!("cannot decode {}: {e}", M::NAME))),
        }
    }
}

#[cfg(test)]
mod tests {
    use protos::services::images::ListImagesRequest;

    use super::*;

    #[test]
    fn elements_of_a_message_are_counted_before_it_is_parsed() {
        let of = |count: usize, text: &str| {
            let request = ListImagesRequest {
                filters: vec![text.to_owned(); count],
                ..Default::default()
            };
            request.write_to_bytes().unwrap()
        };
        assert!(!has_many(&of(MAX_FIELDS, "")));
        assert!(has_many(&of(MAX_FIELDS + 1, "")));
        assert!(!has_many(&of(16, &"x".repeat(MAX_FIELDS))));
        // Cut in the middle of one.
        let cut = of(MAX_FIELDS + 1, "abc");
        assert!(!has_many(&cut[..cut.len() - 1]));
        assert!(!has_many(&[0xff; 100]));
    }
}
