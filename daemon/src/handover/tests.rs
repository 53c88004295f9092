//! Tests of the conversation, with both sides in one process.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ::events::{Cut, Envelope, History};
use types::{Any, Code};

use super::*;

fn envelope(number: u64) -> Arc<Envelope> {
    Arc::new(Envelope {
        // What the wire has is not finer.
        timestamp: SystemTime::UNIX_EPOCH + Duration::new(number + 1, 7),
        namespace: "n".parse().unwrap(),
        topic: "/t".to_owned().try_into().unwrap(),
        event: Any {
            type_url: "u".into(),
            value: vec![7; usize::try_from(number).unwrap()],
        },
    })
}

#[test]
fn a_history_reads_as_it_was_written() {
    let cut = Cut {
        process: 7,
        after: u64::MAX,
    };
    for (last, held) in [(0, vec![]), (9, vec![]), (3, vec![0, 1, 300])] {
        let held: Vec<_> = held.into_iter().map(envelope).collect();
        let past = History {
            run: u64::MAX,
            last,
            held: held.clone(),
            cut: vec![cut; held.len()],
        };
        let read = history::read(history::write(&past).unwrap()).unwrap();
        assert_eq!((read.run, read.last), (u64::MAX, last));
        assert_eq!((read.held, read.cut), (held, past.cut));
    }
}

#[test]
fn a_history_without_cuts_is_what_a_daemon_before_wrote_and_read() {
    use std::io::Read as _;
    let past = History {
        run: 5,
        last: 9,
        held: vec![envelope(3)],
        cut: vec![],
    };
    let mut bytes = Vec::new();
    let mut file = history::write(&past).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    let message = crate::services::events::to_wire(&envelope(3));
    let message = protos::Message::write_to_bytes(&message).unwrap();
    let length = u32::try_from(message.len()).unwrap().to_le_bytes();
    let before = [
        &5_u64.to_le_bytes()[..],
        &9_u64.to_le_bytes(),
        &length,
        &message,
    ];
    assert_eq!(bytes, before.concat());
}

#[test]
fn what_is_no_history_is_refused() {
    use std::io::{Seek as _, Write as _};
    let good = || {
        let held = vec![envelope(3)];
        history::write(&History {
            run: 1,
            last: 1,
            held,
            cut: vec![],
        })
        .unwrap()
    };
    let length = good().metadata().unwrap().len();
    for cut in [0, 8, 15, 17, 25, length - 1] {
        let file = good();
        file.set_len(cut).unwrap();
        history::read(file).unwrap_err();
    }
    let mut file = good();
    file.seek(io::SeekFrom::Start(16)).unwrap();
    file.write_all(&(u32::MAX - 1).to_le_bytes()).unwrap();
    file.rewind().unwrap();
    let error = history::read(file).unwrap_err();
    assert!(error.is(Code::DataLoss), "{error}");
    let cut = Cut {
        process: 7,
        after: 1,
    };
    let file = history::write(&History {
        run: 1,
        last: 1,
        held: vec![],
        cut: vec![cut],
    });
    let file = file.unwrap();
    assert_eq!(file.metadata().unwrap().len(), 16 + 4 + 16);
    file.set_len(35).unwrap();
    let error = history::read(file).unwrap_err();
    assert!(error.is(Code::DataLoss), "{error}");
}

#[test]
fn the_estate_reads_as_it_was_written() {
    let estate = Estate {
        root: "/r".into(),
        state: "/s".into(),
        sockets: vec![Given {
            name: "grpc".into(),
            owned: true,
        }],
    };
    let text = toml::to_string(&estate).unwrap();
    assert_eq!(toml::from_str::<Estate>(&text).unwrap(), estate);
}

#[tokio::test]
async fn messages_stay_apart_and_the_end_is_told() {
    let (one, other) = sys::socket::message_pair().unwrap();
    for text in ["prepared", "failed: bad"] {
        sys::socket::send_fds(&one, text.as_bytes(), &[other.as_fd()]).unwrap();
    }
    let (text, fds) = receive(&other).await.unwrap().unwrap();
    assert_eq!((&*text, fds.len()), ("prepared", 1));
    drop(fds);
    let said = unexpected(receive(&other).await.unwrap()).to_string();
    assert!(said.starts_with("bad"), "{said}");
    drop(one);
    assert!(receive(&other).await.unwrap().is_none());
}

fn heir() -> (OwnedFd, Heir) {
    let (old, control) = sys::socket::message_pair().unwrap();
    (old, Heir::of(control))
}

#[tokio::test]
async fn an_heir_knows_from_the_last_words_whether_it_is_known() {
    let parting = |is_known, reload| Parting { is_known, reload };
    for (words, want) in [
        (&[][..], parting(false, false)),
        (&[KNOWN], parting(true, false)),
        (&[RELOAD, KNOWN], parting(true, true)),
        (&[RELOAD], parting(false, true)),
    ] {
        let (old, heir) = heir();
        let ready = tokio::spawn(heir.ready());
        assert_eq!(receive(&old).await.unwrap().unwrap().0, READY);
        for word in words {
            sys::socket::send_fds(&old, word.as_bytes(), &[]).unwrap();
        }
        drop(old);
        assert_eq!(ready.await.unwrap(), want);
    }
    // Killed before it hears.
    let (old, heir) = heir();
    drop(old);
    assert!(!heir.ready().await.is_known);
}

/// A successor that says nothing, and the end of the conversation that it has.
fn silent(patience: Patience) -> (OwnedFd, Successor) {
    let (control, theirs) = sys::socket::message_pair().unwrap();
    let child = sys::process::Spawn::new("sleep")
        .arg("600")
        .spawn()
        .unwrap();
    (theirs, Successor::of(child, control, patience))
}

/// Waits for it while something comes every now and then; how long that took.
async fn given_up(limit: Duration, told: impl Future<Output = Result<()>>) -> Duration {
    let begun = tokio::time::Instant::now();
    let heeded = heeding(
        told,
        async || tokio::time::sleep(limit / 3).await,
        |()| None,
    );
    let told = tokio::time::timeout(limit * 3, heeded).await;
    let error = told.expect("it is given up").unwrap_err();
    assert!(error.is(Code::DeadlineExceeded), "{error}");
    begun.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_successor_that_hangs_is_given_up_whatever_comes_meanwhile() {
    let patience = Patience {
        prepare: Duration::from_secs(3),
        open: Duration::from_secs(7),
    };
    let (theirs, successor) = silent(patience);
    let took = given_up(patience.prepare, successor.prepared()).await;
    assert!((3..6).contains(&took.as_secs()), "{took:?}");
    let took = given_up(patience.open, successor.ready()).await;
    assert!((7..14).contains(&took.as_secs()), "{took:?}");
    successor.end();
    drop(theirs);
}

#[tokio::test]
async fn what_comes_meanwhile_may_be_the_end() {
    let mut count = 0;
    let ended = heeding(
        std::future::pending::<u32>(),
        async || (),
        |()| {
            count += 1;
            (count == 3).then_some(count)
        },
    );
    assert_eq!(ended.await, 3);
}

#[test]
fn an_heir_that_begins_after_the_old_one_waits_for_all_of_it() {
    let (old, mut heir) = heir();
    let of_a_thread = old.try_clone().unwrap();
    let waiting = std::thread::spawn(move || {
        heir.outlive();
        heir
    });
    sys::socket::send_fds(&old, KNOWN.as_bytes(), &[]).unwrap();
    drop(old);
    sys::socket::send_fds(&of_a_thread, RELOAD.as_bytes(), &[]).unwrap();
    drop(of_a_thread);
    let heir = waiting.join().unwrap();
    assert!(heir.parting.is_known && heir.parting.reload);
}

#[test]
fn a_conversation_that_is_kept_is_not_over_with_the_successor() {
    let (theirs, successor) = silent(Patience::default());
    let pidfd = sys::pidfd::open(successor.pid()).unwrap();
    successor.keep();
    assert!(!sys::fs::readable_within(&theirs, Duration::ZERO).unwrap());
    sys::pidfd::send_signal(&pidfd, 9).unwrap();
    sys::pidfd::wait(&pidfd).unwrap();
}
