//! URLs and origins, as far as registries and their redirects need them.

use std::fmt;

use http::Uri;
use types::{Error, Result};

/// Scheme, host and port: what credentials are bound to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Origin {
    pub(crate) https: bool,
    host: String,
    port: u16,
}

impl Origin {
    /// The origin of an absolute URL.
    pub(crate) fn of(url: &Uri) -> Result<Self> {
        let https = match url.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(bad(url, "is no http or https URL")),
        };
        let authority = url.authority().ok_or_else(|| bad(url, "has no host"))?;
        if authority.as_str().contains('@') {
            return Err(bad(url, "has user information"));
        }
        Ok(Self {
            https,
            host: authority.host().to_ascii_lowercase(),
            port: authority.port_u16().unwrap_or(if https { 443 } else { 80 }),
        })
    }
}

impl Origin {
    /// `https` or `http`.
    pub(crate) fn scheme(&self) -> &'static str {
        if self.https { "https" } else { "http" }
    }

    /// Host without port, in lower case; an IPv6 address has no brackets.
    pub(crate) fn host(&self) -> &str {
        self.host.trim_matches(['[', ']'])
    }

    /// Port, also when it is the scheme's own.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Whether this is the machine itself.
    pub(crate) fn is_loopback(&self) -> bool {
        let address = self.host().parse::<std::net::IpAddr>();
        self.host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}:{}", self.scheme(), self.host, self.port)
    }
}

/// Parses an absolute URL.
pub(crate) fn parse(text: &str) -> Result<Uri> {
    let url: Uri = text.parse().map_err(|error| {
        // Where its parts end nobody knows: all that may be a secret goes.
        let shown = text.split(['?', '#']).next().unwrap_or_default();
        let shown = shown.rsplit('@').next().unwrap_or_default();
        Error::invalid_argument(format_args!("URL {shown:?}: {error}"))
    })?;
    Origin::of(&url)?;
    Ok(url)
}

/// Where `location` leads from `base` (RFC 3986, as far as servers use it).
pub(crate) fn join(base: &Uri, location: &str) -> Result<Uri> {
    let (scheme, authority) = (
        base.scheme_str().unwrap_or("https"),
        base.authority().map_or("", |a| a.as_str()),
    );
    let location = location.split('#').next().unwrap_or_default();
    if location.is_empty() {
        return Err(Error::unknown("redirect without a location"));
    }
    let colon = location
        .find(':')
        .is_some_and(|at| !location[..at].contains(['/', '?']));
    let text = if colon {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.starts_with('?') {
        format!("{scheme}://{authority}{}{location}", base.path())
    } else {
        let dir = base.path().rsplit_once('/').map_or("", |(dir, _)| dir);
        format!("{scheme}://{authority}{dir}/{location}")
    };
    parse(&text)
}

/// A URL without what may be a secret, for texts: neither user information nor a query, which may be a
/// signature.
pub(crate) fn shown(url: &Uri) -> String {
    let (scheme, authority) = (
        url.scheme_str().unwrap_or_default(),
        url.authority().map_or("", |a| a.as_str()),
    );
    masked(&format!("{scheme}://{authority}{}", url.path()))
}

/// A text with all the URLs in it as [`shown`].
pub(crate) fn masked(text: &str) -> String {
    let mut made = String::with_capacity(text.len());
    for word in text.split_inclusive([' ', '\t', '"', '<', '>']) {
        let (scheme, rest) = word.split_once("://").unwrap_or(("", word));
        let is_url = !scheme.is_empty() || word.starts_with(['/', '?', '#']);
        if !is_url {
            made.push_str(word);
            continue;
        }
        let end = word.len() - word.trim_end_matches([' ', '\t', '"', '<', '>']).len();
        let (rest, end) = rest.split_at(rest.len() - end);
        let rest = rest.split(['?', '#']).next().unwrap_or_default();
        let authority = rest.split('/').next().unwrap_or_default();
        let user = authority.rfind('@').map_or(0, |at| at + 1);
        if !scheme.is_empty() {
            made.push_str(scheme);
            made.push_str("://");
        }
        made.push_str(&rest[user..]);
        made.push_str(end);
    }
    made
}

/// One `key=value` of a query, escaped.
pub(crate) fn pair(key: &str, value: &str) -> String {
    use fmt::Write as _;
    let mut text = format!("{key}=");
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _always = write!(text, "%{byte:02X}");
        }
    }
    text
}

/// The opposite of escaping; what is no escape stays as it is.
pub(crate) fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let code = tail.get(..2).filter(|_| *first == b'%');
        let code = code.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn bad(url: &Uri, why: &str) -> Error {
    Error::invalid_argument(format_args!("{} {why}", shown(url)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_joined() {
        let base = parse("https://r.io:5000/v2/a/blobs/x?y=z").unwrap();
        for (location, want) in [
            ("http://other/p?q=1", "http://other/p?q=1"),
            ("//cdn.io/p", "https://cdn.io/p"),
            ("/p?q", "https://r.io:5000/p?q"),
            ("p", "https://r.io:5000/v2/a/blobs/p"),
            ("?n=1", "https://r.io:5000/v2/a/blobs/x?n=1"),
            ("/p#f", "https://r.io:5000/p"),
        ] {
            assert_eq!(join(&base, location).unwrap().to_string(), want);
        }
        for bad in [
            "",
            "#",
            "ftp://x/",
            "file:///etc/passwd",
            "https://u:p@x/",
            "http://",
        ] {
            assert!(join(&base, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn secrets_in_urls_are_not_shown() {
        for (text, want) in [
            ("https://u:p@h:5/p?q=s#f", "https://h:5/p"),
            ("/p?q=s", "/p"),
            ("?q=s", ""),
            (
                "</v2/_catalog?last=s>; rel=\"next\"",
                "</v2/_catalog>; rel=\"next\"",
            ),
            (
                "Bearer realm=\"https://u@a.io/t?k=s\",scope=\"repository:r:pull\"",
                "Bearer realm=\"https://a.io/t\",scope=\"repository:r:pull\"",
            ),
            ("0; url=https://h/?s", "0; url=https://h/"),
            ("bytes 0-1/2", "bytes 0-1/2"),
            ("\u{e9}://\u{e9}@\u{e9}?", "\u{e9}://\u{e9}"),
            ("", ""),
        ] {
            assert_eq!(masked(text), want);
        }
        for bad in [
            "https://u:s3cret@h/",
            "https://u:s3c ret@h/p",
            "https://h /?k=s3cret",
            "https://u:s3c/ret@h /?k=s3cret",
            "ftp://u:s3cret@h/?k=s3cret",
        ] {
            let error = parse(bad).unwrap_err().to_string();
            assert!(!error.contains("s3c") && error.contains('h'), "{error}");
        }
    }

    #[test]
    fn origins_know_default_ports_and_ignore_case() {
        let of = |text: &str| Origin::of(&text.parse().unwrap()).unwrap();
        assert_eq!(of("https://R.io/x"), of("https://r.io:443/y"));
        assert_ne!(of("https://r.io/x"), of("http://r.io/x"));
        assert_ne!(of("http://r.io/x"), of("http://r.io:81/x"));
        assert_ne!(of("http://r.io/x"), of("http://r.io.evil/x"));
    }

    #[test]
    fn escapes_are_undone() {
        for (text, want) in [
            ("a%40b", "a@b"),
            ("%", "%"),
            ("%zz%4", "%zz%4"),
            ("%c3%a9", "\u{e9}"),
        ] {
            assert_eq!(unescape(text), want);
        }
    }

    #[test]
    fn loopback_is_known() {
        let of = |text: &str| Origin::of(&text.parse().unwrap()).unwrap().is_loopback();
        assert!(of("http://localhost:5/") && of("http://127.1.2.3/") && of("http://[::1]/"));
        assert!(!of("http://localhost.example.test/") && !of("http://10.0.0.1/"));
    }

    #[test]
    fn queries_are_escaped() {
        assert_eq!(
            pair("scope", "repository:a/b:pull c&d"),
            "scope=repository%3Aa%2Fb%3Apull%20c%26d"
        );
    }
}
