//! What a plan takes of memory and disk, from shapes alone, and the machine half that follows from
//! it.

use super::{Route, StepFacts};
use crate::config::largest_divisor;
use crate::config::{Activations, DeviceSpec, Dtype, HeadMode, MicroRows};
use crate::config::{CheckpointPlan, Plan};
use crate::loss::head;
use crate::model::parts::Residual;
use crate::model::{Gpt2Config, ParamKind};
use crate::ops::gpu;
use crate::world::AT_ONCE;
use serde::Serialize;

/// How large a micro-batch may grow, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// `head = "auto"` keeps the logits of a micro-batch up to so many.
    pub kept_logits: u64,
    /// `micro_rows = "auto"` lets activations and kept logits of a micro-batch grow to so many.
    pub micro_batch: u64,
}

impl Budget {
    /// A CPU has no use for more; a GPU works best on tens of thousands of positions at a time.
    pub fn of(device: DeviceSpec) -> Self {
        match device {
            DeviceSpec::Cuda(_) => Self { kept_logits: 4 << 30, micro_batch: 16 << 30 },
            DeviceSpec::Cpu | DeviceSpec::Auto => {
                Self { kept_logits: 512 << 20, micro_batch: 1 << 30 }
            }
        }
    }
}

/// Bytes of an f32.
const F32: u64 = 4;

/// What the program holds beside a run: buffers of its threads and of matrix products, what its
/// allocator has not given back. Fitted to the runs of the record
/// `benches/records/2026-11-26-cpu.md`.
const PROGRAM: u64 = 20_000_000;

/// Input, target and whether it counts.
const BYTES_OF_TOKEN: u64 = 9;

/// Bytes of device or host memory at the peak, by part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct MemoryByPart {
    /// Student parameters.
    pub weights: u64,
    /// Their gradients, accumulated over the micro-batches.
    pub gradients: u64,
    /// AdamW's two moments.
    pub moments: u64,
    /// The tape of one micro-batch.
    pub activations: u64,
    /// Logits of one micro-batch, student's and teacher's, or of the rows or columns in hand; and
    /// as much of their gradient.
    pub logits: u64,
    /// Teacher parameters and the activations of one of its blocks; no tape.
    pub teacher: u64,
    /// What one block's backward forms beside its tape, as far as it does not fit where the logits
    /// were.
    pub scratch: u64,
    /// The tokens of two optimizer steps: one at work, one read ahead.
    pub batch: u64,
    /// Numbers on their way between processes.
    pub on_the_way: u64,
    /// The program itself, without a run.
    pub program: u64,
}

impl MemoryByPart {
    /// The sum.
    pub fn total(&self) -> u64 {
        let run = self.weights
            + self.gradients
            + self.moments
            + self.activations
            + self.logits
            + self.teacher;
        run + self.scratch + self.batch + self.on_the_way + self.program
    }
}

/// Memory of a settled plan ([`settle`]), on one process.
pub fn memory(student: &Gpt2Config, teacher: Option<&Gpt2Config>, plan: &Plan) -> MemoryByPart {
    memory_among(student, teacher, plan, 1)
}

/// Memory of one of so many processes. A sum of gradients waits for each doubling of its groups
/// ([`Plan::groups`]). Moments are divided evenly, by pieces.
pub fn memory_among(
    student: &Gpt2Config,
    teacher: Option<&Gpt2Config>,
    plan: &Plan,
    processes: usize,
) -> MemoryByPart {
    let groups = plan.groups(processes) / processes;
    let sums = 1 + u64::from(groups.max(1).next_power_of_two().ilog2());
    let processes = processes as u64;
    let micro = match plan.machine.micro_rows {
        MicroRows::Rows(n) => n,
        MicroRows::Auto => plan.data.rows,
    } as u64;
    let tokens = micro * plan.data.context as u64;
    let parameters = student.parameters() as u64;
    let owned = parameters.div_ceil(processes);
    let logits = head_bytes(student, plan, micro);
    // The widest moment: gradients of the MLP's two sides and its activation (3 F), of the
    // residual, the norm's input and output, and of what comes from above (4 D). The head is done
    // by then.
    let (wide, inner) = (student.mlp_width() as u64, student.inner() as u64);
    let scratch = F32 * tokens * (4 * student.n_embd as u64 + 2 * wide + inner);
    MemoryByPart {
        weights: F32 * parameters,
        gradients: F32 * parameters * sums,
        moments: 2 * F32 * owned,
        activations: tape_bytes(student, plan, tokens),
        logits,
        teacher: teacher.filter(|_| plan.uses_teacher()).map_or(0, |t| {
            let (d, f) = (t.n_embd as u64, t.mlp_width() as u64);
            let heads = (t.query_width() + 2 * t.kv_width()) as u64;
            teacher_weights(t, plan.machine.teacher_dtype) + F32 * tokens * (2 * d + heads.max(f))
        }),
        scratch: scratch.saturating_sub(logits),
        batch: 2 * BYTES_OF_TOKEN * plan.tokens_per_step().div_ceil(processes),
        on_the_way: match processes {
            1 => 0,
            // The all-gather of new parameters, packed on both sides; what arrives of gradients is less, and
            // gone by then.
            n if linked(plan) => F32 * owned * (n + 1),
            n => 2 * F32 * n * AT_ONCE as u64,
        },
        program: PROGRAM,
    }
}

/// Whether processes hand their gradients over from GPU to GPU.
fn linked(plan: &Plan) -> bool {
    let on_a_gpu = match plan.machine.device {
        DeviceSpec::Cpu => false,
        DeviceSpec::Cuda(_) => true,
        DeviceSpec::Auto => gpu::count() > 0,
    };
    cfg!(feature = "nccl") && on_a_gpu
}

/// Bytes of a teacher's parameters, of which embedding and matrices are stored in a format of their
/// own.
fn teacher_weights(teacher: &Gpt2Config, stored: Dtype) -> u64 {
    let factors = teacher.elements(ParamKind::is_factor) as u64;
    let width = match stored {
        Dtype::F32 => F32,
        Dtype::Bf16 => 2,
    };
    F32 * (teacher.parameters() as u64 - factors) + width * factors
}

/// Bytes that the trunk's tape takes for so many tokens: in each block the input (D), the
/// statistics of both norms, queries, keys and values (3 D), the attention's output (D), the middle
/// of the block (D) and the MLP before its GELU (F); then the last residual and its norm (2 D and
/// statistics). With recomputed activations each block's input, and all of one block.
pub fn tape_bytes(cfg: &Gpt2Config, plan: &Plan, tokens: u64) -> u64 {
    let (layers, d, f) = (cfg.n_layer as u64, cfg.n_embd as u64, cfg.mlp_width() as u64);
    let (q, kv) = (cfg.query_width() as u64, 2 * cfg.kv_width() as u64);
    let normed = if cfg.qk_norm_widths().is_some() { q + kv / 2 } else { 0 };
    // Inputs of norms that come after attention and MLP.
    let after = if cfg.parts.residual == Residual::PostNorm { 2 * d } else { 0 };
    let block = 2 * d + 2 * q + kv + normed + after + f + 4;
    let blocks = match plan.machine.activations {
        Activations::Keep => layers * block,
        Activations::Recompute => layers * d + block,
    };
    F32 * tokens * (blocks + 2 * d + 2)
}

/// Bytes on disk of one checkpoint without its tokenizer: weights and two moments.
pub fn checkpoint_bytes(student: &Gpt2Config) -> u64 {
    3 * F32 * student.parameters() as u64
}

/// What a run has on disk when it has most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskAtPeak {
    /// All of it.
    pub bytes: u64,
    /// Checkpoints, the one that is being written included.
    pub checkpoints: u64,
    /// Whether the exported model is among it; else it comes after an old checkpoint went, and
    /// takes less.
    pub with_model: bool,
}

/// What a new run of `plan` has on disk at its peak, `beside` being the bytes of the tokenizer's
/// files that lie in each checkpoint and in the exported model. An old checkpoint goes only after
/// the new one stands.
pub fn disk_at_peak(student: &Gpt2Config, plan: &Plan, beside: u64) -> DiskAtPeak {
    let CheckpointPlan { every, .. } = plan.checkpoint;
    // Those on the way, and the one at the end.
    let written = 1 + (plan.steps - 1).checked_div(every).unwrap_or(0);
    let kept = plan.checkpoint.kept() as u64;
    let one = checkpoint_bytes(student) + beside;
    if written > kept {
        let checkpoints = kept + 1;
        return DiskAtPeak { bytes: checkpoints * one, checkpoints, with_model: false };
    }
    DiskAtPeak {
        bytes: written * one + model_bytes(student) + beside,
        checkpoints: written,
        with_model: true,
    }
}

/// Bytes on disk of the exported model without its tokenizer.
fn model_bytes(student: &Gpt2Config) -> u64 {
    F32 * student.parameters() as u64
}

/// The plan with `machine.micro_rows` and `machine.head` decided. A function of the shapes and the
/// plan alone, never of the machine it runs on, so that it is the same everywhere; `device =
/// "auto"` counts as a CPU.
///
/// Both follow from the device's [`Budget`]. `head = "auto"` keeps logits up to `kept_logits`.
/// `micro_rows = "auto"` is the largest divisor of a group's sequences (`machine.groups`; else all of
/// `data.rows`) whose tape and kept logits fit
/// `micro_batch` with the head kept if any does, since keeping saves work; else recomputed; else 1.
pub fn settle(student: &Gpt2Config, plan: &Plan) -> Plan {
    // A micro-batch lies within a group of sequences.
    let rows = (plan.data.rows / plan.groups(1)).max(1);
    let budget = Budget::of(plan.machine.device);
    let fits_kept = |micro: usize| logit_bytes(student, plan, micro as u64) <= budget.kept_logits;
    let mut settled = plan.clone();
    let micro = match plan.machine.micro_rows {
        MicroRows::Rows(n) if plan.micro_rows_matter() => n,
        MicroRows::Rows(n) => largest_divisor(rows, n.min(rows)),
        MicroRows::Auto => {
            let bytes = |micro: usize, kept: bool| {
                let tape = tape_bytes(student, plan, (micro * plan.data.context) as u64);
                tape + if kept { logit_bytes(student, plan, micro as u64) } else { 0 }
            };
            let largest = |kept: bool| {
                let per_row = bytes(1, kept).max(1);
                let mut most = ((budget.micro_batch / per_row) as usize).min(rows);
                if kept && plan.machine.head == HeadMode::Auto {
                    let per_row = logit_bytes(student, plan, 1).max(1);
                    most = most.min((budget.kept_logits / per_row) as usize);
                }
                (most > 0).then(|| largest_divisor(rows, most))
            };
            let kept = if plan.machine.head == HeadMode::Recompute { None } else { largest(true) };
            let recomputed =
                || if plan.machine.head == HeadMode::Keep { None } else { largest(false) };
            kept.or_else(recomputed).unwrap_or(1)
        }
    };
    settled.machine.micro_rows = MicroRows::Rows(micro);
    if plan.machine.head == HeadMode::Auto {
        settled.machine.head = if fits_kept(micro) { HeadMode::Keep } else { HeadMode::Recompute };
    }
    settled
}

/// Whether some step scans logits first and reads them again, so that they may be stored in
/// between.
pub fn stores_logits(plan: &Plan) -> bool {
    (plan.selects() && plan.select.alpha > 0.0) || !usually_one_pass(plan, false)
}

/// Bytes that the logits of `micro` sequences take where they are stored: the student's, and the
/// teacher's, whose kept rows are nearly all rows at the start of a ramp. A micro-batch is sized by
/// them even where blocks of rows are all there is.
pub(super) fn logit_bytes(student: &Gpt2Config, plan: &Plan, micro: u64) -> u64 {
    logit_sets(plan) * columns(plan, micro, student.vocab_size)
}

/// Bytes of what the head holds at a time: stored logits or tiles of them, and a tile of gradient;
/// or a block of rows, whose gradient takes their place.
fn head_bytes(student: &Gpt2Config, plan: &Plan, micro: u64) -> u64 {
    let tile = columns(plan, micro, student.vocab_size.min(head::TILE));
    let rows = (micro * plan.data.context as u64).min(head::BLOCK_ROWS as u64);
    let block = logit_sets(plan) * F32 * rows * student.vocab_size as u64;
    let in_one_pass =
        if usually_one_pass(plan, false) || usually_one_pass(plan, true) { block } else { 0 };
    let in_two = match plan.machine.head {
        _ if !stores_logits(plan) => 0,
        HeadMode::Recompute => (logit_sets(plan) + 1) * tile,
        HeadMode::Keep | HeadMode::Auto => logit_bytes(student, plan, micro) + tile,
    };
    // A sparse signal is made block by block, before the student's logits are formed.
    let reduced = if plan.uses_teacher() && !plan.objective.is_dense() { block } else { 0 };
    in_one_pass.max(in_two).max(reduced)
}

fn usually_one_pass(plan: &Plan, selects: bool) -> bool {
    Route::of(plan, StepFacts::usual(plan, selects)).one_pass
}

/// Models whose logits are there at a time: a sparse signal is made of the teacher's beforehand.
fn logit_sets(plan: &Plan) -> u64 {
    1 + u64::from(plan.uses_teacher() && plan.objective.is_dense())
}

/// Bytes of so many floats for every position of `micro` sequences.
fn columns(plan: &Plan, micro: u64, columns: usize) -> u64 {
    F32 * micro * plan.data.context as u64 * columns as u64
}
