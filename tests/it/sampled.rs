//! The sampled backward through the function that trains: unbiased with draws at the head and in
//! the blocks, and as noisy as it was allowed to be.

use crate::laws::{flat, step, trainer};

/// The gradient of a first step, up to the factor 1 - beta1: AdamW's first moment, nothing being
/// clipped. And the report's loss and rows.
fn gradient(settings: &[&str]) -> (Vec<f64>, f64, u64) {
    gradient_of(settings, 0)
}

/// The same on the batch of another step.
fn gradient_of(settings: &[&str], batch: u64) -> (Vec<f64>, f64, u64) {
    let mut trainer = trainer(&[settings, &["optim.clip=0"]].concat());
    let report = step(&mut trainer, batch);
    (
        flat(&trainer.state.m).into_iter().map(f64::from).collect(),
        report.sums.loss,
        report.sums.rows,
    )
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt()
}

/// Mean over draws, the root mean square distance of a draw from `exact`, and the mean of the rows
/// at the head.
fn draws(settings: &[&str], exact: &[f64], loss: f64, n: usize) -> (Vec<f64>, f64, f64) {
    let (mut mean, mut squares, mut rows) = (vec![0.0; exact.len()], 0.0, 0);
    for seed in 0..n {
        let seed = format!("seed={seed}");
        let (g, of_draw, at_head) =
            gradient(&[settings, &["machine.backward=sampled", &seed]].concat());
        assert!(
            (of_draw / loss - 1.0).abs() < 1e-6,
            "the loss is that of all rows: {of_draw} for {loss}"
        );
        mean.iter_mut().zip(&g).for_each(|(m, g)| *m += g / n as f64);
        squares += distance(&g, exact).powi(2);
        rows += at_head;
    }
    (mean, (squares / n as f64).sqrt(), rows as f64 / n as f64)
}

#[test]
fn the_mean_of_sampled_steps_is_the_exact_gradient() {
    const DRAWS: usize = 250;
    for settings in [
        &["select.alpha=0", "machine.added_variance=2"][..],
        &["select.alpha=0", "machine.rho=0.4"],
        &["select.alpha=0", "teacher=t", "objective.temperature=2", "machine.added_variance=2"],
        &["select.score=loss", "select.alpha=0.25", "teacher=t", "machine.rho=0.4"],
    ] {
        let (exact, loss, all) = gradient(settings);
        let (mean, scatter, rows) = draws(settings, &exact, loss, DRAWS);
        assert!(rows < 0.9 * all as f64, "{settings:?}: {rows} of {all} at the head");
        let (off, error) = (distance(&mean, &exact), scatter / (DRAWS as f64).sqrt());
        assert!(off < 1.5 * error, "{settings:?}: off by {off}, expected {error} without a bias");
    }
}

#[test]
fn the_variance_that_is_added_stays_within_its_share_of_the_gradients_own() {
    const BATCHES: u64 = 30;
    let plain = &["select.alpha=0"][..];
    let batches: Vec<Vec<f64>> = (0..BATCHES).map(|b| gradient_of(plain, b).0).collect();
    let mut mean = vec![0.0; batches[0].len()];
    batches.iter().for_each(|g| mean.iter_mut().zip(g).for_each(|(m, g)| *m += g / BATCHES as f64));
    let own =
        batches.iter().map(|g| distance(g, &mean).powi(2)).sum::<f64>() / (BATCHES - 1) as f64;
    let (exact, loss, _) = gradient(plain);
    for share in [0.1, 1.0] {
        let budget = format!("machine.added_variance={share}");
        let (_, scatter, _) = draws(&[plain, &[&budget]].concat(), &exact, loss, 40);
        let added = scatter * scatter / own;
        assert!(
            added < share && added > 0.05 * share,
            "{added} of the gradient's own variance, {share} allowed"
        );
    }
}
