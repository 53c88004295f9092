//! Bytes over a stream: `Data` one way, `WindowUpdate` the other.
//!
//! Invariant: nobody sends more than was granted, so an end holds some 100 KiB at most; what a peer
//! sends beyond is refused. Both types block: they belong on threads of their own.

use std::io::{self, Read, Write};

use bytes::Bytes;
use protos::wire::transfer::Frame;
use types::{Any, Error};

use crate::stream::Duplex;

/// Bytes granted at a time. Parity: core/transfer/streaming: readers grant 64 KiB ...
const GRANT: u32 = 64 * 1024;
/// ... and writers send 32 KiB at most.
const CHUNK: usize = 32 * 1024;

/// The reading end. Its reads end with an error when the stream breaks off.
#[derive(Debug)]
pub struct ByteReader {
    stream: Duplex,
    /// Granted and not yet received.
    window: usize,
    held: Bytes,
    ended: bool,
}

impl ByteReader {
    /// Reads from `stream`.
    #[must_use]
    pub fn new(stream: Duplex) -> Self {
        Self {
            stream,
            window: 0,
            held: Bytes::new(),
            ended: false,
        }
    }

    fn fill(&mut self) -> io::Result<()> {
        if self.window < CHUNK {
            self.window += GRANT as usize;
            let grant = Frame::Window(GRANT).to_any().map_err(io::Error::other)?;
            // A peer that has sent all of it needs no more room: what it sent decides.
            let _heard = self.stream.send_blocking(grant);
        }
        let Some(frame) = self.stream.receive_blocking().map_err(io::Error::other)? else {
            self.ended = true;
            return Ok(());
        };
        if let Frame::Data(data) = Frame::from_any(&frame).map_err(io::Error::other)? {
            let left = self.window.checked_sub(data.len());
            self.window = left.ok_or_else(|| refused("more bytes than were granted"))?;
            self.held = data;
        }
        Ok(())
    }
}

impl Read for ByteReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.held.is_empty() && !self.ended && !buffer.is_empty() {
            self.fill()?;
        }
        let count = buffer.len().min(self.held.len());
        buffer[..count].copy_from_slice(&self.held.split_to(count));
        Ok(count)
    }
}

/// The writing end. Dropping it is the end of the bytes.
#[derive(Debug)]
pub struct ByteWriter {
    stream: Duplex,
    /// Granted and not yet sent.
    window: usize,
}

impl ByteWriter {
    /// Writes to `stream`.
    #[must_use]
    pub fn new(stream: Duplex) -> Self {
        Self { stream, window: 0 }
    }

    fn take(&mut self, frame: &Any) -> io::Result<()> {
        match Frame::from_any(frame).map_err(io::Error::other)? {
            Frame::Window(more) => {
                self.window = self.window.saturating_add(more as usize);
                Ok(())
            }
            Frame::Data(_) => Err(refused("bytes on a stream that is only read")),
            Frame::Other(_) => Ok(()),
        }
    }
}

impl Write for ByteWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        while let Some(frame) = self.stream.try_receive() {
            self.take(&frame.map_err(io::Error::other)?)?;
        }
        while self.window == 0 && !data.is_empty() {
            match self.stream.receive_blocking().map_err(io::Error::other)? {
                Some(frame) => self.take(&frame)?,
                None => return Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
        let count = data.len().min(CHUNK).min(self.window);
        if count == 0 {
            return Ok(0);
        }
        let frame = Frame::Data(Bytes::copy_from_slice(&data[..count])).to_any();
        let sent = self.stream.send_blocking(frame.map_err(io::Error::other)?);
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        self.window -= count;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn refused(what: &str) -> io::Error {
    io::Error::other(Error::failed_precondition(what))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::stream::{Far, pair};

    /// Carries frames between the far ends of two streams, until one side ends.
    fn connect(left: Far, right: Far) -> thread::JoinHandle<()> {
        async fn carry(mut from: Far, sink: crate::stream::Sink) {
            while let Some(frame) = from.receiver.recv().await {
                if !sink.send(Ok(frame)).await {
                    return;
                }
            }
            sink.finish();
        }
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build();
            let (to_left, left) = split(left);
            let (to_right, right) = split(right);
            runtime.unwrap().block_on(async {
                tokio::join!(carry(left, to_right), carry(right, to_left));
            });
        })
    }

    fn split(far: Far) -> (crate::stream::Sink, Far) {
        let (_, spare) = pair();
        let Far { receiver, sink } = far;
        let own = Far {
            receiver,
            sink: spare.sink,
        };
        (sink, own)
    }

    #[test]
    fn bytes_arrive_in_order_whatever_the_pieces() {
        let (near, far) = pair();
        let (other, other_far) = pair();
        let carrier = connect(far, other_far);
        let data: Vec<u8> = (0..1_000_003_u32).map(|n| (n % 251) as u8).collect();
        let sent = data.clone();
        let writer = thread::spawn(move || {
            let mut writer = ByteWriter::new(near);
            for piece in sent.chunks(70_001) {
                writer.write_all(piece).unwrap();
            }
        });
        let mut got = Vec::new();
        ByteReader::new(other).read_to_end(&mut got).unwrap();
        writer.join().unwrap();
        carrier.join().unwrap();
        assert!(got == data);
    }

    #[test]
    fn nothing_is_sent_before_it_is_granted_and_no_piece_is_large() {
        let (near, mut far) = pair();
        let writer = thread::spawn(move || ByteWriter::new(near).write(&[7; 100_000]).unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(async {
            far.receiver.try_recv().unwrap_err();
            let grant = Frame::Window(GRANT).to_any().unwrap();
            assert!(far.sink.send(Ok(grant)).await);
            let frame = far.receiver.recv().await.unwrap();
            let Frame::Data(data) = Frame::from_any(&frame).unwrap() else {
                panic!("{frame:?}")
            };
            assert_eq!(data.len(), CHUNK);
        });
        assert_eq!(writer.join().unwrap(), CHUNK);
    }

    #[test]
    fn bytes_beyond_the_grant_are_refused_and_a_break_is_no_end() {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let runtime = runtime.unwrap();
        let (near, far) = pair();
        let frame = Frame::Data(vec![0; 100_000].into()).to_any().unwrap();
        runtime.block_on(async { assert!(far.sink.send(Ok(frame)).await) });
        let error = ByteReader::new(near).read(&mut [0; 10]).unwrap_err();
        assert!(error.to_string().contains("granted"), "{error}");
        let (near, far) = pair();
        drop(far);
        let error = ByteReader::new(near).read(&mut [0; 10]).unwrap_err();
        assert!(error.to_string().contains("broke off"), "{error}");
    }
}
