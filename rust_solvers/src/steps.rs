//! Single steps of samplers, in place, each one pass over the memory.

use multiversion::multiversion;

use crate::kernels::CHUNK;
use crate::network::Number;
use crate::threads::share;

/// What a step is made of: `x <- a x + b v + c z`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Coefficients {
    pub a: f64,
    pub b: f64,
    pub c: f64,
}

/// The step of DDPM from `alpha_bar` to `next`, v being the predicted noise; `eta` = 1 is the
/// ancestral step, 0 is DDIM. None where there is no such step.
pub fn ddpm(alpha_bar: f64, next: f64, eta: f64) -> Option<Coefficients> {
    let inside = |v: f64| v > 0.0 && v <= 1.0;
    if !inside(alpha_bar) || !inside(next) || next < alpha_bar || !(0.0..=1.0).contains(&eta) {
        return None;
    }
    if alpha_bar == 1.0 {
        return Some(Coefficients { a: 1.0, b: 0.0, c: 0.0 });
    }
    let variance = eta * eta * (1.0 - next) / (1.0 - alpha_bar) * (1.0 - alpha_bar / next);
    let a = (next / alpha_bar).sqrt();
    let b = (1.0 - next - variance).max(0.0).sqrt() - a * (1.0 - alpha_bar).sqrt();
    Some(Coefficients { a, b, c: variance.sqrt() })
}

/// `x <- a x + b v + c z`; without z, `x <- a x + b v`.
///
/// # Panics
/// If v or z is not as long as x: a bug in the caller.
pub fn step<T: Number>(x: &mut [T], v: &[T], z: Option<&[T]>, by: Coefficients) {
    assert!(
        v.len() == x.len() && z.is_none_or(|z| z.len() == x.len()),
        "operands differ in length"
    );
    share(x, CHUNK, 1, |from, x| {
        let to = from + x.len();
        match z {
            Some(z) => with_noise(x, &v[from..to], &z[from..to], by),
            None => without_noise(x, &v[from..to], by),
        }
    });
}

#[multiversion(targets("x86_64+avx+avx2+avx512f+avx512dq+avx512vl", "x86_64+avx+avx2"))]
fn with_noise<T: Number>(x: &mut [T], v: &[T], z: &[T], by: Coefficients) {
    let (a, b, c) = (T::from_f64(by.a), T::from_f64(by.b), T::from_f64(by.c));
    for ((x, &v), &z) in x.iter_mut().zip(v).zip(z) {
        *x = a * *x + b * v + c * z;
    }
}

#[multiversion(targets("x86_64+avx+avx2+avx512f+avx512dq+avx512vl", "x86_64+avx+avx2"))]
fn without_noise<T: Number>(x: &mut [T], v: &[T], by: Coefficients) {
    let (a, b) = (T::from_f64(by.a), T::from_f64(by.b));
    for (x, &v) in x.iter_mut().zip(v) {
        *x = a * *x + b * v;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// With exact noise the step stays on the path of the same data and noise; and what noise it
        /// takes out it puts in, so that the variance is that of the path.
        #[test]
        fn a_step_of_ddpm_keeps_data_and_variance(
            bar in 0.01..0.999f64, share in 0.0..1.0f64, eta in 0.0..1.0f64,
        ) {
            let next = bar + (1.0 - bar) * share;
            let Coefficients { a, b, c } = ddpm(bar, next, eta).unwrap();
            // x = sqrt(bar) data + sqrt(1 - bar) noise
            prop_assert!((a * bar.sqrt() - next.sqrt()).abs() < 1e-12);
            let noise = a * (1.0 - bar).sqrt() + b;
            prop_assert!((noise * noise + c * c - (1.0 - next)).abs() < 1e-12);
        }
    }

    #[test]
    fn steps_that_are_none_are_refused() {
        for (bar, next, eta) in [
            (0.0, 0.5, 1.0),
            (0.5, 0.4, 1.0),
            (0.5, 1.1, 0.0),
            (0.5, 0.6, 2.0),
            (f64::NAN, 0.5, 0.0),
        ] {
            assert_eq!(ddpm(bar, next, eta), None);
        }
    }
}
