//! What flows below the last block: exact, sparse against stopped gradients, sampled against its
//! expectation.

use super::*;
use crate::model::Block;
use crate::model::RowBudget;
use crate::model::parts::{Positions, Scores};
use crate::model::testing::{of_other_parts, scratch};
use crate::ops::testing::{assert_close, autograd, bits, random};
use candle_core::{DType, Device};

const CONTEXT: usize = 7;
const ROWS: [u32; 6] = [0, 2, 5, 8, 12, 13];

fn model(dtype: DType) -> Gpt2 {
    scratch(Gpt2Config { initializer_range: 0.3, ..Gpt2Config::new(29, 11, 15, 3, 3) }, dtype)
}

fn tokens() -> Vec<u32> {
    (0..2 * CONTEXT as u32).map(|i| (i * i + 3 * i) % 29).collect()
}

fn upstream(rows: usize, dtype: DType) -> Tensor {
    random((rows, 15), 3).to_dtype(dtype).unwrap()
}

/// Gradients of every parameter, and the rows that the backward worked on.
fn gradients(model: &Gpt2, rows: Option<&[u32]>, flow: Flow<'_>) -> (Vec<Tensor>, Reached) {
    let dtype = model.params.wte().dtype();
    let grads = ParamSet::zeros(model.params.layout(), dtype, &Device::Cpu).unwrap();
    let tape = model.forward_with_tape(&tokens(), CONTEXT).unwrap().1;
    let d = upstream(rows.map_or(2 * CONTEXT, <[u32]>::len), dtype);
    let reached = model.backward_through(tape, rows, &d, &grads, flow, &mut |_| Ok(())).unwrap();
    (grads.tensors().to_vec(), reached)
}

/// Queries and keys normed and rotated, by the formulas.
fn prepared(config: &Gpt2Config, l: usize, p: Block<'_>, qkv: &Tensor) -> Result<Tensor> {
    let (q, kv, dim) = (config.query_width(), config.kv_width(), config.head_dim());
    let n = qkv.dim(0)?;
    let part = |from, width, norm: Option<&Tensor>| -> Result<Tensor> {
        let mut part = qkv.narrow(1, from, width)?.contiguous()?;
        if let Some(w) = norm {
            let heads = part.reshape(((), w.dim(0)?))?;
            let normed = layer_norm::reference(&heads, w, None, config.layer_norm_epsilon)?;
            part = normed.reshape((n, width))?;
        }
        let Positions::Rotary(rotary) = &config.parts.positions else { return Ok(part) };
        if rotary.without.contain(l) {
            return Ok(part);
        }
        let (frequencies, factor) = rotary.frequencies(dim);
        let table = |f: fn(f64) -> f64| -> Result<Tensor> {
            let of_row = |r: usize| {
                let angles = frequencies.iter().map(move |w| (r % CONTEXT) as f64 * w);
                angles.map(|a| factor * f(a)).collect::<Vec<f64>>()
            };
            let all: Vec<f64> = (0..n).flat_map(of_row).collect();
            Ok(Tensor::from_vec(all, (n, 1, frequencies.len()), &Device::Cpu)?)
        };
        crate::ops::rotary::reference(&part, &table(f64::cos)?, &table(f64::sin)?, width / dim)
    };
    let (queries, keys) = (part(0, q, p.q_norm_w)?, part(q, kv, p.k_norm_w)?);
    Ok(Tensor::cat(&[queries, keys, qkv.narrow(1, q + kv, kv)?], 1)?)
}

/// The trunk in the ops' references, with keys and values of all rows but the given ones taken for
/// constants.
fn stopped(config: &Gpt2Config, params: &ParamSet, rows: &[u32]) -> Result<Tensor> {
    let (n, eps) = (2 * CONTEXT, config.layer_norm_epsilon);
    let (q, all) = (config.query_width(), config.query_width() + 2 * config.kv_width());
    let free: Vec<f64> = (0..n as u32)
        .flat_map(|i| (0..all).map(move |c| f64::from(u8::from(c < q || rows.contains(&i)))))
        .collect();
    let free = Tensor::from_vec(free, (n, all), &Device::Cpu)?;
    let constant = (1.0 - &free)?;
    let linear = |x: &Tensor, w: &Tensor, b: Option<&Tensor>| -> Result<Tensor> {
        let y = x.matmul(w)?;
        Ok(if let Some(b) = b { y.broadcast_add(b)? } else { y })
    };
    let shape = Shape { kv_heads: config.kv_heads(), ..Shape::new(2, CONTEXT, config.n_head) };
    let mut x = match params.wpe() {
        Some(wpe) => embed::reference(params.wte(), wpe, &tokens(), CONTEXT, 0)?,
        None => params.wte().index_select(&Tensor::new(tokens(), &Device::Cpu)?, 0)?,
    };
    for l in 0..config.n_layer {
        let p = params.block(l);
        let (pre, post) = match config.parts.residual {
            Residual::PreNorm | Residual::Parallel => (true, false),
            Residual::PostNorm => (false, true),
        };
        let norm = |there: bool, x: Tensor, w: &Tensor, b: Option<&Tensor>| match there {
            true => layer_norm::reference(&x, w, b, eps),
            false => Ok(x),
        };
        let input = norm(pre, x.clone(), p.ln_1_w, p.ln_1_b)?;
        let qkv = prepared(config, l, p, &linear(&input, p.attn_w, p.attn_b)?)?;
        let qkv = ((&qkv * &free)? + (qkv.detach() * &constant)?)?;
        let scores = config.parts.scores;
        let scale = (scores != Scores::default()).then(|| scores.factor(l, config.head_dim()));
        let shape = Shape { scale, window: config.window(l), ..shape };
        let attended = attention::reference(&qkv, shape)?;
        let out = linear(&attended, p.attn_proj_w, p.attn_proj_b)?;
        let mid = (&x + norm(post, out, p.ln_1_w, p.ln_1_b)?)?;
        let read = if config.parts.residual == Residual::Parallel { &x } else { &mid };
        let fc = linear(&norm(pre, read.clone(), p.ln_2_w, p.ln_2_b)?, p.fc_w, p.fc_b)?;
        let active = activation::reference(config.parts.mlp, &fc)?;
        let out = linear(&active, p.proj_w, p.proj_b)?;
        x = (&mid + norm(post, out, p.ln_2_w, p.ln_2_b)?)?;
    }
    let out = layer_norm::reference(&x, params.ln_f_w(), params.ln_f_b(), eps)?;
    Ok(out.index_select(&Tensor::new(rows, &Device::Cpu)?, 0)?)
}

fn norm(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}

#[test]
fn sparse_is_the_gradient_with_the_other_rows_keys_and_values_stopped() {
    for (dtype, tolerance) in [(DType::F32, 2e-5f64), (DType::F64, 1e-12)] {
        // Tables of cos and sin are f32: with them 1e-12 becomes a few 1e-6.
        let others =
            of_other_parts(dtype).into_iter().map(|model| (model, (2.5 * tolerance).max(5e-6)));
        for (model, tolerance) in [(model(dtype), tolerance)].into_iter().chain(others) {
            for rows in [&ROWS[..], &[13], &[3, 4, 5, 6]] {
                let inputs: Vec<&Tensor> = model.params.tensors().iter().collect();
                let (_, want) = autograd(&inputs, &upstream(rows.len(), dtype), |v| {
                    stopped(
                        &model.config,
                        &ParamSet::new(model.params.layout().clone(), v.to_vec()),
                        rows,
                    )
                });
                let (got, reached) = gradients(&model, Some(rows), Flow::Sparse);
                let every = 3 * rows.len() as u64;
                assert_eq!(reached, Reached { outputs: every, keys: every });
                for (got, want) in got.iter().zip(&want) {
                    assert_close(got, want, tolerance);
                }
            }
        }
    }
}

#[test]
fn exact_is_the_gradient_of_the_formula_with_every_part() {
    let every: Vec<u32> = (0..2 * CONTEXT as u32).collect();
    for (dtype, tolerance) in [(DType::F32, 2e-5), (DType::F64, 5e-6)] {
        for model in of_other_parts(dtype) {
            let inputs: Vec<&Tensor> = model.params.tensors().iter().collect();
            for rows in [&every[..], &ROWS] {
                let d = upstream(rows.len(), dtype);
                let (hidden, want) = autograd(&inputs, &d, |v| {
                    let params = ParamSet::new(model.params.layout().clone(), v.to_vec());
                    let all = stopped(&model.config, &params, &every)?;
                    Ok(all.index_select(&Tensor::new(rows, &Device::Cpu)?, 0)?)
                });
                let forward = model.forward(&tokens(), CONTEXT).unwrap();
                assert_close(&pick(&forward, Some(rows)).unwrap(), &hidden, tolerance);
                let (got, _) = gradients(&model, Some(rows), Flow::Exact);
                for (got, want) in got.iter().zip(&want) {
                    assert_close(got, want, tolerance);
                }
            }
        }
    }
}

#[test]
fn every_row_makes_all_flows_the_same_bit_for_bit() {
    for model in of_other_parts(DType::F32).into_iter().chain([model(DType::F32)]) {
        let whole = RowSampler::new(RowBudget::Share(1.0), 1, (0..14).collect(), CONTEXT);
        let (exact, reached) = gradients(&model, None, Flow::Exact);
        assert_eq!(reached, Reached { outputs: 3 * 14, keys: 3 * 14 });
        for flow in [Flow::Sparse, Flow::Sampled(&whole)] {
            assert!(bits(&gradients(&model, None, flow).0) == bits(&exact), "{flow:?}");
        }
        let (some, reached) = gradients(&model, Some(&ROWS), Flow::Exact);
        assert_eq!(reached, Reached { outputs: 6 + 2 * 14, keys: 3 * 14 });
        assert!(bits(&gradients(&model, Some(&ROWS), Flow::Sampled(&whole)).0) == bits(&some));
        assert!(bits(&gradients(&model, Some(&ROWS), Flow::Sparse).0) != bits(&some));
    }
}

#[test]
fn nothing_selected_is_nothing_done() {
    let model = model(DType::F32);
    let (grads, reached) = gradients(&model, Some(&[]), Flow::Sparse);
    assert!(reached == Reached::default() && bits(&grads).iter().all(|b| *b == 0));
}

#[test]
fn the_mean_of_sampled_gradients_is_the_exact_one() {
    // Of the others the one with a norm of heads, whose rows the draws gather as well.
    for model in [model(DType::F32), of_other_parts(DType::F32).swap_remove(2)] {
        mean_is_exact(&model);
    }
}

fn mean_is_exact(model: &Gpt2) {
    const DRAWS: u64 = 400;
    let flat = |t: &Tensor| -> Vec<f64> {
        t.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect()
    };
    for rows in [None, Some(&ROWS[..])] {
        let exact: Vec<Vec<f64>> = gradients(model, rows, Flow::Exact).0.iter().map(flat).collect();
        let sparse: Vec<Vec<f64>> =
            gradients(model, rows, Flow::Sparse).0.iter().map(flat).collect();
        let mut sums: Vec<(Vec<f64>, f64)> =
            exact.iter().map(|e| (vec![0.0; e.len()], 0.0)).collect();
        let (mut reached, mut keys) = (0, 0);
        for draw in 0..DRAWS {
            let sampler = RowSampler::new(
                RowBudget::Share(0.4),
                1,
                (0..14).map(|i| draw * 14 + i).collect(),
                CONTEXT,
            );
            let (grads, rows) = gradients(model, rows, Flow::Sampled(&sampler));
            (reached, keys) = (reached + rows.outputs, keys + rows.keys);
            for ((sum, squares), (g, exact)) in
                sums.iter_mut().zip(grads.iter().map(flat).zip(&exact))
            {
                for ((sum, g), e) in sum.iter_mut().zip(g).zip(exact) {
                    *sum += g;
                    *squares += (g - e) * (g - e);
                }
            }
        }
        let share = reached as f64 / (DRAWS * 3 * 14) as f64;
        // Two fifths, or fewer where a draw has left fewer with a gradient: no position sees a
        // later one.
        assert!((0.3..0.41).contains(&share), "{share}");
        let share = keys as f64 / (DRAWS * 3 * 14) as f64;
        assert!((0.3..0.41).contains(&share), "keys: {share}");
        for (i, ((sum, squares), exact)) in sums.iter().zip(&exact).enumerate() {
            let off: Vec<f64> = sum.iter().zip(exact).map(|(s, e)| s / DRAWS as f64 - e).collect();
            // The expected length of `off` if there is no bias; few-element tensors scatter around
            // it.
            let error = (squares / (DRAWS * DRAWS) as f64).sqrt();
            assert!(norm(&off) < 3.0 * error + 1e-6, "tensor {i}: {} for {error}", norm(&off));
            if rows.is_some() && i == 0 {
                let bias: Vec<f64> = sparse[i].iter().zip(exact).map(|(s, e)| s - e).collect();
                assert!(
                    norm(&bias) > 3.0 * error,
                    "the same measure finds the bias of the sparse backward"
                );
            }
        }
    }
}

#[test]
fn recomputed_activations_give_the_same_bits() {
    for kept in of_other_parts(DType::F32).into_iter().chain([model(DType::F32)]) {
        let again = Gpt2 { activations: Activations::Recompute, ..kept.clone() };
        let drawn = RowSampler::new(RowBudget::Share(0.5), 1, (0..14).collect(), CONTEXT);
        for flow in [Flow::Exact, Flow::Sparse, Flow::Sampled(&drawn)] {
            for rows in [None, Some(&ROWS[..])] {
                assert!(
                    bits(&gradients(&again, rows, flow).0) == bits(&gradients(&kept, rows, flow).0),
                    "{flow:?}"
                );
            }
        }
        let held = |model: &Gpt2| {
            let whole = |taped: &Taped| matches!(taped, Taped::Whole(_));
            model
                .forward_with_tape(&tokens(), CONTEXT)
                .unwrap()
                .1
                .blocks
                .iter()
                .filter(|b| whole(b))
                .count()
        };
        assert_eq!((held(&kept), held(&again)), (3, 0));
    }
}
