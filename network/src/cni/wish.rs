//! What a request means in the words of CNI.
//!
//! Invariant: what a request has and CNI, or the networks that it names, has no word for is refused: it
//! would be forgotten otherwise.

use std::path::Path;

use serde_json::{Map, Value};
use types::network::{LinkName, NetRequest, TenantId};
use types::{Error, Result};

use super::conf::{Network, find, first};
use super::record::Record;
use crate::netns::Identity;

/// Capabilities that are for one interface.
const ONCE: [&str; 3] = ["portMappings", "ips", "mac"];

/// The attachments that a request is about, in the order of its networks.
///
/// # Errors
/// `NotFound` for a network or the network namespace, `InvalidArgument` with what has no word.
pub(super) fn wishes(directory: &Path, request: &NetRequest) -> Result<Vec<Record>> {
    let place = Identity::to_join(&request.netns)?;
    let networks = if request.networks.is_empty() {
        vec![first(directory)?]
    } else {
        let named = request.networks.iter();
        named
            .map(|name| find(directory, name))
            .collect::<Result<_>>()?
    };
    refuse_unknown(request)?;
    let capabilities = capabilities(request)?;
    for name in capabilities.keys() {
        if !networks.iter().any(|network| network.is_capable_of(name)) {
            let names: Vec<_> = networks.iter().map(|n| n.name.as_str()).collect();
            return Err(Error::invalid_argument(format_args!(
                "no plugin of the CNI networks {} has the capability {name:?}",
                names.join(", ")
            )));
        }
    }
    let args = args(request)?;
    let mut wishes = Vec::new();
    for (at, network) in networks.iter().enumerate() {
        let interface = interface(&request.interface, at)?;
        let mut wish = Record::new(network, interface, request.netns.clone());
        wish.place = Some(place.clone());
        wish.args.clone_from(&args);
        wish.capabilities.clone_from(&capabilities);
        for name in ONCE {
            // An address or a port of the host cannot be that of two interfaces.
            let is_first = |network: &Network| network.is_capable_of(name);
            if networks.iter().position(is_first) != Some(at) {
                wish.capabilities.remove(name);
            }
        }
        wishes.push(wish);
    }
    Ok(wishes)
}

/// What attachments a request is about that is to look at them or to part: all at its interface when it
/// names no network.
#[derive(Debug)]
pub(super) struct Meant(Vec<(Option<String>, String)>);

impl Meant {
    /// # Errors
    /// `InvalidArgument` for an interface that cannot be.
    pub(super) fn by(request: &NetRequest) -> Result<Self> {
        let mut all = Vec::new();
        for (at, network) in request.networks.iter().enumerate() {
            all.push((Some(network.clone()), interface(&request.interface, at)?));
        }
        if all.is_empty() {
            all.push((None, request.interface.to_string()));
        }
        Ok(Self(all))
    }

    /// Each of the attachments that there should be.
    pub(super) fn each(&self) -> impl Iterator<Item = Self> {
        self.0.iter().map(|one| Self(vec![one.clone()]))
    }

    pub(super) fn has(&self, network: &str, interface: &str) -> bool {
        let is_it = |(of, at): &(Option<String>, String)| {
            of.as_deref().is_none_or(|of| of == network) && at == interface
        };
        self.0.iter().any(is_it)
    }

    pub(super) fn has_record(&self, record: &Record) -> bool {
        let network = record.network();
        network.is_ok_and(|network| self.has(&network.name, &record.interface))
    }
}

impl std::fmt::Display for Meant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (network, interface) in &self.0 {
            if let Some(network) = network {
                write!(f, "{network:?} ")?;
            }
            write!(f, "at {interface}")?;
        }
        Ok(())
    }
}

/// What plugins know a container by. Two hyphens are in neither of the parts: no two containers have
/// the same.
pub(super) fn known_as(id: &TenantId) -> String {
    format!("{}--{}", id.namespace, id.container)
}

/// The first interface has the wanted name, the others the numbers after it.
fn interface(first: &LinkName, at: usize) -> Result<String> {
    if at == 0 {
        return Ok(first.to_string());
    }
    let name = first.as_str();
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let number = name[stem.len()..].parse::<usize>().unwrap_or(0);
    let made: LinkName = format!("{stem}{}", number.saturating_add(at)).parse()?;
    Ok(made.to_string())
}

/// What a request can have and CNI has no word for.
fn refuse_unknown(request: &NetRequest) -> Result<()> {
    for (what, is_there) in [
        ("an MTU", request.mtu.is_some()),
        ("routes", !request.routes.is_empty()),
    ] {
        if is_there {
            return Err(Error::invalid_argument(format_args!(
                "{what} of a CNI network: its configuration says it"
            )));
        }
    }
    Ok(())
}

/// Values for `runtimeConfig`, by capability.
fn capabilities(request: &NetRequest) -> Result<Map<String, Value>> {
    let mut all = Map::new();
    if !request.ports.is_empty() {
        let ports = request.ports.iter().map(|port| {
            serde_json::json!({
                "hostPort": port.host_port,
                "containerPort": port.container_port,
                "protocol": port.protocol.as_str(),
                "hostIP": port.host_ip.map(|ip| ip.to_string()).unwrap_or_default(),
            })
        });
        all.insert("portMappings".into(), ports.collect());
    }
    if !request.addresses.is_empty() {
        let addresses = request.addresses.iter().map(ToString::to_string);
        all.insert("ips".into(), addresses.collect());
    }
    if let Some(mac) = request.mac {
        all.insert("mac".into(), mac.to_string().into());
    }
    for (name, text) in &request.capabilities {
        let wrong = |what: &dyn std::fmt::Display| {
            Error::invalid_argument(format_args!("capability {name:?}: {what}"))
        };
        types::bound_json(text.as_bytes())?;
        let value = serde_json::from_str(text).map_err(|e| wrong(&e))?;
        if all.insert(name.clone(), value).is_some() {
            return Err(wrong(&"the request says it in another way, too"));
        }
    }
    Ok(all)
}

/// As `CNI_ARGS` wants them, which has no way to write a `;` or a `=`: plugins refuse what has another.
fn args(request: &NetRequest) -> Result<String> {
    let mut parts = Vec::new();
    for (name, value) in &request.args {
        let is_odd = |text: &str| text.contains([';', '=', '\0']);
        if name.is_empty() || is_odd(name) || is_odd(value) {
            return Err(Error::invalid_argument(format_args!(
                "CNI argument {name:?} = {value:?}: it cannot be passed on"
            )));
        }
        parts.push(format!("{name}={value}"));
    }
    Ok(parts.join(";"))
}
