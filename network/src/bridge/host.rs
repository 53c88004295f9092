//! What the driver changes of the host itself: that packets are passed on.
//!
//! Invariant: a change is logged with what was there, and can be taken back; nobody who can send to a
//! bridge of containers becomes a router of this host.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use types::network::IpNet;
use types::{Context as _, Error, Result};

/// Whether packets are passed on, of both families.
const FORWARD_V4: &str = "/proc/sys/net/ipv4/ip_forward";
const FORWARD_V6: &str = "/proc/sys/net/ipv6/conf/all/forwarding";
const INTERFACES_V6: &str = "/proc/sys/net/ipv6/conf";
/// Whether routers are listened to (ip-sysctl): by hosts, and even by who passes packets on.
const BY_HOSTS: &str = "1";
const EVEN_BY_ROUTERS: &str = "2";

/// Settings that were changed, the last one last.
#[derive(Debug, Default)]
pub(super) struct Changed(Vec<(PathBuf, String, &'static str)>);

/// Has this host pass packets on, of the families that there are addresses of. Routers that it hears
/// by interfaces for which `is_outside` says so are heard on; no others, and above all not those that
/// containers could claim to be. When it fails, nothing is changed.
///
/// # Errors
/// The errno, with the setting.
pub(super) fn forward(addresses: &[IpNet], is_outside: &dyn Fn(&str) -> bool) -> Result<Changed> {
    let mut changed = Changed::default();
    match changed.forward(addresses, is_outside) {
        Ok(()) => Ok(changed),
        Err(error) => {
            if let Err(error) = changed.take_back() {
                tracing::warn!(%error, "setting of the host is not what it was");
            }
            Err(error)
        }
    }
}

impl Changed {
    fn forward(&mut self, addresses: &[IpNet], is_outside: &dyn Fn(&str) -> bool) -> Result<()> {
        let has = |v4: bool| addresses.iter().any(|one| one.address().is_ipv4() == v4);
        if has(true) {
            self.turn(Path::new(FORWARD_V4), "1")?;
        }
        if has(false) && read(Path::new(FORWARD_V6))? == "0" {
            // A host that passes packets on takes no routes from routers any more, unless it is told to.
            let all = std::fs::read_dir(INTERFACES_V6);
            let all = all.map_err(|e| Error::os(format_args!("read {INTERFACES_V6}"), e))?;
            for entry in all.flatten() {
                let path = entry.path().join("accept_ra");
                if is_outside(&entry.file_name().to_string_lossy())
                    && read(&path).is_ok_and(|value| value == BY_HOSTS)
                {
                    // Gone meanwhile, it hears nobody.
                    self.turn(&path, EVEN_BY_ROUTERS).absent_ok()?;
                }
            }
            self.turn(Path::new(FORWARD_V6), "1")?;
        }
        Ok(())
    }

    fn turn(&mut self, path: &Path, value: &'static str) -> Result<()> {
        let was = read(path)?;
        if was == value {
            return Ok(());
        }
        write(path, value)?;
        tracing::info!(setting = %path.display(), %was, now = value, "changed for networks of containers");
        self.0.push((path.to_owned(), was, value));
        Ok(())
    }

    /// Gives settings back what they had, unless somebody else has changed them meanwhile.
    ///
    /// # Errors
    /// The last that failed; the others are taken back nevertheless.
    pub(super) fn take_back(self) -> Result<()> {
        let mut done = Ok(());
        for (path, was, set) in self.0.into_iter().rev() {
            let back = match read(&path).absent_ok() {
                Ok(Some(now)) if now == set => write(&path, &was),
                Ok(_) => continue,
                Err(error) => Err(error),
            };
            match back {
                Ok(()) => {
                    tracing::info!(setting = %path.display(), was = set, now = %was, "taken back");
                }
                Err(error) => done = Err(error),
            }
        }
        done
    }
}

fn read(path: &Path) -> Result<String> {
    let shown = path.display();
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(e) if e.kind() == ErrorKind::NotFound => Err(Error::not_found(format_args!("{shown}"))),
        Err(e) => Err(Error::os(format_args!("read {shown}"), e)),
    }
}

fn write(path: &Path, value: &str) -> Result<()> {
    let shown = path.display();
    match std::fs::write(path, value) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == ErrorKind::NotFound => Err(Error::not_found(format_args!("{shown}"))),
        Err(e) => Err(Error::os(format_args!("write {shown}"), e)),
    }
}

/// True for an address that a port of this host can be mapped at.
///
/// # Errors
/// The errno.
pub(super) fn is_local(address: IpAddr) -> Result<bool> {
    match std::net::UdpSocket::bind((address, 0)) {
        Ok(_) => Ok(true),
        // One of an interface needs its name, which no mapping has.
        Err(e)
            if matches!(
                e.kind(),
                ErrorKind::AddrNotAvailable | ErrorKind::InvalidInput
            ) =>
        {
            Ok(false)
        }
        Err(e) => Err(Error::os(format_args!("bind {address}"), e)),
    }
}

/// Families of which there are addresses, and whose packets this host does not pass on.
pub(super) fn not_forwarding(addresses: &[IpAddr]) -> Vec<String> {
    let families = [(FORWARD_V4, true), (FORWARD_V6, false)].into_iter();
    let off = families.filter(|(path, is_v4)| {
        let is_used = addresses.iter().any(|one| one.is_ipv4() == *is_v4);
        is_used && read(Path::new(path)).is_ok_and(|value| value == "0")
    });
    off.map(|(path, _)| format!("{path} is 0: packets of its family are not passed on"))
        .collect()
}

/// What keeps an interface from taking routes from whoever claims to be a router behind it; nothing on a
/// host without IPv6.
pub(super) fn deaf_to_routers() -> Option<(String, String)> {
    let has = Path::new(INTERFACES_V6).exists();
    has.then(|| ("ipv6/accept_ra".to_owned(), "0".to_owned()))
}
