//! What a checkpoint is made with, and the typed values that it keeps as blobs.

use protos::Message as _;
use protos::wire::Wire as _;
use types::{Any, Error, Result};

/// Options of a checkpoint of a runc task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckpointOptions {
    /// End the task when it is saved.
    pub exit: bool,
    /// Save locks on files as well.
    pub file_locks: bool,
    /// Directory for the image; empty for the content store.
    pub image_path: String,
    /// Directory for CRIU's own files and logs; empty for one that goes with the call.
    pub work_path: String,
}

impl CheckpointOptions {
    /// The options as a typed value.
    ///
    /// # Errors
    /// `Internal`: never in practice.
    pub fn to_any(&self) -> Result<Any> {
        protos::any::pack(&protos::runc::CheckpointOptions {
            exit: self.exit,
            file_locks: self.file_locks,
            image_path: self.image_path.clone(),
            work_path: self.work_path.clone(),
            ..Default::default()
        })
    }
}

/// A typed value as the bytes of a blob.
///
/// # Errors
/// `Internal` when it cannot be encoded.
pub fn any_to_bytes(any: &Any) -> Result<Vec<u8>> {
    any.to_wire().write_to_bytes().map_err(Error::internal)
}

/// The typed value in a blob.
///
/// # Errors
/// `InvalidArgument` when it is damaged.
pub fn any_from_bytes(bytes: &[u8]) -> Result<Any> {
    let any = protos::well_known::Any::parse_from_bytes(bytes)
        .map_err(|e| Error::invalid_argument("decode Any").with_source(e))?;
    Any::from_wire(any)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typed_values_are_blobs_and_back() {
        let any = CheckpointOptions {
            exit: true,
            image_path: "/c".into(),
            ..CheckpointOptions::default()
        }
        .to_any()
        .unwrap();
        assert_eq!(any.type_url, "containerd.runc.v1.CheckpointOptions");
        assert_eq!(any_from_bytes(&any_to_bytes(&any).unwrap()).unwrap(), any);
        any_from_bytes(&[255]).unwrap_err();
    }
}
