//! Attachments as their records have them, and the records against what is there.
//!
//! Invariant: looking needs no turn and no plugin, unless each is to be checked.

use std::path::Path;

use serde_json::Value;
use types::network::{IpNet, JoinState, Joined, PortMapping, TenantId};
use types::{Code, Fault, Finding, Namespace, Repair, Result};

use super::NAME;
use super::answer::Answer;
use super::chain::Chain;
use super::core::Core;
use super::place::living;
use super::record::{Damaged, Phase, Record};
use super::wish::known_as;
use crate::netns::{Identity, check_unused};

impl Core {
    /// The attachments of a tenant or of all.
    pub(super) fn list(&self, tenant: Option<&Namespace>) -> Result<Vec<Joined>> {
        let mut all = Vec::new();
        for id in self.records.list()? {
            if tenant.is_none_or(|tenant| id.namespace == *tenant) {
                let records = self.records.look(&id)?.into_iter();
                all.extend(records.map(|record| match record {
                    Ok(record) => joined(&id, &record),
                    Err(damaged) => lost(&id, &damaged),
                }));
            }
        }
        Ok(all)
    }

    /// What plugins say of an attachment; empty: it is as it was made.
    pub(super) fn look(&self, joined: &Joined) -> Result<String> {
        let id = &joined.id;
        let Some(shelf) = self.records.open(id)? else {
            return Ok(String::new());
        };
        let container = known_as(id);
        let chain = Chain {
            plugins: &self.plugins,
            shelf: &shelf,
            container: &container,
        };
        for record in shelf.records()?.into_iter().flatten() {
            let is_it =
                record.interface == joined.interface && record.network()?.name == joined.network;
            if is_it && let Err(error) = chain.check(&record) {
                return Ok(error.to_string());
            }
        }
        Ok(String::new())
    }

    /// What is wrong with the attachments of a container; `is_lost`: there is none of that id.
    pub(super) fn faults(
        &self,
        id: &TenantId,
        is_lost: bool,
    ) -> Result<Vec<(Fault, String, String)>> {
        let mut found = Vec::new();
        for record in self.records.look(id)? {
            let told = match record {
                Ok(record) => {
                    let object = object(id, &joined(id, &record));
                    let is_lost = is_lost && !self.records.is_new(id, &record);
                    fault(&record, is_lost)?.map(|(fault, text)| (fault, object, text))
                }
                Err(damaged) if damaged.error.is(Code::DataLoss) => {
                    let text =
                        format!("{}: it is given up when the container parts", damaged.error);
                    Some((Fault::Damaged, object(id, &lost(id, &damaged)), text))
                }
                Err(damaged) => return Err(damaged.error),
            };
            found.extend(told);
        }
        Ok(found)
    }
}

/// The findings, after a sweep of the container's attachments if that was asked for: what it has left is what
/// is wrong still.
pub(super) fn findings(
    before: Vec<(Fault, String, String)>,
    after: Option<&[(Fault, String, String)]>,
) -> Vec<Finding> {
    let told = before.into_iter().map(|(fault, object, text)| {
        let is_left = |after: &[(Fault, String, String)]| after.iter().any(|one| one.1 == object);
        let repair = match after.map(is_left) {
            // A damaged one says nothing of what its plugins have made.
            None if fault == Fault::Damaged => Repair::Impossible,
            None => Repair::Possible,
            Some(true) => Repair::Impossible,
            Some(false) => Repair::Done,
        };
        Finding {
            fault,
            object,
            text,
            repair,
        }
    });
    told.collect()
}

fn object(id: &TenantId, joined: &Joined) -> String {
    format!(
        "network-attachment {id} {} of CNI network {}",
        joined.interface, joined.network
    )
}

fn fault(record: &Record, is_lost: bool) -> Result<Option<(Fault, String)>> {
    if record.phase != Phase::Added {
        return Ok(Some((Fault::Dangling, "it was not finished".to_owned())));
    }
    if living(record)?.as_os_str().is_empty() {
        let text = format!("network namespace {} is gone", record.netns.display());
        return Ok(Some((Fault::Missing, text)));
    }
    if is_lost && is_unused(&record.netns)? {
        let text = "there is no container of that id, and nobody in its network namespace";
        return Ok(Some((Fault::Dangling, text.to_owned())));
    }
    Ok(None)
}

fn is_unused(netns: &Path) -> Result<bool> {
    let inode = Identity::to_join(netns)?.inode();
    Ok(check_unused("", inode).is_ok())
}

fn joined(id: &TenantId, record: &Record) -> Joined {
    let network = record.network().ok();
    let version = network.as_ref().map(|network| network.version);
    let told = record.result.clone().zip(version);
    let told = told.and_then(|(result, version)| Answer::parse(&result, version).ok());
    let told = told.and_then(|(answer, _)| answer.to_result().ok());
    Joined {
        driver: NAME.to_owned(),
        id: id.clone(),
        interface: record.interface.clone(),
        network: network.map(|network| network.name).unwrap_or_default(),
        netns: record.netns.clone(),
        addresses: told
            .map(|told| {
                told.addresses
                    .iter()
                    .map(|one| one.address)
                    .collect::<Vec<IpNet>>()
            })
            .unwrap_or_default(),
        ports: ports(record.capabilities.get("portMappings")),
        state: match record.phase {
            Phase::Adding => JoinState::Joining,
            Phase::Added => JoinState::Joined,
            Phase::Deleting => JoinState::Parting,
        },
        fault: String::new(),
    }
}

/// What the name of a file still says.
fn lost(id: &TenantId, damaged: &Damaged) -> Joined {
    let (network, interface) = damaged.about().unwrap_or_default();
    Joined {
        driver: NAME.to_owned(),
        id: id.clone(),
        interface: interface.to_owned(),
        network: network.to_owned(),
        netns: std::path::PathBuf::new(),
        addresses: Vec::new(),
        ports: Vec::new(),
        state: JoinState::Damaged,
        fault: damaged.error.to_string(),
    }
}

/// Ports as they are told to plugins.
fn ports(told: Option<&Value>) -> Vec<PortMapping> {
    let all = told.and_then(Value::as_array).into_iter().flatten();
    let read = |one: &Value| {
        let text = |key: &str| one.get(key).and_then(Value::as_str).unwrap_or_default();
        let number = |key: &str| u16::try_from(one.get(key)?.as_u64()?).ok();
        Some(PortMapping {
            protocol: text("protocol").parse().ok()?,
            host_ip: text("hostIP").parse().ok(),
            host_port: number("hostPort")?,
            container_port: number("containerPort")?,
        })
    };
    all.filter_map(read).collect()
}
