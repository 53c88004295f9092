//! The native driver: a wire from the container to a bridge of the host, masquerade, mapped ports.
//!
//! Invariant: what is there is in the kernel, and says whose it is: interfaces by their mark and alias,
//! filters by their comments. A record says what was asked for, from before the first of it is made until
//! after the last is gone. So nothing is forgotten when this process dies, what it left half made is told
//! from what is whole, and what somebody else has taken away is made again, or named. One piece of work for an
//! attachment at a time; a bridge goes while nobody is about to be attached to it; and whoever looks at
//! everything has the driver alone.
//!
//! ```text
//! container eth0 ---- ctd<hash> -- bridge (gateway's addresses) -- host: routes, masquerade, ports (nft)
//! ```
//! A bridge that is not there is made, and goes with the last one that is attached. One that somebody
//! else has made is used as it is.

mod check;
mod host;
mod inspect;
mod make;
mod part;
mod plan;
mod record;
mod sweep;
mod tag;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use sys::netlink::Socket;
use tokio::sync::{RwLock as Gate, Semaphore};
use types::network::{Joined, LinkName, NetRequest, NetResult, TenantId};
use types::{Code, Context as _, Error, Errors, Finding, Namespace, Result};

use crate::grave::{End, Grave};
use crate::link::Inside;
use crate::nft::Nat;
use crate::turns::Turns;
use crate::{NetworkDriver, Networks};
use plan::Plan;
use record::Records;
use tag::{Marked, Tag};

/// Its name.
const NAME: &str = "bridge";
/// Calls that work at a time, each on a thread: those of the runtime are few, and others' too. The kernel makes
/// most changes one after the other anyway.
const THREADS: usize = 4;
/// How long a call waits until it can work.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a set-up has the others' packet filters made whole again, when they do not stop changing.
const MOST_RECALLS: usize = 2;
/// How often it tries so with the driver for itself.
const MOST_TRIES: usize = 16;

/// Who the driver works for.
#[derive(Clone, Debug)]
pub struct BridgeOpts {
    /// A directory that no other daemon has: tells what is ours from what is another's. Nothing is
    /// written there.
    pub directory: PathBuf,
    /// Directory of records. They need not outlive the machine's run: what they are about does not either.
    pub records: PathBuf,
    /// Where tenants make bridges, too: one of a tenant is for its own containers alone.
    pub networks: Option<Networks>,
}

/// Mark of the interfaces of a driver with this directory.
#[must_use]
pub fn mark(directory: &Path) -> u32 {
    let hash = tag::hash(directory.as_os_str().as_encoded_bytes());
    // Half of it, in a range of its own: others mark interfaces, too.
    0x2000_0000 | u32::try_from(hash >> 35).unwrap_or_default()
}

/// The driver, in the network namespace of whoever calls it.
#[derive(Clone, Debug)]
pub struct Bridge {
    core: Arc<Core>,
    calls: Arc<Calls>,
}

/// Who works.
#[derive(Debug)]
struct Calls {
    /// Alone for who looks at everything.
    gate: Arc<Gate<()>>,
    /// By the interface outside.
    turns: Turns<LinkName>,
    threads: Arc<Semaphore>,
}

#[derive(Debug)]
struct Core {
    /// Mark of interfaces that are ours.
    group: u32,
    nat: Nat,
    records: Records,
    networks: Option<Networks>,
    grave: Grave,
    /// What an earlier process has left is gone.
    has_begun: AtomicBool,
    /// What was told last about what is in the way of packets.
    told: Mutex<Vec<String>>,
    /// Shared while something is attached to a bridge, alone while bridges are taken away.
    bridges: RwLock<()>,
    /// Held while a bridge is made or gets other networks.
    making: Mutex<()>,
}

impl Bridge {
    /// A driver; nothing is made yet.
    #[must_use]
    pub fn new(opts: &BridgeOpts) -> Self {
        let group = mark(&opts.directory);
        let grave = opts.networks.as_ref().map(Networks::grave);
        Self {
            core: Arc::new(Core {
                group,
                nat: Nat::new(format!("containerd-{group:x}")),
                records: Records::new(opts.records.clone()),
                networks: opts.networks.clone(),
                grave: grave.unwrap_or_else(|| Grave::new(group)),
                has_begun: AtomicBool::new(false),
                told: Mutex::default(),
                bridges: RwLock::default(),
                making: Mutex::default(),
            }),
            calls: Arc::new(Calls {
                gate: Arc::default(),
                turns: Turns::default(),
                threads: Arc::new(Semaphore::new(THREADS)),
            }),
        }
    }

    /// Takes away what nobody wants: what was never finished, what has lost its network namespace, and what
    /// is of containers that are not `wanted`. Makes again what somebody else has taken from the others:
    /// packet filters, and the bridge's addresses. To be called at start and now and then; others come between
    /// any two attachments.
    ///
    /// # Errors
    /// All that failed; the next call goes on where this one could not.
    pub async fn reconcile(
        &self,
        wanted: impl Fn(&TenantId) -> bool + Send + Sync + 'static,
    ) -> Result<()> {
        let wanted = Arc::new(wanted);
        let mut errors = Errors::default();
        let all = self.alone(Core::all_outer).await?;
        for (outer, owners) in all {
            let (one, wanted) = (outer.clone(), Arc::clone(&wanted));
            let work = move |core: &Core| core.reconcile(&one, &owners, &*wanted);
            errors.note(self.for_one(&outer, work).await);
        }
        let swept = self.beside(|core| sweep::all_of(core.sweep()));
        errors.note(swept.await);
        errors.into_result()
    }

    /// Runs work for one attachment.
    async fn for_one<T: Send + 'static>(
        &self,
        outer: &LinkName,
        work: impl FnOnce(&Core) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let gate = in_time(Arc::clone(&self.calls.gate).read_owned()).await?;
        let turn = in_time(self.calls.turns.take(outer)).await?;
        self.blocking((gate, turn), work).await
    }

    /// Runs work beside that for attachments.
    async fn beside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Core) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let gate = in_time(Arc::clone(&self.calls.gate).read_owned()).await?;
        self.blocking(gate, work).await
    }

    /// Runs work while there is no other.
    async fn alone<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Core) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let gate = in_time(Arc::clone(&self.calls.gate).write_owned()).await?;
        self.blocking(gate, work).await
    }

    /// `held` is held until the work is done, also when nobody waits for it any more.
    async fn blocking<T: Send + 'static>(
        &self,
        held: impl Send + 'static,
        work: impl FnOnce(&Core) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let core = Arc::clone(&self.core);
        let thread = in_time(Arc::clone(&self.calls.threads).acquire_owned()).await?;
        let thread = thread.map_err(|e| Error::internal("bridge driver").with_source(e))?;
        let done = tokio::task::spawn_blocking(move || {
            let _held = (held, thread);
            work(&core)
        })
        .await;
        done.map_err(|e| Error::internal("bridge driver").with_source(e))?
    }
}

/// Waits, but not for ever.
async fn in_time<T>(waited: impl Future<Output = T> + Send) -> Result<T> {
    let waited = tokio::time::timeout(PATIENCE, waited).await;
    waited.map_err(|_| {
        Error::deadline_exceeded(format_args!(
            "bridge driver: others have worked for {} s",
            PATIENCE.as_secs()
        ))
    })
}

#[async_trait]
impl NetworkDriver for Bridge {
    async fn check(&self, request: &NetRequest) -> Result<()> {
        let (outer, request) = (Tag::of(request).outer()?, request.clone());
        self.for_one(&outer, move |core| {
            core.check(&Plan::of(&request)?, &request.netns)
        })
        .await
    }

    async fn setup(&self, request: &NetRequest) -> Result<NetResult> {
        let outer = Tag::of(request).outer()?;
        for _ in 0..MOST_RECALLS {
            let request = request.clone();
            let done = self.for_one(&outer, move |core| core.setup_compared(&request));
            if let Some(made) = done.await? {
                return Ok(made);
            }
            // Somebody else has changed packet filters, or it is the first time.
            self.alone(Core::recall).await?;
        }
        // They do not stop. Nobody is between the one and the other any more, but for them.
        let request = request.clone();
        self.alone(move |core| core.recall_and_setup(&request))
            .await
    }

    async fn teardown(&self, request: &NetRequest) -> Result<(), Errors> {
        let (tag, networks) = (Tag::of(request), request.networks.clone());
        let mut errors = Errors::default();
        let done = match tag.outer() {
            Ok(outer) => {
                let work = move |core: &Core| Ok(core.teardown(&tag, &networks));
                self.for_one(&outer, work).await
            }
            Err(error) => Err(error),
        };
        let failed = done.unwrap_or_else(|error| vec![error]);
        if failed.is_empty() {
            return Ok(());
        }
        for error in failed {
            errors.note::<()>(Err(error));
        }
        Err(errors)
    }

    async fn status(&self) -> Result<Vec<String>> {
        let asked = self.beside(|core| {
            let taken = core.nat.addresses()?.into_iter();
            core.obstacles(&taken.map(|(address, _)| address).collect::<Vec<_>>())
        });
        { asked }
            .await
            .map_err(|e| e.ctx("packet filters").reclass(Code::Unavailable))
    }

    async fn list(&self, tenant: Option<&Namespace>, look: bool) -> Result<Vec<Joined>> {
        let tenant = tenant.cloned();
        self.beside(move |core| core.list(tenant.as_ref(), look))
            .await
    }

    async fn inspect(&self, lost: &BTreeSet<TenantId>, repair: bool) -> Result<Vec<Finding>> {
        let lost = lost.clone();
        // What is made just now would pass for what was not finished.
        self.alone(move |core| core.inspect(&lost, repair)).await
    }
}

impl Core {
    /// Joins a container, by packet filters that were compared with the records; `None` when they were not, or others
    /// have changed some meanwhile.
    fn setup_compared(&self, request: &NetRequest) -> Result<Option<NetResult>> {
        let plan = Plan::of(request)?;
        let Some(era) = self.nat.compared()? else {
            return Ok(None);
        };
        match self.setup(&plan, request, era) {
            Err(error) if error.is(Code::Aborted) => Ok(None),
            done => {
                let done = done.map(Some);
                done.ctx_with(|| format!("network {} of {}", plan.bridge, request.id))
            }
        }
    }

    fn recall_and_setup(&self, request: &NetRequest) -> Result<NetResult> {
        for _ in 0..MOST_TRIES {
            self.recall()?;
            if let Some(made) = self.setup_compared(request)? {
                return Ok(made);
            }
        }
        Err(Error::unavailable(
            "bridge driver: packet filters do not stop changing",
        ))
    }

    /// The interfaces that are ours.
    fn marked(&self) -> Result<Vec<Marked>> {
        let mut all = tag::list()?;
        all.retain(|one| one.group == self.group);
        Ok(all)
    }

    /// The interface of that name, if it is there and not buried.
    fn find(&self, host: &mut Socket, outer: &LinkName) -> Result<Option<Marked>> {
        let found = tag::find(host, outer)?;
        self.checked(found.filter(|one| one.group != self.grave.mark()))
    }

    /// The same; one that is buried gives its name to who comes.
    fn find_or_free(&self, host: &mut Inside, outer: &LinkName) -> Result<Option<Marked>> {
        let found = tag::find(host.socket(), outer)?;
        match found {
            Some(buried) if buried.group == self.grave.mark() => {
                let end = End {
                    index: buried.index,
                    name: outer.as_str(),
                };
                self.grave.free(host, end)?;
                Ok(None)
            }
            found => self.checked(found),
        }
    }

    fn checked(&self, found: Option<Marked>) -> Result<Option<Marked>> {
        match found {
            Some(other) if other.group != self.group => Err(Error::already_exists(format_args!(
                "interface {}, which is not ours",
                other.name
            ))),
            found => Ok(found),
        }
    }
}

#[cfg(test)]
mod tests;
