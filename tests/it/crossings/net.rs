//! GPT-2 and its losses as their formulas stand, in f64, with candle's automatic differentiation.

use candle_core::{D, DType, Device, Result, Tensor, Var};
use eslm_kd::config::{Divergence, ObjectivePlan};
use eslm_kd::model::Gpt2;
use std::collections::HashMap;

/// A model's parameters by name, each a leaf of the graph.
pub struct Net {
    pub vars: Vec<(String, Var)>,
    by_name: HashMap<String, usize>,
    heads: usize,
    layers: usize,
    epsilon: f64,
}

impl Net {
    pub fn new(model: &Gpt2) -> Result<Self> {
        let named = model.params.named();
        let vars = named
            .map(|(name, t)| Ok((name.to_string(), Var::from_tensor(&t.to_dtype(DType::F64)?)?)));
        let vars: Vec<(String, Var)> = vars.collect::<Result<_>>()?;
        let by_name = vars.iter().enumerate().map(|(i, (name, _))| (name.clone(), i)).collect();
        let config = &model.config;
        Ok(Self {
            vars,
            by_name,
            heads: config.n_head,
            layers: config.n_layer,
            epsilon: config.layer_norm_epsilon,
        })
    }

    pub fn get(&self, name: &str) -> &Tensor {
        self.vars[self.by_name[name]].1.as_tensor()
    }

    pub fn layers(&self) -> usize {
        self.layers
    }

    /// Hidden vectors after the first `layers` blocks and the final norm, [B T, D]. Keys and values
    /// of positions whose `open` [B T, 1] is 0 count as constants.
    pub fn hidden(
        &self,
        tokens: &[u32],
        context: usize,
        layers: usize,
        open: Option<&Tensor>,
    ) -> Result<Tensor> {
        let ids = Tensor::new(tokens, &Device::Cpu)?;
        let places: Vec<u32> = (0..tokens.len()).map(|i| (i % context) as u32).collect();
        let places = Tensor::new(places, &Device::Cpu)?;
        let mut x = (self.get("wte.weight").index_select(&ids, 0)?
            + self.get("wpe.weight").index_select(&places, 0)?)?;
        for l in 0..layers {
            let of = |name: &str| self.get(&format!("h.{l}.{name}"));
            let linear = |x: &Tensor, name: &str| {
                x.matmul(of(&format!("{name}.weight")))?.broadcast_add(of(&format!("{name}.bias")))
            };
            let normed = self.norm(&x, of("ln_1.weight"), of("ln_1.bias"))?;
            let attended = self.attend(&linear(&normed, "attn.c_attn")?, context, open)?;
            x = (x + linear(&attended, "attn.c_proj")?)?;
            let normed = self.norm(&x, of("ln_2.weight"), of("ln_2.bias"))?;
            x = (x + linear(&gelu(&linear(&normed, "mlp.c_fc")?)?, "mlp.c_proj")?)?;
        }
        self.norm(&x, self.get("ln_f.weight"), self.get("ln_f.bias"))
    }

    /// Logits of hidden vectors: the head is the token embedding.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        hidden.matmul(&self.get("wte.weight").t()?)
    }

    fn norm(&self, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let x = x.broadcast_sub(&x.mean_keepdim(1)?)?;
        let root = (x.sqr()?.mean_keepdim(1)? + self.epsilon)?.sqrt()?;
        x.broadcast_div(&root)?.broadcast_mul(weight)?.broadcast_add(bias)
    }

    fn attend(&self, qkv: &Tensor, context: usize, open: Option<&Tensor>) -> Result<Tensor> {
        let (n, width) = (qkv.dim(0)?, qkv.dim(1)? / 3);
        let stopped = |x: Tensor| match open {
            None => Ok(x),
            Some(open) => x.broadcast_mul(open)? + x.detach().broadcast_mul(&(1.0 - open)?)?,
        };
        let by_head = |x: Tensor| {
            x.reshape((n / context, context, self.heads, width / self.heads))?
                .transpose(1, 2)?
                .contiguous()
        };
        let q = by_head(qkv.narrow(1, 0, width)?)?;
        let k = by_head(stopped(qkv.narrow(1, width, width)?)?)?;
        let v = by_head(stopped(qkv.narrow(1, 2 * width, width)?)?)?;
        let scale = 1.0 / ((width / self.heads) as f64).sqrt();
        let later = |i: usize| if i % context > i / context { -1e30 } else { 0.0 };
        let mask: Vec<f64> = (0..context * context).map(later).collect();
        let mask = Tensor::from_vec(mask, (context, context), &Device::Cpu)?;
        let scores = (q.matmul(&k.t()?.contiguous()?)? * scale)?.broadcast_add(&mask)?;
        let weights = log_softmax(&scores, 1.0)?.exp()?;
        weights.matmul(&v)?.transpose(1, 2)?.contiguous()?.reshape((n, width))
    }
}

/// GPT-2's: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
fn gelu(x: &Tensor) -> Result<Tensor> {
    let inner = ((x + (x.powf(3.0)? * 0.044_715)?)? * (2.0 / std::f64::consts::PI).sqrt())?;
    (x * 0.5)? * (inner.tanh()? + 1.0)?
}

pub fn log_softmax(z: &Tensor, tau: f64) -> Result<Tensor> {
    let z = (z / tau)?;
    let z = z.broadcast_sub(&z.max_keepdim(D::Minus1)?.detach())?;
    z.broadcast_sub(&z.exp()?.sum_keepdim(D::Minus1)?.log()?)
}

/// -ln p(target) of each row of logits.
pub fn nll(z: &Tensor, targets: &[u32]) -> Result<Tensor> {
    let targets = Tensor::new(targets, &Device::Cpu)?.unsqueeze(1)?;
    log_softmax(z, 1.0)?.gather(&targets, 1)?.squeeze(1)?.neg()
}

/// H(p) of each row of logits.
pub fn entropy(z: &Tensor) -> Result<Tensor> {
    let log = log_softmax(z, 1.0)?;
    (log.exp()? * log)?.sum(1)?.neg()
}

/// KL(a || b) of rows of log probabilities.
pub fn kl(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    (a.exp()? * (a - b)?)?.sum(1)
}

/// The objective's distance between teacher and student, from rows of their log probabilities.
pub fn distance(objective: &ObjectivePlan, log_p: &Tensor, log_q: &Tensor) -> Result<Tensor> {
    let (p, q) = (log_p.exp()?, log_q.exp()?);
    let mixed = |x: &Tensor, y: &Tensor, share: f64| ((x * share)? + (y * (1.0 - share))?)?.log();
    match objective.divergence {
        Divergence::ForwardKl => kl(log_q, log_p),
        Divergence::ReverseKl => kl(log_p, log_q),
        Divergence::Jsd => {
            let beta = objective.beta;
            let m = mixed(&q, &p, beta)?;
            (kl(log_q, &m)? * beta)? + (kl(log_p, &m)? * (1.0 - beta))?
        }
        Divergence::SkewKl => kl(log_q, &mixed(&q, &p, objective.skew)?),
        Divergence::SkewReverseKl => kl(log_p, &mixed(&p, &q, objective.skew)?),
        Divergence::Tv => (p - q)?.abs()?.sum(1)? * 0.5,
    }
}

/// All numbers of a tensor.
pub fn numbers(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64).and_then(|x| x.flatten_all()?.to_vec1()).expect("a tensor of floats")
}
