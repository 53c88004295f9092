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

/// Normal dependencies of the workspace's crates on each other.
fn edges(meta: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let floors: BTreeMap<_, _> = FLOORS.iter().copied().collect();
    let mut all = BTreeMap::new();
    let members: BTreeSet<&str> = meta["workspace_members"]
        .as_array()
        .expect("members")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    for package in meta["packages"].as_array().expect("packages") {
        if !members.contains(package["id"].as_str().expect("id")) {
            continue;
        }
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
    let members: BTreeSet<&str> = meta["workspace_members"]
        .as_array()
        .expect("members")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    for package in meta["packages"].as_array().expect("packages") {
        if !members.contains(package["id"].as_str().expect("id")) {
            continue;
        }
        for feature in package["features"].as_object().expect("features").keys() {
            assert!(
                ["testsuite", "failpoints"].contains(&feature.as_str()),
                "{}: feature {feature} (R7)",
                package["name"]
            );
        }
    }
}
