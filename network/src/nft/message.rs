//! Messages of nftables: tables, chains, sets, elements, and the expressions that rules are made of.
//!
//! Invariant: numbers are in the order of the network, as this part of the kernel wants them, and the
//! names here are those of `linux/netfilter/nf_tables.h`.

use sys::netlink::Message;

/// Messages, all of the subsystem of nftables.
pub(super) const NEW_TABLE: u16 = 10 << 8;
pub(super) const GET_TABLE: u16 = NEW_TABLE + 1;
pub(super) const DEL_TABLE: u16 = NEW_TABLE + 2;
const NEW_CHAIN: u16 = NEW_TABLE + 3;
pub(super) const GET_CHAIN: u16 = NEW_TABLE + 4;
const NEW_RULE: u16 = NEW_TABLE + 6;
pub(super) const GET_RULE: u16 = NEW_TABLE + 7;
const NEW_SET: u16 = NEW_TABLE + 9;
pub(super) const NEW_ELEMENT: u16 = NEW_TABLE + 12;
pub(super) const GET_ELEMENT: u16 = NEW_TABLE + 13;
pub(super) const DEL_ELEMENT: u16 = NEW_TABLE + 14;

/// Makes what is not there.
pub(super) const CREATE: u16 = 0x400;
/// Fails for what is there.
pub(super) const EXCLUSIVE: u16 = 0x200;
/// A rule goes behind the others.
const APPEND: u16 = 0x800;

/// Tables of IPv4 and IPv6 in one, `NFPROTO_INET`.
const INET: u8 = 1;
/// `NFTA_TABLE_NAME`, as `NFTA_CHAIN_TABLE`, `NFTA_RULE_TABLE`, `NFTA_SET_TABLE`.
pub(super) const TABLE: u16 = 1;
const TABLE_USERDATA: u16 = 6;
const LIST_ELEMENT: u16 = 1;

/// `NF_INET_*`: where a chain is called.
pub(super) const PREROUTING: u32 = 0;
pub(super) const OUTPUT: u32 = 3;
pub(super) const POSTROUTING: u32 = 4;

/// Flags of sets: between two elements, with a value for each.
pub(super) const INTERVAL: u32 = 4;
pub(super) const MAP: u32 = 8;

/// Registers of four bytes, `NFT_REG32_00` and on.
pub(super) const REGISTER: u32 = 8;

/// A message about something in a table.
pub(super) fn about(what: String, kind: u16, flags: u16, table: &str) -> Message {
    let mut message = Message::new(what, kind, flags, &[INET, 0, 0, 0]);
    message.text(TABLE, table);
    message
}

/// A number as nftables has it.
pub(super) fn number(message: &mut Message, kind: u16, value: u32) {
    message.bytes(kind, &value.to_be_bytes());
}

/// A text for people, as the program `nft` shows it. The kind is the first in all user data.
pub(super) fn comment(message: &mut Message, kind: u16, text: &str) {
    let mut data = vec![0, u8::try_from(text.len() + 1).unwrap_or(u8::MAX)];
    data.extend(text.bytes().take(usize::from(u8::MAX) - 1));
    data.push(0);
    message.bytes(kind, &data);
}

/// The text that [`comment`] has written.
pub(super) fn comment_of(data: &[u8]) -> Option<String> {
    match data {
        [0, length, text @ ..] if text.len() >= usize::from(*length) => {
            Some(sys::netlink::text_of(text))
        }
        _ => None,
    }
}

pub(super) fn new_table(table: &str, note: &str) -> Message {
    let what = format!("make table {table}");
    let mut message = about(what, NEW_TABLE, CREATE | EXCLUSIVE, table);
    comment(&mut message, TABLE_USERDATA, note);
    message
}

/// A chain; with its type, hook and priority one that packets come by.
pub(super) fn new_chain(table: &str, name: &str, hook: Option<(&str, u32, i32)>) -> Message {
    let mut message = about(format!("make chain {name}"), NEW_CHAIN, CREATE, table);
    message.text(3, name);
    if let Some((kind, hook, priority)) = hook {
        message.nest(4, |inner| {
            number(inner, 1, hook);
            number(inner, 2, priority.cast_unsigned());
        });
        message.text(7, kind);
    }
    message
}

/// What a set has: types of its keys, and of its values if it is a map, by the numbers of the program
/// `nft`, with their lengths in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) name: &'static str,
    pub(super) flags: u32,
    pub(super) key: (u32, u32),
    pub(super) value: Option<(u32, u32)>,
    /// Keys are texts.
    pub(super) is_text: bool,
}

pub(super) fn new_set(table: &str, shape: &Shape, id: u32) -> Message {
    let what = format!("make set {}", shape.name);
    let mut message = about(what, NEW_SET, CREATE, table);
    message.text(2, shape.name);
    number(&mut message, 3, shape.flags);
    number(&mut message, 4, shape.key.0);
    number(&mut message, 5, shape.key.1);
    if let Some((kind, length)) = shape.value {
        number(&mut message, 6, kind);
        number(&mut message, 7, length);
    }
    number(&mut message, 10, id);
    if shape.is_text {
        // `NFTNL_UDATA_SET_KEYBYTEORDER`, that of the host: for `nft`, which shows it as text then.
        let mut order = vec![0, 4];
        order.extend(1_u32.to_ne_bytes());
        message.bytes(13, &order);
    }
    message
}

pub(super) fn new_rule(table: &str, chain: &str, steps: &[Step]) -> Message {
    let mut message = about(
        format!("make rule of chain {chain}"),
        NEW_RULE,
        CREATE | APPEND,
        table,
    );
    message.text(2, chain);
    message.marked(4, |list| {
        for step in steps {
            list.marked(LIST_ELEMENT, |inner| step.write(inner));
        }
    });
    message
}

/// One step of a rule. Registers are numbers of four bytes each.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Something about the packet into a register.
    Meta { key: u32, into: u32 },
    /// Bytes of a header: 1 is that of the network, 2 of the transport.
    Load {
        header: u32,
        at: u32,
        length: u32,
        into: u32,
    },
    /// Keeps some bits of a register.
    Mask { register: u32, bits: Vec<u8> },
    /// A fact of the connection.
    Connection { key: u32, into: u32 },
    /// Goes on when the register has this value; with `not`, when it has another.
    Is {
        register: u32,
        value: Vec<u8>,
        not: bool,
    },
    /// Goes on when the set has the register as a key; its value into another register.
    In {
        set: &'static str,
        id: u32,
        from: u32,
        into: Option<u32>,
        not: bool,
    },
    /// Goes on when the destination is one of our own addresses.
    IsLocal,
    /// Goes on in another chain.
    Jump(&'static str),
    /// The packet ends here.
    Drop,
    /// Sends it to the address and port in these registers.
    Destination {
        family: u32,
        address: u32,
        port: u32,
    },
    /// Gives it the address of the interface that it leaves by.
    Masquerade,
}

/// `NFT_META_*`.
pub(super) const IIFNAME: u32 = 6;
pub(super) const OIFNAME: u32 = 7;
pub(super) const NFPROTO: u32 = 15;
pub(super) const L4PROTO: u32 = 16;
/// `NFT_CT_STATUS`.
pub(super) const STATUS: u32 = 2;

impl Step {
    fn write(&self, message: &mut Message) {
        message.text(1, self.name());
        message.marked(2, |data| self.data(data));
    }

    const fn name(&self) -> &'static str {
        match self {
            Self::Meta { .. } => "meta",
            Self::Load { .. } => "payload",
            Self::Mask { .. } => "bitwise",
            Self::Connection { .. } => "ct",
            Self::Is { .. } => "cmp",
            Self::In { .. } => "lookup",
            Self::IsLocal => "fib",
            Self::Jump(_) | Self::Drop => "immediate",
            Self::Destination { .. } => "nat",
            Self::Masquerade => "masq",
        }
    }

    fn data(&self, data: &mut Message) {
        match self {
            Self::Meta { key, into } | Self::Connection { key, into } => {
                numbers(data, &[(1, *into), (2, *key)]);
            }
            Self::Load {
                header,
                at,
                length,
                into,
            } => {
                numbers(data, &[(1, *into), (2, *header), (3, *at), (4, *length)]);
            }
            Self::Mask { register, bits } => {
                let length = u32::try_from(bits.len()).unwrap_or_default();
                numbers(data, &[(1, *register), (2, *register), (3, length)]);
                value(data, 4, bits);
                value(data, 5, &vec![0; bits.len()]);
            }
            Self::Is {
                register,
                value: wanted,
                not,
            } => {
                numbers(data, &[(1, *register), (2, u32::from(*not))]);
                value(data, 3, wanted);
            }
            Self::In {
                set,
                id,
                from,
                into,
                not,
            } => {
                data.text(1, set);
                numbers(data, &[(2, *from), (4, *id)]);
                if let Some(into) = into {
                    number(data, 3, *into);
                }
                if *not {
                    number(data, 5, 1);
                }
            }
            // The kind of the destination's address; what it is goes to the next step.
            Self::IsLocal => numbers(data, &[(1, REGISTER), (2, 3), (3, 2)]),
            Self::Jump(chain) => verdict(data, -3, Some(chain)),
            Self::Drop => verdict(data, 0, None),
            Self::Destination {
                family,
                address,
                port,
            } => {
                numbers(data, &[(1, 1), (2, *family), (3, *address), (5, *port)]);
            }
            Self::Masquerade => {}
        }
    }
}

fn numbers(data: &mut Message, all: &[(u16, u32)]) {
    for (kind, value) in all {
        number(data, *kind, *value);
    }
}

/// `NFTA_DATA_VALUE`.
pub(super) fn value(data: &mut Message, kind: u16, bytes: &[u8]) {
    data.marked(kind, |inner| {
        inner.bytes(1, bytes);
    });
}

/// `NFTA_DATA_VERDICT` into the register of verdicts.
fn verdict(data: &mut Message, code: i32, chain: Option<&str>) {
    number(data, 1, 0);
    data.marked(2, |inner| {
        inner.marked(2, |verdict| {
            number(verdict, 1, code.cast_unsigned());
            if let Some(chain) = chain {
                verdict.text(2, chain);
            }
        });
    });
}
