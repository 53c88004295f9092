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
    /// `None` when the client can do all of it; it says which types it can.
    pub(crate) fn of(mounts: &[Mount], temporary: bool, allowed: &[String]) -> Option<Self> {
        let mut ours: Vec<Planned> = mounts.iter().cloned().map(planned).collect();
        let can = |kind: &str| allowed.iter().any(|allowed| allowed == kind);
        let needed = |(at, one): (usize, &Planned)| {
            let kind = &one.mount.kind;
            if temporary || (Handler::of(kind) != Handler::Kernel && !can(kind)) {
                Some(at + 1)
            } else {
                // What is filled in may name any mount before it.
                let is_changed = changes(&mounts[at].kind)
                    .any(|change| !can(&format!("{change}/*")) && !can(&mounts[at].kind));
                is_changed.then_some(at)
            }
        };
        let first = ours.iter().enumerate().filter_map(needed).max()?;
        let mut theirs = ours.split_off(first);
        // The first one is changed here whoever else could: what it names by number are the mounts before
        // it, which are ours, and the client does not see them. Parity.
        for (one, mount) in theirs.iter_mut().zip(&mounts[first..]).skip(1) {
            let is_whole = changes(&mount.kind).all(|change| can(&format!("{change}/*")));
            if is_whole || can(&mount.kind) {
                // Whoever can do it wants it as it was.
                *one = Planned {
                    mount: mount.clone(),
                    changes: Vec::new(),
                };
            }
        }
        let bind = theirs.is_empty();
        Some(Self { ours, theirs, bind })
    }
}

/// The changes in a type, by name.
fn changes(kind: &str) -> impl Iterator<Item = &str> {
    let mut left = kind;
    std::iter::from_fn(move || {
        let (prefix, rest) = left.split_once('/')?;
        left = rest;
        Change::of(prefix).map(|_| prefix)
    })
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
        let mounts: Vec<_> = kinds.iter().map(mount).collect();
        let plan = Plan::of(&mounts, temporary, &[])?;
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
    fn the_client_keeps_what_it_says_it_can_do() {
        for (kinds, allowed, want) in [
            (&["erofs"][..], &["erofs"][..], None),
            (&["erofs", "overlay"], &["erofs"], None),
            (&["loop", "erofs"], &["erofs"], Some((1, vec!["erofs"]))),
            (&["erofs", "loop"], &["erofs"], Some((2, vec![]))),
            (&["ext4", "format/overlay"], &["format/*"], None),
            (&["ext4", "format/overlay"], &["format/overlay"], None),
            (
                &["loop", "format/overlay"],
                &["format/*"],
                Some((1, vec!["overlay"])),
            ),
            (
                &["loop", "bind", "format/overlay"],
                &["format/*"],
                Some((1, vec!["bind", "format/overlay"])),
            ),
            (
                &["ext4", "format/mkdir/overlay"],
                &["format/*"],
                Some((1, vec!["overlay"])),
            ),
            (
                &["ext4", "format/mkdir/overlay"],
                &["format/*", "mkdir/*"],
                None,
            ),
            (
                &["ext4", "format/overlay"],
                &["mkdir/*"],
                Some((1, vec!["overlay"])),
            ),
        ] {
            let allowed: Vec<String> = allowed.iter().map(|&kind| kind.to_owned()).collect();
            let mounts = kinds.iter().map(|&kind| Mount {
                kind: kind.to_owned(),
                ..Mount::default()
            });
            let plan = Plan::of(&mounts.collect::<Vec<_>>(), false, &allowed);
            let cut = plan.as_ref().map(|plan| {
                let theirs = plan.theirs.iter().map(|one| one.mount.kind.as_str());
                (plan.ours.len(), theirs.collect())
            });
            assert_eq!(cut, want, "{kinds:?} {allowed:?}");
        }
        // For a temporary one all is done.
        let erofs = Mount {
            kind: "erofs".into(),
            ..Mount::default()
        };
        assert!(Plan::of(&[erofs], true, &["erofs".to_owned()]).is_some());
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
