//! Version, server, plugins.

use grpc::introspection::IntrospectionClient;
use grpc::version::VersionClient;
use protos::MessageField;
use protos::services::introspection as wire;
use protos::well_known::Empty;
use protos::wire::Wire as _;
use types::{
    Any, CheckOpts, Code, Error, Filter, Holders, Namespace, Platform, Report, Resource, Result,
};

use crate::again::Again;
use crate::call::done;
use crate::{fsck, holders};

super::service! {
    /// What a daemon tells about itself.
    Introspection, IntrospectionClient<Again>
}

/// Version of a daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Version.
    pub version: String,
    /// Revision of its source.
    pub revision: String,
}

/// Identity of a daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerInfo {
    /// Made once per root directory.
    pub uuid: String,
    /// Pid, 0 from an old daemon.
    pub pid: u64,
    /// Inode of its pid namespace.
    pub pidns: u64,
    /// Features in use that will go: id and message.
    pub deprecations: Vec<(String, String)>,
}

/// Why a plugin does not work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginFault {
    /// gRPC's word for the class.
    pub code: String,
    /// What happened.
    pub message: String,
}

/// A part of a daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plugin {
    /// Type, as `io.containerd.snapshotter.v1`.
    pub kind: String,
    /// Id within the type.
    pub id: String,
    /// Types that it needs.
    pub requires: Vec<String>,
    /// Platforms that it supports.
    pub platforms: Vec<Platform>,
    /// What it tells about itself, by name.
    pub exports: Vec<(String, String)>,
    /// Capabilities.
    pub capabilities: Vec<String>,
    /// Why it does not work, when it does not.
    pub fault: Option<PluginFault>,
}

impl Plugin {
    /// `ok`, `skip` or `error`.
    #[must_use]
    pub fn status(&self) -> &'static str {
        match &self.fault {
            None => "ok",
            // Parity: plugin/context.go: a skipped plugin is known by this text.
            Some(fault) if fault.message.contains("skip plugin") => "skip",
            Some(_) => "error",
        }
    }

    fn from_proto(plugin: wire::Plugin) -> Result<Self> {
        let mut exports: Vec<_> = plugin.exports.into_iter().collect();
        exports.sort();
        let fault = plugin.init_err.into_option().map(|status| PluginFault {
            code: format!("{:?}", tonic::Code::from_i32(status.code)),
            message: status.message,
        });
        Ok(Self {
            kind: plugin.type_,
            id: plugin.id,
            requires: plugin.requires,
            platforms: Vec::from_wire(plugin.platforms)?,
            exports,
            capabilities: plugin.capabilities,
            fault,
        })
    }
}

impl Introspection {
    /// The daemon's version.
    ///
    /// # Errors
    /// Of the call.
    pub async fn version(&self) -> Result<Version> {
        let mut stub = VersionClient::new(self.caller.channel());
        let answer = done(stub.version(self.caller.request(Empty::new())?).await)?;
        Ok(Version {
            version: answer.version,
            revision: answer.revision,
        })
    }

    /// The daemon's identity.
    ///
    /// # Errors
    /// Of the call.
    pub async fn server(&self) -> Result<ServerInfo> {
        let answer = done(self.stub().server(self.caller.request(Empty::new())?).await)?;
        Ok(ServerInfo {
            uuid: answer.uuid,
            pid: answer.pid,
            pidns: answer.pidns,
            deprecations: answer
                .deprecations
                .into_iter()
                .map(|d| (d.id, d.message))
                .collect(),
        })
    }

    /// The daemon's plugins that pass the filter (fields `type` and `id`).
    ///
    /// # Errors
    /// Of the call.
    pub async fn plugins(&self, filter: &Filter) -> Result<Vec<Plugin>> {
        let message = wire::PluginsRequest {
            filters: filter.texts().to_vec(),
            ..Default::default()
        };
        let answer = done(self.stub().plugins(self.caller.request(message)?).await)?;
        answer.plugins.into_iter().map(Plugin::from_proto).collect()
    }

    /// Has the daemon check its records and files. It takes as long as reading them does.
    ///
    /// # Errors
    /// Of the call; `NotImplemented` from a daemon that does not know how.
    pub async fn check(&self, opts: &CheckOpts) -> Result<Report> {
        let message = asking(&fsck::options_to_any(opts));
        let answer = done(self.stub().plugin_info(self.caller.endless(message)?).await);
        let answer = answer.map_err(|error| match error.is_not_found() {
            true => Error::not_implemented("this daemon does not check itself"),
            false => error,
        })?;
        let report = Option::<Any>::from_wire(answer.extra)?;
        fsck::report_from_any(&report.unwrap_or_default())
    }

    /// What keeps a blob or a snapshot of a namespace.
    ///
    /// # Errors
    /// `NotFound` when it is not there; of the call; `NotImplemented` from a daemon that does not know.
    pub async fn holders(&self, namespace: &Namespace, of: &Resource) -> Result<Holders> {
        let message = asking(&holders::question_to_any(namespace, of));
        let answer = done(self.stub().plugin_info(self.caller.request(message)?).await);
        let answer = answer.map_err(untold)?;
        let answer = Option::<Any>::from_wire(answer.extra)?;
        holders::holders_from_any(&answer.unwrap_or_default())
    }
}

/// The error of a daemon that does not know the question as what it is: it has no plugin that knows the records,
/// or takes the question for that for a check. All others are about what was asked.
fn untold(error: Error) -> Error {
    let (kind, id) = fsck::PLUGIN;
    let text = error.to_string();
    let is_unknown = match error.code() {
        Code::NotFound => text.contains(&format!("{kind}.{id}")),
        Code::InvalidArgument => text.contains(holders::QUESTION_URL),
        _ => false,
    };
    if is_unknown {
        Error::not_implemented("this daemon does not tell what keeps an object")
    } else {
        error
    }
}

/// A request to the plugin that knows the records.
fn asking(options: &Any) -> wire::PluginInfoRequest {
    let (kind, id) = fsck::PLUGIN;
    wire::PluginInfoRequest {
        type_: kind.to_owned(),
        id: id.to_owned(),
        options: MessageField::some(options.to_wire()),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_does_not_know_the_question_does_not_tell() {
        let (kind, id) = fsck::PLUGIN;
        let asked = holders::question_to_any(
            &"n".parse().unwrap(),
            &Resource::Image("plugin of a team".into()),
        );
        let earlier = fsck::options_from_any(&asked).unwrap_err();
        for error in [
            Error::not_found(format_args!("plugin {kind}.{id}")),
            earlier,
        ] {
            let text = error.to_string();
            assert!(untold(error).is(Code::NotImplemented), "{text}");
        }
        for error in [
            Error::not_found("plugin of a team"),
            Error::invalid_argument("plugin name"),
            Error::unavailable(format_args!("plugin {kind}.{id}")),
        ] {
            let (code, text) = (error.code(), error.to_string());
            let told = untold(error);
            assert_eq!((told.code(), told.to_string()), (code, text));
        }
    }
}
