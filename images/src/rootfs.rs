//! Chain ids: the names of the snapshots that layers become (OCI image-spec, config.md).

use types::{Digest, Result};

use crate::blob::digest_of;

/// The chain ids of all prefixes of `diff_ids`, lowest layer first.
///
/// # Errors
/// `Internal`: never in practice.
pub fn chain_ids(diff_ids: &[Digest]) -> Result<Vec<Digest>> {
    let mut all: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for id in diff_ids {
        let next = match all.last() {
            None => id.clone(),
            Some(below) => digest_of(format!("{below} {id}").as_bytes())?,
        };
        all.push(next);
    }
    Ok(all)
}

/// The chain id of the whole root file system; `None` for an image without layers.
///
/// # Errors
/// As [`chain_ids`].
pub fn chain_of(diff_ids: &[Digest]) -> Result<Option<Digest>> {
    Ok(chain_ids(diff_ids)?.pop())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_ids_are_those_of_the_specification() {
        let id = |c: &str| {
            format!("sha256:{}", c.repeat(64))
                .parse::<Digest>()
                .unwrap()
        };
        assert_eq!(chain_of(&[]).unwrap(), None);
        assert_eq!(chain_of(&[id("a")]).unwrap(), Some(id("a")));
        let chains = chain_ids(&[id("a"), id("b"), id("c")]).unwrap();
        let hash = |text: String| digest_of(text.as_bytes()).unwrap();
        assert_eq!(chains[1], hash(format!("{} {}", id("a"), id("b"))));
        assert_eq!(chains[2], hash(format!("{} {}", chains[1], id("c"))));
    }
}
