//! Tiles of super-blocks: a `vpmaddwd` multiplies sums by the weights' integer scales where it would otherwise multiply
//! them by one, so everything stays an integer until the super-block ends. Minimums, and the offset of weights that are
//! stored above their value, are a sum of their own: integer factors times the sums of the activations.
//!
//! The largest sum is 256 x 63 x 127 x 127, an eighth of what 32 bits hold.

use super::integer::{Sums, TOKENS, multiply, prefetch, store, tail};
use super::strip::{Cells, Strip, halves};
use crate::format::SUPERBLOCK;
use crate::isa::TileArgs;
use crate::layout::{MINS, SCALES, STRIP};
use crate::panel::RECORD;
use std::arch::x86_64::*;
use std::borrow::Borrow;

/// Groups of a super-block.
const GROUPS: usize = 8;

/// A group as it is multiplied: weights, and 16-bit factors for both registers of rows.
#[derive(Clone, Copy)]
struct Group {
    cells: Cells,
    /// Of the products, per half of the group; each factor twice, since two sums belong to a row.
    scales: [[__m256i; 2]; 2],
    /// Of the sums of the activations in both halves.
    mins: [__m256i; 2],
}

/// # Safety
/// The contract of [`TileArgs`], and the processor has these features.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn superblock_tile<L: Strip, const T: usize>(args: &TileArgs) {
    let zero = _mm256_setzero_si256();
    let mut groups = [Group { cells: [[zero; 8]; 2], scales: [[zero; 2]; 2], mins: [zero; 2] }; GROUPS];
    for s in 0..args.strip_count {
        // SAFETY: strips, panel records and output rows lie where the contract says.
        unsafe {
            let strip = args.strips.add(s * args.strip_bytes);
            let mut acc = [[_mm256_setzero_ps(); 2]; T];
            for b in 0..args.cols / SUPERBLOCK {
                let block = strip.add(b * L::BLOCKS.bytes());
                let records = args.panel.add(b * GROUPS * RECORD * T);
                let read = |i: usize| Group::read::<L>(block, i);
                match T {
                    1 => tokens::<L, _, T, 1>(block, read, records, 0, &mut acc),
                    2 => tokens::<L, _, T, 2>(block, read, records, 0, &mut acc),
                    TOKENS => tokens::<L, _, T, TOKENS>(block, read, records, 0, &mut acc),
                    _ => {
                        for (i, group) in groups.iter_mut().enumerate() {
                            *group = read(i);
                        }
                        for first in (0..T).step_by(TOKENS) {
                            tokens::<L, _, T, TOKENS>(block, |i| &groups[i], records, first, &mut acc);
                        }
                    }
                }
            }
            store(args, s, &acc);
        }
    }
}

/// Adds a super-block for tokens `first .. first + U` of a panel of `T`.
///
/// # Safety
/// `block` is a super-block of `L` and `group` gives its groups; `records` are the same super-block of a panel of `T`
/// tokens; `first + U <= T`; the caller has the features.
#[inline(always)]
unsafe fn tokens<L: Strip, G: Borrow<Group>, const T: usize, const U: usize>(
    block: *const u8,
    group: impl Fn(usize) -> G,
    records: *const u8,
    first: usize,
    acc: &mut Sums<__m256, T>,
) {
    // SAFETY: a record holds `T` x 32 bytes and 7 x `T` words; a super-block starts with 16 halves, two times where there
    // are minimums.
    unsafe {
        let mut dots = [[_mm256_setzero_si256(); 2]; U];
        let mut below = [[_mm256_setzero_si256(); 2]; U];
        for i in 0..GROUPS {
            let record = records.add(i * RECORD * T);
            let (group, x) = (group(i), record.add(first * 32));
            let group = group.borrow();
            if L::HALVES {
                multiply::<L, U>(&group.cells, (0, 4), x, &group.scales[0], &mut dots);
                multiply::<L, U>(&group.cells, (4, 4), x, &group.scales[1], &mut dots);
            } else {
                multiply::<L, U>(&group.cells, (0, 8), x, &group.scales[0], &mut dots);
            }
        }
        // A loop of its own, for these sums and those of the products together do not fit the registers.
        if L::MIN || L::OFFSET != 0 {
            for i in 0..GROUPS {
                let (group, record) = (group(i), records.add(i * RECORD * T));
                for (t, below) in below.iter_mut().enumerate() {
                    let sums = tail::<T>(record, 5, first + t).cast::<i32>().read_unaligned();
                    let sums = _mm256_set1_epi32(sums);
                    for (part, below) in below.iter_mut().enumerate() {
                        let product = _mm256_madd_epi16(group.borrow().mins[part], sums);
                        *below = _mm256_add_epi32(*below, product);
                    }
                }
            }
        }
        for t in 0..U {
            let d = _mm256_set1_ps(tail::<T>(records, 0, first + t).cast::<f32>().read_unaligned());
            for part in 0..2 {
                let scale = halves(block.add(part * 16));
                let dot = match L::OFFSET {
                    0 => dots[t][part],
                    4 => _mm256_sub_epi32(dots[t][part], _mm256_slli_epi32::<2>(below[t][part])),
                    32 => _mm256_sub_epi32(dots[t][part], _mm256_slli_epi32::<5>(below[t][part])),
                    _ => unreachable!("no layout of super-blocks has this offset"),
                };
                let mut sum = _mm256_mul_ps(_mm256_cvtepi32_ps(dot), scale);
                if L::MIN {
                    let min = halves(block.add(2 * STRIP + part * 16));
                    sum = _mm256_fnmadd_ps(_mm256_cvtepi32_ps(below[t][part]), min, sum);
                }
                let acc = &mut acc[first + t][part];
                *acc = _mm256_fmadd_ps(sum, d, *acc);
            }
        }
    }
}

impl Group {
    /// Group `i` of a super-block.
    ///
    /// # Safety
    /// `block` is a super-block of `L`; `i` is below 8; the caller has the features.
    #[inline(always)]
    unsafe fn read<L: Strip>(block: *const u8, i: usize) -> Group {
        let halves = if L::HALVES { 2 } else { 1 };
        prefetch::<L>(block, i);
        // SAFETY: scales and minimums are 16 bytes each, per half or group, and lie where the layout says.
        unsafe {
            // Rows' bytes in pairs, each made a word: of one factor twice, or of two factors.
            let pairs = |a: __m128i, b: __m128i| {
                [words::<L>(_mm_unpacklo_epi8(a, b)), words::<L>(_mm_unpackhi_epi8(a, b))]
            };
            let bytes = |at: usize| _mm_loadu_si128(block.add(at).cast());
            let scale = |h: usize| bytes(SCALES + (i * halves + h % halves) * STRIP);
            let scales = [0, 1].map(|h| pairs(scale(h), scale(h)));
            let mins = if L::MIN {
                let min = bytes(MINS + i * STRIP);
                pairs(min, min)
            } else {
                pairs(scale(0), scale(1))
            };
            Group { cells: L::cells(block.add(L::BLOCKS.cells(i))), scales, mins }
        }
    }
}

/// 16 bytes as words: unsigned where there are minimums, else signed.
///
/// # Safety
/// The caller has AVX2.
#[inline(always)]
unsafe fn words<L: Strip>(bytes: __m128i) -> __m256i {
    // SAFETY: the caller's contract.
    unsafe { if L::MIN { _mm256_cvtepu8_epi16(bytes) } else { _mm256_cvtepi8_epi16(bytes) } }
}
