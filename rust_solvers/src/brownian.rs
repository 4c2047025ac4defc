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

use std::ops::Range;

use multiversion::multiversion;

use crate::philox::{BLOCK, Counters, Key, Origin, Rows, fill_blocks, in_order, second};
use crate::real::Real;
use crate::threads::share;

/// The root interval and how many levels the tree has.
#[derive(Clone, Copy, Debug)]
pub struct Root {
    pub from: f64,
    pub to: f64,
    pub depth: u32,
}

impl Root {
    /// How many leaves lie before t.
    fn position(&self, t: f64) -> f64 {
        (t - self.from) / (self.to - self.from) * (1u64 << self.depth) as f64
    }

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

/// Elements that walk together: what they need of the deeper levels stays in the first-level cache.
const CHUNK: usize = 256;

/// A value of the path takes about as long as so many elements of a pass.
const VALUE: usize = 32;

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
    pub key: Key,
    pub elements: usize,
}

/// The path at one time: W(t), and its integral from the root's start where there is room for it.
pub struct Value<'a> {
    pub w: &'a mut [f64],
    pub integral: &'a mut [f64],
}

impl Path {
    /// The path at `times`, into as many `values`.
    pub fn at(&self, times: &[f64], values: &mut [Value<'_>]) {
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
                let origin = walk.start(first + i);
                for (&t, value) in times.iter().zip(chunk) {
                    let (w, integral) = walk.to(t, &origin, !value.integral.is_empty());
                    gather(value.w, w, &origin);
                    gather(value.integral, integral, &origin);
                }
            }
        });
    }
}

/// From the order of the normals to that of the elements.
#[multiversion(targets("x86_64+avx+avx2+avx512f+avx512dq+avx512vl", "x86_64+avx+avx2"))]
fn gather<T: Real>(out: &mut [T], values: &[Block], origin: &Origin) {
    let regular = if origin.regular { out.len() / BLOCK * BLOCK } else { 0 };
    let (blocks, rest) = out.split_at_mut(regular);
    for (out, values) in blocks.as_chunks_mut::<BLOCK>().0.iter_mut().zip(values) {
        in_order(out, values, T::from_f64);
    }
    let values = values.as_flattened();
    for (out, &place) in rest.iter_mut().zip(&origin.places[regular..]) {
        *out = T::from_f64(values[place as usize]);
    }
}

/// A number for each normal of a block, and of a chunk.
type Block = [f64; BLOCK];
type Chunk = Vec<Block>;

fn resize<const N: usize>(chunks: [&mut Chunk; N], blocks: usize) {
    chunks.into_iter().for_each(|chunk| chunk.resize(blocks, [0.0; BLOCK]));
}

/// A node on the way to the current time: the path at its middle, and H over each of its halves.
#[derive(Clone)]
struct Node {
    index: u64,
    /// How many of its two normals have been drawn: the middle takes one.
    drawn: usize,
    middle: Chunk,
    integral: Chunk,
    halves: (Chunk, Chunk),
}

/// What lies over a node: W at its ends, H, and the integral at its left end.
#[derive(Clone, Copy)]
struct Over<'a> {
    left: &'a [Block],
    right: &'a [Block],
    h: &'a [Block],
    integral: &'a [Block],
}

impl<'a> Over<'a> {
    #[inline(always)]
    fn block(&self, k: usize) -> [&'a Block; 4] {
        [&self.left[k], &self.right[k], &self.h[k], &self.integral[k]]
    }
}

/// A walk down the tree for one chunk of elements; goes on from the branch of the last time.
struct Walk<'a> {
    path: &'a Path,
    /// W and H over the root, and the path at its start.
    end: Chunk,
    h: Chunk,
    zero: Chunk,
    /// One node a level.
    branch: Vec<Node>,
    /// The path at the last time that is inside a leaf.
    w: Chunk,
    integral: Chunk,
}

impl<'a> Walk<'a> {
    fn new(path: &'a Path) -> Self {
        let node = Node {
            index: 0,
            drawn: 0,
            middle: Chunk::new(),
            integral: Chunk::new(),
            halves: (Chunk::new(), Chunk::new()),
        };
        let branch = vec![node; path.root.depth as usize];
        let [end, h, zero, w, integral] = std::array::from_fn(|_| Chunk::new());
        Walk { path, end, h, zero, branch, w, integral }
    }

    /// Begin with a chunk; where its normals come from.
    fn start(&mut self, chunk: usize) -> Origin {
        let Path { root: Root { from, to, .. }, rows, key, elements } = *self.path;
        let start = chunk * CHUNK;
        let origin = Origin::of(rows, start, CHUNK.min(elements - start));
        let size = origin.blocks.len();
        let Walk { end, h, zero, branch, w, integral, .. } = self;
        resize([&mut *end, &mut *h, zero, w, integral], size);
        for Node { index, middle, integral, halves, .. } in branch {
            *index = 0;
            resize([middle, integral, &mut halves.0, &mut halves.1], size);
        }
        root(end, h, to - from, Normals { key, blocks: &origin.blocks });
        origin
    }

    /// The path at t: W, and its integral where the `area` is wanted.
    fn to(&mut self, t: f64, origin: &Origin, area: bool) -> (&[Block], &[Block]) {
        let normals = Normals { key: self.path.key, blocks: &origin.blocks };
        let Root { from, to, depth } = self.path.root;
        let leaves = (1u64 << depth) as f64;
        let position = self.path.root.position(t);
        let zero = &self.zero[..];
        let mut over = Over { left: zero, right: &self.end, h: &self.h, integral: zero };
        if position == 0.0 {
            return (zero, zero);
        }
        if position == leaves {
            if area {
                whole(&mut self.integral, over, to - from);
            }
            return (&self.end, &self.integral);
        }
        let leaf = (position.floor() as u64).min((1u64 << depth) - 1);
        for (level, node) in self.branch.iter_mut().enumerate() {
            let shift = depth as usize - level;
            let index = (1u64 << level) + (leaf >> shift);
            if node.index != index {
                (node.index, node.drawn) = (index, 0);
            }
            let middle = ((leaf >> shift << shift) + (1 << (shift - 1))) as f64;
            let found = position == middle;
            let needed = if found && !area { 1 } else { 2 };
            if node.drawn < needed {
                let width = (to - from) / (1u64 << level) as f64;
                match needed {
                    1 => bend(node, over, width, normals),
                    _ => split(node, over, (width, area), normals),
                }
                node.drawn = needed;
            }
            if found {
                return (&node.middle, &node.integral);
            }
            if leaf >> (shift - 1) & 1 == 0 {
                over = Over { right: &node.middle, h: &node.halves.0, ..over };
            } else {
                let (left, integral) = (&node.middle[..], &node.integral[..]);
                over = Over { left, integral, h: &node.halves.1, ..over };
            }
        }
        let place = ((to - from) / leaves, position - leaf as f64, time_node(t));
        if area {
            let values = (&mut self.w[..], &mut self.integral[..]);
            inside_with_integral(values, over, place, normals);
        } else {
            inside(&mut self.w, over, place, normals);
        }
        (&self.w, &self.integral)
    }
}

/// Where the normals of a chunk come from.
#[derive(Clone, Copy)]
struct Normals<'a> {
    key: Key,
    blocks: &'a [Counters],
}

impl Normals<'_> {
    /// The normals Y and N of a node for the k-th block of the chunk.
    #[inline(always)]
    fn both(self, k: usize, node: u64) -> (Normal, Normal) {
        let (mut y, mut n) = ([0.0; BLOCK], [0.0; BLOCK]);
        let counters = &self.blocks[k];
        fill_blocks::<2, 32>([&mut y, &mut n], [counters, &second(counters)], self.key, node);
        (y, n)
    }

    /// Y alone.
    #[inline(always)]
    fn first(self, k: usize, node: u64) -> Normal {
        let mut y = [0.0; BLOCK];
        fill_blocks::<1, 16>([&mut y], [&self.blocks[k]], self.key, node);
        y
    }
}

/// W and H over the root.
#[multiversion(targets("x86_64+avx+avx2+avx512f+avx512dq+avx512vl", "x86_64+avx+avx2"))]
fn root(w: &mut [Block], h: &mut [Block], width: f64, normals: Normals<'_>) {
    let (a, b) = (width.sqrt(), (width / 12.0).sqrt());
    for (k, (w, h)) in w.iter_mut().zip(h).enumerate() {
        let (y, n) = normals.both(k, 0);
        scaled(w, &y, a);
        scaled(h, &n, b);
    }
}

/// The integral over the root.
fn whole(integral: &mut [Block], over: Over<'_>, width: f64) {
    for (k, integral) in integral.iter_mut().enumerate() {
        let [_, w, h, _] = over.block(k);
        for i in 0..BLOCK {
            integral[i] = width * (0.5 * w[i] + h[i]);
        }
    }
}

/// W at the middle of a node.
#[multiversion(targets("x86_64+avx+avx2+avx512f+avx512dq+avx512vl", "x86_64+avx+avx2"))]
fn bend(node: &mut Node, over: Over<'_>, width: f64, normals: Normals<'_>) {
    for (k, middle) in node.middle.iter_mut().enumerate() {
        bent(middle, over.block(k), &normals.first(k, node.index), (width / 16.0).sqrt());
    }
}

/// The same, H over both halves, and the integral at the middle where the `area` is wanted.
#[multiversion(targets("x86_64+avx+avx2+avx512f+avx512dq+avx512vl", "x86_64+avx+avx2"))]
fn split(node: &mut Node, over: Over<'_>, (width, area): (f64, bool), normals: Normals<'_>) {
    let scales = ((width / 16.0).sqrt(), (width / 48.0).sqrt());
    let halves = node.halves.0.iter_mut().zip(&mut node.halves.1);
    let blocks = node.middle.iter_mut().zip(&mut node.integral).zip(halves).enumerate();
    for (k, ((middle, integral), (first, second))) in blocks {
        let (y, n) = normals.both(k, node.index);
        bent(middle, over.block(k), &y, scales.0);
        turned((first, second), over.block(k), (&y, &n), scales);
        if area {
            integrated(integral, over.block(k), middle, first, 0.5 * width);
        }
    }
}

/// W at the fraction x of a leaf: (its width, x, the node of the time).
#[multiversion(targets("x86_64+avx+avx2+avx512f+avx512dq+avx512vl", "x86_64+avx+avx2"))]
fn inside(
    w: &mut [Block],
    over: Over<'_>,
    (width, x, node): (f64, f64, u64),
    normals: Normals<'_>,
) {
    let factors = bridge(width, x);
    for (k, w) in w.iter_mut().enumerate() {
        bridged(w, over.block(k), &normals.first(k, node), factors);
    }
}

/// The same and its integral.
#[multiversion(targets("x86_64+avx+avx2+avx512f+avx512dq+avx512vl", "x86_64+avx+avx2"))]
fn inside_with_integral(
    (w, integral): (&mut [Block], &mut [Block]),
    over: Over<'_>,
    (width, x, node): (f64, f64, u64),
    normals: Normals<'_>,
) {
    let (rest, factors) = (1.0 - x, bridge(width, x));
    let q = -width * x * x * x * rest / (2.0 * factors.2);
    let r = (width * x * rest * rest * rest / (12.0 * (1.0 - 3.0 * x * rest))).sqrt();
    for (k, (w, integral)) in w.iter_mut().zip(integral).enumerate() {
        let (y, n) = normals.both(k, node);
        bridged(w, over.block(k), &y, factors);
        let mut h = [0.0; BLOCK];
        leaning(&mut h, over.block(k), (&y, &n), (x * x, q, r));
        integrated(integral, over.block(k), w, &h, x * width);
    }
}

/// What W at the fraction x of a leaf of that width is made of: the factors of W, H and Y.
fn bridge(width: f64, x: f64) -> (f64, f64, f64) {
    let rest = 1.0 - x;
    (x, 6.0 * x * rest, (width * x * rest * (1.0 - 3.0 * x * rest)).sqrt())
}

// Passes over one block. Arguments of a function are known not to overlap, so that these are vectors.

type Normal = [f32; BLOCK];

#[inline(always)]
fn scaled(out: &mut Block, z: &Normal, scale: f64) {
    for i in 0..BLOCK {
        out[i] = scale * f64::from(z[i]);
    }
}

/// W at the middle.
#[inline(always)]
fn bent(out: &mut Block, [left, right, h, _]: [&Block; 4], y: &Normal, scale: f64) {
    for i in 0..BLOCK {
        out[i] = 0.5 * (left[i] + right[i]) + (1.5 * h[i] + scale * f64::from(y[i]));
    }
}

/// H over both halves.
#[inline(always)]
fn turned(
    (first, second): (&mut Block, &mut Block),
    [_, _, h, _]: [&Block; 4],
    (y, n): (&Normal, &Normal),
    scales: (f64, f64),
) {
    for i in 0..BLOCK {
        let turn = 0.25 * h[i] - 0.5 * (scales.0 * f64::from(y[i]));
        let tilt = scales.1 * f64::from(n[i]);
        (first[i], second[i]) = (turn + tilt, turn - tilt);
    }
}

/// W inside a leaf.
#[inline(always)]
fn bridged(
    out: &mut Block,
    [left, right, h, _]: [&Block; 4],
    y: &Normal,
    (x, arch, p): (f64, f64, f64),
) {
    for i in 0..BLOCK {
        let bend = arch * h[i] + p * f64::from(y[i]);
        out[i] = left[i] + (x * (right[i] - left[i]) + bend);
    }
}

/// H from the left end of a leaf to a time inside it.
#[inline(always)]
fn leaning(
    out: &mut Block,
    [_, _, h, _]: [&Block; 4],
    (y, n): (&Normal, &Normal),
    (square, q, r): (f64, f64, f64),
) {
    for i in 0..BLOCK {
        out[i] = (square * h[i] + q * f64::from(y[i])) + r * f64::from(n[i]);
    }
}

/// The integral at a time, from W there, H and the length from a node's left end to it.
#[inline(always)]
fn integrated(
    out: &mut Block,
    [left, _, _, before]: [&Block; 4],
    w: &Block,
    h: &Block,
    length: f64,
) {
    for i in 0..BLOCK {
        out[i] = before[i] + length * (0.5 * (left[i] + w[i]) + h[i]);
    }
}

/// What the path does over the steps of a run, in their order: a few are made ahead at a time, so
/// that they share the upper levels of the tree.
pub struct Increments<T> {
    path: Path,
    /// The two ends of each step.
    steps: Vec<(f64, f64)>,
    area: bool,
    /// The next step, and those that are at hand.
    next: usize,
    ahead: Range<usize>,
    /// W and H of the steps at hand, and room for more.
    values: Vec<[Vec<T>; 2]>,
    /// W and its integral at the end of the last of them, chunk by chunk.
    last: Vec<[Chunk; 2]>,
}

/// Bytes kept of the steps ahead, as far as these are at least 8 and no more than 64.
const AHEAD: usize = 1 << 24;
/// What a chunk has of the steps ahead, and of the path at the last time.
struct Ahead<'a, T> {
    steps: Vec<[&'a mut [T]; 2]>,
    last: &'a mut [Chunk; 2],
}

impl<T: Real> Increments<T> {
    /// Over `steps`, each from a time to another; H too where the `area` is wanted.
    pub fn new(path: Path, steps: Vec<(f64, f64)>, area: bool) -> Self {
        let last = vec![[Chunk::new(), Chunk::new()]; path.elements.div_ceil(CHUNK)];
        Increments { path, steps, area, next: 0, ahead: 0..0, values: Vec::new(), last }
    }

    /// W and H over the next step; H is empty where it was not asked for.
    ///
    /// # Panics
    /// After the last step: a bug in the caller, which gave them.
    pub fn over_next(&mut self) -> (&[T], &[T]) {
        if self.next == self.ahead.end {
            self.make();
        }
        let [w, h] = &self.values[self.next - self.ahead.start];
        self.next += 1;
        (w, h)
    }

    fn make(&mut self) {
        let most = (AHEAD / size_of::<T>() / self.path.elements.max(1)).clamp(8, 64);
        self.ahead = self.next..self.next + self.batch(most);
        let ahead = &self.steps[self.ahead.clone()];
        assert!(!ahead.is_empty(), "a step that was not announced");
        let (elements, area) = (self.path.elements, self.area);
        let room = || [elements, if area { elements } else { 0 }].map(|n| vec![T::ZERO; n]);
        self.values.resize_with(self.values.len().max(ahead.len()), room);
        // The time that the path was made for last.
        let before = if self.next > 0 { Some(self.steps[self.next - 1].1) } else { None };
        let path = self.path;
        let room = || Vec::with_capacity(ahead.len());
        let mut chunks: Vec<Ahead<T>> =
            self.last.iter_mut().map(|last| Ahead { steps: room(), last }).collect();
        for [w, h] in &mut self.values[..ahead.len()] {
            let mut areas = h.chunks_mut(CHUNK);
            for (chunk, w) in chunks.iter_mut().zip(w.chunks_mut(CHUNK)) {
                chunk.steps.push([w, areas.next().unwrap_or_default()]);
            }
        }
        share(&mut chunks, 1, CHUNK * VALUE * ahead.len(), |first, chunks| {
            let mut walk = Walk::new(&path);
            let (mut w, mut h) = (Chunk::new(), Chunk::new());
            for (i, Ahead { steps, last: [w_last, integral_last] }) in chunks.iter_mut().enumerate()
            {
                let origin = walk.start(first + i);
                let size = origin.blocks.len();
                resize([&mut w, &mut h, w_last, integral_last], size);
                let mut before = before;
                for ([w_out, h_out], &(from, to)) in steps.iter_mut().zip(ahead) {
                    if before != Some(from) {
                        let (w_from, integral_from) = walk.to(from, &origin, area);
                        w_last.copy_from_slice(w_from);
                        integral_last.copy_from_slice(integral_from);
                    }
                    let (w_to, integral_to) = walk.to(to, &origin, area);
                    let start = Value {
                        w: w_last.as_flattened_mut(),
                        integral: if area { integral_last.as_flattened_mut() } else { &mut [] },
                    };
                    let end = (w_to.as_flattened(), integral_to.as_flattened());
                    step((w.as_flattened_mut(), h.as_flattened_mut()), start, end, to - from);
                    gather(w_out, &w, &origin);
                    gather(h_out, &h, &origin);
                    before = Some(to);
                }
            }
        });
    }

    /// How many steps to make ahead, of at most so many: all that are left, or as many as end, in the
    /// second half, at the coarsest place of the tree. The next batch draws again what is on the way.
    fn batch(&self, most: usize) -> usize {
        let steps = &self.steps[self.next..];
        if steps.len() <= most {
            return steps.len();
        }
        // A time between two leaves counts with the left one: a batch ends there, not a step before.
        let leaf = |k: usize| (self.path.root.position(steps[k].1).ceil() - 1.0) as u64;
        (most / 2..=most).max_by_key(|&k| leaf(k - 1) ^ leaf(k)).unwrap_or(most)
    }
}

/// From the path at the ends of a step of length h to W and H over it; its start goes to its end.
#[multiversion(targets("x86_64+avx+avx2+avx512f+avx512dq+avx512vl", "x86_64+avx+avx2"))]
pub fn step(
    (w, area): (&mut [f64], &mut [f64]),
    start: Value<'_>,
    (w_end, integral_end): (&[f64], &[f64]),
    h: f64,
) {
    for (i, integral) in start.integral.iter_mut().enumerate() {
        area[i] = (integral_end[i] - *integral) / h - 0.5 * (start.w[i] + w_end[i]);
        *integral = integral_end[i];
    }
    for ((w, start), end) in w.iter_mut().zip(start.w).zip(w_end) {
        *w = end - *start;
        *start = *end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::philox::stream_key;
    use crate::threads::nanoseconds_run;
    use proptest::prelude::*;

    fn path(depth: u32, elements: usize) -> Path {
        Path {
            root: Root { from: -1.0, to: 3.0, depth },
            rows: Rows { len: elements, first: 0 },
            key: stream_key(11, 1),
            elements,
        }
    }

    /// W at the times, and its integral where the `area` is wanted.
    struct Owned {
        w: Vec<f64>,
        integral: Vec<f64>,
    }

    fn values(path: &Path, times: &[f64], area: bool) -> Vec<Owned> {
        let numbers = if area { path.elements } else { 0 };
        let room = || Owned { w: vec![0.0; path.elements], integral: vec![0.0; numbers] };
        let mut values: Vec<Owned> = times.iter().map(|_| room()).collect();
        let mut lent: Vec<Value> = Vec::new();
        for Owned { w, integral } in &mut values {
            lent.push(Value { w, integral });
        }
        path.at(times, &mut lent);
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
        fn a_row_does_not_depend_on_the_batch(
            len in 1usize..300, first in 0u32..100_000, before in 0u32..9, count in 1usize..9,
            times in prop::collection::vec(-1.0f64..=3.0, 1..4),
        ) {
            let part = Path {
                rows: Rows { len, first: first + before }, elements: len * count, ..path(9, 0)
            };
            let before = before as usize * len;
            let whole =
                Path { rows: Rows { len, first }, elements: before + part.elements, ..part };
            for (a, b) in values(&part, &times, true).iter().zip(&values(&whole, &times, true)) {
                prop_assert_eq!(&a.w, &b.w[before..]);
                prop_assert_eq!(&a.integral, &b.integral[before..]);
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
            let mut increments = Increments::<f64>::new(path, steps.clone(), area);
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
        let mut increments = Increments::<f64>::new(path, steps, true);
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
    /// of several runs on one thread.
    #[test]
    #[ignore = "a measurement"]
    fn nanoseconds_an_increment() {
        let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        for (rows, len) in [(1, 2), (256, 2), (256, 64), (256, 784)] {
            for (steps, area) in [(100, false), (100, true), (128, false)] {
                let elements = rows * len;
                let path = Path {
                    root: Root { from: 0.0, to: 1.0, depth: 10 },
                    rows: Rows { len, first: 0 },
                    key: stream_key(0, 1),
                    elements,
                };
                let time = || {
                    let at = |k: u32| f64::from(k) / f64::from(steps);
                    let ends = (0..steps).map(|k| (at(k), at(k + 1))).collect();
                    let start = nanoseconds_run();
                    let mut increments = Increments::<f32>::new(path, ends, area);
                    for _ in 0..steps {
                        std::hint::black_box(increments.over_next());
                    }
                    (nanoseconds_run() - start) / f64::from(steps) / elements as f64
                };
                let repeats = (10_000_000 / (100 * elements)).clamp(5, 200);
                let least =
                    alone.install(|| (0..repeats).map(|_| time()).fold(f64::INFINITY, f64::min));
                println!("{rows}x{len}, {steps} steps, area {area}: {least:.2} ns");
            }
        }
    }
}
