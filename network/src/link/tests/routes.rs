//! Routes and what hangs on addresses: nothing goes that nobody asked to go.

use super::*;

fn route(to: &str, via: &str) -> Route {
    Route::new(to.parse().unwrap(), Some(via.parse().unwrap()))
}

fn addresses(all: &[&str]) -> LinkSpec {
    LinkSpec {
        addresses: up(all).addresses,
        ..LinkSpec::default()
    }
}

fn routes(all: Vec<Route>) -> LinkSpec {
    LinkSpec {
        routes: Some(all),
        ..LinkSpec::default()
    }
}

impl Scene {
    fn routes_of(&mut self, text: &str) -> Vec<Route> {
        self.inside.get(&name(text)).unwrap().link.routes
    }

    /// Lets iproute2 change something.
    fn set(&self, arguments: &str) {
        let path = self.dir.path().join("n");
        #[expect(clippy::disallowed_methods, reason = "a test has no reaper")]
        let done = Command::new("nsenter")
            .arg(format!("--net={}", path.display()))
            .arg("ip")
            .args(arguments.split(' '))
            .status()
            .unwrap();
        assert!(done.success(), "ip {arguments}");
    }
}

#[test]
fn a_route_of_another_interface_is_not_taken_over() {
    let mut scene = Scene::new();
    let spec = LinkSpec {
        routes: Some(vec![
            route("0.0.0.0/0", "10.9.0.1"),
            route("::/0", "fd00::1"),
        ]),
        ..up(&["10.9.0.2/24", "fd00::2/64"])
    };
    let before = scene.make("a", &veth("b"), &spec).unwrap().link;
    let nets = ["10.8.0.2/24", "fd08::2/64"];
    scene.make("c", &veth("d"), &up(&nets)).unwrap();
    for (to, via) in [("0.0.0.0/0", "10.8.0.1"), ("::/0", "fd08::1")] {
        let taken = routes(vec![route(to, via)]);
        let error = scene.inside.change(&name("c"), &taken).unwrap_err();
        assert!(
            error.is_already_exists() && error.to_string().contains(via),
            "{error}"
        );
        assert_eq!(scene.routes_of("a"), before.routes);
        assert_eq!(scene.routes_of("c"), []);
    }
    // Beside it there is room.
    let second = Route {
        metric: Some(50),
        ..route("0.0.0.0/0", "10.8.0.1")
    };
    let wanted = routes(vec![second.clone()]);
    scene.inside.change(&name("c"), &wanted).unwrap();
    assert_eq!(scene.routes_of("c"), [second]);
    assert_eq!(scene.routes_of("a"), before.routes);
}

#[test]
fn a_route_that_others_wrote_can_be_taken_away() {
    let mut scene = Scene::new();
    let nets = ["10.9.0.2/24", "fd00::2/64"];
    scene.make("a", &veth("b"), &up(&nets)).unwrap();
    // By protocol boot, and one with a scope of its own; the last is where the kernel has one as well.
    scene.set("route add default via 10.9.0.1 dev a");
    scene.set("route add 192.0.2.0/24 dev a scope global");
    scene.set("route add 192.0.3.0/24 via 10.9.0.1 dev a proto static");
    scene.set("-6 route add default via fd00::1 dev a");
    scene.set("-6 route add fd00::/64 dev a metric 1024");
    assert_eq!(scene.routes_of("a").len(), 5);
    scene
        .inside
        .change(&name("a"), &routes(Vec::new()))
        .unwrap();
    assert_eq!(scene.routes_of("a"), []);
    let own = scene.ip("-6 route show dev a proto kernel");
    assert!(own.to_string().contains("fd00::/64"), "{own}");
}

#[test]
fn new_addresses_leave_the_routes_and_neighbours_that_nobody_named() {
    for promoted in ["0", "1"] {
        let mut scene = Scene::new();
        let neighbour = Neighbour {
            address: "10.9.0.9".parse().unwrap(),
            mac: "02:00:00:00:00:99".parse().unwrap(),
        };
        let direct = Route::new("192.0.2.0/24".parse().unwrap(), None);
        let spec = LinkSpec {
            routes: Some(vec![route("0.0.0.0/0", "10.9.0.1"), direct]),
            neighbours: Some(vec![neighbour]),
            sysctls: [("ipv4/promote_secondaries".to_owned(), promoted.to_owned())].into(),
            ..up(&["10.9.0.2/24"])
        };
        let before = scene.make("a", &veth("b"), &spec).unwrap().link;
        // In the same network, so that the kernel takes the new one for a second one of the old.
        let after = scene
            .inside
            .change(&name("a"), &addresses(&["10.9.0.3/24"]))
            .unwrap()
            .link;
        assert_eq!(after.addresses, ["10.9.0.3/24".parse().unwrap()]);
        let sorted = |mut routes: Vec<Route>| {
            routes.sort();
            routes
        };
        assert_eq!(sorted(after.routes), sorted(before.routes));
        assert_eq!(after.neighbours, before.neighbours);
        // Without any address there is no way to the gateway.
        let last = scene.inside.change(&name("a"), &addresses(&[])).unwrap();
        assert_eq!(last.link.addresses, []);
        assert!(!last.link.routes.contains(&route("0.0.0.0/0", "10.9.0.1")));
    }
}

#[test]
fn addresses_of_a_family_that_is_switched_off_are_refused_for_its_state() {
    let mut scene = Scene::new();
    let spec = LinkSpec {
        sysctls: [("ipv6/disable_ipv6".to_owned(), "1".to_owned())].into(),
        ..up(&[])
    };
    scene.make("a", &veth("b"), &spec).unwrap();
    let wanted = addresses(&["fd00::5/64"]);
    let error = scene.inside.change(&name("a"), &wanted).unwrap_err();
    assert!(error.is(Code::FailedPrecondition), "{error}");
}

#[test]
fn a_move_that_fails_does_not_fetch_what_is_somebody_elses() {
    let (mut here, mut there) = (Scene::new(), Scene::new());
    let before = here.make("a", &veth("b"), &up(&[])).unwrap();
    here.inside.delete(&name("a")).unwrap();
    there.make("a", &veth("b"), &up(&[])).unwrap();
    here.inside
        .bring_back(&before, &mut there.inside, &name("eth0"));
    assert_eq!(here.names(), ["lo"]);
    assert_eq!(there.names(), ["a", "b", "lo"]);
}

#[test]
fn routes_and_neighbours_that_cannot_all_be_are_refused_before_anything_changes() {
    let mut scene = Scene::new();
    let nets = ["10.9.0.2/24", "fd00::2/64"];
    let before = scene.make("a", &veth("b"), &up(&nets)).unwrap().link;
    let plain = || route("192.0.2.0/24", "10.9.0.1");
    let changed = |change: &dyn Fn(&mut Route)| {
        let mut one = plain();
        change(&mut one);
        one
    };
    let six = |metric| Route {
        metric,
        ..route("fd01::/64", "fd00::1")
    };
    for (all, says) in [
        (vec![changed(&|one| one.table = Some(255))], "table 255"),
        (vec![changed(&|one| one.table = Some(0))], "table 0"),
        (vec![changed(&|one| one.mtu = Some(65_521))], "65520"),
        (
            vec![plain(), changed(&|one| one.table = Some(254))],
            "twice",
        ),
        (vec![plain(), route("192.0.2.7/24", "10.9.0.9")], "twice"),
        (vec![six(None), six(Some(1024))], "twice"),
    ] {
        let error = scene.inside.change(&name("a"), &routes(all)).unwrap_err();
        assert!(
            error.is(Code::InvalidArgument) && error.to_string().contains(says),
            "{error}"
        );
    }
    let neighbour = |mac: &str| Neighbour {
        address: "10.9.0.9".parse().unwrap(),
        mac: mac.parse().unwrap(),
    };
    let both = ["02:00:00:00:00:01", "02:00:00:00:00:02"];
    let spec = LinkSpec {
        neighbours: Some(both.map(neighbour).to_vec()),
        ..LinkSpec::default()
    };
    let error = scene.inside.change(&name("a"), &spec).unwrap_err();
    assert!(error.is(Code::InvalidArgument), "{error}");
    let after = scene.inside.get(&name("a")).unwrap().link;
    assert_eq!(as_made(after), as_made(before));
    let most = vec![changed(&|one| one.mtu = Some(65_520))];
    let made = scene.inside.change(&name("a"), &routes(most.clone()));
    assert_eq!(made.unwrap().link.routes, most);
}
