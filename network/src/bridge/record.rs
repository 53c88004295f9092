//! Attachments on disk: what was asked for, and how far it is.
//!
//! ```text
//! <directory>/<name of the interface outside>.json     written whole, renamed into place
//! ```
//! Invariant: a record is there before the first thing that it is about, and goes after the last one,
//! whenever this process dies. What it is about lasts no longer than the machine runs, and neither need it:
//! one that a power cut has damaged is about nothing.

use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sys::fs::{Flush, write_atomic_with};
use types::network::{IpNet, LinkName, NetRequest, PortMapping, Route, TenantId};
use types::{Context as _, Error, Result};

use crate::netns::Identity;

/// What files are called behind the name of their interface.
const ENDING: &str = ".json";

/// How far an attachment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Phase {
    /// Some of it may exist; nobody was told of it.
    Coming,
    /// All of it exists.
    Active,
    /// Some of it may still exist.
    Going,
}

/// An attachment.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Record {
    pub(super) request: NetRequest,
    pub(super) phase: Phase,
    /// Which network namespace it was: the path may stand for another one by now.
    pub(super) place: Identity,
    pub(super) made_at: SystemTime,
}

/// The records of all containers.
#[derive(Clone, Debug)]
pub(super) struct Records {
    directory: PathBuf,
}

impl Records {
    pub(super) const fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    fn path(&self, outer: &LinkName) -> PathBuf {
        self.directory.join(format!("{outer}{ENDING}"))
    }

    /// All of them, by the names of their interfaces; one that is damaged as its error.
    ///
    /// # Errors
    /// The errno.
    pub(super) fn list(&self) -> Result<Vec<(LinkName, Result<Record>)>> {
        let failed = |e| Error::os(format_args!("read {}", self.directory.display()), e);
        let entries = match std::fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(failed(e)),
        };
        let mut all = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            // Half a record of a process that was killed begins with a dot, which no interface of ours does.
            let stem = name.to_str().and_then(|name| name.strip_suffix(ENDING));
            let Some(outer) = stem.and_then(|stem| stem.parse().ok()) else {
                continue;
            };
            // Gone meanwhile.
            if let Some(read) = self.find(&outer).transpose() {
                all.push((outer, read));
            }
        }
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        Ok(all)
    }

    /// The record of the attachment with this interface outside, if there is one.
    ///
    /// # Errors
    /// `DataLoss`, else the errno.
    pub(super) fn find(&self, outer: &LinkName) -> Result<Option<Record>> {
        let path = self.path(outer);
        match std::fs::read(&path) {
            Ok(text) => {
                let read = parse(&text).ctx_with(|| format!("record {}", path.display()));
                read.map(Some)
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::os(format_args!("read {}", path.display()), e)),
        }
    }

    /// Writes a record. It outlives this process when this returns.
    ///
    /// # Errors
    /// The errno.
    pub(super) fn write(&self, outer: &LinkName, record: &Record) -> Result<()> {
        let text = serde_json::to_vec(&Written::of(record))
            .map_err(|e| Error::internal("encode record of an attachment").with_source(e))?;
        let path = self.path(outer);
        match write(&path, &text) {
            // Made when it is needed, once.
            Err(_) if !self.directory.is_dir() => {
                make(&self.directory)?;
                write(&path, &text)
            }
            done => done,
        }
    }

    /// Removes half records of a process that was killed; nobody writes any meanwhile.
    ///
    /// # Errors
    /// The errno.
    pub(super) fn sweep(&self) -> Result<()> {
        let failed = |e| Error::os(format_args!("sweep {}", self.directory.display()), e);
        let entries = match std::fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(failed(e)),
        };
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let is_half = entry.file_name().as_encoded_bytes().starts_with(b".");
            // Records are files: what somebody else has put here stays.
            if is_half && entry.file_type().map_err(failed)?.is_file() {
                std::fs::remove_file(entry.path()).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Removes a record; none is no error.
    ///
    /// # Errors
    /// The errno.
    pub(super) fn remove(&self, outer: &LinkName) -> Result<()> {
        let path = self.path(outer);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::os(format_args!("remove {}", path.display()), e))
            }
            _ => Ok(()),
        }
    }
}

/// Nothing is flushed: a power cut takes with it all that the record is about.
fn write(path: &Path, text: &[u8]) -> Result<()> {
    write_atomic_with(path, text, 0o600, Flush::Volatile)
}

fn make(directory: &Path) -> Result<()> {
    let made = std::fs::DirBuilder::new()
        .mode(0o700)
        .recursive(true)
        .create(directory);
    made.map_err(|e| Error::os(format_args!("mkdir {}", directory.display()), e))
}

/// A record in texts and numbers.
#[derive(Deserialize, Serialize)]
struct Written {
    namespace: String,
    container: String,
    netns: PathBuf,
    place: Identity,
    interface: String,
    networks: Vec<String>,
    addresses: Vec<String>,
    mac: Option<String>,
    mtu: Option<u32>,
    routes: Vec<Way>,
    ports: Vec<Port>,
    phase: Phase,
    /// Since 1970.
    made_at: Duration,
}

#[derive(Deserialize, Serialize)]
struct Way {
    destination: String,
    gateway: Option<IpAddr>,
    source: Option<IpAddr>,
    metric: Option<u32>,
    table: Option<u32>,
    mtu: Option<u32>,
    on_link: bool,
}

#[derive(Deserialize, Serialize)]
struct Port {
    protocol: String,
    host_ip: Option<IpAddr>,
    host_port: u16,
    container_port: u16,
}

impl Written {
    fn of(record: &Record) -> Self {
        let request = &record.request;
        let since = record.made_at.duration_since(SystemTime::UNIX_EPOCH);
        Self {
            namespace: request.id.namespace.to_string(),
            container: request.id.container.to_string(),
            netns: request.netns.clone(),
            place: record.place.clone(),
            interface: request.interface.to_string(),
            networks: request.networks.clone(),
            addresses: request.addresses.iter().map(ToString::to_string).collect(),
            mac: request.mac.map(|mac| mac.to_string()),
            mtu: request.mtu,
            routes: request.routes.iter().map(way).collect(),
            ports: request.ports.iter().map(port).collect(),
            phase: record.phase,
            made_at: since.unwrap_or_default(),
        }
    }

    fn record(self) -> Result<Record> {
        let addresses = self.addresses.iter().map(|text| text.parse::<IpNet>());
        let routes = self.routes.into_iter().map(|way| {
            Ok(Route {
                destination: way.destination.parse()?,
                gateway: way.gateway,
                source: way.source,
                metric: way.metric,
                table: way.table,
                mtu: way.mtu,
                on_link: way.on_link,
            })
        });
        let ports = self.ports.into_iter().map(|port| {
            Ok(PortMapping {
                protocol: port.protocol.parse()?,
                host_ip: port.host_ip,
                host_port: port.host_port,
                container_port: port.container_port,
            })
        });
        Ok(Record {
            request: NetRequest {
                id: TenantId {
                    namespace: self.namespace.parse()?,
                    container: self.container.parse()?,
                },
                netns: self.netns,
                interface: self.interface.parse()?,
                networks: self.networks,
                addresses: addresses.collect::<Result<_>>()?,
                mac: self.mac.map(|mac| mac.parse()).transpose()?,
                mtu: self.mtu,
                routes: routes.collect::<Result<_>>()?,
                ports: ports.collect::<Result<_>>()?,
                // The driver knows none: a request with some was refused.
                args: [].into(),
                capabilities: [].into(),
            },
            phase: self.phase,
            place: self.place,
            made_at: SystemTime::UNIX_EPOCH + self.made_at,
        })
    }
}

fn way(route: &Route) -> Way {
    Way {
        destination: route.destination.to_string(),
        gateway: route.gateway,
        source: route.source,
        metric: route.metric,
        table: route.table,
        mtu: route.mtu,
        on_link: route.on_link,
    }
}

fn port(port: &PortMapping) -> Port {
    Port {
        protocol: port.protocol.as_str().to_owned(),
        host_ip: port.host_ip,
        host_port: port.host_port,
        container_port: port.container_port,
    }
}

fn parse(text: &[u8]) -> Result<Record> {
    let written: Written = serde_json::from_slice(text)
        .map_err(|e| Error::data_loss(format_args!("{e}")).with_source(e))?;
    let record = written.record();
    record.map_err(|e| e.reclass(types::Code::DataLoss))
}
