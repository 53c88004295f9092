//! Interfaces that are as good as gone: down, without a bridge, under a name that nobody asks for, and marked, so
//! that one call of the kernel takes all of them away.

use sys::netlink::Message;
use types::network::{LinkKind, LinkName};
use types::{Context as _, Result};

use super::decode::Raw;
use super::{Inside, classed, encode};
use crate::grave::{End, is_grave};

/// How names begin of interfaces that are buried.
const BURIED: &str = "ctg";
/// How those of the ends begin that keep theirs: see the driver's tags.
const KEPT: &str = "ctd";

/// A name that no other buried interface of this mark has, as long as fewer than 65,536 are.
pub(crate) fn buried_name(mark: u32) -> Result<LinkName> {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let count = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{BURIED}{mark:08x}{count:04x}").parse()
}

/// True for what was taken away, as far as anybody but the kernel is concerned.
pub(super) fn is_buried(raw: &Raw) -> bool {
    let name = raw.name.as_str();
    is_grave(raw.group) && (name.starts_with(BURIED) || name.starts_with(KEPT))
}

impl Inside {
    /// The number of the wire's end of this name and mark, if there is one.
    ///
    /// # Errors
    /// Those of the kernel.
    pub(crate) fn number_of_wire(&mut self, name: &LinkName, mark: u32) -> Result<Option<u32>> {
        let found = self.raw(name).absent_ok()?;
        let is_it = |raw: &Raw| raw.group == mark && matches!(raw.kind, LinkKind::Veth(_));
        Ok(found.filter(is_it).map(|raw| raw.index))
    }

    /// Has an interface count as gone.
    ///
    /// # Errors
    /// `NotFound`, else those of the kernel; then it may be anything between.
    pub(crate) fn bury(&mut self, one: End<'_>, name: &LinkName, mark: u32) -> Result<()> {
        // Down first: older kernels name nothing anew that is up.
        let steps = vec![
            encode::set_up(one.index, one.name, false),
            encode::bury(one.index, one.name, name, mark),
        ];
        self.socket.change_all(steps).map_err(classed)
    }

    /// Has an interface count as gone whose name nobody else has a use for.
    ///
    /// # Errors
    /// As [`Inside::bury`].
    pub(crate) fn retire(&mut self, one: End<'_>, mark: u32) -> Result<()> {
        let retired = self
            .socket
            .change(encode::retire(one.index, one.name, mark));
        retired.map_err(classed)
    }

    /// Takes away all interfaces with this mark, at once. None is no error.
    ///
    /// # Errors
    /// Those of the kernel: then none was taken away.
    pub(crate) fn delete_group(&mut self, mark: u32) -> Result<()> {
        let gone: Message = encode::delete_group(mark);
        let gone = self.socket.change(gone).map_err(classed);
        gone.absent_ok().map(drop)
    }

    /// Takes away the interface with this number, whatever its name is by now. None is no error.
    ///
    /// # Errors
    /// Those of the kernel.
    pub(crate) fn delete_number(&mut self, one: End<'_>) -> Result<()> {
        let gone = self.socket.change(encode::delete(one.index, one.name));
        gone.map_err(classed).absent_ok().map(drop)
    }
}
