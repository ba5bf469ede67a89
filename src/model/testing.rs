//! What the tests of several parts of the model share.

use super::parts::{
    Activation, Biases, Blocks, Mlp, Norm, Positions, QkNorm, Residual, RopeScaling, Rotary,
    Scores, Window,
};
use super::{Family, Gpt2, Gpt2Config, ParamSet, Parts};
use crate::ops::testing::random;
use candle_core::{DType, Device};

/// A model of random weights, the same for the same shape, in the given float type.
pub fn scratch(config: Gpt2Config, dtype: DType) -> Gpt2 {
    let Gpt2 { config, params, precision, activations } =
        Gpt2::scratch(config, 5, &Device::Cpu).unwrap();
    let tensors = params.tensors().iter().map(|t| t.to_dtype(dtype).unwrap()).collect();
    Gpt2 { config, params: ParamSet::new(params.layout().clone(), tensors), precision, activations }
}

/// Models of other parts, of 29 tokens, 11 positions, width 15 and three blocks: each part in one of
/// them at least, all parameters away from their start.
pub fn of_other_parts(dtype: DType) -> Vec<Gpt2> {
    let rotary = |scaling| Positions::Rotary(Rotary::new(100.0, scaling));
    let llama = Parts {
        family: Family::Llama,
        n_kv_head: Some(1),
        head_dim: Some(4),
        positions: rotary(RopeScaling::Linear { factor: 2.0 }),
        norm: Norm::Rms,
        biases: Biases { qkv: false, output: false, mlp: false },
        mlp: Mlp { activation: Activation::Silu, gated: true },
        ..Parts::default()
    };
    let qwen2 = Parts {
        family: Family::Qwen2,
        n_kv_head: None,
        head_dim: Some(6),
        biases: Biases { qkv: true, output: false, mlp: false },
        window: Some(Window { size: 4, blocks: Blocks::Of(vec![0, 2]) }),
        ..llama.clone()
    };
    let qwen3 = Parts { family: Family::Qwen3, qk_norm: QkNorm::Head, ..llama.clone() };
    let mistral = Parts {
        family: Family::Mistral,
        window: Some(Window { size: 3, blocks: Blocks::All }),
        ..llama.clone()
    };
    let olmo2 = Parts {
        family: Family::Olmo2,
        residual: Residual::PostNorm,
        qk_norm: QkNorm::Whole,
        ..llama.clone()
    };
    let smollm3 = Parts {
        family: Family::SmolLm3,
        positions: Positions::Rotary(Rotary {
            without: Blocks::Of(vec![1]),
            ..Rotary::new(100.0, RopeScaling::Default)
        }),
        ..llama.clone()
    };
    let neox = Parts {
        family: Family::GptNeoX,
        residual: Residual::Parallel,
        positions: Positions::Rotary(Rotary {
            share: 0.5,
            ..Rotary::new(100.0, RopeScaling::Default)
        }),
        mlp: Mlp { activation: Activation::Gelu, gated: false },
        ..Parts::default()
    };
    let gpt2 = Parts {
        scores: Scores { by_width: false, by_layer: true },
        mlp: Mlp { activation: Activation::Gelu, gated: false },
        ..Parts::default()
    };
    let all = [llama, qwen2, qwen3, gpt2, mistral, olmo2, smollm3, neox].into_iter().enumerate();
    all.map(|(i, parts)| {
        let shape = Gpt2Config { n_inner: Some(10), ..Gpt2Config::new(29, 11, 15, 3, 3) };
        let model = scratch(Gpt2Config { initializer_range: 0.3, parts, ..shape }, dtype);
        let moved = model.params.tensors().iter().enumerate().map(|(j, tensor)| {
            let noise = random(tensor.shape(), (100 * i + j) as u32).to_dtype(dtype).unwrap();
            (tensor + (noise * 0.1).unwrap()).unwrap()
        });
        let params = ParamSet::new(model.params.layout().clone(), moved.collect());
        Gpt2 { params, ..model }
    })
    .collect()
}
