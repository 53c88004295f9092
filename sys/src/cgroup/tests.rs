//! Tests on trees as kernels wrote them, version 1 and 2, and on the real hierarchy of this machine.

use super::*;

fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    dir
}

const V1: &[(&str, &str)] = &[
    ("pids/pids.current", "3\n"),
    ("pids/pids.max", "max\n"),
    ("cpuacct/cpuacct.usage", "123456789\n"),
    ("cpuacct/cpuacct.stat", "user 7\nsystem 5\n"),
    ("cpuacct/cpuacct.usage_percpu", "100000000 23456789 \n"),
    (
        "cpu/cpu.stat",
        "nr_periods 10\nnr_throttled 2\nthrottled_time 4000\n",
    ),
    (
        "memory/memory.stat",
        "cache 4096\nrss 8192\ntotal_rss 8192\n",
    ),
    ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
    ("memory/memory.usage_in_bytes", "20480\n"),
    ("memory/memory.max_usage_in_bytes", "40960\n"),
    ("memory/memory.failcnt", "1\n"),
    (
        "memory/memory.oom_control",
        "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    ),
    ("blkio/blkio.bfq.io_serviced_recursive", "Total 0\n"),
    (
        "blkio/blkio.throttle.io_serviced_recursive",
        "8:0 Read 3\n8:0 Write 1\n8:0 Total 4\nTotal 4\n",
    ),
    ("hugetlb/hugetlb.2MB.usage_in_bytes", "0\n"),
    ("hugetlb/hugetlb.2MB.rsvd.usage_in_bytes", "0\n"),
    ("hugetlb/hugetlb.2MB.failcnt", "5\n"),
];

const V2: &[(&str, &str)] = &[
    ("pids.current", "3\n"),
    ("pids.max", "max\n"),
    (
        "cpu.stat",
        "usage_usec 900\nuser_usec 500\nsystem_usec 400\nnr_periods 0\n",
    ),
    ("memory.current", "1048576\n"),
    ("memory.max", "max\n"),
    ("memory.peak", "2097152\n"),
    ("memory.swap.max", "0\n"),
    (
        "memory.stat",
        "anon 12288\nfile 4096\nworkingset_refault_anon 1\n",
    ),
    (
        "memory.events",
        "low 0\nhigh 0\nmax 4\noom 1\noom_kill 1\noom_group_kill 0\n",
    ),
    (
        "io.stat",
        "8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n253:0\n",
    ),
    ("hugetlb.2MB.current", "0\n"),
    ("hugetlb.2MB.max", "max\n"),
    ("hugetlb.2MB.rsvd.current", "0\n"),
    ("hugetlb.2MB.events", "max 3\n"),
    (
        "cpu.pressure",
        "some avg10=1.50 avg60=0.25 avg300=0.00 total=1234\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9\n",
    ),
];

#[test]
fn a_recorded_tree_of_version_1_is_read() {
    let dir = tree(V1);
    let controllers = [
        "pids", "cpuacct", "cpu", "memory", "blkio", "hugetlb", "gone",
    ];
    let group = Cgroup::V1(
        controllers
            .iter()
            .map(|&name| (name.to_owned(), dir.path().join(name)))
            .collect(),
    );
    let Stats::V1(stats) = group.stats().unwrap() else {
        panic!("not version 1")
    };
    assert_eq!(
        stats.pids,
        Some(v1::Pids {
            current: 3,
            limit: 0
        })
    );
    let cpu = stats.cpu.unwrap();
    assert_eq!(
        (cpu.total, cpu.user, cpu.kernel),
        (123_456_789, 70_000_000, 50_000_000)
    );
    assert_eq!(cpu.per_cpu, [100_000_000, 23_456_789]);
    assert_eq!(cpu.throttling.get("nr_throttled"), 2);
    let memory = stats.memory.unwrap();
    let want = v1::Counter {
        limit: 9_223_372_036_854_771_712,
        usage: 20_480,
        max: 40_960,
        failures: 1,
    };
    assert_eq!(memory.usage, want);
    assert_eq!(memory.swap, v1::Counter::default());
    assert_eq!(memory.stat.get("total_rss"), 8192);
    assert_eq!(stats.block[0], (v1::BlockList::ServiceBytes, vec![]));
    assert_eq!(stats.block[1].1.len(), 3);
    let write = v1::BlockEntry {
        op: "Write".into(),
        major: 8,
        minor: 0,
        value: 1,
    };
    assert_eq!(stats.block[1].1[1], write);
    assert_eq!((stats.huge.len(), stats.huge[0].counter.failures), (1, 5));
    assert_eq!(group.oom_kills(), 2);
}

#[test]
fn a_recorded_tree_of_version_2_is_read() {
    let dir = tree(V2);
    let group = Cgroup::V2(dir.path().to_owned());
    let Stats::V2(stats) = group.stats().unwrap() else {
        panic!("not version 2")
    };
    assert_eq!(stats.pids, Some((3, u64::MAX)));
    assert_eq!(stats.cpu.get("system_usec"), 400);
    let memory = stats.memory.unwrap();
    assert_eq!(
        (memory.usage, memory.limit, memory.peak),
        (1_048_576, u64::MAX, 2_097_152)
    );
    assert_eq!((memory.swap_limit, memory.stat.get("anon")), (0, 12_288));
    let disk = v2::Io {
        major: 8,
        minor: 0,
        read_bytes: 4096,
        write_bytes: 8192,
        reads: 1,
        writes: 2,
    };
    assert_eq!(
        stats.io,
        [
            disk,
            v2::Io {
                major: 253,
                ..v2::Io::default()
            }
        ]
    );
    let huge = v2::HugePages {
        size: "2MB".into(),
        current: 0,
        max: u64::MAX,
        failures: 3,
    };
    assert_eq!(stats.huge, [huge]);
    let cpu = stats.pressure[0].unwrap();
    assert!((cpu.some.avg10 - 1.5).abs() < f64::EPSILON);
    assert_eq!((cpu.some.total, cpu.full.total), (1234, 9));
    assert_eq!(stats.pressure[1], None);
    assert_eq!((group.oom_kills(), stats.memory_events.get("max")), (1, 4));
}

#[test]
fn a_group_that_is_gone_is_not_found() {
    let dir = tempfile::tempdir().unwrap();
    let gone = dir.path().join("gone");
    let groups = [
        Cgroup::V2(gone.clone()),
        Cgroup::V1([("memory".to_owned(), gone)].into_iter().collect()),
    ];
    for group in groups {
        assert!(group.stats().unwrap_err().is_not_found());
        assert_eq!(group.oom_kills(), 0);
    }
}

#[test]
fn directories_follow_from_the_kernels_text() {
    let v1_mounts = info::parse(
        "\
30 20 0:26 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
31 20 0:27 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
32 20 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
33 20 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
",
    )
    .unwrap();
    let v2_mounts =
        info::parse("33 20 0:29 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n").unwrap();
    let text =
        "3:cpu,cpuacct:/default/x\n2:memory:/docker/abc/in\n1:name=systemd:/default/x\n0::/u\n";
    let want = [
        ("cpu", "/sys/fs/cgroup/cpu,cpuacct/default/x"),
        ("cpuacct", "/sys/fs/cgroup/cpu,cpuacct/default/x"),
        ("memory", "/sys/fs/cgroup/memory/in"),
        ("name=systemd", "/sys/fs/cgroup/systemd/default/x"),
    ];
    let want = want.map(|(name, dir)| (name.to_owned(), PathBuf::from(dir)));
    assert_eq!(
        Cgroup::locate(text, &v1_mounts),
        Some(Cgroup::V1(want.into_iter().collect()))
    );
    let unified = Some(Cgroup::V2("/sys/fs/cgroup/kube/pod".into()));
    assert_eq!(Cgroup::locate("0::/kube/pod\n", &v2_mounts), unified);
    assert_eq!(
        Cgroup::locate("0::/\n", &v2_mounts),
        Some(Cgroup::V2("/sys/fs/cgroup".into()))
    );
    assert_eq!(Cgroup::locate("", &v2_mounts), None);
    assert_eq!(
        Cgroup::locate("2:memory:/elsewhere\n", &v1_mounts[1..2]),
        None
    );
}

#[test]
fn pids_come_from_a_group_of_ones_own_only() {
    let dir = tree(&[
        ("cgroup.procs", "1\n"),
        ("own/cgroup.procs", "20\n10\n"),
        ("own/sub/cgroup.procs", "30\n0\n"),
        ("other/cgroup.procs", "40\n"),
    ]);
    let group = |name: &str| Cgroup::V2(dir.path().join(name));
    assert_eq!(group("own").pids(&group("other")), Some(vec![10, 20, 30]));
    assert_eq!(group("own").pids(&group("own")), None);
    let root = Cgroup::V2(dir.path().to_owned());
    assert_eq!(root.pids(&group("other")), None);
}

#[test]
fn a_version_2_watch_tells_kills_and_the_end() {
    for urgent in [true, false] {
        let dir = tree(&[("memory.events", "oom_kill 1\n")]);
        let group = Cgroup::V2(dir.path().to_owned());
        let events = dir.path().join("memory.events");
        let watch = if urgent {
            group.watch_oom().unwrap()
        } else {
            group.watch_oom_readable().unwrap()
        };
        assert_eq!(watch.is_urgent(), urgent);
        assert_eq!(watch.check(true), OomEvent::Nothing);
        std::fs::write(&events, "max 3\noom_kill 1\n").unwrap();
        assert_eq!(watch.check(false), OomEvent::Nothing);
        std::fs::write(&events, "oom_kill 2\n").unwrap();
        assert_eq!(watch.check(false), OomEvent::Oom);
        assert_eq!(watch.check(true), OomEvent::Nothing);
        std::fs::remove_file(&events).unwrap();
        // A file outlives its name when it is none of the kernel's.
        if !urgent {
            assert_eq!(watch.check(true), OomEvent::Gone);
        }
    }
}

/// Whether the kernel has something urgent to say, now or within the time.
fn is_ready(watch: &OomWatch, wait: std::time::Duration) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(watch, PollFlags::PRI)];
    let wait = Timespec::try_from(wait).unwrap();
    poll(&mut fds, Some(&wait)).unwrap();
    fds[0].revents().contains(PollFlags::PRI)
}

/// `cgroup.events` changes by the same way as `memory.events`, and is there without a controller.
#[test]
fn a_file_of_version_2_is_ready_once_for_a_change_and_again_after_it_was_read() {
    use std::time::Duration;
    let unified = |mount: &MountInfo| mount.kind == "cgroup2";
    let mounts = info::load().unwrap();
    let Some(mount) = mounts.into_iter().find(unified) else {
        return;
    };
    let name = format!("sys-test-events-{}", std::process::id());
    let group = mount.mount_point.join(name);
    std::fs::create_dir(&group).unwrap();
    let watch = OomWatch::events(group.join("cgroup.events")).unwrap();
    assert!(!is_ready(&watch, Duration::ZERO));
    for round in 0..3 {
        let child = crate::process::Spawn::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        std::fs::write(group.join("cgroup.procs"), child.pid().to_string()).unwrap();
        assert!(is_ready(&watch, Duration::from_secs(10)), "{round}");
        assert_eq!(watch.check(true), OomEvent::Nothing);
        assert!(!is_ready(&watch, Duration::ZERO));
        child.kill(libc::SIGKILL).unwrap();
        child.wait().unwrap();
        assert!(is_ready(&watch, Duration::from_secs(10)), "{round}");
        assert_eq!(watch.check(true), OomEvent::Nothing);
    }
    std::fs::remove_dir(&group).unwrap();
    assert_eq!(watch.check(true), OomEvent::Gone);
}

#[test]
fn a_version_1_watch_tells_a_kill_once_whether_event_or_count_comes_first() {
    let oom = |kills: u64| format!("oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n");
    let dir = tree(&[
        ("memory.oom_control", &oom(0)),
        ("cgroup.event_control", ""),
    ]);
    let control = dir.path().join("memory.oom_control");
    let controllers = [("memory".to_owned(), dir.path().to_owned())];
    let watch = Cgroup::V1(controllers.into()).watch_oom().unwrap();
    let signal = |times: u64| {
        let fd = std::os::fd::AsFd::as_fd(&watch);
        rustix::io::write(fd, &times.to_ne_bytes()).unwrap();
    };
    // The event first, then the count.
    signal(1);
    assert_eq!(watch.check(false), OomEvent::Oom);
    std::fs::write(&control, oom(1)).unwrap();
    assert_eq!(watch.check(true), OomEvent::Nothing);
    // Both, once without and once with an event in between.
    std::fs::write(&control, oom(2)).unwrap();
    signal(1);
    assert_eq!(watch.check(true), OomEvent::Oom);
    assert_eq!(watch.check(true), OomEvent::Nothing);
    // Two at once are told together.
    std::fs::write(&control, oom(4)).unwrap();
    signal(2);
    assert_eq!(watch.check(false), OomEvent::Oom);
    assert_eq!(watch.check(true), OomEvent::Nothing);
    // The group goes, once with a kill just before.
    std::fs::remove_file(&control).unwrap();
    signal(2);
    assert_eq!(watch.check(false), OomEvent::Oom);
    signal(1);
    assert_eq!(watch.check(false), OomEvent::Gone);
}

#[test]
fn this_process_has_a_group_with_statistics() {
    let group = Cgroup::of(std::process::id()).unwrap();
    assert_eq!(matches!(group, Cgroup::V2(_)), is_unified());
    group.stats().unwrap();
    assert!(Cgroup::of(u32::MAX).unwrap_err().is_not_found());
}

#[test]
fn paths_out_of_the_hierarchy_are_refused() {
    for path in ["", "/", "../x", "a/../../b"] {
        let refused = Cgroup::at_path(path).map(drop).unwrap_err();
        assert!(refused.is(types::Code::InvalidArgument), "{path}");
    }
}

#[test]
fn a_process_is_found_the_short_way_as_the_long_way() {
    let me = std::process::id();
    let text = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let long = Cgroup::locate(&text, &info::load().unwrap()).unwrap();
    assert_eq!(Cgroup::of(me).unwrap(), long);
    // A guess that the kernel does not confirm is none.
    let wrong = text.replace(":/", ":/no-such-group/");
    assert!(!Cgroup::usual(&wrong).is_some_and(|group| group.holds(me)));
}

#[test]
fn a_new_cpuset_in_a_new_cpuset_has_what_the_oldest_has() {
    let dir = tree(&[
        ("cpuset.cpus", "0-1\n"),
        ("cpuset.mems", "0\n"),
        ("new/cpuset.cpus", "\n"),
        ("new/cpuset.mems", "\n"),
        ("new/own/cpuset.cpus", "\n"),
        ("new/own/cpuset.mems", ""),
    ]);
    v1::inherit_cpuset(&dir.path().join("new/own"));
    for (file, want) in [("cpuset.cpus", "0-1\n"), ("cpuset.mems", "0\n")] {
        for place in ["new", "new/own"] {
            let text = std::fs::read_to_string(dir.path().join(place).join(file)).unwrap();
            assert_eq!(text, want, "{place}/{file}");
        }
    }
}
