//! Resource usage as the metrics messages of the host's control group version.

use protos::MessageField;
use protos::any::pack;
use protos::cgroups::{v1, v2};
use protos::well_known::Any;
use protos::wire::Wire as _;
use sys::cgroup::{Flat, Stats};
use types::Result;

/// The typed message of these statistics.
///
/// # Errors
/// `Internal` when it cannot be encoded.
pub(crate) fn to_any(stats: &Stats) -> Result<Any> {
    let any = match stats {
        Stats::V1(stats) => pack(&version_1(stats))?,
        Stats::V2(stats) => pack(&version_2(stats))?,
    };
    Ok(any.to_wire())
}

fn version_1(stats: &sys::cgroup::v1::Stats) -> v1::Metrics {
    let mut metrics = v1::Metrics::new();
    metrics.pids = stats.pids.map_or_else(MessageField::none, |pids| {
        let (current, limit) = (pids.current, pids.limit);
        MessageField::some(v1::PidsStat {
            current,
            limit,
            ..v1::PidsStat::default()
        })
    });
    if let Some(cpu) = &stats.cpu {
        let usage = v1::CPUUsage {
            total: cpu.total,
            kernel: cpu.kernel,
            user: cpu.user,
            per_cpu: cpu.per_cpu.clone(),
            ..v1::CPUUsage::default()
        };
        let throttling = v1::Throttle {
            periods: cpu.throttling.get("nr_periods"),
            throttled_periods: cpu.throttling.get("nr_throttled"),
            throttled_time: cpu.throttling.get("throttled_time"),
            ..v1::Throttle::default()
        };
        metrics.cpu = MessageField::some(v1::CPUStat {
            usage: MessageField::some(usage),
            throttling: MessageField::some(throttling),
            ..v1::CPUStat::default()
        });
    }
    if let Some(memory) = &stats.memory {
        metrics.memory = MessageField::some(memory_1(memory));
        metrics.memory_oom_control = MessageField::some(v1::MemoryOomControl {
            oom_kill_disable: memory.oom_control.get("oom_kill_disable"),
            under_oom: memory.oom_control.get("under_oom"),
            oom_kill: memory.oom_control.get("oom_kill"),
            ..v1::MemoryOomControl::default()
        });
    }
    metrics.blkio = MessageField::some(block_1(stats));
    metrics.hugetlb = stats
        .huge
        .iter()
        .map(|huge| v1::HugetlbStat {
            usage: huge.counter.usage,
            max: huge.counter.max,
            failcnt: huge.counter.failures,
            pagesize: huge.size.clone(),
            ..v1::HugetlbStat::default()
        })
        .collect();
    metrics
}

fn block_1(stats: &sys::cgroup::v1::Stats) -> v1::BlkIOStat {
    use sys::cgroup::v1::BlockList;
    let mut block = v1::BlkIOStat::new();
    for (list, entries) in &stats.block {
        let entries = entries
            .iter()
            .map(|entry| v1::BlkIOEntry {
                op: entry.op.clone(),
                major: entry.major,
                minor: entry.minor,
                value: entry.value,
                ..v1::BlkIOEntry::default()
            })
            .collect();
        match list {
            BlockList::ServiceBytes => block.io_service_bytes_recursive = entries,
            BlockList::Serviced => block.io_serviced_recursive = entries,
        }
    }
    block
}

fn memory_1(memory: &sys::cgroup::v1::Memory) -> v1::MemoryStat {
    let entry = |counter: sys::cgroup::v1::Counter| {
        MessageField::some(v1::MemoryEntry {
            limit: counter.limit,
            usage: counter.usage,
            max: counter.max,
            failcnt: counter.failures,
            ..v1::MemoryEntry::default()
        })
    };
    let stat = &memory.stat;
    v1::MemoryStat {
        cache: stat.get("cache"),
        rss: stat.get("rss"),
        rss_huge: stat.get("rss_huge"),
        mapped_file: stat.get("mapped_file"),
        dirty: stat.get("dirty"),
        writeback: stat.get("writeback"),
        pg_pg_in: stat.get("pgpgin"),
        pg_pg_out: stat.get("pgpgout"),
        pg_fault: stat.get("pgfault"),
        pg_maj_fault: stat.get("pgmajfault"),
        inactive_anon: stat.get("inactive_anon"),
        active_anon: stat.get("active_anon"),
        inactive_file: stat.get("inactive_file"),
        active_file: stat.get("active_file"),
        unevictable: stat.get("unevictable"),
        hierarchical_memory_limit: stat.get("hierarchical_memory_limit"),
        hierarchical_swap_limit: stat.get("hierarchical_memsw_limit"),
        total_cache: stat.get("total_cache"),
        total_rss: stat.get("total_rss"),
        total_rss_huge: stat.get("total_rss_huge"),
        total_mapped_file: stat.get("total_mapped_file"),
        total_dirty: stat.get("total_dirty"),
        total_writeback: stat.get("total_writeback"),
        total_pg_pg_in: stat.get("total_pgpgin"),
        total_pg_pg_out: stat.get("total_pgpgout"),
        total_pg_fault: stat.get("total_pgfault"),
        total_pg_maj_fault: stat.get("total_pgmajfault"),
        total_inactive_anon: stat.get("total_inactive_anon"),
        total_active_anon: stat.get("total_active_anon"),
        total_inactive_file: stat.get("total_inactive_file"),
        total_active_file: stat.get("total_active_file"),
        total_unevictable: stat.get("total_unevictable"),
        usage: entry(memory.usage),
        swap: entry(memory.swap),
        kernel: entry(memory.kernel),
        kernel_tcp: entry(memory.kernel_tcp),
        ..v1::MemoryStat::default()
    }
}

fn version_2(stats: &sys::cgroup::v2::Stats) -> v2::Metrics {
    let [cpu_pressure, memory_pressure, io_pressure] = stats.pressure;
    let mut metrics = v2::Metrics::new();
    if let Some((current, limit)) = stats.pids {
        metrics.pids = MessageField::some(v2::PidsStat {
            current,
            limit,
            ..v2::PidsStat::default()
        });
    }
    let cpu = &stats.cpu;
    metrics.cpu = MessageField::some(v2::CPUStat {
        usage_usec: cpu.get("usage_usec"),
        user_usec: cpu.get("user_usec"),
        system_usec: cpu.get("system_usec"),
        nr_periods: cpu.get("nr_periods"),
        nr_throttled: cpu.get("nr_throttled"),
        throttled_usec: cpu.get("throttled_usec"),
        nr_bursts: cpu.get("nr_bursts"),
        burst_usec: cpu.get("burst_usec"),
        psi: pressure(cpu_pressure),
        ..v2::CPUStat::default()
    });
    if let Some(memory) = &stats.memory {
        let mut message = memory_2(memory);
        message.psi = pressure(memory_pressure);
        metrics.memory = MessageField::some(message);
    }
    metrics.memory_events = events_2(&stats.memory_events);
    let usage = stats.io.iter().map(|io| v2::IOEntry {
        major: io.major,
        minor: io.minor,
        rbytes: io.read_bytes,
        wbytes: io.write_bytes,
        rios: io.reads,
        wios: io.writes,
        ..v2::IOEntry::default()
    });
    metrics.io = MessageField::some(v2::IOStat {
        usage: usage.collect(),
        psi: pressure(io_pressure),
        ..v2::IOStat::default()
    });
    let huge = stats.huge.iter().map(|huge| v2::HugeTlbStat {
        current: huge.current,
        max: huge.max,
        pagesize: huge.size.clone(),
        failcnt: huge.failures,
        ..v2::HugeTlbStat::default()
    });
    metrics.hugetlb = huge.collect();
    metrics
}

fn events_2(events: &Flat) -> MessageField<v2::MemoryEvents> {
    if events.is_empty() {
        return MessageField::none();
    }
    MessageField::some(v2::MemoryEvents {
        low: events.get("low"),
        high: events.get("high"),
        max: events.get("max"),
        oom: events.get("oom"),
        oom_kill: events.get("oom_kill"),
        oom_group_kill: events.get("oom_group_kill"),
        ..v2::MemoryEvents::default()
    })
}

fn memory_2(memory: &sys::cgroup::v2::Memory) -> v2::MemoryStat {
    let stat = &memory.stat;
    v2::MemoryStat {
        anon: stat.get("anon"),
        file: stat.get("file"),
        kernel_stack: stat.get("kernel_stack"),
        slab: stat.get("slab"),
        sock: stat.get("sock"),
        shmem: stat.get("shmem"),
        file_mapped: stat.get("file_mapped"),
        file_dirty: stat.get("file_dirty"),
        file_writeback: stat.get("file_writeback"),
        anon_thp: stat.get("anon_thp"),
        inactive_anon: stat.get("inactive_anon"),
        active_anon: stat.get("active_anon"),
        inactive_file: stat.get("inactive_file"),
        active_file: stat.get("active_file"),
        unevictable: stat.get("unevictable"),
        slab_reclaimable: stat.get("slab_reclaimable"),
        slab_unreclaimable: stat.get("slab_unreclaimable"),
        pgfault: stat.get("pgfault"),
        pgmajfault: stat.get("pgmajfault"),
        workingset_nodereclaim: stat.get("workingset_nodereclaim"),
        workingset_refault_anon: stat.get("workingset_refault_anon"),
        workingset_refault_file: stat.get("workingset_refault_file"),
        workingset_activate_anon: stat.get("workingset_activate_anon"),
        workingset_activate_file: stat.get("workingset_activate_file"),
        pgrefill: stat.get("pgrefill"),
        pgscan: stat.get("pgscan"),
        pgsteal: stat.get("pgsteal"),
        pgactivate: stat.get("pgactivate"),
        pgdeactivate: stat.get("pgdeactivate"),
        pglazyfree: stat.get("pglazyfree"),
        pglazyfreed: stat.get("pglazyfreed"),
        thp_fault_alloc: stat.get("thp_fault_alloc"),
        thp_collapse_alloc: stat.get("thp_collapse_alloc"),
        usage: memory.usage,
        usage_limit: memory.limit,
        swap_usage: memory.swap_usage,
        swap_limit: memory.swap_limit,
        max_usage: memory.peak,
        swap_max_usage: memory.swap_peak,
        ..v2::MemoryStat::default()
    }
}

fn pressure(pressure: Option<sys::cgroup::v2::Pressure>) -> MessageField<v2::PSIStats> {
    let stall = |stall: sys::cgroup::v2::Stall| {
        MessageField::some(v2::PSIData {
            avg10: stall.avg10,
            avg60: stall.avg60,
            avg300: stall.avg300,
            total: stall.total,
            ..v2::PSIData::default()
        })
    };
    pressure.map_or_else(MessageField::none, |p| {
        MessageField::some(v2::PSIStats {
            some: stall(p.some),
            full: stall(p.full),
            ..v2::PSIStats::default()
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use protos::Message as _;
    use sys::cgroup::v1::{Cpu, Memory};

    #[test]
    fn the_message_is_that_of_the_hosts_version() {
        let stats = sys::cgroup::v1::Stats {
            cpu: Some(Cpu {
                total: 9,
                ..Cpu::default()
            }),
            memory: Some(Memory {
                stat: Flat::parse("pgpgin 3\ntotal_rss 4\n"),
                ..Memory::default()
            }),
            ..Default::default()
        };
        let any = to_any(&Stats::V1(Box::new(stats))).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v1.Metrics");
        let back = v1::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!(
            (
                back.cpu.usage.total,
                back.memory.pg_pg_in,
                back.memory.total_rss
            ),
            (9, 3, 4)
        );
        assert!(back.pids.is_none());
        let stats = sys::cgroup::v2::Stats {
            pids: Some((2, u64::MAX)),
            ..Default::default()
        };
        let any = to_any(&Stats::V2(Box::new(stats))).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        let back = v2::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!((back.pids.current, back.pids.limit), (2, u64::MAX));
        assert!(back.memory.is_none() && back.memory_events.is_none());
    }
}
