//! Any bytes as a layer, compressed or not, read to its end without a file system.
//!
//! Invariant under test: no panic, and a refusal blames the bytes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use types::Code;

fuzz_target!(|data: &[u8]| {
    if let Err(error) = diff::scan(data) {
        let fine = [Code::InvalidArgument, Code::ResourceExhausted, Code::Unknown];
        assert!(fine.contains(&error.code()), "{error}");
    }
});
