//! Records by themselves: they can be read, and what they cannot do without has a record.

use types::{Digest, Fault, Namespace, Repair, Result};

use super::Check;
use crate::key::{Bucket, all, names, own};
use crate::kv::{Flow, Read};
use crate::namespaces;
use crate::record::{
    BlobRecord, IngestRecord, SnapshotRecord, get_container, get_image, get_lease,
};
use crate::snapshots::record_key;

const PULL: &str = "pull the image again";

impl Check<'_> {
    pub(super) fn records(&mut self) -> Result<()> {
        let tx = self.metadata.0.db.kv.read()?;
        for namespace in namespaces::known(&tx)? {
            self.readable(&tx, &namespace)?;
            self.images(&tx, &namespace)?;
            self.containers(&tx, &namespace)?;
            self.parents(&tx, &namespace)?;
        }
        Ok(())
    }

    /// Every record can be read: the store vouches for bytes, not for what they mean.
    fn readable(&mut self, tx: &dyn Read, namespace: &Namespace) -> Result<()> {
        type Decode = fn(&str, &[u8]) -> Result<()>;
        let kinds: [(Bucket, &str, Decode); 6] = [
            (Bucket::Image, "image", |name, r| {
                get_image(name, r).map(drop)
            }),
            (Bucket::Container, "container", |id, r| {
                get_container(id, r).map(drop)
            }),
            (Bucket::Lease, "lease", |id, r| get_lease(id, r).map(drop)),
            (Bucket::Blob, "content", |digest, r| {
                let _digest: Digest = digest.parse()?;
                BlobRecord::decode(r).map(drop)
            }),
            (Bucket::Ingest, "ingest", |_, r| {
                IngestRecord::decode(r).map(drop)
            }),
            (Bucket::Snapshot, "snapshot", |_, r| {
                SnapshotRecord::decode(r).map(drop)
            }),
        ];
        for (bucket, kind, decode) in kinds {
            tx.scan(&all(bucket, namespace), &mut |rest, record| {
                let [name] = names(rest)?;
                if let Err(error) = decode(name, record) {
                    let object = format!("{kind} {namespace}/{}", name.replace('\0', "/"));
                    let text = format!("its record cannot be read: {error}");
                    self.report
                        .note(Fault::Damaged, object, text, Repair::Impossible);
                }
                Ok(Flow::Continue(()))
            })?;
        }
        let labels = namespaces::labels_of(tx, namespace);
        if let Err(error) = labels.map(drop) {
            let text = format!("its record cannot be read: {error}");
            let object = format!("namespace {namespace}");
            self.report
                .note(Fault::Damaged, object, text, Repair::Impossible);
        }
        Ok(())
    }

    fn images(&mut self, tx: &dyn Read, namespace: &Namespace) -> Result<()> {
        tx.scan(&all(Bucket::Image, namespace), &mut |rest, record| {
            let [name] = names(rest)?;
            self.report.images += 1;
            if let Ok(image) = get_image(name, record) {
                let digest = image.target.digest;
                if !tx.has(&own(Bucket::Blob, namespace, digest.as_str()))? {
                    let text = format!("its target {digest} is not there; {PULL}");
                    let object = format!("image {namespace}/{name}");
                    self.report
                        .note(Fault::Dangling, object, text, Repair::Impossible);
                }
            }
            Ok(Flow::Continue(()))
        })
    }

    fn containers(&mut self, tx: &dyn Read, namespace: &Namespace) -> Result<()> {
        tx.scan(&all(Bucket::Container, namespace), &mut |rest, record| {
            let [id] = names(rest)?;
            self.report.containers += 1;
            if let Ok(container) = get_container(id, record)
                && !container.snapshotter.is_empty()
                && !container.snapshot_key.is_empty()
            {
                let (on, key) = (&container.snapshotter, &container.snapshot_key);
                if !tx.has(&record_key(namespace, on, key))? {
                    let text = format!("its snapshot {on}/{key} is not there; make it again");
                    let object = format!("container {namespace}/{id}");
                    self.report
                        .note(Fault::Dangling, object, text, Repair::Impossible);
                }
            }
            Ok(Flow::Continue(()))
        })
    }

    fn parents(&mut self, tx: &dyn Read, namespace: &Namespace) -> Result<()> {
        tx.scan(&all(Bucket::Snapshot, namespace), &mut |rest, record| {
            let [snapshotter, name] = names(rest)?;
            if let Ok(SnapshotRecord {
                parent: Some(parent),
                ..
            }) = SnapshotRecord::decode(record)
                && !tx.has(&record_key(namespace, snapshotter, &parent))?
            {
                let text = format!("its parent {parent} is not there; {PULL}");
                let object = format!("snapshot {namespace}/{snapshotter}/{name}");
                self.report
                    .note(Fault::Dangling, object, text, Repair::Impossible);
            }
            Ok(Flow::Continue(()))
        })
    }
}
