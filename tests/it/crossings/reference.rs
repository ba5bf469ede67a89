//! One training step as the papers and the key table have it: all positions at once, thresholds by
//! sorting, weights by their definition, gradients by automatic differentiation. Slow, and shares
//! nothing with the step it judges but the plan's fields, the parameters and the random numbers.

use super::heard::{Heard, in_sixteen_bits};
use super::net::{Net, distance, entropy, kl, log_softmax, nll, numbers};
use candle_core::{Device, Result, Tensor, Var};
use eslm_kd::config::{
    AlphaSchedule, BackwardMode, Divergence, MicroRows, ObjectiveSchedule, Plan, Pool, ProbeScore,
    Rho, Score, Signal, Tail,
};
use eslm_kd::data::loader::Batch;
use eslm_kd::rng::{Rng, Stream};

/// What a decision was short of falling the other way is measured in this: below it, rounding
/// decides.
pub const TIE: f64 = 2e-5;

/// What selection remembers from step to step.
#[derive(Debug, Clone, Default)]
pub struct SelectionState {
    /// Threshold and mean age.
    pub carried: Option<(f64, f64)>,
    /// Alpha, and the mean kept score of the interval before.
    ada: Option<(f64, Option<f64>)>,
    easy: Option<f64>,
}

/// What the step should report and do.
#[derive(Debug, Default)]
pub struct Expected {
    pub alpha: f64,
    pub alpha_seq: f64,
    pub lambda: f64,
    pub temperature: f64,
    pub tokens: u64,
    pub sequences: (u64, u64),
    pub valid: u64,
    pub kept: u64,
    pub rows: u64,
    /// The mean loss.
    pub loss: f64,
    pub denominator: f64,
    pub nll: f64,
    pub kept_nll: f64,
    pub easy: u64,
    pub scores: Vec<f64>,
    pub var: f64,
    pub cvar: f64,
    pub pools: usize,
    pub carried: Option<(f64, f64)>,
    pub row_norms: (f64, f64),
    /// Of the mean loss with respect to each parameter, in the layout's order; None where a sampled
    /// backward draws.
    pub gradient: Option<Vec<Vec<f64>>>,
    /// The closest decision.
    pub margin: f64,
}

/// The smallest gap that a decision went through.
pub struct Margin(pub f64);

impl Margin {
    pub fn meet(&mut self, gap: f64) {
        self.0 = self.0.min(gap.abs());
    }
}

pub fn uniform53(rng: Rng, sub: u32, token: u64) -> f64 {
    (rng.bits(sub, token) >> 11) as f64 / (1u64 << 53) as f64
}

fn ceil_share(alpha: f64, m: usize) -> usize {
    // Of numbers that the tests use, a product within 1e-9 of a whole number is that number.
    (((1.0 - alpha) * m as f64 - 1e-9).ceil() as usize).clamp(m.min(1), m)
}

fn progress(step: u64, plan: &Plan) -> f64 {
    let (burn_in, ramp) = (plan.select.burn_in, plan.select.ramp);
    match step {
        s if s < burn_in => 0.0,
        s if s >= burn_in + ramp => 1.0,
        s => (s - burn_in) as f64 / ramp as f64,
    }
}

fn between(plan: &Plan, step: u64, from: f64, to: Option<f64>) -> f64 {
    let x = step as f64 / (plan.steps - 1) as f64;
    let gone = match plan.objective.schedule {
        ObjectiveSchedule::Linear => x,
        ObjectiveSchedule::Cosine => (1.0 - (std::f64::consts::PI * x).cos()) / 2.0,
    };
    from + (to.unwrap_or(from) - from) * gone
}

/// The `k` best of `members` by `score`, ties to the first.
pub fn best(
    members: &[usize],
    score: &dyn Fn(usize) -> f64,
    k: usize,
    tail: Tail,
    margin: &mut Margin,
) -> Vec<usize> {
    let mut order = members.to_vec();
    let sign = if tail == Tail::High { -1.0 } else { 1.0 };
    order.sort_by(|&a, &b| (sign * score(a)).total_cmp(&(sign * score(b))).then(a.cmp(&b)));
    if k > 0 && k < order.len() && score(order[k - 1]) != score(order[k]) {
        margin.meet(score(order[k - 1]) - score(order[k]));
    }
    order.truncate(k);
    order
}

/// Everything that step `step` on `batch` should do, `cursor` sequences into the run.
pub fn step(
    plan: &Plan,
    student: &Net,
    teacher: Option<&Net>,
    memory: &mut SelectionState,
    (step, cursor): (u64, u64),
    batch: &Batch,
) -> Result<Expected> {
    let mut out = Expected {
        margin: f64::INFINITY,
        tokens: batch.valid_count() as u64,
        ..Expected::default()
    };
    let mut margin = Margin(f64::INFINITY);
    let (select, objective, context) = (&plan.select, &plan.objective, batch.context);
    let selects = select.alpha > 0.0 || select.alpha_seq > 0.0;
    let target = match select.schedule {
        _ if !selects => 0.0,
        AlphaSchedule::Fixed => select.alpha,
        AlphaSchedule::AdaEslm => memory.ada.map_or(select.alpha, |(alpha, _)| alpha),
        AlphaSchedule::EasyShare => memory.easy.unwrap_or(0.0).min(select.alpha),
    };
    out.alpha = target * progress(step, plan);
    out.alpha_seq = if selects { select.alpha_seq * progress(step, plan) } else { 0.0 };
    out.lambda = between(plan, step, objective.lambda, objective.lambda_end);
    out.temperature = between(plan, step, objective.temperature, objective.temperature_end);
    let tau = if teacher.is_some() { out.temperature } else { 1.0 };
    let MicroRows::Rows(micro) = plan.machine.micro_rows else {
        panic!("micro_rows is a number here")
    };

    // The early exit: which sequences go on, by micro-batch.
    let mut parts: Vec<Vec<usize>> = Vec::new();
    for first in (0..batch.sequences).step_by(micro) {
        let all: Vec<usize> = (first..first + micro).collect();
        let left = ceil_share(out.alpha_seq, micro);
        parts.push(if left == micro {
            all
        } else {
            let means = probe(plan, student, batch, cursor)?;
            let mut kept = best(&all, &|s| means[s], left, Tail::High, &mut margin);
            kept.sort_unstable();
            kept
        });
    }
    let sequences: Vec<usize> = parts.concat();
    out.sequences = (batch.sequences as u64, sequences.len() as u64);

    // From here on, position i is one of those that went on.
    let left = batch.pick(&sequences.iter().map(|&s| s as u32).collect::<Vec<_>>());
    let n = left.inputs.len();
    let valid: Vec<usize> = (0..n).filter(|&i| left.valid[i]).collect();
    let token =
        |i: usize| (cursor + sequences[i / context] as u64) * context as u64 + (i % context) as u64;
    out.valid = valid.len() as u64;

    // Statistics of every position. Nothing flows through them: the kept set is a constant of the
    // gradient.
    let z = student
        .logits(&student.hidden(&left.inputs, context, student.layers(), None)?.detach())?
        .detach();
    let t = match teacher {
        Some(teacher) => {
            let hidden = teacher.hidden(&left.inputs, context, teacher.layers(), None)?;
            Some(teacher.logits(&hidden)?.detach())
        }
        None => None,
    };
    let losses = numbers(&nll(&z, &left.targets)?);
    out.nll = valid.iter().map(|&i| losses[i]).sum();
    out.easy = valid.iter().filter(|&&i| losses[i] < -(0.9f64.ln())).count() as u64;
    if select.schedule == AlphaSchedule::EasyShare {
        valid.iter().for_each(|&i| margin.meet(losses[i] + 0.9f64.ln()));
    }

    // Scores and the kept set.
    let selecting = out.alpha > 0.0;
    let pools = pools_of(plan, &parts, context, &valid);
    let scores = match selecting {
        true => scores(plan, &z, t.as_ref(), tau, &left, &pools, &token, &mut margin)?,
        false => Vec::new(),
    };
    let mut kept: Vec<usize> = match (selecting, select.pool) {
        (false, _) => valid.clone(),
        (true, Pool::Carried) => match memory.carried {
            None => valid.clone(),
            Some((threshold, _)) => {
                valid.iter().for_each(|&i| margin.meet(scores[i] - threshold));
                let passes = |i: &usize| match select.tail {
                    Tail::High => scores[*i] >= threshold,
                    Tail::Low => scores[*i] <= threshold,
                };
                valid.iter().copied().filter(passes).collect()
            }
        },
        (true, _) => {
            let mut kept = Vec::new();
            for pool in pools.iter().filter(|pool| !pool.is_empty()) {
                let k = ceil_share(out.alpha, pool.len());
                let chosen = best(pool, &|i| scores[i], k, select.tail, &mut margin);
                out.var += scores[*chosen.last().expect("at least one of a pool is kept")];
                out.pools += 1;
                kept.extend(chosen);
            }
            kept
        }
    };
    kept.sort_unstable();
    out.kept = kept.len() as u64;
    out.kept_nll = kept.iter().map(|&i| losses[i]).sum();
    if selecting {
        out.cvar = kept.iter().map(|&i| scores[i]).sum();
        out.scores = valid.iter().map(|&i| scores[i]).collect();
    }

    // The mixture: mu times the mean of the kept, 1 - mu times the mean of all, the latter from a
    // sample of the dropped. K of it is known before the step: what the pools will keep, or aim at.
    let all = valid.len() as f64;
    let wanted = match select.pool {
        Pool::Carried if selecting && memory.carried.is_some() => (1.0 - out.alpha) * all,
        Pool::Carried => all,
        _ => kept.len() as f64,
    };
    let mixes = select.cvar_weight < 1.0;
    out.denominator = if mixes { wanted } else { kept.len() as f64 };
    let mut weights = vec![0.0; n];
    let rest = Rng::new(plan.seed, Stream::Rest);
    for &i in &valid {
        let is_kept = kept.binary_search(&i).is_ok();
        weights[i] = match is_kept {
            true if mixes => select.cvar_weight / wanted + (1.0 - select.cvar_weight) / all,
            true => 1.0 / kept.len() as f64,
            false if mixes && f64::from(rest.uniform(0, token(i))) < select.rest_rate => {
                (1.0 - select.cvar_weight) / (select.rest_rate * all)
            }
            false => 0.0,
        };
    }
    let rows: Vec<usize> = (0..n).filter(|&i| weights[i] > 0.0).collect();

    // Per-token losses of these, as functions of the hidden vectors.
    let open: Vec<f64> = weights.iter().map(|w| f64::from(u8::from(*w > 0.0))).collect();
    let open = Tensor::from_vec(open, (n, 1), &Device::Cpu)?;
    let sparse = plan.machine.backward == BackwardMode::Sparse && selecting;
    let hidden =
        student.hidden(&left.inputs, context, student.layers(), sparse.then_some(&open))?;
    let at_head = Var::from_tensor(&hidden.detach())?;
    let z = student.logits(at_head.as_tensor())?;
    let mut cost = (nll(&z, &left.targets)? * (1.0 - out.lambda))?;
    let mut divergence = vec![0.0; n];
    if let Some(t) = t.as_ref().filter(|_| out.lambda > 0.0) {
        let d = taught(plan, &z, t, tau, &rows, &left, &mut margin)?;
        divergence = numbers(&d);
        cost = (cost + (d * (out.lambda * tau * tau))?)?;
    }
    let costs = numbers(&cost);
    out.loss = rows.iter().map(|&i| weights[i] * costs[i]).sum();

    // A sampled backward may draw among the rows before the gradient at the head is formed.
    let share = match (plan.machine.backward, plan.machine.rho) {
        (BackwardMode::Sampled, Rho::Share(share)) => share,
        _ => 1.0,
    };
    let drawn = draws_at_head(plan, &out, memory, t.is_some()) && share < 1.0;
    if drawn {
        let forward = divergence; // a bound exists for forward KL only, so that is what this is
        let whole = weights.clone();
        let bound = |i: usize| {
            let missing = 1.0 - (-losses[i]).exp();
            whole[i]
                * ((1.0 - out.lambda) * missing + out.lambda * tau * forward[i].max(0.0).sqrt())
        };
        let rng = Rng::new(plan.seed, Stream::Backward);
        for s in 0..sequences.len() {
            let members: Vec<usize> = rows.iter().copied().filter(|i| i / context == s).collect();
            let c = factor(
                &members.iter().map(|&i| bound(i)).collect::<Vec<_>>(),
                share * context as f64,
            );
            for i in members {
                let p = (c * bound(i)).min(1.0);
                let u = uniform53(rng, student.layers() as u32, token(i));
                margin.meet(u - p);
                weights[i] = if u < p { whole[i] / p } else { 0.0 };
            }
        }
    }
    out.rows = weights.iter().filter(|w| **w > 0.0).count() as u64;

    let weights = Tensor::from_vec(weights, n, &Device::Cpu)?;
    let head = (cost * weights)?.sum_all()?.backward()?;
    let d_hidden = head.get(at_head.as_tensor()).expect("the loss depends on the hidden vectors");
    let norms = numbers(&d_hidden.sqr()?.sum(1)?.sqrt()?);
    let norms: Vec<f64> = norms.iter().map(|g| g * out.denominator).collect();
    out.row_norms = (norms.iter().sum(), norms.iter().map(|g| g * g).sum());
    if share == 1.0 {
        let trunk = (hidden * d_hidden.detach())?.sum_all()?.backward()?;
        let of = |(_, var): &(String, Var)| {
            let parts = [head.get(var.as_tensor()), trunk.get(var.as_tensor())];
            let mut sum = vec![0.0; var.elem_count()];
            for part in parts.into_iter().flatten() {
                sum.iter_mut().zip(numbers(part)).for_each(|(sum, g)| *sum += g);
            }
            sum
        };
        out.gradient = Some(student.vars.iter().map(of).collect());
    }

    remember(plan, step, memory, &mut out, &mut margin);
    out.margin = margin.0;
    Ok(out)
}

/// Whether a sampled backward draws at the head: only where the norms have a bound beforehand, and
/// not where rows are differentiated as they are scored.
fn draws_at_head(plan: &Plan, out: &Expected, memory: &SelectionState, teacher: bool) -> bool {
    let objective = &plan.objective;
    let dense = objective.signal == Signal::Dense;
    let bounded = out.lambda == 0.0 || (dense && objective.divergence == Divergence::ForwardKl);
    let scored_beside = plan.score_needs_teacher() && out.alpha > 0.0;
    let asked = teacher && (out.lambda > 0.0 || scored_beside);
    let at_once = out.alpha > 0.0
        && plan.select.pool == Pool::Carried
        && memory.carried.is_some()
        && (!asked || scored_beside);
    bounded && !at_once
}

/// `c` with the sum of min(1, c g) equal to `budget`, by bisection; where fewer have a gradient,
/// each is certain.
fn factor(norms: &[f64], budget: f64) -> f64 {
    let some: Vec<f64> = norms.iter().copied().filter(|g| *g > 0.0).collect();
    if some.len() as f64 <= budget {
        return f64::MAX;
    }
    let (mut low, mut high) = (0.0, 1.0 / some.iter().copied().fold(f64::INFINITY, f64::min));
    for _ in 0..200 {
        let c = 0.5 * (low + high);
        let sum: f64 = some.iter().map(|g| (c * g).min(1.0)).sum();
        if sum < budget { low = c } else { high = c }
    }
    0.5 * (low + high)
}

/// Mean probe score of each sequence; one without a position that counts ranks last.
fn probe(plan: &Plan, student: &Net, batch: &Batch, cursor: u64) -> Result<Vec<f64>> {
    let (select, context) = (&plan.select, batch.context);
    let stride = select.probe_stride.min(context);
    let z = student.logits(&student.hidden(&batch.inputs, context, select.exit_layer, None)?)?;
    let rng = Rng::new(plan.seed, Stream::Probe);
    let of = match select.probe_score {
        ProbeScore::Entropy => numbers(&entropy(&z)?),
        ProbeScore::Loss => numbers(&nll(&z, &batch.targets)?),
        ProbeScore::Random => (0..batch.inputs.len() as u64)
            .map(|i| f64::from(rng.uniform(0, cursor * context as u64 + i)))
            .collect(),
    };
    let mean = |s: usize| {
        let probed = (1..=context / stride)
            .map(|j| s * context + j * stride - 1)
            .filter(|&i| batch.valid[i]);
        let probed: Vec<f64> = probed.map(|i| of[i]).collect();
        if probed.is_empty() { -1e30 } else { probed.iter().sum::<f64>() / probed.len() as f64 }
    };
    Ok((0..batch.sequences).map(mean).collect())
}

/// The valid positions that share a threshold, or a normalisation.
fn pools_of(plan: &Plan, parts: &[Vec<usize>], context: usize, valid: &[usize]) -> Vec<Vec<usize>> {
    let lengths: Vec<usize> = match plan.select.pool {
        Pool::Sequence => parts.iter().flatten().map(|_| context).collect(),
        Pool::MicroBatch => parts.iter().map(|part| part.len() * context).collect(),
        Pool::Step | Pool::Carried => vec![parts.iter().flatten().count() * context],
    };
    let mut start = 0;
    let pool = |length: usize| {
        let range = start..start + length;
        start = range.end;
        valid.iter().copied().filter(|i| range.contains(i)).collect()
    };
    lengths.into_iter().map(pool).collect()
}

#[allow(clippy::too_many_arguments)]
fn scores(
    plan: &Plan,
    z: &Tensor,
    t: Option<&Tensor>,
    tau: f64,
    batch: &Batch,
    pools: &[Vec<usize>],
    token: &dyn Fn(usize) -> u64,
    margin: &mut Margin,
) -> Result<Vec<f64>> {
    let teacher = || t.expect("this score reads a teacher");
    let valid: Vec<usize> = (0..batch.inputs.len()).filter(|&i| batch.valid[i]).collect();
    let mut of_kl = |forward: bool| -> Result<Vec<f64>> {
        let direction = |p: &Tensor, q: &Tensor| if forward { kl(q, p) } else { kl(p, q) };
        let heard = Heard::of(plan, teacher(), tau, &valid, batch, margin)?;
        Ok(numbers(&heard.divergence(&log_softmax(z, tau)?, &direction)?))
    };
    let dense = plan.objective.signal == Signal::Dense;
    Ok(match plan.select.score {
        Score::Entropy => numbers(&entropy(z)?),
        Score::Loss => numbers(&nll(z, &batch.targets)?),
        Score::Kl => of_kl(true)?,
        Score::ReverseKl => of_kl(false)?,
        Score::TeacherEntropy => {
            let said = numbers(&entropy(teacher())?);
            if dense { said } else { in_sixteen_bits(&said, &valid, margin) }
        }
        Score::Excess => {
            let said = numbers(&nll(teacher(), &batch.targets)?);
            let said = if dense { said } else { in_sixteen_bits(&said, &valid, margin) };
            numbers(&nll(z, &batch.targets)?).iter().zip(said).map(|(z, t)| z - t).collect()
        }
        Score::Random => {
            let rng = Rng::new(plan.seed, Stream::Score);
            (0..batch.inputs.len()).map(|i| f64::from(rng.uniform(0, token(i)))).collect()
        }
        Score::EntropyKl => {
            let mut product = vec![1.0; batch.inputs.len()];
            for factor in [numbers(&entropy(z)?), of_kl(true)?] {
                for pool in pools {
                    let low = pool.iter().map(|&i| factor[i]).fold(f64::INFINITY, f64::min);
                    let high = pool.iter().map(|&i| factor[i]).fold(f64::NEG_INFINITY, f64::max);
                    pool.iter().for_each(|&i| {
                        product[i] *=
                            if high > low { (factor[i] - low) / (high - low) } else { 0.0 }
                    });
                }
            }
            product
        }
    })
}

/// The divergence of each row by what the loss hears of the teacher; rows without weight may hold
/// anything finite.
fn taught(
    plan: &Plan,
    z: &Tensor,
    t: &Tensor,
    tau: f64,
    rows: &[usize],
    batch: &Batch,
    margin: &mut Margin,
) -> Result<Tensor> {
    let log_p = log_softmax(z, tau)?;
    let heard = Heard::of(plan, t, tau, rows, batch, margin)?;
    if let Heard::Top(ids, _) = &heard {
        // One minus what is named is known to the rounding of the named, which is much of it where
        // hardly any is left.
        let left = numbers(&(1.0 - log_p.gather(ids, 1)?.exp()?.sum(1)?)?);
        rows.iter().filter(|&&i| left[i] < 5e-3).for_each(|_| margin.meet(0.0));
    }
    heard.divergence(&log_p, &|p, q| distance(&plan.objective, p, q))
}

/// What the next step's selection learns from this one.
fn remember(
    plan: &Plan,
    step: u64,
    memory: &mut SelectionState,
    out: &mut Expected,
    margin: &mut Margin,
) {
    let select = &plan.select;
    if select.pool == Pool::Carried && !out.scores.is_empty() {
        out.carried = memory.carried;
        let all: Vec<usize> = (0..out.scores.len()).collect();
        let k = ceil_share(out.alpha, all.len());
        // The value at risk is continuous: no tie can move it.
        let kept = best(&all, &|i| out.scores[i], k, select.tail, &mut Margin(0.0));
        (out.var, out.pools) = (out.scores[*kept.last().expect("one is kept")], 1);
        memory.carried = Some(match memory.carried {
            None => (out.var, 1.0),
            Some((threshold, lag)) => (
                select.threshold_ema * threshold + (1.0 - select.threshold_ema) * out.var,
                1.0 + select.threshold_ema * lag,
            ),
        });
    }
    match select.schedule {
        AlphaSchedule::Fixed => {}
        AlphaSchedule::EasyShare => {
            let share = out.easy as f64 / out.valid as f64;
            let mean = memory.easy.unwrap_or(share);
            memory.easy = Some(mean + (share - mean) / select.interval as f64);
        }
        AlphaSchedule::AdaEslm if progress(step, plan) < 1.0 => {}
        // The crossings have an interval of one step.
        AlphaSchedule::AdaEslm if out.kept > 0 => {
            let (mut alpha, before) = memory.ada.unwrap_or((select.alpha, None));
            let cvar = out.cvar / out.kept as f64;
            if let Some(before) = before.filter(|c| *c != 0.0) {
                let moved = alpha * (-select.gamma * (cvar - before) / before.abs()).exp();
                alpha = moved.clamp(select.alpha_min, select.alpha_max);
                // How many an alpha keeps is a decision, too, unless it stands at a bound.
                for m in [1, 2, 3, 4].map(|rows| rows * 16).into_iter().filter(|_| alpha == moved) {
                    let product = (1.0 - alpha) * f64::from(m);
                    margin.meet(product - product.round());
                }
            }
            memory.ada = Some((alpha, Some(cvar)));
        }
        AlphaSchedule::AdaEslm => {}
    }
}
