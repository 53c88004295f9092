//! Mount options as text, split into flags, propagation and the rest that the file system reads.

use rustix::mount::{MountFlags, MountPropagationFlags};
use types::{Error, Result};

/// Changes an existing mount; rustix keeps this flag to itself.
pub(super) const REMOUNT: MountFlags = MountFlags::from_bits_retain(0x20);

/// What the option strings of a mount mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Flags of the mount call.
    pub flags: MountFlags,
    /// Propagation, set by a call of its own.
    pub propagation: MountPropagationFlags,
    /// Options for the file system, joined with commas.
    pub data: String,
}

impl Options {
    /// Parses option strings as mount(8) names them.
    ///
    /// # Errors
    /// `NotImplemented` for options that need a helper (`loop`, identity-mapped mounts);
    /// `InvalidArgument` for a NUL byte.
    pub fn parse(options: &[String]) -> Result<Self> {
        let mut flags = MountFlags::empty();
        let mut propagation = MountPropagationFlags::empty();
        let mut data: Vec<&str> = Vec::new();
        for option in options {
            if option.contains('\0') {
                return Err(Error::invalid_argument("mount option contains a NUL byte"));
            }
            if option.is_empty() || option == "defaults" {
                continue;
            }
            if let Some((clear, flag)) = flag(option) {
                flags = if clear { flags - flag } else { flags | flag };
            } else if let Some(flag) = propagation_flag(option) {
                propagation |= flag;
            } else if option == "loop"
                || option.starts_with("uidmap=")
                || option.starts_with("gidmap=")
            {
                return Err(Error::not_implemented(format_args!(
                    "mount option {option}"
                )));
            } else {
                data.push(option);
            }
        }
        Ok(Self {
            flags,
            propagation,
            data: data.join(","),
        })
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
                    data: data.to_owned()
                },
                "{options:?}"
            );
        }
    }

    #[test]
    fn options_that_need_a_helper_are_refused() {
        for option in ["loop", "uidmap=0:1:1", "gidmap=0:1:1"] {
            let error = Options::parse(&[option.to_owned()]).unwrap_err();
            assert!(error.is(types::Code::NotImplemented), "{option}: {error}");
        }
    }
}
