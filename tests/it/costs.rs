//! Laws of what steps cost: what is counted is what blocks cost, and what is forecast is what is done.

use crate::laws::{MATHEMATICS, model, step, trainer};
use eslm_kd::cost::{
    Flops, flops_per_step, head_backward, head_forward, trunk_backward_exact, trunk_forward,
};

#[test]
fn reported_flops_are_those_of_the_blocks() {
    let student = model(16, 2, 1).config;
    let teacher = model(24, 3, 2).config;
    let blocks = |settings: &[&str]| {
        let mut trainer = trainer(&[settings, &["machine.micro_rows=2"]].concat());
        step(&mut trainer, 0).sums.flops
    };
    let forward = (trunk_forward(&student, 4, 16) + head_forward(&student, 32)) as f64;
    let backward = (trunk_backward_exact(&student, 4, 16, 32) + head_backward(&student, 32)) as f64;
    let half = head_forward(&student, 32) as f64;
    let plain =
        Flops { student_forward: forward, student_backward: backward, teacher: 0.0, scoring: half };
    assert_eq!(blocks(&[]), plain);
    assert_eq!(
        blocks(&["machine.head=recompute"]),
        Flops { student_backward: backward + half, ..plain }
    );
    let (trunk, teacher_half) =
        (trunk_forward(&teacher, 4, 16) as f64, head_forward(&teacher, 32) as f64);
    let distilled = Flops { teacher: trunk + teacher_half, ..plain };
    assert_eq!(blocks(&["teacher=t"]), distilled, "the teacher's head sees kept rows only");
    assert_eq!(
        blocks(&["teacher=t", "select.score=kl"]),
        Flops { scoring: half + teacher_half, ..distilled }
    );
    // The scan beside the teacher and the gradient form both heads' kept rows once more each.
    let again = Flops {
        student_backward: backward + 2.0 * half,
        teacher: trunk + 2.0 * teacher_half,
        ..plain
    };
    assert_eq!(blocks(&["teacher=t", "machine.head=recompute"]), again);
    // Without selection one pass reads both heads and forms the gradient, whatever is asked of
    // stored logits.
    for head in ["machine.head=recompute", "machine.head=keep"] {
        let dense = blocks(&["teacher=t", head, "method=clm"]);
        assert_eq!(dense.student_forward + dense.student_backward, {
            let backward = trunk_backward_exact(&student, 4, 16, 64) + head_backward(&student, 64);
            (trunk_forward(&student, 4, 16) + head_forward(&student, 64) + backward) as f64
        });
        assert_eq!((dense.teacher, dense.scoring), (trunk + 2.0 * teacher_half, 0.0));
    }
    // A block runs again but for its last product, of D x F.
    let last = 2 * 2 * 64 * (16 * 64);
    let again = Flops {
        student_backward: backward + (trunk_forward(&student, 4, 16) - last) as f64,
        ..plain
    };
    assert_eq!(blocks(&["machine.activations=recompute"]), again);
}

#[test]
fn the_forecast_of_plan_is_what_a_step_reports() {
    let (student, teacher) = (model(16, 2, 1).config, model(24, 3, 2).config);
    // What a carried threshold keeps and what a mixture draws is known on average only.
    let exact =
        |m: &&[&str]| !m.iter().any(|s| s.contains("carried") || s.contains("cvar_weight="));
    for mathematics in MATHEMATICS.into_iter().filter(exact) {
        for alpha in ["0", "0.3", "0.9"] {
            for machine in [
                &["machine.head=keep", "machine.backward=exact"][..],
                &["machine.head=recompute", "machine.backward=dense"],
                &[
                    "machine.head=recompute",
                    "select.pool=micro-batch",
                    "machine.activations=recompute",
                ],
            ] {
                let alpha_setting = format!("select.alpha={alpha}");
                let settings =
                    [mathematics, machine, &[alpha_setting.as_str(), "machine.micro_rows=2"]]
                        .concat();
                let mut trainer = trainer(&settings);
                let plan = trainer.plan.clone();
                let shape = plan.teacher.as_ref().map(|_| &teacher);
                let forecast = flops_per_step(&student, shape, &plan, plan.alpha_at(0));
                assert_eq!(step(&mut trainer, 0).sums.flops, forecast, "{settings:?}");
            }
        }
    }
}

#[test]
fn an_early_exit_costs_what_was_forecast() {
    let student = model(16, 2, 1).config;
    let of = |settings: &[&str]| {
        let mut trainer = trainer(&[settings, &["machine.micro_rows=2"]].concat());
        let forecast = flops_per_step(&student, None, &trainer.plan, trainer.plan.level_at(0));
        (step(&mut trainer, 0).sums.flops, forecast)
    };
    let exit = ["select.alpha_seq=0.5", "select.probe_stride=4"];
    for score in ["entropy", "random"] {
        let score = format!("select.score={score}");
        let (all, half) = (of(&[&score]), of(&[&exit[..], &[score.as_str()]].concat()));
        assert_eq!((all.0, half.0), (all.1, half.1));
        assert!(half.0.student_backward < 0.6 * all.0.student_backward);
    }
}

#[test]
fn an_approximate_backward_costs_what_was_forecast() {
    let student = model(16, 2, 1).config;
    let both = |settings: &[&str]| {
        let mut trainer = trainer(settings);
        let forecast = flops_per_step(&student, None, &trainer.plan, trainer.plan.alpha_at(0))
            .student_backward;
        (step(&mut trainer, 0).sums.flops.student_backward, forecast)
    };
    let exact = both(&[]);
    let sparse = both(&["machine.backward=sparse"]);
    assert_eq!((exact.0, sparse.0), (exact.1, sparse.1));
    let (sampled, forecast) = both(&["machine.backward=sampled", "machine.rho=0.5"]);
    assert!(
        (sampled / forecast - 1.0).abs() < 0.05,
        "a draw scatters about its budget: {sampled} for {forecast}"
    );
    // Queries of drawn rows meet every key, so that as many rows cost more than in the sparse
    // backward.
    assert!(sparse.1 < forecast && forecast < exact.1 && sampled < exact.0);
    // What a budget of variance will do with is not known beforehand: its forecast is a bound.
    let (sampled, bound) = both(&["machine.backward=sampled", "machine.added_variance=1"]);
    assert!(sampled < 0.97 * bound && bound == exact.0, "{sampled} of {bound}");
}
