//! Tests of module `nft`.

use std::net::IpAddr;

use sys::netlink::Family;
use types::Code;
use types::network::Protocol;

use super::*;
use crate::testing::Net;

fn nat() -> Nat {
    Nat::new("containerd-test")
}

fn bridge(name: &str) -> LinkName {
    name.parse().unwrap()
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn port(host: u16, container: u16) -> PortMapping {
    PortMapping {
        protocol: Protocol::Tcp,
        host_ip: None,
        host_port: host,
        container_port: container,
    }
}

fn at(host: &str, port: PortMapping) -> PortMapping {
    PortMapping {
        host_ip: Some(host.parse().unwrap()),
        ..port
    }
}

#[test]
fn bridges_and_ports_are_seen_from_outside_and_go_without_a_trace() {
    let net = Net::new();
    let udp = PortMapping {
        protocol: Protocol::Udp,
        ..port(53, 5353)
    };
    let ports = [port(8080, 80), at("10.9.0.1", port(81, 80)), udp];
    let subnets = nets(&["10.1.0.1/16", "fd00:1::1/64"]);
    let to = ips(&["10.1.0.2", "fd00:1::2"]);
    // Done again, everything is as it was.
    for _ in 0..2 {
        net.within(|| {
            nat().serve(&bridge("br0"), &subnets).unwrap();
            nat().attach("default/c1", &to, &ports).unwrap();
            let mapped = nat().mapped().unwrap();
            assert_eq!(mapped.len(), 5);
            let expected = Mapped {
                tag: "default/c1".into(),
                port: at("10.9.0.1", port(81, 80)),
                to: to[0],
            };
            assert!(mapped.contains(&expected), "{mapped:?}");
            assert_eq!(nat().bridges().unwrap(), ["br0"]);
        });
        let rules = net.rules();
        for line in [
            r#"elements = { "br0" comment "br0" }"#,
            r#"elements = { 10.1.0.0/16 comment "br0 10.1.0.0/16" }"#,
            r#"elements = { fd00:1::/64 comment "br0 fd00:1::/64" }"#,
            r#"10.9.0.1 . tcp . 81 comment "default/c1" : 10.1.0.2 . 80"#,
            r#"tcp . 8080 comment "default/c1" : fd00:1::2 . 80"#,
            r#"udp . 53 comment "default/c1" : 10.1.0.2 . 5353"#,
            "ip saddr @subnets4 oifname != @bridges masquerade",
            "ip6 saddr @subnets6 oifname @bridges ct status dnat masquerade",
            r#"iifname != "lo" ip daddr 127.0.0.0/8 drop"#,
            "ip6 daddr != ::1 fib daddr type local jump ports",
        ] {
            assert!(rules.contains(line), "{line}: {rules}");
        }
        assert_eq!(rules.matches("masquerade").count(), 5, "{rules}");
    }
    net.within(|| {
        nat().attach("default/c1", &to[..1], &ports[..1]).unwrap();
        assert_eq!(nat().mapped().unwrap().len(), 1);
        for _ in 0..2 {
            nat().detach("default/c1").unwrap();
            nat().forget(&bridge("br0")).unwrap();
        }
    });
    assert_eq!(net.rules(), "");
}

#[test]
fn a_bridge_has_the_subnets_that_it_was_last_given() {
    let net = Net::new();
    net.within(|| {
        for subnets in [
            &["10.1.0.1/16", "fd00:1::1/64"][..],
            &["10.1.0.1/24", "255.255.255.0/24"],
            &["10.2.0.1/16", "10.2.0.2/16", "128.0.0.0/1"],
        ] {
            nat().serve(&bridge("br0"), &nets(subnets)).unwrap();
        }
        let error = nat()
            .serve(&bridge("br0"), &nets(&["10.2.0.1/16", "10.0.0.0/8"]))
            .unwrap_err();
        assert!(error.is(Code::InvalidArgument), "{error}");
    });
    let rules = net.rules();
    assert!(rules.contains("10.2.0.0/16"), "{rules}");
    for gone in ["10.1.0.0/24", "fd00:1::", "255.255.255.0"] {
        assert!(!rules.contains(gone), "{gone}: {rules}");
    }
}

#[test]
fn a_subnet_belongs_to_one_bridge() {
    let net = Net::new();
    net.within(|| {
        nat()
            .serve(&bridge("br0"), &nets(&["10.1.0.0/16"]))
            .unwrap();
        for subnet in ["10.0.0.0/8", "10.1.2.0/24", "10.1.0.0/16"] {
            let error = nat().serve(&bridge("br1"), &nets(&[subnet])).unwrap_err();
            assert!(error.is_already_exists(), "{error}");
            assert!(
                error.to_string().contains("10.1.0.0/16 of bridge \"br0\""),
                "{error}"
            );
        }
        nat()
            .serve(&bridge("br1"), &nets(&["10.2.0.0/16"]))
            .unwrap();
        nat().forget(&bridge("br0")).unwrap();
        assert_eq!(nat().bridges().unwrap(), ["br1"]);
        nat()
            .serve(&bridge("br2"), &nets(&["10.1.0.0/24"]))
            .unwrap();
    });
}

#[test]
fn a_port_leads_to_one_container() {
    let net = Net::new();
    net.within(|| {
        let to = ips(&["10.1.0.2"]);
        nat()
            .attach(
                "default/c1",
                &to,
                &[port(80, 80), at("10.9.0.1", port(81, 1))],
            )
            .unwrap();
        for (taken, name) in [
            (port(80, 8080), "port 80/tcp"),
            (at("10.9.0.2", port(80, 80)), "port 80/tcp"),
            (at("10.9.0.1", port(81, 1)), "port 10.9.0.1:81/tcp"),
            (port(81, 1), "port 10.9.0.1:81/tcp"),
        ] {
            let wanted = [port(82, 80), taken];
            let error = nat()
                .attach("default/c2", &ips(&["10.1.0.3"]), &wanted)
                .unwrap_err();
            assert!(error.is_already_exists(), "{error}");
            assert!(
                error.to_string().contains(&format!("{name} of default/c1")),
                "{error}"
            );
        }
        // None of those that were free was taken.
        assert_eq!(nat().mapped().unwrap().len(), 2);
        let fine = [at("10.9.0.2", port(81, 1)), at("fd00::1", port(80, 80))];
        nat()
            .attach("default/c2", &ips(&["10.1.0.3", "fd00:1::3"]), &fine)
            .unwrap();
        assert_eq!(nat().mapped().unwrap().len(), 4);
    });
}

#[test]
fn an_address_belongs_to_one_container() {
    let net = Net::new();
    net.within(|| {
        let own = ips(&["10.1.0.2", "fd00:1::2"]);
        nat().attach("default/c1", &own, &[]).unwrap();
        nat().attach("default/c1", &own, &[]).unwrap();
        let other = ips(&["10.1.0.3", "fd00:1::2"]);
        let error = nat().attach("default/c2", &other, &[]).unwrap_err();
        assert!(error.is_already_exists(), "{error}");
        assert!(
            error
                .to_string()
                .contains("address fd00:1::2 of default/c1"),
            "{error}"
        );
        nat().attach("default/c1", &own[..1], &[]).unwrap();
        nat().attach("default/c2", &other, &[]).unwrap();
        let attached: Vec<_> = nat().attached().unwrap().into_iter().collect();
        assert_eq!(attached, ["default/c1", "default/c2"]);
    });
}

#[test]
fn a_port_that_leads_nowhere_or_twice_is_refused() {
    let net = Net::new();
    net.within(|| {
        for (ports, to, says) in [
            (
                vec![at("fd00::1", port(80, 80))],
                &["10.1.0.2"][..],
                "none of IPv6",
            ),
            (vec![port(80, 80)], &[], "none of any"),
            (
                vec![port(80, 80), port(80, 81)],
                &["10.1.0.2"],
                "port 80/tcp is wanted twice",
            ),
        ] {
            let error = nat().attach("default/c1", &ips(to), &ports).unwrap_err();
            assert!(error.is(Code::InvalidArgument), "{error}");
            assert!(error.to_string().contains(says), "{error}");
        }
        nat()
            .attach("default/c1", &ips(&["10.1.0.2"]), &[port(80, 80); 2])
            .unwrap();
    });
}

#[test]
fn thousands_of_ports_are_one_change() {
    let net = Net::new();
    net.within(|| {
        let ports: Vec<_> = (10_000..13_000)
            .map(|host| port(host, host - 5_000))
            .collect();
        nat()
            .attach("default/c1", &ips(&["10.1.0.2", "fd00:1::2"]), &ports)
            .unwrap();
        assert_eq!(nat().mapped().unwrap().len(), 6_000);
        nat().detach("default/c1").unwrap();
    });
    assert_eq!(net.rules(), "");
}

#[test]
fn many_at_once_do_not_lose_each_others_ports() {
    let net = Net::new();
    std::thread::scope(|scope| {
        for number in 1..=16_u8 {
            let net = &net;
            scope.spawn(move || {
                net.within(|| {
                    let (tag, to) = (
                        format!("default/c{number}"),
                        ips(&[&format!("10.1.0.{number}")]),
                    );
                    let own = [port(8000 + u16::from(number), 80)];
                    for _ in 0..5 {
                        nat().attach(&tag, &to, &own).unwrap();
                        nat().detach(&tag).unwrap();
                    }
                    nat().attach(&tag, &to, &own).unwrap();
                });
            });
        }
    });
    let mapped = net.within(|| nat().mapped().unwrap());
    assert_eq!(mapped.len(), 16, "{mapped:?}");
}

/// Everything that a driver that has just started finds.
fn seen_anew() -> Filters {
    let mut seen = nat().look().unwrap();
    seen.addresses.sort();
    seen.ports.sort_by_key(|one| (one.port.host_port, one.to));
    seen
}

#[test]
fn what_is_known_without_looking_is_what_is_there() {
    let net = Net::new();
    net.within(|| {
        let kept = nat();
        let seen = || {
            let mut seen = kept.look().unwrap();
            seen.addresses.sort();
            seen.ports.sort_by_key(|one| (one.port.host_port, one.to));
            seen
        };
        for round in 0..3_u8 {
            let own = ips(&[&format!("10.1.0.{}", round + 2), "fd00:1::2"]);
            kept.attach("a", &own, &[port(80, 80), port(81 + u16::from(round), 81)])
                .unwrap();
            assert_eq!(seen(), seen_anew());
            kept.serve(&bridge("br0"), &nets(&["10.1.0.1/16", "fd00:1::1/64"]))
                .unwrap();
            assert_eq!(seen(), seen_anew());
            kept.attach("b", &ips(&["10.1.9.9"]), &[]).unwrap();
            assert_eq!(seen(), seen_anew());
            // Whatever another one changes is known at once.
            nat().detach("b").unwrap();
            assert_eq!(seen(), seen_anew());
            assert_eq!(seen().addresses.len(), 2);
        }
        kept.detach("a").unwrap();
        kept.forget(&bridge("br0")).unwrap();
        assert_eq!(
            seen(),
            Filters {
                is_whole: true,
                ..Filters::default()
            }
        );
    });
}

#[test]
fn of_one_container_and_its_bridge_nothing_else_is_told() {
    let net = Net::new();
    net.within(|| {
        let kept = nat();
        for (at, tag) in [(1, "a"), (2, "b")] {
            let bridge = bridge(&format!("br{at}"));
            kept.serve(&bridge, &nets(&[&format!("10.{at}.0.1/16")]))
                .unwrap();
            kept.attach(tag, &ips(&[&format!("10.{at}.0.2")]), &[port(at, at)])
                .unwrap();
        }
        let mut own = kept.look().unwrap();
        assert_eq!((own.subnets.len(), own.ports.len()), (2, 2));
        own.bridges.retain(|one| one == "br1");
        own.subnets.retain(|(of, _)| of == "br1");
        own.addresses.retain(|(_, of)| of == "a");
        own.ports.retain(|one| one.tag == "a");
        assert_eq!(own.subnets.len() + own.addresses.len() + own.ports.len(), 3);
        assert_eq!(kept.look_for("a", &bridge("br1")).unwrap(), own);
    });
}

#[test]
fn only_what_others_change_ends_the_belief_that_all_is_as_it_was_left() {
    let net = Net::new();
    let kept = nat();
    net.within(|| {
        assert!(kept.compared().unwrap().is_none());
        kept.note_compared(kept.era().unwrap());
        kept.attach("a", &ips(&["10.1.0.2"]), &[]).unwrap();
        kept.serve(&bridge("br0"), &nets(&["10.1.0.1/16"])).unwrap();
        kept.attach("b", &ips(&["10.1.0.3"]), &[port(1, 1)])
            .unwrap();
        kept.detach("a").unwrap();
        kept.mend().unwrap();
        assert!(kept.compared().unwrap().is_some());
        let before = kept.era().unwrap();
        nat().attach("c", &ips(&["10.1.0.4"]), &[]).unwrap();
        assert!(kept.compared().unwrap().is_none());
        // Found out too late, by who has looked before.
        kept.note_compared(before);
        assert!(kept.compared().unwrap().is_none());
    });
    // Elsewhere it is not known either.
    kept.note_compared(net.within(|| kept.era()).unwrap());
    let other = Net::new();
    assert!(other.within(|| kept.compared()).unwrap().is_none());
    assert_eq!(other.within(|| kept.look()).unwrap().addresses, []);
    assert_eq!(net.within(|| kept.look()).unwrap().addresses.len(), 2);
}

#[test]
fn what_was_free_before_others_changed_something_is_not_taken() {
    let net = Net::new();
    let kept = nat();
    net.within(|| {
        let era = kept.era().unwrap();
        let one = ips(&["10.1.0.2"]);
        kept.attach_in(Some(era), "a", &one, &[]).unwrap();
        net.run("nft flush ruleset");
        let late = kept.attach_in(Some(era), "b", &one, &[]).unwrap_err();
        assert!(late.is(Code::Aborted), "{late}");
        assert_eq!(kept.look().unwrap().addresses, []);
    });
}

#[test]
fn who_was_faster_with_a_change_does_not_end_the_socket() {
    let net = Net::new();
    let kept = nat();
    net.within(|| {
        let before = kept.era().unwrap();
        let mut is_first = true;
        let done = kept.kept().change(&kept.table, None, |found| {
            if std::mem::take(&mut is_first) {
                nat().attach("b", &ips(&["10.1.0.3"]), &[]).unwrap();
            }
            let change = Change {
                add: vec![Element::taken("a", ips(&["10.1.0.2"])[0])],
                remove: Vec::new(),
            };
            let messages = kept.messages(found, &change);
            Ok((change, messages))
        });
        done.unwrap();
        // The other's change alone is one.
        assert_eq!(kept.era().unwrap(), before + 1);
        assert_eq!(kept.look().unwrap().addresses.len(), 2);
    });
}

#[test]
fn a_change_for_other_filters_than_there_are_is_not_made() {
    let net = Net::new();
    net.within(|| {
        let mut socket = Socket::open(Family::Netfilter).unwrap();
        let before = socket.generation().unwrap();
        nat()
            .attach("default/c1", &ips(&["10.1.0.2"]), &[port(80, 80)])
            .unwrap();
        let gone = || vec![about("remove".into(), DEL_TABLE, 0, "containerd-test")];
        let error = socket.batch(before, gone()).unwrap_err();
        assert!(error.is(Code::Aborted), "{error}");
        assert_eq!(nat().mapped().unwrap().len(), 1);
        // A batch with one bad change changes nothing.
        let now = socket.generation().unwrap();
        let mut both = gone();
        both.push(about("remove nothing".into(), DEL_TABLE, 0, "no-such"));
        let error = socket.batch(now, both).unwrap_err();
        assert!(error.to_string().starts_with("remove nothing: "), "{error}");
        assert_eq!(nat().mapped().unwrap().len(), 1);
        socket.batch(now, gone()).unwrap();
        assert_eq!(nat().mapped().unwrap(), []);
    });
}

#[test]
fn rules_that_somebody_has_removed_are_missed_and_made_again_with_what_was_there() {
    // The table, its sets, five chains, and the rules.
    assert_eq!(
        ruleset::base("t", "").len(),
        1 + ruleset::SETS.len() + 5 + RULES
    );
    let net = Net::new();
    assert!(!net.within(|| nat().mend()).unwrap(), "nothing is whole");
    net.within(|| {
        let subnets = nets(&["10.1.0.1/16", "fd00:1::1/64", "10.2.0.0/16"]);
        nat().serve(&bridge("br0"), &subnets).unwrap();
        let to = ips(&["10.1.0.2", "fd00:1::2"]);
        nat().attach("default/c1", &to, &[port(80, 80)]).unwrap();
    });
    let (before, seen) = (net.rules(), net.within(|| nat().look()).unwrap());
    assert!(
        seen.is_whole && seen.ports.len() == 2 && seen.subnets.len() == 3,
        "{seen:?}"
    );
    assert!(!net.within(|| nat().mend()).unwrap());
    for harm in ["flush table", "flush chain", "delete chain"] {
        let chain = if harm.ends_with("chain") { "guard" } else { "" };
        let flush = "nft flush chain inet containerd-test guard";
        net.run(&format!("{flush}; nft {harm} inet containerd-test {chain}"));
        let found = net.within(|| nat().look()).unwrap();
        assert!(!found.is_whole, "{harm}");
        assert_eq!(
            Filters {
                is_whole: true,
                ..found
            },
            seen
        );
        assert!(net.within(|| nat().mend()).unwrap());
        assert_eq!(net.rules(), before);
    }
    // Who has seen that they are missing knows that they are not any more.
    net.run("nft flush chain inet containerd-test guard");
    net.within(|| {
        let kept = nat();
        assert!(!kept.look().unwrap().is_whole);
        assert!(kept.mend().unwrap());
        assert!(kept.look().unwrap().is_whole);
        assert!(!kept.mend().unwrap());
    });
}
