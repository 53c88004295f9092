//! Values of the network: names, addresses, routes, and what a driver is asked for and answers.
//!
//! Invariant: a value that exists is one that the kernel could take by its form: names fit, prefixes
//! are no longer than their addresses, families are not mixed.

mod address;
mod joined;
mod link;
mod namespace;
mod request;

pub use address::{IpNet, MacAddr, Neighbour, Route, family};
pub use joined::{JoinState, Joined};
pub use link::{
    Attachment, IpvlanMode, Link, LinkChange, LinkKind, LinkMove, LinkName, LinkSpec, MacvlanMode,
    NewLink, Other, TunMode, Vxlan,
};
pub use namespace::{NetNamespace, Place};
pub use request::{
    Dns, NetAddress, NetInterface, NetRequest, NetResult, PortMapping, Protocol, TenantId,
};
