//! Records that are looked at, and compared with what is there.

use std::collections::BTreeSet;

use types::network::{JoinState, PortMapping, Protocol};
use types::{Fault, Repair};

use super::*;

#[tokio::test]
async fn attachments_are_told_with_what_plugins_have_answered() {
    let place = Place::new();
    place.plugin("one", FINE);
    let chain = json!({"cniVersion": "1.0.0", "name": "n", "plugins":
        [{"type": "one", "capabilities": {"portMappings": true}}]});
    place.file("n.conflist", &chain.to_string());
    assert_eq!(place.cni.list(None, true).await.unwrap(), []);
    let mut wanted = request();
    wanted.ports = vec![PortMapping {
        protocol: Protocol::Udp,
        host_ip: Some("127.0.0.1".parse().unwrap()),
        host_port: 53,
        container_port: 5353,
    }];
    place.cni.setup(&wanted).await.unwrap();
    let calls = place.calls().len();
    let told = place
        .cni
        .list(Some(&wanted.id.namespace), false)
        .await
        .unwrap();
    assert_eq!(place.calls().len(), calls, "no plugin is asked");
    assert_eq!(told.len(), 1);
    let one = &told[0];
    assert_eq!(
        (
            one.driver.as_str(),
            one.network.as_str(),
            one.interface.as_str()
        ),
        ("cni", "n", "eth0")
    );
    assert_eq!((&one.id, &one.ports), (&wanted.id, &wanted.ports));
    assert_eq!(one.addresses[0].to_string(), "10.1.0.2/24");
    assert_eq!((one.state, one.fault.as_str()), (JoinState::Joined, ""));
    let other = "other".parse().unwrap();
    assert_eq!(place.cni.list(Some(&other), false).await.unwrap(), []);
    // Plugins are asked whether it is as it was made.
    let refuses = format!(
        "{FINE}\n[ $CNI_COMMAND != CHECK ] || {{ echo '{{\"code\":9,\"msg\":\"no wire\"}}'; exit 1; }}"
    );
    place.plugin("one", &refuses);
    let told = place.cni.list(None, true).await.unwrap();
    assert!(told[0].fault.contains("no wire"), "{told:?}");
    place.teardown(&wanted).await;
    assert_eq!(place.cni.list(None, false).await.unwrap(), []);
}

#[tokio::test]
async fn what_is_left_is_named_and_taken_away() {
    let place = Place::new();
    let stuck = "[ $CNI_COMMAND != DEL ] || exit 1";
    place.plugin("one", FINE);
    place.network("n", &["one"]);
    let wanted = request();
    place.cni.setup(&wanted).await.unwrap();
    let lost = BTreeSet::from([wanted.id.clone()]);
    let none = BTreeSet::new();
    for lost in [&none, &lost] {
        // Its container may come still.
        assert_eq!(place.cni.inspect(lost, true).await.unwrap(), []);
    }
    place.plugin("one", &format!("{FINE}\n{stuck}"));
    place.cni.teardown(&wanted).await.unwrap_err();
    let told = place.cni.list(None, false).await.unwrap();
    assert_eq!(told[0].state, JoinState::Parting);
    let object = "network-attachment default/c1 eth0 of CNI network n";
    for (repair, what) in [(false, Repair::Possible), (true, Repair::Impossible)] {
        let found = place.cni.inspect(&none, repair).await.unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(
            (found[0].fault, found[0].object.as_str(), found[0].repair),
            (Fault::Dangling, object, what)
        );
    }
    place.plugin("one", FINE);
    let found = place.cni.inspect(&none, true).await.unwrap();
    assert_eq!(found[0].repair, Repair::Done);
    assert!(place.is_clean());
}

#[tokio::test]
async fn one_without_a_container_goes_when_it_is_old_and_nobody_is_there() {
    let place = Place::new();
    place.plugin("one", FINE);
    place.network("n", &["one"]);
    let wanted = request();
    place.cni.setup(&wanted).await.unwrap();
    let file = place.dir.path().join("records/default/c1/n:eth0.json");
    let written = std::fs::File::options().write(true).open(&file).unwrap();
    written
        .set_modified(std::time::SystemTime::now() - 2 * crate::SOON)
        .unwrap();
    assert_eq!(place.cni.inspect(&BTreeSet::new(), true).await.unwrap(), []);
    let lost = BTreeSet::from([wanted.id.clone()]);
    let found = place.cni.inspect(&lost, true).await.unwrap();
    assert!(
        found.len() == 1 && found[0].repair == Repair::Done,
        "{found:?}"
    );
    assert_eq!(place.calls().last().unwrap(), "DEL one");
    assert!(place.is_clean());
}

#[tokio::test]
async fn a_damaged_record_is_told_by_the_name_of_its_file() {
    let place = Place::new();
    place.plugin("one", FINE);
    place.network("n", &["one"]);
    place.cni.setup(&request()).await.unwrap();
    let file = place.dir.path().join("records/default/c1/n:eth0.json");
    std::fs::write(file, "{").unwrap();
    let told = place.cni.list(None, true).await.unwrap();
    assert_eq!(told[0].state, JoinState::Damaged);
    assert_eq!(
        (told[0].network.as_str(), told[0].interface.as_str()),
        ("n", "eth0")
    );
    assert!(!told[0].fault.is_empty());
    let found = place.cni.inspect(&BTreeSet::new(), false).await.unwrap();
    assert_eq!(
        (found[0].fault, found[0].repair),
        (Fault::Damaged, Repair::Impossible)
    );
    place.teardown(&request()).await;
    assert_eq!(place.cni.list(None, false).await.unwrap(), []);
}
