//! `hosts.toml`: by which hosts a registry is reached, and how.
//!
//! Invariant: the parser is pure, text to value; it keeps the order of the file, and the registry's
//! own server comes last. `load` finds the directory and reads it.

mod load;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use toml::Spanned;
use types::{Error, Result};

pub use load::load;

use crate::url::{self, Origin};

/// Largest `hosts.toml` that is read.
pub const MAX_HOSTS_FILE: u64 = 1 << 20;
/// What can be said of a host: the fields of [`Table`].
const KEYS: [&str; 8] = [
    "capabilities",
    "ca",
    "client",
    "skip_verify",
    "header",
    "override_path",
    "dial_timeout",
    "token_servers",
];
/// Hosts of one file.
const MAX_HOSTS: usize = 64;

/// What a host may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Blobs, and manifests by digest.
    pub pull: bool,
    /// What a tag points at.
    pub resolve: bool,
    /// Taking blobs and manifests.
    pub push: bool,
    /// Which manifests refer to another one.
    pub referrers: bool,
}

impl Capabilities {
    /// Everything: what a host can do of which nothing is said.
    pub const ALL: Self = Self {
        pull: true,
        resolve: true,
        push: true,
        referrers: true,
    };
}

/// One host as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostConfig {
    /// Root of its API, without a slash at the end; `None`: the server that the reference names.
    pub root: Option<String>,
    /// What it may be asked for.
    pub capabilities: Capabilities,
    /// Files with certificates that are trusted besides the system's.
    pub ca: Vec<PathBuf>,
    /// Files with client certificates, each with that of its key if that is another one.
    pub client: Vec<(PathBuf, Option<PathBuf>)>,
    /// Accept any certificate; `None`: nothing is said.
    pub skip_verify: Option<bool>,
    /// Headers sent with each request to it.
    pub headers: HeaderMap,
    /// How long a connection may take.
    pub dial_timeout: Option<Duration>,
    /// Where a password for it may be taken besides servers of its own domain, `https://auth.example.test`.
    pub token_servers: Vec<String>,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self {
            root: None,
            capabilities: Capabilities::ALL,
            ca: Vec::new(),
            client: Vec::new(),
            skip_verify: None,
            headers: HeaderMap::new(),
            dial_timeout: None,
            token_servers: Vec::new(),
        }
    }
}

#[derive(Default, Deserialize)]
struct File {
    server: Option<String>,
    #[serde(flatten)]
    top: Table,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct Table {
    capabilities: Vec<String>,
    ca: Option<Many>,
    client: Option<Pairs>,
    skip_verify: Option<bool>,
    header: BTreeMap<String, Many>,
    override_path: bool,
    dial_timeout: String,
    token_servers: Option<Many>,
}

#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum Many {
    One(String),
    Some(Vec<String>),
}

impl Many {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Some(texts) => texts,
        }
    }
}

#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum Pairs {
    One(String),
    Some(Vec<Pair>),
}

#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum Pair {
    File(String),
    Files([String; 2]),
}

/// The hosts of a `hosts.toml` that lies in `dir`, in the order in which they are to be tried.
///
/// # Errors
/// `InvalidArgument` with the place in the text.
pub fn parse(text: &str, dir: &Path) -> Result<Vec<HostConfig>> {
    let bad = |error: toml::de::Error| Error::invalid_argument(error.to_string().trim());
    // In two steps, as a flattened table would lose the places of keys.
    let mirrors: Mirrors = toml::from_str(text).map_err(bad)?;
    let file: File = toml::from_str(text).map_err(bad)?;
    let mut in_order: Vec<_> = mirrors.host.into_iter().collect();
    in_order.sort_by_key(|(name, _)| name.span().start);
    if in_order.len() > MAX_HOSTS {
        return Err(Error::resource_exhausted(format_args!(
            "more than {MAX_HOSTS} hosts"
        )));
    }
    let mut hosts = Vec::new();
    for (name, table) in in_order {
        let name = name.into_inner();
        hosts.push(host(&name, table, dir).map_err(|e| e.ctx(format!("host {name:?}")))?);
    }
    hosts.push(host(
        file.server.as_deref().unwrap_or_default(),
        file.top,
        dir,
    )?);
    Ok(hosts)
}

/// Keys of a `hosts.toml` that mean nothing, `host."https://m.test".capabilites`: slips, or words of
/// another version. Nothing is told of a text that is no TOML.
pub fn unknown_keys(text: &str) -> Vec<String> {
    let Ok(file) = text.parse::<toml::Table>() else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (key, value) in &file {
        match (key.as_str(), value.as_table()) {
            ("server", _) => {}
            ("host", Some(hosts)) => {
                for (name, host) in hosts {
                    let keys = host.as_table().into_iter().flat_map(toml::Table::keys);
                    let unknown = keys.filter(|key| !KEYS.contains(&key.as_str()));
                    found.extend(unknown.map(|key| format!("host.{name:?}.{key}")));
                }
            }
            _ if KEYS.contains(&key.as_str()) => {}
            _ => found.push(key.clone()),
        }
    }
    found
}

#[derive(Deserialize)]
struct Mirrors {
    #[serde(default)]
    host: BTreeMap<Spanned<String>, Table>,
}

fn host(server: &str, table: Table, dir: &Path) -> Result<HostConfig> {
    let files = |many: Option<Many>| {
        let names = many.map(Many::into_vec).unwrap_or_default();
        names.into_iter().map(|name| dir.join(name)).collect()
    };
    let pairs = match table.client {
        None => Vec::new(),
        Some(Pairs::One(file)) => vec![Pair::File(file)],
        Some(Pairs::Some(pairs)) => pairs,
    };
    let client = pairs.into_iter().map(|pair| match pair {
        Pair::File(file) => (dir.join(file), None),
        Pair::Files([cert, key]) => (dir.join(cert), Some(dir.join(key))),
    });
    Ok(HostConfig {
        root: root(server, table.override_path)?,
        capabilities: capabilities(&table.capabilities)?,
        ca: files(table.ca),
        client: client.collect(),
        skip_verify: table.skip_verify,
        headers: headers(table.header)?,
        dial_timeout: timeout(&table.dial_timeout)?,
        token_servers: origins(table.token_servers)?,
    })
}

/// URLs or bare hosts, of which nothing but the origin means anything.
fn origins(servers: Option<Many>) -> Result<Vec<String>> {
    let servers = servers.map(Many::into_vec).unwrap_or_default();
    let origin = |server: String| {
        let full = match server.contains("://") {
            true => server,
            false => format!("https://{server}"),
        };
        Ok(Origin::of(&url::parse(&full)?)?.to_string())
    };
    servers.into_iter().map(origin).collect()
}

/// The root of the API of `server`, a URL or a bare host.
fn root(server: &str, override_path: bool) -> Result<Option<String>> {
    if server.is_empty() {
        return Ok(None);
    }
    let full = if server.contains("://") {
        server.to_owned()
    } else {
        format!("https://{server}")
    };
    let parsed = url::parse(&full)?;
    if parsed.query().is_some() {
        return Err(Error::invalid_argument(format_args!(
            "{server:?} has a query"
        )));
    }
    let mut path = String::new();
    for part in parsed.path().split('/').filter(|p| !matches!(*p, "" | ".")) {
        if part == ".." {
            return Err(Error::invalid_argument(format_args!(
                "{server:?} has a path with \"..\""
            )));
        }
        path = format!("{path}/{part}");
    }
    if !override_path && !path.ends_with("/v2") {
        path += "/v2";
    }
    let origin = Origin::of(&parsed)?;
    let authority = parsed.authority().map_or("", |a| a.as_str());
    Ok(Some(format!("{}://{authority}{path}", origin.scheme())))
}

fn capabilities(names: &[String]) -> Result<Capabilities> {
    if names.is_empty() {
        return Ok(Capabilities::ALL);
    }
    let mut found = Capabilities {
        pull: false,
        resolve: false,
        push: false,
        referrers: false,
    };
    for name in names {
        match name.to_ascii_lowercase().as_str() {
            "pull" => found.pull = true,
            "resolve" => found.resolve = true,
            "push" => found.push = true,
            "referrers" => found.referrers = true,
            _ => {
                return Err(Error::invalid_argument(format_args!(
                    "unknown capability {name}"
                )));
            }
        }
    }
    Ok(found)
}

fn headers(table: BTreeMap<String, Many>) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (name, values) in table {
        let key: HeaderName = name
            .parse()
            .map_err(|_| Error::invalid_argument(format_args!("header name {name:?}")))?;
        for value in values.into_vec() {
            let mut value = HeaderValue::from_str(&value)
                .map_err(|_| Error::invalid_argument(format_args!("value of header {name}")))?;
            // People put tokens there.
            value.set_sensitive(true);
            headers.append(key.clone(), value);
        }
    }
    Ok(headers)
}

fn timeout(text: &str) -> Result<Option<Duration>> {
    if text.is_empty() {
        return Ok(None);
    }
    let nanos = types::go_duration(text).map_err(Error::invalid_argument)?;
    match u64::try_from(nanos) {
        Ok(nanos) if nanos > 0 => Ok(Some(Duration::from_nanos(nanos))),
        _ => Err(Error::invalid_argument(format_args!(
            "dial_timeout {text:?} is not positive"
        ))),
    }
}
