use super::*;

/// Uniform in [-1, 1), from a linear congruence.
fn random(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// To nearest, ties to even, on the bits: what the chip has to do.
fn rounded(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}

const SHAPES: [(usize, usize, usize); 12] = [
    (1, 1, 1),
    (3, 5, 7),
    (8, 2, 48),
    (64, 33, 17),
    (1, 40, 9),
    (130, 71, 200),
    (29, 2051, 50),
    (5, 4101, 3),
    (4100, 3, 5),
    (3, 3, 4700),
    (4, 0, 3),
    (0, 3, 2),
];

/// Strides of an `[m, k]` matrix by rows, by columns, and with gaps in both directions.
fn strides(m: usize, k: usize) -> [(usize, usize); 3] {
    [(k, 1), (1, m), (2 * k, 2)]
}

#[test]
fn products_are_those_of_rounded_factors() {
    let Ok(bf16) = Bf16::detect() else { return };
    for (m, k, n) in SHAPES {
        let (a, b) = (random(2 * m * k, 1), random(2 * k * n, 2));
        for ((ar, ac), (br, bc)) in
            strides(m, k).into_iter().flat_map(|a| strides(k, n).map(|b| (a, b)))
        {
            for (add, (cr, cc)) in [(false, (n + 2, 1)), (true, (n + 2, 1)), (true, (1, m + 1))] {
                let before = random((m + 1) * (n + 2), 3);
                let mut out = before.clone();
                let mut dst = MatMut::new(&mut out, m, n, n);
                (dst.row_stride, dst.col_stride) = (cr, cc);
                gemm(bf16, dst, add, Mat::new(&a, m, k, ar, ac), Mat::new(&b, k, n, br, bc));
                let mut want: Vec<f64> = before.iter().map(|&x| f64::from(x)).collect();
                let (mut error, mut exact_error) = (vec![0.0; want.len()], vec![0.0; want.len()]);
                let mut exact = want.clone();
                for i in 0..m {
                    for j in 0..n {
                        let at = i * cr + j * cc;
                        let start = if add { want[at] } else { 0.0 };
                        (want[at], exact[at]) = (start, start);
                        let mut size = start.abs();
                        for l in 0..k {
                            let (x, y) = (a[i * ar + l * ac], b[l * br + j * bc]);
                            want[at] += f64::from(rounded(x)) * f64::from(rounded(y));
                            exact[at] += f64::from(x) * f64::from(y);
                            size += f64::from((x * y).abs());
                        }
                        // f32 sums of k terms: each addition errs by half an ulp, 2^-24, of a
                        // partial sum.
                        error[at] = (k + 2) as f64 * 2f64.powi(-24) * size * 1.01;
                        // Each rounded factor errs by up to 2^-8 of itself: half the last of 8
                        // bits.
                        exact_error[at] = error[at] + (2f64.powi(-7) + 2f64.powi(-16)) * size;
                    }
                }
                for (i, &found) in out.iter().enumerate() {
                    let found = f64::from(found);
                    let place = format!(
                        "[{m}, {k}, {n}] {:?} at {i}: {found}",
                        (ar, ac, br, bc, cr, cc, add)
                    );
                    assert!((found - want[i]).abs() <= error[i], "{place} for {}", want[i]);
                    assert!(
                        (found - exact[i]).abs() <= exact_error[i],
                        "{place} for {} unrounded",
                        exact[i]
                    );
                }
            }
        }
    }
}

#[test]
fn rounding_is_to_nearest_and_ties_to_even() {
    let Ok(bf16) = Bf16::detect() else { return };
    let ulp = 2f32.powi(-7);
    let cases = [
        (1.0, 1.0),
        (1.0 + 0.5 * ulp, 1.0), // a tie goes to the even neighbour below
        (1.0 + 1.5 * ulp, 1.0 + 2.0 * ulp), // and above
        (1.0 + 0.51 * ulp, 1.0 + ulp),
        (-1.0 - 0.49 * ulp, -1.0),
        (f32::MAX, f32::INFINITY),
        (f32::NEG_INFINITY, f32::NEG_INFINITY),
    ];
    for (x, want) in cases {
        let mut out = [0.0];
        gemm(
            bf16,
            MatMut::new(&mut out, 1, 1, 1),
            false,
            Mat::row_major(&[x], 1, 1),
            Mat::row_major(&[1.0], 1, 1),
        );
        assert_eq!(out[0], want, "for {x}");
    }
    let mut out = [0.0];
    gemm(
        bf16,
        MatMut::new(&mut out, 1, 1, 1),
        false,
        Mat::row_major(&[f32::NAN], 1, 1),
        Mat::row_major(&[1.0], 1, 1),
    );
    assert!(out[0].is_nan());
}

#[test]
fn neither_threads_nor_other_rows_change_a_bit() {
    let Ok(bf16) = Bf16::detect() else { return };
    let (m, k, n) = (300, 1031, 410);
    let (a, b) = (random(m * k, 1), random(k * n, 2));
    let run = |threads, rows: std::ops::Range<usize>| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut out = vec![f32::NAN; rows.len() * n];
        let a = Mat::row_major(&a[rows.start * k..rows.end * k], rows.len(), k);
        let dst = MatMut::new(&mut out, rows.len(), n, n);
        pool.install(|| gemm(bf16, dst, false, a, Mat::row_major(&b, k, n)));
        out
    };
    let one = run(1, 0..m);
    assert!(one == run(2, 0..m) && one == run(3, 0..m) && one == run(7, 0..m));
    assert!(one[13 * n..40 * n] == run(2, 13..40));
}

#[test]
fn a_chip_without_bf16_is_told_what_to_use() {
    let message = Bf16::given(false).unwrap_err().to_string();
    for part in ["machine.dtype = \"bf16\"", "AVX512-BF16", "use machine.dtype = \"f32\""] {
        assert!(message.contains(part), "no {part} in: {message}");
    }
}
