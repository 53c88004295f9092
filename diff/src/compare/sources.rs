//! The two trees of a comparison, mounted only where they must be.
//!
//! Invariant: what is opened here is for reading; mounts go with the value.

use std::path::{Path, PathBuf};

use sys::mount::TempMount;
use types::{Error, Mount, Result};

use super::ids::Ids;
use crate::mounts::{module_default, needs_kernel};
use crate::root::Root;

/// Both trees.
#[derive(Debug)]
pub(super) struct Sources {
    /// The older tree; `None`: empty.
    pub(super) lower: Option<Root>,
    /// The newer tree, or only what overlayfs has on top of the older one.
    pub(super) upper: Root,
    /// Of what is in either, the ids that are the host's.
    pub(super) lower_ids: Ids,
    pub(super) upper_ids: Ids,
    /// Set when `upper` is an overlay's upper directory: the attribute of opaque directories.
    pub(super) opaque: Option<&'static str>,
    /// Kept until the end.
    _mounts: Vec<TempMount>,
}

impl Sources {
    /// Opens both trees.
    ///
    /// # Errors
    /// Those of mounting and opening.
    pub(super) fn open(temporary: &Path, lower: &[Mount], upper: &[Mount]) -> Result<Self> {
        let mut mounts = Vec::new();
        let mut tree = |of: &[Mount]| -> Result<Root> {
            let readable = readable(of);
            if let [only] = readable.as_slice()
                && only.kind == "bind"
                && only.target.is_empty()
            {
                return Root::open(Path::new(&only.source));
            }
            std::fs::create_dir_all(temporary)
                .map_err(|e| Error::os(format_args!("mkdir {}", temporary.display()), e))?;
            let mounted = TempMount::new(&readable, temporary)?;
            let root = Root::open(mounted.path())?;
            mounts.push(mounted);
            Ok(root)
        };
        let older = if lower.is_empty() {
            None
        } else {
            Some(tree(lower)?)
        };
        let (newer, opaque) = match on_top(lower, upper) {
            Some((directory, opaque)) => (Root::open(&directory)?, Some(opaque)),
            None => (tree(upper)?, None),
        };
        Ok(Self {
            lower: older,
            upper: newer,
            lower_ids: Ids::of(lower)?,
            upper_ids: Ids::of(upper)?,
            opaque,
            _mounts: mounts,
        })
    }
}

/// The same file system for reading: an overlay's upper directory becomes its top lower one.
fn readable(mounts: &[Mount]) -> Vec<Mount> {
    let one = |mount: &Mount| {
        let mut mount = mount.clone();
        // As on the disk: the upper directory, which has the host's ids already, becomes a lower one.
        let is_map =
            |option: &String| option.starts_with("uidmap=") || option.starts_with("gidmap=");
        mount.options.retain(|option| !is_map(option));
        if mount.kind != "overlay" {
            mount.options.retain(|option| option != "rw");
            if !mount.is_read_only() {
                mount.options.push("ro".into());
            }
            return mount;
        }
        let upper = mount.option("upperdir").map(str::to_owned);
        let lower = mount.option("lowerdir").unwrap_or_default().to_owned();
        let all = match upper {
            Some(upper) => format!("{upper}:{lower}"),
            None => lower,
        };
        if !all.contains(':') {
            // The kernel wants two layers at least.
            return Mount {
                kind: "bind".into(),
                source: all,
                target: mount.target,
                options: vec!["ro".into(), "rbind".into()],
            };
        }
        let dropped = ["upperdir=", "workdir=", "lowerdir="];
        mount.options.retain(|option| {
            option != "volatile" && !dropped.iter().any(|name| option.starts_with(name))
        });
        mount.options.push(format!("lowerdir={all}"));
        mount
    };
    mounts.iter().map(one).collect()
}

/// The upper directory and its opaque attribute, when `upper` is one overlay exactly on top of `lower`.
fn on_top(lower: &[Mount], upper: &[Mount]) -> Option<(PathBuf, &'static str)> {
    let ([lower], [upper]) = (lower, upper) else {
        return None;
    };
    if upper.kind != "overlay" || !upper.target.is_empty() || !lower.target.is_empty() {
        return None;
    }
    let (directory, layers) = (upper.option("upperdir")?, upper.option("lowerdir")?);
    let below = match lower.kind.as_str() {
        "bind" => lower.source.as_str(),
        "overlay" if lower.option("upperdir").is_none() => lower.option("lowerdir")?,
        _ => return None,
    };
    if below != layers || layers.contains('\\') || layers.contains("::") {
        return None;
    }
    if needs_kernel(upper, module_default) {
        return None;
    }
    let userxattr = upper.options.iter().any(|option| option == "userxattr");
    let opaque = if userxattr {
        "user.overlay.opaque"
    } else {
        "trusted.overlay.opaque"
    };
    Some((directory.into(), opaque))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay(options: &[&str]) -> Mount {
        Mount {
            kind: "overlay".into(),
            source: "overlay".into(),
            target: String::new(),
            options: options.iter().map(ToString::to_string).collect(),
        }
    }

    fn bind(source: &str) -> Mount {
        Mount {
            kind: "bind".into(),
            source: source.into(),
            target: String::new(),
            options: vec!["ro".into(), "rbind".into()],
        }
    }

    #[test]
    fn an_upper_directory_is_read_as_the_top_layer() {
        let mounts = [overlay(&[
            "index=off",
            "workdir=/w",
            "upperdir=/u",
            "lowerdir=/b:/a",
            "volatile",
            "uidmap=0:1:1",
            "gidmap=0:1:1",
        ])];
        assert_eq!(
            readable(&mounts)[0].options,
            ["index=off", "lowerdir=/u:/b:/a"]
        );
        let single = readable(&[overlay(&["lowerdir=/a"])]);
        assert_eq!(
            (single[0].kind.as_str(), single[0].source.as_str()),
            ("bind", "/a")
        );
        assert!(
            readable(&[Mount {
                options: vec!["rw".into()],
                ..bind("/x")
            }])[0]
                .is_read_only()
        );
    }

    #[test]
    fn the_short_way_is_for_an_overlay_exactly_on_top() {
        let off = "redirect_dir=off";
        let upper = [overlay(&[
            off,
            "metacopy=off",
            "workdir=/w",
            "upperdir=/u",
            "lowerdir=/b:/a",
        ])];
        let found = on_top(&[overlay(&["lowerdir=/b:/a"])], &upper);
        assert_eq!(found, Some(("/u".into(), "trusted.overlay.opaque")));
        assert!(on_top(&[overlay(&["lowerdir=/a"])], &upper).is_none());
        assert!(on_top(&[bind("/b")], &upper).is_none());
        assert!(on_top(&[], &upper).is_none());
        assert!(on_top(&[overlay(&["lowerdir=/b:/a"])], &[bind("/u")]).is_none());
        let one = [overlay(&[
            off,
            "metacopy=off",
            "workdir=/w",
            "upperdir=/u",
            "lowerdir=/a",
        ])];
        assert!(on_top(&[bind("/a")], &one).is_some());
        let moved = [overlay(&["redirect_dir=on", "upperdir=/u", "lowerdir=/a"])];
        assert!(on_top(&[bind("/a")], &moved).is_none());
    }
}
