//! References to images in registries: `host/path:tag@digest`.
//!
//! Invariant: a [`Reference`] has a host and a path that can stand in a URL as they are.

use std::fmt;
use std::str::FromStr;

use types::{Digest, Error, Result};

use crate::url::{self, Origin};

/// Longest reference.
const MAX: usize = 4096;

/// A full reference. No defaults are filled in: `busybox` is not `docker.io/library/busybox:latest`.
///
/// Parity: pkg/reference/reference.go: what `ctr images pull` accepts, and its error texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    host: String,
    path: String,
    object: String,
}

impl Reference {
    /// The registry's name as users write it, `docker.io` or `localhost:5000`.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The host that serves the registry.
    #[must_use]
    pub fn upstream(&self) -> &str {
        // Parity: core/remotes/docker: the name that everybody uses is not the host that serves it.
        match self.host.as_str() {
            "docker.io" => "registry-1.docker.io",
            host => host,
        }
    }

    /// Whether `host`, a name with its port perhaps, is the host that serves the registry: over http when
    /// `is_plain`, else https, which says what port is meant by none.
    #[must_use]
    pub fn is_served_by(&self, host: &str, is_plain: bool) -> bool {
        let scheme = if is_plain { "http" } else { "https" };
        let origin = |host: &str| Origin::of(&url::parse(&format!("{scheme}://{host}/"))?);
        let asked = origin(host).ok();
        asked.is_some_and(|asked| origin(self.upstream()).is_ok_and(|own| own == asked))
    }

    /// The registry's name without its port.
    #[must_use]
    pub fn hostname(&self) -> &str {
        match self.host.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => self.host.split(':').next().unwrap_or_default(),
        }
    }

    /// The repository's path, `library/busybox`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What follows the path: `tag`, `tag@digest`, `@digest`, or nothing.
    #[must_use]
    pub fn object(&self) -> &str {
        &self.object
    }

    /// The tag; may be empty.
    #[must_use]
    pub fn tag(&self) -> &str {
        self.object.split('@').next().unwrap_or_default()
    }

    /// The digest, when there is one.
    ///
    /// # Errors
    /// `InvalidArgument` for a bad digest.
    pub fn digest(&self) -> Result<Option<Digest>> {
        self.object
            .split_once('@')
            .map(|(_, digest)| digest.parse())
            .transpose()
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |why: &str| Error::invalid_argument(format_args!("{why}: {text:?}"));
        if text.contains("://") || text.len() > MAX {
            return Err(bad("invalid reference"));
        }
        let plain = |b: u8| b.is_ascii_graphic() && !br#""%<>?#\^`{|}"#.contains(&b);
        if !text.bytes().all(plain) {
            return Err(bad("invalid reference"));
        }
        let (host, rest) = text.split_once('/').unwrap_or((text, ""));
        if host.is_empty() || host.contains('@') {
            return Err(bad("hostname required"));
        }
        if !is_host(host) {
            return Err(bad("invalid reference: bad host or port"));
        }
        let cut = rest.find([':', '@']).unwrap_or(rest.len());
        let (path, object) = rest.split_at(cut);
        let path = path.trim_end_matches('/');
        if path.is_empty() && cut < rest.len() {
            return Err(bad("invalid reference: no repository"));
        }
        if path.split('/').any(|part| matches!(part, "." | "..")) || path.contains("//") {
            return Err(bad("invalid reference"));
        }
        Ok(Self {
            host: host.to_owned(),
            path: path.to_owned(),
            object: object.strip_prefix(':').unwrap_or(object).to_owned(),
        })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host)?;
        if !self.path.is_empty() {
            write!(f, "/{}", self.path)?;
        }
        match self.object.as_str() {
            "" => Ok(()),
            object if object.starts_with('@') => f.write_str(object),
            object => write!(f, ":{object}"),
        }
    }
}

/// `name`, `name:port`, `[v6]` or `[v6]:port`.
fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) if address.parse::<std::net::Ipv6Addr>().is_ok() => (
                "v6",
                port.strip_prefix(':').or((port.is_empty()).then_some("1")),
            ),
            _ => return false,
        },
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, Some("1")),
        },
    };
    let name_fits = !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    name_fits && port.is_some_and(|port| port.parse::<u16>().is_ok_and(|p| p > 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn references_come_apart() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, host, path, tag) in [
            (
                "docker.io/library/busybox:latest",
                "docker.io",
                "library/busybox",
                "latest",
            ),
            ("localhost:5000/a", "localhost:5000", "a", ""),
            ("[::1]:5000/a/b:c", "[::1]:5000", "a/b", "c"),
            ("busybox", "busybox", "", ""),
            (&format!("r.io/a:t@{digest}"), "r.io", "a", "t"),
            (&format!("r.io/a@{digest}"), "r.io", "a", ""),
        ] {
            let r: Reference = text.parse().unwrap();
            assert_eq!((r.host(), r.path(), r.tag()), (host, path, tag));
            assert_eq!(r.to_string(), text);
            let name = host.trim_end_matches(":5000").trim_matches(['[', ']']);
            assert_eq!(r.hostname(), name);
            assert_eq!(r.digest().unwrap().is_some(), text.contains("sha256"));
        }
        let short: Reference = "r.io/a@sha256:12".parse().unwrap();
        short.digest().unwrap_err();
    }

    #[test]
    fn a_registry_is_known_by_all_that_its_name_may_be() {
        for (text, host, plain, secure) in [
            ("r.io/a", "r.io", true, true),
            ("r.io/a", "R.IO", true, true),
            ("R.io/a", "r.io", true, true),
            ("r.io/a", "r.io:443", false, true),
            ("r.io:443/a", "r.io", false, true),
            ("r.io/a", "r.io:80", true, false),
            ("r.io:5000/a", "r.io:5000", true, true),
            ("r.io:5000/a", "r.io", false, false),
            ("r.io/a", "m.r.io", false, false),
            ("r.io/a", "", false, false),
            ("r.io/a", "u@r.io", false, false),
            ("docker.io/a", "registry-1.docker.io", true, true),
            ("docker.io/a", "docker.io", false, false),
        ] {
            let reference: Reference = text.parse().unwrap();
            for (is_plain, want) in [(true, plain), (false, secure)] {
                let is_it = reference.is_served_by(host, is_plain);
                assert_eq!(is_it, want, "{host} of {text}, plain: {is_plain}");
            }
        }
    }

    #[test]
    fn bad_references_are_refused() {
        for bad in [
            "",
            "/a:b",
            "http://a/b",
            "a b/c",
            "r.io:x/a",
            "r.io:0/a",
            "r.io:99999/a",
            "r.io/../a",
            "r.io/a/./b",
            "r.io/a//b",
            "u@r.io/a",
            "r.io/a?x=1",
            "r.io/a#x",
            "r.io/%2e%2e/a",
            "é/a",
            "[::1/a",
            "[x]/a",
            "r.io/a\n",
            "r.io/:a",
            "r.io/@",
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_parses_prints_to_something_equal(text in "[a-z0-9.:/@\\[\\]-]{0,40}") {
            if let Ok(r) = text.parse::<Reference>() {
                prop_assert_eq!(r.to_string().parse::<Reference>().unwrap(), r);
            }
        }
    }
}
