//! Field masks on labels: the part that all records share.

use types::{Fields, Labels, Result};

/// Applies a mask to a record that has nothing but labels to change. `what` names it in errors.
///
/// # Errors
/// `InvalidArgument` for another field or a label that is too long.
pub(crate) fn labels(current: Labels, new: &Labels, fields: &Fields, what: &str) -> Result<Labels> {
    let mut labels = current;
    if fields.is_all() {
        labels = new.clone();
    }
    for (path, split) in fields.iter().zip(fields.split()) {
        match split {
            ("labels", None) => labels = new.clone(),
            ("labels", Some(key)) => set(&mut labels, key, new),
            _ => return Fields::refuse(path, what),
        }
    }
    labels.validate()?;
    Ok(labels.without_empty())
}

/// Sets `key` as in `new`; where that has nothing, the label goes.
pub(crate) fn set(labels: &mut Labels, key: &str, new: &Labels) {
    labels.set(key, new.get(key).map_or("", String::as_str));
}
