//! Long work shows progress: a bar where someone is watching, nothing where a log is kept.

use engine::model::Progress;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{self, IsTerminal};

/// Shows how far packing is; gone when dropped.
pub(crate) struct PackingBar {
    bar: Option<ProgressBar>,
}

impl PackingBar {
    pub(crate) fn new() -> Self {
        Self { bar: None }
    }

    pub(crate) fn update(&mut self, progress: Progress) {
        if !io::stderr().is_terminal() {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let style = ProgressStyle::with_template(
                "packing weights {wide_bar} {binary_bytes}/{binary_total_bytes} {eta}",
            );
            ProgressBar::new(progress.total_bytes).with_style(style.expect("the template is sound"))
        });
        bar.set_position(progress.packed_bytes);
    }
}

impl Drop for PackingBar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
