//! The kernels by C's calling convention. Each returns 0, or what was wrong: 1 a null pointer, 2 a
//! coefficient that is none, 3 something that is no decoder, 4 memories that overlap.

use std::ffi::c_void;

use crate::network::Number;
use crate::steps::{Coefficients, ddpm, step};

const NULL: i32 = 1;
const COEFFICIENT: i32 = 2;
pub const NO_DECODER: i32 = 3;
const OVERLAP: i32 = 4;

fn apart<T>(a: *const T, b: *const T, n: usize) -> bool {
    let (a, b, bytes) = (a as usize, b as usize, n * size_of::<T>());
    a + bytes <= b || b + bytes <= a
}

/// # Safety
/// `x`, `v` and, unless null, `z` point to `n` numbers; `x` may be written to.
unsafe fn run<T: Number>(
    (x, v, z): (*mut T, *const T, *const T),
    n: usize,
    by: Option<Coefficients>,
) -> i32 {
    let Some(by) = by.filter(|c| c.a.is_finite() && c.b.is_finite() && c.c.is_finite()) else {
        return COEFFICIENT;
    };
    if n == 0 {
        return 0;
    }
    let noisy = by.c != 0.0 && !z.is_null();
    if x.is_null() || v.is_null() || (by.c != 0.0 && z.is_null()) {
        return NULL;
    }
    if !apart(x, v, n) || (noisy && !apart(x, z, n)) {
        return OVERLAP;
    }
    // SAFETY: not null, and the caller's promise; x overlaps neither of the others.
    unsafe {
        let z = noisy.then(|| std::slice::from_raw_parts(z, n));
        step(std::slice::from_raw_parts_mut(x, n), std::slice::from_raw_parts(v, n), z, by);
    }
    0
}

macro_rules! exported {
    ($type:ty, $ddpm:ident, $flow:ident, $decode:ident) => {
        /// One step of DDPM in place, `x` from `alpha_bar` to `alpha_bar_next`, by the predicted
        /// noise; `eta` is 1 for the ancestral step with the normals `z`, 0 for DDIM, `z` then null.
        ///
        /// # Safety
        /// `x`, `noise` and, unless null, `z` point to `n` numbers each; `x` may be written to.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $ddpm(
            x: *mut $type,
            noise: *const $type,
            z: *const $type,
            n: usize,
            alpha_bar: f64,
            alpha_bar_next: f64,
            eta: f64,
        ) -> i32 {
            // SAFETY: the caller's promise.
            unsafe { run((x, noise, z), n, ddpm(alpha_bar, alpha_bar_next, eta)) }
        }

        /// One Euler step of a flow in place, `x <- x + h velocity`.
        ///
        /// # Safety
        /// `x` and `velocity` point to `n` numbers each; `x` may be written to.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $flow(
            x: *mut $type,
            velocity: *const $type,
            n: usize,
            h: f64,
        ) -> i32 {
            let by = Some(Coefficients { a: 1.0, b: h, c: 0.0 });
            // SAFETY: the caller's promise.
            unsafe { run((x, velocity, std::ptr::null()), n, by) }
        }

        /// `out <- clamp(decode(z / scale + shift), -1, 1)` by a decoder's handle.
        ///
        /// # Safety
        /// `decoder` is null or the handle of a living decoder; `z` and `out` point to `rows` times
        /// its lengths of numbers of this type.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $decode(
            decoder: *const c_void,
            z: *const $type,
            out: *mut $type,
            rows: usize,
            scale: f64,
            shift: f64,
        ) -> i32 {
            if decoder.is_null() || z.is_null() || out.is_null() {
                return NULL;
            }
            if !scale.is_finite() || scale == 0.0 || !shift.is_finite() {
                return COEFFICIENT;
            }
            // SAFETY: the caller's promise.
            unsafe { crate::border::decode(decoder, z, out, rows, (scale, shift)) }
        }
    };
}

exported!(f32, interp_ddpm_step_f32, interp_flow_matching_step_f32, interp_vae_decode_f32);
exported!(f64, interp_ddpm_step_f64, interp_flow_matching_step_f64, interp_vae_decode_f64);
