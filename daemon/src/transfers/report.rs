//! Progress as events on a client's stream.
//!
//! Invariant: a transfer never waits for who reads its progress. What is not yet taken is kept by
//! name: numbers are replaced by newer numbers, and beyond a limit steps by later steps, and what a
//! registry is waited for by newer reasons, so a client that does not read costs no more than the names
//! of an image.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::transfer::{OnProgress, Progress, Status};
use client::stream::Duplex;
use protos::wire::transfer::event_to_any;
use tokio::sync::Notify;
use types::transfer::TransferEvent;
use types::{Descriptor, Result, Scope};

use crate::streams::{Held, Streams};

/// Events that wait before steps are left out.
const MAX_WAITING: usize = 1024;
/// How long the last events may take. Parity: core/transfer/local/progress.go.
const LAST: Duration = Duration::from_secs(10);

/// Who is told of one transfer.
#[derive(Clone, Debug)]
pub(super) struct Report(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    more: Notify,
    /// Taken while the transfer runs; `None`: nobody listens.
    stream: Mutex<Option<(Duplex, Held)>>,
    listens: bool,
}

#[derive(Debug, Default)]
struct State {
    /// In order.
    waiting: BTreeMap<u64, TransferEvent>,
    /// The newest that waits for each name.
    newest: HashMap<String, u64>,
    serial: u64,
    /// The newest delay, if it was not taken yet.
    delay: Option<u64>,
    family: BTreeMap<String, Member>,
    /// What is coming in from an archive: names in it, of blobs that nobody has described yet.
    saving: BTreeSet<String>,
    /// Told as soon as the source is known.
    on_resolved: Option<String>,
    done: bool,
}

#[derive(Debug)]
struct Member {
    parents: Vec<String>,
    descriptor: Descriptor,
}

impl State {
    /// Parents and descriptor of what is told of; `None` of what clients know nothing of.
    fn known(&mut self, progress: &Progress) -> Option<(Vec<String>, Option<Descriptor>)> {
        if let Some(member) = self.family.get(&progress.reference) {
            return Some((member.parents.clone(), Some(member.descriptor.clone())));
        }
        let is_known = match progress.status {
            Status::Saving => {
                self.saving.insert(progress.reference.clone());
                true
            }
            Status::Done => self.saving.remove(&progress.reference),
            _ => false,
        };
        is_known.then(Default::default)
    }

    /// Puts an event behind the others; its place.
    fn add(&mut self, event: TransferEvent) -> u64 {
        let at = self.serial;
        self.serial += 1;
        self.waiting.insert(at, event);
        at
    }
}

impl Report {
    /// Tells on the stream `id`; on none when it is empty.
    ///
    /// # Errors
    /// Those of [`Streams::take`].
    pub(super) fn open(streams: &Streams, scope: &Scope, id: &str) -> Result<Self> {
        let stream = match id {
            "" => None,
            id => Some(streams.take(&scope.namespace, id)?),
        };
        Ok(Self(Arc::new(Shared {
            state: Mutex::default(),
            more: Notify::new(),
            listens: stream.is_some(),
            stream: Mutex::new(stream),
        })))
    }

    /// Tells of the transfer as a whole.
    pub(super) fn say(&self, event: String) {
        self.push(TransferEvent {
            event,
            ..TransferEvent::default()
        });
    }

    /// Will tell this when the source is known.
    pub(super) fn on_resolved(&self, event: String) {
        self.state().on_resolved = Some(event);
    }

    /// Tells of a record.
    pub(super) fn saved(&self, name: &str, target: &Descriptor) {
        self.image("saved", name, target);
    }

    /// Tells of an image.
    pub(super) fn image(&self, event: &str, name: &str, target: &Descriptor) {
        self.push(TransferEvent {
            event: event.to_owned(),
            name: name.to_owned(),
            descriptor: Some(target.clone()),
            ..TransferEvent::default()
        });
    }

    /// What the transfer tells.
    pub(super) fn listener(&self) -> OnProgress {
        if !self.0.listens {
            return OnProgress::default();
        }
        let (told, born, late) = (self.clone(), self.clone(), self.clone());
        OnProgress::new(move |progress| told.blob(progress))
            .with_family(move |parent, child| born.child(parent, child))
            .with_delays(move |text| late.delay(text))
    }

    /// Tells what the transfer as a whole waits for. Only the newest is worth to be read.
    fn delay(&self, text: &str) {
        let mut state = self.state();
        if let Some(last) = state.delay.take() {
            drop(state.waiting.remove(&last));
        }
        let at = state.add(TransferEvent {
            event: text.to_owned(),
            ..TransferEvent::default()
        });
        state.delay = Some(at);
        drop(state);
        self.0.more.notify_one();
    }

    fn child(&self, parent: &str, child: &Descriptor) {
        let mut state = self.state();
        let is_root = !state.family.contains_key(parent);
        let resolved = state.on_resolved.take().filter(|_| is_root);
        let member = state
            .family
            .entry(images::ref_key(child))
            .or_insert_with(|| Member {
                parents: Vec::new(),
                descriptor: child.clone(),
            });
        if member.parents.iter().all(|known| known != parent) {
            member.parents.push(parent.to_owned());
        }
        drop(state);
        if let Some(event) = resolved {
            self.say(event);
            self.image("fetching image content", parent, child);
        }
    }

    fn blob(&self, progress: &Progress) {
        // Parity: core/transfer/local/progress.go: the words that clients draw bars for.
        let event = match progress.status {
            Status::Waiting => "waiting",
            Status::Downloading => "downloading",
            Status::Saving => "saving",
            Status::Uploading => "uploading",
            Status::Exists => "already exists",
            Status::Done => "complete",
            Status::Extracting => "extracting",
            Status::Unpacked => "extracted",
            // Told of the transfer as a whole.
            Status::Resolving | Status::Resolved => return,
        };
        let Some((parents, descriptor)) = self.state().known(progress) else {
            return;
        };
        self.push(TransferEvent {
            event: event.to_owned(),
            name: progress.reference.clone(),
            parents,
            progress: progress.offset,
            total: progress.total,
            descriptor,
        });
    }

    fn push(&self, event: TransferEvent) {
        if !self.0.listens {
            return;
        }
        let mut state = self.state();
        let full = state.waiting.len() >= MAX_WAITING;
        let newest = state.newest.get(&event.name).copied();
        let waiting = newest.and_then(|at| state.waiting.get_mut(&at));
        match waiting {
            Some(waiting) if full || waiting.event == event.event => *waiting = event,
            _ => {
                let name = event.name.clone();
                let at = state.add(event);
                // What is told of the whole is told in full.
                if !name.is_empty() {
                    state.newest.insert(name, at);
                }
            }
        }
        drop(state);
        self.0.more.notify_one();
    }

    /// Runs `work` and sends what it tells meanwhile; the last of it before this answers.
    pub(super) async fn during(&self, work: impl Future<Output = Result<()>>) -> Result<()> {
        let stream = self.0.stream.lock();
        let taken = stream.unwrap_or_else(PoisonError::into_inner).take();
        let Some((duplex, held)) = taken else {
            return work.await;
        };
        let work = async {
            let done = work.await;
            self.state().done = true;
            self.0.more.notify_one();
            done
        };
        let (mut work, mut sending) = (std::pin::pin!(work), std::pin::pin!(self.send(duplex)));
        let done = tokio::select! {
            done = &mut work => done,
            // Nobody reads any more.
            () = &mut sending => return work.await,
        };
        let last = async {
            sending.await;
            held.close().await;
        };
        if tokio::time::timeout(LAST, last).await.is_err() {
            tracing::debug!("the last progress of a transfer was not read");
        }
        done
    }

    async fn send(&self, duplex: Duplex) {
        loop {
            let next = {
                let mut state = self.state();
                match state.waiting.pop_first() {
                    Some((at, event)) => {
                        if state.newest.get(&event.name) == Some(&at) {
                            state.newest.remove(&event.name);
                        }
                        Some(event)
                    }
                    None if state.done => return,
                    None => None,
                }
            };
            let Some(event) = next else {
                self.0.more.notified().await;
                continue;
            };
            let sent = match event_to_any(&event) {
                Ok(any) => duplex.send(any).await,
                Err(error) => Err(error),
            };
            if let Err(error) = sent {
                tracing::debug!(%error, "progress of a transfer is not read any more");
                return;
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::{Labels, media_type as mt};

    fn report() -> Report {
        Report(Arc::new(Shared {
            state: Mutex::default(),
            more: Notify::new(),
            stream: Mutex::default(),
            listens: true,
        }))
    }

    fn layer(n: usize) -> Descriptor {
        Descriptor {
            media_type: mt::OCI_LAYER.into(),
            digest: format!("sha256:{n:064x}").parse().unwrap(),
            size: 10,
            annotations: Labels::new(),
        }
    }

    fn progress(n: usize, status: Status, offset: u64) -> Progress {
        Progress {
            reference: images::ref_key(&layer(n)),
            status,
            offset,
            total: 10,
        }
    }

    #[test]
    fn numbers_are_replaced_and_steps_are_kept() {
        let report = report();
        report.on_resolved("Pulling".into());
        report.child("r.test/a:1", &layer(1));
        report.child(&images::ref_key(&layer(1)), &layer(2));
        report.blob(&progress(2, Status::Waiting, 0));
        for offset in 0..9 {
            report.blob(&progress(2, Status::Downloading, offset));
        }
        report.blob(&progress(2, Status::Done, 10));
        report.blob(&progress(3, Status::Done, 10));
        let state = report.state();
        let told: Vec<_> = state
            .waiting
            .values()
            .map(|e| (e.event.as_str(), e.progress))
            .collect();
        let want = [
            ("Pulling", 0),
            ("fetching image content", 0),
            ("waiting", 0),
            ("downloading", 8),
            ("complete", 10),
        ];
        assert_eq!(told, want);
        let (_, last) = state.waiting.last_key_value().unwrap();
        assert_eq!(last.parents, [images::ref_key(&layer(1))]);
        assert_eq!(last.descriptor, Some(layer(2)));
    }

    #[test]
    fn what_an_archive_holds_is_told_to_its_end() {
        let report = report();
        let named = |status, offset| Progress {
            reference: "blobs/sha256/00".into(),
            status,
            offset,
            total: 10,
        };
        for offset in [0, 5] {
            report.blob(&named(Status::Saving, offset));
        }
        report.blob(&named(Status::Done, 10));
        // Names of images are told when they are saved.
        report.blob(&named(Status::Done, 10));
        report.blob(&progress(2, Status::Extracting, 0));
        report.child(&images::ref_key(&layer(1)), &layer(2));
        for status in [Status::Extracting, Status::Waiting, Status::Unpacked] {
            report.blob(&progress(2, status, 10));
        }
        let state = report.state();
        let told: Vec<_> = state.waiting.values().map(|e| e.event.as_str()).collect();
        let want = ["saving", "complete", "extracting", "waiting", "extracted"];
        assert_eq!(told, want);
        assert!(state.saving.is_empty());
    }

    #[test]
    fn of_delays_that_nobody_reads_the_newest_is_kept() {
        let report = report();
        report.say("Pulling".into());
        for n in 0..5 {
            report.delay(&format!("try {n}"));
            report.child("r", &layer(n));
            report.blob(&progress(n, Status::Waiting, 0));
        }
        let state = report.state();
        let told: Vec<_> = state.waiting.values().map(|e| e.event.as_str()).collect();
        let delays = told.iter().filter(|event| event.starts_with("try"));
        assert_eq!(delays.collect::<Vec<_>>(), [&"try 4"]);
        assert_eq!((told.len(), told[0]), (7, "Pulling"));
    }

    #[test]
    fn who_does_not_read_costs_a_line_per_name() {
        let report = report();
        let names = MAX_WAITING + 10;
        for n in 0..names {
            report.child("r", &layer(n));
        }
        for status in [Status::Waiting, Status::Downloading, Status::Done] {
            for n in 0..names {
                report.blob(&progress(n, status, 0));
            }
        }
        assert_eq!(report.state().waiting.len(), names);
        let all_done = report
            .state()
            .waiting
            .values()
            .all(|e| e.event == "complete");
        assert!(all_done);
    }
}
