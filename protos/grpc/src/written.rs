//! Messages that are written when their frame is there, and never before: a long list needs no copy
//! of itself.
//!
//! Invariant: the bytes are those of one message of type `M`; whoever writes them answers for that.

use std::fmt;
use std::marker::PhantomData;

use protobuf::Message;
use tonic::Status;
use tonic::codec::EncodeBuf;
use types::Result;

use crate::codec::Outgoing;
use crate::status;

type Write = Box<dyn FnOnce(&mut EncodeBuf<'_>) -> Result<()> + Send>;

/// A message of type `M` that is yet to be written.
pub struct Written<M> {
    write: Write,
    message: PhantomData<fn() -> M>,
}

impl<M: Message> Written<M> {
    /// The message whose fields `write` puts into the frame. Its error ends the call.
    pub fn new(write: impl FnOnce(&mut EncodeBuf<'_>) -> Result<()> + Send + 'static) -> Self {
        Self {
            write: Box::new(write),
            message: PhantomData,
        }
    }
}

impl<M> Outgoing for Written<M> {
    fn write(self, frame: &mut EncodeBuf<'_>) -> Result<(), Status> {
        (self.write)(frame).map_err(|error| status::from_error(&error))
    }
}

impl<M> fmt::Debug for Written<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Written")
    }
}
