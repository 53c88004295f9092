//! A look at mounts before they are performed.
//!
//! Invariant: what passes has a type and, where the kernel would read one, a source; so a caller that
//! forgot either learns that, and not what the kernel makes of an empty text.

use std::path::Path;

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

/// True when an overlay is not what its directories show: the kernel may have moved directories without
/// their contents, or brought files up without their data. `module`: what the kernel does unasked.
pub(crate) fn needs_kernel(overlay: &Mount, module: impl Fn(&str) -> bool) -> bool {
    ["redirect_dir", "metacopy"]
        .into_iter()
        .any(|name| match overlay.option(name) {
            Some(value) => !matches!(value, "off" | "nofollow" | "follow"),
            None => module(name),
        })
}

/// What the kernel's module does with an overlay that does not say it.
pub(crate) fn module_default(name: &str) -> bool {
    std::fs::read_to_string(Path::new("/sys/module/overlay/parameters").join(name))
        .is_ok_and(|value| value.trim() == "Y")
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

    #[test]
    fn what_the_kernel_may_have_done_is_asked_of_the_options_and_then_of_the_module() {
        let overlay = |options: &[&str]| Mount {
            kind: "overlay".into(),
            options: options.iter().map(|&o| o.to_owned()).collect(),
            ..Mount::default()
        };
        let none = |_: &str| false;
        let both = ["redirect_dir=off", "metacopy=off"];
        for (options, module_off, module_on) in [
            (&[][..], false, true),
            (&both, false, false),
            (&both[..1], false, true),
            (&both[1..], false, true),
            (&["redirect_dir=nofollow", "metacopy=off"], false, false),
            (&["redirect_dir=on", "metacopy=off"], true, true),
            (&["metacopy=on", "redirect_dir=off"], true, true),
        ] {
            let mount = overlay(options);
            assert_eq!(needs_kernel(&mount, none), module_off, "{options:?}");
            assert_eq!(needs_kernel(&mount, |_| true), module_on, "{options:?}");
        }
        let one = |name: &str| name == "metacopy";
        assert!(needs_kernel(&overlay(&["redirect_dir=off"]), one));
        assert!(!needs_kernel(&overlay(&["metacopy=off"]), one));
    }
}
