//! What shims tell of themselves, remembered as long as their binary is the same.
//!
//! Invariant: a binary is run once for each version of its file, unless it failed: whoever makes many
//! containers does not start a second process for each.

use std::collections::HashMap;
use std::future::Future;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use types::{Any, Code, Error, Result};

/// So many binaries are remembered: clients name them.
const MOST: usize = 64;

/// A version of a file: device, inode, length, and when it was changed. A new file with the times of the
/// old one has another inode, and one that is written over another change time.
type Version = (u64, u64, u64, [(i64, i64); 2]);

/// What binaries have told; none of those that are too old to tell anything.
#[derive(Debug, Default)]
pub(crate) struct Infos(Mutex<HashMap<PathBuf, (Version, Option<Any>)>>);

impl Infos {
    /// What `binary` tells of itself: what it told, or else what `ask` brings.
    ///
    /// # Errors
    /// Those of `ask` but for `NotImplemented`, which is an answer; the errno of the file.
    pub(crate) async fn of<F>(&self, binary: &Path, ask: impl FnOnce() -> F) -> Result<Option<Any>>
    where
        F: Future<Output = Result<Any>>,
    {
        // Before it is run: a file that changes meanwhile is another version.
        let version = version(binary)?;
        let known = self.known().get(binary).cloned();
        if let Some((seen, told)) = known
            && seen == version
        {
            return Ok(told);
        }
        let told = match ask().await {
            Ok(told) => Some(told),
            Err(error) if error.is(Code::NotImplemented) => None,
            Err(error) => return Err(error),
        };
        let mut known = self.known();
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(binary.to_owned(), (version, told.clone()));
        Ok(told)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<PathBuf, (Version, Option<Any>)>> {
        // Entries are whole whoever panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn version(binary: &Path) -> Result<Version> {
    let meta = binary
        .metadata()
        .map_err(|e| Error::os(format_args!("stat {}", binary.display()), e))?;
    let times = [
        (meta.mtime(), meta.mtime_nsec()),
        (meta.ctime(), meta.ctime_nsec()),
    ];
    Ok((meta.dev(), meta.ino(), meta.len(), times))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::SystemTime;

    use super::*;

    fn told(text: &str) -> Any {
        Any {
            type_url: text.to_owned(),
            value: Vec::new(),
        }
    }

    #[tokio::test]
    async fn a_binary_is_asked_once_for_each_version_of_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let binary = dir.path().join("shim");
        std::fs::write(&binary, "one").unwrap();
        let (infos, asked) = (Infos::default(), Cell::new(0));
        let ask = async || {
            let answer = infos.of(&binary, async || {
                asked.set(asked.get() + 1);
                Ok(told(&asked.get().to_string()))
            });
            answer.await.unwrap().unwrap().type_url
        };
        assert_eq!((ask().await, ask().await), ("1".into(), "1".into()));
        let file = std::fs::File::options().write(true).open(&binary).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!((ask().await, ask().await), ("2".into(), "2".into()));
        // Another file in its place.
        let other = dir.path().join("other");
        std::fs::write(&other, "one").unwrap();
        std::fs::rename(&other, &binary).unwrap();
        assert_eq!((ask().await, ask().await), ("3".into(), "3".into()));
        std::fs::remove_file(&binary).unwrap();
        let gone = infos.of(&binary, async || Ok(told("never"))).await;
        assert!(gone.unwrap_err().to_string().starts_with("stat "));
    }

    #[tokio::test]
    async fn one_that_tells_nothing_is_remembered_and_one_that_failed_is_asked_again() {
        let dir = tempfile::tempdir().unwrap();
        let binary = dir.path().join("shim");
        std::fs::write(&binary, "").unwrap();
        let infos = Infos::default();
        let failed = infos.of(&binary, async || Err(Error::unknown("crashed")));
        assert_eq!(failed.await.unwrap_err().to_string(), "crashed");
        let old = infos.of(&binary, async || Err(Error::not_implemented("-info")));
        assert_eq!(old.await.unwrap(), None);
        let again = infos.of(&binary, async || Ok(told("never")));
        assert_eq!(again.await.unwrap(), None);
    }

    #[tokio::test]
    async fn no_more_binaries_are_remembered_than_may_be() {
        let dir = tempfile::tempdir().unwrap();
        let infos = Infos::default();
        for number in 0..=2 * MOST {
            let binary = dir.path().join(number.to_string());
            std::fs::write(&binary, "").unwrap();
            infos.of(&binary, async || Ok(told("x"))).await.unwrap();
            assert!((1..=MOST).contains(&infos.known().len()));
        }
    }
}
