//! Answers that were written as bytes: a long list needs no copy of itself as a message of messages.
//!
//! Invariant: the bytes are those of one message of type `M`; whoever writes them answers for that.
//! They stop growing where no client would be sent them any more.

use std::fmt;
use std::marker::PhantomData;

use bytes::{BufMut as _, BytesMut};
use protobuf::Message;
use tonic::Status;
use tonic::codec::EncodeBuf;

use crate::codec::Outgoing;

/// What a list is expected to be; it grows when it is more.
const ROOM: usize = 64 << 10;

/// A message of type `M`, as bytes.
pub struct Written<M> {
    bytes: BytesMut,
    limit: usize,
    message: PhantomData<fn() -> M>,
}

impl<M: Message> Written<M> {
    /// A message without a field, on a server that sends messages of at most `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            bytes: BytesMut::with_capacity(ROOM),
            limit,
            message: PhantomData,
        }
    }

    /// Where fields are added.
    pub fn fields(&mut self) -> &mut BytesMut {
        &mut self.bytes
    }

    /// True when it will be refused for its size: what is added from here on is in vain.
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        self.bytes.len() > self.limit
    }
}

impl<M> Outgoing for Written<M> {
    fn write(self, frame: &mut EncodeBuf<'_>) -> Result<(), Status> {
        frame.reserve(self.bytes.len());
        frame.put(self.bytes);
        Ok(())
    }
}

impl<M> fmt::Debug for Written<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Written({} bytes)", self.bytes.len())
    }
}
