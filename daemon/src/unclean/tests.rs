//! Tests of module `unclean`.

use bytes::Bytes;
use metadata::Metadata;
use types::{Code, Digest, Labels, Scope};

use super::*;
use crate::config::Config;
use crate::ground::Ground;
use crate::store::Store;

#[test]
fn a_kill_is_no_suspicion_and_another_boot_is() {
    let root = tempfile::tempdir().unwrap();
    let begin = |boot| Running::begin_in(root.path(), boot).unwrap().suspect;
    assert_eq!(begin("one"), None);
    assert_eq!(begin("one"), None, "killed: nothing was lost");
    let mark = fs::metadata(root.path().join(FILE)).unwrap();
    let since = begin("two").unwrap();
    assert_eq!(since, mark.modified().unwrap() - MARGIN);
    assert_eq!(begin("two"), Some(since), "until it was verified");
}

#[test]
fn a_clean_stop_leaves_no_mark() {
    let root = tempfile::tempdir().unwrap();
    Running::begin(root.path()).unwrap().end();
    assert!(!root.path().join(FILE).exists());
    drop(Running::begin_in(root.path(), "long ago").unwrap());
    let running = Running::begin(root.path()).unwrap();
    assert!(running.suspect.is_some());
    running.end();
    assert!(root.path().join(FILE).exists(), "it was not verified");
    renew(&root.path().join(FILE)).unwrap();
    Running::begin(root.path()).unwrap().end();
    assert!(!root.path().join(FILE).exists());
}

fn scope() -> Scope {
    Scope::new("n".parse().unwrap())
}

/// A blob that nothing collects, with other bytes of the same length in its file, written at a time.
async fn damaged(metadata: &Metadata, config: &Config, data: &[u8], at: SystemTime) -> Digest {
    let content = metadata.scoped(&scope()).content();
    let labels = Labels::new().with("containerd.io/gc.root", "1");
    let data = Bytes::copy_from_slice(data);
    let digest = images::put_blob(&*content, data.clone(), labels).await;
    let digest = digest.unwrap();
    let path = file(config, &digest);
    let mut bytes = data.to_vec();
    bytes[0] ^= 1;
    fs::remove_file(&path).unwrap();
    fs::write(&path, bytes).unwrap();
    File::options()
        .append(true)
        .open(&path)
        .unwrap()
        .set_modified(at)
        .unwrap();
    digest
}

fn file(config: &Config, digest: &Digest) -> PathBuf {
    let blobs = config
        .root
        .join("io.containerd.content.v1.content/blobs/sha256");
    blobs.join(digest.hex())
}

#[tokio::test]
async fn after_another_boot_what_is_young_is_verified_and_repaired_and_the_rest_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        root: dir.path().join("root"),
        state: dir.path().join("state"),
        ..Config::default()
    };
    fs::create_dir_all(&config.root).unwrap();
    let store = Store::open(Ground::open(&config).unwrap(), &config).await;
    let metadata = store.unwrap().metadata;
    drop(Running::begin_in(&config.root, "long ago").unwrap());
    let running = Running::begin(&config.root).unwrap();
    let since = running.suspect.unwrap();
    let old = since - Duration::from_secs(1);
    let old = damaged(&metadata, &config, b"old", old).await;
    let young = damaged(&metadata, &config, b"young", since).await;

    running.watch(Checker::new(&metadata, &config), None);
    let mark = config.root.join(FILE);
    let verified = async {
        while !is_of_this_boot(&mark) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let limit = Duration::from_secs(60);
    tokio::time::timeout(limit, verified)
        .await
        .expect("the mark of this boot");

    let content = metadata.scoped(&scope()).content();
    let gone = content.info(&young).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
    assert!(!file(&config, &young).exists(), "it is never served");
    content.info(&old).await.unwrap();
    assert!(file(&config, &old).exists());
    // Verified once, and a clean stop from now on.
    assert_eq!(Running::begin(&config.root).unwrap().suspect, None);
    running.end();
    assert!(!mark.exists());
}

/// Time goes on here when everybody waits for it.
#[tokio::test(start_paused = true)]
async fn a_mark_stays_as_old_as_it_is_until_all_could_be_verified() {
    let dir = tempfile::tempdir().unwrap();
    drop(Running::begin_in(dir.path(), "long ago").unwrap());
    let path = dir.path().join(FILE);
    let age = |at| {
        let file = File::options().append(true).open(&path).unwrap();
        file.set_modified(at).unwrap();
    };
    let modified = || fs::metadata(&path).unwrap().modified().unwrap();
    let old = SystemTime::now() - Duration::from_secs(24 * 60 * 60);
    age(old);
    let running = Running::begin(dir.path()).unwrap();
    let since = running.suspect.unwrap();
    assert_eq!(since, old - MARGIN);
    let tries = std::cell::Cell::new(0);
    let verify = |of| {
        assert_eq!(of, since);
        assert_eq!(modified(), old, "nobody has touched it");
        tries.set(tries.get() + 1);
        let is_verified = tries.get() == 20;
        async move { is_verified }
    };
    let begin = tokio::time::Instant::now();
    let watch = keep(path.clone(), running.suspect, verify);
    let touched = async {
        while !is_of_this_boot(&path) {
            tokio::time::sleep(BEAT).await;
        }
        // It is kept fresh, and nothing is verified again.
        age(old);
        while modified() == old {
            tokio::time::sleep(BEAT).await;
        }
    };
    tokio::select! {
        () = watch => {}
        () = touched => {}
    }
    assert_eq!(tries.get(), 20);
    assert!(begin.elapsed() < LONGEST * 20 + BEAT * 3);
    assert_eq!(Running::begin(dir.path()).unwrap().suspect, None);
}
