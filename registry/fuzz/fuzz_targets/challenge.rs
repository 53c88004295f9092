//! Any bytes as a `WWW-Authenticate` header.
//!
//! Invariant under test: no panic, and it ends; no more challenges than there are letters.

#![no_main]

use libfuzzer_sys::fuzz_target;
use registry::testsuite::challenges;

fuzz_target!(|value: &[u8]| {
    assert!(challenges(value) <= value.len());
});
