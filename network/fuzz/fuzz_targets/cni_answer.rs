//! Any text as the answer of a CNI plugin.
//!
//! Invariant under test: no panic; an answer that was taken is the same after it was written in its own
//! version and read again, and has as many addresses in every version that can list them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use network::cni::{Answer, Version};
use types::Code;

fuzz_target!(|text: &[u8]| {
    let Ok(value) = serde_json::from_slice(text) else {
        return;
    };
    let (answer, version) = match Answer::parse(&value, Version::V1_0_0) {
        Ok(read) => read,
        Err(error) => return assert_eq!(error.code(), Code::Unknown, "{error}"),
    };
    let written = answer.to_json(version);
    let (again, spoken) = Answer::parse(&written, Version::V0_1_0).expect("it was an answer");
    assert_eq!((again.to_json(version), spoken), (written, version));
    let Ok(result) = answer.to_result() else {
        return;
    };
    for version in Version::ALL.into_iter().filter(|v| *v >= Version::V0_3_0) {
        let (other, _) = Answer::parse(&answer.to_json(version), version).expect("an answer");
        let other = other.to_result().expect("a result");
        assert_eq!(other.addresses, result.addresses);
        assert_eq!(other.routes.len(), result.routes.len());
    }
});
