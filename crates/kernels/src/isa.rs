//! Instruction sets: what this processor has, and the table of functions that goes with each.
//!
//! A [`Table`] can only be had for a set that the processor has, so holding one proves support.

use crate::layout::{Bytes, Layout};
use crate::ops::ActivationFunction;
use crate::panel::PANEL_WIDTHS;
use crate::recurrent::RememberArgs;
use std::fmt;
use std::str::FromStr;

/// An instruction set that kernels are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Plain Rust; the reference the others are tested against.
    Scalar,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, VL, DQ and VNNI.
    Avx512Vnni,
    /// Armv8.0 Advanced SIMD.
    Neon,
    /// NEON with the dot product instructions of Armv8.2 (`sdot`).
    NeonDotprod,
    /// The same with the matrix instructions of Armv8.6 (`smmla`).
    NeonI8mm,
}

impl Isa {
    /// Slowest first.
    pub const ALL: [Isa; 6] =
        [Isa::Scalar, Isa::Avx2, Isa::Avx512Vnni, Isa::Neon, Isa::NeonDotprod, Isa::NeonI8mm];

    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512Vnni => "avx512-vnni",
            Isa::Neon => "neon",
            Isa::NeonDotprod => "neon-dotprod",
            Isa::NeonI8mm => "neon-i8mm",
        }
    }

    /// Whether this processor has it.
    pub fn is_supported(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => {
                Isa::Avx2.is_supported()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDotprod => {
                std::arch::is_aarch64_feature_detected!("neon")
                    && std::arch::is_aarch64_feature_detected!("dotprod")
            }
            #[cfg(target_arch = "aarch64")]
            Isa::NeonI8mm => {
                Isa::NeonDotprod.is_supported() && std::arch::is_aarch64_feature_detected!("i8mm")
            }
            _ => false,
        }
    }

    /// The fastest set that this processor has.
    pub fn detect() -> Isa {
        Isa::ALL.into_iter().rev().find(|isa| isa.is_supported()).expect("scalar is always supported")
    }

    /// Whether tiles of one token read two streams of memory at once where they are given a [`Twin`].
    pub(crate) fn reads_twins(self) -> bool {
        self == Isa::Avx512Vnni
    }

    /// How 8-bit weights are packed for this set.
    pub fn bytes(self) -> Bytes {
        match self {
            Isa::Avx512Vnni => Bytes::Unsigned,
            Isa::Scalar | Isa::Avx2 | Isa::Neon | Isa::NeonDotprod | Isa::NeonI8mm => Bytes::Signed,
        }
    }

    /// The functions of this set, where the processor has it.
    pub fn table(self) -> Option<&'static Table> {
        if !self.is_supported() {
            return None;
        }
        match self {
            Isa::Scalar => Some(&crate::arch::scalar::TABLE),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Some(&crate::arch::x86_64::avx2::TABLE),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => Some(&crate::arch::x86_64::avx512::TABLE),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => Some(&crate::arch::aarch64::neon::TABLE),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDotprod => Some(&crate::arch::aarch64::dotprod::TABLE),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonI8mm => Some(&crate::arch::aarch64::i8mm::TABLE),
            #[allow(unreachable_patterns, reason = "which sets remain depends on the architecture")]
            _ => None,
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Isa {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Isa::ALL.into_iter().find(|isa| isa.name() == name).ok_or_else(|| {
            let known: Vec<_> = Isa::ALL.iter().map(|isa| isa.name()).collect();
            format!("no instruction set is called '{name}'; known are {}", known.join(", "))
        })
    }
}

/// One call of a matrix tile: some strips times one panel.
///
/// The unsafe contract of every [`TileFn`]: `strips` points at `strip_count` strips of `strip_bytes` bytes of the layout
/// the function is for, with `cols` columns; `panel` at a panel of the function's width and kind (integer or float) with
/// `cols` columns; `out` at `width` rows, `out_stride` floats apart, of `16 * strip_count` floats that nobody else uses.
/// `twin` is there for one token, an integer layout and sets that want it only, and its pointers are as those.
pub(crate) struct TileArgs {
    pub(crate) strips: *const u8,
    pub(crate) strip_bytes: usize,
    pub(crate) strip_count: usize,
    pub(crate) cols: usize,
    pub(crate) panel: *const u8,
    pub(crate) out: *mut f32,
    pub(crate) out_stride: usize,
    /// Add to `out` instead of overwriting it.
    pub(crate) add: bool,
    /// As many strips from somewhere else, to go through in turns with the others as a second stream of memory.
    pub(crate) twin: Option<Twin>,
}

/// See [`TileArgs::twin`].
#[derive(Clone, Copy)]
pub(crate) struct Twin {
    pub(crate) strips: *const u8,
    pub(crate) out: *mut f32,
}

pub(crate) type TileFn = unsafe fn(&TileArgs);

/// One tile per panel width, widest first.
pub(crate) type Tiles = [TileFn; PANEL_WIDTHS.len()];

/// Scores of positions for `T` query rows: `out[t * PAGE + b * 16 + j] = sum over c of q[c * T + t] * k_b[c * 16 + j]`.
///
/// The unsafe contract of every [`ScoreFn`]: `q` holds `dim * T` floats, `k` `blocks` blocks of `dim * 16` elements of the
/// cache's format, `out` `T` rows of [`PAGE`](crate::attention::PAGE) floats that nobody else uses.
#[derive(Clone, Copy)]
pub(crate) struct ScoreArgs {
    pub(crate) q: *const f32,
    pub(crate) k: *const u8,
    pub(crate) dim: usize,
    pub(crate) blocks: usize,
    pub(crate) out: *mut f32,
    /// A hint: as many bytes from there on as are read now will be read next.
    pub(crate) next: *const u8,
}

pub(crate) type ScoreFn = unsafe fn(&ScoreArgs);

/// Weighted sum of values for `T` query rows, onto a rescaled accumulator: `out[t * dims + j] = out[..] * alpha[t] + sum
/// over p < count of weight[t * PAGE + p] * v[p * dims + j]`, where an element `v` of a quantized cache is multiplied by
/// `scales[j / 32 * PAGE + p]`.
///
/// The unsafe contract of every [`MixFn`]: `weight` holds `T` rows of [`PAGE`](crate::attention::PAGE) floats, `v` `count`
/// rows of `dims` elements of the cache's format, `scales` `dims / 32` rows of `PAGE` floats where that is quantized,
/// `alpha` `T` floats and `out` `T` rows of `dims` floats that nobody else uses; `dims` is a multiple of 16, and of 32
/// where quantized.
#[derive(Clone, Copy)]
pub(crate) struct MixArgs {
    pub(crate) weight: *const f32,
    pub(crate) v: *const u8,
    pub(crate) scales: *const f32,
    pub(crate) dims: usize,
    pub(crate) count: usize,
    pub(crate) alpha: *const f32,
    pub(crate) out: *mut f32,
    /// As in [`ScoreArgs`].
    pub(crate) next: *const u8,
}

pub(crate) type MixFn = unsafe fn(&MixArgs);

/// What attention does with a cache of floats, for one format of it; a function per panel width, widest first.
pub(crate) struct CacheTiles {
    pub(crate) score: [ScoreFn; PANEL_WIDTHS.len()],
    pub(crate) mix: [MixFn; PANEL_WIDTHS.len()],
}

/// The functions of one instruction set.
pub struct Table {
    pub isa: Isa,
    pub(crate) f32: Tiles,
    pub(crate) f16: Tiles,
    pub(crate) bf16: Tiles,
    pub(crate) q8: Tiles,
    pub(crate) q4: Tiles,
    pub(crate) iq4_nl: Tiles,
    pub(crate) mxfp4: Tiles,
    pub(crate) q4k: Tiles,
    pub(crate) q5k: Tiles,
    pub(crate) q3k: Tiles,
    pub(crate) q6k: Tiles,
    pub(crate) iq4_xs: Tiles,
    pub(crate) w8: Tiles,
    pub(crate) w8_half: Tiles,
    pub(crate) cache_f32: CacheTiles,
    pub(crate) cache_f16: CacheTiles,
    pub(crate) cache_bf16: CacheTiles,
    /// Of a `Q8_0` cache; its keys are scored by `q8`.
    pub(crate) mix_q8: [MixFn; PANEL_WIDTHS.len()],
    /// Contract: see `panel::quantize_row_body`.
    pub(crate) quantize_row: unsafe fn(row: &[f32], span: usize, panel: *mut u8, width: usize, lane: usize),
    /// Contract of these: the processor has the instruction set, which holding a table proves.
    pub(crate) rms_scale: unsafe fn(x: &[f32], epsilon: f32) -> f32,
    pub(crate) scale: unsafe fn(x: &[f32], scale: f32, weight: &[f32], out: &mut [f32]),
    pub(crate) mean_scale: unsafe fn(x: &[f32], epsilon: f32) -> (f32, f32),
    pub(crate) center_scale: unsafe fn(x: &[f32], mean: f32, scale: f32, weight: &[f32], out: &mut [f32]),
    pub(crate) silu_mul: unsafe fn(gate: &mut [f32], up: &[f32]),
    pub(crate) gelu_mul: unsafe fn(gate: &mut [f32], up: &[f32]),
    pub(crate) exact_gelu_mul: unsafe fn(gate: &mut [f32], up: &[f32]),
    pub(crate) clamped_swiglu: unsafe fn(gate: &mut [f32], up: &[f32]),
    pub(crate) add_scaled: unsafe fn(x: &mut [f32], y: &[f32], factor: f32),
    pub(crate) add_product: unsafe fn(sum: &mut [f32], x: &[f32], y: &[f32]),
    pub(crate) silu: unsafe fn(x: &mut [f32]),
    pub(crate) sigmoid_mul: unsafe fn(x: &mut [f32], gate: &[f32]),
    pub(crate) remember: unsafe fn(&RememberArgs),
    pub(crate) soft_cap: unsafe fn(x: &mut [f32], cap: f32),
    pub(crate) softmax_tile: unsafe fn(scores: &mut [f32], max_before: f32) -> (f32, f32),
    pub(crate) max: unsafe fn(x: &[f32]) -> f32,
    pub(crate) exp_sum: unsafe fn(x: &[f32], max: f32) -> f32,
    /// Multiplies bytes in registers, in `rounds` rounds, and returns how many multiply-adds that were.
    pub(crate) dots: unsafe fn(rounds: u64) -> u64,
}

/// Contract: the processor has the instruction set.
pub(crate) type GateFn = unsafe fn(gate: &mut [f32], up: &[f32]);

impl Table {
    pub(crate) fn gate_mul(&self, function: ActivationFunction) -> GateFn {
        match function {
            ActivationFunction::Silu => self.silu_mul,
            ActivationFunction::Gelu => self.gelu_mul,
            ActivationFunction::ExactGelu => self.exact_gelu_mul,
            ActivationFunction::ClampedSwiglu => self.clamped_swiglu,
        }
    }

    pub(crate) fn tiles(&self, layout: Layout) -> &Tiles {
        match layout {
            Layout::F32 => &self.f32,
            Layout::F16 => &self.f16,
            Layout::BF16 => &self.bf16,
            Layout::Q8 => &self.q8,
            Layout::Q4 => &self.q4,
            Layout::Iq4Nl => &self.iq4_nl,
            Layout::Mxfp4 => &self.mxfp4,
            Layout::Q4K => &self.q4k,
            Layout::Q5K => &self.q5k,
            Layout::Q3K => &self.q3k,
            Layout::Q6K => &self.q6k,
            Layout::Iq4Xs => &self.iq4_xs,
            Layout::W8 => &self.w8,
            Layout::W8Half => &self.w8_half,
        }
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Table({})", self.isa)
    }
}

/// The index of a panel width in a table's arrays.
pub(crate) fn width_index(width: usize) -> usize {
    PANEL_WIDTHS.iter().position(|&w| w == width).expect("a panel width")
}
