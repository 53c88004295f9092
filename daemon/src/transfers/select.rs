//! Which of the wanted platforms and snapshotters are unpacked, and when.

use std::sync::Arc;

use ::transfer::Deps;
use diff::Applier;
use images::PlatformSet;
use types::Platform;
use types::transfer::Unpack;

/// The snapshotter of those who name none, if it is there.
const DEFAULT: &str = client::DEFAULT_SNAPSHOTTER;

/// One thing that can be unpacked.
#[derive(Clone, Debug)]
pub(crate) struct Unpacking {
    /// For images of this platform.
    pub(crate) platform: Platform,
    /// Into this snapshotter.
    pub(crate) snapshotter: String,
    /// With this differ.
    pub(crate) applier: Arc<dyn Applier>,
}

/// The same with its rule.
#[derive(Clone, Debug)]
pub(super) struct Target {
    platform: Platform,
    strict: bool,
    pub(super) snapshotter: String,
    pub(super) applier: Arc<dyn Applier>,
}

impl Target {
    pub(super) fn new(unpacking: Unpacking, strict: bool) -> Self {
        Self {
            platform: unpacking.platform,
            strict,
            snapshotter: unpacking.snapshotter,
            applier: unpacking.applier,
        }
    }

    fn takes(&self, platform: &Platform) -> bool {
        if self.strict {
            return PlatformSet::Only(vec![self.platform.clone()]).matches(Some(platform));
        }
        // Files are files: another architecture's unpack as well.
        self.platform.os == platform.os
    }
}

/// The target for what is wanted: of several, where no snapshotter is named, the default.
pub(super) fn choose<'a>(targets: &'a [Target], wanted: &Unpack) -> Option<&'a Target> {
    let fits = |target: &&Target| {
        let named = wanted.snapshotter.is_empty() || wanted.snapshotter == target.snapshotter;
        named && target.takes(&wanted.platform)
    };
    let default = targets
        .iter()
        .filter(fits)
        .find(|t| t.snapshotter == DEFAULT);
    default.or_else(|| targets.iter().find(fits))
}

/// What will be unpacked.
#[derive(Debug, Default)]
pub(super) struct Chosen(Vec<(Deps, Platform)>);

impl Chosen {
    pub(super) fn add(&mut self, deps: Deps, platform: Platform) {
        self.0.push((deps, platform));
    }

    /// All of it, for images that are here.
    pub(super) fn all(self) -> Vec<(Deps, PlatformSet)> {
        let only = |(deps, platform)| (deps, PlatformSet::Only(vec![platform]));
        self.0.into_iter().map(only).collect()
    }

    /// What is unpacked while the layers of `pulled` come in, and what afterwards: the first is
    /// possible when it is the same for all that is pulled.
    pub(super) fn for_pull(self, pulled: &[Platform]) -> (Option<Deps>, Vec<(Deps, PlatformSet)>) {
        let Some((first, _)) = self.0.first() else {
            return (None, Vec::new());
        };
        let one = |(deps, _): &(Deps, Platform)| deps.snapshotter_name == first.snapshotter_name;
        let same = self.0.len() == pulled.len()
            && self.0.iter().all(|(_, platform)| pulled.contains(platform));
        if same && self.0.iter().all(one) {
            return (Some(first.clone()), Vec::new());
        }
        (None, self.all())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Differs;

    fn targets(strict: bool, all: &[(&str, &str)]) -> Vec<Target> {
        let differ = Arc::new(Differs::only(Arc::new(diff::Walking::new("/tmp".into()))));
        let unpacking = |(platform, snapshotter): &(&str, &str)| Unpacking {
            platform: platform.parse().unwrap(),
            snapshotter: (*snapshotter).into(),
            applier: Arc::clone(&differ) as _,
        };
        let all = all.iter().map(unpacking);
        all.map(|unpacking| Target::new(unpacking, strict))
            .collect()
    }

    #[test]
    fn a_target_fits_by_snapshotter_and_system_or_platform() {
        let all = [("linux/amd64", "native"), ("linux/amd64", "overlayfs")];
        for (strict, platform, snapshotter, want) in [
            (false, "linux/amd64", "", Some("overlayfs")),
            (false, "linux/amd64", "native", Some("native")),
            (false, "linux/arm64", "native", Some("native")),
            (true, "linux/arm64", "native", None),
            (true, "linux/amd64", "native", Some("native")),
            (false, "windows/amd64", "", None),
            (false, "linux/amd64", "other", None),
        ] {
            let wanted = Unpack {
                platform: platform.parse().unwrap(),
                snapshotter: snapshotter.into(),
            };
            let targets = targets(strict, &all);
            let chosen = choose(&targets, &wanted).map(|t| t.snapshotter.as_str());
            assert_eq!(chosen, want, "{strict} {platform} {snapshotter}");
        }
        let wanted = Unpack {
            platform: "linux/amd64".parse().unwrap(),
            snapshotter: String::new(),
        };
        let targets = targets(false, &all[..1]);
        assert_eq!(choose(&targets, &wanted).unwrap().snapshotter, "native");
    }
}
