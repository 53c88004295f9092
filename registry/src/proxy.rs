//! Proxies, as the environment names them.
//!
//! Parity: golang.org/x/net/http/httpproxy: administrators write the rules for Go programs.

use std::fmt;
use std::net::IpAddr;

use http::Uri;
use types::{Error, Result};

use crate::base64;
use crate::url::{self, Origin};

/// By which proxy a host is reached.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// Proxy for `http` URLs; empty: none.
    pub http: String,
    /// Proxy for `https` URLs; empty: none.
    pub https: String,
    /// Hosts that are reached directly: a list of names, addresses, networks, with or without ports.
    pub none: String,
}

/// A proxy to go through.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Proxy {
    pub(crate) kind: Kind,
    /// `host:port`, with brackets for IPv6.
    pub(crate) authority: String,
    /// Who we are there.
    pub(crate) user: Option<(String, String)>,
}

/// What a proxy speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// HTTP.
    Http,
    /// HTTP in TLS.
    Https,
    /// SOCKS 5. It resolves names, whichever of its two schemes is written, as in Go.
    Socks,
}

impl Kind {
    fn of(scheme: &str) -> Option<Self> {
        match scheme {
            "http" => Some(Self::Http),
            "https" => Some(Self::Https),
            "socks5" | "socks5h" => Some(Self::Socks),
            _ => None,
        }
    }

    /// Where the URL names no port.
    fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
            Self::Socks => 1080,
        }
    }
}

impl Proxy {
    /// The value of `proxy-authorization`, for proxies that read it.
    pub(crate) fn authorization(&self) -> Option<String> {
        let (name, secret) = self.user.as_ref()?;
        let pair = format!("{name}:{secret}");
        let is_http = self.kind != Kind::Socks;
        is_http.then(|| format!("Basic {}", base64::encode(pair.as_bytes())))
    }

    /// Its name or address, without brackets.
    pub(crate) fn name(&self) -> &str {
        let name = self.authority.rsplit_once(':').map(|(name, _)| name);
        name.unwrap_or_default().trim_matches(['[', ']'])
    }
}

/// Without what may be passwords.
impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let none = format_args!("{:?}", self.none);
        f.debug_struct("Proxies")
            .field("none", &none)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({})", self.authority)
    }
}

impl Proxies {
    /// What `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` say, or their forms in lower case.
    #[must_use]
    pub fn from_env() -> Self {
        Self::from_lookup(|name| std::env::var(name).ok())
    }

    fn from_lookup(get: impl Fn(&str) -> Option<String>) -> Self {
        let any = |upper: &str, lower: &str| {
            let set = |name| get(name).filter(|value| !value.is_empty());
            set(upper).or_else(|| set(lower)).unwrap_or_default()
        };
        // In a CGI program HTTP_PROXY is a header of the request, from anybody.
        let cgi = get("REQUEST_METHOD").is_some_and(|method| !method.is_empty());
        Self {
            http: if cgi {
                String::new()
            } else {
                any("HTTP_PROXY", "http_proxy")
            },
            https: any("HTTPS_PROXY", "https_proxy"),
            none: any("NO_PROXY", "no_proxy"),
        }
    }

    /// The proxy for `to`, if one is to be used.
    ///
    /// # Errors
    /// `InvalidArgument` for a proxy that is no URL, `NotImplemented` for one that speaks something else.
    pub(crate) fn for_origin(&self, to: &Origin) -> Result<Option<Proxy>> {
        let proxy = if to.https { &self.https } else { &self.http };
        if proxy.is_empty() || to.is_loopback() || self.is_direct(to) {
            return Ok(None);
        }
        parse(proxy).map(Some)
    }

    fn is_direct(&self, to: &Origin) -> bool {
        let (host, port) = (to.host(), to.port());
        let address = parsed(host);
        let rules = self
            .none
            .split(',')
            .map(|rule| rule.trim().to_ascii_lowercase());
        rules.filter(|rule| !rule.is_empty()).any(|rule| {
            if rule == "*" {
                return true;
            }
            if let Some((network, bits)) = rule.split_once('/') {
                return match (parsed(network), bits.parse(), address) {
                    (Some(network), Ok(bits), Some(address)) => within(address, network, bits),
                    _ => false,
                };
            }
            let (name, wanted) = with_port(&rule);
            // A port alone names nobody.
            if name.is_empty() {
                return false;
            }
            if wanted.is_some_and(|wanted| wanted != port) {
                return false;
            }
            if let Some(rule) = parsed(name) {
                return address == Some(rule);
            }
            let name = match name.strip_prefix('*') {
                Some(rest) if rest.starts_with('.') => rest,
                _ => name,
            };
            match name.strip_prefix('.') {
                Some(_) => host.ends_with(name),
                None => host == name || host.ends_with(&format!(".{name}")),
            }
        })
    }
}

/// An address; one of IPv4 is the same in both of its forms.
fn parsed(text: &str) -> Option<IpAddr> {
    text.parse()
        .ok()
        .map(|address: IpAddr| address.to_canonical())
}

/// A rule's name or address, and its port.
fn with_port(rule: &str) -> (&str, Option<u16>) {
    if let Some(rest) = rule.strip_prefix('[')
        && let Some((address, port)) = rest.split_once(']')
    {
        return match port.strip_prefix(':').map(str::parse) {
            None if port.is_empty() => (address, None),
            Some(Ok(port)) => (address, Some(port)),
            // Mistyped it is nobody's: least of all the address's on every port.
            _ => (rule, None),
        };
    }
    match rule.rsplit_once(':') {
        // A bare IPv6 address has more than one colon.
        Some((name, port)) if !name.contains(':') => match port.parse() {
            Ok(port) => (name, Some(port)),
            Err(_) => (rule, None),
        },
        _ => (rule, None),
    }
}

fn within(address: IpAddr, network: IpAddr, bits: u32) -> bool {
    let bytes = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let (address, network) = (bytes(address), bytes(network));
    let width = u32::try_from(network.len() * 8).unwrap_or_default();
    address.len() == network.len()
        && bits <= width
        && (0..bits).all(|bit| {
            let (at, shift) = ((bit / 8) as usize, 7 - bit % 8);
            (address[at] ^ network[at]) >> shift & 1 == 0
        })
}

fn parse(text: &str) -> Result<Proxy> {
    let full = if text.contains("://") {
        text.to_owned()
    } else {
        format!("http://{text}")
    };
    let bad = |why: &str| {
        // Without what may be a password.
        let shown = full.rsplit('@').next().unwrap_or_default();
        Error::invalid_argument(format_args!("proxy {shown:?}: {why}"))
    };
    let url: Uri = full.parse().map_err(|_| bad("no URL"))?;
    let Some(kind) = url.scheme_str().and_then(Kind::of) else {
        let shown = bad("only http, https and socks5 proxies are supported");
        return Err(shown.reclass(types::Code::NotImplemented));
    };
    let rest = full.split_once("://").map_or("", |(_, rest)| rest);
    let behind = rest.find(['/', '?', '#']).map_or("", |at| &rest[at..]);
    if behind.contains('@') {
        return Err(bad(
            "a / in user or password is to be escaped, as are ? and #",
        ));
    }
    let authority = url.authority().ok_or_else(|| bad("no host"))?.as_str();
    let (user, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, authority),
    };
    let plain = url::parse(&format!("http://{host}/"))?;
    let name = plain.host().unwrap_or_default();
    let port = match (plain.port_u16(), host.strip_prefix(name)) {
        (Some(port), _) => port,
        (None, Some("" | ":")) => kind.port(),
        (None, _) => return Err(bad("no port")),
    };
    let user = user.map(|user| {
        let (name, secret) = user.split_once(':').unwrap_or((user, ""));
        (url::unescape(name), url::unescape(secret))
    });
    Ok(Proxy {
        kind,
        authority: format!("{name}:{port}"),
        user,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::Code;

    fn origin(text: &str) -> Origin {
        Origin::of(&text.parse().unwrap()).unwrap()
    }

    #[test]
    fn variables_are_read_in_both_cases() {
        let get = |set: &'static [(&str, &str)]| {
            Proxies::from_lookup(move |name| {
                let found = set.iter().find(|(n, _)| *n == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        let both = get(&[("HTTP_PROXY", "a"), ("http_proxy", "b"), ("no_proxy", "c")]);
        assert_eq!((both.http.as_str(), both.none.as_str()), ("a", "c"));
        let lower = get(&[("HTTPS_PROXY", ""), ("https_proxy", "b")]);
        assert_eq!(lower.https, "b");
        let cgi = get(&[
            ("REQUEST_METHOD", "GET"),
            ("HTTP_PROXY", "evil"),
            ("HTTPS_PROXY", "s"),
        ]);
        assert_eq!((cgi.http.as_str(), cgi.https.as_str()), ("", "s"));
        assert_eq!(get(&[]), Proxies::default());
    }

    #[test]
    fn hosts_that_are_reached_directly_are_told_as_go_does() {
        for (none, url, direct) in [
            ("", "https://r.example.test/", false),
            ("*", "https://r.example.test/", true),
            ("example.test", "https://r.example.test/", true),
            ("example.test", "https://example.test/", true),
            ("example.test", "https://badexample.test/", false),
            (".example.test", "https://example.test/", false),
            (".example.test", "https://r.example.test/", true),
            ("*.example.test", "https://r.example.test/", true),
            ("x, R.Example.Test ", "https://r.example.test/", true),
            ("r.example.test:443", "https://r.example.test/", true),
            ("r.example.test:5000", "https://r.example.test/", false),
            ("10.0.0.0/8", "https://10.1.2.3/", true),
            ("10.0.0.0/8", "https://11.1.2.3/", false),
            ("10.0.0.0/99", "https://10.1.2.3/", false),
            ("10.1.2.3", "https://10.1.2.3/", true),
            ("10.1.2.3:80", "https://10.1.2.3/", false),
            ("fd00::/8", "https://[fd00::1]/", true),
            ("fd00::1", "https://[fd00::1]/", true),
            ("[fd00::1]:443", "https://[fd00::1]/", true),
            ("[fd00::1]", "https://[fd00::1]/", true),
            ("[fd00::1]:https", "https://[fd00::1]/", false),
            ("[fd00::1]:99999", "https://[fd00::1]/", false),
            ("10.0.0.0/8", "https://r.example.test/", false),
            ("::ffff:10.1.2.3", "https://10.1.2.3/", true),
            ("10.0.0.0/8", "https://[::ffff:10.1.2.3]/", true),
            ("10.0.0.0/8", "https://[fd00::1]/", false),
            ("10.1.2.3/32,fd00::/129", "https://[fd00::1]/", false),
            ("*example.test", "https://r.example.test/", false),
            (":443", "https://r.example.test./", false),
            ("r.example.test:https", "https://r.example.test/", false),
            (" , ,,", "https://r.example.test/", false),
            (".example.test:443", "https://r.example.test/", true),
            ("", "https://127.9.9.9/", true),
            ("", "https://localhost.example.test/", false),
            ("", "https://127.0.0.1/", true),
            ("", "https://[::1]/", true),
            ("", "https://[::ffff:127.0.0.1]/", true),
            ("", "https://localhost/", true),
        ] {
            let proxies = Proxies {
                https: "proxy.example.test".into(),
                none: none.into(),
                ..Proxies::default()
            };
            let proxy = proxies.for_origin(&origin(url)).unwrap();
            assert_eq!(proxy.is_none(), direct, "{none} {url}");
        }
    }

    #[test]
    fn proxies_are_urls_with_or_without_a_scheme() {
        for (text, kind, authority, authorization) in [
            ("p.test", Kind::Http, "p.test:80", None),
            ("p.test:3128/", Kind::Http, "p.test:3128", None),
            (
                "http://u%40x:p@[fd00::1]:1",
                Kind::Http,
                "[fd00::1]:1",
                Some("Basic dUB4OnA="),
            ),
            (
                "HTTPS://u@p.test",
                Kind::Https,
                "p.test:443",
                Some("Basic dTo="),
            ),
            ("https://p.test:3129", Kind::Https, "p.test:3129", None),
            ("socks5://u:p@p.test", Kind::Socks, "p.test:1080", None),
            ("socks5h://[fd00::1]", Kind::Socks, "[fd00::1]:1080", None),
        ] {
            let proxy = parse(text).unwrap();
            assert_eq!((proxy.kind, proxy.authority.as_str()), (kind, authority));
            assert_eq!(proxy.authorization().as_deref(), authorization, "{text}");
            assert!(!proxy.name().contains(['[', ']']) && authority.contains(proxy.name()));
        }
        // It would be asked for the user's name, and told with half of the password.
        for text in ["http://me:12/34@p.test", "me:12#34@p.test", "me:12?@p.test"] {
            let error = parse(text).unwrap_err().to_string();
            assert!(
                error.contains("escaped") && !error.contains("12"),
                "{error}"
            );
        }
        let user = parse("socks5://u:p%3A@p.test").unwrap().user.unwrap();
        assert_eq!(user, ("u".to_owned(), "p:".to_owned()));
        let http = Proxies {
            http: "http://p.example.test".into(),
            ..Proxies::default()
        };
        assert!(
            http.for_origin(&origin("http://r.example.test/"))
                .unwrap()
                .is_some()
        );
        assert!(
            http.for_origin(&origin("https://r.example.test/"))
                .unwrap()
                .is_none()
        );
        for (text, code) in [
            ("socks4://u:secret@p.example.test", Code::NotImplemented),
            ("http://", Code::InvalidArgument),
            ("https://u:secret@", Code::InvalidArgument),
            ("socks5://u:secret@p.test:99999", Code::InvalidArgument),
            ("u:secret@a b", Code::InvalidArgument),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.is(code), "{error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
