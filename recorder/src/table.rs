//! All flights: those in the air and, for a while, those that have landed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::entry::{Entry, Told};

/// Flights in the air that are told of. More go unseen, and are counted.
pub const MAX_IN_FLIGHT: usize = 16 << 10;
/// Finished ones that are kept.
pub const RECENT: usize = 512;
/// Finished ones that took long or failed, kept beside the others: a burst does not push them out.
pub const SLOW: usize = 128;
/// From here on a call is worth telling of, whatever it was.
const NOTABLE: Duration = Duration::from_millis(100);
/// From here on it took long.
const LONG: Duration = Duration::from_secs(1);
/// Calls that are made to wait: how long they take is somebody else's affair.
const STANDING: [&str; 3] = ["/Wait", "/Subscribe", "/Watch"];

#[derive(Debug, Default)]
struct Table {
    /// By address: an entry is in the air as long as it has one.
    air: BTreeMap<usize, Arc<Entry>>,
    recent: VecDeque<Arc<Entry>>,
    slow: VecDeque<Arc<Entry>>,
}

static TABLE: Mutex<Table> = Mutex::new(Table {
    air: BTreeMap::new(),
    recent: VecDeque::new(),
    slow: VecDeque::new(),
});
static UNSEEN: AtomicU64 = AtomicU64::new(0);
static LISTENER: OnceLock<Listener> = OnceLock::new();

type Listener = Box<dyn Fn(&Told) + Send + Sync>;

fn table() -> MutexGuard<'static, Table> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn key(entry: &Arc<Entry>) -> usize {
    Arc::as_ptr(entry).addr()
}

fn is_standing(name: &str) -> bool {
    STANDING.iter().any(|end| name.ends_with(end))
}

pub(crate) fn take_off(entry: &Arc<Entry>) {
    let mut table = table();
    if table.air.len() >= MAX_IN_FLIGHT {
        UNSEEN.fetch_add(1, Ordering::Relaxed);
        return;
    }
    table.air.insert(key(entry), Arc::clone(entry));
}

pub(crate) fn land(entry: &Arc<Entry>, error: Option<String>) {
    let landed = entry.end(error);
    let worth = landed.named || landed.took >= NOTABLE;
    let worth = worth && !is_standing(entry.name);
    {
        let mut table = table();
        table.air.remove(&key(entry));
        if worth {
            keep(&mut table.recent, RECENT, entry);
            if landed.failed || landed.took >= LONG {
                keep(&mut table.slow, SLOW, entry);
            }
        }
    }
    if worth && let Some(listener) = LISTENER.get() {
        listener(&entry.told());
    }
}

fn keep(ring: &mut VecDeque<Arc<Entry>>, most: usize, entry: &Arc<Entry>) {
    if ring.len() >= most {
        ring.pop_front();
    }
    ring.push_back(Arc::clone(entry));
}

/// Tells `listener` of every flight that is kept when it ends, from now on. It must not block. The
/// first listener stays.
pub fn on_finish(listener: impl Fn(&Told) + Send + Sync + 'static) {
    drop(LISTENER.set(Box::new(listener)));
}

/// The flights in the air for which `wanted` holds, the oldest first. `standing`: also those whose
/// business is to wait.
#[must_use]
pub fn in_flight(standing: bool, wanted: impl Fn(&Told) -> bool) -> Vec<Told> {
    let all: Vec<_> = table().air.values().cloned().collect();
    let all = all.iter().filter(|e| standing || !is_standing(e.name));
    in_order(all.map(|entry| entry.told()).filter(wanted).collect())
}

/// The finished flights that are kept and for which `wanted` holds, the oldest first.
#[must_use]
pub fn finished(wanted: impl Fn(&Told) -> bool) -> Vec<Told> {
    let all: Vec<_> = {
        let table = table();
        let recent: BTreeMap<_, _> = table.recent.iter().map(|e| (key(e), e)).collect();
        let slow = table.slow.iter();
        let older = slow.filter(|e| !recent.contains_key(&key(e)));
        older.chain(table.recent.iter()).cloned().collect()
    };
    in_order(all.iter().map(|e| e.told()).filter(wanted).collect())
}

fn in_order(mut all: Vec<Told>) -> Vec<Told> {
    all.sort_by_key(|told| told.at);
    all
}

/// How much there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Flights in the air that wait for something.
    pub in_flight: usize,
    /// Flights that were not told of, since there were too many.
    pub unseen: u64,
}

/// Counts.
#[must_use]
pub fn counts() -> Counts {
    Counts {
        in_flight: table().air.len(),
        unseen: UNSEEN.load(Ordering::Relaxed),
    }
}
