//! The OCI runtime spec of a container, as `ctr run` writes it.
//!
//! Invariant: the document holds only fields of [`OCI_VERSION`], the lowest version that covers what
//! is used here, because old runtimes refuse versions they do not know. The document is JSON and
//! stays JSON: nothing that a given spec file holds is lost. Called by clients only; daemon and
//! metadata treat the spec as an opaque `Any`.

mod capability;
mod default;
mod edit;
mod foreign;
mod image;
mod user;

use std::path::Path;

use serde_json::{Map, Value};
use types::{Any, ContainerId, Error, Namespace, Result, SPEC_URL};

pub use capability::current_capabilities;
pub use edit::{IdMapping, Limits, SpecMount};
pub use image::{DEFAULT_PATH, is_reserved_label};
pub use user::{MAX_ID, User, UserSpec};

/// Type URL of a process in an [`Any`].
pub const PROCESS_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
/// The version that is written.
pub const OCI_VERSION: &str = "1.0.2";

/// A runtime spec under construction.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec(Value);

impl Spec {
    /// The default Linux container: own pid, ipc, uts, mount and network namespaces, Docker's
    /// classic capabilities, no new privileges, no devices but the standard ones.
    #[must_use]
    pub fn linux(namespace: &Namespace, id: &ContainerId) -> Self {
        Self(default::linux(
            &format!("/{namespace}/{id}"),
            default::open_files(),
        ))
    }

    /// The default Linux spec of no container in particular, for `ctr oci spec`.
    #[must_use]
    pub fn template(namespace: &Namespace) -> Self {
        Self(default::linux(
            &format!("/{namespace}"),
            default::open_files(),
        ))
    }

    /// A spec from its JSON text.
    ///
    /// # Errors
    /// `InvalidArgument` when it is no JSON object.
    pub fn parse(text: &[u8]) -> Result<Self> {
        let value: Value = serde_json::from_slice(text)
            .map_err(|e| Error::invalid_argument(format_args!("decoding spec: {e}")))?;
        if !value.is_object() {
            return Err(Error::invalid_argument("decoding spec: not a JSON object"));
        }
        Ok(Self(value))
    }

    /// A spec from a container's record.
    ///
    /// # Errors
    /// `InvalidArgument` when there is none or it is of another type.
    pub fn from_any(any: Option<&Any>) -> Result<Self> {
        let any = any.ok_or_else(|| Error::invalid_argument("container has no spec"))?;
        Self::parse(&any.value)
    }

    /// The document.
    #[must_use]
    pub fn value(&self) -> &Value {
        &self.0
    }

    /// The document, packed for a container's record.
    ///
    /// # Errors
    /// `Internal` when it cannot be written as JSON.
    pub fn to_any(&self) -> Result<Any> {
        pack(SPEC_URL, &self.0)
    }

    /// The process part, packed for an exec.
    ///
    /// # Errors
    /// `InvalidArgument` when there is no process.
    pub fn process_to_any(&self) -> Result<Any> {
        let process = self.0.get("process").filter(|p| p.is_object());
        pack(
            PROCESS_URL,
            process.ok_or_else(|| Error::invalid_argument("spec has no process"))?,
        )
    }

    /// True when the process gets a terminal.
    #[must_use]
    pub fn terminal(&self) -> bool {
        self.0
            .pointer("/process/terminal")
            .and_then(Value::as_bool)
            .unwrap_or(false)
    }

    /// The root file system, when it is a directory of the host and not one of the bundle.
    #[must_use]
    pub fn root_dir(&self) -> Option<&Path> {
        let path = self.0.pointer("/root/path").and_then(Value::as_str)?;
        path.starts_with('/').then(|| Path::new(path))
    }

    /// Host ids of the container's root, when it has a user namespace with mappings.
    #[must_use]
    pub fn root_owner(&self) -> (Option<u32>, Option<u32>) {
        let host = |which: &str| {
            let id = self.0.pointer(&format!("/linux/{which}/0/hostID"))?;
            u32::try_from(id.as_u64()?).ok()
        };
        (host("uidMappings"), host("gidMappings"))
    }

    /// The value at `path`, with the objects on the way made when they are missing.
    fn slot(&mut self, path: &[&str]) -> &mut Value {
        let mut here = &mut self.0;
        for name in path {
            if !here.is_object() {
                *here = Value::Object(Map::new());
            }
            // Indexing by name inserts null into an object and cannot fail on one.
            here = &mut here[*name];
        }
        here
    }

    fn set(&mut self, path: &[&str], value: impl Into<Value>) {
        *self.slot(path) = value.into();
    }

    /// Changes the list at `path`, which is made when it is missing.
    fn edit_list<T>(&mut self, path: &[&str], edit: impl FnOnce(&mut Vec<Value>) -> T) -> T {
        let slot = self.slot(path);
        let mut list = match slot.take() {
            Value::Array(list) => list,
            _ => Vec::new(),
        };
        let done = edit(&mut list);
        *slot = Value::Array(list);
        done
    }

    /// Adds to the list at `path`.
    fn extend(&mut self, path: &[&str], values: impl IntoIterator<Item = Value>) {
        self.edit_list(path, |list| list.extend(values));
    }
}

fn pack(url: &str, value: &Value) -> Result<Any> {
    let bytes =
        serde_json::to_vec(value).map_err(|e| Error::internal("encode spec").with_source(e))?;
    Ok(Any {
        type_url: url.to_owned(),
        value: bytes,
    })
}

#[cfg(test)]
mod tests;
