//! What a plan costs, from shapes alone: floating-point operations, memory, disk.
//!
//! A multiply-add is 2 FLOPs. Matrix products and attention are counted; element-wise work (norms,
//! GELU, softmax, the optimizer) is not. Attention is causal: position t meets t + 1 keys. The
//! building blocks take numbers of rows, so the trainer counts what it executed with the same
//! functions that `plan` predicts with.

mod fit;
mod memory;
mod route;

pub use fit::{check_fit, check_memory};
pub use memory::{
    Budget, DiskAtPeak, MemoryByPart, checkpoint_bytes, disk_at_peak, memory, memory_among, settle,
    stores_logits, tape_bytes,
};
pub use route::{Route, StepFacts, TeacherRows, forward_kl};

use crate::config::{Activations, BackwardMode, HeadMode, MicroRows, Pool, Rho};
use crate::config::{Level, Plan};
use crate::model::parts::Residual;
use crate::model::{Gpt2Config, ParamKind};
use crate::select::{kept_of, probe_rows};
use route::sums_first;
use serde::{Deserialize, Serialize};
use std::ops::{AddAssign, Range};

/// FLOPs of the trunk's forward pass over `sequences` of `context` tokens.
pub fn trunk_forward(cfg: &Gpt2Config, sequences: u64, context: u64) -> u64 {
    blocks_forward(cfg, cfg.n_layer as u64, sequences, context)
}

/// FLOPs of the forward pass of the first `layers` blocks.
pub fn blocks_forward(cfg: &Gpt2Config, layers: u64, sequences: u64, context: u64) -> u64 {
    let tokens = sequences * context;
    let matrices = 2 * tokens * block_weights(cfg);
    // Scores and weighted values: two products, each Q multiply-adds for every (position, key)
    // pair.
    let pairs: u64 = (0..layers as usize).map(|l| pairs(cfg, l, context)).sum();
    layers * matrices + 2 * 2 * cfg.query_width() as u64 * sequences * pairs
}

/// FLOPs of running every block once more for the backward: all but its last product, which only
/// its output needs, unless a norm comes after it.
pub fn trunk_again(cfg: &Gpt2Config, sequences: u64, context: u64) -> u64 {
    let needed = cfg.parts.residual == Residual::PostNorm;
    let last = if needed { 0 } else { 2 * sequences * context * (cfg.n_embd * cfg.inner()) as u64 };
    trunk_forward(cfg, sequences, context) - cfg.n_layer as u64 * last
}

/// FLOPs of the trunk's exact backward pass when the loss reaches `kept_rows` of the `sequences x
/// context` positions.
///
/// Every block below the last is dense: two products per matrix of the forward (gradients of input
/// and of weight), and five in attention (scores again, since the tape keeps no probabilities; then
/// dV, dP, dQ, dK). In the last block only keys and values see every row; queries, output
/// projection and MLP see the kept rows, and attention runs for kept queries over `(context + 1) /
/// 2` keys, the mean over positions; over fewer within a window.
pub fn trunk_backward_exact(cfg: &Gpt2Config, sequences: u64, context: u64, kept_rows: u64) -> u64 {
    let (layers, tokens) = (cfg.n_layer as u64, sequences * context);
    trunk_backward_sampled(cfg, context, (layers - 1) * tokens + kept_rows, layers * tokens)
}

/// FLOPs of the trunk's backward pass with gradient in every row.
pub fn trunk_backward_dense(cfg: &Gpt2Config, sequences: u64, context: u64) -> u64 {
    trunk_backward_exact(cfg, sequences, context, sequences * context)
}

/// FLOPs of the trunk's backward pass when only `rows` of the positions carry gradient, in every
/// block: all products have that many rows. In attention, scores, dP and dQ meet all visible keys,
/// dK and dV only those of these rows, taken to be spread evenly over the sequences.
pub fn trunk_backward_sparse(cfg: &Gpt2Config, sequences: u64, context: u64, rows: u64) -> u64 {
    let q = cfg.query_width() as u64;
    let attention = |l: usize| {
        let keys = twice_mean_keys(cfg, l..l + 1, context, rows);
        // Of these keys the share that the rows are.
        let own = match cfg.window(l) {
            None => rows * rows / sequences + rows,
            Some(_) => keys * rows / (sequences * context) + rows,
        };
        q * (3 * keys + 2 * own)
    };
    let layers = cfg.n_layer as u64;
    layers * 2 * 2 * rows * block_weights(cfg) + (0..cfg.n_layer).map(attention).sum::<u64>()
}

/// FLOPs of the trunk's backward pass when `block_rows` rows carry gradient at a block's output and
/// `key_rows` at its keys and values, both summed over the blocks: each block costs what
/// [`trunk_backward_exact`] says of the last one.
pub fn trunk_backward_sampled(
    cfg: &Gpt2Config,
    context: u64,
    block_rows: u64,
    key_rows: u64,
) -> u64 {
    let q = cfg.query_width() as u64;
    let of_keys = 2 * (cfg.n_embd * cfg.kv_width()) as u64; // D K of keys and of values
    let by_rows = block_weights(cfg) - of_keys; // queries D Q, projection Q D, MLP
    let keys = twice_mean_keys(cfg, 0..cfg.n_layer, context, block_rows);
    key_rows * 2 * 2 * of_keys + block_rows * 2 * 2 * by_rows + 5 * q * keys
}

/// FLOPs of the logits of `rows` positions.
pub fn head_forward(cfg: &Gpt2Config, rows: u64) -> u64 {
    2 * rows * cfg.n_embd as u64 * cfg.vocab_size as u64
}

/// FLOPs from the logit gradients of `rows` positions to those of their hidden states and of the
/// head.
pub fn head_backward(cfg: &Gpt2Config, rows: u64) -> u64 {
    2 * head_forward(cfg, rows)
}

/// Floating-point operations by part (a multiply-add is two). f64: exact to 2^53 and never
/// overflowing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Flops {
    /// Student, forward: the trunk, and the logits of kept rows.
    pub student_forward: f64,
    /// Student, backward: trunk and head, recomputed logits included.
    pub student_backward: f64,
    /// Teacher: the trunk, and the logits of kept rows.
    pub teacher: f64,
    /// Logits of dropped rows, which only selection reads: the student's, and the teacher's if the
    /// score asks for them.
    pub scoring: f64,
}

impl Flops {
    /// All parts together.
    pub fn total(&self) -> f64 {
        self.student_forward + self.student_backward + self.teacher + self.scoring
    }
}

impl AddAssign for Flops {
    fn add_assign(&mut self, other: Self) {
        self.student_forward += other.student_forward;
        self.student_backward += other.student_backward;
        self.teacher += other.teacher;
        self.scoring += other.scoring;
    }
}

/// What an early exit had to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Sequences that began.
    pub sequences: u64,
    /// Blocks that all of them went through.
    pub exit_layer: u64,
    /// Positions whose logits were formed to judge them.
    pub rows: u64,
}

/// Rows that carried gradient in a sampled backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drawn {
    /// At the head.
    pub head: u64,
    /// At the blocks' outputs, summed over the blocks.
    pub blocks: u64,
    /// At their keys and values, summed over the blocks.
    pub keys: u64,
}

/// What a micro-batch, or a whole step, has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// Sequences.
    pub sequences: u64,
    /// Positions of each.
    pub context: u64,
    /// Positions that the loss is formed from.
    pub kept: u64,
    /// What a sampled backward has drawn. None where that is still to come; the other modes follow
    /// from `kept`.
    pub drawn: Option<Drawn>,
    /// The early exit, if there was one: `sequences` and `context` are then of those that went on.
    pub probe: Option<Probe>,
}

/// FLOPs of `work` by its route, as executed: the trainer counts with this function and `plan`
/// predicts with it. The plan's machine half must be settled ([`settle`]): `head = "auto"` counts
/// as `keep`.
///
/// Dense heads cost 3 (forward 1, backward 2). What happens in one pass costs 1 + 2k whatever is
/// asked of stored logits: all of them once, gradients of kept rows. Two passes cost the same with
/// `keep`; `recompute` costs 1 + 3k, and 1 + 4k where the kept rows are scanned again with a
/// dense teacher that selection did not need. A teacher's head runs on all rows if the score reads
/// it, else on kept rows if the objective does; a dense one that is recomputed runs again for the
/// gradient. A dense signal and a divergence other than forward KL take one
/// more pass of both, before the gradient. The products of a sparse signal's ids, a few dozen rows
/// of the head per token, are not counted.
pub fn flops(
    student: &Gpt2Config,
    teacher: Option<&Gpt2Config>,
    plan: &Plan,
    route: Route,
    work: Work,
) -> Flops {
    let Work { sequences, context, kept, drawn, .. } = work;
    let dropped = sequences * context - kept;
    let recompute = plan.machine.head == HeadMode::Recompute && !route.one_pass;
    let summed = u64::from(route.distils && !route.one_pass && sums_first(plan));
    let mut flops = Flops {
        student_forward: (trunk_forward(student, sequences, context) + head_forward(student, kept))
            as f64,
        scoring: head_forward(student, dropped) as f64,
        ..Flops::default()
    };
    flops.scoring += probed(student, work) as f64;
    let drawn =
        drawn.unwrap_or_else(|| expected_draw(student, plan, route, sequences * context, kept));
    // Rows whose logits are differentiated.
    let differentiated =
        if plan.machine.backward == BackwardMode::Sampled { drawn.head } else { kept };
    if kept > 0 {
        let trunk = match plan.machine.backward {
            BackwardMode::Dense => trunk_backward_dense(student, sequences, context),
            BackwardMode::Sparse if route.selects => {
                trunk_backward_sparse(student, sequences, context, kept)
            }
            BackwardMode::Exact | BackwardMode::Sparse => {
                trunk_backward_exact(student, sequences, context, kept)
            }
            BackwardMode::Sampled => {
                trunk_backward_sampled(student, context, drawn.blocks, drawn.keys)
            }
        };
        // Formed again for the scan of the kept rows with the teacher, then for the divergence's
        // sums and for the gradient.
        let scanned = u64::from(recompute && route.scans_again());
        let again = if recompute { 1 + summed } else { 0 };
        let blocks_again = match plan.machine.activations {
            Activations::Keep => 0,
            Activations::Recompute => trunk_again(student, sequences, context),
        };
        flops.student_backward = (trunk
            + blocks_again
            + head_backward(student, differentiated)
            + scanned * head_forward(student, kept)
            + again * head_forward(student, differentiated))
            as f64;
    }
    if let Some(teacher) = teacher.filter(|_| route.teacher != TeacherRows::None) {
        let again = if route.distils && route.dense && recompute { 1 + summed } else { 0 };
        flops.teacher = (trunk_forward(teacher, sequences, context)
            + head_forward(teacher, kept)
            + again * head_forward(teacher, differentiated)) as f64;
        if route.teacher == TeacherRows::All {
            flops.scoring += head_forward(teacher, dropped) as f64;
        }
    }
    flops
}

/// Rows that a sampled backward is expected to draw: below the last block every position has
/// gradient. How few `rho = "auto"` will do with is not known beforehand; every row is the bound.
fn expected_draw(cfg: &Gpt2Config, plan: &Plan, route: Route, positions: u64, kept: u64) -> Drawn {
    let share = match plan.machine.rho {
        Rho::Auto => 1.0,
        Rho::Share(rho) => rho,
    };
    let drawn = (share * positions as f64).round() as u64;
    Drawn {
        head: if route.draws_at_head { drawn.min(kept) } else { kept },
        blocks: drawn.min(kept) + (cfg.n_layer as u64 - 1) * drawn,
        keys: cfg.n_layer as u64 * drawn,
    }
}

/// FLOPs of one optimizer step of a settled plan at these confidence levels.
pub fn flops_per_step(
    student: &Gpt2Config,
    teacher: Option<&Gpt2Config>,
    plan: &Plan,
    level: impl Into<Level>,
) -> Flops {
    flops_per_step_among(student, teacher, plan, level, 1)
}

/// The same of a step that so many processes share.
pub fn flops_per_step_among(
    student: &Gpt2Config,
    teacher: Option<&Gpt2Config>,
    plan: &Plan,
    level: impl Into<Level>,
    processes: usize,
) -> Flops {
    let level = level.into();
    let (route, work) = (usual_route(plan, level), work_of_step(plan, level));
    let mut all = flops(student, teacher, plan, route, work);
    if level.alpha > 0.0 && scores_first(plan, plan.data.rows / processes) {
        all.scoring += flops_of_scoring(student, teacher, route, work);
    }
    all
}

/// Whether the pool of a step makes a process, whose part of it has so many sequences, score them in a
/// forward pass of its own: it has several micro-batches, and a threshold must be known in the first.
pub fn scores_first(plan: &Plan, sequences: usize) -> bool {
    plan.select.pool == Pool::Step && sequences > micro_rows(plan)
}

/// FLOPs of that forward pass over `work`.
pub fn flops_of_scoring(
    student: &Gpt2Config,
    teacher: Option<&Gpt2Config>,
    route: Route,
    work: Work,
) -> f64 {
    let Work { sequences, context, .. } = work;
    let of =
        |model| trunk_forward(model, sequences, context) + head_forward(model, sequences * context);
    let teacher = teacher.filter(|_| route.teacher == TeacherRows::All);
    (of(student) + teacher.map_or(0, of) + probed(student, work)) as f64
}

/// FLOPs that an early exit took for itself: the first blocks of sequences that went no further, and
/// the logits that judged all.
fn probed(student: &Gpt2Config, work: Work) -> u64 {
    work.probe.map_or(0, |probe| {
        let ended = probe.sequences - work.sequences;
        blocks_forward(student, probe.exit_layer, ended, work.context)
            + head_forward(student, probe.rows)
    })
}

fn usual_route(plan: &Plan, level: Level) -> Route {
    Route::of(plan, StepFacts::usual(plan, level.alpha > 0.0))
}

fn work_of_step(plan: &Plan, level: Level) -> Work {
    let (rows, context, stride) = (plan.data.rows, plan.data.context, plan.select.probe_stride);
    let probe = (kept_sequences(plan, level.alpha_seq) < rows as u64).then(|| Probe {
        sequences: rows as u64,
        exit_layer: plan.select.exit_layer as u64,
        rows: probe_rows(rows, context, stride).len() as u64,
    });
    Work {
        sequences: kept_sequences(plan, level.alpha_seq),
        context: context as u64,
        kept: gradient_rows(plan, level),
        drawn: None,
        probe,
    }
}

/// FLOPs of all steps of a settled plan; those of the ramp count at its mean alpha.
pub fn flops_of_run(student: &Gpt2Config, teacher: Option<&Gpt2Config>, plan: &Plan) -> f64 {
    flops_of_run_among(student, teacher, plan, 1)
}

/// The same of a run that so many processes share.
pub fn flops_of_run_among(
    student: &Gpt2Config,
    teacher: Option<&Gpt2Config>,
    plan: &Plan,
    processes: usize,
) -> f64 {
    let at = |level| flops_per_step_among(student, teacher, plan, level, processes).total();
    let Stages { plain, ramp, full } = Stages::of(plan);
    let ramp_flops = if ramp > 0 { ramp as f64 * at(ramp_mean(plan, ramp)) } else { 0.0 };
    let all = plain as f64 * at(Level::default()) + ramp_flops + full as f64 * at(plan.level());
    all - without_lambda(student, teacher, plan)
}

/// What the first or the last step saves where a scheduled lambda begins or ends at 0: nowhere
/// between can it be 0.
fn without_lambda(student: &Gpt2Config, teacher: Option<&Gpt2Config>, plan: &Plan) -> f64 {
    if !plan.objective.distils() {
        return 0.0;
    }
    let mut ends = vec![0, plan.steps - 1];
    ends.dedup();
    let silent = ends.into_iter().filter(|&step| plan.objective.lambda_at(step, plan.steps) == 0.0);
    silent
        .map(|step| {
            let level = plan.level_at(step);
            let with = StepFacts::usual(plan, level.alpha > 0.0);
            let total = |step| {
                flops(student, teacher, plan, Route::of(plan, step), work_of_step(plan, level))
                    .total()
            };
            total(with) - total(StepFacts { weighs_teacher: false, ..with })
        })
        .sum()
}

/// Rows of an optimizer step that are kept at these confidence levels: rounded up within each pool.
/// The plan must be settled: a pool may be a micro-batch.
pub fn kept_rows(plan: &Plan, level: impl Into<Level>) -> u64 {
    let Level { alpha, alpha_seq } = level.into();
    let (context, micro) = (plan.data.context, micro_rows(plan));
    let sequences = kept_sequences(plan, alpha_seq);
    match plan.select.pool {
        Pool::Sequence => sequences * kept_of(alpha, context) as u64,
        Pool::MicroBatch => {
            (plan.data.rows / micro * kept_of(alpha, kept_of(alpha_seq, micro) * context)) as u64
        }
        Pool::Step | Pool::Carried => kept_of(alpha, sequences as usize * context) as u64,
    }
}

/// Sequences of an optimizer step that an early exit lets go on at confidence level `alpha_seq`.
pub fn kept_sequences(plan: &Plan, alpha_seq: f64) -> u64 {
    let micro = micro_rows(plan);
    (plan.data.rows / micro * kept_of(alpha_seq, micro)) as u64
}

pub(crate) fn micro_rows(plan: &Plan) -> usize {
    match plan.machine.micro_rows {
        MicroRows::Rows(n) => n,
        MicroRows::Auto => plan.data.rows,
    }
}

/// Rows of an optimizer step that carry gradient: the kept ones, and of the others the share that
/// the mixture draws.
pub fn gradient_rows(plan: &Plan, level: Level) -> u64 {
    let kept = kept_rows(plan, level);
    let dropped = kept_sequences(plan, level.alpha_seq) * plan.data.context as u64 - kept;
    let drawn = if plan.select.cvar_weight < 1.0 {
        (plan.select.rest_rate * dropped as f64).round() as u64
    } else {
        0
    };
    kept + drawn
}

/// Steps of a run by what they select.
struct Stages {
    /// On all tokens: burn-in and the ramp's first step, or no selection at all.
    plain: u64,
    /// The ramp's other steps.
    ramp: u64,
    /// At the target alpha.
    full: u64,
}

impl Stages {
    fn of(plan: &Plan) -> Self {
        if !plan.selects() {
            return Self { plain: plan.steps, ramp: 0, full: 0 };
        }
        let plain = plan.select.burn_in.min(plan.steps);
        let ramp = plan.select.ramp.min(plan.steps - plain);
        let first = ramp.min(1);
        Self { plain: plain + first, ramp: ramp - first, full: plan.steps - plain - ramp }
    }
}

/// Mean level of the `steps` steps (at least 1) after the ramp's first, which is at 0: the target's
/// (steps + 1) / (2 ramp).
fn ramp_mean(plan: &Plan, steps: u64) -> Level {
    plan.level().scaled((steps + 1) as f64 / 2.0 / plan.select.ramp as f64)
}

/// Share of a step's rows that is kept at a level: pools keep whole positions, so it is a little
/// more than `1 - alpha`.
pub fn kept_share(plan: &Plan, level: Level) -> f64 {
    kept_rows(plan, level) as f64 / plan.tokens_per_step() as f64
}

/// Steps of a ramp that are looked at, evenly spread.
const MOST_OF_RAMP: u64 = 4096;

/// Mean share of rows kept over the run, burn-in and ramp included.
pub fn mean_keep(plan: &Plan) -> f64 {
    let Stages { plain, ramp, full } = Stages::of(plan);
    let every = ramp.div_ceil(MOST_OF_RAMP).max(1);
    let shares: Vec<f64> = (0..ramp)
        .step_by(every as usize)
        .map(|i| kept_share(plan, plan.level_at(plain + i)))
        .collect();
    let ramped = shares.iter().sum::<f64>() / shares.len().max(1) as f64 * ramp as f64;
    (plain as f64 + ramped + full as f64 * kept_share(plan, plan.level())) / plan.steps as f64
}

/// Multiply-adds per token in the matrices of one block.
fn block_weights(cfg: &Gpt2Config) -> u64 {
    cfg.block_elements(ParamKind::is_matrix) as u64
}

/// (position, key) pairs of causal attention in a sequence of block `l`.
fn pairs(cfg: &Gpt2Config, l: usize, context: u64) -> u64 {
    let seen = cfg.window(l).map_or(context, |window| context.min(window as u64));
    seen * (seen + 1) / 2 + (context - seen) * seen
}

/// Twice the keys that `rows` positions see in all, spread evenly over the positions of these
/// blocks. Without windows that is `rows * (context + 1)`.
fn twice_mean_keys(cfg: &Gpt2Config, blocks: Range<usize>, context: u64, rows: u64) -> u64 {
    let count = blocks.len() as u128;
    let pairs: u128 = blocks.map(|l| u128::from(pairs(cfg, l, context))).sum();
    (u128::from(rows) * 2 * pairs / (count * u128::from(context)).max(1)) as u64
}

#[cfg(test)]
mod tests;
