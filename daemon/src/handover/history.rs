//! The events that are held, on their way from one daemon to the next: a file without a name.
//!
//! ```text
//! run u64 | number of the newest u64 | length u32, envelope | length u32, envelope | …
//! ```

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek as _, Write as _};
use std::sync::Arc;

use events::{Envelope, History};
use protos::Message as _;
use protos::types::Envelope as WireEnvelope;
use protos::wire::{Wire as _, time};
use types::{Any, Error, Result};

use crate::services::events::to_wire;

/// Longest envelope: that of a message.
const LONGEST: u32 = 32 << 20;

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
    let mut number = || {
        let mut bytes = [0; 8];
        file.read_exact(&mut bytes)
            .map(|()| u64::from_le_bytes(bytes))
    };
    let fail = |e| Error::os("read events", e);
    let (run, last) = (number().map_err(fail)?, number().map_err(fail)?);
    let mut held = Vec::new();
    while let Some(envelope) = next(&mut file)? {
        held.push(Arc::new(envelope));
    }
    if held.len() as u64 > last {
        return Err(Error::data_loss("more events than there ever were"));
    }
    Ok(History { run, last, held })
}

fn next(file: &mut impl Read) -> Result<Option<Envelope>> {
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
    Envelope::parse(
        Some(time(wire.timestamp)?),
        wire.namespace,
        wire.topic,
        event,
    )
    .map(Some)
}
