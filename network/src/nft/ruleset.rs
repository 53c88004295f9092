//! The rules, which are the same whatever is in the sets.
//!
//! Invariant: bridges, their subnets, mapped ports and taken addresses are elements of sets, so that a packet's way takes
//! as long with a thousand of them as with one, and adding or removing one touches no rule.
//!
//! ```text
//! prerouting, output: to one of our addresses? -> ports: map of (address,) protocol, port -> container
//! postrouting: from a subnet and out by another interface, or mapped back into a bridge -> masquerade
//! guard: from outside to 127.0.0.0/8 -> dropped: bridges route that network for mapped ports only, and
//!        what is mapped there would be sent on before routing refuses it
//! ```

use sys::netlink::Message;

use super::message::{
    IIFNAME, INTERVAL, L4PROTO, MAP, NFPROTO, OIFNAME, OUTPUT, POSTROUTING, PREROUTING, REGISTER,
    STATUS, Shape, Step, new_chain, new_rule, new_set, new_table,
};

/// Numbers of types as the program `nft` has them, which reads them back; several are one behind the
/// other, six bits each.
const V4: u32 = 7;
const V6: u32 = 8;
const PROTOCOL: u32 = 12;
const PORT: u32 = 13;
const INTERFACE: u32 = 41;

/// Bytes of an interface's name, filled with zeros.
pub(super) const NAME: usize = 16;
/// `NFPROTO_IPV4` and `NFPROTO_IPV6`.
const IPV4: u8 = 2;
const IPV6: u8 = 10;
/// First byte of the addresses of this host alone.
const LOOPBACK: u8 = 127;
/// `IPS_DST_NAT`: the connection was sent elsewhere.
const SENT_ELSEWHERE: u32 = 0x20;
/// `RTN_LOCAL`.
const LOCAL: u32 = 2;
/// Before connections are known, where addresses are those on the wire.
const RAW: i32 = -300;
const DSTNAT: i32 = -100;
const SRCNAT: i32 = 100;

/// The sets, in the order in which they are made; the position is the number in a batch.
pub(super) const SETS: [Shape; 9] = [
    Shape {
        name: "bridges",
        flags: 0,
        key: (INTERFACE, 16),
        value: None,
        is_text: true,
    },
    Shape {
        name: "subnets4",
        flags: INTERVAL,
        key: (V4, 4),
        value: None,
        is_text: false,
    },
    Shape {
        name: "subnets6",
        flags: INTERVAL,
        key: (V6, 16),
        value: None,
        is_text: false,
    },
    Shape {
        name: "hosts4",
        flags: MAP,
        key: (V4 << 12 | PROTOCOL << 6 | PORT, 12),
        value: Some((V4 << 6 | PORT, 8)),
        is_text: false,
    },
    Shape {
        name: "ports4",
        flags: MAP,
        key: (PROTOCOL << 6 | PORT, 8),
        value: Some((V4 << 6 | PORT, 8)),
        is_text: false,
    },
    Shape {
        name: "hosts6",
        flags: MAP,
        key: (V6 << 12 | PROTOCOL << 6 | PORT, 24),
        value: Some((V6 << 6 | PORT, 20)),
        is_text: false,
    },
    Shape {
        name: "ports6",
        flags: MAP,
        key: (PROTOCOL << 6 | PORT, 8),
        value: Some((V6 << 6 | PORT, 20)),
        is_text: false,
    },
    Shape {
        name: "taken4",
        flags: 0,
        key: (V4, 4),
        value: None,
        is_text: false,
    },
    Shape {
        name: "taken6",
        flags: 0,
        key: (V6, 16),
        value: None,
        is_text: false,
    },
];
/// Positions in [`SETS`].
pub(super) const BRIDGES: usize = 0;
pub(super) const SUBNETS4: usize = 1;
pub(super) const SUBNETS6: usize = 2;
pub(super) const HOSTS4: usize = 3;
pub(super) const PORTS4: usize = 4;
pub(super) const HOSTS6: usize = 5;
pub(super) const PORTS6: usize = 6;
pub(super) const TAKEN4: usize = 7;
pub(super) const TAKEN6: usize = 8;

/// How many rules [`base`] makes.
pub(super) const RULES: usize = 13;

/// What makes the table with everything but elements.
pub(super) fn base(table: &str, note: &str) -> Vec<Message> {
    let mut all = vec![new_table(table, note)];
    for (shape, id) in SETS.iter().zip(1..) {
        all.push(new_set(table, shape, id));
    }
    all.push(new_chain(table, "ports", None));
    for (name, kind, hook, priority) in [
        ("guard", "filter", PREROUTING, RAW),
        ("prerouting", "nat", PREROUTING, DSTNAT),
        ("output", "nat", OUTPUT, DSTNAT),
        ("postrouting", "nat", POSTROUTING, SRCNAT),
    ] {
        all.push(new_chain(table, name, Some((kind, hook, priority))));
    }
    let mut rule = |chain, steps: &[Step]| all.push(new_rule(table, chain, steps));
    rule("guard", &guard());
    rule("prerouting", &local(Vec::new()));
    rule("output", &local(family(false)));
    rule("output", &local(not_loopback_v6()));
    for (set, is_v6, has_host) in [
        (HOSTS4, false, true),
        (PORTS4, false, false),
        (HOSTS6, true, true),
        (PORTS6, true, false),
    ] {
        rule("ports", &mapped(set, is_v6, has_host));
    }
    rule("postrouting", &from_loopback());
    for (set, is_v6) in [(SUBNETS4, false), (SUBNETS6, true)] {
        rule("postrouting", &mapped_back(set, is_v6));
        rule("postrouting", &leaving(set, is_v6));
    }
    all
}

fn guard() -> Vec<Step> {
    let mut steps = family(false);
    steps.extend([
        Step::Meta {
            key: IIFNAME,
            into: REGISTER,
        },
        Step::Is {
            register: REGISTER,
            value: named("lo"),
            not: true,
        },
        Step::Load {
            header: 1,
            at: 16,
            length: 1,
            into: REGISTER,
        },
        is(REGISTER, &[LOOPBACK]),
        Step::Drop,
    ]);
    steps
}

/// What is for an address of this host may be for a mapped port.
fn local(mut steps: Vec<Step>) -> Vec<Step> {
    steps.extend([
        Step::IsLocal,
        is(REGISTER, &LOCAL.to_ne_bytes()),
        Step::Jump("ports"),
    ]);
    steps
}

/// Nothing could answer what the host sends from `::1`: it stays with the host's own programs there.
fn not_loopback_v6() -> Vec<Step> {
    let mut steps = family(true);
    steps.extend([
        Step::Load {
            header: 1,
            at: 24,
            length: 16,
            into: REGISTER,
        },
        Step::Is {
            register: REGISTER,
            value: std::net::Ipv6Addr::LOCALHOST.octets().to_vec(),
            not: true,
        },
    ]);
    steps
}

fn named(interface: &str) -> Vec<u8> {
    let mut name = interface.as_bytes().to_vec();
    name.resize(NAME, 0);
    name
}

/// To where the map says, by protocol and port, and by address first if the map has it.
fn mapped(set: usize, is_v6: bool, has_host: bool) -> Vec<Step> {
    let mut steps = family(is_v6);
    let (at, length) = if is_v6 { (24, 16) } else { (16, 4) };
    let mut next = REGISTER;
    if has_host {
        steps.push(Step::Load {
            header: 1,
            at,
            length,
            into: next,
        });
        next += length / 4;
    }
    steps.push(Step::Meta {
        key: L4PROTO,
        into: next,
    });
    steps.push(Step::Load {
        header: 2,
        at: 2,
        length: 2,
        into: next + 1,
    });
    let address = next + 2;
    steps.push(within(set, REGISTER, Some(address), false));
    steps.push(Step::Destination {
        family: u32::from(if is_v6 { IPV6 } else { IPV4 }),
        address,
        port: address + length / 4,
    });
    steps
}

/// The host's own programs, by way of its loopback: nobody could answer them.
fn from_loopback() -> Vec<Step> {
    let mut steps = family(false);
    steps.extend([
        Step::Load {
            header: 1,
            at: 12,
            length: 1,
            into: REGISTER,
        },
        is(REGISTER, &[LOOPBACK]),
        Step::Meta {
            key: OIFNAME,
            into: REGISTER,
        },
        within(BRIDGES, REGISTER, None, false),
        Step::Masquerade,
    ]);
    steps
}

/// From a container by a mapped port to a container: the answer has to come back this way.
fn mapped_back(set: usize, is_v6: bool) -> Vec<Step> {
    let mut steps = source(set, is_v6);
    steps.extend([
        Step::Meta {
            key: OIFNAME,
            into: REGISTER,
        },
        within(BRIDGES, REGISTER, None, false),
        Step::Connection {
            key: STATUS,
            into: REGISTER,
        },
        Step::Mask {
            register: REGISTER,
            bits: SENT_ELSEWHERE.to_ne_bytes().to_vec(),
        },
        Step::Is {
            register: REGISTER,
            value: vec![0; 4],
            not: true,
        },
        Step::Masquerade,
    ]);
    steps
}

fn leaving(set: usize, is_v6: bool) -> Vec<Step> {
    let mut steps = source(set, is_v6);
    steps.extend([
        Step::Meta {
            key: OIFNAME,
            into: REGISTER,
        },
        within(BRIDGES, REGISTER, None, true),
        Step::Masquerade,
    ]);
    steps
}

fn source(set: usize, is_v6: bool) -> Vec<Step> {
    let (at, length) = if is_v6 { (8, 16) } else { (12, 4) };
    let mut steps = family(is_v6);
    steps.push(Step::Load {
        header: 1,
        at,
        length,
        into: REGISTER,
    });
    steps.push(within(set, REGISTER, None, false));
    steps
}

fn family(is_v6: bool) -> Vec<Step> {
    let number = if is_v6 { IPV6 } else { IPV4 };
    vec![
        Step::Meta {
            key: NFPROTO,
            into: REGISTER,
        },
        is(REGISTER, &[number]),
    ]
}

fn is(register: u32, value: &[u8]) -> Step {
    Step::Is {
        register,
        value: value.to_vec(),
        not: false,
    }
}

fn within(set: usize, from: u32, into: Option<u32>, not: bool) -> Step {
    let id = u32::try_from(set + 1).unwrap_or_default();
    Step::In {
        set: SETS[set].name,
        id,
        from,
        into,
        not,
    }
}
