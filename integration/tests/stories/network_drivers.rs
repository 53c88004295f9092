//! Containers joined to networks by the drivers, in network namespaces of the test: they reach each other,
//! are reached by mapped ports, and leave nothing.

use integration::net::{fetch, within};
use integration::{Host, IMAGE, script, until};
use serde_json::Value;

/// Serves `hello` at port 80, of both families.
pub(crate) const SERVER: [&str; 3] = [
    "sh",
    "-c",
    "echo hello >/index.html; exec httpd -f -p 80 -h /",
];

/// A configuration of CNI with Debian's plugins.
pub(crate) const CHAIN: &str = r#"{"cniVersion":"1.0.0","name":"real","plugins":[
    {"type":"bridge","bridge":"cni0","isGateway":true,
     "ipam":{"type":"host-local","dataDir":"DATA","ranges":[[{"subnet":"10.88.0.0/24"}]],
        "routes":[{"dst":"0.0.0.0/0"}]}},
    {"type":"portmap","capabilities":{"portMappings":true}}]}"#;

pub(crate) fn words(line: &str) -> Vec<&str> {
    line.split(' ').filter(|word| !word.is_empty()).collect()
}

pub(crate) fn ctr(host: &Host, line: &str) -> String {
    host.ctr(words(line)).ok()
}

/// The daemon's network namespace.
pub(crate) fn home(host: &Host) -> String {
    format!("/proc/{}/ns/net", host.daemon_pid())
}

/// Interfaces and packet filters there.
pub(crate) fn state(host: &Host) -> String {
    integration::net::state(&home(host))
}

#[test]
fn containers_of_the_bridge_driver_talk_and_are_reached_by_mapped_ports() {
    let host = Host::apart("bridge-driver", "");
    host.image();
    drop(within(&home(&host), "ip link set lo up").ok());
    let before = state(&host);
    let paths = ["a", "b", "out"].map(|name| {
        let path = ctr(&host, &format!("network netns create {name}"));
        path.trim().to_owned()
    });
    ctr(
        &host,
        "network link create --kind veth --peer eth0 --peer-netns out --up --address 192.0.2.1/24 \
         --address 2001:db8::1/64 up0",
    );
    ctr(
        &host,
        "network link set --netns out --up --address 192.0.2.2/24 --address 2001:db8::2/64 eth0",
    );
    let first = "--netns a --address 10.7.0.2/24 --address fd07::2/64 -p 8080:80 a";
    let second = "--netns b --address 10.7.0.3/24 --address fd07::3/64 b";
    let told = ctr(&host, &format!("network setup --json {first}"));
    let told: Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!(told["addresses"][0]["gateway"], "10.7.0.1");
    ctr(&host, &format!("network setup {second}"));
    ctr(&host, &format!("network check {first}"));
    let taken = format!("network setup --netns b --interface eth1 {}", &first[10..]);
    let refused = host.ctr(words(&taken)).err();
    assert!(refused.contains("already exists"), "{refused}");

    drop(
        host.run(&["-d", "--network-namespace", "a"], "a", &SERVER)
            .ok(),
    );
    drop(
        host.run(&["-d", "--network-namespace", "b"], "b", &["sleep", "1000"])
            .ok(),
    );
    let pid = host.task("b", "RUNNING").expect("it runs");
    let other = format!("/proc/{pid}/ns/net");
    for address in ["10.7.0.2", "fd07::2"] {
        fetch(&other, address, 80);
        fetch(&home(&host), address, 80);
    }
    for address in ["192.0.2.1", "2001:db8::1"] {
        fetch(&paths[2], address, 8080);
        fetch(&other, address, 8080);
    }
    fetch(&home(&host), "127.0.0.1", 8080);

    host.remove("b");
    host.remove("a");
    for container in [first, second, first] {
        ctr(&host, &format!("network teardown {container}"));
    }
    let gone = host.ctr(words(&format!("network check {first}"))).err();
    assert!(gone.contains("not found"), "{gone}");
    ctr(&host, "network link rm up0");
    ctr(&host, "network netns rm a b out");
    assert_eq!(state(&host), before);
    drop(host.ctr(["images", "rm", IMAGE]).ok());
    host.finish();
}

#[test]
fn containers_are_joined_by_cni_and_give_their_addresses_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let (conf, data) = (dir.path().join("net.d"), dir.path().join("data"));
    std::fs::create_dir(&conf).expect("a directory");
    let chain = CHAIN.replace("DATA", &data.display().to_string());
    std::fs::write(conf.join("real.conflist"), chain).expect("a configuration");
    let sections = format!(
        "[plugins.\"io.containerd.network.v1.cni\"]\nconf_dir = \"{}\"\nbin_dirs = [\"/usr/lib/cni\"]\n",
        conf.display()
    );
    let host = Host::apart("cni-driver", &sections);
    host.image();
    drop(within(&home(&host), "ip link set lo up").ok());
    let path = ctr(&host, "network netns create a");
    let joining = "--driver cni --netns a -p 8080:80 a";
    let told = ctr(&host, &format!("network setup {joining}"));
    assert!(told.contains("10.88.0.2/24"), "{told}");
    assert_eq!(ctr(&host, &format!("network setup {joining}")), told);
    drop(
        host.run(&["-d", "--network-namespace", "a"], "a", &SERVER)
            .ok(),
    );
    fetch(&home(&host), "10.88.0.1", 8080);
    fetch(path.trim(), "10.88.0.2", 80);
    let refused = host
        .ctr(words(
            "network setup --driver cni --network gone --netns a b",
        ))
        .err();
    assert!(
        refused.contains("\"gone\"") && refused.contains("not found"),
        "{refused}"
    );
    host.remove("a");
    for _ in 0..2 {
        ctr(&host, &format!("network teardown {joining}"));
    }
    assert!(!data.join("real/10.88.0.2").exists());
    let rules = within(&home(&host), "nft list ruleset").ok();
    assert!(!rules.contains("10.88.0.2"), "{rules}");
    ctr(&host, "network netns rm a");
    drop(host.ctr(["images", "rm", IMAGE]).ok());
    host.finish();
}

/// Notes each call with what is attached by then, answers as it should, and finds fault when it is told to.
const NOTING: &str = r#"#!/bin/sh
input=$(cat)
echo "$CNI_COMMAND $CNI_CONTAINERID $(echo "$input" | grep -o '"containerID":"[^"]*"' | tr '\n' ' ')" >>DIR/calls
[ -e DIR/fault ] && { echo '{"cniVersion":"1.1.0","code":50,"msg":"not now"}'; exit 1; }
case $CNI_COMMAND in
ADD) echo '{"cniVersion":"1.1.0"}' ;;
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}' ;;
esac
exit 0
"#;

#[test]
fn a_cni_plugin_is_asked_to_check_to_collect_and_how_it_is() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path().display().to_string();
    let plugin = dir.path().join("noting");
    drop(script(&plugin, &NOTING.replace("DIR", &at)));
    let chain = r#"{"cniVersion":"1.1.0","name":"n","plugins":[{"type":"noting"}]}"#;
    std::fs::write(dir.path().join("n.conflist"), chain).expect("a configuration");
    let sections = format!(
        "[plugins.\"io.containerd.network.v1.cni\"]\nconf_dir = \"{at}\"\nbin_dirs = [\"{at}\"]\n"
    );
    let host = Host::apart("cni-asked", &sections);
    let called = || {
        let calls = dir.path().join("calls");
        let told = std::fs::read_to_string(&calls).unwrap_or_default();
        drop(std::fs::remove_file(calls));
        // Which versions it knows is asked whenever that is not known.
        let told = told.lines().filter(|line| !line.starts_with("VERSION"));
        told.map(|line| line.trim_end().to_owned())
            .collect::<Vec<_>>()
    };
    drop(ctr(&host, "network netns create a"));
    drop(ctr(&host, "network setup --driver cni --netns a a"));
    let id = format!("{}--a", host.namespace());
    assert_eq!(called(), [format!("ADD {id}")]);
    drop(ctr(&host, "network check --driver cni --netns a a"));
    assert_eq!(called(), [format!("CHECK {id}")]);
    assert_eq!(ctr(&host, "network status cni"), "cni: ready\n");
    assert_eq!(called(), ["STATUS"]);
    drop(ctr(&host, "network collect n"));
    assert_eq!(called(), [format!("GC  \"containerID\":\"{id}\"")]);
    let error = host
        .ctr(words("network collect --driver bridge containerd0"))
        .err();
    assert!(error.contains("nobody but this driver"), "{error}");

    let fault = dir.path().join("fault");
    std::fs::write(&fault, "").expect("a file");
    for line in [
        "network check --driver cni --netns a a",
        "network status cni",
        "network collect n",
    ] {
        let error = host.ctr(words(line)).err();
        assert!(error.contains("not now"), "{line}: {error}");
    }
    std::fs::remove_file(&fault).expect("a file");
    drop(ctr(&host, "network teardown --driver cni --netns a a"));
    ctr(&host, "network netns rm a");
    host.finish();
}

#[test]
fn what_a_plugin_could_not_take_away_is_tried_again_while_the_daemon_runs() {
    let dir = tempfile::tempdir().expect("a directory");
    let (stuck, gone) = (dir.path().join("stuck"), dir.path().join("gone"));
    let text = format!(
        "#!/bin/sh\ncase $CNI_COMMAND in\nADD) echo '{{\"cniVersion\":\"1.0.0\"}}' ;;\n\
         DEL) [ ! -e {} ] && touch {} ;;\nesac\n",
        stuck.display(),
        gone.display()
    );
    let plugin = dir.path().join("sticky");
    drop(script(&plugin, &text));
    let chain = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"sticky"}]}"#;
    std::fs::write(dir.path().join("n.conflist"), chain).expect("a configuration");
    let at = dir.path().display();
    let sections = format!(
        "[plugins.\"io.containerd.network.v1.cni\"]\nconf_dir = \"{at}\"\nbin_dirs = [\"{at}\"]\n"
    );
    let host = Host::apart("cni-sticky", &sections);
    drop(ctr(&host, "network netns create a"));
    let joining = "--driver cni --netns a a";
    drop(ctr(&host, &format!("network setup {joining}")));
    std::fs::write(&stuck, "").expect("a file");
    let parting = format!("network teardown {joining}");
    let error = host.ctr(words(&parting)).err();
    assert!(error.contains("\"sticky\": DEL"), "{error}");
    assert!(!gone.exists());
    std::fs::remove_file(&stuck).expect("a file");
    until("nobody asks again, and it is gone", || gone.exists());
    // Its own network namespace the daemon joins to nothing.
    let own = format!("network setup --driver cni --netns {} b", home(&host));
    let error = host.ctr(words(&own)).err();
    assert!(error.contains("of the host"), "{error}");
    ctr(&host, "network netns rm a");
    host.finish();
}

#[test]
fn what_somebody_flushes_is_named_and_comes_back() {
    let host = Host::apart("bridge-flushed", "");
    drop(within(&home(&host), "ip link set lo up").ok());
    let before = state(&host);
    drop(ctr(&host, "network netns create a"));
    let joining = "--netns a --address 10.7.0.2/24 -p 8080:80 a";
    drop(ctr(&host, &format!("network setup {joining}")));
    let list = |line: &str| -> Value {
        let told = ctr(&host, &format!("network ls --json {line}"));
        serde_json::from_str(&told).expect("JSON")
    };
    let told = list("--check driver==bridge");
    assert_eq!(told[0]["container"], "a");
    assert_eq!(told[0]["addresses"][0], "10.7.0.2/24");
    assert_eq!(told[0]["ports"][0]["hostPort"], 8080);
    assert_eq!(
        (&told[0]["state"], &told[0]["fault"]),
        (&"joined".into(), &"".into())
    );
    assert_eq!(list("driver==cni"), Value::Array(Vec::new()));
    assert_eq!(ctr(&host, "network status bridge"), "bridge: ready\n");
    let rows = ctr(&host, "plugins ls");
    for id in ["bridge", "cni", "native"] {
        let is_row = |line: &str| {
            line.split_whitespace()
                .take(2)
                .eq(["io.containerd.network.v1", id])
        };
        assert!(rows.lines().any(is_row), "{rows}");
    }

    drop(within(&home(&host), "nft flush ruleset").ok());
    let told = list("--check");
    assert!(
        told[0]["fault"].to_string().contains("not masqueraded"),
        "{told}"
    );
    let told = host.ctr(words(&format!("network check {joining}"))).err();
    assert!(told.contains("not masqueraded"), "{told}");
    let fsck = host.ctr(["fsck"]);
    assert!(fsck.stdout.contains("network-attachment"), "{fsck:?}");
    let fsck = host.ctr(["fsck", "--repair"]);
    assert!(fsck.stdout.contains("network-attachment"), "{fsck:?}");
    drop(ctr(&host, &format!("network check {joining}")));
    // Without anybody asking, when a namespace goes.
    drop(within(&home(&host), "nft flush ruleset").ok());
    drop(ctr(&host, "network netns create b"));
    drop(ctr(&host, "network netns rm b"));
    until("the packet filters are back", || {
        host.ctr(words(&format!("network check {joining}"))).code == 0
    });
    // With its namespace goes the attachment.
    drop(ctr(&host, "network netns rm a"));
    until("nothing is on record", || {
        list("") == Value::Array(Vec::new())
    });
    until("nothing is left", || state(&host) == before);
    host.finish();
}
