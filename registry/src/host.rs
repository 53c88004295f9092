//! One way to a registry: its own server or a mirror, with the connections and the authorization.
//!
//! Invariant: credentials and headers of a host are for its origin. A host that may turn out to
//! speak no TLS has two origins; it is the one or the other, and once it has shown which, it stays that.

use std::sync::{Arc, OnceLock};

use http::{HeaderMap, Uri};
use types::{Error, Result};

use crate::auth::Auth;
use crate::credentials::Source;
use crate::hosts::{self, Capabilities, HostConfig};
use crate::http::Http;
use crate::opts::{RegistryOpts, TlsFiles};
use crate::proxy::Proxies;
use crate::reference::Reference;
use crate::tls::Trust;
use crate::url::{self, Origin, pair};

/// A host that serves the registry's API.
#[derive(Debug)]
pub(crate) struct Host {
    main: Face,
    /// The same without TLS, for when the server does not speak it.
    plain: Option<Face>,
    /// Whether it speaks TLS, since that has shown itself.
    speaks_tls: OnceLock<bool>,
    /// The registry that is meant, told to a mirror.
    namespace: Option<String>,
    pub(crate) capabilities: Capabilities,
    /// Sent with every request to it.
    pub(crate) headers: HeaderMap,
    pub(crate) http: Http,
    pub(crate) auth: Auth,
}

/// How a host is addressed.
#[derive(Debug)]
struct Face {
    /// Root of its API, `https://example.test/v2`.
    root: String,
    origin: Origin,
}

impl Face {
    fn new(root: String) -> Result<Self> {
        let origin = Origin::of(&url::parse(&root)?)?;
        Ok(Self { root, origin })
    }
}

impl Host {
    fn face(&self) -> &Face {
        let is_plain = self.speaks_tls.get() == Some(&false);
        let plain = self.plain.as_ref().filter(|_| is_plain);
        plain.unwrap_or(&self.main)
    }

    /// Root of its API.
    pub(crate) fn root(&self) -> &str {
        &self.face().root
    }

    /// What credentials are for.
    pub(crate) fn origin(&self) -> &Origin {
        &self.face().origin
    }

    /// The URL of `path` below the root.
    pub(crate) fn url(&self, path: &str) -> Result<Uri> {
        let root = self.root();
        match &self.namespace {
            None => url::parse(&format!("{root}/{path}")),
            Some(namespace) => {
                let separator = if path.contains('?') { '&' } else { '?' };
                let namespace = pair("ns", namespace);
                url::parse(&format!("{root}/{path}{separator}{namespace}"))
            }
        }
    }

    /// It answered at its origin: if by TLS, then nobody can talk us out of that any more.
    pub(crate) fn answered(&self, at: &Origin) {
        if at.https {
            self.speaks_tls.get_or_init(|| true);
        }
    }

    /// Gives TLS up, as its origin spoke none; false where that is not allowed. Requests that ran into
    /// it together all may call this.
    pub(crate) fn become_plain(&self) -> bool {
        if self.plain.is_none() {
            return false;
        }
        let speaks_tls = self.speaks_tls.get_or_init(|| {
            tracing::info!(host = self.main.root, "no TLS there, going on without");
            false
        });
        !speaks_tls
    }
}

/// The hosts by which `reference` is reached, in the order of their configuration. Reads files:
/// blocks.
///
/// # Errors
/// `InvalidArgument` for options that make no sense, those of the file system.
pub(crate) fn hosts(reference: &Reference, opts: &RegistryOpts) -> Result<Vec<Arc<Host>>> {
    if !matches!(opts.default_scheme.as_str(), "" | "http" | "https") {
        return Err(Error::invalid_argument(format_args!(
            "scheme {:?} is neither http nor https",
            opts.default_scheme
        )));
    }
    let found = hosts::load(&opts.host_dirs, reference.host())
        .map_err(|error| error.ctx(format!("hosts of {}", reference.host())))?;
    let configured = found.unwrap_or_else(|| vec![HostConfig::default()]);
    let proxies = Arc::new(opts.proxies.clone().unwrap_or_else(Proxies::from_env));
    configured
        .into_iter()
        .map(|config| host(reference, opts, config, &proxies).map(Arc::new))
        .collect()
}

fn host(
    reference: &Reference,
    opts: &RegistryOpts,
    config: HostConfig,
    proxies: &Arc<Proxies>,
) -> Result<Host> {
    let upstream = reference.upstream();
    let address = address(upstream, opts, &config)?;
    let main = Face::new(format!("{}://{}", address.scheme, address.rest))?;
    let plain = address
        .may_be_plain
        .then(|| Face::new(format!("http://{}", address.rest)))
        .transpose()?;
    let name = address
        .rest
        .split('/')
        .next()
        .unwrap_or_default()
        .to_owned();
    let is_upstream = name == upstream;
    let mut limits = opts.limits;
    limits.connect = config.dial_timeout.unwrap_or(limits.connect);
    let tls = &opts.tls;
    let trust = Trust {
        skip_verify: address.skip_verify,
        only: tls.ca.iter().cloned().collect(),
        also: config.ca,
        client: (tls.cert.iter().map(|cert| (cert.clone(), tls.key.clone())))
            .chain(config.client)
            .collect(),
    };
    let source = match (&opts.credentials, &opts.authenticator) {
        (Some(credentials), _) if is_upstream => Source::Fixed(credentials.clone()),
        (_, Some(authenticator)) => Source::Ask(Arc::clone(authenticator)),
        _ => Source::None,
    };
    Ok(Host {
        main,
        plain,
        speaks_tls: OnceLock::new(),
        namespace: (!is_upstream).then(|| reference.host().to_owned()),
        capabilities: config.capabilities,
        headers: headers(opts, &config.headers, is_upstream),
        http: Http::new(limits, trust, Arc::clone(proxies), opts.watch.clone()),
        auth: Auth::new(source, name, reference.to_string()),
    })
}

/// Where a host is, and how safely.
struct Address {
    scheme: &'static str,
    /// Everything after the scheme.
    rest: String,
    /// Without TLS when the server does not speak it.
    may_be_plain: bool,
    skip_verify: bool,
}

fn address(upstream: &str, opts: &RegistryOpts, config: &HostConfig) -> Result<Address> {
    let tls_said = opts.tls != TlsFiles::default()
        || opts.skip_verify
        || config.skip_verify.is_some()
        || !config.ca.is_empty()
        || !config.client.is_empty();
    let skip_verify = config.skip_verify.unwrap_or(opts.skip_verify);
    if let Some(root) = &config.root {
        let origin = Origin::of(&url::parse(root)?)?;
        // Parity: core/remotes/docker/config/hosts.go: who configures TLS for an http host wants it
        // tried; port 80 is plain for sure.
        let may_be_plain = !origin.https && tls_said && origin.port() != 80;
        let rest = root.split_once("://").map_or("", |(_, rest)| rest);
        return Ok(Address {
            scheme: if may_be_plain {
                "https"
            } else {
                origin.scheme()
            },
            rest: rest.to_owned(),
            may_be_plain,
            skip_verify,
        });
    }
    let origin = Origin::of(&url::parse(&format!("http://{upstream}/"))?)?;
    // Only with a port on this machine it is open which of the two is meant.
    let open = opts.default_scheme.is_empty()
        && !opts.plain_http
        && origin.is_loopback()
        && upstream != origin.host()
        && origin.port() != 443;
    let is_plain =
        opts.plain_http || opts.default_scheme == "http" || (open && origin.port() == 80);
    Ok(Address {
        scheme: if is_plain { "http" } else { "https" },
        rest: format!("{upstream}/v2"),
        may_be_plain: open && !is_plain,
        // Nobody issues certificates for such a name.
        skip_verify: skip_verify || (open && !tls_said),
    })
}

/// The operation's headers where they are for this host, under its own.
///
/// Other than core/remotes/docker/resolver.go, which tells them to mirrors, too: keys of registries
/// have many names besides `authorization`, and what a mirror is to be told its hosts file says.
fn headers(opts: &RegistryOpts, own: &HeaderMap, is_upstream: bool) -> HeaderMap {
    let mut headers = match is_upstream {
        true => opts.headers.clone(),
        false => HeaderMap::new(),
    };
    for value in headers.values_mut() {
        // People put tokens there.
        value.set_sensitive(true);
    }
    for name in own.keys() {
        headers.remove(name);
    }
    for (name, value) in own {
        headers.append(name.clone(), value.clone());
    }
    headers
}
