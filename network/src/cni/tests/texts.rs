//! Configurations and results as texts.

use super::*;
use crate::cni::{Answer, Version, conf, parse};

#[test]
fn a_list_and_a_single_plugin_are_networks() {
    let list = parse(
        br#"{"cniVersion":"0.4.0","name":"a","disableCheck":"true","plugins":[
        {"type":"bridge","x":1},{"type":"portmap","capabilities":{"portMappings":true,"mac":false}}]}"#,
    )
    .unwrap();
    assert_eq!((list.version, list.disable_check), (Version::V0_4_0, true));
    let programs: Vec<_> = list.plugins.iter().map(|p| p.program.as_str()).collect();
    assert_eq!(programs, ["bridge", "portmap"]);
    assert!(list.is_capable_of("portMappings") && !list.is_capable_of("mac"));
    assert_eq!(
        conf::from_json(list.to_json()).unwrap().plugins,
        list.plugins
    );
    let single = parse(br#"{"name":"b","type":"macvlan"}"#).unwrap();
    assert_eq!((single.version, single.plugins.len()), (Version::V0_1_0, 1));
}

#[test]
fn the_highest_version_that_both_sides_know_is_spoken() {
    for (text, spoken) in [
        (
            r#""cniVersion":"0.4.0","cniVersions":["1.0.0","0.3.1","9.9.9"]"#,
            Version::V1_0_0,
        ),
        (
            r#""cniVersion":"9.0.0","cniVersions":["0.3.1"]"#,
            Version::V0_3_1,
        ),
        (r#""cniVersion":"1.1.0""#, Version::V1_1_0),
    ] {
        let text = format!(r#"{{"name":"a","type":"t",{text}}}"#);
        assert_eq!(parse(text.as_bytes()).unwrap().version, spoken);
    }
}

#[test]
fn what_is_wrong_in_a_configuration_is_named_by_its_key() {
    for (text, key) in [
        ("", "no JSON"),
        ("[]", "no JSON object"),
        (r#"{"type":"t"}"#, "name: "),
        (r#"{"name":"../x","type":"t"}"#, "name: "),
        (r#"{"name":"a:b","type":"t"}"#, "name: "),
        (r#"{"name":1,"type":"t"}"#, "name: "),
        (
            r#"{"name":"a","cniVersion":"7","type":"t"}"#,
            "cniVersion: ",
        ),
        (
            r#"{"name":"a","cniVersions":["7"],"type":"t"}"#,
            "cniVersions: ",
        ),
        (
            r#"{"name":"a","cniVersions":[7],"type":"t"}"#,
            "cniVersions: ",
        ),
        (r#"{"name":"a","disableGC":7,"type":"t"}"#, "disableGC: "),
        (r#"{"name":"a","plugins":{}}"#, "plugins: "),
        (
            r#"{"name":"a","plugins":[],"loadOnlyInlinedPlugins":true}"#,
            "plugins: ",
        ),
        (
            r#"{"name":"a","plugins":[{"type":"t"},{}]}"#,
            "plugins[1]: type: ",
        ),
        (
            r#"{"name":"a","plugins":[{"type":"../t"}]}"#,
            "plugins[0]: type: ",
        ),
        (
            r#"{"name":"a","type":"t","capabilities":[]}"#,
            "capabilities: ",
        ),
    ] {
        let error = parse(text.as_bytes()).unwrap_err();
        assert_says(&error, Code::InvalidArgument, &[key]);
    }
}

#[test]
fn files_count_in_the_order_of_their_names() {
    let place = Place::new();
    let dir = place.dir.path().join("net.d");
    let error = conf::first(&dir).unwrap_err();
    assert_says(&error, Code::NotFound, &["net.d"]);
    place.file(
        "20-b.conflist",
        r#"{"name":"b","plugins":[{"type":"two"}]}"#,
    );
    place.file("10-a.conf", r#"{"name":"a","type":"one"}"#);
    place.file("00-note.txt", "not one");
    place.file("30-b.json", r#"{"name":"b","type":"three"}"#);
    assert_eq!(conf::first(&dir).unwrap().name, "a");
    assert_eq!(conf::find(&dir, "b").unwrap().plugins[0].program, "two");
    place.file("05-broken.conf", "{");
    let error = conf::first(&dir).unwrap_err();
    assert_says(
        &error,
        Code::InvalidArgument,
        &["05-broken.conf", "no JSON"],
    );
    assert_eq!(conf::find(&dir, "b").unwrap().plugins[0].program, "two");
    let error = conf::find(&dir, "c").unwrap_err();
    assert_says(&error, Code::NotFound, &["\"c\"", "05-broken.conf"]);
    assert!(
        conf::find(&dir.join("none"), "c")
            .unwrap_err()
            .is_not_found()
    );
}

#[test]
fn plugins_beside_a_list_come_after_its_own() {
    let place = Place::new();
    let dir = place.dir.path().join("net.d");
    std::fs::create_dir(dir.join("a")).unwrap();
    for (name, program) in [("2.conf", "three"), ("1.conf", "two"), ("0.json", "no")] {
        let text = json!({"type": program}).to_string();
        std::fs::write(dir.join("a").join(name), text).unwrap();
    }
    for (inlined, programs) in [(false, &["one", "two", "three"][..]), (true, &["one"])] {
        let list = json!({"name": "a", "loadOnlyInlinedPlugins": inlined,
            "plugins": [{"type": "one"}]});
        place.file("a.conflist", &list.to_string());
        let found = conf::first(&dir).unwrap();
        let found: Vec<_> = found.plugins.iter().map(|p| p.program.as_str()).collect();
        assert_eq!(found, programs);
    }
    place.file("a.conflist", r#"{"name":"b"}"#);
    let error = conf::first(&dir).unwrap_err();
    assert_says(&error, Code::InvalidArgument, &["a.conflist", "plugins"]);
}

#[test]
fn a_result_is_the_same_in_every_version() {
    let newest = json!({
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "mtu": 1400, "sandbox": "/n"},
            {"name": "v", "socketPath": "/s", "pciID": "p"}],
        "ips": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1", "interface": 0},
            {"address": "fd00::2/64"}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1", "priority": 7, "table": 100}, {"dst": "::/0"}],
        "dns": {"nameservers": ["10.0.0.1"], "search": ["x"]},
    });
    let (read, version) = Answer::parse(&newest, Version::V0_1_0).unwrap();
    assert_eq!(version, Version::V1_1_0);
    let same = |a: &Value, b: &Value| assert_eq!(a, b);
    same(&read.to_json(Version::V1_1_0), &newest);
    for version in Version::ALL {
        let written = read.to_json(version);
        let (back, spoken) = Answer::parse(&written, Version::V1_1_0).unwrap();
        assert_eq!(spoken, version);
        same(&back.to_json(version), &written);
        let (then, now) = (read.to_result().unwrap(), back.to_result().unwrap());
        let addresses = |r: &types::network::NetResult| -> Vec<_> {
            r.addresses.iter().map(|a| (a.address, a.gateway)).collect()
        };
        assert_eq!(addresses(&now), addresses(&then), "{version}");
        assert_eq!(now.dns, then.dns);
        assert_eq!(now.routes.len(), then.routes.len());
    }
    let v4 = read.to_json(Version::V0_4_0);
    assert_eq!(v4["ips"][0]["version"], "4");
    assert_eq!(v4["ips"][1]["version"], "6");
    assert_eq!(v4["interfaces"][0].get("mtu"), None);
    assert_eq!(v4["routes"][0].get("priority"), None);
    let old = read.to_json(Version::V0_2_0);
    assert_eq!(old["ip6"]["ip"], "fd00::2/64");
    let result = read.to_result().unwrap();
    assert_eq!(result.addresses[0].interface, Some(0));
    assert_eq!(result.routes[0].metric, Some(7));
    assert_eq!(result.interfaces[0].mtu, Some(1400));
}

#[test]
fn what_is_no_result_is_the_plugins_fault() {
    for text in [
        "[]",
        "7",
        r#"{"cniVersion":7}"#,
        r#"{"cniVersion":"3.0.0"}"#,
        r#"{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.2/99"}]}"#,
        r#"{"cniVersion":"1.0.0","ips":{}}"#,
        r#"{"cniVersion":"1.0.0","ips":[{}]}"#,
        r#"{"cniVersion":"0.2.0","ip4":{"ip":"x"}}"#,
        r#"{"cniVersion":"1.0.0","routes":[{"dst":"x"}]}"#,
    ] {
        let value = serde_json::from_str(text).unwrap();
        let error = Answer::parse(&value, Version::V1_0_0).unwrap_err();
        assert_says(&error, Code::Unknown, &["no result of CNI"]);
    }
    let nulls = json!({"ips": null, "routes": null, "interfaces": null, "dns": null});
    let (read, version) = Answer::parse(&nulls, Version::V0_4_0).unwrap();
    assert_eq!((read, version), (Answer::default(), Version::V0_4_0));
}
