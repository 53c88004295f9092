//! Networks of containers: set up and taken away natively, by CNI, and by calls of the kernel alone; many at
//! once; and a list of many interfaces. All in a network namespace of the bench's own.
//!
//! One network is a namespace with its loopback up, a wire to a bridge, an address and a default route, and
//! its end. Everywhere the bridge is there before and after: that of a host that has containers.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use protos::MessageField;
use protos::services::network as wire;
use tokio::runtime::Runtime;

use crate::bars::Table;
use crate::lean::Lean;
use crate::peer::{Kind, Peer};
use crate::wires::{Floor, many};
use crate::{Bench, median};

const NAMESPACE: &str = "ctd-bench-network";
const SERVICE: &str = "containerd.services.network.v1.Network";
/// Networks of each kind, one after the other, in turns.
const ROUNDS: usize = 40;
/// Networks at once, and the connections that they are asked for on.
const AT_ONCE: usize = 200;
const CONNECTIONS: usize = 8;
/// How long that may take.
const AT_ONCE_MS: f64 = 1500.0;
/// Interfaces that are listed, how often, and how long that may take, in ms.
const LISTED: usize = 1000;
const LISTS: usize = 21;
const LIST_MS: f64 = 10.0;

/// Where the chain keeps which address is whose: the directory.
const CHAIN: &str = r#"{"cniVersion":"1.0.0","name":"bench","plugins":[
    {"type":"bridge","bridge":"cni0","isGateway":true,
     "ipam":{"type":"host-local","dataDir":"DATA","ranges":[[{"subnet":"10.88.0.0/24"}]],
        "routes":[{"dst":"0.0.0.0/0"}]}}]}"#;
const PLUGINS: &str = "/usr/lib/cni";

pub(crate) fn measure(bench: &Bench, table: &mut Table) {
    let dir = bench.dir.join("network");
    let conf = dir.join("net.d");
    fs::create_dir_all(&conf).expect("make a directory");
    let chain = CHAIN.replace("DATA", &dir.join("data").display().to_string());
    fs::write(conf.join("bench.conflist"), &chain).expect("write the configuration");
    let config = format!(
        "version = 3\n[plugins.\"io.containerd.network.v1.cni\"]\nconf_dir = \"{}\"\nbin_dirs = [\"{PLUGINS}\"]\n",
        conf.display()
    );
    fs::write(dir.join("config.toml"), config).expect("write the configuration");
    integration::net::apart(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let daemon = Peer::start_bare(&runtime, Kind::Ours, &dir);
        let mut client = runtime.block_on(Lean::connect(&daemon.socket()));
        // The bridge stays as long as it is there.
        runtime.block_on(joined(&mut client, "bridge", "keeper", 250));
        one_after_the_other(&runtime, &daemon, &dir, table);
        at_once(&runtime, &daemon, table);
        listed(&runtime, &daemon, table);
        runtime.block_on(parted(&mut client, "bridge", "keeper", 250));
        daemon.stop();
    });
}

async fn call(client: &mut Lean, method: &str, message: &impl protos::Message) {
    let method = format!("{SERVICE}/{method}");
    client.call(&method, NAMESPACE, message).await;
}

fn joining(driver: &str, name: &str, host: usize) -> MessageField<wire::Joining> {
    let addresses = match driver {
        "bridge" => vec![format!("10.7.{}.{}/16", host / 250, host % 250 + 2)],
        _ => Vec::new(),
    };
    MessageField::some(wire::Joining {
        driver: driver.into(),
        container_id: name.into(),
        network_namespace: name.into(),
        addresses,
        ..Default::default()
    })
}

async fn namespace(client: &mut Lean, name: &str) {
    let create = wire::CreateNamespaceRequest {
        network_namespace: MessageField::some(wire::NetworkNamespace {
            name: name.into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    call(client, "CreateNamespace", &create).await;
}

async fn no_namespace(client: &mut Lean, name: &str) {
    let delete = wire::DeleteNamespaceRequest {
        name: name.into(),
        ..Default::default()
    };
    call(client, "DeleteNamespace", &delete).await;
}

async fn joined(client: &mut Lean, driver: &str, name: &str, host: usize) {
    namespace(client, name).await;
    let setup = wire::SetupRequest {
        joining: joining(driver, name, host),
        ..Default::default()
    };
    call(client, "Setup", &setup).await;
}

async fn parted(client: &mut Lean, driver: &str, name: &str, host: usize) {
    let teardown = wire::TeardownRequest {
        joining: joining(driver, name, host),
        ..Default::default()
    };
    call(client, "Teardown", &teardown).await;
    no_namespace(client, name).await;
}

/// The same by interfaces, without a driver.
async fn interfaces(client: &mut Lean, name: &str) {
    namespace(client, name).await;
    let create = wire::CreateLinkRequest {
        link: MessageField::some(wire::Link {
            name: name.into(),
            kind: "veth".into(),
            other: MessageField::some(wire::OtherLink {
                name: "eth0".into(),
                network_namespace: Some(name.into()),
                ..Default::default()
            }),
            up: true,
            attachment: MessageField::some(wire::Attachment {
                bridge: "floor0".into(),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    call(client, "CreateLink", &create).await;
    let update = wire::UpdateLinkRequest {
        link: MessageField::some(wire::Link {
            name: "eth0".into(),
            network_namespace: name.into(),
            up: true,
            addresses: vec!["10.6.0.2/24".into()],
            routes: vec![wire::Route {
                destination: "0.0.0.0/0".into(),
                gateway: "10.6.0.1".into(),
                ..Default::default()
            }],
            ..Default::default()
        }),
        ..Default::default()
    };
    call(client, "UpdateLink", &update).await;
    no_namespace(client, name).await;
}

/// What the plugins do without a daemon, in a namespace that is made for them.
fn plugins(dir: &Path) {
    let path = dir.join("alone");
    let made = sys::netns::create(&path, || Ok(())).expect("a namespace");
    let chain = fs::read_to_string(dir.join("net.d/bench.conflist")).expect("the configuration");
    let chain: serde_json::Value = serde_json::from_str(&chain).expect("JSON");
    let mut input = chain["plugins"][0].clone();
    input["cniVersion"] = chain["cniVersion"].clone();
    input["name"] = chain["name"].clone();
    for command in ["ADD", "DEL"] {
        plugin(command, &path, &input.to_string());
    }
    drop(made);
    sys::netns::unpin(&path).expect("away");
}

fn plugin(command: &str, netns: &Path, input: &str) {
    let mut child = Command::new(PathBuf::from(PLUGINS).join("bridge"))
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", "alone")
        .env("CNI_NETNS", netns)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", PLUGINS)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start the plugin");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).expect("write");
    drop(stdin);
    let out = child.wait_with_output().expect("wait");
    let told = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{command}: {told}");
}

fn one_after_the_other(runtime: &Runtime, daemon: &Peer, dir: &Path, table: &mut Table) {
    let mut client = runtime.block_on(Lean::connect(&daemon.socket()));
    let mut floor = Floor::new(dir);
    let mut all: [Vec<f64>; 5] = Default::default();
    for round in 0..ROUNDS {
        for step in 0..all.len() {
            let which = (round + step) % all.len();
            let name = format!("n{round}");
            let begin = Instant::now();
            match which {
                0 => runtime.block_on(async {
                    joined(&mut client, "bridge", &name, 1).await;
                    parted(&mut client, "bridge", &name, 1).await;
                }),
                1 => runtime.block_on(async {
                    joined(&mut client, "cni", &name, 1).await;
                    parted(&mut client, "cni", &name, 1).await;
                }),
                2 => runtime.block_on(interfaces(&mut client, &name)),
                3 => plugins(dir),
                _ => floor.life(),
            }
            all[which].push(begin.elapsed().as_secs_f64() * 1e3);
        }
    }
    let [bridge, cni, interfaces, plugins, floor] = all.map(median);
    let line = table.add("a network, by the bridge driver, ms", bridge);
    // Debian's plugins, called by nobody but the bench.
    line.debian(plugins).floor(floor).of_debian_at_most(0.1);
    let line = table.add(
        "the same of what CNI takes through the daemon",
        bridge / cni,
    );
    line.at_most(0.1);
    let line = table.add("the same of what calls of the kernel take", bridge / floor);
    line.at_most(2.0);
    table.add("a network, by CNI, ms", cni).debian(plugins);
    let line = table.add("a network, by interfaces, ms", interfaces);
    line.debian(plugins).floor(floor).of_floor_at_most(2.0);
}

/// Many networks at once: all come, and all go.
fn at_once(runtime: &Runtime, daemon: &Peer, table: &mut Table) {
    let took = runtime.block_on(async {
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            clients.push(Lean::connect(&daemon.socket()).await);
        }
        let begin = Instant::now();
        let lives = (0..AT_ONCE).map(|n| {
            let mut client = clients[n % CONNECTIONS].clone();
            tokio::spawn(async move {
                let name = format!("at-once-{n}");
                joined(&mut client, "bridge", &name, n).await;
                parted(&mut client, "bridge", &name, n).await;
            })
        });
        let lives: Vec<_> = lives.collect();
        for life in lives {
            // What fails, panics.
            life.await.expect("a network without an error");
        }
        begin.elapsed().as_secs_f64() * 1e3
    });
    let what = format!("{AT_ONCE} networks at once, ms");
    table.add(what, took).at_most(AT_ONCE_MS);
}

fn listed(runtime: &Runtime, daemon: &Peer, table: &mut Table) {
    let mut client = runtime.block_on(Lean::connect(&daemon.socket()));
    runtime.block_on(namespace(&mut client, "many"));
    let get = wire::GetNamespaceRequest {
        name: "many".into(),
        ..Default::default()
    };
    let path = runtime.block_on(async {
        let method = format!("{SERVICE}/GetNamespace");
        let mut told = client.stream(&method, NAMESPACE, &get).await;
        let told = protos::Message::parse_from_bytes(&told.next().await);
        let told: wire::GetNamespaceResponse = told.expect("an answer");
        told.network_namespace.path.clone()
    });
    many(Path::new(&path), LISTED);
    let list = wire::ListLinksRequest {
        network_namespace: "many".into(),
        ..Default::default()
    };
    let mut all = Vec::new();
    for _ in 0..LISTS {
        let begin = Instant::now();
        runtime.block_on(call(&mut client, "ListLinks", &list));
        all.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    let what = format!("list of {LISTED} interfaces, ms");
    table.add(what, median(all)).at_most(LIST_MS);
    runtime.block_on(no_namespace(&mut client, "many"));
}
