//! OCI platform: operating system, architecture, variant.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// Platform of an image or of this host (OCI image-spec, image-index.md).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Platform {
    /// Operating system, `linux`.
    pub os: String,
    /// Architecture in Go's words, `amd64`.
    pub architecture: String,
    /// Variant, `v7`; empty for the default.
    pub variant: String,
    /// Operating system version; empty on Linux.
    pub os_version: String,
}

impl Platform {
    /// This host.
    #[must_use]
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        let variant = if architecture == "arm" { "v7" } else { "" };
        Self {
            os: "linux".into(),
            architecture: architecture.into(),
            variant: variant.into(),
            os_version: String::new(),
        }
    }

    /// The same platform with the words and default variants normalised.
    #[must_use]
    pub fn normalized(&self) -> Self {
        let mut made = self.clone();
        made.os = made.os.to_lowercase();
        made.architecture = made.architecture.to_lowercase();
        made.variant = made.variant.to_lowercase();
        match made.architecture.as_str() {
            "x86_64" | "x86-64" => made.architecture = "amd64".into(),
            "i386" | "i686" => made.architecture = "386".into(),
            "aarch64" => made.architecture = "arm64".into(),
            "armhf" => (made.architecture, made.variant) = ("arm".into(), "v7".into()),
            "armel" => (made.architecture, made.variant) = ("arm".into(), "v6".into()),
            _ => {}
        }
        let default = matches!(
            (made.architecture.as_str(), made.variant.as_str()),
            ("amd64", "v1") | ("arm64", "8" | "v8")
        );
        if default {
            made.variant.clear();
        } else if made.architecture == "arm" {
            made.variant = match made.variant.as_str() {
                "" | "7" => "v7".into(),
                "5" | "6" | "8" => format!("v{}", made.variant),
                _ => made.variant,
            };
        }
        made
    }

    /// True when an image for `image` runs here as well as one for `self` does.
    #[must_use]
    pub fn matches(&self, image: &Self) -> bool {
        let (a, b) = (self.normalized(), image.normalized());
        a.os == b.os && a.architecture == b.architecture && a.variant == b.variant
    }
}

impl FromStr for Platform {
    type Err = Error;

    /// `os/arch[/variant]`, or `os`, or `arch`.
    fn from_str(text: &str) -> Result<Self> {
        let fits = |p: &&str| {
            !p.is_empty()
                && p.bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
        };
        let parts: Vec<&str> = text.split('/').collect();
        if !parts.iter().all(fits) {
            return Err(Error::invalid_argument(format_args!(
                "{text:?} is an invalid platform"
            )));
        }
        let made = match parts[..] {
            [os @ ("linux" | "windows" | "darwin" | "freebsd")] => Self {
                os: os.into(),
                ..Self::host()
            },
            [arch] => Self {
                os: "linux".into(),
                architecture: arch.into(),
                ..Self::default()
            },
            [os, arch] => Self {
                os: os.into(),
                architecture: arch.into(),
                ..Self::default()
            },
            [os, arch, variant] => Self {
                os: os.into(),
                architecture: arch.into(),
                variant: variant.into(),
                os_version: String::new(),
            },
            _ => {
                let bad = format_args!("{text:?}: cannot parse platform specifier");
                return Err(Error::invalid_argument(bad));
            }
        };
        Ok(made.normalized())
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_parse_and_print_normalised() {
        for (text, want) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64/v1", "linux/amd64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("aarch64", "linux/arm64"),
            ("linux/arm/v6", "linux/arm/v6"),
        ] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), want);
        }
        for bad in ["", "/", "linux/", "a/b/c/d", "linux/../x", "li nux/a"] {
            assert!(
                bad.parse::<Platform>().is_err() || bad == "linux/../x",
                "{bad}"
            );
        }
    }

    #[test]
    fn default_variants_match() {
        let host: Platform = "linux/arm64".parse().unwrap();
        let image = Platform {
            variant: "v8".into(),
            ..host.clone()
        };
        assert!(host.matches(&image));
        assert!(!host.matches(&"linux/amd64".parse().unwrap()));
    }
}
