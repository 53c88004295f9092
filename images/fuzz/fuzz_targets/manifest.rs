//! Any bytes as a manifest.
//!
//! Invariant under test: no panic, refusals blame the text, lists have an end, and what is a manifest is
//! no index: no two readers take it for two things.

#![no_main]

use images::{Index, MAX_CHILDREN, Manifest};
use libfuzzer_sys::fuzz_target;
use types::{Code, media_type as mt};

fuzz_target!(|text: &[u8]| {
    for (manifest, index) in [
        (mt::OCI_MANIFEST, mt::OCI_INDEX),
        (mt::DOCKER_MANIFEST, mt::DOCKER_INDEX),
    ] {
        match Manifest::parse(text, manifest) {
            Ok(found) => {
                assert!(found.layers.len() <= MAX_CHILDREN);
                assert!(found.annotations.len() <= MAX_CHILDREN);
                assert!(Index::parse(text, index).is_err(), "two things");
            }
            Err(error) => assert!(error.is(Code::InvalidArgument), "{error}"),
        }
    }
});
