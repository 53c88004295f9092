//! A set of very many hashes in little memory.
//!
//! Six bytes for each, and a little more: four million take 26 MiB, where a hash table takes three times
//! that when it grows. The first byte chooses one of 256 lists, of which each is sorted but for a tail.
//!
//! Invariant: a value is found if it was added; one that was not is found with a probability of one in
//! 2^48 for each that was.

/// Longest tail that is searched one by one.
const TAIL: usize = 256;
/// Bytes kept of a hash besides the first one.
const KEPT: usize = 5;

/// The set.
#[derive(Debug)]
pub(crate) struct Seen {
    lists: Vec<List>,
}

#[derive(Clone, Debug, Default)]
struct List {
    all: Vec<[u8; KEPT]>,
    /// How many at the front are in order.
    sorted: usize,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            lists: vec![List::default(); 256],
        }
    }
}

/// The list and what is kept in it.
fn split(hash: u64) -> (usize, [u8; KEPT]) {
    let [list, a, b, c, d, e, ..] = hash.to_be_bytes();
    (usize::from(list), [a, b, c, d, e])
}

impl Seen {
    /// Adds a hash.
    pub(crate) fn insert(&mut self, hash: u64) {
        let (list, kept) = split(hash);
        let list = &mut self.lists[list];
        if list.all.len() == list.all.capacity() {
            // An eighth more: doubling would be what a hash table takes.
            list.all.reserve_exact((list.all.len() / 8).max(16));
        }
        list.all.push(kept);
        if list.all.len() - list.sorted > TAIL {
            // Made for runs that are in order: no more than a merge.
            list.all.sort();
            list.all.dedup();
            list.sorted = list.all.len();
        }
    }

    /// True when nothing was added, or all of it was taken away.
    pub(crate) fn is_empty(&self) -> bool {
        self.lists.iter().all(|list| list.all.is_empty())
    }

    /// Takes a hash away.
    pub(crate) fn remove(&mut self, hash: u64) {
        let (list, kept) = split(hash);
        let List { all, sorted } = &mut self.lists[list];
        if let Ok(at) = all[..*sorted].binary_search(&kept) {
            all.remove(at);
            *sorted -= 1;
        }
        // It may have been added once more since the list was sorted.
        let mut at = *sorted;
        while let Some(value) = all.get(at) {
            if *value == kept {
                all.swap_remove(at);
            } else {
                at += 1;
            }
        }
    }

    /// True for one that was added.
    pub(crate) fn contains(&self, hash: u64) -> bool {
        let (list, kept) = split(hash);
        let List { all, sorted } = &self.lists[list];
        all[..*sorted].binary_search(&kept).is_ok() || all[*sorted..].contains(&kept)
    }

    /// Bytes that it takes.
    #[cfg(test)]
    fn bytes(&self) -> usize {
        let lists = self.lists.iter();
        lists.map(|list| list.all.capacity() * KEPT).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher as _, RandomState};

    use super::*;

    #[test]
    fn what_was_added_is_found_in_little_memory() {
        const COUNT: u64 = 300_000;
        let hasher = RandomState::new();
        let mut seen = Seen::default();
        for number in 0..COUNT {
            let hash = hasher.hash_one(number);
            assert!(!seen.contains(hash));
            seen.insert(hash);
            // Once more is no more.
            if number % 7 == 0 {
                seen.insert(hash);
            }
            assert!(seen.contains(hash));
        }
        for number in 0..COUNT {
            assert!(seen.contains(hasher.hash_one(number)));
            assert!(!seen.contains(hasher.hash_one(number + COUNT)));
        }
        for number in (0..COUNT).step_by(3) {
            seen.remove(hasher.hash_one(number));
        }
        for number in 0..COUNT {
            let is_there = seen.contains(hasher.hash_one(number));
            assert_eq!(is_there, number % 3 != 0, "{number}");
        }
        let each = seen.bytes() as f64 / COUNT as f64;
        assert!(each < 7.0, "{each} bytes each");
    }
}
