//! Id mappings of snapshots: which ids of the host the ids of a container are.
//!
//! Invariant: an id that no range has stays as it is; a changed owner takes neither mode nor file
//! capabilities away.

use std::ffi::CStr;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid, XattrFlags};
use rustix::io::Errno;
use types::{Error, Labels, Result};

use crate::copy::permissions;
use crate::tree::{self, Entry, Failure, Linked, Visitor, at};

/// Labels of a snapshot whose owner ids shall be mapped.
pub(crate) const LABELS: [&str; 2] = [
    "containerd.io/snapshot/uidmapping",
    "containerd.io/snapshot/gidmapping",
];
/// Ranges in one mapping, as the kernel has it.
const MAX_RANGES: usize = 340;
/// Attribute of file capabilities: the revision that any namespace may have set, and the one that
/// names the namespace's root.
const CAPABILITY: &str = "security.capability";
const REVISION_2: u32 = 0x0200_0000;
const REVISION_3: u32 = 0x0300_0000;
const REVISION_MASK: u32 = 0xff00_0000;
const REVISION_2_LEN: usize = 20;

/// Part of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    container: u32,
    host: u32,
    size: u32,
}

impl Range {
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.splitn(3, ':').map(str::parse);
        let mut next = || numbers.next()?.ok();
        let made = Self {
            container: next()?,
            host: next()?,
            size: next()?,
        };
        let ends = made
            .container
            .checked_add(made.size)?
            .max(made.host.checked_add(made.size)?);
        (made.size > 0 && ends > 0).then_some(made)
    }
}

/// A mapping of user or group ids, as a label and a mount option write it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mapping {
    text: String,
    ranges: Vec<Range>,
}

impl Mapping {
    fn parse(label: &str, text: &str) -> Result<Self> {
        let ranges: Option<Vec<_>> = text.split(',').map(Range::parse).collect();
        match ranges {
            Some(ranges) if ranges.len() <= MAX_RANGES => Ok(Self {
                text: text.to_owned(),
                ranges,
            }),
            _ => Err(Error::invalid_argument(format_args!(
                "label {label}: {text:?} is no list of container-id:host-id:length"
            ))),
        }
    }

    fn host(&self, id: u32) -> Option<u32> {
        self.ranges.iter().find_map(|range| {
            let offset = id.checked_sub(range.container)?;
            (offset < range.size).then(|| range.host + offset)
        })
    }
}

/// Where the users and groups of a snapshot are on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IdMaps {
    users: Mapping,
    groups: Mapping,
}

impl IdMaps {
    /// What the labels of a snapshot ask for.
    ///
    /// # Errors
    /// `InvalidArgument` when one of both is missing, cannot be read or has no root.
    pub(crate) fn of(labels: &Labels) -> Result<Option<Self>> {
        let [users, groups] = LABELS;
        let (user, group) = match (labels.get(users), labels.get(groups)) {
            (None, None) => return Ok(None),
            (Some(user), Some(group)) => (user, group),
            (user, _) => {
                let missing = if user.is_none() { users } else { groups };
                return Err(Error::invalid_argument(format_args!(
                    "id-mapped snapshot without label {missing}"
                )));
            }
        };
        let made = Self {
            users: Mapping::parse(users, user)?,
            groups: Mapping::parse(groups, group)?,
        };
        match made.host(0, 0) {
            (Some(_), Some(_)) => Ok(Some(made)),
            _ => Err(Error::invalid_argument(format_args!(
                "id mappings {user:?} and {group:?} have no root"
            ))),
        }
    }

    /// Refuses labels that ask for what a snapshotter cannot do.
    ///
    /// # Errors
    /// `NotImplemented`; as [`IdMaps::of`].
    pub(crate) fn refuse(labels: &Labels) -> Result<()> {
        match Self::of(labels)? {
            None => Ok(()),
            Some(_) => Err(Error::not_implemented("id-mapped snapshot")),
        }
    }

    /// The mapping that begins with the container's root, for trying it.
    pub(crate) fn shifted(by: u32) -> Self {
        let mapping = || Mapping {
            text: format!("0:{by}:1"),
            ranges: vec![Range {
                container: 0,
                host: by,
                size: 1,
            }],
        };
        Self {
            users: mapping(),
            groups: mapping(),
        }
    }

    /// The options of a mount that maps.
    pub(crate) fn options(&self) -> [String; 2] {
        [
            format!("uidmap={}", self.users.text),
            format!("gidmap={}", self.groups.text),
        ]
    }

    fn host(&self, uid: u32, gid: u32) -> (Option<u32>, Option<u32>) {
        (self.users.host(uid), self.groups.host(gid))
    }

    /// The host's ids for an owner.
    fn owner(&self, (uid, gid): (u32, u32)) -> (u32, u32) {
        let (user, group) = self.host(uid, gid);
        (user.unwrap_or(uid), group.unwrap_or(gid))
    }

    /// Gives a directory to the container's root.
    ///
    /// # Errors
    /// The errno, with the path.
    pub(crate) fn give(&self, directory: &Path) -> Result<()> {
        let (uid, gid) = self.owner((0, 0));
        std::os::unix::fs::lchown(directory, Some(uid), Some(gid))
            .map_err(|e| Error::os(format_args!("chown {}", directory.display()), e))
    }

    /// Maps the owners of everything at and below `root`. Links are not followed.
    ///
    /// # Errors
    /// I/O.
    pub(crate) fn chown(&self, root: &Path) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let top = rustix::fs::open(root, flags, Mode::empty()).map_err(|e| at("open", root, e))?;
        let mut mapping = Chown {
            maps: self,
            linked: Linked::default(),
        };
        tree::walk(&top, root, "map owners below", &mut mapping)?;
        let facts = rustix::fs::fstat(&top).map_err(|e| at("stat", root, e))?;
        mapping
            .chown(top.as_fd(), c".", &facts)
            .map_err(|e| at("chown", root, e))
    }
}

struct Chown<'a> {
    maps: &'a IdMaps,
    /// What owners inodes with several names had.
    linked: Linked<(u32, u32)>,
}

impl Visitor for Chown<'_> {
    type Kept = ();

    fn enter(&mut self, _: BorrowedFd<'_>, _: &[u8], _: Option<&()>) -> Result<(), Failure> {
        Ok(())
    }

    fn entry(&mut self, (): &mut (), entry: Entry<'_>) -> Result<(), Failure> {
        let facts = entry.facts;
        let had = (facts.st_uid, facts.st_gid);
        if let Some(before) = self.linked.again(facts) {
            // On an overlay the names of an inode may have become inodes of their own meanwhile.
            if self.maps.owner(before) == had {
                return Ok(());
            }
        } else {
            self.linked.first(facts, had)?;
        }
        Ok(self.chown(entry.dir, entry.name, facts)?)
    }
}

impl Chown<'_> {
    fn chown(&self, dir: BorrowedFd<'_>, name: &CStr, facts: &Stat) -> Result<(), Errno> {
        let had = (facts.st_uid, facts.st_gid);
        let kind = FileType::from_raw_mode(facts.st_mode);
        let (uid, gid) = self.maps.owner(had);
        if (uid, gid) == had {
            return Ok(());
        }
        let capability = match kind {
            FileType::RegularFile => capability(dir, name)?,
            _ => None,
        };
        let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(dir, name, Some(user), Some(group), nofollow)?;
        if kind == FileType::RegularFile && facts.st_mode & 0o6000 != 0 {
            rustix::fs::chmodat(dir, name, permissions(facts), AtFlags::empty())?;
        }
        if let Some(capability) = capability {
            let (root, _) = self.maps.owner((0, 0));
            let path = tree::through_fd(dir, name);
            let value = of_namespace(&capability, root);
            rustix::fs::lsetxattr(&path, CAPABILITY, &value, XattrFlags::empty())?;
        }
        Ok(())
    }
}

fn capability(dir: BorrowedFd<'_>, name: &CStr) -> Result<Option<Vec<u8>>, Errno> {
    let mut value = [0_u8; 64];
    match rustix::fs::lgetxattr(tree::through_fd(dir, name), CAPABILITY, &mut value[..]) {
        Ok(len) => Ok(Some(value[..len].to_vec())),
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
        Err(e) => Err(e),
    }
}

/// File capabilities that the machine's root has given, as given by the root of a namespace.
fn of_namespace(value: &[u8], root: u32) -> Vec<u8> {
    let mut made = value.to_vec();
    let Some(word) = value
        .first_chunk::<4>()
        .map(|word| u32::from_le_bytes(*word))
    else {
        return made;
    };
    if word & REVISION_MASK == REVISION_2 && value.len() == REVISION_2_LEN {
        let word = word & !REVISION_MASK | REVISION_3;
        made[..4].copy_from_slice(&word.to_le_bytes());
        made.extend_from_slice(&root.to_le_bytes());
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown, symlink};

    fn maps(users: &str, groups: &str) -> Result<Option<IdMaps>> {
        let labels = Labels::new().with(LABELS[0], users).with(LABELS[1], groups);
        IdMaps::of(&labels)
    }

    #[test]
    fn mappings_are_read_and_applied() {
        let made = maps("0:1000:2,2:5000:10", "0:70:1").unwrap().unwrap();
        assert_eq!(made.owner((0, 0)), (1000, 70));
        assert_eq!(made.owner((3, 1)), (5001, 1));
        assert_eq!(made.owner((12, 0)), (12, 70));
        assert_eq!(
            made.options(),
            ["uidmap=0:1000:2,2:5000:10", "gidmap=0:70:1"]
        );
        assert_eq!(IdMaps::of(&Labels::new()).unwrap(), None);
    }

    #[test]
    fn what_is_no_mapping_is_refused() {
        for bad in [
            "",
            "0",
            "0:1",
            "0:1:0",
            "a:1:1",
            "0:1:1:1",
            "0:4294967295:2",
            "1:1:1",
            "0:1:1,",
        ] {
            for (users, groups) in [(bad, "0:1:1"), ("0:1:1", bad)] {
                let error = maps(users, groups).unwrap_err();
                assert!(error.is(types::Code::InvalidArgument), "{bad}: {error}");
            }
        }
        let one = Labels::new().with(LABELS[1], "0:1:1");
        let error = IdMaps::of(&one).unwrap_err();
        assert!(error.to_string().contains(LABELS[0]), "{error}");
    }

    #[test]
    fn owners_change_once_and_nothing_else_does() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("t");
        std::fs::create_dir_all(root.join("d/e")).unwrap();
        let file = root.join("d/file");
        std::fs::write(&file, "x").unwrap();
        std::fs::hard_link(&file, root.join("link")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o6755)).unwrap();
        let mut given = REVISION_2.to_le_bytes().to_vec();
        given.resize(REVISION_2_LEN, 1);
        let flags = XattrFlags::empty();
        rustix::fs::lsetxattr(&file, CAPABILITY, &given, flags).unwrap();
        std::fs::write(temp.path().join("outside"), "").unwrap();
        symlink("../outside", root.join("sym")).unwrap();
        std::fs::write(root.join("other"), "").unwrap();
        lchown(root.join("other"), Some(90_000), Some(7)).unwrap();
        // A mapping onto itself: what is mapped twice would show.
        maps("0:10:100", "0:20:100")
            .unwrap()
            .unwrap()
            .chown(&root)
            .unwrap();
        let owner = |name: &str| {
            let facts = std::fs::symlink_metadata(root.join(name)).unwrap();
            (facts.uid(), facts.gid())
        };
        for name in ["", "d", "d/e", "d/file", "link", "sym"] {
            assert_eq!(owner(name), (10, 20), "{name}");
        }
        assert_eq!(owner("other"), (90_000, 27));
        assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o7777, 0o6755);
        let mut value = [0; 64];
        let len = rustix::fs::lgetxattr(&file, CAPABILITY, &mut value[..]).unwrap();
        assert_eq!(&value[len - 4..len], 10_u32.to_le_bytes());
        assert_eq!(
            std::fs::metadata(temp.path().join("outside"))
                .unwrap()
                .uid(),
            0
        );
    }
}
