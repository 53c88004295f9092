//! The file of a journal: written in place, in room that is there before.
//!
//! Invariant: frames are written where zeros are on the disk, so that a frame on its way leaves of each of
//! its blocks the new bytes or zeros, and the file never ends before it.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

/// Room that is made at a time: that of some hundred changes. The flush that follows is a slow one, for
/// the file has grown.
pub(super) const STEP: usize = 1 << 20;

/// The file, and how long it is, zeros and all.
#[derive(Debug)]
pub(super) struct Room {
    file: File,
    size: u64,
    #[cfg(test)]
    pub(super) faults: Faults,
}

/// What a disk fails at.
#[cfg(test)]
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::kv) struct Faults {
    /// Frames are written up to this length.
    pub(in crate::kv) short: Option<usize>,
    /// They are written, and nobody knows whether they are on the disk.
    pub(in crate::kv) sync: bool,
    /// What was written cannot be cleared away.
    pub(in crate::kv) clear: bool,
}

impl Room {
    pub(super) fn new(file: File, size: u64) -> Self {
        Self {
            file,
            size,
            #[cfg(test)]
            faults: Faults::default(),
        }
    }

    /// Makes room up to `end`, durably: before anything is written there.
    pub(super) fn reach(&mut self, end: u64) -> std::io::Result<()> {
        if end <= self.size {
            return Ok(());
        }
        while end > self.size {
            self.file.write_all_at(&vec![0; STEP], self.size)?;
            self.size += STEP as u64;
        }
        self.file.sync_data()
    }

    /// Writes a frame, durably.
    pub(super) fn write(&self, frame: &[u8], at: u64) -> std::io::Result<()> {
        #[cfg(test)]
        if let Some(short) = self.faults.short {
            self.file
                .write_all_at(&frame[..short.min(frame.len())], at)?;
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        self.file.write_all_at(frame, at)?;
        #[cfg(test)]
        if self.faults.sync {
            return Err(std::io::Error::other("told to fail"));
        }
        self.file.sync_data()
    }

    /// Makes zeros of what stands from `from` to `to`, durably. In place: that takes no room, and a file
    /// that was cut would look like one that has lost its end.
    pub(super) fn clear(&self, from: u64, to: u64) -> std::io::Result<()> {
        #[cfg(test)]
        if self.faults.clear {
            return Err(std::io::Error::other("told to fail"));
        }
        let mut at = from;
        while at < to {
            let part = usize::try_from(to - at).map_or(STEP, |left| left.min(STEP));
            self.file.write_all_at(&vec![0; part], at)?;
            at += part as u64;
        }
        self.file.sync_data()
    }
}
