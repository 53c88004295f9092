//! What containers, neighbours and tenants must not get from the driver.

use std::sync::atomic::Ordering;

use super::*;

const HEARS: &str = "cat /proc/sys/net/ipv6/conf";

#[test]
fn no_container_becomes_a_router_of_the_host() {
    let place = Place::new();
    place.host.run(
        "ip link add other type bridge && ip link add p1 type veth peer name p2 && \
         ip link set p1 master other && for one in default other p1 p2 out; do \
         echo 1 >/proc/sys/net/ipv6/conf/$one/accept_ra; done; \
         echo 0 >/proc/sys/net/ipv6/conf/all/forwarding",
    );
    let one = Net::new();
    place.setup(&request("c1", &one, 2)).unwrap();
    let hears = |net: &Net, name: &str| net.run(&format!("{HEARS}/{name}/accept_ra"));
    // The uplink of the host is heard on, and nobody else.
    for (name, value) in [
        ("out", "2"),
        ("p2", "2"),
        ("default", "1"),
        ("other", "1"),
        ("p1", "1"),
        ("br0", "0"),
    ] {
        assert_eq!(hears(&place.host, name).trim(), value, "{name}");
    }
    assert_eq!(hears(&one, "eth0").trim(), "0");
    assert_eq!(
        place.host.run(&format!("{HEARS}/all/forwarding")).trim(),
        "1"
    );
}

#[test]
fn settings_of_the_host_stay_when_a_set_up_fails() {
    let place = Place::new();
    let settings =
        "cd /proc/sys/net; cat ipv4/ip_forward ipv6/conf/all/forwarding ipv6/conf/out/accept_ra";
    place.host.run(
        "echo 0 >/proc/sys/net/ipv4/ip_forward; echo 0 >/proc/sys/net/ipv6/conf/all/forwarding; \
         echo 1 >/proc/sys/net/ipv6/conf/out/accept_ra",
    );
    let before = place.host.run(settings);
    let one = Net::new();
    let mut wanted = request("c1", &one, 2);
    wanted.routes = vec![Route::new(
        "10.9.0.0/16".parse().unwrap(),
        Some("10.8.0.1".parse().unwrap()),
    )];
    place.fails(&wanted, Code::FailedPrecondition, "10.9.0.0/16");
    assert_eq!(place.host.run(settings), before);
    // And when it is the last step that cannot be made, what was changed is taken back.
    place.host.within(|| {
        let addresses = request("c1", &one, 2).addresses;
        let changed = host::forward(&addresses, &|name| name == "out").unwrap();
        assert_ne!(place.host.run(settings), before);
        changed.take_back().unwrap();
    });
    assert_eq!(place.host.run(settings), before);
}

#[test]
fn a_port_at_the_loopback_is_not_reached_from_the_lan() {
    let place = Place::new();
    let one = Net::new();
    let mut wanted = request("c1", &one, 2);
    wanted.ports = vec![PortMapping {
        host_ip: Some("127.0.0.1".parse().unwrap()),
        ..port(8080, 80)
    }];
    place.setup(&wanted).unwrap();
    let inner = server(&one, "10.7.0.2:80");
    reach(&place.host, "127.0.0.1:8080", &inner);
    inner.set_nonblocking(true).unwrap();
    // A neighbour sends what is for 127.0.0.1 to the host.
    place.outside.run(
        "ip addr del 127.0.0.1/8 dev lo && echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet && \
         ip route add 127.0.0.0/8 via 192.0.2.1 src 192.0.2.2",
    );
    let to = "127.0.0.1:8080".parse().unwrap();
    let try_it = |millis| {
        let patience = Duration::from_millis(millis);
        place
            .outside
            .within(|| std::net::TcpStream::connect_timeout(&to, patience))
    };
    try_it(500).unwrap_err();
    inner.accept().unwrap_err();
    // By that way it would be, but for the filter.
    place
        .host
        .run("nft flush chain inet $(nft list tables | awk '/containerd/{print $3}') guard");
    try_it(60_000).unwrap();
}

#[test]
fn a_port_at_no_address_is_one_at_each_of_its_family() {
    let place = Place::new();
    let one = Net::new();
    let mut wanted = request("c1", &one, 2);
    let at = |host: &str, port: PortMapping| PortMapping {
        host_ip: Some(host.parse().unwrap()),
        ..port
    };
    wanted.ports = vec![at("0.0.0.0", port(8080, 80)), at("::", port(8081, 80))];
    place.setup(&wanted).unwrap();
    place.check(&wanted).unwrap();
    let v4 = server(&one, "10.7.0.2:80");
    let v6 = server(&one, "[fd07::2]:80");
    reach(&place.outside, "192.0.2.1:8080", &v4);
    reach(&place.host, "127.0.0.1:8080", &v4);
    reach(&place.outside, "[2001:db8::1]:8081", &v6);
    place.teardown(&wanted);
    for (host, code, says) in [
        ("::1", Code::InvalidArgument, "[::1]:8080"),
        ("192.0.2.77", Code::FailedPrecondition, "192.0.2.77"),
        ("fe80::1", Code::FailedPrecondition, "fe80::1"),
    ] {
        wanted.ports = vec![at(host, port(8080, 80))];
        place.fails(&wanted, code, says);
    }
    // The bridge is yet to be made, and will have it.
    wanted.ports = vec![at("10.7.0.1", port(8080, 80))];
    place.setup(&wanted).unwrap();
    reach(&place.host, "10.7.0.1:8080", &v4);
}

#[test]
fn the_hosts_own_programs_keep_their_loopback_of_ipv6() {
    let place = Place::new();
    let one = Net::new();
    let mut wanted = request("c1", &one, 2);
    wanted.ports = vec![port(8080, 80)];
    place.setup(&wanted).unwrap();
    let own = server(&place.host, "[::1]:8080");
    reach(&place.host, "[::1]:8080", &own);
}

#[test]
fn a_gateway_and_a_container_do_not_share_an_address() {
    let place = Place::new();
    let (one, two) = (Net::new(), Net::new());
    let mut first = request("c1", &one, 2);
    first.addresses.truncate(1);
    place.setup(&first).unwrap();
    let state = place.state();
    let mut second = request("c2", &two, 1);
    second.addresses.truncate(1);
    second.routes = vec![Route::new(
        IpNet::DEFAULT_V4,
        Some("10.7.0.254".parse().unwrap()),
    )];
    place.fails(&second, Code::AlreadyExists, "10.7.0.1 of bridge br0");
    second.addresses = vec!["10.7.0.3/24".parse().unwrap()];
    second.routes[0].gateway = Some("10.7.0.2".parse().unwrap());
    place.fails(&second, Code::AlreadyExists, "gateway 10.7.0.2");
    assert_eq!(place.state(), state);
}

#[test]
fn an_address_that_somebody_has_taken_just_now_becomes_no_gateway() {
    let place = Place::new();
    let one = Net::new();
    let mut wanted = request("c1", &one, 2);
    wanted.addresses.truncate(1);
    let (core, before) = (&place.driver.core, place.state());
    let plan = Plan::of(&wanted).unwrap();
    place.host.within(|| {
        // After it was found to be free, and before there is the bridge.
        let gateway = ["10.7.0.1".parse().unwrap()];
        core.nat.attach("default/c2 eth0", &gateway, &[]).unwrap();
        let refused = core.serve(&plan, &mut Inside::host().unwrap());
        let refused = refused.map(drop).unwrap_err();
        assert!(refused.is(Code::AlreadyExists), "{refused}");
        assert!(
            refused.to_string().contains("gateway 10.7.0.1"),
            "{refused}"
        );
        core.nat.detach("default/c2 eth0").unwrap();
    });
    assert_eq!(place.state(), before);
}

/// Ends what goes on beside a test, also when that fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn who_fails_takes_no_setting_of_the_host_from_who_does_not() {
    let place = Place::new();
    let (one, two) = (Net::new(), Net::new());
    let core = &place.driver.core;
    let finish = |request: &NetRequest, wire: u32| {
        let mut record = record::Record {
            request: request.clone(),
            phase: record::Phase::Coming,
            place: crate::netns::Identity::of(&one.netns).unwrap(),
            made_at: std::time::SystemTime::now(),
        };
        let mut host = Inside::host()?;
        core.finish(&Plan::of(request).unwrap(), (&mut host, wire), &mut record)
    };
    let (good, bad) = (request("c1", &one, 2), request("c2", &two, 3));
    place.host.run("ip link add w type bridge");
    let wire = place.host.run("ip -o link show w | cut -d: -f1");
    let wire = wire.trim().parse().unwrap();
    let setting = "/proc/sys/net/ipv4/ip_forward";
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            place.host.within(|| {
                while !is_over.load(Ordering::Relaxed) {
                    finish(&bad, 4711).unwrap_err();
                }
            });
        });
        let over = Over(&is_over);
        let lost = place.host.within(|| {
            let once = |_| {
                let making = core.making.lock().unwrap();
                std::fs::write(setting, "0").unwrap();
                drop(making);
                finish(&good, wire).unwrap();
                std::fs::read_to_string(setting).unwrap() == "0\n"
            };
            (0..2000).any(once)
        });
        drop(over);
        assert!(!lost, "packets of one that is attached are not passed on");
    });
}

#[test]
fn a_bridge_that_is_to_go_is_not_joined() {
    let place = Place::new();
    let one = Net::new();
    let mark = place.driver.core.grave.mark();
    // As it is when it could be marked and not be taken away.
    place
        .host
        .run(&format!("ip link add br0 group {mark} type bridge"));
    let wanted = request("c1", &one, 2);
    place.setup(&wanted).unwrap();
    place.state();
    place.check(&wanted).unwrap();
}

#[test]
fn a_set_up_by_filters_that_were_not_compared_leaves_nothing() {
    let place = Place::new();
    let (one, two) = (Net::new(), Net::new());
    place.setup(&request("c1", &one, 2)).unwrap();
    let core = &place.driver.core;
    let late = request("c2", &two, 2);
    place.host.within(|| {
        let era = core.nat.compared().unwrap().unwrap();
        place.host.run("nft flush ruleset");
        let error = core.setup(&Plan::of(&late).unwrap(), &late, era);
        let error = error.unwrap_err();
        assert!(error.is(Code::Aborted), "{error}");
        assert!(core.setup_compared(&late).unwrap().is_none());
        let error = core.recall_and_setup(&late).unwrap_err();
        assert!(error.is(Code::AlreadyExists), "{error}");
    });
    assert_eq!(two.run("ip -o link show | wc -l").trim(), "1");
    assert_eq!(place.written().len(), 1);
    place.check(&request("c1", &one, 2)).unwrap();
}

#[test]
fn networks_that_nobody_has_an_address_of_go_from_a_bridge() {
    let place = Place::new();
    let (one, two) = (Net::new(), Net::new());
    place.setup(&request("c1", &one, 2)).unwrap();
    let state = place.state();
    let mut second = request("c2", &two, 3);
    second.addresses = vec!["10.8.0.3/24".parse().unwrap()];
    place.setup(&second).unwrap();
    assert!(
        place.state().contains("br0 10.8.0.1/24"),
        "{}",
        place.state()
    );
    place.teardown(&second);
    let left = place.state();
    assert!(!left.contains("10.8.0."), "{left}");
    assert!(
        left.contains("br0 10.7.0.1/24") && state.contains("fd07::1/64"),
        "{left}"
    );
    place.check(&request("c1", &one, 2)).unwrap();
}

#[test]
fn what_a_flush_has_taken_is_given_to_nobody_else() {
    let place = Place::new();
    let (one, two) = (Net::new(), Net::new());
    let mut first = request("c1", &one, 2);
    first.ports = vec![port(8080, 80)];
    place.setup(&first).unwrap();
    let flush = || place.host.run("nft flush ruleset");
    flush();
    let second = request("c2", &two, 2);
    place.fails(&second, Code::AlreadyExists, "10.7.0.2");
    place.check(&first).unwrap();
    flush();
    let mut second = request("c2", &two, 3);
    second.ports = first.ports.clone();
    place.fails(&second, Code::AlreadyExists, "port 8080/tcp");
    flush();
    let mut gateway = request("c2", &two, 3);
    gateway.routes = vec![Route::new(
        IpNet::DEFAULT_V4,
        Some("10.7.0.2".parse().unwrap()),
    )];
    place.fails(&gateway, Code::AlreadyExists, "gateway 10.7.0.2");
    flush();
    second.addresses = vec!["10.8.0.3/24".parse().unwrap()];
    second.ports.clear();
    place.setup(&second).unwrap();
    place.check(&first).unwrap();
    place.teardown(&second);
    place.check(&first).unwrap();
}

#[test]
fn a_living_wire_outlives_a_flush_when_the_same_is_asked_for_again() {
    let place = Place::new();
    let one = Net::new();
    let wanted = request("c1", &one, 2);
    place.setup(&wanted).unwrap();
    let wires = || place.host.run("ip -o link show master br0 | cut -d: -f1");
    let before = wires();
    let table = "$(nft list tables | awk '/containerd/{print $3}')";
    for harm in ["flush chain", "delete chain"] {
        let flush = format!("nft flush chain inet {table} guard");
        place
            .host
            .run(&format!("{flush}; nft {harm} inet {table} guard"));
        for _ in 0..2 {
            place.setup(&wanted).unwrap();
            place.check(&wanted).unwrap();
            assert_eq!(wires(), before, "{harm}");
        }
    }
}

#[test]
fn a_bridge_keeps_the_addresses_of_who_is_at_it_without_packet_filters() {
    let place = Place::new();
    let nets = [Net::new(), Net::new(), Net::new()];
    let all: Vec<_> = { nets.iter().zip(7..) }
        .map(|(net, third)| {
            let mut one = request(&format!("c{third}"), net, 2);
            one.addresses = vec![format!("10.{third}.0.2/24").parse().unwrap()];
            place.setup(&one).unwrap();
            one
        })
        .collect();
    let table = "$(nft list tables | awk '/containerd/{print $3}')";
    place
        .host
        .run(&format!("nft flush set inet {table} taken4"));
    place.host.within(|| {
        let nat = &place.driver.core.nat;
        let (owner, ip) = (Tag::of(&all[2]).owner(), all[2].addresses[0].address());
        nat.attach(&owner, &[ip], &[]).unwrap();
    });
    place.teardown(&all[1]);
    let seen = place.host.run("ip -4 addr show br0");
    assert!(
        seen.contains("10.7.0.1/24") && seen.contains("10.9.0.1/24"),
        "{seen}"
    );
    assert!(!seen.contains("10.8.0.1/24"), "{seen}");
}

#[test]
fn what_other_tenants_have_is_not_told() {
    let place = Place::new();
    let (one, two) = (Net::new(), Net::new());
    let mut first = request("secret", &one, 2);
    first.ports = vec![port(8080, 80)];
    place.setup(&first).unwrap();
    let mut second = request("c2", &two, 2);
    second.id.namespace = "other".parse().unwrap();
    for last in [2, 3] {
        second.addresses = request("c2", &two, last).addresses;
        second.ports = vec![port(8080, 80)];
        let error = place.setup(&second).unwrap_err();
        assert!(error.is(Code::AlreadyExists), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}

#[test]
fn what_is_at_another_bridge_than_the_named_one_is_not_parted() {
    let place = Place::new();
    let one = Net::new();
    let wanted = request("c1", &one, 2);
    place.setup(&wanted).unwrap();
    let mut other = wanted.clone();
    other.networks = vec!["br1".into()];
    place.teardown(&other);
    place.check(&wanted).unwrap();
    other.networks.clear();
    place.teardown(&other);
    assert!(place.check(&wanted).unwrap_err().is_not_found());
}

#[test]
fn a_bridge_that_another_tenant_has_made_anew_gets_no_wire() {
    let place = Place::new();
    let directory = tempfile::tempdir().unwrap();
    let mut opts = opts(place.records.path());
    let networks = place.host.within(|| {
        Networks::open(crate::OpenOpts {
            directory: directory.path().to_owned(),
            identity: String::new(),
            hidden: vec![place.driver.core.group],
            publisher: Arc::new(|_, _| {}),
        })
    });
    let networks = networks.unwrap();
    opts.networks = Some(networks.clone());
    let driver = Bridge::new(&opts);
    let one = Net::new();
    let wanted = request("c1", &one, 2);
    place.host.block_on(driver.setup(&wanted)).unwrap();
    place.host.run("ip link del br0");
    let new = types::network::NewLink {
        place: types::network::Place::Host,
        name: "br0".parse().unwrap(),
        kind: types::network::LinkKind::Bridge,
        spec: types::network::LinkSpec::default(),
        labels: types::Labels::new(),
    };
    let other = types::Scope::new("other".parse().unwrap());
    place
        .host
        .block_on(networks.create_link(&other, new))
        .unwrap();
    let left = place.host.block_on(driver.reconcile(|_| true)).unwrap_err();
    assert!(left.is(Code::PermissionDenied), "{left}");
    let again = place.host.block_on(driver.setup(&wanted)).unwrap_err();
    assert!(again.is(Code::PermissionDenied), "{again}");
    assert_eq!(place.host.run("ip -o link show master br0"), "");
}
