//! What the flags mean, and which do not go together.

use super::*;
use clap::Parser;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    flags: NetFlags,
}

fn parse(line: &str) -> std::result::Result<NetFlags, clap::Error> {
    let words = std::iter::once("ctr").chain(line.split_whitespace());
    Line::try_parse_from(words).map(|line| line.flags)
}

#[test]
fn a_network_is_a_word_a_driver_with_its_networks_or_a_name() {
    for (text, want) in [
        ("none", Net::None),
        ("host", Net::Host),
        ("bridge", Net::Bridge(None)),
        ("bridge:br0", Net::Bridge(Some("br0".into()))),
        ("cni", Net::Cni(vec![])),
        ("cni:a,b", Net::Cni(vec!["a".into(), "b".into()])),
        ("front", Net::Named("front".into())),
    ] {
        assert_eq!(text.parse::<Net>().unwrap(), want, "{text}");
    }
    for bad in [
        "",
        "host:x",
        "none:",
        "front:x",
        "bridge:",
        "bridge:a,b",
        "cni:a,",
        ":x",
    ] {
        let error = bad.parse::<Net>().unwrap_err();
        assert!(error.is(Code::InvalidArgument), "{bad}: {error}");
    }
}

#[test]
fn addresses_have_a_prefix_and_a_gateway_that_they_reach() {
    let one: Wanted = "10.88.0.2/24".parse().unwrap();
    assert_eq!((one.address.prefix(), one.gateway), (24, None));
    let one: Wanted = "fd07::2/64,gateway=fd07::9".parse().unwrap();
    assert_eq!(one.gateway, Some("fd07::9".parse().unwrap()));
    for bad in [
        "",
        "10.88.0.2",
        "10.88.0.2/33",
        "10.88.0.2/24,",
        "10.88.0.2/24,10.88.0.1",
        "10.88.0.2/24,gateway=x",
        "10.88.0.2/24,gateway=10.89.0.1",
        "10.88.0.2/24,gateway=fd07::1",
    ] {
        let error = bad.parse::<Wanted>().unwrap_err();
        assert!(error.is(Code::InvalidArgument), "{bad}: {error}");
    }
}

#[test]
fn words_of_old_say_what_the_new_flag_says() {
    for (line, want) in [
        ("", Net::None),
        ("--net-host", Net::Host),
        ("--cni", Net::Cni(vec![])),
        ("--network-namespace bridge", Net::Named("bridge".into())),
        ("--net host", Net::Host),
        (
            "--net cni -p 8080:80 -p 9000-9009:9000-9009/udp",
            Net::Cni(vec![]),
        ),
        (
            "--net bridge --ip fd07::2/64 -p [::2]:8080:80",
            Net::Bridge(None),
        ),
    ] {
        assert_eq!(parse(line).unwrap().wish().unwrap(), want, "{line}");
    }
    for bad in [
        "--net host --net-host",
        "--net x --network-namespace x",
        "--cni --net cni",
        "--cni --net-host",
        "--net bridge --ip x",
        "-p 80",
    ] {
        assert!(parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn ports_and_addresses_without_a_driver_are_refused_with_the_reason() {
    for (line, told) in [
        (
            "-p 8080:80",
            "--port is for --net bridge and --net cni: a container of its own",
        ),
        ("--net none -p 8080:80", "reached by nobody"),
        (
            "--net host -p 8080:80",
            "has the host's addresses and ports",
        ),
        ("--net-host --ip 10.0.0.2/24", "--ip is for --net bridge"),
        ("--net front -p 8080:80", "ctr network setup"),
        ("--net bridge -p 8080:80", "without --ip"),
    ] {
        let error = parse(line).unwrap().wish().unwrap_err();
        assert!(error.is(Code::InvalidArgument), "{line}: {error}");
        assert!(error.to_string().contains(told), "{line}: {error}");
    }
}

#[test]
fn a_namespace_of_another_attempt_is_not_its_own() {
    let part = |attempt: Option<&str>| Part {
        joined: Membership {
            driver: "bridge".into(),
            namespace: "web".into(),
            request: NetRequest {
                id: TenantId {
                    namespace: "default".parse().unwrap(),
                    container: "web".parse().unwrap(),
                },
                netns: Default::default(),
                interface: INTERFACE.parse().unwrap(),
                networks: Vec::new(),
                addresses: Vec::new(),
                mac: None,
                mtu: None,
                routes: Vec::new(),
                ports: Vec::new(),
                args: [].into(),
                capabilities: [].into(),
            },
        },
        attempt: attempt.map(str::to_owned),
    };
    let (bare, first) = (Labels::new(), Labels::new().with(ATTEMPT, "1"));
    for (attempt, labels, is_own) in [
        (Some("1"), &first, true),
        (Some("2"), &first, false),
        (Some("2"), &bare, false),
        (None, &first, true),
    ] {
        assert_eq!(part(attempt).owns(labels), is_own, "{attempt:?} {labels:?}");
    }
}
