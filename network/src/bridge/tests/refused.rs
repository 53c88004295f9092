//! What cannot be, or is somebody else's.

use super::*;

#[test]
fn what_is_taken_is_refused_and_nothing_is_left_of_the_attempt() {
    let place = Place::new();
    let (one, two) = (Net::new(), Net::new());
    let mut first = request("c1", &one, 2);
    first.ports = vec![port(8080, 80)];
    place.setup(&first).unwrap();
    let state = place.state();
    let second = || request("c2", &two, 3);
    let mut wanted = second();
    wanted.ports = vec![port(8081, 80), port(8080, 80)];
    place.fails(&wanted, Code::AlreadyExists, "port 8080/tcp of default/c1");
    wanted = second();
    wanted.addresses = vec!["10.7.0.2/24".parse().unwrap()];
    place.fails(
        &wanted,
        Code::AlreadyExists,
        "address 10.7.0.2 of default/c1",
    );
    wanted = second();
    wanted.networks = vec!["br1".into()];
    place.fails(&wanted, Code::AlreadyExists, "of bridge \"br0\"");
    wanted = second();
    wanted.networks = vec!["out".into()];
    place.fails(
        &wanted,
        Code::FailedPrecondition,
        "out is no bridge but of kind veth",
    );
    two.run("ip link add eth0 type dummy 2>/dev/null || ip link add eth0 type bridge");
    place.fails(&second(), Code::AlreadyExists, "eth0");
    wanted = first.clone();
    wanted.mtu = Some(1400);
    place.fails(
        &wanted,
        Code::AlreadyExists,
        "another attachment of default/c1",
    );
    assert_eq!(place.state(), state);
    place.check(&first).unwrap();
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of what is refused")]
fn what_cannot_be_is_refused_by_name() {
    let place = Place::new();
    let before = place.state();
    let one = Net::new();
    let change = |change: &dyn Fn(&mut NetRequest)| {
        let mut made = request("c1", &one, 2);
        change(&mut made);
        made
    };
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    for (wanted, code, says) in [
        (
            change(&|r| r.addresses.clear()),
            Code::InvalidArgument,
            "no addresses",
        ),
        (
            change(&|r| r.addresses = vec![net("10.7.0.0/24")]),
            Code::InvalidArgument,
            "10.7.0.0/24",
        ),
        (
            change(&|r| r.addresses = vec![net("10.7.0.255/24")]),
            Code::InvalidArgument,
            "10.7.0.255/24",
        ),
        (
            change(&|r| r.addresses = vec![net("10.7.0.1/24")]),
            Code::InvalidArgument,
            "gateway",
        ),
        (
            change(&|r| r.addresses = vec![net("10.7.0.1/31")]),
            Code::InvalidArgument,
            "1 to 30 bits",
        ),
        (
            change(&|r| r.addresses = vec![net("fd07::2/127")]),
            Code::InvalidArgument,
            "1 to 126 bits",
        ),
        (
            change(&|r| r.addresses.push(net("10.7.0.2/24"))),
            Code::InvalidArgument,
            "twice",
        ),
        (
            change(&|r| r.networks.push("br1".into())),
            Code::InvalidArgument,
            "2 networks",
        ),
        (
            change(&|r| r.networks = vec!["a/b".into()]),
            Code::InvalidArgument,
            "a/b",
        ),
        (
            change(&|r| r.netns = "/no/such".into()),
            Code::NotFound,
            "/no/such",
        ),
        (
            change(&|r| r.netns = place.host.path.clone()),
            Code::InvalidArgument,
            "of the host",
        ),
        (change(&|r| r.mtu = Some(1)), Code::InvalidArgument, "mtu"),
        (
            change(&|r| r.args = [("A".to_owned(), String::new())].into()),
            Code::InvalidArgument,
            "\"A\"",
        ),
        (
            change(&|r| r.capabilities = [("x".to_owned(), String::new())].into()),
            Code::InvalidArgument,
            "\"x\"",
        ),
        (
            change(&|r| {
                r.routes = vec![Route::new(
                    net("10.9.0.0/16"),
                    Some("10.8.0.1".parse().unwrap()),
                )];
            }),
            Code::FailedPrecondition,
            "10.9.0.0/16",
        ),
    ] {
        place.fails(&wanted, code, says);
        assert_eq!(place.state(), before, "{says}");
        assert_eq!(one.run("ip -o link show | wc -l").trim(), "1");
    }
}
