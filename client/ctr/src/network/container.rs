//! The network of a container: `--net` of `ctr run` and `ctr containers create`.
//!
//! Invariant: what is made for a container is made before its record, and is undone when the record cannot be
//! made; from then on the namespace belongs to the record (a back reference, so that the collector takes it
//! along whoever removes the container), and the record says what driver was asked for what.
//!
//! ```text
//! flags -> wish (checked) -> namespace -> driver's set-up -> record    part: record -> tear-down -> namespace
//! ```

use std::net::IpAddr;
use std::str::FromStr;

use client::spec::Spec;
use client::{Client, Membership};
use types::network::{IpNet, NetRequest, Route, TenantId, family};
use types::{
    Code, Container, ContainerId, Context as _, Error, Errors, Filter, Labels, Result, gc_label,
};

use super::driver::Ports;
use crate::pull::interruptible;

/// Label of a container and of the namespace that was made for it: another one of the same name, made at the
/// same time or later, must not pass for this one.
const ATTEMPT: &str = "io.containerd.ctr.attempt";
/// Name of the interface inside.
const INTERFACE: &str = "eth0";

/// Flags about the network of a container.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct NetFlags {
    /// Enable host networking for the container; the same as --net host
    #[arg(long)]
    net_host: bool,
    /// Enable CNI networking for the container; the same as --net cni
    #[arg(long, conflicts_with = "net_host")]
    cni: bool,
    /// Join the network namespace of this name, see `ctr network netns`
    #[arg(long, value_name = "NAME", conflicts_with_all = ["net_host", "cni"])]
    network_namespace: Option<String>,
    /// Network of the container: none (loopback alone, as without the flag), host, bridge or
    /// bridge:BRIDGE, cni or cni:NETWORK,..., or the NAME of a network namespace
    #[arg(long, value_name = "NETWORK", conflicts_with_all = ["net_host", "cni", "network_namespace"])]
    net: Option<Net>,
    /// Address of the container, ADDRESS/PREFIX[,gateway=ADDRESS]; with --net bridge, which gives none by
    /// itself, or with --net cni where the network takes wishes
    #[arg(long, value_name = "ADDRESS")]
    ip: Vec<Wanted>,
    /// Port of the host that leads to one of the container,
    /// `[IP:]HOST[-LAST]:CONTAINER[-LAST][/PROTOCOL]`; with --net bridge or cni
    #[arg(short, long, value_name = "PORT")]
    port: Vec<Ports>,
}

/// What `--net` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Net {
    /// A namespace of its own with nothing but a loopback, which the runtime makes.
    #[default]
    None,
    /// The host's.
    Host,
    /// The native driver, with its own bridge or this one.
    Bridge(Option<String>),
    /// Programs, for these networks or the first.
    Cni(Vec<String>),
    /// A namespace of this name.
    Named(String),
}

impl FromStr for Net {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (word, rest) = match text.split_once(':') {
            Some((word, rest)) => (word, Some(rest)),
            None => (text, None),
        };
        let names = |rest: &str| -> Result<Vec<String>> {
            let names: Vec<String> = rest.split(',').map(str::to_owned).collect();
            if names.iter().any(String::is_empty) {
                return Err(Error::invalid_argument(format_args!(
                    "network {text:?}: a name is missing"
                )));
            }
            Ok(names)
        };
        match (word, rest) {
            ("none", None) => Ok(Self::None),
            ("host", None) => Ok(Self::Host),
            ("bridge", None) => Ok(Self::Bridge(None)),
            ("bridge", Some(rest)) => match &names(rest)?[..] {
                [one] => Ok(Self::Bridge(Some(one.clone()))),
                _ => Err(Error::invalid_argument(format_args!(
                    "network {text:?}: the bridge driver joins one bridge"
                ))),
            },
            ("cni", None) => Ok(Self::Cni(Vec::new())),
            ("cni", Some(rest)) => Ok(Self::Cni(names(rest)?)),
            ("", _) | (_, Some(_)) => Err(Error::invalid_argument(format_args!(
                "network {text:?} is neither none, host, bridge[:BRIDGE], cni[:NETWORK,...] nor a name"
            ))),
            (name, None) => Ok(Self::Named(name.to_owned())),
        }
    }
}

/// An address that the caller has chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    address: IpNet,
    gateway: Option<IpAddr>,
}

impl FromStr for Wanted {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (address, rest) = match text.split_once(',') {
            Some((address, rest)) => (address, Some(rest)),
            None => (text, None),
        };
        // The kernel takes one without a prefix for a network of its own, which no gateway is in.
        if !address.contains('/') {
            return Err(Error::invalid_argument(format_args!(
                "address {address:?} has no prefix length"
            )));
        }
        let address: IpNet = address.parse()?;
        let gateway = rest.map(|rest| {
            let bad = || {
                Error::invalid_argument(format_args!(
                    "{text:?} is not ADDRESS/PREFIX[,gateway=ADDRESS]"
                ))
            };
            let gateway = rest.strip_prefix("gateway=").ok_or_else(bad)?;
            let gateway: IpAddr = gateway.parse().map_err(|_| bad())?;
            if !address.contains(&gateway) {
                return Err(Error::invalid_argument(format_args!(
                    "gateway {gateway} ({}) is not in the network of {address}",
                    family(&gateway)
                )));
            }
            Ok(gateway)
        });
        Ok(Self {
            address,
            gateway: gateway.transpose()?,
        })
    }
}

impl NetFlags {
    /// What they say, if it fits together.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub(crate) fn wish(&self) -> Result<Net> {
        let net = match (&self.net, self.net_host, self.cni, &self.network_namespace) {
            (Some(net), ..) => net.clone(),
            (None, true, ..) => Net::Host,
            (None, _, true, _) => Net::Cni(Vec::new()),
            (None, _, _, Some(name)) => Net::Named(name.clone()),
            (None, ..) => Net::None,
        };
        let why = match &net {
            Net::None => "a container of its own namespace alone is reached by nobody",
            Net::Host => "a container in the host's network has the host's addresses and ports",
            Net::Named(_) => {
                "a namespace that is there has what it was set up with, see `ctr network setup`"
            }
            Net::Bridge(_) if self.ip.is_empty() => {
                return Err(Error::invalid_argument(
                    "--net bridge without --ip ADDRESS/PREFIX: addresses are the caller's to give",
                ));
            }
            Net::Bridge(_) | Net::Cni(_) => return Ok(net),
        };
        let flag = match (&self.port[..], &self.ip[..]) {
            ([_, ..], _) => "--port",
            (_, [_, ..]) => "--ip",
            _ => return Ok(net),
        };
        Err(Error::invalid_argument(format_args!(
            "{flag} is for --net bridge and --net cni: {why}"
        )))
    }

    /// True when they say something.
    pub(crate) fn is_given(&self) -> bool {
        self.net.is_some() || self.net_host || self.cni || self.network_namespace.is_some()
    }

    /// What a driver is to be asked for; `None` without one.
    fn joined(&self, client: &Client, id: &ContainerId, net: &Net) -> Result<Option<Membership>> {
        let (driver, networks) = match net {
            Net::Bridge(bridge) => ("bridge", bridge.iter().cloned().collect()),
            Net::Cni(networks) => ("cni", networks.clone()),
            Net::None | Net::Host | Net::Named(_) => return Ok(None),
        };
        let default = |of: &IpNet| match of.address() {
            IpAddr::V4(_) => IpNet::DEFAULT_V4,
            IpAddr::V6(_) => IpNet::DEFAULT_V6,
        };
        let routes = self.ip.iter().filter_map(|one| {
            let gateway = one.gateway?;
            Some(Route::new(default(&one.address), Some(gateway)))
        });
        Ok(Some(Membership {
            driver: driver.to_owned(),
            namespace: id.to_string(),
            request: NetRequest {
                id: TenantId {
                    namespace: client.namespace().clone(),
                    container: id.clone(),
                },
                netns: Default::default(),
                interface: INTERFACE.parse()?,
                networks,
                addresses: self.ip.iter().map(|one| one.address).collect(),
                mac: None,
                mtu: None,
                routes: routes.collect(),
                ports: self.port.iter().flat_map(Ports::each).collect(),
                args: [].into(),
                capabilities: [].into(),
            },
        }))
    }

    /// Gives the container that is about to be recorded its network. What was made for it, to be given back
    /// with [`Part::undo`] when it cannot be recorded.
    ///
    /// # Errors
    /// Of the steps; then nothing is left.
    pub(crate) async fn give(
        &self,
        client: &Client,
        record: &mut Container,
        spec: &mut Spec,
    ) -> Result<Option<Part>> {
        if !self.is_given() {
            // A spec that is given, or a namespace named by its path, says it itself.
            return Ok(None);
        }
        let net = self.wish()?;
        match &net {
            Net::None => spec.join_namespace("network", "")?,
            Net::Named(name) => {
                let found = client.networks().get_namespace(name).await?;
                spec.join_namespace("network", &found.path.display().to_string())?;
                record
                    .labels
                    .insert(gc_label::REF_NETWORK.to_owned(), name.clone());
            }
            Net::Host | Net::Bridge(_) | Net::Cni(_) => {}
        }
        let Some(joined) = self.joined(client, &record.id, &net)? else {
            return Ok(None);
        };
        let value = joined.to_any()?;
        let attempt = format!("{:016x}", rand::random::<u64>());
        record.labels.insert(ATTEMPT.to_owned(), attempt.clone());
        let part = Part {
            joined,
            attempt: Some(attempt),
        };
        let path = part.make(client, &record.id).await?;
        record
            .extensions
            .insert(Membership::EXTENSION.to_owned(), value);
        spec.join_namespace("network", &path)?;
        Ok(Some(part))
    }
}

/// A container's part of a network, and which of the namespaces of its name is its own.
#[derive(Debug)]
pub(crate) struct Part {
    joined: Membership,
    /// `None` for a record that says nothing of it.
    attempt: Option<String>,
}

impl Part {
    /// That of a container; `None` for one that no driver was asked for.
    fn of(client: &Client, record: &Container) -> Result<Option<Self>> {
        let joined = Membership::of(client.namespace(), record)?;
        Ok(joined.map(|joined| Self {
            joined,
            attempt: record.labels.get(ATTEMPT).cloned(),
        }))
    }

    /// True for the namespace with these labels: not for one that somebody has made under its name since.
    fn owns(&self, labels: &Labels) -> bool {
        let attempt = self.attempt.as_ref();
        attempt.is_none_or(|own| labels.get(ATTEMPT) == Some(own))
    }

    /// Makes the namespace and has the driver join it; its path.
    async fn make(&self, client: &Client, id: &ContainerId) -> Result<String> {
        let networks = client.networks();
        let mut labels = Labels::new().with(gc_label::BREF_CONTAINER, id.as_str());
        if let Some(attempt) = &self.attempt {
            labels.insert(ATTEMPT.to_owned(), attempt.clone());
        }
        let made = networks
            .create_namespace(&self.joined.namespace, None, &labels)
            .await?;
        // Programs may take their time.
        let joining = self.joined.joining();
        let setup = interruptible(networks.setup(&joining)).await;
        if let Err(error) = setup {
            // A driver that has answered leaves nothing; the container may have attachments that others made.
            let is_answered = !matches!(
                error.code(),
                Code::Cancelled | Code::Unavailable | Code::Unknown | Code::DeadlineExceeded
            );
            self.take_back(client, is_answered).await;
            return Err(error);
        }
        Ok(made.path.display().to_string())
    }

    /// Gives back what was made for a container that will not be. What stays goes with the lease.
    pub(crate) async fn undo(&self, client: &Client) {
        self.take_back(client, false).await;
    }

    async fn take_back(&self, client: &Client, is_parted: bool) {
        if let Err(error) = self.give_back(client, is_parted).await {
            let namespace = &self.joined.namespace;
            tracing::warn!(%error, namespace, "network of a failed container stays for now");
        }
    }

    /// Takes the network away, with what the driver has made unless it `is_parted`.
    async fn give_back(&self, client: &Client, is_parted: bool) -> Result<()> {
        let (networks, joined) = (client.networks(), &self.joined);
        let there = networks.get_namespace(&joined.namespace).await;
        if there.absent_ok()?.is_some_and(|it| !self.owns(&it.labels)) {
            let namespace = &joined.namespace;
            tracing::info!(
                namespace,
                "its network is gone, and another container has its name"
            );
            return Ok(());
        }
        let mut errors = Errors::default();
        if !is_parted {
            let parted = networks.teardown(&joined.joining()).await;
            errors.note(parted.ctx_with(|| format!("{} driver", joined.driver)));
        }
        let removed = networks.delete_namespace(&joined.namespace).await;
        match removed.absent_ok() {
            // Whoever is in it, it is nobody's any more: the collector asks again.
            Err(error) if error.is(Code::FailedPrecondition) => {
                tracing::warn!(%error, "network namespace stays for now");
            }
            removed => drop(errors.note(removed)),
        }
        errors.into_result()
    }
}

/// Takes a container's network away, of one whose record is gone. Other containers that have joined the same
/// namespace keep it, with its networks.
///
/// # Errors
/// Of the driver, which goes on by itself; `InvalidArgument` for a record that says nothing sensible.
pub(crate) async fn part(client: &Client, record: &Container) -> Result<()> {
    let Some(own) = Part::of(client, record)? else {
        return Ok(());
    };
    let namespace = &own.joined.namespace;
    let others = Filter::parse(&[format!(
        "labels.\"{}\"==\"{namespace}\"",
        gc_label::REF_NETWORK
    )])?;
    if !client.containers().list(&others).await?.is_empty() {
        tracing::info!(
            namespace,
            "its network stays: other containers have joined it"
        );
        return Ok(());
    }
    let done = own.give_back(client, false).await;
    done.ctx_with(|| format!("network of container {:?}", record.id.as_str()))
}

/// Sees to it that a container that is about to start has its network: namespaces do not outlive the machine's
/// run, records do, and what was joined somebody may have parted.
///
/// # Errors
/// As of a container that is new; `FailedPrecondition` when another one has its namespace.
pub(crate) async fn restore(client: &Client, record: &Container) -> Result<()> {
    let Some(own) = Part::of(client, record)? else {
        return Ok(());
    };
    let namespace = &own.joined.namespace;
    let networks = client.networks();
    match networks.get_namespace(namespace).await.absent_ok()? {
        None => {
            tracing::info!(namespace, "its network is made again");
            own.make(client, &record.id).await.map(drop)
        }
        Some(there) if !own.owns(&there.labels) => Err(Error::failed_precondition(format_args!(
            "network namespace {namespace:?} is not the one that was made for container {:?}",
            record.id.as_str()
        ))),
        // Of what is there already it takes nothing away, also when it fails.
        Some(_) => interruptible(networks.setup(&own.joined.joining()))
            .await
            .map(drop),
    }
}

#[cfg(test)]
mod tests;
