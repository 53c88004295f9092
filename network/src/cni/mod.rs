//! CNI: networks whose work programs do, one for each step.
//!
//! Invariant: what a program may have made is written down before it runs (`record`), and `DEL` is
//! repeated until it has worked, through deaths of the program and of this process. Every call of a
//! program has a deadline. Called by the daemon through [`NetworkDriver`], and at its start through
//! [`Cni::reconcile`].
//!
//! ```text
//! Cni -> core -> wish (requests) -> conf (files)
//!             -> chain (ADD, DEL, CHECK) -> plugin (one call), answer (results), record (disk)
//! ```

mod answer;
mod chain;
mod conf;
mod core;
mod inspect;
mod place;
mod plugin;
mod record;
mod version;
mod wish;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Notify, RwLock, Semaphore};
use tokio::task::JoinSet;
use types::network::{JoinState, Joined, NetRequest, NetResult, TenantId};
use types::{Code, Error, Errors, Finding, Namespace, Result};

pub use answer::Answer;
pub use conf::{Network, Plugin, find, first, from_json, load, parse};
pub use version::Version;

use crate::NetworkDriver;
use crate::turns::Turns;
use core::Core;
use plugin::Plugins;
use record::Records;
use wish::Meant;

/// Its name.
const NAME: &str = "cni";
/// Calls at a time, each of which has a thread that waits for programs: the runtime's are few, and
/// everything else of the process needs some.
const SLOTS: usize = 16;
/// Containers that are swept at a time: others find a slot meanwhile.
const SWEPT: usize = SLOTS / 2;

/// Where everything is.
#[derive(Clone, Debug)]
pub struct CniOpts {
    /// Configurations of networks.
    pub networks: PathBuf,
    /// Programs, first place first.
    pub plugins: Vec<PathBuf>,
    /// Records of attachments. They must survive what plugins write about addresses, a reboot included.
    pub records: PathBuf,
    /// Time of each call of a plugin.
    pub patience: Duration,
}

/// The driver.
#[derive(Clone, Debug)]
pub struct Cni {
    core: Arc<Core>,
    turns: Arc<Turns<TenantId>>,
    slots: Arc<Semaphore>,
    /// Something was left undone.
    left: Arc<Notify>,
    /// `GC` is alone, as the specification demands: everything else shares this.
    gate: Arc<RwLock<()>>,
}

/// An attachment that could not be taken away yet.
#[derive(Debug)]
pub struct Left {
    /// Whose.
    pub id: TenantId,
    /// Why.
    pub error: Error,
}

impl Cni {
    /// A driver; nothing is read yet.
    #[must_use]
    pub fn new(opts: CniOpts) -> Self {
        Self {
            core: Arc::new(Core {
                networks: opts.networks,
                plugins: Plugins {
                    directories: opts.plugins,
                    patience: opts.patience,
                },
                records: Records::new(opts.records),
            }),
            turns: Arc::default(),
            slots: Arc::new(Semaphore::new(SLOTS)),
            left: Arc::default(),
            gate: Arc::default(),
        }
    }

    /// Takes away what nobody wants: attachments that were never finished or not quite taken away, those
    /// whose network namespace is gone, and those of containers that are not `wanted`. To be called at start
    /// and again while something is left.
    ///
    /// # Errors
    /// The errno of reading the records.
    pub async fn reconcile(
        &self,
        wanted: impl Fn(&TenantId) -> bool + Send + Sync,
    ) -> Result<Vec<Left>> {
        let core = Arc::clone(&self.core);
        let ids = self.blocking(move || core.records.list()).await?;
        let (mut left, mut sweeps) = (Vec::new(), JoinSet::new());
        let mut note = |swept: std::result::Result<Option<Left>, _>| match swept {
            Ok(one) => left.extend(one),
            Err(error) => tracing::error!(%error, "a sweep of CNI networks has broken off"),
        };
        for id in ids {
            if sweeps.len() >= SWEPT
                && let Some(swept) = sweeps.join_next().await
            {
                note(swept);
            }
            let (keep, cni) = (wanted(&id), self.clone());
            sweeps.spawn(async move {
                let whose = id.clone();
                let swept = cni
                    .exclusively(&id, move |core| core.sweep(&whose, keep))
                    .await;
                swept.err().map(|error| Left { id, error })
            });
        }
        while let Some(swept) = sweeps.join_next().await {
            note(swept);
        }
        Ok(left)
    }

    /// Waits until something was left undone since the last time, that [`Cni::reconcile`] is to try again.
    pub async fn leaves(&self) {
        self.left.notified().await;
    }

    /// Runs `work` when nothing else is done for the container. Not stopped by a caller who goes away.
    async fn exclusively<T: Send + 'static>(
        &self,
        id: &TenantId,
        work: impl FnOnce(&Core) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let shared = Arc::clone(&self.gate).read_owned().await;
        let turn = self.turns.take(id).await;
        let core = Arc::clone(&self.core);
        self.blocking(move || {
            let _held = (shared, turn);
            work(&core)
        })
        .await
    }

    /// Runs `work` on a thread for such, when one of ours is free.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let slot = Arc::clone(&self.slots).acquire_owned().await;
        let slot = slot.map_err(|e| Error::internal("slots of CNI").with_source(e))?;
        let done = tokio::task::spawn_blocking(move || {
            let _slot = slot;
            work()
        })
        .await;
        done.map_err(|e| Error::internal("CNI").with_source(e))?
    }
}

#[async_trait]
impl NetworkDriver for Cni {
    async fn check(&self, request: &NetRequest) -> Result<()> {
        let (id, meant) = (request.id.clone(), Meant::by(request)?);
        self.exclusively(&request.id, move |core| core.check(&id, &meant))
            .await
    }

    async fn setup(&self, request: &NetRequest) -> Result<NetResult> {
        let wish = request.clone();
        let left = Arc::clone(&self.left);
        // Told from within: the caller may be gone by then.
        let work = move |core: &Core| core.setup(&wish).inspect_err(|_| left.notify_one());
        self.exclusively(&request.id, work).await
    }

    async fn teardown(&self, request: &NetRequest) -> Result<(), Errors> {
        let mut errors = Errors::default();
        let (id, left) = (request.id.clone(), Arc::clone(&self.left));
        let meant = match Meant::by(request) {
            Ok(meant) => meant,
            Err(error) => {
                errors.note::<()>(Err(error));
                return Err(errors);
            }
        };
        let work = move |core: &Core| {
            let done = core.teardown(&id, &meant);
            if !done.as_ref().is_ok_and(Vec::is_empty) {
                left.notify_one();
            }
            done
        };
        let failed = match self.exclusively(&request.id, work).await {
            Ok(failed) => failed,
            Err(error) => vec![error],
        };
        if failed.is_empty() {
            return Ok(());
        }
        for error in failed {
            errors.note::<()>(Err(error));
        }
        Err(errors)
    }

    async fn status(&self) -> Result<Vec<String>> {
        let core = Arc::clone(&self.core);
        let status = self.blocking(move || core.status()).await;
        status.map_err(|e| e.reclass(Code::Unavailable))?;
        Ok(Vec::new())
    }

    async fn list(&self, tenant: Option<&Namespace>, look: bool) -> Result<Vec<Joined>> {
        let (core, tenant) = (Arc::clone(&self.core), tenant.cloned());
        let mut all = self.blocking(move || core.list(tenant.as_ref())).await?;
        let seen = all
            .iter_mut()
            .filter(|one| look && one.state != JoinState::Damaged);
        for one in seen {
            let wanted = one.clone();
            let looked = self
                .exclusively(&one.id, move |core| core.look(&wanted))
                .await;
            one.fault = looked.unwrap_or_else(|error| error.to_string());
        }
        Ok(all)
    }

    async fn inspect(&self, lost: &BTreeSet<TenantId>, repair: bool) -> Result<Vec<Finding>> {
        let core = Arc::clone(&self.core);
        let mut all = Vec::new();
        for id in self.blocking(move || core.records.list()).await? {
            let (is_lost, whose) = (lost.contains(&id), id.clone());
            let looked = move |core: &Core| {
                let before = core.faults(&whose, is_lost)?;
                if !repair || before.is_empty() {
                    return Ok(inspect::findings(before, None));
                }
                // Nothing of one of whom somebody still has something is taken but what is wrong by itself.
                let is_nobodys = is_lost && before.len() == core.records.look(&whose)?.len();
                if let Err(error) = core.sweep(&whose, !is_nobodys) {
                    tracing::warn!(id = %whose, %error, "fault of a network is not repaired");
                }
                let after = core.faults(&whose, is_lost)?;
                Ok(inspect::findings(before, Some(&after)))
            };
            all.extend(self.exclusively(&id, looked).await?);
        }
        Ok(all)
    }

    /// Before version 1.1.0 plugins cannot, and nothing is done. One that fails does not keep the others from
    /// being asked.
    async fn collect(&self, network: &str) -> Result<()> {
        let alone = Arc::clone(&self.gate).write_owned().await;
        let (core, name) = (Arc::clone(&self.core), network.to_owned());
        self.blocking(move || {
            let _alone = alone;
            core.collect(&name)
        })
        .await
    }
}

#[cfg(test)]
mod tests;
