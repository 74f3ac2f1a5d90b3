//! One folder per instruction set, with the same files in each.
#![allow(clippy::needless_range_loop, reason = "an index names one token, row or half in several arrays")]

#[cfg(target_arch = "aarch64")]
pub(crate) mod aarch64 {
    pub(crate) mod dotprod;
    pub(crate) mod i8mm;
    pub(crate) mod neon;
}
pub(crate) mod scalar;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86_64 {
    pub(crate) mod avx2;
    pub(crate) mod avx512;

    use crate::layout::Blocks;
    use std::arch::x86_64::*;

    /// Fetches group `i`'s share of the lines of a block that lies `bytes` ahead of this one.
    #[inline(always)]
    fn fetch_ahead(blocks: Blocks, block: *const u8, i: usize, bytes: usize) {
        let lines = (blocks.bytes() / 64).div_ceil(blocks.groups);
        for line in i * lines..(i + 1) * lines {
            // SAFETY: a prefetch reads nothing that a program could see, wherever it points.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(block.wrapping_add(bytes + line * 64).cast()) };
        }
    }

    /// The sums of both halves of 32 signed bytes.
    ///
    /// # Safety
    /// The caller has AVX2.
    #[inline(always)]
    unsafe fn half_sums(q: __m256i) -> [i32; 2] {
        // SAFETY: the caller's contract.
        unsafe {
            // Bytes raised by 128 are unsigned, and `vpsadbw` adds eight.
            let raised = _mm256_xor_si256(q, _mm256_set1_epi8(-128));
            let eights = _mm256_sad_epu8(raised, _mm256_setzero_si256());
            let sums = _mm256_add_epi64(eights, _mm256_bsrli_epi128::<8>(eights));
            let half = |sum: __m128i| _mm_cvtsi128_si32(sum) - 16 * 128;
            [half(_mm256_castsi256_si128(sums)), half(_mm256_extracti128_si256::<1>(sums))]
        }
    }

    /// A lookup format's values as unsigned bytes, `by` above themselves, as `vpshufb` wants them.
    const fn raised(values: [i8; 16], by: u8) -> [u8; 16] {
        let mut raised = [0; 16];
        let mut i = 0;
        while i < 16 {
            raised[i] = by.wrapping_add_signed(values[i]);
            i += 1;
        }
        raised
    }
}

/// An array with one function per panel width, widest first.
macro_rules! per_width {
    ($function:ident $(, $generic:ty)*) => {
        [
            $function::<$($generic,)* 12>,
            $function::<$($generic,)* 8>,
            $function::<$($generic,)* 4>,
            $function::<$($generic,)* 2>,
            $function::<$($generic,)* 1>,
        ]
    };
}
pub(crate) use per_width;

/// The table of an instruction set, of the functions and strips in scope where this stands: the same names in each.
macro_rules! table {
    ($isa:ident) => {
        $crate::isa::Table {
            isa: $crate::isa::Isa::$isa,
            f32: $crate::arch::per_width!(float_tile, F32),
            f16: $crate::arch::per_width!(float_tile, F16),
            bf16: $crate::arch::per_width!(float_tile, Bf16),
            q8: $crate::arch::per_width!(integer_tile, Q8),
            q4: $crate::arch::per_width!(integer_tile, Q4),
            iq4_nl: $crate::arch::per_width!(integer_tile, Iq4Nl),
            mxfp4: $crate::arch::per_width!(integer_tile, Mxfp4),
            q4k: $crate::arch::per_width!(superblock_tile, Q4K),
            q5k: $crate::arch::per_width!(superblock_tile, Q5K),
            q3k: $crate::arch::per_width!(superblock_tile, Q3K),
            q6k: $crate::arch::per_width!(superblock_tile, Q6K),
            iq4_xs: $crate::arch::per_width!(superblock_tile, Iq4Xs),
            w8: $crate::arch::per_width!(integer_tile, W8),
            w8_half: $crate::arch::per_width!(integer_tile, W8Half),
            cache_f32: $crate::isa::CacheTiles {
                score: $crate::arch::per_width!(score, F32),
                mix: $crate::arch::per_width!(mix, F32),
            },
            cache_f16: $crate::isa::CacheTiles {
                score: $crate::arch::per_width!(score, F16),
                mix: $crate::arch::per_width!(mix, F16),
            },
            cache_bf16: $crate::isa::CacheTiles {
                score: $crate::arch::per_width!(score, Bf16),
                mix: $crate::arch::per_width!(mix, Bf16),
            },
            mix_q8: $crate::arch::per_width!(mix, I8),
            quantize_row,
            rms_scale,
            scale,
            mean_scale,
            center_scale,
            silu_mul,
            gelu_mul,
            exact_gelu_mul,
            clamped_swiglu,
            add_scaled,
            add_product,
            silu,
            sigmoid_mul,
            remember,
            soft_cap,
            softmax_tile,
            max,
            exp_sum,
            dots,
        }
    };
}
pub(crate) use table;
