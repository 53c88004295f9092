//! The drivers that join containers to networks, by name, and what they have left undone.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use metadata::Metadata;
use network::bridge::{Bridge, BridgeOpts};
use network::cni::{Cni, CniOpts};
use network::{NetworkDriver, Networks};
use protos::services::network::Joining;
use protos::wire::network::request_from_wire;
use tokio::sync::Notify;
use types::network::{Joined, NetRequest, NetResult};
use types::{Context as _, Error, Errors, Filter, Finding, Namespace, Result, Scope};

use crate::config::{self, Config};
use crate::networks::NETWORK;
use crate::point::Row;

/// Name of the one whose work programs do, and its section of the configuration.
const CNI: &str = "cni";
const CNI_SECTION: &str = "io.containerd.network.v1.cni";
/// Name of the one that needs no program, and its section.
const BRIDGE: &str = "bridge";
const BRIDGE_SECTION: &str = "io.containerd.network.v1.bridge";
/// First and longest time until what is left is tried again; the longest, too, between two looks when
/// nothing is known to be left.
const SOON: Duration = Duration::from_secs(1);
const LATE: Duration = Duration::from_mins(5);
/// From a network namespace that went to the look at what it has left: others may go with it.
const TOGETHER: Duration = Duration::from_millis(500);

/// The drivers.
#[derive(Clone, Debug)]
pub(crate) struct Drivers {
    bridge: Arc<Bridge>,
    cni: Arc<Cni>,
    networks: Networks,
    /// Names of those that the configuration leaves on.
    enabled: BTreeSet<&'static str>,
    /// A network namespace has gone: something may be left of what was in it.
    gone: Arc<Notify>,
}

impl Drivers {
    /// Makes them; nothing is looked at yet.
    ///
    /// # Errors
    /// `InvalidArgument` for a section that does not fit.
    pub(crate) fn open(networks: &Networks, gone: &Arc<Notify>, config: &Config) -> Result<Self> {
        let section: config::Cni = config.section(CNI_SECTION)?;
        let all = [(BRIDGE, BRIDGE_SECTION), (CNI, CNI_SECTION)].into_iter();
        let enabled = all.filter(|(_, section)| config.enabled(section));
        Ok(Self {
            bridge: Arc::new(Bridge::new(&BridgeOpts {
                directory: config.state.clone(),
                records: config.state.join(BRIDGE_SECTION),
                networks: Some(networks.clone()),
            })),
            cni: Arc::new(Cni::new(CniOpts {
                networks: section.conf_dir,
                plugins: section.bin_dirs,
                // What plugins write about addresses outlives the machine's run: so must these.
                records: config.root.join(CNI_SECTION),
                patience: section.timeout,
            })),
            networks: networks.clone(),
            enabled: enabled.map(|(name, _)| name).collect(),
            gone: Arc::clone(gone),
        })
    }

    /// What introspection tells of them.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let requires = &["io.containerd.metadata.v1", NETWORK];
        let all = self.enabled.iter();
        all.map(|name| Row::ready(NETWORK, name, requires))
            .collect()
    }

    /// The driver of this name.
    ///
    /// # Errors
    /// `NotFound`.
    pub(crate) fn get(&self, name: &str) -> Result<Arc<dyn NetworkDriver>> {
        match name {
            BRIDGE if self.enabled.contains(BRIDGE) => Ok(Arc::<Bridge>::clone(&self.bridge)),
            CNI if self.enabled.contains(CNI) => Ok(Arc::<Cni>::clone(&self.cni)),
            _ => {
                let there: Vec<_> = self.enabled.iter().copied().collect();
                Err(Error::not_found(format_args!(
                    "network driver {name:?}: there are {}",
                    there.join(" and ")
                )))
            }
        }
    }

    /// Both: what one has made stays its own also when it is not to make more.
    fn all(&self) -> [Arc<dyn NetworkDriver>; 2] {
        [
            Arc::<Bridge>::clone(&self.bridge),
            Arc::<Cni>::clone(&self.cni),
        ]
    }

    /// Has a driver join a container, whose network namespace is not taken away meanwhile. Programs may take
    /// their time: nobody else waits for them.
    ///
    /// # Errors
    /// Those of the driver; `NotFound` for a namespace that went just now, `FailedPrecondition` for another
    /// tenant's.
    pub(crate) async fn setup(&self, driver: &str, request: &NetRequest) -> Result<NetResult> {
        let found = self.get(driver)?;
        let tenant = &request.id.namespace;
        let held = self.networks.hold(tenant, &request.netns).await?;
        let Some(path) = held.path() else {
            return found.setup(request).await;
        };
        // A link may lead elsewhere by now.
        let request = NetRequest {
            netns: path.to_owned(),
            ..request.clone()
        };
        found.setup(&request).await
    }

    /// The attachments of a tenant that pass the filter; with `look` each with what is not as it was made.
    ///
    /// # Errors
    /// The errno of reading records.
    pub(crate) async fn list(
        &self,
        tenant: &Namespace,
        filter: &Filter,
        look: bool,
    ) -> Result<Vec<Joined>> {
        let mut all = Vec::new();
        for driver in self.all() {
            all.extend(driver.list(Some(tenant), look).await?);
        }
        all.retain(|one| filter.matches(one));
        Ok(all)
    }

    /// Compares what is on record with what is there, and with the containers.
    ///
    /// # Errors
    /// Those of looking, after everything was looked at.
    pub(crate) async fn inspect(&self, metadata: &Metadata, repair: bool) -> Result<Vec<Finding>> {
        let (mut findings, mut errors) = (Vec::new(), Errors::default());
        for driver in self.all() {
            let mut lost = BTreeSet::new();
            for one in errors
                .note(driver.list(None, false).await)
                .unwrap_or_default()
            {
                let containers = metadata.containers(&Scope::new(one.id.namespace.clone()));
                // What cannot be read may be there.
                if let Ok(None) = containers.get(&one.id.container).await.absent_ok() {
                    lost.insert(one.id);
                }
            }
            findings.extend(
                errors
                    .note(driver.inspect(&lost, repair).await)
                    .unwrap_or_default(),
            );
        }
        errors.into_result()?;
        Ok(findings)
    }

    /// A tenant's request with the path of its network namespace.
    ///
    /// # Errors
    /// `NotFound` for a name, `InvalidArgument` with what does not fit.
    pub(crate) fn request(&self, tenant: &Namespace, joining: Joining) -> Result<NetRequest> {
        let (name, path) = (&joining.network_namespace, &joining.path);
        let netns: PathBuf = match (name.is_empty(), path.is_empty()) {
            (false, true) => self.networks.get_namespace(tenant, name)?.path,
            (true, false) => path.into(),
            _ => {
                return Err(Error::invalid_argument(
                    "a network namespace by name or by path, and not by both",
                ));
            }
        };
        request_from_wire(tenant, netns, joining)
    }

    /// As [`Drivers::request`], to part: a network namespace may be gone by then.
    ///
    /// # Errors
    /// `InvalidArgument` with what does not fit.
    pub(crate) fn parting(&self, tenant: &Namespace, joining: Joining) -> Result<NetRequest> {
        match self.request(tenant, joining.clone()).absent_ok()? {
            Some(request) => Ok(request),
            None => request_from_wire(tenant, PathBuf::new(), joining),
        }
    }

    /// Takes away what earlier daemons have left half made or half taken away, again until it is done, and
    /// then whatever is left while this one runs. Never returns.
    pub(crate) async fn settle(self) {
        let mut again = SOON;
        loop {
            let is_settled = self.is_settled().await;
            // Namespaces that were not made here go without anybody telling, and others flush packet
            // filters: now and then it is looked for both.
            let pause = if is_settled { LATE } else { again };
            again = if is_settled {
                SOON
            } else {
                (again * 2).min(LATE)
            };
            tokio::select! {
                () = self.cni.leaves() => tokio::time::sleep(SOON).await,
                // One look for all that go together.
                () = self.gone.notified() => tokio::time::sleep(TOGETHER).await,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn is_settled(&self) -> bool {
        let mut is_settled = true;
        if let Err(error) = self.bridge.reconcile(|_| true).await {
            tracing::warn!(%error, "networks of the bridge driver are left");
            is_settled = false;
        }
        match self.cni.reconcile(|_| true).await {
            Ok(left) => {
                for one in &left {
                    tracing::warn!(id = %one.id, error = %one.error, "CNI networks are left");
                }
                is_settled &= left.is_empty();
            }
            Err(error) => {
                tracing::warn!(%error, "records of CNI networks cannot be read");
                is_settled = false;
            }
        }
        is_settled
    }
}
