//! From a create request to what the runtime needs: container record, options, checkpoint.

use metadata::Metadata;
use protos::any::{is, unpack};
use protos::runc::{CheckpointOptions, Options};
use protos::services::tasks::CreateTaskRequest;
use protos::wire::Wire as _;
use runtime_v2::{CreateOpts, Stdio};
use types::{Any, ContainerId, Error, Mount, Result, Scope};

use crate::services::known;

/// Everything for the task of a container.
///
/// # Errors
/// `NotFound` for the container; `InvalidArgument` for options that do not parse; `NotImplemented`
/// for a checkpoint in the content store and for a sandbox's endpoint.
pub(super) async fn gather(
    metadata: &Metadata,
    scope: &Scope,
    request: CreateTaskRequest,
) -> Result<(ContainerId, CreateOpts)> {
    if !request.task_api_address.is_empty() {
        return Err(Error::not_implemented("tasks in a sandbox's own endpoint"));
    }
    if request.checkpoint.is_some() {
        return Err(Error::not_implemented(
            "restore from a checkpoint in the content store",
        ));
    }
    let id: ContainerId = known(&request.container_id, "container")?;
    let container = metadata.containers(scope).get(&id).await?;
    let spec = container
        .spec
        .ok_or_else(|| Error::failed_precondition(format_args!("container {id:?} has no spec")))?;
    let asked = Option::<Any>::from_wire(request.options)?.filter(|options| !options.is_empty());
    let checkpoint = asked.as_ref().map(image_path).transpose()?.flatten();
    let named = Some(request.runtime_path).filter(|path| !path.is_empty());
    let opts = CreateOpts {
        spec: spec.value,
        rootfs: Vec::<Mount>::from_wire(request.rootfs)?,
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
    Ok((id, opts))
}

/// Where runc's options say that the checkpoint to restore is.
fn image_path(options: &Any) -> Result<Option<String>> {
    if !is::<Options>(options) {
        return Ok(None);
    }
    let options: Options = unpack(options)?;
    Ok(Some(options.criu_image_path).filter(|path| !path.is_empty()))
}

/// Where a checkpoint is to be written.
///
/// # Errors
/// `NotImplemented` when the options name no directory: then it would go to the content store.
pub(super) fn checkpoint_path(options: Option<&Any>) -> Result<String> {
    let path = match options {
        Some(options) if is::<CheckpointOptions>(options) => {
            unpack::<CheckpointOptions>(options)?.image_path
        }
        _ => String::new(),
    };
    if path.is_empty() {
        return Err(Error::not_implemented("checkpoint into the content store"));
    }
    Ok(path)
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

    #[test]
    fn a_checkpoint_needs_a_directory() {
        let with = CheckpointOptions {
            image_path: "/c".into(),
            ..CheckpointOptions::default()
        };
        assert_eq!(
            checkpoint_path(Some(&protos::any::pack(&with).unwrap())).unwrap(),
            "/c"
        );
        assert_eq!(
            checkpoint_path(None).unwrap_err().code(),
            Code::NotImplemented
        );
    }
}
