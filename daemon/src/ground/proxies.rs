//! Plugins that other programs are: `[proxy_plugins]`.
//!
//! Invariant: nothing is asked of a program before somebody uses its plugin, and no call of it is
//! endless: one that hangs or is away costs its callers an error, and nobody else anything.

use std::sync::Arc;
use std::time::Duration;

use client::{Caller, Limits, Proxy};
use types::{Error, Result};

use crate::config::{Config, ProxyKind, ProxyPlugin};
use crate::point::{Candidate, Facts, Point, Row};

/// Kind of sandbox controllers.
const SANDBOX: &str = "io.containerd.sandbox.controller.v1";

/// How long a program may take. A snapshotter may fetch or convert a layer within a call.
const LIMITS: Limits = Limits {
    quick: Duration::from_secs(10),
    whole: Duration::from_secs(10 * 60),
};

/// The configured plugins of a kind; `make` makes one of who calls it, under
/// which name.
pub(crate) fn candidates<'a, T: ?Sized>(
    config: &'a Config,
    kind: ProxyKind,
    make: impl Fn(Caller, &str, &ProxyPlugin) -> Arc<T> + Copy + Send + 'a,
) -> impl Iterator<Item = Candidate<'a, T>> {
    let named = config.proxy_plugins.iter();
    let wanted = named.filter(move |(_, plugin)| plugin.kind == kind);
    wanted.map(move |(id, plugin)| {
        let build = move || -> Result<(Arc<T>, Facts)> {
            let proxy = Proxy::new(&plugin.address, LIMITS)?;
            Ok((make(proxy.caller(), id, plugin), facts(plugin)?))
        };
        Candidate {
            id,
            requires: &[],
            build: Box::new(build),
        }
    })
}

/// The configured plugins of a kind that this daemon has no place for: skipped, and told.
///
/// # Errors
/// `NotImplemented` for one that is required.
pub(crate) fn skipped(config: &Config) -> Result<Vec<Row>> {
    let named = config.proxy_plugins.iter();
    let sandboxes = named.filter(|(_, plugin)| plugin.kind == ProxyKind::Sandbox);
    let candidates = sandboxes.map(|(id, _)| {
        let build = move || -> Result<(Arc<()>, Facts)> {
            tracing::warn!(id, "proxy plugin of type \"sandbox\" is not used");
            Err(Error::not_implemented("sandboxes of other programs"))
        };
        Candidate {
            id: id.as_str(),
            requires: &[],
            build: Box::new(build),
        }
    });
    let point = Point::build(SANDBOX, config, candidates.collect())?;
    Ok(point.rows().to_vec())
}

/// What the configuration says of one: the program is not asked.
fn facts(plugin: &ProxyPlugin) -> Result<Facts> {
    let mut facts = match plugin.platform.as_str() {
        "" => Facts::of_host(),
        text => Facts {
            platforms: vec![text.parse().map_err(|e: Error| e.ctx("platform"))?],
            ..Facts::default()
        },
    };
    facts.exports = plugin.exports.clone();
    facts.capabilities = plugin.capabilities.clone();
    Ok(facts)
}
