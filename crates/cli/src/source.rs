//! Where a model comes from: a file, or the program itself.

use engine::gguf::{Gguf, GgufError};
use std::path::{Path, PathBuf};

/// The built-in model. It answers without a network and with nothing installed.
static DEMO: &[u8] = include_bytes!("../../../demo/dunlin-demo.gguf");

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Demo,
    File(PathBuf),
}

impl Source {
    pub(crate) fn or_demo(path: Option<&Path>) -> Self {
        path.map_or(Source::Demo, |path| Source::File(path.to_owned()))
    }

    pub(crate) fn open(&self) -> Result<Gguf, GgufError> {
        match self {
            Source::Demo => Gguf::from_static(DEMO),
            Source::File(path) => Gguf::open(path),
        }
    }

    /// A short name without spaces, for the API: the file's name without its ending.
    pub(crate) fn id(&self) -> String {
        match self {
            Source::Demo => "dunlin-demo".to_owned(),
            Source::File(path) => path
                .file_stem()
                .map_or_else(|| "model".to_owned(), |stem| stem.to_string_lossy().into_owned()),
        }
    }

    /// What the user would call it.
    pub(crate) fn name(&self) -> String {
        match self {
            Source::Demo => "the built-in model".to_owned(),
            Source::File(path) => path.display().to_string(),
        }
    }
}
