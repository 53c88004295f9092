//! Any text as a configuration of a CNI network.
//!
//! Invariant under test: no panic; names can be part of a file's name; no program is looked for outside of
//! its directories; what was read is read again from how it is kept.

#![no_main]

use libfuzzer_sys::fuzz_target;
use network::cni::{from_json, parse};
use types::Code;

fuzz_target!(|text: &[u8]| {
    match parse(text) {
        Ok(network) => {
            assert!(!network.name.is_empty() && !network.name.contains(['/', ':', '\0']));
            assert!(!network.name.starts_with('.'));
            for plugin in &network.plugins {
                assert!(!plugin.program.contains('/') && !plugin.program.starts_with('.'));
            }
            if !network.plugins.is_empty() {
                let again = from_json(network.to_json()).expect("it was a network");
                assert_eq!(again.plugins, network.plugins);
                assert_eq!((again.name, again.version), (network.name, network.version));
            }
        }
        Err(error) => {
            let fine = [Code::InvalidArgument, Code::ResourceExhausted];
            assert!(fine.contains(&error.code()), "{error}");
        }
    }
});
