//! Each kind of interface, made or at least asked for as it should be.

use netlink_packet_core::Parseable as _;
use netlink_packet_route::link::{
    InfoData, InfoIpVlan, InfoKind, InfoVlan, IpVlanMode, LinkAttribute, LinkInfo, LinkMessage,
    LinkMessageBuffer,
};
use types::network::{IpvlanMode, TunMode};

use super::*;

#[test]
fn each_kind_that_this_kernel_has_is_made_and_seen() {
    let mut scene = Scene::new();
    scene.make("p", &veth("q"), &up(&[])).unwrap();
    let vxlan = Vxlan {
        vni: 4242,
        remote: Some("10.9.0.7".parse().unwrap()),
        local: Some("10.9.0.2".parse().unwrap()),
        port: Some(4789),
        parent: beside("p"),
        no_learning: true,
    };
    for (link, kind, word) in [
        (
            "m",
            LinkKind::Macvlan(beside("p"), MacvlanMode::Private),
            "macvlan",
        ),
        ("x", LinkKind::Vxlan(vxlan), "vxlan"),
        ("t", LinkKind::Tun(TunMode::Tun), "tun"),
        ("u", LinkKind::Tun(TunMode::Tap), "tun"),
        ("r", LinkKind::Bridge, "bridge"),
    ] {
        let made = scene.make(link, &kind, &LinkSpec::default()).unwrap();
        assert_eq!((&made.link.kind, made.group), (&kind, 7), "{link}");
        let told = &scene.ip(&format!("link show {link}"))[0];
        assert_eq!(told["linkinfo"]["info_kind"], word, "{told}");
        let again = scene.make(link, &kind, &LinkSpec::default()).unwrap_err();
        assert!(again.is_already_exists(), "{link}: {again}");
    }
    let told = scene.ip("link show x");
    let data = &told[0]["linkinfo"]["info_data"];
    assert_eq!(
        (
            data["id"].as_u64(),
            data["link"].as_str(),
            data["learning"].as_bool()
        ),
        (Some(4242), Some("p"), Some(false))
    );
    assert_eq!(
        scene.ip("link show m")[0]["linkinfo"]["info_data"]["mode"],
        "private"
    );
    assert_eq!(
        scene.ip("link show u")[0]["linkinfo"]["info_data"]["type"],
        "tap"
    );
}

#[test]
fn the_other_end_and_the_parent_may_be_elsewhere() {
    let (mut here, mut there) = (Scene::new(), Scene::new());
    let kind = LinkKind::Veth(Some(Other {
        name: name("b"),
        place: Some(Place::Host),
    }));
    let (a, spec) = (name("a"), up(&[]));
    let new = New {
        name: &a,
        kind: &kind,
        spec: &spec,
        group: 7,
    };
    let made = here.inside.create(&new, Some(&mut there.inside)).unwrap();
    assert_eq!(made.link.kind, LinkKind::Veth(None));
    assert_eq!(there.names(), ["b", "lo"]);
    assert_eq!(there.inside.get(&name("b")).unwrap().group, 7);
    // A name that is taken where the parent is hinders nobody.
    let kind = LinkKind::Macvlan(beside("b"), MacvlanMode::Bridge);
    let b = name("b");
    let new = New {
        name: &b,
        kind: &kind,
        spec: &spec,
        group: 7,
    };
    let made = here.inside.create(&new, Some(&mut there.inside)).unwrap();
    assert_eq!(made.link.kind, LinkKind::Macvlan(None, MacvlanMode::Bridge));
    assert_eq!(here.names(), ["a", "b", "lo"]);
    let error = here
        .inside
        .create(&new, Some(&mut there.inside))
        .unwrap_err();
    assert!(error.is_already_exists(), "{error}");
    assert_eq!(there.names(), ["b", "lo"]);
}

/// What another reader of such messages finds in ours.
fn read(kind: &LinkKind, parent: Option<u32>) -> Vec<LinkInfo> {
    let new = encode::New {
        name: "n",
        group: 7,
        parent,
        ..encode::New::default()
    };
    let message = encode::create(kind, new).unwrap();
    let body = message.body();
    let buffer = LinkMessageBuffer::new_checked(&body).unwrap();
    let parsed = LinkMessage::parse(&buffer).unwrap();
    assert!(
        parsed
            .attributes
            .contains(&LinkAttribute::IfName("n".into()))
    );
    if let Some(parent) = parent {
        assert!(parsed.attributes.contains(&LinkAttribute::Link(parent)));
    }
    let info = parsed
        .attributes
        .into_iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(info) => Some(info),
            _ => None,
        });
    info.unwrap()
}

#[test]
fn kinds_that_the_kernel_lacks_are_asked_for_as_its_documentation_says() {
    let vlan = read(&LinkKind::Vlan(beside("p"), 100), Some(3));
    assert_eq!(vlan[0], LinkInfo::Kind(InfoKind::Vlan));
    assert_eq!(
        vlan[1],
        LinkInfo::Data(InfoData::Vlan(vec![InfoVlan::Id(100)]))
    );
    let ipvlan = read(&LinkKind::Ipvlan(beside("p"), IpvlanMode::L3s), Some(3));
    assert_eq!(ipvlan[0], LinkInfo::Kind(InfoKind::IpVlan));
    assert_eq!(
        ipvlan[1],
        LinkInfo::Data(InfoData::IpVlan(vec![InfoIpVlan::Mode(IpVlanMode::L3S)]))
    );
    assert_eq!(
        read(&LinkKind::Dummy, None)[0],
        LinkInfo::Kind(InfoKind::Dummy)
    );
    let mut scene = Scene::new();
    scene.make("p", &veth("q"), &up(&[])).unwrap();
    for kind in [
        LinkKind::Dummy,
        LinkKind::Vlan(beside("p"), 100),
        LinkKind::Ipvlan(beside("p"), IpvlanMode::L2),
    ] {
        // A kernel that has them makes them.
        match scene.make("n", &kind, &LinkSpec::default()) {
            Ok(made) => {
                assert_eq!(made.link.kind, kind);
                scene.inside.delete(&name("n")).unwrap();
            }
            Err(error) => {
                let word = kind.as_str();
                assert!(
                    error.is(Code::NotImplemented) && error.to_string().contains(word),
                    "{error:?}"
                );
            }
        }
        assert_eq!(scene.names(), ["lo", "p", "q"]);
    }
}
