//! Stands for what a daemon holds for its clients.

use std::sync::Mutex;

use async_trait::async_trait;
use types::{Held, Labels, LeaseId};

use crate::gc::Unrecorded;

/// What the daemon holds, of one kind.
#[derive(Debug, Default)]
pub(super) struct Holding(pub(super) Mutex<Vec<Held>>);

impl Holding {
    pub(super) fn add(&self, namespace: &str, name: &str, lease: Option<&LeaseId>, labels: Labels) {
        let mut all = self.0.lock().unwrap();
        let number = all.len() as u64;
        all.push(Held {
            namespace: namespace.parse().unwrap(),
            name: name.into(),
            number,
            lease: lease.cloned(),
            labels,
        });
    }

    pub(super) fn names(&self) -> Vec<String> {
        let all = self.0.lock().unwrap();
        all.iter().map(|held| held.name.clone()).collect()
    }
}

#[async_trait]
impl Unrecorded for Holding {
    fn held(&self) -> Vec<Held> {
        self.0.lock().unwrap().clone()
    }

    async fn end(&self, held: &Held) {
        self.0.lock().unwrap().retain(|one| one != held);
    }
}
