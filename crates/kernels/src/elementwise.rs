//! Elementwise arithmetic, written once on arrays of 16 lanes and compiled once per instruction set.
//!
//! The bodies are plain Rust that the compiler vectorizes; `elementwise!` wraps them in functions with an instruction
//! set's features switched on. Every sum runs over 16 fixed lanes and then a fixed tree, so a result does not depend on
//! how many tokens or threads there are.

use crate::format::GROUP;

pub(crate) const LANES: usize = 16;

/// What an instruction set does better than the compiler from plain Rust.
pub(crate) trait Lanes {
    /// There is a fused multiply-add; without one, `mul_add` would be a call.
    const FUSED: bool;

    /// The largest of the lanes.
    ///
    /// # Safety
    /// The processor has the instruction set.
    #[inline(always)]
    unsafe fn max(lanes: [f32; LANES]) -> f32 {
        fold_halves(lanes, larger)
    }

    /// The sum of the lanes, upper half onto lower half until one is left.
    ///
    /// # Safety
    /// The processor has the instruction set.
    #[inline(always)]
    unsafe fn sum(lanes: [f32; LANES]) -> f32 {
        fold_halves(lanes, |a, b| a + b)
    }

    /// `x * inverse` as the nearest integers (ties to even) in -127..=127, and their sums over both halves. A value that is
    /// not finite becomes any of them.
    ///
    /// # Safety
    /// The processor has the instruction set.
    #[inline(always)]
    unsafe fn quantize(x: &[f32; GROUP], inverse: f32) -> ([i8; GROUP], [i32; 2]) {
        let q = rounded(x, inverse);
        let mut sums = [0; 2];
        for i in 0..GROUP / 2 {
            sums[0] += i32::from(q[i]);
            sums[1] += i32::from(q[i + GROUP / 2]);
        }
        (q, sums)
    }
}

/// No instruction set in particular.
pub(crate) enum Plain {}

impl Lanes for Plain {
    const FUSED: bool = false;
}

#[inline(always)]
fn fold_halves(mut lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut n = LANES / 2;
    while n > 0 {
        for i in 0..n {
            lanes[i] = f(lanes[i], lanes[i + n]);
        }
        n /= 2;
    }
    lanes[0]
}

/// `x * inverse` as the nearest integers (ties to even) in -127..=127.
#[inline(always)]
pub(crate) fn rounded(x: &[f32; GROUP], inverse: f32) -> [i8; GROUP] {
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits of the float.
    const MAGIC: f32 = 12_582_912.0;
    x.map(|x| ((x * inverse).clamp(-127.0, 127.0) + MAGIC).to_bits() as i8)
}

/// The largest magnitude of several groups, 0 of nothing; NaNs do not count.
///
/// # Safety
/// The processor has the instruction set of `L`.
#[inline(always)]
pub(crate) unsafe fn largest<L: Lanes>(groups: &[[f32; GROUP]]) -> f32 {
    let mut lanes = [0f32; LANES];
    for x in groups.iter().flat_map(|x| x.as_chunks::<LANES>().0) {
        for i in 0..LANES {
            lanes[i] = larger(x[i].abs(), lanes[i]);
        }
    }
    // SAFETY: the same contract.
    unsafe { L::max(lanes) }
}

#[inline(always)]
fn multiply_add<L: Lanes>(a: f32, b: f32, c: f32) -> f32 {
    if L::FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// The larger one, `b` where they do not compare: what `maxps` computes.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// `1 / sqrt(mean(x^2) + epsilon)`, by which a root-mean-square norm scales (Zhang and Sennrich, 2019).
///
/// # Safety
/// The processor has the instruction set of `L`.
#[inline(always)]
pub(crate) unsafe fn rms_scale_body<L: Lanes>(x: &[f32], epsilon: f32) -> f32 {
    // SAFETY: the same contract.
    let sum = unsafe { sum_of::<L>(x, |x| x * x) };
    1.0 / (sum / x.len() as f32 + epsilon).sqrt()
}

/// `out = x * scale * weight`.
#[inline(always)]
pub(crate) fn scale_body(x: &[f32], scale: f32, weight: &[f32], out: &mut [f32]) {
    assert!(x.len() == weight.len() && x.len() == out.len(), "a norm of unequal lengths");
    for ((out, &x), &w) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * w;
    }
}

/// The sum of `f` of every element.
///
/// # Safety
/// The processor has the instruction set of `L`.
#[inline(always)]
unsafe fn sum_of<L: Lanes>(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut lanes = [0f32; LANES];
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] += f(chunk[i]);
        }
    }
    // SAFETY: the same contract.
    let sum = unsafe { L::sum(lanes) };
    sum + rest.iter().map(|&x| f(x)).sum::<f32>()
}

/// The mean of a row and `1 / sqrt(variance + epsilon)`, by which a layer norm scales (Ba, Kiros and Hinton, 2016).
///
/// # Safety
/// The processor has the instruction set of `L`.
#[inline(always)]
pub(crate) unsafe fn mean_scale_body<L: Lanes>(x: &[f32], epsilon: f32) -> (f32, f32) {
    // SAFETY: the same contract.
    unsafe {
        let mean = sum_of::<L>(x, |x| x) / x.len() as f32;
        let variance = sum_of::<L>(x, |x| (x - mean) * (x - mean)) / x.len() as f32;
        (mean, 1.0 / (variance + epsilon).sqrt())
    }
}

/// `out = (x - mean) * scale * weight`.
#[inline(always)]
pub(crate) fn center_scale_body(x: &[f32], mean: f32, scale: f32, weight: &[f32], out: &mut [f32]) {
    assert!(x.len() == weight.len() && x.len() == out.len(), "a norm of unequal lengths");
    for ((out, &x), &w) in out.iter_mut().zip(x).zip(weight) {
        *out = (x - mean) * scale * w;
    }
}

/// e^x with a relative error below 2e-7; 0 below -87.3, where the result would be subnormal. Range reduction by
/// Cody and Waite's two-part ln 2, then a degree-6 Taylor polynomial on [-ln2/2, ln2/2].
#[inline(always)]
pub(crate) fn exp<L: Lanes>(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.3, 88.3);
    let rounded = multiply_add::<L>(clamped, std::f32::consts::LOG2_E, MAGIC);
    let n = rounded - MAGIC;
    let r = multiply_add::<L>(n, -LN2_HIGH, clamped);
    let r = multiply_add::<L>(n, -LN2_LOW, r);
    let mut p = 1.0 / 720.0;
    for coefficient in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = multiply_add::<L>(p, r, coefficient);
    }
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(0x3f80_0000));
    if x < -87.3 { 0.0 } else { p * power }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
fn sigmoid<L: Lanes>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<L>(-x))
}

/// `gate = silu(gate) * up`, the gated half of SwiGLU (Shazeer, 2020).
#[inline(always)]
pub(crate) fn silu_mul_body<L: Lanes>(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "silu_mul of unequal lengths");
    for (g, &u) in gate.iter_mut().zip(up) {
        *g = *g / (1.0 + exp::<L>(-*g)) * u;
    }
}

/// `gate = gelu(gate) * up`, with GELU in its tanh form (Hendrycks and Gimpel, 2016): `(1 + tanh(y)) / 2` is `sigmoid(2 y)`.
#[inline(always)]
pub(crate) fn gelu_mul_body<L: Lanes>(gate: &mut [f32], up: &[f32]) {
    const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769;
    assert_eq!(gate.len(), up.len(), "gelu_mul of unequal lengths");
    for (g, &u) in gate.iter_mut().zip(up) {
        let x = *g;
        *g = x * sigmoid::<L>(TWICE_SQRT_2_OVER_PI * x * (1.0 + 0.044715 * x * x)) * u;
    }
}

/// `gate = gelu(gate) * up`, with GELU as it is defined: `x` times the normal distribution's share below it.
#[inline(always)]
pub(crate) fn exact_gelu_mul_body<L: Lanes>(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "exact_gelu_mul of unequal lengths");
    for (g, &u) in gate.iter_mut().zip(up) {
        let x = *g;
        let half_tail = 0.5 * erfc_of_positive::<L>(x.abs() * std::f32::consts::FRAC_1_SQRT_2);
        *g = x * if x < 0.0 { half_tail } else { 1.0 - half_tail } * u;
    }
}

/// The complement of the error function where `x` is not negative, by the Chebyshev fit of Press et al. (Numerical Recipes in
/// C, 1992, section 6.2), whose relative error is below 1.2e-7 everywhere.
#[inline(always)]
fn erfc_of_positive<L: Lanes>(x: f32) -> f32 {
    let t = 1.0 / multiply_add::<L>(x, 0.5, 1.0);
    let mut p = 0.170_872_77;
    for coefficient in [
        -0.822_152_23,
        1.488_515_9,
        -1.135_204,
        0.278_868_07,
        -0.186_288_06,
        0.096_784_18,
        0.374_091_96,
        1.000_023_7,
        -1.265_512_2,
    ] {
        p = multiply_add::<L>(p, t, coefficient);
    }
    t * exp::<L>(multiply_add::<L>(-x, x, p))
}

/// The gated half of SwiGLU as gpt-oss computes it.
#[inline(always)]
pub(crate) fn clamped_swiglu_body<L: Lanes>(gate: &mut [f32], up: &[f32]) {
    const LIMIT: f32 = 7.0;
    const SLOPE: f32 = 1.702;
    assert_eq!(gate.len(), up.len(), "clamped_swiglu of unequal lengths");
    for (g, &u) in gate.iter_mut().zip(up) {
        let x = g.min(LIMIT);
        *g = x * sigmoid::<L>(SLOPE * x) * (u.clamp(-LIMIT, LIMIT) + 1.0);
    }
}

/// `x += factor * y`.
#[inline(always)]
pub(crate) fn add_scaled_body(x: &mut [f32], y: &[f32], factor: f32) {
    assert_eq!(x.len(), y.len(), "a sum of unequal lengths");
    for (x, &y) in x.iter_mut().zip(y) {
        *x += factor * y;
    }
}

/// `sum += x * y`.
#[inline(always)]
pub(crate) fn add_product_body<L: Lanes>(sum: &mut [f32], x: &[f32], y: &[f32]) {
    assert!(sum.len() == x.len() && x.len() == y.len(), "a sum of unequal lengths");
    for ((sum, &x), &y) in sum.iter_mut().zip(x).zip(y) {
        *sum = multiply_add::<L>(x, y, *sum);
    }
}

/// `x * sigmoid(x)`.
#[inline(always)]
pub(crate) fn silu_body<L: Lanes>(x: &mut [f32]) {
    for x in x {
        *x = *x / (1.0 + exp::<L>(-*x));
    }
}

/// `x *= sigmoid(gate)`.
#[inline(always)]
pub(crate) fn sigmoid_mul_body<L: Lanes>(x: &mut [f32], gate: &[f32]) {
    assert_eq!(x.len(), gate.len(), "sigmoid_mul of unequal lengths");
    for (x, &g) in x.iter_mut().zip(gate) {
        *x *= sigmoid::<L>(g);
    }
}

/// `cap * tanh(x / cap)`, which keeps logits within `cap` (Gemma 2): `tanh(y)` is `1 - 2 / (e^(2 y) + 1)`.
#[inline(always)]
pub(crate) fn soft_cap_body<L: Lanes>(x: &mut [f32], cap: f32) {
    let twice_inverse = 2.0 / cap;
    for x in x {
        *x = cap - 2.0 * cap / (exp::<L>(*x * twice_inverse) + 1.0);
    }
}

/// One tile of an online softmax: turns scores into `e^(score - max)` and returns the maximum so far and the sum.
///
/// # Safety
/// The processor has the instruction set of `L`.
#[inline(always)]
pub(crate) unsafe fn softmax_tile_body<L: Lanes>(scores: &mut [f32], max_before: f32) -> (f32, f32) {
    // SAFETY: the same contract.
    let max = larger(unsafe { max_body::<L>(scores) }, max_before);
    let base = if max == f32::NEG_INFINITY { 0.0 } else { max };
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = scores.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            chunk[i] = exp::<L>(chunk[i] - base);
            lanes[i] += chunk[i];
        }
    }
    // SAFETY: the same contract.
    let mut sum = unsafe { L::sum(lanes) };
    for s in rest {
        *s = exp::<L>(*s - base);
        sum += *s;
    }
    (max, sum)
}

/// # Safety
/// The processor has the instruction set of `L`.
#[inline(always)]
pub(crate) unsafe fn max_body<L: Lanes>(x: &[f32]) -> f32 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = larger(chunk[i], lanes[i]);
        }
    }
    // SAFETY: the same contract.
    let max = unsafe { L::max(lanes) };
    rest.iter().fold(max, |a, &b| larger(b, a))
}

/// The sum of `e^(x - max)`.
///
/// # Safety
/// The processor has the instruction set of `L`.
#[inline(always)]
pub(crate) unsafe fn exp_sum_body<L: Lanes>(x: &[f32], max: f32) -> f32 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut lanes = [0f32; LANES];
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] += exp::<L>(chunk[i] - max);
        }
    }
    // SAFETY: the same contract.
    let sum = unsafe { L::sum(lanes) };
    sum + rest.iter().map(|&x| exp::<L>(x - max)).sum::<f32>()
}

/// Defines the elementwise functions of an instruction set, with its features on.
macro_rules! elementwise {
    ($lanes:ty $(, $feature:meta)?) => {
        /// # Safety
        /// The contract of `panel::quantize_row_body`, and the processor has the module's instruction set.
        $(#[$feature])?
        unsafe fn quantize_row(row: &[f32], span: usize, panel: *mut u8, width: usize, lane: usize) {
            // SAFETY: the same contract.
            unsafe { crate::panel::quantize_row_body::<$lanes>(row, span, panel, width, lane) }
        }

        $(#[$feature])?
        unsafe fn rms_scale(x: &[f32], epsilon: f32) -> f32 {
            // SAFETY: the caller vouches for the instruction set.
            unsafe { crate::elementwise::rms_scale_body::<$lanes>(x, epsilon) }
        }

        $(#[$feature])?
        unsafe fn scale(x: &[f32], scale: f32, weight: &[f32], out: &mut [f32]) {
            crate::elementwise::scale_body(x, scale, weight, out);
        }

        $(#[$feature])?
        unsafe fn mean_scale(x: &[f32], epsilon: f32) -> (f32, f32) {
            // SAFETY: the caller vouches for the instruction set.
            unsafe { crate::elementwise::mean_scale_body::<$lanes>(x, epsilon) }
        }

        $(#[$feature])?
        unsafe fn center_scale(x: &[f32], mean: f32, scale: f32, weight: &[f32], out: &mut [f32]) {
            crate::elementwise::center_scale_body(x, mean, scale, weight, out);
        }

        $(#[$feature])?
        unsafe fn silu_mul(gate: &mut [f32], up: &[f32]) {
            crate::elementwise::silu_mul_body::<$lanes>(gate, up);
        }

        $(#[$feature])?
        unsafe fn gelu_mul(gate: &mut [f32], up: &[f32]) {
            crate::elementwise::gelu_mul_body::<$lanes>(gate, up);
        }

        $(#[$feature])?
        unsafe fn exact_gelu_mul(gate: &mut [f32], up: &[f32]) {
            crate::elementwise::exact_gelu_mul_body::<$lanes>(gate, up);
        }

        $(#[$feature])?
        unsafe fn clamped_swiglu(gate: &mut [f32], up: &[f32]) {
            crate::elementwise::clamped_swiglu_body::<$lanes>(gate, up);
        }

        $(#[$feature])?
        unsafe fn add_scaled(x: &mut [f32], y: &[f32], factor: f32) {
            crate::elementwise::add_scaled_body(x, y, factor);
        }

        $(#[$feature])?
        unsafe fn add_product(sum: &mut [f32], x: &[f32], y: &[f32]) {
            crate::elementwise::add_product_body::<$lanes>(sum, x, y);
        }

        $(#[$feature])?
        unsafe fn silu(x: &mut [f32]) {
            crate::elementwise::silu_body::<$lanes>(x);
        }

        /// # Safety
        /// The contract of `recurrent::RememberArgs`, and the processor has the module's instruction set.
        $(#[$feature])?
        unsafe fn remember(args: &crate::recurrent::RememberArgs) {
            // SAFETY: the same contract.
            unsafe { crate::recurrent::remember_body(args) }
        }

        $(#[$feature])?
        unsafe fn sigmoid_mul(x: &mut [f32], gate: &[f32]) {
            crate::elementwise::sigmoid_mul_body::<$lanes>(x, gate);
        }

        $(#[$feature])?
        unsafe fn soft_cap(x: &mut [f32], cap: f32) {
            crate::elementwise::soft_cap_body::<$lanes>(x, cap);
        }

        $(#[$feature])?
        unsafe fn softmax_tile(scores: &mut [f32], max_before: f32) -> (f32, f32) {
            // SAFETY: the caller vouches for the instruction set.
            unsafe { crate::elementwise::softmax_tile_body::<$lanes>(scores, max_before) }
        }

        $(#[$feature])?
        unsafe fn max(x: &[f32]) -> f32 {
            // SAFETY: the caller vouches for the instruction set.
            unsafe { crate::elementwise::max_body::<$lanes>(x) }
        }

        $(#[$feature])?
        unsafe fn exp_sum(x: &[f32], max: f32) -> f32 {
            // SAFETY: the caller vouches for the instruction set.
            unsafe { crate::elementwise::exp_sum_body::<$lanes>(x, max) }
        }
    };
}
pub(crate) use elementwise;

#[cfg(test)]
mod tests {
    use super::*;

    enum Fused {}

    impl Lanes for Fused {
        const FUSED: bool = true;
    }

    #[test]
    fn exp_is_close_everywhere() {
        fn check<L: Lanes>() {
            let exp = exp::<L>;
            let mut worst = 0f64;
            for i in -87_000..88_000 {
                let x = i as f32 / 1000.0;
                let exact = f64::from(x).exp();
                worst = worst.max((f64::from(exp(x)) - exact).abs() / exact);
            }
            assert!(worst < 3e-7, "relative error {worst}");
            assert_eq!(exp(f32::NEG_INFINITY), 0.0);
            assert_eq!(exp(-1000.0), 0.0);
            assert_eq!(exp(0.0), 1.0);
        }
        check::<Plain>();
        check::<Fused>();
    }

    #[test]
    fn softmax_of_a_fully_masked_tile_is_nothing() {
        let mut scores = [f32::NEG_INFINITY; 32];
        let tile = |scores: &mut [f32], max| {
            // SAFETY: nothing in particular is needed.
            unsafe { softmax_tile_body::<Plain>(scores, max) }
        };
        assert_eq!(tile(&mut scores, f32::NEG_INFINITY), (f32::NEG_INFINITY, 0.0));
        assert_eq!(scores, [0.0; 32]);
        assert_eq!(tile(&mut [f32::NEG_INFINITY; 32], 2.0), (2.0, 0.0));
    }
}
