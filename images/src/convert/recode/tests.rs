//! Layers that hold too much, and stores that fail or wait.

use types::{Code, media_type as mt};

use super::*;
use crate::blob::put_blob;
use crate::testsuite::Store;

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_holds_too_much_for_its_length_is_refused_and_leaves_nothing() {
    let store = Store::default();
    let shared: Arc<dyn ContentStore> = Arc::new(store.clone());
    let ceilings = Ceilings {
        free: 1 << 20,
        ..Ceilings::default()
    };
    for size in [1 << 20, 4 << 20] {
        let packed = zstd::encode_all(&vec![0; size][..], 3).unwrap();
        let layer = store.put(mt::OCI_LAYER_ZSTD, &packed).await;
        let made = recode_within(&shared, &layer, None, Compression::Plain, ceilings).await;
        if size as u64 == ceilings.free {
            assert_eq!(made.unwrap().size, ceilings.free);
            continue;
        }
        let error = made.unwrap_err();
        assert!(error.is(Code::ResourceExhausted), "{error}");
        assert!(error.to_string().contains("compressed bytes"), "{error}");
    }
    assert!(store.ingests().is_empty());
}

#[test]
fn only_what_is_compressed_again_may_hold_as_much_as_a_stream() {
    assert_eq!(ceilings(Compression::Plain), Ceilings::default());
    for wanted in [Compression::Gzip, Compression::Zstd] {
        assert_eq!(ceilings(wanted), Ceilings::STREAM);
    }
}

/// There is more to write than is on its way: whoever writes it must not wait for the store.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_fails_is_told_and_not_waited_for() {
    let store = Store::default();
    let shared: Arc<dyn ContentStore> = Arc::new(store.clone());
    let packed = zstd::encode_all(&vec![0; 3 * QUEUE * PIECE][..], 3).unwrap();
    let layer = store.put(mt::OCI_LAYER_ZSTD, &packed).await;
    store.fill();
    let made = recode(&shared, &layer, None, Compression::Plain);
    let made = tokio::time::timeout(std::time::Duration::from_secs(60), made).await;
    let error = made.expect("it waits for ever").unwrap_err();
    assert!(error.is(Code::ResourceExhausted), "{error}");
    assert!(error.to_string().contains("store is full"), "{error}");
    assert!(store.ingests().is_empty());
}

/// The store reads and writes on the runtime's threads for files, of which there is one here.
#[test]
fn a_layer_that_waits_for_the_store_does_not_keep_it_waiting() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(1)
        .build()
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn ContentStore> = Arc::new(content::Local::open(dir.path()).unwrap());
    let data: Bytes = vec![7; 12 * PIECE].into();
    let (done, converted) = std::sync::mpsc::channel();
    runtime.spawn(async move {
        let digest = put_blob(store.as_ref(), data.clone(), Labels::new()).await;
        let layer = Descriptor {
            media_type: mt::OCI_LAYER.into(),
            digest: digest.unwrap(),
            size: data.len() as u64,
            annotations: Labels::new(),
        };
        let made = recode(&store, &layer, Some(&layer.digest), Compression::Gzip).await;
        done.send(made.map(|made| made.size)).unwrap();
    });
    let waited = converted.recv_timeout(std::time::Duration::from_secs(60));
    // Or it would be waited for, too.
    runtime.shutdown_background();
    let size = waited.expect("it waits for ever").unwrap();
    assert!(size < PIECE as u64, "{size}");
}
