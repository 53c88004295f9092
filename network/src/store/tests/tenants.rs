//! What tenants do not get of each other.

use std::time::Duration;

use sys::process::Spawn;

use super::*;
use crate::link::Inside;

#[test]
fn a_bridge_is_used_by_who_made_it_and_that_of_nobody_by_everybody() {
    apart(async {
        let house = House::new();
        let kind = LinkKind::Bridge;
        house.link("a", &Place::Host, "br9", kind).await.unwrap();
        let usable = |tenant: &str, name: &str| {
            let seen = Inside::host()?.get(&named(name))?;
            house.networks.check_usable(&ns(tenant), &seen)
        };
        for name in ["br9", "lo"] {
            usable("a", name).unwrap();
        }
        usable("b", "lo").unwrap();
        let error = usable("b", "br9").unwrap_err();
        assert!(error.is(Code::PermissionDenied), "{error}");
        let (host, name) = (Place::Host, named("br9"));
        house
            .networks
            .delete_link(&ns("a"), &host, &name)
            .await
            .unwrap();
    });
}

#[test]
fn interfaces_of_a_driver_are_seen_by_no_tenant_and_serve_all() {
    apart(async {
        let house = House::new();
        let script = format!("ip link add drv0 group {HIDDEN} type bridge");
        let made = Spawn::new("/bin/sh").arg("-c").arg(script);
        let made = made.output(b"", 4096, Duration::from_secs(60)).unwrap();
        assert!(made.status.is_success());
        let (host, name) = (Place::Host, named("drv0"));
        assert!(!house.links("a", &host).await.contains(&name.to_string()));
        let change = LinkChange::default();
        let networks = &house.networks;
        for error in [
            networks.get_link(&ns("a"), &host, &name).await.unwrap_err(),
            networks
                .update_link(&ns("a"), &host, &name, change)
                .await
                .unwrap_err(),
            networks
                .delete_link(&ns("a"), &host, &name)
                .await
                .unwrap_err(),
        ] {
            assert!(error.is_not_found(), "{error}");
        }
        let seen = Inside::host().unwrap().get(&name).unwrap();
        networks.check_usable(&ns("a"), &seen).unwrap();
    });
}
