//! Field masks: which fields of a record an update touches.

use crate::{Error, Result};

/// The paths of an update's field mask. Empty means: replace every mutable field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields(Vec<String>);

impl Fields {
    /// A mask of `paths`.
    #[must_use]
    pub fn new(paths: Vec<String>) -> Self {
        Self(paths)
    }

    /// True when no mask was given.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.0.is_empty()
    }

    /// The paths, in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// The paths split at their first dot: map keys may have dots of their own.
    pub fn split(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        self.iter().map(|path| match path.split_once('.') {
            Some((field, key)) => (field, Some(key)),
            None => (path, None),
        })
    }

    /// The error for a path that the record does not have or that cannot change.
    ///
    /// # Errors
    /// Always `InvalidArgument`.
    pub fn refuse<T>(path: &str, what: &str) -> Result<T> {
        Err(Error::invalid_argument(format_args!(
            "cannot update {path:?} field on {what}"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_keep_their_dots() {
        let fields = Fields::new(vec!["labels.a.b/c".into(), "image".into()]);
        let split: Vec<_> = fields.split().collect();
        assert_eq!(split, [("labels", Some("a.b/c")), ("image", None)]);
    }
}
