//! `network link`: interfaces.

use client::Client;
use serde_json::{Value, json};
use types::network::{Link, LinkChange, LinkKind, LinkMove, LinkName, NewLink, Route};
use types::{Context as _, Fields, Filter, Result};

use super::spec::{KindFlags, SpecFlags, place};
use crate::out::{self, Pad, Table};
use crate::text;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Create an interface.
    Create(Box<Create>),
    /// Change, move or rename an interface.
    Set(Box<Set>),
    /// List interfaces.
    #[command(visible_alias = "list")]
    Ls {
        /// Their network namespace; without it the daemon's.
        #[arg(long, default_value = "host")]
        netns: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// Only those that pass one of these filters.
        filters: Vec<String>,
    },
    /// Remove interfaces.
    #[command(visible_aliases = ["del", "delete", "remove"])]
    Rm {
        /// Their network namespace; without it the daemon's.
        #[arg(long, default_value = "host")]
        netns: String,
        /// Their names.
        #[arg(required = true)]
        names: Vec<LinkName>,
    },
}

/// Arguments of `create`.
#[derive(Debug, clap::Args)]
pub(super) struct Create {
    /// Its network namespace; without it the daemon's.
    #[arg(long, default_value = "host")]
    netns: String,
    #[command(flatten)]
    kind: KindFlags,
    #[command(flatten)]
    spec: SpecFlags,
    /// Its labels, as `key=value`.
    #[arg(long)]
    label: Vec<String>,
    /// Its name.
    name: LinkName,
}

/// Arguments of `set`.
#[derive(Debug, clap::Args)]
pub(super) struct Set {
    /// Its network namespace; without it the daemon's.
    #[arg(long, default_value = "host")]
    netns: String,
    #[command(flatten)]
    spec: SpecFlags,
    /// Set it down.
    #[arg(long, conflicts_with = "up")]
    down: bool,
    /// Detach it from its bridge.
    #[arg(long, conflicts_with = "bridge")]
    no_bridge: bool,
    /// It has no addresses.
    #[arg(long, conflicts_with = "address")]
    no_addresses: bool,
    /// It has no routes that somebody wrote.
    #[arg(long, conflicts_with = "route")]
    no_routes: bool,
    /// Labels to set, as `key=value`; an empty value clears one.
    #[arg(long)]
    label: Vec<String>,
    /// Move it to this network namespace first, `host` for the daemon's.
    #[arg(long)]
    to_netns: Option<String>,
    /// Give it another name first.
    #[arg(long)]
    rename: Option<LinkName>,
    /// Its name.
    name: LinkName,
}

/// Runs a command of the group.
pub(super) async fn run(client: &Client, command: Command) -> Result<()> {
    let networks = client.networks();
    match command {
        Command::Create(create) => {
            let new = NewLink {
                place: place(&create.netns),
                name: create.name,
                kind: create.kind.kind()?,
                spec: create.spec.spec(),
                labels: text::labels_with(&create.label, ""),
            };
            networks.create_link(&new).await?;
            out::line(&new.name)
        }
        Command::Set(set) => self::set(client, *set).await,
        Command::Ls {
            netns,
            json,
            filters,
        } => {
            let all = networks
                .list_links(&place(&netns), &Filter::parse(&filters)?)
                .await?;
            if json {
                return out::json(&all.iter().map(document).collect::<Vec<_>>());
            }
            table(&all).print()
        }
        Command::Rm { netns, names } => {
            for name in names {
                let done = networks.delete_link(&place(&netns), &name).await;
                done.ctx_with(|| format!("failed to remove interface {:?}", name.as_str()))?;
                out::line(&name)?;
            }
            Ok(())
        }
    }
}

async fn set(client: &Client, set: Set) -> Result<()> {
    let networks = client.networks();
    let (mut at, mut name) = (place(&set.netns), set.name);
    if set.to_netns.is_some() || set.rename.is_some() {
        let to = LinkMove {
            place: set.to_netns.as_deref().map_or_else(|| at.clone(), place),
            name: set.rename.unwrap_or_else(|| name.clone()),
        };
        networks.move_link(&at, &name, &to).await?;
        (at, name) = (to.place, to.name);
    }
    let mut spec = set.spec.spec();
    if set.down {
        spec.up = Some(false);
    }
    if set.no_bridge {
        spec.attachment = Some(None);
    }
    if set.no_addresses {
        spec.addresses = Some(Vec::new());
    }
    if set.no_routes {
        spec.routes = Some(Vec::new());
    }
    let labels = text::labels_with(&set.label, "");
    let paths: Vec<String> = labels.keys().map(|key| format!("labels.{key}")).collect();
    let change = LinkChange {
        spec,
        labels: (!labels.is_empty()).then(|| (labels, Fields::new(paths))),
    };
    if change != LinkChange::default() {
        networks.update_link(&at, &name, &change).await?;
    }
    out::line(&name)
}

fn table(all: &[Link]) -> Table {
    let mut table = Table::new(Pad::NARROW);
    table.row([
        "NAME",
        "KIND",
        "OTHER",
        "STATE",
        "MTU",
        "MAC",
        "BRIDGE",
        "ADDRESSES",
        "",
    ]);
    for link in all {
        let dash = |text: String| {
            if text.is_empty() {
                "-".to_owned()
            } else {
                text
            }
        };
        let addresses: Vec<String> = link.addresses.iter().map(ToString::to_string).collect();
        table.row([
            link.name.to_string(),
            dash(link.kind.as_str().to_owned()),
            dash(
                link.kind
                    .other()
                    .map(|other| other.name.to_string())
                    .unwrap_or_default(),
            ),
            if link.up { "up" } else { "down" }.to_owned(),
            link.mtu.to_string(),
            dash(link.mac.map(|mac| mac.to_string()).unwrap_or_default()),
            dash(
                link.attachment
                    .as_ref()
                    .map(|to| to.bridge.to_string())
                    .unwrap_or_default(),
            ),
            dash(addresses.join(",")),
            String::new(),
        ]);
    }
    table
}

fn document(link: &Link) -> Value {
    let mut made = json!({
        "name": link.name.as_str(),
        "networkNamespace": link.place.name(),
        "index": link.index,
        "kind": link.kind.as_str(),
        "mtu": link.mtu,
        "up": link.up,
        "running": link.running,
        "addresses": link.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "routes": link.routes.iter().map(route).collect::<Vec<_>>(),
        "neighbours": link.neighbours.iter().map(|one| json!({
            "address": one.address,
            "mac": one.mac.to_string(),
        })).collect::<Vec<_>>(),
        "labels": *link.labels,
    });
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            made[key] = value;
        }
    };
    put("mac", link.mac.map(|mac| json!(mac.to_string())));
    put(
        "other",
        link.kind.other().map(|other| json!(other.name.as_str())),
    );
    put(
        "createdAt",
        link.created_at.map(|at| json!(text::rfc3339(at))),
    );
    put(
        "attachment",
        link.attachment.as_ref().map(|to| {
            json!({
                "bridge": to.bridge.as_str(),
                "hairpin": to.hairpin,
                "isolated": to.isolated,
            })
        }),
    );
    match &link.kind {
        LinkKind::Macvlan(_, mode) => put("mode", Some(json!(mode.as_str()))),
        LinkKind::Ipvlan(_, mode) => put("mode", Some(json!(mode.as_str()))),
        LinkKind::Vlan(_, id) => put("id", Some(json!(id))),
        LinkKind::Vxlan(vxlan) => {
            put("id", Some(json!(vxlan.vni)));
            put("remote", vxlan.remote.map(|ip| json!(ip)));
            put("local", vxlan.local.map(|ip| json!(ip)));
            put("port", vxlan.port.map(|port| json!(port)));
            put("learning", Some(json!(!vxlan.no_learning)));
        }
        _ => {}
    }
    made
}

pub(super) fn route(route: &Route) -> Value {
    let mut made = json!({ "destination": route.destination.to_string(), "onLink": route.on_link });
    let numbers = [
        ("metric", route.metric),
        ("table", route.table),
        ("mtu", route.mtu),
    ];
    for (key, number) in numbers {
        if let Some(number) = number {
            made[key] = json!(number);
        }
    }
    for (key, ip) in [("gateway", route.gateway), ("source", route.source)] {
        if let Some(ip) = ip {
            made[key] = json!(ip);
        }
    }
    made
}
