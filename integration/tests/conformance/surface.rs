//! The page that leads from what clients rely on to rules is whole, and leads to rules that are there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Services that no row is about: of sandboxes nothing is served.
const UNSERVED: &str = "/containerd.services.sandbox.";

/// The heading of the page's second part.
const TRAPS: &str = "## Traps";

/// The traps of the services that keep records.
const OF_RECORDS: [u8; 17] = [1, 2, 5, 6, 7, 8, 9, 10, 11, 12, 18, 19, 21, 22, 26, 27, 30];

fn text(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    fs::read_to_string(root.join(path)).expect(path)
}

/// What a module of rules says, by the name of its module.
fn module(name: &str) -> String {
    let path = name.replace("::", "/");
    text(&format!("integration/tests/conformance/{path}.rs"))
}

/// Methods of the wire contract, as `Service.Method`.
fn methods() -> BTreeSet<String> {
    let contract = text("protos/testdata/contract.txt");
    let served = contract
        .lines()
        .filter_map(|line| line.strip_prefix("rpc "))
        .filter(|line| line.starts_with("/containerd.services."))
        .filter(|line| !line.starts_with(UNSERVED));
    let name = |line: &str| {
        let (path, _) = line.split_once(": ")?;
        Some(path.rsplit_once('.')?.1.replace('/', "."))
    };
    served.filter_map(name).collect()
}

#[test]
fn every_method_has_a_row_and_every_row_its_rules() {
    let page = text("docs/surface.md");
    let (page, _) = page.split_once(TRAPS).expect("traps are behind it");
    let rows = page.lines().filter(|line| line.starts_with("| "));
    let rows = rows.filter(|line| *line != "| What | Rules |");
    let mut told = BTreeSet::new();
    for row in rows {
        let cells: Vec<&str> = row.split(" | ").collect();
        let [what, rules] = cells[..] else {
            panic!("two cells: {row}")
        };
        told.extend(quoted(what).map(str::to_owned));
        let mut any = false;
        for rule in quoted(rules).filter(|word| word.contains("::")) {
            is_there(rule);
            any = true;
        }
        assert!(any, "no rule: {row}");
    }
    let methods = methods();
    assert!(methods.len() > 60, "{methods:?}");
    let missing: Vec<_> = methods.difference(&told).collect();
    assert!(missing.is_empty(), "no row: {missing:?}");
    let unknown: Vec<_> = told.difference(&methods).collect();
    assert!(unknown.is_empty(), "no method: {unknown:?}");
}

/// There is such a rule.
fn is_there(rule: &str) {
    let (name, rule) = rule.rsplit_once("::").expect("a module");
    let head = format!("async fn {rule}(");
    assert!(module(name).contains(&head), "no rule {name}::{rule}");
}

#[test]
fn every_trap_has_a_row_and_every_row_its_tests() {
    let page = text("docs/surface.md");
    let (_, page) = page.split_once(TRAPS).expect("traps");
    let rows = page.lines().filter(|line| line.starts_with("| "));
    let mut told = Vec::new();
    for row in rows.skip(1) {
        let cells: Vec<&str> = row.trim_matches(['|', ' ']).split(" | ").collect();
        let [number, _, tests] = cells[..] else {
            panic!("three cells: {row}")
        };
        told.push(number.parse::<u8>().expect("a number"));
        assert!(quoted(tests).next().is_some(), "no test: {row}");
        for test in quoted(tests) {
            match test.split_once(".rs:") {
                Some((file, test)) => {
                    let head = format!("fn {test}(");
                    assert!(
                        text(&format!("{file}.rs")).contains(&head),
                        "no test {test}"
                    );
                }
                None => is_there(test),
            }
        }
    }
    assert_eq!(told, OF_RECORDS);
}

/// What stands between backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}
