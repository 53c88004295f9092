//! Interfaces in network namespaces that the tests make; and messages for kinds that not every kernel has.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use types::Code;
use types::network::{LinkSpec, MacvlanMode, Vxlan};

use super::*;

mod kinds;
mod routes;

/// A network namespace that goes with the test.
struct Scene {
    dir: tempfile::TempDir,
    inside: Inside,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ns = sys::netns::create(&dir.path().join("n"), || Ok(())).unwrap();
        let inside = Inside::of(ns).unwrap();
        Self { dir, inside }
    }

    fn make(&mut self, name: &str, kind: &LinkKind, spec: &LinkSpec) -> Result<Seen> {
        let name = name.parse().unwrap();
        let new = New {
            name: &name,
            kind,
            spec,
            group: 7,
        };
        self.inside.create(&new, None)
    }

    /// What iproute2 says.
    fn ip(&self, arguments: &str) -> serde_json::Value {
        let path = self.dir.path().join("n");
        let mut all = vec![
            format!("--net={}", path.display()),
            "ip".into(),
            "-j".into(),
            "-d".into(),
        ];
        all.extend(arguments.split(' ').map(str::to_owned));
        #[expect(clippy::disallowed_methods, reason = "a test has no reaper")]
        let out = Command::new("nsenter").args(&all).output().unwrap();
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        serde_json::from_slice(&out.stdout).unwrap()
    }

    fn names(&mut self) -> Vec<String> {
        let all = self.inside.list().unwrap();
        all.iter().map(|seen| seen.link.name.to_string()).collect()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        sys::netns::unpin(&self.dir.path().join("n")).unwrap();
    }
}

fn name(text: &str) -> LinkName {
    text.parse().unwrap()
}

fn beside(text: &str) -> Option<Other> {
    Some(Other::beside(name(text)))
}

fn veth(peer: &str) -> LinkKind {
    LinkKind::Veth(beside(peer))
}

fn up(addresses: &[&str]) -> LinkSpec {
    LinkSpec {
        up: Some(true),
        addresses: Some(addresses.iter().map(|net| net.parse().unwrap()).collect()),
        ..LinkSpec::default()
    }
}

/// Without what the kernel finds out a moment later: whether there is somebody at the other end.
fn as_made(link: Link) -> Link {
    Link {
        running: false,
        ..link
    }
}

#[test]
fn a_pair_has_all_that_it_is_asked_for() {
    let mut scene = Scene::new();
    let route = |to: &str, via: &str| Route::new(to.parse().unwrap(), Some(via.parse().unwrap()));
    let spec = LinkSpec {
        mac: Some("02:00:00:00:00:11".parse().unwrap()),
        mtu: Some(1400),
        routes: Some(vec![
            route("0.0.0.0/0", "10.9.0.1"),
            route("fd01::/64", "fd00::1"),
        ]),
        neighbours: Some(vec![Neighbour {
            address: "10.9.0.9".parse().unwrap(),
            mac: "02:00:00:00:00:99".parse().unwrap(),
        }]),
        sysctls: [("ipv4/forwarding".to_owned(), "1".to_owned())].into(),
        ..up(&["10.9.0.2/24", "fd00::2/64"])
    };
    let made = scene.make("a", &veth("b"), &spec).unwrap();
    assert_eq!((made.group, made.link.kind.clone()), (7, veth("b")));
    assert_eq!(made.link.routes, spec.routes.clone().unwrap());
    assert_eq!(made.link.addresses, spec.addresses.clone().unwrap());
    let told = &scene.ip("addr show a")[0];
    assert_eq!(
        (told["mtu"].as_u64(), told["address"].as_str()),
        (Some(1400), Some("02:00:00:00:00:11"))
    );
    assert_eq!(told["addr_info"][0]["local"], "10.9.0.2");
    assert_eq!(told["addr_info"][0]["broadcast"], "10.9.0.255");
    let routes = scene.ip("route show dev a");
    assert!(
        routes
            .as_array()
            .unwrap()
            .iter()
            .any(|r| r["dst"] == "default" && r["gateway"] == "10.9.0.1"),
        "{routes}"
    );
    assert_eq!(
        scene.ip("neigh show dev a nud permanent")[0]["lladdr"],
        "02:00:00:00:00:99"
    );
    let forwards = scene
        .inside
        .within(|| sysctl::read(&name("a"), "ipv4/forwarding"))
        .unwrap();
    assert_eq!(forwards, "1");
    // The same again changes nothing.
    let again = scene.inside.change(&name("a"), &spec).unwrap().link;
    assert_eq!(as_made(again), as_made(made.link));
    scene.inside.delete(&name("a")).unwrap();
    assert_eq!(scene.names(), ["lo"]);
}

#[test]
fn a_change_makes_what_is_wanted_and_leaves_what_is_not_named() {
    let mut scene = Scene::new();
    scene
        .make("a", &veth("b"), &up(&["10.9.0.2/24", "10.9.1.2/24"]))
        .unwrap();
    let changed = scene.inside.change(
        &name("a"),
        &LinkSpec {
            addresses: Some(vec![
                "10.9.1.2/24".parse().unwrap(),
                "fd00::5/64".parse().unwrap(),
            ]),
            ..LinkSpec::default()
        },
    );
    let link = changed.unwrap().link;
    assert!(link.up);
    let addresses: Vec<_> = link.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.9.1.2/24", "fd00::5/64"]);
    let down = LinkSpec {
        up: Some(false),
        ..LinkSpec::default()
    };
    assert!(!scene.inside.change(&name("a"), &down).unwrap().link.up);
}

#[test]
fn a_bridge_has_ports_with_hairpin_and_isolation() {
    let mut scene = Scene::new();
    scene
        .make("br", &LinkKind::Bridge, &up(&["10.9.0.1/24"]))
        .unwrap();
    let attached = |hairpin, isolated| LinkSpec {
        attachment: Some(Some(Attachment {
            bridge: name("br"),
            hairpin,
            isolated,
        })),
        ..up(&[])
    };
    scene.make("a", &veth("b"), &attached(true, false)).unwrap();
    let told = |scene: &Scene| scene.ip("link show a")[0].clone();
    let port = |told: &serde_json::Value| {
        let data = &told["linkinfo"]["info_slave_data"];
        (
            told["master"].as_str().map(str::to_owned),
            data["hairpin"].as_bool(),
            data["isolated"].as_bool(),
        )
    };
    assert_eq!(
        port(&told(&scene)),
        (Some("br".into()), Some(true), Some(false))
    );
    let link = scene
        .inside
        .change(&name("a"), &attached(false, true))
        .unwrap()
        .link;
    assert_eq!(
        link.attachment,
        Some(Attachment {
            bridge: name("br"),
            hairpin: false,
            isolated: true
        })
    );
    assert_eq!(
        port(&told(&scene)),
        (Some("br".into()), Some(false), Some(true))
    );
    let none = LinkSpec {
        attachment: Some(None),
        ..LinkSpec::default()
    };
    assert_eq!(
        scene
            .inside
            .change(&name("a"), &none)
            .unwrap()
            .link
            .attachment,
        None
    );
    assert_eq!(port(&told(&scene)).0, None);
    // What is no bridge has no ports.
    let wrong = LinkSpec {
        attachment: Some(Some(Attachment {
            bridge: name("b"),
            hairpin: false,
            isolated: false,
        })),
        ..LinkSpec::default()
    };
    let error = scene.inside.change(&name("a"), &wrong).unwrap_err();
    assert!(
        error.is(Code::FailedPrecondition) && error.to_string().contains("interface b"),
        "{error}"
    );
}

#[test]
fn an_interface_moves_with_what_it_has_under_another_name() {
    let (mut here, mut there) = (Scene::new(), Scene::new());
    let spec = LinkSpec {
        routes: Some(vec![Route::new(
            IpNet::DEFAULT_V4,
            Some("10.9.0.1".parse().unwrap()),
        )]),
        ..up(&["10.9.0.2/24", "fd00::2/64"])
    };
    let before = here.make("a", &veth("b"), &spec).unwrap().link;
    let moved = here
        .inside
        .transfer(&name("a"), &mut there.inside, &name("eth0"))
        .unwrap()
        .link;
    assert_eq!(
        (&moved.addresses, &moved.routes, moved.up),
        (&before.addresses, &before.routes, true)
    );
    assert_eq!(here.names(), ["b", "lo"]);
    assert_eq!(there.names(), ["eth0", "lo"]);
    // A name that is taken: nothing moves.
    let error = here
        .inside
        .transfer(&name("b"), &mut there.inside, &name("eth0"))
        .unwrap_err();
    assert!(error.is_already_exists(), "{error}");
    assert_eq!(here.names(), ["b", "lo"]);
    // The loopback never does.
    let error = here
        .inside
        .transfer(&name("lo"), &mut there.inside, &name("lo2"))
        .unwrap_err();
    assert!(error.is(Code::InvalidArgument), "{error}");
    assert_eq!(
        there
            .inside
            .rename(&name("eth0"), &name("net1"))
            .unwrap()
            .link
            .addresses,
        before.addresses
    );
}

#[test]
fn what_fails_half_way_leaves_everything_as_it_was() {
    let mut scene = Scene::new();
    let unreachable = vec![Route::new(
        IpNet::DEFAULT_V4,
        Some("192.0.2.1".parse().unwrap()),
    )];
    let spec = LinkSpec {
        routes: Some(unreachable),
        mtu: Some(1300),
        ..up(&["10.9.0.2/24"])
    };
    let error = scene.make("a", &veth("b"), &spec).unwrap_err();
    assert!(error.is(Code::FailedPrecondition), "{error}");
    assert!(error.to_string().contains("interface a"), "{error}");
    assert_eq!(scene.names(), ["lo"]);
    let was = LinkSpec {
        routes: Some(vec![Route::new(
            IpNet::DEFAULT_V4,
            Some("10.8.0.1".parse().unwrap()),
        )]),
        ..up(&["10.8.0.2/24", "fd00::8/64"])
    };
    let before = scene.make("a", &veth("b"), &was).unwrap().link;
    scene.inside.change(&name("a"), &spec).unwrap_err();
    let after = scene.inside.get(&name("a")).unwrap().link;
    assert_eq!(as_made(after), as_made(before));
}

/// What the kernel and the tests say of all interfaces.
fn links(scene: &mut Scene) -> Vec<Link> {
    let all = scene.inside.list().unwrap();
    all.into_iter().map(|seen| as_made(seen.link)).collect()
}

#[test]
fn a_bad_change_has_its_class_and_the_name_of_the_thing() {
    let mut scene = Scene::new();
    scene.make("a", &veth("b"), &up(&[])).unwrap();
    let before = links(&mut scene);
    let none = LinkSpec::default;
    let mtu = |mtu| LinkSpec {
        mtu: Some(mtu),
        ..none()
    };
    let route = Route::new(IpNet::DEFAULT_V4, Some("fd00::1".parse().unwrap()));
    let mixed = LinkSpec {
        routes: Some(vec![route]),
        ..none()
    };
    let group = LinkSpec {
        addresses: Some(vec!["224.0.0.1/24".parse().unwrap()]),
        ..none()
    };
    let sysctl = LinkSpec {
        sysctls: [("ipv4/no_such".into(), "1".into())].into(),
        ..none()
    };
    let bridge = Attachment {
        bridge: name("no"),
        hairpin: false,
        isolated: false,
    };
    let bridge = LinkSpec {
        attachment: Some(Some(bridge)),
        ..none()
    };
    for (spec, code, what) in [
        (mtu(10), Code::InvalidArgument, "MTU of interface a to 10"),
        (mtu(u32::MAX), Code::InvalidArgument, "MTU of interface a"),
        (mixed, Code::InvalidArgument, "gateway fd00::1 (IPv6)"),
        (group, Code::InvalidArgument, "224.0.0.1/24"),
        (sysctl, Code::NotFound, "ipv4/no_such"),
        (bridge, Code::NotFound, "interface no"),
    ] {
        let error = scene.inside.change(&name("a"), &spec).unwrap_err();
        assert!(
            error.is(code) && error.to_string().contains(what),
            "{error:?}"
        );
    }
    let error = scene.inside.delete(&name("lo")).unwrap_err();
    assert!(
        error.is(Code::FailedPrecondition) && error.to_string().contains("lo"),
        "{error:?}"
    );
    assert!(scene.inside.get(&name("gone")).unwrap_err().is_not_found());
    assert_eq!(before, links(&mut scene));
}

#[test]
fn a_bad_creation_has_its_class_and_the_name_of_the_thing() {
    let mut scene = Scene::new();
    scene.make("a", &veth("b"), &up(&[])).unwrap();
    let before = links(&mut scene);
    let wide = Vxlan {
        vni: 1 << 24,
        ..Vxlan::default()
    };
    let mode = MacvlanMode::Bridge;
    for (kind, code, what) in [
        (
            LinkKind::Macvlan(beside("no"), mode),
            Code::NotFound,
            "interface no",
        ),
        (
            LinkKind::Macvlan(None, mode),
            Code::InvalidArgument,
            "parent is missing",
        ),
        (
            LinkKind::Vlan(beside("a"), 4095),
            Code::InvalidArgument,
            "4095",
        ),
        (LinkKind::Vxlan(wide), Code::InvalidArgument, "24 bits"),
        (veth("n"), Code::InvalidArgument, "same name"),
        (veth("a"), Code::AlreadyExists, "veth n"),
        (
            LinkKind::Foreign("wireguard".into()),
            Code::InvalidArgument,
            "wireguard",
        ),
        (
            LinkKind::Foreign(String::new()),
            Code::InvalidArgument,
            "kind \"\"",
        ),
    ] {
        let error = scene.make("n", &kind, &LinkSpec::default()).unwrap_err();
        assert!(
            error.is(code) && error.to_string().contains(what),
            "{error:?}"
        );
    }
    assert_eq!(before, links(&mut scene));
}

#[test]
fn one_that_vanishes_in_the_middle_of_a_change_is_not_found_and_leaves_nothing() {
    let mut scene = Scene::new();
    let many: Vec<String> = (2..250).map(|n| format!("10.9.0.{n}/24")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    // Between two steps.
    scene.make("a", &veth("b"), &LinkSpec::default()).unwrap();
    let first = scene.inside.change(&name("a"), &up(&many[..100])).unwrap();
    scene.inside.delete(&name("a")).unwrap();
    let next = scene.inside.nearer(&first, &up(&many), 0).unwrap_err();
    let text = next.to_string();
    assert!(
        next.is_not_found() && text.contains("interface a"),
        "{text}"
    );
    assert_ne!(text, "interface a: not found", "it has looked again");
    // And whenever else.
    let path = scene.dir.path().join("n");
    let mut other = Inside::open(&path).unwrap();
    for round in 0..40 {
        scene.make("a", &veth("b"), &LinkSpec::default()).unwrap();
        let is_over = AtomicBool::new(false);
        let changed = std::thread::scope(|scope| {
            scope.spawn(|| {
                // When it has some of its addresses. With all of them who changes it has been faster.
                let some = |seen: &Seen| seen.link.addresses.len() > round;
                let is_early = |seen| !some(&seen) && !is_over.load(Ordering::Relaxed);
                while other.get(&name("a")).is_ok_and(is_early) {}
                other.delete(&name("a")).unwrap();
            });
            let changed = scene.inside.change(&name("a"), &up(&many));
            is_over.store(true, Ordering::Relaxed);
            changed
        });
        if let Err(error) = changed {
            let text = error.to_string();
            assert!(
                error.is_not_found() && text.contains("interface a"),
                "{text}"
            );
        }
        assert_eq!(scene.names(), ["lo"]);
    }
}
