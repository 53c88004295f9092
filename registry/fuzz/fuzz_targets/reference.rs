//! Any text as a reference.
//!
//! Invariant under test: no panic; what is accepted prints to something that parses to the same, and
//! its host and path can stand in a URL as they are.

#![no_main]

use libfuzzer_sys::fuzz_target;
use registry::{Reference, RegistryOpts, Repository};

fuzz_target!(|text: &str| {
    let Ok(reference) = text.parse::<Reference>() else {
        return;
    };
    let again: Reference = reference.to_string().parse().expect("parses again");
    assert_eq!(again, reference);
    assert!(!reference.host().contains(['/', '@', '?', '#']));
    assert!(!reference.path().split('/').any(|part| part == ".."));
    drop(reference.digest());
    drop(Repository::new(&reference, RegistryOpts::default()));
});
