//! Interfaces: what they are, what one is asked to be, what one is.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::SystemTime;

use super::{IpNet, MacAddr, Neighbour, Place, Route};
use crate::{Error, Fields, Filterable, Labels, Result};

/// Name of an interface.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkName(Box<str>);

impl LinkName {
    /// Longest name, in bytes.
    pub const MAX: usize = 15;

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for LinkName {
    type Error = Error;

    /// The kernel's rule, without `%`, which it takes for a place to put a number.
    fn try_from(text: String) -> Result<Self> {
        let refuse = |why: &str| {
            Err(Error::invalid_argument(format_args!(
                "name of an interface {text:?} {why}"
            )))
        };
        if text.is_empty() || text.len() > Self::MAX {
            return refuse(&format!("must have 1 to {} bytes", Self::MAX));
        }
        if text == "." || text == ".." {
            return refuse("is that of a directory");
        }
        let bad = |c: char| matches!(c, '/' | ':' | '%') || c.is_whitespace() || c.is_control();
        if text.contains(bad) {
            return refuse("must not contain '/', ':', '%', spaces or control characters");
        }
        Ok(Self(text.into()))
    }
}

impl FromStr for LinkName {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        text.to_owned().try_into()
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// How macvlan interfaces of one parent reach each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MacvlanMode {
    /// Through the parent.
    #[default]
    Bridge,
    /// Not at all.
    Private,
    /// Through a switch outside that sends packets back.
    Vepa,
    /// There is one only, and it has the parent's hardware address.
    Passthru,
}

impl MacvlanMode {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Private => "private",
            Self::Vepa => "vepa",
            Self::Passthru => "passthru",
        }
    }
}

impl FromStr for MacvlanMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "bridge" => Ok(Self::Bridge),
            "private" => Ok(Self::Private),
            "vepa" => Ok(Self::Vepa),
            "passthru" => Ok(Self::Passthru),
            _ => Err(Error::invalid_argument(format_args!(
                "{text:?} is no mode of macvlan: bridge, private, vepa, passthru"
            ))),
        }
    }
}

/// What an ipvlan interface has of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum IpvlanMode {
    /// It is on the parent's wire.
    #[default]
    L2,
    /// The parent routes for it.
    L3,
    /// As `L3`, with the parent's packet filter.
    L3s,
}

impl IpvlanMode {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::L2 => "l2",
            Self::L3 => "l3",
            Self::L3s => "l3s",
        }
    }
}

impl FromStr for IpvlanMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "l2" => Ok(Self::L2),
            "l3" => Ok(Self::L3),
            "l3s" => Ok(Self::L3s),
            _ => Err(Error::invalid_argument(format_args!(
                "{text:?} is no mode of ipvlan: l2, l3, l3s"
            ))),
        }
    }
}

/// What goes through a tun device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TunMode {
    /// IP packets.
    #[default]
    Tun,
    /// Ethernet frames.
    Tap,
}

/// An interface that another one is made with: the other end of a wire, or what is below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Other {
    /// Its name.
    pub name: LinkName,
    /// Where it is; `None`: beside the one that is made.
    pub place: Option<Place>,
}

impl Other {
    /// One beside the one that is made.
    #[must_use]
    pub const fn beside(name: LinkName) -> Self {
        Self { name, place: None }
    }
}

/// A wire through UDP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vxlan {
    /// Number of the wire, 24 bits.
    pub vni: u32,
    /// Multicast group or the one other end.
    pub remote: Option<IpAddr>,
    /// Address to send from.
    pub local: Option<IpAddr>,
    /// UDP port; `None`: 4789.
    pub port: Option<u16>,
    /// Interface to send through.
    pub parent: Option<Other>,
    /// Who is where is written down, not learned from what arrives.
    pub no_learning: bool,
}

/// What an interface is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// One of two ends of a wire. Of one that is there, the other end may be out of sight: `None`.
    Veth(Option<Other>),
    /// A switch.
    Bridge,
    /// A second hardware address of a parent; as for all parents, `None` is one out of sight.
    Macvlan(Option<Other>, MacvlanMode),
    /// A second IP address of a parent.
    Ipvlan(Option<Other>, IpvlanMode),
    /// A part of a parent's traffic, by its tag, 1 to 4094.
    Vlan(Option<Other>, u16),
    /// A wire through UDP.
    Vxlan(Vxlan),
    /// A device that a program reads and writes.
    Tun(TunMode),
    /// A device that leads nowhere.
    Dummy,
    /// Something that is not made here, by the kernel's word for it; empty: a device.
    Foreign(String),
}

impl LinkKind {
    /// The kernel's word.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Veth(_) => "veth",
            Self::Bridge => "bridge",
            Self::Macvlan(..) => "macvlan",
            Self::Ipvlan(..) => "ipvlan",
            Self::Vlan(..) => "vlan",
            Self::Vxlan(_) => "vxlan",
            Self::Tun(TunMode::Tun) => "tun",
            Self::Tun(TunMode::Tap) => "tap",
            Self::Dummy => "dummy",
            Self::Foreign(kind) => kind,
        }
    }

    /// The other end, or the parent.
    #[must_use]
    pub fn other(&self) -> Option<&Other> {
        match self {
            Self::Veth(other)
            | Self::Macvlan(other, _)
            | Self::Ipvlan(other, _)
            | Self::Vlan(other, _) => other.as_ref(),
            Self::Vxlan(vxlan) => vxlan.parent.as_ref(),
            Self::Bridge | Self::Tun(_) | Self::Dummy | Self::Foreign(_) => None,
        }
    }
}

/// How an interface is attached to a bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The bridge.
    pub bridge: LinkName,
    /// What came from it may go back to it.
    pub hairpin: bool,
    /// It reaches no other isolated interface of the bridge.
    pub isolated: bool,
}

/// What an interface is asked to be. What is `None` is left as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkSpec {
    /// Hardware address.
    pub mac: Option<MacAddr>,
    /// Largest packet, in bytes.
    pub mtu: Option<u32>,
    /// Up or down.
    pub up: Option<bool>,
    /// Bridge that it is attached to; `Some(None)`: to none.
    pub attachment: Option<Option<Attachment>>,
    /// All its addresses.
    pub addresses: Option<Vec<IpNet>>,
    /// All routes through it that somebody wrote.
    pub routes: Option<Vec<Route>>,
    /// All its neighbours that somebody wrote.
    pub neighbours: Option<Vec<Neighbour>>,
    /// Settings of its own, `ipv4/forwarding` for one; those that are not named stay.
    pub sysctls: BTreeMap<String, String>,
}

/// An interface that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewLink {
    /// Where.
    pub place: Place,
    /// Its name.
    pub name: LinkName,
    /// What it is.
    pub kind: LinkKind,
    /// What it is to be besides.
    pub spec: LinkSpec,
    /// Labels.
    pub labels: Labels,
}

/// What is to change about an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkChange {
    /// What it is to be.
    pub spec: LinkSpec,
    /// Its labels, and which of them; `None`: as they are.
    pub labels: Option<(Labels, Fields)>,
}

/// Where an interface is to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkMove {
    /// The place.
    pub place: Place,
    /// Its name there.
    pub name: LinkName,
}

/// An interface as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Where it is.
    pub place: Place,
    /// Its name.
    pub name: LinkName,
    /// Its number in its network namespace.
    pub index: u32,
    /// What it is.
    pub kind: LinkKind,
    /// Hardware address; `None`: it has none.
    pub mac: Option<MacAddr>,
    /// Largest packet, in bytes.
    pub mtu: u32,
    /// It was set up.
    pub up: bool,
    /// It carries packets.
    pub running: bool,
    /// Bridge that it is attached to.
    pub attachment: Option<Attachment>,
    /// Its addresses.
    pub addresses: Vec<IpNet>,
    /// Routes through it that somebody wrote.
    pub routes: Vec<Route>,
    /// Its neighbours that somebody wrote.
    pub neighbours: Vec<Neighbour>,
    /// Labels, of one that was made here.
    pub labels: Labels,
    /// When it was made here; `None`: it was not.
    pub created_at: Option<SystemTime>,
}

impl Filterable for Link {
    fn field(&self, path: &[&str]) -> Option<String> {
        match path {
            ["name"] => Some(self.name.to_string()),
            ["kind"] => Some(self.kind.as_str().to_owned()),
            ["mac"] => self.mac.map(|mac| mac.to_string()),
            ["up"] => Some(self.up.to_string()),
            ["labels", key @ ..] => self.labels.field(key),
            ["bridge"] => self.attachment.as_ref().map(|to| to.bridge.to_string()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Code;

    #[test]
    fn names_are_those_that_the_kernel_takes() {
        for good in ["eth0", "a", "veth-1_2.3@x", "123456789012345", "\u{e9}th"] {
            assert_eq!(good.parse::<LinkName>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            "1234567890123456",
            "a/b",
            "a:b",
            "a b",
            "a\tb",
            "a\0",
            ".",
            "..",
            "eth%d",
        ] {
            let error = bad.parse::<LinkName>().unwrap_err();
            assert!(error.is(Code::InvalidArgument), "{bad:?}: {error}");
        }
    }
}
