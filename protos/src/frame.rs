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
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_a_header_and_a_message() {
        let request = Request {
            service: "s".into(),
            method: "m".into(),
            ..Request::default()
        };
        let frame = encode(7, Kind::Request, &request).unwrap();
        let (head, body) = frame.split_first_chunk::<HEADER>().unwrap();
        assert_eq!(
            Header::parse(head),
            Header {
                length: body.len(),
                stream: 7,
                kind: Kind::Request
            }
        );
        assert_eq!(head, &[0, 0, 0, 6, 0, 0, 0, 7, 1, 0]);
        assert_eq!(Request::parse_from_bytes(body).unwrap(), request);
        assert_eq!(Header::parse(&[9; HEADER]).kind, Kind::Other(9));
    }

    #[test]
    fn a_message_that_nobody_takes_is_not_framed() {
        let response = Response {
            payload: vec![0; LONGEST],
            ..Response::default()
        };
        let error = encode(1, Kind::Response, &response).unwrap_err();
        assert!(error.is(::types::Code::ResourceExhausted), "{error}");
    }

    #[test]
    fn an_answer_is_a_message_or_the_peers_error() {
        let response = failure(&Error::not_found("x"));
        let error = answer::<Request>(&response).unwrap_err();
        assert_eq!(error.to_string(), "x: not found");
        assert_eq!(
            answer::<Request>(&Response::default()).unwrap(),
            Request::default()
        );
        let broken = Response {
            payload: vec![0xff],
            ..Response::default()
        };
        answer::<Request>(&broken).unwrap_err();
    }
}
