//! Network namespaces with names: pinned below our directory, seen by their files.
//!
//! ```text
//! netns/<tenant>/<name>     a mount of the namespace's file
//! ```
//! Invariant: the loopback of one that is found is up.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sys::netlink::{Family, Message, Socket, attributes, u32_of};
use sys::netns::NetNs;
use types::{Context as _, Error, Identifier, Namespace, Result};

use crate::link;

/// Changes with every start of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// The network namespace of the machine's first process.
const FIRST: &str = "/proc/1/ns/net";
/// `RTM_GETNSID`, the length of its `struct rtgenmsg`, and its attributes.
const GET_NSID: u16 = 90;
const NSID_BODY: usize = 4;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;
/// How many of those who use a namespace are named.
const NAMED_USERS: usize = 3;

/// A network namespace, by what no other has: a path may stand for another one after a while.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Identity {
    boot: String,
    device: u64,
    inode: u64,
}

impl Identity {
    /// That of a namespace.
    ///
    /// # Errors
    /// The errno.
    pub(crate) fn of(ns: &NetNs) -> Result<Self> {
        let found = rustix::fs::fstat(ns);
        let found = found.map_err(|e| Error::os("stat network namespace", e.into()))?;
        let boot = std::fs::read_to_string(BOOT_ID);
        let boot = boot.map_err(|e| Error::os(format_args!("read {BOOT_ID}"), e))?;
        Ok(Self {
            boot: boot.trim().to_owned(),
            device: found.st_dev,
            inode: found.st_ino,
        })
    }

    /// The one at `path`, to join a network from.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for what is none, and for the one that this process is in.
    pub(crate) fn to_join(path: &Path) -> Result<Self> {
        let place = Self::of(&NetNs::open(path)?)?;
        if place == Self::of(&NetNs::own()?)? {
            return Err(Error::invalid_argument(format_args!(
                "{} is the network namespace of the host",
                path.display()
            )));
        }
        Ok(place)
    }

    /// Its number, by which processes tell which one they are in.
    pub(crate) const fn inode(&self) -> u64 {
        self.inode
    }

    /// True while `path` stands for this one.
    ///
    /// # Errors
    /// The errno, when it cannot be told.
    pub(crate) fn is_at(&self, path: &Path) -> Result<bool> {
        match NetNs::open(path) {
            Err(error) if error.is(types::Code::InvalidArgument) => Ok(false),
            found => match found.absent_ok()? {
                Some(ns) => Ok(Self::of(&ns)? == *self),
                None => Ok(false),
            },
        }
    }
}

/// The files that stand for namespaces.
#[derive(Debug)]
pub(crate) struct Pins(PathBuf);

impl Pins {
    /// Those in `directory`.
    pub(crate) const fn new(directory: PathBuf) -> Self {
        Self(directory)
    }

    /// The file of one.
    pub(crate) fn path(&self, tenant: &Namespace, name: &str) -> PathBuf {
        self.0.join(tenant.as_str()).join(name)
    }

    /// Makes one.
    ///
    /// # Errors
    /// `AlreadyExists` when there is a file of its name; else the errno. Then there is nothing.
    pub(crate) fn create(&self, tenant: &Namespace, name: &str) -> Result<NetNs> {
        let path = self.make_way(tenant, name)?;
        sys::netns::create(&path, || {
            link::set_loopback_up(&mut Socket::open(Family::Route)?)
        })
    }

    /// Gives one that there is a name.
    ///
    /// # Errors
    /// As [`Pins::create`].
    pub(crate) fn adopt(&self, tenant: &Namespace, name: &str, found: NetNs) -> Result<NetNs> {
        let path = self.make_way(tenant, name)?;
        found.pin(&path)?;
        Ok(found)
    }

    fn make_way(&self, tenant: &Namespace, name: &str) -> Result<PathBuf> {
        let directory = self.0.join(tenant.as_str());
        let made = std::fs::DirBuilder::new()
            .mode(0o711)
            .recursive(true)
            .create(&directory);
        made.map_err(|e| Error::os(format_args!("mkdir {}", directory.display()), e))?;
        Ok(directory.join(name))
    }

    /// Takes the name from one. It lives on while anybody uses it.
    ///
    /// # Errors
    /// The errno.
    pub(crate) fn remove(&self, tenant: &Namespace, name: &str) -> Result<()> {
        sys::netns::unpin(&self.path(tenant, name))
    }

    /// All files, by tenant and name; what cannot be either was not made here.
    ///
    /// # Errors
    /// The errno.
    pub(crate) fn list(&self) -> Result<Vec<(Namespace, String)>> {
        let read = |directory: &Path| {
            let entries = std::fs::read_dir(directory);
            entries.map_err(|e| Error::os(format_args!("read {}", directory.display()), e))
        };
        let mut all = Vec::new();
        if !self.0.exists() {
            return Ok(all);
        }
        for tenant in read(&self.0)?.flatten() {
            let Some(name) = tenant
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            let tenant_name: Namespace = name;
            for entry in read(&tenant.path())?.flatten() {
                let name = entry.file_name().to_str().map(str::to_owned);
                let name = name.filter(|name| Identifier::check(name).is_ok());
                all.extend(name.map(|name| (tenant_name.clone(), name)));
            }
        }
        Ok(all)
    }

    /// The number of what the file of one stands for; `None` without a namespace there.
    ///
    /// # Errors
    /// The errno.
    pub(crate) fn inode(&self, tenant: &Namespace, name: &str) -> Result<Option<u64>> {
        match NetNs::open(&self.path(tenant, name)) {
            Err(error) if error.is(types::Code::InvalidArgument) => Ok(None),
            found => Ok(found.absent_ok()?.map(|ns| ns.inode())),
        }
    }
}

/// The network namespace at `from`, which somebody wants to have a name.
///
/// # Errors
/// `NotFound`; `InvalidArgument` when there is none; `FailedPrecondition` for that of the host, where
/// everything is somebody else's.
pub(crate) fn open_adopted(from: &Path) -> Result<NetNs> {
    if !from.is_absolute() {
        return Err(Error::invalid_argument(format_args!(
            "path {} of a network namespace is not absolute",
            from.display()
        )));
    }
    // Of what cannot be a path, or leads round, the class says whose fault it is.
    let found = NetNs::open(from).map_err(link::classed)?;
    // The first process may be another daemon's business, or out of sight; then it is no host of ours.
    let hosts = [Some(NetNs::own()?), NetNs::open(Path::new(FIRST)).ok()];
    let mut hosts = hosts.iter().flatten();
    if hosts.any(|host| host.inode() == found.inode()) {
        return Err(Error::failed_precondition(format_args!(
            "network namespace {} is the host's",
            from.display()
        )));
    }
    Ok(found)
}

/// Refuses when processes are in the namespace with this number.
///
/// # Errors
/// `FailedPrecondition` with the names of some of them.
pub(crate) fn check_unused(name: &str, inode: u64) -> Result<()> {
    let users = sys::netns::users(inode)?;
    if users.is_empty() {
        return Ok(());
    }
    let named = users.iter().take(NAMED_USERS);
    let named: Vec<String> = named
        .map(|user| format!("{} (pid {})", user.command, user.pid))
        .collect();
    let more = users.len().saturating_sub(NAMED_USERS);
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    Err(Error::failed_precondition(format_args!(
        "network namespace {name:?} is in use by {}{more}",
        named.join(", ")
    )))
}

/// True when a process is in the namespace that this thread's knows by the number `id`, as interfaces of the
/// host tell it of their other ends.
///
/// # Errors
/// The errno, when it cannot be told.
pub(crate) fn is_used_as(id: u32) -> Result<bool> {
    let failed = |e| Error::os("read /proc", e);
    let mut socket = Socket::open(Family::Route)?;
    let mut seen = BTreeSet::new();
    for entry in std::fs::read_dir("/proc").map_err(failed)? {
        let path = entry.map_err(failed)?.path().join("ns/net");
        // What is no process has none, and what has ended meanwhile uses nothing.
        let Ok(name) = std::fs::read_link(&path) else {
            continue;
        };
        if !seen.insert(name) {
            continue;
        }
        if let Some(ns) = NetNs::open(&path).absent_ok()?
            && id_of(&mut socket, &ns)? == Some(id)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What this thread's namespace calls another one; `None` when it has no need to.
///
/// # Errors
/// The errno.
pub(crate) fn id_of(socket: &mut Socket, ns: &NetNs) -> Result<Option<u32>> {
    let mut message = Message::new(
        "number of a network namespace",
        GET_NSID,
        0,
        &[0; NSID_BODY],
    );
    let fd = ns.as_fd().as_raw_fd();
    message.bytes(NETNSA_FD, &fd.to_ne_bytes());
    let told = socket.ask(message)?;
    let all = attributes(told.get(NSID_BODY..).unwrap_or_default());
    let mut ids = all.filter(|(kind, _)| *kind == NETNSA_NSID);
    // It is -1 for none.
    let id = ids.next().and_then(|(_, value)| u32_of(value));
    Ok(id.filter(|id| *id != u32::MAX))
}
