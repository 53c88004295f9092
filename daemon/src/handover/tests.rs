//! Tests of the conversation, with both sides in one process.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ::events::{Envelope, History};
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
    for (last, held) in [(0, vec![]), (9, vec![]), (3, vec![0, 1, 300])] {
        let held: Vec<_> = held.into_iter().map(envelope).collect();
        let past = History {
            run: u64::MAX,
            last,
            held: held.clone(),
        };
        let read = history::read(history::write(&past).unwrap()).unwrap();
        assert_eq!((read.run, read.last), (u64::MAX, last));
        assert_eq!(read.held, held);
    }
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
        })
        .unwrap()
    };
    let length = good().metadata().unwrap().len();
    for cut in [0, 8, 17, length - 1] {
        let file = good();
        file.set_len(cut).unwrap();
        history::read(file).unwrap_err();
    }
    let mut file = good();
    file.seek(io::SeekFrom::Start(16)).unwrap();
    file.write_all(&u32::MAX.to_le_bytes()).unwrap();
    file.rewind().unwrap();
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
