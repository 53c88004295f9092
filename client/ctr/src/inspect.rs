//! `ctr images inspect`: what an image consists of, as a tree.

use std::collections::HashSet;
use std::fmt::Write as _;

use ::images::{Entry, MAX_CONFIG, is_index, is_manifest};
use content::ContentStore;
use types::{Context as _, Descriptor, Digest, Error, Result};

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
        text: format!("{}\n", out::plain(&image.name)),
        shown: HashSet::new(),
    };
    // Parity: pkg/display/manifest_printer.go: the same lines, labels in order.
    tree.fact("│   ", "Created", text::go_time(image.created_at));
    tree.fact("│   ", "Updated", text::go_time(image.updated_at));
    for (key, value) in image.labels.iter() {
        let label = out::plain(&format!("{key:?}: {value:?}"));
        let _written = writeln!(tree.text, "│    Label {label}");
    }
    tree.show(&image.target.into(), "", true, 0).await?;
    out::text(&tree.text)?;
    Ok(0)
}

struct Tree<'a> {
    store: &'a dyn ContentStore,
    shows_content: bool,
    text: String,
    /// Documents that need not be shown again: there may be many ways to each.
    shown: HashSet<Digest>,
}

impl Tree<'_> {
    fn fact(&mut self, before: &str, name: &str, value: impl std::fmt::Display) {
        let value = out::plain(&value.to_string());
        let _written = writeln!(self.text, "{before} {name}: {value}");
    }

    fn line(&mut self, before: &str, is_last: bool, blob: &Descriptor) {
        let (kind, digest, size) = (out::plain(&blob.media_type), &blob.digest, blob.size);
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
        let skipped = if self.store.info(&blob.digest).await.absent_ok()?.is_none() {
            Some("Content does not exist locally, skipping")
        } else {
            let is_new = self.shown.insert(blob.digest.clone());
            (!is_new).then_some("Shown above")
        };
        if let Some(why) = skipped {
            let _written = writeln!(self.text, "{before}└──  {why}");
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
            let labels = labels.map(|(key, value)| out::plain(&format!("{key:?}: {value:?}")));
            self.framed(before, "Labels─", labels);
        }
        if blob.media_type.ends_with("json") {
            let bytes = ::images::read_blob(self.store, blob, MAX_CONFIG).await?;
            let value: serde_json::Value = ::images::json(&bytes, blob.digest.as_str())?;
            let shown = out::indented(&value, b"   ").ctx("show")?;
            self.framed(before, "Content", shown.lines().map(out::plain));
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

#[cfg(test)]
mod tests {
    use ::images::testsuite::{Store, fields_of, image};
    use types::media_type as mt;

    use super::*;

    async fn shown(store: &Store, root: &Descriptor) -> String {
        let mut tree = Tree {
            store,
            shows_content: true,
            text: String::new(),
            shown: HashSet::new(),
        };
        let root = Entry::from(root.clone());
        tree.show(&root, "", true, 0).await.unwrap();
        tree.text
    }

    #[tokio::test]
    async fn a_document_is_shown_once_however_many_ways_lead_to_it() {
        let store = Store::default();
        let mut root = image(&store, "linux/amd64", &[b"x"]).await;
        for _ in 0..20 {
            root = store.index(&[(&root, None), (&root, None)]).await;
        }
        let text = shown(&store, &root).await;
        assert_eq!(text.matches("Shown above").count(), 20, "{text}");
    }

    #[tokio::test]
    async fn what_others_wrote_does_not_steer_the_terminal() {
        let store = Store::default();
        let mut evil = image(&store, "linux/a\u{9b}md64", &[b"x"]).await;
        evil.media_type = mt::OCI_MANIFEST.into();
        let text = format!(
            r#"{{"manifests":[{{{},"platform":{{"os":"linux","architecture":"\u001b[2J"}}}}],
            "annotations":{{"a":"\u202e\u009b"}}}}"#,
            fields_of(&evil)
        );
        let root = store.put(mt::OCI_INDEX, text.as_bytes()).await;
        let text = shown(&store, &root).await;
        let is_tame = |c: char| c == '\n' || (!c.is_control() && c != '\u{202e}');
        assert!(text.chars().all(is_tame), "{text:?}");
        assert!(text.contains("linux/\\u{1b}[2j"), "{text}");
    }
}
