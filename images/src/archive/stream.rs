//! The blocking end of an import: decompresses, reads tar, and hands parts over a bounded channel.

use std::io::{BufRead as _, BufReader, Read};

use bytes::Bytes;
use tokio::sync::mpsc;
use types::{Error, Result};

use super::tar::{Header, Tar, unrecognized};

/// Bytes handed over at a time; with [`QUEUE`] the most that an import holds in memory.
const CHUNK: usize = 1 << 20;
/// Chunks on their way.
const QUEUE: usize = 4;
/// log2 of the largest zstd window: 128 MiB, what `zstd --ultra` writes.
const ZSTD_WINDOW: u32 = 27;
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
pub(super) fn parts(reader: Box<dyn Read + Send>) -> mpsc::Receiver<Result<Part>> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let failed = sender.clone();
    let work = move || {
        if let Err(error) = decompress(reader).and_then(|plain| read(plain, &sender)) {
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

fn read(reader: Box<dyn Read>, sender: &mpsc::Sender<Result<Part>>) -> Result<()> {
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

/// Undoes gzip or zstd around the whole archive.
pub(crate) fn decompress(reader: Box<dyn Read + Send>) -> Result<Box<dyn Read>> {
    let mut buffered = BufReader::with_capacity(256 * 1024, reader);
    let head = buffered
        .fill_buf()
        .map_err(|e| Error::os("read archive", e))?;
    Ok(match Compression::of(head) {
        _ if head.is_empty() => return Err(unrecognized()),
        Compression::None => Box::new(buffered),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(buffered)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(buffered)
                .map_err(|e| Error::os("zstd", e))?;
            decoder
                .window_log_max(ZSTD_WINDOW)
                .map_err(|e| Error::os("zstd", e))?;
            Box::new(decoder)
        }
    })
}

/// How data is compressed, by its first bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Compression {
    /// Not.
    #[default]
    None,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

impl Compression {
    pub(super) fn of(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, 0x08, ..] => Self::Gzip,
            // A frame, or a skippable one, as some writers put in front.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}
