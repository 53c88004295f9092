//! A program in a running container: time above the bare runtime's, rate.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crate::bars::Table;
use crate::calls::{Lap, NAMESPACE};
use crate::life::at_a_time;
use crate::{Bench, life, median, raw, spec, undisturbed};

const ROUNDS: usize = 100;
const WARM: usize = 3;
/// Execs at a time, in one pass, and passes.
const WIDTH: usize = 8;
const PASS: usize = 96;
const PASSES: usize = 3;
/// The container, in each subject.
const ID: &str = "execs";

/// Execs of `/bin/true`; the floor runs them in our container.
pub(crate) fn measure(bench: &Bench, table: &mut Table) {
    let crun = integration::need("crun");
    let peers = [&bench.ours, &bench.debian];
    for peer in peers {
        bench.runtime.block_on(peer.calls.sleeper(&crun, ID));
    }
    let process = bench.dir.join("process.json");
    fs::write(&process, spec::process(&["/bin/true"]).to_string()).expect("write the process");
    one_at_a_time(bench, &crun, &process, table);
    many_at_a_time(bench, &crun, &process, table);
    for peer in peers {
        bench.runtime.block_on(peer.calls.remove(ID));
    }
}

/// The bare runtime, in our container.
fn bare(bench: &Bench, crun: &Path, process: &Path) {
    let root = bench.ours.calls.root.join(NAMESPACE);
    let process = process.to_string_lossy();
    raw::run(crun, &root, &["exec", "--process", &process, ID]);
}

fn one_at_a_time(bench: &Bench, crun: &Path, process: &Path, table: &mut Table) {
    let mut all: [Vec<f64>; 3] = Default::default();
    let mut laps: [Vec<Vec<Lap>>; 2] = Default::default();
    for n in 0..ROUNDS + WARM {
        for step in 0..3 {
            let which = (n + step) % 3;
            let exec = format!("e{n}");
            let begin = Instant::now();
            match which {
                2 => bare(bench, crun, process),
                _ => {
                    let peer = if which == 0 {
                        &bench.ours
                    } else {
                        &bench.debian
                    };
                    let run = peer.calls.exec(ID, &exec, &["/bin/true"]);
                    laps[which].push(bench.runtime.block_on(run));
                }
            }
            if n >= WARM {
                all[which].push(begin.elapsed().as_secs_f64() * 1e3);
            }
        }
    }
    life::calls(&laps[0], &laps[1]);
    let [ours, debian, floor] = all.clone().map(median);
    let line = table.add("exec with crun, add .. deleted, ms", ours);
    line.debian(debian).floor(floor).above_floor_at_most(1.5);
    let [ours, debian, floor] = all.map(undisturbed);
    let line = table.add("  undisturbed (first decile), ms", ours);
    line.debian(debian).floor(floor);
}

fn many_at_a_time(bench: &Bench, crun: &Path, process: &Path, table: &mut Table) {
    let mut rates: [Vec<f64>; 2] = Default::default();
    for pass in 0..PASSES {
        for step in 0..2 {
            let which = (pass + step) % 2;
            let peer = [&bench.ours, &bench.debian][which];
            let begin = Instant::now();
            bench.runtime.block_on(at_a_time(WIDTH, PASS, |n| {
                let (calls, exec) = (peer.calls.clone(), format!("p{pass}-{n}"));
                async move { drop(calls.exec(ID, &exec, &["/bin/true"]).await) }
            }));
            rates[which].push(PASS as f64 / begin.elapsed().as_secs_f64());
        }
    }
    let begin = Instant::now();
    let root: Arc<Path> = bench.ours.calls.root.join(NAMESPACE).into();
    bench.runtime.block_on(at_a_time(WIDTH, PASS, |_| {
        let (root, crun, process) = (Arc::clone(&root), crun.to_owned(), process.to_owned());
        let run = tokio::task::spawn_blocking(move || {
            let process = process.to_string_lossy();
            raw::run(&crun, &root, &["exec", "--process", &process, ID]);
        });
        async move { run.await.expect("exec") }
    }));
    let floor = PASS as f64 / begin.elapsed().as_secs_f64();
    let [ours, debian] = rates.map(median);
    let line = table.add(format!("exec with crun, per s, {WIDTH} at a time"), ours);
    line.debian(debian).floor(floor);
}
