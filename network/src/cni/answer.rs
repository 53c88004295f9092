//! What a plugin answers to `ADD`, in each version, and as the caller wants it.
//!
//! Invariant: what is read in one version and written in another has the same addresses, routes and
//! interfaces; what a version has no word for is left out. Text that is no result is refused, never
//! read as an empty one.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use types::network::{Dns, IpNet, NetAddress, NetInterface, NetResult, Route};
use types::{Error, Result};

use super::version::Version;

/// A result, in the words of the newest version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Answer {
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "or_default"
    )]
    interfaces: Vec<Interface>,
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "or_default"
    )]
    ips: Vec<Ip>,
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "or_default"
    )]
    routes: Vec<Way>,
    #[serde(default, deserialize_with = "or_default")]
    dns: Names,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
struct Interface {
    name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    mac: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    sandbox: String,
    #[serde(
        default,
        rename = "socketPath",
        skip_serializing_if = "String::is_empty"
    )]
    socket_path: String,
    #[serde(default, rename = "pciID", skip_serializing_if = "String::is_empty")]
    pci_id: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
struct Ip {
    /// Before 1.0.0: `4` or `6`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    version: String,
    address: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    gateway: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    interface: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
struct Way {
    dst: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    gw: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    advmss: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    priority: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    table: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scope: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
struct Names {
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "or_default"
    )]
    nameservers: Vec<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    domain: String,
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "or_default"
    )]
    search: Vec<String>,
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "or_default"
    )]
    options: Vec<String>,
}

/// Before 0.3.0: one address for each family, its routes with it.
#[derive(Default, Deserialize, Serialize)]
struct Old {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ip4: Option<OldIp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ip6: Option<OldIp>,
    #[serde(default, deserialize_with = "or_default")]
    dns: Names,
}

#[derive(Deserialize, Serialize)]
struct OldIp {
    ip: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    gateway: String,
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "or_default"
    )]
    routes: Vec<Way>,
}

/// Go writes an empty list as `null`.
fn or_default<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

impl Answer {
    /// Reads a result in the version that it says it has; one that says none is in that of its network,
    /// as others take it, too.
    ///
    /// # Errors
    /// `Unknown` with what is wrong: it is another program's fault.
    pub fn parse(value: &Value, network: Version) -> Result<(Self, Version)> {
        let version = version_of(value, network)?;
        let wrong = |e: serde_json::Error| Error::unknown(format_args!("no result of CNI: {e}"));
        let answer = if version.has_interfaces() {
            Self::deserialize(value).map_err(wrong)?
        } else {
            Self::from_old(Old::deserialize(value).map_err(wrong)?)
        };
        for ip in &answer.ips {
            ip.address.parse::<IpNet>().map_err(foreign)?;
        }
        for route in &answer.routes {
            route.dst.parse::<IpNet>().map_err(foreign)?;
        }
        Ok((answer, version))
    }

    /// Writes it in a version.
    #[must_use]
    pub fn to_json(&self, version: Version) -> Value {
        let written = if version.has_interfaces() {
            serde_json::to_value(self.as_of(version))
        } else {
            serde_json::to_value(self.to_old())
        };
        // Maps with texts as keys: it cannot fail.
        let mut written = written.unwrap_or_default();
        if let Value::Object(fields) = &mut written {
            fields.insert("cniVersion".into(), version.as_str().into());
        }
        written
    }

    fn as_of(&self, version: Version) -> Self {
        let mut made = self.clone();
        for ip in &mut made.ips {
            let family = if ip.address.contains(':') { "6" } else { "4" };
            let is_told = version < Version::V1_0_0;
            ip.version = if is_told {
                family.into()
            } else {
                String::new()
            };
        }
        if version < Version::V1_1_0 {
            for interface in &mut made.interfaces {
                interface.mtu = None;
                interface.socket_path = String::new();
                interface.pci_id = String::new();
            }
            made.routes = made.routes.iter().map(Way::plain).collect();
        }
        made
    }

    fn from_old(old: Old) -> Self {
        let mut made = Self {
            dns: old.dns,
            ..Self::default()
        };
        for ip in [old.ip4, old.ip6].into_iter().flatten() {
            made.ips.push(Ip {
                version: String::new(),
                address: ip.ip,
                gateway: ip.gateway,
                interface: None,
            });
            made.routes.extend(ip.routes);
        }
        made
    }

    fn to_old(&self) -> Old {
        let of = |v6: bool| {
            let ip = self.ips.iter().find(|ip| ip.address.contains(':') == v6)?;
            let routes = self.routes.iter().filter(|way| way.dst.contains(':') == v6);
            Some(OldIp {
                ip: ip.address.clone(),
                gateway: ip.gateway.clone(),
                routes: routes.map(Way::plain).collect(),
            })
        };
        Old {
            ip4: of(false),
            ip6: of(true),
            dns: self.dns.clone(),
        }
    }

    /// As the caller of a driver wants it.
    ///
    /// # Errors
    /// `Unknown` for an address that is none.
    pub fn to_result(&self) -> Result<NetResult> {
        let mut made = NetResult::default();
        for interface in &self.interfaces {
            let sandbox = Some(&interface.sandbox).filter(|path| !path.is_empty());
            made.interfaces.push(NetInterface {
                name: interface.name.clone(),
                // Longer ones exist (InfiniBand); they are no addresses of this kind.
                mac: interface.mac.parse().ok(),
                mtu: interface.mtu.filter(|mtu| *mtu > 0),
                netns: sandbox.map(PathBuf::from),
            });
        }
        for ip in &self.ips {
            let interface = ip.interface.and_then(|at| usize::try_from(at).ok());
            made.addresses.push(NetAddress {
                address: ip.address.parse().map_err(foreign)?,
                gateway: address(&ip.gateway)?,
                interface: interface.filter(|at| *at < self.interfaces.len()),
            });
        }
        for way in &self.routes {
            let destination = way.dst.parse().map_err(foreign)?;
            let mut route = Route::new(destination, address(&way.gw)?);
            route.metric = way.priority;
            route.table = way.table;
            route.mtu = way.mtu;
            made.routes.push(route);
        }
        made.dns = Dns {
            servers: self.dns.nameservers.clone(),
            domain: self.dns.domain.clone(),
            search: self.dns.search.clone(),
            options: self.dns.options.clone(),
        };
        Ok(made)
    }

    /// Puts the results of several networks into one.
    pub(super) fn merge(all: &mut NetResult, other: NetResult) {
        let before = all.interfaces.len();
        all.interfaces.extend(other.interfaces);
        all.addresses
            .extend(other.addresses.into_iter().map(|mut one| {
                one.interface = one.interface.map(|at| at + before);
                one
            }));
        all.routes.extend(other.routes);
        // The first network that knows any servers is the one that is asked.
        if all.dns == Dns::default() {
            all.dns = other.dns;
        }
    }
}

impl Way {
    fn plain(&self) -> Self {
        Self {
            dst: self.dst.clone(),
            gw: self.gw.clone(),
            mtu: None,
            advmss: None,
            priority: None,
            table: None,
            scope: None,
        }
    }
}

fn version_of(value: &Value, network: Version) -> Result<Version> {
    if !value.is_object() {
        return Err(Error::unknown("no result of CNI: no JSON object"));
    }
    let text = match value.get("cniVersion") {
        None | Some(Value::Null) => "",
        Some(version) => version
            .as_str()
            .ok_or_else(|| Error::unknown("no result of CNI: cniVersion is no text"))?,
    };
    if text.is_empty() {
        return Ok(network);
    }
    text.parse().map_err(foreign)
}

fn address(text: &str) -> Result<Option<std::net::IpAddr>> {
    if text.is_empty() {
        return Ok(None);
    }
    let parsed = text.parse();
    parsed
        .map(Some)
        .map_err(|_| Error::unknown(format_args!("no result of CNI: {text:?} is no address")))
}

/// The argument is not the caller's.
fn foreign(error: Error) -> Error {
    error.reclass(types::Code::Unknown).ctx("no result of CNI")
}
