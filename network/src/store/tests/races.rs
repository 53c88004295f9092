//! Changes of the same thing at the same moment, from both of its ends.

use std::path::PathBuf;

use super::*;
use crate::link::Inside;

/// How often two changes meet.
const ROUNDS: usize = 40;

#[test]
fn a_pair_is_changed_from_one_end_and_deleted_from_the_other() {
    apart(async {
        let house = House::new();
        for name in ["n", "m"] {
            house.namespace("a", name).await.unwrap();
        }
        for _ in 0..ROUNDS {
            let kind = LinkKind::Veth(Some(Other {
                name: named("far"),
                place: Some(at("m")),
            }));
            house.link("a", &at("n"), "near", kind).await.unwrap();
            let change = LinkChange {
                spec: LinkSpec {
                    mtu: Some(1400),
                    ..LinkSpec::default()
                },
                labels: None,
            };
            let (tenant, near, far) = (ns("a"), named("near"), named("far"));
            let (n, m) = (at("n"), at("m"));
            let to = LinkMove {
                place: Place::Host,
                name: named("moved"),
            };
            let (changed, deleted, moved) = tokio::join!(
                house.networks.update_link(&tenant, &n, &near, change),
                house.networks.delete_link(&tenant, &m, &far),
                house.networks.move_link(&tenant, &n, &near, to),
            );
            deleted.unwrap();
            for done in [changed, moved] {
                // Before it went, or not at all.
                let error = done.err();
                assert!(
                    error.as_ref().is_none_or(types::Error::is_not_found),
                    "{error:?}"
                );
            }
            assert_eq!(house.records(), 2, "of the namespaces");
            assert_eq!(house.links("a", &at("n")).await, ["lo"]);
            assert_eq!(house.links("a", &Place::Host).await, ["lo"]);
        }
        house.end().await;
    });
}

#[test]
fn a_namespace_goes_while_an_end_elsewhere_is_changed() {
    apart(async {
        let house = House::new();
        for name in ["n", "m"] {
            house.namespace("a", name).await.unwrap();
        }
        for _ in 0..ROUNDS {
            house.namespace("a", "gone").await.unwrap();
            let kind = LinkKind::Veth(Some(Other {
                name: named("far"),
                place: Some(at("gone")),
            }));
            house.link("a", &at("n"), "near", kind).await.unwrap();
            let (tenant, near) = (ns("a"), named("near"));
            let (n, to) = (
                at("n"),
                LinkMove {
                    place: at("m"),
                    name: named("near"),
                },
            );
            let (deleted, moved) = tokio::join!(
                house.networks.delete_namespace(&tenant, "gone"),
                house.networks.move_link(&tenant, &n, &near, to),
            );
            deleted.unwrap();
            let error = moved.err();
            assert!(
                error.as_ref().is_none_or(types::Error::is_not_found),
                "{error:?}"
            );
            assert_eq!(house.records(), 2, "of the namespaces");
            for place in ["n", "m"] {
                assert_eq!(house.links("a", &at(place)).await, ["lo"]);
            }
        }
        house.end().await;
    });
}

#[test]
fn a_namespace_that_is_held_is_refused_at_once_and_holds_up_nobody() {
    apart(async {
        let house = House::new();
        let made = house.namespace("a", "n").await.unwrap();
        let networks = &house.networks;
        let held = networks.hold(&ns("a"), &made.path).await.unwrap();
        // By another way that leads to it; and never another tenant's.
        let link = house.dir.path().join("by-link");
        std::os::unix::fs::symlink(&made.path, &link).unwrap();
        let again = networks.hold(&ns("a"), &link).await.unwrap();
        for path in [&made.path, &link] {
            let error = networks.hold(&ns("b"), path).await.unwrap_err();
            assert!(error.is(Code::FailedPrecondition), "{error}");
        }
        assert_eq!(again.path(), Some(&*made.path));
        let refused = async || {
            let error = networks.delete_namespace(&ns("a"), "n").await.unwrap_err();
            let is_told = error.to_string().contains("in use by a setup");
            assert!(error.is(Code::FailedPrecondition) && is_told, "{error}");
            Inside::open(&made.path).unwrap();
        };
        refused().await;
        // The host, other tenants, a look at everything, and what is in it.
        let bridge = LinkKind::Bridge;
        house.link("b", &Place::Host, "br9", bridge).await.unwrap();
        networks
            .delete_link(&ns("b"), &Place::Host, &named("br9"))
            .await
            .unwrap();
        house.link("a", &at("n"), "v", veth("w")).await.unwrap();
        assert_eq!(networks.check(false).await.unwrap(), []);
        drop(held);
        refused().await;
        drop(again);
        networks.delete_namespace(&ns("a"), "n").await.unwrap();
        assert!(!made.path.exists());
        // What is no longer there, and what was never ours.
        networks.hold(&ns("a"), &made.path).await.unwrap();
        networks
            .hold(&ns("a"), &PathBuf::from("/proc/self/ns/net"))
            .await
            .unwrap();
        house.end().await;
    });
}

#[test]
fn a_wire_whose_end_was_moved_elsewhere_outlives_the_namespace_it_was_made_in() {
    apart(async {
        let house = House::new();
        let made = house.namespace("a", "n").await.unwrap();
        let kind = LinkKind::Veth(Some(Other {
            name: named("far"),
            place: Some(at("n")),
        }));
        house.link("a", &Place::Host, "near", kind).await.unwrap();
        let other = crate::testing::Net::new();
        other.run(&format!(
            "nsenter --net={} ip link set far netns {}",
            made.path.display(),
            other.path.display()
        ));
        let gone = house.networks.delete_namespace(&ns("a"), "n").await;
        gone.unwrap();
        other.run("ip link show far");
        assert_eq!(house.links("a", &Place::Host).await, ["lo", "near"]);
        let (tenant, near) = (ns("a"), named("near"));
        let gone = house.networks.delete_link(&tenant, &Place::Host, &near);
        gone.await.unwrap();
        assert!(!other.try_run("ip link show far").0);
        house.end().await;
    });
}

#[test]
fn a_namespace_that_somebody_is_in_keeps_its_name_and_its_interfaces() {
    apart(async {
        let house = House::new();
        let made = house.namespace("a", "n").await.unwrap();
        house.link("a", &at("n"), "v", veth("w")).await.unwrap();
        let (ours, theirs) = sys::pipe::new().unwrap();
        let inside = sys::netns::NetNs::open(&made.path).unwrap();
        let child = inside
            .within(|| sys::process::Spawn::new("/bin/cat").stdin(ours).spawn())
            .unwrap();
        let error = house
            .networks
            .delete_namespace(&ns("a"), "n")
            .await
            .unwrap_err();
        assert!(
            error.is(Code::FailedPrecondition) && error.to_string().contains("cat"),
            "{error}"
        );
        assert_eq!(house.networks.get_namespace(&ns("a"), "n").unwrap(), made);
        assert_eq!(house.links("a", &at("n")).await, ["lo", "v", "w"]);
        drop(theirs);
        child.wait().unwrap();
        house.end().await;
    });
}
