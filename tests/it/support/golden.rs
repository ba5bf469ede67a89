//! What PyTorch computed: the files of `tests/golden`, described in `tests/reference/README.md`.

use candle_core::{DType, Device, Tensor};
use eslm_kd::model::{Gpt2, Layout, ParamSet, ParamSpec};
use eslm_kd::store::weights::parse_config;
use std::collections::HashMap;
use std::path::PathBuf;

/// One golden file.
pub struct Golden {
    tensors: HashMap<String, Tensor>,
    metadata: HashMap<String, String>,
}

impl Golden {
    /// Opens `tests/golden/NAME.safetensors`.
    pub fn open(name: &str) -> Self {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join(format!("tests/golden/{name}.safetensors"));
        let bytes = std::fs::read(&path).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = header.metadata().clone().unwrap_or_default();
        Self {
            tensors: candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap(),
            metadata,
        }
    }

    /// A tensor of the file, as stored.
    pub fn tensor(&self, name: &str) -> &Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("the golden file has no tensor {name}"))
    }

    /// Names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// A setting, as JSON text.
    pub fn metadata(&self, name: &str) -> &str {
        &self.metadata[name]
    }

    /// All values of a tensor, row-major.
    pub fn values(&self, name: &str) -> Vec<f64> {
        values(self.tensor(name))
    }

    /// A stored scalar.
    pub fn scalar(&self, name: &str) -> f64 {
        let all = self.values(name);
        assert_eq!(all.len(), 1, "{name} is no scalar");
        all[0]
    }

    /// Ids or indices, row-major.
    pub fn ids(&self, name: &str) -> Vec<u32> {
        let all = self.tensor(name).flatten_all().unwrap().to_vec1::<i64>().unwrap();
        all.into_iter().map(|id| u32::try_from(id).unwrap()).collect()
    }

    /// The model under `role.` ("student" or "teacher").
    pub fn model(&self, role: &str) -> Gpt2 {
        let config = parse_config(self.metadata[&format!("{role}_config")].as_bytes()).unwrap();
        let layout = Layout::new(&config);
        let tensors = layout.entries().iter().map(|ParamSpec { name, shape, .. }| {
            let tensor = self.tensor(&format!("{role}.{name}"));
            assert_eq!(tensor.dims(), shape.as_slice(), "{role}.{name}");
            tensor.copy().unwrap()
        });
        let params = ParamSet::new(layout.clone(), tensors.collect());
        Gpt2::new(config, params)
    }
}

/// All values of a float tensor in f64, row-major.
pub fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Asserts `|got - want| <= tolerance` elementwise; NaN fails.
#[track_caller]
pub fn assert_within(what: &str, got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}: number of values");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(
            (g - w).abs() <= tolerance,
            "{what}[{i}]: got {g}, want {w}, off by {:e} > {tolerance:e}",
            (g - w).abs()
        );
    }
}

/// Largest magnitude.
pub fn largest(all: &[f64]) -> f64 {
    all.iter().fold(0.0, |m, x| f64::max(m, x.abs()))
}

/// Compares gradients tensor by tensor, each within `tolerance` of its own largest value; the key
/// biases, whose gradient is 0 (softmax ignores a constant over keys), within 1e-5 absolutely.
/// Every tensor must carry some gradient.
#[track_caller]
pub fn assert_gradients(
    what: &str,
    got: &ParamSet,
    want: impl Fn(&str) -> Vec<f64>,
    tolerance: f64,
) {
    for (name, tensor) in got.named() {
        let (got, want) = (values(tensor), want(name));
        let top = largest(&want);
        assert!(top > 0.0 && largest(&got) > 0.1 * top, "{what}: {name} received no gradient");
        let parts = if name.ends_with("c_attn.bias") {
            let d = want.len() / 3;
            vec![(0..d, tolerance * top), (d..2 * d, 1e-5), (2 * d..3 * d, tolerance * top)]
        } else {
            vec![(0..want.len(), tolerance * top)]
        };
        for (range, tolerance) in parts {
            assert_within(
                &format!("{what}: {name} {range:?}"),
                &got[range.clone()],
                &want[range],
                tolerance,
            );
        }
    }
}
