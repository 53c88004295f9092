//! What a check finds and repairs.

use types::{Fault, Repair};

use super::*;
use crate::link::Inside;

#[test]
fn a_check_names_what_has_no_record_and_what_has_nothing_behind_it() {
    apart(async {
        let house = House::new();
        house.namespace("a", "n").await.unwrap();
        let orphan = house.dir.path().join("netns/a/lost");
        sys::netns::create(&orphan, || Ok(())).unwrap();
        let path = house.namespace("a", "gone").await.unwrap().path;
        sys::netns::unpin(&path).unwrap();
        let found = house.networks.check(false).await.unwrap();
        let told: Vec<_> = found
            .iter()
            .map(|f| (f.fault, f.object.as_str(), f.repair))
            .collect();
        assert_eq!(
            told,
            [
                (Fault::Missing, "network-namespace a/gone", Repair::Possible),
                (Fault::Orphan, "network-namespace a/lost", Repair::Possible),
            ]
        );
        let found = house.networks.check(true).await.unwrap();
        assert!(
            found.iter().all(|finding| finding.repair == Repair::Done),
            "{found:?}"
        );
        assert_eq!(house.networks.check(false).await.unwrap(), []);
        assert!(!orphan.exists());
        house.end().await;
    });
}

#[test]
fn an_interface_of_the_host_without_a_record_is_named() {
    apart(async {
        let house = House::new();
        let near = "nearo".to_owned();
        house.namespace("a", "n").await.unwrap();
        let kind = LinkKind::Veth(Some(Other {
            name: named(&near),
            place: Some(Place::Host),
        }));
        house.link("a", &at("n"), "eth0", kind).await.unwrap();
        // The records are lost.
        for entry in std::fs::read_dir(house.dir.path().join("records"))
            .unwrap()
            .flatten()
        {
            if std::fs::read_to_string(entry.path())
                .unwrap()
                .contains("\"link\"")
            {
                std::fs::remove_file(entry.path()).unwrap();
            }
        }
        let mut house = house;
        house.restart();
        let object = format!("interface {near}");
        let found = house.networks.check(true).await.unwrap();
        assert!(
            found.len() == 1 && found[0].object == object && found[0].repair == Repair::Done,
            "{found:?}"
        );
        assert!(
            Inside::host()
                .unwrap()
                .find(&named(&near))
                .unwrap()
                .is_none()
        );
        house.end().await;
    });
}

#[test]
fn a_record_whose_interface_is_gone_is_named_and_so_is_a_mark_in_a_namespace() {
    apart(async {
        let house = House::new();
        house.namespace("a", "n").await.unwrap();
        house
            .link("a", &at("n"), "br0", LinkKind::Bridge)
            .await
            .unwrap();
        house
            .link("a", &at("n"), "br1", LinkKind::Bridge)
            .await
            .unwrap();
        let mut inside = Inside::open(&house.dir.path().join("netns/a/n")).unwrap();
        inside.delete(&named("br0")).unwrap();
        inside.rename(&named("br1"), &named("br2")).unwrap();
        let told = |found: &[types::Finding]| -> Vec<(Fault, String, Repair)> {
            let all = found.iter();
            all.map(|one| (one.fault, one.object.clone(), one.repair))
                .collect()
        };
        let expected = |repair| {
            vec![
                (Fault::Missing, "interface br0".to_owned(), repair),
                (Fault::Missing, "interface br1".to_owned(), repair),
                (Fault::Orphan, "interface br2".to_owned(), repair),
            ]
        };
        let found = house.networks.check(false).await.unwrap();
        assert_eq!(told(&found), expected(Repair::Possible));
        let found = house.networks.check(true).await.unwrap();
        assert_eq!(told(&found), expected(Repair::Done));
        assert_eq!(house.networks.check(false).await.unwrap(), []);
        assert_eq!(house.records(), 1);
        house.end().await;
    });
}

#[test]
fn what_another_daemon_has_marked_in_a_namespace_is_its_own() {
    apart(async {
        let house = House::new();
        let made = house.namespace("a", "n").await.unwrap();
        // A daemon in the container, whose directory has the same name there.
        let script = |identity| {
            let group = super::super::mark(house.dir.path(), identity);
            format!("ip link add name br{identity} group {group} type bridge")
        };
        let inside = sys::netns::NetNs::open(&made.path).unwrap();
        for identity in ["", "other", IDENTITY] {
            let spawn = sys::process::Spawn::new("/bin/sh");
            let spawn = spawn.arg("-c").arg(script(identity));
            let patience = std::time::Duration::from_secs(60);
            let done = inside.within(|| spawn.output(b"", 4096, patience)).unwrap();
            assert!(done.status.is_success());
        }
        let found = house.networks.check(true).await.unwrap();
        let found: Vec<_> = found.iter().map(|one| one.object.as_str()).collect();
        assert_eq!(found, [format!("interface br{IDENTITY}")]);
        assert_eq!(house.links("a", &at("n")).await, ["br", "brother", "lo"]);
        house
            .networks
            .delete_namespace(&ns("a"), "n")
            .await
            .unwrap();
        house.end().await;
    });
}

#[test]
fn an_interface_of_the_host_is_still_ours_when_its_mark_is_of_an_earlier_version() {
    apart(async {
        let mut house = House::new();
        house.networks = open_as("", house.dir.path(), &house.events);
        let bridge = LinkKind::Bridge;
        house.link("a", &Place::Host, "br9", bridge).await.unwrap();
        house.restart();
        let (host, name) = (Place::Host, named("br9"));
        assert_eq!(house.networks.check(false).await.unwrap(), []);
        house
            .networks
            .delete_link(&ns("a"), &host, &name)
            .await
            .unwrap();
        house.end().await;
    });
}
