//! Memory of a daemon after it has worked, and whether it grows when it works on.

use std::time::Duration;

use crate::bars::Table;
use crate::peer::Peer;
use crate::{Bench, content, records, usage};

/// How often the work is repeated.
const ROUNDS: usize = 100;
/// How long after the load is looked: what it took is given back a while later, by either daemon.
pub(crate) const REST: Duration = Duration::from_secs(15);
/// Seconds without a change that are rest, the change that is none, in KiB, and the seconds that are waited
/// for it.
const STILL: u32 = 10;
const SAME: f64 = 64.0;
const LONGEST: u32 = 60;
/// What is written, read and deleted each time.
const BLOB: usize = 8 << 20;

/// Debian's daemon gets the same work, so that both figures are of the same moment.
pub(crate) fn measure(bench: &Bench, table: &mut Table) {
    for peer in [&bench.ours, &bench.debian] {
        work(bench, peer, ROUNDS / 10);
    }
    let before = at_rest(bench);
    let line = table.add("daemon RSS after the load, KiB", before[0]);
    line.debian(before[1]).of_debian_at_most(0.4);
    for peer in [&bench.ours, &bench.debian] {
        work(bench, peer, ROUNDS);
    }
    let after = at_rest(bench);
    let line = table.add(
        "the same after 100 times the load, growth",
        after[0] / before[0],
    );
    line.debian(after[1] / before[1]).at_most(1.1);
}

/// What both daemons hold when neither gives back or takes anything any more: what a daemon does once it is
/// left alone, as to write its store's file, comes some seconds after the load, and reads its program in again.
fn at_rest(bench: &Bench) -> [f64; 2] {
    std::thread::sleep(REST);
    let mut last = [0.0; 2];
    let mut still = 0;
    for _ in 0..LONGEST {
        let now = [&bench.ours, &bench.debian].map(rss);
        let is_same = last
            .iter()
            .zip(now)
            .all(|(last, now)| (last - now).abs() <= SAME);
        if !is_same {
            (last, still) = (now, 0);
        } else if still < STILL {
            still += 1;
        } else {
            return now;
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    println!("a daemon is not at rest after {LONGEST} s");
    last
}

fn rss(peer: &Peer) -> f64 {
    usage::memory(peer.pid()).rss as f64
}

fn work(bench: &Bench, peer: &Peer, rounds: usize) {
    for _ in 0..rounds {
        records::list_all(bench, peer);
        bench.runtime.block_on(async {
            let channel = &peer.calls.channel;
            let digest = content::write(channel, 1 << 20, BLOB).await;
            assert_eq!(content::drain(channel, &digest).await, BLOB);
            content::delete(channel, &digest).await;
        });
    }
}
