//! Wires between bridges and containers, in as few calls of the kernel as they can be made with.

use std::collections::HashMap;

use types::Result;
use types::network::{LinkKind, LinkName, LinkSpec, MacAddr, Other};

use super::{Depth, Inside, Parts, Seen, change, classed, encode, seen, sysctl};

/// A new wire.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wire<'a> {
    /// Its end at the bridge.
    pub(crate) outer: &'a LinkName,
    /// Its end inside.
    pub(crate) inner: &'a LinkName,
    /// Number of the bridge.
    pub(crate) bridge: u32,
    /// Largest packet of both ends; the kernel's choice without one.
    pub(crate) mtu: Option<u32>,
    /// Hardware address of the end inside, likewise.
    pub(crate) mac: Option<MacAddr>,
    /// Mark of interfaces that are ours.
    pub(crate) group: u32,
}

/// The end of a wire at its bridge.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outer {
    pub(crate) index: u32,
    pub(crate) mac: Option<MacAddr>,
    pub(crate) mtu: u32,
}

impl Inside {
    /// Makes a wire from a bridge here to the inside of another namespace: up at the bridge, by which packets may
    /// come back that came by it, and down there.
    ///
    /// # Errors
    /// `AlreadyExists` for a name that is taken, else those of the kernel. Then there is nothing new.
    pub(crate) fn wire(&mut self, wire: &Wire<'_>, to: &Self) -> Result<Outer> {
        let kind = LinkKind::Veth(Some(Other::beside(wire.inner.clone())));
        let parts = encode::New {
            name: wire.outer.as_str(),
            group: wire.group,
            target: None,
            parent: None,
            peer_target: Some(to.fd()),
            master: Some(wire.bridge),
            mtu: wire.mtu,
            peer_mac: wire.mac,
            is_up: true,
        };
        self.add(&kind, &parts)?;
        let raw = match self.raw(wire.outer) {
            Ok(raw) => raw,
            Err(error) => {
                if let Err(error) = self.delete(wire.outer) {
                    tracing::warn!(name = %wire.outer, %error, "interface of a failed creation stays");
                }
                return Err(error);
            }
        };
        // By its number: under its name there might be another one by now.
        let port = encode::set_port(raw.index, wire.outer.as_str(), true, false);
        let set = self.socket.change(port).map_err(classed);
        set.inspect_err(|_| self.drop_made(raw.index, wire.outer))?;
        Ok(Outer {
            index: raw.index,
            mac: raw.mac,
            mtu: raw.mtu,
        })
    }

    /// Makes a new interface that nobody else knows of what `spec` asks for. On failure it may be anything between:
    /// it is for who made it to take it away.
    ///
    /// # Errors
    /// Those of [`Inside::change`].
    pub(crate) fn furnish(&mut self, name: &LinkName, spec: &LinkSpec) -> Result<Seen> {
        change::validate(name, spec)?;
        // Some of them decide about the rest.
        if !spec.sysctls.is_empty() {
            self.within(|| sysctl::write_all(name, &spec.sysctls))?;
        }
        let raw = self.raw(name)?;
        // It has had nothing so far.
        let bare = seen(raw, &HashMap::new(), &mut Parts::default());
        let steps = change::plan(&bare, spec, 0);
        self.socket.change_all(steps).map_err(classed)?;
        let raw = self.raw(name)?;
        let depth = match spec.neighbours {
            Some(_) => Depth::All,
            None => Depth::Routes,
        };
        let seen = self.complete(raw, depth)?;
        match change::plan(&seen, spec, 0).is_empty() {
            true => Ok(seen),
            // Something went with something else, as it may.
            false => self.converge(name, spec),
        }
    }
}
