//! Matrix products by the kernels of the `gemm` library, with every index checked.

use std::sync::Once;

use gemm::{Parallelism, gemm};
use multiversion::multiversion;
use multiversion::target::target_cfg_f;

use super::functions::Elementary;

/// A matrix in a slice: element (i, j) is at `i * row + j * column`.
#[derive(Clone, Copy)]
pub struct Matrix<'a, T> {
    pub values: &'a [T],
    pub row: usize,
    pub column: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// Rows of `columns` elements, one after the other.
    pub fn rows(values: &'a [T], columns: usize) -> Self {
        Matrix { values, row: columns, column: 1 }
    }

    pub fn transposed(self) -> Self {
        Matrix { row: self.column, column: self.row, ..self }
    }

    fn holds(&self, rows: usize, columns: usize) -> bool {
        rows == 0
            || columns == 0
            || (rows - 1) * self.row + (columns - 1) * self.column < self.values.len()
    }
}

/// `out = a b` for `a` of m x k and `b` of k x n, `out` being m rows of n, of which each begins
/// `stride` elements after the one before; or `out += a b`.
///
/// # Panics
/// If a matrix does not hold as many elements: a bug in the caller, since shapes are checked where
/// a program is made.
pub fn product<T: Elementary>(
    (out, stride): (&mut [T], usize),
    (m, k, n): (usize, usize, usize),
    a: Matrix<T>,
    b: Matrix<T>,
    add: bool,
) {
    let holds = m == 0 || n <= stride && (m - 1) * stride + n <= out.len();
    assert!(holds && a.holds(m, k) && b.holds(k, n), "a matrix is too short");
    if m == 0 || n == 0 {
        return;
    }
    if k == 0 {
        if !add {
            out.chunks_mut(stride).take(m).for_each(|out| out[..n].fill(T::ZERO));
        }
        return;
    }
    kernels();
    let row = stride as isize;
    let stride = |s: usize| s as isize;
    // SAFETY: every element of `a`, `b` and `out` that the strides reach was just shown to lie in
    // its slice; `out` is exclusively ours and `gemm` writes to nothing else.
    unsafe {
        gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            row,
            add,
            a.values.as_ptr(),
            stride(a.column),
            stride(a.row),
            b.values.as_ptr(),
            stride(b.column),
            stride(b.row),
            T::ONE,
            T::ONE,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// Have the library take every operand as it lies: those that it would copy beforehand, because of
/// their many rows, lie here as it would have them.
fn kernels() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| gemm::set_lhs_packing_threshold_single_thread(usize::MAX));
}

/// `out = x w` for a row `x` of k elements and a small `w` of k rows; or `out += x w`.
///
/// The library's kernels take longer to set up than such a product to sum.
///
/// # Panics
/// As [`product`].
#[multiversion(targets("x86_64+avx+avx2+fma+avx512f+avx512dq+avx512vl", "x86_64+avx+avx2+fma"))]
pub fn row_by_matrix<T: Elementary>(out: &mut [T], x: &[T], w: &[T], add: bool) {
    const FUSED: bool = target_cfg_f!(target_feature = "fma");
    assert!(w.len() == x.len() * out.len(), "a matrix is too short");
    if !add {
        out.fill(T::ZERO);
    }
    let mut j = 0;
    while j + 64 <= out.len() {
        columns::<T, 64, FUSED>(out, x, w, j);
        j += 64;
    }
    while j + 16 <= out.len() {
        columns::<T, 16, FUSED>(out, x, w, j);
        j += 16;
    }
    while j < out.len() {
        columns::<T, 1, FUSED>(out, x, w, j);
        j += 1;
    }
}

/// C columns from the column j on, whose sums stay in registers.
#[inline(always)]
fn columns<T: Elementary, const C: usize, const FUSED: bool>(
    out: &mut [T],
    x: &[T],
    w: &[T],
    j: usize,
) {
    let n = out.len();
    let mut sums = [T::ZERO; C];
    sums.copy_from_slice(&out[j..j + C]);
    for (l, &a) in x.iter().enumerate() {
        let w = &w[l * n + j..][..C];
        for c in 0..C {
            sums[c] = if FUSED { a.mul_add(w[c], sums[c]) } else { sums[c] + a * w[c] };
        }
    }
    out[j..j + C].copy_from_slice(&sums);
}

/// `to`, n x m, is the transpose of `from`, m x n: block by block, to stay in the cache.
pub fn transpose<T: Copy>(from: &[T], (m, n): (usize, usize), to: &mut [T]) {
    const BLOCK: usize = 16;
    assert!(from.len() == m * n && to.len() == m * n, "a matrix is too short");
    for top in (0..m).step_by(BLOCK) {
        for left in (0..n).step_by(BLOCK) {
            let bottom = (top + BLOCK).min(m);
            for j in left..(left + BLOCK).min(n) {
                let to = &mut to[j * m + top..j * m + bottom];
                for (i, to) in to.iter_mut().enumerate() {
                    *to = from[(top + i) * n + j];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_product_is_the_plain_sum(
            m in 0usize..40, k in 0usize..40, n in 0usize..40,
            flip_a in any::<bool>(), flip_b in any::<bool>(), add in any::<bool>(),
        ) {
            // Small whole numbers: every order of the sum gives the same.
            let number = |i: usize| ((i * 37) % 11) as f32 - 5.0;
            let a: Vec<f32> = (0..m * k).map(number).collect();
            let b: Vec<f32> = (0..k * n).map(|i| number(i + 3)).collect();
            let of_a = if flip_a { Matrix::rows(&a, m).transposed() } else { Matrix::rows(&a, k) };
            let of_b = if flip_b { Matrix::rows(&b, k).transposed() } else { Matrix::rows(&b, n) };
            let mut out = vec![2.0f32; m * n];
            product((&mut out, n), (m, k, n), of_a, of_b, add);
            for i in 0..m {
                for j in 0..n {
                    let start = if add { 2.0 } else { 0.0 };
                    let sum: f32 = (0..k)
                        .map(|l| a[i * of_a.row + l * of_a.column] * b[l * of_b.row + j * of_b.column])
                        .sum();
                    prop_assert_eq!(out[i * n + j], start + sum);
                }
            }
        }

        #[test]
        fn a_row_by_a_matrix_is_the_plain_sum(k in 0usize..40, n in 1usize..150, add in any::<bool>()) {
            let number = |i: usize| ((i * 37) % 11) as f32 - 5.0;
            let x: Vec<f32> = (0..k).map(number).collect();
            let w: Vec<f32> = (0..k * n).map(|i| number(i + 3)).collect();
            let mut out = vec![2.0f32; n];
            row_by_matrix(&mut out, &x, &w, add);
            for j in 0..n {
                let start = if add { 2.0 } else { 0.0 };
                let sum: f32 = (0..k).map(|l| x[l] * w[l * n + j]).sum();
                prop_assert_eq!(out[j], start + sum);
            }
        }

        #[test]
        fn a_transpose_is_one(m in 0usize..50, n in 0usize..50) {
            let from: Vec<usize> = (0..m * n).collect();
            let mut to = vec![0; m * n];
            transpose(&from, (m, n), &mut to);
            for i in 0..m {
                for j in 0..n {
                    prop_assert_eq!(to[j * m + i], from[i * n + j]);
                }
            }
        }
    }
}
