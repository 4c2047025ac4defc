//! How many independent draws a chain is worth, in memory that its length does not change.
//!
//! The effective sample size by batch means (Glynn and Whitt, Oper. Res. Lett. 10, 1991),
//!
//! ```text
//! ESS = n var(x) / (b var(means of batches of length b))
//! ```
//!
//! n counting the steps of all rows. Between 32 and 64 batches a row are kept; when there are 64, each
//! two become one of twice the length. For the size they are put together until a batch is as long as
//! there are batches. The same recipe stands in `interp/solvers/effective.py`.

use crate::real::Real;

const BATCHES: usize = 64;

pub struct Effective {
    row: usize,
    /// Elements of a row that count.
    columns: usize,
    /// One number an element that counts: [batch][row][column].
    sums: Vec<f64>,
    squares: Vec<f64>,
    steps: usize,
    full: usize,
    inside: usize,
    length: usize,
}

impl Effective {
    /// Of states of `len` elements in rows; at most `columns` of a row count.
    pub fn new(len: usize, row: usize, columns: usize) -> Self {
        let columns = columns.min(row);
        let kept = len.checked_div(row).unwrap_or(0) * columns;
        let (sums, squares) = (vec![0.0; BATCHES * kept], vec![0.0; kept]);
        Effective { row, columns, sums, squares, steps: 0, full: 0, inside: 0, length: 1 }
    }

    /// One more step of every row.
    pub fn add<T: Real>(&mut self, x: &[T]) {
        let kept = self.squares.len();
        let sums = &mut self.sums[self.full * kept..(self.full + 1) * kept];
        if kept > 0 {
            let rows = x.chunks(self.row).zip(sums.chunks_mut(self.columns));
            for ((x, sums), squares) in rows.zip(self.squares.chunks_mut(self.columns)) {
                for ((x, sum), square) in x.iter().zip(sums).zip(squares) {
                    let x = x.to_f64();
                    *sum += x;
                    *square += x * x;
                }
            }
        }
        self.steps += 1;
        self.inside += 1;
        if self.inside < self.length {
            return;
        }
        (self.full, self.inside) = (self.full + 1, 0);
        if self.full == BATCHES {
            for batch in 0..BATCHES / 2 {
                for i in 0..kept {
                    let pair =
                        self.sums[2 * batch * kept + i] + self.sums[(2 * batch + 1) * kept + i];
                    self.sums[batch * kept + i] = pair;
                }
            }
            self.sums[BATCHES / 2 * kept..].fill(0.0);
            (self.full, self.length) = (BATCHES / 2, 2 * self.length);
        }
    }

    /// The smallest of all elements; NaN before there are two batches.
    pub fn size(&self) -> f64 {
        let kept = self.squares.len();
        if self.full < 2 || kept == 0 {
            return f64::NAN;
        }
        let rows = kept / self.columns;
        let count = (self.steps * rows) as f64;
        let (mut full, mut length, mut joined) = (self.full, self.length, 1);
        while full >= 4 && length < full {
            (full, length, joined) = (full / 2, 2 * length, 2 * joined);
        }
        let mut least = f64::INFINITY;
        for column in 0..self.columns {
            let of = |values: &[f64]| values.iter().skip(column).step_by(self.columns).sum::<f64>();
            let mean = of(&self.sums) / count;
            let variance = of(&self.squares) / count - mean * mean;
            let sum = |batch: usize, row: usize| -> f64 {
                let parts = batch * joined..(batch + 1) * joined;
                parts.map(|part| self.sums[part * kept + row * self.columns + column]).sum()
            };
            let mut between = 0.0;
            for batch in 0..full {
                for row in 0..rows {
                    between += (sum(batch, row) / length as f64 - mean).powi(2);
                }
            }
            let between = between / (full * rows - 1) as f64;
            if between > 0.0 {
                least = least.min(variance / (length as f64 * between));
            }
        }
        count * least
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Batch means from all states at once.
        #[test]
        fn the_size_is_that_of_the_batches(steps in 2usize..500, rows in 1usize..4, row in 1usize..4) {
            let x = |n: usize, r: usize, c: usize| ((n * 7 + r * 3 + c * 5 + n * n) as f64).sin();
            let mut effective = Effective::new(rows * row, row, 2);
            for n in 0..steps {
                let state: Vec<f64> = (0..rows * row).map(|i| x(n, i / row, i % row)).collect();
                effective.add(&state);
            }
            let mut length = 1;
            while steps / length >= 64 || (steps / length >= 4 && length < steps / length) {
                length *= 2;
            }
            let full = steps / length;
            let mut least = f64::INFINITY;
            for c in 0..row.min(2) {
                let all: Vec<f64> =
                    (0..steps).flat_map(|n| (0..rows).map(move |r| x(n, r, c))).collect();
                let mean = all.iter().sum::<f64>() / all.len() as f64;
                let variance = all.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / all.len() as f64;
                let mut between = 0.0;
                for b in 0..full {
                    for r in 0..rows {
                        let batch = b * length..(b + 1) * length;
                        let sum: f64 = batch.map(|n| x(n, r, c)).sum();
                        between += (sum / length as f64 - mean).powi(2);
                    }
                }
                let between = between / (full * rows - 1) as f64;
                least = least.min((steps * rows) as f64 * variance / (length as f64 * between));
            }
            prop_assert!((effective.size() / least - 1.0).abs() < 1e-9);
        }
    }
}
