//! `synth`: writes a GGUF of a real model's shape with random weights, to measure speed with where no model can be had.
//!
//! What it writes loads and computes like the real thing, and says nothing sensible.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use engine::gguf::{GgmlType, GgufWriter};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use stdx::random::Random;

mod blocks;
mod preset;
mod shape;
mod vocabulary;

use blocks::Weights;
use preset::Role;
use shape::{Arch, Shape, attends};

pub(crate) use preset::Preset;
pub(crate) use shape::ShapeName;

use crate::stop;

/// Bytes made and written at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// Write a GGUF with random weights in the shape of a real model
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Dimensions: 1b as Llama-3.2-1B, 7b as Llama-2-7B, 5b-a1b with 8 of 64 experts as Qwen3-30B-A3B has 8 of 128, 0.1b for
    /// quick looks
    #[arg(long)]
    shape: ShapeName,
    /// Weight format, or a mix of formats as the usual quantizing tools make it
    #[arg(long = "type")]
    preset: Preset,
    /// Model family
    #[arg(long, default_value = "llama")]
    arch: Arch,
    /// Weights with which a greedy model counts: after a token comes the next in circles of 4096, and it does not matter what
    /// the layers compute. For measuring what depends on what a model says
    #[arg(long)]
    counting: bool,
    /// Tokens of the vocabulary, in place of the shape's: a draft model needs as many as the model it guesses for
    #[arg(long, value_parser = clap::value_parser!(u64).range(300..))]
    vocabulary: Option<u64>,
    /// The same seed gives the same file
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Replace an existing file
    #[arg(long)]
    force: bool,
    /// File to write
    #[arg(short, long)]
    output: PathBuf,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    create(args, stop::flag()?)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes the whole file or none.
fn create(args: &Args, stop: &AtomicBool) -> anyhow::Result<()> {
    let mut shape = args.shape.shape();
    shape.vocabulary = args.vocabulary.unwrap_or(shape.vocabulary);
    ensure!(
        (shape.experts.0 > 0) == (args.arch == Arch::Qwen3moe),
        "experts need --arch qwen3moe and a shape that has some: --shape 5b-a1b"
    );
    ensure!(args.force || !args.output.exists(), "{} exists; --force replaces it", args.output.display());
    let partial = partial_path(&args.output)?;

    let started = Instant::now();
    let written = write(&partial, &shape, args, stop).and_then(|bytes| {
        fs::rename(&partial, &args.output)
            .with_context(|| format!("cannot name {}", args.output.display()))?;
        Ok(bytes)
    });
    let bytes = written.inspect_err(|_| {
        // Nothing more can be done if this fails too.
        let _ = fs::remove_file(&partial);
    })?;
    let seconds = started.elapsed().as_secs_f64();
    let rate = bytes as f64 / 1e6 / seconds;
    eprintln!("{}: {} in {seconds:.1} s, {rate:.0} MB/s", args.output.display(), HumanBytes(bytes));
    Ok(())
}

/// Beside the file, so that renaming it is atomic.
fn partial_path(output: &Path) -> anyhow::Result<PathBuf> {
    let Some(name) = output.file_name() else { bail!("{} is no file name", output.display()) };
    let mut name = name.to_owned();
    name.push(".partial");
    Ok(output.with_file_name(name))
}

/// The model of this shape and mix in `dir`, made where it is missing.
pub(crate) fn kept(
    dir: &Path,
    shape: ShapeName,
    preset: Preset,
    stop: &AtomicBool,
) -> anyhow::Result<PathBuf> {
    let output = dir.join(format!("{shape}-{preset}.gguf"));
    if !output.exists() {
        let arch = if shape.shape().experts.0 > 0 { Arch::Qwen3moe } else { Arch::Llama };
        let args = Args {
            shape,
            preset,
            arch,
            counting: false,
            vocabulary: None,
            seed: 0,
            force: false,
            output: output.clone(),
        };
        create(&args, stop)?;
    }
    Ok(output)
}

fn write(path: &Path, shape: &Shape, args: &Args, stop: &AtomicBool) -> anyhow::Result<u64> {
    let cannot_write = || format!("cannot write {}", path.display());
    let mut head = GgufWriter::new();
    shape.put_metadata(&mut head, args.arch, args.shape, args.preset);
    vocabulary::put(&mut head, shape.vocabulary);
    let mut tensors = tensors(shape, args.arch, args.preset);
    if args.counting {
        make_counting(&mut tensors);
    }
    for tensor in &tensors {
        head.tensor(&tensor.name, &tensor.shape, tensor.ty)?;
    }

    let progress = ProgressBar::new(head.data_bytes())
        .with_style(ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}")?);
    let file = File::create(path).with_context(cannot_write)?;
    let mut out = head.begin(&file).with_context(cannot_write)?;
    let mut random = Random::new(args.seed);
    let mut embedding = Vec::new();
    for tensor in &tensors {
        let mut put = |bytes: &[u8]| {
            progress.inc(bytes.len() as u64);
            out.write(bytes)
        };
        if !args.counting {
            fill(&mut put, tensor, &mut random, stop).with_context(cannot_write)?;
        } else if tensor.name == "output.weight" {
            let rows = counted(&embedding, shape.vocabulary as usize);
            rows.into_iter().try_for_each(&mut put).with_context(cannot_write)?;
        } else {
            let is_embedding = tensor.name == "token_embd.weight";
            let mut put = |bytes: &[u8]| {
                if is_embedding {
                    embedding.extend_from_slice(bytes);
                }
                put(bytes)
            };
            fill(&mut put, tensor, &mut random, stop).with_context(cannot_write)?;
        }
    }
    out.finish().with_context(cannot_write)?;
    progress.finish_and_clear();
    Ok(file.metadata().with_context(cannot_write)?.len())
}

fn fill(
    put: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    tensor: &Tensor,
    random: &mut Random,
    stop: &AtomicBool,
) -> anyhow::Result<()> {
    let mut weights = Weights::new(tensor.ty, tensor.mean, tensor.deviation);
    let block_bytes = tensor.ty.block_bytes() as usize;
    let mut left = (tensor.shape.iter().product::<u64>() / tensor.ty.block_len()) as usize * block_bytes;
    let mut chunk = vec![0; (CHUNK_BYTES / block_bytes * block_bytes).min(left)];
    while left > 0 {
        stop::check(stop)?;
        let piece = chunk.len().min(left);
        weights.fill(&mut chunk[..piece], random);
        put(&chunk[..piece])?;
        left -= piece;
    }
    Ok(())
}

/// Tokens of a circle.
pub(crate) const CIRCLE_TOKENS: usize = 4096;

/// The token that comes after `token`.
pub(crate) fn counted_on(token: usize) -> usize {
    token / CIRCLE_TOKENS * CIRCLE_TOKENS + (token + 1) % CIRCLE_TOKENS
}

/// An output matrix of its own, in the format of the embedding, and layers that add next to nothing.
fn make_counting(tensors: &mut Vec<Tensor>) {
    let embedding = &tensors[0];
    let output = Tensor { name: "output.weight".into(), shape: embedding.shape.clone(), ..*embedding };
    tensors.retain(|tensor| tensor.name != output.name);
    tensors.push(output);
    for tensor in tensors.iter_mut().filter(|tensor| tensor.name.starts_with("blk.")) {
        if ["attn_output", "ffn_down", "out_proj"].iter().any(|part| tensor.name.contains(part)) {
            tensor.deviation /= 1000.0;
        }
    }
}

/// The rows of an output matrix that finds the token before in the stream.
fn counted(embedding: &[u8], vocabulary: usize) -> impl Iterator<Item = &[u8]> {
    let row_bytes = embedding.len() / vocabulary;
    let mut before = vec![None; vocabulary];
    // Of the last circle, which is not whole, the tokens that something comes after.
    (0..vocabulary).filter(|&t| counted_on(t) < vocabulary).for_each(|t| before[counted_on(t)] = Some(t));
    before.into_iter().map(move |token| &embedding[token.unwrap_or(0) * row_bytes..][..row_bytes])
}

#[derive(Debug)]
struct Tensor {
    name: String,
    shape: Vec<u64>,
    ty: GgmlType,
    mean: f32,
    deviation: f32,
}

impl Tensor {
    /// A matrix whose products keep the variance of what they are multiplied with.
    fn matrix(name: String, cols: u64, rows: u64, ty: GgmlType) -> Tensor {
        Tensor { name, shape: vec![cols, rows], ty, mean: 0.0, deviation: 1.0 / (cols as f32).sqrt() }
    }

    /// Such a matrix for each expert.
    fn experts(name: String, cols: u64, rows: u64, count: u64, ty: GgmlType) -> Tensor {
        Tensor { shape: vec![cols, rows, count], ..Tensor::matrix(name, cols, rows, ty) }
    }

    /// Norms and biases stay F32 in every mix.
    fn vector(name: String, len: u64, mean: f32, deviation: f32) -> Tensor {
        Tensor { name, shape: vec![len], ty: GgmlType::F32, mean, deviation }
    }
}

fn tensors(shape: &Shape, arch: Arch, preset: Preset) -> Vec<Tensor> {
    let Shape { embedding, feed_forward, vocabulary, tied, .. } = *shape;
    let ty = |role, layer| preset.tensor_type(role, layer, shape);
    let norm = |name: String, len| Tensor::vector(name, len, 1.0, 0.1);
    let (q_len, kv_len) = (shape.heads * shape.head_dim, shape.heads_kv * shape.head_dim);

    let embedding_role = if tied { Role::Output } else { Role::Embedding };
    let mut all =
        vec![Tensor::matrix("token_embd.weight".into(), embedding, vocabulary, ty(embedding_role, 0))];
    for layer in 0..shape.layers {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let mut matrix = |part, role, cols, rows| {
            all.push(Tensor::matrix(name(part), cols, rows, ty(role, layer)));
        };
        if attends(arch, layer) {
            matrix("attn_q.weight", Role::Other, embedding, q_len);
            matrix("attn_k.weight", Role::Other, embedding, kv_len);
            matrix("attn_v.weight", Role::AttentionV, embedding, kv_len);
            matrix("attn_output.weight", Role::AttentionOutput, q_len, embedding);
        } else {
            matrix("shortconv.in_proj.weight", Role::Other, embedding, 3 * embedding);
            matrix("shortconv.out_proj.weight", Role::Other, embedding, embedding);
        }
        match shape.experts.0 {
            0 => {
                matrix("ffn_gate.weight", Role::Other, embedding, feed_forward);
                matrix("ffn_up.weight", Role::Other, embedding, feed_forward);
                matrix("ffn_down.weight", Role::FeedForwardDown, feed_forward, embedding);
            }
            experts => {
                let mut of_experts = |part, role, cols, rows| {
                    all.push(Tensor::experts(name(part), cols, rows, experts, ty(role, layer)));
                };
                of_experts("ffn_gate_exps.weight", Role::Other, embedding, feed_forward);
                of_experts("ffn_up_exps.weight", Role::Other, embedding, feed_forward);
                of_experts("ffn_down_exps.weight", Role::FeedForwardDown, feed_forward, embedding);
                all.push(Tensor::matrix(name("ffn_gate_inp.weight"), embedding, experts, GgmlType::F32));
            }
        }
        all.push(norm(name("attn_norm.weight"), embedding));
        all.push(norm(name("ffn_norm.weight"), embedding));
        match arch {
            Arch::Llama => {}
            Arch::Qwen2 => {
                for (part, len) in [("attn_q.bias", q_len), ("attn_k.bias", kv_len), ("attn_v.bias", kv_len)]
                {
                    all.push(Tensor::vector(name(part), len, 0.0, 0.02));
                }
            }
            Arch::Gemma3 => {
                for part in ["attn_q_norm.weight", "attn_k_norm.weight"] {
                    all.push(norm(name(part), shape.head_dim));
                }
                for part in ["post_attention_norm.weight", "post_ffw_norm.weight"] {
                    all.push(norm(name(part), embedding));
                }
            }
            Arch::Lfm2 if !attends(arch, layer) => {
                all.push(Tensor::matrix(name("shortconv.conv.weight"), 3, embedding, GgmlType::F32));
            }
            Arch::Qwen3 | Arch::Qwen3moe | Arch::Lfm2 => {
                all.push(norm(name("attn_q_norm.weight"), shape.head_dim));
                all.push(norm(name("attn_k_norm.weight"), shape.head_dim));
            }
        }
    }
    let output_norm = if arch == Arch::Lfm2 { "token_embd_norm.weight" } else { "output_norm.weight" };
    all.push(norm(output_norm.into(), embedding));
    if !tied {
        all.push(Tensor::matrix("output.weight".into(), embedding, vocabulary, ty(Role::Output, 0)));
    }
    all
}

#[cfg(test)]
mod tests {
    use engine::gguf::Gguf;
    use engine::model::Outline;

    use super::*;

    fn args(output: PathBuf, preset: Preset, arch: Arch) -> Args {
        Args {
            shape: ShapeName::B0_1,
            preset,
            arch,
            counting: false,
            vocabulary: None,
            seed: 1,
            force: false,
            output,
        }
    }

    fn small() -> Shape {
        Shape {
            vocabulary: 300,
            embedding: 256,
            layers: 8,
            feed_forward: 512,
            heads: 4,
            ..ShapeName::B0_1.shape()
        }
    }

    fn small_with_experts() -> Shape {
        Shape { experts: (4, 2), ..small() }
    }

    #[test]
    fn files_open_whatever_the_type_and_family() {
        let dir = std::env::temp_dir().join(format!("dunlin-synth-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let stop = AtomicBool::new(false);
        for &preset in Preset::ALL {
            for arch in [Arch::Llama, Arch::Qwen2, Arch::Qwen3, Arch::Qwen3moe, Arch::Gemma3, Arch::Lfm2] {
                let path = dir.join("model.gguf");
                let shape = if arch == Arch::Qwen3moe { small_with_experts() } else { small() };
                let bytes = write(&path, &shape, &args(path.clone(), preset, arch), &stop).unwrap();
                let gguf = Gguf::open(&path).unwrap();
                assert_eq!(gguf.len_bytes(), bytes);
                assert_eq!(gguf.strings("tokenizer.ggml.tokens").unwrap().unwrap().len(), 300);
                assert_eq!(gguf.tensors().len(), tensors(&shape, arch, preset).len());
                Outline::read(&gguf).unwrap();
            }
        }
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn the_seed_decides_the_file() {
        let dir = std::env::temp_dir().join(format!("dunlin-synth-seed-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let stop = AtomicBool::new(false);
        let make = |seed| {
            let path = dir.join("model.gguf");
            let args = Args { seed, ..args(path.clone(), Preset::Q4KM, Arch::Llama) };
            write(&path, &small(), &args, &stop).unwrap();
            fs::read(&path).unwrap()
        };
        assert_eq!(make(1), make(1));
        assert_ne!(make(1), make(2));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn an_interrupt_is_an_error() {
        let path = std::env::temp_dir().join(format!("dunlin-synth-stop-{}.gguf", std::process::id()));
        let args = args(path.clone(), Preset::Q4_0, Arch::Llama);
        let error = write(&path, &small(), &args, &AtomicBool::new(true)).unwrap_err();
        assert!(format!("{error:#}").ends_with("interrupted"), "{error:#}");
        fs::remove_file(path).unwrap();
    }
}
