//! The page that leads from what clients rely on to rules is whole, and leads to rules that are there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Services that no row is about: of sandboxes nothing is served.
const UNSERVED: &str = "/containerd.services.sandbox.";

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
            let (name, rule) = rule.rsplit_once("::").expect("a module");
            let head = format!("async fn {rule}(");
            assert!(module(name).contains(&head), "no rule {name}::{rule}");
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

/// What stands between backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}
