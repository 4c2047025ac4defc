//! Norms and reductions over the last part of each row's elements.

use multiversion::multiversion;

use super::functions::Elementary;

/// Lanes of a sum: as many as a vector of single precision holds.
const LANES: usize = 16;

/// How a group of elements becomes one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reduction {
    Sum,
    Mean,
    Max,
    Min,
}

impl Reduction {
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "sum" => Reduction::Sum,
            "mean" => Reduction::Mean,
            "amax" => Reduction::Max,
            "amin" => Reduction::Min,
            _ => return None,
        })
    }

    /// Of each `n` elements of `from`, one of `out`.
    pub fn apply<T: Elementary>(self, n: usize, from: &[T], out: &mut [T]) {
        let over = T::ONE / T::from_f64(n as f64);
        for (out, v) in out.iter_mut().zip(from.chunks(n)) {
            *out = match self {
                Reduction::Sum => sum(v),
                Reduction::Mean => sum(v) * over,
                Reduction::Max => greatest(v),
                Reduction::Min => -v.iter().fold(-v[0], |m, &x| larger(m, -x)),
            };
        }
    }
}

/// The larger of two, or the one that is NaN.
#[inline(always)]
fn larger<T: Elementary>(m: T, x: T) -> T {
    if x > m || x.is_nan() { x } else { m }
}

fn greatest<T: Elementary>(v: &[T]) -> T {
    v.iter().fold(v[0], |m, &x| larger(m, x))
}

#[multiversion(targets("x86_64+avx+avx2+avx512f+avx512dq+avx512vl", "x86_64+avx+avx2"))]
fn sum<T: Elementary>(v: &[T]) -> T {
    lanes(v, |x| x)
}

#[multiversion(targets("x86_64+avx+avx2+avx512f+avx512dq+avx512vl", "x86_64+avx+avx2"))]
fn sum_of_squares<T: Elementary>(v: &[T], mean: T) -> T {
    lanes(v, |x| (x - mean) * (x - mean))
}

/// The sum of f(x), in lanes.
#[inline(always)]
fn lanes<T: Elementary>(v: &[T], f: impl Fn(T) -> T) -> T {
    let mut sums = [T::ZERO; LANES];
    let pieces = v.chunks_exact(LANES);
    let rest = pieces.remainder();
    for piece in pieces {
        for lane in 0..LANES {
            sums[lane] += f(piece[lane]);
        }
    }
    let mut total = T::ZERO;
    for &x in rest {
        total += f(x);
    }
    for sum in sums {
        total += sum;
    }
    total
}

/// (x - mean) / sqrt(variance + eps) of a group of elements; without `center`, x / rms.
fn scale_and_shift<T: Elementary>(v: &[T], eps: f64, center: bool) -> (T, T) {
    let n = T::from_f64(v.len() as f64);
    let mean = if center { sum(v) / n } else { T::ZERO };
    let variance = sum_of_squares(v, mean) / n;
    let scale = T::ONE / (variance + T::from_f64(eps)).sqrt();
    (scale, -mean * scale)
}

#[multiversion(targets("x86_64+avx+avx2+avx512f+avx512dq+avx512vl", "x86_64+avx+avx2"))]
fn affine<T: Elementary>(out: &mut [T], v: &[T], a: T, b: T) {
    for (out, &x) in out.iter_mut().zip(v) {
        *out = a * x + b;
    }
}

#[multiversion(targets("x86_64+avx+avx2+avx512f+avx512dq+avx512vl", "x86_64+avx+avx2"))]
fn weigh<T: Elementary>(out: &mut [T], weight: &[T]) {
    for (out, &w) in out.iter_mut().zip(weight) {
        *out = *out * w;
    }
}

#[multiversion(targets("x86_64+avx+avx2+avx512f+avx512dq+avx512vl", "x86_64+avx+avx2"))]
fn shift<T: Elementary>(out: &mut [T], bias: &[T]) {
    for (out, &b) in out.iter_mut().zip(bias) {
        *out += b;
    }
}

/// Each `n` elements normalised on their own, then times a weight and plus a bias, one an element.
pub fn layer_norm<T: Elementary>(
    n: usize,
    (eps, center): (f64, bool),
    from: &[T],
    (weight, bias): (Option<&[T]>, Option<&[T]>),
    out: &mut [T],
) {
    for (out, v) in out.chunks_mut(n).zip(from.chunks(n)) {
        let (a, b) = scale_and_shift(v, eps, center);
        affine(out, v, a, b);
        if let Some(weight) = weight {
            weigh(out, weight);
        }
        if let Some(bias) = bias {
            shift(out, bias);
        }
    }
}

/// Rows of `channels` x `space` elements, normalised in groups of channels; weight and bias are one
/// a channel.
pub fn group_norm<T: Elementary>(
    (channels, space, groups): (usize, usize, usize),
    eps: f64,
    from: &[T],
    (weight, bias): (Option<&[T]>, Option<&[T]>),
    out: &mut [T],
) {
    let each = channels / groups;
    let n = each * space;
    for (group, (out, v)) in out.chunks_mut(n).zip(from.chunks(n)).enumerate() {
        let (a, b) = scale_and_shift(v, eps, true);
        let first = group % groups * each;
        for (i, (out, v)) in out.chunks_mut(space).zip(v.chunks(space)).enumerate() {
            let w = weight.map_or(T::ONE, |w| w[first + i]);
            let shift = bias.map_or(T::ZERO, |b| b[first + i]);
            affine(out, v, a * w, b * w + shift);
        }
    }
}

/// e^x over the sum of them, in each `n` elements.
pub fn softmax<T: Elementary>(n: usize, from: &[T], out: &mut [T]) {
    for (out, v) in out.chunks_mut(n).zip(from.chunks(n)) {
        let top = greatest(v);
        powers(out, v, top);
        let over = T::ONE / sum(out);
        for x in out {
            *x = *x * over;
        }
    }
}

#[multiversion(targets("x86_64+avx+avx2+avx512f+avx512dq+avx512vl", "x86_64+avx+avx2"))]
fn powers<T: Elementary>(out: &mut [T], v: &[T], top: T) {
    for (out, &x) in out.iter_mut().zip(v) {
        *out = (x - top).exp();
    }
}
