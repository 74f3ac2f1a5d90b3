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
//! | `Q4K` | per 256 columns: f16 d\[16\], f16 dmin\[16\], u8 scale\[8\]\[16\], u8 min\[8\]\[16\]; 8 x 4 cells of nibble pairs | `d * scale * q - dmin * min` |
//! | `Q6K` | per 256 columns: f16 d\[16\], 32 bytes of padding, i8 scale\[16\]\[16\]; 8 x (4 cells of nibble pairs, 2 of bit pairs) | `d * scale * (q - 32)` |
//! | `W8` | per group: f32 scale\[16\], f32 min\[16\]; 8 cells | `scale * q - min` |
//! | `W8Half` | per group: f32 scale\[2\]\[16\], f32 min\[2\]\[16\]; 8 cells | the same, a scale for each 16 columns |
//!
//! Everything starts on a cache line, and a strip is read from its first byte to its last: one stream of memory, which
//! is what prefetchers follow. A cell of nibble pairs holds columns `c..c+4` in its low nibbles and `c+16..c+20` in its high ones. `W8` is the 8-bit
//! layout for formats without one of their own. How 8-bit integers are stored depends on the instruction set
//! ([`Bytes`]): VNNI multiplies unsigned weights by signed activations, everyone else wants them signed.

use crate::format::{self, Format, GROUP, Group};
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
    Q4K,
    Q6K,
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
    pub const ALL: [Layout; 9] = [
        Layout::F32,
        Layout::F16,
        Layout::BF16,
        Layout::Q8,
        Layout::Q4,
        Layout::Q4K,
        Layout::Q6K,
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
            Format::Q6_K => Layout::Q6K,
            Format::Q2_K | Format::Q3_K => Layout::W8Half,
            Format::Q4_1
            | Format::Q5_0
            | Format::Q5_1
            | Format::Q5_K
            | Format::IQ4_NL
            | Format::IQ4_XS
            | Format::MXFP4 => Layout::W8,
        }
    }

    pub fn is_float(self) -> bool {
        matches!(self, Layout::F32 | Layout::F16 | Layout::BF16)
    }

    /// Bytes of a strip of `cols` columns.
    pub fn strip_bytes(self, cols: usize) -> usize {
        let groups = cols / GROUP;
        match self {
            Layout::F32 => cols * 64,
            Layout::F16 | Layout::BF16 => cols * 32,
            Layout::Q8 => groups.div_ceil(2) * PairLayout::Q8.block,
            Layout::Q4 => groups.div_ceil(2) * PairLayout::Q4.block,
            Layout::Q4K => groups / 8 * Q4K_BLOCK,
            Layout::Q6K => groups / 8 * Q6K_BLOCK,
            Layout::W8 => groups * W8_GROUP,
            Layout::W8Half => groups * W8_HALF_GROUP,
        }
    }
}

/// Where the groups of `Q4` and `Q8` lie: two to a block, their scales in front.
#[derive(Clone, Copy)]
pub(crate) struct PairLayout {
    pub(crate) block: usize,
    group: usize,
}

impl PairLayout {
    pub(crate) const Q4: PairLayout = PairLayout { block: 64 + 2 * Q4_GROUP, group: Q4_GROUP };
    pub(crate) const Q8: PairLayout = PairLayout { block: 64 + 2 * Q8_GROUP, group: Q8_GROUP };

    /// Offset of the scales of group `g` in a strip.
    #[inline(always)]
    pub(crate) const fn scales(self, g: usize) -> usize {
        g / 2 * self.block + g % 2 * 2 * STRIP
    }

    /// Offset of the cells of group `g` in a strip.
    #[inline(always)]
    pub(crate) const fn cells(self, g: usize) -> usize {
        g / 2 * self.block + 64 + g % 2 * self.group
    }
}

pub(crate) const Q8_GROUP: usize = 8 * 64;
pub(crate) const Q4_GROUP: usize = 4 * 64;
pub(crate) const Q4K_HEADER: usize = 2 * 32 + 2 * 8 * STRIP;
pub(crate) const Q4K_BLOCK: usize = Q4K_HEADER + 8 * Q4_GROUP;
/// `Q6K`'s scales start a cache line after its `d`.
pub(crate) const Q6K_SCALES: usize = 64;
pub(crate) const Q6K_HEADER: usize = Q6K_SCALES + 16 * STRIP;
pub(crate) const Q6K_GROUP: usize = 6 * 64;
pub(crate) const Q6K_BLOCK: usize = Q6K_HEADER + 8 * Q6K_GROUP;
pub(crate) const W8_GROUP: usize = 2 * 64 + 8 * 64;
pub(crate) const W8_HALF_GROUP: usize = 4 * 64 + 8 * 64;

// Beside GGUF, 256 columns of 16 rows: Q4_0 has 16 x 144 bytes, Q8_0 16 x 272, Q4_K 16 x 144, Q6_K 16 x 210.
const _: () = assert!(4 * PairLayout::Q4.block == 16 * 144);
const _: () = assert!(4 * PairLayout::Q8.block == 16 * 272);
const _: () = assert!(Q4K_BLOCK == 16 * 144 + 64);
const _: () = assert!(Q6K_BLOCK == 16 * 210 + 32);

/// Packs one strip: `rows` are up to 16 GGUF rows of `cols` weights each (missing ones become zeros).
///
/// # Panics
/// If a row or `out` has the wrong length for `cols`.
pub fn pack_strip(format: Format, bytes: Bytes, rows: &[&[u8]], cols: usize, out: &mut [u8]) {
    let layout = Layout::of(format);
    assert!(rows.len() <= STRIP, "a strip has at most {STRIP} rows");
    assert_eq!(out.len(), layout.strip_bytes(cols), "strip length of {layout:?}");
    for row in rows {
        assert_eq!(Some(row.len()), format.row_bytes(cols), "row length of {}", format.name());
    }
    if rows.len() < STRIP {
        out.fill(0);
    }
    match layout {
        Layout::F32 => interleave::<4>(rows, cols, out),
        Layout::F16 | Layout::BF16 => interleave::<2>(rows, cols, out),
        Layout::Q8 => pack_q8(bytes, rows, out),
        Layout::Q4 => pack_q4(rows, out),
        Layout::Q4K => pack_q4k(rows, out),
        Layout::Q6K => pack_q6k(rows, out),
        Layout::W8 => pack_w8::<1>(format, bytes, rows, out),
        Layout::W8Half => pack_w8::<2>(format, bytes, rows, out),
    }
}

fn interleave<const N: usize>(rows: &[&[u8]], cols: usize, out: &mut [u8]) {
    for (r, row) in rows.iter().enumerate() {
        for c in 0..cols {
            out[(c * STRIP + r) * N..][..N].copy_from_slice(&row[c * N..][..N]);
        }
    }
}

/// Copies 4 bytes at a time to where row `r` lives in consecutive cells.
fn scatter(row_bytes: &[u8], r: usize, cells: &mut [u8]) {
    for (four, cell) in row_bytes.chunks_exact(4).zip(cells.chunks_exact_mut(64)) {
        cell[r * 4..][..4].copy_from_slice(four);
    }
}

fn pack_q8(bytes: Bytes, rows: &[&[u8]], out: &mut [u8]) {
    for (r, row) in rows.iter().enumerate() {
        for (g, block) in row.chunks_exact(34).enumerate() {
            out[PairLayout::Q8.scales(g) + r * 2..][..2].copy_from_slice(&block[..2]);
            let mut q: [u8; GROUP] = block[2..].try_into().expect("a Q8_0 block has 32 weights");
            if bytes == Bytes::Unsigned {
                q = q.map(|q| q ^ 0x80);
            }
            scatter(&q, r, &mut out[PairLayout::Q8.cells(g)..][..Q8_GROUP]);
        }
    }
}

fn pack_q4(rows: &[&[u8]], out: &mut [u8]) {
    for (r, row) in rows.iter().enumerate() {
        for (g, block) in row.chunks_exact(18).enumerate() {
            out[PairLayout::Q4.scales(g) + r * 2..][..2].copy_from_slice(&block[..2]);
            scatter(&block[2..], r, &mut out[PairLayout::Q4.cells(g)..][..Q4_GROUP]);
        }
    }
}

/// Puts the low nibbles of 32 weights into 16 bytes as a cell of nibble pairs wants them.
fn pair_nibbles(q: &[u8; GROUP]) -> [u8; 16] {
    std::array::from_fn(|i| q[i] & 15 | q[i + 16] << 4)
}

fn pack_q4k(rows: &[&[u8]], out: &mut [u8]) {
    for (r, row) in rows.iter().enumerate() {
        for (block, out) in row.chunks_exact(144).zip(out.chunks_exact_mut(Q4K_BLOCK)) {
            out[r * 2..][..2].copy_from_slice(&block[..2]);
            out[32 + r * 2..][..2].copy_from_slice(&block[2..4]);
            let (header, cells) = out.split_at_mut(Q4K_HEADER);
            for g in 0..8 {
                let (scale, min) = format::scale_and_min(&block[4..16], g);
                header[64 + g * STRIP + r] = scale;
                header[64 + 128 + g * STRIP + r] = min;
                let q = format::paired_nibbles(&block[16..], g).map(|q| q as u8);
                scatter(&pair_nibbles(&q), r, &mut cells[g * Q4_GROUP..][..Q4_GROUP]);
            }
        }
    }
}

fn pack_q6k(rows: &[&[u8]], out: &mut [u8]) {
    for (r, row) in rows.iter().enumerate() {
        for (block, out) in row.chunks_exact(210).zip(out.chunks_exact_mut(Q6K_BLOCK)) {
            out[r * 2..][..2].copy_from_slice(&block[208..]);
            for j in 0..16 {
                out[Q6K_SCALES + j * STRIP + r] = block[192 + j];
            }
            for (g, out) in out[Q6K_HEADER..].chunks_exact_mut(Q6K_GROUP).enumerate() {
                let q = format::q6_k_unsigned(block, g);
                scatter(&pair_nibbles(&q), r, &mut out[..Q4_GROUP]);
                // Cell `j % 2` of bit pairs holds the high bits of cell `j` at bit `j / 2 * 2`.
                let mut high = [0; 8];
                for (i, q) in q.iter().enumerate() {
                    high[i % 8] |= q >> 4 << (i / 8 * 2);
                }
                scatter(&high, r, &mut out[Q4_GROUP..]);
            }
        }
    }
}

fn pack_w8<const HALVES: usize>(format: Format, bytes: Bytes, rows: &[&[u8]], out: &mut [u8]) {
    let header = HALVES * 2 * 64;
    // Codes of the lookup formats and of no other reach below -16; storing them 128 above keeps them in a byte.
    let offset = match (bytes, format) {
        (Bytes::Unsigned, Format::Q2_K | Format::Q4_1 | Format::Q5_1 | Format::Q5_K) => 0,
        (Bytes::Unsigned, _) => 128,
        (Bytes::Signed, _) => 0,
    };
    for (r, row) in rows.iter().enumerate() {
        for (g, out) in out.chunks_exact_mut(header + Q8_GROUP).enumerate() {
            let Group { q, scale, min } = format.decode_group(row, g);
            for h in 0..HALVES {
                let min = min[h] + scale[h] * offset as f32;
                out[(h * STRIP + r) * 4..][..4].copy_from_slice(&scale[h].to_le_bytes());
                out[((HALVES + h) * STRIP + r) * 4..][..4].copy_from_slice(&min.to_le_bytes());
            }
            scatter(&q.map(|q| (i16::from(q) + offset) as u8), r, &mut out[header..]);
        }
    }
}

/// Decodes column group `g` of a packed strip: the scalar reference of the layouts, as `(row, group)` values.
///
/// # Panics
/// If the layout is a float one.
pub fn unpack_group(layout: Layout, bytes: Bytes, strip: &[u8], g: usize) -> [Group; STRIP] {
    std::array::from_fn(|r| unpack_row_group(layout, bytes, strip, g, r))
}

fn unpack_row_group(layout: Layout, bytes: Bytes, strip: &[u8], g: usize, r: usize) -> Group {
    let half_at = |at: usize| f16::from_le_bytes([strip[at], strip[at + 1]]).to_f32();
    let float_at = |at: usize| f32::from_le_bytes(strip[at..at + 4].try_into().expect("4 bytes"));
    let byte = |cells: usize, i: usize| strip[cells + i / 4 * 64 + r * 4 + i % 4];
    let nibble = |cells: usize, i: usize| byte(cells, i % 16) >> (i / 16 * 4) & 15;
    let signed = |q: u8| if bytes == Bytes::Unsigned { (q ^ 0x80) as i8 } else { q as i8 };
    match layout {
        Layout::Q8 => {
            let cells = PairLayout::Q8.cells(g);
            let scale = half_at(PairLayout::Q8.scales(g) + r * 2);
            Group { q: std::array::from_fn(|i| signed(byte(cells, i))), scale: [scale; 2], min: [0.0; 2] }
        }
        Layout::Q4 => {
            let cells = PairLayout::Q4.cells(g);
            let scale = half_at(PairLayout::Q4.scales(g) + r * 2);
            Group { q: std::array::from_fn(|i| nibble(cells, i) as i8 - 8), scale: [scale; 2], min: [0.0; 2] }
        }
        Layout::Q4K => {
            let block = g / 8 * Q4K_BLOCK;
            let at = block + 64 + g % 8 * STRIP + r;
            let scale = half_at(block + r * 2) * f32::from(strip[at]);
            let min = half_at(block + 32 + r * 2) * f32::from(strip[at + 128]);
            let cells = block + Q4K_HEADER + g % 8 * Q4_GROUP;
            Group { q: std::array::from_fn(|i| nibble(cells, i) as i8), scale: [scale; 2], min: [min; 2] }
        }
        Layout::Q6K => {
            let block = g / 8 * Q6K_BLOCK;
            let d = half_at(block + r * 2);
            let scales = block + Q6K_SCALES + g % 8 * 2 * STRIP + r;
            let scale = |h: usize| d * f32::from(strip[scales + h * STRIP] as i8);
            let cells = block + Q6K_HEADER + g % 8 * Q6K_GROUP;
            let high = |i: usize| byte(cells + Q4_GROUP, i % 8) >> (i / 8 * 2) & 3;
            let q = std::array::from_fn(|i| (nibble(cells, i) | high(i) << 4) as i8 - 32);
            Group { q, scale: [scale(0), scale(1)], min: [0.0; 2] }
        }
        Layout::W8 | Layout::W8Half => {
            let halves = if layout == Layout::W8 { 1 } else { 2 };
            let start = g * (halves * 128 + Q8_GROUP);
            let scale: [f32; 2] = std::array::from_fn(|h| float_at(start + (h % halves * STRIP + r) * 4));
            let min: [f32; 2] =
                std::array::from_fn(|h| float_at(start + ((halves + h % halves) * STRIP + r) * 4));
            // Unsigned bytes above 127 do not fit an i8: shift the range down and the minimum with it.
            let (shift, q): (i16, [i8; GROUP]) = match bytes {
                Bytes::Signed => (0, std::array::from_fn(|i| byte(start + halves * 128, i) as i8)),
                Bytes::Unsigned => {
                    (128, std::array::from_fn(|i| (i16::from(byte(start + halves * 128, i)) - 128) as i8))
                }
            };
            Group { q, scale, min: std::array::from_fn(|h| min[h] - scale[h] * f32::from(shift)) }
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
