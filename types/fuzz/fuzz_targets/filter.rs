//! Any text as a list of filters, one a line, and as a value in one.
//!
//! Invariant under test: no panic and bounded memory; a refusal blames the request; a list matches what
//! one of its filters does, whatever it is asked about; a quoted value is the text that was quoted.

#![no_main]

use std::sync::OnceLock;
use std::time::SystemTime;

use libfuzzer_sys::fuzz_target;
use types::{
    Code, Container, Descriptor, Filter, Filterable, Image, IngestStatus, Labels, Lease, Runtime,
    SnapshotInfo, SnapshotKind,
};

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

type Things = Vec<Box<dyn Filterable + Send + Sync>>;

/// One of each kind that services let be filtered.
fn things() -> Things {
    let now = SystemTime::UNIX_EPOCH;
    let labels = || Labels::new().with("a.b/c", "x,y").with("k", "");
    let image = Image {
        name: "docker.io/library/alpine:3".into(),
        labels: labels(),
        target: Descriptor {
            media_type: "m".into(),
            digest: DIGEST.parse().expect("a digest"),
            size: 1,
            annotations: labels(),
        },
        created_at: now,
        updated_at: now,
    };
    let container = Container {
        id: "c".parse().expect("an id"),
        labels: labels(),
        image: String::new(),
        runtime: Runtime::default(),
        spec: None,
        snapshotter: String::new(),
        snapshot_key: String::new(),
        extensions: Default::default(),
        sandbox: String::new(),
        created_at: now,
        updated_at: now,
    };
    let snapshot = SnapshotInfo {
        kind: SnapshotKind::Active,
        name: "k".parse().expect("a key"),
        parent: None,
        labels: labels(),
        created_at: now,
        updated_at: now,
    };
    let ingest = IngestStatus {
        reference: "r".parse().expect("a reference"),
        offset: 0,
        total: 0,
        expected: None,
        started_at: now,
        updated_at: now,
    };
    let lease = Lease {
        id: "l".parse().expect("an id"),
        labels: labels(),
        created_at: now,
    };
    vec![
        Box::new(image),
        Box::new(container),
        Box::new(snapshot),
        Box::new(ingest),
        Box::new(lease),
    ]
}

static THINGS: OnceLock<Things> = OnceLock::new();

fuzz_target!(|text: &str| {
    let texts: Vec<&str> = text.lines().collect();
    match Filter::parse(&texts) {
        Ok(filter) => {
            assert!(filter.texts().iter().eq(&texts));
            let single: Vec<Filter> = texts
                .iter()
                .map(|text| Filter::parse(&[text]).expect("parses alone"))
                .collect();
            for thing in THINGS.get_or_init(things) {
                let any = single.is_empty() || single.iter().any(|one| one.matches(thing.as_ref()));
                assert_eq!(filter.matches(thing.as_ref()), any);
            }
        }
        Err(error) => assert!(error.is(Code::InvalidArgument), "{error}"),
    }
    // Quoted, the text is a value and a part of a path.
    let quoted = text
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n");
    let filter = format!("labels.\"{quoted}\"==\"{quoted}\"");
    if filter.len() <= 64 * 1024 {
        let filter = Filter::parse(&[filter]).expect("a quoted text");
        assert!(filter.matches(&Only(text)));
    }
});

/// A thing of one label, whose name and value are the same.
struct Only<'a>(&'a str);

impl Filterable for Only<'_> {
    fn field(&self, path: &[&str]) -> Option<String> {
        (path == ["labels", self.0]).then(|| self.0.to_owned())
    }
}
