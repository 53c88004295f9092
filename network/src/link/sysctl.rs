//! Settings of single interfaces under `/proc/sys/net`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use types::network::LinkName;
use types::{Error, Result};

use super::class::classed;

/// What has settings for each interface.
const FAMILIES: [&str; 3] = ["ipv4", "ipv6", "mpls"];
/// Longest value.
const MAX_VALUE: usize = 128;

/// The file of setting `key`, as `ipv4/forwarding`, of an interface.
///
/// # Errors
/// `InvalidArgument` for what is not a setting of an interface.
pub(super) fn path(name: &LinkName, key: &str) -> Result<PathBuf> {
    let word = |text: &str| {
        !text.is_empty()
            && text
                .bytes()
                .all(|b| b == b'_' || b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    match key.split_once('/') {
        Some((family, setting)) if FAMILIES.contains(&family) && word(setting) => Ok(
            PathBuf::from(format!("/proc/sys/net/{family}/conf/{name}/{setting}")),
        ),
        _ => Err(Error::invalid_argument(format_args!(
            "setting {key:?} of interface {name} must be one of ipv4/, ipv6/ or mpls/ with a name of small letters, digits and '_'"
        ))),
    }
}

/// Checks a value.
///
/// # Errors
/// `InvalidArgument`.
pub(super) fn check(name: &LinkName, key: &str, value: &str) -> Result<()> {
    path(name, key)?;
    if value.is_empty() || value.len() > MAX_VALUE || value.contains(char::is_control) {
        return Err(Error::invalid_argument(format_args!(
            "value of setting {key:?} of interface {name} must have 1 to {MAX_VALUE} bytes in one line"
        )));
    }
    Ok(())
}

/// The value of a setting, in the network namespace of this thread.
///
/// # Errors
/// `NotFound` when the kernel does not have it.
pub(super) fn read(name: &LinkName, key: &str) -> Result<String> {
    let text =
        std::fs::read_to_string(path(name, key)?).map_err(|e| failed("read", name, key, e))?;
    Ok(text.trim_end().replace('\t', " "))
}

/// Sets a setting, in the network namespace of this thread.
///
/// # Errors
/// `NotFound` when the kernel does not have it, `InvalidArgument` when it does not take the value.
fn write(name: &LinkName, key: &str, value: &str) -> Result<()> {
    std::fs::write(path(name, key)?, value).map_err(|e| failed("write", name, key, e))
}

/// Sets several.
///
/// # Errors
/// As [`write`]; those before it are set then.
pub(super) fn write_all(name: &LinkName, all: &BTreeMap<String, String>) -> Result<()> {
    all.iter()
        .try_for_each(|(key, value)| write(name, key, value))
}

fn failed(word: &str, name: &LinkName, key: &str, error: std::io::Error) -> Error {
    classed(Error::os(
        format_args!("{word} setting {key} of interface {name}"),
        error,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::Code;

    #[test]
    fn a_setting_is_one_of_an_interface() {
        let name: LinkName = "eth0".parse().unwrap();
        let at = path(&name, "ipv6/disable_ipv6").unwrap();
        assert_eq!(
            at,
            PathBuf::from("/proc/sys/net/ipv6/conf/eth0/disable_ipv6")
        );
        for bad in [
            "",
            "x",
            "ipv4",
            "ipv4/",
            "core/x",
            "ipv4/../x",
            "ipv4/a/b",
            "ipv4/A",
            "/ipv4/x",
        ] {
            let error = path(&name, bad).unwrap_err();
            assert!(error.is(Code::InvalidArgument), "{bad}: {error}");
        }
        for bad in ["", "1\n2", &"1".repeat(MAX_VALUE + 1)] {
            let error = check(&name, "ipv4/forwarding", bad).unwrap_err();
            assert!(error.is(Code::InvalidArgument), "{bad}: {error}");
        }
    }
}
