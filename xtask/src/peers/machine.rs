//! What figures must be read with: the machine, and what it could do while they were taken.

use std::fmt;
use std::fs;
use std::time::Duration;

use engine::{Isa, Pool};
use kernels::{Context, bandwidth, peak};
use serde_json::{Value, json};

use super::programs::Programs;
use super::task;

/// Larger than any last-level cache, as weights are.
pub(super) const READ_BYTES: usize = 512 << 20;
const READ_TIME: Duration = Duration::from_millis(300);
pub(super) const MACS_TIME: Duration = Duration::from_millis(100);

pub(super) struct Machine {
    processor: String,
    cores: usize,
    isa: &'static str,
    /// Runnable tasks over the last minute, before anything was started here.
    load: String,
    llama: String,
}

/// What all threads can do right now: what bounds decode and prefill, and what swings on shared machines.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Probe {
    pub(super) read_bytes_per_s: f64,
    pub(super) macs_per_s: f64,
}

impl Probe {
    pub(super) fn take(threads: usize) -> Probe {
        let pool = Pool::new(threads);
        let table = Isa::detect().table().expect("a detected set is supported");
        Probe {
            read_bytes_per_s: bandwidth::read(&pool, READ_BYTES, READ_TIME),
            macs_per_s: peak::macs_per_s(Context { table, pool: &pool }, MACS_TIME),
        }
    }

    pub(super) fn json(self) -> Value {
        json!({ "read_bytes_per_s": self.read_bytes_per_s, "macs_per_s": self.macs_per_s })
    }
}

impl Machine {
    pub(super) fn look(programs: &Programs) -> anyhow::Result<Machine> {
        let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Ok(Machine {
            processor: model.map_or("unknown processor", |(_, name)| name.trim()).to_owned(),
            cores: std::thread::available_parallelism()?.get(),
            isa: Isa::detect().name(),
            load: load.split(' ').next().unwrap_or_default().to_owned(),
            llama: programs.llama_version()?,
        })
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "processor": self.processor,
            "cores": self.cores,
            "isa": self.isa,
            "load_average_before": self.load,
            "llama_cpp": self.llama,
            "prefill_tokens": task::PREFILL_TOKENS,
            "decode_tokens": task::DECODE_TOKENS,
            "stream_prompt_tokens": task::STREAM_PROMPT_TOKENS,
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { processor, cores, isa, load, llama } = self;
        write!(f, "{processor}, {cores} cores, {isa}; load average {load} before; llama.cpp {llama}")
    }
}
