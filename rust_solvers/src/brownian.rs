//! One Brownian path for every step size: a dyadic tree on a root interval whose nodes give W and its
//! space-time Levy area together.
//!
//! Over [s, u] of length w, W stands for the increment W(u) - W(s) and H for the area
//! `(1/w) int_s^u (W(r) - W(s)) dr - W / 2`; they are independent, N(0, w) and N(0, w / 12). A node
//! splits at its middle with two normals Y and N (Foster, Lyons, Oberhauser, arXiv 1905.09030, section
//! 5; Jelincic et al., arXiv 2405.06464, theorem 2.6):
//!
//! ```text
//! W_left = W / 2 + B      H_left = H / 4 - K / 2 + T      K = sqrt(w / 16) Y,  B = 3 H / 2 + K
//! W_right = W / 2 - B     H_right = H / 4 - K / 2 - T     T = sqrt(w / 48) N
//! ```
//!
//! Below `depth` levels a time at the fraction x of a leaf takes two normals keyed by the time itself:
//!
//! ```text
//! W_left = x W + 6 x (1 - x) H + p Y      p^2 = w x (1 - x) s,  s = 1 - 3 x (1 - x)
//! H_left = x^2 H + q Y + r N              q = -w x^3 (1 - x) / (2 p),  r^2 = w x (1 - x)^3 / (12 s)
//! ```
//!
//! Every normal is a function of (seed, row, element, node), so the path does not depend on the grid
//! that asks for it, as long as no two times fall inside one leaf. Nothing of it is kept: a walk down
//! the tree makes the values at a few times, for a chunk of elements that fits the cache. The same
//! recipe stands in `interp/noise.py`.

use std::collections::VecDeque;

use multiversion::multiversion;

use crate::philox::{Key, Rows, fill_normals};
use crate::threads::share;

/// The root interval and how many levels the tree has.
#[derive(Clone, Copy, Debug)]
pub struct Root {
    pub from: f64,
    pub to: f64,
    pub depth: u32,
}

impl Root {
    /// The time of the tree at most `h` after t, on a level three below that of the step; `stop` where
    /// that is as near; None where h is too short for the tree.
    pub fn time_after(&self, t: f64, h: f64, stop: f64) -> Option<f64> {
        if 1.01 * h.abs() >= (stop - t).abs() {
            return Some(stop);
        }
        let span = self.to - self.from;
        let level = (span / h.abs()).log2().ceil().max(0.0) + 3.0;
        let cells = level.min(f64::from(self.depth)).exp2();
        let position = (t + h - self.from) / span * cells;
        let cell = if h > 0.0 { position.floor() } else { position.ceil() };
        let time = self.from + span * (cell / cells);
        ((time - t) * h > 0.0).then_some(time)
    }
}

/// Elements that walk together: their nodes, one a level, stay in the second-level cache.
const CHUNK: usize = 512;

/// A value of the path takes about as long as so many elements of a pass.
const VALUE: usize = 64;

/// The node of a time inside a leaf: its bits, moved to where no node of the tree is (those are below
/// 2^49, and no finite time has all exponent bits set).
fn time_node(t: f64) -> u64 {
    (t + 0.0).to_bits() ^ 0x7ff8_0000_0000_0000
}

/// The path of a batch of `elements`.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    pub root: Root,
    pub rows: Rows,
    /// Of the normals Y and N.
    pub keys: [Key; 2],
    pub elements: usize,
}

/// The path at one time: W(t), and its integral from the root's start where there is room for it.
pub struct Value<'a> {
    pub w: &'a mut [f64],
    pub integral: &'a mut [f64],
}

/// Memory of a value.
#[derive(Clone)]
struct Owned {
    w: Vec<f64>,
    integral: Vec<f64>,
}

impl Owned {
    fn new(elements: usize, area: bool) -> Self {
        Owned { w: vec![0.0; elements], integral: vec![0.0; if area { elements } else { 0 }] }
    }

    fn lend(&mut self) -> Value<'_> {
        Value { w: &mut self.w, integral: &mut self.integral }
    }
}

impl Path {
    /// The path at `times`, into as many of the last `values`; then `after` on each chunk of them all.
    pub fn at(
        &self,
        times: &[f64],
        values: &mut [Value<'_>],
        after: impl Fn(&mut [Value<'_>]) + Sync,
    ) {
        let mut chunks: Vec<Vec<Value>> =
            (0..self.elements.div_ceil(CHUNK)).map(|_| Vec::with_capacity(values.len())).collect();
        for value in values {
            let mut integrals = value.integral.chunks_mut(CHUNK);
            for (chunk, w) in chunks.iter_mut().zip(value.w.chunks_mut(CHUNK)) {
                chunk.push(Value { w, integral: integrals.next().unwrap_or_default() });
            }
        }
        share(&mut chunks, 1, CHUNK * VALUE * times.len(), |first, chunks| {
            let mut walk = Walk::new(self);
            for (i, chunk) in chunks.iter_mut().enumerate() {
                walk.start((first + i) * CHUNK);
                let skipped = chunk.len() - times.len();
                for (&t, value) in times.iter().zip(&mut chunk[skipped..]) {
                    walk.to(t, value);
                }
                after(chunk);
            }
        });
    }
}

/// A node on the way to the current time: W and the integral at its left end, and its own W and H.
#[derive(Clone)]
struct Node {
    index: u64,
    left: Vec<f64>,
    integral: Vec<f64>,
    w: Vec<f64>,
    h: Vec<f64>,
    /// Its normals Y and N, and how many of the two have been drawn: both of its children take them.
    y: Vec<f32>,
    n: Vec<f32>,
    drawn: usize,
}

/// A walk down the tree for one chunk of elements; goes on from the branch of the last time.
struct Walk<'a> {
    path: &'a Path,
    start: usize,
    /// One node a level, as far as the walk has come.
    branch: Vec<Node>,
    known: usize,
    y: Vec<f32>,
    n: Vec<f32>,
}

impl<'a> Walk<'a> {
    fn new(path: &'a Path) -> Self {
        let size = CHUNK.min(path.elements);
        let zeros = || vec![0.0; size];
        let (y, n) = (vec![0.0; size], vec![0.0; size]);
        let node = Node {
            index: 0,
            left: zeros(),
            integral: zeros(),
            w: zeros(),
            h: zeros(),
            y: y.clone(),
            n: n.clone(),
            drawn: 0,
        };
        let branch = vec![node; path.root.depth as usize + 1];
        Walk { path, start: 0, branch, known: 0, y, n }
    }

    /// Begin with the elements from `start` on.
    fn start(&mut self, start: usize) {
        (self.start, self.known) = (start, 0);
    }

    /// Normals Y, and N where `both`, of a node, for `count` elements.
    fn draw(&mut self, node: u64, count: usize, both: bool) {
        let Path { rows, keys, .. } = *self.path;
        fill_normals(&mut self.y[..count], self.start, rows, keys[0], node);
        if both {
            fill_normals(&mut self.n[..count], self.start, rows, keys[1], node);
        }
    }

    /// The same of the node of a level, kept in it.
    fn draw_at(&mut self, level: usize, count: usize, both: bool) {
        let Path { rows, keys, .. } = *self.path;
        let node = &mut self.branch[level];
        if node.drawn == 0 {
            fill_normals(&mut node.y[..count], self.start, rows, keys[0], node.index);
            node.drawn = 1;
        }
        if both && node.drawn == 1 {
            fill_normals(&mut node.n[..count], self.start, rows, keys[1], node.index);
            node.drawn = 2;
        }
    }

    /// The path at t.
    fn to(&mut self, t: f64, out: &mut Value<'_>) {
        let Root { from, to, depth } = self.path.root;
        let (count, area) = (out.w.len(), !out.integral.is_empty());
        let leaves = (1u64 << depth) as f64;
        let position = (t - from) / (to - from) * leaves;
        if position == 0.0 {
            out.w.fill(0.0);
            return out.integral.fill(0.0);
        }
        if self.known == 0 {
            self.root(count);
        }
        if position == leaves {
            return ending(out, &self.branch[0], to - from);
        }
        let leaf = (position.floor() as u64).min((1u64 << depth) - 1);
        let ancestor = |level: usize| (1u64 << level) + (leaf >> (depth as usize - level));
        while self.branch[self.known - 1].index != ancestor(self.known - 1) {
            self.known -= 1;
        }
        for level in 0..depth as usize {
            let width = (to - from) / (1u64 << level) as f64;
            let shift = depth as usize - level;
            let middle = ((leaf >> shift << shift) + (1 << (shift - 1))) as f64;
            if position == middle {
                self.draw_at(level, count, area);
                return halfway(out, &self.branch[level], width);
            }
            if level + 1 == self.known {
                self.draw_at(level, count, true);
                let (above, below) = self.branch.split_at_mut(level + 1);
                let (parent, child) = (&above[level], &mut below[0]);
                (child.index, child.drawn) = (ancestor(level + 1), 0);
                let area = area.then_some(0.5 * width);
                split(parent, child, (width, area), count);
                self.known += 1;
            }
        }
        let width = (to - from) / leaves;
        self.draw(time_node(t), count, area);
        let node = &self.branch[depth as usize];
        inside(out, node, width, position - leaf as f64, &self.y, &self.n);
    }

    /// The root's own W and H.
    fn root(&mut self, count: usize) {
        self.draw(0, count, true);
        let width = self.path.root.to - self.path.root.from;
        let (a, b) = (width.sqrt(), (width / 12.0).sqrt());
        let root = &mut self.branch[0];
        (root.index, root.drawn) = (1, 0);
        for i in 0..count {
            (root.left[i], root.integral[i]) = (0.0, 0.0);
            (root.w[i], root.h[i]) = (a * f64::from(self.y[i]), b * f64::from(self.n[i]));
        }
        self.known = 1;
    }
}

/// The path at the end of a node.
fn ending(out: &mut Value<'_>, node: &Node, width: f64) {
    for (i, w) in out.w.iter_mut().enumerate() {
        *w = node.left[i] + node.w[i];
    }
    for (i, integral) in out.integral.iter_mut().enumerate() {
        *integral = node.integral[i] + width * (node.left[i] + 0.5 * node.w[i] + node.h[i]);
    }
}

/// The path at the middle of a node.
#[multiversion(targets("x86_64+avx+avx2+avx512f+avx512dq+avx512vl", "x86_64+avx+avx2"))]
fn halfway(out: &mut Value<'_>, node: &Node, width: f64) {
    let (k, t, half) = ((width / 16.0).sqrt(), (width / 48.0).sqrt(), 0.5 * width);
    let count = out.w.len();
    let (left, w, h) = (&node.left[..count], &node.w[..count], &node.h[..count]);
    let (y, n) = (&node.y[..count], &node.n[..count]);
    for (i, out) in out.w.iter_mut().enumerate() {
        *out = left[i] + (0.5 * w[i] + (1.5 * h[i] + k * f64::from(y[i])));
    }
    for (i, out) in out.integral.iter_mut().enumerate() {
        let kick = k * f64::from(y[i]);
        let w_left = 0.5 * w[i] + (1.5 * h[i] + kick);
        let h_left = (0.25 * h[i] - 0.5 * kick) + t * f64::from(n[i]);
        *out = node.integral[i] + half * (left[i] + 0.5 * w_left + h_left);
    }
}

/// A child of a node: the left one if its index is even; with its integral, over half a width, where
/// that is wanted.
#[multiversion(targets("x86_64+avx+avx2+avx512f+avx512dq+avx512vl", "x86_64+avx+avx2"))]
fn split(parent: &Node, child: &mut Node, (width, half): (f64, Option<f64>), count: usize) {
    let (k, t) = ((width / 16.0).sqrt(), (width / 48.0).sqrt());
    let (left, integral) = (&parent.left[..count], &parent.integral[..count]);
    let (w, h) = (&parent.w[..count], &parent.h[..count]);
    let (y, n) = (&parent.y[..count], &parent.n[..count]);
    let to = (&mut child.left[..count], &mut child.integral[..count]);
    let own = (&mut child.w[..count], &mut child.h[..count]);
    if child.index.is_multiple_of(2) {
        to.0.copy_from_slice(left);
        if half.is_some() {
            to.1.copy_from_slice(integral);
        }
        for i in 0..count {
            let kick = k * f64::from(y[i]);
            own.0[i] = 0.5 * w[i] + (1.5 * h[i] + kick);
            own.1[i] = (0.25 * h[i] - 0.5 * kick) + t * f64::from(n[i]);
        }
        return;
    }
    for i in 0..count {
        let kick = k * f64::from(y[i]);
        let bend = 1.5 * h[i] + kick;
        to.0[i] = left[i] + (0.5 * w[i] + bend);
        own.0[i] = 0.5 * w[i] - bend;
        own.1[i] = (0.25 * h[i] - 0.5 * kick) - t * f64::from(n[i]);
    }
    if let Some(half) = half {
        for i in 0..count {
            let kick = k * f64::from(y[i]);
            let w_left = 0.5 * w[i] + (1.5 * h[i] + kick);
            let h_left = (0.25 * h[i] - 0.5 * kick) + t * f64::from(n[i]);
            to.1[i] = integral[i] + half * (left[i] + 0.5 * w_left + h_left);
        }
    }
}

/// The path at the fraction `x` of a leaf.
#[multiversion(targets("x86_64+avx+avx2+avx512f+avx512dq+avx512vl", "x86_64+avx+avx2"))]
fn inside(out: &mut Value<'_>, node: &Node, width: f64, x: f64, y: &[f32], n: &[f32]) {
    let rest = 1.0 - x;
    let s = 1.0 - 3.0 * x * rest;
    let (arch, p) = (6.0 * x * rest, (width * x * rest * s).sqrt());
    let q = -width * x * x * x * rest / (2.0 * p);
    let r = (width * x * rest * rest * rest / (12.0 * s)).sqrt();
    let count = out.w.len();
    let (left, w, h, y) = (&node.left[..count], &node.w[..count], &node.h[..count], &y[..count]);
    for (i, out) in out.w.iter_mut().enumerate() {
        *out = left[i] + ((x * w[i] + arch * h[i]) + p * f64::from(y[i]));
    }
    for (i, out) in out.integral.iter_mut().enumerate() {
        let w_left = (x * w[i] + arch * h[i]) + p * f64::from(y[i]);
        let h_left = (x * x * h[i] + q * f64::from(y[i])) + r * f64::from(n[i]);
        *out = node.integral[i] + x * width * (left[i] + 0.5 * w_left + h_left);
    }
}

/// What the path does over the steps of a run, in their order: a few are made ahead at a time, so
/// that they share the upper levels of the tree.
pub struct Increments {
    path: Path,
    /// The two ends of each step.
    steps: Vec<(f64, f64)>,
    area: bool,
    /// The next step, and the end of those that are at hand.
    next: usize,
    made: usize,
    /// Where each step at hand has its W and H; the path at its end comes after it.
    places: VecDeque<usize>,
    values: Vec<Owned>,
}

/// Numbers kept of the steps ahead, as far as these are at least 8 and no more than 64.
const AHEAD: usize = 1 << 19;

impl Increments {
    /// Over `steps`, each from a time to another; H too where the `area` is wanted.
    pub fn new(path: Path, steps: Vec<(f64, f64)>, area: bool) -> Self {
        let (places, values) = (VecDeque::new(), Vec::new());
        Increments { path, steps, area, next: 0, made: 0, places, values }
    }

    /// W and H over the next step; H is empty where it was not asked for.
    ///
    /// # Panics
    /// After the last step: a bug in the caller, which gave them.
    pub fn over_next(&mut self) -> (&[f64], &[f64]) {
        if self.next == self.made {
            self.make();
        }
        self.next += 1;
        let value = self.places.pop_front().map(|place| &self.values[place]);
        value.map(|v| (&v.w[..], &v.integral[..])).expect("a step that was not announced")
    }

    fn make(&mut self) {
        let most = (AHEAD / self.path.elements.max(1)).clamp(8, 64);
        let ahead = &self.steps[self.next..self.steps.len().min(self.next + most)];
        let Some(&(from, _)) = ahead.first() else { return };
        // The path at the start is at hand where the step before ended there.
        let follows = self.next > 0 && self.steps[self.next - 1].1 == from;
        let last = self.values.len().saturating_sub(1);
        if follows {
            self.values.swap(0, last);
        }
        let mut times = Vec::with_capacity(2 * ahead.len());
        let mut places = Vec::with_capacity(ahead.len());
        for &(from, to) in ahead {
            if times.last() != Some(&from) {
                times.push(from);
            }
            places.push(times.len() - 1);
            times.push(to);
        }
        self.values.truncate(times.len());
        let (elements, area) = (self.path.elements, self.area);
        self.values.resize_with(times.len(), || Owned::new(elements, area));
        let mut values: Vec<Value> = self.values.iter_mut().map(Owned::lend).collect();
        self.path.at(&times[usize::from(follows)..], &mut values, |pieces| {
            for (&place, &(from, to)) in places.iter().zip(ahead) {
                let (before, after) = pieces.split_at_mut(place + 1);
                step(&mut before[place], &after[0], to - from);
            }
        });
        self.made = self.next + ahead.len();
        self.places = places.into();
    }
}

/// From the path at the ends of a step of length h to W and H over it, in place of the first.
pub fn step(from: &mut Value<'_>, to: &Value<'_>, h: f64) {
    for (i, integral) in from.integral.iter_mut().enumerate() {
        *integral = (to.integral[i] - *integral) / h - 0.5 * (from.w[i] + to.w[i]);
    }
    for (from, to) in from.w.iter_mut().zip(&*to.w) {
        *from = to - *from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::philox::stream_keys;
    use crate::threads::nanoseconds_run;
    use proptest::prelude::*;

    fn path(depth: u32, elements: usize) -> Path {
        Path {
            root: Root { from: -1.0, to: 3.0, depth },
            rows: Rows { len: elements, first: 0 },
            keys: stream_keys(11, 1),
            elements,
        }
    }

    fn values(path: &Path, times: &[f64], area: bool) -> Vec<Owned> {
        let mut values = vec![Owned::new(path.elements, area); times.len()];
        let mut lent: Vec<Value> = values.iter_mut().map(Owned::lend).collect();
        path.at(times, &mut lent, |_| {});
        values
    }

    proptest! {
        #[test]
        fn a_value_does_not_depend_on_what_else_is_asked(
            mut times in prop::collection::vec(
                prop_oneof![-1.0f64..=3.0, (0u32..=64).prop_map(|k| f64::from(k) / 16.0 - 1.0)], 1..20,
            ),
            depth in 1u32..20, area: bool,
        ) {
            let path = path(depth, 600);
            let together = values(&path, &times, area);
            for (&t, value) in times.iter().zip(&together) {
                let alone = &values(&path, &[t], true)[0];
                prop_assert_eq!(&alone.w, &value.w);
                prop_assert!(!area || alone.integral == value.integral);
            }
            times.reverse();
            let mut reversed = values(&path, &times, area);
            reversed.reverse();
            for (a, b) in together.iter().zip(&reversed) {
                prop_assert_eq!(&a.w, &b.w);
            }
        }

        #[test]
        fn steps_ahead_are_steps_one_by_one(
            ends in prop::collection::vec((-1.0f64..=3.0, -1.0f64..=3.0, any::<bool>()), 1..150),
            area: bool,
        ) {
            let path = path(10, 3);
            let mut steps: Vec<(f64, f64)> = Vec::new();
            for &(from, to, follows) in &ends {
                let from = steps.last().map_or(from, |last| if follows { last.1 } else { from });
                if from != to {
                    steps.push((from, to));
                }
            }
            let mut increments = Increments::new(path, steps.clone(), area);
            for (from, to) in steps {
                let (w, h) = increments.over_next();
                prop_assert_eq!(h.len(), if area { 3 } else { 0 });
                let points = values(&path, &[from, to], true);
                for e in 0..3 {
                    let (a, b) = (points[0].w[e], points[1].w[e]);
                    prop_assert_eq!(w[e], b - a);
                    if area {
                        let mean = (points[1].integral[e] - points[0].integral[e]) / (to - from);
                        prop_assert_eq!(h[e], mean - 0.5 * (a + b));
                    }
                }
            }
        }
    }

    #[test]
    fn dyadic_times_do_not_depend_on_the_depth() {
        let times: Vec<f64> = (0..=64).map(|k| -1.0 + 4.0 * f64::from(k) / 64.0).collect();
        let (a, b) = (values(&path(6, 8), &times, true), values(&path(13, 8), &times, true));
        for (a, b) in a.iter().zip(&b) {
            assert_eq!((&a.w, &a.integral), (&b.w, &b.integral));
        }
    }

    /// Exact moments: over disjoint steps W / sqrt(h) and H / sqrt(h / 12) are independent N(0, 1).
    #[test]
    fn increments_and_areas_are_independent() {
        let n = 200_000;
        let path = path(10, n);
        // An uneven grid, with dyadic and other times.
        let grid = [-1.0, -0.3, 0.0, 0.777, 1.0, 1.0001, 2.9, 3.0];
        let steps = grid.windows(2).map(|ends| (ends[0], ends[1])).collect();
        let mut increments = Increments::new(path, steps, true);
        let mut z: Vec<Vec<f64>> = Vec::new();
        for i in 0..grid.len() - 1 {
            let h = grid[i + 1] - grid[i];
            let (w, area) = increments.over_next();
            z.push(w.iter().map(|w| w / h.sqrt()).collect());
            z.push(area.iter().map(|a| a / (h / 12.0).sqrt()).collect());
        }
        for (i, a) in z.iter().enumerate() {
            for (j, b) in z[..=i].iter().enumerate() {
                let mean = a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>() / n as f64;
                let expected = if i == j { 1.0 } else { 0.0 };
                // Standard errors: sqrt(2/n) = 0.0032 on the diagonal, 0.0022 beside it; five of them.
                assert!((mean - expected).abs() < 0.016, "{i} {j} {mean}");
            }
        }
    }

    /// Measured, not asserted: `cargo test --release -- --ignored --nocapture nanoseconds`. The least
    /// of several runs.
    #[test]
    #[ignore = "a measurement"]
    fn nanoseconds_an_increment() {
        for (rows, len) in [(1, 2), (256, 2), (256, 64), (256, 784)] {
            for area in [false, true] {
                let elements = rows * len;
                let path = Path {
                    root: Root { from: 0.0, to: 1.0, depth: 10 },
                    rows: Rows { len, first: 0 },
                    keys: stream_keys(0, 1),
                    elements,
                };
                let time = || {
                    let at = |k: i32| f64::from(k) / 100.0;
                    let steps = (0..100).map(|k| (at(k), at(k + 1))).collect();
                    let start = nanoseconds_run();
                    let mut increments = Increments::new(path, steps, area);
                    for _ in 0..100 {
                        std::hint::black_box(increments.over_next());
                    }
                    (nanoseconds_run() - start) / (100 * elements) as f64
                };
                let repeats = (10_000_000 / (100 * elements)).clamp(5, 200);
                let least = (0..repeats).map(|_| time()).fold(f64::INFINITY, f64::min);
                println!("{rows}x{len} area {area}: {least:.2} ns");
            }
        }
    }
}
