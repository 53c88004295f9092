//! Packet filters of the native driver: masquerade for what leaves a bridge, ports of the host that lead to
//! containers, and which container has which address.
//!
//! Invariant: everything is in one table of ours, each element says whose it is, and a change is one
//! transaction: it is made whole, against the state that it was decided on, or not at all. A table that
//! has nothing in it is not there. Messages are written here, no program is needed.
//!
//! A port that leads to a container is reached at the host's addresses, from the host's own 127.0.0.1
//! too, and from containers (hairpin). It is not reached at the host's own `::1`: the kernel lets no
//! packet from there out of the host.

mod element;
mod foreign;
mod kept;
mod message;
mod ruleset;
mod slots;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sys::netlink::{Message, Socket};
use types::network::{IpNet, LinkName, PortMapping};
use types::{Context as _, Error, Result};

use element::Element;
pub(crate) use foreign::dropping;
use kept::{Found, Kept};
use message::{DEL_TABLE, about};
use ruleset::{BRIDGES, HOSTS4, RULES};
use slots::{refuse_taken, wanted};

/// How often a change is decided anew because somebody else has changed a filter meanwhile.
const MOST_TRIES: usize = 64;
/// What a kernel says that has no such subsystem: `EINVAL`, `EPROTONOSUPPORT`, `EOPNOTSUPP`.
const NO_SUCH: [i32; 3] = [22, 93, 95];
/// What `nft` shows beside the table.
const NOTE: &str = "made by containerd for its networks";

/// The table, in the network namespace of whoever calls.
#[derive(Clone, Debug)]
pub struct Nat {
    table: String,
    /// Changes at the same time would only be made in vain.
    kept: Arc<Mutex<Kept>>,
}

/// A port that leads to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// Whose it is.
    pub tag: String,
    /// The port.
    pub port: PortMapping,
    /// Address that it leads to.
    pub to: IpAddr,
}

/// What is in the table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters {
    /// The rules are there that make the rest work; where there is nothing else, none are needed.
    pub is_whole: bool,
    /// Bridges that are masqueraded.
    pub bridges: Vec<String>,
    /// Their subnets.
    pub subnets: Vec<(String, IpNet)>,
    /// Addresses that are taken, and by whom.
    pub addresses: Vec<(IpAddr, String)>,
    /// Ports that lead to containers.
    pub ports: Vec<Mapped>,
}

/// What to make of it.
#[derive(Default)]
struct Change {
    add: Vec<Element>,
    remove: Vec<Element>,
}

impl Nat {
    /// The table of this name; it is made when something is put into it.
    pub fn new(table: impl Into<String>) -> Self {
        Self {
            table: table.into(),
            kept: Arc::default(),
        }
    }

    /// Masquerades what comes from the subnets and leaves by another interface than a bridge. Those that
    /// the bridge had before are forgotten.
    ///
    /// # Errors
    /// `AlreadyExists` for a subnet that overlaps with another bridge's, else the errno.
    pub fn serve(&self, bridge: &LinkName, subnets: &[IpNet]) -> Result<()> {
        let bridge = bridge.as_str();
        let mut wanted = vec![Element::bridge(bridge)];
        for (at, subnet) in subnets.iter().enumerate() {
            let earlier = &subnets[..at];
            if let Some(other) = earlier.iter().find(|other| is_overlap(other, subnet)) {
                if other.network() == subnet.network() {
                    continue;
                }
                return Err(Error::invalid_argument(format_args!(
                    "bridge {bridge:?}: subnet {subnet} overlaps with {other}"
                )));
            }
            wanted.extend(Element::subnet(bridge, subnet));
        }
        self.change(|found| {
            refuse_overlap(found, bridge, subnets)?;
            let own = found.elements.iter().filter(|e| e.is_of_bridge(bridge));
            // A subnet may begin where another one did: what it is is in its comment.
            let has = |all: &[Element], one: &Element| all.iter().any(|e| e.tag == one.tag);
            let mut change = Change::default();
            let is_new = |one: &&Element| !has(&found.elements, one);
            change.add = wanted.iter().filter(is_new).cloned().collect();
            change.remove = with_ends(own.filter(|one| !has(&wanted, one)).cloned());
            Ok(change)
        })
        .ctx_with(|| format!("bridge {bridge:?}"))
    }

    /// Forgets a bridge with its subnets. One that is not known is no error.
    ///
    /// # Errors
    /// The errno.
    pub fn forget(&self, bridge: &LinkName) -> Result<()> {
        self.remove(|element| element.is_of_bridge(bridge.as_str()))
            .map(drop)
            .ctx_with(|| format!("bridge {bridge:?}"))
    }

    /// Takes addresses for a container, and lets ports of the host lead to the first of them of each
    /// family. What `tag` had before and does not have now is given back.
    ///
    /// # Errors
    /// `InvalidArgument` for a port that leads to no address, `AlreadyExists` for an address or a port
    /// that is taken, with by whom; then nothing is changed. Else the errno.
    pub fn attach(&self, tag: &str, addresses: &[IpAddr], ports: &[PortMapping]) -> Result<()> {
        self.attach_in(None, tag, addresses, ports)
    }

    /// As [`Nat::attach`], in an `era` only: in another one what is taken may have been somebody's until just now.
    ///
    /// # Errors
    /// `Aborted` in another era.
    pub(crate) fn attach_in(
        &self,
        era: Option<u64>,
        tag: &str,
        addresses: &[IpAddr],
        ports: &[PortMapping],
    ) -> Result<()> {
        let mut wanted = wanted(tag, ports, addresses)?;
        wanted.extend(addresses.iter().map(|one| Element::taken(tag, *one)));
        self.change_in(era, |found| {
            let is_own = |element: &&Element| element.is_of_container(tag);
            let (own, others): (Vec<_>, Vec<_>) = found.elements.iter().partition(is_own);
            refuse_taken(tag, &wanted, &others)?;
            let own: BTreeSet<_> = own.into_iter().cloned().collect();
            Ok(Change {
                add: wanted.difference(&own).cloned().collect(),
                remove: own.difference(&wanted).cloned().collect(),
            })
        })
    }

    /// Gives back the addresses and ports of `tag`; the ports that led anywhere. None is no error.
    ///
    /// # Errors
    /// The errno.
    pub fn detach(&self, tag: &str) -> Result<Vec<Mapped>> {
        self.remove(|element| element.is_of_container(tag))
    }

    /// Whether this kernel has packet filters of this kind at all.
    ///
    /// # Errors
    /// The errno.
    pub fn is_possible(&self) -> Result<bool> {
        match self.kept().generation() {
            Err(error) if NO_SUCH.contains(&error.errno().unwrap_or_default()) => Ok(false),
            asked => asked.map(|_| true),
        }
    }

    /// Everything that there is.
    ///
    /// # Errors
    /// The errno.
    pub fn look(&self) -> Result<Filters> {
        let found = self.find()?;
        Ok(filters(&found, |_| true))
    }

    /// What there is of a container and of a bridge.
    ///
    /// # Errors
    /// The errno.
    pub(crate) fn look_for(&self, tag: &str, bridge: &LinkName) -> Result<Filters> {
        let is_meant =
            |one: &Element| one.is_of_container(tag) || one.is_of_bridge(bridge.as_str());
        let found = self.find()?;
        Ok(filters(&found, is_meant))
    }

    /// Makes the table anew with all that is in it, if rules of it are missing; whether they were.
    ///
    /// # Errors
    /// The errno.
    pub fn mend(&self) -> Result<bool> {
        let mut is_made = false;
        self.kept().change(&self.table, None, |found| {
            is_made = !is_whole(found);
            let messages = match is_made {
                true => self.anew(found),
                false => Vec::new(),
            };
            Ok((Change::default(), messages))
        })?;
        Ok(is_made)
    }

    /// How often somebody else may have changed packet filters: as long as this answers the same, all is as it was
    /// left here.
    ///
    /// # Errors
    /// The errno.
    pub(crate) fn era(&self) -> Result<u64> {
        let mut kept = self.kept();
        kept.generation()?;
        Ok(kept.era)
    }

    /// The era, when all was found to be as it should in it.
    ///
    /// # Errors
    /// The errno.
    pub(crate) fn compared(&self) -> Result<Option<u64>> {
        let mut kept = self.kept();
        kept.generation()?;
        Ok(kept.compared.filter(|era| *era == kept.era))
    }

    /// Notes that all was found to be as it should, by looking in `era`.
    pub(crate) fn note_compared(&self, era: u64) {
        self.kept().compared = Some(era);
    }

    /// Asks the kernel something else of this kind, without a socket of its own.
    ///
    /// # Errors
    /// Those of `work`.
    pub(crate) fn ask<T>(&self, work: impl FnOnce(&mut Socket) -> Result<T>) -> Result<T> {
        self.kept().with(work)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self) -> Result<Arc<Found>> {
        Ok(self.kept().find(&self.table)?.1)
    }

    /// Who has addresses or ports.
    ///
    /// # Errors
    /// The errno.
    pub fn attached(&self) -> Result<BTreeSet<String>> {
        let found = self.find()?;
        let containers = found.elements.iter().filter(|one| one.set >= HOSTS4);
        Ok(containers.map(|one| one.tag.clone()).collect())
    }

    /// The addresses that are taken, and by whom.
    ///
    /// # Errors
    /// The errno.
    pub fn addresses(&self) -> Result<Vec<(IpAddr, String)>> {
        let found = self.find()?;
        let taken = found.elements.iter();
        Ok(taken
            .filter_map(|one| Some((one.address()?, one.tag.clone())))
            .collect())
    }

    /// The ports that lead to containers.
    ///
    /// # Errors
    /// The errno.
    pub fn mapped(&self) -> Result<Vec<Mapped>> {
        let found = self.find()?;
        Ok(found.elements.iter().filter_map(mapped).collect())
    }

    /// The subnets of a bridge.
    ///
    /// # Errors
    /// The errno.
    pub fn subnets(&self, bridge: &LinkName) -> Result<Vec<IpNet>> {
        let found = self.find()?;
        let own = { found.elements.iter() }.filter(|e| e.is_of_bridge(bridge.as_str()));
        let subnets = own.filter_map(|e| e.tag.split_once(' ')?.1.parse().ok());
        Ok(subnets.collect())
    }

    /// The bridges that are masqueraded.
    ///
    /// # Errors
    /// The errno.
    pub fn bridges(&self) -> Result<Vec<String>> {
        let found = self.find()?;
        let bridges = found.elements.iter().filter(|one| one.set == BRIDGES);
        Ok(bridges.map(|one| one.tag.clone()).collect())
    }

    /// Removes elements; the ports among them.
    fn remove(&self, is_meant: impl Fn(&Element) -> bool) -> Result<Vec<Mapped>> {
        let mut ports = Vec::new();
        self.change(|found| {
            let meant = found.elements.iter().filter(|e| is_meant(e)).cloned();
            let remove = with_ends(meant);
            ports = remove.iter().filter_map(mapped).collect();
            Ok(Change {
                remove,
                add: Vec::new(),
            })
        })?;
        Ok(ports)
    }

    /// Decides on a change by what is there, and makes it if that is still so.
    fn change(&self, decide: impl FnMut(&Found) -> Result<Change>) -> Result<()> {
        self.change_in(None, decide)
    }

    fn change_in(
        &self,
        era: Option<u64>,
        mut decide: impl FnMut(&Found) -> Result<Change>,
    ) -> Result<()> {
        self.kept().change(&self.table, era, |found| {
            let change = decide(found)?;
            let messages = self.messages(found, &change);
            Ok((change, messages))
        })
    }

    /// What makes a table that is there again, in one piece.
    fn anew(&self, found: &Found) -> Vec<Message> {
        let table = self.table.as_str();
        let gone = found.is_there.then(|| {
            let what = format!("remove table {table}");
            about(what, DEL_TABLE, 0, table)
        });
        let mut all: Vec<_> = gone.into_iter().collect();
        if !found.elements.is_empty() {
            all.extend(ruleset::base(table, NOTE));
            all.extend(element::messages(table, &in_order(&found.elements), true));
        }
        all
    }

    fn messages(&self, found: &Found, change: &Change) -> Vec<Message> {
        let table = self.table.as_str();
        let left = found.elements.len() + change.add.len();
        if left <= change.remove.len() {
            let what = format!("remove table {table}");
            let gone = found.is_there.then(|| about(what, DEL_TABLE, 0, table));
            return gone.into_iter().collect();
        }
        let mut all = Vec::new();
        if !found.is_there {
            all = ruleset::base(table, NOTE);
        }
        all.extend(element::messages(table, &change.remove, false));
        all.extend(element::messages(table, &change.add, true));
        all
    }
}

/// Where there is nothing else, no rules are needed.
const fn is_whole(found: &Found) -> bool {
    !found.is_there || found.rules >= RULES
}

fn filters(found: &Found, is_meant: impl Fn(&Element) -> bool) -> Filters {
    let mut made = Filters {
        is_whole: is_whole(found),
        ..Filters::default()
    };
    for element in found.elements.iter().filter(|one| is_meant(one)) {
        if let Some(mapped) = mapped(element) {
            made.ports.push(mapped);
        } else if let Some(address) = element.address() {
            made.addresses.push((address, element.tag.clone()));
        } else if element.set == BRIDGES {
            made.bridges.push(element.tag.clone());
        } else if let Some((bridge, net)) = element.tag.split_once(' ')
            && let Ok(net) = net.parse()
        {
            made.subnets.push((bridge.to_owned(), net));
        }
    }
    made
}

fn mapped(element: &Element) -> Option<Mapped> {
    let (port, to) = element.mapped()?;
    let tag = element.tag.clone();
    Some(Mapped { tag, port, to })
}

/// A subnet goes with its end, which has no comment.
fn with_ends(meant: impl Iterator<Item = Element>) -> Vec<Element> {
    let mut all = BTreeSet::new();
    for element in meant {
        let subnet = element.tag.split_once(' ').filter(|_| element.set < HOSTS4);
        match subnet.and_then(|(bridge, net)| Some((bridge, net.parse().ok()?))) {
            Some((bridge, net)) => all.extend(Element::subnet(bridge, &net)),
            None => drop(all.insert(element)),
        }
    }
    all.into_iter().collect()
}

/// Elements as they can be made: of subnets that are side by side the one must end before the other begins.
fn in_order(elements: &[Element]) -> Vec<Element> {
    let begun: BTreeSet<_> = elements.iter().filter(|one| !one.is_end).collect();
    let mut all = Vec::new();
    for element in begun {
        let subnet = element.tag.split_once(' ').filter(|_| element.set < HOSTS4);
        match subnet.and_then(|(bridge, net)| Some((bridge, net.parse().ok()?))) {
            Some((bridge, net)) => all.extend(Element::subnet(bridge, &net)),
            None => all.push(element.clone()),
        }
    }
    all
}

/// A port as it is among those that are mapped: no address of a family is each of them.
pub(crate) fn as_mapped(port: &PortMapping) -> PortMapping {
    PortMapping {
        host_ip: port.host_ip.filter(|ip| !ip.is_unspecified()),
        ..*port
    }
}

fn refuse_overlap(found: &Found, bridge: &str, subnets: &[IpNet]) -> Result<()> {
    for element in &found.elements {
        let Some((owner, net)) = element.tag.split_once(' ').filter(|_| element.set < HOSTS4)
        else {
            continue;
        };
        let Ok(taken) = net.parse::<IpNet>() else {
            continue;
        };
        if owner != bridge
            && let Some(subnet) = subnets.iter().find(|subnet| is_overlap(&taken, subnet))
        {
            return Err(Error::already_exists(format_args!(
                "subnet {} of bridge {owner:?}, which {} overlaps with",
                taken,
                subnet.network()
            )));
        }
    }
    Ok(())
}

fn is_overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(&other.address()) || other.contains(&one.address())
}

#[cfg(test)]
mod tests;
