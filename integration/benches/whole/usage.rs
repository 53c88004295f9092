//! Figures of processes, from /proc.

use std::fs;

/// Parent of a process.
pub(crate) fn parent(pid: u32) -> u32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let rest = stat.rsplit(')').next().expect("fields");
    let field = rest.split_whitespace().nth(1).expect("ppid");
    field.parse().expect("a number")
}

/// Memory of a process, in KiB.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    pub(crate) pss: u64,
    /// Private, clean and dirty: what its end would give back.
    pub(crate) unique: u64,
    pub(crate) rss: u64,
}

/// What the kernel says about a process's memory.
pub(crate) fn memory(pid: u32) -> Memory {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("smaps_rollup");
    let line = |name: &str| -> u64 {
        let line = text.lines().find_map(|l| l.strip_prefix(name));
        let value = line.expect("the line").split_whitespace().next();
        value.expect("a value").parse().expect("a number")
    };
    Memory {
        pss: line("Pss:"),
        unique: line("Private_Clean:") + line("Private_Dirty:"),
        rss: line("Rss:"),
    }
}

/// The most memory that a process had at a time, in KiB.
pub(crate) fn peak(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let value = line.expect("the line").split_whitespace().next();
    value.expect("a value").parse().expect("a number")
}

/// Lets the peak begin anew.
pub(crate) fn forget_peak(pid: u32) {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("clear_refs");
}

/// Open descriptors of a process.
pub(crate) fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Threads of a process.
pub(crate) fn threads(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

/// CPU time of a process's threads so far, in ms. The clock ticks of `stat` are too coarse.
pub(crate) fn cpu_ms(pid: u32) -> f64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    let mut sum = 0.0;
    for task in tasks.into_iter().flatten().flatten() {
        // A thread may have ended meanwhile.
        let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        let on_cpu = text.split_whitespace().next();
        sum += on_cpu.and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(0.0) / 1e6;
    }
    sum
}

/// Who traces each thread of a process; 0 for nobody.
pub(crate) fn tracers(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    let one = |task: fs::DirEntry| -> Option<u32> {
        let text = fs::read_to_string(task.path().join("status")).ok()?;
        let line = text.lines().find_map(|l| l.strip_prefix("TracerPid:"))?;
        line.trim().parse().ok()
    };
    tasks
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(one)
        .collect()
}
