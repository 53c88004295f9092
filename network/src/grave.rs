//! Where wires and network namespaces go that are taken away, until the kernel has done so.
//!
//! To take an interface away makes the kernel wait, 10 to 40 ms, for everybody who may still look at it, and nobody
//! else can change any meanwhile. Many that are taken away together wait once. So who takes a wire away only
//! buries it: both ends are set down, lose their names, their bridge and their alias, and are marked. From then on
//! no packet goes by it, it is in no list of ours, and its name and addresses can be given again. The end of a driver's
//! wire has a name of its own making, and keeps that and its bridge: to take each makes the kernel wait, too, if only
//! for 0.1 ms. Who wants the name before has it taken away. A worker takes all that are marked away within [`SOON`], in one call of the kernel. A network namespace is likewise kept until then:
//! the kernel's own cleaning up begins with the last that has one, and is as slow.
//!
//! Invariant: what is buried has the grave's mark, so that whoever comes after a crash takes it away, and nothing
//! but that. Nobody but those who have the grave's directory give its mark.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sys::netns::NetNs;
use types::network::LinkName;
use types::{Context as _, Result};

use crate::link::{Inside, buried_name};

/// From the first that is buried to when all are taken away.
pub(crate) const SOON: Duration = Duration::from_millis(100);
/// Most network namespaces that wait: each has a descriptor.
const MOST: usize = 256;
/// Marks of what is buried begin with it, and no others of ours do.
const BURIED: u32 = 0x1000_0000;
const REST: u32 = BURIED - 1;

/// True for the mark of a grave.
pub(crate) const fn is_grave(mark: u32) -> bool {
    mark & !REST == BURIED
}

/// A grave. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Grave {
    mark: u32,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: Mutex<Waiting>,
    /// There are too many, or none any more.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    namespaces: Vec<NetNs>,
    wires: usize,
    has_worker: bool,
}

impl Waiting {
    fn is_over(&self) -> bool {
        self.namespaces.is_empty() && self.wires == 0
    }
}

/// An end of a wire: its number, and its name for messages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End<'a> {
    pub(crate) index: u32,
    pub(crate) name: &'a str,
}

impl Grave {
    /// That of those who mark their own interfaces with `group`.
    pub(crate) fn new(group: u32) -> Self {
        Self {
            mark: group & REST | BURIED,
            state: Arc::default(),
        }
    }

    /// The mark of what is buried.
    pub(crate) const fn mark(&self) -> u32 {
        self.mark
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        let waiting = self.state.waiting.lock();
        waiting.unwrap_or_else(PoisonError::into_inner)
    }

    /// Buries a wire between the host and a namespace. Its end on the host keeps its name until it is gone, or
    /// [`Grave::free`] takes it.
    ///
    /// # Errors
    /// Those of the kernel. Then who wants it away has to take it away by its number: it may have another name.
    pub(crate) fn wire(
        &self,
        (host, outer): (&mut Inside, End<'_>),
        (inside, inner): (&mut Inside, End<'_>),
    ) -> Result<()> {
        let name = buried_name(self.mark)?;
        inside.bury(inner, &name, self.mark)?;
        host.retire(outer, self.mark)?;
        self.count_wire();
        Ok(())
    }

    /// Takes the name from an end that is buried and has it still.
    ///
    /// # Errors
    /// Those of the kernel.
    pub(crate) fn free(&self, host: &mut Inside, outer: End<'_>) -> Result<()> {
        let name = buried_name(self.mark)?;
        host.bury(outer, &name, self.mark).absent_ok().map(drop)
    }

    /// Buries the host's end of a wire whose other end goes with its namespace, which is handed to
    /// [`Grave::namespace`] next.
    ///
    /// # Errors
    /// As [`Grave::wire`].
    pub(crate) fn end_of_wire(&self, host: &mut Inside, outer: End<'_>) -> Result<()> {
        let name = buried_name(self.mark)?;
        host.bury(outer, &name, self.mark)?;
        self.count_wire();
        Ok(())
    }

    fn count_wire(&self) {
        let mut waiting = self.waiting();
        waiting.wires += 1;
        self.call_worker(waiting);
    }

    /// Keeps a namespace that nobody uses until it goes with others.
    pub(crate) fn namespace(&self, namespace: NetNs) {
        let mut waiting = self.waiting();
        waiting.namespaces.push(namespace);
        if waiting.namespaces.len() >= MOST {
            self.state.changed.notify_all();
        }
        self.call_worker(waiting);
    }

    /// Takes all away now that are buried. Blocks.
    ///
    /// # Errors
    /// Those of the kernel.
    pub(crate) fn empty(&self) -> Result<()> {
        let gone = {
            let mut waiting = self.waiting();
            waiting.wires = 0;
            self.state.changed.notify_all();
            std::mem::take(&mut waiting.namespaces)
        };
        let done = Inside::host().and_then(|mut host| host.delete_group(self.mark));
        // Wires first: with one in it the kernel takes longer to clean a namespace up.
        drop(gone);
        done
    }

    /// The interfaces that are buried and that nobody here is about to take away: left of a crash.
    ///
    /// # Errors
    /// Those of the kernel.
    pub(crate) fn left(&self) -> Result<Vec<LinkName>> {
        // Before and after: a worker may end, or begin, while they are looked at.
        let had_worker = self.waiting().has_worker;
        let marks = Inside::host()?.marks()?;
        if had_worker || self.waiting().has_worker {
            return Ok(Vec::new());
        }
        let buried = marks.into_iter().filter(|one| one.group == self.mark);
        Ok(buried.map(|one| one.name).collect())
    }

    /// A thread that is there only while there is work: it is in the namespace of whoever has some.
    fn call_worker(&self, mut waiting: MutexGuard<'_, Waiting>) {
        if waiting.has_worker {
            return;
        }
        waiting.has_worker = true;
        drop(waiting);
        let grave = self.clone();
        let called = std::thread::Builder::new().name("grave".into());
        if let Err(error) = called.spawn(move || grave.work()) {
            tracing::warn!(%error, "interfaces are taken away at once");
            self.waiting().has_worker = false;
            if let Err(error) = self.empty() {
                tracing::warn!(%error, "interfaces that were taken away are left");
            }
        }
    }

    fn work(&self) {
        loop {
            let until = Instant::now() + SOON;
            let mut waiting = self.waiting();
            while !waiting.is_over() && waiting.namespaces.len() < MOST {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                let woken = self.state.changed.wait_timeout(waiting, left);
                waiting = woken.unwrap_or_else(PoisonError::into_inner).0;
            }
            if waiting.is_over() {
                waiting.has_worker = false;
                self.state.changed.notify_all();
                return;
            }
            drop(waiting);
            if let Err(error) = self.empty() {
                // They have their mark: the next start takes them away, or the next that is buried.
                tracing::warn!(%error, "interfaces that were taken away are left");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use types::{Code, Error};

    use super::*;
    use crate::testing::Net;

    const GROUP: u32 = 0x2345_6789;

    fn number(net: &Net, name: &str) -> u32 {
        let said = net.run(&format!("ip -o link show {name}"));
        said.split(':').next().unwrap().parse().unwrap()
    }

    fn links(net: &Net) -> String {
        net.run("ip -o link show | sed 's/^[0-9]*: //; s/[@:].*//' | sort | tr '\n' ' '")
    }

    /// Makes a wire between two namespaces, up, with an address inside, and buries it; the number of its end on the
    /// host.
    fn wire(grave: &Grave, host: &Net, inside: &Net) -> u32 {
        let path = inside.path.display();
        host.run(&format!(
            "ip link add out up alias x type veth peer name eth0 netns {path}"
        ));
        inside.run("ip link set eth0 up && ip addr add 10.1.2.3/24 dev eth0");
        let (outer, inner) = (number(host, "out"), number(inside, "eth0"));
        let end = |index, name| End { index, name };
        host.within(|| {
            let mut within = Inside::open(&inside.path)?;
            let to = (&mut within, end(inner, "eth0"));
            grave.wire((&mut Inside::host()?, end(outer, "out")), to)
        })
        .unwrap();
        outer
    }

    #[test]
    fn what_is_buried_gives_its_name_and_address_away_and_is_soon_gone() {
        let (host, inside, grave) = (Net::new(), Net::new(), Grave::new(GROUP));
        let before = (links(&host), links(&inside));
        // The same again at once, more often than the kernel could take them away.
        for _ in 0..20 {
            let index = wire(&grave, &host, &inside);
            let shown = host.try_run("ip -o link show up | grep ' out[:@]'");
            assert!(!shown.0, "{shown:?}");
            let outer = End { index, name: "out" };
            host.within(|| grave.free(&mut Inside::host()?, outer))
                .unwrap();
            let seen = inside.within(|| Inside::host()?.list()).unwrap();
            assert_eq!(seen.len(), 1, "{seen:?}");
            assert_eq!(inside.run("ip route"), "");
        }
        host.within(|| grave.empty()).unwrap();
        assert_eq!((links(&host), links(&inside)), before);
        assert!(host.within(|| grave.left()).unwrap().is_empty());
        // The worker, too.
        wire(&grave, &host, &inside);
        let working = grave
            .state
            .changed
            .wait_while(grave.waiting(), |waiting| waiting.has_worker);
        drop(working.unwrap());
        assert_eq!((links(&host), links(&inside)), before);
    }

    #[test]
    fn the_grave_of_another_and_what_is_not_buried_are_left_alone() {
        let (host, inside) = (Net::new(), Net::new());
        let (ours, other) = (Grave::new(GROUP), Grave::new(GROUP + 1));
        host.run(&format!(
            "ip link add mine group {GROUP} type bridge; ip link add free type bridge; \
             ip link add theirs group {} type bridge",
            other.mark()
        ));
        let before = links(&host);
        wire(&ours, &host, &inside);
        host.within(|| ours.empty()).unwrap();
        assert_eq!(links(&host), before);
        assert_eq!(host.within(|| other.left()).unwrap()[0].as_str(), "theirs");
    }

    #[test]
    fn a_namespace_is_kept_until_the_grave_is_emptied() {
        let (host, grave) = (Net::new(), Grave::new(GROUP));
        let inside = Net::new();
        let path = inside.path.display();
        host.run(&format!(
            "ip link add out type veth peer name eth0 netns {path}"
        ));
        let outer = number(&host, "out");
        host.within(|| {
            let end = End {
                index: outer,
                name: "out",
            };
            grave.end_of_wire(&mut Inside::host()?, end)?;
            grave.namespace(NetNs::open(&inside.path)?);
            Ok::<_, Error>(())
        })
        .unwrap();
        drop(inside);
        host.within(|| grave.empty()).unwrap();
        assert_eq!(links(&host), "lo ");
        assert!(grave.waiting().is_over());
    }

    #[test]
    fn what_cannot_be_buried_is_an_error() {
        let (host, grave) = (Net::new(), Grave::new(GROUP));
        let end = End {
            index: 4711,
            name: "x",
        };
        let failed = host.within(|| grave.end_of_wire(&mut Inside::host()?, end));
        assert!(failed.unwrap_err().is(Code::NotFound));
    }
}
