//! Thousands of execs against one shim: every code right, then the shim is as it was.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use integration::shim::{Driver, Io, Shim, Task, Usage};
use integration::{Oci, until};

/// How many where `EXECS` says nothing: as many as fit into a story.
const EXECS: u32 = 2_000;
const AT_A_TIME: u32 = 8;
/// The storm comes in gusts, to see between them what it costs.
const GUSTS: u32 = 4;
/// What the shim may keep more than it had when it was new, KiB.
const KEPT: u64 = 64;

fn code(n: u32) -> u32 {
    n % 251
}

fn gust(task: &Task, execs: std::ops::Range<u32>) {
    let next = AtomicU32::new(execs.start);
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= execs.end {
                        return;
                    }
                    let script = format!("exit {}", code(n));
                    let got = task.run(&format!("e{n}"), &script, &Io::null());
                    assert_eq!(got.expect("exec"), code(n), "e{n}");
                }
            });
        }
    });
}

/// What the shim uses once its descriptors are down to `descriptors` again.
fn settled(shim: &Shim, descriptors: usize) -> Usage {
    until("its descriptors are closed", || {
        shim.usage().descriptors <= descriptors
    });
    shim.usage()
}

#[test]
fn the_shim_is_after_a_storm_what_it_was_before() {
    let count = std::env::var("EXECS").ok();
    let count = count.map_or(EXECS, |text| text.parse().expect("EXECS is a number"));
    let driver = Driver::with("storm", Oci::Crun);
    let task = driver.run("c", "sleep 100000");
    let shim = task.shim();
    let fresh = shim.usage();
    let mut report = format!("fresh {fresh:?}\n");
    let begin = Instant::now();
    for n in 0..GUSTS {
        gust(&task, n * count / GUSTS..(n + 1) * count / GUSTS);
        let usage = settled(&shim, fresh.descriptors);
        let done = (n + 1) * count / GUSTS;
        report += &format!("{done} after {:.1?}: {usage:?}\n", begin.elapsed());
    }
    println!("{report}");
    until("it gives back what it does not need", || {
        let usage = shim.usage();
        usage.anonymous <= fresh.anonymous + KEPT && usage.threads == 1
    });
    println!("in the end {:?}", shim.usage());
    assert_eq!(task.pids().expect("pids").len(), 1);
    assert_eq!(task.end(), 137);
    driver.until_event("c", "/tasks/delete");
    let exits = driver.events_of("c").into_iter().filter_map(|e| e.exit);
    let mut told: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for exit in exits {
        told.entry(exit.id).or_default().push(exit.exit_status);
    }
    assert_eq!(told.remove("c"), Some(vec![137]));
    let want = (0..count).map(|n| (format!("e{n}"), vec![code(n)]));
    assert_eq!(told, want.collect(), "one true exit each");
    driver.finish();
}
