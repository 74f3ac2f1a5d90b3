//! How far heads turn per position: plain, stretched linearly, YaRN (Peng et al., 2023), or by factors from the file.

use super::ModelError;
use super::keys::Keys;
use kernels::attention::{HEAD_DIM_MAX, Pairing};

/// The rotary embedding of some layers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rope {
    pub(crate) pairing: Pairing,
    /// Elements of a head that are turned, from its start.
    pub(crate) dims: usize,
    pub(crate) base: f32,
    pub(crate) scaling: Scaling,
    /// Whether each frequency may be divided by a factor from the file.
    pub(crate) factors: Factors,
    /// Pairs that do not turn, because the position that turns them is one that text does not have.
    pub(crate) still: Vec<usize>,
}

/// What is done to positions so that more of them fit into what the model was trained for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Scaling {
    /// Positions are divided by a number; what is turned becomes longer by `magnitude`.
    Linear {
        divisor: f32,
        magnitude: f32,
    },
    Yarn(Yarn),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Yarn {
    /// How much longer the context is than the original one.
    pub(crate) divisor: f32,
    pub(crate) original_tokens: usize,
    /// Turns within the original context above which a pair stays as it was.
    pub(crate) beta_fast: f32,
    /// Turns within the original context below which a pair is stretched in full.
    pub(crate) beta_slow: f32,
    pub(crate) magnitude: f32,
}

/// Where factors of the frequencies come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Factors {
    None,
    /// `rope_freqs.weight`.
    Needed,
    /// The same, where the file has it, or one of two sets by the length of the context (Phi-3's "longrope").
    File {
        original_tokens: usize,
    },
}

/// How pairs are shared out among the positions of multimodal models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sections {
    /// First those of the first position, then those of the second, and so on.
    InTurn,
    /// One of each of the first three in turns, as long as there are some left; the rest are the fourth's.
    Interleaved,
}

/// Positions of multimodal models: time, height, width, and one more.
const SECTIONS: usize = 4;

/// `0.1 * weight * ln(factor) + 1`: how YaRN lengthens what it turns.
pub(crate) fn yarn_magnitude(factor: f32, weight: f32) -> f32 {
    if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 }
}

impl Rope {
    /// The rotary embedding of all layers, as the file describes it.
    pub(crate) fn read(keys: &Keys<'_>, pairing: Pairing, head_dim: usize) -> Result<Rope, ModelError> {
        let dims = keys.or("rope.dimension_count", head_dim, HEAD_DIM_MAX)?;
        if dims > head_dim || dims % 2 != 0 {
            return Err(keys.bad("rope.dimension_count", dims, format!("even and at most {head_dim}")));
        }
        let context_tokens = keys.required("context_length", usize::MAX)?;
        let original_tokens = keys.or("rope.scaling.original_context_length", context_tokens, usize::MAX)?;
        Ok(Rope {
            pairing,
            dims,
            base: keys.positive("rope.freq_base", 10_000.0)?,
            scaling: Scaling::read(keys, original_tokens)?,
            factors: Factors::File { original_tokens },
            still: Vec::new(),
        })
    }

    /// Reads which pairs turn by which of four positions: three that are all the same in text, and one that is 0. Returns
    /// whether the file says so.
    pub(crate) fn read_sections(&mut self, keys: &Keys<'_>, order: Sections) -> Result<bool, ModelError> {
        const KEY: &str = "rope.dimension_sections";
        let Some(sections) = keys.per_layer(KEY, SECTIONS, HEAD_DIM_MAX)? else { return Ok(false) };
        if sections[0] == 0 || sections[1] == 0 {
            return Ok(false);
        }
        let all: usize = sections.iter().sum();
        let turns = |pair: usize| match order {
            Sections::InTurn => pair % all < all - sections[3],
            Sections::Interleaved => pair % all < 3 * sections[pair % all % 3],
        };
        self.still = (0..self.dims / 2).filter(|&pair| !turns(pair)).collect();
        Ok(true)
    }

    /// The same without factors from the file.
    pub(crate) fn without_factors(self) -> Rope {
        Rope { factors: Factors::None, ..self }
    }

    /// How far each pair of a head turns per position, in radians, and what is turned becomes longer by.
    pub(crate) fn frequencies(&self, factors: Option<&[f32]>) -> (Vec<f32>, f32) {
        let ramp = match self.scaling {
            Scaling::Linear { .. } => None,
            Scaling::Yarn(yarn) => Some(yarn.ramp(self.dims, self.base)),
        };
        let (divisor, magnitude) = match self.scaling {
            Scaling::Linear { divisor, magnitude } => (divisor, magnitude),
            Scaling::Yarn(yarn) => (yarn.divisor, yarn.magnitude),
        };
        let frequency = |pair: usize| {
            if self.still.contains(&pair) {
                return 0.0;
            }
            let exponent = -2.0 * pair as f64 / self.dims as f64;
            let factor = f64::from(factors.map_or(1.0, |factors| factors[pair]));
            let full = f64::from(self.base).powf(exponent) / factor;
            let stretched = full / f64::from(divisor);
            let kept = ramp.map_or(0.0, |(low, high)| {
                let x = (pair as f64 - low) / (high - low).max(0.001);
                1.0 - x.clamp(0.0, 1.0)
            });
            (stretched * (1.0 - kept) + full * kept) as f32
        };
        ((0..self.dims / 2).map(frequency).collect(), magnitude)
    }
}

impl Scaling {
    fn read(keys: &Keys<'_>, original_tokens: usize) -> Result<Scaling, ModelError> {
        let scaling = keys.str("rope.scaling.type")?.unwrap_or("linear");
        // The second is an older name of the first.
        let factor = keys.float("rope.scaling.factor", keys.float("rope.scale_linear", 0.0)?)?;
        if factor < 0.0 {
            return Err(keys.bad("rope.scaling.factor", factor, "not below zero".to_owned()));
        }
        // Writers put 0 where there is no scaling.
        let divisor = if factor == 0.0 { 1.0 } else { factor };
        let magnitude = keys.positive("rope.scaling.attn_factor", 1.0)?;
        match scaling {
            "none" => Ok(Scaling::Linear { divisor: 1.0, magnitude }),
            "linear" | "longrope" => Ok(Scaling::Linear { divisor, magnitude }),
            "yarn" => {
                let weight = keys.float("rope.scaling.yarn_log_multiplier", 0.0)?;
                // Where the file says by how much scores are scaled instead, that much is taken away here.
                let instead = if weight == 0.0 { 1.0 } else { yarn_magnitude(divisor, weight) };
                Ok(Scaling::Yarn(Yarn {
                    divisor,
                    original_tokens,
                    beta_fast: keys.positive("rope.scaling.yarn_beta_fast", 32.0)?,
                    beta_slow: keys.positive("rope.scaling.yarn_beta_slow", 1.0)?,
                    magnitude: magnitude * yarn_magnitude(divisor, 1.0) / instead,
                }))
            }
            other => Err(ModelError::Unsupported { what: format!("rotary scaling of type {other:?}") }),
        }
    }
}

impl Yarn {
    /// The pairs between which stretching sets in: all before the first stay, all after the second are stretched.
    fn ramp(&self, dims: usize, base: f32) -> (f64, f64) {
        // The pair that turns so many times within the original context.
        let pair = |turns: f32| {
            let turns = f64::from(turns) * std::f64::consts::TAU;
            dims as f64 * (self.original_tokens as f64 / turns).ln() / (2.0 * f64::from(base).ln())
        };
        (pair(self.beta_fast).floor().max(0.0), pair(self.beta_slow).ceil().min(dims as f64 - 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Rope = Rope {
        pairing: Pairing::Halves,
        dims: 64,
        base: 10_000.0,
        scaling: Scaling::Linear { divisor: 1.0, magnitude: 1.0 },
        factors: Factors::None,
        still: Vec::new(),
    };

    #[test]
    fn frequencies_fall_from_one_turn_to_one_in_a_base_of_positions() {
        let (frequencies, magnitude) = PLAIN.frequencies(None);
        assert_eq!((frequencies.len(), frequencies[0], magnitude), (32, 1.0, 1.0));
        assert!((frequencies[16] - 0.01).abs() < 1e-8);
        let (halved, _) = Rope { scaling: Scaling::Linear { divisor: 2.0, magnitude: 1.0 }, ..PLAIN }
            .frequencies(Some(&[4.0; 32]));
        assert!(halved.iter().zip(&frequencies).all(|(h, f)| (h * 8.0 / f - 1.0).abs() < 1e-6));
    }

    /// The figures of gpt-oss: 4096 tokens stretched 32 times. Of 64 dimensions at a base of 150000, pair 8 still turns 32
    /// times within the original context, and pair 17 less than once.
    #[test]
    fn yarn_stretches_what_turns_slowly_and_leaves_what_turns_fast() {
        let yarn = Yarn {
            divisor: 32.0,
            original_tokens: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            magnitude: yarn_magnitude(32.0, 1.0),
        };
        let rope = Rope { base: 150_000.0, scaling: Scaling::Yarn(yarn), ..PLAIN };
        let plain = Rope { base: 150_000.0, ..PLAIN }.frequencies(None).0;
        let (stretched, magnitude) = rope.frequencies(None);
        assert!((magnitude - 1.346_573_6).abs() < 1e-6, "{magnitude}");
        for pair in 0..32 {
            let ratio = plain[pair] / stretched[pair];
            match pair {
                0..=8 => assert!((ratio - 1.0).abs() < 1e-6, "{pair}: {ratio}"),
                18.. => assert!((ratio - 32.0).abs() < 1e-4, "{pair}: {ratio}"),
                _ => assert!(ratio > 1.0 && ratio < 32.0, "{pair}: {ratio}"),
            }
        }
    }

    #[test]
    fn pairs_that_do_not_turn_stand_still() {
        let (frequencies, _) = Rope { still: vec![3, 5], ..PLAIN }.frequencies(None);
        let still: Vec<usize> = (0..32).filter(|&pair| frequencies[pair] == 0.0).collect();
        assert_eq!(still, [3, 5]);
    }
}
