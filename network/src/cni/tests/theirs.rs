//! What is not ours to touch: interfaces and network namespaces of others.

use super::super::SLOTS;
use super::*;
use crate::testing::Net;

/// Makes the interface inside, says so, and takes it away.
const MAKER: &str = r#"inside() { nsenter --net="$CNI_NETNS" ip link "$@"; }
case $CNI_COMMAND in
ADD) inside add "$CNI_IFNAME" type bridge || { echo '{"code":100,"msg":"taken"}'; exit 1; }
echo '{"cniVersion":"1.0.0","interfaces":[{"name":"'"$CNI_IFNAME"'","sandbox":"'"$CNI_NETNS"'"}]}' ;;
DEL) [ -z "$CNI_NETNS" ] || inside del "$CNI_IFNAME" || true ;;
esac"#;

fn made() -> (Place, Net, NetRequest) {
    let (place, net) = (Place::new(), Net::new());
    place.plugin("one", MAKER);
    for name in ["a", "b"] {
        place.network(name, &["one"]);
    }
    let mut wanted = request();
    wanted.netns.clone_from(&net.path);
    (place, net, wanted)
}

fn has(net: &Net, interface: &str) -> bool {
    net.try_run(&format!("ip link show {interface}")).0
}

#[tokio::test]
async fn the_network_namespace_of_the_daemon_is_not_joined() {
    let (place, _net, mut wanted) = made();
    wanted.netns = "/proc/self/ns/net".into();
    let error = place.setup_fails(&wanted).await;
    assert_says(&error, Code::InvalidArgument, &["of the host"]);
    assert!(place.calls().is_empty() && place.is_clean());
}

#[tokio::test]
async fn an_interface_of_somebody_else_outlives_a_failed_attempt() {
    let (place, net, wanted) = made();
    net.run("ip link add eth0 type bridge");
    let error = place.setup_fails(&wanted).await;
    assert_says(&error, Code::AlreadyExists, &["eth0"]);
    assert!(has(&net, "eth0") && place.calls().is_empty() && place.is_clean());
}

#[tokio::test]
async fn an_interface_of_another_network_outlives_a_failed_attempt() {
    let (place, net, mut wanted) = made();
    place.cni.setup(&wanted).await.unwrap();
    wanted.networks = vec!["b".into()];
    let error = place.setup_fails(&wanted).await;
    assert_says(&error, Code::AlreadyExists, &["eth0", "\"a\""]);
    assert!(has(&net, "eth0"));
    // Another container in the same network namespace.
    wanted.id.container = "c2".parse().unwrap();
    let error = place.setup_fails(&wanted).await;
    assert_says(&error, Code::AlreadyExists, &["eth0"]);
    assert!(has(&net, "eth0"));
    assert_eq!(place.calls(), ["ADD one"]);
    // What was made by the attempt itself is taken back.
    wanted.id = request().id;
    wanted.interface = "eth1".parse().unwrap();
    place.plugin("two", "[ $CNI_COMMAND != ADD ] || exit 1");
    place.network("b", &["one", "two"]);
    place.setup_fails(&wanted).await;
    assert!(has(&net, "eth0") && !has(&net, "eth1"));
}

#[tokio::test]
async fn a_namespace_that_took_the_path_of_another_is_left_alone() {
    let (place, net, wanted) = made();
    place.cni.setup(&wanted).await.unwrap();
    // The container is made again: by the same path, with an interface that others have made.
    let again = || {
        sys::netns::unpin(&net.path).unwrap();
        sys::netns::create(&net.path, || Ok(())).unwrap()
    };
    let next = again();
    let inside = |script: &'static str| {
        let spawn = sys::process::Spawn::new("/bin/sh").arg("-c").arg(script);
        let ran = next.within(|| spawn.output(b"", 4096, Duration::from_secs(60)));
        assert!(ran.unwrap().status.is_success(), "{script}");
    };
    inside("ip link add eth0 type bridge");
    let error = place.cni.check(&wanted).await.unwrap_err();
    assert_says(&error, Code::FailedPrecondition, &["is gone"]);
    place.teardown(&wanted).await;
    inside("ip link show eth0");
    let calls = std::fs::read_to_string(place.dir.path().join("bin/calls")).unwrap();
    let last = calls.lines().last().unwrap().trim_end();
    assert_eq!(last, "DEL one default--c1 eth0");
    assert!(place.is_clean());
    // Joined to the new one, it is joined to that, and not answered by what was told of the old one.
    inside("ip link del eth0");
    place.cni.setup(&wanted).await.unwrap();
    inside("ip link show eth0");
    place.teardown(&wanted).await;
}

#[tokio::test]
async fn what_was_made_and_is_gone_is_made_again() {
    let (place, net, wanted) = made();
    let first = place.cni.setup(&wanted).await.unwrap();
    net.run("ip link del eth0");
    assert_eq!(place.cni.setup(&wanted).await.unwrap(), first);
    assert!(has(&net, "eth0"));
    assert_eq!(place.calls(), ["ADD one", "DEL one", "ADD one"]);
}

#[tokio::test]
async fn what_a_plugin_says_that_nobody_asked_does_not_matter() {
    let place = Place::new();
    place.plugin(
        "one",
        &format!("[ $CNI_COMMAND = ADD ] || [ $CNI_COMMAND = VERSION ] || {{ echo done; exit 0; }}\n{FINE}"),
    );
    place.network_of("1.1.0", "n", &["one"]);
    place.cni.setup(&request()).await.unwrap();
    place.cni.check(&request()).await.unwrap();
    place.cni.status().await.unwrap();
    place.cni.collect("n").await.unwrap();
    place.teardown(&request()).await;
    assert!(place.is_clean());
}

#[tokio::test]
async fn an_address_goes_to_one_of_several_networks() {
    let place = Place::new();
    place.plugin("one", FINE);
    for name in ["a", "b"] {
        let list = json!({"cniVersion": "1.0.0", "name": name, "plugins": [
            {"type": "one", "capabilities": {"ips": name == "b", "mac": true, "bandwidth": true}}]});
        place.file(&format!("{name}.conflist"), &list.to_string());
    }
    let mut wanted = request();
    wanted.networks = vec!["a".into(), "b".into()];
    wanted.mac = Some("02:00:00:00:00:07".parse().unwrap());
    wanted.addresses = vec!["10.1.0.9/24".parse().unwrap()];
    wanted.capabilities = [("bandwidth".to_owned(), "{}".to_owned())].into();
    place.cni.setup(&wanted).await.unwrap();
    // The last that was told is b.
    let told = place.told("one", "ADD")["runtimeConfig"].clone();
    assert_eq!(told, json!({"ips": ["10.1.0.9/24"], "bandwidth": {}}));
    place.teardown(&wanted).await;
    // The last that was parted is a.
    let told = place.told("one", "DEL")["runtimeConfig"].clone();
    assert_eq!(told, json!({"mac": "02:00:00:00:00:07", "bandwidth": {}}));
}

#[test]
fn slow_plugins_leave_threads_for_everything_else() {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let mut runtime = { runtime };
    runtime.enable_all().max_blocking_threads(SLOTS + 1);
    runtime.build().unwrap().block_on(async {
        let place = Place::new();
        let gate = place.dir.path().join("gate");
        let waits = format!(
            "while [ $CNI_COMMAND = ADD ] && [ ! -e {} ]; do sleep 0.1; done",
            gate.display()
        );
        place.plugin("one", &format!("{waits}\n{FINE}"));
        place.network("n", &["one"]);
        let mut all = tokio::task::JoinSet::new();
        for number in 0..SLOTS * 2 {
            let (mut wanted, cni) = (request(), place.cni.clone());
            wanted.id.container = format!("c{number}").parse().unwrap();
            all.spawn(async move { cni.setup(&wanted).await.map(drop) });
        }
        while place.calls().len() < SLOTS {
            tokio::task::yield_now().await;
        }
        // A thread is to be had.
        let free = tokio::task::spawn_blocking(|| ());
        let free = tokio::time::timeout(Duration::from_secs(60), free).await;
        free.unwrap().unwrap();
        assert_eq!(place.calls().len(), SLOTS);
        std::fs::write(&gate, "").unwrap();
        for done in all.join_all().await {
            done.unwrap();
        }
        assert_eq!(place.calls().len(), SLOTS * 2);
    });
}

#[tokio::test]
async fn what_is_left_is_told_to_whoever_tries_again() {
    let place = Place::new();
    place.plugin("one", FINE);
    place.network("n", &["one"]);
    place.cni.setup(&request()).await.unwrap();
    place.plugin("one", "exit 1");
    let early = tokio::time::timeout(Duration::from_millis(50), place.cni.leaves()).await;
    early.unwrap_err();
    place.cni.teardown(&request()).await.unwrap_err();
    place.cni.leaves().await;
    place.plugin("one", FINE);
    assert!(place.cni.reconcile(|_| true).await.unwrap().is_empty());
    assert!(place.is_clean());
}

#[test]
fn the_place_of_a_tenants_records_goes_and_comes_at_the_same_time() {
    let dir = tempfile::tempdir().unwrap();
    let records = crate::cni::record::Records::new(dir.path().join("records"));
    std::thread::scope(|scope| {
        for container in ["c1", "c2", "c3"] {
            let (mut id, records) = (request().id, &records);
            id.container = container.parse().unwrap();
            scope.spawn(move || {
                for _ in 0..300 {
                    records.create(&id).unwrap().close();
                }
            });
        }
    });
    assert!(records.list().unwrap().is_empty());
}
