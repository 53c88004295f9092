//! Interfaces that come, go, and move.

use types::network::{LinkKind, LinkName, LinkSpec, TunMode};
use types::{Code, Context as _, Error, Result};

use super::{Inside, Seen, change, classed, encode};

/// A new interface.
#[derive(Clone, Debug)]
pub(crate) struct New<'a> {
    /// Its name.
    pub(crate) name: &'a LinkName,
    /// What it is.
    pub(crate) kind: &'a LinkKind,
    /// What it is to be besides.
    pub(crate) spec: &'a LinkSpec,
    /// Mark of interfaces that are ours.
    pub(crate) group: u32,
}

/// Checks what can be checked of a kind without looking.
///
/// # Errors
/// `InvalidArgument`.
pub(crate) fn validate(name: &LinkName, kind: &LinkKind, spec: &LinkSpec) -> Result<()> {
    let refuse = |why: String| {
        Err(Error::invalid_argument(format_args!(
            "{} {name}: {why}",
            kind.as_str()
        )))
    };
    match kind {
        LinkKind::Veth(None) => return refuse("the name of the other end is missing".into()),
        LinkKind::Veth(Some(peer)) if peer.name == *name && peer.place.is_none() => {
            return refuse("both ends have the same name".into());
        }
        LinkKind::Macvlan(None, _) | LinkKind::Ipvlan(None, _) | LinkKind::Vlan(None, _) => {
            return refuse("the name of the parent is missing".into());
        }
        LinkKind::Vlan(_, id) if !(1..=4094).contains(id) => {
            return refuse(format!("tag {id} is not one of 1 to 4094"));
        }
        LinkKind::Vxlan(vxlan) => {
            if vxlan.vni >= 1 << 24 {
                return refuse(format!("number {} has more than 24 bits", vxlan.vni));
            }
            if let (Some(remote), Some(local)) = (vxlan.remote, vxlan.local)
                && remote.is_ipv4() != local.is_ipv4()
            {
                return refuse(format!("{remote} and {local} are of two families"));
            }
            if vxlan.remote.is_some_and(|remote| remote.is_multicast()) && vxlan.parent.is_none() {
                return refuse("a multicast group needs a parent".into());
            }
        }
        LinkKind::Foreign(kind) => {
            return refuse(format!("kind {kind:?} is not made here"));
        }
        _ => {}
    }
    change::validate(name, spec)
}

impl Inside {
    /// Makes an interface; the other end or the parent is in `elsewhere`, or beside it.
    ///
    /// # Errors
    /// `AlreadyExists` for a name that is taken, `NotFound` for the parent, `NotImplemented` with the kind
    /// that this kernel lacks, those of [`Inside::change`]. Then there is nothing new.
    pub(crate) fn create(&mut self, new: &New<'_>, elsewhere: Option<&mut Self>) -> Result<Seen> {
        validate(new.name, new.kind, new.spec)?;
        let failed = |e: Error| match e.code() {
            Code::NotImplemented => e.ctx(format!(
                "the kernel has no interfaces of kind {}",
                new.kind.as_str()
            )),
            _ => e,
        };
        match (new.kind, elsewhere) {
            (LinkKind::Tun(mode), _) => self.create_tun(new, *mode)?,
            (LinkKind::Veth(_), elsewhere) => {
                let peer_target = elsewhere.map(|peer| peer.fd());
                self.add(new.kind, &encoded(new, new.name.as_str(), peer_target))
                    .map_err(failed)?;
            }
            (kind, None) => {
                let mut parts = encoded(new, new.name.as_str(), None);
                parts.parent = self.parent(kind)?;
                self.add(kind, &parts).map_err(failed)?;
            }
            (kind, Some(below)) => self.create_above(kind, new, below).map_err(failed)?,
        }
        self.finish(new)
    }

    fn parent(&mut self, kind: &LinkKind) -> Result<Option<u32>> {
        let Some(parent) = kind.other() else {
            return Ok(None);
        };
        let raw = self
            .raw(&parent.name)
            .ctx_with(|| format!("parent of {}", kind.as_str()))?;
        Ok(Some(raw.index))
    }

    pub(super) fn add(&mut self, kind: &LinkKind, parts: &encode::New<'_>) -> Result<()> {
        let Some(message) = encode::create(kind, *parts) else {
            return Err(Error::not_implemented(format_args!(
                "kind {:?}",
                kind.as_str()
            )));
        };
        self.socket.change(message).map_err(classed)
    }

    /// Makes an interface whose parent is in `below`. There its name may be taken: on the way it has one
    /// that nobody else has.
    fn create_above(&mut self, kind: &LinkKind, new: &New<'_>, below: &mut Self) -> Result<()> {
        if self.raw(new.name).absent_ok()?.is_some() {
            return Err(Error::already_exists(format_args!(
                "interface {}",
                new.name
            )));
        }
        let way = way(new.group)?;
        let mut parts = encoded(new, way.as_str(), None);
        parts.parent = below.parent(kind)?;
        parts.target = Some(self.fd());
        below.add(kind, &parts)?;
        let made = self.raw(&way)?;
        let done = self
            .socket
            .change(encode::rename(made.index, way.as_str(), new.name.as_str()));
        done.map_err(classed)
            .inspect_err(|_| self.drop_made(made.index, &way))
    }

    /// Such a device has no mark from the beginning: it has a name that says whose it is until it has.
    fn create_tun(&mut self, new: &New<'_>, mode: TunMode) -> Result<()> {
        if self.raw(new.name).absent_ok()?.is_some() {
            return Err(Error::already_exists(format_args!(
                "interface {}",
                new.name
            )));
        }
        let way = way(new.group)?;
        let made = || sys::tun::create(way.as_str(), mode == TunMode::Tap);
        self.within(made).map_err(classed)?;
        let raw = self.raw(&way)?;
        let steps = [
            encode::mark(raw.index, way.as_str(), new.group),
            encode::rename(raw.index, way.as_str(), new.name.as_str()),
        ];
        let done = steps
            .into_iter()
            .try_for_each(|step| self.socket.change(step));
        done.map_err(classed)
            .inspect_err(|_| self.drop_made(raw.index, &way))
    }

    /// The rest of what a new interface is to be.
    fn finish(&mut self, new: &New<'_>) -> Result<Seen> {
        let made = self.raw(new.name)?;
        self.converge(new.name, new.spec)
            .inspect_err(|_| self.drop_made(made.index, new.name))
    }

    /// Takes away an interface whose creation has failed.
    pub(crate) fn drop_made(&mut self, index: u32, name: &LinkName) {
        if let Err(error) = self.socket.change(encode::delete(index, name.as_str())) {
            tracing::warn!(%name, %error, "interface of a failed creation stays");
        }
    }

    /// Takes an interface away.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` for a device, which is not made by anybody.
    pub(crate) fn delete(&mut self, name: &LinkName) -> Result<()> {
        let raw = self.raw(name)?;
        let done = self.socket.change(encode::delete(raw.index, name.as_str()));
        done.map_err(classed).map_err(|e| match e.code() {
            Code::NotImplemented => e.reclass(Code::FailedPrecondition),
            _ => e,
        })
    }

    /// Gives an interface another name.
    ///
    /// # Errors
    /// `NotFound`, `AlreadyExists`.
    pub(crate) fn rename(&mut self, name: &LinkName, to: &LinkName) -> Result<Seen> {
        let raw = self.raw(name)?;
        if name != to {
            let done = self
                .socket
                .change(encode::rename(raw.index, name.as_str(), to.as_str()));
            done.map_err(classed)?;
        }
        self.get(to)
    }

    /// Moves an interface to `target`, where it has the name `to`. Addresses, routes and whether it is up
    /// go with it; its bridge does not.
    ///
    /// # Errors
    /// `NotFound`, `AlreadyExists` for the name, `InvalidArgument` for an interface that cannot move. Then
    /// it is where and what it was.
    pub(crate) fn transfer(
        &mut self,
        name: &LinkName,
        target: &mut Self,
        to: &LinkName,
    ) -> Result<Seen> {
        let before = self.get(name)?;
        if target.raw(to).absent_ok()?.is_some() {
            return Err(Error::already_exists(format_args!("interface {to}")));
        }
        let message = encode::transfer(before.link.index, name.as_str(), target.fd(), to.as_str());
        let moved = self.socket.change(message).map_err(classed);
        let mut wanted = change::after_a_move(&before);
        wanted.attachment = None;
        match moved.and_then(|()| target.converge(to, &wanted)) {
            Ok(seen) => Ok(seen),
            Err(error) => {
                self.bring_back(&before, target, to);
                Err(error)
            }
        }
    }

    /// Fetches back what a move that failed has left on its way.
    pub(super) fn bring_back(&mut self, before: &Seen, target: &mut Self, to: &LinkName) {
        let name = &before.link.name;
        let back = || -> Result<()> {
            if self.raw(name).absent_ok()?.is_none() {
                // The kernel moves first and renames then.
                let found = match target.raw(to).absent_ok()? {
                    Some(found) => found,
                    None => target.raw(name)?,
                };
                let is_it = (found.mac, found.group) == (before.link.mac, before.group);
                if !is_it {
                    return Err(Error::failed_precondition(format_args!(
                        "interface {} there is another one",
                        found.name
                    )));
                }
                let message =
                    encode::transfer(found.index, found.name.as_str(), self.fd(), name.as_str());
                target.socket.change(message)?;
            }
            let wanted = change::after_a_move(before);
            self.converge(name, &wanted).map(drop)
        };
        let mut back = back;
        if let Err(error) = back() {
            tracing::warn!(%name, %error, "interface of a failed move is not what it was");
        }
    }
}

fn encoded<'a>(new: &New<'_>, name: &'a str, peer_target: Option<i32>) -> encode::New<'a> {
    encode::New {
        name,
        group: new.group,
        peer_target,
        ..encode::New::default()
    }
}

/// How names begin of interfaces that are on their way to their own name.
const WAY: &str = "ct";

/// A name that no interface of another daemon, nor any other call of this process, has on its way.
fn way(group: u32) -> Result<LinkName> {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let count = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{WAY}{group:08x}{count:04x}").parse()
}

/// True for the name of an interface of this mark that was on its way to its own name.
pub(crate) fn is_on_its_way(name: &LinkName, group: u32) -> bool {
    let count = name.as_str().strip_prefix(&format!("{WAY}{group:08x}"));
    count.is_some_and(|count| count.len() == 4 && u16::from_str_radix(count, 16).is_ok())
}
