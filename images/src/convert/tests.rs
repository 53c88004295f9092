//! Images there and back.

use super::*;
use crate::testsuite::{Store, fields_of, image};
use types::{Code, label};

fn opts(compress: Option<Compression>, family: Option<Family>) -> ConvertOpts {
    ConvertOpts {
        compress,
        family,
        platforms: PlatformSet::All,
    }
}

async fn run(store: &Store, target: &Descriptor, opts: &ConvertOpts) -> Result<Descriptor> {
    let shared: Arc<dyn ContentStore> = Arc::new(store.clone());
    convert(&shared, target, opts).await
}

#[tokio::test(flavor = "multi_thread")]
async fn there_and_back_gives_the_same_image() {
    let store = Store::default();
    let big: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 253) as u8).collect();
    let plain = image(&store, "linux/amd64", &[b"one", &big]).await;
    let root = store.index(&[(&plain, Some("linux/amd64"))]).await;
    for compress in [Compression::Gzip, Compression::Zstd] {
        let packed = run(&store, &root, &opts(Some(compress), None))
            .await
            .unwrap();
        let (at, manifest) = crate::find_manifest(&store, &packed, &PlatformSet::All)
            .await
            .unwrap();
        for layer in &manifest.layers {
            assert_eq!(Compression::of_layers(&layer.media_type), Some(compress));
            let labels = store.info(&layer.digest).await.unwrap().labels;
            assert!(labels.contains_key(label::UNCOMPRESSED));
        }
        assert!(manifest.layers[1].size < 1_000_000);
        let labels = store.info(&at.digest).await.unwrap().labels;
        assert_eq!(labels.len(), 3);
        let back = opts(Some(Compression::Plain), None);
        let back = run(&store, &packed, &back).await.unwrap();
        let (_, manifest) = crate::find_manifest(&store, &back, &PlatformSet::All)
            .await
            .unwrap();
        let want = read_manifest(&store, &plain).await.unwrap();
        let digests = |m: &crate::Manifest| -> Vec<Digest> {
            m.layers.iter().map(|l| l.digest.clone()).collect()
        };
        assert_eq!(digests(&manifest), digests(&want));
    }
    assert!(store.ingests().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn media_types_change_and_bytes_stay() {
    let store = Store::default();
    let plain = image(&store, "linux/amd64", &[b"one"]).await;
    let docker = run(&store, &plain, &opts(None, Some(Family::Docker)))
        .await
        .unwrap();
    assert_eq!(docker.media_type, mt::DOCKER_MANIFEST);
    let manifest = read_manifest(&store, &docker).await.unwrap();
    assert_eq!(manifest.config.media_type, mt::DOCKER_CONFIG);
    let oci = run(&store, &docker, &opts(None, Some(Family::Oci)))
        .await
        .unwrap();
    let before = read_manifest(&store, &plain).await.unwrap();
    let after = read_manifest(&store, &oci).await.unwrap();
    assert_eq!(after.config.digest, before.config.digest);
    assert_eq!(after.layers[0].digest, before.layers[0].digest);
    let same = run(&store, &plain, &opts(None, None)).await.unwrap();
    assert_eq!(same, plain);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_or_missing_is_refused_and_leaves_nothing() {
    let store = Store::default();
    let lie = store
        .put(mt::OCI_LAYER_GZIP, &[0x1f, 0x8b, 8, 1, 2, 3])
        .await;
    let config = store
        .put(
            mt::OCI_CONFIG,
            br#"{"os":"linux","architecture":"amd64","rootfs":{"diff_ids":[]}}"#,
        )
        .await;
    let text = format!(
        r#"{{"schemaVersion":2,"config":{{{}}},"layers":[{{{}}}]}}"#,
        fields_of(&config),
        fields_of(&lie)
    );
    let root = store.put(mt::OCI_MANIFEST, text.as_bytes()).await;
    let error = run(&store, &root, &opts(Some(Compression::Zstd), None)).await;
    let error = error.unwrap_err();
    assert!(error.is(Code::InvalidArgument), "{error}");
    assert!(store.ingests().is_empty());
    let arm = image(&store, "linux/arm64", &[b"a"]).await;
    let index = store.index(&[(&arm, Some("linux/arm64"))]).await;
    let none = ConvertOpts {
        platforms: PlatformSet::Only(vec!["linux/s390x".parse().unwrap()]),
        ..ConvertOpts::default()
    };
    assert!(run(&store, &index, &none).await.unwrap_err().is_not_found());
    let odd = run(&store, &config, &opts(None, None)).await.unwrap_err();
    assert!(odd.is(Code::InvalidArgument), "{odd}");
}
