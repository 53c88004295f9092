//! The events that are held, on their way from one daemon to the next: a file without a name.
//!
//! ```text
//! run u64 | number of the newest u64 | length u32, envelope | length u32, envelope | …
//! | u32::MAX, process u64, number u64 | …
//! ```
//! The last part, subscriptions that were cut, is there when there are any. One daemon before did not know
//! it: what it wrote is read, and what it reads is understood by it as long as nobody was cut.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek as _, Write as _};
use std::sync::Arc;

use events::{Cut, Envelope, History};
use protos::Message as _;
use protos::types::Envelope as WireEnvelope;
use protos::wire::{Wire as _, time};
use types::{Any, Error, Result};

use crate::services::events::to_wire;

/// Longest envelope: that of a message.
const LONGEST: u32 = 32 << 20;
/// Stands where the length of an envelope would.
const CUT: u32 = u32::MAX;

/// Writes it down.
///
/// # Errors
/// The errno.
pub(super) fn write(history: &History) -> Result<File> {
    let fail = |e| Error::os("write events", e);
    let mut file = BufWriter::new(sys::fs::nameless("events")?);
    for number in [history.run, history.last] {
        file.write_all(&number.to_le_bytes()).map_err(fail)?;
    }
    for envelope in &history.held {
        let bytes = to_wire(envelope)
            .write_to_bytes()
            .map_err(Error::internal)?;
        let length = u32::try_from(bytes.len()).map_err(Error::internal)?;
        file.write_all(&length.to_le_bytes()).map_err(fail)?;
        file.write_all(&bytes).map_err(fail)?;
    }
    for cut in &history.cut {
        file.write_all(&CUT.to_le_bytes()).map_err(fail)?;
        for number in [cut.process.into(), cut.after] {
            file.write_all(&number.to_le_bytes()).map_err(fail)?;
        }
    }
    let mut file = file.into_inner().map_err(|e| fail(e.into_error()))?;
    file.rewind().map_err(fail)?;
    Ok(file)
}

/// Reads it.
///
/// # Errors
/// `DataLoss` for what is none; the errno.
pub(super) fn read(file: File) -> Result<History> {
    let mut file = BufReader::new(file);
    let fail = |e| Error::os("read events", e);
    let (run, last) = (
        number(&mut file).map_err(fail)?,
        number(&mut file).map_err(fail)?,
    );
    let (mut held, mut cut) = (Vec::new(), Vec::new());
    while let Some(part) = next(&mut file)? {
        match part {
            Part::Held(envelope) => held.push(Arc::new(envelope)),
            Part::Cut(one) => cut.push(one),
        }
    }
    if held.len() as u64 > last {
        return Err(Error::data_loss("more events than there ever were"));
    }
    Ok(History {
        run,
        last,
        held,
        cut,
    })
}

/// What follows the head.
enum Part {
    Held(Envelope),
    Cut(Cut),
}

fn number(file: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    file.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn next(file: &mut impl Read) -> Result<Option<Part>> {
    let fail = |e| Error::os("read events", e);
    let mut length = Vec::new();
    file.by_ref()
        .take(4)
        .read_to_end(&mut length)
        .map_err(fail)?;
    if length.is_empty() {
        return Ok(None);
    }
    let cut = || Error::data_loss("an event is cut short");
    let length = length
        .try_into()
        .map(u32::from_le_bytes)
        .map_err(|_| cut())?;
    if length == CUT {
        let process = number(file).map_err(|_| cut())?;
        let process = process.try_into().map_err(Error::data_loss)?;
        let after = number(file).map_err(|_| cut())?;
        return Ok(Some(Part::Cut(Cut { process, after })));
    }
    if length > LONGEST {
        return Err(Error::data_loss(format_args!("an event of {length} bytes")));
    }
    let mut bytes = Vec::new();
    file.take(length.into())
        .read_to_end(&mut bytes)
        .map_err(fail)?;
    if bytes.len() != length as usize {
        return Err(cut());
    }
    let wire = WireEnvelope::parse_from_bytes(&bytes)
        .map_err(|e| Error::data_loss("an event").with_source(e))?;
    let event = Option::<Any>::from_wire(wire.event)?.unwrap_or_default();
    let at = Some(time(wire.timestamp)?);
    let envelope = Envelope::parse(at, wire.namespace, wire.topic, event)?;
    Ok(Some(Part::Held(envelope)))
}
