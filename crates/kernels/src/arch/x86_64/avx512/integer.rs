//! Integer tiles: 8 `vpdpbusd` per group of 32 columns, strip and token, then one conversion and one or two `vfmadd`.

use crate::isa::TileArgs;
use crate::layout::{
    PairLayout, Q4_GROUP, Q4K_BLOCK, Q4K_HEADER, Q6K_BLOCK, Q6K_GROUP, Q6K_HEADER, Q6K_SCALES, STRIP,
    W8_GROUP, W8_HALF_GROUP,
};
use crate::panel::RECORD;
use std::arch::x86_64::*;

/// How one layout's strip is read. The functions are only called from within [`integer_tile`], which has the features.
pub(super) trait Strip: Copy {
    /// Two scales per group, one for each 16 columns.
    const HALVES: bool = false;
    /// Weights have a minimum to subtract.
    const MIN: bool = false;
    /// Weights are stored `8 << shift` above their value.
    const OFFSET_SHIFT: Option<u32> = None;

    /// # Safety
    /// `strip` is a strip of this layout.
    unsafe fn new(strip: *const u8) -> Self;
    /// The scales of group `g`, per half where [`Strip::HALVES`], and what to subtract where [`Strip::MIN`].
    ///
    /// # Safety
    /// `g` is below the number of groups; the processor has the features of [`integer_tile`].
    unsafe fn scales(self, g: usize) -> ([__m512; 2], [__m512; 2]);
    /// The 8 cells of group `g`, weights as unsigned bytes.
    ///
    /// # Safety
    /// As [`Strip::scales`].
    unsafe fn cells(self, g: usize) -> [__m512i; 8];
    /// Where the cells of group `g` lie.
    fn address(self, g: usize) -> *const u8;
}

/// Strips go one by one, so that a decode reads memory as one stream; nothing is fetched ahead by hand. Four strips at
/// once reached 60-75% of what a plain read of memory does, one strip with prefetches 80-95%, one without 95-100%.
///
/// # Safety
/// The contract of [`TileArgs`], and the processor has these features.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn integer_tile<L: Strip, const T: usize>(args: &TileArgs) {
    let groups = args.cols / 32;
    for s in 0..args.strip_count {
        // SAFETY: strips, panel records and output rows lie where the contract says.
        unsafe {
            let strip = L::new(args.strips.add(s * args.strip_bytes));
            let mut acc = [_mm512_setzero_ps(); T];
            for g in 0..groups {
                group::<L, T>(strip, g, args.panel.add(g * RECORD * T), &mut acc);
            }
            for (t, acc) in acc.into_iter().enumerate() {
                let out = args.out.add(t * args.out_stride + s * STRIP);
                let sum = if args.add { _mm512_add_ps(_mm512_loadu_ps(out), acc) } else { acc };
                _mm512_storeu_ps(out, sum);
            }
        }
    }
}

/// # Safety
/// `record` is group `g` of a panel of `T` tokens; the contract of [`Strip::scales`].
#[inline(always)]
unsafe fn group<L: Strip, const T: usize>(strip: L, g: usize, record: *const u8, acc: &mut [__m512; T]) {
    // SAFETY: a record holds `T` x 32 bytes and 7 x `T` words.
    unsafe {
        let (scale, min) = strip.scales(g);
        let cells = strip.cells(g);
        let tail = record.add(T * 32);
        let word = |field: usize, t: usize| {
            _mm512_set1_epi32(tail.add((field * T + t) * 4).cast::<i32>().read_unaligned())
        };
        let float = |field: usize, t: usize| {
            _mm512_set1_ps(tail.add((field * T + t) * 4).cast::<f32>().read_unaligned())
        };
        let x = |t: usize, cell: usize| {
            _mm512_set1_epi32(record.add(t * 32 + cell * 4).cast::<i32>().read_unaligned())
        };
        let start = |field: usize, t: usize| match L::OFFSET_SHIFT {
            None => _mm512_setzero_si512(),
            Some(0) => word(field, t),
            // A shift takes its count as a constant; 16 = 128 / 8 and 4 = 32 / 8 are the two in use.
            Some(2) => _mm512_slli_epi32::<2>(word(field, t)),
            Some(_) => _mm512_slli_epi32::<4>(word(field, t)),
        };
        if L::HALVES {
            for h in 0..2 {
                let mut dot: [__m512i; T] = std::array::from_fn(|t| start(3 + h, t));
                for cell in 4 * h..4 * h + 4 {
                    for t in 0..T {
                        dot[t] = _mm512_dpbusd_epi32(dot[t], cells[cell], x(t, cell));
                    }
                }
                for t in 0..T {
                    acc[t] = _mm512_fmadd_ps(
                        _mm512_cvtepi32_ps(dot[t]),
                        _mm512_mul_ps(scale[h], float(0, t)),
                        acc[t],
                    );
                    if L::MIN {
                        acc[t] = _mm512_fnmadd_ps(min[h], float(5 + h, t), acc[t]);
                    }
                }
            }
        } else {
            let mut dot: [__m512i; T] = std::array::from_fn(|t| start(2, t));
            if T <= 2 {
                // Two chains, since few tokens leave the unit waiting for one.
                let mut other = [_mm512_setzero_si512(); T];
                for cell in 0..4 {
                    for t in 0..T {
                        dot[t] = _mm512_dpbusd_epi32(dot[t], cells[cell], x(t, cell));
                        other[t] = _mm512_dpbusd_epi32(other[t], cells[cell + 4], x(t, cell + 4));
                    }
                }
                for t in 0..T {
                    dot[t] = _mm512_add_epi32(dot[t], other[t]);
                }
            } else {
                for (cell, &weights) in cells.iter().enumerate() {
                    for t in 0..T {
                        dot[t] = _mm512_dpbusd_epi32(dot[t], weights, x(t, cell));
                    }
                }
            }
            for t in 0..T {
                acc[t] =
                    _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[t]), _mm512_mul_ps(scale[0], float(0, t)), acc[t]);
                if L::MIN {
                    acc[t] = _mm512_fnmadd_ps(min[0], float(1, t), acc[t]);
                }
            }
        }
    }
}

/// Reads 64 bytes.
///
/// # Safety
/// 64 bytes are readable at `at`; the caller has AVX-512.
#[inline(always)]
unsafe fn load(at: *const u8) -> __m512i {
    // SAFETY: the caller's contract.
    unsafe { _mm512_loadu_si512(at.cast()) }
}

/// 16 halves as floats.
///
/// # Safety
/// 32 bytes are readable at `at`; the caller has AVX-512.
#[inline(always)]
unsafe fn halves(at: *const u8) -> __m512 {
    // SAFETY: the caller's contract.
    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
}

/// Four cells of nibble pairs as eight cells of bytes.
///
/// # Safety
/// 256 bytes are readable at `at`; the caller has AVX-512.
#[inline(always)]
unsafe fn nibble_cells(at: *const u8) -> [__m512i; 8] {
    // SAFETY: the caller's contract.
    unsafe {
        let mask = _mm512_set1_epi8(15);
        std::array::from_fn(|j| {
            let pair = load(at.add(j % 4 * 64));
            _mm512_and_si512(if j < 4 { pair } else { _mm512_srli_epi16::<4>(pair) }, mask)
        })
    }
}

macro_rules! strip_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(super) struct $name {
            strip: *const u8,
        }
    };
}

strip_type!(/** `d * (q - 128)` */ Q8);
strip_type!(/** `d * (q - 8)` */ Q4);
strip_type!(/** `d * scale * q - dmin * min` */ Q4K);
strip_type!(/** `d * scale * (q - 32)` */ Q6K);
strip_type!(/** `scale * q - min` */ W8);
strip_type!(/** `scale * q - min` by halves */ W8Half);

impl Strip for Q8 {
    const OFFSET_SHIFT: Option<u32> = Some(4);

    #[inline(always)]
    unsafe fn new(strip: *const u8) -> Self {
        Self { strip }
    }

    #[inline(always)]
    unsafe fn scales(self, g: usize) -> ([__m512; 2], [__m512; 2]) {
        // SAFETY: group `g` has 16 halves.
        let d = unsafe { halves(self.strip.add(PairLayout::Q8.scales(g))) };
        ([d; 2], [d; 2])
    }

    #[inline(always)]
    unsafe fn cells(self, g: usize) -> [__m512i; 8] {
        // SAFETY: group `g` has 8 cells.
        unsafe { std::array::from_fn(|j| load(self.address(g).add(j * 64))) }
    }

    #[inline(always)]
    fn address(self, g: usize) -> *const u8 {
        self.strip.wrapping_add(PairLayout::Q8.cells(g))
    }
}

impl Strip for Q4 {
    const OFFSET_SHIFT: Option<u32> = Some(0);

    #[inline(always)]
    unsafe fn new(strip: *const u8) -> Self {
        Self { strip }
    }

    #[inline(always)]
    unsafe fn scales(self, g: usize) -> ([__m512; 2], [__m512; 2]) {
        // SAFETY: group `g` has 16 halves.
        let d = unsafe { halves(self.strip.add(PairLayout::Q4.scales(g))) };
        ([d; 2], [d; 2])
    }

    #[inline(always)]
    unsafe fn cells(self, g: usize) -> [__m512i; 8] {
        // SAFETY: group `g` has 4 cells of nibble pairs.
        unsafe { nibble_cells(self.address(g)) }
    }

    #[inline(always)]
    fn address(self, g: usize) -> *const u8 {
        self.strip.wrapping_add(PairLayout::Q4.cells(g))
    }
}

impl Strip for Q4K {
    const MIN: bool = true;

    #[inline(always)]
    unsafe fn new(strip: *const u8) -> Self {
        Self { strip }
    }

    #[inline(always)]
    unsafe fn scales(self, g: usize) -> ([__m512; 2], [__m512; 2]) {
        // SAFETY: block `g / 8` has 2 x 16 halves and 2 x 8 x 16 bytes in front of its cells.
        unsafe {
            let block = self.strip.add(g / 8 * Q4K_BLOCK);
            let bytes = |at: usize| {
                _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(
                    block.add(at + g % 8 * STRIP).cast(),
                )))
            };
            let scale = _mm512_mul_ps(halves(block), bytes(64));
            let min = _mm512_mul_ps(halves(block.add(32)), bytes(64 + 128));
            ([scale; 2], [min; 2])
        }
    }

    #[inline(always)]
    unsafe fn cells(self, g: usize) -> [__m512i; 8] {
        // SAFETY: group `g` has 4 cells of nibble pairs.
        unsafe { nibble_cells(self.address(g)) }
    }

    #[inline(always)]
    fn address(self, g: usize) -> *const u8 {
        self.strip.wrapping_add(g / 8 * Q4K_BLOCK + Q4K_HEADER + g % 8 * Q4_GROUP)
    }
}

impl Strip for Q6K {
    const HALVES: bool = true;
    const OFFSET_SHIFT: Option<u32> = Some(2);

    #[inline(always)]
    unsafe fn new(strip: *const u8) -> Self {
        Self { strip }
    }

    #[inline(always)]
    unsafe fn scales(self, g: usize) -> ([__m512; 2], [__m512; 2]) {
        // SAFETY: block `g / 8` starts with 16 halves and, a line further, 16 x 16 bytes.
        unsafe {
            let block = self.strip.add(g / 8 * Q6K_BLOCK);
            let d = halves(block);
            let bytes = block.add(Q6K_SCALES + g % 8 * 2 * STRIP);
            let scale = std::array::from_fn(|h| {
                let bytes = _mm_loadu_si128(bytes.add(h * STRIP).cast());
                _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)))
            });
            (scale, scale)
        }
    }

    #[inline(always)]
    unsafe fn cells(self, g: usize) -> [__m512i; 8] {
        // SAFETY: group `g` has 4 cells of nibble pairs and 2 of bit pairs.
        unsafe {
            let at = self.address(g);
            let low = nibble_cells(at);
            let bits = [load(at.add(Q4_GROUP)), load(at.add(Q4_GROUP + 64))];
            let mask = _mm512_set1_epi8(0x30);
            std::array::from_fn(|j| {
                let pair = bits[j % 2];
                let high = match j / 2 {
                    0 => _mm512_slli_epi16::<4>(pair),
                    1 => _mm512_slli_epi16::<2>(pair),
                    2 => pair,
                    _ => _mm512_srli_epi16::<2>(pair),
                };
                // low | (high & mask) in one instruction: 0xF8 is a | (b & c).
                _mm512_ternarylogic_epi32::<0xF8>(low[j], high, mask)
            })
        }
    }

    #[inline(always)]
    fn address(self, g: usize) -> *const u8 {
        self.strip.wrapping_add(g / 8 * Q6K_BLOCK + Q6K_HEADER + g % 8 * Q6K_GROUP)
    }
}

impl Strip for W8 {
    const MIN: bool = true;

    #[inline(always)]
    unsafe fn new(strip: *const u8) -> Self {
        Self { strip }
    }

    #[inline(always)]
    unsafe fn scales(self, g: usize) -> ([__m512; 2], [__m512; 2]) {
        // SAFETY: group `g` starts with 2 x 16 floats.
        unsafe {
            let at = self.strip.add(g * W8_GROUP).cast();
            ([_mm512_loadu_ps(at); 2], [_mm512_loadu_ps(at.add(16)); 2])
        }
    }

    #[inline(always)]
    unsafe fn cells(self, g: usize) -> [__m512i; 8] {
        // SAFETY: group `g` has 8 cells.
        unsafe { std::array::from_fn(|j| load(self.address(g).add(j * 64))) }
    }

    #[inline(always)]
    fn address(self, g: usize) -> *const u8 {
        self.strip.wrapping_add(g * W8_GROUP + 128)
    }
}

impl Strip for W8Half {
    const HALVES: bool = true;
    const MIN: bool = true;

    #[inline(always)]
    unsafe fn new(strip: *const u8) -> Self {
        Self { strip }
    }

    #[inline(always)]
    unsafe fn scales(self, g: usize) -> ([__m512; 2], [__m512; 2]) {
        // SAFETY: group `g` starts with 4 x 16 floats.
        unsafe {
            let at: *const f32 = self.strip.add(g * W8_HALF_GROUP).cast();
            let four = |i: usize| _mm512_loadu_ps(at.add(i * 16));
            ([four(0), four(1)], [four(2), four(3)])
        }
    }

    #[inline(always)]
    unsafe fn cells(self, g: usize) -> [__m512i; 8] {
        // SAFETY: group `g` has 8 cells.
        unsafe { std::array::from_fn(|j| load(self.address(g).add(j * 64))) }
    }

    #[inline(always)]
    fn address(self, g: usize) -> *const u8 {
        self.strip.wrapping_add(g * W8_HALF_GROUP + 256)
    }
}
