//! The trunk and head on factors rounded to bf16.

use super::*;
use crate::loss::Divergence;
use crate::loss::head::{self, Objective};
use crate::ops::matmul::Bf16;
use crate::ops::testing::{assert_close, random};
use candle_core::{DType, Device};

/// Loss sum of a small model, and gradients of it and of `upstream` times the hidden vectors.
fn gradients(model: &Gpt2, upstream: &Tensor) -> (f64, ParamSet) {
    let tokens: Vec<u32> = (0..32).map(|i| i * 7 % 50).collect();
    let (hidden, tape) = model.forward_with_tape(&tokens, 16).unwrap();
    let grads = ParamSet::zeros(model.params.layout(), DType::F32, &Device::Cpu).unwrap();
    let logits = model.logits(hidden);
    let stats = head::scan(&logits, None, &tokens, 1.0).unwrap();
    let objective = Objective { lambda: 0.0, temperature: 1.0, divergence: Divergence::ForwardKl };
    let loss = head::loss(
        head::LossInput {
            student: &logits,
            signal: None,
            stats: &stats,
            targets: &tokens,
            weights: &[1.0; 32],
            objective,
        },
        grads.wte(),
    )
    .unwrap();
    model.backward(tape, None, &(loss.d_hidden + upstream).unwrap(), &grads).unwrap();
    (loss.sum, grads)
}

fn norm(t: &Tensor) -> f64 {
    t.to_dtype(DType::F64)
        .unwrap()
        .sqr()
        .unwrap()
        .sum_all()
        .unwrap()
        .to_scalar::<f64>()
        .unwrap()
        .sqrt()
}

#[test]
fn bf16_products_give_nearly_the_same_loss_and_gradients() {
    let Ok(chip) = Bf16::detect() else { return };
    let exact = Gpt2::scratch(Gpt2Config::new(50, 16, 48, 2, 3), 5, &Device::Cpu).unwrap();
    let model = Gpt2 { precision: Precision::Bf16(chip), ..exact.clone() };
    let upstream = random((32, 48), 3);
    let ((sum, found), (want_sum, want)) =
        (gradients(&model, &upstream), gradients(&exact, &upstream));
    assert!(sum != want_sum && (sum - want_sum).abs() < 1e-3 * want_sum, "{sum} for {want_sum}");
    for ((name, found), (_, want)) in found.named().zip(want.named()) {
        if name.ends_with("attn.c_attn.bias") {
            continue; // a third of it is rounding noise: see below
        }
        // Factors err by at most 2^-8 each, at random; about ten products lie between the loss and
        // the first block.
        let error = norm(&(found - want).unwrap()) / norm(want);
        assert!(error < 0.02, "{name}: relative error {error}");
    }
    // The key bias has no gradient; queries' and values' have.
    for part in [0, 96] {
        let of = |set: &ParamSet| set.block(1).attn_b.unwrap().narrow(0, part, 48).unwrap();
        assert!(norm(&(of(&found) - of(&want)).unwrap()) < 0.02 * norm(&of(&want)));
    }
}

#[test]
fn with_bf16_the_backward_of_some_rows_is_that_of_zeros_elsewhere() {
    let Ok(chip) = Bf16::detect() else { return };
    let exact = Gpt2::scratch(Gpt2Config::new(50, 16, 48, 2, 3), 5, &Device::Cpu).unwrap();
    let model = Gpt2 { precision: Precision::Bf16(chip), ..exact };
    let (rows, some) = ([1, 4, 17, 30], random((4, 48), 4));
    let tokens: Vec<u32> = (0..32).map(|i| i * 7 % 50).collect();
    let run = |rows: Option<&[u32]>, d: &Tensor| {
        let (_, tape) = model.forward_with_tape(&tokens, 16).unwrap();
        let grads = ParamSet::zeros(model.params.layout(), DType::F32, &Device::Cpu).unwrap();
        model.backward(tape, rows, d, &grads).unwrap();
        grads
    };
    let dense = Tensor::zeros((32, 48), DType::F32, &Device::Cpu).unwrap();
    scatter_add(&dense, &some, &rows).unwrap();
    let (sparse, dense) = (run(Some(&rows), &some), run(None, &dense));
    for ((_, a), (_, b)) in sparse.named().zip(dense.named()) {
        // The order of f32 sums differs, and what is rounded next may then fall to the other
        // neighbour.
        assert_close(a, b, 1e-3);
    }
}
