//! Any bytes as an image config.
//!
//! Invariant under test: no panic, refusals blame the text, lists have an end, and chains can be made of
//! all layers that are accepted.

#![no_main]

use images::{Config, MAX_CHILDREN, chain_ids};
use libfuzzer_sys::fuzz_target;
use types::Code;

fuzz_target!(|text: &[u8]| {
    match Config::parse(text) {
        Ok(found) => {
            assert!(found.diff_ids.len() <= MAX_CHILDREN);
            assert!(found.process.env.len() <= MAX_CHILDREN);
            let chains = chain_ids(&found.diff_ids).expect("chains");
            assert_eq!(chains.len(), found.diff_ids.len());
        }
        Err(error) => assert!(error.is(Code::InvalidArgument), "{error}"),
    }
});
