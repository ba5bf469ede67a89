//! Sparse signals on a GPU: what a teacher's largest entries are, and what the student's gradient
//! needs of a few ids.

use super::{Block, Blocks, LogitsAt, ROWS, THREADS};
use crate::error::Result;
use crate::loss::Signal;
use crate::loss::head::sparse::{self, SparseRow};
use crate::loss::head::{Logits, Objective, RowStats};
use crate::ops::gpu::{Address, Grid, Module, contiguous, floats, launch, uninitialised, upload};
use candle_core::{DType, Tensor};

/// Ids of rows, and what the gradient needs of each.
pub(super) struct Uploaded {
    pub(super) starts: Tensor,
    pub(super) ids: Tensor,
    pub(super) g: Tensor,
    pub(super) rest: Tensor,
}

impl Uploaded {
    pub(super) fn new(rows: &[SparseRow], like: &Tensor) -> Result<Self> {
        let starts = starts(rows.iter().map(|row| row.ids().len()));
        let (ids, g): (Vec<u32>, Vec<f32>) = rows.iter().flat_map(SparseRow::ids).copied().unzip();
        let rest: Vec<f32> = rows.iter().flat_map(SparseRow::rest).collect();
        Ok(Self {
            starts: upload(&starts, like)?,
            ids: upload(&ids, like)?,
            g: upload(&g, like)?,
            rest: upload(&rest, like)?,
        })
    }
}

/// Where each stretch begins, and where the last one ends.
fn starts(lengths: impl Iterator<Item = usize>) -> Vec<u32> {
    let mut starts = vec![0];
    for length in lengths {
        starts.push(starts[starts.len() - 1] + length as u32);
    }
    starts
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Pick {
    out: Address,
    z: LogitsAt,
    starts: Address,
    ids: Address,
}

/// What a sparse signal says of a block's rows, of which the first is row `first` of the signal:
/// the few logits it names are brought to the host, where the formulas are.
pub(super) fn sparse_rows(
    z: &Block,
    signal: &Signal,
    stats: &[RowStats],
    first: usize,
    objective: Objective,
) -> Result<Vec<SparseRow>> {
    let ids: Vec<Vec<u32>> = (0..stats.len()).map(|i| signal.ids(first + i)).collect();
    let begin = starts(ids.iter().map(Vec::len));
    let flat: Vec<u32> = ids.concat();
    let out = uninitialised(flat.len(), DType::F32, &z.data)?;
    let (starts, flat) = (upload(&begin, &z.data)?, upload(&flat, &z.data)?);
    let args = Pick {
        out: floats(&out)?,
        z: z.at()?,
        starts: contiguous(&starts)?,
        ids: contiguous(&flat)?,
    };
    launch(&out, Module::Head, "head_pick", Grid::of(stats.len(), 128), args)?;
    let logits = out.to_vec1::<f32>()?;
    let row = |i: usize| &logits[begin[i] as usize..begin[i + 1] as usize];
    sparse::rows_of(signal, first, stats, objective, |i, place, _| row(i)[place])
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Top {
    ids: Address,
    logits: Address,
    t: LogitsAt,
    v: u32,
    k: u32,
}

/// Ids [N, k], ascending, and logits of the `k` largest of each row; of equal ones the lower ids.
pub(in crate::loss::head) fn largest(teacher: &Logits, k: usize) -> Result<(Vec<u32>, Vec<f32>)> {
    let n = teacher.rows();
    let (mut all_ids, mut all_logits) = (Vec::with_capacity(n * k), Vec::with_capacity(n * k));
    let blocks = Blocks::new(teacher, false)?;
    for start in (0..n).step_by(ROWS) {
        let count = ROWS.min(n - start);
        let t = blocks.block(start, count)?;
        let (ids, logits) = (
            uninitialised((count, k), DType::U32, &t.data)?,
            uninitialised((count, k), DType::F32, &t.data)?,
        );
        let args = Top {
            ids: contiguous(&ids)?,
            logits: floats(&logits)?,
            t: t.at()?,
            v: teacher.vocab() as u32,
            k: k as u32,
        };
        launch(&ids, Module::Head, "head_top", Grid::of(count, THREADS), args)?;
        all_ids.extend(ids.flatten_all()?.to_vec1::<u32>()?);
        all_logits.extend(logits.flatten_all()?.to_vec1::<f32>()?);
    }
    Ok((all_ids, all_logits))
}
