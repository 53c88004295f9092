//! One way to a registry: its own server or a mirror, with the connections and the authorization.

use http::{HeaderMap, Uri};
use types::Result;

use crate::auth::Auth;
use crate::http::Http;
use crate::opts::Credentials;
use crate::url::{self, Origin};

/// A host that serves the registry's API.
#[derive(Debug)]
pub(crate) struct Host {
    /// Root of its API, `https://example.test/v2`.
    pub(crate) base: String,
    /// Sent with every request to it.
    pub(crate) headers: HeaderMap,
    pub(crate) http: Http,
    pub(crate) auth: Auth,
}

impl Host {
    pub(crate) fn new(base: String, http: Http, credentials: Option<Credentials>) -> Result<Self> {
        let origin = Origin::of(&url::parse(&base)?)?;
        Ok(Self {
            base,
            headers: HeaderMap::new(),
            http,
            auth: Auth::new(origin, credentials),
        })
    }

    /// The URL of `path` below the root.
    pub(crate) fn url(&self, path: &str) -> Result<Uri> {
        url::parse(&format!("{}/{path}", self.base))
    }
}
