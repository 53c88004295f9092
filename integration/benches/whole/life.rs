//! Life cycle of `/bin/true`, one at a time and many at a time: time, CPU, rate.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::bars::Table;
use crate::calls::Lap;
use crate::raw::Adopting;
use crate::{Bench, median, undisturbed};

/// Rounds, one at a time; two more warm the caches.
const ROUNDS: usize = 40;
const WARM: usize = 2;
/// Containers at a time, in one pass, and passes.
const WIDTH: usize = 16;
const PASS: usize = 64;
const PASSES: usize = 3;
/// What daemons do after the last answer is theirs, too.
const SETTLE: Duration = Duration::from_secs(1);

/// When a life cycle's stages were over, from its beginning.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    pub(crate) running: Duration,
    pub(crate) whole: Duration,
    /// What each call took, in ms, in order.
    pub(crate) laps: Vec<Lap>,
}

/// Life cycles round by round on each subject, in changing order.
pub(crate) fn one_at_a_time(bench: &Bench, name: &str, table: &mut Table) {
    let binary = integration::need(name);
    let adopting = Adopting::start();
    for n in 0..WARM {
        for which in 0..3 {
            once(bench, which, &binary, &format!("{name}-warm-{n}"));
        }
    }
    std::thread::sleep(SETTLE);
    let (ours, debian) = (bench.ours.group.cpu_ms(), bench.debian.group.cpu_ms());
    let mut all: [Vec<Life>; 3] = Default::default();
    let mut raw_cpu = 0.0;
    for n in 0..ROUNDS {
        for step in 0..3 {
            let which = (n + step) % 3;
            // The bench is in the same group as the bare runtime: only its own turns count.
            let before = bench.raw.group.cpu_ms();
            all[which].push(once(bench, which, &binary, &format!("{name}-{n}")));
            if which == 2 {
                raw_cpu += bench.raw.group.cpu_ms() - before;
            }
        }
    }
    drop(adopting);
    std::thread::sleep(SETTLE);
    let cpu = [
        bench.ours.group.cpu_ms() - ours,
        bench.debian.group.cpu_ms() - debian,
        raw_cpu,
    ];
    report(name, &all, cpu.map(|ms| ms / ROUNDS as f64), table);
    let laps = |lives: &[Life]| {
        lives
            .iter()
            .map(|life| life.laps.clone())
            .collect::<Vec<_>>()
    };
    calls(&laps(&all[0]), &laps(&all[1]));
}

fn once(bench: &Bench, which: usize, binary: &Path, id: &str) -> Life {
    match which {
        0 => bench.runtime.block_on(bench.ours.calls.life(binary, id)),
        1 => bench.runtime.block_on(bench.debian.calls.life(binary, id)),
        _ => bench.raw.life(binary, id),
    }
}

fn report(name: &str, all: &[Vec<Life>; 3], cpu: [f64; 3], table: &mut Table) {
    let ms = |pick: fn(&Life) -> Duration| -> [Vec<f64>; 3] {
        [0, 1, 2].map(|n| all[n].iter().map(|l| pick(l).as_secs_f64() * 1e3).collect())
    };
    let [ours, debian, raw] = ms(|life| life.running).map(median);
    let line = table.add(format!("{name}: prepare .. running, ms"), ours);
    line.debian(debian).floor(raw);
    let whole = ms(|life| life.whole);
    let [ours, debian, raw] = whole.clone().map(median);
    let line = table.add(format!("{name}: prepare .. deleted, ms"), ours);
    let line = line.debian(debian).floor(raw);
    // The bars are for the runtime that leaves room for them.
    let judged = name == "crun";
    if judged {
        line.above_floor_at_most(14.0);
    }
    let [ours, debian, raw] = whole.map(undisturbed);
    let line = table.add("  undisturbed (first decile), ms", ours);
    line.debian(debian).floor(raw);
    let line = table.add(format!("{name}: CPU of all processes, ms"), cpu[0]);
    let line = line.debian(cpu[1]).floor(cpu[2]);
    if judged {
        line.of_debian_at_most(0.4);
    }
}

/// Prints what each call takes, ours beside Debian's.
pub(crate) fn calls(ours: &[Vec<Lap>], debian: &[Vec<Lap>]) {
    println!("  call, ms              ours  debian");
    for (n, (name, _)) in ours[0].iter().enumerate() {
        let of = |all: &[Vec<Lap>]| median(all.iter().map(|laps| laps[n].1).collect());
        println!("  {name:19} {:6.2}  {:6.2}", of(ours), of(debian));
    }
    println!();
}

/// Runs `total` pieces of work, at most `width` at a time.
pub(crate) async fn at_a_time<W>(width: usize, total: usize, mut work: impl FnMut(usize) -> W)
where
    W: Future<Output = ()> + Send + 'static,
{
    let mut set = JoinSet::new();
    for n in 0..total {
        if set.len() >= width {
            set.join_next().await.expect("some").expect("work");
        }
        set.spawn(work(n));
    }
    while let Some(done) = set.join_next().await {
        done.expect("work");
    }
}

/// Containers per second, pass by pass.
pub(crate) fn many_at_a_time(bench: &Bench, name: &str, table: &mut Table) {
    let binary: Arc<Path> = integration::need(name).into();
    let mut rates: [Vec<f64>; 3] = Default::default();
    for pass in 0..PASSES {
        for step in 0..3 {
            let which = (pass + step) % 3;
            let prefix = format!("{name}-many-{pass}");
            let begin = Instant::now();
            bench
                .runtime
                .block_on(pass_of(bench, which, &binary, &prefix));
            rates[which].push(PASS as f64 / begin.elapsed().as_secs_f64());
        }
    }
    let [ours, debian, raw] = rates.map(median);
    let line = table.add(format!("{name}: containers per s, {WIDTH} at a time"), ours);
    let line = line.debian(debian).floor(raw);
    if name == "crun" {
        line.of_debian_at_least(2.0);
    }
}

async fn pass_of(bench: &Bench, which: usize, binary: &Arc<Path>, prefix: &str) {
    let id = |n: usize| format!("{prefix}-{n}");
    if which == 2 {
        let _adopting = Adopting::start();
        let work = |n| {
            let (raw, binary, id) = (Arc::clone(&bench.raw), Arc::clone(binary), id(n));
            let life = tokio::task::spawn_blocking(move || drop(raw.life(&binary, &id)));
            async move { life.await.expect("life") }
        };
        return at_a_time(WIDTH, PASS, work).await;
    }
    let peer = if which == 0 {
        &bench.ours
    } else {
        &bench.debian
    };
    let work = |n| {
        let (calls, binary, id) = (peer.calls.clone(), Arc::clone(binary), id(n));
        async move { drop(calls.life(&binary, &id).await) }
    };
    at_a_time(WIDTH, PASS, work).await;
}
