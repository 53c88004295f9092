//! What the registry crate pushes, a real registry keeps and a foreign client reads.

use std::sync::Arc;

use bytes::Bytes;
use integration::{Program, Registry, need};
use registry::{OnSent, Pushed, RegistryOpts, Repository};
use types::{Descriptor, Labels, media_type as mt};

fn describe(media_type: &str, data: &[u8]) -> Descriptor {
    let said = Program::new(need("sha256sum")).input(data).run().ok();
    let hex = said.split(' ').next().expect("a digest");
    Descriptor {
        media_type: media_type.into(),
        digest: format!("sha256:{hex}").parse().expect("digest"),
        size: data.len() as u64,
        annotations: Labels::new(),
    }
}

fn repository(host: &str, path: &str) -> Repository {
    let opts = RegistryOpts {
        plain_http: true,
        ..RegistryOpts::default()
    };
    let reference = format!("{host}/{path}").parse().expect("reference");
    Repository::new(&reference, opts).expect("repository")
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("runtime")
        .block_on(future)
}

fn quiet() -> OnSent {
    Arc::new(|_| {})
}

fn json(descriptor: &Descriptor) -> String {
    format!(
        r#"{{"mediaType":"{}","digest":"{}","size":{}}}"#,
        descriptor.media_type, descriptor.digest, descriptor.size
    )
}

/// An image of one layer.
struct Image {
    layer: (Descriptor, Bytes),
    config: (Descriptor, Bytes),
    manifest: (Descriptor, Bytes),
}

impl Image {
    fn new() -> Self {
        let data: Bytes = (0..3_000_000u32)
            .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
            .collect::<Vec<u8>>()
            .into();
        let layer = describe(mt::OCI_LAYER, &data);
        let config_text = format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
            layer.digest
        );
        let config = describe(mt::OCI_CONFIG, config_text.as_bytes());
        let manifest_text = format!(
            r#"{{"schemaVersion":2,"mediaType":"{}","config":{},"layers":[{}]}}"#,
            mt::OCI_MANIFEST,
            json(&config),
            json(&layer)
        );
        let manifest = describe(mt::OCI_MANIFEST, manifest_text.as_bytes());
        Self {
            layer: (layer, data),
            config: (config, config_text.into()),
            manifest: (manifest, manifest_text.into()),
        }
    }
}

#[test]
fn an_image_goes_in_is_mounted_elsewhere_and_reads_back_the_same() {
    let registry = Registry::start();
    let host = registry.host();
    let image = Image::new();
    let (manifest, manifest_text) = &image.manifest;
    let (layer, data) = &image.layer;
    let from = ["made/first".to_owned()];
    block_on(async {
        for (path, candidates, want) in [
            ("made/first:1", &[][..], Pushed::Uploaded),
            ("made/first:1", &[], Pushed::Existed),
            ("made/second:1", &from, Pushed::Mounted(from[0].clone())),
        ] {
            let to = repository(host, path);
            for (descriptor, bytes) in [&image.layer, &image.config] {
                let pushed = to
                    .push_blob(descriptor, Arc::new(bytes.clone()), candidates, quiet())
                    .await;
                assert_eq!(pushed.expect("push a blob"), want, "{path}");
            }
            to.push_manifest(manifest, manifest_text.clone(), Some("1"))
                .await
                .expect("push the manifest");
            assert!(to.exists(manifest).await.expect("look for the manifest"));
            assert_eq!(to.resolve().await.expect("resolve"), *manifest);
        }
        let from = repository(host, "made/second:1");
        let mut reader = from.open(layer, 0).expect("open");
        let mut back = Vec::new();
        while let Some(chunk) = reader.chunk().await.expect("read") {
            back.extend_from_slice(&chunk);
        }
        assert!(back == *data, "the layer came back changed");
    });
    for path in ["made/first:1", "made/second:1"] {
        let from = format!("docker://{host}/{path}");
        let flags = ["inspect", "--tls-verify=false", "--raw"];
        let raw = Program::new(need("skopeo")).args(flags).args([&from]).run();
        assert_eq!(raw.ok().as_bytes(), manifest_text);
        let to = tempfile::tempdir().expect("directory");
        let to = format!("dir:{}", to.path().join("copy").display());
        let flags = ["--insecure-policy", "copy", "--src-tls-verify=false", "-q"];
        let copy = Program::new(need("skopeo"))
            .args(flags)
            .args([from, to])
            .run();
        drop(copy.ok());
    }
}
