//! Packed layouts: 16 rows interleaved, so that one vector register holds the same weights of 16 rows.
//!
//! A matrix is cut into strips of [`STRIP`] rows. Integer weights lie in *cells* of 4 neighbouring columns: 16 rows x
//! 4 bytes, which is what one `vpdpbusd`, four `sdot`s or a scalar loop consume at once. One layout serves decode (one
//! token) and prefill (many). Bytes per weight stay (nearly) those of GGUF. Per strip of `k` columns, `groups = k / 32`:
//!
//! | layout | strip | value of a weight |
//! |---|---|---|
//! | `F32`, `F16`, `BF16` | k x [16 floats] | itself |
//! | `Q8` | per 64 columns: 2 x f16 d\[16\]; 2 x 8 cells | `d * q` |
//! | `Q4` | per 64 columns: 2 x f16 d\[16\]; 2 x 4 cells of nibble pairs | `d * (q - 8)` |
//! | `Iq4Nl` | as `Q4` | `d * IQ4_VALUES[q]` |
//! | `Mxfp4` | per 128 columns: 4 x E8M0 e\[16\]; 4 x 4 cells of nibble pairs | `2^(e - 128) * MXFP4_VALUES[q]` |
//! | `Q4K` | per 256 columns: f16 d\[16\], f16 dmin\[16\], u8 scale\[8\]\[16\], u8 min\[8\]\[16\]; 8 x 4 cells of nibble pairs | `d * scale * q - dmin * min` |
//! | `Q5K` | as `Q4K`, with 8 x (4 cells of nibble pairs, 1 of fifth bits) | the same |
//! | `Q3K` | per 256 columns: f16 d\[16\], 32 bytes of padding, i8 scale\[16\]\[16\]; 8 x 3 cells of three-bit fields | `d * scale * (q - 4)` |
//! | `Q6K` | as `Q3K`, with 8 x (4 cells of nibble pairs, 2 of bit pairs) | `d * scale * (q - 32)` |
//! | `Iq4Xs` | per 256 columns: f16 d\[16\], 32 bytes of padding, i8 scale\[8\]\[16\]; 8 x 4 cells of nibble pairs | `d * scale * IQ4_VALUES[q]` |
//! | `W8` | per group: f32 scale\[16\], f32 min\[16\]; 8 cells | `scale * q - min` |
//! | `W8Half` | per group: f32 scale\[2\]\[16\], f32 min\[2\]\[16\]; 8 cells | the same, a scale for each 16 columns |
//!
//! A cell of nibble pairs holds columns `c..c+4` in its low nibbles and `c+16..c+20` in its high ones, so of a group's
//! 8 cells it is two. Bit `j` of a byte of fifth bits is that of cell `j`, *clear* where the weight has it: a test for it
//! makes all ones where 16 is to be taken away. Bit pair `j / 2` of cell `j % 2` of bit pairs is that of cell `j`. Of the
//! cells of three-bit fields, number `i` has cell `2i` in bits 0 to 2 and `2i + 1` in bits 5 to 7. Cells 6 and 7 have
//! their low bits in bits 3 and 4 of numbers 0 and 2, and their high ones in bits 3 and 4 of number 1.
//!
//! Everything starts on a cache line, and a strip is read from its first byte to its last: one stream of memory, which
//! is what prefetchers follow. `W8` is the 8-bit layout for formats without one of their own. How 8-bit integers are
//! stored depends on the instruction set ([`Bytes`]): VNNI multiplies unsigned weights by signed activations, everyone
//! else wants them signed.

mod pack;

pub use pack::pack_strip;

use crate::format::{Format, GROUP, Group, IQ4_VALUES, MXFP4_VALUES, SUPERBLOCK, e8m0_half};
use half::{bf16, f16};

/// Rows in a strip.
pub const STRIP: usize = 16;

/// How a packed matrix is stored; see the module's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    F32,
    F16,
    BF16,
    Q8,
    Q4,
    Iq4Nl,
    Mxfp4,
    Q4K,
    Q5K,
    Q3K,
    Q6K,
    Iq4Xs,
    W8,
    W8Half,
}

/// Whether 8-bit weights are stored as they are or 128 above (`Q8`; in `W8` the minimum grows to match).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bytes {
    Signed,
    Unsigned,
}

impl Layout {
    pub const ALL: [Layout; 14] = [
        Layout::F32,
        Layout::F16,
        Layout::BF16,
        Layout::Q8,
        Layout::Q4,
        Layout::Iq4Nl,
        Layout::Mxfp4,
        Layout::Q4K,
        Layout::Q5K,
        Layout::Q3K,
        Layout::Q6K,
        Layout::Iq4Xs,
        Layout::W8,
        Layout::W8Half,
    ];

    /// The layout that a GGUF format is packed into.
    pub fn of(format: Format) -> Layout {
        match format {
            Format::F32 => Layout::F32,
            Format::F16 => Layout::F16,
            Format::BF16 => Layout::BF16,
            Format::Q8_0 => Layout::Q8,
            Format::Q4_0 => Layout::Q4,
            Format::Q4_K => Layout::Q4K,
            Format::Q5_K => Layout::Q5K,
            Format::Q3_K => Layout::Q3K,
            Format::Q6_K => Layout::Q6K,
            Format::IQ4_NL => Layout::Iq4Nl,
            Format::IQ4_XS => Layout::Iq4Xs,
            Format::MXFP4 => Layout::Mxfp4,
            Format::Q2_K => Layout::W8Half,
            Format::Q4_1 | Format::Q5_0 | Format::Q5_1 => Layout::W8,
        }
    }

    pub fn is_float(self) -> bool {
        matches!(self, Layout::F32 | Layout::F16 | Layout::BF16)
    }

    /// Whether 256 columns share an f16 scale, and so the scale of the activations they are multiplied by.
    pub fn has_superblocks(self) -> bool {
        !self.is_float() && self.blocks().has_superblocks()
    }

    /// Bytes of a strip of `cols` columns.
    pub fn strip_bytes(self, cols: usize) -> usize {
        match self {
            Layout::F32 => cols * 64,
            Layout::F16 | Layout::BF16 => cols * 32,
            _ => {
                let blocks = self.blocks();
                (cols / GROUP).div_ceil(blocks.groups) * blocks.bytes()
            }
        }
    }

    /// Where the groups of an integer layout lie.
    fn blocks(self) -> Blocks {
        match self {
            Layout::Q8 => Blocks::Q8,
            Layout::Q4 | Layout::Iq4Nl => Blocks::Q4,
            Layout::Mxfp4 => Blocks::MXFP4,
            Layout::Q4K => Blocks::Q4K,
            Layout::Q5K => Blocks::Q5K,
            Layout::Q3K => Blocks::Q3K,
            Layout::Q6K => Blocks::Q6K,
            Layout::Iq4Xs => Blocks::IQ4_XS,
            Layout::W8 => Blocks::W8,
            Layout::W8Half => Blocks::W8_HALF,
            Layout::F32 | Layout::F16 | Layout::BF16 => unreachable!("a float layout has no groups"),
        }
    }
}

/// How a strip is cut into blocks: some groups each, their scales in front of their cells.
#[derive(Clone, Copy)]
pub(crate) struct Blocks {
    /// Groups in a block; the last block of a strip may have fewer.
    pub(crate) groups: usize,
    /// Bytes in front of the cells.
    pub(crate) header: usize,
    /// Bytes of a group's cells.
    pub(crate) group: usize,
}

impl Blocks {
    pub(crate) const Q8: Blocks = Blocks { groups: 2, header: 64, group: 8 * CELL };
    pub(crate) const Q4: Blocks = Blocks { groups: 2, header: 64, group: 4 * CELL };
    pub(crate) const MXFP4: Blocks = Blocks { groups: 4, header: 64, group: 4 * CELL };
    pub(crate) const Q4K: Blocks = Blocks { groups: 8, header: MINS + 8 * STRIP, group: 4 * CELL };
    pub(crate) const Q5K: Blocks = Blocks { groups: 8, header: MINS + 8 * STRIP, group: 5 * CELL };
    pub(crate) const Q3K: Blocks = Blocks { groups: 8, header: SCALES + 16 * STRIP, group: 3 * CELL };
    pub(crate) const Q6K: Blocks = Blocks { groups: 8, header: SCALES + 16 * STRIP, group: 6 * CELL };
    pub(crate) const IQ4_XS: Blocks = Blocks { groups: 8, header: SCALES + 8 * STRIP, group: 4 * CELL };
    pub(crate) const W8: Blocks = Blocks { groups: 1, header: 2 * 64, group: 8 * CELL };
    pub(crate) const W8_HALF: Blocks = Blocks { groups: 1, header: 4 * 64, group: 8 * CELL };

    /// Whether a block is what formats of 256 columns call a super-block.
    pub(crate) const fn has_superblocks(self) -> bool {
        self.groups * GROUP == SUPERBLOCK
    }

    /// Bytes of a block.
    pub(crate) const fn bytes(self) -> usize {
        self.header + self.groups * self.group
    }

    /// Offset in a strip of the block with group `g`.
    #[inline(always)]
    pub(crate) const fn start(self, g: usize) -> usize {
        g / self.groups * self.bytes()
    }

    /// Offset in a strip of the cells of group `g`.
    #[inline(always)]
    pub(crate) const fn cells(self, g: usize) -> usize {
        self.start(g) + self.header + g % self.groups * self.group
    }
}

/// Bytes of a cell: 4 columns of 16 rows.
pub(crate) const CELL: usize = 4 * STRIP;
/// In the header of 256 columns, integer scales start a cache line after `d`, whether `dmin` is there or not.
pub(crate) const SCALES: usize = 64;
/// Where minimums start in the headers of `Q4K` and `Q5K`.
pub(crate) const MINS: usize = SCALES + 8 * STRIP;
/// Where the bits above the nibbles start in a group of `Q5K` and `Q6K`.
pub(crate) const HIGH_BITS: usize = 4 * CELL;

// Beside 16 rows of GGUF blocks.
const _: () = assert!(Blocks::Q4.bytes() == 16 * 2 * Format::Q4_0.block_bytes());
const _: () = assert!(Blocks::Q4.bytes() == 16 * 2 * Format::IQ4_NL.block_bytes());
const _: () = assert!(Blocks::Q8.bytes() == 16 * 2 * Format::Q8_0.block_bytes());
const _: () = assert!(Blocks::MXFP4.bytes() == 16 * 4 * Format::MXFP4.block_bytes());
const _: () = assert!(Blocks::Q4K.bytes() == 16 * Format::Q4_K.block_bytes() + 64);
const _: () = assert!(Blocks::Q5K.bytes() == 16 * Format::Q5_K.block_bytes() + 64);
const _: () = assert!(Blocks::Q3K.bytes() == 16 * Format::Q3_K.block_bytes() + 96);
const _: () = assert!(Blocks::Q6K.bytes() == 16 * Format::Q6_K.block_bytes() + 32);
const _: () = assert!(Blocks::IQ4_XS.bytes() == 16 * Format::IQ4_XS.block_bytes() + 64);

/// Decodes column group `g` of a packed strip: the scalar reference of the layouts, as `(row, group)` values.
///
/// # Panics
/// If the layout is a float one.
pub fn unpack_group(layout: Layout, bytes: Bytes, strip: &[u8], g: usize) -> [Group; STRIP] {
    std::array::from_fn(|r| unpack_row_group(layout, bytes, strip, g, r))
}

fn unpack_row_group(layout: Layout, bytes: Bytes, strip: &[u8], g: usize, r: usize) -> Group {
    let blocks = layout.blocks();
    let (block, cells, i) = (&strip[blocks.start(g)..], &strip[blocks.cells(g)..], g % blocks.groups);
    let half_at = |at: usize| f16::from_le_bytes([block[at + r * 2], block[at + r * 2 + 1]]).to_f32();
    let float_at = |at: usize| f32::from_le_bytes(block[at + r * 4..][..4].try_into().expect("4 bytes"));
    let u8_at = |at: usize| f32::from(block[at + r]);
    let i8_at = |at: usize| f32::from(block[at + r] as i8);
    let byte = |at: usize, c: usize| cells[at + c / 4 * CELL + r * 4 + c % 4];
    let nibble = |c: usize| byte(0, c % 16) >> (c / 16 * 4) & 15;
    let signed = |q: u8| if bytes == Bytes::Unsigned { (q ^ 0x80) as i8 } else { q as i8 };
    let whole = |scale: f32, q: [i8; GROUP]| Group { q, scale: [scale; 2], min: [0.0; 2] };
    let with_min = |q: [i8; GROUP]| {
        let (scale, min) = (half_at(0) * u8_at(SCALES + i * STRIP), half_at(32) * u8_at(MINS + i * STRIP));
        Group { q, scale: [scale; 2], min: [min; 2] }
    };
    let by_halves = |q: [i8; GROUP]| {
        let scale = |h: usize| half_at(0) * i8_at(SCALES + (2 * i + h) * STRIP);
        Group { q, scale: [scale(0), scale(1)], min: [0.0; 2] }
    };
    match layout {
        Layout::Q8 => whole(half_at(i * 32), std::array::from_fn(|c| signed(byte(0, c)))),
        Layout::Q4 => whole(half_at(i * 32), std::array::from_fn(|c| nibble(c) as i8 - 8)),
        Layout::Iq4Nl => whole(half_at(i * 32), std::array::from_fn(|c| IQ4_VALUES[usize::from(nibble(c))])),
        Layout::Mxfp4 => {
            let q = std::array::from_fn(|c| MXFP4_VALUES[usize::from(nibble(c))]);
            whole(e8m0_half(block[i * STRIP + r]), q)
        }
        Layout::Q4K => with_min(std::array::from_fn(|c| nibble(c) as i8)),
        Layout::Q5K => {
            let fifth = |c: usize| !byte(HIGH_BITS, c % 4) >> (c / 4) & 1;
            with_min(std::array::from_fn(|c| (nibble(c) | fifth(c) << 4) as i8))
        }
        Layout::Q3K => {
            let bits = |number: usize, c: usize, shift: usize| byte(number * CELL, c % 4) >> shift;
            let q = |c: usize| match c / 4 {
                6 => bits(0, c, 3) & 3 | (bits(1, c, 3) & 1) << 2,
                7 => bits(2, c, 3) & 3 | (bits(1, c, 4) & 1) << 2,
                cell => bits(cell / 2, c, cell % 2 * 5) & 7,
            };
            by_halves(std::array::from_fn(|c| q(c) as i8 - 4))
        }
        Layout::Q6K => {
            let high = |c: usize| byte(HIGH_BITS, c % 8) >> (c / 8 * 2) & 3;
            by_halves(std::array::from_fn(|c| (nibble(c) | high(c) << 4) as i8 - 32))
        }
        Layout::Iq4Xs => {
            let scale = half_at(0) * i8_at(SCALES + i * STRIP);
            whole(scale, std::array::from_fn(|c| IQ4_VALUES[usize::from(nibble(c))]))
        }
        Layout::W8 | Layout::W8Half => {
            let halves = if layout == Layout::W8 { 1 } else { 2 };
            let scale: [f32; 2] = std::array::from_fn(|h| float_at(h % halves * 64));
            let min: [f32; 2] = std::array::from_fn(|h| float_at((halves + h % halves) * 64));
            // Unsigned bytes above 127 do not fit an i8: shift the range down and the minimum with it.
            let shift = if bytes == Bytes::Unsigned { 128.0 } else { 0.0 };
            let q = std::array::from_fn(|c| signed(byte(0, c)));
            Group { q, scale, min: std::array::from_fn(|h| min[h] - scale[h] * shift) }
        }
        Layout::F32 | Layout::F16 | Layout::BF16 => unreachable!("a float layout has no groups"),
    }
}

/// Weight `(row, col)` of a strip in a float layout.
///
/// # Panics
/// If the layout is an integer one.
pub fn float_weight(layout: Layout, strip: &[u8], row: usize, col: usize) -> f32 {
    let i = col * STRIP + row;
    match layout {
        Layout::F32 => f32::from_le_bytes(strip[i * 4..][..4].try_into().expect("4 bytes")),
        Layout::F16 => f16::from_le_bytes([strip[i * 2], strip[i * 2 + 1]]).to_f32(),
        Layout::BF16 => bf16::from_le_bytes([strip[i * 2], strip[i * 2 + 1]]).to_f32(),
        _ => unreachable!("an integer layout has groups"),
    }
}
