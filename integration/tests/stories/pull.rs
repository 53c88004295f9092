//! Pulls from Debian's registry: whoever pulls what, by which name, it is the same image afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use integration::{Host, Oci, Program, Registry, Whose, archive, need};

use crate::layout;
use crate::push::inspect;

/// What a namespace has of an image.
#[derive(Debug, PartialEq, Eq)]
struct Got {
    /// Type, digest, size, platforms and labels.
    image: Vec<String>,
    /// Labels of each blob.
    content: BTreeMap<String, BTreeSet<String>>,
    /// Names, parents and kinds.
    snapshots: BTreeSet<String>,
}

/// Who pulls from which daemon.
struct Puller {
    host: Host,
    is_debian_s: bool,
    flags: &'static [&'static str],
}

impl Puller {
    fn all() -> [Self; 4] {
        let ours = |name: &str, is_debian_s: bool, flags| Self {
            host: Host::new(name),
            is_debian_s,
            flags,
        };
        [
            ours("pull-transfer", false, &[][..]),
            ours("pull-local", false, &["--local"]),
            ours("pull-go", true, &[]),
            Self {
                host: Host::mixed("pull-debian", Oci::Runc, Whose::Debian, Whose::Debian),
                is_debian_s: true,
                flags: &[],
            },
        ]
    }

    fn ctr(&self) -> Program {
        match self.is_debian_s {
            true => self.host.go_ctr_program(),
            false => self.host.ctr_program(),
        }
    }

    fn told(&self, args: &[&str]) -> String {
        self.ctr().args(args).run().ok()
    }

    /// Pulls, and looks at what is there then. Nobody holds anything any more.
    fn pull(&self, more: &[&str], reference: &str) -> Got {
        let pull = self.ctr().args(["images", "pull", "--plain-http"]);
        drop(
            pull.args(self.flags)
                .args(more)
                .args([reference])
                .run()
                .ok(),
        );
        assert_eq!(self.told(&["leases", "ls", "-q"]), "");
        let words = |line: &str| {
            line.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let images = self.told(&["images", "ls"]);
        let row = images.lines().find(|line| line.starts_with(reference));
        let content = self.told(&["content", "ls"]);
        let blob = |line: &str| {
            let words = words(line);
            let labels = words.iter().flat_map(|word| word.split(','));
            let labels = labels.filter(|word| word.contains('=')).map(str::to_owned);
            (words[0].clone(), labels.collect())
        };
        let snapshots = self.told(&["snapshots", "ls"]);
        Got {
            image: words(row.expect("the image"))[1..].to_vec(),
            content: content.lines().skip(1).map(blob).collect(),
            snapshots: snapshots
                .lines()
                .skip(1)
                .map(|l| words(l).join(" "))
                .collect(),
        }
    }

    fn remove(&self, reference: &str) {
        self.told(&["images", "rm", "--sync", reference]);
        assert_eq!(self.told(&["content", "ls", "-q"]), "");
        assert_eq!(self.told(&["snapshots", "ls"]).lines().count(), 1);
    }
}

/// Layers without compression: the test image's, and two small ones.
fn layers(work: &Path) -> Vec<Vec<u8>> {
    let script = format!(
        "set -e; mkdir -p {work}/image; cd {work}/image; tar -xf {}
         for blob in blobs/sha256/*; do gzip -dc $blob >../base.tar 2>/dev/null && exit 0; done; exit 1",
        archive().display(),
        work = work.display()
    );
    drop(Program::new("bash").args(["-c", &script]).run().ok());
    let base = std::fs::read(work.join("base.tar")).expect("read the layer");
    let file = |name: &str, n| layout::archive(work, &[(name, layout::noise(300_000, n))]);
    vec![base, file("first", 1), file("second", 2)]
}

/// A layout of an image for this machine and one for another; how they are called.
fn layout_for_two(work: &Path) -> (PathBuf, [String; 2]) {
    let layout = work.join("two");
    let mut entries = Vec::new();
    let host = types::Platform::host().architecture;
    for (architecture, seed) in [(host.as_str(), 3), ("s390x", 4)] {
        let mut layers = layers(work);
        layers.push(layout::archive(
            work,
            &[("third", layout::noise(1000, seed))],
        ));
        layout::of(&layout, "{}", architecture, layers);
        let index = std::fs::read_to_string(layout.join("index.json")).expect("read");
        let index: serde_json::Value = serde_json::from_str(&index).expect("JSON");
        let mut entry = index["manifests"][0].clone();
        entry["platform"] = serde_json::json!({"os": "linux", "architecture": architecture});
        entry
            .as_object_mut()
            .expect("an entry")
            .remove("annotations");
        entries.push(entry);
    }
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": media_type, "manifests": entries
    });
    let index = index.to_string();
    let digest = content::Hasher::digest(index.as_bytes()).expect("digest");
    std::fs::write(layout.join("blobs/sha256").join(digest.hex()), &index).expect("write");
    let top = serde_json::json!({"schemaVersion": 2, "manifests": [{
        "mediaType": media_type, "digest": digest.as_str(), "size": index.len(),
        "annotations": {"org.opencontainers.image.ref.name": "latest"},
    }]});
    std::fs::write(layout.join("index.json"), top.to_string()).expect("write");
    (layout, [format!("linux/{host}"), "linux/s390x".to_owned()])
}

/// Has skopeo push a layout with this compression.
fn push(layout: &Path, to: &str, compression: &str) {
    let flags = [
        "--insecure-policy",
        "copy",
        "--all",
        "-q",
        "--dest-tls-verify=false",
    ];
    let copy = Program::new(need("skopeo")).args(flags);
    let copy = copy.args(["--dest-compress-format", compression]);
    let from = format!("oci:{}:latest", layout.display());
    drop(copy.args([from, format!("docker://{to}")]).run().ok());
}

#[test]
fn whoever_pulls_an_image_has_the_same_and_it_runs() {
    let registry = Registry::start();
    let work = tempfile::tempdir().expect("directory");
    let layout = work.path().join("layout");
    let architecture = types::Platform::host().architecture;
    layout::of(&layout, "{}", &architecture, layers(work.path()));
    let pullers = Puller::all();
    for compression in ["gzip", "zstd"] {
        let by_tag = format!("{}/many/{compression}:1", registry.host());
        push(&layout, &by_tag, compression);
        let digest = inspect(&format!("docker://{by_tag}"));
        let by_digest = format!("{}/many/{compression}@{digest}", registry.host());
        for reference in [&by_tag, &by_digest] {
            let mut all = Vec::new();
            for puller in &pullers {
                all.push(puller.pull(&[], reference));
                let run = [
                    "run",
                    "--rm",
                    reference,
                    "x",
                    "sh",
                    "-c",
                    "ls /first /second",
                ];
                assert_eq!(puller.told(&run), "/first\n/second\n");
                puller.remove(reference);
            }
            let got = &all[0];
            assert_eq!(got.image[1], digest);
            // The manifest, the config and three layers.
            assert_eq!((got.content.len(), got.snapshots.len()), (5, 3), "{got:?}");
            let labels = got.content.values().flatten();
            let sources = labels.filter(|label| label.contains("distribution.source"));
            assert_eq!(sources.count(), 5, "{got:?}");
            for other in &all[1..] {
                assert_eq!(got, other, "{compression} {reference}");
            }
        }
    }
    for puller in pullers {
        puller.host.finish();
    }
}

#[test]
fn whoever_pulls_for_a_platform_has_the_same() {
    let registry = Registry::start();
    let work = tempfile::tempdir().expect("directory");
    let (layout, platforms) = layout_for_two(work.path());
    let reference = format!("{}/many/two:1", registry.host());
    push(&layout, &reference, "gzip");
    let pullers = Puller::all();
    for platform in &platforms {
        let mut all = Vec::new();
        for puller in &pullers {
            // Debian's leaves out what the platform does not need, ours only when it is told to.
            let less = (!puller.is_debian_s).then_some("--skip-metadata");
            let flags: Vec<&str> = less.into_iter().chain(["--platform", platform]).collect();
            all.push(puller.pull(&flags, &reference));
            puller.remove(&reference);
        }
        let got = &all[0];
        // The index above them.
        assert_eq!((got.content.len(), got.snapshots.len()), (7, 4), "{got:?}");
        for other in &all[1..] {
            assert_eq!(got, other, "{platform}");
        }
    }
    for puller in pullers {
        puller.host.finish();
    }
}

#[test]
fn a_pulled_image_runs() {
    let host = Host::new("image-pull");
    let registry = Registry::start();
    let reference = registry.reference();
    drop(
        host.ctr(["images", "pull", "--plain-http", &reference])
            .ok(),
    );
    let row = host.ctr(["images", "ls", "-q"]).ok();
    assert_eq!(row.trim(), reference);
    assert_eq!(
        host.ctr(["run", "--rm", &reference, "p", "echo", "pulled"])
            .ok(),
        "pulled\n"
    );
    // Again: nothing to fetch, no error.
    drop(
        host.ctr(["images", "pull", "--plain-http", &reference])
            .ok(),
    );
    let missing = reference.replace(":1", ":2");
    let missing = missing.replacen("127.0.0.2", "127.0.0.1", 1);
    let error = host.ctr(["images", "pull", "--plain-http", &missing]).err();
    assert!(error.contains("not found"), "{error}");
    host.finish();
}
