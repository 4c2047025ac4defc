//! Passes over all elements: functions of one, pairs with broadcasting, copies, conversions.

use multiversion::multiversion;

use super::functions::Function;
use super::memory::{Number, Operand};

/// Elements done at once: few enough for the first-level cache.
const PIECE: usize = 2048;

/// What is done to a pair of elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pair {
    Add,
    Sub,
    Mul,
    Div,
    Max,
    Min,
}

impl Pair {
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "add" => Pair::Add,
            "sub" => Pair::Sub,
            "mul" => Pair::Mul,
            "div" => Pair::Div,
            "maximum" => Pair::Max,
            "minimum" => Pair::Min,
            _ => return None,
        })
    }

    /// `out[i] = a[i sa] op b[i sb]`, with steps of 0 or 1 vectorised.
    fn line<T: Number>(self, out: &mut [T], a: (&[T], usize), b: (&[T], usize)) {
        match self {
            Pair::Add => line(out, a, b, |a, b| a + b),
            Pair::Sub => line(out, a, b, |a, b| a - b),
            Pair::Mul => line(out, a, b, |a, b| a * b),
            Pair::Div => line(out, a, b, |a, b| a / b),
            // A NaN on either side comes through, as in torch.
            Pair::Max => line(out, a, b, |a, b| if a > b || a.is_nan() { a } else { b }),
            Pair::Min => line(out, a, b, |a, b| if a < b || a.is_nan() { a } else { b }),
        }
    }
}

fn line<T: Number>(
    out: &mut [T],
    (a, step_a): (&[T], usize),
    (b, step_b): (&[T], usize),
    op: impl Fn(T, T) -> T + Copy,
) {
    let n = out.len();
    if n == 0 {
        return;
    }
    match (step_a, step_b) {
        (1, 1) => both(out, &a[..n], &b[..n], op),
        (1, 0) => {
            let b = b[0];
            one(out, &a[..n], |a| op(a, b));
        }
        (0, 1) => {
            let a = a[0];
            one(out, &b[..n], |b| op(a, b));
        }
        _ => {
            for (i, out) in out.iter_mut().enumerate() {
                *out = op(a[i * step_a], b[i * step_b]);
            }
        }
    }
}

#[multiversion(targets("x86_64+avx+avx2+avx512f+avx512dq+avx512vl", "x86_64+avx+avx2"))]
fn both<T: Number, F: Fn(T, T) -> T>(out: &mut [T], a: &[T], b: &[T], op: F) {
    for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
        *out = op(a, b);
    }
}

#[multiversion(targets("x86_64+avx+avx2+avx512f+avx512dq+avx512vl", "x86_64+avx+avx2"))]
fn one<T: Number, F: Fn(T) -> T>(out: &mut [T], a: &[T], op: F) {
    for (out, &a) in out.iter_mut().zip(a) {
        *out = op(a);
    }
}

/// Axes to walk, the last of them fastest, with a step of each operand for each axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Walk<const N: usize> {
    axes: Vec<(usize, [usize; N])>,
}

impl<const N: usize> Walk<N> {
    /// Over `shape`, neighbouring axes that every operand crosses in one stride taken together.
    pub fn over(shape: &[usize], strides: [&[usize]; N]) -> Self {
        let mut axes: Vec<(usize, [usize; N])> = Vec::new();
        for (axis, &n) in shape.iter().enumerate() {
            let step = strides.map(|s| s[axis]);
            if n == 1 {
                continue;
            }
            match axes.last_mut() {
                Some((m, outer)) if (0..N).all(|i| outer[i] == step[i] * n) => {
                    (*m, *outer) = (*m * n, step);
                }
                _ => axes.push((n, step)),
            }
        }
        if axes.is_empty() {
            axes.push((1, [0; N]));
        }
        Walk { axes }
    }

    /// The length of a line along the last axis, and the steps on it.
    fn line(&self) -> (usize, [usize; N]) {
        self.axes[self.axes.len() - 1]
    }

    /// Call `each` with the beginnings of every line, in order.
    fn lines(&self, mut each: impl FnMut([usize; N])) {
        fn inner<const N: usize>(
            axes: &[(usize, [usize; N])],
            at: [usize; N],
            each: &mut impl FnMut([usize; N]),
        ) {
            match axes {
                [] | [_] => each(at),
                [(n, step), rest @ ..] => {
                    for i in 0..*n {
                        inner(rest, std::array::from_fn(|k| at[k] + i * step[k]), each);
                    }
                }
            }
        }
        inner(&self.axes, [0; N], &mut each);
    }
}

/// `out = a op b` over `rows` rows; each operand's view already has the result's shape. Where both
/// go through all rows in one stride, as one long line.
pub fn pair<T: Number>(
    op: Pair,
    walk: &Walk<2>,
    rows: usize,
    out: &mut [T],
    a: &Operand,
    b: &Operand,
) {
    let (of_a, of_b) = (a.numbers::<T>(), b.numbers::<T>());
    let (n, [step_a, step_b]) = walk.line();
    let single = walk.axes.len() == 1;
    let flows = |operand: &Operand, step: usize| operand.row == n * step;
    if single && flows(a, step_a) && flows(b, step_b) {
        return op.line(out, (of_a, step_a), (of_b, step_b));
    }
    let len = out.len() / rows.max(1);
    for (row, out) in out.chunks_mut(len.max(1)).enumerate() {
        let (of_a, of_b) = (&of_a[row * a.row..], &of_b[row * b.row..]);
        let mut lines = out.chunks_mut(n);
        walk.lines(|[at_a, at_b]| {
            if let Some(out) = lines.next() {
                op.line(out, (&of_a[at_a..], step_a), (&of_b[at_b..], step_b));
            }
        });
    }
}

/// Copy a view into a part of each row of `out`, `len` elements long, that begins at `offset`.
pub fn copy<T: Number>(
    walk: &Walk<2>,
    rows: usize,
    (out, len, offset): (&mut [T], usize, usize),
    from: &Operand,
) {
    let numbers = from.numbers::<T>();
    let (n, [step, to]) = walk.line();
    for row in 0..rows {
        let numbers = &numbers[row * from.row..];
        let out = &mut out[row * len + offset..];
        walk.lines(|[a, b]| {
            let (numbers, out) = (&numbers[a..], &mut out[b..]);
            if step == 1 && to == 1 {
                out[..n].copy_from_slice(&numbers[..n]);
            } else {
                for i in 0..n {
                    out[i * to] = numbers[i * step];
                }
            }
        });
    }
}

/// `out = f(from)` for a packed operand, in pieces that stay in the cache.
pub fn function<T: Number>(f: Function, rows: usize, out: &mut [T], from: &Operand) {
    let len = from.view.count();
    if from.row == len {
        let all = from.all::<T>(rows);
        for (out, from) in out.chunks_mut(PIECE).zip(all.chunks(PIECE)) {
            out.copy_from_slice(from);
            f.apply(out);
        }
        return;
    }
    for (row, out) in out.chunks_mut(len.max(1)).enumerate() {
        out.copy_from_slice(from.packed(row));
        f.apply(out);
    }
}

/// `out = from` in the other precision.
pub fn convert<From: Number, To: Number>(rows: usize, out: &mut [To], from: &Operand) {
    let len = from.view.count();
    for row in 0..rows {
        let from = from.packed::<From>(row);
        for (out, &from) in out[row * len..][..len].iter_mut().zip(from) {
            *out = To::from_f64(from.to_f64());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::memory::View;
    use proptest::prelude::*;

    proptest! {
        /// Any operand of any strides, against indices worked out one by one.
        #[test]
        fn a_walk_visits_every_element_in_order(
            shape in prop::collection::vec(1usize..4, 1..5),
            broadcast in any::<u8>(), reversed in any::<bool>(), rows in 1usize..4,
        ) {
            let d = shape.len();
            let mut strides = vec![0; d];
            let mut len = 1;
            let order: Vec<usize> = if reversed { (0..d).collect() } else { (0..d).rev().collect() };
            for axis in order {
                if broadcast >> axis & 1 == 0 {
                    strides[axis] = len;
                    len *= shape[axis];
                }
            }
            let count: usize = shape.iter().product();
            let values: Vec<f64> = (0..len * rows).map(|i| i as f64).collect();
            let other: Vec<f64> = (0..count * rows).map(|i| 1000.0 * i as f64).collect();
            let packed: Vec<usize> =
                (0..d).map(|i| shape[i + 1..].iter().product()).collect();
            let a = View { value: 0, offset: 0, shape: shape.clone(), strides: strides.clone() };
            let b = View { value: 1, offset: 0, shape: shape.clone(), strides: packed.clone() };
            let a = Operand { view: &a, data: f64::lend(&values), row: len };
            let b = Operand { view: &b, data: f64::lend(&other), row: count };
            let walk = Walk::over(&shape, [&strides, &packed]);
            let mut out = vec![0.0; count * rows];
            pair(Pair::Add, &walk, rows, &mut out, &a, &b);
            let mut copied = vec![0.0; count * rows];
            copy(&walk, rows, (&mut copied, count, 0), &a);
            for row in 0..rows {
                for i in 0..count {
                    let at: usize =
                        (0..d).map(|k| i / packed[k] % shape[k] * strides[k]).sum::<usize>() + row * len;
                    prop_assert_eq!(out[row * count + i], at as f64 + 1000.0 * (row * count + i) as f64);
                    prop_assert_eq!(copied[row * count + i], at as f64);
                }
            }
        }
    }
}
