//! Counter-based noise: Philox 4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011) and normals made of
//! its words by additions, multiplications and square roots alone.
//!
//! A normal is a pure function of (key, row, element, node): it does not depend on batch size, step
//! size, threads or backend. The same recipe stands in `interp/noise.py`; no operation may be fused
//! or reordered, since the two have to agree bit for bit.

use std::ops::Range;

use multiversion::multiversion;

/// A Philox key: 64 bits in two words.
pub type Key = [u32; 2];

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: Key = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// Counters evaluated side by side, one a vector lane.
const LANES: usize = 16;
type Words = [[u32; LANES]; 4];

/// Coefficients in x = 2m - 3 of log m on [1, 2): the Chebyshev interpolant of degree 15, whose
/// error is below 1e-13.
const LOG: [f64; 16] = [
    0.4054651081082313,
    0.3333333333333123,
    -0.055555555564110855,
    0.012345679015036914,
    -0.0030864195741349444,
    0.0008230452111984052,
    -0.00022862510605604547,
    6.532149983425055e-05,
    -1.9046463913066667e-05,
    5.643296291244219e-06,
    -1.7050171776850605e-06,
    5.168036613310601e-07,
    -1.4370114690285575e-07,
    4.4127693461875765e-08,
    -2.240164484348351e-08,
    6.992921375422756e-09,
];
/// (pi/2)^k / k! with alternating signs, even k: the Taylor series of cos(pi x / 2) in x^2.
const COS: [f64; 8] = [
    1.0,
    -1.2337005501361697,
    0.25366950790104803,
    -0.02086348076335296,
    0.0009192602748394266,
    -2.5202042373060607e-05,
    4.710874778818172e-07,
    -6.386603083791852e-09,
];
/// The same for odd k: sin(pi x / 2) / x in x^2.
const SIN: [f64; 8] = [
    std::f64::consts::FRAC_PI_2,
    -0.6459640975062463,
    0.07969262624616705,
    -0.004681754135318688,
    0.00016044118478735983,
    -3.598843235212085e-06,
    5.692172921967927e-08,
    -6.688035109811468e-10,
];
const LN_2: f64 = std::f64::consts::LN_2;

/// One block of Philox 4x32-10: four words from a counter of four and a key of two.
pub fn philox(counter: [u32; 4], key: Key) -> [u32; 4] {
    let mut words = counter.map(|c| [c; LANES]);
    rounds(&mut words, key);
    words.map(|w| w[0])
}

#[inline(always)]
fn rounds(words: &mut Words, mut key: Key) {
    for _ in 0..ROUNDS {
        let [c0, c1, c2, c3] = *words;
        for i in 0..LANES {
            let p0 = u64::from(MULTIPLIERS[0]) * u64::from(c0[i]);
            let p1 = u64::from(MULTIPLIERS[1]) * u64::from(c2[i]);
            words[0][i] = (p1 >> 32) as u32 ^ c1[i] ^ key[0];
            words[1][i] = p1 as u32;
            words[2][i] = (p0 >> 32) as u32 ^ c3[i] ^ key[1];
            words[3][i] = p0 as u32;
        }
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
}

/// The key of one stream of a seed: W of the Brownian tree, a starting state and so on draw from
/// streams of their own.
pub fn stream_key(seed: u64, stream: u32) -> Key {
    let words = philox([stream, 0, 0, 0], [seed as u32, (seed >> 32) as u32]);
    [words[0], words[1]]
}

/// Horner's rule without fused operations.
#[inline(always)]
fn polynomial<const N: usize>(coefficients: &[f64; N], x: f64) -> f64 {
    let mut sum = coefficients[N - 1];
    for j in (0..N - 1).rev() {
        sum = sum * x + coefficients[j];
    }
    sum
}

/// Two normals from two words, after Box and Muller: radius from the first, angle from the second.
#[inline(always)]
fn normal_pair(w0: u32, w1: u32) -> (f64, f64) {
    // -2 log((w0 + 1/2) / 2^32), the exponent taken from the bits, the mantissa m in [1, 2).
    let bits = (f64::from(w0) + 0.5).to_bits();
    let exponent = (bits >> 52) as i32 - 1023;
    let m = f64::from_bits(bits & 0x000f_ffff_ffff_ffff | 0x3ff0_0000_0000_0000);
    let log = polynomial(&LOG, 2.0 * m - 3.0);
    let radius = (2.0 * (f64::from(32 - exponent) * LN_2 - log)).sqrt();
    // The two high bits choose a quarter turn, the others an angle in (-pi/4, pi/4).
    let x = (f64::from(w1 & 0x3fff_ffff) + 0.5) * (1.0 / 1_073_741_824.0) - 0.5;
    let square = x * x;
    let cos = polynomial(&COS, square);
    let sin = x * polynomial(&SIN, square);
    let swap = w1 & 0x4000_0000 != 0;
    let (a, b) = if swap { (-sin, cos) } else { (cos, sin) };
    let sign = if w1 & 0x8000_0000 != 0 { -radius } else { radius };
    (a * sign, b * sign)
}

/// Fill `out` with the normals of whole rows, `row_len` elements each, at one node of the tree.
/// Counter: (element / 4, row, node low, node high); the four words give four elements. The lanes run
/// over the blocks of all rows, so that short rows leave none of them idle.
#[multiversion(targets("x86_64+avx+avx2", "x86_64+avx+avx2+avx512f+avx512dq+avx512vl"))]
pub fn fill_normals(out: &mut [f64], row_len: usize, first_row: u32, key: Key, node: u64) {
    let (mut row, mut element, mut at) = (first_row, 0, 0);
    while at < out.len() {
        let mut words: Words =
            [[0; LANES], [0; LANES], [node as u32; LANES], [(node >> 32) as u32; LANES]];
        let mut places: [Range<usize>; LANES] = std::array::from_fn(|_| at..at);
        for (i, place) in places.iter_mut().enumerate() {
            (words[0][i], words[1][i]) = ((element / 4) as u32, row);
            let end = (at + 4.min(row_len - element)).min(out.len());
            *place = at..end;
            at = end;
            element += 4;
            if element >= row_len {
                (element, row) = (0, row.wrapping_add(1));
            }
        }
        rounds(&mut words, key);
        let mut normals = [[0.0f64; LANES]; 4];
        for i in 0..LANES {
            (normals[0][i], normals[1][i]) = normal_pair(words[0][i], words[1][i]);
        }
        for i in 0..LANES {
            (normals[2][i], normals[3][i]) = normal_pair(words[2][i], words[3][i]);
        }
        for (i, place) in places.into_iter().enumerate() {
            for (e, out) in out[place].iter_mut().enumerate() {
                *out = normals[e][i];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let radius = (-2.0 * ((f64::from(w0) + 0.5) / 4_294_967_296.0).ln()).sqrt();
            let quarter = f64::from(w1 >> 30);
            let x = (f64::from(w1 & 0x3fff_ffff) + 0.5) / 1_073_741_824.0 - 0.5;
            let angle = std::f64::consts::FRAC_PI_2 * (quarter + x);
            // The radius of the smallest logarithms loses what 1e-13 is of them.
            let close = |u: f64, v: f64| (u - v).abs() < 1e-12 + 1e-13 / radius;
            assert!(close(a, radius * angle.cos()) && close(b, radius * angle.sin()), "{w0} {w1}");
        }
    }

    #[test]
    fn an_element_does_not_depend_on_its_neighbours() {
        let (key, node) = (stream_key(3, 1), 1 << 40);
        let mut all = vec![0.0; 6 * 131];
        fill_normals(&mut all, 131, 10, key, node);
        let mut part = vec![0.0; 2 * 131];
        fill_normals(&mut part, 131, 13, key, node);
        assert_eq!(part[..], all[3 * 131..5 * 131]);
        let mut short = vec![0.0; 5];
        fill_normals(&mut short, 5, 10, key, node);
        assert_eq!(short[..], all[..5]);
    }
}
