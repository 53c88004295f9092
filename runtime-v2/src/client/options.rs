//! runc's options, as far as the daemon looks into them.

use std::path::Path;

use protos::any::{is, pack, unpack};
use protos::runc::Options;
use types::{Any, Result};

/// The options with `root` for the runtime's state, unless they name one or are of another type.
///
/// # Errors
/// `InvalidArgument` for damaged options.
pub(crate) fn with_root(options: Option<Any>, root: &Path) -> Result<Option<Any>> {
    let mut parsed = match &options {
        None => Options::default(),
        Some(any) if is::<Options>(any) => unpack(any)?,
        Some(_) => return Ok(options),
    };
    if !parsed.root.is_empty() {
        return Ok(options);
    }
    parsed.root = root.display().to_string();
    pack(&parsed).map(Some)
}

/// True for options of runc that leave the shim in the daemon's control group.
pub(crate) fn keep_shim_group(options: &Any) -> bool {
    is::<Options>(options)
        && unpack::<Options>(options).is_ok_and(|options| options.shim_cgroup.is_empty())
}
