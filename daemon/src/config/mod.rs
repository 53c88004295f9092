//! The daemon's configuration: one struct per section, defaults in one place.
//!
//! Invariant: a value that exists here is valid; everything that can be refused was refused by
//! [`load`] before anything was opened. Read by `main` and by the assembly (`ground` … `face`),
//! each section by its own builder and by nobody else.

mod checks;
mod duration;
mod imports;
mod migrate;
mod places;
mod plugins;
mod proxies;
mod read;
mod seen;
mod snapshotters;
mod unknown;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use types::{Error, Result};

pub(crate) use plugins::{
    BinDir, Cni, Diff, ErofsDiffer, Metadata, Scheduler, Sharing, Tasks, Transfer, Walking,
};
pub(crate) use proxies::{ProxyKind, ProxyPlugin};
pub(crate) use read::{Loaded, Overrides, load, migrated};
pub(crate) use seen::{Metrics, Restart};
pub(crate) use snapshotters::{Blockfile, Erofs, Overlay, RootPath};

/// Where the configuration is looked for when no path is given.
pub(crate) const DEFAULT_PATH: &str = "/etc/containerd/config.toml";
/// What the default imports: it is read, too, when there is no file at the path above.
pub(crate) const DROP_INS: &str = "/etc/containerd/conf.d/*.toml";
/// The newest version of the file format that is known here.
pub(crate) const VERSION: i64 = 4;
/// Version that `config default` prints: the newest one that older daemons can read, too.
const PRINTED_VERSION: i64 = 3;
/// Largest message in either direction, as in Go.
const MESSAGE_SIZE: usize = 16 << 20;

/// All of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Config {
    /// Version of the file format; 0 when the file does not say.
    pub(crate) version: i64,
    /// What survives a reboot.
    pub(crate) root: PathBuf,
    /// What need not.
    pub(crate) state: PathBuf,
    /// `oom_score_adj` of the daemon; 0 leaves it alone.
    pub(crate) oom_score: i32,
    /// URIs of plugins that shall not run.
    pub(crate) disabled_plugins: Vec<String>,
    /// URIs of plugins without which the daemon shall not run.
    pub(crate) required_plugins: Vec<String>,
    /// More files, merged over this one.
    pub(crate) imports: Vec<String>,
    /// The log.
    pub(crate) debug: Debug,
    /// The main socket.
    pub(crate) grpc: Grpc,
    /// The shims' socket.
    pub(crate) ttrpc: Ttrpc,
    /// What is counted.
    pub(crate) metrics: Metrics,
    /// Programs that layers of other media types go through, by id.
    pub(crate) stream_processors: BTreeMap<String, StreamProcessor>,
    /// Plugins that other programs are, by id.
    pub(crate) proxy_plugins: BTreeMap<String, ProxyPlugin>,
    /// Sections of the plugins, by URI.
    pub(crate) plugins: BTreeMap<String, toml::Table>,
}

impl Config {
    /// The default as a file: a copy of it goes on to read what else there may be.
    pub(crate) fn starter() -> Self {
        Self {
            imports: vec![DROP_INS.into()],
            ..Self::default()
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            version: PRINTED_VERSION,
            root: "/var/lib/containerd".into(),
            state: "/run/containerd".into(),
            oom_score: 0,
            disabled_plugins: Vec::new(),
            required_plugins: Vec::new(),
            imports: Vec::new(),
            debug: Debug::default(),
            grpc: Grpc::default(),
            ttrpc: Ttrpc::default(),
            metrics: Metrics::default(),
            stream_processors: BTreeMap::new(),
            proxy_plugins: BTreeMap::new(),
            plugins: BTreeMap::new(),
        }
    }
}

/// `[stream_processors.<id>]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct StreamProcessor {
    /// Media types that the program takes.
    pub(crate) accepts: Vec<String>,
    /// Media type of what it makes of them.
    pub(crate) returns: String,
    /// The program.
    pub(crate) path: PathBuf,
    /// Its arguments.
    pub(crate) args: Vec<String>,
    /// `NAME=value`, besides the daemon's own environment.
    pub(crate) env: Vec<String>,
}

/// `[debug]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Debug {
    /// Least level that is logged; empty: info.
    pub(crate) level: Level,
    /// How a line looks.
    pub(crate) format: Format,
    /// Path of the socket for those who look into the daemon; empty: none.
    pub(crate) address: String,
    /// Its owner.
    pub(crate) uid: u32,
    /// Its group.
    pub(crate) gid: u32,
}

/// Level of the log, in the words of the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// Everything.
    Trace,
    /// What a developer wants.
    Debug,
    /// What an operator wants.
    #[default]
    #[serde(alias = "")]
    Info,
    /// What an operator should look into.
    #[serde(alias = "warning")]
    Warn,
    /// What failed.
    Error,
    /// As `error`: there is nothing above it here.
    Fatal,
    /// As `error`.
    Panic,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    /// `time=… level=… msg=…`
    #[default]
    #[serde(alias = "")]
    Text,
    /// One JSON object a line.
    Json,
    /// Fields for journald.
    Journald,
}

/// `[grpc]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Grpc {
    /// Path of the socket.
    pub(crate) address: String,
    /// Its owner.
    pub(crate) uid: u32,
    /// Its group.
    pub(crate) gid: u32,
    /// Longest message that is taken.
    pub(crate) max_recv_message_size: usize,
    /// Longest message that is sent.
    pub(crate) max_send_message_size: usize,
}

impl Default for Grpc {
    fn default() -> Self {
        Self {
            address: "/run/containerd/containerd.sock".into(),
            uid: 0,
            gid: 0,
            max_recv_message_size: MESSAGE_SIZE,
            max_send_message_size: MESSAGE_SIZE,
        }
    }
}

/// `[ttrpc]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Ttrpc {
    /// Path of the socket; empty: that of gRPC with `.ttrpc` behind it.
    pub(crate) address: String,
    /// Its owner.
    pub(crate) uid: u32,
    /// Its group.
    pub(crate) gid: u32,
}

impl Config {
    /// The stream processors, as the differ takes them.
    pub(crate) fn processors(&self) -> Vec<diff::Processor> {
        let one = |(id, one): (&String, &StreamProcessor)| diff::Processor {
            id: id.clone(),
            accepts: one.accepts.clone(),
            returns: one.returns.clone(),
            path: one.path.clone(),
            args: one.args.clone(),
            env: one.env.clone(),
        };
        self.stream_processors.iter().map(one).collect()
    }

    /// The section of plugin `uri`. It was checked when the file was read.
    ///
    /// # Errors
    /// `InvalidArgument` when a value does not fit.
    pub(crate) fn section<T: serde::de::DeserializeOwned>(&self, uri: &str) -> Result<T> {
        let table = self.plugins.get(uri).cloned().unwrap_or_default();
        table.try_into().map_err(|e: toml::de::Error| {
            Error::invalid_argument(format_args!("plugin {uri:?}: {}", e.message()))
        })
    }

    /// True when plugin `uri` is not disabled.
    pub(crate) fn enabled(&self, uri: &str) -> bool {
        !names(&self.disabled_plugins, uri)
    }

    /// True when plugin `uri` must work.
    pub(crate) fn required(&self, uri: &str) -> bool {
        names(&self.required_plugins, uri)
    }

    /// Checks that each required plugin is among those that work.
    ///
    /// # Errors
    /// `FailedPrecondition` with the first that is not.
    pub(crate) fn check_required(&self, working: &[String]) -> Result<()> {
        let works = |name: &String| {
            working
                .iter()
                .any(|uri| names(std::slice::from_ref(name), uri))
        };
        match self.required_plugins.iter().find(|name| !works(name)) {
            None => Ok(()),
            Some(name) => Err(Error::failed_precondition(format_args!(
                "required plugin {name:?} is not there"
            ))),
        }
    }

    /// Path of the ttrpc socket.
    pub(crate) fn ttrpc_address(&self) -> String {
        match self.ttrpc.address.as_str() {
            "" => format!("{}.ttrpc", self.grpc.address),
            given => given.to_owned(),
        }
    }

    /// As TOML, with the sections of all plugins in full.
    ///
    /// # Errors
    /// `InvalidArgument` when a plugin's section does not fit.
    pub(crate) fn to_toml(&self) -> Result<String> {
        let mut full = self.clone();
        full.plugins = plugins::complete(&self.plugins).map_err(|(_, error)| error)?;
        toml::to_string_pretty(&full).map_err(|e| Error::internal(e).ctx("encode config"))
    }

    /// Checks what no single value shows.
    fn validate(&self) -> Result<(), Bad> {
        let bad = |path: &[&str], text: String| {
            let path = path.iter().map(|&key| key.to_owned()).collect();
            Err(Bad(path, Error::invalid_argument(text)))
        };
        for (key, path) in [("root", &self.root), ("state", &self.state)] {
            if path.as_os_str().is_empty() {
                return bad(&[key], "root and state must not be empty".into());
            }
        }
        if self.root == self.state {
            let text = format!("root and state must be different paths: {:?}", self.root);
            return bad(&["state"], text);
        }
        self.validate_sockets()?;
        for (id, plugin) in &self.proxy_plugins {
            let path = |key: &str| vec!["proxy_plugins".to_owned(), id.clone(), key.to_owned()];
            plugin.check(id).map_err(|(key, e)| Bad(path(key), e))?;
        }
        for (key, size) in [
            ("max_recv_message_size", self.grpc.max_recv_message_size),
            ("max_send_message_size", self.grpc.max_send_message_size),
        ] {
            if size == 0 {
                let text = format!("{key} must be greater than zero");
                return bad(&["grpc", key], text);
            }
        }
        if !self.metrics.address.is_empty() {
            let path = || vec!["metrics".to_owned(), "address".to_owned()];
            crate::web::address(&self.metrics.address).map_err(|e| Bad(path(), e))?;
        }
        if !(-1000..=1000).contains(&self.oom_score) {
            let text = format!("oom_score {} is not between -1000 and 1000", self.oom_score);
            return bad(&["oom_score"], text);
        }
        Ok(())
    }

    /// Each socket has a path of its own, which the kernel can take.
    fn validate_sockets(&self) -> Result<(), Bad> {
        let bad = |key: &str, text: String| {
            let path = vec![key.to_owned(), "address".to_owned()];
            Err(Bad(path, Error::invalid_argument(text)))
        };
        let (grpc, ttrpc) = (&self.grpc.address, self.ttrpc_address());
        if grpc.is_empty() {
            return bad("grpc", "grpc address must not be empty".into());
        }
        // It follows from the other one unless it was said.
        let of_ttrpc = match self.ttrpc.address.is_empty() {
            true => "grpc",
            false => "ttrpc",
        };
        let all = [
            ("grpc", "grpc", grpc),
            ("ttrpc", of_ttrpc, &ttrpc),
            ("debug", "debug", &self.debug.address),
        ];
        for (at, (name, key, address)) in all.into_iter().enumerate() {
            if address.len() > sys::socket::PATH_MAX {
                let most = sys::socket::PATH_MAX;
                let text = format!("{name} address {address:?} is longer than {most} bytes");
                return bad(key, text);
            }
            let mut before = all[..at].iter();
            if let Some((other, ..)) = before.find(|(_, _, taken)| *taken == address) {
                let text = format!("{other} and {name} address must differ: {address:?}");
                return bad(key, text);
            }
        }
        Ok(())
    }
}

/// A value that cannot be: its keys, and why.
#[derive(Debug)]
struct Bad(Vec<String>, Error);

/// True when `list` names `uri`, in full or, as version 1 files do, by its last part alone.
fn names(list: &[String], uri: &str) -> bool {
    let id = uri.rsplit('.').next();
    list.iter()
        .any(|name| name == uri || Some(name.as_str()) == id)
}

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod warned;
