//! Two hundred containers up, and a thousand: memory, idle CPU, restarts, and whether it grows as they do.

use std::fs;

use crate::Bench;
use crate::bars::Table;
use crate::crowd::{self, Row};

/// Measures both, one after the other: together they would not fit into the limits of processes.
pub(crate) fn measure(bench: &mut Bench, table: &mut Table) {
    let (before, ours) = crowd::of(&bench.runtime, &mut bench.ours);
    let (debian_before, debian) = crowd::of(&bench.runtime, &mut bench.debian);
    let dir = integration::bin_dir().join("../bench");
    fs::create_dir_all(&dir).expect("make a directory");
    let rows = crowd::csv(&[("ours", &ours), ("debian", &debian)]);
    fs::write(dir.join("density.csv"), rows).expect("write the rows");
    // The bars of issues 3 and 7 are for two hundred, issue 9's for a thousand.
    let growth = |row: &Row, before: f64| (row.daemon_rss - before) / row.containers as f64;
    for (at, is_large) in [(1, false), (9, true)] {
        let (ours, debian) = (&ours[at], &debian[at]);
        let mut add = |what: &str, pick: fn(&Row) -> f64, limit: Option<f64>| {
            let name = format!("{} up: {what}", ours.containers);
            let line = table.add(name, pick(ours)).debian(pick(debian));
            if let Some(limit) = limit {
                line.at_most(limit);
            }
        };
        add("shim PSS, KiB", |r| r.pss, Some(350.0));
        add("shim unique memory, KiB", |r| r.unique, Some(250.0));
        add("shim RSS, KiB", |r| r.rss, Some(2560.0));
        add("shim threads (the most)", |r| r.shim_threads, Some(1.0));
        add("shim and daemon PSS each, KiB", |r| r.each, Some(512.0));
        let idle = if is_large { 1.0 } else { 0.2 };
        add("idle CPU of all shims, ms per s", |r| r.idle, Some(idle));
        add(
            "idle CPU of the daemon, ms per s",
            |r| r.daemon_idle,
            Some(1.0),
        );
        add("daemon RSS, KiB", |r| r.daemon_rss, None);
        add("last hundred started, s", |r| r.started, None);
        add("last hundred removed, s", |r| r.removed, None);
        add("list of all, ms", |r| r.list, None);
        add("exec, ms", |r| r.exec, None);
        let restart: fn(&Row) -> f64 = |r| r.restart.unwrap_or(f64::NAN);
        let name = format!("{} up: restart to complete list, ms", ours.containers);
        let line = table.add(name, restart(ours)).debian(restart(debian));
        if !is_large {
            line.of_debian_at_most(0.4);
        }
        let name = format!("{} up: daemon RSS growth each, KiB", ours.containers);
        let line = table.add(name, growth(ours, before));
        line.debian(growth(debian, debian_before)).at_most(25.0);
    }
    linear("start", &ours, &debian, |r| r.started, table);
    linear("removal", &ours, &debian, |r| r.removed, table);
}

/// The last hundred may cost little more than the second.
fn linear(what: &str, ours: &[Row], debian: &[Row], pick: fn(&Row) -> f64, table: &mut Table) {
    let ratio = |rows: &[Row]| pick(&rows[9]) / pick(&rows[1]);
    let line = table.add(
        format!("{what} of the tenth hundred by the second"),
        ratio(ours),
    );
    line.debian(ratio(debian)).at_most(1.5);
}
