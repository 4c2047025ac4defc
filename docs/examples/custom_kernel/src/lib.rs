//! The velocity that carries N(0, 1) to N(mean, deviation^2) along the linear path, as a kernel for
//! `interp.solve`:
//!
//!     v(t, x) = mean + (t s^2 - (1 - t)) / ((1 - t)^2 + t^2 s^2) (x - t mean)

use std::ffi::c_void;

/// What `interp.native.Kernel` takes: its docstring has the same in C.
#[repr(C)]
pub struct InterpKernel {
    version: u32,
    /// Of a number: 4 or 8.
    bytes: u32,
    /// Numbers in a row; 0 for any.
    row: usize,
    state: *mut c_void,
    call: unsafe extern "C" fn(*mut c_void, f64, usize, usize, *const c_void, *mut c_void) -> i32,
}

// SAFETY: the table is never written to, and what `state` points to neither.
unsafe impl Sync for InterpKernel {}

struct Law {
    mean: f64,
    deviation: f64,
}

static LAW: Law = Law { mean: 2.0, deviation: 0.5 };

/// # Safety
/// `state` is a `Law`; `x` and `out` point to `rows * row` numbers, and do not overlap.
unsafe extern "C" fn velocity(
    state: *mut c_void,
    t: f64,
    rows: usize,
    row: usize,
    x: *const c_void,
    out: *mut c_void,
) -> i32 {
    let n = rows * row;
    // SAFETY: as above.
    let (law, x, out) = unsafe {
        (
            &*state.cast::<Law>(),
            std::slice::from_raw_parts(x.cast::<f64>(), n),
            std::slice::from_raw_parts_mut(out.cast::<f64>(), n),
        )
    };
    let s2 = law.deviation * law.deviation;
    let rate = (t * s2 - (1.0 - t)) / ((1.0 - t) * (1.0 - t) + t * t * s2);
    for (out, x) in out.iter_mut().zip(x) {
        *out = law.mean + rate * (x - t * law.mean);
    }
    0
}

static KERNEL: InterpKernel = InterpKernel {
    version: 1,
    bytes: 8,
    row: 0,
    state: (&raw const LAW).cast_mut().cast(),
    call: velocity,
};

/// Where the table is: `interp.native.Kernel.load(library)` asks for it.
#[unsafe(no_mangle)]
pub extern "C" fn interp_kernel() -> *const InterpKernel {
    &raw const KERNEL
}
