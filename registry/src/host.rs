//! One way to a registry: its own server or a mirror, with the connections and the authorization.
//!
//! Invariant: credentials and headers of a host are for its origin, by scheme, name and port. A host
//! that may turn out to speak no TLS has two origins; it is the one or the other, and once it has shown
//! which, it stays that.

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
    let home = Home::of(reference.upstream(), opts, &configured)?;
    configured
        .into_iter()
        .map(|config| host((reference, &home), opts, config, &proxies).map(Arc::new))
        .collect()
}

/// The origins of the registry itself: of the server that its hosts file says it is, if that has its
/// name, else as its name and the options say.
struct Home(Vec<Origin>);

impl Home {
    fn of(upstream: &str, opts: &RegistryOpts, configured: &[HostConfig]) -> Result<Self> {
        let unsaid = HostConfig::default();
        // The server comes last.
        let own = configured
            .last()
            .filter(|server| is_named(server, upstream));
        let (main, plain) = address(upstream, opts, own.unwrap_or(&unsaid))?.faces()?;
        let faces = plain.into_iter().chain([main]);
        Ok(Self(faces.map(|face| face.origin).collect()))
    }

    /// Whether a host is the registry, whatever it turns out to speak.
    fn is(&self, main: &Face, plain: Option<&Face>) -> bool {
        let mut faces = plain.into_iter().chain([main]);
        faces.all(|face| self.0.contains(&face.origin))
    }

    /// Whether a host is called as the registry is.
    fn is_namesake(&self, face: &Face) -> bool {
        self.0.iter().any(|own| own.is_namesake(&face.origin))
    }
}

/// Whether a host of the hosts file has the name `upstream`.
fn is_named(config: &HostConfig, upstream: &str) -> bool {
    let Some(root) = &config.root else {
        return true;
    };
    let scheme = root.split_once("://").map_or("", |(scheme, _)| scheme);
    let origin = |text: &str| url::parse(text).and_then(|url| Origin::of(&url)).ok();
    let named = origin(&format!("{scheme}://{upstream}/"));
    named.is_some() && named == origin(root)
}

fn host(
    (reference, home): (&Reference, &Home),
    opts: &RegistryOpts,
    config: HostConfig,
    proxies: &Arc<Proxies>,
) -> Result<Host> {
    let address = address(reference.upstream(), opts, &config)?;
    let (main, plain) = address.faces()?;
    let name = address.rest.split('/').next().unwrap_or_default();
    let is_upstream = home.is(&main, plain.as_ref());
    // Who is asked for credentials is told its name: without the scheme it would be taken for the other.
    let is_known = is_upstream || !home.is_namesake(&main);
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
        (_, Some(authenticator)) if is_known => Source::Ask(Arc::clone(authenticator)),
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
        auth: Auth::new(
            source,
            name.to_owned(),
            reference.to_string(),
            config.token_servers,
        ),
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

impl Address {
    fn faces(&self) -> Result<(Face, Option<Face>)> {
        let main = Face::new(format!("{}://{}", self.scheme, self.rest))?;
        let plain = || Face::new(format!("http://{}", self.rest));
        let plain = self.may_be_plain.then(plain).transpose()?;
        Ok((main, plain))
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::{Answer, Authenticator, Credentials, Question};

    #[derive(Debug)]
    struct Nobody;

    #[async_trait::async_trait]
    impl Authenticator for Nobody {
        async fn answer(&self, _: &Question) -> Result<Answer> {
            Ok(Answer::Anonymous)
        }
    }

    /// What is sent to whom: the hosts that get the registry's credentials, and of the others those for
    /// which somebody is asked for some.
    fn told(reference: &str, text: &str, opts: &RegistryOpts) -> (Vec<String>, Vec<String>) {
        let reference: Reference = reference.parse().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join(reference.host());
        std::fs::create_dir(&own).unwrap();
        std::fs::write(own.join("hosts.toml"), text).unwrap();
        let mut opts = RegistryOpts {
            host_dirs: vec![dir.path().to_owned()],
            authenticator: Some(Arc::new(Nobody)),
            credentials: Some(Credentials {
                user: "u".into(),
                secret: "p".into(),
            }),
            ..opts.clone()
        };
        opts.headers.insert("x-key", "k".parse().unwrap());
        let (mut given, mut asked) = (Vec::new(), Vec::new());
        for host in hosts(&reference, &opts).unwrap() {
            let (root, source) = (host.root().to_owned(), host.auth.source());
            let is_upstream = matches!(source, Source::Fixed(_));
            assert_eq!(host.headers.contains_key("x-key"), is_upstream, "{root}");
            assert_eq!(host.namespace.is_none(), is_upstream, "{root}");
            match source {
                Source::Fixed(_) => given.push(root),
                Source::Ask(_) => asked.push(root),
                Source::None => {}
            }
        }
        (given, asked)
    }

    #[test]
    fn credentials_are_for_the_origin_of_the_registry() {
        let usual = RegistryOpts::default();
        let plain = RegistryOpts {
            plain_http: true,
            ..RegistryOpts::default()
        };
        let own: &[&str] = &["https://r.test/v2"];
        for (opts, reference, text, given, asked) in [
            (&usual, "r.test/a", "", own, &[][..]),
            // The same, written in another way.
            (
                &usual,
                "r.test/a",
                "server = \"https://R.test:443\"",
                &["https://R.test:443/v2"],
                &[],
            ),
            (&usual, "R.test:443/a", "server = \"r.test\"", own, &[]),
            // Not the same, though its name is.
            (&usual, "r.test/a", "[host.\"http://r.test\"]", own, &[]),
            (&usual, "r.test/a", "[host.\"http://r.test:443\"]", own, &[]),
            (
                &usual,
                "r.test:5000/a",
                "[host.\"http://r.test:5000\"]",
                &["https://r.test:5000/v2"],
                &[],
            ),
            // The hosts file says what the registry is.
            (
                &usual,
                "r.test/a",
                "server = \"http://r.test\"",
                &["http://r.test/v2"],
                &[],
            ),
            (
                &plain,
                "r.test/a",
                "[host.\"http://r.test\"]",
                &["http://r.test/v2"; 2],
                &[],
            ),
            (&plain, "r.test/a", "server = \"https://r.test\"", own, &[]),
            // Others have their own.
            (
                &usual,
                "r.test/a",
                "[host.\"https://m.test\"]\n[host.\"http://r.test:81\"]",
                own,
                &["https://m.test/v2", "http://r.test:81/v2"],
            ),
            (
                &usual,
                "r.test/a",
                "server = \"http://s.test\"",
                &[],
                &["http://s.test/v2"],
            ),
            (
                &usual,
                "docker.io/a",
                "server = \"https://docker.io\"\n[host.\"https://registry-1.docker.io\"]",
                &["https://registry-1.docker.io/v2"],
                &["https://docker.io/v2"],
            ),
        ] {
            let found = told(reference, text, opts);
            let owned = |all: &[&str]| all.iter().map(ToString::to_string).collect::<Vec<_>>();
            assert_eq!(found, (owned(given), owned(asked)), "{reference}: {text}");
        }
    }
}
