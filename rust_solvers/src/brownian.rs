//! One Brownian path for every step size: a dyadic tree of bridge normals on a root interval.
//!
//! W(a) = 0 and W(b) = sqrt(b - a) Z at the root; a node on [l, r] of width w splits at its middle,
//! W(m) = (W(l) + W(r)) / 2 + sqrt(w / 4) Z. Below `depth` levels a time inside a leaf takes one
//! bridge normal keyed by the time itself. Every Z is a Philox normal keyed by (seed, row, element,
//! node), so W(t) does not depend on the grid that asked for it, as long as no two times fall
//! inside one leaf. The same recipe stands in `interp/noise.py`.

use crate::philox::{Key, fill_normals};
use crate::threads::share;

/// The root interval and how many levels the tree has.
#[derive(Clone, Copy, Debug)]
pub struct Root {
    pub from: f64,
    pub to: f64,
    pub depth: u32,
}

/// A normal takes about as long as so many elements of a pass.
const NORMAL: usize = 16;

/// The node of a time inside a leaf: its bits, moved to where no node of the tree is (those are below
/// 2^49, and no finite time has all exponent bits set).
fn time_node(t: f64) -> u64 {
    (t + 0.0).to_bits() ^ 0x7ff8_0000_0000_0000
}

/// Rows of normals: what keys a normal beside its node.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    pub len: usize,
    pub first: u32,
    pub key: Key,
}

/// Where W is known: at the start (zero), at the end, or at the middle of the node of a level.
#[derive(Clone, Copy, PartialEq)]
enum Known {
    Zero,
    End,
    Middle(usize),
}

/// The path W of one batch, asked for time after time; keeps the branch of the last time asked.
pub struct Path {
    root: Root,
    rows: Rows,
    elements: usize,
    end: Vec<f64>,
    /// `middles[l]`: W at the middle of the current branch's node of level l, and that node's index.
    middles: Vec<(Option<u64>, Vec<f64>)>,
    normals: Vec<f64>,
}

impl Path {
    pub fn new(root: Root, rows: Rows, elements: usize) -> Self {
        let mut path = Path {
            root,
            rows,
            elements,
            end: vec![0.0; elements],
            middles: (0..root.depth).map(|_| (None, Vec::new())).collect(),
            normals: vec![0.0; elements],
        };
        path.draw(0);
        let scale = (root.to - root.from).sqrt();
        let end = std::mem::take(&mut path.end);
        path.end = end.into_iter().zip(&path.normals).map(|(_, z)| scale * z).collect();
        path
    }

    /// Write W(t) to `out`.
    pub fn at(&mut self, t: f64, out: &mut [f64]) {
        let Root { from, to, depth } = self.root;
        let leaves = (1u64 << depth) as f64;
        let position = (t - from) / (to - from) * leaves;
        let leaf = (position.floor() as u64).min((1u64 << depth) - 1);
        let (mut left, mut right) = (Known::Zero, Known::End);
        if position == 0.0 {
            return out.fill(0.0);
        }
        if position == leaves {
            return out.copy_from_slice(&self.end);
        }
        for level in 0..depth as usize {
            self.split(level, leaf, left, right);
            let shift = depth as usize - level;
            if position == ((leaf >> shift << shift) + (1 << (shift - 1))) as f64 {
                return out.copy_from_slice(&self.middles[level].1);
            }
            if leaf >> (shift - 1) & 1 == 0 {
                right = Known::Middle(level);
            } else {
                left = Known::Middle(level);
            }
        }
        let width = (to - from) / leaves;
        let fraction = position - leaf as f64;
        let scale = (fraction * (1.0 - fraction) * width).sqrt();
        self.draw(time_node(t));
        let (left, right) = (self.value(left), self.value(right));
        for (i, out) in out.iter_mut().enumerate() {
            let (l, r) = (left.map_or(0.0, |v| v[i]), right.map_or(0.0, |v| v[i]));
            *out = l + fraction * (r - l) + scale * self.normals[i];
        }
    }

    /// Make `middles[level]` that of the node on the way to `leaf`, unless it is already.
    fn split(&mut self, level: usize, leaf: u64, left: Known, right: Known) {
        let node = (1u64 << level) + (leaf >> (self.root.depth as usize - level));
        if self.middles[level].0 == Some(node) {
            return;
        }
        self.draw(node);
        let width = (self.root.to - self.root.from) / (1u64 << level) as f64;
        let scale = (width / 4.0).sqrt();
        let mut middle = std::mem::take(&mut self.middles[level].1);
        middle.resize(self.elements, 0.0);
        let (l, r) = (self.value(left), self.value(right));
        for (i, m) in middle.iter_mut().enumerate() {
            let ends = l.map_or(0.0, |v| v[i]) + r.map_or(0.0, |v| v[i]);
            *m = 0.5 * ends + scale * self.normals[i];
        }
        self.middles[level] = (Some(node), middle);
    }

    fn value(&self, known: Known) -> Option<&[f64]> {
        match known {
            Known::Zero => None,
            Known::End => Some(&self.end),
            Known::Middle(level) => Some(&self.middles[level].1),
        }
    }

    /// One normal for every element, keyed by `node`.
    fn draw(&mut self, node: u64) {
        let Rows { len, first, key } = self.rows;
        share(&mut self.normals, len.max(1), NORMAL, |from, out| {
            let row = first.wrapping_add((from / len.max(1)) as u32);
            fill_normals(out, len, row, key, node);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::philox::stream_key;
    use proptest::prelude::*;

    fn path(depth: u32, elements: usize) -> Path {
        let rows = Rows { len: elements, first: 0, key: stream_key(11, 1) };
        Path::new(Root { from: -1.0, to: 3.0, depth }, rows, elements)
    }

    proptest! {
        #[test]
        fn w_does_not_depend_on_what_was_asked_before(
            times in prop::collection::vec(-1.0f64..=3.0, 1..20), t in -1.0f64..=3.0,
        ) {
            let (mut fresh, mut used) = (path(10, 5), path(10, 5));
            let (mut a, mut b) = (vec![0.0; 5], vec![0.0; 5]);
            for s in times {
                used.at(s, &mut b);
            }
            fresh.at(t, &mut a);
            used.at(t, &mut b);
            prop_assert_eq!(a, b);
        }
    }

    #[test]
    fn dyadic_times_do_not_depend_on_the_depth() {
        let (mut a, mut b) = (vec![0.0; 8], vec![0.0; 8]);
        for k in 0..=64 {
            let t = -1.0 + 4.0 * f64::from(k) / 64.0;
            path(6, 8).at(t, &mut a);
            path(13, 8).at(t, &mut b);
            assert_eq!(a, b);
        }
    }

    #[test]
    fn increments_are_independent_with_variance_of_their_length() {
        let n = 200_000;
        let mut path = path(10, n);
        // An uneven grid, with dyadic and other times.
        let times = [-1.0, -0.3, 0.0, 0.777, 1.0, 1.0001, 2.9, 3.0];
        let mut w = vec![vec![0.0; n]; times.len()];
        for (t, w) in times.iter().zip(&mut w) {
            path.at(*t, w);
        }
        let step = |i: usize, e: usize| (w[i + 1][e] - w[i][e]) / (times[i + 1] - times[i]).sqrt();
        for i in 0..times.len() - 1 {
            for j in 0..=i {
                let mean: f64 = (0..n).map(|e| step(i, e) * step(j, e)).sum::<f64>() / n as f64;
                let expected = if i == j { 1.0 } else { 0.0 };
                // Standard errors: sqrt(2/n) = 0.0032 on the diagonal, 0.0022 beside it; five of them.
                assert!((mean - expected).abs() < 0.016, "{i} {j} {mean}");
            }
        }
    }
}
