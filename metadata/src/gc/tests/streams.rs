//! Streams live as long as their leases, or as what names them.

use std::sync::{Arc, Mutex};

use types::{Labels, LeaseId, Namespace, gc_label};

use crate::fixture::{House, scope};
use crate::gc::{LeasedStream, Streams};

#[derive(Debug, Default)]
struct Open(Mutex<Vec<LeasedStream>>);

impl Open {
    fn add(&self, id: &str, lease: &LeaseId) {
        self.0.lock().unwrap().push(LeasedStream {
            namespace: "a".parse().unwrap(),
            id: id.into(),
            lease: lease.clone(),
        });
    }

    fn ids(&self) -> Vec<String> {
        let all = self.0.lock().unwrap();
        all.iter().map(|stream| stream.id.clone()).collect()
    }
}

impl Streams for Open {
    fn leased(&self) -> Vec<LeasedStream> {
        self.0.lock().unwrap().clone()
    }

    fn end(&self, namespace: &Namespace, id: &str) {
        let mut all = self.0.lock().unwrap();
        all.retain(|stream| stream.namespace != *namespace || stream.id != id);
    }
}

#[tokio::test]
async fn a_stream_ends_with_its_lease_unless_something_names_it() {
    let house = House::new().await;
    let open = Arc::new(Open::default());
    house.metadata.collect_streams(Arc::clone(&open) as _);
    let first = house.leased("a", Labels::new()).await;
    let second = house.leased("a", Labels::new()).await;
    let (first, second) = (first.lease.unwrap(), second.lease.unwrap());
    open.add("one", &first);
    open.add("named", &first);
    open.add("two", &second);
    let naming = Labels::new().with(format!("{}.x", gc_label::REF_STREAM), "named");
    let target = crate::fixture::sha(b"x");
    let mut image = crate::fixture::image("i", &target);
    image.labels = naming;
    let images = house.metadata.images(&scope("a"));
    images.create(image, None).await.unwrap();
    house.metadata.gc().await.unwrap();
    assert_eq!(open.ids(), ["one", "named", "two"]);
    let leases = house.metadata.leases(&"a".parse().unwrap());
    leases.delete(&first, true).await.unwrap();
    assert_eq!(open.ids(), ["named", "two"]);
    images.delete("i", None, true).await.unwrap();
    assert_eq!(open.ids(), ["two"]);
}
