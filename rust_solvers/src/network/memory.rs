//! Numbers of either precision, and where a program finds them.

use super::functions::Elementary;
use crate::real::Precision;

/// Numbers lent to a program: a weight, or an input.
#[derive(Clone, Copy, Debug)]
pub enum Lent<'a> {
    Single(&'a [f32]),
    Double(&'a [f64]),
}

impl Lent<'_> {
    pub fn len(&self) -> usize {
        match self {
            Lent::Single(v) => v.len(),
            Lent::Double(v) => v.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn precision(&self) -> Precision {
        match self {
            Lent::Single(_) => Precision::Single,
            Lent::Double(_) => Precision::Double,
        }
    }

    /// All from the index `from` on.
    pub fn from(self, from: usize) -> Self {
        match self {
            Lent::Single(v) => Lent::Single(&v[from..]),
            Lent::Double(v) => Lent::Double(&v[from..]),
        }
    }
}

/// Numbers that a program keeps, in memory used again from call to call.
#[derive(Debug)]
pub enum Kept {
    Single(Vec<f32>),
    Double(Vec<f64>),
}

impl Kept {
    pub fn of(precision: Precision) -> Self {
        match precision {
            Precision::Single => Kept::Single(Vec::new()),
            Precision::Double => Kept::Double(Vec::new()),
        }
    }

    pub fn lent(&self) -> Lent<'_> {
        match self {
            Kept::Single(v) => Lent::Single(v),
            Kept::Double(v) => Lent::Double(v),
        }
    }
}

/// A number of which there are such memories.
pub trait Number: Elementary {
    /// The numbers lent, if they are of this type; none of them otherwise.
    fn lent(data: Lent<'_>) -> &[Self];
    fn kept(data: &mut Kept) -> Option<&mut Vec<Self>>;
    fn lend(data: &[Self]) -> Lent<'_>;
}

macro_rules! number {
    ($type:ty, $case:ident) => {
        impl Number for $type {
            fn lent(data: Lent<'_>) -> &[Self] {
                if let Lent::$case(v) = data { v } else { &[] }
            }
            fn kept(data: &mut Kept) -> Option<&mut Vec<Self>> {
                if let Kept::$case(v) = data { Some(v) } else { None }
            }
            fn lend(data: &[Self]) -> Lent<'_> {
                Lent::$case(data)
            }
        }
    };
}

number!(f32, Single);
number!(f64, Double);

/// Part of a row's value: element (i, j, ...) is at `offset + i strides[0] + j strides[1] + ...`.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    pub value: usize,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

impl View {
    /// How many elements it shows.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether its elements can be counted, and what it reaches: none of its numbers overflows then.
    pub fn countable(&self) -> bool {
        let count = self.shape.iter().try_fold(1usize, |n, &m| n.checked_mul(m.max(1)));
        let most = |n: Option<usize>| n.is_some_and(|n| n < 1 << 40);
        most(count) && (self.shape.contains(&0) || most(self.reach()))
    }

    /// One more than the largest index that it reaches, None where that is beyond all memory.
    pub fn reach(&self) -> Option<usize> {
        let mut last = self.offset;
        for (&n, &stride) in self.shape.iter().zip(&self.strides) {
            last = last.checked_add(n.checked_sub(1)?.checked_mul(stride)?)?;
        }
        last.checked_add(1)
    }

    /// Whether its elements lie one after the other, in order.
    pub fn packed(&self) -> bool {
        let mut expected = 1;
        for (&n, &stride) in self.shape.iter().zip(&self.strides).rev() {
            if n != 1 && stride != expected {
                return false;
            }
            expected *= n;
        }
        true
    }
}

/// A view with the numbers behind it: those of row `r` begin `r * row` after the first row's.
#[derive(Clone, Copy)]
pub struct Operand<'a> {
    pub view: &'a View,
    pub data: Lent<'a>,
    pub row: usize,
}

impl<'a> Operand<'a> {
    /// The numbers from the view's first element of the first row on.
    pub fn numbers<T: Number>(&self) -> &'a [T] {
        let all = T::lent(self.data);
        &all[self.view.offset.min(all.len())..]
    }

    /// The view's elements of one row, where they are packed.
    pub fn packed<T: Number>(&self, row: usize) -> &'a [T] {
        &self.numbers::<T>()[row * self.row..][..self.view.count()]
    }

    /// Those of all rows at once: a view that shows its whole value, packed.
    pub fn all<T: Number>(&self, rows: usize) -> &'a [T] {
        &self.numbers::<T>()[..rows * self.view.count()]
    }
}
