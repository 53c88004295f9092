//! `containerd.services.introspection.v1.Introspection`: what runs here.

use std::sync::Arc;

use async_trait::async_trait;
use client::{fsck, holders};
use grpc::introspection::Introspection as Service;
use grpc::{serve_unscoped, serve_unscoped_cancellable, status};
use protos::MessageField;
use protos::rpc;
use protos::services::introspection::{
    Plugin, PluginInfoRequest, PluginInfoResponse, PluginsRequest, PluginsResponse, ServerResponse,
};
use protos::well_known::Empty;
use protos::wire::Wire as _;
use runtime_v2::TaskManager;
use tonic::{Request, Response, Status};
use types::{Any, Error, Result};

use super::filter;

use crate::fsck::Checker;
use crate::identity::Identity;
use crate::point::Row;

/// Kind and id of the plugin that looks into runtimes.
const RUNTIME: (&str, &str) = ("io.containerd.runtime.v2", "task");

/// Lists plugins and tells who the server is.
#[derive(Debug)]
pub(crate) struct Introspection {
    /// Every plugin.
    pub(crate) rows: Arc<[Row]>,
    /// Who we are.
    pub(crate) identity: Arc<Identity>,
    /// Knows the runtimes.
    pub(crate) tasks: Arc<dyn TaskManager>,
    /// Checks what is kept.
    pub(crate) checker: Checker,
}

#[async_trait]
impl Service for Introspection {
    async fn plugins(
        &self,
        request: Request<PluginsRequest>,
    ) -> Result<Response<PluginsResponse>, Status> {
        let rows = Arc::clone(&self.rows);
        serve_unscoped(request, |request| async move {
            let filter = filter(&request.filters)?;
            let matching = rows.iter().filter(|row| filter.matches(*row));
            Ok(PluginsResponse {
                plugins: matching.map(plugin).collect(),
                ..Default::default()
            })
        })
        .await
    }

    async fn server(&self, request: Request<Empty>) -> Result<Response<ServerResponse>, Status> {
        let identity = Arc::clone(&self.identity);
        serve_unscoped(request, |_| async move {
            Ok(ServerResponse {
                uuid: identity.uuid.clone(),
                pid: identity.pid.into(),
                pidns: identity.pid_namespace,
                ..Default::default()
            })
        })
        .await
    }

    async fn plugin_info(
        &self,
        request: Request<PluginInfoRequest>,
    ) -> Result<Response<PluginInfoResponse>, Status> {
        let (rows, tasks) = (Arc::clone(&self.rows), Arc::clone(&self.tasks));
        let checker = self.checker.clone();
        // A plugin may take its time to look: it ends with its client. A repair is its own affair.
        serve_unscoped_cancellable(request, |request| async move {
            let row = find(&rows, &request.type_, &request.id)?;
            let extra = match Option::<Any>::from_wire(request.options)? {
                Some(options) => Some(look(row, options, &*tasks, &checker).await?),
                None => None,
            };
            Ok(PluginInfoResponse {
                plugin: MessageField::some(plugin(row)),
                extra: extra.to_wire(),
                ..Default::default()
            })
        })
        .await
    }
}

fn find<'a>(rows: &'a [Row], kind: &str, id: &str) -> Result<&'a Row> {
    rows.iter()
        .find(|row| row.kind == kind && row.id == id)
        .ok_or_else(|| Error::not_found(format_args!("plugin {kind}.{id}")))
}

/// Asks the plugin itself.
async fn look(row: &Row, options: Any, tasks: &dyn TaskManager, checker: &Checker) -> Result<Any> {
    if let Some((_, text)) = &row.failure {
        return Err(Error::failed_precondition(text).ctx("plugin is not usable"));
    }
    match (row.kind, row.id.as_str()) {
        RUNTIME => {}
        fsck::PLUGIN if options.type_url == holders::QUESTION_URL => {
            let (namespace, of) = holders::question_from_any(&options)?;
            let found = checker.holders(&namespace, &of).await?;
            return Ok(holders::holders_to_any(&found));
        }
        fsck::PLUGIN => {
            let opts = fsck::options_from_any(&options)?;
            return Ok(fsck::report_to_any(&checker.check(opts).await?));
        }
        (kind, id) => {
            return Err(Error::not_implemented(format_args!(
                "plugin {kind}.{id} gives no further information"
            )));
        }
    }
    let request: protos::types::RuntimeRequest = protos::any::unpack(&options)?;
    let options = Option::<Any>::from_wire(request.options)?;
    tasks.runtime_info(&request.runtime_path, options).await
}

fn plugin(row: &Row) -> Plugin {
    Plugin {
        type_: row.kind.to_owned(),
        id: row.id.clone(),
        requires: row.requires.iter().map(|kind| (*kind).to_owned()).collect(),
        platforms: row.facts.platforms.to_wire(),
        exports: row.facts.exports.clone().into_iter().collect(),
        capabilities: row.facts.capabilities.clone(),
        init_err: row
            .failure
            .as_ref()
            .map(|(code, text)| rpc::Status {
                code: status::code_to_wire(*code) as i32,
                message: text.clone(),
                ..Default::default()
            })
            .into(),
        ..Default::default()
    }
}
