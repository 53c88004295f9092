//! Which mounts are ours to perform, and what is to be done to each before.
//!
//! ```text
//! format/mkdir/overlay  =  fill places in, then make directories, then it is an overlay
//! ```

use types::Mount;

use crate::change::Change;
use crate::handler::Handler;

/// A mount, and what is to be done to it first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Planned {
    pub(crate) mount: Mount,
    pub(crate) changes: Vec<Change>,
}

/// A list of mounts, cut in two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Performed here.
    pub(crate) ours: Vec<Planned>,
    /// Left to the client.
    pub(crate) theirs: Vec<Planned>,
    /// The client gets one mount more, of the place of our last one.
    pub(crate) bind: bool,
}

impl Plan {
    /// `None` when the client can do all of it.
    pub(crate) fn of(mounts: Vec<Mount>, temporary: bool) -> Option<Self> {
        let mut ours: Vec<Planned> = mounts.into_iter().map(planned).collect();
        let needed = |(at, one): (usize, &Planned)| {
            if temporary || Handler::of(&one.mount.kind) != Handler::Kernel {
                Some(at + 1)
            } else {
                // What is filled in may name any mount before it.
                (!one.changes.is_empty()).then_some(at)
            }
        };
        let first = ours.iter().enumerate().filter_map(needed).max()?;
        let theirs = ours.split_off(first);
        let bind = theirs.is_empty();
        Some(Self { ours, theirs, bind })
    }
}

/// Takes the changes off the type.
fn planned(mut mount: Mount) -> Planned {
    let mut changes = Vec::new();
    let mut kind = mount.kind.as_str();
    while let Some((prefix, rest)) = kind.split_once('/') {
        let Some(change) = Change::of(prefix) else {
            // The kernel will say that it does not know such a type.
            break;
        };
        changes.push(change);
        kind = rest;
    }
    mount.kind = kind.to_owned();
    Planned { mount, changes }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(kinds: &[&str], temporary: bool) -> Option<(usize, usize, bool)> {
        let mount = |kind: &&str| Mount {
            kind: (*kind).to_owned(),
            ..Mount::default()
        };
        let plan = Plan::of(kinds.iter().map(mount).collect(), temporary)?;
        Some((plan.ours.len(), plan.theirs.len(), plan.bind))
    }

    #[test]
    fn the_client_keeps_what_it_can_do() {
        for (kinds, temporary, want) in [
            (&["bind"][..], false, None),
            (&["overlay", "unknown/bind"], false, None),
            (&[], true, None),
            (&["loop", "ext4"], false, Some((1, 1, false))),
            (&["bind", "erofs", "overlay"], false, Some((2, 1, false))),
            (&["ext4", "format/overlay"], false, Some((1, 1, false))),
            (&["format/overlay"], false, Some((0, 1, false))),
            (
                &["ext4", "format/overlay", "bind"],
                false,
                Some((1, 2, false)),
            ),
            (&["erofs"], false, Some((1, 0, true))),
            (&["format/mkdir/overlay"], true, Some((1, 0, true))),
            (&["bind", "bind"], true, Some((2, 0, true))),
        ] {
            assert_eq!(cut(kinds, temporary), want, "{kinds:?}");
        }
    }

    #[test]
    fn changes_come_off_in_order() {
        let kind = "format/mkfs/mkdir/ext4".to_owned();
        let one = planned(Mount {
            kind,
            ..Mount::default()
        });
        assert_eq!(one.mount.kind, "ext4");
        assert_eq!(one.changes, [Change::Format, Change::Mkfs, Change::Mkdir]);
    }
}
