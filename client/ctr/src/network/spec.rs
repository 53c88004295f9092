//! Flags that say what an interface is to be.

use std::net::IpAddr;

use types::network::{
    Attachment, IpNet, LinkKind, LinkName, LinkSpec, MacAddr, Neighbour, Other, Place, Route,
    TunMode, Vxlan,
};
use types::{Error, Result};

/// A place by its name; `host` is that of the daemon.
pub(super) fn place(name: &str) -> Place {
    Place::of(if name == "host" {
        String::new()
    } else {
        name.to_owned()
    })
}

/// Flags of `create` about the kind.
#[derive(Debug, clap::Args)]
pub(super) struct KindFlags {
    /// veth, bridge, macvlan, ipvlan, vlan, vxlan, tun, tap or dummy.
    #[arg(long)]
    kind: String,
    /// The other end of a veth.
    #[arg(long)]
    peer: Option<LinkName>,
    /// Network namespace of the other end, `host` for the daemon's; without it that of the interface.
    #[arg(long, requires = "peer")]
    peer_netns: Option<String>,
    /// The interface below.
    #[arg(long)]
    parent: Option<LinkName>,
    /// Network namespace of the interface below, `host` for the daemon's; without it that of the interface.
    #[arg(long, requires = "parent")]
    parent_netns: Option<String>,
    /// Of macvlan: bridge, private, vepa, passthru; of ipvlan: l2, l3, l3s.
    #[arg(long)]
    mode: Option<String>,
    /// Tag of a vlan, number of a vxlan.
    #[arg(long)]
    id: Option<u32>,
    /// Multicast group or the one other end of a vxlan.
    #[arg(long)]
    remote: Option<IpAddr>,
    /// Address that a vxlan sends from.
    #[arg(long)]
    local: Option<IpAddr>,
    /// UDP port of a vxlan.
    #[arg(long)]
    port: Option<u16>,
    /// A vxlan does not learn who is where.
    #[arg(long)]
    no_learning: bool,
}

impl KindFlags {
    /// The kind.
    ///
    /// # Errors
    /// `InvalidArgument` for a kind that is not known and for flags that are not the kind's.
    pub(super) fn kind(self) -> Result<LinkKind> {
        let other = |name: Option<LinkName>, netns: Option<String>| {
            name.map(|name| Other {
                name,
                place: netns.as_deref().map(place),
            })
        };
        let given = self.given();
        let peer = other(self.peer, self.peer_netns);
        let parent = other(self.parent, self.parent_netns);
        let mode = self.mode.as_deref();
        let (kind, takes): (LinkKind, &[&str]) = match self.kind.as_str() {
            "veth" => (LinkKind::Veth(peer), &["peer"]),
            "bridge" => (LinkKind::Bridge, &[]),
            "macvlan" => {
                let mode = mode.map(str::parse).transpose()?.unwrap_or_default();
                (LinkKind::Macvlan(parent, mode), &["parent", "mode"])
            }
            "ipvlan" => {
                let mode = mode.map(str::parse).transpose()?.unwrap_or_default();
                (LinkKind::Ipvlan(parent, mode), &["parent", "mode"])
            }
            "vlan" => {
                let id = u16::try_from(self.id.unwrap_or_default()).unwrap_or(u16::MAX);
                (LinkKind::Vlan(parent, id), &["parent", "id"])
            }
            "vxlan" => {
                let vxlan = Vxlan {
                    vni: self.id.unwrap_or_default(),
                    remote: self.remote,
                    local: self.local,
                    port: self.port,
                    parent,
                    no_learning: self.no_learning,
                };
                let takes = &["parent", "id", "remote", "local", "port", "no-learning"];
                (LinkKind::Vxlan(vxlan), takes)
            }
            "tun" => (LinkKind::Tun(TunMode::Tun), &[]),
            "tap" => (LinkKind::Tun(TunMode::Tap), &[]),
            "dummy" => (LinkKind::Dummy, &[]),
            other => {
                return Err(Error::invalid_argument(format_args!(
                    "kind {other:?} of an interface is not known"
                )));
            }
        };
        if let Some(flag) = given.into_iter().find(|flag| !takes.contains(flag)) {
            return Err(Error::invalid_argument(format_args!(
                "--{flag} is not for kind {:?}",
                kind.as_str()
            )));
        }
        Ok(kind)
    }

    /// The flags that are there.
    fn given(&self) -> Vec<&'static str> {
        let all = [
            ("peer", self.peer.is_some()),
            ("parent", self.parent.is_some()),
            ("mode", self.mode.is_some()),
            ("id", self.id.is_some()),
            ("remote", self.remote.is_some()),
            ("local", self.local.is_some()),
            ("port", self.port.is_some()),
            ("no-learning", self.no_learning),
        ];
        all.into_iter()
            .filter(|(_, is_given)| *is_given)
            .map(|(flag, _)| flag)
            .collect()
    }
}

/// Flags of `create` and `set`.
#[derive(Debug, clap::Args)]
pub(super) struct SpecFlags {
    /// Hardware address.
    #[arg(long)]
    mac: Option<MacAddr>,
    /// Largest packet, in bytes.
    #[arg(long)]
    mtu: Option<u32>,
    /// Set it up.
    #[arg(long)]
    up: bool,
    /// Attach it to this bridge.
    #[arg(long)]
    bridge: Option<LinkName>,
    /// At its bridge, what came from it may go back to it.
    #[arg(long, requires = "bridge")]
    hairpin: bool,
    /// At its bridge, it reaches no other isolated interface.
    #[arg(long, requires = "bridge")]
    isolated: bool,
    /// An address with prefix length; these are all that it has.
    #[arg(long)]
    address: Vec<IpNet>,
    /// A route, `DESTINATION[,via=GATEWAY][,src=ADDRESS][,metric=N][,table=N][,mtu=N][,onlink]`; `default` is
    /// the destination that the gateway's family has.
    #[arg(long, value_parser = route)]
    route: Vec<Route>,
    /// A neighbour, `ADDRESS=MAC`.
    #[arg(long, value_parser = neighbour)]
    neighbour: Vec<Neighbour>,
    /// A setting, as `ipv4/forwarding=1`.
    #[arg(long, value_parser = pair)]
    sysctl: Vec<(String, String)>,
}

impl SpecFlags {
    /// What the interface is to be.
    pub(super) fn spec(self) -> LinkSpec {
        let attachment = self.bridge.map(|bridge| Attachment {
            bridge,
            hairpin: self.hairpin,
            isolated: self.isolated,
        });
        LinkSpec {
            mac: self.mac,
            mtu: self.mtu,
            up: self.up.then_some(true),
            attachment: attachment.map(Some),
            addresses: Some(self.address).filter(|all| !all.is_empty()),
            routes: Some(self.route).filter(|all| !all.is_empty()),
            neighbours: Some(self.neighbour).filter(|all| !all.is_empty()),
            sysctls: self.sysctl.into_iter().collect(),
        }
    }
}

pub(super) fn pair(text: &str) -> Result<(String, String)> {
    let pair = text.split_once('=');
    let pair =
        pair.ok_or_else(|| Error::invalid_argument(format_args!("{text:?} is not key=value")))?;
    Ok((pair.0.to_owned(), pair.1.to_owned()))
}

fn neighbour(text: &str) -> Result<Neighbour> {
    let (address, mac) = pair(text)?;
    Ok(Neighbour {
        address: ip("neighbour", &address)?,
        mac: mac.parse()?,
    })
}

fn ip(what: &str, text: &str) -> Result<IpAddr> {
    text.parse()
        .map_err(|_| Error::invalid_argument(format_args!("{what} {text:?} is no address")))
}

pub(super) fn route(text: &str) -> Result<Route> {
    let mut parts = text.split(',');
    let to = parts.next().unwrap_or_default();
    let is_default = to == "default";
    let mut made = Route::new(
        if is_default {
            IpNet::DEFAULT_V4
        } else {
            to.parse()?
        },
        None,
    );
    for part in parts {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        let number = || {
            let number = value.parse::<u32>();
            number.map_err(|_| {
                Error::invalid_argument(format_args!("{key} of a route {value:?} is no number"))
            })
        };
        match key {
            "via" => made.gateway = Some(ip("gateway", value)?),
            "src" => made.source = Some(ip("source", value)?),
            "metric" => made.metric = Some(number()?),
            "table" => made.table = Some(number()?),
            "mtu" => made.mtu = Some(number()?),
            "onlink" => made.on_link = true,
            _ => {
                return Err(Error::invalid_argument(format_args!(
                    "{key:?} of a route is not known"
                )));
            }
        }
    }
    if is_default && made.gateway.is_some_and(|via| via.is_ipv6()) {
        made.destination = IpNet::DEFAULT_V6;
    }
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use types::Code;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        kind: KindFlags,
        #[command(flatten)]
        spec: SpecFlags,
    }

    fn line(text: &str) -> Line {
        let words = text.split(' ').filter(|word| !word.is_empty());
        Line::try_parse_from(std::iter::once("x").chain(words)).unwrap()
    }

    #[test]
    fn routes_are_read_and_nonsense_is_refused() {
        let all = route("default,via=fd00::1,metric=7,table=9,mtu=1300,onlink").unwrap();
        assert_eq!(all.destination, IpNet::DEFAULT_V6);
        assert_eq!(
            (all.metric, all.table, all.mtu, all.on_link),
            (Some(7), Some(9), Some(1300), true)
        );
        assert_eq!(route("default").unwrap().destination, IpNet::DEFAULT_V4);
        for bad in [
            "",
            "x",
            "10.0.0.0/8,via",
            "10.0.0.0/8,metric=x",
            "10.0.0.0/8,other=1",
        ] {
            assert!(route(bad).unwrap_err().is(Code::InvalidArgument), "{bad}");
        }
        for bad in ["10.0.0.1", "10.0.0.1=x", "x=02:00:00:00:00:01"] {
            assert!(
                neighbour(bad).unwrap_err().is(Code::InvalidArgument),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_kind_takes_its_own_flags_only() {
        let kind = |text: &str| line(text).kind.kind();
        let peer = LinkKind::Veth(Some(Other {
            name: "b".parse().unwrap(),
            place: Some(Place::Host),
        }));
        assert_eq!(
            kind("--kind veth --peer b --peer-netns host").unwrap(),
            peer
        );
        for bad in [
            "--kind nothing",
            "--kind bridge --peer b",
            "--kind veth --peer b --id 3",
            "--kind macvlan --parent p --mode l3",
            "--kind dummy --no-learning",
        ] {
            assert!(kind(bad).unwrap_err().is(Code::InvalidArgument), "{bad}");
        }
    }

    #[test]
    fn what_no_flag_names_is_left_as_it_is() {
        assert_eq!(line("--kind dummy").spec.spec(), LinkSpec::default());
        let spec = line("--kind dummy --up --bridge br --hairpin --sysctl ipv4/forwarding=1")
            .spec
            .spec();
        assert_eq!(spec.up, Some(true));
        assert!(spec.attachment.unwrap().unwrap().hairpin);
        assert_eq!(spec.sysctls["ipv4/forwarding"], "1");
    }
}
