//! libnccl, opened at run time: the functions of it that are used, and no more.

use crate::error::{Error, Result};
use libloading::Library as Handle;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::Path;
#[cfg(feature = "nccl")]
use std::sync::OnceLock;

/// A communicator, a stream of CUDA's, an address in a GPU's memory.
pub(super) type Pointer = *mut c_void;

/// What the processes of a communicator find each other by.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct UniqueId(pub(super) [c_char; 128]);

/// ncclUint8 and ncclFloat32.
pub(super) const BYTES: c_int = 1;
pub(super) const FLOATS: c_int = 7;

/// Declares the table of functions, and opens it.
macro_rules! functions {
    ($($field:ident $symbol:literal ($($arg:ty),*) -> $out:ty;)*) => {
        /// NCCL's functions, by the names and signatures of its `nccl.h`.
        pub(super) struct Library {
            $(pub(super) $field: unsafe extern "C" fn($($arg),*) -> $out,)*
            /// What they lie in.
            _handle: Handle,
        }

        impl Library {
            fn of(handle: Handle) -> std::result::Result<Self, libloading::Error> {
                // SAFETY: the signatures are those of nccl.h, which NCCL has kept since 2.13.
                unsafe {
                    Ok(Self {
                        $($field: *handle.get(concat!($symbol, "\0"))?,)*
                        _handle: handle,
                    })
                }
            }
        }
    };
}

functions! {
    version "ncclGetVersion" (*mut c_int) -> c_int;
    unique_id "ncclGetUniqueId" (*mut UniqueId) -> c_int;
    init "ncclCommInitRank" (*mut Pointer, c_int, UniqueId, c_int) -> c_int;
    destroy "ncclCommDestroy" (Pointer) -> c_int;
    abort "ncclCommAbort" (Pointer) -> c_int;
    async_error "ncclCommGetAsyncError" (Pointer, *mut c_int) -> c_int;
    error_string "ncclGetErrorString" (c_int) -> *const c_char;
    last_error "ncclGetLastError" (Pointer) -> *const c_char;
    group_start "ncclGroupStart" () -> c_int;
    group_end "ncclGroupEnd" () -> c_int;
    send "ncclSend" (Pointer, usize, c_int, c_int, Pointer, Pointer) -> c_int;
    receive "ncclRecv" (Pointer, usize, c_int, c_int, Pointer, Pointer) -> c_int;
    broadcast "ncclBroadcast" (Pointer, Pointer, usize, c_int, c_int, Pointer, Pointer) -> c_int;
    all_gather "ncclAllGather" (Pointer, Pointer, usize, c_int, Pointer, Pointer) -> c_int;
}

/// What it is called.
#[cfg(feature = "nccl")]
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

impl Library {
    /// That of this system, opened once.
    #[cfg(feature = "nccl")]
    pub(super) fn here() -> Result<&'static Self> {
        static OPENED: OnceLock<Result<Library>> = OnceLock::new();
        let open = || {
            let mut why = None;
            for name in NAMES {
                match Self::open(name.as_ref()) {
                    Ok(library) => return Ok(library),
                    Err(e) => why = why.or(Some(e)),
                }
            }
            Err(why.unwrap_or_else(|| Error::internal("NCCL has no name")))
        };
        OPENED.get_or_init(open).as_ref().map_err(Clone::clone)
    }

    /// That in `file`.
    pub(super) fn open(file: &Path) -> Result<Self> {
        // SAFETY: NCCL's initialisers touch nothing of ours.
        let opened = unsafe { Handle::new(file) }.and_then(Self::of);
        opened.map_err(|e| {
            Error::usage(format!(
                "processes with a GPU each talk through NCCL 2.13 or newer, which cannot be opened: {e}; install it \
                 (libnccl2; `pip install nvidia-nccl-cu13`), or name its folder in LD_LIBRARY_PATH"
            ))
        })
    }

    /// `2.30.7`.
    pub(super) fn version(&self) -> Result<String> {
        let mut code = 0;
        // SAFETY: it writes one number.
        self.check(unsafe { (self.version)(&raw mut code) }, None)?;
        Ok(format!("{}.{}.{}", code / 10_000, code / 100 % 100, code % 100))
    }

    /// What a function said, of this communicator or before there is one.
    pub(super) fn check(&self, said: c_int, comm: Option<Pointer>) -> Result<()> {
        if said == 0 {
            return Ok(());
        }
        let text = |text: *const c_char| match text.is_null() {
            true => String::new(),
            // SAFETY: NCCL's texts end with a zero and outlive this.
            false => unsafe { CStr::from_ptr(text) }.to_string_lossy().trim().to_string(),
        };
        // SAFETY: both take any code, and a communicator or none.
        let (what, why) = unsafe {
            let comm = comm.unwrap_or(std::ptr::null_mut());
            (text((self.error_string)(said)), text((self.last_error)(comm)))
        };
        let why = if why.is_empty() { why } else { format!(" ({why})") };
        Err(Error::internal(format!("NCCL: {what}{why}; NCCL_DEBUG=WARN says more")))
    }
}

impl std::fmt::Debug for Library {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("libnccl")
    }
}
