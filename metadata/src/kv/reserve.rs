//! Room on the disk that is kept for the next start.
//!
//! Invariant: as long as the reserve is there, a store that is not damaged opens, however full its disk is.
//! What a killed daemon has left is repaired by the engine before it can be read, and that takes pages;
//! without them nobody could remove an image to make room.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use types::Result;

use super::{beside, os, sync_parent};

/// Several times of what a file may be behind its journal.
const BYTES: u64 = 4 << 20;

/// Makes the reserve of the store at `path`, unless it is there. Without room there is none yet.
pub(super) fn keep(path: &Path) {
    let reserve = of(path);
    if reserve.exists() {
        return;
    }
    if let Err(error) = sys::fs::make_room(&reserve, BYTES) {
        tracing::debug!(%error, "metadata has no room in reserve");
        drop(std::fs::remove_file(&reserve));
    }
}

/// Gives the reserve to whoever has no room; false when there is none.
pub(super) fn give(path: &Path) -> Result<bool> {
    let reserve = of(path);
    match std::fs::remove_file(&reserve) {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(os("remove", &reserve, e)),
    }
    sync_parent(path)?;
    tracing::warn!(
        "the disk of {} is full: metadata takes the room that it kept for that",
        path.display()
    );
    Ok(true)
}

fn of(path: &Path) -> PathBuf {
    beside(path, "reserve")
}
