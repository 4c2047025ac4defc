//! The loops that touch every element: one fused pass each, vectorised by run-time dispatch.
//!
//! A step of a solver is a few linear combinations and one norm. Each is one pass that reads every
//! operand once and writes its result once, in chunks whose size does not depend on the number of
//! threads, so that sums come out the same whatever the machine.

use std::sync::OnceLock;

use multiversion::multiversion;
use rayon::prelude::*;

use crate::real::Real;

/// One operand of a linear combination: its coefficient and its elements.
pub type Term<'a, T> = (f64, &'a [T]);

/// More operands than any tableau here has in one row, the state included.
pub const MAX_TERMS: usize = 10;

/// Elements in a chunk: small enough for the first-level cache with ten operands in flight.
const CHUNK: usize = 2048;

/// From this many elements on a pass is shared out between threads. Below it one thread is quicker
/// (measured at 2e5 on two cores: 20 % of the field's time against 34 %), since torch's own threads
/// still spin on the cores when a pass begins.
const PARALLEL: usize = 1 << 20;

/// Whether a pass over `elements` is shared out. Not in a forked child: threads do not survive a fork,
/// and waiting for them would not end.
pub fn parallel(elements: usize) -> bool {
    static OWNER: OnceLock<u32> = OnceLock::new();
    elements >= PARALLEL && *OWNER.get_or_init(std::process::id) == std::process::id()
}

/// `out = sum_j c_j v_j`. Returns whether any element of the result is NaN or infinite.
///
/// # Panics
/// If there are no operands, more than [`MAX_TERMS`], or one of another length than `out`: a bug
/// in the caller, since lengths are checked where tensors enter.
pub fn combine<T: Real>(out: &mut [T], terms: &[Term<T>]) -> bool {
    fn sized<T: Real, const M: usize>(out: &mut [T], terms: &[Term<T>]) -> bool {
        let c: [T; M] = std::array::from_fn(|j| T::from_f64(terms[j].0));
        let v: [&[T]; M] = std::array::from_fn(|j| terms[j].1);
        let pass = |(i, out): (usize, &mut [T])| {
            let from = i * CHUNK;
            combine_chunk(out, &c, &v.map(|v| &v[from..from + out.len()]))
        };
        if parallel(out.len()) {
            out.par_chunks_mut(CHUNK).enumerate().map(pass).reduce(|| 0, |a, b| a | b) != 0
        } else {
            out.chunks_mut(CHUNK).enumerate().map(pass).fold(0, |a, b| a | b) != 0
        }
    }
    assert!(terms.iter().all(|(_, v)| v.len() == out.len()), "operands differ in length");
    match terms.len() {
        1 => sized::<T, 1>(out, terms),
        2 => sized::<T, 2>(out, terms),
        3 => sized::<T, 3>(out, terms),
        4 => sized::<T, 4>(out, terms),
        5 => sized::<T, 5>(out, terms),
        6 => sized::<T, 6>(out, terms),
        7 => sized::<T, 7>(out, terms),
        8 => sized::<T, 8>(out, terms),
        9 => sized::<T, 9>(out, terms),
        10 => sized::<T, 10>(out, terms),
        n => panic!("a combination of {n} operands; at most {MAX_TERMS}"),
    }
}

#[multiversion(targets("x86_64+avx+avx2", "x86_64+avx+avx2+avx512f+avx512dq+avx512vl"))]
fn combine_chunk<T: Real, const M: usize>(out: &mut [T], c: &[T; M], v: &[&[T]; M]) -> u32 {
    let n = out.len();
    let v = v.map(|v| &v[..n]);
    let mut bad = 0;
    for i in 0..n {
        let mut sum = c[0] * v[0][i];
        for j in 1..M {
            sum += c[j] * v[j][i];
        }
        out[i] = sum;
        bad |= sum.non_finite();
    }
    bad
}

/// What a local error is measured against: `atol + rtol max(|y|, |y_new|)`, element by element.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    pub rtol: f64,
    pub atol: f64,
}

/// The root mean square of `(sum_j c_j v_j) / (atol + rtol max(|y|, |y_new|))`; 0 without elements.
pub fn error_norm<T: Real>(terms: &[Term<T>], y: &[T], y_new: &[T], tolerance: Tolerance) -> f64 {
    fn sized<T: Real, const M: usize>(
        terms: &[Term<T>],
        y: &[T],
        y_new: &[T],
        tolerance: Tolerance,
    ) -> f64 {
        let c: [T; M] = std::array::from_fn(|j| T::from_f64(terms[j].0));
        let v: [&[T]; M] = std::array::from_fn(|j| terms[j].1);
        let pass = |i: usize| {
            let range = i * CHUNK..((i + 1) * CHUNK).min(y.len());
            let v = v.map(|v| &v[range.clone()]);
            norm_chunk(&c, &v, &y[range.clone()], &y_new[range], tolerance)
        };
        let chunks = y.len().div_ceil(CHUNK);
        if parallel(y.len()) {
            // Collected in order before summing: the same sum for any number of threads.
            (0..chunks).into_par_iter().map(pass).collect::<Vec<f64>>().into_iter().sum()
        } else {
            (0..chunks).map(pass).sum()
        }
    }
    if y.is_empty() {
        return 0.0;
    }
    let total = match terms.len() {
        1 => sized::<T, 1>(terms, y, y_new, tolerance),
        2 => sized::<T, 2>(terms, y, y_new, tolerance),
        3 => sized::<T, 3>(terms, y, y_new, tolerance),
        4 => sized::<T, 4>(terms, y, y_new, tolerance),
        5 => sized::<T, 5>(terms, y, y_new, tolerance),
        6 => sized::<T, 6>(terms, y, y_new, tolerance),
        7 => sized::<T, 7>(terms, y, y_new, tolerance),
        8 => sized::<T, 8>(terms, y, y_new, tolerance),
        n => panic!("an error estimate of {n} slopes; at most 8"),
    };
    (total / y.len() as f64).sqrt()
}

#[multiversion(targets("x86_64+avx+avx2", "x86_64+avx+avx2+avx512f+avx512dq+avx512vl"))]
fn norm_chunk<T: Real, const M: usize>(
    c: &[T; M],
    v: &[&[T]; M],
    y: &[T],
    y_new: &[T],
    tolerance: Tolerance,
) -> f64 {
    const LANES: usize = 16;
    let n = y.len();
    let (v, y_new) = (v.map(|v| &v[..n]), &y_new[..n]);
    let ratio = |i: usize| {
        let mut e = c[0] * v[0][i];
        for j in 1..M {
            e += c[j] * v[j][i];
        }
        let size = y[i].abs().max(y_new[i].abs()).to_f64();
        // Without an absolute tolerance a padding element is 0 / 0: no error is no error.
        let e = e.to_f64();
        let ratio = if e == 0.0 { 0.0 } else { e / (tolerance.atol + tolerance.rtol * size) };
        ratio * ratio
    };
    let mut sums = [0.0f64; LANES];
    let whole = n / LANES * LANES;
    for base in (0..whole).step_by(LANES) {
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum += ratio(base + lane);
        }
    }
    for i in whole..n {
        sums[i - whole] += ratio(i);
    }
    sums.iter().sum()
}

/// `out = a y + b k + s w`, or `out = a y + b k + g w` elementwise where a diffusion `g` is given.
/// The noise `w` is in double precision. Returns whether any element is NaN or infinite.
pub fn noisy_update<T: Real>(
    out: &mut [T],
    (a, y): Term<T>,
    (b, k): Term<T>,
    noise: &Noise<T>,
) -> bool {
    let n = out.len();
    assert!(y.len() == n && k.len() == n && noise.w.len() == n, "operands differ in length");
    let pass = |(i, out): (usize, &mut [T])| {
        let range = i * CHUNK..i * CHUNK + out.len();
        let noise = Noise {
            w: &noise.w[range.clone()],
            scale: noise.scale,
            diffusion: noise.diffusion.map(|g| &g[range.clone()]),
        };
        noisy_chunk(out, (a, &y[range.clone()]), (b, &k[range]), &noise)
    };
    if parallel(n) {
        out.par_chunks_mut(CHUNK).enumerate().map(pass).reduce(|| 0, |a, b| a | b) != 0
    } else {
        out.chunks_mut(CHUNK).enumerate().map(pass).fold(0, |a, b| a | b) != 0
    }
}

/// A noise increment and what multiplies it: `scale`, and a diffusion of the state's shape if any.
pub struct Noise<'a, T> {
    pub w: &'a [f64],
    pub scale: f64,
    pub diffusion: Option<&'a [T]>,
}

#[multiversion(targets("x86_64+avx+avx2", "x86_64+avx+avx2+avx512f+avx512dq+avx512vl"))]
fn noisy_chunk<T: Real>(out: &mut [T], y: Term<T>, k: Term<T>, noise: &Noise<T>) -> u32 {
    let n = out.len();
    let (a, b) = (T::from_f64(y.0), T::from_f64(k.0));
    let (y, k, w) = (&y.1[..n], &k.1[..n], &noise.w[..n]);
    let mut bad = 0;
    for i in 0..n {
        let mut kick = T::from_f64(noise.scale * w[i]);
        if let Some(g) = noise.diffusion {
            kick = g[i] * kick;
        }
        let sum = a * y[i] + b * k[i] + kick;
        out[i] = sum;
        bad |= sum.non_finite();
    }
    bad
}

/// Indices of the rows of length `row` in which some element is NaN or infinite.
pub fn non_finite_rows<T: Real>(values: &[T], row: usize) -> Vec<usize> {
    let bad = |v: &[T]| v.iter().any(|x| x.non_finite() != 0);
    values.chunks(row.max(1)).enumerate().filter(|(_, v)| bad(v)).map(|(i, _)| i).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn combine_is_the_plain_sum(
            n in 0usize..5000, m in 1usize..=MAX_TERMS, seed in any::<u32>(),
        ) {
            let value = |i: usize, j: usize| {
                (((i * 31 + j * 17 + seed as usize) % 1009) as f64 - 504.0) / 100.0
            };
            let v: Vec<Vec<f64>> = (0..m).map(|j| (0..n).map(|i| value(i, j)).collect()).collect();
            let terms: Vec<Term<f64>> =
                v.iter().enumerate().map(|(j, v)| (0.3 * j as f64 - 1.0, &v[..])).collect();
            let mut out = vec![0.0; n];
            prop_assert!(!combine(&mut out, &terms));
            for i in 0..n {
                let mut sum = terms[0].0 * v[0][i];
                for (c, v) in &terms[1..] {
                    sum += c * v[i];
                }
                prop_assert_eq!(out[i], sum); // the same operations in the same order: same bits
            }
        }

        #[test]
        fn a_single_bad_element_is_seen(n in 1usize..100_000, at in any::<prop::sample::Index>()) {
            let at = at.index(n);
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut v = vec![1.0f32; n];
                v[at] = bad;
                let mut out = vec![0.0f32; n];
                prop_assert!(combine(&mut out, &[(1.0, &v)]));
                prop_assert_eq!(non_finite_rows(&out, 7), vec![at / 7]);
            }
        }
    }

    #[test]
    fn the_norm_is_the_root_mean_square_for_any_length() {
        let tolerance = Tolerance { rtol: 0.5, atol: 0.25 };
        for n in [0usize, 1, 15, 16, 17, CHUNK + 1, PARALLEL + 5] {
            let y: Vec<f64> = (0..n).map(|i| (i % 7) as f64 - 3.0).collect();
            let e: Vec<f64> = (0..n).map(|i| (i % 5) as f64).collect();
            let mean =
                (0..n).map(|i| (2.0 * e[i] / (0.25 + 0.5 * y[i].abs())).powi(2)).sum::<f64>()
                    / n.max(1) as f64;
            let norm = error_norm(&[(2.0, &e)], &y, &y, tolerance);
            // The plain sum rounds once an element.
            let rounding = (n + 8) as f64 * f64::EPSILON;
            assert!((norm - mean.sqrt()).abs() <= rounding * mean.sqrt());
        }
    }
}
