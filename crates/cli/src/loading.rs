//! From a source to an engine that generates: threads, instruction set, context, cache folder, and whether it all fits.

use crate::defaults;
use crate::error::{CliError, Kind, supported_isas};
use crate::machine::{self, Memory};
use crate::pinning;
use crate::progress::PackingBar;
use crate::source::Source;
use crate::talk;
use anyhow::Context;
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use engine::gguf::Gguf;
use engine::model::{Listener, News, Outline, Packing, Progress, Purpose};
use engine::{
    AdapterScale, ContextShift, Encoder, EncoderConfig, Engine, EngineConfig, Isa, KvFormat, Model,
    OpenOptions, PAGE, Pool, Speculation, check_adapter, check_draft, check_draft_file,
};
use serve::Worker;
use std::env;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use stdx::units::Bytes;

/// How to compute, the same for every command that does.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Computing")]
pub(crate) struct LoadArgs {
    /// Threads that compute [default: the fast cores this process may use, within its CPU quota]
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,

    /// Keep each of these threads on a processor of its own, which helps where nothing else computes and hurts where
    /// something does
    #[arg(long)]
    pin: bool,

    /// Tokens that one conversation may hold, prompt and answer together [default: the model's, at most 4096]
    #[arg(long, short, value_name = "TOKENS")]
    ctx_size: Option<usize>,

    /// How keys and values are kept: `q8_0` takes half the memory of `f16`, and less time in long conversations
    #[arg(long, value_name = "FORMAT", default_value_t, value_parser = kv_format_parser())]
    kv_format: KvFormat,

    /// Memory for keys and values of all conversations together, such as 2GiB; who does not fit waits [default: a whole
    /// context for each that computes at once]
    #[arg(long, value_name = "SIZE")]
    kv_memory: Option<Bytes>,

    /// Where an answer with a number of tokens of its own does not fit into what is left of its context, drop the older half
    /// of the conversation and go on, instead of ending. What was computed from what is gone stays
    #[arg(long)]
    context_shift: bool,

    /// Tokens at the beginning of a conversation that --context-shift does not drop; 128 at least
    #[arg(
        long,
        value_name = "TOKENS",
        requires = "context_shift",
        default_value_t = 0,
        hide_default_value = true
    )]
    keep: usize,

    /// Do not guess tokens, neither from what stood before in a conversation nor by a prediction head of the model's own. Guesses
    /// are computed on trial, where that saves time, and change nothing of what is said
    #[arg(long)]
    no_speculation: bool,

    /// A small model of the same vocabulary that guesses tokens for the large one, in place of the latter's own prediction head
    #[arg(long, value_name = "GGUF", conflicts_with = "no_speculation")]
    draft: Option<PathBuf>,

    /// A LoRA adapter for the model, as llama.cpp's convert_lora_to_gguf.py makes them. Requests may name adapters with a scale
    /// each; those that do not get all. May be given several times
    #[arg(long, value_name = "GGUF")]
    lora: Vec<PathBuf>,

    /// The same with the scale for requests that name no adapters; 0 for those that are named only. Adapters are counted from
    /// 0, those of --lora first
    #[arg(long, value_name = "GGUF:SCALE", value_parser = parse_scaled)]
    lora_scaled: Vec<(PathBuf, f32)>,

    /// Write keys and values to the cache folder at the end and read them at the next start, so that conversations go on
    /// without computing them again
    #[arg(long, conflicts_with = "no_cache")]
    keep_kv: bool,

    /// Instruction set to use [default: the fastest of this processor]
    #[arg(long, value_name = "SET", value_parser = isa_parser())]
    isa: Option<Isa>,

    /// Folder for packed weights, which make the next start fast [default: $DUNLIN_CACHE_DIR,
    /// $XDG_CACHE_HOME/dunlin or ~/.cache/dunlin]
    #[arg(long, value_name = "FOLDER", conflicts_with = "no_cache")]
    cache_dir: Option<PathBuf>,

    /// Pack weights into memory at every start and leave no files behind
    #[arg(long)]
    no_cache: bool,

    /// Load the model even if it seems not to fit into memory
    #[arg(long)]
    no_memory_check: bool,
}

pub(crate) fn isa_parser() -> impl TypedValueParser<Value = Isa> {
    PossibleValuesParser::new(Isa::ALL.map(Isa::name)).map(|name| name.parse().expect("one of the names"))
}

fn kv_format_parser() -> impl TypedValueParser<Value = KvFormat> {
    PossibleValuesParser::new(KvFormat::ALL.map(KvFormat::name))
        .map(|name| name.parse().expect("one of the names"))
}

/// An adapter's file and its scale.
fn parse_scaled(text: &str) -> Result<(PathBuf, f32), String> {
    let scaled = text.rsplit_once(':').and_then(|(path, scale)| Some((path, scale.parse::<f32>().ok()?)));
    match scaled.filter(|(path, scale)| !path.is_empty() && scale.is_finite()) {
        Some((path, scale)) => Ok((path.into(), scale)),
        None => Err("a file, a colon and a number are needed, such as adapter.gguf:0.5".to_owned()),
    }
}

/// What the arguments mean for a model: everything is known, nothing is loaded.
pub(crate) struct Plan {
    pub(crate) source: Source,
    gguf: Gguf,
    pub(crate) isa: Isa,
    pub(crate) threads: usize,
    /// Where each thread is kept.
    pins: Option<Vec<usize>>,
    pub(crate) config: EngineConfig,
    cache: Option<PathBuf>,
    purpose: Purpose,
    /// The draft model's file.
    draft: Option<(Source, Gguf)>,
    /// Adapters' files, and how much of each requests get that name none.
    adapters: Vec<(Gguf, f32)>,
}

impl LoadArgs {
    /// Opens the file and checks that `parallel` conversations with it fit into memory.
    pub(crate) fn plan(&self, source: Source, config: EngineConfig) -> Result<Plan, CliError> {
        let isa = self.isa.unwrap_or_else(Isa::detect);
        if !isa.is_supported() {
            let hint = format!("it has {}; without --isa the fastest is used", supported_isas());
            return Err(CliError::new(Kind::Usage, format!("this processor has no {isa}")).with_hint(hint));
        }
        let gguf = source.open()?;
        let outline = Outline::read(&gguf)?;
        let context_tokens = self.context_tokens(&outline)?;
        let config = EngineConfig { context_tokens, kv_format: self.kv_format, ..config };
        let cache_tokens =
            self.kv_memory.map(|memory| cache_tokens(&outline, &config, memory)).transpose()?;
        let config = EngineConfig { cache_tokens, ..config };
        let speculation = if self.no_speculation { Speculation::Off } else { Speculation::WherePays };
        let shift = ContextShift { keep_tokens: self.keep };
        let context_shift = self.context_shift.then_some(shift);
        let config = EngineConfig { speculation, context_shift, ..config };
        if self.draft.is_some() && outline.purpose != Purpose::Generates {
            let message = format!("{} {}; there is nothing to guess", source.name(), outline.purpose);
            return Err(CliError::new(Kind::Usage, message).with_hint("leave out --draft"));
        }
        let draft = self.draft.clone().map(|path| -> Result<_, CliError> {
            let source = Source::File(path);
            let gguf = source.open()?;
            let outline = Outline::read(&gguf)?;
            Ok(((source, gguf), outline))
        });
        let (draft, of_draft) = draft.transpose()?.unzip();
        if let (Some((_, draft)), Some(of_draft)) = (&draft, &of_draft) {
            check_draft_file((&gguf, &outline), (draft, of_draft))?;
        }
        let adapters = self.adapters(&source, &gguf, &outline)?;
        let mut needs = Needs::new(&outline, &config);
        needs.weight_bytes += adapters.iter().map(|(gguf, _)| gguf.len_bytes()).sum::<u64>();
        if let Some(of_draft) = &of_draft {
            needs = needs.with(Needs::new(of_draft, &config));
        }
        if !self.no_memory_check
            && let Some(memory) = machine::memory()
        {
            needs.check(&outline, &config, memory)?;
        }
        let threads = self.threads();
        let pins = if self.pin { Some(pinning::choose(threads)?) } else { None };
        let cache = if self.no_cache { None } else { self.cache_dir.clone().or_else(cache_dir) };
        let saved = cache.as_deref().filter(|_| self.keep_kv);
        let config = EngineConfig { saved_cache: saved.map(|folder| saved_kv(folder, &source)), ..config };
        let cache = cache.map(packed_folder);
        Ok(Plan {
            source,
            gguf,
            isa,
            threads,
            pins,
            config,
            cache,
            purpose: outline.purpose,
            draft,
            adapters,
        })
    }

    /// Opens the adapters' files and checks that they are for the model.
    fn adapters(
        &self,
        source: &Source,
        base: &Gguf,
        outline: &Outline,
    ) -> Result<Vec<(Gguf, f32)>, CliError> {
        let whole = self.lora.iter().map(|path| (path, 1.0));
        let scaled = self.lora_scaled.iter().map(|(path, scale)| (path, *scale));
        let adapters = whole.chain(scaled).map(|(path, scale)| Ok((Gguf::open(path)?, scale)));
        let adapters = adapters.collect::<Result<Vec<_>, CliError>>()?;
        if !adapters.is_empty() && outline.purpose != Purpose::Generates {
            let message =
                format!("{} {}; adapters of such models are not supported", source.name(), outline.purpose);
            return Err(CliError::new(Kind::Usage, message).with_hint("leave out --lora"));
        }
        for (adapter, _) in &adapters {
            check_adapter(adapter, base).with_context(|| cannot_be_used(adapter))?;
        }
        Ok(adapters)
    }

    fn threads(&self) -> usize {
        let Some(threads) = self.threads.map(usize::from) else { return machine::threads() };
        if let Some(warning) = machine::cpu_quota().and_then(|quota| over_quota(threads, quota)) {
            talk::say(format_args!("warning: {warning}"));
        }
        threads
    }

    fn context_tokens(&self, outline: &Outline) -> Result<usize, CliError> {
        let trained = outline.context_tokens;
        match self.ctx_size {
            None => Ok(trained.min(defaults::CONTEXT_TOKENS_MAX)),
            Some(asked) if (1..=trained).contains(&asked) => Ok(asked),
            Some(asked) => {
                let message = format!(
                    "a context of {asked} tokens is not possible: the model was trained for {trained}"
                );
                Err(CliError::new(Kind::Usage, message)
                    .with_hint(format!("choose --ctx-size from 1 to {trained}")))
            }
        }
    }
}

/// Where packed files lie in the folder that the user knows.
pub(crate) fn packed_folder(cache: PathBuf) -> PathBuf {
    cache.join("packed")
}

/// Where a model's keys and values lie in the folder that the user knows.
fn saved_kv(cache: &Path, source: &Source) -> PathBuf {
    let path = match source {
        Source::Demo => PathBuf::from("demo"),
        Source::File(path) => path.canonicalize().unwrap_or_else(|_| path.clone()),
    };
    let stem = path.file_stem().map_or_else(|| "model".into(), |stem| stem.to_string_lossy().into_owned());
    let mut hash = std::hash::DefaultHasher::new();
    path.hash(&mut hash);
    cache.join("kv").join(format!("{stem}-{:016x}.kv", hash.finish()))
}

/// Tokens that a cache of so much memory has room for.
fn cache_tokens(outline: &Outline, config: &EngineConfig, memory: Bytes) -> Result<usize, CliError> {
    let wanted = config.context_tokens.next_multiple_of(PAGE);
    if outline.kv_layers.is_empty() {
        // All that grows with a conversation are the numbers of its pages.
        return Ok(wanted.saturating_mul(config.parallel));
    }
    let states = outline.state_bytes.saturating_mul(engine::state_slots(config.parallel) as u64);
    let page_bytes = outline.kv_bytes(config.kv_format, PAGE) - outline.state_bytes;
    let pages = (memory.0.saturating_sub(states) / page_bytes).min(KV_PAGES_MAX) as usize;
    if pages * PAGE >= wanted {
        return Ok(pages * PAGE);
    }
    let least = (page_bytes.saturating_mul((wanted / PAGE) as u64)).saturating_add(states);
    let message =
        format!("{memory} of keys and values do not hold one context of {} tokens", config.context_tokens);
    Err(CliError::new(Kind::Usage, message)
        .with_hint(format!("it takes {}: --kv-memory, or a smaller --ctx-size", Bytes(least))))
}

/// The most pages that a cache is made of, whatever memory there is.
const KV_PAGES_MAX: u64 = 1 << 24;

/// What comes of more threads than a quota of `quota` processors keeps running; one there must be.
fn over_quota(threads: usize, quota: f64) -> Option<String> {
    let within = (quota as usize).max(1);
    (threads > within).then(|| {
        format!(
            "{threads} threads share a CPU quota of {quota:.2} processors: whenever it is used up, the system stops \
             them all for the rest of its period, and answers come in bursts; --threads {within} avoids that"
        )
    })
}

/// `$DUNLIN_CACHE_DIR`, else the XDG base directory's folder for this program.
pub(crate) fn cache_dir() -> Option<PathBuf> {
    let folder = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    folder("DUNLIN_CACHE_DIR")
        .or_else(|| Some(folder("XDG_CACHE_HOME").filter(|path| path.is_absolute())?.join("dunlin")))
        .or_else(|| Some(folder("HOME")?.join(".cache/dunlin")))
}

/// Memory that a model takes at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Needs {
    weight_bytes: u64,
    kv_bytes: u64,
}

impl Needs {
    fn new(outline: &Outline, config: &EngineConfig) -> Self {
        let pages = outline.kv_bytes(config.kv_format, config.cache_tokens()) - outline.state_bytes;
        let kv_bytes = pages
            .saturating_add(outline.state_bytes.saturating_mul(engine::state_slots(config.parallel) as u64));
        Self { weight_bytes: outline.packed_bytes, kv_bytes }
    }

    /// Of two models.
    fn with(self, other: Needs) -> Needs {
        Needs {
            weight_bytes: self.weight_bytes.saturating_add(other.weight_bytes),
            kv_bytes: self.kv_bytes.saturating_add(other.kv_bytes),
        }
    }

    fn total_bytes(self) -> u64 {
        self.weight_bytes.saturating_add(self.kv_bytes).saturating_add(defaults::WORKING_BYTES)
    }

    fn check(self, outline: &Outline, config: &EngineConfig, memory: Memory) -> Result<(), CliError> {
        let available = memory.available_bytes;
        if self.total_bytes() <= available {
            return Ok(());
        }
        let message = format!(
            "the model needs {} of memory ({} weights, {} for {} x {} tokens of context, {} to work with) and {} has {} left",
            Bytes(self.total_bytes()),
            Bytes(self.weight_bytes),
            Bytes(self.kv_bytes),
            config.parallel,
            config.context_tokens,
            Bytes(defaults::WORKING_BYTES),
            memory.limited_by,
            Bytes(available),
        );
        let hint = match fitting_context(outline, config, available) {
            Some(tokens) if tokens >= config.context_tokens => {
                format!(
                    "fewer conversations at once would fit: --parallel 1 --ctx-size {}",
                    config.context_tokens
                )
            }
            Some(tokens) if config.parallel == 1 => {
                format!("a smaller context would fit: --ctx-size {tokens}")
            }
            Some(tokens) => {
                format!(
                    "fewer conversations and a smaller context would fit: --parallel 1 --ctx-size {tokens}"
                )
            }
            None => format!(
                "the weights alone are too large; a smaller quantization or model of at most {} would fit",
                Bytes(
                    available
                        .saturating_sub(defaults::WORKING_BYTES + outline.kv_bytes(config.kv_format, 1024))
                )
            ),
        };
        let hint = format!("{hint}; --no-memory-check loads it anyway");
        Err(CliError::new(Kind::Memory, message).with_hint(hint))
    }
}

/// The largest round context of one conversation that fits beside the weights; `None` below 256 tokens.
fn fitting_context(outline: &Outline, config: &EngineConfig, available: u64) -> Option<usize> {
    let left = available.checked_sub(outline.packed_bytes.saturating_add(defaults::WORKING_BYTES))?;
    let round = |&tokens: &usize| outline.kv_bytes(config.kv_format, tokens) <= left;
    (8..=20).rev().map(|power| 1 << power).filter(|&tokens| tokens <= outline.context_tokens).find(round)
}

impl Plan {
    /// One line about what will be loaded.
    pub(crate) fn describe(&self) -> String {
        format!(
            "{} ({}), {} thread{}, {}, context {} tokens",
            self.source.name(),
            Bytes(self.gguf.len_bytes()),
            self.threads,
            if self.threads == 1 { "" } else { "s" },
            self.isa,
            self.config.context_tokens,
        )
    }

    /// Refuses models that make something other than text.
    pub(crate) fn check_generates(&self) -> Result<(), CliError> {
        if self.purpose == Purpose::Generates {
            return Ok(());
        }
        let message = format!("{} {}; it does not generate text", self.source.name(), self.purpose);
        Err(CliError::new(Kind::Model, message).with_hint("serve it: dunlin serve MODEL"))
    }

    /// Packs or maps the weights and starts what works with them. `progress` hears which part of the packing is done, 0 to 1,
    /// where weights must be packed before that.
    pub(crate) fn load(self, packing: Packing, progress: &mut dyn FnMut(f64)) -> Result<Worker, CliError> {
        let listener = Listener::new(tell);
        let options =
            OpenOptions { isa: self.isa, cache: self.cache, packing, listener, ..OpenOptions::default() };
        let pool = self.pins.map_or_else(|| Pool::new(self.threads), pinning::pool);
        let mut bar = PackingBar::new();
        let mut report = |packing: Progress| {
            bar.update(packing);
            progress(packing.packed_bytes as f64 / packing.total_bytes.max(1) as f64);
        };
        let mut model = Model::from_gguf(self.gguf, &options, &pool, &mut report)?;
        for (gguf, _) in &self.adapters {
            add_adapter(&mut model, gguf, &pool)?;
        }
        let draft = match self.draft {
            None => None,
            Some((_, gguf)) => {
                let draft = Model::from_gguf(gguf, &options, &pool, &mut |_| ())?;
                check_draft(&model, &draft)?;
                Some(Arc::new(draft))
            }
        };
        drop(bar);
        if model.tokenizer().is_none() {
            let message =
                format!("{} has no vocabulary, so it cannot read or write text", self.source.name());
            return Err(CliError::new(Kind::Model, message)
                .with_hint("convert the model again together with its tokenizer"));
        }
        let model = Arc::new(model);
        Ok(match model.purpose() {
            Purpose::Generates => {
                let engine = Engine::start_with_draft(model, draft, pool, self.config);
                let scales = self.adapters.iter().enumerate();
                let scales = scales.map(|(id, &(_, scale))| AdapterScale { id, scale });
                engine.set_default_adapters(&scales.collect::<Vec<_>>())?;
                engine.into()
            }
            Purpose::Embeds | Purpose::Scores => {
                let config =
                    EncoderConfig { context_tokens: self.config.context_tokens, ..EncoderConfig::default() };
                Encoder::start(model, pool, config).into()
            }
        })
    }
}

fn add_adapter(model: &mut Model, gguf: &Gguf, pool: &Pool) -> Result<(), CliError> {
    let adapter = model.add_adapter(gguf, pool).with_context(|| cannot_be_used(gguf))?;
    let path = gguf.path().unwrap_or(Path::new("")).display();
    match adapter.norms_left_out() {
        0 => {}
        norms => talk::say(format_args!(
            "warning: {norms} norms in {path} are left out; adapters change matrices only"
        )),
    }
    Ok(())
}

fn cannot_be_used(adapter: &Gguf) -> String {
    format!("the adapter {} cannot be used", adapter.path().unwrap_or(Path::new("")).display())
}

/// Says what happens to the weights.
fn tell(news: News<'_>) {
    match news {
        News::Started { path } => talk::say(format_args!(
            "packing weights into {} in the background; answers are slower until that is done",
            path.display()
        )),
        News::Done { .. } => talk::say("the weights are packed"),
        News::Damaged { path, fault } => talk::say(format_args!(
            "warning: the packed file {} is damaged and will be made anew: {fault}",
            path.display()
        )),
        News::CacheLoaded { tokens, .. } => {
            talk::say(format_args!("{tokens} tokens of earlier conversations are in the cache"));
        }
        News::CacheRefused { path, error } => talk::say(format_args!(
            "warning: the keys and values in {} are not used: {error}",
            path.display()
        )),
        News::CacheSaved { path, tokens } => {
            talk::say(format_args!("keys and values of {tokens} tokens are kept in {}", path.display()));
        }
        News::CacheNotSaved { path, error } => talk::say(format_args!(
            "warning: keys and values are not kept: cannot write {}: {error}",
            path.display()
        )),
        News::InMemory { path, error } => talk::say(format_args!(
            "warning: packed weights are kept in memory only, so the next start takes as long: cannot write {}: {error}",
            path.display()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::model::KvHeads;

    const GIB: u64 = 1 << 30;

    fn outline() -> Outline {
        Outline {
            family: "llama",
            purpose: Purpose::Generates,
            layers: 16,
            width: 2048,
            feed_forward: 8192,
            heads: 32,
            kv_heads: 8,
            head_dim: 64,
            context_tokens: 131_072,
            vocabulary: 128_256,
            packed_bytes: GIB,
            bytes_per_token: GIB,
            kv_layers: vec![KvHeads { heads: 8, key_dim: 64, value_dim: 64 }; 16],
            ..Outline::default()
        }
    }

    fn check(available_bytes: u64, parallel: usize, context_tokens: usize, hint: Option<&str>) {
        let config = EngineConfig { parallel, context_tokens, ..EngineConfig::default() };
        let memory = Memory { available_bytes, limited_by: "this machine" };
        let refused = Needs::new(&outline(), &config).check(&outline(), &config, memory).err();
        assert_eq!(refused.as_ref().map(|e| e.kind()), hint.map(|_| Kind::Memory), "{available_bytes}");
        if let Some(hint) = hint {
            let said = refused.and_then(|e| e.hint().map(str::to_owned)).unwrap_or_default();
            assert!(said.contains(hint), "{said} does not say {hint}");
        }
    }

    #[test]
    fn packing_tells_how_far_it_is() {
        let args = LoadArgs {
            threads: Some(1),
            pin: false,
            ctx_size: Some(64),
            isa: None,
            kv_format: KvFormat::default(),
            cache_dir: None,
            kv_memory: None,
            no_speculation: false,
            draft: None,
            lora: Vec::new(),
            lora_scaled: Vec::new(),
            context_shift: false,
            keep: 0,
            keep_kv: false,
            no_cache: true,
            no_memory_check: true,
        };
        let plan = args.plan(Source::Demo, EngineConfig::default()).unwrap();
        let mut parts = Vec::new();
        plan.load(Packing::First, &mut |part| parts.push(part)).unwrap();
        assert_eq!((parts.first(), parts.last()), (Some(&0.0), Some(&1.0)));
        assert!(parts.len() > 2 && parts.is_sorted(), "{parts:?}");
    }

    #[test]
    fn more_threads_than_the_quota_are_warned_of() {
        assert_eq!(over_quota(1, 0.5), None);
        assert_eq!(over_quota(2, 2.5), None);
        let warning = over_quota(2, 1.5).unwrap();
        assert!(
            warning.contains("CPU quota of 1.50 processors") && warning.contains("--threads 1"),
            "{warning}"
        );
    }

    #[test]
    fn a_model_that_does_not_fit_is_refused_with_what_would() {
        check(2 * GIB, 4, 4096, None);
        check(3 * GIB / 2, 4, 4096, Some("--parallel 1 --ctx-size 4096"));
        check(GIB + GIB / 8, 4, 4096, Some("--parallel 1 --ctx-size 2048"));
        check(GIB + GIB / 8, 1, 4096, Some("a smaller context would fit: --ctx-size 2048"));
        check(GIB, 1, 4096, Some("a smaller quantization or model of at most"));
        check(0, 1, 4096, Some("at most 0 B"));
    }
}
