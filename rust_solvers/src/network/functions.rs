//! Elementary functions, written without branches so that a loop over them vectorises.

use std::ops::{Div, Neg, Sub};

use multiversion::multiversion;
use multiversion::target::target_cfg_f;

use crate::real::Real;

/// A number of which the functions of a network can be taken.
pub trait Elementary: Real + Sub<Output = Self> + Div<Output = Self> + Neg<Output = Self> {
    const ONE: Self;

    /// `(q, a, b)` with `e^x = (1 + q) a b`: q loses no digits where x is small, and of the two
    /// powers of 2 neither leaves the range before the result does.
    /// FUSED: whether the processor multiplies and adds in one instruction.
    fn exponential<const FUSED: bool>(self) -> (Self, Self, Self);
    /// erf(x) to a rounding of its own size, small or not.
    fn erf(self) -> Self;
    /// erfc(x) for x >= 0.
    fn erfc(self) -> Self;
    fn sqrt(self) -> Self;
    fn sin(self) -> Self;
    fn cos(self) -> Self;
    fn ln(self) -> Self;
    fn ln_1p(self) -> Self;
    fn powf(self, power: Self) -> Self;
    /// `self a + b`, rounded once.
    fn mul_add(self, a: Self, b: Self) -> Self;
    fn copysign(self, sign: Self) -> Self;
    fn is_nan(self) -> bool;

    #[inline(always)]
    fn exp(self) -> Self {
        self.exp_by::<false>()
    }

    #[inline(always)]
    fn exp_by<const FUSED: bool>(self) -> Self {
        let (q, a, b) = self.exponential::<FUSED>();
        (Self::ONE + q) * a * b
    }

    /// e^x - 1, for x below 64.
    #[inline(always)]
    fn exp_m1(self) -> Self {
        let (q, a, b) = self.exponential::<false>();
        let scale = a * b;
        q * scale + (scale - Self::ONE)
    }

    #[inline(always)]
    fn sigmoid(self) -> Self {
        Self::ONE / (Self::ONE + (-self).exp())
    }

    /// From e^{2|x|} - 1, exact for small x as for large.
    #[inline(always)]
    fn tanh(self) -> Self {
        let (twice, limit) = (self.abs() + self.abs(), Self::from_f64(50.0));
        // From the limit on it is 1 to the last bit; written so that NaN stays NaN.
        let e = (if twice > limit { limit } else { twice }).exp_m1();
        (e / (e + Self::from_f64(2.0))).copysign(self)
    }

    /// The normal distribution function times x.
    #[inline(always)]
    fn gelu(self) -> Self {
        let half = Self::from_f64(0.5);
        let tail = half * (self.abs() * Self::from_f64(std::f64::consts::FRAC_1_SQRT_2)).erfc();
        self * if self > Self::ZERO { Self::ONE - tail } else { tail }
    }

    /// Its approximation by tanh (Hendrycks and Gimpel, 1606.08415).
    #[inline(always)]
    fn gelu_tanh(self) -> Self {
        let cubed = self * self * self;
        let inner = Self::from_f64((2.0 / std::f64::consts::PI).sqrt())
            * (self + Self::from_f64(0.044715) * cubed);
        Self::from_f64(0.5) * self * (Self::ONE + inner.tanh())
    }
}

macro_rules! elementary {
    (
        $type:ident, $bits:ty, $int:ty, bias $bias:expr, mantissa $mantissa:expr,
        range $low:expr, $high:expr, ln2 $ln2:expr, $rest:expr, taylor $taylor:expr,
        erf $erf:expr, $erfc:expr
    ) => {
        impl Elementary for $type {
            const ONE: Self = 1.0;

            #[inline(always)]
            fn exponential<const FUSED: bool>(self) -> (Self, Self, Self) {
                // Adding 1.5 2^mantissa rounds to a whole number, which the low bits then hold.
                const MAGIC: $type = 1.5 * (1u64 << $mantissa) as $type;
                let x = if self > $high { $high } else { self };
                let x = if x < $low { $low } else { x };
                let sum = |x: $type, a: $type, b: $type| {
                    if FUSED { x.mul_add(a, b) } else { x * a + b }
                };
                let shifted = sum(x, std::$type::consts::LOG2_E, MAGIC);
                let n = shifted - MAGIC;
                let r = sum(n, -$rest, sum(n, -$ln2, x));
                // (e^r - 1) / r
                let mut q = $taylor[0];
                for c in &$taylor[1..] {
                    q = sum(q, r, *c);
                }
                let n = (shifted.to_bits() as $int).wrapping_sub(MAGIC.to_bits() as $int);
                let half = n >> 1;
                let power =
                    |n: $int| $type::from_bits((n.wrapping_add($bias) << $mantissa) as $bits);
                (q * r, power(half), power(n.wrapping_sub(half)))
            }

            #[inline(always)]
            fn erf(self) -> Self {
                $erf(self)
            }
            #[inline(always)]
            fn erfc(self) -> Self {
                $erfc(self)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                <$type>::sqrt(self)
            }
            fn sin(self) -> Self {
                <$type>::sin(self)
            }
            fn cos(self) -> Self {
                <$type>::cos(self)
            }
            fn ln(self) -> Self {
                <$type>::ln(self)
            }
            fn ln_1p(self) -> Self {
                <$type>::ln_1p(self)
            }
            fn powf(self, power: Self) -> Self {
                <$type>::powf(self, power)
            }
            #[inline(always)]
            fn mul_add(self, a: Self, b: Self) -> Self {
                <$type>::mul_add(self, a, b)
            }
            #[inline(always)]
            fn copysign(self, sign: Self) -> Self {
                <$type>::copysign(self, sign)
            }
            #[inline(always)]
            fn is_nan(self) -> bool {
                <$type>::is_nan(self)
            }
        }
    };
}

/// 1 / n!, from the smallest that counts to 1 / 1!.
const fn taylor<const N: usize>() -> [f64; N] {
    let mut terms = [1.0; N];
    let mut n = 1;
    while n < N {
        terms[N - 1 - n] = terms[N - n] / (n + 1) as f64;
        n += 1;
    }
    terms
}

const fn single<const N: usize>(terms: [f64; N]) -> [f32; N] {
    let mut rounded = [0.0; N];
    let mut n = 0;
    while n < N {
        rounded[n] = terms[n] as f32;
        n += 1;
    }
    rounded
}

// ln 2 in two parts: the first has so few digits that n times it is exact.
elementary!(
    f32, u32, i32, bias 127, mantissa 23, range -104.0, 89.0,
    ln2 0.693_359_4, -2.121_944_4e-4, taylor single(taylor::<7>()), erf erf_single, erfc_single
);
elementary!(
    f64, u64, i64, bias 1023, mantissa 52, range -746.0, 710.0,
    ln2 0.693_147_180_369_123_8, 1.908_214_929_270_587_7e-10, taylor taylor::<13>(),
    erf libm::erf, libm::erfc
);

/// P(x) at one point, the highest power first.
#[inline(always)]
fn polynomial<const N: usize>(coefficients: &[f32; N], x: f32) -> f32 {
    coefficients[1..].iter().fold(coefficients[0], |p, c| p * x + c)
}

/// x + x P(x^2) below 1, P fitted to 2e-9, and 1 - erfc(x) from there on: at either the last
/// operation is the one whose rounding counts.
#[inline(always)]
fn erf_single(x: f32) -> f32 {
    const P: [f32; 7] = [
        7.875_875e-5,
        -8.016_864e-4,
        5.189_087e-3,
        -2.685_421_1e-2,
        1.128_359_4e-1,
        -3.761_262_6e-1,
        1.283_791_7e-1,
    ];
    let size = x.abs();
    let large = (1.0 - erfc_single(size)).copysign(x);
    if size < 1.0 { x + x * polynomial(&P, x * x) } else { large }
}

/// erfc(x) = e^{-x^2} (1 + w P(2 w - 1)) with w = x / (2 + x); P is fitted to 5e-9. Where it is large,
/// w P is small and so are its roundings.
#[inline(always)]
fn erfc_single(x: f32) -> f32 {
    const P: [f32; 10] = [
        7.368_98e-5,
        2.333_088e-4,
        -1.821_786_6e-4,
        -1.776_347_2e-3,
        9.586_594e-5,
        1.390_114e-2,
        -6.437_093e-3,
        -1.515_205_4e-1,
        6.348_37e-1,
        -1.489_208_7,
    ];
    // From here on it is 0; infinity would not give a w.
    let x = if x > 11.0 { 11.0 } else { x };
    let w = x / (2.0 + x);
    Elementary::exp(-x * x) * (1.0 + w * polynomial(&P, 2.0 * w - 1.0))
}

/// A function of one number that is taken of every element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Function {
    Silu,
    Gelu,
    GeluTanh,
    Relu,
    Tanh,
    Sigmoid,
    Exp,
    Ln,
    Ln1p,
    Sin,
    Cos,
    Sqrt,
    Abs,
    Erf,
    Reciprocal,
    /// x where x > 0, else the slope times x.
    LeakyRelu(f64),
    /// x where x > 0, else the scale times e^x - 1.
    Elu(f64),
    Softplus,
    /// a x + b.
    Affine(f64, f64),
    Power(f64),
    /// Not below and not above; NaN stays.
    Clamp(f64, f64),
}

impl Function {
    /// Of a name and its numbers; None where there is no such function.
    pub fn named(name: &str, numbers: &[f64]) -> Option<Self> {
        Some(match (name, numbers) {
            ("silu", []) => Function::Silu,
            ("gelu", []) => Function::Gelu,
            ("gelu_tanh", []) => Function::GeluTanh,
            ("relu", []) => Function::Relu,
            ("tanh", []) => Function::Tanh,
            ("sigmoid", []) => Function::Sigmoid,
            ("exp", []) => Function::Exp,
            ("log", []) => Function::Ln,
            ("log1p", []) => Function::Ln1p,
            ("sin", []) => Function::Sin,
            ("cos", []) => Function::Cos,
            ("sqrt", []) => Function::Sqrt,
            ("abs", []) => Function::Abs,
            ("erf", []) => Function::Erf,
            ("reciprocal", []) => Function::Reciprocal,
            ("softplus", []) => Function::Softplus,
            ("leaky_relu", &[slope]) => Function::LeakyRelu(slope),
            ("elu", &[scale]) => Function::Elu(scale),
            ("affine", &[a, b]) => Function::Affine(a, b),
            ("power", &[power]) => Function::Power(power),
            ("clamp", &[low, high]) => Function::Clamp(low, high),
            _ => return None,
        })
    }

    /// Its cost beside that of a pass that only multiplies.
    pub fn weight(self) -> usize {
        match self {
            Function::Relu | Function::Abs | Function::Affine(..) | Function::Clamp(..) => 1,
            Function::Sin | Function::Cos | Function::Ln | Function::Ln1p => 20,
            Function::Softplus | Function::Power(_) => 30,
            _ => 4,
        }
    }

    /// Take it of every element, in place.
    pub fn apply<T: Elementary>(self, v: &mut [T]) {
        let number = T::from_f64;
        match self {
            Function::Silu => silu(v),
            Function::Gelu => gelu(v),
            Function::GeluTanh => gelu_tanh(v),
            Function::Relu => relu(v),
            Function::Tanh => tanh(v),
            Function::Sigmoid => sigmoid(v),
            Function::Exp => exp(v),
            Function::Ln => v.iter_mut().for_each(|x| *x = x.ln()),
            Function::Ln1p => v.iter_mut().for_each(|x| *x = x.ln_1p()),
            Function::Sin => v.iter_mut().for_each(|x| *x = x.sin()),
            Function::Cos => v.iter_mut().for_each(|x| *x = x.cos()),
            Function::Sqrt => v.iter_mut().for_each(|x| *x = x.sqrt()),
            Function::Abs => v.iter_mut().for_each(|x| *x = x.abs()),
            Function::Erf => erf(v),
            Function::Reciprocal => v.iter_mut().for_each(|x| *x = T::ONE / *x),
            Function::LeakyRelu(slope) => leaky_relu(v, number(slope)),
            Function::Elu(scale) => elu(v, number(scale)),
            // log(1 + e^x), and x itself where nothing is left to add (torch's threshold).
            Function::Softplus => v.iter_mut().for_each(|x| {
                if *x <= number(20.0) {
                    *x = x.exp().ln_1p();
                }
            }),
            Function::Affine(a, b) => affine(v, number(a), number(b)),
            Function::Power(2.0) => v.iter_mut().for_each(|x| *x = *x * *x),
            Function::Power(power) => v.iter_mut().for_each(|x| *x = x.powf(number(power))),
            Function::Clamp(low, high) => clamp(v, number(low), number(high)),
        }
    }
}

/// The most frequent one, with fused operations where there are.
#[multiversion(targets("x86_64+avx+avx2+fma+avx512f+avx512dq+avx512vl", "x86_64+avx+avx2+fma"))]
fn silu<T: Elementary>(v: &mut [T]) {
    const FUSED: bool = target_cfg_f!(target_feature = "fma");
    for x in v {
        *x = *x / (T::ONE + (-*x).exp_by::<FUSED>());
    }
}

macro_rules! over_all {
    ($name:ident($x:ident $(, $a:ident)*) $value:expr) => {
        #[multiversion(targets("x86_64+avx+avx2+avx512f+avx512dq+avx512vl", "x86_64+avx+avx2"))]
        fn $name<T: Elementary>(v: &mut [T] $(, $a: T)*) {
            for at in v {
                let $x = *at;
                *at = $value;
            }
        }
    };
}

over_all!(gelu(x) x.gelu());
over_all!(gelu_tanh(x) x.gelu_tanh());
over_all!(tanh(x) x.tanh());
over_all!(sigmoid(x) x.sigmoid());
over_all!(exp(x) x.exp());
over_all!(erf(x) x.erf());
// NaN is not below zero, and stays.
over_all!(relu(x) if x < T::ZERO { T::ZERO } else { x });
over_all!(leaky_relu(x, slope) if x > T::ZERO { x } else { slope * x });
over_all!(elu(x, scale) if x > T::ZERO { x } else { scale * x.exp_m1() });
over_all!(affine(x, a, b) a * x + b);
over_all!(clamp(x, low, high) {
    let x = if x < low { low } else { x };
    if x > high { high } else { x }
});

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The largest distance in units of the last place of single precision, and of double.
    fn distance(function: Function, exact: impl Fn(f64) -> f64, x: f64) -> (f64, f64) {
        let (mut a, mut b) = ([x as f32], [x]);
        function.apply(&mut a);
        function.apply(&mut b);
        let (of_single, of_double) = (exact(f64::from(x as f32)), exact(x));
        let size = |v: f64, least: f64| v.abs().max(least);
        let single = (f64::from(a[0]) - of_single).abs() / size(of_single, 1e-30);
        let double = (b[0] - of_double).abs() / size(of_double, 1e-290);
        (single / f64::from(f32::EPSILON), double / f64::EPSILON)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(5000))]

        /// Each is a chain of a few roundings; e^x also carries that of the argument's last bits.
        #[test]
        fn functions_are_right_to_a_few_roundings(x in -60.0..60.0f64, small in -1.0..1.0f64) {
            for x in [x, small, small.powi(7)] {
                for (function, exact) in [
                    (Function::Exp, f64::exp as fn(f64) -> f64),
                    (Function::Tanh, f64::tanh),
                    (Function::Sigmoid, |x| 1.0 / (1.0 + (-x).exp())),
                    (Function::Silu, |x| x / (1.0 + (-x).exp())),
                ] {
                    let (single, double) = distance(function, exact, x);
                    prop_assert!(single < 5.0 && double < 5.0, "{function:?}({x}): {single} {double}");
                }
            }
        }

        #[test]
        fn the_error_function_is_right_to_a_rounding(x in -9.0..9.0f64) {
            for x in [x, x.powi(9) * 1e-9, 0.002047654847345421] {
                let (single, double) = distance(Function::Erf, libm::erf, x);
                prop_assert!(single < 1.0 && double < 1.0, "erf({x}): {single} {double}");
                // Of x times a probability: a rounding of 1, of x, and those of the product.
                let mut g = [x as f32];
                Function::Gelu.apply(&mut g);
                let x = f64::from(x as f32);
                let error = (f64::from(g[0]) - 0.5 * x * libm::erfc(-x / 2f64.sqrt())).abs();
                let rounding = f64::from(f32::EPSILON) * x.abs() + f64::from(f32::from_bits(1));
                prop_assert!(error <= rounding, "gelu({x}): {error}");
            }
        }
    }

    /// To 40 digits by mpmath.
    #[test]
    fn the_error_function_has_its_values() {
        for (x, exact) in [
            (1e-12, 1.1283791670955126e-12),
            (0.002047654847345421, 0.0023105278418829485),
            (0.3, 0.3286267594591274),
            (0.84375, 0.7672256612323416),
            (1.0, 0.8427007929497149),
            (1.25, 0.9229001282564583),
            (2.5, 0.999593047982555),
            (5.5, 0.9999999999999927),
        ] {
            let mut v = [x, -x];
            Function::Erf.apply(&mut v);
            assert!((v[0] / exact - 1.0).abs() < f64::EPSILON, "erf({x})");
            assert_eq!(v[1], -v[0]);
        }
        let mut v = [f32::NEG_INFINITY, -0.0, 0.0, f32::INFINITY];
        Function::Erf.apply(&mut v);
        assert_eq!(v, [-1.0, 0.0, 0.0, 1.0]);
        assert!(v[1].is_sign_negative());
    }

    #[test]
    fn the_ends_of_the_range_are_kept() {
        for function in [Function::Exp, Function::Tanh, Function::Gelu, Function::Relu] {
            let mut v = [f32::NAN; 3];
            function.apply(&mut v);
            assert!(v.iter().all(|x| x.is_nan()), "{function:?}");
        }
        let mut v = [f32::NEG_INFINITY, -1e30, -103.0, 0.0, 88.7, 89.0, f32::INFINITY];
        Function::Exp.apply(&mut v);
        assert_eq!(v[..2], [0.0, 0.0]);
        assert!(v[2] > 0.0 && v[3] == 1.0 && v[4].is_finite());
        assert_eq!(v[5..], [f32::INFINITY; 2]);
        let mut v: [f64; 4] = [-1e300, -745.0, 709.7, 710.0];
        Function::Exp.apply(&mut v);
        assert!(v[0] == 0.0 && v[1] > 0.0 && v[2].is_finite() && v[3] == f64::INFINITY);
        let mut v = [f64::NEG_INFINITY, -40.0, 40.0, f64::INFINITY];
        Function::Tanh.apply(&mut v);
        assert_eq!(v, [-1.0, -1.0, 1.0, 1.0]);
    }
}
