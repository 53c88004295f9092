//! Any text as a `hosts.toml`.
//!
//! Invariant under test: no panic; there is always a last host, every root is a URL without a way out
//! of its path, and every file lies where the text says.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use registry::hosts::parse;
use types::Code;

fuzz_target!(|text: &str| {
    match parse(text, Path::new("/d")) {
        Ok(hosts) => {
            assert!(!hosts.is_empty());
            for root in hosts.iter().filter_map(|host| host.root.as_deref()) {
                assert!(
                    root.starts_with("http://") || root.starts_with("https://"),
                    "{root}"
                );
                assert!(!root.ends_with('/') && !root.contains('?'), "{root}");
                // A path may have it: nothing before a host does.
                let authority = root.split('/').nth(2).expect("an authority");
                assert!(!authority.contains('@'), "{root}");
                assert!(!root.split('/').any(|part| part == ".."), "{root}");
            }
            let files = hosts.iter().flat_map(|host| &host.ca);
            assert!(files.into_iter().all(|file| file.is_absolute()));
        }
        Err(error) => {
            let fine = [Code::InvalidArgument, Code::ResourceExhausted];
            assert!(fine.contains(&error.code()), "{error}");
        }
    }
});
