//! Random weights in every format: random bits for the quants, and scales chosen so that the weights have the wanted
//! deviation. No format can make a NaN or an infinity from what is written here.

use engine::gguf::GgmlType;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use kernels::format::IQ4_VALUES;
use stdx::random::Random;

/// The magnitudes of the 4-bit codes of MXFP4 (OCP Microscaling Formats 1.0, E2M1).
const E2M1_VALUES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// So many different scales are spread over a tensor.
const SCALES: usize = 64;

/// Makes the weights of one tensor.
pub(super) struct Weights {
    ty: GgmlType,
    mean: f32,
    /// Half the width of a uniform distribution with the wanted deviation.
    reach: f32,
    /// Block scales in f16, both signs.
    scales: [[u8; 2]; SCALES],
    /// For formats with a minimum: that of the scale at the same place, so that the weights are centred on zero.
    mins: [[u8; 2]; SCALES],
    /// For Q4_K and Q5_K: sub-block scales and minima, packed.
    sub_scales: Vec<[u8; 12]>,
    /// For MXFP4: the two exponents nearest to the wanted deviation.
    exponents: [u8; 2],
    floats: Vec<f32>,
}

impl Weights {
    /// # Panics
    /// On a format that dunlin does not compute with.
    pub(super) fn new(ty: GgmlType, mean: f32, deviation: f32) -> Weights {
        let unit = Unit::of(ty);
        let scale = |i: usize| {
            let sign = if unit.signed && i % 2 == 1 { -1.0 } else { 1.0 };
            let spread = 0.75 + 0.5 * i as f32 / (SCALES - 1) as f32;
            f16::from_f32(sign * spread * deviation / unit.deviation)
        };
        // MXFP4 has only powers of two: one below and one above, between which the quants' deviation lies.
        let exponent = 127.0 + (deviation / rms(&E2M1_VALUES)).log2().floor();
        Weights {
            ty,
            mean,
            reach: deviation * 3f32.sqrt(),
            scales: std::array::from_fn(|i| scale(i).to_le_bytes()),
            mins: std::array::from_fn(|i| f16::from_f32(scale(i).to_f32() * unit.centre).to_le_bytes()),
            sub_scales: (0..64).map(packed_sub_scales).collect(),
            exponents: [exponent as u8, exponent as u8 + 1],
            floats: Vec::new(),
        }
    }

    /// Fills whole blocks.
    pub(super) fn fill(&mut self, out: &mut [u8], random: &mut Random) {
        random.fill(out);
        match self.ty {
            GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => self.fill_floats(out),
            GgmlType::Q8_0 => {
                // No quantizer makes -128.
                out.iter_mut().for_each(|byte| *byte += u8::from(*byte == 0x80));
                self.patch::<34>(out, |block, scale, _| block[..2].copy_from_slice(scale));
            }
            GgmlType::Q4_0 | GgmlType::IQ4NL => {
                self.patch::<18>(out, |block, scale, _| block[..2].copy_from_slice(scale));
            }
            GgmlType::Q5_0 => self.patch::<22>(out, |block, scale, _| block[..2].copy_from_slice(scale)),
            GgmlType::IQ4XS => self.patch::<136>(out, |block, scale, _| block[..2].copy_from_slice(scale)),
            GgmlType::Q3K => self.patch::<110>(out, |block, scale, _| block[108..].copy_from_slice(scale)),
            GgmlType::Q6K => self.patch::<210>(out, |block, scale, _| block[208..].copy_from_slice(scale)),
            GgmlType::Q4_1 => self.patch::<20>(out, |block, scale, min| {
                block[..2].copy_from_slice(scale);
                block[2..4].copy_from_slice(&negative(min));
            }),
            GgmlType::Q5_1 => self.patch::<24>(out, |block, scale, min| {
                block[..2].copy_from_slice(scale);
                block[2..4].copy_from_slice(&negative(min));
            }),
            GgmlType::Q2K => self.patch::<84>(out, |block, scale, min| {
                for sub_scale in &mut block[..16] {
                    let both = 8 | (*sub_scale & 7);
                    *sub_scale = both << 4 | both;
                }
                block[80..82].copy_from_slice(scale);
                block[82..].copy_from_slice(min);
            }),
            GgmlType::Q4K => self.patch_with_sub_scales::<144>(out),
            GgmlType::Q5K => self.patch_with_sub_scales::<176>(out),
            GgmlType::MXFP4 => {
                let exponents = self.exponents;
                let (blocks, _) = out.as_chunks_mut::<17>();
                blocks.iter_mut().for_each(|block| block[0] = exponents[usize::from(block[0] & 1)]);
            }
            other => panic!("no random weights are made in {other}"),
        }
    }

    /// Calls `patch` for every block of `BYTES` with one of the scales and its minimum, chosen by the block's own bits.
    fn patch<const BYTES: usize>(
        &self,
        out: &mut [u8],
        patch: impl Fn(&mut [u8; BYTES], &[u8; 2], &[u8; 2]),
    ) {
        debug_assert_eq!(self.ty.block_bytes(), BYTES as u64);
        let (blocks, _) = out.as_chunks_mut::<BYTES>();
        for block in blocks {
            let i = usize::from(block[BYTES - 1]) % SCALES;
            patch(block, &self.scales[i], &self.mins[i]);
        }
    }

    fn patch_with_sub_scales<const BYTES: usize>(&self, out: &mut [u8]) {
        self.patch::<BYTES>(out, |block, scale, min| {
            let sub_scales = &self.sub_scales[usize::from(block[4]) % self.sub_scales.len()];
            block[..2].copy_from_slice(scale);
            block[2..4].copy_from_slice(min);
            block[4..16].copy_from_slice(sub_scales);
        });
    }

    /// Replaces random bits by uniform numbers.
    fn fill_floats(&mut self, out: &mut [u8]) {
        let (mean, step) = (self.mean, self.reach / 32768.0);
        self.floats.clear();
        match self.ty {
            GgmlType::F32 => {
                let step = step / 65536.0;
                for number in out.as_chunks_mut::<4>().0 {
                    *number = (mean + i32::from_le_bytes(*number) as f32 * step).to_le_bytes();
                }
            }
            GgmlType::BF16 => {
                for number in out.as_chunks_mut::<2>().0 {
                    let float = mean + f32::from(i16::from_le_bytes(*number)) * step;
                    *number = bf16::from_f32(float).to_le_bytes();
                }
            }
            _ => {
                let numbers = out.as_chunks_mut::<2>().0;
                self.floats
                    .extend(numbers.iter().map(|bits| mean + f32::from(i16::from_le_bytes(*bits)) * step));
                let mut halves = vec![f16::ZERO; self.floats.len()];
                halves.convert_from_f32_slice(&self.floats);
                numbers.iter_mut().zip(&halves).for_each(|(number, half)| *number = half.to_le_bytes());
            }
        }
    }
}

/// A block of random bits with a scale of 1.
struct Unit {
    /// The deviation of its weights from zero.
    deviation: f32,
    /// Quants are centred on zero by a minimum of this many scales; 0 where the format has no minimum.
    centre: f32,
    /// Quants are not centred on zero, so scales of both signs make the tensor so.
    signed: bool,
}

impl Unit {
    fn of(ty: GgmlType) -> Unit {
        // Codes of `bits` bits, `below` of which are negative.
        let codes = |bits: u32, below: f32| (0..1 << bits).map(|q| q as f32 - below).collect::<Vec<_>>();
        let six_bit_scales = rms(&codes(6, 32.0));
        let iq4 = IQ4_VALUES.map(f32::from);
        let signed = |deviation| Unit { deviation, centre: 0.0, signed: true };
        let with_min = |deviation, centre| Unit { deviation, centre, signed: false };
        match ty {
            GgmlType::Q4_0 => signed(rms(&codes(4, 8.0))),
            GgmlType::Q5_0 => signed(rms(&codes(5, 16.0))),
            GgmlType::Q8_0 => signed(rms(&codes(8, 128.0))),
            GgmlType::Q3K => signed(six_bit_scales * rms(&codes(3, 4.0))),
            GgmlType::Q6K => signed(rms(&codes(8, 128.0)) * rms(&codes(6, 32.0))),
            GgmlType::IQ4NL => signed(rms(&iq4)),
            GgmlType::IQ4XS => signed(six_bit_scales * rms(&iq4)),
            GgmlType::Q4_1 => with_min(rms(&codes(4, 7.5)), 7.5),
            GgmlType::Q5_1 => with_min(rms(&codes(5, 15.5)), 15.5),
            GgmlType::Q2K => with_min(rms(&codes(3, -8.0)) * rms(&codes(2, 1.5)), 1.5),
            GgmlType::Q4K => with_min(rms(&codes(5, -32.0)) * rms(&codes(4, 7.5)), 7.5),
            GgmlType::Q5K => with_min(rms(&codes(5, -32.0)) * rms(&codes(5, 15.5)), 15.5),
            _ => signed(1.0),
        }
    }
}

fn rms(values: &[f32]) -> f32 {
    (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt()
}

fn negative(half: &[u8; 2]) -> [u8; 2] {
    (-f16::from_le_bytes(*half)).to_le_bytes()
}

/// Eight 6-bit scales of 32..=63 and minima equal to them, packed as Q4_K and Q5_K hold them: the first four of each in
/// the low six bits of bytes 0-3 and 4-7, whose high two bits and bytes 8-11 hold the others.
fn packed_sub_scales(seed: u64) -> [u8; 12] {
    let mut random = Random::new(seed);
    let sub_scales: [u8; 8] = std::array::from_fn(|_| 32 + random.below(32) as u8);
    let mut packed = [0; 12];
    for i in 0..4 {
        let (low, high) = (sub_scales[i], sub_scales[i + 4]);
        packed[i] = low | (high >> 4) << 6;
        packed[i + 4] = packed[i];
        packed[i + 8] = (high & 15) << 4 | (high & 15);
    }
    packed
}

#[cfg(test)]
mod tests {
    use kernels::format::Format;

    use super::*;

    fn weights(ty: GgmlType, mean: f32, deviation: f32) -> Vec<f32> {
        const LEN: usize = 64 * 1024;
        let format = Format::ALL.into_iter().find(|format| format.name() == ty.name()).unwrap();
        let mut bytes = vec![0; format.row_bytes(LEN).unwrap()];
        Weights::new(ty, mean, deviation).fill(&mut bytes, &mut Random::new(1));
        let mut weights = vec![0.0; LEN];
        format.dequantize_row(&bytes, &mut weights);
        weights
    }

    #[test]
    fn weights_have_the_wanted_mean_and_deviation() {
        for format in Format::ALL {
            let ty = GgmlType::from_name(format.name()).unwrap();
            for wanted in [0.01, 0.03] {
                let weights = weights(ty, 0.0, wanted);
                assert!(weights.iter().all(|w| w.is_finite()));
                let mean = weights.iter().sum::<f32>() / weights.len() as f32;
                let ratio = rms(&weights) / wanted;
                assert!(mean.abs() < 0.02 * wanted, "{ty}: mean {mean}");
                // MXFP4 has only powers of two to choose from.
                let within = if ty == GgmlType::MXFP4 { 0.7..1.6 } else { 0.95..1.06 };
                assert!(within.contains(&ratio), "{ty}: deviation is {ratio} of the wanted");
            }
        }
    }

    #[test]
    fn norms_lie_around_one() {
        assert!(weights(GgmlType::F32, 1.0, 0.1).iter().all(|w| (0.8..1.2).contains(w)));
    }
}
