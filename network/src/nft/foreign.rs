//! Packet filters of others that keep forwarded packets from where they should go.
//!
//! Invariant: they are looked at and named, never changed: whose they are knows what they are for.

use std::collections::BTreeSet;

use sys::netlink::{Message, Socket, attributes, text_of};
use types::Result;

use super::message::GET_CHAIN;

/// `NF_INET_FORWARD`.
const FORWARD: u32 = 2;
/// `NF_DROP`.
const DROP: u32 = 0;
/// `NFTA_CHAIN_*`, `NFTA_HOOK_HOOKNUM`.
const TABLE: u16 = 1;
const NAME: u16 = 3;
const HOOK: u16 = 4;
const POLICY: u16 = 5;
const HOOK_NUMBER: u16 = 1;
/// `struct nfgenmsg`.
const BODY: usize = 4;
/// No such subsystem.
const EINVAL: i32 = 22;

/// Chains that drop what is forwarded and no rule of theirs lets pass, as `nft list chain` names them.
///
/// # Errors
/// The errno.
pub(crate) fn dropping(socket: &mut Socket) -> Result<BTreeSet<String>> {
    let message = Message::new("list chains of packet filters", GET_CHAIN, 0, &[0; BODY]);
    match socket.list(&message, |entry| Ok(read(entry))) {
        Ok(found) => Ok(found.into_iter().collect()),
        Err(error) if error.errno() == Some(EINVAL) => Ok(BTreeSet::new()),
        Err(error) => Err(error),
    }
}

fn read(entry: &[u8]) -> Option<String> {
    let family = match entry.first()? {
        1 => "inet",
        2 => "ip",
        10 => "ip6",
        // Of bridges and devices: not what is routed.
        _ => return None,
    };
    let (mut table, mut name, mut hook, mut policy) = (None, None, None, None);
    for (kind, value) in attributes(entry.get(BODY..)?) {
        match kind {
            TABLE => table = Some(text_of(value)),
            NAME => name = Some(text_of(value)),
            HOOK => {
                let found = attributes(value).find(|(kind, _)| *kind == HOOK_NUMBER);
                hook = found.and_then(|(_, value)| number(value));
            }
            POLICY => policy = number(value),
            _ => {}
        }
    }
    let drops = hook == Some(FORWARD) && policy == Some(DROP);
    drops.then(|| Some(format!("{family} {} {}", table?, name?)))?
}

fn number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use sys::netlink::Family;

    use super::*;
    use crate::testing::Net;

    fn look() -> BTreeSet<String> {
        dropping(&mut Socket::open(Family::Netfilter).unwrap()).unwrap()
    }

    #[test]
    fn chains_that_drop_what_is_forwarded_are_named_and_no_others() {
        let net = Net::new();
        assert!(net.within(look).is_empty());
        net.run(
            "nft 'table ip filter { \
               chain FORWARD { type filter hook forward priority 0; policy drop; }; \
               chain INPUT { type filter hook input priority 0; policy drop; }; \
               chain other { }; \
             }; table inet mine { \
               chain one { type filter hook forward priority 0; policy accept; }; \
               chain two { type filter hook forward priority 1; policy drop; }; \
             }'",
        );
        let found = net.within(look);
        let found: Vec<_> = found.iter().map(String::as_str).collect();
        assert_eq!(found, ["inet mine two", "ip filter FORWARD"]);
    }
}
