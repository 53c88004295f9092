//! A look at mounts before they are performed.
//!
//! Invariant: what passes has a type and, where the kernel would read one, a source; so a caller that
//! forgot either learns that, and not what the kernel makes of an empty text.

use types::{Error, Mount, Result};

/// Checks what a caller can have left out.
///
/// # Errors
/// `InvalidArgument` with the number of the mount.
pub(crate) fn check(mounts: &[Mount]) -> Result<()> {
    for (number, mount) in mounts.iter().enumerate() {
        let has = |option: &str| mount.options.iter().any(|o| o == option);
        let binds = mount.kind == "bind" || has("bind") || has("rbind");
        let missing = match (binds, mount.kind.is_empty(), mount.source.is_empty()) {
            (true, _, true) => "source",
            (false, true, _) => "type",
            _ => continue,
        };
        return Err(Error::invalid_argument(format_args!(
            "mount {number} has no {missing}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_has_a_type_and_a_bind_has_a_source() {
        let mount = |kind: &str, source: &str, option: &str| Mount {
            kind: kind.into(),
            source: source.into(),
            options: vec![option.into()],
            ..Mount::default()
        };
        for good in [
            mount("bind", "/a", "ro"),
            mount("", "/a", "rbind"),
            mount("overlay", "overlay", "lowerdir=/a"),
            mount("tmpfs", "", "rw"),
        ] {
            check(&[good]).unwrap();
        }
        for (bad, why) in [
            (mount("", "/a", "rw"), "mount 1 has no type"),
            (mount("bind", "", "rw"), "mount 1 has no source"),
            (mount("", "", "bind"), "mount 1 has no source"),
        ] {
            let error = check(&[mount("tmpfs", "", "rw"), bad]).unwrap_err();
            assert!(error.is(types::Code::InvalidArgument));
            assert!(error.to_string().starts_with(why), "{error}");
        }
    }
}
