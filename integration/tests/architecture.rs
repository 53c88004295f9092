//! The house rules that a compiler does not check: arrows between crates, what the shim may link,
//! where unsafe code lives, how long files are.

#![expect(
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Floor and allowed crates of the same floor, per crate. Arrows point down; floor 3 has no arrow
/// between its crates.
const FLOORS: &[(&str, u8)] = &[
    ("types", 1),
    ("recorder", 1),
    ("sys", 2),
    ("protos", 2),
    ("grpc", 2),
    ("compression", 2),
    ("content", 2),
    ("registry", 2),
    ("events", 2),
    ("snapshotters", 3),
    ("diff", 3),
    ("mounts", 3),
    ("images", 3),
    ("network", 3),
    ("runtime-v2", 3),
    ("shim", 3),
    ("metadata", 4),
    ("client", 4),
    ("transfer", 5),
    ("cri", 6),
    ("daemon", 7),
    ("ctr", 7),
    ("integration", 8),
];

/// Arrows inside a floor that the house allows, with the reason.
const SIDEWAYS: &[(&str, &str)] = &[
    // The stubs are made over the messages.
    ("grpc", "protos"),
    // Durable files are a kernel matter.
    ("content", "sys"),
    ("registry", "sys"),
    // Proxy plugins: the same traits over the wire.
    ("metadata", "client"),
];

/// Crates that may name a wire type (R3).
const WIRE: &[&str] = &[
    "grpc",
    "client",
    "runtime-v2",
    "shim",
    "cri",
    "daemon",
    "integration",
    "cri-api",
];

/// Never in the shim (R4): one of these is a megabyte for each container.
const NOT_IN_SHIM: &[&str] = &[
    "tonic", "hyper", "rustls", "redb", "clap", "h2", "axum", "rusqlite",
];

/// House rule 13: hard limit of lines in a file.
const LONGEST_FILE: usize = 700;

/// The first versions without a weakness that is known, with the advisory of the RustSec database. For the
/// crates that read what strangers send.
const LEAST: &[(&str, [u32; 3], &str)] = &[
    ("bytes", [1, 11, 1], "RUSTSEC-2026-0007"),
    ("h2", [0, 4, 16], "RUSTSEC-2026-0258"),
    ("protobuf", [3, 7, 2], "RUSTSEC-2024-0437"),
    ("ring", [0, 17, 12], "RUSTSEC-2025-0009"),
    ("rustls", [0, 23, 45], "RUSTSEC-2026-0285"),
    ("rustls-webpki", [0, 103, 13], "RUSTSEC-2026-0104"),
    ("tar", [0, 4, 45], "RUSTSEC-2026-0067, RUSTSEC-2026-0068"),
    ("time", [0, 3, 47], "RUSTSEC-2026-0009"),
    ("tokio", [1, 44, 2], "RUSTSEC-2025-0023"),
    ("tonic", [0, 12, 3], "RUSTSEC-2024-0376"),
    ("tracing-subscriber", [0, 3, 20], "RUSTSEC-2025-0055"),
];

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace")
        .to_owned()
}

fn metadata() -> Value {
    let out = Command::new(env!("CARGO"))
        // Without other people's crates: of those that only other platforms need nothing is here.
        .args(["metadata", "--format-version", "1", "--offline", "--locked"])
        .arg("--no-deps")
        .current_dir(top())
        .output()
        .expect("run cargo metadata");
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    serde_json::from_slice(&out.stdout).expect("cargo metadata prints JSON")
}

/// What cargo says of the workspace's own crates.
fn members(meta: &Value) -> Vec<&Value> {
    let ids: BTreeSet<&str> = meta["workspace_members"]
        .as_array()
        .expect("members")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let packages = meta["packages"].as_array().expect("packages").iter();
    packages
        .filter(|package| ids.contains(package["id"].as_str().expect("id")))
        .collect()
}

/// Normal dependencies of the workspace's crates on each other.
fn edges(meta: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let floors: BTreeMap<_, _> = FLOORS.iter().copied().collect();
    let mut all = BTreeMap::new();
    for package in members(meta) {
        let name = package["name"].as_str().expect("name");
        assert!(
            floors.contains_key(name),
            "crate {name} has no floor: give it one here"
        );
        let to = package["dependencies"]
            .as_array()
            .expect("dependencies")
            .iter()
            .filter(|d| d["kind"].is_null() && d["source"].is_null())
            .map(|d| d["name"].as_str().expect("name").to_owned())
            .collect();
        all.insert(name.to_owned(), to);
    }
    all
}

#[test]
fn arrows_only_point_down() {
    let floors: BTreeMap<_, _> = FLOORS.iter().copied().collect();
    let mut wrong = Vec::new();
    for (from, to) in edges(&metadata()) {
        for to in to {
            let down = floors[to.as_str()] < floors[from.as_str()];
            let allowed = SIDEWAYS.contains(&(from.as_str(), to.as_str()));
            if !down && !allowed {
                wrong.push(format!("{from} -> {to}"));
            }
            let wire = matches!(to.as_str(), "protos" | "grpc" | "cri-api");
            if wire && !WIRE.contains(&from.as_str()) {
                wrong.push(format!("{from} -> {to}: may not name wire types (R3)"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_shim_links_nothing_heavy() {
    let out = Command::new(env!("CARGO"))
        .args([
            "tree",
            "-p",
            "shim",
            "-e",
            "normal",
            "--prefix",
            "none",
            "--offline",
            "--locked",
        ])
        .current_dir(top())
        .output()
        .expect("run cargo tree");
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let text = String::from_utf8(out.stdout).expect("text");
    let linked: BTreeSet<&str> = text.lines().filter_map(|l| l.split(' ').next()).collect();
    assert!(linked.contains("ttrpc"), "cargo tree printed: {text}");
    let heavy: Vec<_> = NOT_IN_SHIM
        .iter()
        .filter(|name| linked.contains(**name))
        .collect();
    assert!(heavy.is_empty(), "the shim links {heavy:?}");
}

/// Names and versions of a lock file.
fn locked(text: &str) -> Vec<(String, [u32; 3])> {
    let value = |line: &str| line.split('"').nth(1).map(str::to_owned);
    let number = |version: &str| -> Option<[u32; 3]> {
        let core = version.split(['-', '+']).next()?;
        let parts: Option<Vec<u32>> = core.split('.').map(|part| part.parse().ok()).collect();
        parts?.try_into().ok()
    };
    let blocks = text.split("[[package]]").skip(1);
    let read = |block: &str| {
        let field = |key: &str| value(block.lines().find(|line| line.starts_with(key))?);
        Some((field("name = ")?, number(&field("version = ")?)?))
    };
    blocks.map(|block| read(block).expect(block)).collect()
}

/// What of it is older than it may be.
fn weak(locked: &[(String, [u32; 3])]) -> Vec<String> {
    let mut weak = Vec::new();
    for (name, least, advisory) in LEAST {
        let found: Vec<_> = locked.iter().filter(|(locked, _)| locked == name).collect();
        if found.is_empty() {
            weak.push(format!(
                "{name} is not used any more: take it out of the table"
            ));
        }
        let old = found.iter().filter(|(_, version)| version < least);
        weak.extend(old.map(|(_, version)| format!("{name} {version:?}: {advisory}")));
    }
    weak
}

#[test]
fn no_crate_is_older_than_the_repair_of_a_known_weakness() {
    let text = fs::read_to_string(top().join("Cargo.lock")).expect("read the lock file");
    let all = locked(&text);
    assert_eq!(weak(&all), [""; 0]);
    // Each line of the table is looked at.
    for (name, least, advisory) in LEAST {
        let mut older = all.clone();
        let of = older.iter_mut().filter(|(locked, _)| locked == name);
        of.for_each(|(_, version)| *version = [least[0], least[1], least[2] - 1]);
        let told = weak(&older);
        assert!(
            told.iter().any(|text| text.ends_with(advisory)),
            "{name}: {told:?}"
        );
    }
}

/// Every source file that is kept in the tree, with its text.
fn sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut stack = vec![top()];
    while let Some(dir) = stack.pop() {
        for entry in fs::read_dir(&dir).expect("read a directory").flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            if path.is_dir() {
                let skip = ["target", "out", ".git"].iter().any(|s| name == *s);
                if !skip {
                    stack.push(path);
                }
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).expect("read a source file");
                found.push((path, text));
            }
        }
    }
    assert!(
        found.len() > 50,
        "the walk found {} files only",
        found.len()
    );
    found
}

#[test]
fn unsafe_code_lives_in_sys() {
    let word = ["un", "safe"].concat();
    let marks = [
        format!("{word} {{"),
        format!("{word} fn"),
        format!("{word} impl"),
        format!("allow({word}_code"),
        format!("expect({word}_code"),
    ];
    let outside: Vec<_> = sources()
        .into_iter()
        .filter(|(path, _)| !path.starts_with(top().join("sys")))
        .filter(|(_, text)| {
            let code = |line: &&str| !line.trim_start().starts_with("//");
            text.lines()
                .filter(code)
                .any(|l| marks.iter().any(|m| l.contains(m.as_str())))
        })
        .map(|(path, _)| path)
        .collect();
    assert!(outside.is_empty(), "{outside:?}");
}

#[test]
fn files_stay_short() {
    let long: Vec<_> = sources()
        .into_iter()
        .map(|(path, text)| (text.lines().count(), path))
        .filter(|(lines, _)| *lines > LONGEST_FILE)
        .collect();
    assert!(long.is_empty(), "split by concern: {long:?}");
}

#[test]
fn every_file_says_what_it_is() {
    let silent: Vec<_> = sources()
        .into_iter()
        .filter(|(_, text)| !text.starts_with("//!"))
        .map(|(path, _)| path)
        .collect();
    assert!(silent.is_empty(), "no `//!` at the top: {silent:?}");
}

#[test]
fn no_feature_but_testsuite_and_failpoints() {
    let meta = metadata();
    for package in members(&meta) {
        for feature in package["features"].as_object().expect("features").keys() {
            assert!(
                ["testsuite", "failpoints"].contains(&feature.as_str()),
                "{}: feature {feature} (R7)",
                package["name"]
            );
        }
    }
}
