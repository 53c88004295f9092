//! What drivers have on record about containers that they have joined to networks.

use std::path::PathBuf;

use super::{IpNet, PortMapping, TenantId};
use crate::{Error, Filterable};

/// A container's attachment to one network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// Name of the driver.
    pub driver: String,
    /// Whose.
    pub id: TenantId,
    /// Name of the interface inside.
    pub interface: String,
    /// Name of the network.
    pub network: String,
    /// The container's network namespace, by the path that the driver was told.
    pub netns: PathBuf,
    /// Addresses of the container.
    pub addresses: Vec<IpNet>,
    /// Ports of the host that lead into the container.
    pub ports: Vec<PortMapping>,
    /// How far it is.
    pub state: JoinState,
    /// What is not as it was made; empty: nothing, or nobody has looked.
    pub fault: String,
}

/// How far an attachment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JoinState {
    /// Being made: some of it may be there.
    Joining,
    /// Made.
    Joined,
    /// Being taken away: some of it may be there still.
    Parting,
    /// The record cannot be read.
    Damaged,
}

impl JoinState {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Joining, Self::Joined, Self::Parting, Self::Damaged];

    /// Its name in lower case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Joined => "joined",
            Self::Parting => "parting",
            Self::Damaged => "damaged",
        }
    }
}

impl std::str::FromStr for JoinState {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let mut all = Self::ALL.into_iter();
        let found = all.find(|one| one.as_str() == text);
        found.ok_or_else(|| {
            Error::invalid_argument(format_args!("{text:?} is no state of an attachment"))
        })
    }
}

impl Filterable for Joined {
    fn field(&self, path: &[&str]) -> Option<String> {
        match path {
            ["driver"] => Some(self.driver.clone()),
            ["container"] => Some(self.id.container.to_string()),
            ["interface"] => Some(self.interface.clone()),
            ["network"] => Some(self.network.clone()),
            ["path"] => Some(self.netns.display().to_string()),
            ["state"] => Some(self.state.as_str().to_owned()),
            _ => None,
        }
    }
}
