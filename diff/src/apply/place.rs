//! Where the files of a layer go.

use std::path::PathBuf;

use types::{Error, Mount, Result};

use crate::extract::Target;
use crate::mounts::{module_default, needs_kernel};

/// Where the files go.
pub(super) enum Place {
    /// Straight into this directory.
    Here(PathBuf, Target),
    /// Through a mount of their own.
    Mounted,
}

/// Where the files of a layer go for these mounts.
pub(super) fn place(mounts: &[Mount]) -> Result<Place> {
    let [mount] = mounts else {
        return Ok(Place::Mounted);
    };
    if !mount.target.is_empty() {
        return Ok(Place::Mounted);
    }
    match mount.kind.as_str() {
        "bind" if mount.is_read_only() => Err(Error::failed_precondition(
            "cannot apply a layer to a read-only mount",
        )),
        "bind" => Ok(Place::Here(mount.source.clone().into(), Target::Merged)),
        "overlay" => Ok(overlay(mount, module_default)),
        _ => Ok(Place::Mounted),
    }
}

/// An overlay is written straight into its upper directory when its options are the plain ones.
fn overlay(mount: &Mount, module: impl Fn(&str) -> bool) -> Place {
    let Some(upper) = mount.option("upperdir") else {
        return Place::Mounted;
    };
    let lower = mount.option("lowerdir").unwrap_or_default();
    let odd = |option: &String| {
        option.starts_with("lowerdir+")
            || option.starts_with("uidmap=")
            || option.starts_with("gidmap=")
    };
    let odd_path = |path: &str| path.contains('\\') || path.contains("::");
    if mount.options.iter().any(odd) || odd_path(upper) || odd_path(lower) || in_user_namespace() {
        return Place::Mounted;
    }
    if lower.is_empty() {
        // A layer on its own: clients unpack several at a time so, and commit each onto its parent.
        return Place::Here(upper.into(), Target::Detached);
    }
    if needs_kernel(mount, module) {
        return Place::Mounted;
    }
    let target = Target::Upper {
        lowers: lower.split(':').map(PathBuf::from).collect(),
        userxattr: mount.options.iter().any(|option| option == "userxattr"),
    };
    Place::Here(upper.into(), target)
}

/// True where device nodes cannot be made.
pub(super) fn in_user_namespace() -> bool {
    std::fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| !map.split_whitespace().eq(["0", "0", "4294967295"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlay_that_may_have_files_without_data_is_mounted() {
        let overlay_of = |options: &[&str], default| {
            let mount = Mount {
                kind: "overlay".into(),
                options: options.iter().map(|&o| o.to_owned()).collect(),
                ..Mount::default()
            };
            matches!(overlay(&mount, |_| default), Place::Here(..))
        };
        let on_one = ["upperdir=/u", "workdir=/w", "lowerdir=/l"];
        assert!(overlay_of(&on_one, false));
        assert!(!overlay_of(&on_one, true));
        let said = [&on_one[..], &["redirect_dir=off", "metacopy=off"]].concat();
        assert!(overlay_of(&said, true));
        // On nothing there is nothing to bring up.
        assert!(overlay_of(&["upperdir=/u"], true));
    }
}
