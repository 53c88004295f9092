//! Network namespaces and interfaces by name: made, looked at from outside, shared, kept over the daemon's
//! death, and gone without a trace.

use integration::{Host, IMAGE, Program, net, until, until_told};
use serde_json::Value;

/// What iproute2 says inside the namespace whose file is at `path`.
fn ip(path: &str, arguments: &str) -> Value {
    let net = format!("--net={path}");
    let mut all = vec![net.as_str(), "ip", "-j", "-d"];
    all.extend(arguments.split(' '));
    let told = Program::new("nsenter").args(all).run().ok();
    serde_json::from_str(&told).expect("JSON")
}

/// Names of the machine's own interfaces.
fn host_links() -> Vec<String> {
    let told = Program::new("ip").args(["-j", "link"]).run().ok();
    let told: Value = serde_json::from_str(&told).expect("JSON");
    let all = told.as_array().expect("a list").iter();
    let mut names: Vec<String> = all.map(|link| link["ifname"].to_string()).collect();
    names.sort();
    names
}

/// Does `work` where nobody else makes or removes interfaces, and looks that none of its own stays there.
fn alone(work: impl FnOnce() + Send) {
    net::apart(|| {
        let before = host_links();
        work();
        let now = || format!("{:?}", host_links());
        until_told(
            "no interface that was not there",
            || host_links() == before,
            now,
        );
    });
}

fn words(line: &str) -> Vec<&str> {
    line.split(' ').filter(|word| !word.is_empty()).collect()
}

fn ctr(host: &Host, line: &str) -> String {
    host.ctr(words(line)).ok()
}

fn refused(host: &Host, line: &str) -> String {
    host.ctr(words(line)).err()
}

fn json(host: &Host, line: &str) -> Value {
    serde_json::from_str(&ctr(host, line)).expect("JSON")
}

fn netns(host: &Host, name: &str) -> String {
    ctr(host, &format!("network netns create {name}"))
        .trim()
        .to_owned()
}

#[test]
fn netns_are_made_listed_kept_over_a_restart_and_removed() {
    alone(kept_over_a_restart);
}

fn kept_over_a_restart() {
    let mut host = Host::new("netns");
    let path = netns(&host, "n");
    assert!(
        path.starts_with(&host.state().display().to_string()),
        "{path}"
    );
    assert_eq!(netns(&host, "n"), path);
    assert_eq!(
        ip(&path, "addr show lo")[0]["addr_info"][0]["local"],
        "127.0.0.1"
    );
    // One that is there gets a name.
    let adopted = ctr(
        &host,
        &format!("network netns create --adopt {path} --label a=b m"),
    );
    let listed = json(&host, "network netns ls --json");
    assert_eq!(
        (
            listed[0]["adopted"].as_str(),
            listed[0]["labels"]["a"].as_str()
        ),
        (Some(path.as_str()), Some("b"))
    );
    assert_eq!(listed[0]["inode"], listed[1]["inode"]);
    assert_eq!(ctr(&host, "network netns ls -q labels.a==b"), "m\n");
    for (line, class) in [
        (
            "network netns create --adopt /etc/passwd x",
            "invalid argument",
        ),
        ("network netns create --adopt /no/such x", "not found"),
        ("network netns create a/b", "invalid argument"),
        ("network netns create --label c=d n", "already exists"),
        ("network netns rm gone", "not found"),
        ("network link ls --netns gone", "not found"),
    ] {
        let told = refused(&host, line);
        assert!(told.contains(class), "{line}: {told}");
    }
    host.kill();
    host.start();
    assert_eq!(json(&host, "network netns ls --json"), listed);
    assert!(ctr(&host, "fsck").starts_with("checked "));
    assert_eq!(ctr(&host, "network netns rm m n"), "m\nn\n");
    assert!(!std::path::Path::new(adopted.trim()).exists());
    host.finish();
}

#[test]
fn links_of_each_kind_are_what_they_are_asked_to_be() {
    alone(links_of_each_kind);
}

fn links_of_each_kind() {
    let mut host = Host::new("links");
    let (n, m) = (netns(&host, "n"), netns(&host, "m"));
    let create = "network link create --netns n";
    ctr(
        &host,
        &format!("{create} --kind bridge --up --address 10.7.0.1/24 --address fd07::1/64 br0"),
    );
    ctr(
        &host,
        &format!(
            "{create} --kind veth --peer eth0 --peer-netns m --up --bridge br0 --hairpin --isolated --label a=b v0"
        ),
    );
    let inside = "--up --mtu 1400 --mac 02:00:00:00:07:02 --address 10.7.0.2/24 --route default,via=10.7.0.1 --neighbour 10.7.0.9=02:00:00:00:07:09 --sysctl ipv4/forwarding=1";
    ctr(&host, &format!("network link set --netns m {inside} eth0"));
    other_kinds(&host, &n);
    rare_kinds(&host, &n);
    let told = &ip(&m, "addr show eth0")[0];
    assert_eq!(
        (told["mtu"].as_u64(), told["address"].as_str()),
        (Some(1400), Some("02:00:00:00:07:02"))
    );
    assert_eq!(told["addr_info"][0]["local"], "10.7.0.2");
    assert_eq!(ip(&m, "route show default")[0]["gateway"], "10.7.0.1");
    assert_eq!(
        ip(&m, "neigh show nud permanent dev eth0")[0]["lladdr"],
        "02:00:00:00:07:09"
    );
    let port = &ip(&n, "link show v0")[0];
    let at_bridge = &port["linkinfo"]["info_slave_data"];
    assert_eq!(
        (
            port["master"].as_str(),
            at_bridge["hairpin"].as_bool(),
            at_bridge["isolated"].as_bool()
        ),
        (Some("br0"), Some(true), Some(true))
    );
    let setting = "cat /proc/sys/net/ipv4/conf/eth0/forwarding";
    assert_eq!(net::within(&m, setting).ok(), "1\n");
    // Another interface there has what the kernel gave it.
    let setting = "cat /proc/sys/net/ipv4/conf/lo/forwarding";
    assert_eq!(net::within(&m, setting).ok(), "0\n");
    // It carries packets.
    let ping = ["ping", "-c", "1", "-W", "5", "10.7.0.1"];
    let inside = format!("--net={m}");
    let busybox = Program::new("nsenter")
        .args([inside.as_str(), "busybox"])
        .args(ping)
        .run();
    assert_eq!(busybox.code, 0, "{}{}", busybox.stdout, busybox.stderr);
    // Moved, under another name, it has what it had.
    ctr(
        &host,
        "network link set --netns m --to-netns n --rename eth1 eth0",
    );
    assert_eq!(
        ip(&n, "addr show eth1")[0]["addr_info"][0]["local"],
        "10.7.0.2"
    );
    host.kill();
    host.start();
    let listed = json(&host, "network link ls --netns n --json labels.a==b");
    assert_eq!(
        (listed[0]["name"].as_str(), listed[0]["kind"].as_str()),
        (Some("v0"), Some("veth"))
    );
    bad_links(&host);
    ctr(&host, "network link rm --netns n v0 tun0");
    // With its parent went what was above it.
    let table = ctr(&host, "network link ls --netns n");
    let names: Vec<&str> = table
        .lines()
        .skip(1)
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert_eq!(names, ["br0", "lo", "tap0", "vx0"]);
    ctr(&host, "network netns rm n m");
    host.finish();
}

/// The kinds that this kernel has besides.
fn other_kinds(host: &Host, n: &str) {
    let create = "network link create --netns n";
    for (kind, name) in [
        (
            "macvlan --parent eth0 --parent-netns m --mode private",
            "mac0",
        ),
        ("vxlan --id 77 --remote 10.7.0.7 --parent br0", "vx0"),
        ("tun", "tun0"),
        ("tap", "tap0"),
    ] {
        ctr(host, &format!("{create} --kind {kind} {name}"));
        let word = kind
            .split(' ')
            .next()
            .expect("a kind")
            .replace("tap", "tun");
        let told = ip(n, &format!("link show {name}"));
        assert_eq!(told[0]["linkinfo"]["info_kind"], word.as_str(), "{told}");
    }
}

/// The kinds that not every kernel has: what iproute2 can make here, we can, and what it cannot is refused as a kind
/// that the kernel lacks.
fn rare_kinds(host: &Host, n: &str) {
    ctr(
        host,
        "network link create --netns n --kind veth --peer lo1 lo0",
    );
    for (kind, ours, theirs, detail) in [
        ("dummy", "", "type dummy", None),
        (
            "vlan",
            "--parent br0 --id 100",
            "link br0 type vlan id 100",
            Some(("id", Value::from(100))),
        ),
        (
            "ipvlan",
            "--parent lo0 --mode l3",
            "link lo0 type ipvlan mode l3",
            Some(("mode", "l3".into())),
        ),
    ] {
        let can = net::within(n, &format!("ip link add rare0 {theirs}"));
        if can.code == 0 {
            drop(net::within(n, "ip link del rare0").ok());
        }
        let made = host.ctr(words(&format!(
            "network link create --netns n --kind {kind} {ours} rare0"
        )));
        if can.code != 0 {
            let told = made.err();
            assert!(
                told.contains(kind) && told.contains("not implemented"),
                "{told}"
            );
            continue;
        }
        drop(made.ok());
        let told = &ip(n, "link show rare0")[0]["linkinfo"];
        assert_eq!(told["info_kind"], kind, "{told}");
        if let Some((key, value)) = detail {
            assert_eq!(told["info_data"][key], value, "{told}");
        }
        ctr(host, "network link rm --netns n rare0");
    }
    ctr(host, "network link rm --netns n lo0");
}

/// What cannot be is refused with its class and name, and changes nothing.
fn bad_links(host: &Host) {
    let before = json(host, "network link ls --netns n --json");
    let create = "network link create --netns n --kind";
    for (line, told) in [
        (
            format!("{create} veth --peer x 1234567890123456"),
            "1234567890123456",
        ),
        (format!("{create} veth --peer x a/b"), "a/b"),
        (format!("{create} macvlan --parent gone x"), "not found"),
        (format!("{create} veth --peer v0 x"), "already exists"),
        (format!("{create} bridge v0"), "already exists"),
        (
            format!("{create} veth --peer x --bridge eth1 y"),
            "interface eth1",
        ),
        (
            format!("{create} veth --peer x --mtu 1 y"),
            "MTU of interface y to 1",
        ),
        (
            format!(
                "{create} veth --peer x --address 10.0.0.1/24 --route default,via=192.0.2.1 --up y"
            ),
            "failed precondition",
        ),
        (
            "network link set --netns n --route 10.0.0.0/8,via=fd00::1 eth1".into(),
            "gateway fd00::1 (IPv6)",
        ),
        (
            "network link set --netns n --mtu 70000 --mac 02:00:00:00:00:01 eth1".into(),
            "invalid argument",
        ),
        ("network link rm --netns n gone".into(), "interface gone"),
        ("network link rm --netns n lo".into(), "failed precondition"),
    ] {
        let text = refused(host, &line);
        assert!(text.contains(told), "{line}: {text}");
    }
    assert_eq!(json(host, "network link ls --netns n --json"), before);
}

#[test]
fn containers_join_one_namespace_and_keep_it() {
    let mut host = Host::new("join");
    host.image();
    let path = netns(&host, "n");
    ctr(
        &host,
        "network link create --netns n --kind veth --peer q --up --address 10.7.1.2/24 eth0",
    );
    let joined = ["-d", "--network-namespace", "n"];
    for id in ["a", "b"] {
        drop(host.run(&joined, id, &["sleep", "1000"]).ok());
    }
    for id in ["a", "b"] {
        let pid = host.task(id, "RUNNING").expect("it runs");
        let told = ip(&format!("/proc/{pid}/ns/net"), "addr show eth0");
        assert_eq!(told[0]["addr_info"][0]["local"], "10.7.1.2");
    }
    let pid = host.task("a", "RUNNING").expect("it runs");
    let told = refused(&host, "network netns rm n");
    assert!(
        told.contains("failed precondition") && told.contains(&format!("(pid {pid})")),
        "{told}"
    );
    let missing = host
        .run(&["--rm", "--network-namespace", "gone"], "c", &["true"])
        .err();
    assert!(
        missing.contains("network namespace \"gone\": not found"),
        "{missing}"
    );
    host.kill();
    host.start();
    until("they are known", || host.task("b", "RUNNING").is_some());
    for id in ["a", "b"] {
        host.remove(id);
    }
    assert!(std::path::Path::new(&path).exists());
    ctr(&host, "network netns rm n");
    drop(host.ctr(["images", "rm", IMAGE]).ok());
    host.finish();
}

/// The same daemon's client in another namespace.
fn elsewhere(host: &Host, line: &str) -> integration::Output {
    let (address, other) = (
        host.address().display().to_string(),
        format!("{}-other", host.namespace()),
    );
    let to = ["-a", address.as_str(), "-n", other.as_str()];
    Program::new(integration::bin_dir().join("ctr"))
        .args(to)
        .args(words(line))
        .run()
}

#[test]
fn tenants_have_networks_of_their_own() {
    let host = Host::new("tenants");
    let own = netns(&host, "n");
    assert_ne!(elsewhere(&host, "network netns create n").ok().trim(), own);
    ctr(&host, "network link create --netns n --kind bridge br0");
    drop(elsewhere(&host, "network netns create theirs").ok());
    assert_eq!(ctr(&host, "network netns ls -q"), "n\n");
    assert_eq!(elsewhere(&host, "network netns ls -q").ok(), "n\ntheirs\n");
    let told = refused(&host, "network netns rm theirs");
    assert!(told.contains("not found"), "{told}");
    let told = elsewhere(&host, "network link rm --netns n br0").err();
    assert!(told.contains("not found"), "{told}");
    // What one tenant has no other gets by its path, nor anybody what is the host's.
    let line = format!("network netns create --adopt {own} mine");
    let told = elsewhere(&host, &line).err();
    assert!(told.contains("another tenant's"), "{told}");
    let line = format!("network setup --netns {own} --address 10.9.0.2/24 c");
    let told = elsewhere(&host, &line).err();
    assert!(told.contains("another tenant's"), "{told}");
    let line = format!(
        "network netns create --adopt /proc/{}/ns/net mine",
        host.daemon_pid()
    );
    let told = refused(&host, &line);
    assert!(told.contains("failed precondition"), "{told}");
    // A tenant that has nothing else is there, and not empty.
    let other = format!("{}-other", host.namespace());
    assert!(ctr(&host, "namespaces ls -q").contains(&other));
    let told = refused(&host, &format!("namespaces rm {other}"));
    assert!(told.contains("still has networks"), "{told}");
    ctr(&host, "network netns rm n");
    assert_eq!(
        elsewhere(&host, "network netns rm n theirs").ok(),
        "n\ntheirs\n"
    );
    ctr(&host, &format!("namespaces rm {other}"));
    host.finish();
}

#[test]
fn a_lease_takes_along_what_was_made_under_it() {
    let host = Host::new("network-lease");
    ctr(&host, "leases create --id l");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let (address, namespace) = (
            host.address().display().to_string(),
            host.namespace().parse().expect("a name"),
        );
        let client =
            client::Client::connect(&address, namespace, std::time::Duration::from_secs(20)).await;
        let client = client
            .expect("connect")
            .leased("l".parse().expect("a name"));
        let made = client
            .networks()
            .create_namespace("leased", None, &types::Labels::new())
            .await;
        drop(made.expect("make"));
        let client = client.leased("gone".parse().expect("a name"));
        let made = client
            .networks()
            .create_namespace("unleased", None, &types::Labels::new())
            .await;
        let refused = made.expect_err("there is no such lease");
        assert!(refused.is_not_found(), "{refused}");
    });
    assert_eq!(ctr(&host, "network netns ls -q"), "leased\n");
    netns(&host, "free");
    ctr(&host, "leases rm --sync l");
    until("it is collected", || {
        ctr(&host, "network netns ls -q") == "free\n"
    });
    ctr(&host, "network netns rm free");
    drop(runtime);
    host.finish();
}

#[test]
fn what_is_left_without_a_record_is_named_by_fsck() {
    let host = Host::new("network-fsck");
    let path = netns(&host, "n");
    let orphan = std::path::Path::new(&path).with_file_name("lost");
    sys::netns::create(&orphan, || Ok(())).expect("make");
    sys::netns::unpin(std::path::Path::new(&path)).expect("unpin");
    let told = host.ctr(["fsck"]);
    for line in ["missing network-namespace", "orphan network-namespace"] {
        assert!(told.stdout.contains(line), "{}", told.stdout);
    }
    drop(host.ctr(["fsck", "--repair"]));
    assert!(ctr(&host, "fsck").starts_with("checked "));
    assert!(!orphan.exists());
    assert_eq!(ctr(&host, "network netns ls -q"), "");
    host.finish();
}
