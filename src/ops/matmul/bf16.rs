//! Products of factors rounded to bf16, summed in f32, where the chip multiplies pairs of bf16
//! (AVX512-BF16).
//!
//! Both factors are copied into panels in which a lane holds two neighbouring steps of the inner
//! dimension; rounding (to nearest, ties to even; subnormals to 0) is part of the copy. The kernel
//! then holds an 8 x 48 tile of the result in registers (Goto and van de Geijn 2008). The order of
//! a sum depends on the inner dimension alone, so an element is the same bits whatever the other
//! rows and columns, the strides and the number of threads.

use super::{Mat, MatMut};
use crate::error::{Error, Result};

/// Proof that this chip multiplies bf16: the only way to ask for such a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bf16(());

impl Bf16 {
    /// A usage error where the chip lacks AVX512-BF16.
    pub fn detect() -> Result<Self> {
        Self::given(available())
    }

    fn given(available: bool) -> Result<Self> {
        if available {
            return Ok(Self(()));
        }
        Err(Error::usage(
            "machine.dtype = \"bf16\" needs an x86-64 chip with AVX512-BF16 (AMD Zen 4, Intel Cooper Lake or Sapphire Rapids, \
             and later), and this one has none; use machine.dtype = \"f32\"",
        ))
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn available() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) fn gemm(_: Bf16, dst: MatMut, add: bool, a: Mat<'_>, b: Mat<'_>) {
    super::cpu::gemm(dst, add, a, b, 1.0, true); // never reached: no Bf16 exists here
}

#[cfg(target_arch = "x86_64")]
use x86::available;
#[cfg(target_arch = "x86_64")]
pub(super) use x86::gemm;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Bf16, Mat, MatMut};
    use crate::ops::buffer::{Elements, SharedMut};
    use half::bf16;
    use rayon::prelude::*;
    use std::arch::x86_64::*;
    use std::cell::Cell;

    /// The kernel's tile: 8 rows of 3 registers of 16 columns; 24 sums, 3 columns and 1 row fill 28
    /// of 32 registers.
    const MR: usize = 8;
    const NV: usize = 3;
    const NR: usize = 16 * NV;
    /// Steps of the inner dimension per pass over the result: a panel of `NR` columns then fills 96
    /// KiB of L2.
    const DEPTH: usize = 1024;
    /// Panels per task: 128 rows (256 KiB) by 192 columns.
    const ROW_PANELS: usize = 16;
    const COL_PANELS: usize = 4;
    /// What is packed at a time, in panels and passes: at most 4,096 rows, 4,608 columns and 4,096
    /// steps, 68 MiB.
    const MOST_ROW_PANELS: usize = 512;
    const MOST_COL_PANELS: usize = 96;
    const MOST_PASSES: usize = 4;

    thread_local! {
        /// The last product's panels: memory to use again.
        static PANELS: Cell<(Vec<u32>, Vec<u32>)> = const { Cell::new((Vec::new(), Vec::new())) };
    }

    pub(super) fn available() -> bool {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bf16")
    }

    /// `dst = a · b`, plus the old `dst` if `add`, with both factors rounded to bf16.
    pub(in super::super) fn gemm(_: Bf16, dst: MatMut, add: bool, a: Mat<'_>, b: Mat<'_>) {
        let (m, k, n) = (a.rows, a.cols, b.cols);
        assert!(
            b.rows == k && dst.rows == m && dst.cols == n,
            "gemm of [{m}, {k}] and [{}, {n}]",
            b.rows
        );
        if m == 0 || n == 0 {
            return;
        }
        // Passes of equal, even length: only the last step of all can lack its partner.
        let passes = k.div_ceil(DEPTH).max(1);
        let depth = k.div_ceil(passes).next_multiple_of(2).max(2);
        let (rows, cols) = (Lanes::rows_of(a), Lanes::columns_of(b));
        let (row_panels, col_panels) = (m.div_ceil(MR), n.div_ceil(NR));
        // Taken, not borrowed: a thread that waits below may be lent to another product.
        let (mut packed_a, mut packed_b) = PANELS.take();
        for from_col in (0..col_panels).step_by(MOST_COL_PANELS) {
            let col_count = MOST_COL_PANELS.min(col_panels - from_col);
            for from in (0..k.max(1)).step_by(depth * MOST_PASSES) {
                let steps = (depth * MOST_PASSES).min(k - from);
                let right = Panels::pack::<NR>(
                    cols,
                    from_col,
                    col_count,
                    from,
                    steps,
                    depth,
                    &mut packed_b,
                );
                for from_row in (0..row_panels).step_by(MOST_ROW_PANELS) {
                    let row_count = MOST_ROW_PANELS.min(row_panels - from_row);
                    let left = Panels::pack::<MR>(
                        rows,
                        from_row,
                        row_count,
                        from,
                        steps,
                        depth,
                        &mut packed_a,
                    );
                    multiply(dst, add || from > 0, (left, from_row), (right, from_col));
                }
            }
        }
        PANELS.set((packed_a, packed_b));
    }

    /// A factor seen by the kernel: lanes (rows of the left, columns of the right factor) along the
    /// inner dimension.
    #[derive(Clone, Copy)]
    struct Lanes<'a> {
        data: Elements<'a>,
        count: usize,
        lane_stride: usize,
        step_stride: usize,
    }

    impl<'a> Lanes<'a> {
        fn rows_of(a: Mat<'a>) -> Self {
            Self {
                data: a.data,
                count: a.rows,
                lane_stride: a.row_stride,
                step_stride: a.col_stride,
            }
        }

        fn columns_of(b: Mat<'a>) -> Self {
            Self::rows_of(b.t())
        }
    }

    /// Packed lanes: per pass the panels one after another, per panel the pairs of steps, per pair
    /// `WIDTH` lanes.
    #[derive(Clone, Copy)]
    struct Panels<'a> {
        data: &'a [u32],
        count: usize,
        steps: usize,
        depth: usize,
    }

    impl<'a> Panels<'a> {
        fn pack<const WIDTH: usize>(
            lanes: Lanes<'_>,
            first: usize,
            count: usize,
            from: usize,
            steps: usize,
            depth: usize,
            memory: &'a mut Vec<u32>,
        ) -> Self {
            let pairs = steps.div_ceil(2);
            let len = count * WIDTH * pairs;
            if memory.len() < len {
                *memory = vec![0; len];
            }
            let out = SharedMut(memory.as_mut_ptr().cast());
            (0..count).into_par_iter().with_min_len(2).for_each(|panel| {
                let lane = (first + panel) * WIDTH;
                let here = WIDTH.min(lanes.count - lane);
                for pass in (0..steps).step_by(depth) {
                    let steps = depth.min(steps - pass);
                    let at = pass / 2 * count * WIDTH + panel * WIDTH * steps.div_ceil(2);
                    let start = lane * lanes.lane_stride + (from + pass) * lanes.step_stride;
                    // SAFETY: a `Bf16` exists, so the chip has the features. `start` is an element
                    // of the matrix (there is a lane and a step), whose strides its constructor
                    // checked; panels are disjoint and end at `len`.
                    unsafe {
                        let to = out.get().cast::<u32>().add(at);
                        let (lane, step) = (lanes.lane_stride, lanes.step_stride);
                        match lanes.data {
                            Elements::F32(data) => {
                                pack_panel::<WIDTH, f32>(
                                    to,
                                    data.as_ptr().add(start),
                                    here,
                                    lane,
                                    steps,
                                    step,
                                );
                            }
                            Elements::Bf16(data) => {
                                pack_panel::<WIDTH, bf16>(
                                    to,
                                    data.as_ptr().add(start),
                                    here,
                                    lane,
                                    steps,
                                    step,
                                );
                            }
                        }
                    }
                }
            });
            Self { data: &memory[..len], count, steps, depth }
        }

        /// Panel `i` of the pass that starts at step `pass`, and its pairs.
        fn panel<const WIDTH: usize>(&self, pass: usize, i: usize) -> (&'a [u32], usize) {
            let pairs = self.depth.min(self.steps - pass).div_ceil(2);
            (
                &self.data[pass / 2 * self.count * WIDTH + i * WIDTH * pairs..][..WIDTH * pairs],
                pairs,
            )
        }
    }

    /// Multiplies packed panels, of which the first are the given ones of the result.
    fn multiply(
        dst: MatMut,
        add: bool,
        (left, from_row): (Panels<'_>, usize),
        (right, from_col): (Panels<'_>, usize),
    ) {
        let (down, across) = (left.count.div_ceil(ROW_PANELS), right.count.div_ceil(COL_PANELS));
        (0..down * across).into_par_iter().with_max_len(1).for_each(|task| {
            let (top, side) = (task % down * ROW_PANELS, task / down * COL_PANELS);
            // One pass at least: a product over nothing is zero, and `dst` may hold anything.
            for pass in (0..left.steps.max(1)).step_by(left.depth) {
                for j in side..right.count.min(side + COL_PANELS) {
                    let (b, pairs) = right.panel::<NR>(pass, j);
                    for i in top..left.count.min(top + ROW_PANELS) {
                        let (a, _) = left.panel::<MR>(pass, i);
                        let (row, col) = ((from_row + i) * MR, (from_col + j) * NR);
                        // SAFETY: a `Bf16` exists, so the chip has the features; `a` and `b` hold
                        // `pairs` pairs; the tile lies in `dst`, and no other task has it.
                        unsafe {
                            let tile = Tile {
                                data: dst
                                    .data
                                    .get()
                                    .add(row * dst.row_stride + col * dst.col_stride),
                                row_stride: dst.row_stride,
                                col_stride: dst.col_stride,
                                rows: MR.min(dst.rows - row),
                                cols: NR.min(dst.cols - col),
                                add: add || pass > 0,
                            };
                            kernel(pairs, a.as_ptr(), b.as_ptr(), tile);
                        }
                    }
                }
            }
        });
    }

    /// Where the kernel's result goes: `rows` x `cols` of it.
    struct Tile {
        data: *mut f32,
        row_stride: usize,
        col_stride: usize,
        rows: usize,
        cols: usize,
        add: bool,
    }

    /// # Safety
    /// The chip has the features, `a` holds `pairs * MR` and `b` `pairs * NR` elements, the tile is
    /// valid and exclusive.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn kernel(pairs: usize, a: *const u32, b: *const u32, tile: Tile) {
        let mut sums = [[_mm512_setzero_ps(); NV]; MR];
        if tile.col_stride == 1 {
            for i in 0..MR {
                for v in 0..NV {
                    // A prefetch of any address is harmless.
                    _mm_prefetch::<_MM_HINT_T0>(
                        tile.data.wrapping_add(i * tile.row_stride + 16 * v).cast(),
                    );
                }
            }
        }
        for pair in 0..pairs {
            // SAFETY: the contract gives the lengths; the types are 64 bytes of any content.
            unsafe {
                let b: [__m512bh; NV] = std::array::from_fn(|v| {
                    b.add(pair * NR + 16 * v).cast::<__m512bh>().read_unaligned()
                });
                for (i, sums) in sums.iter_mut().enumerate() {
                    let a: __m512bh = std::mem::transmute(_mm512_set1_epi32(
                        a.add(pair * MR + i).cast::<i32>().read(),
                    ));
                    for (sum, b) in sums.iter_mut().zip(b) {
                        *sum = _mm512_dpbf16_ps(*sum, a, b);
                    }
                }
            }
        }
        for (i, sums) in sums.iter().enumerate().take(tile.rows) {
            let row = tile.data.wrapping_add(i * tile.row_stride);
            // SAFETY: masks and bounds keep within the tile's rows and columns.
            unsafe {
                if tile.col_stride == 1 {
                    for (v, &sum) in sums.iter().enumerate() {
                        let (mask, at) =
                            (first(tile.cols.saturating_sub(16 * v)), row.wrapping_add(16 * v));
                        let old = if tile.add {
                            _mm512_maskz_loadu_ps(mask, at)
                        } else {
                            _mm512_setzero_ps()
                        };
                        _mm512_mask_storeu_ps(at, mask, _mm512_add_ps(old, sum));
                    }
                } else {
                    let sums: [f32; NR] = std::mem::transmute(*sums);
                    for (j, sum) in sums.iter().enumerate().take(tile.cols) {
                        let at = row.add(j * tile.col_stride);
                        *at = if tile.add { *at + sum } else { 0.0 + sum };
                    }
                }
            }
        }
    }

    /// The first `n` of 16 lanes.
    fn first(n: usize) -> __mmask16 {
        if n < 16 { (1 << n) - 1 } else { !0 }
    }

    /// Rounds to bf16: `low` in the lower, `high` in the upper half.
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn round(high: __m512, low: __m512) -> __m512i {
        // SAFETY: both are 64 bytes of any content.
        unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(high, low)) }
    }

    /// A number as a factor's memory has it.
    trait Stored: Copy + Into<f32> {
        /// The numbers from `at` on whose bit is set; 0 for the others.
        ///
        /// # Safety
        /// The chip has the features, and those numbers can be read.
        unsafe fn load(mask: __mmask16, at: *const Self) -> __m512;
    }

    impl Stored for f32 {
        #[target_feature(enable = "avx512f")]
        unsafe fn load(mask: __mmask16, at: *const Self) -> __m512 {
            // SAFETY: the contract is the caller's.
            unsafe { _mm512_maskz_loadu_ps(mask, at) }
        }
    }

    impl Stored for bf16 {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
        unsafe fn load(mask: __mmask16, at: *const Self) -> __m512 {
            // SAFETY: the contract is the caller's.
            let bits = unsafe { _mm256_maskz_loadu_epi16(mask, at.cast()) };
            _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))
        }
    }

    /// Writes `to[pair * WIDTH + lane] = (step 2 pair, step 2 pair + 1)` for all `WIDTH` lanes;
    /// what is missing is 0.
    ///
    /// # Safety
    /// The chip has the features; `lanes` (at most `WIDTH`) and `steps` lie in `from`, `WIDTH`
    /// lanes of pairs in `to`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn pack_panel<const WIDTH: usize, T: Stored>(
        to: *mut u32,
        from: *const T,
        lanes: usize,
        lane_stride: usize,
        steps: usize,
        step_stride: usize,
    ) {
        for start in (0..WIDTH).step_by(16) {
            let (here, write) = (lanes.saturating_sub(start).min(16), first(WIDTH - start));
            // SAFETY (of the three): masks and bounds keep to the contract; other addresses are
            // formed, never read.
            if lane_stride == 1 {
                let mut order = [0; 32];
                (0..16).for_each(|i| (order[2 * i], order[2 * i + 1]) = (i as u16, 16 + i as u16));
                let order: __m512i = unsafe { std::mem::transmute(order) };
                for step in (0..steps).step_by(2) {
                    let at = |step: usize| from.wrapping_add(start + step * step_stride);
                    let next = if step + 1 < steps { first(here) } else { 0 };
                    unsafe {
                        let (even, odd) =
                            (T::load(first(here), at(step)), T::load(next, at(step + 1)));
                        let pairs = _mm512_permutexvar_epi16(order, round(odd, even));
                        _mm512_mask_storeu_epi32(
                            to.add(step / 2 * WIDTH).wrapping_add(start).cast(),
                            write,
                            pairs,
                        );
                    }
                }
            } else if step_stride == 1 {
                for step in (0..steps).step_by(32) {
                    let rest = steps - step;
                    let mut pairs = [_mm512_setzero_si512(); 16];
                    for (i, pairs) in pairs.iter_mut().enumerate().take(here) {
                        let at = from.wrapping_add((start + i) * lane_stride + step);
                        let (low, high) = (first(rest), first(rest.saturating_sub(16)));
                        *pairs =
                            unsafe { round(T::load(high, at.wrapping_add(16)), T::load(low, at)) };
                    }
                    for (i, pairs) in
                        transpose(pairs).into_iter().enumerate().take(rest.div_ceil(2))
                    {
                        let at = to.wrapping_add((step / 2 + i) * WIDTH + start);
                        unsafe { _mm512_mask_storeu_epi32(at.cast(), write, pairs) };
                    }
                }
            } else {
                for step in (0..steps).step_by(2) {
                    let (mut even, mut odd) = ([0.0; 16], [0.0; 16]);
                    for i in 0..here {
                        let at = from.wrapping_add((start + i) * lane_stride + step * step_stride);
                        unsafe {
                            even[i] = (*at).into();
                            odd[i] =
                                if step + 1 < steps { (*at.add(step_stride)).into() } else { 0.0 };
                        }
                    }
                    unsafe {
                        let both =
                            round(_mm512_loadu_ps(odd.as_ptr()), _mm512_loadu_ps(even.as_ptr()));
                        let [even, odd]: [[u16; 16]; 2] = std::mem::transmute(both);
                        for (i, (even, odd)) in
                            even.into_iter().zip(odd).enumerate().take(WIDTH - start)
                        {
                            *to.add(step / 2 * WIDTH + start + i) =
                                u32::from(even) | u32::from(odd) << 16;
                        }
                    }
                }
            }
        }
    }

    /// Rows to columns of a 16 x 16 matrix of 32-bit elements.
    #[target_feature(enable = "avx512f")]
    fn transpose(r: [__m512i; 16]) -> [__m512i; 16] {
        let mut a = r;
        for i in (0..16).step_by(2) {
            a[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
            a[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
        }
        // b[4 g + c]: the 128-bit lane l holds column 4 l + c of rows 4 g to 4 g + 3.
        let mut b = a;
        for g in (0..16).step_by(4) {
            b[g] = _mm512_unpacklo_epi64(a[g], a[g + 2]);
            b[g + 1] = _mm512_unpackhi_epi64(a[g], a[g + 2]);
            b[g + 2] = _mm512_unpacklo_epi64(a[g + 1], a[g + 3]);
            b[g + 3] = _mm512_unpackhi_epi64(a[g + 1], a[g + 3]);
        }
        let mut out = b;
        for c in 0..4 {
            let even = [0, 8].map(|g| _mm512_shuffle_i32x4::<0x88>(b[g + c], b[g + 4 + c])); // lanes 0 and 2 of each
            let odd = [0, 8].map(|g| _mm512_shuffle_i32x4::<0xdd>(b[g + c], b[g + 4 + c])); // lanes 1 and 3
            out[c] = _mm512_shuffle_i32x4::<0x88>(even[0], even[1]);
            out[4 + c] = _mm512_shuffle_i32x4::<0x88>(odd[0], odd[1]);
            out[8 + c] = _mm512_shuffle_i32x4::<0xdd>(even[0], even[1]);
            out[12 + c] = _mm512_shuffle_i32x4::<0xdd>(odd[0], odd[1]);
        }
        out
    }
}

#[cfg(test)]
mod tests;
