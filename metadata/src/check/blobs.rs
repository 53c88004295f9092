//! Blobs and ingests.

use std::collections::{BTreeMap, BTreeSet};

use ::content::{Blob, Hasher};
use types::{BlobInfo, Code, Context as _, Digest, Event, Fault, Filter, Repair, Result};

use super::{Check, Orphan, listed, told};
use crate::db::WriteTx;
use crate::key::{Bucket, all, names, own};
use crate::kv::{Flow, Read};
use crate::namespaces;
use crate::record::{BlobRecord, IngestRecord};

/// Read in one piece.
const PIECE: usize = 1 << 20;

/// What the records say about one blob.
#[derive(Debug, Default)]
struct Named {
    namespaces: BTreeSet<String>,
    sizes: BTreeSet<u64>,
}

/// What a look at a blob's bytes says.
enum Verdict {
    Good,
    /// They are not its bytes.
    Bad(String),
    /// Nobody knows: reading failed, which is no fault of theirs.
    Unknown(String),
}

impl Check<'_> {
    pub(super) async fn blobs(&mut self) -> Result<()> {
        // The backend first: what is new in it has a record by then, or a gate that is held.
        let there = self.metadata.0.content.list(&Filter::default()).await?;
        let (mut named, waiting) = named(&self.metadata.0.db.kv.read()?)?;
        self.report.blobs = there.len() as u64;
        for blob in there {
            let digest = blob.digest.clone();
            match named.remove(digest.as_str()) {
                Some(record) => self.blob(&blob, &record).await?,
                // An ingest may be about to link it; a writer may have just made it.
                None if waiting.contains(digest.as_str()) => {}
                None if self.metadata.0.digests.try_alone(digest.as_str()).is_none() => {}
                None if self.metadata.0.spares(digest.as_str()) => {
                    let text = "changes of the records may be lost, its own among them; it is kept, and the \
                                next start at which the disk has room makes its record";
                    let object = format!("content {digest}");
                    self.report
                        .note(Fault::Orphan, object, text, Repair::Impossible);
                }
                None => self.orphan(Orphan::Content(digest.to_string())),
            }
        }
        for (digest, record) in named {
            let digest: Digest = digest.parse()?;
            let gone = self.metadata.0.content.info(&digest).await.absent_ok()?;
            if gone.is_none() {
                let text = "its file is not there";
                self.drop_blob(Fault::Missing, &digest, &record, text)
                    .await?;
            }
        }
        Ok(())
    }

    async fn blob(&mut self, blob: &BlobInfo, record: &Named) -> Result<()> {
        let is_old = self.opts.since.is_some_and(|since| blob.created_at < since);
        let is_other = record.sizes.iter().any(|size| *size != blob.size);
        let verdict = if is_old || (self.opts.quick && !is_other) {
            Verdict::Good
        } else {
            self.report.bytes += blob.size;
            self.verdict(&blob.digest).await
        };
        let object = format!("content {}", blob.digest);
        match verdict {
            Verdict::Bad(text) => {
                self.drop_blob(Fault::Damaged, &blob.digest, record, &text)
                    .await
            }
            Verdict::Unknown(text) => {
                self.report
                    .note(Fault::Damaged, object, text, Repair::Impossible);
                Ok(())
            }
            Verdict::Good if is_other && !is_old => self.resize(blob, object).await,
            Verdict::Good => Ok(()),
        }
    }

    /// Reads a blob.
    async fn verdict(&self, digest: &Digest) -> Verdict {
        match self.digest_of(digest).await {
            Ok(found) if found == *digest => Verdict::Good,
            Ok(found) => Verdict::Bad(format!("its bytes are {found}")),
            // Removed meanwhile.
            Err(error) if error.is_not_found() => Verdict::Good,
            Err(error) if error.is(Code::DataLoss) => Verdict::Bad(error.to_string()),
            Err(error) => Verdict::Unknown(format!("it cannot be read: {error}")),
        }
    }

    async fn digest_of(&self, digest: &Digest) -> Result<Digest> {
        let blob = self.metadata.0.content.open(digest).await?;
        let blob: &dyn Blob = &*blob;
        let mut hasher = Hasher::new(digest.algorithm());
        let mut at = 0;
        loop {
            let piece = blob.read_at(at, PIECE).await?;
            if piece.is_empty() {
                return hasher.finish();
            }
            at += piece.len() as u64;
            hasher.update(&piece);
            // Others want to be served, too.
            tokio::task::yield_now().await;
        }
    }

    /// The bytes are right, a record's length is not.
    async fn resize(&mut self, blob: &BlobInfo, object: String) -> Result<()> {
        let mut repair = Repair::Possible;
        if self.opts.repair {
            let (digest, size) = (blob.digest.clone(), blob.size);
            let change = move |tx: &mut WriteTx<'_, '_>| {
                for namespace in namespaces::known(&**tx)? {
                    let at = own(Bucket::Blob, &namespace, digest.as_str());
                    if let Some(record) = tx.get(&at)? {
                        let record = BlobRecord {
                            size,
                            ..BlobRecord::decode(&record)?
                        };
                        tx.put(at, record.encode());
                    }
                }
                Ok(())
            };
            self.metadata.0.db.write(change).await?;
            repair = Repair::Done;
        }
        let text = "a record tells another length";
        self.report.note(Fault::Damaged, object, text, repair);
        Ok(())
    }

    /// A blob that is not what its records say: it is taken from everybody, so that whoever wants it
    /// brings it again.
    async fn drop_blob(
        &mut self,
        fault: Fault,
        digest: &Digest,
        record: &Named,
        text: &str,
    ) -> Result<()> {
        let text = format!(
            "{text}; pull it again (namespaces {})",
            listed(&record.namespaces)
        );
        let object = format!("content {digest}");
        if !self.opts.repair {
            self.report.note(fault, object, text, Repair::Possible);
            return Ok(());
        }
        // Nobody links it now, and who comes later finds it gone.
        let _alone = self.metadata.0.digests.alone(digest.as_str()).await;
        // Looked at once more: somebody may have brought it meanwhile.
        let found = self.metadata.0.content.info(digest).await.absent_ok()?;
        if found.is_some() && !matches!(self.verdict(digest).await, Verdict::Bad(_)) {
            return Ok(());
        }
        let lost = digest.clone();
        let change = move |tx: &mut WriteTx<'_, '_>| {
            for namespace in namespaces::known(&**tx)? {
                let at = own(Bucket::Blob, &namespace, lost.as_str());
                if tx.has(&at)? {
                    tx.remove(at);
                    let digest = lost.clone();
                    tx.event(&namespace, Event::ContentDelete { digest });
                }
            }
            Ok(())
        };
        self.metadata.0.db.write(change).await?;
        self.metadata.0.content.delete(digest).await.absent_ok()?;
        self.report.note(fault, object, text, Repair::Done);
        Ok(())
    }

    pub(super) async fn ingests(&mut self) -> Result<()> {
        let strangers = told(self.metadata.0.content.strangers().await)?;
        let there = self.metadata.0.content.statuses(&Filter::default()).await?;
        self.report.ingests = there.len() as u64;
        let named = ingests(&self.metadata.0.db.kv.read()?)?;
        for ingest in there {
            if named.contains(ingest.reference.as_str()) {
                continue;
            }
            // Looked at once more: it may have become a blob meanwhile.
            let left = self.metadata.0.content.status(&ingest.reference).await;
            if left.absent_ok()?.is_some() {
                self.orphan(Orphan::Ingest(ingest.reference.to_string()));
            }
        }
        let now = told(self.metadata.0.content.strangers().await)?;
        if self.strangers(&strangers, now) {
            self.orphans.content = true;
        }
        // A record without data is no fault: it is made first, and its data is never promised. The
        // writer begins anew when it comes back, and the record ends with its lease or its time.
        Ok(())
    }
}

/// The records of blobs, by digest, and the digests that ingests wait to link.
fn named(tx: &dyn Read) -> Result<(BTreeMap<String, Named>, BTreeSet<String>)> {
    let mut named = BTreeMap::<String, Named>::new();
    let mut waiting = BTreeSet::new();
    for namespace in namespaces::known(tx)? {
        tx.scan(&all(Bucket::Blob, &namespace), &mut |rest, record| {
            let [digest] = names(rest)?;
            let blob = named.entry(digest.to_owned()).or_default();
            blob.namespaces.insert(namespace.to_string());
            // One that cannot be read names its blob all the same.
            blob.sizes
                .extend(BlobRecord::decode(record).ok().map(|record| record.size));
            Ok(Flow::Continue(()))
        })?;
        tx.scan(&all(Bucket::Ingest, &namespace), &mut |_, record| {
            let expected = IngestRecord::decode(record).ok().and_then(|r| r.expected);
            waiting.extend(expected.map(|digest| digest.to_string()));
            Ok(Flow::Continue(()))
        })?;
    }
    Ok((named, waiting))
}

/// The backend's names of the ingests that have a record.
fn ingests(tx: &dyn Read) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for namespace in namespaces::known(tx)? {
        tx.scan(&all(Bucket::Ingest, &namespace), &mut |_, record| {
            if let Ok(record) = IngestRecord::decode(record) {
                found.insert(record.backend);
            }
            Ok(Flow::Continue(()))
        })?;
    }
    Ok(found)
}
