//! ttrpc on the wire: ten bytes of header, then one message. Pure; who speaks it brings the socket.
//!
//! ```text
//! 0       4          8      9       10
//! | length | stream id | type | flags | length bytes
//! ```
//! All numbers are big-endian. A caller's stream ids are odd and never used again on a connection.
//! Source: the protocol document of the ttrpc project.

use ::types::{Error, Result};
use protobuf::Message;
pub use ttrpc::proto::{KeyValue, Request, Response, Status};

/// Bytes of a header.
pub const HEADER: usize = 10;
/// Most bytes of a message; longer ones are refused by every peer.
pub const LONGEST: usize = 4 << 20;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A call.
    Request,
    /// Its answer.
    Response,
    /// A piece of a stream.
    Data,
    /// Something of a later version: to be ignored.
    Other(u8),
}

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes that follow.
    pub length: usize,
    /// To which call it belongs.
    pub stream: u32,
    /// What follows.
    pub kind: Kind,
}

impl Header {
    /// Reads a header.
    #[must_use]
    pub fn parse(bytes: &[u8; HEADER]) -> Self {
        let [l0, l1, l2, l3, s0, s1, s2, s3, kind, _flags] = *bytes;
        Self {
            length: u32::from_be_bytes([l0, l1, l2, l3]) as usize,
            stream: u32::from_be_bytes([s0, s1, s2, s3]),
            kind: match kind {
                1 => Kind::Request,
                2 => Kind::Response,
                3 => Kind::Data,
                other => Kind::Other(other),
            },
        }
    }
}

/// A whole frame.
///
/// # Errors
/// `ResourceExhausted` for a message that no peer would take, `Internal` for one that cannot be
/// encoded.
pub fn encode(stream: u32, kind: Kind, message: &impl Message) -> Result<Vec<u8>> {
    let length = usize::try_from(message.compute_size()).unwrap_or(usize::MAX);
    if length > LONGEST {
        let text = format_args!("message of {length} bytes: at most {LONGEST}");
        return Err(Error::resource_exhausted(text));
    }
    let mut frame = Vec::with_capacity(HEADER + length);
    // Checked above.
    let short = u32::try_from(length).unwrap_or(u32::MAX);
    frame.extend_from_slice(&short.to_be_bytes());
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.push(match kind {
        Kind::Request => 1,
        Kind::Response => 2,
        Kind::Data => 3,
        Kind::Other(other) => other,
    });
    frame.push(0);
    message
        .write_to_vec(&mut frame)
        .map_err(::types::Error::internal)?;
    Ok(frame)
}

/// A frame that matters to a receiver.
#[derive(Debug)]
pub enum Frame {
    /// Stream id and body.
    Message(u32, Vec<u8>),
    /// Stream id and length of a body that nobody takes; it is skipped.
    TooLong(u32, usize),
}

/// Frames of one kind out of bytes as they come: what has been read and not yet used.
#[derive(Debug)]
pub struct Frames {
    /// The kind that has a receiver. Others, and what later versions bring, are left out.
    kind: Kind,
    buffer: Vec<u8>,
    /// Bytes of a refused message that are still to come.
    discard: usize,
}

impl Frames {
    /// Frames of this kind.
    #[must_use]
    pub fn of(kind: Kind) -> Self {
        Self {
            kind,
            buffer: Vec::new(),
            discard: 0,
        }
    }

    /// Where bytes that come are appended. Memory grows with what has arrived, never with what a
    /// header promises.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// True in the middle of a frame.
    #[must_use]
    pub fn is_begun(&self) -> bool {
        self.discard > 0 || !self.buffer.is_empty()
    }

    /// The first whole frame of what is there.
    pub fn take(&mut self) -> Option<Frame> {
        loop {
            let skipped = self.discard.min(self.buffer.len());
            self.buffer.drain(..skipped);
            self.discard -= skipped;
            let (head, rest) = self.buffer.split_first_chunk::<HEADER>()?;
            let header = Header::parse(head);
            if header.length > LONGEST {
                self.buffer.drain(..HEADER);
                self.discard = header.length;
                if header.kind == self.kind {
                    return Some(Frame::TooLong(header.stream, header.length));
                }
                continue;
            }
            let body = rest.get(..header.length)?.to_vec();
            self.buffer.drain(..HEADER + header.length);
            if header.kind == self.kind {
                return Some(Frame::Message(header.stream, body));
            }
        }
    }
}

/// The answer that says why there is none.
#[must_use]
pub fn failure(error: &Error) -> Response {
    Response {
        status: protobuf::MessageField::some(crate::status::from_error(error)),
        ..Response::default()
    }
}

/// The message that answers a call, or the error that it was answered with.
///
/// # Errors
/// The peer's, or `Internal` for bytes that are no message.
pub fn answer<M: Message>(response: &Response) -> Result<M> {
    if let Some(status) = response.status.as_ref()
        && status.code.value() != 0
    {
        return Err(crate::status::to_error(status));
    }
    M::parse_from_bytes(&response.payload)
        .map_err(|e| Error::internal(format_args!("ttrpc answer: {e}")))
}

#[cfg(test)]
mod tests;
