//! Whatever numbers come over the border: a program is refused in words, or it runs within its memory.

use proptest::prelude::*;

use super::{Kernel, Lent, Loan, Named, Place, Program, Run, Step, Value, View};
use crate::real::Precision;

const NAMES: [&str; 26] = [
    "linear",
    "matmul",
    "convert",
    "embedding",
    "softmax",
    "copy",
    "layer_norm",
    "rms_norm",
    "group_norm",
    "conv",
    "conv_transpose",
    "max_pool",
    "mean_pool",
    "mean_pool_inside",
    "enlarge",
    "add",
    "sub",
    "mul",
    "div",
    "maximum",
    "sum",
    "amin",
    "silu",
    "affine",
    "clamp",
    "nothing",
];

/// Numbers out of bytes, zeros when they are used up.
struct Bytes(std::vec::IntoIter<u8>);

impl Bytes {
    fn below(&mut self, n: usize) -> usize {
        self.0.next().map_or(0, usize::from) % n
    }

    /// Mostly small, sometimes at the ends of what there is.
    fn size(&mut self) -> usize {
        match self.below(32) {
            0 => 0,
            1 => usize::MAX,
            2 => usize::MAX / 2 + 1,
            3 => 1 << 31,
            k => 1 + k % 4,
        }
    }

    fn sizes(&mut self, n: usize) -> Vec<usize> {
        (0..n).map(|_| self.size()).collect()
    }

    fn number(&mut self) -> f64 {
        [0.0, 1.0, -1.0, 0.5, 3.0, 1e300, f64::NAN, f64::INFINITY][self.below(8)]
    }

    /// A view of one of `values`: its whole, in axes that fit, or anything.
    fn view(&mut self, values: &[Value]) -> View {
        let beyond = usize::from(self.below(16) == 0);
        let value = self.below(values.len() + beyond);
        if self.below(6) == 0 {
            let axes = self.below(4);
            let (offset, shape) = (self.size(), self.sizes(axes));
            let strides = self.sizes(axes);
            return View { value, offset, shape, strides };
        }
        let mut left = values.get(value).map_or(1, |v| v.len);
        let mut shape = Vec::new();
        for _ in 0..self.below(4) {
            let n = 1 + self.below(4);
            if left.is_multiple_of(n) {
                shape.push(n);
                left /= n;
            }
        }
        shape.push(left);
        let strides = (0..shape.len()).map(|i| shape[i + 1..].iter().product()).collect();
        View { value, offset: 0, shape, strides }
    }

    fn program(&mut self) -> Result<Program, String> {
        let precision = |double| if double { Precision::Double } else { Precision::Single };
        let lens = [1, 2, 3, 4, 6, 8, 9, 12, 16, 24, 36, 64];
        let (mut values, mut steps) = (Vec::new(), Vec::new());
        for _ in 0..2 + self.below(4) {
            let places = [Place::Weight, Place::Input { each: true }, Place::Input { each: false }];
            let (place, double) = (places[self.below(3)], self.below(8) == 0);
            values.push(Value { place, precision: precision(double), len: lens[self.below(12)] });
        }
        for _ in 0..1 + self.below(3) {
            let operands: Vec<View> = (0..1 + self.below(3)).map(|_| self.view(&values)).collect();
            let place = if self.below(4) == 0 { Place::Once } else { Place::Rows };
            let whole = &operands[0];
            let like = if whole.countable() { whole.count().clamp(1, 4096) } else { 1 };
            let len = if self.below(2) == 0 { like } else { lens[self.below(12)] };
            values.push(Value { place, precision: precision(self.below(8) == 0), len });
            let mut out = self.view(&values);
            if self.below(4) > 0 {
                let same = whole.countable() && whole.count() == len;
                let shape = if same { operands[0].shape.clone() } else { vec![len] };
                let strides = (0..shape.len()).map(|i| shape[i + 1..].iter().product()).collect();
                out = View { value: values.len() - 1, offset: 0, shape, strides };
            }
            let (name, count) = (NAMES[self.below(NAMES.len())], self.below(11));
            let sizes = self.sizes(count);
            let numbers: Vec<f64> = (0..self.below(3)).map(|_| self.number()).collect();
            let named = Named { name, whole: &sizes, numbers: &numbers };
            // As the border does it: shapes and strides of one length, and no axis empty.
            let sound = |v: &View| v.shape.len() == v.strides.len() && !v.shape.contains(&0);
            if operands.iter().chain([&out]).all(sound) {
                let kernel = Kernel::new(&named, &operands, &out)?;
                steps.push(Step { kernel, operands, out });
            }
        }
        let result = self.view(&values);
        Program::new(values, steps, result)
    }
}

/// Whether the program was accepted; then it is run.
fn run(bytes: Vec<u8>) -> bool {
    let mut bytes = Bytes(bytes.into_iter());
    let Ok(program) = bytes.program() else { return false };
    let rows = 1 + bytes.below(3);
    let numbers: Vec<f64> = (0..64 * rows).map(|_| bytes.number()).collect();
    let singles: Vec<f32> = numbers.iter().map(|&x| x as f32).collect();
    let lend = |v: &Value| {
        let n = v.len * if v.of_rows() { rows } else { 1 };
        match v.precision {
            Precision::Single => Lent::Single(&singles[..n]),
            Precision::Double => Lent::Double(&numbers[..n]),
        }
    };
    let weights: Vec<Lent> = program.weights().map(lend).collect();
    let inputs: Vec<Lent> = program.inputs().map(lend).collect();
    let loan = Loan { weights: &weights, inputs: &inputs };
    let mut state = Run::default();
    for _ in 0..2 {
        state.prepare(&program, &weights, rows);
        // An index outside of a table is told in words.
        let _ = match program.precision() {
            Precision::Single => {
                state.call(&program, loan, &mut vec![0.0f32; rows * program.len()], 2)
            }
            Precision::Double => {
                state.call(&program, loan, &mut vec![0.0f64; rows * program.len()], 2)
            }
        };
    }
    true
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn a_program_is_refused_or_runs(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        run(bytes);
    }
}

/// Much longer: `cargo test --release -- --ignored many_programs`. Says how many were accepted.
#[test]
#[ignore = "minutes"]
fn many_programs_are_refused_or_run() {
    let (mut accepted, mut key) = (0u32, [1, 0]);
    for i in 0..2_000_000u32 {
        key[1] = i;
        let words = (0..50).flat_map(|k| crate::philox::philox([k, 0, 0, 0], key));
        accepted += u32::from(run(words.flat_map(u32::to_le_bytes).take(200).collect()));
    }
    println!("{accepted} of 2000000 accepted");
    assert!(accepted > 1000);
}
