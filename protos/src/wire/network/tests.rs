//! What goes out comes back in, and what does not fit is refused.

use ::types::Code;
use ::types::network::{IpvlanMode, MacvlanMode};
use std::time::{Duration, UNIX_EPOCH};

use super::*;

fn name(text: &str) -> LinkName {
    text.parse().unwrap()
}

fn kinds() -> Vec<LinkKind> {
    let other = |place| {
        Some(Other {
            name: name("p"),
            place,
        })
    };
    let vxlan = Vxlan {
        vni: 7,
        remote: Some("10.0.0.1".parse().unwrap()),
        local: Some("10.0.0.2".parse().unwrap()),
        port: Some(4789),
        parent: other(None),
        no_learning: true,
    };
    vec![
        LinkKind::Veth(other(Some(Place::Host))),
        LinkKind::Veth(other(Some(Place::Named("n".into())))),
        LinkKind::Veth(None),
        LinkKind::Bridge,
        LinkKind::Macvlan(other(None), MacvlanMode::Vepa),
        LinkKind::Ipvlan(other(None), IpvlanMode::L3s),
        LinkKind::Vlan(other(None), 4094),
        LinkKind::Vxlan(vxlan),
        LinkKind::Vxlan(Vxlan::default()),
        LinkKind::Tun(TunMode::Tun),
        LinkKind::Tun(TunMode::Tap),
        LinkKind::Dummy,
        LinkKind::Foreign("wireguard".into()),
        LinkKind::Foreign(String::new()),
    ]
}

fn spec() -> LinkSpec {
    let mut route = Route::new(IpNet::DEFAULT_V4, Some("10.0.0.1".parse().unwrap()));
    route.metric = Some(0);
    route.table = Some(100);
    route.mtu = Some(1400);
    route.on_link = true;
    LinkSpec {
        mac: Some("02:00:00:00:00:01".parse().unwrap()),
        mtu: Some(1400),
        up: Some(true),
        attachment: Some(Some(Attachment {
            bridge: name("br"),
            hairpin: true,
            isolated: true,
        })),
        addresses: Some(vec![
            "10.0.0.2/24".parse().unwrap(),
            "fd00::2/64".parse().unwrap(),
        ]),
        routes: Some(vec![route]),
        neighbours: Some(vec![Neighbour {
            address: "10.0.0.9".parse().unwrap(),
            mac: "02:00:00:00:00:09".parse().unwrap(),
        }]),
        sysctls: [("ipv4/forwarding".to_owned(), "1".to_owned())].into(),
    }
}

#[test]
fn interfaces_round_trip() {
    for kind in kinds() {
        for spec in [spec(), LinkSpec::default()] {
            let new = NewLink {
                place: Place::Named("n".into()),
                name: name("eth0"),
                kind: kind.clone(),
                spec: spec.clone(),
                labels: Labels::new().with("a", "b"),
            };
            assert_eq!(NewLink::from_wire(new.to_wire()).unwrap(), new);
            let link = Link {
                place: Place::Host,
                name: name("eth0"),
                index: 3,
                kind: kind.clone(),
                mac: spec.mac,
                mtu: 1500,
                up: true,
                running: true,
                attachment: spec.attachment.flatten(),
                addresses: spec.addresses.unwrap_or_default(),
                routes: spec.routes.unwrap_or_default(),
                neighbours: spec.neighbours.unwrap_or_default(),
                labels: Labels::new().with("a", "b"),
                created_at: Some(UNIX_EPOCH + Duration::from_secs(5)),
            };
            assert_eq!(Link::from_wire(link.to_wire()).unwrap(), link);
        }
    }
}

#[test]
fn namespaces_round_trip() {
    let made = NetNamespace {
        name: "n".into(),
        path: "/run/n".into(),
        inode: 7,
        adopted: "/proc/1/ns/net".into(),
        labels: Labels::new().with("a", "b"),
        created_at: UNIX_EPOCH + Duration::from_secs(5),
        updated_at: UNIX_EPOCH + Duration::from_secs(6),
    };
    assert_eq!(NetNamespace::from_wire(made.to_wire()).unwrap(), made);
}

#[test]
fn changes_round_trip_with_their_masks() {
    let none = LinkSpec {
        attachment: Some(None),
        addresses: Some(Vec::new()),
        up: Some(false),
        ..LinkSpec::default()
    };
    let labels = (
        Labels::new().with("a", "b"),
        Fields::new(vec!["labels.a".into()]),
    );
    for (spec, labels) in [
        (spec(), None),
        (none, Some(labels)),
        (
            LinkSpec {
                mtu: Some(9),
                ..LinkSpec::default()
            },
            None,
        ),
    ] {
        let change = LinkChange { spec, labels };
        let (link, mask) = change_to_wire(&Place::Host, &name("eth0"), &change);
        assert_eq!(
            change_from_wire(link, MessageField::some(mask)).unwrap(),
            change
        );
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let link = |change: fn(&mut proto::Link)| {
        let mut made = proto::Link {
            name: "eth0".into(),
            kind: "dummy".into(),
            ..Default::default()
        };
        change(&mut made);
        NewLink::from_wire(made).unwrap_err()
    };
    for error in [
        link(|l| l.name = "1234567890123456".into()),
        link(|l| l.name = "a/b".into()),
        link(|l| l.mac = "x".into()),
        link(|l| l.addresses = vec!["10.0.0.1/33".into()]),
        link(|l| l.routes = vec![proto::Route::default()]),
        link(|l| l.neighbours = vec![proto::Neighbour::default()]),
        link(|l| (l.kind, l.id) = ("vlan".into(), 1 << 16)),
        link(|l| (l.kind, l.mode) = ("macvlan".into(), "x".into())),
        link(|l| l.attachment = MessageField::some(proto::Attachment::default())),
    ] {
        assert!(error.is(Code::InvalidArgument), "{error}");
    }
    for path in ["name", "kind", "mac", "mtu.x", "sysctls.ipv4/x", ""] {
        let mut mask = FieldMask::new();
        mask.paths = vec![path.into()];
        let error = change_from_wire(proto::Link::default(), MessageField::some(mask)).unwrap_err();
        assert!(error.is(Code::InvalidArgument), "{path}: {error}");
    }
}
