//! The two floating-point types that the engine integrates.

/// A floating-point element of a state.
pub trait Real:
    Copy
    + Send
    + Sync
    + PartialOrd
    + std::ops::Add<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::AddAssign
    + 'static
{
    const ZERO: Self;
    /// The name torch gives to this type.
    const DTYPE: &'static str;
    const PRECISION: Precision;

    fn from_f64(value: f64) -> Self;
    fn to_f64(self) -> f64;
    fn abs(self) -> Self;
    /// 1 where the value is NaN or infinite, else 0; an integer, so that a scan vectorises.
    fn non_finite(self) -> u32;

    fn max(self, other: Self) -> Self {
        if self > other { self } else { other }
    }
}

macro_rules! real {
    ($type:ty, $bits:ty, $exponent:expr, $name:expr, $precision:ident) => {
        impl Real for $type {
            const ZERO: Self = 0.0;
            const DTYPE: &'static str = $name;
            const PRECISION: Precision = Precision::$precision;

            #[inline(always)]
            fn from_f64(value: f64) -> Self {
                value as $type
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                self as f64
            }
            #[inline(always)]
            fn abs(self) -> Self {
                <$type>::abs(self)
            }
            #[inline(always)]
            fn non_finite(self) -> u32 {
                const EXPONENT: $bits = $exponent;
                u32::from(self.to_bits() & EXPONENT == EXPONENT)
            }
        }
    };
}

real!(f32, u32, 0x7f80_0000, "float32", Single);
real!(f64, u64, 0x7ff0_0000_0000_0000, "float64", Double);

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    Single,
    Double,
}
