//! Every operation against its slow reference and against the machine's ceilings.
//!
//! `cargo bench --bench ops -- [RUNS] [--only TEXT]`
//!
//! First the two ceilings are measured: a large matrix product (GFLOP/s) and a sum of arrays
//! (GB/s). An operation's roofline is the longer of its operations over the one and its compulsory
//! traffic (inputs once, outputs once) over the other; `of roof` is that time over ours. The
//! reference is the formula in candle's operations, with candle's autograd where the row says `+
//! backward`; ours does the same work there. Taken in turn; medians.

mod ceilings;

use candle_core::{DType, Device, Tensor, Var};
use ceilings::{matmul_ceiling, median, memory_ceiling, seconds};
use eslm_kd::config::{Dtype, Pool, Tail};
use eslm_kd::loss::head::{self, Logits, Weigh};
use eslm_kd::loss::{Divergence, Objective};
use eslm_kd::model::{Gpt2, Gpt2Config, ParamSet};
use eslm_kd::ops::attention::{self, Keys, Shape};
use eslm_kd::ops::embed::{self, gather, scatter_add};
use eslm_kd::ops::matmul::{Precision, accumulate};
use eslm_kd::ops::{gelu, layer_norm};
use eslm_kd::optim::adamw::{self, AdamW, global_norm};
use eslm_kd::select::Selector;

type Work = Box<dyn FnMut()>;

struct Op {
    name: String,
    gflop: f64,
    /// Floats that must be read or written at least once.
    floats: usize,
    ours: Work,
    reference: Option<Work>,
}

/// A micro-batch of a model.
struct Scale {
    name: &'static str,
    batch: usize,
    context: usize,
    heads: usize,
    d: usize,
    vocab: usize,
}

const SCALES: [Scale; 3] = [
    Scale { name: "124m, 4 x 256", batch: 4, context: 256, heads: 12, d: 768, vocab: 50257 },
    Scale { name: "124m, 1 x 1024", batch: 1, context: 1024, heads: 12, d: 768, vocab: 50257 },
    Scale { name: "14m, 8 x 256", batch: 8, context: 256, heads: 6, d: 384, vocab: 8192 },
];

fn main() {
    eslm_kd::allocator::keep_freed_memory(); // as the program does
    let words: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let only = words
        .iter()
        .position(|w| w == "--only")
        .map(|at| words[at + 1].clone())
        .unwrap_or_default();
    let runs: usize = words
        .first()
        .filter(|w| *w != "--only")
        .map_or(5, |r| r.parse().expect("RUNS is a number"));
    let (gflops, gbytes) = (matmul_ceiling(&Device::Cpu, Dtype::F32), memory_ceiling());
    println!(
        "ceilings: {gflops:.0} GFLOP/s (product of 1024 x 768 x 3072), {gbytes:.1} GB/s (sum of arrays); {runs} runs"
    );
    for scale in SCALES {
        println!(
            "\n{}\n{:<34} {:>9} {:>9} {:>8} {:>9} {:>8}",
            scale.name, "op", "ours ms", "ref ms", "ratio", "roof ms", "of roof"
        );
        for op in ops(&scale).into_iter().filter(|op| op.name.contains(&only)) {
            row(op, runs, gflops, gbytes);
        }
    }
}

fn row(mut op: Op, runs: usize, gflops: f64, gbytes: f64) {
    (op.ours)();
    let (mut ours, mut reference) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        ours.push(seconds(&mut op.ours));
        if let Some(work) = &mut op.reference {
            reference.push(seconds(work));
        }
    }
    let ours = median(ours);
    let roof = (op.gflop / gflops).max(4.0 * op.floats as f64 / gbytes / 1e9);
    let (of_reference, ratio) = if reference.is_empty() {
        ("-".to_string(), "-".to_string())
    } else {
        let reference = median(reference);
        (format!("{:.2}", reference * 1e3), format!("{:.1}", reference / ours))
    };
    println!(
        "{:<34} {:>9.2} {of_reference:>9} {ratio:>8} {:>9.2} {:>7.0}%",
        op.name,
        ours * 1e3,
        roof * 1e3,
        100.0 * roof / ours
    );
}

fn random(shape: (usize, usize)) -> Tensor {
    Tensor::randn(0f32, 1f32, shape, &Device::Cpu).unwrap()
}

fn zeros(shape: (usize, usize)) -> Tensor {
    Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()
}

/// Runs candle's autograd through `f` of a fresh variable.
fn through(x: &Tensor, d: &Tensor, f: impl Fn(&Tensor) -> Tensor) {
    let x = Var::from_tensor(x).unwrap();
    let out = f(x.as_tensor());
    (out * d).unwrap().sum_all().unwrap().backward().unwrap();
}

fn ops(scale: &Scale) -> Vec<Op> {
    let &Scale { batch, context, heads, d, vocab, .. } = scale;
    let n = batch * context;
    let mut all = products(n, d);
    all.extend(element_wise(n, d));
    all.push(attention_of(Shape::new(batch, context, heads), d));
    all.extend(rows(n, d, context));
    all.extend(head_of(n, d, vocab, context));
    all.push(optimizer(d, vocab));
    all
}

fn products(n: usize, d: usize) -> Vec<Op> {
    let product = |name: &str, m: usize, k: usize, c: usize, transposed: bool| {
        let (a, b, out) =
            (random(if transposed { (k, m) } else { (m, k) }), random((k, c)), zeros((m, c)));
        let a = if transposed { a.t().unwrap() } else { a };
        let (ra, rb) = (a.clone(), b.clone());
        Op {
            name: format!("{name} {m} x {k} x {c}"),
            gflop: 2.0 * (m * k * c) as f64 / 1e9,
            floats: m * k + k * c + 2 * m * c,
            ours: Box::new(move || accumulate(&out, &a, &b, Precision::F32).unwrap()),
            reference: Some(Box::new(move || drop(ra.matmul(&rb).unwrap()))),
        }
    };
    vec![
        product("qkv", n, d, 3 * d, false),
        product("mlp up", n, d, 4 * d, false),
        product("mlp down", n, 4 * d, d, false),
        product("weight gradient", d, n, 4 * d, true),
        product("weight gradient, half", d, n / 2, 4 * d, true),
    ]
}

fn element_wise(n: usize, d: usize) -> Vec<Op> {
    let (x, upstream) = (random((n, 4 * d)), random((n, 4 * d)));
    let (rx, rd) = (x.clone(), upstream.clone());
    let gelu = Op {
        name: "gelu + backward".into(),
        gflop: 0.0,
        floats: 5 * n * 4 * d,
        ours: Box::new(move || {
            gelu::forward(&x).unwrap();
            gelu::backward(&upstream, &x).unwrap();
        }),
        reference: Some(Box::new(move || through(&rx, &rd, |x| gelu::reference(x).unwrap()))),
    };
    let (x, upstream) = (random((n, d)), random((n, d)));
    let (w, b) = (random((1, d)).flatten_all().unwrap(), random((1, d)).flatten_all().unwrap());
    let (rx, rd, rw, rb) = (x.clone(), upstream.clone(), w.clone(), b.clone());
    let (dx, dw, db) = (zeros((n, d)), w.zeros_like().unwrap(), w.zeros_like().unwrap());
    let norm = Op {
        name: "layer norm + backward".into(),
        gflop: 0.0,
        floats: 6 * n * d,
        ours: Box::new(move || {
            let normed = layer_norm::forward(&x, &w, Some(&b), 1e-5, Precision::F32).unwrap();
            let (dy, stats) = (&upstream, &normed.stats);
            layer_norm::backward(layer_norm::Backward {
                dy,
                x: &x,
                stats,
                w: &w,
                dx: &dx,
                dw: &dw,
                db: Some(&db),
            })
            .unwrap();
        }),
        reference: Some(Box::new(move || {
            through(&rx, &rd, |x| layer_norm::reference(x, &rw, Some(&rb), 1e-5).unwrap())
        })),
    };
    vec![gelu, norm]
}

fn attention_of(shape: Shape, d: usize) -> Op {
    let n = shape.batch * shape.context;
    let (qkv, upstream) = (random((n, 3 * d)), random((n, d)));
    let (rq, rd) = (qkv.clone(), upstream.clone());
    // Two products forward and five backward, each D multiply-adds for every (position, visible
    // key) pair.
    let pairs = (n * (shape.context + 1) / 2) as f64;
    Op {
        name: format!("attention + backward, T {}", shape.context),
        gflop: 7.0 * 2.0 * d as f64 * pairs / 1e9,
        floats: 3 * 3 * n * d + 3 * n * d,
        ours: Box::new(move || {
            let attended = attention::forward(&qkv, shape).unwrap();
            let (qkv, attended, dout) = (&qkv, &attended, &upstream);
            attention::backward(attention::Backward {
                qkv,
                attended,
                dout,
                rows: None,
                keys: Keys::All,
                shape,
            })
            .unwrap();
        }),
        reference: Some(Box::new(move || {
            through(&rq, &rd, |q| attention::reference(q, shape).unwrap())
        })),
    }
}

fn rows(n: usize, d: usize, context: usize) -> Vec<Op> {
    let half: Vec<u32> = (0..n as u32).filter(|i| i % 2 == 0).collect();
    let index = Tensor::new(half.as_slice(), &Device::Cpu).unwrap();
    let x = random((n, 4 * d));
    let (rx, k) = (x.clone(), half.len());
    let rows = half.clone();
    let take = Op {
        name: "gather half of the rows".into(),
        gflop: 0.0,
        floats: 2 * k * 4 * d,
        ours: Box::new(move || drop(gather(&x, &rows).unwrap())),
        reference: Some(Box::new(move || drop(rx.index_select(&index, 0).unwrap()))),
    };
    let (into, some) = (zeros((n, d)), random((k, d)));
    let (index, base, from) =
        (Tensor::new(half.as_slice(), &Device::Cpu).unwrap(), into.clone(), some.clone());
    let put = Op {
        name: "scatter half of the rows".into(),
        gflop: 0.0,
        floats: 3 * k * d,
        ours: Box::new(move || scatter_add(&into, &some, &half).unwrap()),
        reference: Some(Box::new(move || drop(base.index_add(&index, &from, 0).unwrap()))),
    };
    let scores: Vec<f32> = random((1, n)).flatten_all().unwrap().to_vec1().unwrap();
    let (valid, sorted) = (vec![true; n], scores.clone());
    let selector = Selector { alpha: 0.5, pool: Pool::Sequence, tail: Tail::High };
    let select = Op {
        name: "select half of each sequence".into(),
        gflop: 0.0,
        floats: n,
        ours: Box::new(move || drop(selector.select(&scores, &valid, context))),
        reference: Some(Box::new(move || {
            for pool in sorted.chunks(context) {
                let mut order: Vec<usize> = (0..pool.len()).collect();
                order.sort_by(|&a, &b| pool[b].total_cmp(&pool[a]));
                std::hint::black_box(order);
            }
        })),
    };
    vec![take, put, select]
}

fn head_of(n: usize, d: usize, vocab: usize, context: usize) -> Vec<Op> {
    let tokens: Vec<u32> = (0..n).map(|i| (i * 7919 % vocab) as u32).collect();
    let (wte, wpe) = (random((vocab, d)), random((context, d)));
    let (dwte, dwpe, upstream) = (zeros((vocab, d)), zeros((context, d)), random((n, d)));
    let ids = tokens.clone();
    let embedding = Op {
        name: "embedding + backward".into(),
        gflop: 0.0,
        floats: 6 * n * d,
        ours: Box::new(move || {
            embed::forward(&wte, Some(&wpe), &ids, context, 0).unwrap();
            embed::backward(&dwte, Some(&dwpe), &upstream, &ids, context).unwrap();
        }),
        reference: None, // candle's autograd forms a gradient of the whole table; nothing to learn from that
    };
    let hidden = random((n, d));
    let weight = (random((vocab, d)) * 0.05).unwrap();
    let product = 2.0 * (n * d * vocab) as f64 / 1e9;
    let (h, w, y) = (hidden.clone(), weight.clone(), tokens.clone());
    let (rh, rw) = (hidden.clone(), weight.clone());
    let scan = Op {
        name: "head scan: nll, lse, entropy".into(),
        gflop: product,
        floats: n * d + vocab * d,
        ours: Box::new(move || {
            drop(head::scan(&Logits::new(h.clone(), w.clone()), None, &y, 1.0).unwrap())
        }),
        reference: Some(Box::new(move || {
            let log_p =
                head::reference::log_softmax(&head::reference::logits(&rh, &rw).unwrap(), 1.0)
                    .unwrap();
            (log_p.exp().unwrap() * &log_p).unwrap().sum(1).unwrap();
        })),
    };
    let objective = Objective { lambda: 0.0, temperature: 1.0, divergence: Divergence::ForwardKl };
    let (h, w, y, dw) = (hidden.clone(), weight.clone(), tokens.clone(), zeros((vocab, d)));
    let ones = vec![1.0; n];
    let (rh, rw, ry) = (hidden, weight, tokens);
    let whole = Op {
        name: "head, loss and gradients".into(),
        gflop: 3.0 * product,
        floats: 2 * n * d + 3 * vocab * d,
        ours: Box::new(move || {
            let logits = Logits::new(h.clone(), w.clone());
            head::fused(
                head::PassInput {
                    student: &logits,
                    signal: None,
                    targets: &y,
                    options: 1.0.into(),
                    objective,
                },
                Weigh::Known(&ones),
                &dw,
            )
            .unwrap();
        }),
        reference: Some(Box::new(move || {
            let (h, w) = (Var::from_tensor(&rh).unwrap(), Var::from_tensor(&rw).unwrap());
            let z = head::reference::logits(h.as_tensor(), w.as_tensor()).unwrap();
            let loss = head::reference::per_token(&z, None, &ry, objective).unwrap();
            loss.sum_all().unwrap().backward().unwrap();
        })),
    };
    vec![embedding, scan, whole]
}

fn optimizer(d: usize, vocab: usize) -> Op {
    let model = Gpt2::scratch(Gpt2Config::new(vocab, 256, d, 2, d / 64), 1, &Device::Cpu).unwrap();
    let layout = model.params.layout().clone();
    let grads = ParamSet::zeros(&layout, DType::F32, &Device::Cpu).unwrap();
    let mut state = adamw::State::new(&layout, &Device::Cpu).unwrap();
    let parameters = model.config.parameters();
    let adamw = AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
    Op {
        name: format!("norm and AdamW, {:.1} M", parameters as f64 / 1e6),
        gflop: 0.0,
        // The norm reads the gradient; the update reads and writes weight, gradient and both
        // moments.
        floats: 9 * parameters,
        ours: Box::new(move || {
            global_norm(&grads).unwrap();
            adamw.update(&model.params, &grads, &mut state, 1e-4, 1.0).unwrap();
        }),
        reference: None,
    }
}
