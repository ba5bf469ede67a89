//! Loops that the compiler vectorises for the chip found at run time, and the functions they share.

/// Defines functions compiled three times (portable, AVX2, AVX-512) and dispatched at run time.
///
/// No fused multiply-add and no reordering beyond what the source says, so each variant gives the
/// same bits.
macro_rules! multiversion {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block)*) => {$(
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn v4($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn v3($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                match $crate::ops::simd::level() {
                    // SAFETY: the level says that the chip has the features.
                    2 => return unsafe { v4($($arg),*) },
                    1 => return unsafe { v3($($arg),*) },
                    _ => {}
                }
            }
            body($($arg),*)
        }
    )*};
}
pub(crate) use multiversion;

/// 2 where AVX-512 (F, VL, BW, DQ) runs, 1 where AVX2 and FMA run, else 0.
#[cfg(target_arch = "x86_64")]
pub(crate) fn level() -> u8 {
    use std::sync::OnceLock;
    static LEVEL: OnceLock<u8> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq");
        u8::from(avx2) + u8::from(avx2 && avx512)
    })
}

/// Independent partial sums per reduction: enough to fill two AVX-512 registers.
pub(crate) const LANES: usize = 16;

/// e^x for f32, within 2 ulp for normal results, 0 below -87.3, branch-free (Cephes' expf
/// polynomial).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
    let clamped = x.clamp(-87.336_54, 88.722_83);
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // ln 2 in two parts, so that the remainder is exact to f32.
    let r = (clamped - n * 0.693_359_4) + n * 2.121_944_4e-4;
    let p = ((((1.987_569_1e-4 * r + 1.398_199_9e-3) * r + 8.333_452e-3) * r + 4.166_579_6e-2) * r
        + 1.666_666_5e-1)
        * r
        + 0.5;
    let y = p * r * r + r + 1.0;
    // 2^n through the exponent field; n lies in [-126, 128] and 2^128 is reached in two steps.
    let ni = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let a = ni >> 1;
    let b = ni - a;
    let scale_a = f32::from_bits(((a + 127) as u32) << 23);
    let scale_b = f32::from_bits(((b + 127) as u32) << 23);
    let e = y * scale_a * scale_b;
    if x < -87.336_54 { 0.0 } else { e }
}

/// ln x for a normal positive f32, within 1e-7 of max(1, |ln x|), exactly 0 at 1, branch-free
/// (Cephes' logf polynomial).
#[inline(always)]
pub(crate) fn ln(x: f32) -> f32 {
    let bits = x.to_bits();
    let half = f32::from_bits((bits & 0x007f_ffff) | 0x3f00_0000); // in [1/2, 1)
    let small = half < std::f32::consts::FRAC_1_SQRT_2;
    let e = ((bits >> 23) as i32 - 126 - i32::from(small)) as f32;
    let m = if small { half + half - 1.0 } else { half - 1.0 };
    let square = m * m;
    let p = (((((((7.037_683_6e-2 * m - 1.151_461e-1) * m + 1.167_699_9e-1) * m
        - 1.242_014_1e-1)
        * m
        + 1.424_932_3e-1)
        * m
        - 1.666_805_8e-1)
        * m
        + 2.000_071_5e-1)
        * m
        - 2.499_999_4e-1)
        * m
        + 3.333_333e-1;
    // ln 2 in two parts, as above.
    let tail = p * m * square - 2.121_944_4e-4 * e - 0.5 * square;
    m + tail + 0.693_359_4 * e
}

/// tanh(x) = 1 - 2 / (e^2x + 1): absolute error below 2e-7 everywhere.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x.clamp(-20.0, 20.0)) + 1.0)
}

/// Adds up lanes pairwise, in a fixed order.
#[inline(always)]
pub(crate) fn sum_lanes(lanes: [f32; LANES]) -> f32 {
    let mut lanes = lanes;
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_and_saturates() {
        let mut worst = 0.0f64;
        for i in 0..=200_000 {
            let x = -87.0 + 175.0 * (i as f32) / 200_000.0;
            let exact = f64::from(x).exp();
            worst = worst.max(((f64::from(exp(x)) - exact) / exact).abs());
        }
        assert!(worst < 2.5e-7, "relative error {worst}");
        assert_eq!(exp(-1e4), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(1e4).is_finite());
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn ln_is_accurate() {
        for i in 0..200_000 {
            let x = 1.2e-38f32 * 1.000_9f32.powi(i % 98_000) * (1.0 + i as f32 * 1e-6);
            let exact = f64::from(x).ln();
            assert!(
                (f64::from(ln(x)) - exact).abs() <= 1.2e-7 * exact.abs().max(1.0),
                "at {x}: {} for {exact}",
                ln(x)
            );
        }
        assert_eq!(ln(1.0), 0.0);
    }

    #[test]
    fn tanh_is_accurate() {
        for i in -4000..=4000 {
            let x = i as f32 * 0.01;
            assert!((f64::from(tanh(x)) - f64::from(x).tanh()).abs() < 3e-7, "at {x}");
        }
    }
}
