//! Any bytes as docker's `config.json`.
//!
//! Invariant under test: no panic, refusals blame the text, and no refusal repeats what is in it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use registry::docker_config::look_up;
use types::Code;

fuzz_target!(|data: &[u8]| {
    for host in ["registry.example.test", "docker.io", "[::1]:5000"] {
        if let Err(error) = look_up(data, host) {
            let fine = [Code::InvalidArgument, Code::ResourceExhausted];
            assert!(fine.contains(&error.code()), "{error}");
        }
    }
});
