//! `network ls`, `status` and `collect`: what drivers have joined, whether they can, and what is forgotten.

use client::Client;
use serde_json::{Value, json};
use types::network::{Joined, PortMapping};
use types::{Filter, Result};

use crate::out::{self, Pad, Table};

/// Which attachments, and how they are shown.
#[derive(Debug, clap::Args)]
pub(super) struct Ls {
    /// Look at each of them, and say what is not as it was made.
    #[arg(long)]
    check: bool,
    /// Print only the containers.
    #[arg(short, long, conflicts_with = "check")]
    quiet: bool,
    /// Print JSON.
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    /// Only those that pass one of these filters, as `driver==bridge` or `container==web`.
    filters: Vec<String>,
}

/// Which driver.
#[derive(Debug, clap::Args)]
pub(super) struct Status {
    /// bridge or cni.
    #[arg(default_value = "bridge")]
    driver: String,
}

/// Which network, and whose.
#[derive(Debug, clap::Args)]
pub(super) struct Collect {
    /// Whose network it is; bridge knows of all its attachments anyway.
    #[arg(long, default_value = "cni")]
    driver: String,
    /// Its name.
    network: String,
}

/// Has a network forget what nobody here knows of.
pub(super) async fn collect(client: &Client, args: Collect) -> Result<()> {
    client.networks().collect(&args.driver, &args.network).await
}

/// Lists attachments.
pub(super) async fn ls(client: &Client, args: Ls) -> Result<()> {
    let filter = Filter::parse(&args.filters)?;
    let all = client
        .networks()
        .list_attachments(&filter, args.check)
        .await?;
    if args.quiet {
        out::lines(all.iter().map(|one| &one.id.container))
    } else if args.json {
        out::json(&all.iter().map(document).collect::<Vec<_>>())
    } else {
        table(&all, args.check).print()
    }
}

/// Says whether a driver can join anything now.
pub(super) async fn status(client: &Client, args: Status) -> Result<()> {
    let warnings = client.networks().driver_status(&args.driver).await?;
    out::line(&format_args!("{}: ready", args.driver))?;
    out::lines(warnings.iter().map(|warning| format!("warning: {warning}")))
}

fn table(all: &[Joined], is_checked: bool) -> Table {
    let mut table = Table::new(Pad::NARROW);
    table.row([
        "CONTAINER",
        "INTERFACE",
        "DRIVER",
        "NETWORK",
        "ADDRESSES",
        "PORTS",
        "STATE",
        "",
    ]);
    for one in all {
        let addresses: Vec<_> = one.addresses.iter().map(ToString::to_string).collect();
        let ports: Vec<_> = one.ports.iter().map(port).collect();
        let state = match one.fault.as_str() {
            "" if is_checked => format!("{}, whole", one.state.as_str()),
            "" => one.state.as_str().to_owned(),
            fault => format!("{}, {fault}", one.state.as_str()),
        };
        table.row([
            one.id.container.as_str(),
            or_dash(&one.interface),
            &one.driver,
            or_dash(&one.network),
            or_dash(&addresses.join(",")),
            or_dash(&ports.join(",")),
            &state,
            "",
        ]);
    }
    table
}

fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

/// As an argument of `setup` has it.
fn port(port: &PortMapping) -> String {
    let host = match port.host_ip {
        Some(ip) if ip.is_ipv6() => format!("[{ip}]:"),
        Some(ip) => format!("{ip}:"),
        None => String::new(),
    };
    let protocol = port.protocol.as_str();
    format!(
        "{host}{}:{}/{protocol}",
        port.host_port, port.container_port
    )
}

fn document(one: &Joined) -> Value {
    json!({
        "container": one.id.container.as_str(),
        "interface": one.interface,
        "driver": one.driver,
        "network": one.network,
        "path": one.netns.display().to_string(),
        "addresses": one.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "ports": one.ports.iter().map(|port| json!({
            "protocol": port.protocol.as_str(),
            "hostIP": port.host_ip,
            "hostPort": port.host_port,
            "containerPort": port.container_port,
        })).collect::<Vec<_>>(),
        "state": one.state.as_str(),
        "fault": one.fault,
    })
}
