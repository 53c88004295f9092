//! Mount options as text, split into flags, propagation and the rest that the file system reads.

use rustix::mount::{MountFlags, MountPropagationFlags};
use types::{Error, Result};

use super::attr::Attributes;
use crate::userns::{IdRange, parse_ranges};

/// Changes an existing mount; rustix keeps this flag to itself.
pub(super) const REMOUNT: MountFlags = MountFlags::from_bits_retain(0x20);

/// What the option strings of a mount mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Flags of the mount call.
    pub flags: MountFlags,
    /// Propagation, set by a call of its own.
    pub propagation: MountPropagationFlags,
    /// What changes on the mount and on all below it: `rro` and its like.
    pub tree: Attributes,
    /// The source is a file, to be mounted through a loop device.
    pub is_loop: bool,
    /// The loop device passes the page cache of its file by.
    pub direct_io: bool,
    /// Ids of users and of groups, to be shown as these.
    pub ids: Option<(Vec<IdRange>, Vec<IdRange>)>,
    /// Options for the file system, joined with commas.
    pub data: String,
}

impl Options {
    /// Nothing at all.
    fn none() -> Self {
        Self {
            flags: MountFlags::empty(),
            propagation: MountPropagationFlags::empty(),
            tree: Attributes::default(),
            is_loop: false,
            direct_io: false,
            ids: None,
            data: String::new(),
        }
    }

    /// Parses option strings as mount(8) names them.
    ///
    /// # Errors
    /// `InvalidArgument` for a NUL byte, for ids that do not parse, and for those of users without
    /// those of groups.
    pub fn parse(options: &[String]) -> Result<Self> {
        let mut parsed = Self::none();
        let mut data: Vec<&str> = Vec::new();
        let (mut users, mut groups) = (None, None);
        for option in options {
            if option.contains('\0') {
                return Err(Error::invalid_argument("mount option contains a NUL byte"));
            }
            if let Some((clear, flag)) = flag(option) {
                parsed.flags = if clear {
                    parsed.flags - flag
                } else {
                    parsed.flags | flag
                };
            } else if let Some(flag) = propagation_flag(option) {
                parsed.propagation |= flag;
            } else if let Some(text) = option.strip_prefix("uidmap=") {
                users = Some(parse_ranges(text)?);
            } else if let Some(text) = option.strip_prefix("gidmap=") {
                groups = Some(parse_ranges(text)?);
            } else if option == "loop" {
                parsed.is_loop = true;
            } else if !matches!(&**option, "" | "defaults") && !parsed.tree.take(option) {
                data.push(option);
            }
        }
        parsed.ids = match (users, groups) {
            (None, None) => None,
            (Some(users), Some(groups)) => Some((users, groups)),
            _ => {
                return Err(Error::invalid_argument(
                    "mount options uidmap and gidmap go together",
                ));
            }
        };
        if parsed.is_loop {
            let before = data.len();
            data.retain(|option| !matches!(*option, "direct-io" | "direct_io"));
            parsed.direct_io = data.len() != before;
        }
        parsed.data = data.join(",");
        Ok(parsed)
    }
}

/// (clears it, flag).
fn flag(option: &str) -> Option<(bool, MountFlags)> {
    let mandatory = MountFlags::PERMIT_MANDATORY_FILE_LOCKING;
    Some(match option {
        "async" => (true, MountFlags::SYNCHRONOUS),
        "atime" => (true, MountFlags::NOATIME),
        "bind" => (false, MountFlags::BIND),
        "dev" => (true, MountFlags::NODEV),
        "diratime" => (true, MountFlags::NODIRATIME),
        "dirsync" => (false, MountFlags::DIRSYNC),
        "exec" => (true, MountFlags::NOEXEC),
        "mand" => (false, mandatory),
        "noatime" => (false, MountFlags::NOATIME),
        "nodev" => (false, MountFlags::NODEV),
        "nodiratime" => (false, MountFlags::NODIRATIME),
        "noexec" => (false, MountFlags::NOEXEC),
        "nomand" => (true, mandatory),
        "norelatime" => (true, MountFlags::RELATIME),
        "nostrictatime" => (true, MountFlags::STRICTATIME),
        "nosuid" => (false, MountFlags::NOSUID),
        "rbind" => (false, MountFlags::BIND | MountFlags::REC),
        "relatime" => (false, MountFlags::RELATIME),
        "remount" => (false, REMOUNT),
        "ro" => (false, MountFlags::RDONLY),
        "rw" => (true, MountFlags::RDONLY),
        "strictatime" => (false, MountFlags::STRICTATIME),
        "suid" => (true, MountFlags::NOSUID),
        "sync" => (false, MountFlags::SYNCHRONOUS),
        _ => return None,
    })
}

fn propagation_flag(option: &str) -> Option<MountPropagationFlags> {
    let (name, recursive) = match option.strip_prefix('r') {
        Some(rest) => (rest, MountPropagationFlags::REC),
        None => (option, MountPropagationFlags::empty()),
    };
    let flag = match name {
        "private" => MountPropagationFlags::PRIVATE,
        "shared" => MountPropagationFlags::SHARED,
        "slave" => MountPropagationFlags::DOWNSTREAM,
        "unbindable" => MountPropagationFlags::UNBINDABLE,
        _ => return None,
    };
    Some(flag | recursive)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> Options {
        let owned: Vec<String> = options.iter().map(|&o| o.to_owned()).collect();
        Options::parse(&owned).unwrap()
    }

    #[test]
    fn flags_data_and_propagation_are_told_apart() {
        let none = MountPropagationFlags::empty();
        let cases: [(&[&str], MountFlags, MountPropagationFlags, &str); 6] = [
            (
                &["rbind", "ro"],
                MountFlags::BIND | MountFlags::REC | MountFlags::RDONLY,
                none,
                "",
            ),
            (
                &["ro", "rw", "nosuid", "defaults", ""],
                MountFlags::NOSUID,
                none,
                "",
            ),
            (
                &["lowerdir=/a:/b", "index=off"],
                MountFlags::empty(),
                none,
                "lowerdir=/a:/b,index=off",
            ),
            (
                &["bind", "rslave"],
                MountFlags::BIND,
                MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
                "",
            ),
            (
                &["private"],
                MountFlags::empty(),
                MountPropagationFlags::PRIVATE,
                "",
            ),
            (&["remount", "size=1m"], REMOUNT, none, "size=1m"),
        ];
        for (options, flags, propagation, data) in cases {
            let got = parse(options);
            assert_eq!(
                got,
                Options {
                    flags,
                    propagation,
                    data: data.to_owned(),
                    ..Options::none()
                },
                "{options:?}"
            );
        }
    }

    #[test]
    fn loop_ids_and_whole_trees_are_no_data() {
        let got = parse(&["loop", "direct-io", "ro", "noload"]);
        assert!(got.is_loop && got.direct_io);
        assert_eq!((got.flags, &*got.data), (MountFlags::RDONLY, "noload"));
        // Without a loop device the word is the file system's own.
        assert_eq!(parse(&["direct-io"]).data, "direct-io");
        let got = parse(&["uidmap=0:5:2,7:9:1", "gidmap=0:6:2"]);
        let (users, groups) = got.ids.unwrap();
        assert_eq!((users.len(), groups[0].outside), (2, 6));
        for lists in [&["rro"][..], &["rrw", "rro"]] {
            let tree = parse(lists).tree;
            assert!(
                !tree.is_empty() && tree != parse(&["rrw"]).tree,
                "{lists:?}"
            );
        }
        for bad in [&["uidmap=0:1:1"][..], &["uidmap=x", "gidmap=0:1:1"]] {
            let owned: Vec<String> = bad.iter().map(|&o| o.to_owned()).collect();
            let error = Options::parse(&owned).unwrap_err();
            assert!(error.is(types::Code::InvalidArgument), "{bad:?}: {error}");
        }
    }
}
