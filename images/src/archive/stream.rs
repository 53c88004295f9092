//! The blocking end of an import: decompresses, reads tar, and hands parts over a bounded channel.

use std::io::Read;

use bytes::Bytes;
use tokio::sync::mpsc;
use types::{Error, Result};

use super::tar::{Header, Tar, unrecognized};
use crate::plain::{Ceilings, Plain, PlainOpts, Whence, decompress};

/// Bytes handed over at a time; with [`QUEUE`] the most that an import holds in memory.
const CHUNK: usize = 1 << 20;
/// Chunks on their way.
const QUEUE: usize = 4;
/// What may follow the end mark: padding, for the benefit of a writer on a pipe.
const TAIL: u64 = 1 << 20;

/// What the blocking end says.
#[derive(Debug)]
pub(super) enum Part {
    /// A new entry.
    Entry(Header),
    /// Data of the entry.
    Data(Bytes),
    /// The end of the archive.
    End,
}

/// Starts reading `reader` on a thread of its own; it ends when the receiver is dropped.
pub(super) fn parts(
    reader: Box<dyn Read + Send>,
    ceilings: Ceilings,
) -> mpsc::Receiver<Result<Part>> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let failed = sender.clone();
    let work = move || {
        let wanted = sender.clone();
        let opts = PlainOpts {
            ceilings,
            whence: Whence::Outside,
            // A pipe may have any length.
            total: 0,
            is_unwanted: Box::new(move || wanted.is_closed()),
        };
        let plain = decompress(reader, opts).and_then(|plain| plain.ok_or_else(unrecognized));
        if let Err(error) = plain.and_then(|plain| read(plain, &sender)) {
            // The receiver may be gone already: then nobody wants to know.
            let _gone = sender.blocking_send(Err(error));
        }
    };
    // Not one of the runtime's threads: a reader on a pipe may block for good, and must not hold up
    // a shutdown.
    if let Err(error) = std::thread::Builder::new()
        .name("import".into())
        .spawn(work)
    {
        // An empty queue has room.
        let _told = failed.try_send(Err(Error::os("start import thread", error)));
    }
    receiver
}

fn read(reader: Plain, sender: &mpsc::Sender<Result<Part>>) -> Result<()> {
    let send = |part| sender.blocking_send(Ok(part)).is_ok();
    let mut tar = Tar::new(reader);
    let mut buffer = vec![0; CHUNK];
    while let Some(header) = tar.next()? {
        let file = header.kind == super::tar::Kind::File;
        if !send(Part::Entry(header)) {
            return Ok(());
        }
        if !file {
            continue;
        }
        loop {
            let n = tar.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            if !send(Part::Data(Bytes::copy_from_slice(&buffer[..n]))) {
                return Ok(());
            }
        }
    }
    tar.drain(TAIL);
    send(Part::End);
    Ok(())
}
