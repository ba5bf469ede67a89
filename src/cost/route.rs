//! The route of a micro-batch: when the teacher is read, how often the head runs, where rows are
//! drawn. Decided here alone; the trainer executes it and [`super::flops`] counts it, so that what
//! is forecast is what is done.

use crate::config::{BackwardMode, Divergence, Plan, Pool, Rho, Signal};

/// Which positions' teacher logits are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TeacherRows {
    /// None: the teacher does not run.
    None,
    /// Those of the kept rows, once these are known.
    Kept,
    /// All, since the score compares with them or because every position counts.
    All,
}

/// What a step brings along that decides its route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepFacts {
    /// Whether its confidence level is above 0, so that tokens are scored and selected.
    pub selects: bool,
    /// Whether the teacher has weight in its loss (lambda > 0): a schedule may begin or end at 0.
    pub weighs_teacher: bool,
    /// Whether a carried threshold is at hand: the first step that selects has none.
    pub threshold: bool,
    /// Whether tokens are ranked by a function of the user's, which asks for whole micro-batches.
    pub own_score: bool,
}

impl StepFacts {
    /// A step of the run at large: with the teacher's weight, and with a threshold if any is
    /// carried.
    pub fn usual(plan: &Plan, selects: bool) -> Self {
        Self {
            selects,
            weighs_teacher: plan.objective.distils(),
            threshold: true,
            own_score: false,
        }
    }
}

/// How a micro-batch is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Tokens are scored and selected.
    pub selects: bool,
    /// The loss has a distillation term.
    pub distils: bool,
    /// Which of the teacher's logits are read.
    pub teacher: TeacherRows,
    /// Score and loss read them as they are; otherwise a sparse signal is made of them first.
    pub dense: bool,
    /// One pass over the head scores and differentiates each row while its logits are in hand.
    /// Otherwise a scan comes first, and a second pass forms the gradient of the chosen rows.
    pub one_pass: bool,
    /// A sampled backward draws among the rows of the head before it forms their gradient.
    pub draws_at_head: bool,
}

impl Route {
    /// The route of a step.
    ///
    /// One pass is possible where a row's fate is known before its score (nothing is selected, and
    /// a sampled backward does not want every norm first) or with it (a carried threshold), and the
    /// teacher is read everywhere, or nowhere: one that only kept rows are compared with is better
    /// asked afterwards.
    pub fn of(plan: &Plan, step: StepFacts) -> Self {
        let distils = plan.is_taught() && step.weighs_teacher;
        let scored_by_teacher = step.selects
            && plan.is_taught()
            && (plan.select.score.needs_teacher() || step.own_score);
        let teacher = match (distils || scored_by_teacher, step.selects && !scored_by_teacher) {
            (false, _) => TeacherRows::None,
            (true, true) => TeacherRows::Kept,
            (true, false) => TeacherRows::All,
        };
        let dense = plan.objective.is_dense();
        let one_pass = if step.selects {
            let known = plan.select.pool == Pool::Carried && step.threshold && !step.own_score;
            known && teacher != TeacherRows::Kept
        } else {
            let draws = plan.machine.backward == BackwardMode::Sampled
                && plan.machine.rho != Rho::Share(1.0);
            !draws
        };
        let bounded = !distils || forward_kl(plan);
        let draws_at_head = plan.machine.backward == BackwardMode::Sampled && !one_pass && bounded;
        Self { selects: step.selects, distils, teacher, dense, one_pass, draws_at_head }
    }

    /// Whether the kept rows are scanned again, now with the teacher's logits, which selection did
    /// without.
    pub fn scans_again(&self) -> bool {
        !self.one_pass && self.distils && self.dense && self.teacher == TeacherRows::Kept
    }
}

/// Whether the divergence is forward KL on all of the teacher's distribution: its gradient's norm
/// has a bound before it is formed, and it takes one pass over the vocabulary instead of two.
pub fn forward_kl(plan: &Plan) -> bool {
    plan.objective.signal == Signal::Dense && plan.objective.divergence == Divergence::ForwardKl
}

/// Whether the divergence's sums take a pass over the vocabulary of their own.
pub(super) fn sums_first(plan: &Plan) -> bool {
    plan.objective.signal == Signal::Dense && plan.objective.divergence != Divergence::ForwardKl
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::plan;

    fn route(settings: &[&str], selects: bool) -> Route {
        let plan = plan(settings);
        Route::of(&plan, StepFacts::usual(&plan, selects))
    }

    #[test]
    fn the_teacher_is_read_where_something_reads_it() {
        let of = |settings: &[&str], selects| route(settings, selects).teacher;
        assert_eq!(of(&[], true), TeacherRows::None);
        assert_eq!(of(&["teacher=t", "select.score=entropy"], true), TeacherRows::Kept);
        assert_eq!(of(&["teacher=t", "select.score=entropy"], false), TeacherRows::All);
        assert_eq!(of(&["teacher=t", "select.score=kl"], true), TeacherRows::All);
        assert_eq!(
            of(&["teacher=t", "select.score=kl", "objective.lambda=0"], true),
            TeacherRows::All
        );
        assert_eq!(
            of(&["teacher=t", "select.score=kl", "objective.lambda=0"], false),
            TeacherRows::None
        );
        let plan = plan(&["teacher=t", "select.score=entropy"]);
        let own = StepFacts { own_score: true, ..StepFacts::usual(&plan, true) };
        assert_eq!(
            Route::of(&plan, own).teacher,
            TeacherRows::All,
            "an own score may compare with it"
        );
    }

    #[test]
    fn one_pass_where_a_rows_fate_is_known_in_time() {
        let one = |settings: &[&str], selects| route(settings, selects).one_pass;
        assert!(one(&[], false) && !one(&[], true));
        assert!(
            !one(&["machine.backward=sampled"], false)
                && one(&["machine.backward=sampled", "machine.rho=1"], false)
        );
        let carried = ["select.pool=carried", "select.score=entropy"];
        assert!(one(&carried, true));
        assert!(
            !one(&[&carried[..], &["teacher=t"]].concat(), true),
            "the teacher is better asked for kept rows"
        );
        let by_teacher = ["select.pool=carried", "select.score=excess", "teacher=t"];
        assert!(one(&by_teacher, true));
        for sparse in ["objective.signal=top-k", "objective.signal=sampled"] {
            assert!(one(&[&by_teacher[..], &[sparse]].concat(), true));
            assert!(one(&["teacher=t", sparse], false));
            assert!(!one(&[&carried[..], &["teacher=t", sparse]].concat(), true));
            assert!(!one(&["teacher=t", sparse, "machine.backward=sampled"], false));
        }
        let plan = plan(&carried);
        let usual = StepFacts::usual(&plan, true);
        assert!(!Route::of(&plan, StepFacts { threshold: false, ..usual }).one_pass);
        assert!(!Route::of(&plan, StepFacts { own_score: true, ..usual }).one_pass);
    }

    #[test]
    fn only_what_has_a_bound_is_drawn_at_the_head() {
        let draws = |more: &[&str]| {
            route(&[&["machine.backward=sampled"], more].concat(), true).draws_at_head
        };
        assert!(draws(&[]) && draws(&["teacher=t"]));
        assert!(!draws(&["teacher=t", "objective.divergence=jsd"]));
        assert!(!draws(&["teacher=t", "objective.signal=sampled"]));
        assert!(draws(&[
            "teacher=t",
            "objective.divergence=jsd",
            "objective.lambda=0",
            "select.score=kl"
        ]));
        assert!(!route(&[], true).draws_at_head);
    }
}
