//! `ctr images inspect`: what an image consists of, as a tree.

use std::fmt::Write as _;

use ::images::{Entry, MAX_CONFIG, is_index, is_manifest};
use content::ContentStore;
use types::{Context as _, Descriptor, Error, Result};

use crate::context::Context;
use crate::{out, text};

/// Documents above each other that are shown: an image need not be a good one to be looked at.
const MAX_DEPTH: usize = 32;
/// Lines of a child that is followed by another, or is the last one.
const DROP: [&str; 2] = ["├── ", "└── "];
/// Before the lines below such a child.
const BELOW: [&str; 2] = ["│   ", "    "];

/// Inspect an image
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Show labels and JSON documents
    #[arg(long)]
    content: bool,
    /// Image
    image: String,
}

pub(crate) async fn run(ctx: &Context, args: Args) -> Result<u8> {
    let client = ctx.client().await?;
    let image = client.images().get(&args.image).await?;
    let store = client.content();
    let mut tree = Tree {
        store: store.as_ref(),
        shows_content: args.content,
        text: format!("{}\n", image.name),
    };
    // Parity: pkg/display/manifest_printer.go: the same lines, labels in order.
    tree.fact("│   ", "Created", text::go_time(image.created_at));
    tree.fact("│   ", "Updated", text::go_time(image.updated_at));
    for (key, value) in image.labels.iter() {
        let _written = writeln!(tree.text, "│    Label {key:?}: {value:?}");
    }
    tree.show(&image.target.into(), "", true, 0).await?;
    out::text(&tree.text)?;
    Ok(0)
}

struct Tree<'a> {
    store: &'a dyn ContentStore,
    shows_content: bool,
    text: String,
}

impl Tree<'_> {
    fn fact(&mut self, before: &str, name: &str, value: impl std::fmt::Display) {
        let _written = writeln!(self.text, "{before} {name}: {value}");
    }

    fn line(&mut self, before: &str, is_last: bool, blob: &Descriptor) {
        let (kind, digest, size) = (&blob.media_type, &blob.digest, blob.size);
        let drop = DROP[usize::from(is_last)];
        let _written = writeln!(self.text, "{before}{drop}{kind} @{digest} ({size} bytes)");
    }

    /// A document and all below it.
    async fn show(
        &mut self,
        entry: &Entry,
        before: &str,
        is_last: bool,
        depth: usize,
    ) -> Result<()> {
        let blob = &entry.descriptor;
        if depth > MAX_DEPTH {
            return Err(Error::invalid_argument(format_args!(
                "image is nested deeper than {MAX_DEPTH} documents"
            )));
        }
        self.line(before, is_last, blob);
        let before = format!("{before}{}", BELOW[usize::from(is_last)]);
        if let Some(platform) = &entry.platform
            && !platform.architecture.is_empty()
        {
            self.fact(&format!("{before}│   "), "Platform", platform);
        }
        if self.store.info(&blob.digest).await.absent_ok()?.is_none() {
            let gone = "Content does not exist locally, skipping";
            let _written = writeln!(self.text, "{before}└──  {gone}");
            return Ok(());
        }
        self.content(blob, &format!("{before}│   ")).await?;
        if is_manifest(&blob.media_type) {
            let manifest = ::images::read_manifest(self.store, blob).await?;
            let is_only = manifest.layers.is_empty();
            self.line(&before, is_only, &manifest.config);
            let below = format!("{before}{}", BELOW[usize::from(is_only)]);
            self.content(&manifest.config, &below).await?;
            let last = manifest.layers.len().saturating_sub(1);
            for (at, layer) in manifest.layers.iter().enumerate() {
                self.line(&before, at == last, layer);
            }
        } else if is_index(&blob.media_type) {
            let index = ::images::read_index(self.store, blob).await?;
            let last = index.manifests.len().saturating_sub(1);
            for (at, child) in index.manifests.iter().enumerate() {
                Box::pin(self.show(child, &before, at == last, depth + 1)).await?;
            }
        }
        Ok(())
    }

    /// Labels and text of a document, if that is wanted.
    async fn content(&mut self, blob: &Descriptor, before: &str) -> Result<()> {
        if !self.shows_content {
            return Ok(());
        }
        let Some(info) = self.store.info(&blob.digest).await.absent_ok()? else {
            return Ok(());
        };
        if !info.labels.is_empty() {
            let labels = info.labels.iter();
            let labels = labels.map(|(key, value)| format!("{key:?}: {value:?}"));
            self.framed(before, "Labels─", labels);
        }
        if blob.media_type.ends_with("json") {
            let bytes = ::images::read_blob(self.store, blob, MAX_CONFIG).await?;
            let value: serde_json::Value = serde_json::from_slice(&bytes)
                .map_err(|e| Error::invalid_argument(format_args!("{}: {e}", blob.digest)))?;
            let shown = out::indented(&value, b"   ").ctx("show")?;
            self.framed(before, "Content", shown.lines().map(str::to_owned));
        }
        Ok(())
    }

    fn framed(&mut self, before: &str, title: &str, lines: impl Iterator<Item = String>) {
        let _written = writeln!(self.text, "{before}┌────────{title}────────");
        for line in lines {
            let _written = writeln!(self.text, "{before}│{line}");
        }
        let _written = writeln!(self.text, "{before}└───────────────────────");
    }
}
