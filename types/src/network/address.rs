//! Addresses with their networks, hardware addresses, routes and neighbours.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::{Error, Result};

/// The family of an address, as people call it.
#[must_use]
pub const fn family(address: &IpAddr) -> &'static str {
    match address {
        IpAddr::V4(_) => "IPv4",
        IpAddr::V6(_) => "IPv6",
    }
}

/// An address, and how many of its first bits name its network: `10.1.0.2/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IpNet {
    address: IpAddr,
    prefix: u8,
}

impl IpNet {
    /// Everything of IPv4, the destination of a default route.
    pub const DEFAULT_V4: Self = Self {
        address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        prefix: 0,
    };
    /// Everything of IPv6.
    pub const DEFAULT_V6: Self = Self {
        address: IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        prefix: 0,
    };

    /// An address in a network.
    ///
    /// # Errors
    /// `InvalidArgument` for a prefix that is longer than the address.
    pub fn new(address: IpAddr, prefix: u8) -> Result<Self> {
        let most = Self::bits(&address);
        if prefix > most {
            return Err(Error::invalid_argument(format_args!(
                "prefix of {address}/{prefix} is longer than {most} bits"
            )));
        }
        Ok(Self { address, prefix })
    }

    /// The address alone, a network of one.
    #[must_use]
    pub const fn host(address: IpAddr) -> Self {
        let prefix = Self::bits(&address);
        Self { address, prefix }
    }

    /// The address.
    #[must_use]
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// Bits of the network.
    #[must_use]
    pub const fn prefix(&self) -> u8 {
        self.prefix
    }

    /// True for the destination of a default route.
    #[must_use]
    pub const fn is_default(&self) -> bool {
        self.prefix == 0
    }

    /// The network: all bits behind the prefix are zero.
    #[must_use]
    pub fn network(&self) -> Self {
        let address = match self.address {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(u32::from(32 - self.prefix));
                Ipv4Addr::from_bits(v4.to_bits() & mask.unwrap_or(0)).into()
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(u32::from(128 - self.prefix));
                Ipv6Addr::from_bits(v6.to_bits() & mask.unwrap_or(0)).into()
            }
        };
        Self {
            address,
            prefix: self.prefix,
        }
    }

    /// True when the network has this address.
    #[must_use]
    pub fn contains(&self, address: &IpAddr) -> bool {
        let other = Self {
            address: *address,
            prefix: self.prefix,
        };
        self.address.is_ipv4() == address.is_ipv4() && other.network() == self.network()
    }

    const fn bits(address: &IpAddr) -> u8 {
        match address {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        }
    }
}

impl FromStr for IpNet {
    type Err = Error;

    /// `address/prefix`; an address alone is a network of one.
    fn from_str(text: &str) -> Result<Self> {
        let bad =
            || Error::invalid_argument(format_args!("{text:?} is no address with a prefix length"));
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let Some(prefix) = prefix else {
            return Ok(Self::host(address));
        };
        // `parse` alone takes a sign.
        if prefix.is_empty() || !prefix.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        Self::new(address, prefix.parse().map_err(|_| bad())?)
    }
}

impl fmt::Display for IpNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// A hardware address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddr([u8; 6]);

impl MacAddr {
    /// The address of one interface.
    ///
    /// # Errors
    /// `InvalidArgument` for one of a group of interfaces, and for that of none.
    pub fn new(bytes: [u8; 6]) -> Result<Self> {
        let made = Self(bytes);
        if bytes[0] & 1 == 1 || bytes == [0; 6] {
            return Err(Error::invalid_argument(format_args!(
                "hardware address {made} is not that of one interface"
            )));
        }
        Ok(made)
    }

    /// The bytes.
    #[must_use]
    pub const fn bytes(&self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddr {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad =
            || Error::invalid_argument(format_args!("{text:?} is no hardware address of 6 bytes"));
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts
                .next()
                .filter(|part| part.len() == 2)
                .ok_or_else(bad)?;
            if !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(bad());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() {
            return Err(bad());
        }
        Self::new(bytes)
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A way to a network, through the interface that it is written for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Route {
    /// Where it leads.
    pub destination: IpNet,
    /// Who passes packets on; `None`: the destination is reached directly.
    pub gateway: Option<IpAddr>,
    /// Address that packets are sent from when they have none.
    pub source: Option<IpAddr>,
    /// Of several routes the one with the lowest is taken.
    pub metric: Option<u32>,
    /// Routing table; `None`: the main one.
    pub table: Option<u32>,
    /// Largest packet on this way.
    pub mtu: Option<u32>,
    /// The gateway is taken as reached directly though no address says so.
    pub on_link: bool,
}

impl Route {
    /// A route with nothing but a gateway, if any.
    #[must_use]
    pub const fn new(destination: IpNet, gateway: Option<IpAddr>) -> Self {
        Self {
            destination,
            gateway,
            source: None,
            metric: None,
            table: None,
            mtu: None,
            on_link: false,
        }
    }

    /// Checks that all addresses are of one family.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub fn validate(&self) -> Result<()> {
        let to = self.destination.address();
        for (what, other) in [("gateway", self.gateway), ("source", self.source)] {
            if let Some(other) = other.filter(|other| other.is_ipv4() != to.is_ipv4()) {
                return Err(Error::invalid_argument(format_args!(
                    "route to {} ({}) has the {what} {other} ({})",
                    self.destination,
                    family(&to),
                    family(&other)
                )));
            }
        }
        Ok(())
    }
}

/// The hardware address of a host on the same wire, written down instead of asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Neighbour {
    /// Its address.
    pub address: IpAddr,
    /// Its hardware address.
    pub mac: MacAddr,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Code;

    #[test]
    fn addresses_with_prefixes_are_read_and_written() {
        for text in [
            "10.1.0.2/24",
            "0.0.0.0/0",
            "fd00::2/64",
            "::/0",
            "1.2.3.4/32",
        ] {
            assert_eq!(text.parse::<IpNet>().unwrap().to_string(), text);
        }
        assert_eq!("::1".parse::<IpNet>().unwrap().prefix(), 128);
        for bad in [
            "",
            "/",
            "10.1.0.2/",
            "10.1.0.2/33",
            "::/129",
            "10.1/8",
            "::/+1",
            "a/8",
            "1.2.3.4/8/8",
        ] {
            let error = bad.parse::<IpNet>().unwrap_err();
            assert!(error.is(Code::InvalidArgument), "{bad}: {error}");
        }
    }

    #[test]
    fn a_network_contains_its_addresses_of_its_family() {
        let net: IpNet = "10.1.2.3/16".parse().unwrap();
        assert_eq!(net.network().to_string(), "10.1.0.0/16");
        assert!(net.contains(&"10.1.255.1".parse().unwrap()));
        assert!(!net.contains(&"10.2.0.1".parse().unwrap()));
        assert!(!net.contains(&"::ffff:10.1.0.1".parse().unwrap()));
        assert!(IpNet::DEFAULT_V6.contains(&"fd00::1".parse().unwrap()));
        assert!(IpNet::DEFAULT_V4.is_default() && !net.is_default());
        let v6: IpNet = "fd00:1:2:3:4::1/64".parse().unwrap();
        assert_eq!(v6.network().to_string(), "fd00:1:2:3::/64");
    }

    #[test]
    fn hardware_addresses_are_those_of_one_interface() {
        let mac: MacAddr = "02:00:00:aB:00:ff".parse().unwrap();
        assert_eq!(mac.to_string(), "02:00:00:ab:00:ff");
        for bad in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:00:00",
            "2:0:0:0:0:0",
            "02-00-00-00-00-01",
            "01:00:00:00:00:00",
            "00:00:00:00:00:00",
            "+2:00:00:00:00:01",
        ] {
            let error = bad.parse::<MacAddr>().unwrap_err();
            assert!(error.is(Code::InvalidArgument), "{bad}: {error}");
        }
    }

    #[test]
    fn a_route_has_one_family() {
        let gateway = |text: &str| Some(text.parse().unwrap());
        Route::new(IpNet::DEFAULT_V4, gateway("10.0.0.1"))
            .validate()
            .unwrap();
        let mixed = Route::new(IpNet::DEFAULT_V4, gateway("fd00::1"));
        let error = mixed.validate().unwrap_err();
        assert!(error.is(Code::InvalidArgument), "{error}");
        assert!(
            error.to_string().contains("gateway fd00::1 (IPv6)"),
            "{error}"
        );
    }
}
