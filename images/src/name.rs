//! Image names in archives: Docker's short names made full, and the names that an import gives.

use std::fmt;
use std::time::SystemTime;

use types::{Error, Result};

/// Annotation with the full name of an image.
pub const ANNOTATION_IMAGE_NAME: &str = "io.containerd.image.name";
/// Annotation with the name of an image, usually its tag alone (OCI image-spec, annotations.md).
pub const ANNOTATION_REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Longest repository name, as everywhere in the Docker world.
const MAX_NAME: usize = 255;
/// Longest tag.
const MAX_TAG: usize = 128;

/// Makes a Docker name full: `alpine` becomes `docker.io/library/alpine:latest`. Of a name with both
/// a tag and a digest the tag goes.
///
/// # Errors
/// `InvalidArgument`.
pub fn normalize(text: &str) -> Result<String> {
    let bad = |why: &dyn fmt::Display| {
        Error::invalid_argument(format_args!("normalize image ref {text:?}: {why}"))
    };
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    if let Some(digest) = digest {
        digest
            .parse::<types::Digest>()
            .map_err(|error| bad(&error))?;
    }
    let (domain, path) = match rest.split_once('/') {
        Some((first, path)) if is_domain(first) => (first, path),
        _ => ("docker.io", rest),
    };
    if domain
        .rsplit_once(':')
        .is_some_and(|(_, port)| !is_port(port))
    {
        return Err(bad(&"invalid port"));
    }
    let domain = if domain == "index.docker.io" {
        "docker.io"
    } else {
        domain
    };
    let (path, tag) = match path.rsplit_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (path, None),
    };
    let library = if domain == "docker.io" && !path.contains('/') {
        "library/"
    } else {
        ""
    };
    if !path.split('/').all(is_component) || domain.len() + path.len() > MAX_NAME {
        return Err(bad(&"invalid reference format"));
    }
    if !tag.is_none_or(is_tag) {
        return Err(bad(&"invalid tag"));
    }
    Ok(match (digest, tag) {
        (Some(digest), _) => format!("{domain}/{library}{path}@{digest}"),
        (None, tag) => format!("{domain}/{library}{path}:{}", tag.unwrap_or("latest")),
    })
}

/// The short form of a name, as Docker shows it; `None` for what Docker cannot hold as a tag.
#[must_use]
pub fn familiar(name: &str) -> Option<String> {
    let full = normalize(name).ok().filter(|full| !full.contains('@'))?;
    let short = full.strip_prefix("docker.io/").unwrap_or(&full);
    let official = short
        .strip_prefix("library/")
        .filter(|name| !name.contains('/'));
    Some(official.unwrap_or(short).to_owned())
}

/// The tag of a full name, or the whole name when it has none: what OCI wants in `ref.name`.
#[must_use]
pub fn tag_of(name: &str) -> &str {
    let after_host = name.find('/').map_or(0, |at| at + 1);
    if name.contains('@') {
        return name;
    }
    match name[after_host..].rfind(':') {
        Some(at) if at + 1 < name.len() - after_host => &name[after_host + at + 1..],
        _ => name,
    }
}

/// How an import names images that carry only a tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prefix {
    /// `name:tag` for bare tags; full names stay.
    Add(String),
    /// As [`Prefix::Add`], but full names that do not begin with the prefix are left out.
    Filter(String),
}

impl Prefix {
    /// `import-<date>`, for an import without a base name.
    #[must_use]
    pub fn dated(now: SystemTime) -> Self {
        let date = time::OffsetDateTime::from(now).date();
        let (year, month, day) = (date.year(), u8::from(date.month()), date.day());
        Self::Add(format!("import-{year:04}-{month:02}-{day:02}"))
    }

    /// The image's name for `reference` of an archive; `None`: it gets none.
    ///
    /// Parity: core/images/archive/reference.go: names that `ctr images import --base-name` gives.
    #[must_use]
    pub fn name(&self, reference: &str) -> Option<String> {
        let (Self::Add(prefix) | Self::Filter(prefix)) = self;
        if prefix.is_empty() || reference.is_empty() {
            return None;
        }
        if !reference.contains(['/', ':', '@']) {
            return Some(format!("{prefix}:{reference}"));
        }
        let fits = match self {
            Self::Add(_) => true,
            Self::Filter(prefix) => reference
                .strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', ':', '@'])),
        };
        fits.then(|| reference.to_owned())
    }

    /// `prefix@digest`.
    #[must_use]
    pub fn by_digest(&self, digest: &types::Digest) -> String {
        let (Self::Add(prefix) | Self::Filter(prefix)) = self;
        format!("{prefix}@{digest}")
    }
}

/// Docker's rule: a first part with a dot, a colon or upper case, or `localhost`, is a host.
fn is_domain(first: &str) -> bool {
    let host_like = first.contains(['.', ':'])
        || first == "localhost"
        || first.bytes().any(|b| b.is_ascii_uppercase());
    let begins = first.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[');
    host_like
        && begins
        && first
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']'))
}

/// Digits, or the end of a bracketed address, whose colons are no port's.
fn is_port(port: &str) -> bool {
    port.ends_with(']') || (!port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
}

/// Lower-case letters and digits, joined by `.`, `_`, `__` or dashes.
fn is_component(part: &str) -> bool {
    let word = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let ends =
        part.as_bytes().first().is_some_and(word) && part.as_bytes().last().is_some_and(word);
    let separators = part.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    ends && separators
        .filter(|s| !s.is_empty())
        .all(|s| matches!(s, "." | "_" | "__") || s.bytes().all(|b| b == b'-'))
}

fn is_tag(tag: &str) -> bool {
    !tag.is_empty()
        && tag.len() <= MAX_TAG
        && !tag.starts_with(['.', '-'])
        && tag
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn short_names_become_full() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, want) in [
            ("alpine", "docker.io/library/alpine:latest"),
            ("alpine:3", "docker.io/library/alpine:3"),
            ("me/alpine:3", "docker.io/me/alpine:3"),
            ("docker.io/alpine", "docker.io/library/alpine:latest"),
            ("index.docker.io/alpine", "docker.io/library/alpine:latest"),
            ("localhost/x", "localhost/x:latest"),
            ("127.0.0.1:5000/x/y:1", "127.0.0.1:5000/x/y:1"),
            ("r.example/a__b/c-d.e:V1", "r.example/a__b/c-d.e:V1"),
        ] {
            assert_eq!(normalize(text).unwrap(), want);
        }
        let both = format!("alpine:3@{digest}");
        assert_eq!(
            normalize(&both).unwrap(),
            format!("docker.io/library/alpine@{digest}")
        );
        for bad in [
            "", "/", "A", "a//b", "../a", "a/..", "a:", "a:b/c", "a@x", "a b", "-a", "a___b",
            "a/b:.x", "a:-", "é",
        ] {
            assert!(normalize(bad).is_err(), "{bad}");
        }
        normalize(&"a".repeat(300)).unwrap_err();
    }

    #[test]
    fn full_names_become_short() {
        let by_digest = format!("a@sha256:{}", "a".repeat(64));
        for (name, want) in [
            ("docker.io/library/alpine:3", Some("alpine:3")),
            ("docker.io/me/alpine", Some("me/alpine:latest")),
            ("r.io/library/x:1", Some("r.io/library/x:1")),
            ("docker.io/library/a/b:1", Some("library/a/b:1")),
            ("Not A Name", None),
            (&by_digest, None),
        ] {
            assert_eq!(familiar(name).as_deref(), want);
        }
    }

    #[test]
    fn tags_are_cut_out() {
        for (name, tag) in [
            ("docker.io/library/alpine:3", "3"),
            ("localhost:5000/a", "localhost:5000/a"),
            ("localhost:5000/a:b", "b"),
            ("a@sha256:x", "a@sha256:x"),
            ("a:", "a:"),
        ] {
            assert_eq!(tag_of(name), tag);
        }
    }

    #[test]
    fn prefixes_add_or_filter() {
        let epoch = Prefix::dated(SystemTime::UNIX_EPOCH);
        assert_eq!(epoch.name("1").as_deref(), Some("import-1970-01-01:1"));
        let add = Prefix::Add("p/x".into());
        let filter = Prefix::Filter("p/x".into());
        for (reference, added, filtered) in [
            ("1", Some("p/x:1"), Some("p/x:1")),
            ("p/x:2", Some("p/x:2"), Some("p/x:2")),
            ("p/xy:2", Some("p/xy:2"), None),
            ("q:2", Some("q:2"), None),
            ("", None, None),
        ] {
            assert_eq!(add.name(reference).as_deref(), added);
            assert_eq!(filter.name(reference).as_deref(), filtered);
        }
    }

    proptest! {
        #[test]
        fn normalizing_is_idempotent(text in "[a-zA-Z0-9./:@_-]{0,40}") {
            if let Ok(full) = normalize(&text) {
                prop_assert_eq!(normalize(&full).unwrap(), full);
            }
        }
    }
}
