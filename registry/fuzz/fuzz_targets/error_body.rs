//! Any bytes as the body of an error answer.
//!
//! Invariant under test: no panic; what is shown is one short line without control characters.

#![no_main]

use libfuzzer_sys::fuzz_target;
use registry::testsuite::error_text;

fuzz_target!(|body: &[u8]| {
    let text = error_text(body);
    assert!(text.chars().count() <= 300);
    assert!(!text.contains(char::is_control));
});
