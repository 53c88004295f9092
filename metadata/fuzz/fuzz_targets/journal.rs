//! A journal that is not what was written: any bytes, or whole frames of any bytes, beside a store's file
//! or alone.
//!
//! Invariant under test: an error, or a store of what can be read, which takes a change and opens again as
//! a whole one; no panic, no wait, bounded memory.

#![no_main]

use libfuzzer_sys::fuzz_target;
use metadata_fuzz::{base, let_readers_panic, start};

/// Frames of these payloads: each has its length before it, in two bytes.
fn framed(mut data: &[u8]) -> Vec<u8> {
    let mut journal = base().journal[..8].to_vec();
    while let [l0, l1, rest @ ..] = data {
        let len = usize::from(u16::from_le_bytes([*l0, *l1]));
        let (payload, rest) = rest.split_at(len.min(rest.len()));
        journal.extend_from_slice(&u32::try_from(payload.len()).expect("short").to_le_bytes());
        journal.extend_from_slice(&crc32fast::hash(payload).to_le_bytes());
        journal.extend_from_slice(payload);
        data = rest;
    }
    journal
}

fuzz_target!(
    init: let_readers_panic(),
    |data: &[u8]| {
        let Some((mode, data)) = data.split_first() else { return };
        let base = base();
        let mut journal = match mode & 6 {
            0 => data.to_vec(),
            2 => framed(data),
            // Behind the frames that are there.
            4 => [&base.journal[..base.end], data].concat(),
            _ => [&base.journal[..base.end], &framed(data)[8..]].concat(),
        };
        if mode & 8 == 0 {
            journal.resize(journal.len() + 4096, 0);
        }
        let file = (mode & 1 == 0).then_some(base.file.as_slice());
        start(file, Some(&journal));
    }
);
