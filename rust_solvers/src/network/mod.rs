//! Networks as programs: a list of operations on the values of a row, run for blocks of rows.
//!
//! What does not depend on the rows (an embedding of a time that they share) is done once a call.
//! Then each thread takes some rows through the whole program, a block of them at a time that
//! stays in its cache: threads meet once a call, not once an operation, and rows never mix.

mod elementwise;
mod functions;
#[cfg(test)]
mod fuzz;
mod kernel;
mod memory;
mod norms;
mod products;
mod spatial;

use std::sync::Mutex;

pub use functions::{Elementary, Function};
pub use kernel::{Kernel, Named};
pub use memory::{Kept, Lent, Number, Operand, View};

use crate::real::Precision;
use crate::threads::share_among;

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Made by a step, for each row.
    Rows,
    /// Made by a step, once a call.
    Once,
    /// Lent for a run.
    Weight,
    /// Lent for a call: one for each row, or one for all.
    Input { each: bool },
}

/// `len` numbers: for each row, or for all of them.
#[derive(Clone, Copy, Debug)]
pub struct Value {
    pub place: Place,
    pub precision: Precision,
    pub len: usize,
}

impl Value {
    fn of_rows(&self) -> bool {
        matches!(self.place, Place::Rows | Place::Input { each: true })
    }
}

#[derive(Debug)]
pub struct Step {
    pub kernel: Kernel,
    pub operands: Vec<View>,
    pub out: View,
}

/// A network: values, the steps that make them in order, and what it returns.
#[derive(Debug)]
pub struct Program {
    values: Vec<Value>,
    /// For each value its place among the weights, the inputs, or the memories of its kind.
    slots: Vec<usize>,
    once: Vec<Step>,
    rows: Vec<Step>,
    result: View,
    weights: usize,
    inputs: usize,
    /// The kinds of memory that a block of rows needs, and the prologue.
    kept: [Vec<Precision>; 2],
    /// Elements of the largest memory of a row, all together.
    footprint: usize,
    /// What a row costs, in elements of a pass that only multiplies.
    work: usize,
}

/// Elements that a block's values may have: they should stay in a core's own cache, and be so many
/// that weights which do not are read for many rows at a time (measured at 784 wide: a quarter of it
/// takes half as long again).
const BLOCK: usize = 1 << 18;
/// Rows in a block, at most: a product gains nothing from more.
const MOST_ROWS: usize = 256;

impl Program {
    /// Put a program together.
    ///
    /// # Errors
    /// In words, where a step cannot be what it says: a value used before it is made, a view that
    /// leaves its value, shapes that do not fit.
    pub fn new(values: Vec<Value>, steps: Vec<Step>, result: View) -> Result<Self, String> {
        check(&values, &steps, &result)?;
        let (once, rows): (Vec<_>, Vec<_>) =
            steps.into_iter().partition(|s| values[s.out.value].place == Place::Once);
        let mut slots = vec![usize::MAX; values.len()];
        let mut number = |wanted: fn(&Place) -> bool| {
            let found = (0..values.len()).filter(|&i| wanted(&values[i].place));
            found.enumerate().map(|(n, i)| slots[i] = n).count()
        };
        let weights = number(|p| *p == Place::Weight);
        let inputs = number(|p| matches!(p, Place::Input { .. }));
        let mut kept_once = Vec::new();
        for step in &once {
            if slots[step.out.value] == usize::MAX {
                slots[step.out.value] = kept_once.len();
                kept_once.push(values[step.out.value].precision);
            }
        }
        let (kept, footprint) = share_memory(&values, &rows, &result, &mut slots);
        let cost = |s: &Step| s.kernel.work(&s.operands, &s.out);
        let work = rows.iter().map(cost).sum::<usize>().max(1);
        let kept = [kept, kept_once];
        Ok(Program { values, slots, once, rows, result, weights, inputs, kept, footprint, work })
    }

    /// The elements of a row of the result.
    pub fn len(&self) -> usize {
        self.result.count()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn precision(&self) -> Precision {
        self.values[self.result.value].precision
    }

    /// What a row costs, in elements of a pass that only multiplies.
    pub fn work(&self) -> usize {
        self.work
    }

    /// The values that are lent for a run, in order: how many elements of which precision.
    pub fn weights(&self) -> impl Iterator<Item = &Value> {
        self.values.iter().filter(|v| v.place == Place::Weight)
    }

    /// The values that are lent for a call, in order.
    pub fn inputs(&self) -> impl Iterator<Item = &Value> {
        self.values.iter().filter(|v| matches!(v.place, Place::Input { .. }))
    }

    fn rows_in_a_block(&self) -> usize {
        (BLOCK / self.footprint.max(1)).clamp(1, MOST_ROWS)
    }
}

fn check(values: &[Value], steps: &[Step], result: &View) -> Result<(), String> {
    let mut made: Vec<bool> =
        values.iter().map(|v| !matches!(v.place, Place::Rows | Place::Once)).collect();
    let mut once = true;
    let inside = |view: &View| {
        let value = values.get(view.value).ok_or("a view of no value")?;
        let reach =
            view.reach().filter(|_| view.shape.len() == view.strides.len() && view.countable());
        if reach.is_none_or(|reach| reach > value.len) {
            return Err(format!("a view {:?} of {} elements", view, value.len));
        }
        Ok(*value)
    };
    for (i, step) in steps.iter().enumerate() {
        let wrong = |what: String| Err(format!("step {i}: {what}"));
        let out = inside(&step.out)?;
        match out.place {
            Place::Rows => once = false,
            Place::Once if once => {}
            _ => return wrong("it writes where it may not".into()),
        }
        if step.operands.is_empty() {
            return wrong("it has no operands".into());
        }
        let partly = matches!(step.kernel, Kernel::Copy(_));
        if !partly && step.out.count() != out.len {
            return wrong(format!("it makes {} of {} elements", step.out.count(), out.len));
        }
        for (k, view) in step.operands.iter().enumerate() {
            let value = inside(view)?;
            if !made[view.value] || view.value == step.out.value {
                return wrong(format!("it uses value {} before it is made", view.value));
            }
            if value.of_rows() && out.place == Place::Once {
                return wrong("it is done once, of rows".into());
            }
            let fixed = match step.kernel {
                Kernel::Linear | Kernel::Convolve(..) | Kernel::ConvolveTransposed(..) => k > 0,
                Kernel::LayerNorm { .. } | Kernel::GroupNorm { .. } => k > 0,
                Kernel::Embedding => k == 0,
                _ => false,
            };
            if fixed && value.of_rows() {
                return wrong("its weights differ from row to row".into());
            }
            let expected = match step.kernel {
                Kernel::Convert if out.precision == Precision::Single => Precision::Double,
                Kernel::Convert => Precision::Single,
                Kernel::Embedding if k == 1 => Precision::Double,
                _ => out.precision,
            };
            if value.precision != expected {
                return wrong(format!("operand {k} is {:?}", value.precision));
            }
        }
        made[step.out.value] = true;
    }
    let value = inside(result)?;
    if !made[result.value] || !result.packed() || value.len != result.count() {
        return Err("the result is not made whole".into());
    }
    Ok(())
}

/// Whether a step takes a function of a whole value that nobody needs afterwards.
fn in_place(values: &[Value], step: &Step, over: bool) -> bool {
    let view = &step.operands[0];
    let (value, out) = (&values[view.value], &values[step.out.value]);
    let whole = view.count() == value.len && value.len == out.len;
    let function = matches!(step.kernel, Kernel::Function(_));
    function && over && whole && value.place == Place::Rows && out.place == Place::Rows
}

/// Give the values of rows memories to share: one is free again when nobody reads its value any
/// more. Returns what kinds there are, and how many elements of a row they hold together.
fn share_memory(
    values: &[Value],
    steps: &[Step],
    result: &View,
    slots: &mut [usize],
) -> (Vec<Precision>, usize) {
    let mut last = vec![0; values.len()];
    for (i, step) in steps.iter().enumerate() {
        step.operands.iter().chain([&step.out]).for_each(|v| last[v.value] = i);
    }
    last[result.value] = usize::MAX;
    let (mut kinds, mut sizes, mut free) = (Vec::new(), Vec::new(), Vec::<usize>::new());
    for (i, step) in steps.iter().enumerate() {
        let value = &values[step.out.value];
        if slots[step.out.value] == usize::MAX {
            let fits = |&slot: &usize| kinds[slot] == value.precision;
            // The last one freed is the likeliest to be in the cache still.
            let slot = match free.iter().rposition(fits) {
                _ if in_place(values, step, last[step.operands[0].value] == i) => {
                    slots[step.operands[0].value]
                }
                Some(at) => free.remove(at),
                None => {
                    kinds.push(value.precision);
                    sizes.push(0);
                    kinds.len() - 1
                }
            };
            sizes[slot] = sizes[slot].max(value.len);
            slots[step.out.value] = slot;
        }
        let mut done: Vec<usize> = step.operands.iter().map(|v| v.value).collect();
        done.push(step.out.value);
        done.sort_unstable();
        done.dedup();
        let (own, out) = (slots[step.out.value], step.out.value);
        let done = done.into_iter().filter(|&v| {
            let over = values[v].place == Place::Rows && last[v] == i;
            over && (v == out || slots[v] != own)
        });
        free.extend(done.map(|v| slots[v]));
    }
    (kinds, sizes.iter().sum())
}

/// What a run of a program keeps from call to call: its memories, and its weights turned.
#[derive(Default)]
pub struct Run {
    turned: Vec<Option<Kept>>,
    once: Memory,
    blocks: Mutex<Vec<Memory>>,
}

#[derive(Default)]
struct Memory {
    kept: Vec<Kept>,
    scratch: Option<[Kept; 2]>,
}

impl Memory {
    fn ready(&mut self, kinds: &[Precision]) {
        if self.kept.len() != kinds.len() {
            self.kept = kinds.iter().map(|&kind| Kept::of(kind)).collect();
        }
    }
}

/// Everything that is lent for a call.
#[derive(Clone, Copy)]
pub struct Loan<'a> {
    pub weights: &'a [Lent<'a>],
    pub inputs: &'a [Lent<'a>],
}

impl Run {
    /// Turn the weights that products want turned: once a run, and anew for each, since weights may
    /// have changed in between. `rows` is how many there will be in a call: for one large weights are
    /// best as they stand.
    pub fn prepare(&mut self, program: &Program, weights: &[Lent], rows: usize) {
        let turned = &mut self.turned;
        turned.resize_with(program.once.len() + program.rows.len(), || None);
        for (i, step) in program.once.iter().chain(&program.rows).enumerate() {
            let rows = if i < program.once.len() { 1 } else { rows };
            let weight = step.kernel.turns(&step.operands, rows);
            let weight =
                weight.filter(|(view, _)| program.values[view.value].place == Place::Weight);
            let Some((view, n)) = weight else {
                turned[i] = None;
                continue;
            };
            let lent = weights[program.slots[view.value]].from(view.offset);
            let kept = turned[i].take().filter(|k| k.lent().precision() == lent.precision());
            let mut kept = kept.unwrap_or_else(|| Kept::of(lent.precision()));
            match (&mut kept, lent) {
                (Kept::Single(into), Lent::Single(w)) => kernel::turn(&w[..view.count()], n, into),
                (Kept::Double(into), Lent::Double(w)) => kernel::turn(&w[..view.count()], n, into),
                _ => {}
            }
            turned[i] = Some(kept);
        }
    }

    /// The program's result for each row of `out`, on at most `threads` threads.
    ///
    /// # Errors
    /// In words, where an index into a table is outside of it.
    ///
    /// # Panics
    /// If what is lent is not what the program's weights and inputs say: a bug in the caller.
    pub fn call<T: Number>(
        &mut self,
        program: &Program,
        loan: Loan,
        out: &mut [T],
        threads: usize,
    ) -> Result<(), String> {
        let rows = out.len() / program.len().max(1);
        assert!(
            loan.weights.len() == program.weights && loan.inputs.len() == program.inputs,
            "the program was lent too little"
        );
        let enough = |lent: &Lent, value: &Value| {
            let rows = if value.of_rows() { rows } else { 1 };
            lent.precision() == value.precision && lent.len() >= rows * value.len
        };
        assert!(
            loan.weights.iter().zip(program.weights()).all(|(l, v)| enough(l, v))
                && loan.inputs.iter().zip(program.inputs()).all(|(l, v)| enough(l, v)),
            "the program was lent something else"
        );
        let Run { turned, once, blocks } = self;
        once.ready(&program.kept[1]);
        let mut here = Here { program, loan, turned, once: None, first: 0, rows: 1 };
        for (i, step) in program.once.iter().enumerate() {
            here.step(i, step, once)?;
        }
        let (here, from) = (&here, program.once.len());
        let (once, blocks) = (&once.kept, &*blocks);
        let failed = Mutex::new(None);
        let weight = program.work.div_ceil(program.len().max(1));
        let width = program.len().max(1);
        share_among(threads, out, width, weight, |at, out| {
            let mut memory = blocks.lock().ok().and_then(|mut b| b.pop()).unwrap_or_default();
            memory.ready(&program.kept[0]);
            let block = program.rows_in_a_block();
            for (i, out) in out.chunks_mut(block * width).enumerate() {
                let (first, rows) = (at / width + i * block, out.len() / width);
                let mut here = Here { once: Some(once), first, rows, ..*here };
                let steps = program.rows.iter().enumerate();
                let run = steps.map(|(i, step)| here.step(from + i, step, &mut memory));
                if let Err(why) = run.into_iter().collect::<Result<(), String>>() {
                    failed.lock().ok().and_then(|mut failed| failed.replace(why));
                    break;
                }
                here.give(&memory, out);
            }
            if let Ok(mut blocks) = blocks.lock() {
                blocks.push(memory);
            }
        });
        match failed.into_inner() {
            Ok(None) => Ok(()),
            Ok(Some(why)) => Err(why),
            Err(_) => Err("a thread failed".into()),
        }
    }
}

/// A block of rows on its way through a program; without `once`, the part that is done once.
struct Here<'a> {
    program: &'a Program,
    loan: Loan<'a>,
    turned: &'a [Option<Kept>],
    once: Option<&'a [Kept]>,
    first: usize,
    rows: usize,
}

impl<'a> Here<'a> {
    fn step(&mut self, i: usize, step: &Step, memory: &mut Memory) -> Result<(), String> {
        let slot = self.program.slots[step.out.value];
        let precision = self.program.values[step.out.value].precision;
        // Out of its place while it is written: nothing else that is read can be the same memory.
        let mut out = std::mem::replace(&mut memory.kept[slot], Kept::of(precision));
        let done = match precision {
            Precision::Single => self.typed::<f32>(i, step, &mut out, memory),
            Precision::Double => self.typed::<f64>(i, step, &mut out, memory),
        };
        memory.kept[slot] = out;
        done
    }

    fn typed<T: Number>(
        &self,
        i: usize,
        step: &Step,
        out: &mut Kept,
        memory: &mut Memory,
    ) -> Result<(), String> {
        let len = self.program.values[step.out.value].len;
        let Some(out) = T::kept(out) else { return Err("a value of two precisions".into()) };
        out.resize(len * self.rows, T::ZERO);
        if let Kernel::Function(function) = &step.kernel
            && self.program.values[step.operands[0].value].place == Place::Rows
            && self.program.slots[step.operands[0].value] == self.program.slots[step.out.value]
        {
            function.apply(out);
            return Ok(());
        }
        let both = [Kept::of(Precision::Single), Kept::of(Precision::Double)];
        let mut scratch = memory.scratch.take().unwrap_or(both);
        let view = |i: usize| step.operands.get(i).unwrap_or(&step.operands[0]);
        let operands: [Operand; 3] = std::array::from_fn(|i| self.operand(view(i), memory));
        let operands = &operands[..step.operands.len().min(3)];
        let turned = self.turned.get(i).and_then(Option::as_ref).map(|k| T::lent(k.lent()));
        let done = match (&step.kernel, operands[0].data) {
            (Kernel::Convert, Lent::Double(_)) => {
                elementwise::convert::<f64, T>(self.rows, out, &operands[0]);
                Ok(())
            }
            (kernel, _) => match scratch.iter_mut().find_map(T::kept) {
                Some(scratch) => {
                    let target = (&mut out[..], len, step.out.offset);
                    kernel.run(self.rows, target, operands, turned, scratch)
                }
                None => Err("no scratch".into()),
            },
        };
        memory.scratch = Some(scratch);
        done
    }

    #[inline(always)]
    fn operand<'b>(&self, view: &'b View, memory: &'b Memory) -> Operand<'b>
    where
        'a: 'b,
    {
        let value = &self.program.values[view.value];
        let slot = self.program.slots[view.value];
        let row = if value.of_rows() { value.len } else { 0 };
        let data = match value.place {
            Place::Weight => self.loan.weights[slot],
            Place::Input { each } => {
                let from = if each { self.first * value.len } else { 0 };
                self.loan.inputs[slot].from(from)
            }
            Place::Once => match self.once {
                Some(once) => once[slot].lent(),
                None => memory.kept[slot].lent(),
            },
            Place::Rows => memory.kept[slot].lent(),
        };
        Operand { view, data, row }
    }

    /// Hand over the result.
    fn give<T: Number>(&self, memory: &Memory, out: &mut [T]) {
        let result = self.operand(&self.program.result, memory);
        for (row, out) in out.chunks_mut(self.program.len()).enumerate() {
            out.copy_from_slice(result.packed(row));
        }
    }
}
