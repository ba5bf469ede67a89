//! Matrices as a product reads and writes them: views of slices with strides.

use crate::ops::buffer::{Elements, SharedMut};

/// A read-only matrix in someone else's memory.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a> {
    pub(super) data: Elements<'a>,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
}

impl<'a> Mat<'a> {
    /// Element (i, j) lies at `i * row_stride + j * col_stride`. Panics if the last element lies
    /// outside `data`.
    pub(crate) fn new(
        data: &'a [f32],
        rows: usize,
        cols: usize,
        row_stride: usize,
        col_stride: usize,
    ) -> Self {
        Self::stored(Elements::F32(data), rows, cols, row_stride, col_stride)
    }

    /// As [`Mat::new`], of elements that may be bf16.
    pub(crate) fn stored(
        data: Elements<'a>,
        rows: usize,
        cols: usize,
        row_stride: usize,
        col_stride: usize,
    ) -> Self {
        assert!(
            rows == 0
                || cols == 0
                || (rows - 1) * row_stride + (cols - 1) * col_stride < data.len()
        );
        Self { data, rows, cols, row_stride, col_stride }
    }

    pub(crate) fn row_major(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::new(data, rows, cols, cols, 1)
    }

    pub(crate) fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// Its f32 elements. Panics on others: a caller's bug, since only the right factor of
    /// [`multiply`] may be narrower.
    pub(super) fn floats(self) -> &'a [f32] {
        match self.data {
            Elements::F32(data) => data,
            Elements::Bf16(_) => panic!("a factor that must be f32 is bf16"),
        }
    }
}

/// A matrix to write: a pointer, because parallel tasks write disjoint parts of one buffer.
#[derive(Clone, Copy)]
pub(crate) struct MatMut {
    pub(super) data: SharedMut,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
}

impl MatMut {
    pub(crate) fn new(data: &mut [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(rows == 0 || cols == 0 || (rows - 1) * row_stride + cols <= data.len());
        Self { data: SharedMut(data.as_mut_ptr()), rows, cols, row_stride, col_stride: 1 }
    }

    /// # Safety
    /// Elements `i * row_stride + j` of `data` are valid for writes and no other task touches them
    /// meanwhile.
    pub(crate) unsafe fn from_raw(
        data: *mut f32,
        rows: usize,
        cols: usize,
        row_stride: usize,
    ) -> Self {
        Self { data: SharedMut(data), rows, cols, row_stride, col_stride: 1 }
    }
}
