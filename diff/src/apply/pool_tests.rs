//! Layers beside a store that has few threads for files.

use std::time::Duration;

use content::{Ingest, IngestSpec};
use tokio::runtime::{Builder, Runtime};
use types::Code;

use super::*;
use crate::tar::Kind;
use crate::testing::{Bench, archive, bind, entry};
use crate::{CompareOpts, Comparer as _};

/// Longer than anything here takes, unless it takes for ever.
const LONG: Duration = Duration::from_secs(60);

/// A runtime with one thread for files.
fn narrow() -> Runtime {
    let mut builder = Builder::new_multi_thread();
    let builder = builder.worker_threads(1).max_blocking_threads(1);
    builder.enable_all().build().unwrap()
}

/// Runs `work`, and leaves threads that hang where they are.
fn within<T>(work: impl Future<Output = T>) -> T {
    let runtime = narrow();
    let done = runtime.block_on(async { tokio::time::timeout(LONG, work).await });
    runtime.shutdown_background();
    done.expect("it hangs")
}

/// Begins an ingest of `tar`, and returns it with what reads along and the layer that it becomes.
async fn coming(bench: &Bench, name: &str, tar: &[u8]) -> (Box<dyn Ingest>, ApplyOpts, Descriptor) {
    let size = tar.len() as u64;
    let spec = IngestSpec {
        reference: name.parse().unwrap(),
        total: Some(size),
        expected: None,
    };
    let ingest = bench.store.ingest(spec).await.unwrap();
    let opts = ApplyOpts {
        blob: ingest.follow(size).unwrap(),
        ..ApplyOpts::default()
    };
    let layer = Descriptor {
        media_type: media_type::OCI_LAYER.into(),
        digest: Hasher::digest(tar).unwrap(),
        size,
        annotations: Labels::new(),
    };
    (ingest, opts, layer)
}

#[test]
fn layers_that_come_in_need_none_of_the_threads_for_files() {
    let bench = Bench::new();
    let data = vec![b'x'; 9 << 20];
    let tar = archive(&[(entry(Kind::File, "f"), &data)]);
    within(async {
        let (mut ingest, opts, layer) = coming(&bench, "in", &tar).await;
        let to = bind(&bench.dir("to"));
        let applied = bench.walking.apply(&bench.store, &layer, &to, opts);
        let fed = async {
            for piece in tar.chunks(1 << 20) {
                ingest.write(piece.to_vec().into()).await.unwrap();
            }
            ingest.commit(None, None, Labels::new()).await.unwrap();
        };
        let (applied, ()) = tokio::join!(applied, fed);
        assert_eq!(applied.unwrap().digest, layer.digest);
        let made = std::fs::read(bench.temp.path().join("to/f")).unwrap();
        assert!(made == data, "the file is another one");
    });
}

#[test]
fn a_comparison_needs_none_of_the_threads_for_files() {
    let bench = Bench::new();
    std::fs::write(bench.dir("upper").join("f"), vec![b'x'; 9 << 20]).unwrap();
    within(async {
        let upper = bind(&bench.temp.path().join("upper"));
        let opts = CompareOpts {
            media_type: media_type::OCI_LAYER.into(),
            ..CompareOpts::default()
        };
        let made = bench.walking.compare(&bench.store, &[], &upper, opts).await;
        assert!(made.unwrap().size > 9 << 20);
    });
}

#[test]
fn without_room_a_layer_that_comes_in_is_told_so_at_once() {
    let bench = Bench::new();
    let tar = archive(&[(entry(Kind::File, "f"), b"f")]);
    within(async {
        let mut taken = Vec::new();
        while let Ok(room) = bench.walking.rooms.apply(true).await {
            taken.push(room);
        }
        let (_ingest, opts, layer) = coming(&bench, "in", &tar).await;
        let to = bind(&bench.dir("to"));
        let walking = &bench.walking;
        let refused = walking.apply(&bench.store, &layer, &to, opts).await;
        assert!(refused.unwrap_err().is(Code::Unavailable));
        // The others have room of their own.
        let stored = bench.stored(media_type::OCI_LAYER, tar.clone()).await;
        bench.apply(&stored, &to).await.unwrap();
    });
}

#[test]
fn an_apply_that_is_given_up_waits_for_its_bytes_no_longer() {
    let bench = Bench::new();
    let tar = archive(&[(entry(Kind::File, "f"), b"f")]);
    within(async {
        let all = Arc::clone(&bench.walking.rooms.following);
        let free = all.available_permits();
        // Its writer lives, and writes nothing.
        let (_ingest, opts, layer) = coming(&bench, "in", &tar).await;
        let to = bind(&bench.dir("to"));
        {
            let applied = bench.walking.apply(&bench.store, &layer, &to, opts);
            tokio::pin!(applied);
            tokio::select! {
                biased;
                done = &mut applied => panic!("{done:?}"),
                () = tokio::task::yield_now() => {}
            }
            assert_eq!(all.available_permits(), free - 1);
        }
        let count = u32::try_from(free).unwrap();
        drop(all.acquire_many(count).await.unwrap());
    });
}
