//! Imports of archives into stores in memory.

use content::ContentStore as _;
use std::collections::BTreeSet;

use images::name::ANNOTATION_REF_NAME;
use types::transfer::NameRule;
use types::{Code, media_type as mt};

use super::*;
use crate::fake::World;

type Files = Vec<(String, Vec<u8>)>;

fn blob(files: &mut Files, media_type: &str, data: &[u8]) -> Descriptor {
    let digest = images::digest_of(data).unwrap();
    files.push((format!("blobs/sha256/{}", digest.hex()), data.to_vec()));
    let size = data.len() as u64;
    Descriptor {
        media_type: media_type.into(),
        digest,
        size,
        annotations: Labels::new(),
    }
}

fn fields(d: &Descriptor) -> String {
    images::testsuite::fields_of(d)
}

fn manifest(files: &mut Files, architecture: &str, layers: &[&[u8]]) -> Descriptor {
    let layers: Vec<_> = layers
        .iter()
        .map(|data| blob(files, mt::OCI_LAYER, data))
        .collect();
    let ids: Vec<_> = layers
        .iter()
        .map(|l| format!("{:?}", l.digest.as_str()))
        .collect();
    let config = format!(
        r#"{{"os":"linux","architecture":"{architecture}","rootfs":{{"diff_ids":[{}]}}}}"#,
        ids.join(",")
    );
    let config = blob(files, mt::OCI_CONFIG, config.as_bytes());
    let list: Vec<_> = layers
        .iter()
        .map(|l| format!("{{{}}}", fields(l)))
        .collect();
    let text = format!(
        r#"{{"config":{{{}}},"layers":[{}]}}"#,
        fields(&config),
        list.join(",")
    );
    blob(files, mt::OCI_MANIFEST, text.as_bytes())
}

/// `entries`: descriptor, ref.name, architecture.
fn index(entries: &[(&Descriptor, &str, &str)]) -> Vec<u8> {
    let list: Vec<String> = entries
        .iter()
        .map(|(d, name, architecture)| {
            let mut text = fields(d);
            if !name.is_empty() {
                text += &format!(r#","annotations":{{"{ANNOTATION_REF_NAME}":"{name}"}}"#);
            }
            if !architecture.is_empty() {
                text += &format!(r#","platform":{{"os":"linux","architecture":"{architecture}"}}"#);
            }
            format!("{{{text}}}")
        })
        .collect();
    format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, list.join(",")).into_bytes()
}

fn archive(mut files: Files, entries: &[(&Descriptor, &str, &str)]) -> Box<dyn Read + Send> {
    files.push(("index.json".into(), index(entries)));
    files.push((
        "oci-layout".into(),
        br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
    ));
    let mut builder = tar::Builder::new(Vec::new());
    for (name, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        builder
            .append_data(&mut header, name, data.as_slice())
            .unwrap();
    }
    Box::new(std::io::Cursor::new(builder.into_inner().unwrap()))
}

fn rule(flags: &str) -> NameRule {
    NameRule {
        name: "import".into(),
        is_prefix: true,
        allow_overwrite: !flags.contains('f'),
        add_digest: flags.contains('d'),
        skip_named_digest: flags.contains('s'),
    }
}

fn opts() -> ImportOpts {
    ImportOpts::new(Names {
        rules: vec![rule("")],
        ..Names::default()
    })
}

/// The same with unpacking for this host.
fn unpacking(world: &World, opts: ImportOpts) -> ImportOpts {
    ImportOpts {
        unpacks: vec![(world.deps(), PlatformSet::default())],
        ..opts
    }
}

fn host() -> String {
    types::Platform::host().architecture
}

#[tokio::test]
async fn images_are_named_labelled_and_unpacked() {
    let mut files = Files::new();
    let one = manifest(&mut files, &host(), &[b"a", b"b"]);
    let two = manifest(&mut files, &host(), &[b"a", b"c"]);
    let world = World::new();
    let entries = [(&one, "latest", ""), (&two, "r.io/x/y:1", "")];
    let made = import(
        archive(files, &entries),
        &world.deps(),
        unpacking(&world, opts()),
    )
    .await
    .unwrap();
    let names: Vec<_> = made.iter().map(|image| image.name.as_str()).collect();
    assert_eq!(names, ["import:latest", "r.io/x/y:1"]);
    assert_eq!(made[0].target.digest, one.digest);
    assert_eq!(made[0].target.annotations[ANNOTATION_REF_NAME], "latest");
    // Two images, three different chains: the shared layer is unpacked once.
    assert_eq!(world.chains().len(), 3);
    assert_eq!(world.applier.applied.lock().unwrap().len(), 3);
    let labels = world.content.info(&two.digest).await.unwrap().labels;
    assert_eq!(labels.len(), 3);
    let parsed = images::read_manifest(&world.content, &two).await.unwrap();
    let labels = world
        .content
        .info(&parsed.config.digest)
        .await
        .unwrap()
        .labels;
    assert!(labels.contains_key("containerd.io/gc.ref.snapshot.overlayfs"));
}

#[tokio::test]
async fn layers_that_are_unpacked_are_left_to_the_collector_when_that_is_wanted() {
    for (discard_layers, kept) in [(false, 3), (true, 1)] {
        let mut files = Files::new();
        let one = manifest(&mut files, &host(), &[b"a", b"b"]);
        let whole = index(&[(&one, "", &host())]);
        let whole = blob(&mut files, mt::OCI_INDEX, &whole);
        let world = World::new();
        let opts = ImportOpts {
            discard_layers,
            ..unpacking(&world, opts())
        };
        let reader = archive(files, &[(&whole, "latest", "")]);
        import(reader, &world.deps(), opts).await.unwrap();
        assert_eq!(world.chains().len(), 2);
        let labels = world.content.info(&one.digest).await.unwrap().labels;
        assert_eq!(labels.len(), kept, "{labels:?}");
        assert!(labels.contains_key("containerd.io/gc.ref.content.config"));
        let labels = world.content.info(&whole.digest).await.unwrap().labels;
        assert_eq!(labels.len(), 1, "{labels:?}");
    }
}

#[tokio::test]
async fn names_follow_the_options() {
    let mut files = Files::new();
    let one = manifest(&mut files, &host(), &[b"a"]);
    let two = manifest(&mut files, &host(), &[b"b"]);
    let entries = [(&one, "1", ""), (&two, "", "")];
    let by_digest = |digest: &types::Digest| format!("import@{digest}");
    let whole = images::digest_of(&index(&entries)).unwrap();
    for (flags, name, want) in [
        ("", "", vec!["import:1".to_owned()]),
        (
            "d",
            "",
            vec![
                "import:1".to_owned(),
                by_digest(&one.digest),
                by_digest(&two.digest),
                by_digest(&whole),
            ],
        ),
        (
            "ds",
            "",
            vec![
                "import:1".to_owned(),
                by_digest(&two.digest),
                by_digest(&whole),
            ],
        ),
        ("", "all", vec!["all".to_owned(), "import:1".to_owned()]),
    ] {
        let world = World::new();
        let names = Names {
            name: name.into(),
            rules: vec![rule(flags)],
        };
        let opts = ImportOpts::new(names);
        import(archive(files.clone(), &entries), &world.deps(), opts)
            .await
            .unwrap();
        let want: BTreeSet<_> = want.into_iter().collect();
        assert_eq!(world.names().into_iter().collect::<BTreeSet<_>>(), want);
        assert!(world.chains().is_empty());
        let expires = |name: &str| {
            let records = world.records.0.lock().unwrap();
            records[name].labels.contains_key("containerd.io/gc.expire")
        };
        assert_eq!(expires("import:1"), !name.is_empty());
    }
}

#[tokio::test]
async fn an_import_that_would_keep_nothing_is_refused() {
    let mut files = Files::new();
    let one = manifest(&mut files, &host(), &[b"a"]);
    let filter = ImportOpts::new(Names {
        rules: vec![rule("f")],
        ..Names::default()
    });
    for (name, opts) in [("", opts()), ("r.io/y:1", filter)] {
        let (world, reader) = (World::new(), archive(files.clone(), &[(&one, name, "")]));
        let opts = unpacking(&world, opts);
        let error = import(reader, &world.deps(), opts).await.unwrap_err();
        assert!(
            error.is_not_found() && error.to_string().contains("has a name"),
            "{error}"
        );
        assert!(world.chains().is_empty());
    }
}

#[tokio::test]
async fn only_wanted_platforms_need_be_complete() {
    let mut files = Files::new();
    let mine = manifest(&mut files, &host(), &[b"mine"]);
    let missing = manifest(&mut Files::new(), "s390x", &[b"other"]);
    let nested = index(&[(&missing, "", "s390x"), (&mine, "", &host())]);
    let nested = blob(&mut files, mt::OCI_INDEX, &nested);
    let entries = [(&nested, "multi", ""), (&missing, "other", "s390x")];
    let world = World::new();
    import(
        archive(files.clone(), &entries),
        &world.deps(),
        unpacking(&world, opts()),
    )
    .await
    .unwrap();
    assert_eq!(world.names(), ["import:multi"]);
    assert_eq!(world.chains().len(), 1);

    let all = ImportOpts {
        platforms: PlatformSet::All,
        ..opts()
    };
    let world = World::new();
    let error = import(
        archive(files.clone(), &entries),
        &world.deps(),
        unpacking(&world, all),
    )
    .await
    .unwrap_err();
    assert!(
        error.is_not_found() && error.to_string().contains("image is incomplete"),
        "{error}"
    );
    assert!(world.names().is_empty() && world.chains().is_empty());

    let entries = [(&missing, "other", "s390x")];
    let error = import(
        archive(files, &entries),
        &world.deps(),
        unpacking(&world, opts()),
    )
    .await
    .unwrap_err();
    assert!(
        error.is_not_found() && error.to_string().contains("for this platform"),
        "{error}"
    );
}

#[tokio::test]
async fn all_platforms_are_kept_and_the_host_is_unpacked() {
    let mut files = Files::new();
    let other = manifest(&mut files, "s390x", &[b"other"]);
    let entries = [(&other, "x", "s390x")];
    let all = ImportOpts {
        platforms: PlatformSet::All,
        ..opts()
    };
    let world = World::new();
    // A manifest without an index around it is what it is: it unpacks.
    import(
        archive(files, &entries),
        &world.deps(),
        unpacking(&world, all),
    )
    .await
    .unwrap();
    assert_eq!(world.names(), ["import:x"]);
}

#[tokio::test]
async fn bad_images_leave_no_record_and_no_snapshot() {
    let mut files = Files::new();
    let good = manifest(&mut files, &host(), &[b"a"]);
    let mut damaged_files = Files::new();
    let damaged = manifest(&mut damaged_files, &host(), &[b"a", b"damaged"]);
    let mut cut = files.clone();
    cut.remove(0);
    let longer = Descriptor {
        size: good.size + 1,
        ..good.clone()
    };
    let mut bomb_files = files.clone();
    let mut bomb = good.clone();
    for _ in 0..40 {
        bomb = blob(&mut bomb_files, mt::OCI_INDEX, &index(&[(&bomb, "", "")]));
    }
    for (files, root, code, text) in [
        (cut, &good, Code::NotFound, "image is incomplete"),
        (
            files,
            &longer,
            Code::FailedPrecondition,
            "its descriptor says",
        ),
        (
            damaged_files,
            &damaged,
            Code::InvalidArgument,
            "failed to extract layer",
        ),
        (bomb_files, &bomb, Code::ResourceExhausted, "nested deeper"),
    ] {
        let world = World::new();
        let error = import(
            archive(files, &[(root, "1", "")]),
            &world.deps(),
            unpacking(&world, opts()),
        )
        .await
        .unwrap_err();
        assert!(
            error.is(code) && error.to_string().contains(text),
            "{error}"
        );
        assert!(world.names().is_empty());
        assert!(world.chains().len() <= 1 && world.content.ingests().is_empty());
    }
}
