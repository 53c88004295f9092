//! What an image's config says about the process.

use images::ProcessDefaults;

use super::Spec;

/// Environment of an image that has none.
pub const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Labels that containerd or its CRI part interprets: an image must not set them.
#[must_use]
pub fn is_reserved_label(key: &str) -> bool {
    key.starts_with("containerd.io/") || key.starts_with("io.cri-containerd")
}

impl Spec {
    /// Environment, command and working directory of the image. What the spec has in its
    /// environment already wins over the image's; entries without `=` are no variables and dropped.
    pub fn apply_image(&mut self, image: &ProcessDefaults) {
        let given = self.environment();
        let mut base: Vec<String> = image
            .env
            .iter()
            .filter(|pair| pair.contains('='))
            .cloned()
            .collect();
        if image.env.is_empty() {
            base.push(DEFAULT_PATH.to_owned());
        }
        self.set(&["process", "env"], base);
        self.env(&given);
        self.args(image.entrypoint.iter().chain(&image.cmd).cloned().collect());
        let cwd = if image.working_dir.is_empty() {
            "/"
        } else {
            &image.working_dir
        };
        self.cwd(cwd);
    }
}
