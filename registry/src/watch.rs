//! Telling what registries are asked and what they answer, for people who look for a fault.
//!
//! Invariant: no secret is told: neither sensitive headers nor those that are called like one, nor user
//! information or queries of URLs, which may be signatures, nor any body. A text has [`MAX_TOLD`] bytes
//! at most: whoever is told may keep some.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::header::{
    CONTENT_LOCATION, HeaderName, HeaderValue, LOCATION, PROXY_AUTHENTICATE, WWW_AUTHENTICATE,
};
use http::{HeaderMap, Method, Request, Response, Uri};
use hyper::body::Incoming;
use types::Error;

use crate::body::Outgoing;
use crate::url;

/// Longest text that is told: a head may have a megabyte.
const MAX_TOLD: usize = 16 * 1024;
/// Longest value of a header that is told.
const MAX_VALUE: usize = 1024;
/// In names of headers whose values are secrets.
const SECRETS: [&str; 10] = [
    "auth",
    "token",
    "secret",
    "key",
    "cookie",
    "session",
    "password",
    "signature",
    "credential",
    "jwt",
];

/// Who is told. Called from the request's own task: it must not block.
#[derive(Clone)]
pub struct Watch {
    heads: bool,
    times: bool,
    tell: Arc<dyn Fn(String) + Send + Sync>,
}

impl Watch {
    /// Tells `tell` the heads of requests and answers, or how long each took, or both; lines without an
    /// end of line.
    pub fn new(heads: bool, times: bool, tell: impl Fn(String) + Send + Sync + 'static) -> Self {
        Self {
            heads,
            times,
            tell: Arc::new(tell),
        }
    }

    pub(crate) fn asked(&self, request: &Request<Outgoing>) {
        if self.heads {
            let line = line(request.method(), request.uri());
            (self.tell)(format!("> {line}{}", fields('>', request.headers())));
        }
    }

    pub(crate) fn answered(&self, shown: &str, answer: &Response<Incoming>, took: Duration) {
        let status = answer.status();
        if self.heads {
            (self.tell)(format!("< {status}{}", fields('<', answer.headers())));
        }
        if self.times {
            (self.tell)(format!("{shown}: {status} after {took:.1?}"));
        }
    }

    pub(crate) fn failed(&self, shown: &str, error: &Error, took: Duration) {
        (self.tell)(format!("{shown}: {error} after {took:.1?}"));
    }
}

fn line(method: &Method, uri: &Uri) -> String {
    format!("{method} {}", url::shown(uri))
}

fn fields(mark: char, headers: &HeaderMap) -> String {
    let mut told = String::new();
    for (name, value) in headers {
        let field = format!("\n{mark} {name}: {}", shown(name, value));
        if told.len() + field.len() > MAX_TOLD {
            return format!("{told}\n{mark} (and more)");
        }
        told += &field;
    }
    told
}

fn shown(name: &HeaderName, value: &HeaderValue) -> String {
    let asks = [WWW_AUTHENTICATE, PROXY_AUTHENTICATE].contains(name);
    let is_called_one = SECRETS.iter().any(|part| name.as_str().contains(part));
    if value.is_sensitive() || (is_called_one && !asks) {
        return "(secret)".to_owned();
    }
    // Only visible ASCII is text here.
    let text = value.to_str().unwrap_or("(no text)");
    let (text, more) = match text.get(..MAX_VALUE) {
        Some(text) => (text, "..."),
        None => (text, ""),
    };
    let mut text = url::masked(text);
    if [LOCATION, CONTENT_LOCATION].contains(name) {
        // Also one that is relative.
        let path = text.split(['?', '#']).next().unwrap_or_default();
        text = path.to_owned();
    }
    text + more
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("heads", &self.heads)
            .field("times", &self.times)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_a_head_has_an_end_and_no_secret() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("location", "https://me:hidden@h/p?q=hidden"),
            ("content-location", "p?q=hidden"),
            ("link", "</v2/?hidden>; rel=\"next\""),
            ("x-amz-security-token", "hidden"),
            ("private-key", "hidden"),
            ("set-cookie", "hidden"),
            (
                "www-authenticate",
                "Bearer realm=\"https://a/t?k=hidden\",service=\"s\"",
            ),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        let told = fields('<', &headers);
        assert!(!told.contains("hidden"), "{told}");
        for part in ["https://h/p", "content-location: p", "service=\"s\""] {
            assert!(told.contains(part), "{told}");
        }
        headers.insert("etag", "x".repeat(1 << 20).parse().unwrap());
        let told = fields('<', &headers);
        assert!(
            told.len() < MAX_VALUE + 500 && told.contains("x..."),
            "{told}"
        );
        for n in 0..1000 {
            headers.append(
                "warning",
                format!("{n}{}", "y".repeat(900)).parse().unwrap(),
            );
        }
        let told = fields('<', &headers);
        assert!(told.len() < MAX_TOLD + 20 && told.ends_with("(and more)"));
    }
}
