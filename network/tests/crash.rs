//! What is left when a process that joins containers is killed, at any moment: nothing, after the next
//! one has looked.
//!
//! The program is both sides: with [`ROLE`] set it joins and parts a container until it is killed.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a test program, which says what it does"
)]

#[path = "../src/testing.rs"]
#[expect(
    dead_code,
    reason = "some helpers are for the tests inside of the crate"
)]
mod testing;

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use network::NetworkDriver;
use network::bridge::{Bridge, BridgeOpts};
use network::cni::{Cni, CniOpts};
use sys::process::Spawn;
use types::network::{NetRequest, PortMapping, Protocol, TenantId};

use testing::{Net, debian_plugins};

/// Says which driver the process that is killed uses, and where.
const ROLE: &str = "NETWORK_CRASH_ROLE";
const PLACE: &str = "NETWORK_CRASH_PLACE";
const NETNS: &str = "NETWORK_CRASH_NETNS";

const CHAIN: &str = r#"{"cniVersion":"1.0.0","name":"real","plugins":[
    {"type":"bridge","bridge":"cni-test0","isGateway":true,
     "ipam":{"type":"host-local","dataDir":"DATA","ranges":[[{"subnet":"10.88.0.0/24"}]]}},
    {"type":"portmap","capabilities":{"portMappings":true}}]}"#;

fn main() {
    if let Ok(role) = std::env::var(ROLE) {
        return join_until_killed(&role);
    }
    let filters: Vec<_> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with('-'))
        .collect();
    // Moments are this far apart, from the first to the end of one joining and parting.
    for (role, kills, step) in [
        ("bridge", 200, Duration::from_micros(150)),
        ("cni", 60, Duration::from_millis(5)),
    ] {
        let name = format!("crash {role}");
        if filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str())) {
            sweep(role, kills, step);
            println!("{name}: {kills} times killed, nothing left");
        }
    }
}

fn sweep(role: &str, kills: u32, step: Duration) {
    let (dir, host, inside) = (tempfile::tempdir().unwrap(), Net::new(), Net::new());
    let place = dir.path();
    prepare(place);
    if role == "cni" {
        // This plugin leaves its bridge: one of the first has it made.
        testing::until("there is a bridge", || {
            kill_after(role, place, &host, &inside, Duration::from_millis(600));
            look(role, place, &host);
            host.try_run("ip link show cni-test0").0
        });
    }
    let before = state(place, &host, &inside);
    for moment in 0..kills {
        kill_after(role, place, &host, &inside, step * moment);
        look(role, place, &host);
        assert_eq!(
            state(place, &host, &inside),
            before,
            "{role}: moment {moment}"
        );
    }
}

/// Starts a process that joins and parts, and kills it that long after it began.
fn kill_after(role: &str, place: &Path, host: &Net, inside: &Net, delay: Duration) {
    let (ours, theirs) = sys::pipe::new().unwrap();
    let spawn = Spawn::new(std::env::current_exe().unwrap())
        .env(ROLE, role)
        .env(PLACE, place)
        .env(NETNS, &inside.path)
        .stdout(theirs);
    let child = host.within(|| spawn.spawn()).unwrap();
    let mut begun = [0];
    File::from(ours).read_exact(&mut begun).unwrap();
    std::thread::sleep(delay);
    child.kill(9).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status, sys::process::Status::Signaled(9), "it was at work");
}

/// The next one looks.
fn look(role: &str, place: &Path, host: &Net) {
    host.block_on(async {
        if role == "bridge" {
            bridge(place).reconcile(|_| false).await.unwrap();
        } else {
            let left = cni(place).reconcile(|_| false).await.unwrap();
            assert!(left.is_empty(), "{left:?}");
        }
    });
}

fn state(place: &Path, host: &Net, inside: &Net) -> String {
    let links = "ip -o link show | sed 's/^[0-9]*: //; s/[@:].*//' | sort";
    let files = format!(
        "find {0}/records {0}/data -type f ! -name last_reserved_ip* ! -name lock | sort",
        place.display()
    );
    let files = host.try_run(&format!("{files} 2>/dev/null")).1;
    let rules = "nft list ruleset 2>/dev/null | grep -E 'containerd|10.88|8080'; true";
    format!(
        "{} {} {files} {}",
        host.run(links),
        inside.run(links),
        host.run(rules)
    )
}

fn prepare(place: &Path) {
    for name in ["bin", "net.d", "records", "data"] {
        std::fs::create_dir(place.join(name)).unwrap();
    }
    for plugin in ["bridge", "portmap", "host-local"] {
        symlink(
            debian_plugins().join(plugin),
            place.join("bin").join(plugin),
        )
        .unwrap();
    }
    let text = CHAIN.replace("DATA", &place.join("data").display().to_string());
    std::fs::write(place.join("net.d/real.conflist"), text).unwrap();
}

fn join_until_killed(role: &str) {
    let place = PathBuf::from(std::env::var_os(PLACE).unwrap());
    let mut request = request();
    request.netns = std::env::var_os(NETNS).unwrap().into();
    let driver: Box<dyn NetworkDriver> = if role == "bridge" {
        request.addresses = vec![
            "10.7.0.2/24".parse().unwrap(),
            "fd07::2/64".parse().unwrap(),
        ];
        Box::new(bridge(&place))
    } else {
        Box::new(cni(&place))
    };
    println!();
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build().unwrap();
    loop {
        runtime.block_on(async {
            driver.setup(&request).await.unwrap();
            driver.teardown(&request).await.unwrap();
        });
    }
}

fn bridge(place: &Path) -> Bridge {
    Bridge::new(&BridgeOpts {
        directory: "/crash".into(),
        records: place.join("records"),
        networks: None,
    })
}

fn cni(place: &Path) -> Cni {
    Cni::new(CniOpts {
        networks: place.join("net.d"),
        plugins: vec![place.join("bin")],
        records: place.join("records"),
        patience: Duration::from_secs(60),
    })
}

fn request() -> NetRequest {
    NetRequest {
        id: TenantId {
            namespace: "default".parse().unwrap(),
            container: "c1".parse().unwrap(),
        },
        netns: PathBuf::new(),
        interface: "eth0".parse().unwrap(),
        networks: Vec::new(),
        addresses: Vec::new(),
        mac: None,
        mtu: None,
        routes: Vec::new(),
        ports: vec![PortMapping {
            protocol: Protocol::Tcp,
            host_ip: None,
            host_port: 8080,
            container_port: 80,
        }],
        args: [].into(),
        capabilities: [].into(),
    }
}
