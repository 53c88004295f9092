//! Tests of module `bridge`.

mod fsck;
mod gone;
mod refused;
mod safety;

use types::network::{IpNet, PortMapping, Protocol, Route};

use super::*;
use crate::testing::{Net, reach, server};

/// A host of its own with a driver, and something outside of it at 192.0.2.2.
struct Place {
    host: Net,
    outside: Net,
    driver: Bridge,
    records: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let (host, outside) = (Net::new(), Net::new());
        let peer = outside.path.display();
        host.run(&format!(
            "ip link add out type veth peer name wire && ip link set wire netns {peer} && \
             ip addr add 192.0.2.1/24 dev out && ip addr add 2001:db8::1/64 dev out nodad && \
             ip link set out up"
        ));
        outside.run(
            "ip addr add 192.0.2.2/24 dev wire && ip addr add 2001:db8::2/64 dev wire nodad && \
             ip link set wire up",
        );
        let records = tempfile::tempdir().unwrap();
        Self {
            host,
            outside,
            driver: driver(records.path()),
            records,
        }
    }

    /// The driver of a daemon that starts anew.
    fn next(&self) -> Bridge {
        driver(self.records.path())
    }

    /// Files of records.
    fn written(&self) -> Vec<PathBuf> {
        let files = std::fs::read_dir(self.records.path().join("records"));
        let files = files.into_iter().flatten().map(|file| file.unwrap().path());
        files.collect()
    }

    fn setup(&self, request: &NetRequest) -> Result<NetResult> {
        self.host.block_on(self.driver.setup(request))
    }

    fn fails(&self, request: &NetRequest, code: Code, says: &str) {
        let error = self.setup(request).unwrap_err();
        assert!(error.is(code), "{error}");
        assert!(error.to_string().contains(says), "{error}: no {says:?}");
    }

    fn check(&self, request: &NetRequest) -> Result<()> {
        self.host.block_on(self.driver.check(request))
    }

    fn teardown(&self, request: &NetRequest) {
        self.host.block_on(self.driver.teardown(request)).unwrap();
    }

    /// Interfaces and filters of the host, and files of records, when the kernel is done with what was taken away.
    fn state(&self) -> String {
        let grave = &self.driver.core.grave;
        self.host.within(|| grave.empty()).unwrap();
        let links = "ip -o link show | sed 's/^[0-9]*: //; s/@.*//; s/:.*//' | sort";
        let addresses = "ip -o addr show | awk '{print $2, $4}' | grep -v ' fe80' | sort";
        let rules = self.host.rules();
        format!(
            "{}{}{rules}{:?}",
            self.host.run(links),
            self.host.run(addresses),
            self.written()
        )
    }
}

fn opts(records: &Path) -> BridgeOpts {
    BridgeOpts {
        directory: "/test".into(),
        records: records.join("records"),
        networks: None,
    }
}

fn driver(records: &Path) -> Bridge {
    Bridge::new(&opts(records))
}

fn request(container: &str, inside: &Net, last: u8) -> NetRequest {
    NetRequest {
        id: TenantId {
            namespace: "default".parse().unwrap(),
            container: container.parse().unwrap(),
        },
        netns: inside.path.clone(),
        interface: "eth0".parse().unwrap(),
        networks: vec!["br0".into()],
        addresses: vec![
            format!("10.7.0.{last}/24").parse().unwrap(),
            format!("fd07::{last}/64").parse().unwrap(),
        ],
        mac: None,
        mtu: None,
        routes: Vec::new(),
        ports: Vec::new(),
        args: [].into(),
        capabilities: [].into(),
    }
}

fn port(host: u16, container: u16) -> PortMapping {
    PortMapping {
        protocol: Protocol::Tcp,
        host_ip: None,
        host_port: host,
        container_port: container,
    }
}

#[test]
fn containers_talk_with_each_other_the_host_and_the_world_and_leave_nothing() {
    let place = Place::new();
    let before = place.state();
    let (one, two) = (Net::new(), Net::new());
    let (first, second) = (request("c1", &one, 2), request("c2", &two, 3));
    let made = place.setup(&first).unwrap();
    assert_eq!(place.setup(&first).unwrap(), made);
    place.setup(&second).unwrap();
    place.check(&first).unwrap();
    assert_eq!(made.addresses[0].gateway, Some("10.7.0.1".parse().unwrap()));
    assert_eq!(made.addresses[1].gateway, Some("fd07::1".parse().unwrap()));
    assert_eq!(made.interfaces[0].name, "eth0");
    assert_eq!(made.routes.len(), 2, "{made:?}");

    let there = [server(&two, "10.7.0.3:80"), server(&two, "[fd07::3]:80")];
    assert_eq!(
        reach(&one, "10.7.0.3:80", &there[0]).ip().to_string(),
        "10.7.0.2"
    );
    assert_eq!(
        reach(&one, "[fd07::3]:80", &there[1]).ip().to_string(),
        "fd07::2"
    );
    let host = server(&place.host, "10.7.0.1:81");
    reach(&one, "10.7.0.1:81", &host);
    // The world sees the host.
    let world = [
        server(&place.outside, "192.0.2.2:80"),
        server(&place.outside, "[2001:db8::2]:80"),
    ];
    assert_eq!(
        reach(&one, "192.0.2.2:80", &world[0]).ip().to_string(),
        "192.0.2.1"
    );
    assert_eq!(
        reach(&one, "[2001:db8::2]:80", &world[1]).ip().to_string(),
        "2001:db8::1"
    );

    for request in [&first, &first, &second] {
        place.teardown(request);
        let gone = place.check(request).unwrap_err();
        assert!(gone.is_not_found(), "{gone}");
    }
    assert_eq!(place.state(), before);
    assert_eq!(one.run("ip -o link show | wc -l").trim(), "1");
}

#[test]
fn a_mapped_port_is_reached_from_everywhere() {
    let place = Place::new();
    let before = place.state();
    let (one, two) = (Net::new(), Net::new());
    let mut first = request("c1", &one, 2);
    let udp = PortMapping {
        protocol: Protocol::Udp,
        ..port(5300, 53)
    };
    let at = PortMapping {
        host_ip: Some("192.0.2.1".parse().unwrap()),
        ..port(8081, 81)
    };
    first.ports = vec![port(8080, 80), udp, at];
    place.setup(&first).unwrap();
    place.setup(&request("c2", &two, 3)).unwrap();
    let v4 = server(&one, "10.7.0.2:80");
    let v6 = server(&one, "[fd07::2]:80");
    let from_world = reach(&place.outside, "192.0.2.1:8080", &v4);
    assert_eq!(
        from_world.ip().to_string(),
        "192.0.2.2",
        "the real client is seen"
    );
    assert_eq!(
        reach(&place.outside, "[2001:db8::1]:8080", &v6)
            .ip()
            .to_string(),
        "2001:db8::2"
    );
    // The host itself, by any of its addresses; the loopback of IPv6 cannot be.
    for to in ["127.0.0.1:8080", "10.7.0.1:8080", "192.0.2.1:8080"] {
        reach(&place.host, to, &v4);
    }
    for to in ["[fd07::1]:8080", "[2001:db8::1]:8080"] {
        reach(&place.host, to, &v6);
    }
    // Another container, and the container itself.
    for client in [&two, &one] {
        reach(client, "192.0.2.1:8080", &v4);
        reach(client, "[fd07::1]:8080", &v6);
    }
    let other = server(&one, "10.7.0.2:81");
    reach(&place.outside, "192.0.2.1:8081", &other);
    let datagrams = one
        .within(|| std::net::UdpSocket::bind("10.7.0.2:53"))
        .unwrap();
    let client = place
        .outside
        .within(|| std::net::UdpSocket::bind("192.0.2.2:0"))
        .unwrap();
    let patience = Some(Duration::from_secs(60));
    for socket in [&datagrams, &client] {
        socket.set_read_timeout(patience).unwrap();
    }
    client.send_to(b"?", "192.0.2.1:5300").unwrap();
    let mut said = [0; 1];
    let (_, from) = datagrams.recv_from(&mut said).unwrap();
    datagrams.send_to(b"!", from).unwrap();
    assert_eq!(
        client.recv_from(&mut said).unwrap().1.to_string(),
        "192.0.2.1:5300"
    );

    place.teardown(&first);
    place.teardown(&request("c2", &two, 3));
    assert_eq!(place.state(), before);
}

#[test]
fn the_hosts_own_loopback_is_not_reached_from_a_container() {
    let place = Place::new();
    let one = Net::new();
    place.setup(&request("c1", &one, 2)).unwrap();
    let secret = server(&place.host, "127.0.0.1:9999");
    secret.set_nonblocking(true).unwrap();
    // Sent to the host by the container's own routes.
    one.run(
        "ip addr del 127.0.0.1/8 dev lo && echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet && \
         ip route add 127.0.0.0/8 via 10.7.0.1 src 10.7.0.2",
    );
    let to = "127.0.0.1:9999".parse().unwrap();
    let patience = Duration::from_millis(500);
    let tried = one.within(|| std::net::TcpStream::connect_timeout(&to, patience));
    assert!(tried.is_err(), "{tried:?}");
    secret.accept().unwrap_err();
    // By that way it would be, but for the filter.
    place
        .host
        .run("nft flush chain inet $(nft list tables | awk '/containerd/{print $3}') guard");
    let patience = Duration::from_secs(60);
    one.within(|| std::net::TcpStream::connect_timeout(&to, patience))
        .unwrap();
}

#[test]
fn the_caller_chooses_gateway_mac_mtu_and_routes() {
    let place = Place::new();
    let one = Net::new();
    let mut wanted = request("c1", &one, 2);
    wanted.mac = Some("02:00:00:00:00:09".parse().unwrap());
    wanted.mtu = Some(1400);
    wanted.routes = vec![
        Route::new(IpNet::DEFAULT_V4, Some("10.7.0.254".parse().unwrap())),
        Route::new(
            "10.9.0.0/16".parse().unwrap(),
            Some("10.7.0.3".parse().unwrap()),
        ),
    ];
    let made = place.setup(&wanted).unwrap();
    assert_eq!(
        made.addresses[0].gateway,
        Some("10.7.0.254".parse().unwrap())
    );
    assert_eq!(made.interfaces[0].mac, wanted.mac);
    assert_eq!(made.interfaces[0].mtu, Some(1400));
    let seen = one.run("ip link show eth0; ip route");
    for part in [
        "mtu 1400",
        "02:00:00:00:00:09",
        "default via 10.7.0.254",
        "10.9.0.0/16 via 10.7.0.3",
    ] {
        assert!(seen.contains(part), "{part}: {seen}");
    }
    let seen = place.host.run("ip addr show br0");
    assert!(
        seen.contains("10.7.0.254/24") && seen.contains("fd07::1/64"),
        "{seen}"
    );
}

#[test]
fn a_bridge_that_somebody_else_made_stays_as_it_is() {
    let place = Place::new();
    place
        .host
        .run("ip link add br0 type bridge; ip addr add 10.7.0.1/24 dev br0; ip link set br0 up");
    let before = place.state();
    let (one, two) = (Net::new(), Net::new());
    let (first, second) = (request("c1", &one, 2), request("c2", &two, 3));
    place.setup(&first).unwrap();
    place.setup(&second).unwrap();
    let world = server(&place.outside, "192.0.2.2:80");
    reach(&one, "192.0.2.2:80", &world);
    place.teardown(&first);
    reach(&two, "192.0.2.2:80", &world);
    place.teardown(&second);
    assert_eq!(place.state(), before);
}

#[test]
fn many_at_once_are_all_joined_and_all_gone() {
    const MANY: u8 = 40;
    let place = Place::new();
    let before = place.state();
    let nets: Vec<_> = (0..MANY).map(|_| Net::new()).collect();
    let requests: Vec<_> = (0..MANY)
        .map(|n| {
            let mut one = request(&format!("c{n}"), &nets[usize::from(n)], n + 2);
            one.ports = vec![port(9000 + u16::from(n), 80)];
            one
        })
        .collect();
    let all = |work: &(dyn Fn(&NetRequest) + Sync)| {
        std::thread::scope(|scope| {
            for request in &requests {
                scope.spawn(move || work(request));
            }
        });
    };
    all(&|request| drop(place.setup(request).unwrap()));
    all(&|request| place.check(request).unwrap());
    let last = server(&nets[39], "10.7.0.41:80");
    reach(&nets[0], "10.7.0.41:80", &last);
    reach(&place.outside, "192.0.2.1:9039", &last);
    all(&|request| place.teardown(request));
    assert_eq!(place.state(), before);
}

struct Rig {
    place: Place,
    nets: Mutex<std::collections::BTreeMap<u8, Net>>,
}

impl crate::testsuite::Place for Rig {
    fn driver(&self) -> &dyn NetworkDriver {
        &self.place.driver
    }

    fn request(&self, number: u8) -> NetRequest {
        let net = Net::new();
        let mut made = request(&format!("c{number}"), &net, number);
        made.ports = vec![port(8000 + u16::from(number), 80)];
        self.nets.lock().unwrap().insert(number, net);
        made
    }

    fn end(&self, number: u8) {
        self.nets.lock().unwrap().remove(&number);
    }

    fn state(&self) -> String {
        self.place.state()
    }
}

#[test]
fn it_does_what_every_driver_must() {
    let rig = Rig {
        place: Place::new(),
        nets: Mutex::default(),
    };
    rig.place.host.block_on(crate::testsuite::all(&rig));
}
