//! `ctr run --net`: a container with its network in one step, whatever kind; and nothing of it left when it
//! goes, or when a step fails.

use std::collections::BTreeSet;
use std::path::Path;

use integration::net::{fetch, within};
use integration::{Host, IMAGE, script, until};
use serde_json::Value;

use crate::network_drivers::{CHAIN, SERVER, ctr, home, state, words};

const SLEEPER: [&str; 2] = ["sleep", "1000"];

/// `ctr run` with these flags, detached.
fn start(host: &Host, flags: &str, id: &str, command: &[&str]) {
    let flags = format!("-d {flags}");
    drop(host.run(&words(&flags), id, command).ok());
}

/// What `ctr run --rm` with these flags prints.
fn said(host: &Host, flags: &str, id: &str, command: &[&str]) -> String {
    let flags = format!("--rm {flags}");
    host.run(&words(&flags), id, command).ok()
}

/// True for the packet filters of before, and no interface that was not there. An interface that was taken away is
/// seen until the kernel is done with it: from before as well as now.
fn is_no_more(now: &str, before: &str) -> bool {
    let parts = |state: &str| {
        let (links, rules) = state.split_once("table ").unwrap_or((state, ""));
        let links: BTreeSet<_> = links.split_whitespace().map(str::to_owned).collect();
        (links, rules.to_owned())
    };
    let (now, before) = (parts(now), parts(before));
    now.0.is_subset(&before.0) && now.1 == before.1
}

/// How `ctr run` with these flags fails; nothing of the container is left.
fn refused(host: &Host, flags: &str, id: &str, command: &[&str]) -> String {
    let before = (state(host), ctr(host, "network netns ls -q"));
    let told = host.run(&words(flags), id, command).err();
    let of_it = |table: String| {
        table
            .lines()
            .any(|l| l.split_whitespace().next() == Some(id))
    };
    for list in ["containers ls", "tasks ls", "snapshots ls"] {
        assert!(!of_it(ctr(host, list)), "{list} has {id}: {told}");
    }
    until("nothing of it is left", || {
        let now = (state(host), ctr(host, "network netns ls -q"));
        is_no_more(&now.0, &before.0) && now.1 == before.1
    });
    told
}

/// The network namespace of a container's process.
fn inside(host: &Host, id: &str) -> String {
    let pid = host.task(id, "RUNNING").expect("it runs");
    format!("/proc/{pid}/ns/net")
}

/// Somebody outside, with a wire to the host's 192.0.2.1 and 2001:db8::1.
fn outside(host: &Host) -> String {
    let path = ctr(host, "network netns create out");
    ctr(
        host,
        "network link create --kind veth --peer eth0 --peer-netns out --up --address 192.0.2.1/24 \
         --address 2001:db8::1/64 up0",
    );
    ctr(
        host,
        "network link set --netns out --up --address 192.0.2.2/24 --address 2001:db8::2/64 eth0",
    );
    path.trim().to_owned()
}

fn apart(name: &str, sections: &str) -> Host {
    let host = Host::apart(name, sections);
    host.image();
    drop(within(&home(&host), "ip link set lo up").ok());
    host
}

fn finish(host: Host) {
    assert_eq!(ctr(&host, "network netns ls -q"), "");
    // Snapshots of those that went are the collector's.
    until("nothing is wrong", || {
        host.ctr(["fsck"]).stdout.ends_with("nothing is wrong\n")
    });
    drop(host.ctr(["images", "rm", IMAGE]).ok());
    host.finish();
}

#[test]
fn containers_on_a_bridge_talk_and_are_reached_and_leave_nothing() {
    let host = apart("run-bridge", "");
    let before = state(&host);
    let out = outside(&host);
    let wired = state(&host);
    let first = "--net bridge --ip 10.7.0.2/24 --ip fd07::2/64 -p 8080:80 -p [2001:db8::1]:8081:80";
    start(&host, first, "a", &SERVER);
    start(
        &host,
        "--net bridge --ip 10.7.0.3/24 --ip fd07::3/64",
        "b",
        &SLEEPER,
    );
    let other = inside(&host, "b");
    for address in ["10.7.0.2", "fd07::2"] {
        fetch(&other, address, 80);
    }
    for (address, port) in [
        ("192.0.2.1", 8080),
        ("2001:db8::1", 8080),
        ("2001:db8::1", 8081),
    ] {
        fetch(&out, address, port);
    }
    // What another one has is refused, whole; and so is what never starts.
    let told = refused(
        &host,
        "-d --net bridge --ip 10.7.0.4/24 -p 8080:80",
        "c",
        &SLEEPER,
    );
    assert!(told.contains("already exists"), "{told}");
    let told = refused(&host, "--net bridge --ip 10.7.0.2/24", "c", &SLEEPER);
    assert!(told.contains("already exists"), "{told}");
    let told = refused(
        &host,
        "-d --net bridge --ip 10.7.0.4/24 -p 8082:80",
        "c",
        &["/no/such"],
    );
    assert!(told.contains("/no/such"), "{told}");
    // A network belongs to the container, not to its task.
    drop(host.ctr(["tasks", "rm", "-f", "a"]));
    ctr(&host, "tasks start -d a");
    fetch(&out, "192.0.2.1", 8080);
    // One that comes and goes, by a gateway of its own choice.
    let told = said(
        &host,
        "--net bridge --ip 10.7.0.5/24,gateway=10.7.0.9",
        "d",
        &["ip", "route"],
    );
    assert!(told.contains("default via 10.7.0.9 dev eth0"), "{told}");
    host.remove("a");
    host.remove("b");
    assert_eq!(state(&host), wired);
    ctr(&host, "network link rm up0");
    ctr(&host, "network netns rm out");
    assert_eq!(state(&host), before);
    finish(host);
}

/// A configuration of CNI in `dir`: Debian's plugins, and a network `broken` whose second plugin fails.
fn cni(dir: &Path) -> String {
    let (conf, bin) = (dir.join("net.d"), dir.join("bin"));
    for made in [&conf, &bin] {
        std::fs::create_dir(made).expect("a directory");
    }
    let chain = CHAIN.replace("DATA", &dir.join("data").display().to_string());
    let broken = chain
        .replace("\"real\"", "\"broken\"")
        .replace("\"portmap\"", "\"broken\"");
    std::fs::write(conf.join("10-real.conflist"), chain).expect("a configuration");
    std::fs::write(conf.join("20-broken.conflist"), broken).expect("a configuration");
    let text = "#!/bin/sh\n[ $CNI_COMMAND = DEL ] && exit 0\n\
                echo '{\"cniVersion\":\"1.0.0\",\"code\":100,\"msg\":\"never\"}'\nexit 1\n";
    drop(script(&bin.join("broken"), text));
    format!(
        "[plugins.\"io.containerd.network.v1.cni\"]\nconf_dir = \"{}\"\n\
         bin_dirs = [\"{}\", \"/usr/lib/cni\"]\n",
        conf.display(),
        bin.display()
    )
}

/// Addresses that are given away.
fn given(dir: &Path, network: &str) -> Vec<String> {
    let entries = std::fs::read_dir(dir.join("data").join(network));
    let names = entries.into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("10.")).collect()
}

#[test]
fn containers_get_their_network_from_cni_and_give_it_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let host = apart("run-cni", &cni(dir.path()));
    start(&host, "--cni -p 8080:80", "a", &SERVER);
    assert_eq!(given(dir.path(), "real").len(), 1);
    fetch(&home(&host), "10.88.0.1", 8080);
    let told = said(
        &host,
        "--net cni:real",
        "b",
        &["ip", "addr", "show", "eth0"],
    );
    assert!(told.contains("inet 10.88.0."), "{told}");
    assert_eq!(given(dir.path(), "real").len(), 1);
    let told = refused(&host, "--net cni:broken -p 8081:80", "c", &SLEEPER);
    assert!(told.contains("\"broken\": ADD: never"), "{told}");
    assert!(given(dir.path(), "broken").is_empty());
    let told = refused(&host, "--net cni:gone", "c", &SLEEPER);
    assert!(told.contains("not found"), "{told}");
    host.remove("a");
    assert!(given(dir.path(), "real").is_empty());
    let rules = within(&home(&host), "nft list ruleset").ok();
    assert!(!rules.contains("10.88.0."), "{rules}");
    finish(host);
}

#[test]
fn containers_are_alone_with_the_host_or_with_each_other() {
    let host = apart("run-net", "");
    let before = state(&host);
    let alone = ["sh", "-c", "ls /sys/class/net; cat /sys/class/net/lo/flags"];
    for flags in ["", "--net none"] {
        // Up, and a loopback.
        assert_eq!(said(&host, flags, "a", &alone), "lo\n0x9\n", "{flags}");
    }
    let which = ["readlink", "/proc/self/ns/net"];
    let of_host = std::fs::read_link(home(&host)).expect("a link");
    for flags in ["--net host", "--net-host"] {
        let told = said(&host, flags, "a", &which);
        assert_eq!(Path::new(told.trim()), of_host, "{flags}");
    }
    ctr(&host, "network netns create n");
    let listed: Value = serde_json::from_str(&ctr(&host, "network netns ls --json")).expect("JSON");
    let named = format!("net:[{}]\n", listed[0]["inode"]);
    for (flags, id) in [("--net n", "a"), ("--network-namespace n", "b")] {
        assert_eq!(said(&host, flags, id, &which), named, "{flags}");
    }
    start(&host, "--net n", "a", &SERVER);
    start(&host, "--net n", "b", &SLEEPER);
    fetch(&inside(&host, "b"), "127.0.0.1", 80);
    for (flags, told) in [
        ("--net gone", "network namespace \"gone\": not found"),
        (
            "--net host -p 8080:80",
            "--port is for --net bridge and --net cni",
        ),
        ("--net none -p 8080:80", "reached by nobody"),
        ("--net n -p 8080:80", "ctr network setup"),
        ("--net bridge -p 8080:80", "without --ip"),
        ("--net n --with-ns network:/proc/1/ns/net", "--with-ns"),
    ] {
        let text = refused(&host, flags, "c", &SLEEPER);
        assert!(text.contains(told), "{flags}: {text}");
    }
    host.remove("a");
    host.remove("b");
    // It was there before them.
    ctr(&host, "network netns rm n");
    assert_eq!(state(&host), before);
    finish(host);
}

/// Has the collector run, and waits for it.
fn collect(host: &Host) {
    ctr(host, "leases create --id collect");
    ctr(host, "leases rm --sync collect");
}

#[test]
fn a_network_goes_with_its_container_whoever_removes_it() {
    let host = apart("run-kept", "");
    let before = state(&host);
    let flags = "--net bridge --ip 10.7.0.2/24 -p 8080:80";
    start(&host, flags, "a", &SLEEPER);
    collect(&host);
    assert_eq!(ctr(&host, "network netns ls -q"), "a\n");
    // Another client knows nothing of networks.
    drop(host.ctr(["tasks", "rm", "-f", "a"]));
    drop(host.go_ctr(["containers", "rm", "a"]).ok());
    collect(&host);
    until("its namespace, wire and ports are gone", || {
        state(&host) == before && ctr(&host, "network netns ls -q").is_empty()
    });
    // Who has joined it keeps it.
    start(&host, flags, "a", &SERVER);
    start(&host, "--net a", "b", &SLEEPER);
    host.remove("a");
    collect(&host);
    assert_eq!(ctr(&host, "network netns ls -q"), "a\n");
    let there = within(&inside(&host, "b"), "ip -o addr show eth0").ok();
    assert!(there.contains("10.7.0.2/24"), "{there}");
    host.remove("b");
    collect(&host);
    until("it is gone with the last one", || state(&host) == before);
    finish(host);
}

#[test]
fn a_container_starts_with_its_network_and_never_with_that_of_another() {
    let host = apart("run-parted", "");
    let before = state(&host);
    let flags = "--net bridge --ip 10.7.0.2/24 -p 8080:80";
    start(&host, flags, "a", &SERVER);
    drop(host.ctr(["tasks", "rm", "-f", "a"]));
    ctr(&host, "network teardown --netns a a");
    ctr(&host, "tasks start -d a");
    fetch(&home(&host), "10.7.0.2", 80);
    fetch(&home(&host), "127.0.0.1", 8080);
    drop(host.ctr(["tasks", "rm", "-f", "a"]));
    // The namespace of its name is another one by now, which somebody uses.
    ctr(&host, "network teardown --netns a a");
    ctr(&host, "network netns rm a");
    ctr(&host, "network netns create a");
    ctr(&host, "network setup --netns a --address 10.7.0.3/24 a");
    let said = host.ctr(["tasks", "start", "-d", "a"]).err();
    assert!(said.contains("is not the one that was made"), "{said}");
    ctr(&host, "containers rm a");
    assert_eq!(ctr(&host, "network netns ls -q"), "a\n");
    assert_eq!(ctr(&host, "network ls -q"), "a\n");
    ctr(&host, "network teardown --netns a a");
    ctr(&host, "network netns rm a");
    assert_eq!(state(&host), before);
    finish(host);
}

#[test]
fn a_container_has_its_network_again_after_the_machine_was_off() {
    let mut host = apart("run-reboot", "");
    start(
        &host,
        "--net bridge --ip 10.7.0.2/24 -p 8080:80",
        "a",
        &SERVER,
    );
    // The state directory goes, and with a new network namespace all that was wired.
    host.power_off();
    host.start();
    drop(within(&home(&host), "ip link set lo up").ok());
    assert_eq!(ctr(&host, "network netns ls -q"), "");
    let before = state(&host);
    ctr(&host, "tasks start -d a");
    fetch(&home(&host), "10.7.0.2", 80);
    fetch(&home(&host), "127.0.0.1", 8080);
    host.remove("a");
    assert_eq!(state(&host), before);
    finish(host);
}
