//! The operations of a program: what each needs of its operands, what it costs, and its run.

use super::elementwise::{self, Pair, Walk};
use super::functions::Function;
use super::memory::{Number, Operand, View};
use super::norms::{self, Reduction};
use super::products::{Matrix, product, row_by_matrix, transpose};
use super::spatial::{self, Channels, Pooling, Window};

/// What a step does. Shapes are of one row; a run does it for many.
#[derive(Clone, Debug, PartialEq)]
pub enum Kernel {
    /// x of (.., n), a weight of m x n and perhaps a bias of m: (.., m).
    Linear,
    /// (.., m, k) by (.., k, n), for each of the leading axes.
    Matmul,
    Function(Function),
    Pair(Pair, Walk<2>),
    Copy(Walk<2>),
    /// To the other precision.
    Convert,
    Reduce(Reduction),
    /// Over the last axis; with a weight and a bias of its length, or none.
    LayerNorm {
        eps: f64,
        center: bool,
        weight: bool,
    },
    GroupNorm {
        groups: usize,
        eps: f64,
        weight: bool,
    },
    Softmax,
    Convolve(Window, Channels),
    ConvolveTransposed(Window, Channels),
    Pool(Pooling, Window),
    Enlarge([usize; 2]),
    /// Rows of a table, by indices in double precision.
    Embedding,
}

/// The name of an operation and its numbers, as they come over the border.
pub struct Named<'a> {
    pub name: &'a str,
    pub whole: &'a [usize],
    pub numbers: &'a [f64],
}

impl Kernel {
    /// The operation of a name, for operands and a result of these shapes.
    ///
    /// # Errors
    /// In words, where there is no such operation or it cannot be done to them.
    pub fn new(named: &Named, operands: &[View], out: &View) -> Result<Self, String> {
        if !operands.iter().chain([out]).all(View::countable) {
            return Err(format!("{} of views with too many elements", named.name));
        }
        let kernel = Kernel::of(named, operands, out).ok_or_else(|| {
            format!("there is no operation {:?} of {} operands", named.name, operands.len())
        })?;
        if kernel.fits(operands, out) {
            return Ok(kernel);
        }
        let shapes: Vec<_> = operands.iter().map(|v| &v.shape).collect();
        Err(format!("{} cannot make {:?} of {shapes:?}", named.name, out.shape))
    }

    fn of(named: &Named, operands: &[View], out: &View) -> Option<Self> {
        let first = operands.first()?;
        let window = || {
            let [a, b, c, d, e, f, g, h] = *named.whole.get(..8)? else { return None };
            let size = |v: &View| Some([*v.shape.get(1)?, *v.shape.get(2)?]);
            let (input, output) = (size(first)?, size(out)?);
            let (kernel, stride, padding, dilation) = ([a, b], [c, d], [e, f], [g, h]);
            Some(Window { input, output, kernel, stride, padding, dilation })
        };
        let channels = || {
            let groups = *named.whole.get(8)?;
            Some(Channels { input: *first.shape.first()?, output: *out.shape.first()?, groups })
        };
        let weight = operands.len() > 1;
        Some(match named.name {
            "linear" => Kernel::Linear,
            "matmul" => Kernel::Matmul,
            "convert" => Kernel::Convert,
            "embedding" => Kernel::Embedding,
            "softmax" => Kernel::Softmax,
            "copy" => {
                let same = first.shape == out.shape;
                same.then(|| Kernel::Copy(Walk::over(&out.shape, [&first.strides, &out.strides])))?
            }
            "layer_norm" => {
                Kernel::LayerNorm { eps: *named.numbers.first()?, center: true, weight }
            }
            "rms_norm" => Kernel::LayerNorm { eps: *named.numbers.first()?, center: false, weight },
            "group_norm" => Kernel::GroupNorm {
                groups: *named.whole.first()?,
                eps: *named.numbers.first()?,
                weight,
            },
            "conv" => Kernel::Convolve(window()?, channels()?),
            "conv_transpose" => {
                let window = window()?;
                let (input, output) = (window.output, window.input);
                Kernel::ConvolveTransposed(Window { input, output, ..window }, channels()?)
            }
            "max_pool" => Kernel::Pool(Pooling::Max, window()?),
            "mean_pool" => Kernel::Pool(Pooling::Mean, window()?),
            "mean_pool_inside" => Kernel::Pool(Pooling::MeanInside, window()?),
            "enlarge" => match *named.whole {
                [y, x] => Kernel::Enlarge([y, x]),
                _ => return None,
            },
            name => match (Pair::named(name), operands) {
                (Some(pair), [a, b]) if a.shape == out.shape && b.shape == out.shape => {
                    Kernel::Pair(pair, Walk::over(&out.shape, [&a.strides, &b.strides]))
                }
                (Some(_), _) => return None,
                _ => match Reduction::named(name) {
                    Some(reduction) => Kernel::Reduce(reduction),
                    None => Kernel::Function(Function::named(name, named.numbers)?),
                },
            },
        })
    }

    /// Whether operands and result have the shapes and the layout that the run relies on.
    fn fits(&self, operands: &[View], out: &View) -> bool {
        let packed = |views: &[View]| views.iter().all(View::packed);
        let shapes: Vec<&[usize]> = operands.iter().map(|v| &v.shape[..]).collect();
        // Weight and bias of `n` elements after the first operand: both, one, or none.
        let affine = |n: usize, least: usize| {
            shapes.len() > least && shapes.len() <= 3 && shapes[1..].iter().all(|s| *s == [n])
        };
        let result = &out.shape[..];
        let partly = matches!(self, Kernel::Copy(_));
        if !partly && (!out.packed() || out.offset != 0) {
            return false;
        }
        match self {
            Kernel::Copy(_) | Kernel::Pair(..) => true,
            Kernel::Function(_) | Kernel::Convert => {
                shapes.len() == 1 && packed(operands) && operands[0].count() == out.count()
            }
            Kernel::Linear => {
                let ([x, w] | [x, w, _]) = shapes[..] else { return false };
                let ([.., n], [m, k], [.., l]) = (x, w, result) else { return false };
                let bias = shapes.get(2).is_none_or(|b| **b == [*m]);
                let tokens = operands[0].count() / n;
                packed(&operands[..1])
                    && packed(&operands[2..])
                    && bias
                    && (n, m) == (k, l)
                    && out.count() == tokens * m
            }
            Kernel::Matmul => {
                let [a, b] = shapes[..] else { return false };
                let ([la @ .., m, k], [lb @ .., k2, n], [lo @ .., m2, n2]) = (a, b, result) else {
                    return false;
                };
                (la, lb, k, m, n) == (lo, lo, k2, m2, n2)
            }
            Kernel::Reduce(_) => {
                let [[outer @ .., _]] = shapes[..] else { return false };
                packed(operands) && outer == result
            }
            Kernel::Softmax => {
                shapes.len() == 1 && packed(operands) && shapes[0] == result && !result.is_empty()
            }
            Kernel::LayerNorm { .. } => {
                let [.., n] = result else { return false };
                packed(operands) && shapes[0] == result && affine(*n, 0)
            }
            Kernel::GroupNorm { groups, .. } => {
                let [c, ..] = result else { return false };
                let whole = *groups > 0 && c.is_multiple_of(*groups);
                packed(operands) && shapes[0] == result && affine(*c, 0) && whole
            }
            Kernel::Convolve(window, Channels { input, output, groups })
            | Kernel::ConvolveTransposed(window, Channels { input, output, groups }) => {
                let g = *groups;
                if g == 0 || input % g != 0 || output % g != 0 || shapes.len() > 3 {
                    return false;
                }
                let (rows, columns) = match self {
                    Kernel::Convolve(..) => (*output, input / g),
                    _ => (*input, output / g),
                };
                let taps = [rows, columns, window.kernel[0], window.kernel[1]];
                packed(operands)
                    && window.sound()
                    && shapes.get(1).is_some_and(|w| *w == taps)
                    && shapes.get(2).is_none_or(|b| *b == [*output])
                    && shapes[0].len() == 3
                    && result.len() == 3
            }
            Kernel::Pool(_, window) => {
                // A window wholly in the padding would see nothing.
                let seen = (0..2).all(|i| window.padding[i] <= window.kernel[i] / 2);
                let images = shapes.len() == 1 && shapes[0].len() == 3 && result.len() == 3;
                packed(operands) && images && window.sound() && seen && shapes[0][0] == result[0]
            }
            Kernel::Enlarge([y, x]) => {
                let [&[c, h, w]] = shapes[..] else { return false };
                let size = h.checked_mul(*y).zip(w.checked_mul(*x));
                packed(operands) && size.is_some_and(|(h, w)| result == [c, h, w])
            }
            Kernel::Embedding => {
                let ([_, d], [outer @ .., l]) = (shapes[0], result) else { return false };
                shapes.len() == 2 && packed(operands) && d == l && shapes[1] == outer
            }
        }
    }

    /// About how long it takes for a row, in elements of a pass that only multiplies.
    pub fn work(&self, operands: &[View], out: &View) -> usize {
        /// Products that a kernel of the library does in the time of such an element.
        const PRODUCTS: usize = 8;
        let n = out.count();
        match self {
            Kernel::Linear | Kernel::Matmul => {
                n + n * operands[0].shape.last().unwrap_or(&1) / PRODUCTS
            }
            Kernel::Convolve(window, channels) => {
                let depth = channels.input / channels.groups * window.taps();
                n + n * depth / PRODUCTS + depth * window.pixels()
            }
            Kernel::ConvolveTransposed(window, channels) => {
                let depth = channels.output / channels.groups * window.taps();
                n + (channels.input * depth / PRODUCTS + depth) * window.pixels()
            }
            Kernel::Function(f) => n * f.weight(),
            Kernel::Pool(_, window) => n.saturating_mul(4 * window.taps()),
            Kernel::Reduce(_) => operands[0].count(),
            Kernel::Softmax => n * 6,
            Kernel::LayerNorm { .. } | Kernel::GroupNorm { .. } => n * 4,
            _ => n * 2,
        }
    }

    /// The weight that a run of so many rows should have turned, with the length of its rows: they lie
    /// one after the other, and the product would copy them again and again.
    pub fn turns<'a>(&self, operands: &'a [View], rows: usize) -> Option<(&'a View, usize)> {
        let (Kernel::Linear, [x, w, ..]) = (self, operands) else { return None };
        let [m, n] = w.shape[..] else { return None };
        let turns = w.strides == [n, 1] && m >= NARROW && n > 1;
        // Of one token a large one is best as it stands.
        (turns && (rows * x.count() > n || m * n <= SMALL)).then_some((w, n))
    }

    /// Do it for `rows` rows into `out`, the values of which are `len` elements long in a row.
    /// `turned` is what was made of the weight that `turns` names, if the run wants it.
    ///
    /// # Errors
    /// In words, where an index into a table is outside of it.
    pub fn run<T: Number>(
        &self,
        rows: usize,
        (out, len, offset): (&mut [T], usize, usize),
        operands: &[Operand],
        turned: Option<&[T]>,
        scratch: &mut Vec<T>,
    ) -> Result<(), String> {
        let first = &operands[0];
        let vector = |i: usize| operands.get(i).map(|o| o.packed::<T>(0));
        match self {
            Kernel::Linear => linear(rows, out, operands, turned),
            Kernel::Matmul => matmul(rows, out, first, &operands[1]),
            Kernel::Function(f) => elementwise::function(*f, rows, out, first),
            Kernel::Pair(op, walk) => {
                elementwise::pair(*op, walk, rows, out, first, &operands[1]);
            }
            Kernel::Copy(walk) => elementwise::copy(walk, rows, (out, len, offset), first),
            Kernel::Convert => {
                elementwise::convert::<f32, T>(rows, out, first);
            }
            Kernel::Reduce(reduction) => {
                let n = first.view.shape.last().copied().unwrap_or(1);
                each(rows, out, first, |v, out| reduction.apply(n, v, out));
            }
            Kernel::Softmax => {
                let n = first.view.shape.last().copied().unwrap_or(1);
                each(rows, out, first, |v, out| norms::softmax(n, v, out));
            }
            Kernel::LayerNorm { eps, center, weight } => {
                let n = first.view.shape.last().copied().unwrap_or(1);
                let affine = if *weight { (vector(1), vector(2)) } else { (None, None) };
                each(rows, out, first, |v, out| {
                    norms::layer_norm(n, (*eps, *center), v, affine, out);
                });
            }
            Kernel::GroupNorm { groups, eps, weight } => {
                let channels = first.view.shape[0];
                let shape = (channels, len / channels, *groups);
                let affine = if *weight { (vector(1), vector(2)) } else { (None, None) };
                each(rows, out, first, |v, out| norms::group_norm(shape, *eps, v, affine, out));
            }
            Kernel::Convolve(window, channels) => {
                let weights = (operands[1].packed(0), vector(2));
                let image = |row| first.packed(row);
                spatial::convolve(window, *channels, image, weights, out, scratch);
            }
            Kernel::ConvolveTransposed(window, channels) => {
                let weights = (operands[1].packed(0), vector(2));
                each(rows, out, first, |v, out| {
                    spatial::convolve_transposed(window, *channels, v, weights, out, scratch);
                });
            }
            Kernel::Pool(pooling, window) => {
                each(rows, out, first, |v, out| pooling.apply(window, v, out));
            }
            Kernel::Enlarge(times) => {
                let width = first.view.shape[2];
                each(rows, out, first, |v, out| spatial::enlarge(width, *times, v, out));
            }
            Kernel::Embedding => return embedding(rows, out, first, &operands[1]),
        }
        Ok(())
    }
}

/// Row by row.
fn each<T: Number>(
    rows: usize,
    out: &mut [T],
    from: &Operand,
    mut work: impl FnMut(&[T], &mut [T]),
) {
    let len = out.len() / rows.max(1);
    for (row, out) in out.chunks_mut(len.max(1)).enumerate() {
        work(from.packed(row), out);
    }
}

/// Rows below which a product is done row by row: the library would copy the whole weight first.
const FEW: usize = 4;
/// Outputs below which it is as well, with the weight as it stands.
const NARROW: usize = 8;
/// Elements of a weight that is turned for a single row too: it stays in a core's own cache.
const SMALL: usize = 1 << 14;

fn linear<T: Number>(rows: usize, out: &mut [T], operands: &[Operand], turned: Option<&[T]>) {
    let (x, weight) = (&operands[0], &operands[1]);
    let (m, n) = (weight.view.shape[0], weight.view.shape[1]);
    let tokens = x.view.count() / n;
    if let Some(bias) = operands.get(2) {
        let bias = bias.packed::<T>(0);
        out.chunks_mut(m).for_each(|out| out.copy_from_slice(bias));
    }
    let add = operands.len() > 2;
    let numbers = x.numbers::<T>();
    let all = rows * tokens;
    let together = x.row == tokens * n || tokens == 1;
    let row = if tokens == 1 { x.row } else { n };
    let whole = Matrix { values: numbers, row, column: 1 };
    let one = |i: usize| &numbers[i / tokens * x.row + i % tokens * n..][..n];
    let few = all < FEW || !together;
    if let Some(turned) = turned {
        for (i, panel) in turned[..m * n].chunks(PANEL * n).enumerate() {
            let (first, wide) = (i * PANEL, panel.len() / n);
            if few {
                for (i, out) in out.chunks_mut(m).enumerate() {
                    row_by_matrix(&mut out[first..first + wide], one(i), panel, add);
                }
            } else {
                let (out, panel) = (&mut out[first..], Matrix::rows(panel, wide));
                product((out, m), (all, n, wide), whole, panel, add);
            }
        }
        return;
    }
    let weight = Matrix {
        values: weight.numbers::<T>(),
        row: weight.view.strides[0],
        column: weight.view.strides[1],
    };
    let by = weight.transposed();
    if few || m < NARROW {
        for (i, out) in out.chunks_mut(m).enumerate() {
            product((out, m), (1, n, m), Matrix::rows(one(i), n), by, add);
        }
        return;
    }
    product((out, m), (all, n, m), whole, by, add);
}

fn matmul<T: Number>(rows: usize, out: &mut [T], a: &Operand, b: &Operand) {
    let d = a.view.shape.len();
    let (m, k, n) = (a.view.shape[d - 2], a.view.shape[d - 1], b.view.shape[d - 1]);
    let leading = &a.view.shape[..d - 2];
    let count: usize = leading.iter().product();
    let of = |v: &Operand<'_>, i: usize| {
        let (mut from, mut rest) = (i / count * v.row, i % count);
        for (&n, &stride) in leading.iter().zip(&v.view.strides).rev() {
            from += rest % n * stride;
            rest /= n;
        }
        from
    };
    let (of_a, of_b) = (a.numbers::<T>(), b.numbers::<T>());
    let (sa, sb) = (&a.view.strides[d - 2..], &b.view.strides[d - 2..]);
    for (i, out) in out.chunks_mut(m * n).take(rows * count).enumerate() {
        let left = Matrix { values: &of_a[of(a, i)..], row: sa[0], column: sa[1] };
        let right = Matrix { values: &of_b[of(b, i)..], row: sb[0], column: sb[1] };
        product((out, n), (m, k, n), left, right, false);
    }
}

fn embedding<T: Number>(
    rows: usize,
    out: &mut [T],
    table: &Operand,
    index: &Operand,
) -> Result<(), String> {
    let (n, d) = (table.view.shape[0], table.view.shape[1]);
    let numbers = table.packed::<T>(0);
    let count = index.view.count();
    for row in 0..rows {
        let lines = out[row * count * d..].chunks_mut(d);
        for (out, &i) in lines.zip(index.packed::<f64>(row)) {
            if !(i >= 0.0 && i < n as f64) {
                return Err(format!("the index {i} where an embedding has {n} entries"));
            }
            out.copy_from_slice(&numbers[i as usize * d..][..d]);
        }
    }
    Ok(())
}

/// Outputs of a product whose weights lie together: the library's kernels are as wide.
const PANEL: usize = 64;

/// The transpose of a weight of rows of n elements, in panels: of `PANEL` outputs after those before,
/// in memory used again.
pub fn turn<T: Number>(weight: &[T], n: usize, into: &mut Vec<T>) {
    into.resize(weight.len(), T::ZERO);
    for (weight, into) in weight.chunks(PANEL * n).zip(into.chunks_mut(PANEL * n)) {
        transpose(weight, (weight.len() / n, n), into);
    }
}
