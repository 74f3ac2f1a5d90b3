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
