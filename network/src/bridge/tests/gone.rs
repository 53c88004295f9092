//! What goes: what was asked to, what is left of it, and what somebody else takes away.

use super::*;

#[test]
fn a_check_names_what_has_become_other() {
    let place = Place::new();
    let one = Net::new();
    let mut wanted = request("c1", &one, 2);
    wanted.ports = vec![port(8080, 80)];
    place.setup(&wanted).unwrap();
    let outer = place
        .host
        .run("ip -o link show type veth | grep -o 'ctd[0-9a-f]*'");
    for (net, harm, says) in [
        (
            &one,
            "ip addr del 10.7.0.2/24 dev eth0".to_owned(),
            "10.7.0.2/24 is missing",
        ),
        (
            &one,
            "ip route del default".to_owned(),
            "route to 0.0.0.0/0 is missing",
        ),
        (&one, "ip link set eth0 down".to_owned(), "it is down"),
        (&one, "ip link set eth0 name other".to_owned(), "eth0"),
        (
            &place.host,
            format!("ip link set {} nomaster", outer.trim()),
            "not attached to br0",
        ),
        (
            &place.host,
            "nft flush ruleset".to_owned(),
            "not masqueraded",
        ),
    ] {
        net.run(&harm);
        let error = place.check(&wanted).unwrap_err();
        assert!(error.is(Code::FailedPrecondition), "{error}");
        assert!(error.to_string().contains(says), "{error}: no {says}");
        // Asked for again, it is made again.
        one.run("ip link set other down 2>/dev/null && ip link del other; true");
        place.setup(&wanted).unwrap();
        place.check(&wanted).unwrap();
    }
}

#[test]
fn what_a_death_has_left_is_taken_away_and_what_is_wanted_stays() {
    let place = Place::new();
    let before = place.state();
    let (one, two) = (Net::new(), Net::new());
    let first = request("c1", &one, 2);
    let mut second = request("c2", &two, 3);
    second.ports = vec![port(8080, 80)];
    place.setup(&first).unwrap();
    place.setup(&second).unwrap();
    // Half of one: marked, but not tagged.
    let group = place.driver.core.group;
    place.host.run(&format!(
        "ip link add half group {group} type veth peer name half2"
    ));
    // Filters of one whose interface went with its namespace.
    place.host.within(|| {
        let nat = &place.driver.core.nat;
        nat.attach("default/c3 eth0", &["10.7.0.9".parse().unwrap()], &[])
            .unwrap();
        nat.attach("other", &["10.7.0.10".parse().unwrap()], &[port(1, 1)])
            .unwrap();
    });
    let wanted = first.id.clone();
    let next = place.next();
    place
        .host
        .block_on(next.reconcile(move |id| *id == wanted))
        .unwrap();
    place.check(&first).unwrap();
    assert!(place.check(&second).unwrap_err().is_not_found());
    let left = place.host.block_on(next.list(None, true)).unwrap();
    assert!(
        left.len() == 1 && left[0].id == first.id && left[0].fault.is_empty(),
        "{left:?}"
    );
    assert!(!place.host.rules().contains("8080"));
    place.host.block_on(next.reconcile(|_| false)).unwrap();
    assert_eq!(place.state(), before);
}

#[test]
fn for_one_attachment_not_all_the_others_are_looked_at() {
    let place = Place::new();
    let (one, two) = (Net::new(), Net::new());
    place.setup(&request("c1", &one, 2)).unwrap();
    place.setup(&request("c2", &two, 3)).unwrap();
    let core = &place.driver.core;
    place.host.within(|| {
        let nobody = ["10.7.0.9".parse().unwrap()];
        core.nat
            .attach("default/nobody eth0", &nobody, &[])
            .unwrap();
        let all = core.all_outer().unwrap();
        assert_eq!(all.len(), 3, "{all:?}");
        let before = tag::LISTED.get();
        for (outer, owners) in &all {
            assert_eq!(owners.len(), 1, "{outer}");
            core.reconcile(outer, owners, &|_| true).unwrap();
        }
        assert_eq!(tag::LISTED.get(), before);
        let left = core.nat.attached().unwrap();
        assert_eq!(left.len(), 2, "{left:?}");
    });
    place.check(&request("c1", &one, 2)).unwrap();
    place.check(&request("c2", &two, 3)).unwrap();
}

#[test]
fn a_namespace_that_is_gone_is_torn_down_all_the_same() {
    let place = Place::new();
    let before = place.state();
    let one = Net::new();
    let mut wanted = request("c1", &one, 2);
    wanted.ports = vec![port(8080, 80)];
    place.setup(&wanted).unwrap();
    drop(one);
    place.teardown(&wanted);
    assert_eq!(place.state(), before);
}

#[test]
fn a_wire_goes_whatever_becomes_of_the_path_to_its_namespace() {
    let place = Place::new();
    let one = Net::new();
    let mut wanted = request("c1", &one, 2);
    wanted.netns = place.records.path().join("ns");
    std::os::unix::fs::symlink(&one.path, &wanted.netns).unwrap();
    let before = place.state();
    place.setup(&wanted).unwrap();
    // That it leads round is neither that there is nothing nor that there is another.
    std::fs::remove_file(&wanted.netns).unwrap();
    std::os::unix::fs::symlink(&wanted.netns, &wanted.netns).unwrap();
    place.teardown(&wanted);
    assert_eq!(place.state(), before);
    assert_eq!(links(&one), "lo ");
}

#[test]
fn a_wire_whose_end_was_moved_goes_and_nobody_elses() {
    let place = Place::new();
    let (one, other) = (Net::new(), Net::new());
    let wanted = request("c1", &one, 2);
    let before = place.state();
    place.setup(&wanted).unwrap();
    let path = other.path.display();
    one.run(&format!("ip link set eth0 netns {path}"));
    let number = other.run("ip -o link show eth0 | cut -d: -f1");
    let number = number.trim();
    one.run(&format!(
        "ip link add x up index {number} type veth peer name y"
    ));
    place.teardown(&wanted);
    assert_eq!(place.state(), before);
    assert_eq!(
        (links(&one), links(&other)),
        ("lo x y ".into(), "lo ".into())
    );
    assert!(one.run("ip link show x").contains("UP"));
}

#[test]
fn what_somebody_has_taken_comes_back_at_the_next_start() {
    let place = Place::new();
    let before = place.state();
    let one = Net::new();
    let mut wanted = request("c1", &one, 2);
    wanted.ports = vec![port(8080, 80)];
    place.setup(&wanted).unwrap();
    let inner = server(&one, "10.7.0.2:80");
    let world = server(&place.outside, "192.0.2.2:80");
    let links = "ip -o link show type veth | grep -o 'ctd[0-9a-f]*'";
    let outer = place.host.run(links);
    let table = place.host.run("nft list tables | grep containerd");
    let table = table.trim().trim_start_matches("table ");
    for (harm, says) in [
        ("nft flush ruleset".to_owned(), "is not masqueraded"),
        (
            format!("nft flush table {table}"),
            "rules of the packet filters",
        ),
        (
            format!("nft flush chain {table} prerouting"),
            "rules of the packet filters",
        ),
        (
            format!("nft flush set {table} taken4"),
            "address 10.7.0.2 is not kept",
        ),
        (
            format!("nft flush map {table} ports6"),
            "port 8080 is not mapped",
        ),
        (
            format!("nft flush set {table} subnets6"),
            "not masqueraded for fd07::/64",
        ),
        (
            "ip addr del 10.7.0.1/24 dev br0".to_owned(),
            "address 10.7.0.1/24 of bridge br0",
        ),
        (
            format!("ip link set {} nomaster", outer.trim()),
            "not attached to br0",
        ),
        (format!("ip link set {} down", outer.trim()), "or down"),
        ("ip link del br0".to_owned(), "not attached to br0"),
    ] {
        place.host.run(&harm);
        let error = place.check(&wanted).unwrap_err();
        assert!(error.is(Code::FailedPrecondition), "{harm}: {error}");
        assert!(error.to_string().contains(says), "{harm}: {error}");
        let told = place.host.block_on(place.driver.list(None, true)).unwrap();
        assert!(told[0].fault.contains(says), "{harm}: {told:?}");
        place
            .host
            .block_on(place.next().reconcile(|_| true))
            .unwrap();
        place.check(&wanted).unwrap();
        reach(&place.outside, "192.0.2.1:8080", &inner);
        reach(&one, "192.0.2.2:80", &world);
        assert_eq!(place.host.run(links), outer, "the wire is the same");
    }
    place.teardown(&wanted);
    assert_eq!(place.state(), before);
}

#[test]
fn an_attachment_is_on_record_from_before_it_is_there_until_after_it_is_gone() {
    let place = Place::new();
    let (one, two) = (Net::new(), Net::new());
    let mut first = request("c1", &one, 2);
    first.ports = vec![port(8080, 80)];
    place.setup(&first).unwrap();
    let mut second = request("c2", &two, 3);
    second.id.namespace = "other".parse().unwrap();
    second.networks.clear();
    second.addresses = vec!["10.8.0.2/24".parse().unwrap()];
    place.setup(&second).unwrap();
    let list = |tenant: Option<&str>| {
        let tenant: Option<Namespace> = tenant.map(|name| name.parse().unwrap());
        let told = place.driver.list(tenant.as_ref(), false);
        place.host.block_on(told).unwrap()
    };
    let told = list(Some("default"));
    assert_eq!(
        told,
        [Joined {
            driver: "bridge".into(),
            id: first.id.clone(),
            interface: "eth0".into(),
            network: "br0".into(),
            netns: one.path.clone(),
            addresses: first.addresses.clone(),
            ports: first.ports.clone(),
            state: types::network::JoinState::Joined,
            fault: String::new(),
        }]
    );
    let told = list(None);
    assert_eq!((told.len(), told[1].network.as_str()), (2, "containerd0"));
    // A record that says that it was cut off, whatever there is, is for what nobody was told of.
    let file = place.driver.core.records.list().unwrap().remove(0);
    let (outer, mut record) = (file.0, file.1.unwrap());
    for phase in [record::Phase::Coming, record::Phase::Going] {
        record.phase = phase;
        place.driver.core.records.write(&outer, &record).unwrap();
        place
            .host
            .block_on(place.next().reconcile(|_| true))
            .unwrap();
        assert_eq!(list(None).len(), 1);
        let whose = Plan::of(&record.request).unwrap().tag.id;
        let again = if whose == first.id { &first } else { &second };
        place.setup(again).unwrap();
    }
    // One that cannot be read is told, and taken for nobody's.
    std::fs::write(&place.written()[0], "{").unwrap();
    let told = list(None);
    let damaged = types::network::JoinState::Damaged;
    assert!(
        told.iter()
            .any(|one| one.state == damaged && !one.fault.is_empty()),
        "{told:?}"
    );
    place
        .host
        .block_on(place.next().reconcile(|_| true))
        .unwrap();
    assert_eq!(list(None), told);
    place.teardown(&first);
    place.teardown(&second);
    assert_eq!(place.written(), [] as [PathBuf; 0]);
}

#[test]
fn datagrams_go_where_a_port_leads_now() {
    let place = Place::new();
    let (one, two) = (Net::new(), Net::new());
    let udp = PortMapping {
        protocol: Protocol::Udp,
        ..port(5300, 53)
    };
    let (mut first, mut second) = (request("c1", &one, 2), request("c2", &two, 3));
    first.ports = vec![udp];
    second.ports = vec![udp];
    // Connections are remembered as long as there is anybody.
    let zero = Net::new();
    place.setup(&request("c0", &zero, 9)).unwrap();
    // Somebody sends before anybody is there, and does not stop.
    let client = place
        .outside
        .within(|| std::net::UdpSocket::bind("192.0.2.2:0"))
        .unwrap();
    client.send_to(b"0", "192.0.2.1:5300").unwrap();
    let hears = |net: &Net, at: &str| {
        let socket = net.within(|| std::net::UdpSocket::bind(at)).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        socket
    };
    let mut said = [0];
    for (net, request, at, word) in [
        (&one, &first, "10.7.0.2:53", b"1"),
        (&two, &second, "10.7.0.3:53", b"2"),
    ] {
        place.setup(request).unwrap();
        let socket = hears(net, at);
        client.send_to(word, "192.0.2.1:5300").unwrap();
        socket.recv(&mut said).unwrap();
        assert_eq!(&said, word);
        place.teardown(request);
        client.send_to(b"-", "192.0.2.1:5300").unwrap();
    }
}

#[test]
fn what_is_in_the_way_of_packets_is_named() {
    let place = Place::new();
    let one = Net::new();
    let status = || place.host.block_on(place.driver.status()).unwrap();
    assert_eq!(status(), [] as [String; 0]);
    place.setup(&request("c1", &one, 2)).unwrap();
    assert_eq!(status(), [] as [String; 0]);
    place.host.run(
        "nft 'table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }' && \
         echo 0 >/proc/sys/net/ipv4/ip_forward",
    );
    let told = status();
    assert!(
        told.len() == 2
            && told[0].contains("chain ip filter FORWARD")
            && told[1].contains("ip_forward"),
        "{told:?}"
    );
}

/// Names of interfaces.
fn links(net: &Net) -> String {
    net.run("ip -o link show | sed 's/^[0-9]*: //; s/[@:].*//' | sort | tr '\\n' ' '")
}

#[test]
fn the_same_is_joined_again_at_once_while_the_kernel_still_has_what_it_had() {
    let place = Place::new();
    let before = place.state();
    let (one, keeper) = (Net::new(), Net::new());
    // Without it the bridge would go each time.
    place.setup(&request("c0", &keeper, 9)).unwrap();
    let mut wanted = request("c1", &one, 2);
    wanted.ports = vec![port(8080, 80)];
    wanted.mac = Some("02:00:00:00:00:09".parse().unwrap());
    for _ in 0..10 {
        place.setup(&wanted).unwrap();
        place.check(&wanted).unwrap();
        let inner = server(&one, "10.7.0.2:80");
        reach(&keeper, "10.7.0.2:80", &inner);
        reach(&place.outside, "192.0.2.1:8080", &inner);
        place.teardown(&wanted);
        assert!(place.check(&wanted).unwrap_err().is_not_found());
        // Nothing of ours is at the bridge, and nobody inside has an address or a way out.
        let at_bridge = place.host.run("ip -o link show up master br0 | wc -l");
        assert_eq!(at_bridge.trim(), "1");
        assert_eq!(
            one.run("ip route; ip -o link show up | grep -v LOOPBACK; true"),
            ""
        );
        let listed = place.host.block_on(place.driver.list(None, true)).unwrap();
        assert_eq!(listed.len(), 1, "{listed:?}");
    }
    place.teardown(&request("c0", &keeper, 9));
    // With the last one the bridge goes, and all that was still there, before that is answered.
    assert_eq!(links(&place.host), "lo out ");
    assert_eq!((links(&one), links(&keeper)), ("lo ".into(), "lo ".into()));
    assert_eq!(place.state(), before);
}

#[test]
fn what_was_buried_before_a_death_is_named_and_gone_with_the_next_start() {
    let place = Place::new();
    let (one, keeper) = (Net::new(), Net::new());
    place.setup(&request("c0", &keeper, 9)).unwrap();
    place.setup(&request("c1", &one, 2)).unwrap();
    let before = links(&place.host);
    let outer = Tag::of(&request("c1", &one, 2)).outer().unwrap();
    // As it is when the daemon dies right then.
    let mark = place.driver.core.grave.mark();
    place.host.run(&format!(
        "ip link set {outer} down && ip link set {outer} name ctg0 group {mark} nomaster alias ''"
    ));
    let next = place.next();
    let lost = BTreeSet::new();
    let found = place.host.block_on(next.inspect(&lost, false)).unwrap();
    assert!(
        found.iter().any(|one| one.object == "interface ctg0"),
        "{found:?}"
    );
    let gone = request("c1", &one, 2).id;
    place
        .host
        .block_on(next.reconcile(move |id| *id != gone))
        .unwrap();
    assert_eq!(links(&place.host), before.replace(&format!("{outer} "), ""));
    assert_eq!(links(&one), "lo ");
    let found = place.host.block_on(next.inspect(&lost, false)).unwrap();
    assert!(found.is_empty(), "{found:?}");
}
