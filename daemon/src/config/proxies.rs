//! `[proxy_plugins]`: plugins that other programs serve on a socket.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use types::{Error, Platform};

/// What a program is to this daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ProxyKind {
    /// A snapshotter.
    Snapshot,
    /// The content store.
    Content,
    /// A differ.
    Diff,
    /// A sandbox controller, which there is no place for yet.
    Sandbox,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ProxyPlugin {
    /// What it is.
    #[serde(rename = "type")]
    pub(crate) kind: ProxyKind,
    /// Its socket.
    pub(crate) address: String,
    /// Platform that it works for; empty: this host's.
    #[serde(default)]
    pub(crate) platform: String,
    /// Values for clients, such as `root`.
    #[serde(default)]
    pub(crate) exports: BTreeMap<String, String>,
    /// What it can do beyond its contract: `rebase`, `remap-ids`; `settle` for a snapshotter or a
    /// differ of ours.
    #[serde(default)]
    pub(crate) capabilities: Vec<String>,
}

/// The keys above.
pub(super) const KEYS: [&str; 5] = ["type", "address", "platform", "exports", "capabilities"];

impl ProxyPlugin {
    /// Refuses an address or a platform that cannot be one.
    ///
    /// # Errors
    /// The key, and `InvalidArgument` with the plugin's id.
    pub(super) fn check(&self, id: &str) -> Result<(), (&'static str, Error)> {
        if self.kind == ProxyKind::Sandbox {
            // It is not used.
            return Ok(());
        }
        let of = |key| move |e: Error| (key, e.ctx(format!("proxy plugin {id:?}")));
        let path = client::socket_path(&self.address).map_err(of("address"))?;
        if path.as_os_str().len() > sys::socket::DIALLED_MAX {
            let (address, most) = (&self.address, sys::socket::DIALLED_MAX);
            let text = format!("address {address:?} is longer than {most} bytes");
            return Err(of("address")(Error::invalid_argument(text)));
        }
        if !self.platform.is_empty() {
            let platform = self.platform.parse::<Platform>();
            platform.map_err(of("platform"))?;
        }
        Ok(())
    }
}
