//! The index of a checkpoint: what is put into it, and what is read from it.
//!
//! Invariant: clients of Go's read what is written here, and the other way round.

use std::time::SystemTime;

use ::images::{Index, put_blob, read_blob};
use client::spec::Spec;
use client::{CheckpointOptions, Client};
use serde_json::{Map, Value, json};
use types::{
    Any, Container, ContainerId, Context as _, Descriptor, Error, Image, Labels, Platform, Result,
    Runtime, media_type,
};

use super::trust::Trust;
use crate::changes;

/// Annotations of a checkpoint's index: the image's name, for a container and for a task; runtime;
/// snapshotter.
const IMAGE: &str = "org.opencontainers.image.ref.name";
const TASK_IMAGE: &str = "image.name";
const RUNTIME: &str = "io.containerd.checkpoint.runtime";
const SNAPSHOTTER: &str = "io.containerd.checkpoint.snapshotter";
/// Longest index and longest typed value that are read.
const LIMIT: u64 = 8 << 20;

/// An image of this name can be made.
///
/// # Errors
/// `AlreadyExists`.
pub(super) async fn is_free(client: &Client, name: &str) -> Result<()> {
    match client.images().get(name).await.absent_ok()? {
        Some(_) => Err(Error::already_exists(format_args!("image {name:?}"))),
        None => Ok(()),
    }
}

/// What goes into the index of a checkpoint.
#[derive(Debug, Default)]
pub(super) struct Contents {
    manifests: Vec<Value>,
    digests: Vec<String>,
    annotations: Map<String, Value>,
}

impl Contents {
    /// What a task's checkpoint says of its container.
    pub(super) fn of_task(record: &Container) -> Self {
        let mut made = Self::default();
        made.describe(record);
        made.note(TASK_IMAGE, &record.image);
        made
    }

    fn note(&mut self, key: &str, value: &str) {
        if !value.is_empty() {
            self.annotations.insert(key.to_owned(), value.into());
        }
    }

    /// What a restore must know of the container.
    pub(super) fn describe(&mut self, record: &Container) {
        self.note(IMAGE, &record.image);
        self.note(RUNTIME, &record.runtime.name);
        self.note(SNAPSHOTTER, &record.snapshotter);
    }

    /// Adds a blob that is for this platform, or an image that says for itself what it is for.
    fn add(&mut self, blob: &Descriptor, here: bool) {
        let mut entry = json!({
            "mediaType": blob.media_type,
            "digest": blob.digest.as_str(),
            "size": blob.size,
        });
        if here {
            let host = Platform::host();
            entry["platform"] = json!({"architecture": host.architecture, "os": host.os});
        }
        let notes = blob.annotations.iter();
        let notes: Map<_, _> = notes.map(|(k, v)| (k.clone(), v.as_str().into())).collect();
        if !notes.is_empty() {
            entry["annotations"] = notes.into();
        }
        self.manifests.push(entry);
        self.digests.push(blob.digest.to_string());
    }

    pub(super) fn all(&mut self, blobs: Vec<Descriptor>) {
        for blob in blobs {
            self.add(&blob, true);
        }
    }

    pub(super) async fn image(&mut self, client: &Client, record: &Container) -> Result<()> {
        if !record.image.is_empty() {
            let image = client.images().get(&record.image).await?;
            self.add(&image.target, false);
        }
        Ok(())
    }

    pub(super) async fn runtime(&mut self, client: &Client, record: &Container) -> Result<()> {
        match &record.runtime.options {
            Some(options) if !options.is_empty() => {
                self.value(client, media_type::CHECKPOINT_RUNTIME_OPTIONS, options)
                    .await
            }
            _ => Ok(()),
        }
    }

    /// What the container has written into its root file system.
    pub(super) async fn changes(&mut self, client: &Client, record: &Container) -> Result<()> {
        if record.snapshot_key.is_empty() {
            return Ok(());
        }
        let key = record.snapshot_key.parse()?;
        let layer = changes::over_parent(client, &record.snapshotter, key).await?;
        self.add(&layer, true);
        Ok(())
    }

    pub(super) async fn task(&mut self, client: &Client, record: &Container) -> Result<()> {
        let options = CheckpointOptions {
            file_locks: true,
            ..CheckpointOptions::default()
        };
        let options = options.to_any()?;
        let tasks = client.tasks();
        self.all(tasks.checkpoint(&record.id, Some(options.clone())).await?);
        self.value(client, media_type::CHECKPOINT_OPTIONS, &options)
            .await
    }

    async fn value(&mut self, client: &Client, media_type: &str, any: &Any) -> Result<()> {
        let bytes = client::any_to_bytes(any)?;
        let size = bytes.len() as u64;
        let digest = put_blob(&*client.content(), bytes.into(), Labels::new()).await?;
        let blob = Descriptor {
            media_type: media_type.to_owned(),
            digest,
            size,
            annotations: Labels::new(),
        };
        self.add(&blob, true);
        Ok(())
    }

    /// Writes the index and the image that names it.
    pub(super) async fn save(self, client: &Client, name: &str, labels: Labels) -> Result<()> {
        let numbered = self.digests.iter().enumerate();
        let children: Labels = numbered
            .map(|(n, digest)| (format!("containerd.io/gc.ref.content.{n}"), digest.clone()))
            .collect();
        let text = self.index().to_string().into_bytes();
        let size = text.len() as u64;
        let digest = put_blob(&*client.content(), text.into(), children).await?;
        let now = SystemTime::UNIX_EPOCH;
        let image = Image {
            name: name.to_owned(),
            labels,
            target: Descriptor {
                media_type: media_type::OCI_INDEX.into(),
                digest,
                size,
                annotations: Labels::new(),
            },
            created_at: now,
            updated_at: now,
        };
        client.images().create(&image).await?;
        Ok(())
    }

    fn index(self) -> Value {
        json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_INDEX,
            "manifests": self.manifests,
            "annotations": self.annotations,
        })
    }
}

/// A checkpoint that was read.
#[derive(Debug)]
pub(super) struct Checkpoint {
    index: Index,
    name: String,
}

impl Checkpoint {
    pub(super) async fn load(client: &Client, name: &str) -> Result<Self> {
        let image = client.images().get(name).await?;
        let text = read_blob(&*client.content(), &image.target, LIMIT).await?;
        let index = Index::parse(&text, &image.target.media_type)
            .ctx_with(|| format!("image {name:?} is no checkpoint"))?;
        let name = name.to_owned();
        Ok(Self { index, name })
    }

    fn find(&self, media_type: &str) -> Option<&Descriptor> {
        let mut all = self.index.manifests.iter().map(|entry| &entry.descriptor);
        all.find(|blob| blob.media_type == media_type)
    }

    pub(super) fn need(&self, media_type: &str, what: &str) -> Result<&Descriptor> {
        self.find(media_type).ok_or_else(|| self.lacks(what))
    }

    fn note(&self, keys: &[&str], what: &str) -> Result<&str> {
        let found = keys.iter().find_map(|key| self.index.annotations.get(*key));
        found.map(String::as_str).ok_or_else(|| self.lacks(what))
    }

    fn lacks(&self, what: &str) -> Error {
        Error::failed_precondition(format_args!("checkpoint {:?} has no {what}", self.name))
    }

    /// The container's record, without a snapshot.
    ///
    /// # Errors
    /// `PermissionDenied` when it asks for what it is not trusted with.
    pub(super) async fn record(
        &self,
        client: &Client,
        id: &ContainerId,
        trust: Trust,
    ) -> Result<Container> {
        let store = client.content();
        let config = self.need(
            media_type::CHECKPOINT_CONFIG,
            "spec: it was made without the task",
        )?;
        let spec = client::any_from_bytes(&read_blob(&*store, config, LIMIT).await?)?;
        let mut spec = Spec::from_any(Some(&spec))?;
        spec.move_cgroup(client.namespace(), id);
        let options = match self.find(media_type::CHECKPOINT_RUNTIME_OPTIONS) {
            None => None,
            Some(blob) => Some(client::any_from_bytes(
                &read_blob(&*store, blob, LIMIT).await?,
            )?),
        };
        let name = self.note(&[RUNTIME], "runtime name")?.to_owned();
        let beyond = spec.beyond_default(client.namespace(), id);
        let runtime = trust.judge(beyond, Runtime { name, options });
        let runtime = runtime.ctx_with(|| format!("checkpoint {:?}", self.name))?;
        let now = SystemTime::UNIX_EPOCH;
        Ok(Container {
            id: id.clone(),
            labels: Labels::new(),
            image: self.note(&[IMAGE, TASK_IMAGE], "image name")?.to_owned(),
            runtime,
            spec: Some(spec.to_any()?),
            snapshotter: self.note(&[SNAPSHOTTER], "snapshotter name")?.to_owned(),
            snapshot_key: id.to_string(),
            extensions: Default::default(),
            sandbox: String::new(),
            created_at: now,
            updated_at: now,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(media_type: &str, digit: char) -> Descriptor {
        Descriptor {
            media_type: media_type.into(),
            digest: format!("sha256:{}", digit.to_string().repeat(64))
                .parse()
                .unwrap(),
            size: 3,
            annotations: Labels::new(),
        }
    }

    #[test]
    fn an_index_is_read_as_it_was_written() {
        let mut contents = Contents::default();
        contents.note(IMAGE, "img");
        contents.note(RUNTIME, "");
        contents.add(&blob(media_type::CHECKPOINT, '1'), true);
        contents.add(&blob(media_type::OCI_MANIFEST, '2'), false);
        assert_eq!(contents.digests.len(), 2);
        let text = contents.index().to_string();
        let checkpoint = Checkpoint {
            index: Index::parse(text.as_bytes(), media_type::OCI_INDEX).unwrap(),
            name: "c".into(),
        };
        let found = checkpoint.need(media_type::CHECKPOINT, "task").unwrap();
        assert_eq!(*found, blob(media_type::CHECKPOINT, '1'));
        assert_eq!(checkpoint.note(&[TASK_IMAGE, IMAGE], "x").unwrap(), "img");
        let platforms = checkpoint.index.manifests.iter();
        let platforms = platforms.map(|entry| entry.platform.is_some());
        assert_eq!(platforms.collect::<Vec<_>>(), [true, false]);
        let error = checkpoint.note(&[RUNTIME], "runtime name").unwrap_err();
        assert_eq!(
            error.to_string(),
            "checkpoint \"c\" has no runtime name: failed precondition"
        );
    }
}
