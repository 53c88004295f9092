//! JSON in the opaque parts of messages that have no place of their own for it.

use serde_json::Value;
use types::{Any, Error, Result};

/// A value as it travels.
pub(crate) fn any(url: &str, value: &Value) -> Any {
    Any {
        type_url: url.to_owned(),
        value: value.to_string().into_bytes(),
    }
}

/// The value of a message of this type.
///
/// # Errors
/// `InvalidArgument` for one of another type, and for what is no JSON.
pub(crate) fn value(any: &Any, url: &str) -> Result<Value> {
    if any.type_url != url {
        return Err(Error::invalid_argument(format_args!(
            "type {:?} is not {url:?}",
            any.type_url
        )));
    }
    serde_json::from_slice(&any.value).map_err(|e| malformed().with_source(e))
}

/// A message that is not what its type says.
pub(crate) fn malformed() -> Error {
    Error::invalid_argument("malformed message")
}
