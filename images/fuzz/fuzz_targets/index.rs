//! Any bytes as an index.
//!
//! Invariant under test: no panic, refusals blame the text, lists have an end, platforms are printed to
//! something that parses, and what is an index is no manifest.

#![no_main]

use images::{Index, MAX_CHILDREN, Manifest, PlatformSet};
use libfuzzer_sys::fuzz_target;
use types::{Code, media_type as mt};

fuzz_target!(|text: &[u8]| {
    match Index::parse(text, mt::OCI_INDEX) {
        Ok(found) => {
            assert!(found.manifests.len() <= MAX_CHILDREN);
            let all = found.manifests.iter();
            let platforms: Vec<_> = all.map(|entry| entry.platform.clone()).collect();
            for set in [PlatformSet::All, PlatformSet::default()] {
                let chosen = set.choose(&platforms);
                assert!(chosen.iter().all(|at| *at < platforms.len()));
            }
            assert!(Manifest::parse(text, mt::OCI_MANIFEST).is_err(), "two things");
        }
        Err(error) => assert!(error.is(Code::InvalidArgument), "{error}"),
    }
});
