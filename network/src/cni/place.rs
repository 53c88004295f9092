//! Which network namespace an attachment is in.
//!
//! Invariant: a path alone is never believed: after a reboot, or when a container was made again, it stands
//! for another one, and it may stand for the host's own. What plugins are told of is what was meant.

use std::path::{Path, PathBuf};

use types::network::LinkName;
use types::{Code, Context as _, Error, Result};

use super::record::Record;
use crate::link::Inside;
use crate::netns::Identity;

/// The interface that every network namespace has.
const LOOPBACK: &str = "lo";

/// The path of a record's network namespace while that one is there and not our own: plugins fail for
/// what has become something else, or would take from another what is not theirs; without a path they only
/// give back what is outside.
///
/// # Errors
/// The errno, when it cannot be told.
pub(super) fn living(record: &Record) -> Result<PathBuf> {
    let found = match Identity::to_join(&record.netns) {
        Err(error) if error.is(Code::InvalidArgument) => None,
        found => found.absent_ok()?,
    };
    let is_it = found.is_some() && found == record.place;
    Ok(if is_it {
        record.netns.clone()
    } else {
        PathBuf::new()
    })
}

/// Refuses an interface that is there: a plugin that fails for it would take it away when it is undone.
///
/// # Errors
/// `AlreadyExists`.
pub(super) fn refuse_taken(wish: &Record) -> Result<()> {
    if wish.interface != LOOPBACK && has(&wish.netns, &wish.interface)? {
        return Err(Error::already_exists(format_args!(
            "interface {} in the network namespace",
            wish.interface
        )));
    }
    Ok(())
}

/// True unless the plugins have said that they made the interface inside, and it is not there.
///
/// # Errors
/// Those of the kernel.
pub(super) fn is_whole(record: &Record) -> Result<bool> {
    let told = record
        .result
        .as_ref()
        .and_then(|told| told.get("interfaces"));
    let told = told.and_then(serde_json::Value::as_array);
    let is_told = told.into_iter().flatten().any(|one| {
        let text = |key: &str| one.get(key).and_then(serde_json::Value::as_str);
        text("name") == Some(&record.interface)
            && text("sandbox").is_some_and(|path| Path::new(path) == record.netns)
    });
    Ok(!is_told || has(&record.netns, &record.interface)?)
}

fn has(netns: &Path, interface: &str) -> Result<bool> {
    let name: LinkName = interface.parse()?;
    Ok(Inside::open(netns)?.find(&name)?.is_some())
}
