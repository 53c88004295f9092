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

    /// Whether people may call both the same: by one host and one port, or neither says its port.
    pub(crate) fn is_namesake(&self, other: &Self) -> bool {
        let own_port = |origin: &Self| origin.port == if origin.https { 443 } else { 80 };
        self.host == other.host && (self.port == other.port || own_port(self) && own_port(other))
    }

    /// Whether whoever has the one has the other, as far as names tell: hosts of one domain. An address or a
    /// name without a domain is alone.
    pub(crate) fn is_of_domain_of(&self, other: &Self) -> bool {
        let host = |origin: &Self| origin.host().trim_end_matches('.').to_owned();
        let (one, other) = (host(self), host(other));
        domain(&one) == domain(&other)
    }

    /// Whether this is the machine itself.
    pub(crate) fn is_loopback(&self) -> bool {
        let address = self.host().parse::<std::net::IpAddr>();
        self.host == "localhost"
            || address.is_ok_and(|address| address.to_canonical().is_loopback())
    }
}

/// Below these anybody gets a name: clouds and hosters where registries and token servers are found.
const SHARED: &[&str] = &[
    "amazonaws.com",
    "amazonaws.com.cn",
    "appspot.com",
    "azurecontainerapps.io",
    "azurefd.net",
    "azurewebsites.net",
    "cloudapp.net",
    "cloudfront.net",
    "fly.dev",
    "github.io",
    "gitlab.io",
    "googleapis.com",
    "googleusercontent.com",
    "herokuapp.com",
    "netlify.app",
    "ngrok.app",
    "ngrok.io",
    "ngrok-free.app",
    "onrender.com",
    "pages.dev",
    "r2.dev",
    "run.app",
    "vercel.app",
    "web.app",
    "workers.dev",
];

/// The part of a host's name that has one owner: two labels, and three where the first two of those are no
/// owner's. All of what is below a name that is shared has an owner of its own.
fn domain(host: &str) -> &str {
    if host.parse::<std::net::IpAddr>().is_ok() {
        return host;
    }
    let is_below = |shared: &&str| {
        let above = host.strip_suffix(*shared);
        above.is_some_and(|above| above.is_empty() || above.ends_with('.'))
    };
    if SHARED.iter().any(is_below) {
        return host;
    }
    let mut labels = host.rsplit('.');
    let (last, before) = (labels.next(), labels.next());
    // As co.uk, com.au or gob.mx: the registries of countries sell names below such.
    let is_country = last.is_some_and(|last| last.len() == 2);
    let is_sold = is_country && before.is_some_and(|before| before.len() <= 3);
    let dots = if is_sold { 2 } else { 1 };
    let at = host.rmatch_indices('.').nth(dots);
    host.get(at.map_or(0, |(at, _)| at + 1)..).unwrap_or(host)
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
    fn namesakes_differ_in_the_scheme_only() {
        let of = |text: &str| Origin::of(&text.parse().unwrap()).unwrap();
        let registry = of("https://r.io/");
        for (other, is_one) in [
            ("http://R.io", true),
            ("http://r.io:443", true),
            ("http://r.io:80", true),
            ("https://r.io:80", false),
            ("http://r.io:5000", false),
            ("http://m.io", false),
        ] {
            assert_eq!(registry.is_namesake(&of(other)), is_one, "{other}");
        }
    }

    #[test]
    fn a_domain_has_one_owner_and_an_address_is_alone() {
        let of = |host: &str| Origin::of(&format!("https://{host}/").parse().unwrap()).unwrap();
        for (one, other, are_akin) in [
            ("registry-1.docker.io", "auth.docker.io", true),
            ("registry.gitlab.test", "gitlab.test", true),
            ("R.a.test:5000", "auth.b.A.test.", true),
            ("rg.fr-par.scw.test", "api.scaleway.test", false),
            ("r.io", "r.io.evil.test", false),
            ("r.io", "evil-r.io", false),
            ("registry.a.co.uk", "auth.a.co.uk", true),
            ("a.co.uk", "auth.a.co.uk", true),
            ("registry.a.co.uk", "evil.co.uk", false),
            ("registry.a.com.au", "auth.evil.com.au.", false),
            ("registry.gitlab.de", "auth.gitlab.de", true),
            ("a.github.io", "evil.github.io", false),
            (
                "1.dkr.ecr.eu-west-1.amazonaws.com",
                "evil.elb.amazonaws.com",
                false,
            ),
            ("A.azurewebsites.net", "a.azurewebsites.net:444", true),
            ("a.azurewebsites.net", "evil.azurewebsites.net", false),
            ("r.notgithub.io", "auth.notgithub.io", true),
            ("r.io", "io", false),
            ("localhost:5000", "localhost:5001", true),
            ("localhost", "127.0.0.1", false),
            ("registry", "auth", false),
            ("10.0.0.1:5000", "10.0.0.1:5001", true),
            ("10.0.0.1", "9.9.0.1", false),
            ("[fd00::1]:1", "[fd00::1]:2", true),
            ("[fd00::1.2.3.4]", "[fd01::1.2.3.4]", false),
        ] {
            let (one, other) = (of(one), of(other));
            assert_eq!(one.is_of_domain_of(&other), are_akin, "{one} {other}");
            assert_eq!(other.is_of_domain_of(&one), are_akin, "{other} {one}");
        }
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
