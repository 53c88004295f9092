//! Tests of module `engine`.

use std::sync::Mutex;

use types::{Digest, Labels, Mount};

use super::*;

#[test]
fn temporary_mounts_of_a_killed_daemon_are_taken_away() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    let temporary = dir.path().join("tmpmounts");
    let point = temporary.join("m1");
    std::fs::create_dir_all(&source).unwrap();
    std::fs::create_dir_all(&point).unwrap();
    std::fs::write(source.join("kept"), "").unwrap();
    let bind = Mount {
        kind: "bind".into(),
        source: source.display().to_string(),
        options: vec!["rbind".into(), "rw".into()],
        ..Mount::default()
    };
    sys::mount::mount(&bind, &point).unwrap();
    assert!(point.join("kept").exists());
    empty(temporary.clone()).unwrap();
    assert!(source.join("kept").exists());
    assert_eq!(std::fs::read_dir(&temporary).unwrap().count(), 0);
}

/// Knows one media type, and notes in common with others that it was asked.
#[derive(Debug)]
struct Knows {
    name: &'static str,
    media_type: &'static str,
    fault: Option<Code>,
    asked: Arc<Mutex<Vec<&'static str>>>,
}

impl Knows {
    fn answer(&self, media_type: &str) -> Result<Descriptor> {
        self.asked.lock().unwrap().push(self.name);
        if media_type != self.media_type {
            return Err(Error::not_implemented(format_args!("{media_type} here")));
        }
        match self.fault {
            Some(code) => Err(Error::unknown(self.name).reclass(code)),
            None => Ok(layer(self.name)),
        }
    }
}

#[async_trait]
impl Applier for Knows {
    async fn apply(
        &self,
        _: &Arc<dyn ContentStore>,
        layer: &Descriptor,
        _: &[Mount],
        _: ApplyOpts,
    ) -> Result<Descriptor> {
        self.answer(&layer.media_type)
    }
}

#[async_trait]
impl Comparer for Knows {
    async fn compare(
        &self,
        _: &Arc<dyn ContentStore>,
        _: &[Mount],
        _: &[Mount],
        opts: CompareOpts,
    ) -> Result<Descriptor> {
        self.answer(&opts.media_type)
    }
}

fn layer(media_type: &str) -> Descriptor {
    let digest = format!("sha256:{}", "1".repeat(64));
    Descriptor {
        media_type: media_type.into(),
        digest: digest.parse::<Digest>().unwrap(),
        size: 1,
        annotations: Labels::new(),
    }
}

/// What the differs `first` and `second` answer in this order of the configuration, and who was asked.
async fn answers(
    order: [&str; 2],
    fault: Option<Code>,
    media_type: &str,
) -> Vec<(Result<String, Code>, Vec<&'static str>)> {
    let asked = Arc::<Mutex<Vec<_>>>::default();
    let knows = |name, media_type, fault| {
        let asked = Arc::clone(&asked);
        let knows = Knows {
            name,
            media_type,
            fault,
            asked,
        };
        Arc::new(knows) as Arc<dyn Differ>
    };
    let all = [
        ("first", knows("first", "both", fault)),
        ("second", knows("second", "both", None)),
        ("other", knows("other", "another", None)),
    ];
    let ordered = order.iter().filter_map(|id| {
        let found = all.iter().find(|(name, _)| name == id);
        found.map(|(_, differ)| Arc::clone(differ))
    });
    let differs = Differs {
        ordered: ordered.collect(),
        sync: false,
    };
    let dir = tempfile::tempdir().unwrap();
    let local = content::Local::open(dir.path()).unwrap();
    let store = Arc::new(local) as Arc<dyn ContentStore>;
    let opts = CompareOpts {
        media_type: media_type.into(),
        ..CompareOpts::default()
    };
    let what = layer(media_type);
    let applied = differs.apply(&store, &what, &[], ApplyOpts::default());
    let applied = applied.await;
    let by_apply = std::mem::take(&mut *asked.lock().unwrap());
    let compared = differs.compare(&store, &[], &[], opts).await;
    let by_compare = std::mem::take(&mut *asked.lock().unwrap());
    let name = |answer: Result<Descriptor>| match answer {
        Ok(descriptor) => Ok(descriptor.media_type),
        Err(error) => Err(error.code()),
    };
    vec![(name(applied), by_apply), (name(compared), by_compare)]
}

#[tokio::test]
async fn the_first_differ_in_the_configured_order_that_can_do_it_does_it() {
    let done = |name: &str| Ok(name.to_owned());
    for (order, fault, want, asked) in [
        (["first", "second"], None, done("first"), vec!["first"]),
        (["second", "first"], None, done("second"), vec!["second"]),
        (
            ["other", "second"],
            None,
            done("second"),
            vec!["other", "second"],
        ),
        // Only one that cannot do it is passed over: a failure is the answer.
        (
            ["first", "second"],
            Some(Code::InvalidArgument),
            Err(Code::InvalidArgument),
            vec!["first"],
        ),
        (
            ["first", "second"],
            Some(Code::NotImplemented),
            done("second"),
            vec!["first", "second"],
        ),
    ] {
        for answer in answers(order, fault, "both").await {
            assert_eq!(answer, (want.clone(), asked.clone()), "{order:?}");
        }
    }
    for answer in answers(["first", "second"], None, "none").await {
        assert_eq!(answer, (Err(Code::NotImplemented), vec!["first", "second"]));
    }
}

#[test]
fn they_promise_what_each_of_them_does() {
    let ours = || Arc::new(Walking::new("/nowhere".into())) as Arc<dyn Differ>;
    let foreign = || {
        let knows = Knows {
            name: "first",
            media_type: "both",
            fault: None,
            asked: Arc::default(),
        };
        Arc::new(knows) as Arc<dyn Differ>
    };
    for (ordered, want) in [
        (vec![ours()], true),
        (vec![ours(), foreign()], false),
        (vec![foreign(), ours()], false),
    ] {
        let differs = Differs {
            ordered,
            sync: false,
        };
        let promised = [differs.settles(), differs.flushes(), differs.follows()];
        assert_eq!(promised, [want; 3], "{differs:?}");
    }
}
