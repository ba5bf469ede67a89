//! Compiles the kernels for a GPU to PTX, under the feature `cuda` alone: nobody else needs nvcc,
//! or notices this file.
//!
//! PTX is for the oldest chip that is to run it, `CUDA_COMPUTE_CAP` (80 if unset, an A100); the
//! driver compiles it for the chip at hand. `CUDA_HOME` or `CUDA_PATH` names the toolkit, whose
//! nvcc is otherwise looked for on the PATH.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Sources under src; `src/ops/gpu/device.rs` embeds what they compile to by their last names.
const SOURCES: [&str; 10] = [
    "loss/head/head",
    "ops/activation/activation",
    "ops/attention/attention",
    "ops/embed/embed",
    "ops/gelu/gelu",
    "ops/layer_norm/layer_norm",
    "ops/matmul/matmul",
    "ops/rotary/rotary",
    "optim/adamw/adamw",
    "optim/travel",
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    for name in ["CUDA_COMPUTE_CAP", "CUDA_HOME", "CUDA_PATH", "NVCC"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    for folder in ["loss", "ops", "optim"] {
        println!("cargo::rerun-if-changed=src/{folder}");
    }
    if let Err(why) = SOURCES.iter().try_for_each(|source| compile(source)) {
        println!("cargo::error={why}");
    }
}

fn compile(source: &str) -> Result<(), String> {
    let file = Path::new("src").join(source).with_extension("cu");
    let name = file.file_stem().unwrap_or_default();
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default())
        .join(name)
        .with_extension("ptx");
    let capability =
        std::env::var("CUDA_COMPUTE_CAP").unwrap_or_else(|_| "80".into()).replace('.', "");
    let mut command = Command::new(nvcc());
    command.args(["-ptx", "-std=c++17", "-O3", "-Werror", "all-warnings"]);
    command
        .arg(format!("-arch=compute_{capability}"))
        .arg("-I")
        .arg("src/ops/gpu")
        .arg("-o")
        .arg(&out)
        .arg(&file);
    let done = command.output().map_err(|e| {
        format!(
            "the feature cuda needs NVIDIA's compiler, and {:?} cannot be run: {e}; set CUDA_HOME",
            command.get_program()
        )
    })?;
    if done.status.success() {
        return Ok(());
    }
    Err(format!(
        "nvcc refuses {}: {}",
        file.display(),
        String::from_utf8_lossy(&done.stderr).replace('\n', " | ")
    ))
}

fn nvcc() -> PathBuf {
    if let Some(named) = std::env::var_os("NVCC") {
        return named.into();
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os);
    homes
        .map(|home| Path::new(&home).join("bin/nvcc"))
        .find(|nvcc| nvcc.exists())
        .unwrap_or_else(|| "nvcc".into())
}
