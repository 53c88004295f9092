//! Typed messages in and out of `Any`.
//!
//! Invariant: what goes out has no `type.googleapis.com/` prefix, as containerd writes it; what
//! comes in may have it.

use ::types::{Any, Error, Result};
use protobuf::Message;

/// A message that knows its full name, the text of its type URL.
///
/// Implemented for every message generated here, without reflection.
pub trait Named: Message {
    /// Package and name, as in `containerd.events.TaskExit`.
    const FULL_NAME: &'static str;
}

include!(concat!(env!("OUT_DIR"), "/names.rs"));

/// The message as a typed value.
///
/// # Errors
/// `Internal` when it cannot be encoded (it has more than 2 GiB).
pub fn pack<M: Named>(message: &M) -> Result<Any> {
    let value = message
        .write_to_bytes()
        .map_err(|e| Error::internal(format_args!("encode {}", M::FULL_NAME)).with_source(e))?;
    Ok(Any {
        type_url: M::FULL_NAME.to_owned(),
        value,
    })
}

/// True when the value says that it is an `M`.
#[must_use]
pub fn is<M: Named>(any: &Any) -> bool {
    any.type_name() == M::FULL_NAME
}

/// The message in a typed value.
///
/// # Errors
/// `InvalidArgument` when it is of another type or damaged.
pub fn unpack<M: Named>(any: &Any) -> Result<M> {
    if !is::<M>(any) {
        return Err(Error::invalid_argument(format_args!(
            "type {:?} is not {:?}",
            any.type_url,
            M::FULL_NAME
        )));
    }
    M::parse_from_bytes(&any.value).map_err(|e| {
        Error::invalid_argument(format_args!("decode {}", M::FULL_NAME)).with_source(e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runc::{CheckpointOptions, Options};
    use ::types::Code;

    #[test]
    fn urls_go_out_bare_and_come_in_either_way() {
        let options = Options {
            binary_name: "crun".into(),
            ..Options::default()
        };
        let mut any = pack(&options).unwrap();
        assert_eq!(any.type_url, "containerd.runc.v1.Options");
        assert_eq!(unpack::<Options>(&any).unwrap(), options);
        any.type_url.insert_str(0, "type.googleapis.com/");
        assert!(is::<Options>(&any));
        assert_eq!(unpack::<Options>(&any).unwrap(), options);
    }

    #[test]
    fn another_type_or_damaged_bytes_are_refused() {
        let mut any = pack(&Options::default()).unwrap();
        assert!(
            unpack::<CheckpointOptions>(&any)
                .unwrap_err()
                .is(Code::InvalidArgument)
        );
        any.value = vec![0xff];
        assert!(
            unpack::<Options>(&any)
                .unwrap_err()
                .is(Code::InvalidArgument)
        );
    }
}
