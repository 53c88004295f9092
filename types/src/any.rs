//! A typed opaque value: a type URL and bytes. Nobody below the edge looks inside.

/// Protobuf `Any` as a value. Type URLs are kept as they came.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Any {
    /// Type URL; containerd writes no `type.googleapis.com/` prefix and accepts both forms.
    pub type_url: String,
    /// Encoded value.
    pub value: Vec<u8>,
}

impl Any {
    /// The type name: the URL after its last slash-terminated host prefix.
    ///
    /// containerd's JSON types have slashes of their own
    /// ([`crate::SPEC_URL`]), so only Google's prefix is cut.
    #[must_use]
    pub fn type_name(&self) -> &str {
        self.type_url
            .strip_prefix("type.googleapis.com/")
            .unwrap_or(&self.type_url)
    }

    /// True when nothing was given.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.type_url.is_empty() && self.value.is_empty()
    }
}
