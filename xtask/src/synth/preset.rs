//! Mixes of weight formats, as `llama-quantize` chooses them without an importance matrix (llama-quant.cpp, 2026-10).

use std::fmt;

use clap::ValueEnum;
use engine::gguf::GgmlType;

use super::shape::Shape;

macro_rules! presets {
    ($($variant:ident, $name:literal, $base:ident, $file_type:literal;)*) => {
        /// A mix, by the name that its files carry.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
        pub(crate) enum Preset { $(#[value(name = $name)] $variant,)* }

        impl Preset {
            #[cfg(test)]
            pub(super) const ALL: &'static [Preset] = &[$(Preset::$variant,)*];

            /// The format of every matrix that no rule names.
            fn base(self) -> GgmlType {
                match self { $(Preset::$variant => GgmlType::$base,)* }
            }

            /// `general.file_type`: llama.cpp's `llama_ftype`.
            pub(super) fn file_type(self) -> u32 {
                match self { $(Preset::$variant => $file_type,)* }
            }
        }

        impl fmt::Display for Preset {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Preset::$variant => $name,)* })
            }
        }
    };
}

presets! {
    F32, "f32", F32, 0;
    F16, "f16", F16, 1;
    BF16, "bf16", BF16, 32;
    Q8_0, "q8_0", Q8_0, 7;
    Q4_0, "q4_0", Q4_0, 2;
    Q4_1, "q4_1", Q4_1, 3;
    Q5_0, "q5_0", Q5_0, 8;
    Q5_1, "q5_1", Q5_1, 9;
    Q2K, "q2_k", Q2K, 10;
    Q3KS, "q3_k_s", Q3K, 11;
    Q3KM, "q3_k_m", Q3K, 12;
    Q3KL, "q3_k_l", Q3K, 13;
    Q4KS, "q4_k_s", Q4K, 14;
    Q4KM, "q4_k_m", Q4K, 15;
    Q5KS, "q5_k_s", Q5K, 16;
    Q5KM, "q5_k_m", Q5K, 17;
    Q6K, "q6_k", Q6K, 18;
    IQ4NL, "iq4_nl", IQ4NL, 25;
    IQ4XS, "iq4_xs", IQ4XS, 30;
    MXFP4, "mxfp4", MXFP4, 38;
}

/// What a matrix is for, as far as a mix treats it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Embedding,
    /// The output matrix, or the embedding where the two are one.
    Output,
    AttentionV,
    AttentionOutput,
    FeedForwardDown,
    Other,
}

impl Preset {
    pub(super) fn tensor_type(self, role: Role, layer: u64, shape: &Shape) -> GgmlType {
        use GgmlType as Ty;
        let base = self.base();
        let layers = shape.layers;
        let wide_groups = shape.heads / shape.heads_kv >= 4;
        let first_eighth = layer < layers / 8;
        match (role, self) {
            (Role::Output, Preset::F32 | Preset::F16 | Preset::BF16 | Preset::Q8_0) => base,
            // llama-quantize makes MXFP4 only of experts; here all of a dense model is of it but this.
            (Role::Output, Preset::MXFP4) => Ty::Q8_0,
            (Role::Output, _) => Ty::Q6K,

            (Role::AttentionV, Preset::Q2K) if wide_groups => Ty::Q4K,
            (Role::AttentionV, Preset::Q2K) => Ty::Q3K,
            (Role::AttentionV, Preset::Q3KM) if layer < 2 => Ty::Q5K,
            (Role::AttentionV, Preset::Q3KM) => Ty::Q4K,
            (Role::AttentionV, Preset::Q3KL) => Ty::Q5K,
            (Role::AttentionV, Preset::Q4KS) if layer < 4 => Ty::Q5K,
            (Role::AttentionV, Preset::IQ4NL | Preset::IQ4XS) if wide_groups => Ty::Q5K,

            (Role::FeedForwardDown, Preset::Q2K) => Ty::Q3K,
            (Role::FeedForwardDown, Preset::Q3KM) if layer < layers / 16 => Ty::Q5K,
            (Role::FeedForwardDown, Preset::Q3KM) => Ty::Q4K,
            (Role::FeedForwardDown, Preset::Q3KL) => Ty::Q5K,
            (Role::FeedForwardDown, Preset::Q4KS | Preset::IQ4NL | Preset::IQ4XS) if first_eighth => Ty::Q5K,

            (Role::AttentionV | Role::FeedForwardDown, Preset::Q4KM | Preset::Q5KM)
                if deserves_more_bits(layer, layers) =>
            {
                Ty::Q6K
            }

            (Role::AttentionOutput, Preset::Q2K) => Ty::Q3K,
            (Role::AttentionOutput, Preset::Q3KM) => Ty::Q4K,
            (Role::AttentionOutput, Preset::Q3KL) => Ty::Q5K,

            _ => base,
        }
    }
}

/// The layers that the `_M` mixes favour: the first and the last eighth, and every third between.
fn deserves_more_bits(layer: u64, layers: u64) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

#[cfg(test)]
mod tests {
    use super::super::shape::ShapeName;
    use super::*;

    #[test]
    fn mixes() {
        let (b1, b7) = (ShapeName::B1.shape(), ShapeName::B7.shape());
        let cases = [
            (Preset::Q4_0, Role::Output, 0, &b1, GgmlType::Q6K),
            (Preset::Q4_0, Role::Embedding, 0, &b7, GgmlType::Q4_0),
            (Preset::Q4_0, Role::FeedForwardDown, 0, &b1, GgmlType::Q4_0),
            (Preset::Q8_0, Role::Output, 0, &b1, GgmlType::Q8_0),
            (Preset::Q4KM, Role::Other, 0, &b1, GgmlType::Q4K),
            (Preset::Q4KM, Role::AttentionV, 1, &b1, GgmlType::Q6K),
            (Preset::Q4KM, Role::AttentionV, 2, &b1, GgmlType::Q4K),
            (Preset::Q2K, Role::AttentionV, 2, &b1, GgmlType::Q4K),
            (Preset::Q2K, Role::AttentionV, 2, &b7, GgmlType::Q3K),
            (Preset::IQ4XS, Role::AttentionV, 9, &b1, GgmlType::Q5K),
            (Preset::IQ4XS, Role::FeedForwardDown, 9, &b1, GgmlType::IQ4XS),
        ];
        for (preset, role, layer, shape, expected) in cases {
            assert_eq!(preset.tensor_type(role, layer, shape), expected, "{preset} {role:?} {layer}");
        }
        let favoured = (0..16).filter(|&layer| deserves_more_bits(layer, 16)).collect::<Vec<_>>();
        assert_eq!(favoured, [0, 1, 4, 7, 10, 13, 14, 15]);
    }
}
