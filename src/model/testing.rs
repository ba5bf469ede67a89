//! What the tests of several parts of the model share.

use super::{Gpt2, Gpt2Config, ParamSet};
use candle_core::{DType, Device};

/// A model of random weights, the same for the same shape, in the given float type.
pub fn scratch(config: Gpt2Config, dtype: DType) -> Gpt2 {
    let Gpt2 { config, params, precision, activations } =
        Gpt2::scratch(config, 5, &Device::Cpu).unwrap();
    let tensors = params.tensors().iter().map(|t| t.to_dtype(dtype).unwrap()).collect();
    Gpt2 { config, params: ParamSet::new(params.layout().clone(), tensors), precision, activations }
}
