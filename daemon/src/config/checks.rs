//! What is wrong with values that are of the right type, and what they ask for that there is not.
//!
//! Invariant: what can never be meant is refused when the file is read; what somebody may well mean, and
//! this daemon cannot do, costs the one plugin that was asked for it, and is told with its place.

use std::collections::BTreeMap;

use types::{Context as _, Error, Platform, Result};

use super::places::Given;
use super::plugins::{ErofsDiffer, Tasks, Transfer};
use super::{Config, Erofs, ProxyKind};

const TRANSFER: &str = "io.containerd.transfer.v1.local";
/// What there is by name without being configured.
const SNAPSHOTTERS: [&str; 5] = ["blockfile", "btrfs", "erofs", "native", "overlayfs"];
const DIFFERS: [&str; 2] = ["erofs", "walking"];

/// A section with values that no type can tell wrong.
pub(super) trait Checked {
    /// # Errors
    /// `InvalidArgument` with the key.
    fn check(&self) -> Result<()>;
}

impl Checked for Tasks {
    fn check(&self) -> Result<()> {
        let mut all = self.platforms.iter();
        all.try_for_each(|text| text.parse::<Platform>().map(drop))
            .ctx("platforms")
    }
}

impl Checked for Transfer {
    fn check(&self) -> Result<()> {
        let all = self.unpack_config.iter().flatten().enumerate();
        for (at, one) in all.filter(|(_, one)| !one.optional) {
            let of = |e: Error| e.ctx(format!("unpack_config[{at}]"));
            one.platform.parse::<Platform>().map_err(of)?;
            if one.snapshotter.is_empty() {
                return Err(of(Error::invalid_argument("no snapshotter is named")));
            }
        }
        Ok(())
    }
}

impl Checked for Erofs {
    fn check(&self) -> Result<()> {
        match self.dmverity_mode.as_str() {
            "" | "auto" | "on" | "off" => Ok(()),
            other => Err(Error::invalid_argument(format_args!(
                "dmverity_mode: {other:?} is none of \"auto\", \"on\", \"off\""
            ))),
        }
    }
}

impl Erofs {
    /// The first key that asks for what there is not.
    pub(super) fn unsupported(&self) -> Option<&'static str> {
        if self.enable_fsverity {
            Some("enable_fsverity")
        } else if !self.default_size.is_empty() {
            Some("default_size")
        } else if !matches!(self.dmverity_mode.as_str(), "" | "auto" | "off") {
            Some("dmverity_mode")
        } else {
            None
        }
    }
}

impl ErofsDiffer {
    /// The same.
    pub(super) fn unsupported(&self) -> Option<&'static str> {
        self.enable_dmverity.then_some("enable_dmverity")
    }
}

/// What plugins are asked for that they cannot do, with its place: each of them will not work.
///
/// # Errors
/// `InvalidArgument` for a section that does not fit.
pub(super) fn unsupported(config: &Config, given: &Given) -> Result<Vec<String>> {
    let mut told = Vec::new();
    let mut tell = |uri: &str, key: &str, what: &str| {
        if config.enabled(uri) {
            let text = format!("plugin {uri:?} will not work: {what}");
            told.push(given.tell(&["plugins", uri, key], text));
        }
    };
    let uri = "io.containerd.snapshotter.v1.erofs";
    if let Some(key) = config.section::<Erofs>(uri)?.unsupported() {
        tell(uri, key, &format!("{key} is not supported as it is set"));
    }
    let uri = "io.containerd.differ.v1.erofs";
    if let Some(key) = config.section::<ErofsDiffer>(uri)?.unsupported() {
        tell(uri, key, &format!("{key} is not supported as it is set"));
    }
    let transfer: Transfer = config.section(TRANSFER)?;
    let required = transfer.unpack_config.iter().flatten();
    for one in required.filter(|one| !one.optional) {
        let snapshotter = (&one.snapshotter, &SNAPSHOTTERS[..], ProxyKind::Snapshot);
        let differ = (&one.differ, &DIFFERS[..], ProxyKind::Diff);
        for (what, (name, ours, kind)) in [("snapshotter", snapshotter), ("differ", differ)] {
            let is_there = name.is_empty()
                || ours.contains(&name.as_str())
                || is_proxy(&config.proxy_plugins, name, kind);
            if !is_there {
                let text = format!("unpack_config: there is no {what} {name:?}");
                tell(TRANSFER, "unpack_config", &text);
            }
        }
    }
    Ok(told)
}

fn is_proxy(all: &BTreeMap<String, super::ProxyPlugin>, id: &str, kind: ProxyKind) -> bool {
    all.get(id).is_some_and(|plugin| plugin.kind == kind)
}
