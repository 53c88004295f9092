//! The plugins that Debian has, in network namespaces of the tests.

use types::network::{PortMapping, Protocol};

use super::*;
use crate::testing::{Net, debian_plugins, reach, server};

const CHAIN: &str = r#"{"cniVersion":"VERSION","name":"real","plugins":[
    {"type":"bridge","bridge":"cni-test0","isGateway":true,"ipMasq":MASQ,"capabilities":{"mac":true},
     "ipam":{"type":"host-local","dataDir":"DATA","ranges":[[{"subnet":"10.88.0.0/24"}],[{"subnet":"fd88::/64"}]],
        "routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]}},
    {"type":"portmap","capabilities":{"portMappings":true}},
    {"type":"tuning","mtu":1400}]}"#;

struct Real {
    place: Place,
    host: Net,
    inside: Net,
}

impl Real {
    fn new(version: &str) -> Self {
        Self::with(version, true)
    }

    fn with(version: &str, masquerade: bool) -> Self {
        let place = Place::new();
        for plugin in ["bridge", "portmap", "host-local", "tuning"] {
            let at = place.dir.path().join("bin").join(plugin);
            symlink(debian_plugins().join(plugin), at).unwrap();
        }
        let data = place.dir.path().join("data").display().to_string();
        let text = CHAIN
            .replace("VERSION", version)
            .replace("DATA", &data)
            .replace("MASQ", if masquerade { "true" } else { "false" });
        place.file("real.conflist", &text);
        let (host, inside) = (Net::new(), Net::new());
        Self {
            place,
            host,
            inside,
        }
    }

    fn request(&self) -> NetRequest {
        let mut request = request();
        request.netns.clone_from(&self.inside.path);
        request.mac = Some("02:00:00:00:00:07".parse().unwrap());
        request.ports = vec![PortMapping {
            protocol: Protocol::Tcp,
            host_ip: None,
            host_port: 8080,
            container_port: 80,
        }];
        request
    }

    /// Addresses that are still given away.
    fn leases(&self) -> Vec<String> {
        let data = std::fs::read_dir(self.place.dir.path().join("data/real"));
        let names = data.into_iter().flatten().flatten().map(|e| e.file_name());
        let names = names.map(|name| name.to_string_lossy().into_owned());
        let mut names: Vec<_> = names
            .filter(|n| n.starts_with(|c: char| c.is_ascii_hexdigit()))
            .collect();
        names.sort();
        names
    }

    fn assert_given_back(&self) {
        assert_eq!(self.leases(), [""; 0]);
        assert!(self.place.is_clean());
    }

    /// Everything is as before the first call: but for the bridge, which the plugin leaves.
    fn assert_clean(&self) {
        self.assert_given_back();
        let links = self.host.run("ip -o link show type veth");
        assert_eq!(links, "");
        let rules = self.host.run("nft list ruleset 2>/dev/null");
        for left in ["10.88.0.2", "dport 8080"] {
            assert!(!rules.contains(left), "{rules}");
        }
    }
}

#[test]
fn a_container_is_joined_by_a_real_chain_and_leaves_nothing() {
    for version in ["0.4.0", "1.0.0"] {
        let real = Real::new(version);
        let (cni, request) = (&real.place.cni, real.request());
        let made = real.host.block_on(cni.setup(&request)).unwrap();
        let addresses: Vec<_> = made
            .addresses
            .iter()
            .map(|a| a.address.to_string())
            .collect();
        assert_eq!(addresses, ["10.88.0.2/24", "fd88::2/64"]);
        assert_eq!(made.routes.len(), 2);
        let at = made.addresses[0].interface.unwrap();
        assert_eq!(made.interfaces[at].netns.as_ref(), Some(&real.inside.path));
        assert_eq!(made.interfaces[at].mac, request.mac);
        assert_eq!(real.leases(), ["10.88.0.2", "fd88::2"]);
        let inside = real
            .inside
            .run("ip -o addr show eth0; ip link show eth0; ip route");
        for part in [
            "10.88.0.2/24",
            "fd88::2/64",
            "mtu 1400",
            "02:00:00:00:00:07",
            "default via 10.88.0.1",
        ] {
            assert!(inside.contains(part), "{part}: {inside}");
        }
        let inner = server(&real.inside, "10.88.0.2:80");
        reach(&real.host, "10.88.0.1:8080", &inner);
        let outer = server(&real.host, "10.88.0.1:81");
        reach(&real.inside, "10.88.0.1:81", &outer);
        assert_eq!(real.host.block_on(cni.setup(&request)).unwrap(), made);
        for _ in 0..2 {
            real.host.block_on(cni.teardown(&request)).unwrap();
            real.assert_clean();
        }
        assert_eq!(real.inside.run("ip -o link show type veth"), "");
    }
}

#[test]
fn a_real_chain_tells_what_has_become_other() {
    let real = Real::new("1.0.0");
    // Debian's portmap looks for the rules of IPv4 in IPv6 when it checks.
    let file = real.place.dir.path().join("net.d/real.conflist");
    let text = std::fs::read_to_string(&file).unwrap();
    let portmap = r#"{"type":"portmap","capabilities":{"portMappings":true}},"#;
    std::fs::write(file, text.replace(portmap, "")).unwrap();
    let (cni, mut request) = (&real.place.cni, real.request());
    request.ports.clear();
    real.host.block_on(cni.setup(&request)).unwrap();
    real.host.block_on(cni.check(&request)).unwrap();
    real.inside.run("ip link set eth0 mtu 1300");
    let error = real.host.block_on(cni.check(&request)).unwrap_err();
    assert_says(
        &error,
        Code::FailedPrecondition,
        &["\"real\"", "\"tuning\": CHECK"],
    );
}

#[test]
fn a_real_chain_that_fails_at_its_end_leaves_nothing() {
    let real = Real::new("1.0.0");
    std::fs::remove_file(real.place.dir.path().join("bin/tuning")).unwrap();
    real.place
        .plugin("tuning", "[ $CNI_COMMAND != ADD ] || kill -9 $$");
    let (cni, request) = (&real.place.cni, real.request());
    let error = real.host.block_on(cni.setup(&request)).unwrap_err();
    assert_says(
        &error,
        Code::Unknown,
        &["\"tuning\": ADD", "killed by signal 9"],
    );
    real.assert_clean();
}

#[test]
fn addresses_come_back_when_the_namespace_is_gone() {
    let mut real = Real::new("1.0.0");
    let request = real.request();
    real.host.block_on(real.place.cni.setup(&request)).unwrap();
    // As after a reboot, which plugins keep their files through.
    drop(std::mem::replace(&mut real.inside, Net::new()));
    let next = Cni::new(Place::opts(real.place.dir.path(), Duration::from_secs(60)));
    let left = real.host.block_on(next.reconcile(|_| true)).unwrap();
    assert!(left.is_empty(), "{left:?}");
    // Its rules for masquerade this plugin finds by the addresses inside only: they stay.
    real.assert_given_back();
}

#[test]
fn a_real_plugin_says_which_versions_it_speaks() {
    let real = Real::new("1.0.0");
    real.host.block_on(real.place.cni.status()).unwrap();
    let real = Real::new("1.1.0");
    let error = real.host.block_on(real.place.cni.status()).unwrap_err();
    assert_says(
        &error,
        Code::Unavailable,
        &["\"bridge\" does not speak version 1.1.0"],
    );
}

struct Rig {
    real: Real,
    nets: std::sync::Mutex<std::collections::BTreeMap<u8, Net>>,
}

impl crate::testsuite::Place for Rig {
    fn driver(&self) -> &dyn crate::NetworkDriver {
        &self.real.place.cni
    }

    fn request(&self, number: u8) -> NetRequest {
        let net = Net::new();
        let mut made = request();
        made.id.container = format!("c{number}").parse().unwrap();
        made.netns.clone_from(&net.path);
        self.nets.lock().unwrap().insert(number, net);
        made
    }

    fn end(&self, number: u8) {
        let mut nets = self.nets.lock().unwrap();
        nets.remove(&number);
        // The kernel takes what was in a network namespace away after that, in its own time.
        until("the wires of a namespace go with it", || {
            let wires = self.real.host.run("ip -o link show type veth | wc -l");
            wires.trim().parse::<usize>().unwrap() <= nets.len()
        });
    }

    fn state(&self) -> String {
        let links = self.real.host.run("ip -o link show type veth");
        let is_clean = self.real.place.is_clean();
        format!("{links} {:?} {is_clean}", self.real.leases())
    }
}

#[test]
fn it_does_what_every_driver_must() {
    let rig = Rig {
        real: Real::with("1.0.0", false),
        nets: std::sync::Mutex::default(),
    };
    rig.real.host.block_on(crate::testsuite::all(&rig));
}
