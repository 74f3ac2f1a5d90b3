//! What every contender does once a round, next to the others.

use std::fmt;

use clap::ValueEnum;

use super::bench::{self, Speed, Work};
use super::busy::Busy;
use super::contender::Contender;
use super::figure::{Depth, Figure, Load, Program};
use super::programs::Setting;
use super::report::Sample;
use super::server;
use engine::KvFormat;

pub(super) const PREFILL_TOKENS: usize = 512;
pub(super) const DECODE_TOKENS: usize = 64;
/// What each of several streams has before it decodes.
pub(super) const STREAM_PROMPT_TOKENS: usize = 128;

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Group {
    /// Prefill and decode from an empty context
    Engine,
    /// Prefill and decode after --depth tokens of context, in caches of --kv
    Depth,
    /// Decode of --streams sequences at once
    Batch,
    /// Decode beside a process that keeps a core busy: the engine, and what a server streams
    Contention,
    /// A server's start to its first token
    Start,
    /// A server's memory after its first answer
    Memory,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Task {
    Engine,
    Depth(Depth),
    Batch { streams: Vec<usize> },
    EngineContention,
    ServerContention,
    Start { first_token: bool, memory: bool },
}

impl Task {
    /// The tasks of some groups, cheapest first.
    pub(super) fn of(groups: &[Group], depths: &[usize], kvs: &[KvFormat], streams: &[usize]) -> Vec<Task> {
        let wanted = |group| groups.contains(&group);
        let mut tasks = Vec::new();
        if wanted(Group::Engine) {
            tasks.push(Task::Engine);
        }
        let (first_token, memory) = (wanted(Group::Start), wanted(Group::Memory));
        if first_token || memory {
            tasks.push(Task::Start { first_token, memory });
        }
        if wanted(Group::Batch) {
            tasks.push(Task::Batch { streams: streams.to_vec() });
        }
        if wanted(Group::Contention) {
            tasks.extend([Task::EngineContention, Task::ServerContention]);
        }
        if wanted(Group::Depth) {
            let depth = |&tokens: &usize| kvs.iter().map(move |&kv| Task::Depth(Depth { tokens, kv }));
            tasks.extend(depths.iter().flat_map(depth));
        }
        tasks
    }

    pub(super) fn contenders(&self) -> &'static [Contender] {
        match self {
            Task::Depth(depth) => Contender::at_depth(depth.kv),
            _ => &Contender::USUAL,
        }
    }

    /// Whether a server of each side is started.
    pub(super) fn starts_servers(&self) -> bool {
        matches!(self, Task::ServerContention | Task::Start { .. })
    }

    pub(super) fn samples(&self, setting: &Setting<'_>, contender: Contender) -> anyhow::Result<Vec<Sample>> {
        let sample = |figure, value| Sample { contender, figure, value, takes: None };
        let speed = |figure, speed: Option<Speed>| {
            speed.map(|speed| Sample { contender, figure, value: speed.tokens_per_s, takes: speed.takes })
        };
        let both = |prefill_figure, decode_figure, work| {
            let speeds = bench::one(setting, contender, work)?;
            let samples = [speed(prefill_figure, speeds.prefill), speed(decode_figure, speeds.decode)];
            Ok(samples.into_iter().flatten().collect())
        };
        let usual = Work {
            prefill_tokens: PREFILL_TOKENS,
            decode_tokens: DECODE_TOKENS,
            depth: 0,
            kv: KvFormat::F16,
        };
        let contention = |program, quiet: f64, busy: f64| {
            let values = [(Load::Quiet, quiet), (Load::Busy, busy), (Load::Kept, busy / quiet)];
            values.map(|(load, value)| sample(Figure::Contention(program, load), value)).to_vec()
        };
        match self {
            Task::Engine => both(Figure::Prefill, Figure::Decode, usual),
            &Task::Depth(depth) => {
                let work = Work { depth: depth.tokens, kv: depth.kv, ..usual };
                both(Figure::PrefillAt(depth), Figure::DecodeAt(depth), work)
            }
            Task::Batch { streams } => {
                let speeds = bench::batch(setting, contender, streams, STREAM_PROMPT_TOKENS, DECODE_TOKENS)?;
                let samples =
                    speeds.into_iter().filter_map(|(n, s)| speed(Figure::Batch { streams: n }, Some(s)));
                Ok(samples.collect())
            }
            Task::EngineContention => {
                let decode = || {
                    let speeds = bench::one(setting, contender, Work { prefill_tokens: 0, ..usual })?;
                    anyhow::Ok(speeds.decode.map_or(f64::NAN, |speed| speed.tokens_per_s))
                };
                let quiet = decode()?;
                let busy = Busy::start(&setting.programs.own, setting.stop)?;
                let beside_busy = decode()?;
                busy.end()?;
                Ok(contention(Program::Engine, quiet, beside_busy))
            }
            Task::ServerContention => {
                let speeds = server::speeds(setting, contender)?;
                Ok(contention(Program::Server, speeds.quiet, speeds.busy))
            }
            &Task::Start { first_token, memory } => {
                let start = server::start(setting, contender)?;
                let mut samples = Vec::new();
                if first_token {
                    samples.push(sample(Figure::FirstToken, start.first_token_s));
                }
                if memory {
                    samples.extend([
                        sample(Figure::AnonymousMemory, start.memory.anonymous_bytes as f64),
                        sample(Figure::FileMemory, start.memory.file_bytes as f64),
                        sample(Figure::PrivateMemory, start.memory.private_bytes as f64),
                    ]);
                }
                Ok(samples)
            }
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Task::Engine => f.write_str("engine"),
            Task::Depth(depth) => write!(f, "depth {}, {} cache", depth.tokens, depth.kv),
            Task::Batch { .. } => f.write_str("batch"),
            Task::EngineContention => f.write_str("engine beside a busy process"),
            Task::ServerContention => f.write_str("server beside a busy process"),
            Task::Start { .. } => f.write_str("start"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_its_tasks() {
        let check = |groups: &[Group], expected: &[Task]| {
            assert_eq!(Task::of(groups, &[0, 4096], &[KvFormat::F16], &[1, 8]), expected, "{groups:?}");
        };
        let at = |tokens| Task::Depth(Depth { tokens, kv: KvFormat::F16 });
        check(&[Group::Depth], &[at(0), at(4096)]);
        check(&[Group::Start], &[Task::Start { first_token: true, memory: false }]);
        check(
            &[Group::Memory, Group::Engine],
            &[Task::Engine, Task::Start { first_token: false, memory: true }],
        );
        check(&[Group::Batch], &[Task::Batch { streams: vec![1, 8] }]);
        check(&[Group::Contention], &[Task::EngineContention, Task::ServerContention]);
        check(&[], &[]);
    }
}
