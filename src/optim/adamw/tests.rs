use super::*;
use crate::model::{Gpt2Config, ParamSpec};
use crate::ops::testing::{assert_close, emulated};
use crate::rng::{Rng, Stream};

const OPTIMIZER: AdamW = AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };

/// A layout with one tensor of more than one chunk and sizes that are no multiple of any vector.
fn layout() -> Layout {
    Layout::new(&Gpt2Config::new(9001, 5, 15, 1, 3))
}

fn random(layout: &Layout, sub: u32, spread: f64) -> ParamSet {
    let rng = Rng::new(11, Stream::Init);
    let tensors = layout.entries().iter().enumerate().map(|(i, ParamSpec { shape, .. })| {
        let n: usize = shape.iter().product();
        let at = |j: usize| (rng.normal(sub + 100 * i as u32, j as u64) * spread) as f32;
        Tensor::from_vec((0..n).map(at).collect::<Vec<_>>(), shape.as_slice(), &Device::Cpu)
            .unwrap()
    });
    ParamSet::new(layout.clone(), tensors.collect())
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn all(set: &ParamSet) -> Vec<f32> {
    set.tensors().iter().flat_map(values).collect()
}

fn in_pool<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
}

/// Five updates with changing rate and scale; returns parameters and state.
fn five_updates() -> (ParamSet, State) {
    let layout = layout();
    let params = random(&layout, 1, 0.5);
    let mut state = State::new(&layout, &Device::Cpu).unwrap();
    for step in 0..5u32 {
        let grads = random(&layout, 2 + step, 3.0);
        OPTIMIZER
            .update(
                &params,
                &grads,
                &mut state,
                1e-2 / f64::from(step + 1),
                0.5 + 0.1 * step as f32,
            )
            .unwrap();
        assert!(all(&grads).iter().all(|&g| g == 0.0), "gradients are left at zero");
    }
    (params, state)
}

#[test]
fn update_follows_a_loop_written_in_f64() {
    let (params, state) = five_updates();
    assert_eq!(state.step, 5);
    let layout = layout();
    let (start, grads) =
        (random(&layout, 1, 0.5), (0..5).map(|s| random(&layout, 2 + s, 3.0)).collect::<Vec<_>>());
    for (i, ParamSpec { name, shape, .. }) in layout.entries().iter().enumerate() {
        let mut p: Vec<f64> = values(&start.tensors()[i]).into_iter().map(f64::from).collect();
        let (mut m, mut v) = (vec![0f64; p.len()], vec![0f64; p.len()]);
        for (s, grads) in grads.iter().enumerate() {
            let (lr, scale, t) =
                (1e-2 / (s + 1) as f64, f64::from(0.5 + 0.1 * s as f32), (s + 1) as i32);
            for (j, g) in values(&grads.tensors()[i]).into_iter().enumerate() {
                let g = f64::from(g) * scale;
                if shape.len() == 2 {
                    p[j] *= 1.0 - lr * 0.1;
                }
                m[j] = 0.9 * m[j] + 0.1 * g;
                v[j] = 0.95 * v[j] + 0.05 * g * g;
                let (m_hat, v_hat) =
                    (m[j] / (1.0 - 0.9f64.powi(t)), v[j] / (1.0 - 0.95f64.powi(t)));
                p[j] -= lr * m_hat / (v_hat.sqrt() + 1e-8);
            }
        }
        let pairs = [(&params, &p, 1e-6), (&state.m, &m, 2e-6), (&state.v, &v, 1e-5)];
        for (set, expected, tolerance) in pairs {
            for (j, (found, expected)) in
                values(&set.tensors()[i]).into_iter().zip(expected).enumerate()
            {
                let off = (f64::from(found) - expected).abs();
                assert!(
                    off <= tolerance * (1.0 + expected.abs()),
                    "{name}[{j}]: {found} for {expected}"
                );
            }
        }
    }
}

#[test]
fn update_equals_the_reference_in_tensor_operations() {
    let (params, state) = five_updates();
    let layout = layout();
    let (p, m, v) =
        (random(&layout, 1, 0.5), ParamSet::zeros(&layout, DType::F32, &Device::Cpu).unwrap(), {
            ParamSet::zeros(&layout, DType::F32, &Device::Cpu).unwrap()
        });
    for step in 0..5u32 {
        let g = random(&layout, 2 + step, 3.0);
        for (i, spec) in layout.entries().iter().enumerate() {
            let (lr, scale) = (1e-2 / f64::from(step + 1), 0.5 + 0.1 * step as f32);
            let s =
                OPTIMIZER.scalars(u64::from(step + 1), lr, f64::from(scale), spec.kind.decays());
            reference(&p.tensors()[i], &g.tensors()[i], &m.tensors()[i], &v.tensors()[i], &s)
                .unwrap();
        }
        assert!(all(&g).iter().all(|&g| g == 0.0));
    }
    for (found, expected) in [(&params, &p), (&state.m, &m), (&state.v, &v)] {
        for (a, b) in all(found).into_iter().zip(all(expected)) {
            assert!((a - b).abs() <= 2e-6 * (1.0 + b.abs()), "{a} for {b}");
        }
    }
}

#[test]
fn update_and_norm_have_the_same_bits_for_any_thread_count() {
    let grads = random(&layout(), 40, 1.0);
    let run = |threads| {
        let (bits, norm) = in_pool(threads, || {
            let (params, state) = five_updates();
            let sets = [&params, &state.m, &state.v].map(all);
            (
                sets.concat().into_iter().map(f32::to_bits).collect::<Vec<_>>(),
                global_norm(&grads).unwrap(),
            )
        });
        (bits, norm.to_bits())
    };
    let one = run(1);
    assert_eq!(one, run(2));
    assert_eq!(one, run(3));
}

#[test]
fn norm_is_the_euclidean_one() {
    let grads = random(&layout(), 40, 1.0);
    let expected = all(&grads).into_iter().map(|g| f64::from(g).powi(2)).sum::<f64>().sqrt();
    let found = global_norm(&grads).unwrap();
    assert!((found / expected - 1.0).abs() < 1e-12, "{found} for {expected}");
    // Squares that overflow f32 are still finite here.
    let huge = random(&layout(), 40, 1e30);
    assert!(global_norm(&huge).unwrap().is_finite());
}

#[test]
fn norm_names_the_first_tensor_that_is_not_finite() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let grads = random(&layout(), 40, 1.0);
        for (name, g) in grads.named() {
            if name == "h.0.mlp.c_fc.bias" || name == "ln_f.bias" {
                let mut changed = values(g);
                changed[7] = bad;
                g.slice_set(&Tensor::from_vec(changed, g.shape(), &Device::Cpu).unwrap(), 0, 0)
                    .unwrap();
            }
        }
        let error = global_norm(&grads).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NonFinite);
        assert!(error.to_string().contains("h.0.mlp.c_fc.bias"), "{error}");
    }
}

#[test]
fn a_scale_that_is_not_finite_changes_nothing() {
    let layout = layout();
    let (params, grads) = (random(&layout, 1, 0.5), random(&layout, 2, 1.0));
    let (before, mut state) = (all(&params), State::new(&layout, &Device::Cpu).unwrap());
    let error = OPTIMIZER.update(&params, &grads, &mut state, 1e-3, f32::INFINITY).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NonFinite);
    assert_eq!((all(&params), state.step), (before, 0));
}

#[test]
fn zero_gradients_only_decay_and_stay_finite() {
    let layout = layout();
    let params = random(&layout, 1, 0.5);
    let before = params.tensors().iter().map(values).collect::<Vec<_>>();
    let (grads, mut state) = (ParamSet::zeros(&layout, DType::F32, &Device::Cpu).unwrap(), {
        State::new(&layout, &Device::Cpu).unwrap()
    });
    OPTIMIZER.update(&params, &grads, &mut state, 0.5, 1.0).unwrap();
    for (i, before) in before.into_iter().enumerate() {
        let keep = if layout.entries()[i].shape.len() == 2 { 0.95f32 } else { 1.0 };
        assert_eq!(
            values(&params.tensors()[i]),
            before.into_iter().map(|p| p * keep).collect::<Vec<_>>()
        );
    }
}

#[test]
fn other_float_types_take_the_reference() {
    let layout = layout();
    let wide = |set: &ParamSet| {
        let tensors = set.tensors().iter().map(|t| t.to_dtype(DType::F64).unwrap());
        ParamSet::new(layout.clone(), tensors.collect())
    };
    let params = wide(&random(&layout, 1, 0.5));
    let mut state = State::new(&layout, &Device::Cpu).unwrap();
    for step in 0..5u32 {
        let grads = wide(&random(&layout, 2 + step, 3.0));
        assert!(
            (global_norm(&grads).unwrap() / global_norm(&random(&layout, 2 + step, 3.0)).unwrap()
                - 1.0)
                .abs()
                < 1e-12
        );
        OPTIMIZER
            .update(
                &params,
                &grads,
                &mut state,
                1e-2 / f64::from(step + 1),
                0.5 + 0.1 * step as f32,
            )
            .unwrap();
    }
    let (expected, _) = five_updates();
    for (found, expected) in params.tensors().iter().zip(expected.tensors()) {
        for (a, b) in values(&found.to_dtype(DType::F32).unwrap()).into_iter().zip(values(expected))
        {
            assert!((a - b).abs() <= 2e-6 * (1.0 + b.abs()), "{a} for {b}");
        }
    }
}

#[test]
fn a_gpus_kernels_give_the_same() {
    let run = || {
        let (params, state) = five_updates();
        let norm = global_norm(&random(&layout(), 3, 2.0)).unwrap();
        let all =
            params.tensors().iter().chain(state.m.tensors()).chain(state.v.tensors()).cloned();
        all.chain([Tensor::new(&[norm / 1e3], &Device::Cpu).unwrap()]).collect::<Vec<_>>()
    };
    let want = run();
    if let Some(got) = emulated(run) {
        for (got, want) in got.iter().zip(&want) {
            assert_close(got, want, 2e-6);
        }
    }
    let bad = random(&layout(), 1, 1.0);
    buffer::with_mut(&bad.tensors()[3], |g| g[2] = f32::INFINITY).unwrap();
    let message = || global_norm(&bad).unwrap_err().to_string();
    let here = message();
    for there in crate::ops::gpu::emulator::emulate(message).iter().flatten() {
        assert_eq!(there, &here, "the same tensor is named");
    }
}
