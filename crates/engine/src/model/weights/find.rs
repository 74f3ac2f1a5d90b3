//! The walk over a file that finds and checks every tensor of a model, and notes its matrices in the plan.

use super::floats::{
    decoded, find, floats, one_each, optional_floats, optional_matrix_of_floats, unknown_format,
};
use super::{
    Attention, DeltaNet, Dense, DenseAndExperts, Entry, Experts, FeedForward, Head, Input, Latent,
    LatentQuery, Layer, LayerInput, Linear, Mamba, MatrixId, Mixer, Norm, Parts, PerLayer, Plan, Predictor,
    RopeTable, Shared, ShortConvolution, Ungated,
};
use crate::gguf::Gguf;
use crate::model::config::{self, BeforeFeedForward, Config, HeadNorms, Output, WIDTH_MAX};
use crate::model::rope::{Factors, Rope};
use crate::model::tensors::{Part, Tensors};
use crate::model::{ModelError, format_of};
use kernels::Layout;
use kernels::format::Format;
use kernels::matrix::Shape;
use kernels::ops::NormKind;
use kernels::recurrent::Convolution;
use std::ops::Range;

/// Finds and checks every tensor of the model.
pub(crate) fn plan(gguf: &Gguf, config: &Config) -> Result<(Plan, Parts), ModelError> {
    plan_from(&Tensors::of(gguf), config)
}

/// The same, with a note in `gguf` of what was read for which part.
pub(crate) fn plan_from(gguf: &Tensors<'_>, config: &Config) -> Result<(Plan, Parts), ModelError> {
    let mut walk = Walk { gguf, config, entries: Vec::new(), slices: Vec::new() };
    gguf.reads_for(Part::PerLayer);
    let per_layer = config.per_layer.map(|len| walk.per_layer(len)).transpose()?;
    let (mut layers, mut prompt_entries) = (Vec::new(), 0);
    for (i, layer) in config.layers.iter().enumerate() {
        layers.push(walk.layer(i, layer)?);
        if i == config.last_to_keep() {
            prompt_entries = walk.entries.len();
        }
    }
    let layer_entries = walk.entries.len();
    gguf.reads_for(Part::Norms);
    let output_norm = config.output_norm.map(|name| walk.norm(name)).transpose()?;
    gguf.reads_for(Part::Embedding);
    let input = Input { per_layer, ..walk.input()? };
    gguf.reads_for(Part::Output);
    let head = walk.head()?;
    let step_entries = walk.entries.len();
    let predictor = config.predictor.as_ref().map(|layer| walk.predictor(layer)).transpose()?;
    gguf.reads_for(Part::Positions);
    let ropes = config.ropes.iter().map(|rope| rope_table(gguf, rope)).collect::<Result<_, _>>()?;
    let Walk { entries, slices, .. } = walk;
    let plan = Plan { entries, prompt_entries, layer_entries, step_entries };
    Ok((plan, Parts { input, layers, output_norm, head, predictor, ropes, slices }))
}

fn rope_table(gguf: &Tensors<'_>, rope: &Rope) -> Result<RopeTable, ModelError> {
    const FACTORS: &str = "rope_freqs.weight";
    let factors = |name: &str| optional_floats(gguf, name, rope.dims / 2);
    let original_tokens = match rope.factors {
        Factors::None => return Ok(RopeTable { short: rope.frequencies(None), long: None }),
        Factors::Needed => {
            let factors = floats(gguf, FACTORS, rope.dims / 2)?;
            return Ok(RopeTable { short: rope.frequencies(Some(&factors)), long: None });
        }
        Factors::File { original_tokens } => original_tokens,
    };
    if let Some(factors) = factors(FACTORS)? {
        return Ok(RopeTable { short: rope.frequencies(Some(&factors)), long: None });
    }
    let (short, long) = (factors("rope_factors_short.weight")?, factors("rope_factors_long.weight")?);
    Ok(RopeTable {
        short: rope.frequencies(short.as_deref()),
        long: long.map(|long| (original_tokens, rope.frequencies(Some(&long)))),
    })
}

/// The most texts that a model tells tokens of apart by.
const SEGMENTS_MAX: u64 = 16;

/// When a matrix's scale is applied, if at all.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scales {
    BeforeBias,
    AfterBias,
    Never,
}

/// Finds one tensor after the other.
struct Walk<'a> {
    gguf: &'a Tensors<'a>,
    config: &'a Config,
    entries: Vec<Entry>,
    slices: Vec<(usize, Range<usize>)>,
}

impl Walk<'_> {
    /// A row for each token, which stays in the file.
    fn embedding(&self, name: &str, width: usize) -> Result<(String, Format), ModelError> {
        let embedding = find(self.gguf, name, &[width as u64, self.config.vocabulary as u64])?;
        let format = format_of(embedding.ty).ok_or_else(|| unknown_format(name, embedding))?;
        Ok((name.to_owned(), format))
    }

    fn input(&self) -> Result<Input, ModelError> {
        let &Config { width, context_tokens, input, .. } = self.config;
        let rows = |name: &str, count: usize| {
            decoded(self.gguf, find(self.gguf, name, &[width as u64, count as u64])?)
        };
        let segments = self.gguf.tensor("token_types.weight").map(|t| t.info.shape.get(1).copied());
        // Files that do not say how many there are have one.
        let segments = segments.map(|count| count.unwrap_or(1).min(SEGMENTS_MAX) as usize);
        Ok(Input {
            embedding: self.embedding("token_embd.weight", width)?,
            positions: input.positions.then(|| rows("position_embd.weight", context_tokens)).transpose()?,
            segments: match segments.filter(|_| input.segments) {
                Some(count) => Some(rows("token_types.weight", count)?),
                None => None,
            },
            norm: input.norm.map(|name| self.norm(name)).transpose()?,
            per_layer: None,
        })
    }

    /// `len` elements for each layer.
    fn per_layer(&mut self, len: usize) -> Result<PerLayer, ModelError> {
        let &Config { width, ref layers, .. } = self.config;
        let all = len * layers.len();
        let mut projection = self.linear("per_layer_model_proj", all, width, Scales::Never)?;
        projection.scale = (width as f32).sqrt().recip();
        let norm = self.norm_of("per_layer_proj_norm", len)?;
        Ok(PerLayer { embedding: self.embedding("per_layer_token_embd.weight", all)?, projection, norm })
    }

    fn layer_input(&mut self, prefix: &str, len: usize) -> Result<LayerInput, ModelError> {
        let width = self.config.width;
        Ok(LayerInput {
            gate: self.linear(&format!("{prefix}inp_gate"), len, width, Scales::Never)?,
            output: self.linear(&format!("{prefix}proj"), width, len, Scales::Never)?,
            norm: self.norm(&format!("{prefix}post_norm"))?,
        })
    }

    fn head(&mut self) -> Result<Head, ModelError> {
        let &Config { width, vocabulary, output, .. } = self.config;
        let exists = |walk: &Self, name: &str| walk.gguf.tensor(&format!("{name}.weight")).is_some();
        match output {
            Output::Logits => {
                // A model without an output matrix of its own ties it to the embedding.
                let name = if exists(self, "output") { "output" } else { "token_embd" };
                Ok(Head::Logits(self.linear(name, vocabulary, width, Scales::BeforeBias)?))
            }
            Output::Embedding(_) => {
                let mut cols = width;
                let mut dense = Vec::new();
                for name in ["dense_2", "dense_3"] {
                    if let Some((linear, rows)) = self.chained(name, cols)? {
                        dense.push(linear);
                        cols = rows;
                    }
                }
                Ok(Head::Embedding { dense, len: cols })
            }
            Output::Score(..) => {
                let hidden = self.chained("cls", width)?;
                let norm = exists(self, "cls.norm").then(|| self.norm("cls.norm")).transpose()?;
                let cols = hidden.as_ref().map_or(width, |(_, rows)| *rows);
                let output = self.chained("cls.output", cols)?;
                if hidden.is_none() && output.is_none() {
                    return Err(ModelError::MissingTensor { name: "cls.output.weight".to_owned() });
                }
                let linear = |chained: Option<(Linear, usize)>| chained.map(|(linear, _)| linear);
                Ok(Head::Score { hidden: linear(hidden), norm, output: linear(output) })
            }
        }
    }

    fn predictor(&mut self, layer: &config::Layer) -> Result<Predictor, ModelError> {
        let (number, &Config { width, vocabulary, .. }) = (self.config.layers.len(), self.config);
        let name = |part: &str| format!("blk.{number}.nextn.{part}");
        let exists = |walk: &Self, part: &str| walk.gguf.tensor(&format!("{}.weight", name(part))).is_some();
        let layer = self.layer(number, layer)?;
        let has_head = exists(self, "shared_head_head");
        let predictor = Predictor {
            embedding: match exists(self, "embed_tokens") {
                true => Some(self.embedding(&name("embed_tokens.weight"), width)?),
                false => None,
            },
            token_norm: self.norm(&name("enorm"))?,
            hidden_norm: self.norm(&name("hnorm"))?,
            join: self.linear(&name("eh_proj"), width, 2 * width, Scales::BeforeBias)?,
            layer,
            output_norm: match exists(self, "shared_head_norm") {
                true => Some(self.norm(&name("shared_head_norm"))?),
                false => None,
            },
            head: match has_head {
                true => {
                    Some(self.linear(&name("shared_head_head"), vocabulary, width, Scales::BeforeBias)?)
                }
                false => None,
            },
        };
        self.gguf.were_for(&format!("blk.{number}."), Part::Predictor);
        Ok(predictor)
    }

    /// A matrix of `cols` columns and as many rows as the file gives it, where it has it.
    fn chained(&mut self, name: &str, cols: usize) -> Result<Option<(Linear, usize)>, ModelError> {
        let Some(tensor) = self.gguf.tensor(&format!("{name}.weight")) else { return Ok(None) };
        let rows = tensor.info.shape.get(1).map_or(1, |&rows| rows.clamp(1, WIDTH_MAX as u64)) as usize;
        Ok(Some((self.linear(name, rows, cols, Scales::Never)?, rows)))
    }

    fn layer(&mut self, i: usize, layer: &config::Layer) -> Result<Layer, ModelError> {
        let prefix = format!("blk.{i}.");
        let norm = |walk: &Self, name: Option<&str>| {
            name.map(|name| walk.norm(&format!("{prefix}{name}"))).transpose()
        };
        let before_feed_forward = match layer.norms.before_feed_forward {
            BeforeFeedForward::Norm(name) => Some(name),
            BeforeFeedForward::Nothing | BeforeFeedForward::Parallel => None,
        };
        self.gguf.reads_for(Part::Norms);
        let mixer_norm = norm(self, layer.norms.mixer)?;
        self.gguf.reads_for(Part::of_mixer(&layer.mixer));
        let mixer = match &layer.mixer {
            config::Mixer::Attention(attention) => Mixer::Attention(self.attention(&prefix, attention)?),
            config::Mixer::Latent(latent) => Mixer::Latent(self.latent(&prefix, latent)?),
            config::Mixer::ShortConvolution(convolution) => {
                Mixer::ShortConvolution(self.short_convolution(&prefix, *convolution)?)
            }
            config::Mixer::Mamba(mamba) => Mixer::Mamba(self.mamba(&prefix, *mamba)?),
            config::Mixer::DeltaNet(net) => Mixer::DeltaNet(self.delta_net(&prefix, *net)?),
        };
        self.gguf.reads_for(Part::Norms);
        let mixed_norm = norm(self, layer.norms.mixed)?;
        let mixed_stream_norm = norm(self, layer.norms.mixed_stream)?;
        let mixed_stream_norm_again = norm(self, layer.norms.mixed_stream_again)?;
        let feed_forward_norm = match layer.feed_forward {
            config::FeedForward::None => None,
            _ => norm(self, before_feed_forward)?,
        };
        self.gguf.reads_for(Part::of_feed_forward(&layer.feed_forward));
        let feed_forward = match &layer.feed_forward {
            config::FeedForward::None => FeedForward::None,
            &config::FeedForward::Dense { width, gated: true, .. } => {
                FeedForward::Dense(self.dense(&prefix, "", width)?)
            }
            &config::FeedForward::Dense { width, gated: false, .. } => FeedForward::Ungated(Ungated {
                up: self.linear(&format!("{prefix}ffn_up"), width, self.config.width, Scales::Never)?,
                down: self.linear(&format!("{prefix}ffn_down"), self.config.width, width, Scales::Never)?,
            }),
            config::FeedForward::Experts(experts) => FeedForward::Experts(self.experts(&prefix, experts)?),
            config::FeedForward::DenseAndExperts { width, experts } => {
                FeedForward::DenseAndExperts(Box::new(self.dense_and_experts(&prefix, *width, experts)?))
            }
        };
        self.gguf.reads_for(Part::Norms);
        let fed_forward_norm = norm(self, layer.norms.fed_forward)?;
        let fed_forward_stream_norm = norm(self, layer.norms.fed_forward_stream)?;
        let scale = match self.config.layer_scales {
            true => optional_floats(self.gguf, &format!("{prefix}layer_output_scale.weight"), 1)?,
            false => None,
        };
        self.gguf.reads_for(Part::PerLayer);
        let input = self.config.per_layer.map(|len| self.layer_input(&prefix, len)).transpose()?;
        Ok(Layer {
            mixer_norm,
            mixer,
            mixed_norm,
            mixed_stream_norm,
            mixed_stream_norm_again,
            feed_forward_norm,
            feed_forward,
            fed_forward_norm,
            fed_forward_stream_norm,
            input,
            scale: scale.map(|scale| scale[0]),
        })
    }

    fn attention(&mut self, prefix: &str, attention: &config::Attention) -> Result<Attention, ModelError> {
        let (width, dim) = (self.config.width, attention.head_dim);
        let (queries, keys) = (attention.heads * dim, attention.kv_heads * dim);
        let with_gates = if attention.gated { 2 * queries } else { queries };
        let (query, key, value) = if attention.shares.is_some() || attention.values.of_keys {
            let mut linear =
                |name, rows| self.linear(&format!("{prefix}{name}"), rows, width, Scales::BeforeBias);
            let key = attention.shares.is_none().then(|| linear("attn_k", keys)).transpose()?;
            (linear("attn_q", with_gates)?, key, None)
        } else {
            let [query, key, value] = self.projections(prefix, [with_gates, keys, keys])?;
            (query, Some(key), Some(value))
        };
        let output = self.linear(&format!("{prefix}attn_output"), width, queries, Scales::BeforeBias)?;
        let norm_lens = match attention.head_norms {
            HeadNorms::None | HeadNorms::Layer => None,
            HeadNorms::Each => Some((dim, dim)),
            HeadNorms::All => Some((queries, keys)),
        };
        let weights = |name: &str, len| floats(self.gguf, &format!("{prefix}{name}.weight"), len);
        let head_norms = match norm_lens {
            Some((queries, keys)) => {
                let query = weights("attn_q_norm", queries)?;
                let key = key.as_ref().map(|_| weights("attn_k_norm", keys)).transpose()?;
                Some((query, key.unwrap_or_default()))
            }
            None => None,
        };
        let value_norm = (attention.values.normed && key.is_some()).then(|| self.without_weights(dim, 1.0));
        let layer_norms = match attention.head_norms {
            HeadNorms::Layer => Some((
                self.norm_of(&format!("{prefix}attn_q_norm"), queries)?,
                self.norm_of(&format!("{prefix}attn_k_norm"), keys)?,
            )),
            _ => None,
        };
        let sinks = attention.sinks.then(|| weights("attn_sinks", attention.heads)).transpose()?;
        Ok(Attention { query, key, value, output, head_norms, value_norm, layer_norms, sinks })
    }

    fn latent(&mut self, prefix: &str, latent: &config::Latent) -> Result<Latent, ModelError> {
        let config::Latent { heads, rank, key_dim, turned_dim, value_dim, .. } = *latent;
        let width = self.config.width;
        let name = |part: &str| format!("{prefix}{part}");
        let (scales, queries) = (Scales::Never, heads * (key_dim + turned_dim));
        let query = match latent.query_rank {
            None => LatentQuery::Direct(self.linear(&name("attn_q"), queries, width, scales)?),
            Some(short) => LatentQuery::Short {
                down: self.linear(&name("attn_q_a"), short, width, scales)?,
                norm: self.norm_of(&name("attn_q_a_norm"), short)?,
                up: self.linear(&name("attn_q_b"), queries, short, scales)?,
            },
        };
        let latent = self.linear(&name("attn_kv_a_mqa"), rank + turned_dim, width, scales)?;
        let latent_norm = self.norm_of(&name("attn_kv_a_norm"), rank)?;
        let mut of_heads = |part: &str, cols: usize, rows: usize| {
            let entry = self.entry(&name(part), &[cols, rows, heads])?;
            let head = |head: usize| {
                let matrix = self.slice(entry, head * rows..(head + 1) * rows)?;
                Ok(Linear { matrix, scale: 1.0, bias: None })
            };
            (0..heads).map(head).collect::<Result<Vec<_>, ModelError>>()
        };
        let key = of_heads("attn_k_b", key_dim, rank)?;
        let value = of_heads("attn_v_b", rank, value_dim)?;
        let output = self.linear(&name("attn_output"), width, heads * value_dim, Scales::BeforeBias)?;
        Ok(Latent { query, latent, latent_norm, key, value, output })
    }

    fn short_convolution(
        &mut self,
        prefix: &str,
        config::ShortConvolution { taps }: config::ShortConvolution,
    ) -> Result<ShortConvolution, ModelError> {
        let width = self.config.width;
        let name = |part: &str| format!("{prefix}shortconv.{part}");
        Ok(ShortConvolution {
            input: self.linear(&name("in_proj"), 3 * width, width, Scales::Never)?,
            convolution: self.convolution(&name("conv"), taps, width)?,
            output: self.linear(&name("out_proj"), width, width, Scales::Never)?,
        })
    }

    fn mamba(&mut self, prefix: &str, mamba: config::Mamba) -> Result<Mamba, ModelError> {
        let (width, inner, heads) = (self.config.width, mamba.inner(), mamba.heads);
        let name = |part: &str| format!("{prefix}{part}");
        let vector = |part: &str| floats(self.gguf, &name(part), heads);
        let (step_bias, decay, skip) = (
            vector("ssm_dt.bias")?,
            one_each(self.gguf, &name("ssm_a"), heads)?,
            one_each(self.gguf, &name("ssm_d"), heads)?,
        );
        let group = inner / mamba.groups;
        let weights = optional_matrix_of_floats(self.gguf, &name("ssm_norm.weight"), group, mamba.groups)?;
        let norms = weights.iter().flat_map(|weights| weights.chunks(group)).map(|weight| Norm {
            kind: NormKind::RootMeanSquare,
            epsilon: self.config.epsilon,
            weight: weight.to_vec(),
            bias: None,
        });
        let norms = norms.collect();
        Ok(Mamba {
            input: self.linear(
                &name("ssm_in"),
                inner + mamba.channels() + heads,
                width,
                Scales::BeforeBias,
            )?,
            convolution: self.convolution(&name("ssm_conv1d"), mamba.taps, mamba.channels())?,
            step_bias,
            decay,
            skip,
            norms,
            output: self.linear(&name("ssm_out"), width, inner, Scales::BeforeBias)?,
        })
    }

    fn delta_net(&mut self, prefix: &str, net: config::DeltaNet) -> Result<DeltaNet, ModelError> {
        let (width, heads, scales) = (self.config.width, net.value_heads, Scales::BeforeBias);
        let values = heads * net.value_dim;
        let name = |part: &str| format!("{prefix}{part}");
        Ok(DeltaNet {
            input: self.linear(&name("attn_qkv"), net.channels(), width, scales)?,
            gate: self.linear(&name("attn_gate"), values, width, scales)?,
            step: self.linear(&name("ssm_alpha"), heads, width, scales)?,
            rate: self.linear(&name("ssm_beta"), heads, width, scales)?,
            convolution: self.convolution(&name("ssm_conv1d"), net.taps, net.channels())?,
            step_bias: floats(self.gguf, &name("ssm_dt.bias"), heads)?,
            decay: floats(self.gguf, &name("ssm_a"), heads)?,
            norm: self.norm_of(&name("ssm_norm"), net.value_dim)?,
            output: self.linear(&name("ssm_out"), width, values, scales)?,
        })
    }

    /// A convolution for each channel, which the file has channel by channel.
    fn convolution(&self, name: &str, taps: usize, channels: usize) -> Result<Convolution, ModelError> {
        let weights =
            decoded(self.gguf, find(self.gguf, &format!("{name}.weight"), &[taps as u64, channels as u64])?)?;
        let tap = |tap: usize| weights.chunks(taps).map(|channel| channel[tap]).collect();
        let bias = optional_floats(self.gguf, &format!("{name}.bias"), channels)?;
        Ok(Convolution { taps: (0..taps).map(tap).collect(), bias })
    }

    /// Queries, keys and values: three matrices, or one with the rows of all.
    fn projections(&mut self, prefix: &str, rows: [usize; 3]) -> Result<[Linear; 3], ModelError> {
        let width = self.config.width;
        let fused = format!("{prefix}attn_qkv");
        let names = ["attn_q", "attn_k", "attn_v"].map(|name| format!("{prefix}{name}"));
        if self.gguf.tensor(&format!("{fused}.weight")).is_none() {
            let [q, k, v] = names;
            let mut linear = |name: String, rows| self.linear(&name, rows, width, Scales::BeforeBias);
            return Ok([linear(q, rows[0])?, linear(k, rows[1])?, linear(v, rows[2])?]);
        }
        let all = rows.iter().sum();
        let entry = self.entry(&fused, &[width, all])?;
        let scale = self.scale(&fused, Scales::BeforeBias)?;
        let bias = optional_floats(self.gguf, &format!("{fused}.bias"), all)?;
        let mut start = 0;
        let mut part = |i: usize| -> Result<Linear, ModelError> {
            let range = start..start + rows[i];
            start = range.end;
            let bias = match &bias {
                Some(bias) => Some(bias[range.clone()].to_vec()),
                None => optional_floats(self.gguf, &format!("{}.bias", names[i]), rows[i])?,
            };
            Ok(Linear { matrix: self.slice(entry, range)?, scale, bias })
        };
        Ok([part(0)?, part(1)?, part(2)?])
    }

    /// A feed-forward part; `suffix` tells the one of a shared expert from others.
    fn dense(&mut self, prefix: &str, suffix: &str, between: usize) -> Result<Dense, ModelError> {
        let width = self.config.width;
        let name = |part: &str| format!("{prefix}ffn_{part}{suffix}");
        let scales = self.feed_forward_scales();
        let up = self.gguf.tensor(&format!("{}.weight", name("up")));
        let is_fused = up.is_some_and(|up| up.info.shape.get(1) == Some(&(2 * between as u64)));
        if !is_fused || self.gguf.tensor(&format!("{}.weight", name("gate"))).is_some() {
            let gate = self.linear(&name("gate"), between, width, scales)?;
            let up = self.linear(&name("up"), between, width, scales)?;
            let down = self.linear(&name("down"), width, between, scales)?;
            return Ok(Dense { gate, up, down });
        }
        // The rows of the gate, then the others.
        let entry = self.entry(&name("up"), &[width, 2 * between])?;
        let scale = self.scale(&name("up"), scales)?;
        let bias = optional_floats(self.gguf, &format!("{}.bias", name("up")), 2 * between)?;
        let mut half = |range: Range<usize>| -> Result<Linear, ModelError> {
            let bias = bias.as_ref().map(|bias| bias[range.clone()].iter().map(|b| b * scale).collect());
            Ok(Linear { matrix: self.slice(entry, range)?, scale, bias })
        };
        let (gate, up) = (half(0..between)?, half(between..2 * between)?);
        Ok(Dense { gate, up, down: self.linear(&name("down"), width, between, scales)? })
    }

    fn experts(&mut self, prefix: &str, experts: &config::Experts) -> Result<Experts, ModelError> {
        let (width, count, between) = (self.config.width, experts.count, experts.width);
        let router = self.linear(&format!("{prefix}ffn_gate_inp"), count, width, Scales::Never)?;
        let selection_bias = optional_floats(self.gguf, &format!("{prefix}exp_probs_b.bias"), count)?;
        let fused = format!("{prefix}ffn_gate_up_exps");
        let (gates, ups) = if self.gguf.tensor(&format!("{fused}.weight")).is_some() {
            let entry = self.expert_entry(&fused, [width, 2 * between], experts)?;
            let half = |half: usize| {
                move |expert: usize| {
                    let start = (2 * expert + half) * between;
                    start..start + between
                }
            };
            (
                self.of_experts(&fused, entry, count, between, half(0))?,
                self.of_experts(&fused, entry, count, between, half(1))?,
            )
        } else {
            let mut all = |name: &str| {
                let name = format!("{prefix}ffn_{name}_exps");
                let entry = self.expert_entry(&name, [width, between], experts)?;
                self.of_experts(&name, entry, count, between, |i| i * between..(i + 1) * between)
            };
            (all("gate")?, all("up")?)
        };
        let down = format!("{prefix}ffn_down_exps");
        let entry = self.expert_entry(&down, [between, width], experts)?;
        let downs = self.of_experts(&down, entry, count, width, |i| i * width..(i + 1) * width)?;
        let experts_of = gates.into_iter().zip(ups).zip(downs);
        let shared = match experts.shared {
            None => None,
            Some(shared) => Some(Shared {
                expert: self.dense(prefix, "_shexp", shared.width)?,
                gate: match shared.gated {
                    true => {
                        Some(self.linear(&format!("{prefix}ffn_gate_inp_shexp"), 1, width, Scales::Never)?)
                    }
                    false => None,
                },
            }),
        };
        Ok(Experts {
            router,
            selection_bias,
            experts: experts_of.map(|((gate, up), down)| Dense { gate, up, down }).collect(),
            shared,
        })
    }

    fn dense_and_experts(
        &mut self,
        prefix: &str,
        between: usize,
        experts: &config::Experts,
    ) -> Result<DenseAndExperts, ModelError> {
        let width = self.config.width;
        let norm = |walk: &Self, name: &str| walk.norm(&format!("{prefix}{name}"));
        // The router's scales are the weights of a norm, all of them over the root of the width.
        let mut router_norm = self.without_weights(width, (width as f32).sqrt().recip());
        let scales = floats(self.gguf, &format!("{prefix}ffn_gate_inp.scale"), width)?;
        router_norm.weight.iter_mut().zip(scales).for_each(|(weight, scale)| *weight *= scale);
        Ok(DenseAndExperts {
            dense: self.dense(prefix, "", between)?,
            dense_norm: norm(self, "post_ffw_norm_1")?,
            router_norm,
            before_experts: norm(self, "pre_ffw_norm_2")?,
            experts: self.experts(prefix, experts)?,
            experts_norm: norm(self, "post_ffw_norm_2")?,
        })
    }

    /// The matrices of all experts in one tensor: `rows_of` an expert in it, with scales and biases an expert each.
    fn of_experts(
        &mut self,
        name: &str,
        entry: usize,
        count: usize,
        rows: usize,
        rows_of: impl Fn(usize) -> Range<usize>,
    ) -> Result<Vec<Linear>, ModelError> {
        let scales = match self.feed_forward_scales() {
            Scales::Never => None,
            _ => optional_floats(self.gguf, &format!("{name}.scale"), count)?,
        };
        let biases = optional_matrix_of_floats(self.gguf, &format!("{name}.bias"), rows, count)?;
        (0..count)
            .map(|expert| {
                Ok(Linear {
                    matrix: self.slice(entry, rows_of(expert))?,
                    scale: scales.as_ref().map_or(1.0, |scales| scales[expert]),
                    bias: biases.as_ref().map(|biases| biases[expert * rows..][..rows].to_vec()),
                })
            })
            .collect()
    }

    fn feed_forward_scales(&self) -> Scales {
        if self.config.feed_forward_scales { Scales::AfterBias } else { Scales::Never }
    }

    fn linear(&mut self, name: &str, rows: usize, cols: usize, scales: Scales) -> Result<Linear, ModelError> {
        let entry = self.entry(name, &[cols, rows])?;
        let matrix = self.slice(entry, 0..rows)?;
        let scale = self.scale(name, scales)?;
        let mut bias = optional_floats(self.gguf, &format!("{name}.bias"), rows)?;
        if scales == Scales::AfterBias {
            bias.iter_mut().flatten().for_each(|b| *b *= scale);
        }
        Ok(Linear { matrix, scale, bias })
    }

    fn scale(&self, name: &str, scales: Scales) -> Result<f32, ModelError> {
        match scales {
            Scales::Never => Ok(1.0),
            _ => Ok(optional_floats(self.gguf, &format!("{name}.scale"), 1)?.map_or(1.0, |s| s[0])),
        }
    }

    /// A norm that the file has no weights of: all are `weight`.
    fn without_weights(&self, len: usize, weight: f32) -> Norm {
        Norm { kind: self.config.norm, epsilon: self.config.epsilon, weight: vec![weight; len], bias: None }
    }

    /// A norm of the residual stream.
    fn norm(&self, name: &str) -> Result<Norm, ModelError> {
        self.norm_of(name, self.config.width)
    }

    fn norm_of(&self, name: &str, len: usize) -> Result<Norm, ModelError> {
        let kind = self.config.norm;
        let bias = match kind {
            NormKind::RootMeanSquare => None,
            NormKind::Layer => optional_floats(self.gguf, &format!("{name}.bias"), len)?,
        };
        let weight = floats(self.gguf, &format!("{name}.weight"), len)?;
        Ok(Norm { kind, epsilon: self.config.epsilon, weight, bias })
    }

    /// Notes a tensor of matrices, and returns its place in the plan.
    fn expert_entry(
        &mut self,
        name: &str,
        [cols, rows]: [usize; 2],
        experts: &config::Experts,
    ) -> Result<usize, ModelError> {
        let entry = self.entry(name, &[cols, rows, experts.count])?;
        (self.entries[entry].used, self.entries[entry].parts) = (experts.used, experts.count);
        Ok(entry)
    }

    /// Notes a matrix, or several in one tensor, and returns its place in the plan.
    fn entry(&mut self, name: &str, dims: &[usize]) -> Result<usize, ModelError> {
        let tensor = format!("{name}.weight");
        let wanted: Vec<u64> = dims.iter().map(|&dim| dim as u64).collect();
        let info = find(self.gguf, &tensor, &wanted)?;
        let format = format_of(info.ty).ok_or_else(|| unknown_format(&tensor, info))?;
        let shape = Shape { format, rows: dims[1..].iter().product(), cols: dims[0] };
        // The reader guarantees whole blocks; integer layouts also need whole groups, which blocks of 32 are.
        debug_assert!(Layout::of(format).is_float() || shape.cols.is_multiple_of(32));
        if shape.packed_bytes().is_none() {
            let what = format!("a matrix of {} x {}", shape.rows, shape.cols);
            return Err(ModelError::Unsupported { what });
        }
        self.entries.push(Entry { tensor, shape, used: 1, parts: 1 });
        Ok(self.entries.len() - 1)
    }

    /// Some of the rows of a planned matrix, as a matrix of its own.
    fn slice(&mut self, entry: usize, rows: Range<usize>) -> Result<MatrixId, ModelError> {
        let Entry { tensor, shape, .. } = &self.entries[entry];
        if !shape.can_be_cut(&rows) {
            let what = format!("tensor {tensor:?} cut at rows {} and {}", rows.start, rows.end);
            return Err(ModelError::Unsupported { what });
        }
        self.slices.push((entry, rows));
        Ok(MatrixId(self.slices.len() - 1))
    }
}
