//! Interfaces that a crash has caught on their way.

use super::*;
use crate::link::Inside;

#[test]
fn what_had_not_its_own_name_yet_is_taken_away_by_the_next_start() {
    apart(async {
        let mut house = House::new();
        house.namespace("a", "n").await.unwrap();
        let group = super::super::mark(house.dir.path(), IDENTITY);
        let path = house.dir.path().join("netns/a/n");
        let there = sys::netns::NetNs::open(&path).unwrap();
        // A device without a mark, one of another daemon, one whose name is only alike.
        let names = [
            format!("ct{group:08x}0000"),
            format!("ct{:08x}0001", group ^ 1),
            format!("ct{group:08x}zz"),
        ];
        for name in &names {
            sys::tun::create(name, false).unwrap();
            there.within(|| sys::tun::create(name, true)).unwrap();
        }
        house.restart();
        let mut left = vec!["lo".to_owned(), names[1].clone(), names[2].clone()];
        left.sort();
        for mut place in [Inside::host().unwrap(), Inside::open(&path).unwrap()] {
            let all = place.list().unwrap();
            let all: Vec<_> = all.iter().map(|one| one.link.name.to_string()).collect();
            assert_eq!(all, left);
            for name in &names[1..] {
                place.delete(&named(name)).unwrap();
            }
        }
        house.end().await;
    });
}

#[test]
fn a_device_is_made_whole_or_not_at_all() {
    apart(async {
        let house = House::new();
        let tun = || LinkKind::Tun(types::network::TunMode::Tun);
        house.link("a", &Place::Host, "t0", tun()).await.unwrap();
        let taken = house
            .link("b", &Place::Host, "t0", tun())
            .await
            .unwrap_err();
        assert!(taken.is_already_exists(), "{taken}");
        assert_eq!(house.links("a", &Place::Host).await, ["lo", "t0"]);
        house
            .networks
            .delete_link(&ns("a"), &Place::Host, &named("t0"))
            .await
            .unwrap();
        house.end().await;
    });
}
