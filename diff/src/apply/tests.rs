//! Layers through a content store onto real mounts.

use super::*;
use content::Blob;

use crate::UNSUSPECTED;
use crate::compression::Encoder;
use crate::tar::Kind;
use crate::testing::{Bench, archive, bind, entry, script};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use types::Code;

fn packed(compression: Compression, data: &[u8]) -> Vec<u8> {
    let mut encoder = Encoder::new(compression, Vec::new()).unwrap();
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn sample() -> Vec<u8> {
    archive(&[
        (entry(Kind::Directory, "d/"), b""),
        (entry(Kind::File, "d/f"), &[b'x'; 700_000]),
        (entry(Kind::File, "implied/parent/g"), b"g"),
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn every_compression_gives_the_same_tree_and_diff_id() {
    let bench = Bench::new();
    let tar = sample();
    let diff_id = Hasher::digest(&tar).unwrap();
    for (compression, media) in [
        (Compression::Plain, media_type::OCI_LAYER),
        (Compression::Gzip, media_type::DOCKER_LAYER_GZIP),
        (Compression::Zstd, media_type::OCI_LAYER_ZSTD),
        // The bytes decide.
        (Compression::Zstd, media_type::OCI_LAYER_GZIP),
        (Compression::Gzip, media_type::DOCKER_LAYER),
    ] {
        let layer = bench.stored(media, packed(compression, &tar)).await;
        let to = bench.dir(&format!("{compression:?}-{}", media.len()));
        let done = bench.apply(&layer, &bind(&to)).await.unwrap();
        assert_eq!((&done.digest, done.size), (&diff_id, tar.len() as u64));
        assert_eq!(done.media_type, media_type::OCI_LAYER);
        assert_eq!(std::fs::read(to.join("d/f")).unwrap(), vec![b'x'; 700_000]);
        assert_eq!(
            std::fs::metadata(to.join("d")).unwrap().mtime(),
            1_500_000_000
        );
        assert_eq!(
            std::fs::metadata(to.join("implied/parent")).unwrap().mode() & 0o7777,
            0o755
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn conforms() {
    let bench = Bench::new();
    crate::testsuite::run(&crate::testsuite::Bench {
        differ: &bench.walking,
        store: Arc::clone(&bench.store),
        root: &bench.dir("suite"),
        scope: None,
    })
    .await;
}

/// An igzip that is gzip.
fn stand_in(bench: &Bench) -> Walking {
    let path = bench.temp.path().join("igzip");
    script(&path, "#!/bin/sh\nexec gzip \"$@\"\n");
    Walking {
        igzip: Some(path),
        ..bench.walking.clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_decodes_gzip_to_the_same_tree_and_refuses_damage() {
    let bench = Bench::new();
    let walking = stand_in(&bench);
    let tar = sample();
    let good = packed(Compression::Gzip, &tar);
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 0xff;
    let cut = good[..good.len() / 2].to_vec();
    for (data, fits) in [(good, true), (flipped, false), (cut, false)] {
        let layer = bench.stored(media_type::OCI_LAYER_GZIP, data).await;
        let to = bench.dir(layer.digest.hex());
        let opts = ApplyOpts::default();
        let done = walking.apply(&bench.store, &layer, &bind(&to), opts).await;
        match done {
            Ok(done) => {
                assert!(fits);
                assert_eq!(done.digest, Hasher::digest(&tar).unwrap());
                assert_eq!(std::fs::read(to.join("d/f")).unwrap().len(), 700_000);
            }
            Err(error) => assert!(!fits && error.is(Code::InvalidArgument), "{error}"),
        }
    }
}

/// What `zstd --ultra -22` writes; where it is allowed, also what `zstd --long=29` does, as with Go's decoder.
#[tokio::test(flavor = "multi_thread")]
async fn a_window_may_be_as_large_as_zstd_makes_it_and_as_allowed() {
    let bench = Bench::new();
    let allowing = bench.walking.clone().with_limits(Limits {
        window: 512 << 20,
        ..Limits::default()
    });
    for (walking, log, fits) in [
        (&bench.walking, 27_u8, true),
        (&bench.walking, 28, false),
        (&allowing, 29, true),
        (&allowing, 30, false),
    ] {
        // Behind the archive a frame with such a window, and nothing in it.
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0, (log - 10) << 3, 1, 0, 0];
        let data = [packed(Compression::Zstd, &sample()), frame.to_vec()].concat();
        let layer = bench.stored(media_type::OCI_LAYER_ZSTD, data).await;
        let to = bench.dir(&format!("window-{log}"));
        let opts = ApplyOpts::default();
        match walking.apply(&bench.store, &layer, &bind(&to), opts).await {
            Ok(_) => assert!(fits, "{log}"),
            Err(error) => assert!(!fits && error.is(Code::ResourceExhausted), "{log}: {error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trailing_bytes_count_for_the_digest() {
    let bench = Bench::new();
    let tar = [sample(), vec![0; 10_000]].concat();
    let layer = bench
        .stored(media_type::OCI_LAYER_GZIP, packed(Compression::Gzip, &tar))
        .await;
    let done = bench.apply(&layer, &bind(&bench.dir("t"))).await.unwrap();
    assert_eq!(done.digest, Hasher::digest(&tar).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_layers_are_refused() {
    let bench = Bench::new();
    let tar = sample();
    for compression in [Compression::Plain, Compression::Gzip, Compression::Zstd] {
        let good = packed(compression, &tar);
        let cut = good[..good.len() * 2 / 3].to_vec();
        let mut flipped = good.clone();
        let at = if compression == Compression::Plain {
            5
        } else {
            good.len() / 2
        };
        flipped[at] ^= 0xff;
        let with_tail = [good.clone(), b"tail".to_vec()].concat();
        let mut cases = vec![cut, flipped];
        if compression == Compression::Gzip {
            cases.push(with_tail);
        }
        for (n, data) in cases.into_iter().enumerate() {
            let layer = bench.stored(media_type::OCI_LAYER, data).await;
            let to = bench.dir(&format!("{compression:?}{n}"));
            let error = bench.apply(&layer, &bind(&to)).await.unwrap_err();
            assert!(
                error.is(Code::InvalidArgument),
                "{compression:?} {n}: {error}"
            );
        }
    }
}

/// A blob store that answers with other bytes than it should.
#[derive(Debug)]
struct Liar(Vec<u8>);

#[async_trait]
impl Blob for Liar {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        let from = usize::try_from(offset).unwrap().min(self.0.len());
        Ok(Bytes::copy_from_slice(
            &self.0[from..(from + len).min(self.0.len())],
        ))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_with_another_digest_is_refused_however_it_is_packed() {
    let temp = tempfile::tempdir().unwrap();
    for compression in [Compression::Plain, Compression::Gzip, Compression::Zstd] {
        let run = |digest: Digest| {
            let job = Job {
                from: Incoming {
                    blob: Arc::new(Liar(packed(compression, &sample()))),
                    handle: Handle::current(),
                    stop: Stop::default(),
                },
                follows: false,
                rooms: Rooms::default(),
                digest,
                limits: Limits::default(),
                igzip: None,
                chain: Vec::new(),
                packed: None,
                payloads: Vec::new(),
                sync: false,
            };
            let to = temp.path().to_owned();
            tokio::task::spawn_blocking(move || job.into_directory(&to, Target::Merged))
        };
        let error = run(Hasher::digest(b"other").unwrap())
            .await
            .unwrap()
            .unwrap_err();
        assert!(error.is(Code::FailedPrecondition), "{error}");
        let mut sha512 = Hasher::new(Algorithm::Sha512);
        sha512.update(&packed(compression, &sample()));
        run(sha512.finish().unwrap()).await.unwrap().unwrap();
    }
}

/// A blob of zeroes without end: an archive that is over at once, and then much to read.
#[derive(Debug)]
struct Endless(Stop);

#[async_trait]
impl Blob for Endless {
    fn size(&self) -> u64 {
        u64::MAX
    }

    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        if offset > 8 * CHUNK as u64 {
            // The caller goes away.
            drop(self.0.guard());
        }
        Ok(vec![0; len].into())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_apply_ends() {
    let temp = tempfile::tempdir().unwrap();
    let stop = Stop::default();
    let job = Job {
        from: Incoming {
            blob: Arc::new(Endless(stop.clone())),
            handle: Handle::current(),
            stop,
        },
        follows: false,
        rooms: Rooms::default(),
        digest: Hasher::digest(b"").unwrap(),
        limits: Limits::default(),
        igzip: None,
        chain: Vec::new(),
        packed: None,
        payloads: Vec::new(),
        sync: false,
    };
    let to = temp.path().to_owned();
    let done = tokio::task::spawn_blocking(move || job.into_directory(&to, Target::Merged));
    let error = done.await.unwrap().unwrap_err();
    assert!(error.is(Code::Cancelled), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn descriptors_that_lie_and_unknown_types_are_refused() {
    let bench = Bench::new();
    let to = bench.dir("t");
    let layer = bench.stored(media_type::OCI_LAYER, sample()).await;
    let longer = Descriptor {
        size: layer.size + 1,
        ..layer.clone()
    };
    let error = bench.apply(&longer, &bind(&to)).await.unwrap_err();
    assert!(error.is(Code::FailedPrecondition), "{error}");
    let other = Descriptor {
        media_type: "text/plain".into(),
        ..layer.clone()
    };
    assert!(
        bench
            .apply(&other, &bind(&to))
            .await
            .unwrap_err()
            .is(Code::NotImplemented)
    );
    let gone = Descriptor {
        digest: Hasher::digest(b"gone").unwrap(),
        ..layer.clone()
    };
    assert!(
        bench
            .apply(&gone, &bind(&to))
            .await
            .unwrap_err()
            .is_not_found()
    );
    let mut read_only = bind(&to);
    read_only[0].options = vec!["ro".into(), "rbind".into()];
    let error = bench.apply(&layer, &read_only).await.unwrap_err();
    assert!(error.is(Code::FailedPrecondition), "{error}");
    assert_eq!(std::fs::read_dir(&to).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_beyond_the_limit_is_refused() {
    let bench = Bench::new();
    let zeroes = vec![0; 8 << 20];
    let tar = archive(&[(entry(Kind::File, "bomb"), &zeroes)]);
    let layer = bench
        .stored(media_type::OCI_LAYER_GZIP, packed(Compression::Gzip, &tar))
        .await;
    let limited = bench.walking.clone().with_limits(Limits {
        bytes: 1 << 20,
        ..Limits::default()
    });
    let mounts = bind(&bench.dir("t"));
    let error = limited
        .apply(&bench.store, &layer, &mounts, ApplyOpts::default())
        .await
        .unwrap_err();
    assert!(error.is(Code::ResourceExhausted), "{error}");
    // Unlimited it fits, and takes no space.
    bench.apply(&layer, &mounts).await.unwrap();
    let facts = std::fs::metadata(bench.temp.path().join("t/bomb")).unwrap();
    assert_eq!((facts.size(), facts.blocks()), (8 << 20, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_may_not_be_any_number_of_times_as_long_as_its_blob() {
    let bench = Bench::new();
    let zeroes = vec![0; 8 << 20];
    let tar = archive(&[(entry(Kind::File, "bomb"), &zeroes)]);
    let packed = packed(Compression::Zstd, &tar);
    let times = tar.len().div_ceil(packed.len()) as u64;
    let layer = bench.stored(media_type::OCI_LAYER_ZSTD, packed).await;
    let mounts = bind(&bench.dir("t"));
    for (ratio, bytes, is_enough) in [
        (1, 64 << 20, false),
        (times.div_ceil(10), 64 << 20, true),
        // So little is not suspected.
        (1, 160 << 20, true),
    ] {
        let limited = bench.walking.clone().with_limits(Limits {
            bytes,
            ratio,
            ..Limits::default()
        });
        let opts = ApplyOpts::default();
        match limited.apply(&bench.store, &layer, &mounts, opts).await {
            Ok(_) => assert!(is_enough),
            Err(error) => assert!(!is_enough && error.is(Code::ResourceExhausted), "{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_is_limited_and_holes_are_not_stored() {
    let bench = Bench::new();
    let limits = |stored, ratio| Limits {
        stored,
        ratio,
        ..Limits::default()
    };
    let mut data = vec![0; 8 << 20];
    data[..1 << 20].fill(b'x');
    let tar = archive(&[(entry(Kind::File, "f"), &data)]);
    let layer = bench
        .stored(media_type::OCI_LAYER_GZIP, packed(Compression::Gzip, &tar))
        .await;
    for (stored, is_enough) in [(2 << 20, true), (1 << 19, false)] {
        let limited = bench.walking.clone().with_limits(limits(stored, 1));
        let mounts = bind(&bench.dir(&format!("{stored}")));
        let opts = ApplyOpts::default();
        let done = limited.apply(&bench.store, &layer, &mounts, opts).await;
        match done {
            Ok(_) => assert!(is_enough),
            Err(error) => {
                assert!(!is_enough && error.is(Code::ResourceExhausted), "{error}");
            }
        }
    }
    // The ratio counts for what is too much to be let pass.
    // An image of 32 GiB of zeroes is a few MB.
    assert_eq!(Limits::default().stream_of(1 << 20), 64 << 30);
    assert_eq!(limits(5, 10).data_of(1 << 20), UNSUSPECTED);
    assert_eq!(limits(5, 10).data_of(1 << 30), 10 << 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_of_other_types_go_through_their_programs() {
    let bench = Bench::new();
    let tar = archive(&[(entry(Kind::File, "f"), b"text")]);
    let packed = packed(Compression::Gzip, &tar);
    let hidden: Vec<u8> = packed.iter().map(|b| b ^ 1).collect();
    let script = |name: &str, text: &str| {
        let path = bench.temp.path().join(name);
        script(&path, &format!("#!/bin/bash\n{text}\n"));
        path
    };
    let told = bench.temp.path().join("told");
    let flip = r#"perl -pe 'BEGIN{binmode STDIN;binmode STDOUT} $_ ^= "\1" x length'"#;
    let log = format!(
        "echo $STREAM_PROCESSOR_MEDIATYPE $A $1 $(tr -dc a-z <&3) >>{}",
        told.display()
    );
    let processor = |id: &str, accepts: &str, returns: &str, path| Processor {
        id: id.into(),
        accepts: vec![accepts.into()],
        returns: returns.into(),
        path,
        args: vec!["arg".into()],
        env: vec!["A=env".into()],
    };
    let gzip = media_type::OCI_LAYER_GZIP;
    let walking = bench.walking.clone().with_processors(vec![
        processor(
            "twice",
            "x/twice",
            "x/once",
            script("twice", &format!("{log}; {flip} | {flip}")),
        ),
        processor(
            "once",
            "x/once",
            gzip,
            script("once", &format!("{log} 3</dev/null; {flip}")),
        ),
        processor("bad", "x/bad", gzip, script("bad", "cat; exit 3")),
    ]);
    let payload = Any {
        type_url: "url".into(),
        value: b"value".to_vec(),
    };
    let opts = ApplyOpts {
        payloads: vec![("twice".into(), payload)],
        ..ApplyOpts::default()
    };
    let layer = bench.stored("x/twice", hidden).await;
    let mounts = bind(&bench.dir("t"));
    let done = walking
        .apply(&bench.store, &layer, &mounts, opts)
        .await
        .unwrap();
    assert_eq!(
        (&*done.media_type, done.size),
        (media_type::OCI_LAYER, tar.len() as u64)
    );
    assert_eq!(
        std::fs::read(bench.temp.path().join("t/f")).unwrap(),
        b"text"
    );
    let told = std::fs::read_to_string(&told).unwrap();
    let mut told: Vec<&str> = told.lines().collect();
    told.sort_unstable();
    assert_eq!(told, ["x/once env arg", "x/twice env arg urlvalue"]);
    let layer = bench.stored("x/bad", packed).await;
    let error = walking
        .apply(&bench.store, &layer, &mounts, ApplyOpts::default())
        .await;
    let error = error.unwrap_err();
    assert!(
        error.is(Code::InvalidArgument) && error.to_string().contains("exited with 3"),
        "{error}"
    );
    let error = bench.apply(&layer, &mounts).await.unwrap_err();
    assert!(error.is(Code::NotImplemented), "{error}");
}
