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
/// Normals that they make.
const BLOCK: usize = 4 * LANES;
type Lanes<T> = [T; LANES];

/// -2 log(1 + f) / f on [sqrt(1/2) - 1, sqrt(2) - 1]: the Chebyshev interpolant of degree 9, good to
/// the rounding of single precision.
const LOG: [f32; 10] = [
    -2.0,
    0.999_999_76,
    -0.666_666_9,
    0.500_031_6,
    -0.400_018_78,
    0.332_167_4,
    -0.283_993,
    0.265_320_63,
    -0.256_132_22,
    0.149_023_73,
];
/// cos(pi x / 2) in x^2 on [0, 1/4], likewise.
const COS: [f32; 5] = [1.0, -1.233_700_5, 0.253_669_2, -0.020_860_07, 0.000_903_628_07];
/// sin(pi x / 2) / x in x^2, likewise.
const SIN: [f32; 4] = [std::f32::consts::FRAC_PI_2, -0.645_963_5, 0.079_680_22, -0.004_602_149];
/// The bits of the largest single below sqrt(1/2), and those of a mantissa.
const ROOT_HALF: u32 = 0x3f35_04f3;
const MANTISSA: u32 = 0x007f_ffff;
/// -2 log 2.
const MINUS_2_LN_2: f32 = -2.0 * std::f32::consts::LN_2;

/// One block of Philox 4x32-10: four words from a counter of four and a key of two.
pub fn philox(counter: [u32; 4], key: Key) -> [u32; 4] {
    let mut words = counter.map(|c| [c; LANES]);
    rounds(&mut words, key);
    words.map(|w| w[0])
}

#[inline(always)]
fn rounds(words: &mut [Lanes<u32>; 4], mut key: Key) {
    // In lanes of 64 bits, of which a product takes the low half: no shuffles between the rounds.
    let mut c = words.map(|w| w.map(u64::from));
    for _ in 0..ROUNDS {
        let [c0, c1, c2, c3] = c;
        for i in 0..LANES {
            let p0 = u64::from(MULTIPLIERS[0]) * (c0[i] & 0xffff_ffff);
            let p1 = u64::from(MULTIPLIERS[1]) * (c2[i] & 0xffff_ffff);
            c[0][i] = p1 >> 32 ^ c1[i] ^ u64::from(key[0]);
            c[1][i] = p1;
            c[2][i] = p0 >> 32 ^ c3[i] ^ u64::from(key[1]);
            c[3][i] = p0;
        }
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    *words = c.map(|w| w.map(|w| w as u32));
}

/// The two keys of one stream of a seed: the Brownian tree, a starting state and so on draw from
/// streams of their own, and those that need two normals a node from both keys.
pub fn stream_keys(seed: u64, stream: u32) -> [Key; 2] {
    let words = philox([stream, 0, 0, 0], [seed as u32, (seed >> 32) as u32]);
    [[words[0], words[1]], [words[2], words[3]]]
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

/// Two normals from two words, after Box and Muller: radius from the first, angle from the second.
#[inline(always)]
fn normal_pair(w0: u32, w1: u32) -> (f32, f32) {
    // u = (w0 + 1/2) / 2^32 = 2^(e - 32) (1 + f), 1 + f within a factor sqrt(2) of one: e and f from
    // the bits. The squared radius is -2 log u, to full relative precision also where u is near 1.
    let bits = (w0 as f32 + 0.5).to_bits().wrapping_sub(ROOT_HALF);
    let exponent = ((bits as i32 >> 23) - 32) as f32;
    let f = f32::from_bits((bits & MANTISSA) + ROOT_HALF) - 1.0;
    let radius = (exponent * MINUS_2_LN_2 + f * polynomial(&LOG, f)).sqrt();
    // The two high bits choose a quarter turn, the others an angle in [-pi/4, pi/4].
    let x = (w1 << 2) as i32 as f32 * (1.0 / 4_294_967_296.0);
    let square = x * x;
    let cos = polynomial(&COS, square) * radius;
    let sin = x * polynomial(&SIN, square) * radius;
    // A quarter turn swaps the two and one sign, a half turn both signs.
    let half = w1 & 0x8000_0000;
    let quarter = w1 << 1 & 0x8000_0000;
    let (a, b) = if quarter != 0 { (sin, cos) } else { (cos, sin) };
    (f32::from_bits(a.to_bits() ^ half ^ quarter), f32::from_bits(b.to_bits() ^ half))
}

/// The normals of 16 counters, four of each.
#[inline(always)]
fn normals(mut words: [Lanes<u32>; 4], key: Key) -> [Lanes<f32>; 4] {
    rounds(&mut words, key);
    let mut normals = [[0.0; LANES]; 4];
    for half in [0, 2] {
        for i in 0..LANES {
            let pair = normal_pair(words[half][i], words[half + 1][i]);
            (normals[half][i], normals[half + 1][i]) = pair;
        }
    }
    normals
}

/// Rows of a batch: what keys a normal beside its node.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    /// Elements in a row.
    pub len: usize,
    /// The number of the first row.
    pub first: u32,
}

/// Fill `out` with normals of one node, those of the elements from `start` on (counted through the
/// rows). Counter: (element / 4, row, node low, node high); the four words give four elements.
#[multiversion(targets("x86_64+avx+avx2+avx512f+avx512dq+avx512vl", "x86_64+avx+avx2"))]
pub fn fill_normals(out: &mut [f32], start: usize, rows: Rows, key: Key, node: u64) {
    if rows.len == 0 {
        return;
    }
    let Rows { len, first } = rows;
    let (low, high) = ([node as u32; LANES], [(node >> 32) as u32; LANES]);
    let (mut row, mut element) = (start / len, start % len);
    let mut out = out;
    while !out.is_empty() {
        let number = first.wrapping_add(row as u32);
        // Within a row, block after block of 16 whole counters.
        if element.is_multiple_of(4) {
            let whole = out.len().min(len - element) / BLOCK * BLOCK;
            let (blocks, rest) = out.split_at_mut(whole);
            for (k, block) in blocks.chunks_exact_mut(BLOCK).enumerate() {
                let at = ((element + k * BLOCK) / 4) as u32;
                let counters = std::array::from_fn(|i| at.wrapping_add(i as u32));
                let normals = normals([counters, [number; LANES], low, high], key);
                for i in 0..LANES {
                    for e in 0..4 {
                        block[4 * i + e] = normals[e][i];
                    }
                }
            }
            out = rest;
            element += whole;
            if element == len {
                (row, element) = (row + 1, 0);
            }
            if whole > 0 {
                continue;
            }
        }
        // Short rows and the ends of long ones: the lanes run on into the rows that follow.
        let mut words = [[0; LANES], [0; LANES], low, high];
        let mut places = [(0, 0); LANES];
        let mut taken = 0;
        for (i, place) in places.iter_mut().enumerate() {
            (words[0][i], words[1][i]) = ((element / 4) as u32, first.wrapping_add(row as u32));
            let skip = element % 4;
            let count = (4 - skip).min(len - element).min(out.len() - taken);
            *place = (skip, count);
            taken += count;
            element += count;
            if element == len {
                (row, element) = (row + 1, 0);
            }
        }
        let normals = normals(words, key);
        let (now, rest) = out.split_at_mut(taken);
        let mut at = 0;
        for (i, (skip, count)) in places.into_iter().enumerate() {
            for e in 0..count {
                now[at + e] = normals[skip + e][i];
            }
            at += count;
        }
        out = rest;
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
            let key = stream_keys(3, 1)[0];
            let mut all = vec![0.0; start + count];
            fill_normals(&mut all, 0, Rows { len, first }, key, node);
            let mut part = vec![0.0; count];
            fill_normals(&mut part, start, Rows { len, first }, key, node);
            prop_assert_eq!(&part[..], &all[start..]);
            // The same as one counter after the other.
            for (i, &z) in all.iter().enumerate() {
                let (row, element) = (first.wrapping_add((i / len) as u32), i % len);
                let words = philox(
                    [(element / 4) as u32, row, node as u32, (node >> 32) as u32], key,
                );
                let pair = if element % 4 < 2 {
                    normal_pair(words[0], words[1])
                } else {
                    normal_pair(words[2], words[3])
                };
                prop_assert_eq!(z, if element % 2 == 0 { pair.0 } else { pair.1 });
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
