//! Standard output through a fifo: bytes per second, and what the shim pays for them.

use std::fs::File;
use std::io::Read as _;
use std::thread;
use std::time::Instant;

use sys::fifo::Fifo;

use crate::bars::Table;
use crate::peer::Peer;
use crate::{Bench, median, usage};

/// Blocks of 64 KiB that are written: 1 GiB.
const BLOCKS: u64 = 16 * 1024;
const BLOCK: usize = 64 * 1024;
const PASSES: usize = 9;

/// GB per s from the first byte to the last, and CPU seconds of the shim per GB, the call that starts
/// the container among them.
#[derive(Clone, Copy, Debug)]
struct Flow {
    rate: f64,
    cpu: f64,
}

/// The same writer and reader, in a container and with a plain pipe between them.
pub(crate) fn measure(bench: &Bench, table: &mut Table) {
    let mut all: [Vec<Flow>; 3] = Default::default();
    for pass in 0..PASSES {
        for step in 0..3 {
            let which = (pass + step) % 3;
            all[which].push(match which {
                0 => through(bench, &bench.ours, pass),
                1 => through(bench, &bench.debian, pass),
                _ => plain(bench),
            });
        }
    }
    let pick = |n: usize, what: fn(&Flow) -> f64| median(all[n].iter().map(what).collect());
    let line = table.add("stdout through a fifo, GB per s", pick(0, |f| f.rate));
    let line = line.debian(pick(1, |f| f.rate)).floor(pick(2, |f| f.rate));
    line.of_floor_at_least(0.9);
    let line = table.add("stdout: CPU of the shim, s per GB", pick(0, |f| f.cpu));
    line.debian(pick(1, |f| f.cpu)).floor(0.0).at_most(0.02);
}

fn gigabytes() -> f64 {
    (BLOCKS * BLOCK as u64) as f64 / 1e9
}

fn writer() -> [String; 4] {
    [
        "/bin/dd".into(),
        "if=/dev/zero".into(),
        "bs=64k".into(),
        format!("count={BLOCKS}"),
    ]
}

/// Reads everything and throws it away; GB per s.
fn swallow(mut from: File) -> f64 {
    let mut buffer = vec![0; BLOCK];
    let (mut got, mut begin) = (0, None);
    // The writer's last words on standard error may come with the last block.
    while got < BLOCKS * BLOCK as u64 {
        let read = from.read(&mut buffer).expect("read");
        assert!(read > 0, "the end after {got} bytes");
        begin.get_or_insert_with(Instant::now);
        got += read as u64;
    }
    gigabytes() / begin.expect("bytes").elapsed().as_secs_f64()
}

fn through(bench: &Bench, peer: &Peer, pass: usize) -> Flow {
    let id = format!("flow-{pass}");
    let path = bench.dir.join(format!("fifo-{}-{pass}", peer.name()));
    Fifo::make(&path, 0o600).expect("make a fifo");
    let name = path.clone();
    // Blocks until the shim has it open, as clients do.
    let reader = thread::spawn(move || swallow(File::open(name).expect("open the fifo")));
    let args = writer();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let crun = integration::need("crun");
    let stdout = path.to_string_lossy();
    let made = peer.calls.created(&crun, &id, &args, &stdout);
    let shim = usage::parent(bench.runtime.block_on(made));
    let before = usage::cpu_ms(shim);
    bench.runtime.block_on(peer.calls.start(&id));
    let rate = reader.join().expect("reader");
    let after = usage::cpu_ms(shim);
    bench.runtime.block_on(peer.calls.finish(&id));
    std::fs::remove_file(&path).expect("remove the fifo");
    Flow {
        rate,
        cpu: (after - before) / 1e3 / gigabytes(),
    }
}

/// The floor: the bare runtime's container writes into a pipe. In the container as well, because the
/// control groups have a say in who runs when.
fn plain(bench: &Bench) -> Flow {
    let crun = integration::need("crun");
    let args = writer();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let rate = bench.raw.piped(&crun, &args, swallow);
    Flow { rate, cpu: 0.0 }
}
