//! Making a container: record, snapshot and spec.
//!
//! Invariant: what was made before a failure is removed again; all of it happens under a lease, so
//! that the collector cannot come between the steps.

use std::path::Path;
use std::time::SystemTime;

use ::images::PlatformSet;
use client::Client;
use client::spec::{DEFAULT_PATH, Spec, UserSpec, is_reserved_label};
use transfer::{Deps, OnProgress};
use types::{
    Code, Container, ContainerId, Context as _, Descriptor, Error, Errors, Labels, Mount, Result,
    Runtime, SnapshotKey,
};

use crate::flags::{ContainerFlags, read};
use crate::network::container;
use crate::pull::{deps, interruptible};
use crate::text;

/// Label with the signal that stops a container, as Go's client keeps it.
pub(crate) const STOP_SIGNAL: &str = "io.containerd.image.config.stop-signal";
/// Signal that stops a container whose image names none.
const DEFAULT_STOP_SIGNAL: &str = "SIGTERM";

/// What stands before and after the flags: `IMAGE|ROOTFS ID [COMMAND...]`, with `--config` only `ID`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// Image reference or root file system; empty with `--config`.
    pub(crate) source: String,
    /// Id of the container.
    pub(crate) id: ContainerId,
    /// Command, empty for the image's.
    pub(crate) command: Vec<String>,
}

impl Target {
    /// Reads the positional arguments.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub(crate) fn parse(words: &[String], from_config: bool) -> Result<Self> {
        let missing = |what: &str| Error::invalid_argument(format_args!("{what} must be provided"));
        let (source, rest) = if from_config {
            ("", words)
        } else {
            let (first, rest) = words.split_first().ok_or_else(|| missing("image ref"))?;
            (first.as_str(), rest)
        };
        let (id, command) = rest.split_first().ok_or_else(|| missing("container id"))?;
        if from_config && !command.is_empty() {
            return Err(Error::invalid_argument(
                "with spec config file, only container id should be provided",
            ));
        }
        Ok(Self {
            source: source.to_owned(),
            id: id.parse().ctx("container.ID")?,
            command: command.to_vec(),
        })
    }
}

/// A container that was just made.
#[derive(Debug)]
pub(crate) struct Made {
    /// Its record.
    pub(crate) record: Container,
    /// Its spec.
    pub(crate) spec: Spec,
    /// Mounts of its root file system; none when the spec names a directory.
    pub(crate) rootfs: Vec<Mount>,
}

/// Makes the container.
pub(crate) async fn create(
    client: &Client,
    flags: &ContainerFlags,
    target: Target,
) -> Result<Made> {
    flags.network()?;
    let name = client.runtime_name(flags.runtime()).await?;
    let options = flags.runtime_options(&name)?;
    let runtime = Runtime { name, options };
    client
        .with_lease(async |client: Client| {
            let record = blank(&target.id, flags, runtime);
            if let Some(config) = &flags.config {
                let spec = Spec::parse(&read(config)?)
                    .ctx_with(|| format!("spec config file {}", config.display()))?;
                if flags.tty && !spec.terminal() {
                    return Err(Error::invalid_argument(
                        "--tty with a spec config file that has no terminal",
                    ));
                }
                return record_it(&client, record, spec, Vec::new(), flags).await;
            }
            let mut spec = Spec::linux(client.namespace(), &target.id);
            flags.environment(&mut spec)?;
            if flags.rootfs {
                return from_directory(&client, flags, &target, record, spec).await;
            }
            from_image(&client, flags, &target, record, spec).await
        })
        .await
}

fn blank(id: &ContainerId, flags: &ContainerFlags, runtime: Runtime) -> Container {
    // The daemon stamps the times.
    let now = SystemTime::UNIX_EPOCH;
    Container {
        id: id.clone(),
        labels: text::parse_labels(&flags.label),
        image: String::new(),
        runtime,
        spec: None,
        snapshotter: String::new(),
        snapshot_key: String::new(),
        extensions: Default::default(),
        sandbox: flags.sandbox.clone(),
        created_at: now,
        updated_at: now,
    }
}

/// A container in a directory that nobody manages.
async fn from_directory(
    client: &Client,
    flags: &ContainerFlags,
    target: &Target,
    record: Container,
    mut spec: Spec,
) -> Result<Made> {
    let path = Path::new(&target.source);
    let root = path
        .canonicalize()
        .map_err(|e| Error::os(format_args!("rootfs {}", target.source), e))?;
    spec.root_path(&root);
    // What comes from the flags wins.
    let mut env = vec![DEFAULT_PATH.to_owned()];
    env.extend(spec.environment());
    spec.env(&env);
    flags.apply(&mut spec, &target.command)?;
    if let Some(user) = &flags.user {
        spec.user(&user.resolve(&root)?);
    }
    record_it(client, record, spec, Vec::new(), flags).await
}

/// A container on a fresh snapshot of an image.
async fn from_image(
    client: &Client,
    flags: &ContainerFlags,
    target: &Target,
    mut record: Container,
    mut spec: Spec,
) -> Result<Made> {
    let image = client.images().get(&target.source).await?;
    let wanted = match &flags.platform {
        Some(platform) => PlatformSet::Only(vec![platform.clone()]),
        None => PlatformSet::default(),
    };
    let snapshotter_name = client.snapshotter_name(&flags.snapshotter).await?;
    let deps = deps(client, &snapshotter_name);
    let key: SnapshotKey = target.id.as_str().parse()?;
    let labels: Labels = text::parse_labels(&flags.snapshotter_label)
        .into_iter()
        .chain(
            flags
                .mapping_labels()
                .map(|(key, value)| (key.to_owned(), value)),
        )
        .collect();
    let snapshotter = &deps.snapshotter;
    let (config, mounts) = snapshot_of(&deps, &image.target, &wanted, &key, labels).await?;
    let made = async {
        spec.apply_image(&config.process);
        flags.apply(&mut spec, &target.command)?;
        if !spec.has_args() {
            return Err(Error::invalid_argument(
                "no command: neither the image nor the command line has one",
            ));
        }
        let user = match (&flags.user, config.process.user.as_str()) {
            (Some(user), _) => user.clone(),
            (None, "") => "0".parse()?,
            (None, user) => user.parse()?,
        };
        resolve_user(&mut spec, user, &mounts).await?;
        let of_image = config
            .process
            .labels
            .iter()
            .filter(|(key, _)| !is_reserved_label(key));
        let mut labels: Labels = of_image.map(|(k, v)| (k.clone(), v.clone())).collect();
        labels.extend(image.labels.clone());
        labels.extend(std::mem::take(&mut record.labels));
        labels.insert(
            STOP_SIGNAL.to_owned(),
            stop_signal(&config.process.stop_signal),
        );
        record.labels = labels;
        record.image.clone_from(&image.name);
        record.snapshotter = snapshotter_name;
        record.snapshot_key = key.to_string();
        record_it(client, record, spec, mounts.clone(), flags).await
    };
    let made = made.await;
    if made.is_err()
        && let Err(error) = snapshotter.remove(&key).await
    {
        tracing::warn!(%error, %key, "cannot remove snapshot");
    }
    made
}

/// A fresh snapshot of an image, which is unpacked first when it was not before.
pub(crate) async fn snapshot_of(
    deps: &Deps,
    image: &Descriptor,
    wanted: &PlatformSet,
    key: &SnapshotKey,
    labels: Labels,
) -> Result<(::images::Config, Vec<Mount>)> {
    let config = ::images::config(deps.content.as_ref(), image, wanted).await?;
    let parent = match ::images::chain_of(&config.diff_ids)? {
        Some(chain) => Some(chain.as_str().parse::<SnapshotKey>()?),
        None => None,
    };
    let prepare = |labels| deps.snapshotter.prepare(key, parent.as_ref(), labels);
    let mounts = match prepare(labels.clone()).await {
        Err(e) if e.is_not_found() => {
            // Not unpacked yet, or not for this snapshotter.
            let quiet = OnProgress::default();
            let unpacked = transfer::unpack_image(deps, image, wanted, &quiet);
            // The only step that takes long. The others are seen through.
            interruptible(unpacked).await?;
            prepare(labels).await?
        }
        other => other?,
    };
    Ok((config, mounts))
}

fn stop_signal(of_image: &str) -> String {
    if of_image.is_empty() {
        DEFAULT_STOP_SIGNAL.to_owned()
    } else {
        of_image.to_owned()
    }
}

/// Looks the user up in the container's own files, through a mount for reading only.
pub(crate) async fn resolve_user(spec: &mut Spec, user: UserSpec, mounts: &[Mount]) -> Result<()> {
    let mounts = sys::mount::read_only(mounts);
    let look_up = move || sys::mount::with_temp_mount(&mounts, |root| user.resolve(root));
    let found = tokio::task::spawn_blocking(look_up).await;
    let user = found.map_err(|e| Error::internal("look up user").with_source(e))??;
    spec.user(&user);
    Ok(())
}

async fn record_it(
    client: &Client,
    mut record: Container,
    mut spec: Spec,
    rootfs: Vec<Mount>,
    flags: &ContainerFlags,
) -> Result<Made> {
    flags.annotate_labels(&mut spec);
    let joined = flags.net.give(client, &mut record, &mut spec).await?;
    let made = async {
        record.spec = Some(spec.to_any()?);
        client.containers().create(&record).await
    };
    match made.await {
        Ok(record) => Ok(Made {
            record,
            spec,
            rootfs,
        }),
        Err(error) => {
            if let Some(joined) = joined {
                joined.undo(client).await;
            }
            Err(error)
        }
    }
}

/// Removes a container with its network and, with `snapshot`, the snapshot that it lives on.
pub(crate) async fn remove(client: &Client, record: &Container, snapshot: bool) -> Result<()> {
    // First, so that nobody starts it while it has half a network.
    client.containers().delete(&record.id).await?;
    let mut errors = Errors::default();
    errors.note(container::part(client, record).await);
    errors.note(remove_snapshot(client, record, snapshot).await);
    errors.into_result()
}

async fn remove_snapshot(client: &Client, record: &Container, snapshot: bool) -> Result<()> {
    if !snapshot || record.snapshot_key.is_empty() {
        return Ok(());
    }
    let key: SnapshotKey = record.snapshot_key.parse()?;
    let removed = client.snapshotter(&record.snapshotter).remove(&key).await;
    match removed {
        // The collector may be faster, and a snapshotter that is gone has no snapshots.
        Err(e) if e.is_not_found() || e.is(Code::InvalidArgument) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn positional_arguments_are_source_id_and_command() {
        let target = Target::parse(&words("img id sh -c x --rm"), false).unwrap();
        assert_eq!((target.source.as_str(), target.id.as_str()), ("img", "id"));
        assert_eq!(target.command, ["sh", "-c", "x", "--rm"]);
        let target = Target::parse(&words("id"), true).unwrap();
        assert_eq!((target.source.as_str(), target.id.as_str()), ("", "id"));
        for (line, config, text) in [
            ("", false, "image ref must be provided"),
            ("img", false, "container id must be provided"),
            ("img a/b", false, "container.ID: identifier \"a/b\""),
            ("img ..", false, "container.ID: identifier \"..\""),
            ("", true, "container id must be provided"),
            ("id sh", true, "with spec config file"),
        ] {
            let error = Target::parse(&words(line), config).unwrap_err();
            assert!(error.to_string().starts_with(text), "{line}: {error}");
            assert!(error.is(Code::InvalidArgument));
        }
    }
}
