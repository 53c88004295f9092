//! Records, and what the kernel has behind them: after changes, refusals, and a start anew.

use std::path::Path;
use std::sync::{Arc, Mutex};

use types::network::{
    IpNet, Link, LinkChange, LinkKind, LinkMove, LinkName, LinkSpec, NewLink, Other, Place,
};
use types::{Code, Event, Fields, Filter, Labels, Namespace, Result, Scope};

use crate::{NamespaceOpts, Networks, OpenOpts};

mod check;
mod races;
mod starts;
mod tenants;
mod ways;

/// Mark of interfaces that a driver makes.
const HIDDEN: u32 = 4711;
/// Who its daemon is.
const IDENTITY: &str = "f2c1";

/// A daemon's networks, all of them in a directory of their own.
struct House {
    dir: tempfile::TempDir,
    networks: Networks,
    events: Arc<Mutex<Vec<String>>>,
}

fn open(dir: &Path, events: &Arc<Mutex<Vec<String>>>) -> Networks {
    open_as(IDENTITY, dir, events)
}

fn open_as(identity: &str, dir: &Path, events: &Arc<Mutex<Vec<String>>>) -> Networks {
    let told = Arc::clone(events);
    let publisher = move |tenant: Namespace, event: Event| {
        told.lock()
            .unwrap()
            .push(format!("{tenant} {}", event.topic()));
    };
    let opts = OpenOpts {
        directory: dir.to_owned(),
        identity: identity.to_owned(),
        hidden: vec![HIDDEN],
        publisher: Arc::new(publisher),
    };
    Networks::open(opts).unwrap()
}

impl House {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let events = Arc::default();
        let networks = open(dir.path(), &events);
        Self {
            dir,
            networks,
            events,
        }
    }

    /// The daemon starts anew.
    fn restart(&mut self) {
        self.networks = open(self.dir.path(), &self.events);
    }

    async fn namespace(&self, tenant: &str, name: &str) -> Result<types::network::NetNamespace> {
        self.networks
            .create_namespace(&scope(tenant), name, NamespaceOpts::default())
            .await
    }

    async fn link(&self, tenant: &str, at: &Place, name: &str, kind: LinkKind) -> Result<Link> {
        let new = NewLink {
            place: at.clone(),
            name: named(name),
            kind,
            spec: LinkSpec {
                up: Some(true),
                ..LinkSpec::default()
            },
            labels: Labels::new().with("a", "b"),
        };
        self.networks.create_link(&scope(tenant), new).await
    }

    async fn links(&self, tenant: &str, at: &Place) -> Vec<String> {
        let all = self
            .networks
            .list_links(&ns(tenant), at, Filter::default())
            .await
            .unwrap();
        all.iter().map(|link| link.name.to_string()).collect()
    }

    fn records(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("records"))
            .unwrap()
            .count()
    }

    async fn end(self) {
        for tenant in ["a", "b"] {
            for one in self
                .networks
                .list_namespaces(&ns(tenant), &Filter::default())
            {
                self.networks
                    .delete_namespace(&ns(tenant), &one.name)
                    .await
                    .unwrap();
            }
        }
        assert_eq!(self.records(), 0);
        assert_eq!(self.networks.check(false).await.unwrap(), []);
    }
}

fn ns(text: &str) -> Namespace {
    text.parse().unwrap()
}

fn scope(tenant: &str) -> Scope {
    Scope::new(ns(tenant))
}

fn named(text: &str) -> LinkName {
    text.parse().unwrap()
}

fn at(name: &str) -> Place {
    Place::Named(name.to_owned())
}

fn veth(peer: &str) -> LinkKind {
    LinkKind::Veth(Some(Other::beside(named(peer))))
}

/// Runs a test whose host is a network namespace of its own.
fn apart(test: impl Future<Output = ()> + Send) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("host");
    let host = sys::netns::create(&path, || Ok(())).unwrap();
    let ran = host.within(|| {
        // Its threads are where the one is that makes it.
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(test);
        Ok(())
    });
    sys::netns::unpin(&path).unwrap();
    ran.unwrap();
}

#[test]
fn a_namespace_comes_stays_over_a_restart_and_goes() {
    apart(async {
        let mut house = House::new();
        let made = house.namespace("a", "n").await.unwrap();
        assert_eq!(made.path, house.dir.path().join("netns/a/n"));
        // Its loopback is up.
        let lo = house
            .networks
            .get_link(&ns("a"), &at("n"), &named("lo"))
            .await
            .unwrap();
        assert!(
            lo.up
                && lo
                    .addresses
                    .contains(&"127.0.0.1/8".parse::<IpNet>().unwrap()),
            "{lo:?}"
        );
        // The same again is the same.
        assert_eq!(house.namespace("a", "n").await.unwrap(), made);
        let other = NamespaceOpts {
            labels: Labels::new().with("x", "y"),
            ..NamespaceOpts::default()
        };
        let taken = house
            .networks
            .create_namespace(&scope("a"), "n", other)
            .await
            .unwrap_err();
        assert!(taken.is_already_exists(), "{taken}");
        // A tenant has names of its own.
        assert!(
            house
                .networks
                .get_namespace(&ns("b"), "n")
                .unwrap_err()
                .is_not_found()
        );
        assert_ne!(house.namespace("b", "n").await.unwrap().inode, made.inode);
        house.restart();
        assert_eq!(house.networks.get_namespace(&ns("a"), "n").unwrap(), made);
        let labels = Labels::new().with("k", "v");
        let fields = Fields::new(vec!["labels.k".into()]);
        let changed = house
            .networks
            .update_namespace(&ns("a"), "n", labels.clone(), fields)
            .await
            .unwrap();
        assert_eq!(changed.labels, labels);
        let wrong = Fields::new(vec!["path".into()]);
        let error = house
            .networks
            .update_namespace(&ns("a"), "n", labels, wrong)
            .await
            .unwrap_err();
        assert!(error.is(Code::InvalidArgument), "{error}");
        house
            .networks
            .delete_namespace(&ns("a"), "n")
            .await
            .unwrap();
        assert!(
            house
                .networks
                .delete_namespace(&ns("a"), "n")
                .await
                .unwrap_err()
                .is_not_found()
        );
        assert!(!made.path.exists());
        let topics = ["create", "create", "update", "delete"]
            .map(|word| format!("/networks/namespaces/{word}"));
        let told = house.events.lock().unwrap().clone();
        let told: Vec<_> = told
            .iter()
            .map(|line| line.split(' ').next_back().unwrap().to_owned())
            .collect();
        assert_eq!(told, topics);
        house.end().await;
    });
}

#[test]
fn bad_names_and_paths_are_refused_and_nothing_stays() {
    apart(async {
        let house = House::new();
        for bad in ["", "a/b", "..", "host", &"x".repeat(77)] {
            let error = house.namespace("a", bad).await.unwrap_err();
            assert!(error.is(Code::InvalidArgument), "{bad}: {error}");
        }
        let adopt = |path: &str| NamespaceOpts {
            adopt: path.into(),
            ..NamespaceOpts::default()
        };
        let round = house.dir.path().join("round");
        std::os::unix::fs::symlink(&round, &round).unwrap();
        for (path, code) in [
            ("/etc/passwd", Code::InvalidArgument),
            ("relative", Code::InvalidArgument),
            ("/proc/self/ns/mnt", Code::InvalidArgument),
            ("/proc/\0/ns/net", Code::InvalidArgument),
            (&format!("/{}", "x".repeat(300)), Code::InvalidArgument),
            (&round.display().to_string(), Code::InvalidArgument),
            ("/no/such", Code::NotFound),
        ] {
            let error = house
                .networks
                .create_namespace(&scope("a"), "n", adopt(path))
                .await
                .unwrap_err();
            assert!(
                error.is(code) && error.to_string().contains(path),
                "{error}"
            );
            assert_eq!(house.records(), 0);
        }
        assert!(house.links_of_missing().await.is_not_found());
        house.end().await;
    });
}

impl House {
    async fn links_of_missing(&self) -> types::Error {
        self.networks
            .list_links(&ns("a"), &at("gone"), Filter::default())
            .await
            .unwrap_err()
    }
}

#[test]
fn one_in_use_stays_and_says_by_whom() {
    apart(async {
        let house = House::new();
        let made = house.namespace("a", "n").await.unwrap();
        #[expect(clippy::disallowed_methods, reason = "a test has no reaper")]
        let mut child = std::process::Command::new("nsenter")
            .arg(format!("--net={}", made.path.display()))
            .args(["sleep", "1000"])
            .spawn()
            .unwrap();
        crate::testing::until("it is in there", || {
            !sys::netns::users(made.inode).unwrap().is_empty()
        });
        let error = house
            .networks
            .delete_namespace(&ns("a"), "n")
            .await
            .unwrap_err();
        let pid = format!("(pid {})", child.id());
        assert!(
            error.is(Code::FailedPrecondition) && error.to_string().contains(&pid),
            "{error}"
        );
        // What is adopted only loses its name.
        let adopt = NamespaceOpts {
            adopt: made.path.clone(),
            ..NamespaceOpts::default()
        };
        let adopted = house
            .networks
            .create_namespace(&scope("a"), "m", adopt)
            .await;
        let deleted = house.networks.delete_namespace(&ns("a"), "m").await;
        child.kill().unwrap();
        child.wait().unwrap();
        let adopted = adopted.unwrap();
        assert_eq!((adopted.inode, adopted.adopted), (made.inode, made.path));
        deleted.unwrap();
        house.end().await;
    });
}

#[test]
fn interfaces_are_told_with_labels_and_survive_a_restart() {
    apart(async {
        let mut house = House::new();
        house.namespace("a", "n").await.unwrap();
        // But for what the kernel finds out a moment later: whether there is somebody at the other end.
        let as_made = |link: Link| Link {
            running: false,
            ..link
        };
        let made = house.link("a", &at("n"), "v", veth("w")).await.unwrap();
        let made = as_made(made);
        assert_eq!(made.labels, Labels::new().with("a", "b"));
        assert!(made.created_at.is_some());
        let again = house.link("a", &at("n"), "v", veth("w")).await.unwrap();
        assert_eq!(as_made(again), made);
        let taken = house.link("a", &at("n"), "v", veth("x")).await.unwrap_err();
        assert!(taken.is_already_exists(), "{taken}");
        house.restart();
        let get = |house: &House| {
            let networks = house.networks.clone();
            async move { networks.get_link(&ns("a"), &at("n"), &named("v")).await }
        };
        assert_eq!(as_made(get(&house).await.unwrap()), made);
        assert_eq!(house.records(), 3);
        let change = LinkChange {
            labels: Some((Labels::new().with("c", "d"), Fields::default())),
            ..LinkChange::default()
        };
        house
            .networks
            .update_link(&ns("a"), &at("n"), &named("v"), change)
            .await
            .unwrap();
        assert_eq!(
            get(&house).await.unwrap().labels,
            Labels::new().with("c", "d")
        );
        // One end takes the other along, and its record.
        house
            .networks
            .delete_link(&ns("a"), &at("n"), &named("w"))
            .await
            .unwrap();
        assert!(get(&house).await.unwrap_err().is_not_found());
        assert_eq!(house.records(), 1);
        house.end().await;
    });
}

#[test]
fn interfaces_of_the_host_are_their_tenants() {
    apart(async {
        let mut house = House::new();
        house.namespace("a", "n").await.unwrap();
        let (near, moved) = ("nearp".to_owned(), "nearq".to_owned());
        let kind = LinkKind::Veth(Some(Other {
            name: named(&near),
            place: Some(Place::Host),
        }));
        house.link("a", &at("n"), "eth0", kind).await.unwrap();
        house.restart();
        assert!(house.links("a", &Place::Host).await.contains(&near));
        assert!(!house.links("b", &Place::Host).await.contains(&near));
        let (host, name) = (Place::Host, named(&near));
        let hidden = house
            .networks
            .delete_link(&ns("b"), &host, &name)
            .await
            .unwrap_err();
        assert!(hidden.is_not_found(), "{hidden}");
        let hidden = house
            .networks
            .get_link(&ns("b"), &host, &name)
            .await
            .unwrap_err();
        assert!(hidden.is_not_found(), "{hidden}");
        // What nobody made here is seen and left alone.
        assert!(
            house
                .links("b", &Place::Host)
                .await
                .contains(&"lo".to_owned())
        );
        let error = house
            .networks
            .update_link(&ns("b"), &host, &named("lo"), LinkChange::default())
            .await;
        assert!(error.unwrap_err().is(Code::FailedPrecondition));
        // It goes where it is wanted, keeps its labels, and comes up under its new name after a restart.
        house.namespace("a", "m").await.unwrap();
        let to = LinkMove {
            place: at("m"),
            name: named(&moved),
        };
        house
            .networks
            .move_link(&ns("a"), &host, &name, to)
            .await
            .unwrap();
        house.restart();
        let link = house
            .networks
            .get_link(&ns("a"), &at("m"), &named(&moved))
            .await
            .unwrap();
        assert!(link.created_at.is_some());
        assert!(!house.links("a", &host).await.contains(&near));
        // With its namespace goes its other end.
        house
            .networks
            .delete_namespace(&ns("a"), "m")
            .await
            .unwrap();
        assert_eq!(house.links("a", &at("n")).await, ["lo"]);
        house.end().await;
    });
}

#[test]
fn what_was_not_finished_goes_at_the_next_start() {
    apart(async {
        let mut house = House::new();
        let made = house.namespace("a", "n").await.unwrap();
        house.link("a", &at("n"), "v", veth("w")).await.unwrap();
        let records = house.dir.path().join("records");
        for entry in std::fs::read_dir(&records).unwrap().flatten() {
            let text = std::fs::read_to_string(entry.path()).unwrap();
            if text.contains("\"link\"") {
                std::fs::write(entry.path(), text.replace("\"active\"", "\"coming\"")).unwrap();
            }
        }
        house.restart();
        assert_eq!(house.links("a", &at("n")).await, ["lo"]);
        assert_eq!(house.records(), 1);
        // A namespace that is gone takes its record along.
        sys::netns::unpin(&made.path).unwrap();
        house.restart();
        assert!(
            house
                .networks
                .get_namespace(&ns("a"), "n")
                .unwrap_err()
                .is_not_found()
        );
        house.end().await;
    });
}
