//! The web pages' files, embedded in the binary. They are plain HTML, CSS and ES modules: there is no build step.
#![forbid(unsafe_code)]

/// A file of a page.
#[derive(Clone, Copy, Debug)]
pub struct Asset {
    /// Where pages expect it.
    pub path: &'static str,
    pub content_type: &'static str,
    pub bytes: &'static [u8],
}

macro_rules! asset {
    ($path:literal, $content_type:literal, $file:literal) => {
        Asset { path: $path, content_type: $content_type, bytes: include_bytes!(concat!("../", $file)) }
    };
}

/// The chat page.
pub const CHAT: &[Asset] = &[asset!("/", "text/html; charset=utf-8", "chat/index.html")];
