//! Telling what registries are asked and what they answer, for people who look for a fault.
//!
//! Invariant: no secret is told: neither sensitive headers nor the queries of URLs, which may be
//! signatures, nor any body.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::header::{COOKIE, LOCATION, SET_COOKIE};
use http::{HeaderMap, Method, Request, Response, Uri};
use hyper::body::Incoming;
use types::Error;

use crate::body::Outgoing;
use crate::url;

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
    let field = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        let text = value.to_str().unwrap_or("(no text)");
        let shown = match name {
            _ if value.is_sensitive() => "(secret)".to_owned(),
            &COOKIE | &SET_COOKIE => "(secret)".to_owned(),
            &LOCATION => text.split('?').next().unwrap_or_default().to_owned(),
            _ => text.to_owned(),
        };
        format!("\n{mark} {name}: {shown}")
    };
    headers.iter().map(field).collect()
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("heads", &self.heads)
            .field("times", &self.times)
            .finish_non_exhaustive()
    }
}
