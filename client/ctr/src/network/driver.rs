//! `network setup`, `check`, `teardown`: containers joined to networks by a driver.

use std::net::IpAddr;

use client::{Client, Joining};
use serde_json::{Value, json};
use types::network::{
    IpNet, LinkName, MacAddr, NetRequest, NetResult, PortMapping, Protocol, Route, TenantId,
};
use types::{ContainerId, Error, Result};

use super::link;
use super::spec::{pair, route};
use crate::out::{self, Pad, Table};

/// What is asked of a driver.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// bridge, which does the work itself, or cni, which has programs do it.
    #[arg(long, default_value = "bridge")]
    driver: String,
    /// The container's network namespace, by name or by path.
    #[arg(long)]
    netns: String,
    /// Name of the interface inside.
    #[arg(long, default_value = "eth0")]
    interface: LinkName,
    /// A bridge, or a CNI network; without it the driver's choice.
    #[arg(long)]
    network: Vec<String>,
    /// An address with prefix length. The bridge driver gives none by itself.
    #[arg(long)]
    address: Vec<IpNet>,
    /// Hardware address.
    #[arg(long)]
    mac: Option<MacAddr>,
    /// Largest packet, in bytes.
    #[arg(long)]
    mtu: Option<u32>,
    /// A route, as of `link create`; default routes are made without it.
    #[arg(long, value_parser = route)]
    route: Vec<Route>,
    /// A port of the host that leads to one of the container, `[IP:]HOST[-LAST]:CONTAINER[-LAST][/PROTOCOL]`.
    #[arg(short, long)]
    port: Vec<Ports>,
    /// An argument for CNI plugins, `NAME=VALUE`.
    #[arg(long, value_parser = pair)]
    arg: Vec<(String, String)>,
    /// A value for what CNI plugins are capable of, `NAME=JSON`.
    #[arg(long, value_parser = pair)]
    capability: Vec<(String, String)>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Id of the container; it need not exist yet.
    container: ContainerId,
}

/// Ports that one argument maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ports(Vec<PortMapping>);

impl Ports {
    /// The ports, one by one.
    pub(super) fn each(&self) -> impl Iterator<Item = PortMapping> + '_ {
        self.0.iter().copied()
    }
}

impl std::str::FromStr for Ports {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        ports(text)
    }
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    Setup,
    Check,
    Teardown,
}

/// Does it.
pub(super) async fn run(client: &Client, work: Work, args: Args) -> Result<()> {
    let is_path = args.netns.starts_with('/');
    let (driver, netns, is_json) = (args.driver.clone(), args.netns.clone(), args.json);
    let request = args.request()?;
    let joining = Joining {
        driver: &driver,
        namespace: (!is_path).then_some(netns.as_str()),
        request: &request,
    };
    let networks = client.networks();
    match work {
        Work::Setup => {
            let made = networks.setup(&joining).await?;
            if is_json {
                return out::json(&document(&made));
            }
            table(&made).print()
        }
        Work::Check => networks.check(&joining).await,
        Work::Teardown => networks.teardown(&joining).await,
    }
}

impl Args {
    fn request(self) -> Result<NetRequest> {
        Ok(NetRequest {
            id: TenantId {
                // The call says whose it is.
                namespace: "default".parse()?,
                container: self.container,
            },
            netns: self.netns.into(),
            interface: self.interface,
            networks: self.network,
            addresses: self.address,
            mac: self.mac,
            mtu: self.mtu,
            routes: self.route,
            ports: self.port.iter().flat_map(Ports::each).collect(),
            args: self.arg.into_iter().collect(),
            capabilities: self.capability.into_iter().collect(),
        })
    }
}

/// Reads `[IP:]HOST[-LAST]:CONTAINER[-LAST][/PROTOCOL]`; an address of IPv6 is in brackets.
fn ports(text: &str) -> Result<Ports> {
    let bad = || {
        Error::invalid_argument(format_args!(
            "{text:?} is not [IP:]HOST[-LAST]:CONTAINER[-LAST][/PROTOCOL]"
        ))
    };
    let (rest, protocol) = match text.split_once('/') {
        Some((rest, protocol)) => (rest, protocol.parse()?),
        None => (text, Protocol::Tcp),
    };
    let (rest, container) = rest.rsplit_once(':').ok_or_else(bad)?;
    let (ip, host) = match rest.rsplit_once(':') {
        Some((ip, host)) => {
            let ip = ip
                .strip_prefix('[')
                .and_then(|ip| ip.strip_suffix(']'))
                .unwrap_or(ip);
            (Some(ip.parse::<IpAddr>().map_err(|_| bad())?), host)
        }
        None => (None, rest),
    };
    let range = |text: &str| -> Result<(u16, u16)> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0);
        let both = port(first)
            .zip(port(last))
            .filter(|(first, last)| first <= last);
        both.ok_or_else(bad)
    };
    let (host, container) = (range(host)?, range(container)?);
    if host.1 - host.0 != container.1 - container.0 {
        return Err(bad());
    }
    let pairs = (host.0..=host.1).zip(container.0..=container.1);
    Ok(Ports(
        pairs
            .map(|(host_port, container_port)| PortMapping {
                protocol,
                host_ip: ip,
                host_port,
                container_port,
            })
            .collect(),
    ))
}

fn table(made: &NetResult) -> Table {
    let mut table = Table::new(Pad::NARROW);
    table.row(["INTERFACE", "MAC", "ADDRESS", "GATEWAY", ""]);
    for one in &made.addresses {
        let interface = one.interface.and_then(|at| made.interfaces.get(at));
        let mac = interface.and_then(|interface| interface.mac);
        table.row([
            interface.map_or("-", |interface| interface.name.as_str()),
            &mac.map_or_else(|| "-".to_owned(), |mac| mac.to_string()),
            &one.address.to_string(),
            &one.gateway
                .map_or_else(|| "-".to_owned(), |gateway| gateway.to_string()),
            "",
        ]);
    }
    table
}

fn document(made: &NetResult) -> Value {
    json!({
        "interfaces": made.interfaces.iter().map(|one| json!({
            "name": one.name,
            "mac": one.mac.map(|mac| mac.to_string()),
            "mtu": one.mtu,
            "path": one.netns.as_ref().map(|path| path.display().to_string()),
        })).collect::<Vec<_>>(),
        "addresses": made.addresses.iter().map(|one| json!({
            "address": one.address.to_string(),
            "gateway": one.gateway,
            "interface": one.interface,
        })).collect::<Vec<_>>(),
        "routes": made.routes.iter().map(link::route).collect::<Vec<_>>(),
        "dns": {
            "servers": made.dns.servers,
            "domain": made.dns.domain,
            "search": made.dns.search,
            "options": made.dns.options,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_with_ranges_addresses_and_protocols() {
        let one = |text: &str| ports(text).unwrap().0;
        assert_eq!(one("8080:80").len(), 1);
        let v6 = one("[::1]:53:5353/udp");
        assert_eq!(v6[0].host_ip, Some("::1".parse().unwrap()));
        assert_eq!(
            (v6[0].protocol, v6[0].container_port),
            (Protocol::Udp, 5353)
        );
        let range = one("127.0.0.1:8000-8002:80-82/sctp");
        let pairs: Vec<_> = range
            .iter()
            .map(|p| (p.host_port, p.container_port))
            .collect();
        assert_eq!(pairs, [(8000, 80), (8001, 81), (8002, 82)]);
        for bad in [
            "80", "0:80", "80:0", "80:65536", "a:80", "8-9:80", "9-8:9-8", "x:1:2", "1:2/x", "",
        ] {
            assert!(
                ports(bad).unwrap_err().is(types::Code::InvalidArgument),
                "{bad}"
            );
        }
    }
}
