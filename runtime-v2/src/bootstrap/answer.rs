//! What a shim's `start` answers, and what the bundle remembers of it.
//!
//! Invariant: an [`Address`] names a protocol version and a transport that containerd knows; whatever
//! else a shim printed is an error with its text.

use protobuf::Message as _;
use protos::shim::bootstrap::BootstrapResult;
use serde::{Deserialize, Serialize};
use types::{Error, Result};

/// Task API versions that a shim may speak.
const VERSIONS: std::ops::RangeInclusive<i32> = 2..=3;
/// Transports that the bootstrap contract knows.
const SCHEMES: [&str; 3] = ["unix", "vsock", "hvsock"];
/// How much of an unusable answer goes into the error.
const SHOWN: usize = 512;

/// How to reach a shim. Also the content of `bootstrap.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Address {
    /// Version of the Task API.
    pub(crate) version: i32,
    /// URL of the socket.
    pub(crate) address: String,
    /// `ttrpc` or `grpc`.
    pub(crate) protocol: String,
}

impl Address {
    /// Parses an answer: protobuf, else JSON, else the plain address of older generations.
    ///
    /// # Errors
    /// Unknown for text that is no address, `NotImplemented` for a version or protocol beyond ours.
    pub(crate) fn parse(answer: &[u8]) -> Result<Self> {
        let found = from_protobuf(answer).or_else(|| from_text(answer));
        let found = found.ok_or_else(|| {
            Error::unknown(format_args!(
                "shim answered no address: {:?}",
                excerpt(answer)
            ))
        })?;
        found.checked()
    }

    fn checked(self) -> Result<Self> {
        if !VERSIONS.contains(&self.version) {
            return Err(Error::not_implemented(format_args!(
                "unsupported shim version ({})",
                self.version
            )));
        }
        if !matches!(&*self.protocol, "ttrpc" | "grpc") {
            return Err(Error::not_implemented(format_args!(
                "unsupported protocol: {:?}",
                self.protocol
            )));
        }
        Ok(self)
    }

    /// Text of `bootstrap.json`.
    ///
    /// # Errors
    /// `Internal` when it cannot be encoded.
    pub(crate) fn to_json(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|e| Error::internal("encode address").with_source(e))
    }

    /// Path of a Unix socket.
    pub(crate) fn unix_path(&self) -> Option<&str> {
        self.address.strip_prefix("unix://")
    }
}

fn from_protobuf(answer: &[u8]) -> Option<Address> {
    let result = BootstrapResult::parse_from_bytes(answer).ok()?;
    Some(Address {
        version: result.version,
        address: usable(&result.address)?,
        protocol: result.protocol,
    })
}

fn from_text(answer: &[u8]) -> Option<Address> {
    let text = std::str::from_utf8(answer).ok()?.trim();
    if text.starts_with('{') {
        let mut parsed: Address = serde_json::from_str(text).ok()?;
        parsed.address = usable(&parsed.address)?;
        return Some(parsed);
    }
    Some(Address {
        version: 2,
        address: usable(text)?,
        protocol: "ttrpc".to_owned(),
    })
}

/// The address when it is a URL of a known transport. A bare path means a Unix socket.
fn usable(address: &str) -> Option<String> {
    if address.contains(|c: char| c.is_control() || c == ' ') {
        return None;
    }
    if address.starts_with('/') {
        return Some(format!("unix://{address}"));
    }
    let (scheme, rest) = address.split_once("://")?;
    (SCHEMES.contains(&scheme) && !rest.is_empty()).then(|| address.to_owned())
}

/// The beginning of a shim's output on one line.
pub(super) fn excerpt(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(&output[..output.len().min(SHOWN)]);
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    lines.join("; ").trim_matches([';', ' ']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use types::Code;

    fn protobuf(version: i32, address: &str, protocol: &str) -> Vec<u8> {
        let result = BootstrapResult {
            version,
            address: address.into(),
            protocol: protocol.into(),
            ..BootstrapResult::default()
        };
        result.write_to_bytes().unwrap()
    }

    #[test]
    fn all_three_generations_are_understood() {
        let json = |text: &str| text.as_bytes().to_vec();
        for (answer, version, address) in [
            (protobuf(3, "unix:///s/x", "ttrpc"), 3, "unix:///s/x"),
            (protobuf(2, "vsock://3:4", "grpc"), 2, "vsock://3:4"),
            (
                json("{\"version\":3,\"address\":\"unix:///s/x\",\"protocol\":\"ttrpc\"}\n"),
                3,
                "unix:///s/x",
            ),
            (json("unix:///s/x\n"), 2, "unix:///s/x"),
            (json("/s/x"), 2, "unix:///s/x"),
        ] {
            let parsed = Address::parse(&answer).unwrap();
            assert_eq!((parsed.version, &*parsed.address), (version, address));
            assert_eq!(Address::parse(&parsed.to_json().unwrap()).unwrap(), parsed);
        }
    }

    #[test]
    fn anything_else_is_refused_with_its_text() {
        let json = |text: &str| text.as_bytes().to_vec();
        for (answer, code) in [
            (json(""), Code::Unknown),
            (json("flag provided but not defined"), Code::Unknown),
            (json("warning: x\nunix:///s/x"), Code::Unknown),
            (json("unix://"), Code::Unknown),
            (json("tcp://1.2.3.4:5"), Code::Unknown),
            (json("{\"version\":3}"), Code::Unknown),
            (protobuf(4, "unix:///s/x", "ttrpc"), Code::NotImplemented),
            (protobuf(1, "unix:///s/x", "ttrpc"), Code::NotImplemented),
            (protobuf(3, "unix:///s/x", "http"), Code::NotImplemented),
        ] {
            let error = Address::parse(&answer).unwrap_err();
            assert!(error.is(code), "{error}");
            assert!(!error.to_string().contains('\n'), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_known_address_or_an_error(bytes: Vec<u8>) {
            if let Ok(found) = Address::parse(&bytes) {
                prop_assert!(VERSIONS.contains(&found.version));
                prop_assert!(usable(&found.address).is_some());
            }
        }

        #[test]
        fn every_protobuf_answer_round_trips(version in 2..=3, path in "/[a-z0-9/.]{1,90}") {
            let url = format!("unix://{path}");
            let found = Address::parse(&protobuf(version, &url, "ttrpc")).unwrap();
            prop_assert_eq!(found.version, version);
            prop_assert_eq!(found.unix_path(), Some(&*path));
        }
    }
}
