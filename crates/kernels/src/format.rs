//! The weight formats of GGUF: their block geometry and the scalar reference that decodes them.
//!
//! Every integer format is one shape in disguise: 32 (or 16) weights share a scale and a minimum, and a weight is
//! `scale * q - min` with a small integer `q`. [`Format::decode_group`] brings each format into that shape; packing,
//! dequantizing and the tests all stand on it. Block layouts and constants are those of ggml's `ggml-common.h`.

use half::{bf16, f16};

/// How the weights of one tensor are stored in a GGUF file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(non_camel_case_types)]
pub enum Format {
    F32,
    F16,
    BF16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
    MXFP4,
}

/// Weights per group in [`Group`].
pub const GROUP: usize = 32;

/// Weights of a block of the K-quants and of IQ4_XS, which share an f16 scale.
pub const SUPERBLOCK: usize = 256;

/// 32 neighbouring weights of a row: weight `i` is `scale[i / 16] * q[i] - min[i / 16]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Group {
    pub q: [i8; GROUP],
    pub scale: [f32; 2],
    pub min: [f32; 2],
}

/// The values that IQ4_NL's and IQ4_XS's 4-bit codes stand for.
pub const IQ4_VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Twice the values that MXFP4's E2M1 codes stand for (OCP Microscaling Formats 1.0, section 5.3.3).
pub const MXFP4_VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

impl Format {
    pub const ALL: [Format; 16] = [
        Format::F32,
        Format::F16,
        Format::BF16,
        Format::Q8_0,
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q2_K,
        Format::Q3_K,
        Format::Q4_K,
        Format::Q5_K,
        Format::Q6_K,
        Format::IQ4_NL,
        Format::IQ4_XS,
        Format::MXFP4,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Format::F32 => "F32",
            Format::F16 => "F16",
            Format::BF16 => "BF16",
            Format::Q8_0 => "Q8_0",
            Format::Q4_0 => "Q4_0",
            Format::Q4_1 => "Q4_1",
            Format::Q5_0 => "Q5_0",
            Format::Q5_1 => "Q5_1",
            Format::Q2_K => "Q2_K",
            Format::Q3_K => "Q3_K",
            Format::Q4_K => "Q4_K",
            Format::Q5_K => "Q5_K",
            Format::Q6_K => "Q6_K",
            Format::IQ4_NL => "IQ4_NL",
            Format::IQ4_XS => "IQ4_XS",
            Format::MXFP4 => "MXFP4",
        }
    }

    /// Weights in one block; a row's length must be a multiple of it.
    pub const fn block_len(self) -> usize {
        match self {
            Format::F32 | Format::F16 | Format::BF16 => 1,
            Format::Q2_K | Format::Q3_K | Format::Q4_K | Format::Q5_K | Format::Q6_K | Format::IQ4_XS => {
                SUPERBLOCK
            }
            _ => 32,
        }
    }

    /// Bytes in one block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Format::F32 => 4,
            Format::F16 | Format::BF16 => 2,
            Format::Q8_0 => 34,
            Format::Q4_0 => 18,
            Format::Q4_1 => 20,
            Format::Q5_0 => 22,
            Format::Q5_1 => 24,
            Format::Q2_K => 84,
            Format::Q3_K => 110,
            Format::Q4_K => 144,
            Format::Q5_K => 176,
            Format::Q6_K => 210,
            Format::IQ4_NL => 18,
            Format::IQ4_XS => 136,
            Format::MXFP4 => 17,
        }
    }

    /// Bytes of a row of `len` weights; `None` where `len` is not a multiple of the block length.
    pub fn row_bytes(self, len: usize) -> Option<usize> {
        if !len.is_multiple_of(self.block_len()) {
            return None;
        }
        (len / self.block_len()).checked_mul(self.block_bytes())
    }

    /// Whether weights are floats rather than integers with scales.
    pub fn is_float(self) -> bool {
        matches!(self, Format::F32 | Format::F16 | Format::BF16)
    }

    /// Decodes weights `32 * group ..` of a row of an integer format.
    ///
    /// # Panics
    /// If the format is a float one or `row` is too short for the group.
    #[inline]
    pub fn decode_group(self, row: &[u8], group: usize) -> Group {
        let per_block = self.block_len() / GROUP;
        let block = group.checked_div(per_block).expect("a float format has no groups");
        let block = &row[block * self.block_bytes()..][..self.block_bytes()];
        let g = group % per_block;
        match self {
            Format::Q8_0 => q8_0(block),
            Format::Q4_0 => q4_0(block),
            Format::Q4_1 => q4_1(block),
            Format::Q5_0 => q5_0(block),
            Format::Q5_1 => q5_1(block),
            Format::Q2_K => q2_k(block, g),
            Format::Q3_K => q3_k(block, g),
            Format::Q4_K => q4_k(block, g),
            Format::Q5_K => q5_k(block, g),
            Format::Q6_K => q6_k(block, g),
            Format::IQ4_NL => iq4_nl(block),
            Format::IQ4_XS => iq4_xs(block, g),
            Format::MXFP4 => mxfp4(block),
            Format::F32 | Format::F16 | Format::BF16 => unreachable!("a float format has no groups"),
        }
    }

    /// Decodes a whole row into `out`, the scalar reference of every format.
    ///
    /// # Panics
    /// If `row` does not hold exactly `out.len()` weights.
    pub fn dequantize_row(self, row: &[u8], out: &mut [f32]) {
        assert_eq!(self.row_bytes(out.len()), Some(row.len()), "row length of {}", self.name());
        match self {
            Format::F32 => {
                for (o, b) in out.iter_mut().zip(row.chunks_exact(4)) {
                    *o = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                }
            }
            Format::F16 => {
                for (o, b) in out.iter_mut().zip(row.chunks_exact(2)) {
                    *o = f16::from_le_bytes([b[0], b[1]]).to_f32();
                }
            }
            Format::BF16 => {
                for (o, b) in out.iter_mut().zip(row.chunks_exact(2)) {
                    *o = bf16::from_le_bytes([b[0], b[1]]).to_f32();
                }
            }
            _ => {
                for (g, out) in out.chunks_exact_mut(GROUP).enumerate() {
                    let Group { q, scale, min } = self.decode_group(row, g);
                    for (i, o) in out.iter_mut().enumerate() {
                        *o = scale[i / 16] * f32::from(q[i]) - min[i / 16];
                    }
                }
            }
        }
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// A group with one scale and one minimum.
fn whole(q: [i8; GROUP], scale: f32, min: f32) -> Group {
    Group { q, scale: [scale; 2], min: [min; 2] }
}

/// 16 bytes hold weights 0..16 in their low nibbles and 16..32 in their high ones.
fn nibbles(bytes: &[u8]) -> [i8; GROUP] {
    let mut q = [0; GROUP];
    for (i, &b) in bytes[..16].iter().enumerate() {
        q[i] = (b & 15) as i8;
        q[i + 16] = (b >> 4) as i8;
    }
    q
}

fn q8_0(block: &[u8]) -> Group {
    let mut q = [0; GROUP];
    for (q, &b) in q.iter_mut().zip(&block[2..34]) {
        *q = b as i8;
    }
    whole(q, half_at(block, 0), 0.0)
}

fn q4_0(block: &[u8]) -> Group {
    whole(nibbles(&block[2..]).map(|q| q - 8), half_at(block, 0), 0.0)
}

fn q4_1(block: &[u8]) -> Group {
    whole(nibbles(&block[4..]), half_at(block, 0), -half_at(block, 2))
}

/// Adds the fifth bit of each weight, bit `i` of `high` for weight `i`.
fn with_fifth_bit(mut q: [i8; GROUP], high: &[u8]) -> [i8; GROUP] {
    let high = u32::from_le_bytes([high[0], high[1], high[2], high[3]]);
    for (i, q) in q.iter_mut().enumerate() {
        *q |= ((high >> i & 1) << 4) as i8;
    }
    q
}

fn q5_0(block: &[u8]) -> Group {
    whole(with_fifth_bit(nibbles(&block[6..]), &block[2..6]).map(|q| q - 16), half_at(block, 0), 0.0)
}

fn q5_1(block: &[u8]) -> Group {
    whole(with_fifth_bit(nibbles(&block[8..]), &block[4..8]), half_at(block, 0), -half_at(block, 2))
}

fn q2_k(block: &[u8], g: usize) -> Group {
    let (scales, qs) = (&block[..16], &block[16..80]);
    let (d, dmin) = (half_at(block, 80), half_at(block, 82));
    let mut q = [0; GROUP];
    for (i, q) in q.iter_mut().enumerate() {
        *q = (qs[g / 4 * 32 + i] >> (g % 4 * 2) & 3) as i8;
    }
    let pair = [scales[2 * g], scales[2 * g + 1]];
    Group { q, scale: pair.map(|s| d * f32::from(s & 15)), min: pair.map(|s| dmin * f32::from(s >> 4)) }
}

fn q3_k(block: &[u8], g: usize) -> Group {
    let (mask, qs, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let d = half_at(block, 108);
    let mut q = [0; GROUP];
    for (i, q) in q.iter_mut().enumerate() {
        let low = (qs[g / 4 * 32 + i] >> (g % 4 * 2) & 3) as i8;
        *q = low - if mask[i] >> g & 1 == 1 { 0 } else { 4 };
    }
    let scale = |j: usize| d * f32::from(q3_k_scale(scales, j));
    Group { q, scale: [scale(2 * g), scale(2 * g + 1)], min: [0.0; 2] }
}

/// The scale of weights `16 * j ..` out of Q3_K's 12 packed bytes.
pub(crate) fn q3_k_scale(s: &[u8], j: usize) -> i8 {
    let low = if j < 8 { s[j] & 15 } else { s[j - 8] >> 4 };
    let high = s[8 + j % 4] >> (j / 4 * 2) & 3;
    (low | high << 4) as i8 - 32
}

/// The 6-bit scale and minimum of group `g` out of Q4_K's and Q5_K's 12 packed bytes.
pub(crate) fn scale_and_min(s: &[u8], g: usize) -> (u8, u8) {
    if g < 4 {
        (s[g] & 63, s[g + 4] & 63)
    } else {
        (s[g + 4] & 15 | s[g - 4] >> 6 << 4, s[g + 4] >> 4 | s[g] >> 6 << 4)
    }
}

/// 64 weights share 32 bytes: the even group their low nibbles, the odd one their high nibbles.
fn paired_nibbles(qs: &[u8], g: usize) -> [i8; GROUP] {
    let mut q = [0; GROUP];
    for (q, &b) in q.iter_mut().zip(&qs[g / 2 * 32..][..32]) {
        *q = (b >> (g % 2 * 4) & 15) as i8;
    }
    q
}

fn q4_k(block: &[u8], g: usize) -> Group {
    let (scale, min) = scale_and_min(&block[4..16], g);
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    whole(paired_nibbles(&block[16..], g), d * f32::from(scale), dmin * f32::from(min))
}

fn q5_k(block: &[u8], g: usize) -> Group {
    let (scale, min) = scale_and_min(&block[4..16], g);
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let mut q = paired_nibbles(&block[48..], g);
    for (q, &h) in q.iter_mut().zip(&block[16..48]) {
        *q |= ((h >> g & 1) << 4) as i8;
    }
    whole(q, d * f32::from(scale), dmin * f32::from(min))
}

fn q6_k(block: &[u8], g: usize) -> Group {
    let (half, part) = (g / 4, g % 4);
    let low = &block[half * 64 + part % 2 * 32..][..32];
    let high = &block[128 + half * 32..][..32];
    let mut q = [0; GROUP];
    for (i, q) in q.iter_mut().enumerate() {
        *q = (low[i] >> (part / 2 * 4) & 15 | (high[i] >> (part * 2) & 3) << 4) as i8 - 32;
    }
    let d = half_at(block, 208);
    let scale = |j: usize| d * f32::from(block[192 + j] as i8);
    Group { q, scale: [scale(2 * g), scale(2 * g + 1)], min: [0.0; 2] }
}

fn iq4_nl(block: &[u8]) -> Group {
    whole(nibbles(&block[2..]).map(|q| IQ4_VALUES[q as usize]), half_at(block, 0), 0.0)
}

fn iq4_xs(block: &[u8], g: usize) -> Group {
    let q = nibbles(&block[8 + g * 16..]).map(|q| IQ4_VALUES[q as usize]);
    whole(q, half_at(block, 0) * f32::from(iq4_xs_scale(block, g)), 0.0)
}

/// The scale of group `g` out of an IQ4_XS block.
pub(crate) fn iq4_xs_scale(block: &[u8], g: usize) -> i8 {
    let high = u16::from_le_bytes([block[2], block[3]]);
    let scale = block[4 + g / 2] >> (g % 2 * 4) & 15 | ((high >> (g * 2) & 3) << 4) as u8;
    scale as i8 - 32
}

fn mxfp4(block: &[u8]) -> Group {
    whole(nibbles(&block[1..]).map(|q| MXFP4_VALUES[q as usize]), e8m0_half(block[0]), 0.0)
}

/// Half of the power of two that an E8M0 exponent stands for: 2^(e - 128).
pub(crate) fn e8m0_half(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { u32::from(e - 1) << 23 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_have_ggmls_sizes() {
        let bits: Vec<_> =
            Format::ALL.iter().map(|f| (f.name(), f.block_bytes() * 8, f.block_len())).collect();
        for (name, bits, len) in bits {
            assert!(bits >= 2 * len && bits <= 32 * len, "{name}: {bits} bits for {len} weights");
        }
        assert_eq!(Format::Q4_K.row_bytes(512), Some(288));
        assert_eq!(Format::Q4_K.row_bytes(300), None);
    }

    #[test]
    fn q4_0_decodes_by_hand() {
        let mut block = vec![0; 18];
        block[..2].copy_from_slice(&f16::from_f32(0.5).to_le_bytes());
        block[2] = 0x1f;
        let mut out = [0.0; 32];
        Format::Q4_0.dequantize_row(&block, &mut out);
        assert_eq!((out[0], out[16], out[1]), (3.5, -3.5, -4.0));
    }

    #[test]
    fn e8m0_is_a_power_of_two() {
        for e in 2..255u8 {
            assert_eq!(f64::from(e8m0_half(e)), 2f64.powi(i32::from(e) - 128));
        }
        assert_eq!(f64::from(e8m0_half(0)), 2f64.powi(-128));
        assert_eq!(f64::from(e8m0_half(1)), 2f64.powi(-127));
    }
}
