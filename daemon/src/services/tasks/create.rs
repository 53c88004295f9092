//! From a create request to what the runtime needs: container record, options, checkpoint.

use protos::any::{is, unpack};
use protos::runc::Options;
use protos::services::tasks::CreateTaskRequest;
use protos::wire::Wire as _;
use runtime_v2::{Checkpoint, CreateOpts, Stdio};
use types::{Any, ContainerId, Descriptor, Error, Mount, Result, Scope};

use super::Tasks;
use crate::checkpoints::Private;
use crate::services::known;

/// Everything for the task of a container, and the checkpoint that was unpacked for it: to be kept
/// until the task has taken it over.
///
/// # Errors
/// `AlreadyExists` when a checkpoint would be unpacked in vain; `NotFound` for the container or the checkpoint; `InvalidArgument` for options that do not parse and
/// for what is no checkpoint; `NotImplemented` for a sandbox's endpoint.
pub(super) async fn gather(
    tasks: &Tasks,
    scope: &Scope,
    request: CreateTaskRequest,
) -> Result<(ContainerId, CreateOpts, Option<Private>)> {
    if !request.task_api_address.is_empty() {
        return Err(Error::not_implemented("tasks in a sandbox's own endpoint"));
    }
    let id: ContainerId = known(&request.container_id, "container")?;
    let container = tasks.metadata.containers(scope).get(&id).await?;
    let spec = container
        .spec
        .ok_or_else(|| Error::failed_precondition(format_args!("container {id:?} has no spec")))?;
    let asked = Option::<Any>::from_wire(request.options)?.filter(|options| !options.is_empty());
    let rootfs = Vec::<Mount>::from_wire(request.rootfs)?;
    let named = asked.as_ref().map(image_path).transpose()?.flatten();
    let blob = request.checkpoint.into_option();
    let (checkpoint, unpacked) = match (named, blob) {
        // Parity: services/tasks/local.go: the path goes before the blob.
        (Some(path), _) => (Some(Checkpoint::At(path)), None),
        (None, Some(blob)) => {
            let blob = Descriptor::from_wire(blob)?;
            // Gigabytes, for a task that is there already.
            tasks.manager.check_free(&scope.namespace, &id)?;
            let store = tasks.metadata.scoped(scope).content();
            let unpacked = tasks.checkpoints.unpack(&store, &blob).await?;
            let path = unpacked.path().to_owned();
            (Some(Checkpoint::Given(path)), Some(unpacked))
        }
        (None, None) => (None, None),
    };
    let named = Some(request.runtime_path).filter(|path| !path.is_empty());
    let opts = CreateOpts {
        spec: spec.value,
        rootfs,
        stdio: Stdio {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        },
        runtime: named.unwrap_or(container.runtime.name),
        options: asked.or(container.runtime.options),
        checkpoint,
        sandbox: container.sandbox,
    };
    Ok((id, opts, unpacked))
}

/// Where runc's options say that the checkpoint to restore is.
fn image_path(options: &Any) -> Result<Option<String>> {
    if !is::<Options>(options) {
        return Ok(None);
    }
    let options: Options = unpack(options)?;
    Ok(Some(options.criu_image_path).filter(|path| !path.is_empty()))
}

#[cfg(test)]
mod tests {
    use types::Code;

    use super::*;

    #[test]
    fn only_runc_options_name_a_checkpoint() {
        let with = Options {
            criu_image_path: "/c".into(),
            ..Options::default()
        };
        for (options, path) in [
            (protos::any::pack(&with).unwrap(), Some("/c".to_owned())),
            (protos::any::pack(&Options::default()).unwrap(), None),
            (
                Any {
                    type_url: "other".into(),
                    value: vec![255],
                },
                None,
            ),
        ] {
            assert_eq!(image_path(&options).unwrap(), path);
        }
        let damaged = Any {
            type_url: "containerd.runc.v1.Options".into(),
            value: vec![255],
        };
        assert_eq!(
            image_path(&damaged).unwrap_err().code(),
            Code::InvalidArgument
        );
    }
}
