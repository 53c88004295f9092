//! The daemon and the plugins of CNI are killed at any moment of what they do for a container's network, with
//! a client that comes back and with one that does not: in the end there is nothing that belongs to nobody.
//!
//! ```text
//! namespace -> set-up -> tear-down -> away, a kill in the middle of it -> start -> what was begun is ended,
//!     by the client or by the collector -> look: interfaces, filters, addresses, records, files
//! ```
//! Each step of the plugins has its round, and the daemon has one for each of so many moments of a life by each
//! driver, from when it has a namespace; only a round counts in which somebody died with work to do. `KILLS=200` adds so many moments that chance
//! chooses, from `SEED`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use client::{Client, Joining};
use integration::{Host, Whose, figure, net, script, until};
use types::network::{NetRequest, PortMapping, Protocol, TenantId};
use types::{Code, Context as _, Error, Labels, Result};

use crate::network_drivers::{CHAIN, ctr};

/// Moments of a life, from its beginning to its end, at which the daemon is killed.
const MOMENTS: u32 = 8;
const LIMIT: Duration = integration::PATIENCE;
/// The namespace, the container that it is of, and the lease of a client that does not come back.
const NAME: &str = "n";
const LEASE: &str = "l";
/// Debian's plugins in the chain, each of which may be killed before and after its work.
const PLUGINS: [&str; 3] = ["bridge", "host-local", "portmap"];
/// More steps than there are.
const MANY: usize = 1000;
/// A kill of every so many is that of a client, too: the collector is waited for, which takes its time.
const ORPHANED: usize = 4;
/// How often a kill that came too late is tried at half its time.
const EARLIER: usize = 16;

/// Stands for a plugin: counts down what is in the file beside it, two for each call, and dies when it comes
/// to the end: before the plugin's work, or after it and before anybody hears of it.
const STAND_IN: &str = r#"#!/bin/sh
left=$(cat DIR/left 2>/dev/null) || exec /usr/lib/cni/NAME
case $left in
0) rm DIR/left; kill -9 $$ ;;
1) rm DIR/left; /usr/lib/cni/NAME >/dev/null; kill -9 $$ ;;
*) echo $((left - 2)) >DIR/left; exec /usr/lib/cni/NAME ;;
esac
"#;

fn number(name: &str, default: usize) -> usize {
    let given = std::env::var(name).ok();
    given.map_or(default, |text| text.parse().expect("a number"))
}

/// Numbers that come again with the seed.
struct Dice(u64);

impl Dice {
    /// A moment in a time.
    fn moment(&mut self, of: Duration) -> Duration {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let micros = u64::try_from(of.as_micros()).expect("short");
        Duration::from_micros((self.0 >> 33) % micros.max(1))
    }
}

/// Who is killed.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Nobody,
    /// The daemon, before the client has heard of anything.
    AtOnce,
    /// So long after the client has heard of its namespace.
    Daemon(Duration),
    /// The plugin whose turn it is.
    Plugin(usize),
}

/// What became of a life.
struct Lived {
    /// From when there was a namespace.
    took: Duration,
    /// Who was to be killed died, and had not done all its work.
    is_cut: bool,
}

fn request(driver: &str) -> NetRequest {
    let addresses = match driver {
        "bridge" => vec!["10.7.0.2/24", "fd07::2/64"],
        _ => Vec::new(),
    };
    NetRequest {
        id: TenantId {
            namespace: "default".parse().expect("a name"),
            container: NAME.parse().expect("a name"),
        },
        netns: PathBuf::new(),
        interface: "eth0".parse().expect("a name"),
        networks: Vec::new(),
        addresses: addresses
            .into_iter()
            .map(|one| one.parse().expect("an address"))
            .collect(),
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

/// A network from its beginning to its end; when it has `begun`, it has a namespace.
async fn life(client: &Client, driver: &str, begun: &OnceLock<Instant>) -> Result<()> {
    let request = request(driver);
    let joining = Joining {
        driver,
        namespace: Some(NAME),
        request: &request,
    };
    let networks = client.networks();
    networks
        .create_namespace(NAME, None, &Labels::new())
        .await?;
    begun.get_or_init(Instant::now);
    networks.setup(&joining).await?;
    if driver == "bridge" {
        // Debian's portmap looks for ports of IPv6 where it has made none.
        networks.check(&joining).await?;
    }
    networks.teardown(&joining).await?;
    networks.delete_namespace(NAME).await
}

/// True when nobody was there any more to answer. The transport, which tells it, knows no class for that.
fn is_of_a_lost_connection(error: &Error) -> bool {
    let text = error.to_string().to_lowercase();
    let of_transport = ["transport error", "h2 protocol error"];
    (error.is(Code::Unknown) && of_transport.iter().any(|one| text.starts_with(one)))
        // It may die while the two of them greet each other.
        || (error.is(Code::Unavailable) && ["connect", "failed to dial"].iter().any(|one| text.contains(one)))
}

/// What a client does that comes back.
async fn end(client: &Client, driver: &str) -> Result<()> {
    let request = request(driver);
    let joining = Joining {
        driver,
        namespace: Some(NAME),
        request: &request,
    };
    let networks = client.networks();
    networks.teardown(&joining).await?;
    networks.delete_namespace(NAME).await.absent_ok().map(drop)
}

/// Runs `work` with a client under the lease.
fn with_client<T>(
    address: &str,
    namespace: &str,
    work: impl AsyncFnOnce(Client) -> Result<T>,
) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("start a runtime");
    runtime.block_on(async {
        let namespace = namespace.parse().expect("a namespace");
        let client = Client::connect(address, namespace, LIMIT).await?;
        work(client.leased(LEASE.parse().expect("a name"))).await
    })
}

/// Files below a directory, but for those that plugins keep on purpose.
fn files(directory: &Path, all: &mut Vec<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files(&entry.path(), all);
        } else if name != "lock" && !name.starts_with("last_reserved_ip") {
            all.push(entry.path().display().to_string());
        }
    }
}

struct Sweep {
    host: Host,
    dir: tempfile::TempDir,
    rounds: usize,
}

impl Sweep {
    /// In the network namespace of its thread: the daemon comes back to where it was.
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (conf, bin) = (dir.path().join("net.d"), dir.path().join("bin"));
        for made in [&conf, &bin] {
            fs::create_dir(made).expect("a directory");
        }
        let chain = CHAIN.replace("DATA", &dir.path().join("data").display().to_string());
        fs::write(conf.join("real.conflist"), chain).expect("a configuration");
        for plugin in PLUGINS {
            let text = STAND_IN.replace("DIR", &dir.path().display().to_string());
            drop(script(&bin.join(plugin), &text.replace("NAME", plugin)));
        }
        let sections = format!(
            "[plugins.\"io.containerd.network.v1.cni\"]\nconf_dir = \"{}\"\nbin_dirs = [\"{}\"]\n",
            conf.display(),
            bin.display()
        );
        let host = Host::configured("network-crash", Whose::Ours, &sections);
        Self {
            host,
            dir,
            rounds: 0,
        }
    }

    fn ask<T>(&self, work: impl AsyncFnOnce(Client) -> Result<T>) -> Result<T> {
        let address = self.host.address().display().to_string();
        with_client(&address, self.host.namespace(), work)
    }

    /// Everything that belongs to networks.
    fn state(&self) -> String {
        const HERE: &str = "/proc/self/ns/net";
        let (links, rules) = (net::links(HERE), net::rules(HERE));
        let is_of_containers = |line: &&str| {
            ["containerd", "10.88.", "8080"]
                .iter()
                .any(|word| line.contains(word))
        };
        let rules: Vec<_> = rules.lines().filter(is_of_containers).collect();
        let mut found = Vec::new();
        files(&self.dir.path().join("data"), &mut found);
        for base in [self.host.root(), self.host.state()] {
            for name in ["cni", "native"] {
                files(
                    &base.join(format!("io.containerd.network.v1.{name}")),
                    &mut found,
                );
            }
        }
        found.sort();
        format!("{links}\n{}\n{}", rules.join("\n"), found.join("\n"))
    }

    fn left(&self) -> PathBuf {
        self.dir.path().join("left")
    }

    /// A life with a kill in it, perhaps.
    fn round(&mut self, driver: &'static str, victim: Victim) -> Lived {
        ctr(&self.host, &format!("leases create --id {LEASE}"));
        if let Victim::Plugin(step) = victim {
            fs::write(self.left(), step.to_string()).expect("a file");
        }
        let (address, namespace) = (
            self.host.address().display().to_string(),
            self.host.namespace().to_owned(),
        );
        let begun = Arc::new(OnceLock::new());
        let noted = Arc::clone(&begun);
        let going = std::thread::spawn(move || {
            with_client(&address, &namespace, async |client| {
                life(&client, driver, &noted).await
            })
        });
        let is_daemon = match victim {
            Victim::Nobody | Victim::Plugin(_) => false,
            Victim::AtOnce => true,
            Victim::Daemon(after) => {
                let is_early = |at: &Instant| at.elapsed() < after;
                // Who fails before has no namespace: that is told below.
                while begun.get().map_or(!going.is_finished(), is_early) {
                    std::thread::sleep(Duration::from_micros(100));
                }
                true
            }
        };
        if is_daemon {
            self.host.kill();
            self.host.start();
        }
        let done = going.join().expect("it ends");
        let took = begun.get().map(Instant::elapsed).unwrap_or_default();
        let is_killed = match victim {
            Victim::Plugin(_) => fs::remove_file(self.left()).is_err(),
            _ => is_daemon,
        };
        assert!(is_killed || done.is_ok(), "{done:?}");
        if is_daemon && let Err(error) = &done {
            // The client of a daemon that dies before the last answer hears of that, and of nothing else.
            assert!(is_of_a_lost_connection(error), "{error:?}");
        }
        let is_cut = match victim {
            Victim::Nobody | Victim::AtOnce => false,
            Victim::Daemon(_) => begun.get().is_some() && done.is_err(),
            Victim::Plugin(_) => is_killed,
        };
        Lived { took, is_cut }
    }

    /// A round, and what comes after it; whether somebody died with work to do.
    fn kill(&mut self, driver: &'static str, victim: Victim, before: &str) -> bool {
        let is_gone = self.rounds % ORPHANED == ORPHANED - 1;
        let at = format!(
            "round {}: {driver}, {victim:?}, client gone: {is_gone}",
            self.rounds
        );
        let point = Point(at);
        self.rounds += 1;
        let lived = self.round(driver, victim);
        self.tidy(driver, is_gone, before);
        drop(point);
        lived.is_cut
    }

    /// Kills the daemon at a moment, or earlier, if a life was over by then: how long one takes varies with
    /// what else the machine does.
    fn kill_daemon(&mut self, driver: &'static str, moment: Duration, before: &str) {
        let mut moments =
            std::iter::successors(Some(moment), |moment| Some(*moment / 2)).take(EARLIER);
        let cut = moments.find(|moment| self.kill(driver, Victim::Daemon(*moment), before));
        assert!(cut.is_some(), "{driver}: it was over each time");
    }

    /// What was begun is ended, by the client or, when it `is_gone`, without it.
    fn tidy(&self, driver: &str, is_gone: bool, before: &str) {
        if !is_gone {
            let mut told = None;
            until("the client ends it", || {
                let ended = self.ask(async |client| end(&client, driver).await);
                told = ended.err();
                if let Some(error) = &told {
                    figure(format_args!("again: {error}"));
                }
                told.is_none()
            });
        }
        ctr(&self.host, &format!("leases rm --sync {LEASE}"));
        let mut now = String::new();
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            now = self.state();
            if now == before {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(now, before, "something is left");
    }

    /// Calls of plugins in one life.
    fn calls(&mut self) -> usize {
        fs::write(self.left(), MANY.to_string()).expect("a file");
        self.round("cni", Victim::Nobody);
        let left = fs::read_to_string(self.left()).expect("it was counted");
        fs::remove_file(self.left()).expect("a file");
        let left: usize = left.trim().parse().expect("a number");
        (MANY - left) / 2
    }

    fn finish(mut self, before: &str) {
        // What the last one has left undone, the next one does.
        self.host.kill();
        self.host.start();
        let mut found = String::new();
        until("nothing is wrong", || {
            found = self.host.ctr(["fsck"]).stdout;
            found.ends_with("nothing is wrong\n")
        });
        assert_eq!(self.state(), before);
        self.host.finish();
    }
}

/// Says where a sweep failed.
struct Point(String);

impl Drop for Point {
    fn drop(&mut self) {
        if std::thread::panicking() {
            figure(format_args!("at {}", self.0));
        }
    }
}

#[test]
fn kills_of_the_daemon_and_of_plugins_leave_nothing_of_a_network() {
    net::apart(|| {
        let (kills, seed) = (number("KILLS", 0), number("SEED", 20_261_130));
        let mut dice = Dice(u64::try_from(seed).expect("a number"));
        let mut sweep = Sweep::new();
        // The plugins leave their bridge and empty chains: the first one has them made.
        let calls = sweep.calls();
        sweep.tidy("cni", false, &sweep.state());
        let before = sweep.state();
        for step in 0..2 * calls {
            let is_cut = sweep.kill("cni", Victim::Plugin(step), &before);
            assert!(is_cut, "nobody died at step {step}");
        }
        for driver in ["bridge", "cni"] {
            let took = sweep.round(driver, Victim::Nobody).took;
            sweep.tidy(driver, false, &before);
            sweep.kill(driver, Victim::AtOnce, &before);
            for moment in 0..MOMENTS {
                sweep.kill_daemon(driver, took * moment / MOMENTS, &before);
            }
            for _ in 0..kills.div_ceil(2) {
                let moment = dice.moment(took);
                sweep.kill_daemon(driver, moment, &before);
            }
            figure(format_args!("a life by {driver}: {took:?}"));
        }
        figure(format_args!(
            "{} rounds, {} steps of plugins, seed {seed}",
            sweep.rounds,
            2 * calls
        ));
        sweep.finish(&before);
    });
}
