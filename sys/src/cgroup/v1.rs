//! Controllers of version 1.

use std::path::{Path, PathBuf};

use super::text::{self, Flat};

/// The kernel counts user and system time in hundredths of a second here.
const NANOS_PER_TICK: u64 = 10_000_000;

/// Resource usage; a controller that is not there is `None` or empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// `pids`.
    pub pids: Option<Pids>,
    /// `cpuacct` and `cpu`.
    pub cpu: Option<Cpu>,
    /// `memory`.
    pub memory: Option<Memory>,
    /// `blkio`: (name of the list, its entries).
    pub block: Vec<(BlockList, Vec<BlockEntry>)>,
    /// `hugetlb`, one per page size.
    pub huge: Vec<HugePages>,
}

/// Processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pids {
    /// How many there are.
    pub current: u64,
    /// How many there may be; zero without a limit.
    pub limit: u64,
}

/// Processor time, in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    /// All.
    pub total: u64,
    /// In the kernel.
    pub kernel: u64,
    /// Outside.
    pub user: u64,
    /// Per processor.
    pub per_cpu: Vec<u64>,
    /// `nr_periods`, `nr_throttled`, `throttled_time`.
    pub throttling: Flat,
}

/// Memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// The lines of `memory.stat`.
    pub stat: Flat,
    /// Memory.
    pub usage: Counter,
    /// Memory and swap.
    pub swap: Counter,
    /// Kernel memory.
    pub kernel: Counter,
    /// TCP buffers.
    pub kernel_tcp: Counter,
    /// The lines of `memory.oom_control`.
    pub oom_control: Flat,
}

/// A counter with its limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// Limit.
    pub limit: u64,
    /// Now.
    pub usage: u64,
    /// Highest so far.
    pub max: u64,
    /// How often the limit was hit.
    pub failures: u64,
}

/// Which list of block statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockList {
    /// Bytes.
    ServiceBytes,
    /// Operations.
    Serviced,
}

/// One line of block statistics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockEntry {
    /// `Read`, `Write`, …
    pub op: String,
    /// Device number, major.
    pub major: u64,
    /// Device number, minor.
    pub minor: u64,
    /// Value.
    pub value: u64,
}

/// Huge pages of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HugePages {
    /// `2MB`, …
    pub size: String,
    /// Usage.
    pub counter: Counter,
}

impl Stats {
    /// Reads what is there; `dir` tells where a controller's directory is.
    pub fn read(dir: impl Fn(&str) -> Option<PathBuf>) -> Self {
        let there = |name: &str| dir(name).filter(|d| d.exists());
        Self {
            pids: there("pids").map(|d| Pids {
                current: text::number(&d.join("pids.current"), 0).unwrap_or(0),
                limit: text::number(&d.join("pids.max"), 0).unwrap_or(0),
            }),
            cpu: there("cpuacct").map(|d| cpu(&d, there("cpu").as_deref())),
            memory: there("memory").map(|d| memory(&d)),
            block: there("blkio").map(|d| block(&d)).unwrap_or_default(),
            huge: there("hugetlb").map(|d| huge(&d)).unwrap_or_default(),
        }
    }
}

fn cpu(accounting: &Path, scheduling: Option<&Path>) -> Cpu {
    let ticks = text::flat(&accounting.join("cpuacct.stat"));
    let per_cpu = text::read(&accounting.join("cpuacct.usage_percpu"));
    Cpu {
        total: text::number(&accounting.join("cpuacct.usage"), 0).unwrap_or(0),
        kernel: ticks.get("system").saturating_mul(NANOS_PER_TICK),
        user: ticks.get("user").saturating_mul(NANOS_PER_TICK),
        per_cpu: per_cpu
            .split_whitespace()
            .filter_map(|n| n.parse().ok())
            .collect(),
        throttling: scheduling
            .map(|d| text::flat(&d.join("cpu.stat")))
            .unwrap_or_default(),
    }
}

fn memory(dir: &Path) -> Memory {
    Memory {
        stat: text::flat(&dir.join("memory.stat")),
        usage: counter(dir, "memory"),
        swap: counter(dir, "memory.memsw"),
        kernel: counter(dir, "memory.kmem"),
        kernel_tcp: counter(dir, "memory.kmem.tcp"),
        oom_control: text::flat(&dir.join("memory.oom_control")),
    }
}

fn counter(dir: &Path, name: &str) -> Counter {
    let value = |what: &str| text::number(&dir.join(format!("{name}.{what}")), 0).unwrap_or(0);
    Counter {
        limit: value("limit_in_bytes"),
        usage: value("usage_in_bytes"),
        max: value("max_usage_in_bytes"),
        failures: value("failcnt"),
    }
}

fn block(dir: &Path) -> Vec<(BlockList, Vec<BlockEntry>)> {
    let lists = [
        (BlockList::ServiceBytes, "io_service_bytes_recursive"),
        (BlockList::Serviced, "io_serviced_recursive"),
    ];
    lists
        .into_iter()
        .map(|(list, file)| {
            // The scheduler's own numbers when it keeps some, else those of the throttling layer.
            let entries = ["blkio.bfq", "blkio.throttle", "blkio"]
                .iter()
                .map(|kind| block_entries(&text::read(&dir.join(format!("{kind}.{file}")))))
                .find(|entries| !entries.is_empty());
            (list, entries.unwrap_or_default())
        })
        .collect()
}

fn block_entries(text: &str) -> Vec<BlockEntry> {
    let entry = |line: &str| {
        let mut fields = line.split_whitespace();
        let (major, minor) = text::device(fields.next()?)?;
        let op = fields.next()?.to_owned();
        let value = fields.next()?.parse().ok()?;
        Some(BlockEntry {
            op,
            major,
            minor,
            value,
        })
    };
    text.lines().filter_map(entry).collect()
}

fn huge(dir: &Path) -> Vec<HugePages> {
    text::huge_sizes(dir, "usage_in_bytes")
        .into_iter()
        .map(|size| HugePages {
            counter: counter(dir, &format!("hugetlb.{size}")),
            size,
        })
        .collect()
}

/// A new cpuset accepts no process until it has processors and memory nodes: its parent's, which may
/// be new as well.
pub(super) fn inherit_cpuset(dir: &Path) {
    let Some(parent) = dir.parent() else { return };
    if parent.join("cpuset.cpus").exists() {
        inherit_cpuset(parent);
    }
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own = text::read(&dir.join(file));
        if own.trim().is_empty() {
            // A refusal shows at the join, with the right errno.
            drop(std::fs::write(
                dir.join(file),
                text::read(&parent.join(file)),
            ));
        }
    }
}
