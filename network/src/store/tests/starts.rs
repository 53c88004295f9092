//! What the next start believes of records, and what goes with a name.

use super::*;
use crate::link::Inside;

/// A network namespace that nobody here has made.
struct Foreign(tempfile::TempDir);

impl Foreign {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        sys::netns::create(&dir.path().join("n"), || Ok(())).unwrap();
        Self(dir)
    }

    fn adopt(&self) -> NamespaceOpts {
        NamespaceOpts {
            adopt: self.0.path().join("n"),
            ..NamespaceOpts::default()
        }
    }

    fn names(&self) -> Vec<String> {
        let mut inside = Inside::open(&self.0.path().join("n")).unwrap();
        let all = inside.list().unwrap();
        all.iter().map(|seen| seen.link.name.to_string()).collect()
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        sys::netns::unpin(&self.0.path().join("n")).unwrap();
    }
}

impl House {
    /// Changes what is written of the thing `name`.
    fn rewrite(&self, name: &str, change: impl Fn(&mut serde_json::Value)) {
        let path = self.written(name);
        let mut record = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut record);
        std::fs::write(&path, record.to_string()).unwrap();
    }

    fn written(&self, name: &str) -> std::path::PathBuf {
        let records = std::fs::read_dir(self.dir.path().join("records")).unwrap();
        let mut paths = records.map(|entry| entry.unwrap().path());
        let is_it = |path: &std::path::PathBuf| {
            let read: serde_json::Value =
                serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
            read["name"] == name
        };
        paths.find(is_it).unwrap()
    }

    async fn adopt(&self, tenant: &str, name: &str, opts: NamespaceOpts) -> Result<()> {
        let made = self
            .networks
            .create_namespace(&scope(tenant), name, opts)
            .await;
        made.map(drop)
    }

    async fn delete(&self, tenant: &str, place: &Place, name: &str) -> Result<()> {
        self.networks
            .delete_link(&ns(tenant), place, &named(name))
            .await
    }
}

#[test]
fn a_namespace_of_the_host_or_of_another_tenant_is_not_adopted() {
    apart(async {
        let house = House::new();
        let theirs = house.namespace("a", "n").await.unwrap().path;
        // Under whatever path.
        let foreign = Foreign::new();
        house.adopt("a", "m", foreign.adopt()).await.unwrap();
        let before = house.records();
        let own = "/proc/thread-self/ns/net".into();
        for path in [own, theirs, foreign.adopt().adopt] {
            let opts = NamespaceOpts {
                adopt: path,
                ..NamespaceOpts::default()
            };
            let error = house.adopt("b", "x", opts.clone()).await.unwrap_err();
            let path = opts.adopt.display().to_string();
            assert!(
                error.is(Code::FailedPrecondition) && error.to_string().contains(&path),
                "{error}"
            );
            let none = house.networks.get_namespace(&ns("b"), "x").unwrap_err();
            assert!(none.is_not_found(), "{none}");
            assert_eq!(house.records(), before);
        }
        house.end().await;
    });
}

#[test]
fn with_the_name_of_an_adopted_namespace_go_the_interfaces_made_under_it() {
    apart(async {
        let mut house = House::new();
        let foreign = Foreign::new();
        let near = || {
            LinkKind::Veth(Some(Other {
                name: named("near"),
                place: Some(Place::Host),
            }))
        };
        // Deleted, and by a start after a crash within the deletion.
        for is_cut_short in [false, true] {
            house.adopt("a", "m", foreign.adopt()).await.unwrap();
            house.link("a", &at("m"), "eth0", near()).await.unwrap();
            if is_cut_short {
                house.rewrite("m", |record| record["phase"] = "going".into());
                house.restart();
            } else {
                house
                    .networks
                    .delete_namespace(&ns("a"), "m")
                    .await
                    .unwrap();
            }
            assert_eq!(foreign.names(), ["lo"]);
            assert_eq!(house.links("a", &Place::Host).await, ["lo"]);
            assert_eq!(house.records(), 0);
        }
        house.end().await;
    });
}

#[test]
fn the_record_of_an_end_that_is_still_there_stays() {
    apart(async {
        let mut house = House::new();
        let foreign = Foreign::new();
        house.adopt("a", "m", foreign.adopt()).await.unwrap();
        let near = LinkKind::Veth(Some(Other {
            name: named("near"),
            place: Some(Place::Host),
        }));
        house.link("a", &at("m"), "eth0", near).await.unwrap();
        // The name is lost, the namespace is not.
        sys::netns::unpin(&house.dir.path().join("netns/a/m")).unwrap();
        let repaired = house.networks.check(true).await.unwrap();
        assert_eq!(repaired.len(), 1, "{repaired:?}");
        house.restart();
        assert_eq!(house.networks.check(true).await.unwrap(), []);
        house.delete("a", &Place::Host, "near").await.unwrap();
        assert_eq!(foreign.names(), ["lo"]);
        house.end().await;
    });
}

#[test]
fn what_cannot_be_looked_at_is_not_forgotten() {
    apart(async {
        let mut house = House::new();
        let made = house.namespace("a", "n").await.unwrap();
        house.link("a", &at("n"), "v", veth("w")).await.unwrap();
        // A way to the file that cannot be gone, as for a process without descriptors.
        let (netns, aside) = (
            house.dir.path().join("netns/a"),
            house.dir.path().join("aside"),
        );
        std::fs::rename(&netns, &aside).unwrap();
        std::os::unix::fs::symlink("a", &netns).unwrap();
        house.restart();
        assert_eq!(house.records(), 3);
        std::fs::remove_file(&netns).unwrap();
        std::fs::rename(&aside, &netns).unwrap();
        // Also by those who have only what that start has taken up.
        assert_eq!(house.networks.get_namespace(&ns("a"), "n").unwrap(), made);
        assert_eq!(house.networks.check(true).await.unwrap(), []);
        house.delete("a", &at("n"), "v").await.unwrap();
        house.end().await;
    });
}

#[test]
fn a_record_that_cannot_be_read_is_no_start() {
    apart(async {
        let house = House::new();
        std::fs::create_dir(house.dir.path().join("records/7")).unwrap();
        let opts = || OpenOpts {
            identity: IDENTITY.to_owned(),
            directory: house.dir.path().to_owned(),
            publisher: Arc::new(|_, _| {}),
            hidden: Vec::new(),
        };
        Networks::open(opts()).unwrap_err();
        Networks::examine(opts()).unwrap_err();
        std::fs::remove_dir(house.dir.path().join("records/7")).unwrap();
        house.end().await;
    });
}

#[test]
fn an_interface_that_has_another_record_is_not_taken_for_one_that_was_not_finished() {
    apart(async {
        let mut house = House::new();
        let host = Place::Host;
        house
            .link("b", &host, "br0", LinkKind::Bridge)
            .await
            .unwrap();
        house.link("a", &host, "d", LinkKind::Bridge).await.unwrap();
        // A name that is taken is refused before there is a record with it.
        let error = house.link("a", &host, "v", veth("br0")).await.unwrap_err();
        assert!(error.is_already_exists(), "{error}");
        assert_eq!(house.records(), 2);
        // As a creation of that name leaves it that was killed before it could be refused.
        house.rewrite("d", |record| {
            (record["name"], record["phase"]) = ("br0".into(), "coming".into());
        });
        house.restart();
        assert_eq!(house.links("b", &host).await, ["br0", "lo"]);
        assert_eq!(house.records(), 1);
        // It was to go, and is another one by now.
        house.rewrite("br0", |record| {
            (record["phase"], record["index"]) = ("going".into(), 4000.into());
        });
        house.restart();
        assert_eq!(house.records(), 0);
        let mut inside = Inside::host().unwrap();
        assert!(inside.find(&named("br0")).unwrap().is_some());
        for name in ["br0", "d"] {
            inside.delete(&named(name)).unwrap();
        }
        house.end().await;
    });
}

#[test]
fn a_move_that_was_not_finished_is_taken_up_where_the_interface_is() {
    apart(async {
        let mut house = House::new();
        let host = Place::Host;
        house.namespace("a", "n").await.unwrap();
        house.link("a", &host, "d", LinkKind::Bridge).await.unwrap();
        let to = |place: Place, name: &str| LinkMove {
            place,
            name: named(name),
        };
        // What cannot be leaves the record as it was.
        house
            .link("a", &at("n"), "e", LinkKind::Bridge)
            .await
            .unwrap();
        let written = house.written("d");
        let before = std::fs::read(&written).unwrap();
        for (place, name, code) in [
            (at("gone"), "d", Code::NotFound),
            (at("n"), "e", Code::AlreadyExists),
            (host.clone(), "lo", Code::AlreadyExists),
        ] {
            let error = house
                .networks
                .move_link(&ns("a"), &host, &named("d"), to(place, name))
                .await
                .unwrap_err();
            assert!(error.is(code), "{error}");
            assert_eq!(std::fs::read(&written).unwrap(), before);
        }
        // Killed before it moved: to a place that is gone by now, and to one where another has the name.
        for (place, name) in [("gone", "d"), ("n", "e")] {
            house.rewrite("d", |record| {
                record["moved_from"] = serde_json::json!(["", "d"]);
                record["moved_mac"] = "02:00:00:00:00:01".into();
                (record["place"], record["name"]) = (place.into(), name.into());
            });
            house.restart();
            for (at, name) in [(&host, "d"), (&at("n"), "e")] {
                let found = house.networks.get_link(&ns("a"), at, &named(name)).await;
                assert!(found.unwrap().created_at.is_some(), "{place}");
            }
            assert_eq!(house.records(), 3);
        }
        house.delete("a", &host, "d").await.unwrap();
        house.end().await;
    });
}

#[test]
fn a_namespace_whose_deletion_fails_is_still_there() {
    apart(async {
        let mut house = House::new();
        let made = house.namespace("a", "n").await.unwrap();
        // It cannot be written that it goes.
        let written = house.written("n");
        let text = std::fs::read(&written).unwrap();
        std::fs::remove_file(&written).unwrap();
        std::fs::create_dir(&written).unwrap();
        house
            .networks
            .delete_namespace(&ns("a"), "n")
            .await
            .unwrap_err();
        assert_eq!(house.networks.get_namespace(&ns("a"), "n").unwrap(), made);
        std::fs::remove_dir(&written).unwrap();
        std::fs::write(&written, text).unwrap();
        house.restart();
        assert_eq!(house.networks.get_namespace(&ns("a"), "n").unwrap(), made);
        // What was there is gone meanwhile: the file alone is no namespace, and no reason to stay.
        sys::netns::unpin(&made.path).unwrap();
        std::fs::write(&made.path, "").unwrap();
        house
            .networks
            .delete_namespace(&ns("a"), "n")
            .await
            .unwrap();
        assert!(!made.path.exists());
        house.end().await;
    });
}

#[test]
fn half_a_record_of_a_daemon_that_was_killed_goes_with_the_next_start() {
    apart(async {
        let mut house = House::new();
        house.namespace("a", "n").await.unwrap();
        let records = house.dir.path().join("records");
        std::fs::write(records.join(".2.483.9"), "{\"tenant\":").unwrap();
        // What nobody here has made keeps nobody from starting.
        std::fs::create_dir(records.join(".snapshots")).unwrap();
        house.restart();
        let left = std::fs::read_dir(&records).unwrap();
        let mut left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".snapshots", "1"]);
        std::fs::remove_dir(records.join(".snapshots")).unwrap();
        let gone = house.networks.delete_namespace(&ns("a"), "n").await;
        gone.unwrap();
    });
}
