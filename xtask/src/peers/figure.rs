//! What is measured, and how it is called.

use super::contender::Contender;
use super::server::SPEED_TOKENS;
use super::task::{DECODE_TOKENS, PREFILL_TOKENS};
use engine::KvFormat;

/// Something measured of every contender in every round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Figure {
    Prefill,
    Decode,
    PrefillAt(Depth),
    DecodeAt(Depth),
    /// All of so many streams together.
    Batch {
        streams: usize,
    },
    Contention(Program, Load),
    FirstToken,
    AnonymousMemory,
    FileMemory,
    PrivateMemory,
}

/// A context that is there before, in a cache of a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Depth {
    pub(super) tokens: usize,
    pub(super) kv: KvFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Program {
    Engine,
    Server,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Load {
    /// None of ours.
    Quiet,
    /// A busy process.
    Busy,
    /// Not a load but what it leaves: the busy speed by the quiet one.
    Kept,
}

impl Figure {
    /// In JSON.
    pub(super) fn key(self) -> String {
        let at = |depth: Depth| format!("depth_{}_kv_{}", depth.tokens, depth.kv);
        match self {
            Figure::Prefill => "prefill_tokens_per_s".to_owned(),
            Figure::Decode => "decode_tokens_per_s".to_owned(),
            Figure::PrefillAt(depth) => format!("prefill_{}_tokens_per_s", at(depth)),
            Figure::DecodeAt(depth) => format!("decode_{}_tokens_per_s", at(depth)),
            Figure::Batch { streams } => format!("decode_streams_{streams}_tokens_per_s"),
            Figure::Contention(program, load) => {
                let program = match program {
                    Program::Engine => "engine",
                    Program::Server => "server",
                };
                match load {
                    Load::Quiet => format!("{program}_decode_quiet_tokens_per_s"),
                    Load::Busy => format!("{program}_decode_busy_tokens_per_s"),
                    Load::Kept => format!("{program}_decode_busy_share"),
                }
            }
            Figure::FirstToken => "first_token_s".to_owned(),
            Figure::AnonymousMemory => "rss_anon_bytes".to_owned(),
            Figure::FileMemory => "rss_file_bytes".to_owned(),
            Figure::PrivateMemory => "private_bytes".to_owned(),
        }
    }

    pub(super) fn title(self) -> String {
        let at = |depth: Depth| format!("at {}, {} cache", depth.tokens, depth.kv);
        match self {
            Figure::Prefill => format!("prefill {PREFILL_TOKENS}, tokens/s"),
            Figure::Decode => format!("decode {DECODE_TOKENS}, tokens/s"),
            Figure::PrefillAt(depth) => format!("prefill {PREFILL_TOKENS} {}, tokens/s", at(depth)),
            Figure::DecodeAt(depth) => format!("decode {DECODE_TOKENS} {}, tokens/s", at(depth)),
            Figure::Batch { streams } => format!("decode, streams: {streams}, tokens/s of all"),
            Figure::Contention(program, load) => {
                let program = match program {
                    Program::Engine => format!("decode {DECODE_TOKENS}"),
                    Program::Server => format!("server's {SPEED_TOKENS} tokens"),
                };
                match load {
                    Load::Quiet => format!("{program}, quiet, tokens/s"),
                    Load::Busy => format!("{program}, beside a busy process, tokens/s"),
                    Load::Kept => format!("{program}, beside a busy process, % of quiet"),
                }
            }
            Figure::FirstToken => "start to first token, s".to_owned(),
            Figure::AnonymousMemory => "private memory (RssAnon), MiB".to_owned(),
            Figure::FileMemory => "mapped files (RssFile), MiB".to_owned(),
            Figure::PrivateMemory => "Private_Clean + Private_Dirty, MiB".to_owned(),
        }
    }

    pub(super) fn more_is_better(self) -> bool {
        use Figure::{AnonymousMemory, FileMemory, FirstToken, PrivateMemory};
        !matches!(self, FirstToken | AnonymousMemory | FileMemory | PrivateMemory)
    }

    /// For printing.
    pub(super) fn scale(self) -> f64 {
        match self {
            Figure::AnonymousMemory | Figure::FileMemory | Figure::PrivateMemory => 1.0 / (1 << 20) as f64,
            Figure::Contention(_, Load::Kept) => 100.0,
            _ => 1.0,
        }
    }

    /// The columns of the table that it is in.
    pub(super) fn columns(self) -> &'static [Contender] {
        match self {
            Figure::PrefillAt(depth) | Figure::DecodeAt(depth) => Contender::at_depth(depth.kv),
            _ => &Contender::USUAL,
        }
    }
}
