//! How an ingest becomes a blob: verified, flushed, named, and its name flushed.
//!
//! ```text
//!   verify -> there already? -> flush the data -> there now? -> rename -> flush the directory
//!                               fails: data is given up                    fails: name is taken back
//! ```
//! Invariant: a blob that is answered for is one whose data and name the disk has; of one blob, names are
//! given, flushed and taken back by one at a time.

use std::fs::{self, FileTimes, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use types::{Digest, Error, Result};

use super::LocalIngest;
use crate::Hasher;
use crate::local::layout::{discard, os, sync_dir};

impl LocalIngest {
    /// Verify, sync, rename, sync the directory, clean up. On a mismatch the ingest stays.
    pub(super) fn finish(
        &mut self,
        size: Option<u64>,
        expected: Option<&Digest>,
    ) -> Result<Digest> {
        let (digest, found) = {
            let mut sink = self.shared.drain();
            sink.check()?;
            let path = self.ticket.data();
            let found = sink
                .file
                .metadata()
                .map_err(|e| os("stat", &path, e))?
                .len();
            if size.is_some_and(|size| size > 0 && size != found) {
                return Err(Error::failed_precondition(format_args!(
                    "unexpected commit size {found}, expected {}",
                    size.unwrap_or(0)
                )));
            }
            if let Some(expected) = expected
                && expected.algorithm() != sink.hasher.algorithm()
            {
                sink.hasher = Hasher::new(expected.algorithm());
                sink.rehash(u64::MAX).map_err(|e| os("read", &path, e))?;
            }
            let digest = sink.hasher.current()?;
            if let Some(expected) = expected
                && *expected != digest
            {
                return Err(Error::failed_precondition(format_args!(
                    "unexpected commit digest {digest}, expected {expected}"
                )));
            }
            (digest, found)
        };
        self.publish(&digest, found, sync_dir)?;
        Ok(digest)
    }

    pub(super) fn publish(
        &mut self,
        digest: &Digest,
        size: u64,
        sync_dir: impl Fn(&Path) -> Result<()>,
    ) -> Result<()> {
        let store = Arc::clone(&self.claim.store);
        let directory = store.layout.blobs(digest.algorithm());
        let target = store.layout.blob(digest);
        let naming = store.naming(digest);
        if let Some(done) = self.is_there(digest, size, || sync_dir(&directory)) {
            return done;
        }
        drop(naming);
        let data = self.ticket.data();
        {
            let mut sink = self.shared.sink();
            let now = SystemTime::now();
            let times = FileTimes::new().set_modified(now).set_accessed(now);
            sink.file
                .set_permissions(Permissions::from_mode(0o444))
                .and_then(|()| sink.file.set_times(times))
                .map_err(|e| os("finish", &data, e))?;
            let synced = sink.file.sync_all();
            if let Err(error) = sink.doubt(synced) {
                drop(sink);
                self.lose();
                return Err(os("sync", &data, error));
            }
        }
        let _naming = store.naming(digest);
        if let Some(done) = self.is_there(digest, size, || sync_dir(&directory)) {
            return done;
        }
        fs::rename(&data, &target).map_err(|e| os("rename", &data, e))?;
        self.committed = true;
        let synced = sync_dir(&directory);
        if synced.is_err() {
            // Nobody knows whether the disk has its name. Left there, it would be found by who tries again,
            // and that flush might succeed without having done anything: it is sent again as well.
            if let Err(error) = fs::remove_file(&target) {
                let path = target.display();
                tracing::error!(%path, %error, "a blob whose name was not flushed stays");
            }
        }
        self.ticket.remove();
        synced
    }

    /// Ends a commit of a blob that another one has made: nobody else names it meanwhile, or takes its name
    /// away again. It stays where it is whatever becomes of the flush: there may be records of it.
    fn is_there(
        &mut self,
        digest: &Digest,
        size: u64,
        sync: impl FnOnce() -> Result<()>,
    ) -> Option<Result<()>> {
        let target = self.claim.store.layout.blob(digest);
        // A file of another length cannot be the blob: it is replaced by what was just verified.
        if fs::metadata(&target).is_ok_and(|there| there.len() == size) {
            self.committed = true;
            // Who made it may not have come to this step yet, or ever.
            let synced = sync();
            self.ticket.remove();
            let known = Error::already_exists(format_args!("content {digest}"));
            return Some(synced.and(Err(known)));
        }
        None
    }

    /// Gives up data of which nobody knows what the disk has. Left where it is, a later writer would
    /// resume it from the page cache, where all looks well, and its flush would fail no more: the kernel
    /// tells of a failure once. So the client sends it again.
    pub(super) fn lose(&mut self) {
        self.committed = true;
        let sink = self.shared.sink();
        // Where the name cannot be taken away, who resumes it has nothing to resume.
        if let Err(error) = sink.file.set_len(0) {
            tracing::debug!(%error, "data that the disk has refused keeps its length");
        }
        if let Err(error) = discard(self.ticket.path()) {
            let path = self.ticket.path().display();
            tracing::error!(%path, %error, "data that the disk has refused stays in an ingest");
        }
    }
}
