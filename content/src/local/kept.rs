//! The hash of an ingest, kept beside its data: who resumes it reads only what came after.
//!
//! Invariant: what is recalled is the hash of the file's first bytes as they are now. A note is made after
//! its bytes are in the file and removed before they are changed. That order holds when a process dies,
//! but not over a power cut, so a note counts in the boot that made it only. It names the file and the
//! time of its last change, and `updatedat`, which Go containerd writes whenever it lets go of an ingest
//! (it knows nothing of this file). Whatever is in doubt: nothing is recalled, and all is hashed again.
//!
//! ```text
//! ingest/<sha256 hex of ref>/hash     1 <algorithm> <bytes> <state, hex> <mtime> <inode> <boot> <updatedat>
//!                                     <sha256 of the line>
//! ```

use std::fmt::Write as _;
use std::fs::{self, File, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::sync::OnceLock;

use types::{Algorithm, Error, Result};

use super::ingest::Ticket;
use super::layout::os;
use crate::Hasher;

/// Name of the file.
pub(super) const NAME: &str = "hash";

/// Noted anew after so many bytes: they take some 10 ms to hash again, a note less than 0.2 ms to write.
pub(super) const INTERVAL: u64 = 16 << 20;

/// Fewer bytes are hashed faster than a note is made of them.
pub(super) const WORTH: u64 = 1 << 20;

/// The format that is written and read here; the state is that of sha2 0.11.
const VERSION: &str = "1";

/// Notes that `hasher` has taken in the first `bytes` of `data`, which are in the file.
///
/// # Errors
/// I/O; what was noted before stays.
pub(super) fn note(ticket: &Ticket, data: &File, bytes: u64, hasher: &Hasher) -> Result<()> {
    let found = data.metadata().map_err(|e| os("stat", &ticket.data(), e))?;
    let mut state = String::new();
    for byte in hasher.save() {
        let _fits = write!(state, "{byte:02x}");
    }
    let algorithm = hasher.algorithm().name();
    let changed = changed(&found);
    let witness = witness(ticket, &found)?;
    let line = format!("{VERSION} {algorithm} {bytes} {state} {changed} {witness}");
    let sum = Hasher::digest(line.as_bytes())?;
    ticket.write(NAME, &format!("{line}\n{}\n", sum.hex()))
}

/// How many of the first bytes of `data` need not be read, and their hash.
pub(super) fn recall(ticket: &Ticket, data: &File, algorithm: Algorithm) -> Option<(u64, Hasher)> {
    let text = ticket.read(NAME).ok()?;
    let (line, sum) = text.strip_suffix('\n')?.split_once('\n')?;
    if Hasher::digest(line.as_bytes()).ok()?.hex() != sum {
        return None;
    }
    let mut words = line.splitn(6, ' ');
    let mut word = || words.next();
    if word()? != VERSION || word()? != algorithm.name() {
        return None;
    }
    let bytes: u64 = word()?.parse().ok()?;
    let state = unhex(word()?)?;
    let noted: u128 = word()?.parse().ok()?;
    let found = data.metadata().ok()?;
    let is_as_noted = if found.len() == bytes {
        changed(&found) == noted
    } else {
        // Its writer went on and died before the next note.
        found.len() > bytes && changed(&found) >= noted
    };
    if !is_as_noted || word()? != witness(ticket, &found).ok()? {
        return None;
    }
    Some((bytes, Hasher::restore(algorithm, &state)?))
}

/// What is another one when the bytes may be others.
fn witness(ticket: &Ticket, found: &Metadata) -> Result<String> {
    let updated = ticket.read("updatedat")?;
    Ok(format!("{} {} {}", found.ino(), boot()?, updated.trim()))
}

/// The last change of the data, in nanoseconds.
fn changed(found: &Metadata) -> u128 {
    let modified = found.modified().ok();
    let since = modified.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    since.unwrap_or_default().as_nanos()
}

/// The kernel's name for the time since it was started.
fn boot() -> Result<&'static str> {
    static BOOT: OnceLock<Option<String>> = OnceLock::new();
    let read = || fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
    let boot = BOOT.get_or_init(|| read().map(|id| id.trim().to_owned()));
    boot.as_deref()
        .ok_or_else(|| Error::not_implemented("the kernel does not name its boot"))
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let pair = |at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
    (0..text.len()).step_by(2).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use std::fs::{FileTimes, OpenOptions};
    use std::os::unix::fs::FileExt as _;
    use std::path::PathBuf;

    use bytes::Bytes;
    use types::{Digest, Labels};

    use super::*;
    use crate::testsuite::spec;
    use crate::{ContentStore as _, IngestSpec, Local};

    const SIZE: u64 = 3 << 20;

    fn bytes(size: u64) -> Vec<u8> {
        let size = usize::try_from(size).unwrap();
        (0..251_u8).cycle().take(size).collect()
    }

    fn hash(algorithm: Algorithm, data: &[u8]) -> Digest {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(data);
        hasher.finish().unwrap()
    }

    /// A store with an ingest of [`SIZE`] bytes that somebody has begun, and its directory.
    struct Begun {
        _root: tempfile::TempDir,
        local: Local,
        path: PathBuf,
        spec: IngestSpec,
    }

    impl Begun {
        async fn of(algorithm: Algorithm) -> Self {
            let root = tempfile::tempdir().unwrap();
            let local = Local::open(root.path()).unwrap();
            let mut spec = spec("r");
            spec.expected = Some(hash(algorithm, b"something else"));
            let mut ingest = local.ingest(spec.clone()).await.unwrap();
            ingest.write(bytes(SIZE).into()).await.unwrap();
            drop(ingest);
            let path = root.path().join("ingest");
            let path = path.join(Hasher::digest(b"r").unwrap().hex());
            Self {
                _root: root,
                local,
                path,
                spec,
            }
        }

        fn data(&self) -> File {
            let path = self.path.join("data");
            OpenOptions::new().write(true).open(path).unwrap()
        }

        /// Another first byte and the old times: only who reads it can know.
        fn damage(&self) {
            let data = self.data();
            let modified = data.metadata().unwrap().modified().unwrap();
            data.write_all_at(b"damaged", 0).unwrap();
            data.set_times(FileTimes::new().set_modified(modified))
                .unwrap();
        }

        async fn digest(&self) -> Digest {
            let mut ingest = self.local.ingest(self.spec.clone()).await.unwrap();
            ingest.digest().await.unwrap()
        }
    }

    #[tokio::test]
    async fn who_resumes_does_not_read_what_was_there() {
        for algorithm in Algorithm::ALL {
            let begun = Begun::of(algorithm).await;
            begun.damage();
            // More than once: who closes it notes it again.
            for _ in 0..2 {
                assert_eq!(begun.digest().await, hash(algorithm, &bytes(SIZE)));
            }
            fs::remove_file(begun.path.join(NAME)).unwrap();
            assert_ne!(begun.digest().await, hash(algorithm, &bytes(SIZE)));
        }
    }

    #[tokio::test]
    async fn what_came_after_the_note_is_read() {
        let begun = Begun::of(Algorithm::Sha256).await;
        begun.damage();
        let more = bytes(SIZE + 5000);
        let (from, tail) = (SIZE, &more[usize::try_from(SIZE).unwrap()..]);
        begun.data().write_all_at(tail, from).unwrap();
        assert_eq!(begun.digest().await, hash(Algorithm::Sha256, &more));
    }

    #[tokio::test]
    async fn a_writer_that_is_never_closed_notes_the_hash_now_and_then() {
        let begun = Begun::of(Algorithm::Sha256).await;
        fs::remove_file(begun.path.join(NAME)).unwrap();
        let mut ingest = begun.local.ingest(begun.spec.clone()).await.unwrap();
        let piece = Bytes::from(bytes(1 << 20));
        let mut data = bytes(SIZE);
        for _ in 0..INTERVAL >> 20 {
            ingest.write(piece.clone()).await.unwrap();
            data.extend_from_slice(&piece);
        }
        let whole = ingest.digest().await.unwrap();
        let ticket = Ticket::new(begun.path.clone());
        let file = File::open(ticket.data()).unwrap();
        let (offset, hasher) = recall(&ticket, &file, Algorithm::Sha256).unwrap();
        assert!(offset >= INTERVAL, "{offset}");
        let offset = usize::try_from(offset).unwrap();
        assert_eq!(
            hasher.finish().unwrap(),
            hash(Algorithm::Sha256, &data[..offset])
        );
        assert_eq!(whole, hash(Algorithm::Sha256, &data));
    }

    #[tokio::test]
    async fn a_note_that_is_in_doubt_does_not_count() {
        type Doubt = fn(&Begun);
        let doubts: [(&str, Doubt); 8] = [
            ("the data was cut", |begun| {
                begun.data().set_len(SIZE - 1).unwrap();
            }),
            ("the data was written", |begun| {
                let later = std::time::SystemTime::now() + std::time::Duration::from_secs(1);
                let times = FileTimes::new().set_modified(later);
                begun.data().set_times(times).unwrap();
            }),
            ("the data is another file", |begun| {
                let (data, copy) = (begun.path.join("data"), begun.path.join("copy"));
                let modified = begun.data().metadata().unwrap().modified().unwrap();
                fs::copy(&data, &copy).unwrap();
                fs::rename(&copy, &data).unwrap();
                let times = FileTimes::new().set_modified(modified);
                begun.data().set_times(times).unwrap();
            }),
            ("Go containerd had it", |begun| {
                fs::write(begun.path.join("updatedat"), "2026-01-02T03:04:05Z").unwrap();
            }),
            ("another boot", |begun| reword(begun, boot().unwrap(), "b")),
            ("another format", |begun| {
                reword(begun, "1 sha256", "2 sha256");
            }),
            ("another hash", |begun| reword(begun, " sha256", " sha512")),
            ("nothing in it", |begun| {
                fs::write(begun.path.join(NAME), "").unwrap();
            }),
        ];
        for (doubt, make) in doubts {
            let begun = Begun::of(Algorithm::Sha256).await;
            begun.damage();
            make(&begun);
            let file = File::open(begun.path.join("data")).unwrap();
            let data = fs::read(begun.path.join("data")).unwrap();
            let ticket = Ticket::new(begun.path.clone());
            assert!(
                recall(&ticket, &file, Algorithm::Sha256).is_none(),
                "{doubt}"
            );
            let want = hash(Algorithm::Sha256, &data);
            assert_eq!(begun.digest().await, want, "{doubt}");
        }
    }

    /// Changes the note and keeps its sum right.
    fn reword(begun: &Begun, from: &str, to: &str) {
        let path = begun.path.join(NAME);
        let text = fs::read_to_string(&path).unwrap();
        let line = text.lines().next().unwrap();
        assert!(line.contains(from));
        let line = line.replacen(from, to, 1);
        let sum = Hasher::digest(line.as_bytes()).unwrap();
        fs::write(path, format!("{line}\n{}\n", sum.hex())).unwrap();
    }

    #[tokio::test]
    async fn a_torn_or_flipped_note_does_not_count() {
        let begun = Begun::of(Algorithm::Sha256).await;
        let path = begun.path.join(NAME);
        let whole = fs::read(&path).unwrap();
        let ticket = Ticket::new(begun.path.clone());
        let file = File::open(ticket.data()).unwrap();
        let recalled = || recall(&ticket, &file, Algorithm::Sha256);
        assert!(recalled().is_some());
        for at in 0..whole.len() {
            fs::write(&path, &whole[..at]).unwrap();
            assert!(recalled().is_none(), "torn at {at}");
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            fs::write(&path, &flipped).unwrap();
            assert!(recalled().is_none(), "flipped at {at}");
        }
    }

    #[tokio::test]
    async fn who_cuts_the_data_or_begins_anew_has_no_note() {
        let begun = Begun::of(Algorithm::Sha256).await;
        let mut ingest = begun.local.ingest(begun.spec.clone()).await.unwrap();
        assert!(begun.path.join(NAME).exists());
        ingest.truncate(SIZE - 1).await.unwrap();
        assert!(!begun.path.join(NAME).exists());
        drop(ingest);
        assert!(begun.path.join(NAME).exists());
        fs::remove_file(begun.path.join("startedat")).unwrap();
        let ingest = begun.local.ingest(begun.spec.clone()).await.unwrap();
        assert_eq!(ingest.status().offset, 0);
        assert!(!begun.path.join(NAME).exists());
        let digest = ingest.commit(None, None, Labels::new()).await.unwrap();
        assert_eq!(digest, hash(digest.algorithm(), b""));
    }
}
