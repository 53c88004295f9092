//! Lists and maps of foreign documents, with an end.
//!
//! Invariant: what is beyond [`MAX_CHILDREN`] is refused before it takes memory: a document of 4 MiB
//! could otherwise become a list of a hundred.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Most entries of any list in a manifest, an index or a config. Each layer costs a few KiB while it is
/// pulled, and no file system stacks as many.
pub const MAX_CHILDREN: usize = 4096;

/// A list of at most [`MAX_CHILDREN`].
pub(crate) struct Few<T>(pub(crate) Vec<T>);

/// A map of at most [`MAX_CHILDREN`].
pub(crate) struct FewNamed<T>(pub(crate) BTreeMap<String, T>);

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Default for FewNamed<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

fn too_many<E: Error>() -> E {
    E::custom(format_args!("more than {MAX_CHILDREN} entries, the limit"))
}

struct Entries<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
    type Value = Few<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Few<T>, A::Error> {
        let mut found = Vec::new();
        while let Some(entry) = entries.next_element()? {
            if found.len() >= MAX_CHILDREN {
                return Err(too_many());
            }
            found.push(entry);
        }
        Ok(Few(found))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Few<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_seq(Entries(PhantomData))
    }
}

struct Named<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Named<T> {
    type Value = FewNamed<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<FewNamed<T>, A::Error> {
        let mut found = BTreeMap::new();
        while let Some((name, entry)) = entries.next_entry()? {
            if found.len() >= MAX_CHILDREN {
                return Err(too_many());
            }
            found.insert(name, entry);
        }
        Ok(FewNamed(found))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for FewNamed<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(Named(PhantomData))
    }
}
