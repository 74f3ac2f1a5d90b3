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
    ($path:literal, $content_type:expr, $file:literal) => {
        Asset { path: $path, content_type: $content_type, bytes: include_bytes!(concat!("../", $file)) }
    };
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// The chat page.
pub const CHAT: &[Asset] = &[
    asset!("/", HTML, "chat/index.html"),
    asset!("/chat/chat.css", CSS, "chat/chat.css"),
    asset!("/chat/theme.js", SCRIPT, "chat/theme.js"),
    asset!("/chat/chat.js", SCRIPT, "chat/chat.js"),
    asset!("/chat/api.js", SCRIPT, "chat/api.js"),
    asset!("/chat/markdown.js", SCRIPT, "chat/markdown.js"),
    asset!("/chat/settings.js", SCRIPT, "chat/settings.js"),
    asset!("/chat/turn.js", SCRIPT, "chat/turn.js"),
    asset!("/chat/mark.svg", SVG, "chat/mark.svg"),
];
