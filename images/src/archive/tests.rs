//! Imports of good, odd, damaged and hostile archives.

use std::io::Write as _;

use super::*;
use crate::testsuite::{Store, fields_of};
use types::Code;

type Files = Vec<(String, Vec<u8>)>;

fn tar_of(files: &Files) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    for (name, data) in files {
        let mut header = ::tar::Header::new_gnu();
        if let Some(target) = name.strip_prefix("link:") {
            let (name, target) = target.split_once("->").unwrap();
            header.set_entry_type(::tar::EntryType::Symlink);
            header.set_size(0);
            builder.append_link(&mut header, name, target).unwrap();
            continue;
        }
        header.set_size(data.len() as u64);
        // Past the builder's own checks: hostile names are the point.
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        builder.append(&header, data.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn blob(data: &[u8], media_type: &str) -> (Descriptor, (String, Vec<u8>)) {
    let digest = digest_of(data).unwrap();
    let name = format!("blobs/sha256/{}", digest.hex());
    let size = data.len() as u64;
    let annotations = Labels::new();
    (
        Descriptor {
            media_type: media_type.into(),
            digest,
            size,
            annotations,
        },
        (name, data.to_vec()),
    )
}

/// An OCI layout with one image `tag`.
fn oci(tag: &str) -> Files {
    let (layer, layer_file) = blob(&[9; 3000], mt::OCI_LAYER);
    let config = format!(
        r#"{{"os":"linux","rootfs":{{"diff_ids":["{}"]}}}}"#,
        layer.digest
    );
    let (config, config_file) = blob(config.as_bytes(), mt::OCI_CONFIG);
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{{}}},"layers":[{{{}}}]}}"#,
        fields_of(&config),
        fields_of(&layer)
    );
    let (manifest, manifest_file) = blob(manifest.as_bytes(), mt::OCI_MANIFEST);
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{{},"annotations":{{"{}":"{tag}"}}}}]}}"#,
        fields_of(&manifest),
        crate::name::ANNOTATION_REF_NAME
    );
    vec![
        layer_file,
        config_file,
        ("./index.json".into(), index.into_bytes()),
        manifest_file,
        (
            "oci-layout".into(),
            br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
        ),
    ]
}

/// A Docker archive of two images that share a layer by a link, in the old layout.
fn docker() -> Files {
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&[1; 5000]).unwrap();
    let gz = gz.finish().unwrap();
    let id = |c: &str| format!("sha256:{}", c.repeat(64));
    let config = format!(
        r#"{{"os":"linux","architecture":"amd64","rootfs":{{"diff_ids":["{}","{}"]}}}}"#,
        id("1"),
        id("2")
    );
    let manifest = r#"[{"Config":"c.json","RepoTags":["busybox:1","me/b:2"],
        "Layers":["a/layer.tar","b/layer.tar"]},
        {"Config":"./c.json","RepoTags":null,"Layers":["b/layer.tar","a/layer.tar"]}]"#;
    vec![
        ("a/layer.tar".into(), vec![3; 700]),
        ("a/VERSION".into(), b"1.0".to_vec()),
        ("link:b/layer.tar->../x.tar".into(), Vec::new()),
        ("x.tar".into(), gz),
        ("c.json".into(), config.into_bytes()),
        ("repositories".into(), b"{}".to_vec()),
        ("manifest.json".into(), manifest.as_bytes().to_vec()),
    ]
}

async fn run(store: &Store, data: Vec<u8>) -> Result<Archive> {
    let store: Arc<dyn ContentStore> = Arc::new(store.clone());
    import(
        Box::new(std::io::Cursor::new(data)),
        &store,
        None,
        &|_, _, _| {},
    )
    .await
}

async fn refused(files: &Files) -> Error {
    let store = Store::default();
    let error = run(&store, tar_of(files)).await.unwrap_err();
    assert!(store.ingests().is_empty(), "{error}: {:?}", store.ingests());
    error
}

#[tokio::test]
async fn an_oci_layout_comes_in_in_any_order() {
    let mut files = oci("latest");
    for _ in 0..files.len() {
        files.rotate_left(1);
        let store = Store::default();
        let archive = run(&store, tar_of(&files)).await.unwrap();
        let image = &archive.images[0].descriptor;
        assert_eq!(
            image.annotations[crate::name::ANNOTATION_REF_NAME],
            "latest"
        );
        let all = crate::children(&store, image).await.unwrap();
        assert_eq!(all.len(), 2);
        assert!(all.iter().all(|child| store.has(&child.descriptor.digest)));
        assert!(store.ingests().is_empty());
        let index = archive.put_index(&store).await.unwrap();
        assert_eq!(index.digest, archive.digest().unwrap());
        assert_eq!(
            crate::children(&store, &index).await.unwrap(),
            archive.images
        );
        // Again: all of it is there already.
        run(&store, tar_of(&files)).await.unwrap();
    }
}

#[tokio::test]
async fn gzip_and_zstd_around_it_are_undone() {
    let plain = tar_of(&oci("x"));
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&plain).unwrap();
    let gz = gz.finish().unwrap();
    let zst = zstd::encode_all(plain.as_slice(), 1).unwrap();
    for data in [&gz, &zst] {
        assert_eq!(
            run(&Store::default(), data.clone())
                .await
                .unwrap()
                .images
                .len(),
            1
        );
    }
    let store = Store::default();
    let error = run(&store, gz[..gz.len() / 2].to_vec()).await.unwrap_err();
    assert!(error.is(Code::InvalidArgument), "{error}");
    assert!(store.ingests().is_empty());
}

#[tokio::test]
async fn a_docker_archive_becomes_manifests() {
    let store = Store::default();
    let archive = run(&store, tar_of(&docker())).await.unwrap();
    let names: Vec<_> = archive
        .images
        .iter()
        .map(|i| {
            let labels = &i.descriptor.annotations;
            let get = |key| labels.get(key).map_or("", String::as_str);
            (
                get(crate::name::ANNOTATION_IMAGE_NAME).to_owned(),
                get(crate::name::ANNOTATION_REF_NAME).to_owned(),
            )
        })
        .collect();
    let want = [
        ("docker.io/library/busybox:1", "1"),
        ("docker.io/me/b:2", "2"),
        ("", ""),
    ];
    assert_eq!(names, want.map(|(a, b)| (a.to_owned(), b.to_owned())));
    let manifest = crate::read_manifest(&store, &archive.images[0].descriptor)
        .await
        .unwrap();
    assert_eq!(manifest.config.media_type, mt::DOCKER_CONFIG);
    let types: Vec<_> = manifest
        .layers
        .iter()
        .map(|l| l.media_type.as_str())
        .collect();
    assert_eq!(types, [mt::DOCKER_LAYER, mt::DOCKER_LAYER_GZIP]);
    let host = archive.images[0].platform.clone().unwrap();
    assert_eq!(host.to_string(), "linux/amd64");
    let swapped = crate::read_manifest(&store, &archive.images[2].descriptor)
        .await
        .unwrap();
    assert_eq!(swapped.layers[0], manifest.layers[1]);
    let again = crate::read_index(&store, &archive.put_index(&store).await.unwrap())
        .await
        .unwrap();
    assert_eq!(again.manifests, archive.images);
}

#[tokio::test]
async fn what_is_no_image_is_refused() {
    let store = Store::default();
    for data in [
        Vec::new(),
        vec![0; 10_240],
        b"hello".to_vec(),
        vec![b'x'; 5000],
    ] {
        let error = run(&store, data).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "unrecognized image format: invalid argument"
        );
    }
    let tree = vec![
        ("etc/passwd".to_owned(), b"root".to_vec()),
        ("bin/sh".into(), vec![1; 9000]),
    ];
    assert!(
        refused(&tree)
            .await
            .to_string()
            .contains("unrecognized image format")
    );
    assert!(!store.has(&digest_of(b"root").unwrap()));
}

#[tokio::test]
async fn damaged_and_hostile_archives_leave_no_ingest() {
    type Change<'a> = &'a dyn Fn(&mut (String, Vec<u8>));
    let edit = |at: usize, change: Change<'_>| {
        let mut files = oci("latest");
        change(&mut files[at]);
        files
    };
    for (files, code, text) in [
        (
            edit(0, &|f| f.1[5] ^= 1),
            Code::FailedPrecondition,
            "failed to ingest",
        ),
        (
            edit(0, &|f| f.1.truncate(10)),
            Code::FailedPrecondition,
            "failed to ingest",
        ),
        (
            edit(2, &|f| f.1.truncate(30)),
            Code::InvalidArgument,
            "index.json",
        ),
        (
            edit(2, &|f| f.0 = "x".into()),
            Code::InvalidArgument,
            "missing index.json",
        ),
        (
            edit(4, &|f| f.1 = b"{}".to_vec()),
            Code::InvalidArgument,
            "unsupported OCI version",
        ),
        (
            edit(4, &|f| f.0 = "y".into()),
            Code::InvalidArgument,
            "unrecognized image format",
        ),
        (
            edit(2, &|f| f.1 = vec![b' '; 5 << 20]),
            Code::ResourceExhausted,
            "larger than the limit",
        ),
        (
            edit(1, &|f| f.0 = "../../etc/x.json".into()),
            Code::InvalidArgument,
            "unsafe name",
        ),
        (
            edit(1, &|f| f.0 = "/etc/x.json".into()),
            Code::InvalidArgument,
            "unsafe name",
        ),
    ] {
        let error = refused(&files).await;
        assert!(
            error.is(code) && error.to_string().contains(text),
            "{text}: {error}"
        );
    }
    let whole = tar_of(&oci("latest"));
    for cut in [600, 2000, 3700] {
        let store = Store::default();
        let error = run(&store, whole[..cut].to_vec()).await.unwrap_err();
        assert!(error.to_string().contains("truncated"), "{cut}: {error}");
        assert!(store.ingests().is_empty());
    }
}

#[tokio::test]
async fn docker_archives_that_do_not_add_up_are_refused() {
    let edit = |from: &str, to: &str| {
        let mut files = docker();
        let last = files.len() - 1;
        let text = String::from_utf8(files[last].1.clone()).unwrap();
        assert!(text.contains(from));
        files[last].1 = text.replace(from, to).into_bytes();
        files
    };
    for (files, text) in [
        (
            edit("c.json", "d.json"),
            "image config \"d.json\" not found",
        ),
        (edit("a/layer.tar", "z.tar"), "layer \"z.tar\" not found"),
        (edit("a/layer.tar", "../../etc/passwd"), "unsafe name"),
        (
            edit("[\"a/layer.tar\",\"b/layer.tar\"]", "[]"),
            "2 diff ids for 0 layers",
        ),
        (edit("busybox:1", "Not A Name"), "normalize image ref"),
        (edit("[{", "{{"), "manifest.json"),
    ] {
        let error = refused(&files).await;
        assert!(error.is(Code::InvalidArgument), "{error}");
        assert!(error.to_string().contains(text), "{text}: {error}");
    }
    let mut files = docker();
    files[2].0 = "link:b/layer.tar->../b/layer.tar".into();
    assert!(refused(&files).await.to_string().contains("not found"));
}

/// Most of it is one blob of zeroes, which the store would write as they are.
#[tokio::test]
async fn an_archive_that_holds_too_much_for_its_length_is_refused_with_nothing_stored() {
    let ceilings = Ceilings {
        free: 1 << 20,
        ..Ceilings::default()
    };
    let zeroes = blob(&vec![0; 4 << 20], mt::OCI_LAYER).1;
    let plain = tar_of(&vec![zeroes.clone()]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(&plain).unwrap();
    let packed = [
        gzip.finish().unwrap(),
        zstd::encode_all(&plain[..], 3).unwrap(),
    ];
    for packed in packed {
        let store = Store::default();
        let shared: Arc<dyn ContentStore> = Arc::new(store.clone());
        let most = std::sync::atomic::AtomicU64::new(0);
        let on_bytes = |_: &str, at: u64, _: u64| {
            most.fetch_max(at, std::sync::atomic::Ordering::Relaxed);
        };
        let reader = Box::new(std::io::Cursor::new(packed));
        let imported = import_within(reader, &shared, None, &on_bytes, ceilings).await;
        let error = imported.unwrap_err();
        assert!(error.is(Code::ResourceExhausted), "{error}");
        assert!(error.to_string().contains("compressed bytes"), "{error}");
        assert!(most.into_inner() <= ceilings.free);
        assert!(store.ingests().is_empty());
    }
    // As it is, nothing is hidden in it.
    let shared: Arc<dyn ContentStore> = Arc::new(Store::default());
    let reader = Box::new(std::io::Cursor::new(plain));
    let imported = import_within(reader, &shared, None, &|_, _, _| {}, ceilings).await;
    let error = imported.unwrap_err();
    assert!(
        error.to_string().contains("unrecognized image format"),
        "{error}"
    );
}

#[tokio::test]
async fn an_abandoned_import_takes_its_ingest_along() {
    /// Gives the head of an archive, then blocks until it is dropped.
    struct Stuck(Vec<u8>, std::sync::mpsc::Receiver<()>);
    impl Read for Stuck {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            if self.0.is_empty() {
                let _ended = self.1.recv();
                return Ok(0);
            }
            let n = buffer.len().min(self.0.len());
            buffer[..n].copy_from_slice(&self.0[..n]);
            self.0.drain(..n);
            Ok(n)
        }
    }
    let (release, wait) = std::sync::mpsc::channel();
    let big = (format!("blobs/sha256/{}", "a".repeat(64)), vec![5; 4 << 20]);
    let head = tar_of(&vec![big])[..2 << 20].to_vec();
    let fake = Store::default();
    let store: Arc<dyn ContentStore> = Arc::new(fake.clone());
    let (begun, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let task = tokio::spawn(async move {
        let on_bytes = |_: &str, at: u64, _: u64| {
            let _seen = begun.send(at);
        };
        import(Box::new(Stuck(head, wait)), &store, None, &on_bytes).await
    });
    while seen.recv().await.unwrap() == 0 {}
    assert_eq!(fake.ingests().len(), 1);
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    while !fake.ingests().is_empty() {
        tokio::task::yield_now().await;
    }
    drop(release);
}

#[tokio::test]
async fn plain_layers_of_a_docker_archive_are_compressed_when_that_is_wanted() {
    let layer = vec![3; 20_000];
    let id = digest_of(&layer).unwrap();
    let config = format!(
        r#"{{"os":"linux","architecture":"amd64","rootfs":{{"diff_ids":["{id}","{id}"]}}}}"#
    );
    let manifest = r#"[{"Config":"c.json","RepoTags":["a:1"],"Layers":["a.tar","b/layer.tar"]}]"#;
    let files = |config: &str| -> Files {
        vec![
            ("a.tar".into(), layer.clone()),
            ("b/layer.tar".into(), layer.clone()),
            ("c.json".into(), config.as_bytes().to_vec()),
            ("manifest.json".into(), manifest.as_bytes().to_vec()),
        ]
    };
    let store = Store::default();
    let shared: Arc<dyn ContentStore> = Arc::new(store.clone());
    let with = async |files: Files| {
        let reader = Box::new(std::io::Cursor::new(tar_of(&files)));
        import(reader, &shared, Some(Compression::Gzip), &|_, _, _| {}).await
    };
    let archive = with(files(&config)).await.unwrap();
    let children = crate::children(&store, &archive.images[0].descriptor);
    let layers = children.await.unwrap().split_off(1);
    assert_eq!(layers[0], layers[1]);
    let layer = &layers[0].descriptor;
    assert_eq!(layer.media_type, mt::DOCKER_LAYER_GZIP);
    assert!(layer.size < 1000, "{layer:?}");
    let info = store.info(&layer.digest).await.unwrap();
    assert_eq!(info.labels[types::label::UNCOMPRESSED], id.as_str());
    // A layer that is another one than its config says.
    let wrong = config.replace(id.as_str(), &format!("sha256:{}", "1".repeat(64)));
    let error = with(files(&wrong)).await.unwrap_err();
    assert!(
        error.to_string().contains("its config says otherwise"),
        "{error}"
    );
    assert!(store.ingests().is_empty());
}
