//! Frames as bytes: what no client library would send.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;

use protos::Message as _;

/// Length of a frame's head: length, stream, type, flags.
const HEAD: usize = 10;

/// A connection to a socket, without a client.
#[derive(Debug)]
pub struct Raw(UnixStream);

/// A frame that came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The stream that it belongs to.
    pub stream: u32,
    /// 1 request, 2 response, 3 data.
    pub kind: u8,
    /// What it carries.
    pub payload: Vec<u8>,
}

impl Frame {
    /// Code of the response's status; 0 when it says that all is well.
    ///
    /// # Panics
    /// When it is no response.
    #[must_use]
    pub fn code(&self) -> ttrpc::Code {
        let response = ttrpc::Response::parse_from_bytes(&self.payload).expect("a response");
        response
            .status
            .as_ref()
            .map_or(ttrpc::Code::OK, |status| status.code())
    }
}

impl Raw {
    /// Connects.
    ///
    /// # Panics
    /// When nobody listens.
    #[must_use]
    pub fn connect(address: &str) -> Self {
        let path = address.strip_prefix("unix://").unwrap_or(address);
        let stream = UnixStream::connect(path).expect("connect");
        let limit = Some(crate::PATIENCE);
        stream.set_read_timeout(limit).expect("set a limit");
        stream.set_write_timeout(limit).expect("set a limit");
        Self(stream)
    }

    /// A frame's head.
    #[must_use]
    pub fn head(length: u32, stream: u32, kind: u8, flags: u8) -> Vec<u8> {
        let mut head = length.to_be_bytes().to_vec();
        head.extend(stream.to_be_bytes());
        head.extend([kind, flags]);
        head
    }

    /// A whole request.
    ///
    /// # Panics
    /// When it is larger than a frame can be.
    #[must_use]
    pub fn request(stream: u32, service: &str, method: &str, payload: &[u8]) -> Vec<u8> {
        let request = ttrpc::Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload: payload.to_vec(),
            ..Default::default()
        };
        let body = request.write_to_bytes().expect("encode");
        let length = u32::try_from(body.len()).expect("a small request");
        [Self::head(length, stream, 1, 0), body].concat()
    }

    /// Sends bytes. False when the other side has closed.
    ///
    /// # Panics
    /// When the other side neither reads nor closes.
    #[must_use]
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        match self.0.write_all(bytes) {
            Ok(()) => true,
            Err(error) => {
                let closed = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset];
                assert!(closed.contains(&error.kind()), "send: {error}");
                false
            }
        }
    }

    /// The next frame; `None` when the other side has closed.
    ///
    /// # Panics
    /// When nothing comes within [`crate::PATIENCE`].
    #[must_use]
    pub fn receive(&mut self) -> Option<Frame> {
        let head = self.read(HEAD)?;
        let word = |at: usize| {
            head[at..at + 4]
                .iter()
                .fold(0, |n, b| n << 8 | u32::from(*b))
        };
        let length = usize::try_from(word(0)).expect("a length");
        Some(Frame {
            stream: word(4),
            kind: head[8],
            payload: self.read(length)?,
        })
    }

    /// No more from here.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn close_write(&self) {
        self.0
            .shutdown(std::net::Shutdown::Write)
            .expect("shut down");
    }

    fn read(&mut self, length: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; length];
        match self.0.read_exact(&mut bytes) {
            Ok(()) => Some(bytes),
            Err(error) => {
                let closed = [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset];
                assert!(closed.contains(&error.kind()), "receive: {error}");
                None
            }
        }
    }
}
