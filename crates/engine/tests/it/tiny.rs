//! Tiny models with random weights, and what they compute, written down a second time in double precision: naive, one
//! token after the other, with nothing of the engine's but the decoding of weight formats.

use engine::gguf::{GgmlType, Gguf, GgufWriter, Value};
use engine::model::format_of;
use half::f16;
use stdx::random::Random;

/// What a tiny model is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Recipe {
    pub(crate) family: &'static str,
    pub(crate) format: GgmlType,
    pub(crate) layers: usize,
    pub(crate) width: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) rope_dims: usize,
    pub(crate) feed_forward: usize,
    pub(crate) vocabulary: usize,
    /// The embedding is the output matrix, too.
    pub(crate) tied: bool,
    /// Queries, keys and values have biases.
    pub(crate) biases: bool,
    /// All matrices have scales and biases, and rotary frequencies have factors.
    pub(crate) extras: bool,
    pub(crate) seed: u64,
}

pub(crate) const LLAMA: Recipe = Recipe {
    family: "llama",
    format: GgmlType::F32,
    layers: 2,
    width: 64,
    heads: 4,
    kv_heads: 2,
    head_dim: 16,
    rope_dims: 16,
    feed_forward: 96,
    vocabulary: 128,
    tied: true,
    biases: false,
    extras: false,
    seed: 1,
};

pub(crate) const QWEN2: Recipe = Recipe { family: "qwen2", biases: true, tied: false, ..LLAMA };

/// Heads are longer than `width / heads`.
pub(crate) const QWEN3: Recipe = Recipe { family: "qwen3", head_dim: 32, rope_dims: 32, ..LLAMA };

/// Sizes that every block format divides.
pub(crate) const WIDE: Recipe =
    Recipe { width: 256, head_dim: 64, rope_dims: 64, feed_forward: 512, tied: false, ..LLAMA };

#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) shape: Vec<u64>,
    pub(crate) ty: GgmlType,
    pub(crate) bytes: Vec<u8>,
}

/// A model as a list of tensors and metadata, either of which a test may spoil.
#[derive(Clone, Debug)]
pub(crate) struct Tiny {
    pub(crate) recipe: Recipe,
    pub(crate) tensors: Vec<Tensor>,
    pub(crate) keys: Vec<(String, Value<'static>)>,
}

const EPSILON: f32 = 1e-5;
const ROPE_BASE: f32 = 10_000.0;

impl Tiny {
    pub(crate) fn new(recipe: Recipe) -> Tiny {
        let mut tiny = Tiny { recipe, tensors: Vec::new(), keys: keys(&recipe) };
        let mut random = Random::new(recipe.seed);
        let (width, ff, dim) = (recipe.width, recipe.feed_forward, recipe.head_dim);
        let (queries, keys) = (recipe.heads * dim, recipe.kv_heads * dim);
        tiny.matrix("token_embd", width, recipe.vocabulary, &mut random);
        for layer in 0..recipe.layers {
            let matrices = [
                ("attn_q", width, queries, recipe.biases),
                ("attn_k", width, keys, recipe.biases),
                ("attn_v", width, keys, recipe.biases),
                ("attn_output", queries, width, false),
                ("ffn_gate", width, ff, false),
                ("ffn_up", width, ff, false),
                ("ffn_down", ff, width, false),
            ];
            for (name, cols, rows, bias) in matrices {
                let name = format!("blk.{layer}.{name}");
                tiny.matrix(&name, cols, rows, &mut random);
                if bias || recipe.extras {
                    tiny.vector(&format!("{name}.bias"), rows, -0.5..0.5, &mut random);
                }
                if recipe.extras {
                    tiny.vector(&format!("{name}.scale"), 1, 0.5..1.5, &mut random);
                }
            }
            tiny.vector(&format!("blk.{layer}.attn_norm.weight"), width, 0.5..1.5, &mut random);
            tiny.vector(&format!("blk.{layer}.ffn_norm.weight"), width, 0.5..1.5, &mut random);
            if recipe.family == "qwen3" {
                tiny.vector(&format!("blk.{layer}.attn_q_norm.weight"), dim, 0.5..1.5, &mut random);
                tiny.vector(&format!("blk.{layer}.attn_k_norm.weight"), dim, 0.5..1.5, &mut random);
            }
        }
        tiny.vector("output_norm.weight", width, 0.5..1.5, &mut random);
        if recipe.extras {
            tiny.vector("rope_freqs.weight", recipe.rope_dims / 2, 1.0..8.0, &mut random);
        }
        if !recipe.tied {
            tiny.matrix("output", width, recipe.vocabulary, &mut random);
        }
        tiny
    }

    fn matrix(&mut self, name: &str, cols: usize, rows: usize, random: &mut Random) {
        let ty = self.recipe.format;
        let blocks = rows * cols / ty.block_len() as usize;
        let bytes = (0..blocks).flat_map(|_| random_block(ty, cols, random)).collect();
        self.tensors.push(Tensor {
            name: format!("{name}.weight"),
            shape: vec![cols as u64, rows as u64],
            ty,
            bytes,
        });
    }

    fn vector(&mut self, name: &str, len: usize, range: std::ops::Range<f32>, random: &mut Random) {
        let value = |random: &mut Random| range.start + random.f32() * (range.end - range.start);
        let bytes = (0..len).flat_map(|_| value(random).to_le_bytes()).collect();
        let shape = vec![len as u64];
        self.tensors.push(Tensor { name: name.to_owned(), shape, ty: GgmlType::F32, bytes });
    }

    /// Replaces or adds a metadata key.
    pub(crate) fn set(&mut self, key: &str, value: Value<'static>) {
        self.keys.retain(|(k, _)| k != key);
        self.keys.push((key.to_owned(), value));
    }

    pub(crate) fn unset(&mut self, key: &str) {
        self.keys.retain(|(k, _)| k != key);
    }

    pub(crate) fn tensor_mut(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|t| t.name == name).expect("a tensor of the recipe")
    }

    /// The model as a file.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut writer = GgufWriter::new();
        self.keys.iter().for_each(|(key, value)| writer.put_value(key, value));
        for tensor in &self.tensors {
            writer.tensor(&tensor.name, &tensor.shape, tensor.ty).expect("a possible tensor");
        }
        writer.into_bytes(|i, _| self.tensors[i].bytes.clone()).expect("all data is there")
    }

    pub(crate) fn gguf(&self) -> Gguf {
        Gguf::from_bytes(self.bytes()).expect("a sound file")
    }

    fn floats(&self, name: &str) -> Option<Vec<f64>> {
        let tensor = self.tensors.iter().find(|t| t.name == name)?;
        let format = format_of(tensor.ty).expect("a known format");
        let mut out = vec![0.0f32; tensor.shape.iter().product::<u64>() as usize];
        format.dequantize_row(&tensor.bytes, &mut out);
        Some(out.into_iter().map(f64::from).collect())
    }

    /// The logits after each of `tokens`, by the definition of the family.
    pub(crate) fn reference(&self, tokens: &[u32]) -> Vec<Vec<f64>> {
        let r = &self.recipe;
        let embedding = self.floats("token_embd.weight").expect("an embedding");
        let mut stream: Vec<Vec<f64>> =
            tokens.iter().map(|&t| embedding[t as usize * r.width..][..r.width].to_vec()).collect();
        for layer in 0..r.layers {
            self.reference_attention(layer, &mut stream);
            self.reference_feed_forward(layer, &mut stream);
        }
        let norm = self.floats("output_norm.weight").expect("a norm");
        let head = self.floats("output.weight").unwrap_or(embedding);
        stream.iter().map(|x| multiply(&head, &rms_norm(x, &norm))).collect()
    }

    fn reference_attention(&self, layer: usize, stream: &mut [Vec<f64>]) {
        let r = &self.recipe;
        let dim = r.head_dim;
        let part = |name: &str| self.floats(&format!("blk.{layer}.{name}"));
        // Of attention's matrices the product is scaled, then the bias is added.
        let linear = |name: &str, x: &[f64]| -> Vec<f64> {
            let scale = part(&format!("{name}.scale")).map_or(1.0, |s| s[0]);
            let y = multiply(&part(&format!("{name}.weight")).expect("a matrix"), x);
            let bias = part(&format!("{name}.bias")).unwrap_or_else(|| vec![0.0; y.len()]);
            y.iter().zip(bias).map(|(y, b)| y * scale + b).collect()
        };
        let norm = part("attn_norm.weight").expect("a norm");
        let head_norms = part("attn_q_norm.weight").zip(part("attn_k_norm.weight"));
        let (mut all_keys, mut all_values) = (Vec::new(), Vec::new());
        for (position, x) in stream.iter_mut().enumerate() {
            let normed = rms_norm(x, &norm);
            let mut queries = linear("attn_q", &normed);
            let mut keys = linear("attn_k", &normed);
            for (heads, which) in [(&mut queries, 0), (&mut keys, 1)] {
                for head in heads.chunks_exact_mut(dim) {
                    if let Some((q, k)) = &head_norms {
                        head.copy_from_slice(&rms_norm(head, if which == 0 { q } else { k }));
                    }
                    self.rotate(head, position);
                }
            }
            all_keys.push(keys);
            all_values.push(linear("attn_v", &normed));
            let mut attended = vec![0.0; r.heads * dim];
            for (h, out) in attended.chunks_exact_mut(dim).enumerate() {
                let shared = h / (r.heads / r.kv_heads) * dim..;
                let query = &queries[h * dim..][..dim];
                let scores: Vec<f64> = all_keys
                    .iter()
                    .map(|k| dot(query, &k[shared.clone()][..dim]) / (dim as f64).sqrt())
                    .collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                for (score, values) in scores.iter().zip(&all_values) {
                    let weight = (score - max).exp() / sum;
                    out.iter_mut().zip(&values[shared.clone()][..dim]).for_each(|(o, v)| *o += weight * v);
                }
            }
            let y = linear("attn_output", &attended);
            x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
        }
    }

    fn rotate(&self, head: &mut [f64], position: usize) {
        let n = self.recipe.rope_dims;
        let factors = self.floats("rope_freqs.weight").unwrap_or_else(|| vec![1.0; n / 2]);
        for (i, factor) in factors.into_iter().enumerate() {
            let (a, b) = if self.recipe.family == "llama" { (2 * i, 2 * i + 1) } else { (i, i + n / 2) };
            let frequency = f64::from(ROPE_BASE).powf(-2.0 * i as f64 / n as f64) / factor;
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
        }
    }

    fn reference_feed_forward(&self, layer: usize, stream: &mut [Vec<f64>]) {
        let part = |name: &str| self.floats(&format!("blk.{layer}.{name}"));
        // Here the bias is added first, and the sum is scaled.
        let linear = |name: &str| {
            let matrix = part(&format!("{name}.weight")).expect("a matrix");
            let scale = part(&format!("{name}.scale")).map_or(1.0, |s| s[0]);
            let bias = part(&format!("{name}.bias"));
            move |x: &[f64]| -> Vec<f64> {
                let y = multiply(&matrix, x);
                let bias = bias.clone().unwrap_or_else(|| vec![0.0; y.len()]);
                y.iter().zip(bias).map(|(y, b)| (y + b) * scale).collect()
            }
        };
        let (gate, up, down) = (linear("ffn_gate"), linear("ffn_up"), linear("ffn_down"));
        let norm = part("ffn_norm.weight").expect("a norm");
        for x in stream {
            let normed = rms_norm(x, &norm);
            let silu = |g: f64| g / (1.0 + (-g).exp());
            let hidden: Vec<f64> =
                gate(&normed).into_iter().zip(up(&normed)).map(|(g, u)| silu(g) * u).collect();
            x.iter_mut().zip(down(&hidden)).for_each(|(x, y)| *x += y);
        }
    }
}

fn keys(r: &Recipe) -> Vec<(String, Value<'static>)> {
    let number = |n: usize| Value::U32(n as u32);
    let own = |name: &str, value| (format!("{}.{name}", r.family), value);
    vec![
        ("general.architecture".to_owned(), Value::Str(r.family)),
        own("block_count", number(r.layers)),
        own("embedding_length", number(r.width)),
        own("attention.head_count", number(r.heads)),
        own("attention.head_count_kv", number(r.kv_heads)),
        own("attention.key_length", number(r.head_dim)),
        own("attention.value_length", number(r.head_dim)),
        own("attention.layer_norm_rms_epsilon", Value::F32(EPSILON)),
        own("rope.dimension_count", number(r.rope_dims)),
        own("rope.freq_base", Value::F32(ROPE_BASE)),
        own("feed_forward_length", number(r.feed_forward)),
        own("context_length", number(4096)),
        own("vocab_size", number(r.vocabulary)),
    ]
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn multiply(matrix: &[f64], x: &[f64]) -> Vec<f64> {
    matrix.chunks_exact(x.len()).map(|row| dot(row, x)).collect()
}

fn rms_norm(x: &[f64], weight: &[f64]) -> Vec<f64> {
    let scale = (dot(x, x) / x.len() as f64 + f64::from(EPSILON)).sqrt().recip();
    x.iter().zip(weight).map(|(x, w)| x * scale * w).collect()
}

/// The bits of a block are random but for its scales, which make weights of about `1 / sqrt(cols)`.
fn random_block(ty: GgmlType, cols: usize, random: &mut Random) -> Vec<u8> {
    let size = (cols as f32).sqrt().recip();
    if ty.block_len() == 1 {
        let value = (random.f32() - 0.5) * 3.4 * size;
        return match ty {
            GgmlType::F32 => value.to_le_bytes().to_vec(),
            GgmlType::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
            _ => half::bf16::from_f32(value).to_le_bytes().to_vec(),
        };
    }
    let mut block = vec![0; ty.block_bytes() as usize];
    random.fill(&mut block);
    // Where the halves with the scale and the minimum are, how far weights spread at a scale of 1, and the minimum that
    // puts their mean at 0.
    let (at, spread, minimum) = match ty.name() {
        "Q8_0" => (0, 74.0, None),
        "Q4_0" => (0, 4.6, None),
        "Q4_1" => (0, 4.6, Some((2, -7.5))),
        "Q5_0" => (0, 9.2, None),
        "Q5_1" => (0, 9.2, Some((2, -15.5))),
        "Q2_K" => (80, 12.0, Some((82, 1.5))),
        "Q3_K" => (108, 42.0, None),
        "Q4_K" => (0, 250.0, Some((2, 7.5))),
        "Q5_K" => (0, 500.0, Some((2, 15.5))),
        "Q6_K" => (208, 1370.0, None),
        "IQ4_NL" => (0, 65.0, None),
        "IQ4_XS" => (0, 1200.0, None),
        "MXFP4" => {
            block[0] = 121;
            return block;
        }
        other => panic!("no random blocks of {other}"),
    };
    let scale = size / spread * (0.75 + random.f32() / 2.0);
    block[at..at + 2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
    if let Some((at, times)) = minimum {
        block[at..at + 2].copy_from_slice(&f16::from_f32(scale * times).to_le_bytes());
    }
    block
}
