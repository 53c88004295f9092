//! Owners as a container knows them.
//!
//! In an id-mapped overlay the layers below have the container's ids on the disk and are shown with the
//! host's; what was written since lies in the upper directory, with the host's ids. Trees are read here
//! without the mapping, so that only the latter have to be mapped back.
//!
//! Invariant: an id that no range has stays as it is.

use rustix::fs::Stat;
use sys::userns::{IdRange, parse_ranges};
use types::{Mount, Result};

use crate::extract::Xattrs;

/// `security.capability`: revision and flags, and of revision 3 the id of the namespace's root.
const REVISION_2: u32 = 0x0200_0000;
const REVISION_3: u32 = 0x0300_0000;
const REVISION_MASK: u32 = 0xff00_0000;
const REVISION_2_LEN: usize = 20;
const REVISION_3_LEN: usize = 24;
/// `system.posix_acl_*`: a version, and entries of tag, permissions and id.
const ACL_HEADER: usize = 4;
const ACL_ENTRY: usize = 8;
const ACL_USER: u16 = 2;
const ACL_GROUP: u16 = 8;

/// Which ids of the host are which of the container; without ranges all are what they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ids {
    users: Vec<IdRange>,
    groups: Vec<IdRange>,
}

fn back(ranges: &[IdRange], id: u32) -> u32 {
    let inside = |range: &IdRange| {
        let offset = id.checked_sub(range.outside)?;
        (offset < range.count).then(|| range.inside + offset)
    };
    ranges.iter().find_map(inside).unwrap_or(id)
}

impl Ids {
    /// Those of a tree that is to be read without the mapping.
    ///
    /// # Errors
    /// `InvalidArgument` for a mapping that does not parse.
    pub(super) fn of(mounts: &[Mount]) -> Result<Self> {
        let mut written = mounts
            .iter()
            .filter(|mount| mount.kind == "overlay" && mount.option("upperdir").is_some());
        let Some(mount) = written.next_back() else {
            return Ok(Self::default());
        };
        let ranges = |name| mount.option(name).map_or(Ok(Vec::new()), parse_ranges);
        Ok(Self {
            users: ranges("uidmap")?,
            groups: ranges("gidmap")?,
        })
    }

    fn is_empty(&self) -> bool {
        self.users.is_empty() && self.groups.is_empty()
    }

    /// Facts with the container's owner.
    pub(super) fn facts(&self, mut facts: Stat) -> Stat {
        facts.st_uid = back(&self.users, facts.st_uid);
        facts.st_gid = back(&self.groups, facts.st_gid);
        facts
    }

    /// Attributes with the container's ids in them.
    pub(super) fn attributes(&self, mut all: Xattrs) -> Xattrs {
        if self.is_empty() {
            return all;
        }
        for (name, value) in &mut all {
            if name == b"security.capability" {
                self.capability(value);
            } else if name.starts_with(b"system.posix_acl_") {
                self.access_list(value);
            }
        }
        all
    }

    /// A capability of the container's root is one of any root.
    fn capability(&self, value: &mut Vec<u8>) {
        let Some((head, _)) = value.split_first_chunk::<4>() else {
            return;
        };
        let head = u32::from_le_bytes(*head);
        if head & REVISION_MASK != REVISION_3 || value.len() != REVISION_3_LEN {
            return;
        }
        let Some(&root) = value.last_chunk::<4>() else {
            return;
        };
        let root = back(&self.users, u32::from_le_bytes(root));
        value.truncate(REVISION_2_LEN);
        if root == 0 {
            let head = REVISION_2 | (head & !REVISION_MASK);
            value[..4].copy_from_slice(&head.to_le_bytes());
        } else {
            value.extend_from_slice(&root.to_le_bytes());
        }
    }

    fn access_list(&self, value: &mut [u8]) {
        let Some(entries) = value.get_mut(ACL_HEADER..) else {
            return;
        };
        let (entries, _) = entries.as_chunks_mut::<ACL_ENTRY>();
        for [tag_0, tag_1, _, _, id @ ..] in entries {
            let ranges = match u16::from_le_bytes([*tag_0, *tag_1]) {
                ACL_USER => &self.users,
                ACL_GROUP => &self.groups,
                _ => continue,
            };
            *id = back(ranges, u32::from_le_bytes(*id)).to_le_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;
    use std::path::Path;

    use rustix::fs::XattrFlags;
    use sys::mount::TempMount;

    use super::*;
    use crate::compare::tests::diff;
    use crate::testing::{Bench, bind, tree};

    fn mapped() -> Ids {
        Ids {
            users: parse_ranges("0:100000:1000,1000:500:1").unwrap(),
            groups: parse_ranges("0:200000:1000").unwrap(),
        }
    }

    /// An access list with an entry each for the owner, a user and a group.
    fn access_list(user: u32, group: u32) -> Vec<u8> {
        let entries = [(1_u16, u32::MAX), (2, user), (4, u32::MAX), (8, group)];
        let last = [(0x10, u32::MAX), (0x20, u32::MAX)];
        let mut all = 2_u32.to_le_bytes().to_vec();
        for (tag, id) in entries.into_iter().chain(last) {
            all.extend(tag.to_le_bytes());
            all.extend(4_u16.to_le_bytes());
            all.extend(id.to_le_bytes());
        }
        all
    }

    fn capability(root: Option<u32>) -> Vec<u8> {
        let revision = if root.is_some() {
            REVISION_3
        } else {
            REVISION_2
        };
        let mut all = (revision | 1).to_le_bytes().to_vec();
        all.extend([0x20; 16]);
        all.extend(root.into_iter().flat_map(u32::to_le_bytes));
        all
    }

    #[test]
    fn ids_are_mapped_back_wherever_they_stand() {
        let ids = mapped();
        for (id, want) in [
            (100_000, 0),
            (100_999, 999),
            (101_000, 101_000),
            (500, 1000),
            (7, 7),
        ] {
            assert_eq!(back(&ids.users, id), want);
        }
        let attributes = |list: Vec<u8>, capability: Vec<u8>| {
            vec![
                (b"security.capability".to_vec(), capability),
                (b"system.posix_acl_access".to_vec(), list),
                (b"user.x".to_vec(), access_list(100_000, 200_000)),
            ]
        };
        let raw = attributes(access_list(100_005, 200_006), capability(Some(100_000)));
        let want = attributes(access_list(5, 6), capability(None));
        assert_eq!(ids.attributes(raw.clone()), want);
        assert_eq!(Ids::default().attributes(raw.clone()), raw);
        let other = |root| attributes(access_list(1, 200_999), capability(Some(root)));
        assert_eq!(ids.attributes(other(100_007))[0].1, capability(Some(7)));
        // What is none of these is left alone.
        for broken in [vec![], vec![1], vec![0, 0, 0, 3], vec![9; 24]] {
            let odd = attributes(broken.clone(), broken);
            assert_eq!(ids.attributes(odd.clone()), odd);
        }
    }

    /// What a container does that has all ids from 100000 on.
    fn work(merged: &Path) {
        let chown = |path: &Path, id: u32| {
            std::os::unix::fs::lchown(path, Some(100_000 + id), Some(200_000 + id)).unwrap();
        };
        std::fs::write(merged.join("d/new"), "new").unwrap();
        chown(&merged.join("d/new"), 5);
        let new = merged.join("d/new");
        let list = access_list(100_005, 200_006);
        rustix::fs::setxattr(&new, "system.posix_acl_access", &list, XattrFlags::empty()).unwrap();
        std::fs::write(merged.join("d/changed"), "other").unwrap();
        std::fs::create_dir(merged.join("made")).unwrap();
        chown(&merged.join("made"), 0);
        // It comes up and is what it was.
        let copied = std::fs::File::options()
            .append(true)
            .open(merged.join("same"));
        drop(copied.unwrap());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_layer_of_an_id_mapped_overlay_has_the_ids_of_the_container() {
        let bench = Bench::new();
        let [old, empty, to] = ["old", "empty", "to"].map(|name| bench.dir(name));
        for root in [&old, &to] {
            std::fs::create_dir(root.join("d")).unwrap();
            for name in ["d/changed", "same", "untouched"] {
                std::fs::write(root.join(name), "text").unwrap();
                let path = root.join(name);
                std::os::unix::fs::chown(&path, Some(3), Some(4)).unwrap();
            }
        }
        let mut live = bench.overlay("live", &[&old]);
        let maps = ["uidmap=0:100000:1000", "gidmap=0:200000:1000"].map(str::to_owned);
        live[0].options.extend(maps.clone());
        let upper = bench.temp.path().join("live");
        std::os::unix::fs::chown(&upper, Some(100_000), Some(200_000)).unwrap();
        let mounted = TempMount::new(&live, &bench.dir("points")).unwrap();
        work(mounted.path());
        drop(mounted);
        let raw = std::fs::metadata(upper.join("same")).unwrap();
        assert_eq!((raw.uid(), raw.gid()), (100_003, 200_004));

        let short = diff(&bench, &bind(&old), &live).await;
        // The same, read through mounts; the older one has the mapping as a view of it has.
        let view = |of: &[&Path]| {
            let mut view = bench.overlay("view", of);
            view[0].options.retain(|o| o.starts_with("lowerdir="));
            view[0].options.extend(maps.clone());
            view
        };
        let long = diff(&bench, &view(&[&old, &empty]), &live).await;
        assert_eq!(short.digest, long.digest, "both ways give the same layer");

        bench.apply(&short, &bind(&to)).await.unwrap();
        let seen = tree(&to, false);
        let owner = |name: &str| seen[Path::new(name)].owner;
        assert_eq!((owner("d/new"), owner("made")), ((5, 5), (0, 0)));
        assert_eq!((owner("d/changed"), owner("d")), ((3, 4), (0, 0)));
        let attributes = &seen[Path::new("d/new")].xattrs;
        let list = (b"system.posix_acl_access".to_vec(), access_list(5, 6));
        assert!(attributes.contains(&list), "{attributes:?}");
        // What only came up is no change.
        let only = bench.dir("only");
        bench.apply(&short, &bind(&only)).await.unwrap();
        assert!(!only.join("same").exists() && only.join("d/new").exists());
        assert!(bench.has_no_mounts());
    }
}
