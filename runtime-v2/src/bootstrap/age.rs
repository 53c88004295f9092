//! How old the runtime is that a shim starts, as far as it tells.
//!
//! A shim tells it when it is asked what it is: for a client (`Introspection.PluginInfo` of the runtime), or
//! before the first task whose root file system needs mounts that the shim may not know. A daemon that needs
//! neither does not warn.
//!
//! Invariant: only what a shim has told anyway is looked at; nothing is run for it.

use std::sync::Once;

use protos::types::RuntimeInfo;
use serde_json::Value;

/// Where `runc features` says which version it is.
const VERSION: &str = "org.opencontainers.runc.version";
/// The first runc that leaves no descriptor of the host to the container (CVE-2024-21626).
const FIRST_SAFE: [u32; 3] = [1, 1, 12];

/// Warns, once in the life of the daemon, of a runc that may hand out the host.
pub(super) fn warn_once(told: &RuntimeInfo) {
    static WARNED: Once = Once::new();
    let Some(version) = told.features.as_ref().and_then(|any| version(&any.value)) else {
        return;
    };
    if is_older(&version) {
        WARNED.call_once(|| {
            tracing::warn!(
                version,
                "runc older than 1.1.12: without the fix for CVE-2024-21626 a container can reach the host; \
                 cannot tell whether your distribution has patched it"
            );
        });
    }
}

/// The version of runc in what it can do.
fn version(features: &[u8]) -> Option<String> {
    let features: Value = serde_json::from_slice(features).ok()?;
    let version = features["annotations"][VERSION].as_str()?;
    Some(version.to_owned())
}

/// True for a version that is older; not for one that cannot be read.
fn is_older(version: &str) -> bool {
    let number = version.split(['+', '-', '~']).next().unwrap_or_default();
    let parts: Option<Vec<u32>> = number.split('.').map(|part| part.parse().ok()).collect();
    parts.is_some_and(|parts| parts.len() == FIRST_SAFE.len() && parts[..] < FIRST_SAFE[..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        for (version, want) in [
            ("1.1.5+ds1", true),
            ("1.1.11", true),
            ("1.0.0-rc95", true),
            ("1.1.9~ds1", true),
            ("0.1.1", true),
            ("1.1.12", false),
            ("1.1.12+ds1-5", false),
            ("1.1.100", false),
            ("1.2.0-rc.1", false),
            ("1.10.0", false),
            ("2.0.0", false),
            ("", false),
            ("1.1", false),
            ("unknown", false),
            ("99999999999.0.0", false),
        ] {
            assert_eq!(is_older(version), want, "{version}");
        }
    }

    #[test]
    fn runc_tells_its_version_among_what_it_can_do() {
        let told = br#"{"ociVersionMax":"1.0.2-dev","annotations":{"org.opencontainers.runc.version":"1.1.5+ds1"}}"#;
        assert_eq!(version(told).as_deref(), Some("1.1.5+ds1"));
        for other in [&b"{}"[..], b"crun", br#"{"annotations":7}"#] {
            assert_eq!(version(other), None);
        }
    }
}
