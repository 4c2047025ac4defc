//! Counter-based noise: Philox 4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011) and normals made of
//! its words by additions, multiplications and square roots alone, in single precision.
//!
//! A normal is a pure function of (key, row, element, node): it does not depend on batch size, step
//! size, threads or backend. The same recipe stands in `interp/noise.py`; no operation may be fused
//! or reordered, since the two have to agree bit for bit.

use multiversion::multiversion;

/// A Philox key: 64 bits in two words.
pub type Key = [u32; 2];

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: Key = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// Counters evaluated side by side, one a vector lane.
const LANES: usize = 16;
/// The normals that they make: the j-th word of the i-th counter makes that of place 16 j + i.
pub const BLOCK: usize = 4 * LANES;
pub type Block = [f32; BLOCK];

/// -2 log(1 + f) / f on [sqrt(1/2) - 1, sqrt(2) - 1]: of the least relative error (1.7e-7, of which the
/// root halves the trace).
const LOG: [f32; 8] = [
    -1.999_999_9,
    1.000_007_3,
    -0.666_701_2,
    0.499_398_17,
    -0.398_003_46,
    0.345_016_9,
    -0.324_450_6,
    0.202_135_72,
];
/// cos(pi x / 2) in x^2 on [0, 1/4], likewise (3.3e-8).
const COS: [f32; 4] = [1.0, -1.233_696_7, 0.253_594_95, -0.020_398_58];
/// sin(pi x / 2) / x in x^2, likewise (3.2e-9).
const SIN: [f32; 4] = [std::f32::consts::FRAC_PI_2, -0.645_963_46, 0.079_680_03, -0.004_601_66];
/// The bits of the largest single below sqrt(1/2), those of a mantissa, and the sign.
const ROOT_HALF: u32 = 0x3f35_04f3;
const MANTISSA: u32 = 0x007f_ffff;
const SIGN: u32 = 0x8000_0000;
/// -2 log 2.
const MINUS_2_LN_2: f32 = -2.0 * std::f32::consts::LN_2;

/// One block of Philox 4x32-10: four words from a counter of four and a key of two.
pub fn philox(counter: [u32; 4], key: Key) -> [u32; 4] {
    let mut words = counter.map(|word| [u64::from(word)]);
    rounds(&mut words, key);
    words.map(|[word]| word as u32)
}

/// Words lie in lanes of 64 bits, of which a product takes the low half, so that nothing has to be moved
/// between the rounds; what is left in the high halves has no meaning.
#[inline(always)]
fn rounds<const N: usize>([c0, c1, c2, c3]: &mut [[u64; N]; 4], mut key: Key) {
    for _ in 0..ROUNDS {
        for i in 0..N {
            let p0 = u64::from(MULTIPLIERS[0]) * (c0[i] & 0xffff_ffff);
            let p1 = u64::from(MULTIPLIERS[1]) * (c2[i] & 0xffff_ffff);
            c0[i] = p1 >> 32 ^ c1[i] ^ u64::from(key[0]);
            c1[i] = p1;
            c2[i] = p0 >> 32 ^ c3[i] ^ u64::from(key[1]);
            c3[i] = p0;
        }
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
}

/// The key of one stream of a seed: the Brownian tree, a starting state and so on draw from streams of
/// their own.
pub fn stream_key(seed: u64, stream: u32) -> Key {
    let words = philox([stream, 0, 0, 0], [seed as u32, (seed >> 32) as u32]);
    [words[0], words[1]]
}

/// Horner's rule without fused operations.
#[inline(always)]
fn polynomial<const N: usize>(coefficients: &[f32; N], x: f32) -> f32 {
    let mut sum = coefficients[N - 1];
    for j in (0..N - 1).rev() {
        sum = sum * x + coefficients[j];
    }
    sum
}

/// A polynomial of eight coefficients in the order of Estrin, whose halves do not wait for one another.
#[inline(always)]
fn halves(c: &[f32; 8], f: f32) -> f32 {
    let square = f * f;
    let low = (c[0] + c[1] * f) + (c[2] + c[3] * f) * square;
    let high = (c[4] + c[5] * f) + (c[6] + c[7] * f) * square;
    low + high * (square * square)
}

/// Two normals from two words, after Box and Muller: radius from the first, angle from the second.
#[inline(always)]
fn normal_pair(w0: u32, w1: u32) -> (f32, f32) {
    // u = (w0 + 1/2) / 2^32 = 2^(e - 32) (1 + f), 1 + f within a factor sqrt(2) of one: e - 32 and f
    // from the bits. The squared radius is -2 log u, to full relative precision also where u is near 1.
    let bits = (w0 as f32 + 0.5).to_bits().wrapping_sub(ROOT_HALF);
    let exponent = (bits.wrapping_sub(32 << 23) as i32 >> 23) as f32;
    let f = f32::from_bits((bits & MANTISSA) + ROOT_HALF) - 1.0;
    let radius = (exponent * MINUS_2_LN_2 + f * halves(&LOG, f)).sqrt();
    // The two high bits choose a quarter turn, the others an angle in [-pi/4, pi/4].
    let x = (w1 << 2) as i32 as f32 * (1.0 / 4_294_967_296.0);
    let square = x * x;
    let cos = polynomial(&COS, square) * radius;
    let sin = x * polynomial(&SIN, square) * radius;
    // A quarter turn swaps the two and one sign, a half turn both signs.
    let (half, quarter) = (w1, w1 << 1);
    let (a, b) = if (quarter as i32) < 0 { (sin, cos) } else { (cos, sin) };
    let signed = |value: f32, sign: u32| f32::from_bits(value.to_bits() ^ (sign & SIGN));
    (signed(a, half ^ quarter), signed(b, half))
}

/// The normals of 16 K = N counters at a node. Two blocks at once keep the processor busy where one has
/// to wait for its own results.
#[inline(always)]
pub fn fill_blocks<const K: usize, const N: usize>(
    out: [&mut Block; K],
    counters: [&Counters; K],
    key: Key,
    node: u64,
) {
    const { assert!(N == LANES * K) };
    let mut words = [[0; N]; 4];
    for (k, [low, high]) in counters.into_iter().enumerate() {
        for i in 0..LANES {
            words[0][LANES * k + i] = u64::from(low[i]);
            words[1][LANES * k + i] = u64::from(high[i]);
        }
    }
    words[2] = [node & 0xffff_ffff; N];
    words[3] = [node >> 32; N];
    rounds(&mut words, key);
    // In lanes of 32 bits from here on, and in loops of their own: so each has whole vectors.
    let mut narrow = [[0; N]; 4];
    for (narrow, words) in narrow.iter_mut().zip(&words) {
        for i in 0..N {
            narrow[i] = words[i] as u32;
        }
    }
    let mut normals = [[0.0; N]; 4];
    for half in [0, 2] {
        for i in 0..N {
            let (a, b) = normal_pair(narrow[half][i], narrow[half + 1][i]);
            normals[half][i] = a;
            normals[half + 1][i] = b;
        }
    }
    for (k, out) in out.into_iter().enumerate() {
        for (j, normals) in normals.iter().enumerate() {
            for i in 0..LANES {
                out[LANES * j + i] = normals[LANES * k + i];
            }
        }
    }
}

/// The first two words of 16 counters; those of the node follow.
pub type Counters = [[u32; LANES]; 2];

/// The counters of the second of two normals that a node has: another bit is set.
#[inline(always)]
pub fn second(counters: &Counters) -> Counters {
    let mut second = *counters;
    for low in &mut second[0] {
        *low |= 1 << 31;
    }
    second
}

/// Rows of a batch: what keys a normal beside its node.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    /// Elements in a row.
    pub len: usize,
    /// The number of the first row.
    pub first: u32,
}

/// The counters of a batch one after the other: word e % 4 of counter (e / 4, row) makes the normal of
/// element e of a row.
struct Count {
    len: usize,
    group: u32,
    row: u32,
    /// Words of the next counter that are passed over.
    passed: usize,
}

impl Count {
    /// From the `start`-th element of a batch on.
    fn new(rows: Rows, start: usize) -> Self {
        let len = rows.len.max(1);
        let (row, element) = (start / len, start % len);
        let row = rows.first.wrapping_add(row as u32);
        Count { len, group: (element / 4) as u32, row, passed: element % 4 }
    }

    /// The next 16.
    #[inline(always)]
    fn block(&mut self) -> Counters {
        let groups = u32::try_from(self.len.div_ceil(4)).unwrap_or(u32::MAX);
        let mut counters = [[0; LANES], [self.row; LANES]];
        let [low, high] = &mut counters;
        for (lane, low) in low.iter_mut().enumerate() {
            *low = self.group + lane as u32;
        }
        self.group += LANES as u32;
        // Row after row that ends among them.
        while self.group >= groups {
            self.row = self.row.wrapping_add(1);
            self.group -= groups;
            for lane in 0..LANES {
                let next = low[lane] >= groups;
                low[lane] = if next { low[lane] - groups } else { low[lane] };
                high[lane] = if next { self.row } else { high[lane] };
            }
        }
        counters
    }

    /// Whether each of the next counters makes four elements.
    #[inline(always)]
    fn whole(&self, counters: usize) -> bool {
        let whole = self.len.is_multiple_of(4) || self.group as usize + counters <= self.len / 4;
        self.passed == 0 && whole
    }

    /// How many elements the words of the counter of a group make.
    #[inline(always)]
    fn elements(&self, group: u32) -> usize {
        (self.len - 4 * group as usize).min(4)
    }
}

/// Where the normals of some elements come from: the counters, and the place of each element among the
/// normals that they make.
pub struct Origin {
    pub blocks: Vec<Counters>,
    pub places: Vec<u32>,
    /// Whether all words of all counters are taken: then `in_order` leads to the elements.
    pub regular: bool,
}

impl Origin {
    /// Of `count` elements of a batch from the `start`-th on.
    pub fn of(rows: Rows, start: usize, count: usize) -> Self {
        let mut counters = Count::new(rows, start);
        let (mut blocks, mut places) = (Vec::new(), Vec::with_capacity(count + BLOCK));
        let regular = counters.passed == 0 && counters.len.is_multiple_of(4);
        while places.len() < count {
            let block = counters.block();
            for (lane, &group) in block[0].iter().enumerate() {
                let words = std::mem::take(&mut counters.passed)..counters.elements(group);
                places
                    .extend(words.map(|word| (BLOCK * blocks.len() + LANES * word + lane) as u32));
            }
            blocks.push(block);
        }
        places.truncate(count);
        Origin { blocks, places, regular }
    }
}

/// Fill `out` with normals of one node, those of the elements from `start` on (counted through the
/// rows).
#[multiversion(targets("x86_64+avx+avx2+avx512f+avx512dq+avx512vl", "x86_64+avx+avx2"))]
pub fn fill_normals(mut out: &mut [f32], start: usize, rows: Rows, key: Key, node: u64) {
    let mut counters = Count::new(rows, start);
    while !out.is_empty() {
        let filled = if out.len() > BLOCK {
            fill_next::<2, 32>(out, &mut counters, key, node)
        } else {
            fill_next::<1, 16>(out, &mut counters, key, node)
        };
        out = &mut out[filled..];
    }
}

/// Begin `out` with the normals of the next 16 K = N counters; how many fit there.
#[inline(always)]
fn fill_next<const K: usize, const N: usize>(
    out: &mut [f32],
    counters: &mut Count,
    key: Key,
    node: u64,
) -> usize {
    let whole = counters.whole(N);
    let mut blocks = [[[0; LANES]; 2]; K];
    for block in &mut blocks {
        *block = counters.block();
    }
    let (mut normals, mut ordered) = ([[0.0; BLOCK]; K], [[0.0; BLOCK]; K]);
    fill_blocks::<K, N>(normals.each_mut(), blocks.each_ref(), key, node);
    for (ordered, normals) in ordered.iter_mut().zip(&normals) {
        in_order(ordered, normals, |z| z);
    }
    if whole && let Some(out) = out.as_chunks_mut().0.first_chunk_mut::<K>() {
        *out = ordered;
        return K * BLOCK;
    }
    ordered[0].copy_within(counters.passed..4, 0);
    let mut filled = 0;
    for ([groups, _], ordered) in blocks.iter().zip(&ordered) {
        for (&group, four) in groups.iter().zip(ordered.as_chunks::<4>().0) {
            let rest = &mut out[filled..];
            // Four where they fit: what is more than the elements is overwritten by the next.
            match rest.first_chunk_mut::<4>() {
                Some(rest) => *rest = *four,
                None => rest.copy_from_slice(&four[..rest.len()]),
            }
            let elements = counters.elements(group) - std::mem::take(&mut counters.passed);
            filled = (filled + elements).min(out.len());
        }
    }
    filled
}

/// What stands in the order of the normals in that of the elements: the four of a counter together.
#[inline(always)]
pub fn in_order<T, U: Copy>(out: &mut [T; BLOCK], values: &[U; BLOCK], convert: impl Fn(U) -> T) {
    for i in 0..LANES {
        for j in 0..4 {
            out[4 * i + j] = convert(values[LANES * j + i]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::threads::nanoseconds_run;
    use proptest::prelude::*;

    /// The known-answer vectors published with Random123 (Salmon et al., `kat_vectors`).
    #[test]
    fn the_published_vectors() {
        let ones = u32::MAX;
        for (counter, key, words) in [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([ones; 4], [ones; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ] {
            assert_eq!(philox(counter, key), words);
        }
    }

    #[test]
    fn a_row_may_be_longer_than_its_counters() {
        // No memory holds so much of it: 2^62 / 4 counters are 0 in 32 bits, and no row ends among these.
        let mut wide = [0.0; 100];
        let mut usual = [0.0; 100];
        fill_normals(&mut wide, 0, Rows { len: 1 << 62, first: 3 }, [1, 2], 5);
        fill_normals(&mut usual, 0, Rows { len: 400, first: 3 }, [1, 2], 5);
        assert_eq!(wide, usual);
        assert_eq!(Origin::of(Rows { len: 1 << 62, first: 3 }, 0, 100).places.len(), 100);
    }

    #[test]
    fn a_pair_is_box_and_mullers() {
        // Any words: the polynomials against the library's logarithm and sine.
        for k in 0..20_000u32 {
            let [w0, w1, ..] = philox([k, 0, 0, 0], [7, 9]);
            let (a, b) = normal_pair(w0, w1);
            let u = f64::from(w0 as f32 + 0.5) / 4_294_967_296.0;
            let radius = (-2.0 * u.ln()).sqrt();
            let quarter = f64::from(w1 >> 30);
            let x = f64::from((w1 << 2) as i32) / 4_294_967_296.0;
            let angle = std::f64::consts::FRAC_PI_2 * (quarter + x);
            // A few roundings of single precision.
            let close = |u: f32, v: f64| (f64::from(u) - v).abs() < 6e-7 * radius;
            assert!(close(a, radius * angle.cos()) && close(b, radius * angle.sin()), "{w0} {w1}");
        }
    }

    proptest! {
        #[test]
        fn an_element_does_not_depend_on_its_neighbours(
            len in 1usize..300, first in any::<u32>(), node in any::<u64>(),
            start in 0usize..500, count in 0usize..400,
        ) {
            let key = stream_key(3, 1);
            let mut all = vec![0.0; start + count];
            fill_normals(&mut all, 0, Rows { len, first }, key, node);
            let mut part = vec![0.0; count];
            fill_normals(&mut part, start, Rows { len, first }, key, node);
            prop_assert_eq!(&part[..], &all[start..]);
            // The same as one counter after the other.
            for (i, &z) in all.iter().enumerate() {
                let (row, e) = (first.wrapping_add((i / len) as u32), i % len);
                let group = (e / 4) as u32;
                let words = philox([group, row, node as u32, (node >> 32) as u32], key);
                let word = e % 4;
                let pair = normal_pair(words[word / 2 * 2], words[word / 2 * 2 + 1]);
                prop_assert_eq!(z, if word.is_multiple_of(2) { pair.0 } else { pair.1 });
            }
        }
    }

    /// Measured, not asserted: `cargo test --release -- --ignored --nocapture nanoseconds`. The least
    /// of several runs.
    #[test]
    #[ignore = "a measurement"]
    fn nanoseconds_a_normal() {
        for (rows, len) in [(1, 2), (256, 2), (256, 64), (256, 784)] {
            let mut out = vec![0.0f32; rows * len];
            let repeats = 2_000_000usize.div_ceil(out.len());
            let time = || {
                let start = nanoseconds_run();
                for k in 0..repeats {
                    fill_normals(&mut out, 0, Rows { len, first: 0 }, [1, 2], k as u64);
                    std::hint::black_box(&mut out);
                }
                (nanoseconds_run() - start) / (repeats * rows * len) as f64
            };
            let least = std::iter::repeat_with(time).take(20).fold(f64::INFINITY, f64::min);
            println!("{rows}x{len}: {least:.2} ns");
        }
    }
}
