//! The loops that touch every element: one fused pass each, vectorised by run-time dispatch.
//!
//! A step of a solver is a few linear combinations and one norm. Each is one pass that reads every
//! operand once and writes its result once, in chunks whose size does not depend on the number of
//! threads, so that sums come out the same whatever the machine.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use multiversion::multiversion;

use crate::real::Real;
use crate::threads::share;

/// One operand of a linear combination: its coefficient and its elements.
pub type Term<'a, T> = (f64, &'a [T]);

/// More operands than any tableau here has in one row, the state included.
pub const MAX_TERMS: usize = 14;

/// Elements in a chunk: small enough for the first-level cache with ten operands in flight.
pub const CHUNK: usize = 2048;

/// `out = sum_j c_j v_j`. Returns whether any element of the result is NaN or infinite.
///
/// # Panics
/// If there are no operands, more than [`MAX_TERMS`], or one of another length than `out`: a bug
/// in the caller, since lengths are checked where tensors enter.
pub fn combine<T: Real>(out: &mut [T], terms: &[Term<T>]) -> bool {
    fn sized<T: Real, const M: usize>(out: &mut [T], terms: &[Term<T>]) -> bool {
        let c: [T; M] = std::array::from_fn(|j| T::from_f64(terms[j].0));
        let v: [&[T]; M] = std::array::from_fn(|j| terms[j].1);
        each_chunk(out, |range, out| combine_chunk(out, &c, &v.map(|v| &v[range.clone()])))
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
        11 => sized::<T, 11>(out, terms),
        12 => sized::<T, 12>(out, terms),
        13 => sized::<T, 13>(out, terms),
        14 => sized::<T, 14>(out, terms),
        n => panic!("a combination of {n} operands; at most {MAX_TERMS}"),
    }
}

#[multiversion(targets("x86_64+avx+avx2+avx512f+avx512dq+avx512vl", "x86_64+avx+avx2"))]
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

/// How the scaled errors of all elements become one number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Norm {
    /// The root of their mean square.
    Rms,
    /// The largest.
    Max,
    /// The largest root mean square of a row of this length.
    Rows(usize),
}

/// The norm of `(sum_j c_j v_j) / (atol + rtol max(|y|, |y_new|))`; 0 without elements.
pub fn error_norm<T: Real>(
    terms: &[Term<T>],
    (y, y_new): (&[T], &[T]),
    tolerance: Tolerance,
    norm: Norm,
) -> f64 {
    match norm {
        _ if y.is_empty() => 0.0,
        Norm::Rms => (reduced::<T, false>(terms, y, y_new, tolerance) / y.len() as f64).sqrt(),
        Norm::Max => reduced::<T, true>(terms, y, y_new, tolerance).sqrt(),
        Norm::Rows(row) => {
            let rows = (0..y.len()).step_by(row).map(|from| {
                let row = from..from + row;
                let terms: Vec<Term<T>> =
                    terms.iter().map(|&(c, v)| (c, &v[row.clone()])).collect();
                error_norm(&terms, (&y[row.clone()], &y_new[row]), tolerance, Norm::Rms)
            });
            rows.fold(0.0, larger)
        }
    }
}

/// The larger of two numbers, or the NaN among them.
#[inline(always)]
fn larger(a: f64, b: f64) -> f64 {
    if b > a || b.is_nan() { b } else { a }
}

/// The sum of the squared scaled errors, or the largest of them.
fn reduced<T: Real, const MAX: bool>(
    terms: &[Term<T>],
    y: &[T],
    y_new: &[T],
    tolerance: Tolerance,
) -> f64 {
    fn sized<T: Real, const M: usize, const MAX: bool>(
        terms: &[Term<T>],
        y: &[T],
        y_new: &[T],
        tolerance: Tolerance,
    ) -> f64 {
        let c: [T; M] = std::array::from_fn(|j| T::from_f64(terms[j].0));
        let v: [&[T]; M] = std::array::from_fn(|j| terms[j].1);
        let part = |range: Range<usize>| {
            let v = v.map(|v| &v[range.clone()]);
            norm_chunk::<T, M, MAX>(&c, &v, &y[range.clone()], &y_new[range], tolerance)
        };
        if y.len() <= CHUNK {
            return part(0..y.len());
        }
        // One sum a chunk, added in order: the same total for any number of threads.
        let mut sums = vec![0.0; y.len().div_ceil(CHUNK)];
        share(&mut sums, 1, CHUNK, |first, sums| {
            for (i, sum) in sums.iter_mut().enumerate() {
                let from = (first + i) * CHUNK;
                *sum = part(from..(from + CHUNK).min(y.len()));
            }
        });
        if MAX { sums.into_iter().fold(0.0, larger) } else { sums.iter().sum() }
    }
    match terms.len() {
        1 => sized::<T, 1, MAX>(terms, y, y_new, tolerance),
        2 => sized::<T, 2, MAX>(terms, y, y_new, tolerance),
        3 => sized::<T, 3, MAX>(terms, y, y_new, tolerance),
        4 => sized::<T, 4, MAX>(terms, y, y_new, tolerance),
        5 => sized::<T, 5, MAX>(terms, y, y_new, tolerance),
        6 => sized::<T, 6, MAX>(terms, y, y_new, tolerance),
        7 => sized::<T, 7, MAX>(terms, y, y_new, tolerance),
        8 => sized::<T, 8, MAX>(terms, y, y_new, tolerance),
        n => panic!("an error estimate of {n} slopes; at most 8"),
    }
}

#[multiversion(targets("x86_64+avx+avx2+avx512f+avx512dq+avx512vl", "x86_64+avx+avx2"))]
fn norm_chunk<T: Real, const M: usize, const MAX: bool>(
    c: &[T; M],
    v: &[&[T]; M],
    y: &[T],
    y_new: &[T],
    tolerance: Tolerance,
) -> f64 {
    let (atol, rtol) = (T::from_f64(tolerance.atol), T::from_f64(tolerance.rtol));
    let mut sums = [0.0f64; LANES];
    let mut block = [T::ZERO; BLOCK];
    for from in (0..y.len()).step_by(BLOCK) {
        let n = BLOCK.min(y.len() - from);
        let v = v.map(|v| &v[from..from + n]);
        let (y, y_new, block) = (&y[from..from + n], &y_new[from..from + n], &mut block[..n]);
        for i in 0..n {
            let mut e = c[0] * v[0][i];
            for j in 1..M {
                e += c[j] * v[j][i];
            }
            let ratio = e / (atol + rtol * y[i].abs().max(y_new[i].abs()));
            // Where there is no absolute tolerance 0 may be measured against 0: no error is no error.
            block[i] = if e == T::ZERO { T::ZERO } else { ratio };
        }
        if MAX {
            block.iter().enumerate().for_each(|(i, &ratio)| {
                sums[i % LANES] = larger(sums[i % LANES], ratio.to_f64() * ratio.to_f64());
            });
            continue;
        }
        // So few squares a lane lose nothing in the type's own precision.
        let mut squares = [T::ZERO; LANES];
        for lanes in block.chunks(LANES) {
            squares.iter_mut().zip(lanes).for_each(|(sum, &ratio)| *sum += ratio * ratio);
        }
        sums.iter_mut().zip(squares).for_each(|(sum, square)| *sum += square.to_f64());
    }
    if MAX { sums.into_iter().fold(0.0, larger) } else { sums.iter().sum() }
}

/// Lanes of a sum: as many as a vector of single precision holds.
const LANES: usize = 16;
/// Elements whose squares are summed in their own precision, 16 a lane.
const BLOCK: usize = 256;

/// `out += scale w`, or `out += g scale w` elementwise where a diffusion `g` is given; `w` is in double
/// precision. Returns whether any element of the result is NaN or infinite.
///
/// # Panics
/// If an operand has another length than `out`.
pub fn kick<T: Real, W: Real>(out: &mut [T], w: &[W], scale: f64, diffusion: Option<&[T]>) -> bool {
    assert!(w.len() == out.len() && diffusion.is_none_or(|g| g.len() == w.len()), "lengths differ");
    each_chunk(out, |range, out| {
        kick_chunk(out, &w[range.clone()], scale, diffusion.map(|g| &g[range]))
    })
}

/// `out = a out + b y`.
pub fn rescale<T: Real>(out: &mut [T], a: f64, (b, y): Term<T>) {
    assert!(out.len() == y.len(), "operands differ in length");
    let (a, b) = (T::from_f64(a), T::from_f64(b));
    each_chunk(out, |range, out| {
        rescale_chunk(out, a, b, &y[range]);
        0
    });
}

#[multiversion(targets("x86_64+avx+avx2+avx512f+avx512dq+avx512vl", "x86_64+avx+avx2"))]
fn rescale_chunk<T: Real>(out: &mut [T], a: T, b: T, y: &[T]) {
    for (out, &y) in out.iter_mut().zip(y) {
        *out = a * *out + b * y;
    }
}

#[multiversion(targets("x86_64+avx+avx2+avx512f+avx512dq+avx512vl", "x86_64+avx+avx2"))]
fn kick_chunk<T: Real, W: Real>(
    out: &mut [T],
    w: &[W],
    scale: f64,
    diffusion: Option<&[T]>,
) -> u32 {
    let n = out.len();
    let w = &w[..n];
    let mut bad = 0;
    for i in 0..n {
        let mut kick = T::from_f64(scale * w[i].to_f64());
        if let Some(g) = diffusion {
            kick = g[i] * kick;
        }
        out[i] += kick;
        bad |= out[i].non_finite();
    }
    bad
}

/// Fill `out` chunk by chunk; whether some call gave anything but 0.
fn each_chunk<T: Real>(out: &mut [T], fill: impl Fn(Range<usize>, &mut [T]) -> u32 + Sync) -> bool {
    let bad = AtomicU32::new(0);
    share(out, CHUNK, 1, |first, piece| {
        let mut found = 0;
        for (i, out) in piece.chunks_mut(CHUNK).enumerate() {
            let from = first + i * CHUNK;
            found |= fill(from..from + out.len(), out);
        }
        bad.fetch_or(found, Ordering::Relaxed);
    });
    bad.into_inner() != 0
}

/// Whether no element is NaN or infinite.
pub fn all_finite<T: Real>(values: &[T]) -> bool {
    let mut bad = vec![0; values.len().div_ceil(CHUNK)];
    share(&mut bad, 1, CHUNK, |first, bad| {
        for (bad, chunk) in bad.iter_mut().zip(values[first * CHUNK..].chunks(CHUNK)) {
            *bad = non_finite_chunk(chunk);
        }
    });
    bad.into_iter().all(|bad| bad == 0)
}

#[multiversion(targets("x86_64+avx+avx2+avx512f+avx512dq+avx512vl", "x86_64+avx+avx2"))]
fn non_finite_chunk<T: Real>(values: &[T]) -> u32 {
    values.iter().fold(0, |bad, value| bad | value.non_finite())
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
                prop_assert!(!all_finite(&v));
                v[at] = 0.0;
                prop_assert!(all_finite(&v));
            }
        }
    }

    #[test]
    fn the_norm_is_the_root_mean_square_for_any_length() {
        let tolerance = Tolerance { rtol: 0.5, atol: 0.25 };
        for n in [0usize, 1, 15, 16, 17, CHUNK + 1, (1 << 20) + 5] {
            let y: Vec<f64> = (0..n).map(|i| (i % 7) as f64 - 3.0).collect();
            let e: Vec<f64> = (0..n).map(|i| (i % 5) as f64).collect();
            let mean =
                (0..n).map(|i| (2.0 * e[i] / (0.25 + 0.5 * y[i].abs())).powi(2)).sum::<f64>()
                    / n.max(1) as f64;
            let norm = error_norm(&[(2.0, &e)], (&y, &y), tolerance, Norm::Rms);
            // The plain sum rounds once an element.
            let rounding = (n + 8) as f64 * f64::EPSILON;
            assert!((norm - mean.sqrt()).abs() <= rounding * mean.sqrt());
            let ratio = |i: usize| 2.0 * e[i] / (0.25 + 0.5 * y[i].abs());
            let largest = (0..n).map(ratio).fold(0.0, f64::max);
            assert_eq!(error_norm(&[(2.0, &e)], (&y, &y), tolerance, Norm::Max), largest);
        }
    }

    #[test]
    fn a_nan_is_never_lost_and_rows_count_alone() {
        let tolerance = Tolerance { rtol: 0.0, atol: 1.0 };
        let y = vec![0.0f64; 5000];
        for at in [0, 17, 4095, 4999] {
            let mut e = vec![1.0; 5000];
            e[at] = f64::NAN;
            for norm in [Norm::Rms, Norm::Max, Norm::Rows(50)] {
                assert!(error_norm(&[(1.0, &e)], (&y, &y), tolerance, norm).is_nan());
            }
            e[at] = 8.0;
            assert_eq!(error_norm(&[(1.0, &e)], (&y, &y), tolerance, Norm::Max), 8.0);
            let rows = error_norm(&[(1.0, &e)], (&y, &y), tolerance, Norm::Rows(50));
            assert!((rows - (113.0f64 / 50.0).sqrt()).abs() < 1e-14);
        }
    }
}
