//! What is accepted comes to the file, and waits in memory within bounds.

use std::fs;
use std::sync::mpsc;
use std::time::Duration;

use super::*;
use crate::local::layout::ticket_name;
use crate::testsuite::spec;
use crate::{ContentStore as _, Local};

/// A writer of a store of its own; how long its file is tells the receiver.
fn writer() -> (tempfile::TempDir, Box<LocalIngest>, watch::Receiver<u64>) {
    let root = tempfile::tempdir().unwrap();
    let local = Local::open(root.path().join("content")).unwrap();
    let ingest = writer_of(&local, "r");
    let written = ingest.shared.written().subscribe();
    (root, ingest, written)
}

fn writer_of(local: &Local, reference: &str) -> Box<LocalIngest> {
    let spec = spec(reference);
    let name = ticket_name(&spec.reference).unwrap();
    let claim = Claim::take(&local.0, name.into()).unwrap();
    Box::new(LocalIngest::open(claim, &spec).unwrap())
}

/// Keeps the blocking thread at its work until what is returned is dropped.
fn held(shared: &Arc<Shared>) -> mpsc::Sender<()> {
    let (release, released) = mpsc::channel::<()>();
    let (is_held, holding) = mpsc::channel();
    let shared = Arc::clone(shared);
    std::thread::spawn(move || {
        let _written = shared.written();
        is_held.send(()).unwrap();
        let _dropped = released.recv();
    });
    holding.recv().unwrap();
    release
}

async fn until_taken(shared: &Shared) {
    while shared.queue().bytes > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_comes_while_a_piece_is_written_is_written_without_another_call() {
    for second in [GATHER, 1] {
        let (_root, mut ingest, mut written) = writer();
        let release = held(&ingest.shared);
        ingest.write(vec![1; GATHER].into()).await.unwrap();
        until_taken(&ingest.shared).await;
        ingest.write(vec![2; second].into()).await.unwrap();
        drop(release);
        let all = (GATHER + second) as u64;
        let grown = written.wait_for(|there| *there == all);
        let grown = tokio::time::timeout(Duration::from_secs(60), grown).await;
        assert!(
            grown.is_ok(),
            "{} of {all}",
            *ingest.shared.written().borrow()
        );
        ingest.abandon().await.unwrap();
    }
}

#[tokio::test]
async fn no_more_than_two_gatherings_are_accepted_at_a_time() {
    let (_root, mut ingest, mut written) = writer();
    let release = held(&ingest.shared);
    ingest.write(vec![1; GATHER].into()).await.unwrap();
    until_taken(&ingest.shared).await;
    ingest.write(vec![2; GATHER].into()).await.unwrap();
    let third = ingest.write(vec![3; GATHER].into());
    let third = tokio::time::timeout(Duration::from_millis(20), third).await;
    assert!(third.is_err(), "a third one was accepted");
    assert_eq!(ingest.status().offset, 2 * GATHER as u64);
    drop(release);
    ingest.write(vec![3; GATHER].into()).await.unwrap();
    let all = 3 * GATHER as u64;
    written.wait_for(|there| *there == all).await.unwrap();
    let digest = ingest.commit(Some(all), None, Labels::new()).await.unwrap();
    let text = [vec![1; GATHER], vec![2; GATHER], vec![3; GATHER]].concat();
    assert_eq!(digest, Hasher::digest(&text).unwrap());
}

#[tokio::test]
async fn a_digest_is_waited_for_without_holding_up_others() {
    for size in [GATHER, INLINE + 1] {
        let (_root, mut ingest, _written) = writer();
        let release = held(&ingest.shared);
        ingest.write(vec![1; size].into()).await.unwrap();
        // Others have this one thread.
        {
            let mut digest = std::pin::pin!(ingest.digest());
            let early = tokio::time::timeout(Duration::from_millis(20), digest.as_mut()).await;
            assert!(early.is_err(), "nothing was written yet");
            drop(release);
            let hash = Hasher::digest(&vec![1; size]).unwrap();
            assert_eq!(digest.await.unwrap(), hash);
        }
        ingest.abandon().await.unwrap();
    }
}

/// A pipe cannot be flushed: it stands for a file on a disk that fails.
#[tokio::test]
async fn data_that_could_not_be_flushed_is_sent_again() {
    let (root, mut ingest, _written) = writer();
    ingest.write(vec![1; 1000].into()).await.unwrap();
    ingest.digest().await.unwrap();
    let (_reader, pipe) = std::io::pipe().unwrap();
    let disk = std::mem::replace(
        &mut ingest.shared.sink().file,
        File::from(std::os::fd::OwnedFd::from(pipe)),
    );
    let error = ingest.commit(None, None, Labels::new()).await.unwrap_err();
    assert!(error.to_string().contains("sync"), "{error}");
    // Its data is there for who has it open, and for nobody else.
    assert_eq!(disk.metadata().unwrap().len(), 1000);
    let local = Local::open(root.path().join("content")).unwrap();
    let status = local.status(&"r".parse().unwrap()).await;
    assert!(status.unwrap_err().is_not_found());
    let again = local.ingest(spec("r")).await.unwrap();
    assert_eq!(again.status().offset, 0);
    again.abandon().await.unwrap();
}

#[tokio::test]
async fn data_that_could_not_be_flushed_is_not_resumed_where_its_name_stays() {
    let (_root, mut ingest, _written) = writer();
    ingest.write(vec![1; 1000].into()).await.unwrap();
    ingest.digest().await.unwrap();
    let data = ingest.ticket.data();
    ingest.ticket = Ticket::new(ingest.ticket.path().join("elsewhere"));
    ingest.lose();
    assert_eq!(fs::metadata(data).unwrap().len(), 0);
}

#[tokio::test]
async fn a_blob_whose_name_could_not_be_flushed_is_sent_again() {
    let (root, mut ingest, _written) = writer();
    ingest.write(vec![1; 1000].into()).await.unwrap();
    let digest = ingest.digest().await.unwrap();
    let directory = root.path().join("content/blobs/sha256");
    let done = ingest.publish(&digest, 1000, |synced| {
        assert_eq!(synced, directory);
        assert_eq!(fs::read_dir(synced).unwrap().count(), 1);
        Err(Error::internal("the disk has failed"))
    });
    assert!(done.unwrap_err().is(Code::Internal));
    drop(ingest);
    assert_eq!(fs::read_dir(directory).unwrap().count(), 0);
    let local = Local::open(root.path().join("content")).unwrap();
    let mut again = local.ingest(spec("r")).await.unwrap();
    assert_eq!(again.status().offset, 0);
    again.write(vec![1; 1000].into()).await.unwrap();
    again.commit(None, None, Labels::new()).await.unwrap();
}

#[tokio::test]
async fn a_name_that_could_not_be_flushed_is_nobody_elses_meanwhile() {
    let root = tempfile::tempdir().unwrap();
    let local = Local::open(root.path().join("content")).unwrap();
    let mut both = ["one", "other"].map(|name| writer_of(&local, name));
    for ingest in &mut both {
        ingest.write(vec![1; 1000].into()).await.unwrap();
    }
    let digest = both[0].digest().await.unwrap();
    both[1].digest().await.unwrap();
    let [mut one, mut other] = both;
    let (ended, end) = mpsc::channel();
    let failed = std::thread::scope(|scope| {
        let digest = &digest;
        let mut second = Some(move || ended.send(other.publish(digest, 1000, |_| Ok(()))));
        let second = std::cell::RefCell::new(&mut second);
        one.publish(digest, 1000, |_| {
            scope.spawn(second.borrow_mut().take().unwrap());
            // It would be told that the blob is there, which is taken away now.
            end.recv_timeout(Duration::from_millis(200)).unwrap_err();
            Err(Error::internal("the disk has failed"))
        })
    });
    assert!(failed.unwrap_err().is(Code::Internal));
    end.recv().unwrap().unwrap();
    assert_eq!(local.info(&digest).await.unwrap().size, 1000);
}
