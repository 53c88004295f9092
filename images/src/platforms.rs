//! Which of an index's entries fit a platform, and which fits best.

use types::Platform;

/// The platforms that a caller wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlatformSet {
    /// Whatever is there.
    All,
    /// These, and what runs on them.
    Only(Vec<Platform>),
}

impl Default for PlatformSet {
    /// This host.
    fn default() -> Self {
        Self::Only(vec![Platform::host()])
    }
}

impl PlatformSet {
    /// True when an image for `image` is wanted; `None`: the index does not say, so it may be.
    #[must_use]
    pub fn matches(&self, image: Option<&Platform>) -> bool {
        match (self, image) {
            (Self::All, _) | (_, None) => true,
            (Self::Only(wanted), Some(image)) => wanted.iter().any(|w| rank(w, image).is_some()),
        }
    }

    /// The positions of the entries to take from `entries`: all that are wanted of [`Self::All`],
    /// else the best one for each wanted platform. Entries without a platform come last.
    #[must_use]
    pub fn choose(&self, entries: &[Option<Platform>]) -> Vec<usize> {
        let Self::Only(wanted) = self else {
            return (0..entries.len()).collect();
        };
        let mut chosen = Vec::new();
        for platform in wanted {
            let best = entries
                .iter()
                .enumerate()
                .filter_map(|(at, entry)| match entry {
                    Some(image) => rank(platform, image).map(|rank| (rank, at)),
                    None => Some((usize::MAX, at)),
                })
                .min();
            if let Some((_, at)) = best
                && !chosen.contains(&at)
            {
                chosen.push(at);
            }
        }
        chosen
    }
}

/// How well an image for `image` runs on `host`: 0 is best, `None` not at all.
fn rank(host: &Platform, image: &Platform) -> Option<usize> {
    let image = image.normalized();
    runs(&host.normalized())
        .iter()
        .position(|(architecture, variant)| {
            image.os == host.os.to_lowercase()
                && image.architecture == *architecture
                && image.variant == *variant
        })
}

/// What runs on a platform, best first.
///
/// Parity: platforms/compare.go: which images a Go containerd accepts on a host.
fn runs(host: &Platform) -> Vec<(String, String)> {
    let mut all = vec![(host.architecture.clone(), host.variant.clone())];
    let mut add = |architecture: &str, variant: &str| {
        all.push((architecture.to_owned(), variant.to_owned()));
    };
    let level = |variant: &str| {
        variant
            .strip_prefix('v')
            .and_then(|v| v.parse::<u32>().ok())
    };
    match host.architecture.as_str() {
        "amd64" => {
            for lower in (2..level(&host.variant).unwrap_or(1)).rev() {
                add("amd64", &format!("v{lower}"));
            }
            if !host.variant.is_empty() {
                add("amd64", "");
            }
            add("386", "");
        }
        "arm" => {
            for lower in (5..level(&host.variant).unwrap_or(7)).rev() {
                add("arm", &format!("v{lower}"));
            }
        }
        "arm64" => {
            if !host.variant.is_empty() {
                add("arm64", "");
            }
            for lower in (5..=8).rev() {
                add("arm", &format!("v{lower}"));
            }
        }
        _ => {}
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(text: &str) -> PlatformSet {
        PlatformSet::Only(
            text.split_whitespace()
                .map(|p| p.parse().unwrap())
                .collect(),
        )
    }

    fn entries(text: &str) -> Vec<Option<Platform>> {
        text.split_whitespace()
            .map(|p| {
                if p == "-" {
                    None
                } else {
                    Some(p.parse().unwrap())
                }
            })
            .collect()
    }

    #[test]
    fn the_best_entry_is_chosen() {
        for (host, list, want) in [
            ("linux/amd64", "linux/arm64 linux/386 linux/amd64", &[2][..]),
            ("linux/amd64", "linux/arm64 linux/386", &[1]),
            ("linux/amd64", "- linux/amd64", &[1]),
            ("linux/amd64", "linux/arm64 -", &[1]),
            ("linux/amd64", "linux/arm64 windows/amd64", &[]),
            ("linux/amd64", "linux/amd64/v3", &[]),
            ("linux/amd64/v3", "linux/amd64 linux/amd64/v2", &[1]),
            ("linux/arm/v7", "linux/arm/v5 linux/arm/v6", &[1]),
            ("linux/arm/v6", "linux/arm/v7", &[]),
            ("linux/arm64", "linux/arm/v7 linux/arm64/v8", &[1]),
            (
                "linux/arm64 linux/amd64",
                "linux/amd64 linux/arm64 linux/s390x",
                &[1, 0],
            ),
            ("linux/amd64", "linux/amd64 linux/amd64", &[0]),
        ] {
            assert_eq!(only(host).choose(&entries(list)), want, "{host}: {list}");
        }
        assert_eq!(PlatformSet::All.choose(&entries("a b -")), [0, 1, 2]);
    }

    #[test]
    fn unknown_platforms_are_nobodys() {
        let attestation = Platform {
            os: "unknown".into(),
            architecture: "unknown".into(),
            ..Platform::default()
        };
        assert!(!PlatformSet::default().matches(Some(&attestation)));
        assert!(PlatformSet::default().matches(None));
        assert!(PlatformSet::All.matches(Some(&attestation)));
    }
}
