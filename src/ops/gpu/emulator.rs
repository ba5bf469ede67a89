//! Runs the kernels of the `.cu` files on the host, compiled by the system's C++ compiler, on
//! tensors of the CPU.
//!
//! What it shows: that kernels and launches compute what they should, on any shape, whatever the
//! order in which a block's threads run, and that no thread waits alone. What it cannot show:
//! speed, and races that barriers do not explain.

use super::{Address, Grid, Matrix, Module};
use crate::error::{Error, Result};
use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Shape, Tensor};
use half::bf16;
use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, Mutex};

thread_local! {
    static ORDER: Cell<Option<bool>> = const { Cell::new(None) };
}

pub(crate) fn active() -> bool {
    ORDER.get().is_some()
}

/// Runs `f` with this thread's tensors treated as a GPU's; twice, with a block's threads in
/// ascending and in descending order. Both results are returned: they must be the same bits.
///
/// Where there is no C++ compiler it says so and returns None: such a machine can build and test
/// all but the kernels.
pub(crate) fn emulate<R>(f: impl Fn() -> R) -> Option<[R; 2]> {
    struct Reset;
    impl Drop for Reset {
        fn drop(&mut self) {
            ORDER.set(None);
        }
    }
    if compiler().is_none() {
        eprintln!("no C++ compiler (c++ or $CXX): the GPU's kernels are not tested");
        return None;
    }
    let _reset = Reset;
    Some([false, true].map(|reversed| {
        ORDER.set(Some(reversed));
        f()
    }))
}

fn compiler() -> Option<&'static str> {
    static FOUND: LazyLock<Option<String>> = LazyLock::new(|| {
        let named = std::env::var("CXX").ok();
        let runs = |name: &String| {
            Command::new(name).arg("--version").output().is_ok_and(|out| out.status.success())
        };
        named.into_iter().chain(["c++".to_string(), "g++".into(), "clang++".into()]).find(runs)
    });
    FOUND.as_deref()
}

/// Where a tensor's first element lies. Nothing else may use the tensor while a kernel does.
pub(super) fn address(x: &Tensor) -> Result<Address> {
    struct Find(Cell<u64>);
    impl InplaceOp1 for Find {
        fn name(&self) -> &'static str {
            "eslm-address"
        }

        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
            let (start, size) = match storage {
                CpuStorage::F32(data) => (data.as_mut_ptr() as u64, 4),
                CpuStorage::BF16(data) => (data.as_mut_ptr() as u64, 2),
                CpuStorage::U32(data) => (data.as_mut_ptr() as u64, 4),
                CpuStorage::F64(data) => (data.as_mut_ptr() as u64, 8),
                _ => candle_core::bail!("no kernel takes such a tensor"),
            };
            self.0.set(start + (layout.start_offset() * size) as u64);
            Ok(())
        }
    }
    let find = Find(Cell::new(0));
    x.inplace_op1(&find)?;
    Ok(Address(find.0.get()))
}

/// A tensor full of what no kernel would write.
pub(super) fn junk(shape: Shape, dtype: DType) -> Result<Tensor> {
    let value = if dtype == DType::U32 { 4e9 } else { f64::NAN };
    Ok(Tensor::full(value as f32, shape, &Device::Cpu)?.to_dtype(dtype)?)
}

pub(super) fn launch<A: Copy>(module: Module, kernel: &str, grid: Grid, args: &A) -> Result<()> {
    let library = library(module)?;
    let kernel_name = CString::new(kernel).map_err(|_| Error::internal("a kernel's name"))?;
    let entry = c"eslm_emulate";
    let mut message = [0 as c_char; 256];
    // One launch at a time: a block's state is global.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    // SAFETY: the library was compiled from our sources; the entry has this signature, and the
    // kernel takes the struct whose twin `args` is. Its addresses are of live tensors.
    let failed = unsafe {
        let emulate = dlsym(library as *mut c_void, entry.as_ptr());
        let function = dlsym(library as *mut c_void, kernel_name.as_ptr());
        if emulate.is_null() || function.is_null() {
            return Err(Error::internal(format!("{} has no kernel {kernel}", module.source())));
        }
        let emulate: unsafe extern "C" fn(
            *mut c_void,
            *const u32,
            u32,
            u32,
            *const c_void,
            c_int,
            *mut c_char,
        ) -> c_int = std::mem::transmute(emulate);
        let reversed = c_int::from(ORDER.get() == Some(true));
        let args = std::ptr::from_ref(args).cast();
        emulate(
            function,
            grid.blocks.as_ptr(),
            grid.threads,
            grid.shared,
            args,
            reversed,
            message.as_mut_ptr(),
        )
    };
    if failed == 0 {
        return Ok(());
    }
    // SAFETY: the emulator ends its message with a zero.
    let why = unsafe { CStr::from_ptr(message.as_ptr()) }.to_string_lossy();
    Err(Error::internal(format!("kernel {kernel}: {why}")))
}

/// The handle of a module's kernels, compiled at their first use.
fn library(module: Module) -> Result<usize> {
    static LOADED: LazyLock<Mutex<HashMap<Module, usize>>> = LazyLock::new(Mutex::default);
    let mut loaded = LOADED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(&handle) = loaded.get(&module) {
        return Ok(handle);
    }
    let file = compile(module)?;
    let name = CString::new(file.as_os_str().as_encoded_bytes())
        .map_err(|_| Error::internal("a library's name"))?;
    // SAFETY: the library has no initialisers beyond its own statics.
    let handle = unsafe { dlopen(name.as_ptr(), RTLD_NOW) };
    if handle.is_null() {
        return Err(Error::internal(format!("cannot load {}", file.display())));
    }
    let _ = std::fs::remove_file(&file);
    loaded.insert(module, handle as usize);
    Ok(handle as usize)
}

fn compile(module: Module) -> Result<PathBuf> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let source = src.join(format!("{}.cu", module.source()));
    let name = module.source().replace('/', "-");
    let out = std::env::temp_dir().join(format!("eslm-kd-{}-{name}.so", std::process::id()));
    let mut command = Command::new(compiler().unwrap_or("c++"));
    command.args([
        "-std=c++17",
        "-O2",
        "-fPIC",
        "-shared",
        "-U_FORTIFY_SOURCE",
        "-Wall",
        "-Werror",
        "-Wno-unknown-pragmas",
    ]);
    command
        .args(["-DESLM_EMULATED", "-x", "c++", "-I"])
        .arg(src.join("ops/gpu"))
        .arg(&source)
        .arg("-o")
        .arg(&out);
    let done = command
        .output()
        .map_err(|e| Error::internal(format!("cannot run the C++ compiler: {e}")))?;
    if !done.status.success() {
        let errors = String::from_utf8_lossy(&done.stderr).into_owned();
        panic!("the C++ compiler refuses {}:\n{errors}", source.display());
    }
    Ok(out)
}

const RTLD_NOW: c_int = 2;

unsafe extern "C" {
    fn dlopen(file: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
}

/// What cuBLAS does, one sum after the other.
pub(super) fn gemm(c: Matrix, a: Matrix, b: Matrix, add: bool) -> Result<()> {
    for i in 0..c.rows {
        for j in 0..c.cols {
            let sum: f64 = (0..a.cols).map(|k| a.get(i, k) * b.get(k, j)).sum();
            let old = if add { c.get(i, j) } else { 0.0 };
            c.set(i, j, old + sum);
        }
    }
    Ok(())
}

impl Matrix {
    fn place(&self, i: usize, j: usize) -> usize {
        if self.transposed { j * self.stride + i } else { i * self.stride + j }
    }

    fn get(&self, i: usize, j: usize) -> f64 {
        let (at, start) = (self.place(i, j), self.address.0);
        // SAFETY: the element lies in the tensor whose strides `Matrix::new` read.
        unsafe {
            match self.dtype {
                DType::BF16 => f64::from((*(start as *const bf16).add(at)).to_f32()),
                _ => f64::from(*(start as *const f32).add(at)),
            }
        }
    }

    fn set(&self, i: usize, j: usize, value: f64) {
        let (at, start) = (self.place(i, j), self.address.0);
        // SAFETY: as above, and the caller's alone.
        unsafe {
            match self.dtype {
                DType::BF16 => *(start as *mut bf16).add(at) = bf16::from_f32(value as f32),
                _ => *(start as *mut f32).add(at) = value as f32,
            }
        }
    }
}
