//! Attachments that are made, looked at and taken away as they should.

use types::network::{PortMapping, Protocol};

use super::*;

#[tokio::test]
async fn a_chain_is_gone_through_in_order_and_back() {
    let place = Place::new();
    for name in ["one", "two"] {
        place.plugin(name, FINE);
    }
    place.network("n", &["one", "two"]);
    let made = place.cni.setup(&request()).await.unwrap();
    assert_eq!(made.addresses[0].address.to_string(), "10.1.0.2/24");
    assert_eq!(made.interfaces[0].name, "eth0");
    assert_eq!(place.told("one", "ADD").get("prevResult"), None);
    let told = place.told("two", "ADD");
    assert_eq!(told["prevResult"]["ips"][0]["address"], "10.1.0.2/24");
    assert_eq!(
        (&told["name"], &told["cniVersion"]),
        (&json!("n"), &json!("1.0.0"))
    );
    // Again: nothing is asked, and the answer is the same.
    assert_eq!(place.cni.setup(&request()).await.unwrap(), made);
    place.cni.check(&request()).await.unwrap();
    place.teardown(&request()).await;
    let expected = [
        "ADD one",
        "ADD two",
        "CHECK one",
        "CHECK two",
        "DEL two",
        "DEL one",
    ];
    assert_eq!(place.calls(), expected);
    let told = place.told("two", "DEL");
    assert_eq!(told["prevResult"]["ips"][0]["address"], "10.1.0.2/24");
    assert!(place.is_clean());
    place.teardown(&request()).await;
    assert_eq!(place.calls().len(), expected.len());
    let error = place.cni.check(&request()).await.unwrap_err();
    assert_says(&error, Code::NotFound, &["default/c1"]);
}

#[tokio::test]
async fn plugins_know_the_container_by_tenant_and_get_the_arguments() {
    let place = Place::new();
    place.plugin("one", FINE);
    place.network("n", &["one"]);
    let mut request = request();
    request.args = [
        ("A".to_owned(), "1".to_owned()),
        ("B".to_owned(), "x y".to_owned()),
    ]
    .into();
    place.cni.setup(&request).await.unwrap();
    let calls = std::fs::read_to_string(place.dir.path().join("bin/calls")).unwrap();
    assert_eq!(
        calls,
        format!("ADD one default--c1 eth0 {} A=1;B=x y\n", netns().display())
    );
    place.teardown(&request).await;
    for odd in ["1;CNI=2", "x=y"] {
        request.args = [("A".to_owned(), odd.to_owned())].into();
        let error = place.setup_fails(&request).await;
        assert_says(&error, Code::InvalidArgument, &["CNI argument \"A\""]);
    }
}

#[tokio::test]
async fn what_a_plugin_is_capable_of_it_is_told_and_nothing_else() {
    let place = Place::new();
    for name in ["one", "two"] {
        place.plugin(name, FINE);
    }
    place.file(
        "n.conflist",
        r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"one","capabilities":{"mac":true,"ips":true}},
        {"type":"two","runtimeConfig":{"evil":1},"capabilities":{"portMappings":true,"bandwidth":true}}]}"#,
    );
    let mut request = request();
    request.mac = Some("02:00:00:00:00:07".parse().unwrap());
    request.addresses = vec!["10.1.0.9/24".parse().unwrap()];
    request.ports = vec![PortMapping {
        protocol: Protocol::Udp,
        host_ip: None,
        host_port: 8080,
        container_port: 80,
    }];
    request.capabilities = [("bandwidth".to_owned(), r#"{"ingressRate":1000}"#.to_owned())].into();
    place.cni.setup(&request).await.unwrap();
    let one = place.told("one", "ADD");
    assert_eq!(
        one["runtimeConfig"],
        json!({"mac": "02:00:00:00:00:07", "ips": ["10.1.0.9/24"]})
    );
    assert_eq!(one.get("capabilities"), None);
    let two = place.told("two", "ADD");
    assert_eq!(
        two["runtimeConfig"],
        json!({"bandwidth": {"ingressRate": 1000}, "portMappings":
            [{"hostPort": 8080, "containerPort": 80, "protocol": "udp", "hostIP": ""}]})
    );
    place.teardown(&request).await;
    assert_eq!(
        place.told("one", "DEL")["runtimeConfig"],
        one["runtimeConfig"]
    );
    request.capabilities = [("aliases".to_owned(), "[]".to_owned())].into();
    let error = place.setup_fails(&request).await;
    assert_says(
        &error,
        Code::InvalidArgument,
        &["\"aliases\"", "networks n"],
    );
    request.capabilities = [("mac".to_owned(), "\"x\"".to_owned())].into();
    assert_says(
        &place.setup_fails(&request).await,
        Code::InvalidArgument,
        &["\"mac\""],
    );
    request.capabilities.clear();
    request.mtu = Some(1400);
    assert_says(
        &place.setup_fails(&request).await,
        Code::InvalidArgument,
        &["MTU"],
    );
    assert!(place.is_clean());
}

#[tokio::test]
async fn several_networks_get_an_interface_each() {
    let place = Place::new();
    place.plugin("one", FINE);
    for name in ["a", "b"] {
        place.network(name, &["one"]);
    }
    let mut request = request();
    request.networks = vec!["b".into(), "a".into()];
    let made = place.cni.setup(&request).await.unwrap();
    let at: Vec<_> = made.addresses.iter().map(|a| a.interface).collect();
    assert_eq!(at, [Some(0), Some(1)]);
    let calls = std::fs::read_to_string(place.dir.path().join("bin/calls")).unwrap();
    let interfaces: Vec<_> = calls
        .lines()
        .map(|l| l.split(' ').nth(3).unwrap())
        .collect();
    assert_eq!(interfaces, ["eth0", "eth1"]);
    // Only what is meant is parted: of a network, and at its interface.
    let calls = || std::fs::read_to_string(place.dir.path().join("bin/calls")).unwrap();
    let parted = |at: &str| calls().contains(&format!("DEL one default--c1 {at} "));
    request.networks = vec!["a".into()];
    place.teardown(&request).await;
    assert!(!parted("eth0") && !parted("eth1"));
    let error = place.cni.check(&request).await.unwrap_err();
    assert_says(&error, Code::NotFound, &["\"a\" at eth0"]);
    request.interface = "eth1".parse().unwrap();
    place.cni.check(&request).await.unwrap();
    place.teardown(&request).await;
    assert!(!parted("eth0") && parted("eth1"));
    request.networks.clear();
    place.teardown(&request).await;
    assert!(!place.is_clean());
    request.interface = "eth0".parse().unwrap();
    place.teardown(&request).await;
    assert!(place.is_clean());
    request.networks = vec!["c".into()];
    assert_says(
        &place.setup_fails(&request).await,
        Code::NotFound,
        &["\"c\""],
    );
}

#[tokio::test]
async fn what_is_there_in_another_way_is_not_made_again() {
    let place = Place::new();
    place.plugin("one", FINE);
    place.network("n", &["one"]);
    place.cni.setup(&request()).await.unwrap();
    let mut other = request();
    other.args = [("A".to_owned(), "1".to_owned())].into();
    let error = place.setup_fails(&other).await;
    assert_says(&error, Code::AlreadyExists, &["default--c1", "eth0"]);
    // The configuration of its time undoes it, whatever the file says now.
    place.file("n.conflist", "{");
    place.teardown(&request()).await;
    assert_eq!(place.calls(), ["ADD one", "DEL one"]);
    assert!(place.is_clean());
}

#[tokio::test]
async fn results_are_handed_on_in_the_version_of_the_network() {
    let place = Place::new();
    place.plugin("one", FINE);
    place.plugin("two", "[ $CNI_COMMAND != ADD ] || echo '{\"ips\":[{\"version\":\"4\",\"address\":\"10.1.0.3/24\"}]}'");
    place.network_of("0.4.0", "n", &["one", "two"]);
    let made = place.cni.setup(&request()).await.unwrap();
    assert_eq!(made.addresses[0].address.to_string(), "10.1.0.3/24");
    let told = &place.told("two", "ADD")["prevResult"];
    assert_eq!(told["cniVersion"], "0.4.0");
    assert_eq!(told["ips"][0]["version"], "4");
    place.teardown(&request()).await;
    assert_eq!(
        place.told("one", "DEL")["prevResult"]["cniVersion"],
        "0.4.0"
    );
    // Older ones do not know the result at DEL, nor CHECK.
    place.network_of("0.3.1", "n", &["one"]);
    place.cni.setup(&request()).await.unwrap();
    place.cni.check(&request()).await.unwrap();
    place.teardown(&request()).await;
    assert_eq!(place.told("one", "DEL").get("prevResult"), None);
    assert!(!place.calls().contains(&"CHECK one".to_owned()));
}

#[tokio::test]
async fn what_is_still_valid_is_told_to_a_collection() {
    let place = Place::new();
    place.plugin("one", FINE);
    place.plugin("two", "echo '{\"code\":5,\"msg\":\"disk\"}'; exit 1");
    place.network_of("1.1.0", "n", &["one"]);
    place.network_of("1.0.0", "old", &["one"]);
    let mut request = request();
    request.networks = vec!["n".into(), "old".into()];
    place.cni.setup(&request).await.unwrap();
    place.cni.collect("n").await.unwrap();
    assert_eq!(
        place.told("one", "GC")["cni.dev/valid-attachments"],
        json!([{"containerID": "default--c1", "ifname": "eth0"}])
    );
    let calls = place.calls().len();
    place.cni.collect("old").await.unwrap();
    assert_eq!(place.calls().len(), calls);
    place.network_of("1.1.0", "n", &["two", "one"]);
    let error = place.cni.collect("n").await.unwrap_err();
    assert_says(
        &error,
        Code::Unknown,
        &["\"n\"", "\"two\": GC: disk (code 5)"],
    );
    assert_eq!(place.calls().last().unwrap(), "GC one");
}

#[tokio::test]
async fn the_status_is_that_of_the_first_network() {
    let place = Place::new();
    let error = place.cni.status().await.unwrap_err();
    assert_says(&error, Code::Unavailable, &["net.d"]);
    place.plugin("one", FINE);
    place.network_of("1.1.0", "n", &["one"]);
    place.cni.status().await.unwrap();
    assert_eq!(place.calls(), ["VERSION one", "STATUS one"]);
    place.plugin("one", &format!("{FINE}\n[ $CNI_COMMAND != STATUS ] || {{ echo '{{\"code\":50,\"msg\":\"no route\"}}'; exit 1; }}"));
    let error = place.cni.status().await.unwrap_err();
    assert_says(&error, Code::Unavailable, &["\"n\"", "\"one\"", "no route"]);
    place.network_of("0.3.0", "n", &["one"]);
    let error = place.cni.status().await.unwrap_err();
    assert_says(
        &error,
        Code::Unavailable,
        &["\"one\" does not speak version 0.3.0"],
    );
}
