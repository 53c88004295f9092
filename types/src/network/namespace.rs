//! Network namespaces as records.

use std::fmt;
use std::path::PathBuf;
use std::time::SystemTime;

use crate::{Filterable, Labels};

/// A network namespace that has a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetNamespace {
    /// Its name among those of its tenant.
    pub name: String,
    /// A file that stands for it as long as it has the name.
    pub path: PathBuf,
    /// Number by which the kernel tells it from others.
    pub inode: u64,
    /// Where it was when it was taken over; empty: made here.
    pub adopted: PathBuf,
    /// Labels.
    pub labels: Labels,
    /// When it got its name.
    pub created_at: SystemTime,
    /// When its record last changed.
    pub updated_at: SystemTime,
}

impl Filterable for NetNamespace {
    fn field(&self, path: &[&str]) -> Option<String> {
        match path {
            ["name"] => Some(self.name.clone()),
            ["path"] => Some(self.path.display().to_string()),
            ["adopted"] => Some(self.adopted.display().to_string()).filter(|at| !at.is_empty()),
            ["labels", key @ ..] => self.labels.field(key),
            _ => None,
        }
    }
}

/// Where interfaces are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// The daemon's own network namespace.
    #[default]
    Host,
    /// A network namespace, by name.
    Named(String),
}

impl Place {
    /// A place by its name; the empty one is that of the host.
    #[must_use]
    pub fn of(name: String) -> Self {
        if name.is_empty() {
            Self::Host
        } else {
            Self::Named(name)
        }
    }

    /// The name, empty for the host.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Host => "",
            Self::Named(name) => name,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("the host"),
            Self::Named(name) => write!(f, "network namespace {name:?}"),
        }
    }
}
