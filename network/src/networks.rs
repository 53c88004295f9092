//! Network namespaces and interfaces by name, for the daemon.
//!
//! Invariant: one change at a time in one place. Work runs where it may block, and to its end also when
//! the caller is gone.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OwnedMutexGuard;
use types::network::{Link, LinkChange, LinkMove, LinkName, NetNamespace, NewLink, Place};
use types::{Error, Event, Fields, Filter, Finding, Held, Labels, Namespace, Result, Scope};

use crate::grave::Grave;
use crate::link::Seen;
use crate::record::{LinkKey, NsKey};
use crate::store::{Store, Transfer};
use crate::turns::Turns;

/// Hears of what became of networks.
pub type Publisher = Arc<dyn Fn(Namespace, Event) + Send + Sync>;

/// Where the files go, and who hears.
#[derive(Clone)]
pub struct OpenOpts {
    /// Directory for files of namespaces and records. Its contents need not outlive the machine's run: what
    /// they are about does not either.
    pub directory: PathBuf,
    /// What tells this daemon from others that have a directory of the same name: in a container there may be
    /// one that marks interfaces, too.
    pub identity: String,
    /// Marks of interfaces of the host that no tenant has made and none is to see.
    pub hidden: Vec<u32>,
    /// Hears of every change.
    pub publisher: Publisher,
}

impl fmt::Debug for OpenOpts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenOpts")
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

/// How to make a network namespace.
#[derive(Clone, Debug, Default)]
pub struct NamespaceOpts {
    /// Gives the one that this file stands for a name instead; empty: makes one.
    pub adopt: PathBuf,
    /// Labels.
    pub labels: Labels,
}

/// Network namespaces that somebody is setting up, and how many are.
type Uses = Arc<Mutex<HashMap<NsKey, usize>>>;

/// A network namespace that stays while this lives. Any number may have it at once.
#[derive(Debug)]
pub struct Hold {
    held: Option<(Uses, Vec<NsKey>)>,
    path: Option<PathBuf>,
}

impl Hold {
    /// Where it is as long as it is held, whatever becomes of the way by which it was found; `None` for one
    /// that has no name here.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let Some((uses, keys)) = self.held.take() else {
            return;
        };
        let mut uses = uses.lock().unwrap_or_else(PoisonError::into_inner);
        for key in keys {
            match uses.get_mut(&key) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(uses.remove(&key)),
            }
        }
    }
}

/// The networks of all tenants. Clones share them.
#[derive(Clone, Debug)]
pub struct Networks {
    store: Arc<Store>,
    /// Held while something in a place is changed.
    turns: Arc<Turns<Lock>>,
    /// Set-ups take as long as programs do, so nobody waits for them: who comes to take the namespace away
    /// is refused.
    uses: Uses,
}

/// A place; that of all tenants is the host.
type Lock = Option<(Namespace, String)>;

fn lock_of(tenant: &Namespace, place: &Place) -> Lock {
    match place {
        Place::Host => None,
        Place::Named(name) => Some((tenant.clone(), name.clone())),
    }
}

impl Networks {
    /// Takes up what an earlier daemon has made, and takes away what it did not finish.
    ///
    /// # Errors
    /// I/O on the directory.
    pub fn open(opts: OpenOpts) -> Result<Self> {
        Ok(Self {
            store: Arc::new(Store::open(opts)?),
            turns: Arc::default(),
            uses: Arc::default(),
        })
    }

    /// The networks of a daemon that does not run, for [`Networks::check`]: nothing is changed before that.
    ///
    /// # Errors
    /// I/O on the directory.
    pub fn examine(opts: OpenOpts) -> Result<Self> {
        Ok(Self {
            store: Arc::new(Store::examine(opts)?),
            turns: Arc::default(),
            uses: Arc::default(),
        })
    }

    /// Makes a network namespace with its loopback up, or gives one that there is a name. Again the same:
    /// the same answer.
    ///
    /// # Errors
    /// `AlreadyExists`; `InvalidArgument` for names, labels and a path that is no network namespace;
    /// `NotFound` for a path that is not there; `FailedPrecondition` for the namespace of the host and for
    /// one that another tenant has. Then there is nothing.
    pub async fn create_namespace(
        &self,
        scope: &Scope,
        name: &str,
        opts: NamespaceOpts,
    ) -> Result<NetNamespace> {
        let (scope, name) = (scope.clone(), name.to_owned());
        let lock = Some((scope.namespace.clone(), name.clone()));
        self.alone(vec![lock], move |store| {
            store.create_namespace(&scope, &name, opts.adopt, opts.labels)
        })
        .await
    }

    /// The network namespace `name`.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn get_namespace(&self, tenant: &Namespace, name: &str) -> Result<NetNamespace> {
        self.store.get_namespace(&(tenant.clone(), name.to_owned()))
    }

    /// The network namespaces of a tenant, by name. Fields for filters: `name`, `path`, `adopted`, `labels.*`.
    #[must_use]
    pub fn list_namespaces(&self, tenant: &Namespace, filter: &Filter) -> Vec<NetNamespace> {
        self.store.list_namespaces(tenant, filter)
    }

    /// Changes labels, which is all that can change.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for another field or a label that is too long.
    pub async fn update_namespace(
        &self,
        tenant: &Namespace,
        name: &str,
        labels: Labels,
        fields: Fields,
    ) -> Result<NetNamespace> {
        let key = (tenant.clone(), name.to_owned());
        self.alone(vec![Some(key.clone())], move |store| {
            store.update_namespace(&key, &labels, &fields)
        })
        .await
    }

    /// Takes a network namespace away with the interfaces that were made in it; of one that was adopted only
    /// those and the name.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` with the names of processes that are in it, and while it is held. Then
    /// it is still there.
    pub async fn delete_namespace(&self, tenant: &Namespace, name: &str) -> Result<()> {
        let key = (tenant.clone(), name.to_owned());
        self.without_namespace(key, None).await
    }

    /// Keeps the network namespace at `path`, which a tenant joins a container from, from being taken away while
    /// the answer lives, if it is one that has a name here: who tries is refused at once.
    ///
    /// # Errors
    /// `NotFound` for one that went meanwhile; `FailedPrecondition` for one that only others have a name for.
    pub async fn hold(&self, tenant: &Namespace, path: &Path) -> Result<Hold> {
        let from = path.to_owned();
        let keys = self.beside(move |store| store.named_at(&from)).await?;
        // It may have several names.
        let own: Vec<NsKey> = { keys.iter() }
            .filter(|key| key.0 == *tenant)
            .cloned()
            .collect();
        if own.is_empty() {
            if keys.is_empty() {
                return Ok(Hold {
                    held: None,
                    path: None,
                });
            }
            return Err(Error::failed_precondition(format_args!(
                "network namespace {} is another tenant's",
                path.display()
            )));
        }
        let locks: Vec<Lock> = own.iter().cloned().map(Some).collect();
        // Whoever takes one away now has it alone, and is done before this is answered.
        let alone = self.lock(&locks).await;
        let (mut held, mut there, mut failure) = (Vec::new(), None, None);
        for key in own {
            match self.store.get_namespace(&key) {
                Ok(found) => {
                    *self.uses().entry(key.clone()).or_default() += 1;
                    held.push(key);
                    there = Some(found.path);
                }
                Err(error) => failure = Some(error),
            }
        }
        drop(alone);
        match (there, failure) {
            (None, Some(error)) => Err(error),
            (path, _) => Ok(Hold {
                held: Some((Arc::clone(&self.uses), held)),
                path,
            }),
        }
    }

    fn uses(&self) -> MutexGuard<'_, HashMap<NsKey, usize>> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes an interface. Again the same: the same answer, and it is what it was asked to be.
    ///
    /// # Errors
    /// `AlreadyExists`, `NotFound` for places, parents and bridges, `InvalidArgument`, `NotImplemented` for a
    /// kind that the kernel lacks, `FailedPrecondition`. Then there is nothing new.
    pub async fn create_link(&self, scope: &Scope, new: NewLink) -> Result<Link> {
        let scope = scope.clone();
        let mut locks = vec![lock_of(&scope.namespace, &new.place)];
        let there = new.kind.other().and_then(|other| other.place.as_ref());
        locks.extend(there.map(|place| lock_of(&scope.namespace, place)));
        self.alone(locks, move |store| store.create_link(&scope, &new))
            .await
    }

    /// The interface `name` in a place.
    ///
    /// # Errors
    /// `NotFound`, also for one of the host that is another tenant's.
    pub async fn get_link(
        &self,
        tenant: &Namespace,
        place: &Place,
        name: &LinkName,
    ) -> Result<Link> {
        let (tenant, place, name) = (tenant.clone(), place.clone(), name.clone());
        self.beside(move |store| store.get_link(&tenant, &place, &name))
            .await
    }

    /// Where those who make more interfaces for the same daemon take theirs to.
    pub(crate) fn grave(&self) -> Grave {
        self.store.grave().clone()
    }

    /// Waits until all that was taken away is gone. To be called before the process ends: it could wait longer
    /// for its next start.
    ///
    /// # Errors
    /// Those of the kernel.
    pub async fn settle(&self) -> Result<()> {
        self.beside(|store| store.grave().empty()).await
    }

    /// Whether a tenant's containers may be attached to an interface of the host that another has made.
    ///
    /// # Errors
    /// `PermissionDenied`.
    pub(crate) fn check_usable(&self, tenant: &Namespace, seen: &Seen) -> Result<()> {
        self.store.check_usable(tenant, seen)
    }

    /// The interfaces in a place, by name: of the host the tenant's and those that were not made here.
    /// Fields for filters: `name`, `kind`, `mac`, `up`, `bridge`, `labels.*`.
    ///
    /// # Errors
    /// `NotFound` for the place.
    pub async fn list_links(
        &self,
        tenant: &Namespace,
        place: &Place,
        filter: Filter,
    ) -> Result<Vec<Link>> {
        let (tenant, place) = (tenant.clone(), place.clone());
        self.beside(move |store| store.list_links(&tenant, &place, &filter))
            .await
    }

    /// Changes an interface, as a whole or not at all.
    ///
    /// # Errors
    /// `NotFound`, `InvalidArgument`, `FailedPrecondition` for one of the host that was not made here and for
    /// what the kernel does not do now. Then it is as it was.
    pub async fn update_link(
        &self,
        tenant: &Namespace,
        place: &Place,
        name: &LinkName,
        change: LinkChange,
    ) -> Result<Link> {
        let key = (tenant.clone(), place.clone(), name.clone());
        self.alone(vec![lock_of(tenant, place)], move |store| {
            let labels = change
                .labels
                .as_ref()
                .map(|(labels, fields)| (labels, fields));
            store.update_link(&key, &change.spec, labels)
        })
        .await
    }

    /// Moves an interface to another place, or gives it another name, or both. What it has goes along, but
    /// for its bridge when it moves.
    ///
    /// # Errors
    /// `NotFound`, `AlreadyExists` for the name, `FailedPrecondition` for one that was not made here. Then it is
    /// where and what it was.
    pub async fn move_link(
        &self,
        tenant: &Namespace,
        place: &Place,
        name: &LinkName,
        to: LinkMove,
    ) -> Result<Link> {
        let tenant = tenant.clone();
        let locks = vec![lock_of(&tenant, place), lock_of(&tenant, &to.place)];
        let transfer = Transfer {
            place: place.clone(),
            name: name.clone(),
            to_place: to.place,
            to_name: to.name,
        };
        self.alone(locks, move |store| store.transfer_link(&tenant, &transfer))
            .await
    }

    /// Takes an interface away; of a pair both ends.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` for one of the host that was not made here, and for a device.
    pub async fn delete_link(
        &self,
        tenant: &Namespace,
        place: &Place,
        name: &LinkName,
    ) -> Result<()> {
        let key = (tenant.clone(), place.clone(), name.clone());
        self.without_link(key, None).await
    }

    /// All that a collector has to decide on.
    #[must_use]
    pub fn held(&self) -> Vec<Held> {
        self.store.held()
    }

    /// Takes away what nothing keeps, unless its name has passed to another one.
    ///
    /// # Errors
    /// As [`Networks::delete_namespace`] and [`Networks::delete_link`].
    pub async fn collect(&self, held: &Held) -> Result<()> {
        let (tenant, number) = (held.namespace.clone(), Some(held.number));
        let Some((place, name)) = held.name.split_once('/') else {
            let key = (tenant, held.name.clone());
            return self.without_namespace(key, number).await;
        };
        let key = (tenant, Place::of(place.to_owned()), name.parse()?);
        self.without_link(key, number).await
    }

    /// Compares records with what is there; repairs what loses nobody anything.
    ///
    /// # Errors
    /// Those of looking.
    pub async fn check(&self, repair: bool) -> Result<Vec<Finding>> {
        let places = |store: &Store| {
            let named = store.all_namespaces().into_iter().map(Some);
            named.chain([None]).collect()
        };
        self.alone_with(places, move |store| store.check(repair))
            .await
    }

    async fn beside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let store = Arc::clone(&self.store);
        let done = tokio::task::spawn_blocking(move || work(&store)).await;
        done.map_err(|e| Error::internal("network task failed").with_source(e))?
    }

    /// Takes a namespace away. Other ends of its interfaces go along, wherever they are.
    async fn without_namespace(&self, key: NsKey, number: Option<u64>) -> Result<()> {
        let whose = key.clone();
        let places = move |store: &Store| {
            let ends = store.places_of_ends(&whose.0, &Place::Named(whose.1.clone()), None);
            let ends = ends.iter().map(|place| lock_of(&whose.0, place));
            // What others have made of what is in it may be on the host.
            ends.chain([None, Some(whose.clone())]).collect()
        };
        let this = self.clone();
        self.alone_with(places, move |store| {
            // By now nobody begins to use it.
            if this.uses().contains_key(&key) {
                return Err(Error::failed_precondition(format_args!(
                    "network namespace {:?} is in use by a setup",
                    key.1
                )));
            }
            store.delete_namespace(&key, number)
        })
        .await
    }

    /// Takes an interface away. Its other end goes along, wherever it is.
    async fn without_link(&self, key: LinkKey, number: Option<u64>) -> Result<()> {
        let whose = key.clone();
        let places = move |store: &Store| {
            let ends = store.places_of_ends(&whose.0, &whose.1, Some(&whose.2));
            let ends = ends.iter().map(|place| lock_of(&whose.0, place));
            ends.chain([lock_of(&whose.0, &whose.1)]).collect()
        };
        self.alone_with(places, move |store| store.delete_link(&key, number))
            .await
    }

    /// Runs `work` while nothing else changes the places.
    async fn alone<T: Send + 'static>(
        &self,
        keys: Vec<Lock>,
        work: impl FnOnce(&Store) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.alone_with(move |_| keys.clone(), work).await
    }

    /// As [`Networks::alone`], of places that may become others while it is waited for them.
    async fn alone_with<T: Send + 'static>(
        &self,
        places: impl Fn(&Store) -> Vec<Lock>,
        work: impl FnOnce(&Store) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let held = loop {
            let keys = places(&self.store);
            let held = self.lock(&keys).await;
            if places(&self.store).iter().all(|key| keys.contains(key)) {
                break held;
            }
        };
        self.beside(move |store| {
            // Also when the caller is gone: not before the work is done.
            let _held = held;
            work(store)
        })
        .await
    }

    async fn lock(&self, keys: &[Lock]) -> Vec<OwnedMutexGuard<()>> {
        let mut keys = keys.to_vec();
        // In one order, so that nobody waits for one who waits for him.
        keys.sort();
        keys.dedup();
        let mut held = Vec::new();
        for key in &keys {
            held.push(self.turns.take(key).await);
        }
        held
    }
}
