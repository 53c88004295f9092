//! Records against what is there.

use types::{Fault, Repair};

use super::*;
use crate::testing::until;

/// What is found: fault, object, what can be done.
fn look(place: &Place, lost: &[&NetRequest], repair: bool) -> Vec<(Fault, String, Repair)> {
    let lost: BTreeSet<_> = lost.iter().map(|request| request.id.clone()).collect();
    let found = place.host.block_on(place.next().inspect(&lost, repair));
    let found = found.unwrap().into_iter();
    found
        .map(|one| (one.fault, one.object, one.repair))
        .collect()
}

fn told(found: &[(Fault, String, Repair)]) -> Vec<(Fault, &str, Repair)> {
    let all = found.iter();
    all.map(|(fault, object, repair)| (*fault, object.as_str(), *repair))
        .collect()
}

/// Makes the record of a container one of a time ago.
fn age(place: &Place, request: &NetRequest) {
    let records = &place.driver.core.records;
    let outer = Tag::of(request).outer().unwrap();
    let mut record = records.find(&outer).unwrap().unwrap();
    record.made_at -= 2 * crate::SOON;
    records.write(&outer, &record).unwrap();
}

#[test]
fn nothing_is_found_where_everything_is_as_it_was_made() {
    let place = Place::new();
    assert_eq!(look(&place, &[], false), []);
    let one = Net::new();
    let wanted = request("c1", &one, 2);
    place.setup(&wanted).unwrap();
    assert_eq!(look(&place, &[], true), []);
    // Its container may come still.
    assert_eq!(look(&place, &[&wanted], true), []);
    place.check(&wanted).unwrap();
}

/// What `what_has_lost_its_other_side_is_named_and_taken_down` is to find; `orphan` is the wire without a record.
fn sides(orphan: &str, repair: Repair) -> Vec<(Fault, &str, Repair)> {
    let (missing, dangling, orphaned) = (Fault::Missing, Fault::Dangling, Fault::Orphan);
    [
        (missing, "network-attachment default/cut eth0"),
        (missing, "network-attachment default/gone eth0"),
        (dangling, "network-attachment default/half eth0"),
        (dangling, "network-attachment default/lone eth0"),
        (orphaned, "interface br8"),
        (orphaned, orphan),
        (orphaned, "network-attachment default/nobody eth0"),
        (orphaned, "packet filters of bridge br9"),
    ]
    .map(|(fault, object)| (fault, object, repair))
    .into()
}

#[test]
fn what_has_lost_its_other_side_is_named_and_taken_down() {
    let place = Place::new();
    let before = place.state();
    let nets = [Net::new(), Net::new(), Net::new(), Net::new(), Net::new()];
    let names = ["gone", "cut", "half", "lost", "lone"];
    let mut all = Vec::new();
    for ((name, net), last) in names.iter().zip(&nets).zip(2..) {
        let mut one = request(name, net, last);
        one.ports = vec![port(8000 + u16::from(last), 80)];
        place.setup(&one).unwrap();
        all.push(one);
    }
    let outer = |request: &NetRequest| Tag::of(request).outer().unwrap();
    let records = &place.driver.core.records;
    // The namespace of one, the wire of another, one that was cut off, one without a record, and one without
    // a container.
    let mut nets = nets.into_iter();
    drop(nets.next());
    let wire = format!("ip link show {}", outer(&all[0]));
    until("a namespace's wire goes with it", || {
        !place.host.try_run(&wire).0
    });
    place.host.run(&format!("ip link del {}", outer(&all[1])));
    let mut half = records.find(&outer(&all[2])).unwrap().unwrap();
    half.phase = record::Phase::Going;
    records.write(&outer(&all[2]), &half).unwrap();
    records.remove(&outer(&all[3])).unwrap();
    age(&place, &all[4]);
    place.host.within(|| {
        let nat = &place.driver.core.nat;
        let taken = ["10.7.0.99".parse().unwrap()];
        nat.attach("default/nobody eth0", &taken, &[]).unwrap();
        nat.serve(&"br9".parse().unwrap(), &["10.99.0.0/24".parse().unwrap()])
            .unwrap();
    });
    let group = place.driver.core.group;
    place
        .host
        .run(&format!("ip link add br8 group {group} type bridge"));
    let orphan = format!("interface {}", outer(&all[3]));
    let lost = [&all[3], &all[4]];
    let state = place.state();
    let order = |found: &mut Vec<(Fault, &str, Repair)>| found.sort_by_key(|one| one.1.to_owned());
    let mut expected = sides(&orphan, Repair::Possible);
    order(&mut expected);
    let found = look(&place, &lost, false);
    let mut found = told(&found);
    order(&mut found);
    assert_eq!(found, expected);
    assert_eq!(place.state(), state, "looking changes nothing");
    let found = look(&place, &lost, true);
    assert!(found.iter().all(|one| one.2 == Repair::Done), "{found:?}");
    assert_eq!(look(&place, &lost, false), []);
    assert_eq!(place.state(), before);
}

#[test]
fn what_a_living_attachment_lacks_is_made_again() {
    let place = Place::new();
    let one = Net::new();
    let mut wanted = request("c1", &one, 2);
    wanted.ports = vec![port(8080, 80)];
    place.setup(&wanted).unwrap();
    place.host.run("nft flush ruleset");
    let object = "network-attachment default/c1 eth0";
    let found = look(&place, &[], false);
    assert_eq!(told(&found), [(Fault::Missing, object, Repair::Possible)]);
    assert!(place.check(&wanted).is_err());
    let found = look(&place, &[], true);
    assert_eq!(told(&found), [(Fault::Missing, object, Repair::Done)]);
    place.check(&wanted).unwrap();
}

/// A process that is in a network namespace until it is told to end.
struct Guest(sys::process::Child, std::os::fd::OwnedFd);

impl Guest {
    fn of(net: &Net) -> Self {
        let (ours, theirs) = sys::pipe::new().unwrap();
        let spawn = sys::process::Spawn::new("/bin/cat").stdin(ours);
        Self(net.within(|| spawn.spawn().unwrap()), theirs)
    }

    fn leave(self) {
        drop(self.1);
        self.0.wait().unwrap();
    }
}

#[test]
fn somebody_in_the_namespace_keeps_the_attachment() {
    let place = Place::new();
    let one = Net::new();
    let wanted = request("c1", &one, 2);
    place.setup(&wanted).unwrap();
    age(&place, &wanted);
    let guest = Guest::of(&one);
    assert_eq!(look(&place, &[&wanted], true), []);
    guest.leave();
    let found = look(&place, &[&wanted], true);
    assert!(
        found.len() == 1 && found[0].0 == Fault::Dangling,
        "{found:?}"
    );
    assert!(place.check(&wanted).unwrap_err().is_not_found());
}

#[test]
fn an_attachment_in_use_outlives_its_record() {
    let place = Place::new();
    let before = place.state();
    let one = Net::new();
    let wanted = request("c1", &one, 2);
    let records = &place.driver.core.records;
    let outer = Tag::of(&wanted).outer().unwrap();
    let lose: [(Fault, &dyn Fn()); 2] = [
        (Fault::Orphan, &|| records.remove(&outer).unwrap()),
        (Fault::Damaged, &|| {
            std::fs::write(&place.written()[0], "{").unwrap();
        }),
    ];
    for (fault, lose) in lose {
        place.setup(&wanted).unwrap();
        let whole = place.state();
        lose();
        let harmed = place.state();
        let guest = Guest::of(&one);
        // Its container is there; it is not, but somebody is inside.
        for lost in [&[][..], &[&wanted]] {
            let found = look(&place, lost, true);
            assert!(
                found.len() == 1 && (found[0].0, found[0].2) == (fault, Repair::Impossible),
                "{found:?}"
            );
            assert_eq!(place.state(), harmed);
        }
        guest.leave();
        let told = place.host.block_on(place.driver.list(None, false)).unwrap();
        assert!(
            told.len() == 1 && told[0].id == wanted.id && !told[0].fault.is_empty(),
            "{told:?}"
        );
        // Who asks again has it on record again.
        place.setup(&wanted).unwrap();
        assert_eq!(place.state(), whole);
        assert_eq!(look(&place, &[], false), []);
        lose();
        let found = look(&place, &[&wanted], true);
        assert_eq!((found[0].0, found[0].2), (fault, Repair::Done));
        assert_eq!(place.state(), before);
    }
}

#[test]
fn a_damaged_record_goes_with_what_it_was_about() {
    let place = Place::new();
    let before = place.state();
    let one = Net::new();
    let wanted = request("c1", &one, 2);
    place.setup(&wanted).unwrap();
    std::fs::write(&place.written()[0], "{").unwrap();
    let found = look(&place, &[&wanted], false);
    let object = "network-attachment default/c1 eth0";
    assert_eq!(told(&found), [(Fault::Damaged, object, Repair::Possible)]);
    look(&place, &[&wanted], true);
    assert_eq!(place.state(), before);
}
