//! The unified hierarchy.

use std::path::Path;

use super::text::{self, Flat};

/// Resource usage; a controller that is not there is `None` or empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// `pids`: (current, limit; all ones without a limit).
    pub pids: Option<(u64, u64)>,
    /// `cpu.stat`.
    pub cpu: Flat,
    /// `memory`.
    pub memory: Option<Memory>,
    /// `memory.events`.
    pub memory_events: Flat,
    /// `io.stat`, one per device.
    pub io: Vec<Io>,
    /// `hugetlb`, one per page size.
    pub huge: Vec<HugePages>,
    /// Pressure of processor, memory and input/output.
    pub pressure: [Option<Pressure>; 3],
}

/// Memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// The lines of `memory.stat`.
    pub stat: Flat,
    /// Now.
    pub usage: u64,
    /// Limit; all ones without one.
    pub limit: u64,
    /// Highest so far.
    pub peak: u64,
    /// Swap now.
    pub swap_usage: u64,
    /// Limit of swap; all ones without one.
    pub swap_limit: u64,
    /// Highest swap so far.
    pub swap_peak: u64,
}

/// Input and output of one device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Io {
    /// Device number, major.
    pub major: u64,
    /// Device number, minor.
    pub minor: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}

/// Huge pages of one size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HugePages {
    /// `2MB`, …
    pub size: String,
    /// Now.
    pub current: u64,
    /// Limit; all ones without one.
    pub max: u64,
    /// How often the limit was hit.
    pub failures: u64,
}

/// Pressure stall information of one resource.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// Some tasks stalled.
    pub some: Stall,
    /// All tasks stalled.
    pub full: Stall,
}

/// Shares of time over 10, 60 and 300 seconds, in per cent, and the total in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stall {
    /// 10 s.
    pub avg10: f64,
    /// 60 s.
    pub avg60: f64,
    /// 300 s.
    pub avg300: f64,
    /// Since the group exists.
    pub total: u64,
}

impl Stats {
    /// Reads what is there.
    #[must_use]
    pub fn read(dir: &Path) -> Self {
        let file = |name: &str| dir.join(name);
        let number = |name: &str| text::number(&file(name), u64::MAX);
        Self {
            pids: number("pids.current")
                .map(|current| (current, number("pids.max").unwrap_or(u64::MAX))),
            cpu: text::flat(&file("cpu.stat")),
            memory: number("memory.current").map(|usage| Memory {
                stat: text::flat(&file("memory.stat")),
                usage,
                limit: number("memory.max").unwrap_or(u64::MAX),
                peak: number("memory.peak").unwrap_or(0),
                swap_usage: number("memory.swap.current").unwrap_or(0),
                swap_limit: number("memory.swap.max").unwrap_or(0),
                swap_peak: number("memory.swap.peak").unwrap_or(0),
            }),
            memory_events: text::flat(&file("memory.events")),
            io: io(&text::read(&file("io.stat"))),
            huge: huge(dir),
            pressure: ["cpu", "memory", "io"]
                .map(|what| pressure(&text::read(&file(&format!("{what}.pressure"))))),
        }
    }
}

fn io(text: &str) -> Vec<Io> {
    let line = |line: &str| {
        let mut fields = line.split_whitespace();
        let (major, minor) = text::device(fields.next()?)?;
        let mut io = Io {
            major,
            minor,
            ..Io::default()
        };
        for (name, value) in fields.filter_map(|field| field.split_once('=')) {
            let value = value.parse().unwrap_or(0);
            match name {
                "rbytes" => io.read_bytes = value,
                "wbytes" => io.write_bytes = value,
                "rios" => io.reads = value,
                "wios" => io.writes = value,
                _ => {}
            }
        }
        Some(io)
    };
    text.lines().filter_map(line).collect()
}

fn pressure(text: &str) -> Option<Pressure> {
    let mut pressure = Pressure::default();
    let mut lines = text.lines().peekable();
    lines.peek()?;
    for line in lines {
        let (kind, rest) = line.split_once(' ')?;
        let stall = match kind {
            "some" => &mut pressure.some,
            "full" => &mut pressure.full,
            _ => continue,
        };
        for (name, value) in rest
            .split_whitespace()
            .filter_map(|field| field.split_once('='))
        {
            match name {
                "avg10" => stall.avg10 = value.parse().ok()?,
                "avg60" => stall.avg60 = value.parse().ok()?,
                "avg300" => stall.avg300 = value.parse().ok()?,
                "total" => stall.total = value.parse().ok()?,
                _ => {}
            }
        }
    }
    Some(pressure)
}

fn huge(dir: &Path) -> Vec<HugePages> {
    text::huge_sizes(dir, "current")
        .into_iter()
        .map(|size| {
            let file = |what: &str| dir.join(format!("hugetlb.{size}.{what}"));
            HugePages {
                current: text::number(&file("current"), u64::MAX).unwrap_or(0),
                max: text::number(&file("max"), u64::MAX).unwrap_or(0),
                failures: text::flat(&file("events")).get("max"),
                size,
            }
        })
        .collect()
}
