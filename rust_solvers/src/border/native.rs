//! Fields that need no Python: networks as programs, and kernels of a user's own.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::kernels::combine;
use crate::network::{
    Kept, Kernel, Lent, Loan, Named, Number, Place, Program, Run, Step, Value, View,
};
use crate::real::Precision;

use super::borrowed::{Borrowed, READ};
use super::kernel::UserKernel;

/// (value, offset, shape, strides)
type ViewNumbers = (usize, usize, Vec<usize>, Vec<usize>);
/// (name, result, operands, whole numbers, numbers)
type StepNumbers = (String, ViewNumbers, Vec<ViewNumbers>, Vec<usize>, Vec<f64>);
/// (place, whether in double precision, shape)
type ValueNumbers = (String, bool, Vec<usize>);

fn view((value, offset, shape, strides): ViewNumbers) -> View {
    View { value, offset, shape, strides }
}

/// A network as a program: see `interp.native`.
#[pyclass(frozen)]
pub struct Network {
    program: Arc<Program>,
    weights: Vec<(Vec<usize>, Precision)>,
    inputs: Vec<(Vec<usize>, Precision, bool)>,
    /// Memory of the last call, for the next one; a call beside another one makes its own.
    spare: Mutex<Vec<Run>>,
}

#[pymethods]
impl Network {
    /// Put a program together. Nothing of it is trusted: what does not fit is a `ValueError`.
    #[new]
    fn new(
        values: Vec<ValueNumbers>,
        steps: Vec<StepNumbers>,
        result: ViewNumbers,
    ) -> PyResult<Self> {
        let (mut weights, mut inputs, mut known) = (Vec::new(), Vec::new(), Vec::new());
        for (place, double, shape) in values {
            let precision = if double { Precision::Double } else { Precision::Single };
            let len = shape.iter().try_fold(1usize, |n, &m| n.checked_mul(m));
            let Some(len) = len.filter(|&n| n > 0 && n < 1 << 31) else {
                return Err(PyValueError::new_err("a value without elements, or of too many"));
            };
            let place = match place.as_str() {
                "rows" => Place::Rows,
                "once" => Place::Once,
                "weight" => Place::Weight,
                "input" => Place::Input { each: false },
                "input of each" => Place::Input { each: true },
                other => return Err(PyValueError::new_err(format!("a value of {other:?}"))),
            };
            match place {
                Place::Weight => weights.push((shape, precision)),
                Place::Input { each } => inputs.push((shape, precision, each)),
                _ => {}
            }
            known.push(Value { place, precision, len });
        }
        let wrong = |what: String| PyValueError::new_err(what);
        let mut made = Vec::new();
        for (name, out, operands, whole, numbers) in steps {
            let (out, operands) = (view(out), operands.into_iter().map(view).collect::<Vec<_>>());
            let sound = |v: &View| v.shape.len() == v.strides.len() && !v.shape.contains(&0);
            if !operands.iter().chain([&out]).all(sound) {
                return Err(wrong(format!("{name} with a shape and strides that do not match")));
            }
            let named = Named { name: &name, whole: &whole, numbers: &numbers };
            let kernel = Kernel::new(&named, &operands, &out).map_err(wrong)?;
            made.push(Step { kernel, operands, out });
        }
        let program = Program::new(known, made, view(result)).map_err(wrong)?;
        Ok(Network { program: Arc::new(program), weights, inputs, spare: Mutex::new(Vec::new()) })
    }

    /// Write the field at `inputs` (t, x, conditions) into `out`, rows one after the other.
    #[pyo3(signature = (out, weights, inputs, threads=None))]
    fn call(
        &self,
        out: &Bound<'_, PyAny>,
        weights: Vec<Bound<'_, PyAny>>,
        inputs: Vec<Bound<'_, PyAny>>,
        threads: Option<usize>,
    ) -> PyResult<()> {
        match self.program.precision() {
            Precision::Single => self.write::<f32>(out, &weights, &inputs, threads),
            Precision::Double => self.write::<f64>(out, &weights, &inputs, threads),
        }
    }

    /// What a row costs, in elements of a pass that only multiplies.
    #[getter]
    fn work(&self) -> usize {
        self.program.work()
    }
}

impl Network {
    fn write<T: Number>(
        &self,
        out: &Bound<'_, PyAny>,
        weights: &[Bound<'_, PyAny>],
        inputs: &[Bound<'_, PyAny>],
        threads: Option<usize>,
    ) -> PyResult<()> {
        let py = out.py();
        let shape: Vec<usize> = out.getattr("shape")?.extract()?;
        let rows = shape.first().copied().unwrap_or(1);
        if shape.iter().skip(1).product::<usize>() != self.program.len() {
            return Err(PyValueError::new_err("the result's rows have another length"));
        }
        let mut out = Borrowed::of(out, &shape, T::PRECISION, READ)?;
        let weights = self.borrow(weights)?;
        if inputs.len() != self.inputs.len() {
            return Err(PyValueError::new_err("another number of inputs than was compiled"));
        }
        let inputs = inputs.iter().zip(&self.inputs).map(|(tensor, (shape, precision, each))| {
            let mut shape = shape.clone();
            if *each {
                shape.insert(0, rows);
            }
            Borrowed::of(tensor, &shape, *precision, READ)
        });
        let inputs = inputs.collect::<PyResult<Vec<_>>>()?;
        // SAFETY: the tensors were just looked at. Until this function returns no Python of this
        // thread runs but signal handlers; other threads keep to torch's own rule. `out` was made by
        // the caller for this call.
        let (weights, inputs, out) =
            unsafe { (lent(&weights), lent(&inputs), out.numbers_mut::<T>().unwrap_or_default()) };
        let mut run = self.run();
        run.prepare(&self.program, &weights, rows);
        let done = self.evaluate(py, &mut run, &weights, &inputs, out, threads);
        self.keep(run);
        done
    }

    pub fn program(&self) -> Arc<Program> {
        Arc::clone(&self.program)
    }

    /// The tensors that hold the weights now, in the order of the program.
    pub fn borrow(&self, tensors: &[Bound<'_, PyAny>]) -> PyResult<Vec<Borrowed>> {
        if tensors.len() != self.weights.len() {
            return Err(PyValueError::new_err("another number of weights than was compiled"));
        }
        let pairs = tensors.iter().zip(&self.weights);
        pairs
            .map(|(tensor, (shape, precision))| Borrowed::of(tensor, shape, *precision, READ))
            .collect()
    }

    fn run(&self) -> Run {
        self.spare.lock().ok().and_then(|mut spare| spare.pop()).unwrap_or_default()
    }

    fn keep(&self, run: Run) {
        if let Ok(mut spare) = self.spare.lock()
            && spare.is_empty()
        {
            spare.push(run);
        }
    }

    /// Evaluate the rows, some at a time where they are many: signals are answered in between.
    fn evaluate<T: Number>(
        &self,
        py: Python<'_>,
        run: &mut Run,
        weights: &[Lent],
        inputs: &[Lent],
        out: &mut [T],
        threads: Option<usize>,
    ) -> PyResult<()> {
        /// Work below which taking the interpreter lock again would cost more than letting it go.
        const RELEASE: usize = 1 << 15;
        /// Work that takes about a twentieth of a second.
        const ANSWER: usize = 1 << 26;
        let program = &self.program;
        let width = program.len();
        let at_once = (ANSWER / program.work()).max(1) * width;
        for (i, out) in out.chunks_mut(at_once).enumerate() {
            if i > 0 {
                py.check_signals()?;
            }
            let first = i * at_once / width;
            let inputs: Vec<Lent> = inputs
                .iter()
                .zip(program.inputs())
                .map(|(lent, value)| match value.place {
                    Place::Input { each: true } => lent.from(first * value.len),
                    _ => *lent,
                })
                .collect();
            let work = out.len() / width * program.work();
            let loan = Loan { weights, inputs: &inputs };
            let mut call = || run.call(program, loan, out, threads.unwrap_or(usize::MAX));
            let done = if work < RELEASE { call() } else { py.detach(call) };
            done.map_err(|what| PyValueError::new_err(format!("{what}. Give indices inside it.")))?;
        }
        Ok(())
    }
}

/// The numbers of tensors.
///
/// # Safety
/// As for [`Borrowed::numbers`].
unsafe fn lent(tensors: &[Borrowed]) -> Vec<Lent<'_>> {
    // SAFETY: the caller's.
    tensors.iter().map(|tensor| unsafe { tensor.numbers() }).collect()
}

/// What a run needs of a native field.
#[derive(FromPyObject)]
pub struct NativeField<'py> {
    source: Source<'py>,
    weights: Vec<Bound<'py, PyAny>>,
    /// What follows t and x.
    conditions: Vec<Bound<'py, PyAny>>,
    threads: Option<usize>,
    /// `reads([tau, ...]) -> [(t, c, a, b), ...]`: at a reading of the run's clock the slope is
    /// `a field(t, c y) + b y`. None where it is field(tau, y).
    reads: Option<Bound<'py, PyAny>>,
}

/// Who knows the field.
#[derive(FromPyObject)]
enum Source<'py> {
    Network(Bound<'py, Network>),
    Kernel(Bound<'py, UserKernel>),
}

/// What a native field is asked at one time.
#[derive(Clone, Copy)]
struct Reading {
    t: f64,
    inner: f64,
    outer: f64,
    own: f64,
}

impl Reading {
    fn plain(t: f64) -> Self {
        Reading { t, inner: 1.0, outer: 1.0, own: 0.0 }
    }
}

/// A native field in a run.
pub struct Native<'py, T> {
    py: Python<'py>,
    caller: Caller<'py>,
    reads: Option<Bound<'py, PyAny>>,
    rows: usize,
    scaled: Vec<T>,
    readings: VecDeque<Reading>,
}

enum Caller<'py> {
    Network(Box<Called<'py>>),
    Kernel(Bound<'py, UserKernel>),
}

/// A network in a run: its weights looked up, its memory at hand.
struct Called<'py> {
    network: Bound<'py, Network>,
    tensors: Vec<Bound<'py, PyAny>>,
    weights: Vec<Borrowed>,
    conditions: Vec<Condition>,
    threads: Option<usize>,
    run: Run,
}

/// An input beside t and x.
struct Condition {
    whole: Borrowed,
    /// Elements in a row, where each row has its own.
    row: Option<usize>,
    /// Those of the rows that are left, where not all are.
    left: Option<Kept>,
}

impl Condition {
    /// # Safety
    /// As for [`Borrowed::numbers`].
    unsafe fn lent(&self) -> Lent<'_> {
        // SAFETY: the caller's.
        self.left.as_ref().map_or_else(|| unsafe { self.whole.numbers() }, Kept::lent)
    }

    /// # Safety
    /// As for [`Borrowed::numbers`].
    unsafe fn select(&mut self, rows: &[usize]) {
        fn picked<T: Copy>(all: &[T], len: usize, rows: &[usize]) -> Vec<T> {
            rows.iter().flat_map(|&r| &all[r * len..(r + 1) * len]).copied().collect()
        }
        let Some(len) = self.row else { return };
        // SAFETY: the caller's.
        self.left = Some(match unsafe { self.whole.numbers() } {
            Lent::Single(all) => Kept::Single(picked(all, len, rows)),
            Lent::Double(all) => Kept::Double(picked(all, len, rows)),
        });
    }
}

impl<'py> Called<'py> {
    fn new<T: Number>(
        network: Bound<'py, Network>,
        field: NativeField<'py>,
        rows: usize,
    ) -> PyResult<Self> {
        let NativeField { weights: tensors, conditions, threads, .. } = field;
        let inner = network.get();
        let weights = inner.borrow(&tensors)?;
        let [_, (_, precision, true), others @ ..] = &inner.inputs[..] else {
            return Err(PyValueError::new_err("not a network of t and x"));
        };
        if (*precision, inner.program.precision()) != (T::PRECISION, T::PRECISION) {
            return Err(PyValueError::new_err("the network is of another precision"));
        }
        let lengths: Vec<usize> = inner.program.inputs().map(|input| input.len).collect();
        if lengths[..2] != [1, inner.program.len()] {
            return Err(PyValueError::new_err("t is no number, or the result is not like x"));
        }
        if conditions.len() != others.len() {
            return Err(PyValueError::new_err("another number of conditions than was compiled"));
        }
        let conditions = conditions.iter().zip(others).map(|(tensor, condition)| {
            let (shape, precision, each) = condition;
            let row = each.then(|| shape.iter().product());
            let rows = each.then_some(rows);
            let shape: Vec<usize> = rows.iter().chain(shape).copied().collect();
            Ok(Condition {
                whole: Borrowed::of(tensor, &shape, *precision, READ)?,
                row,
                left: None,
            })
        });
        let conditions = conditions.collect::<PyResult<Vec<_>>>()?;
        let run = inner.run();
        let mut called = Called { network, tensors, weights, conditions, threads, run };
        called.prepare(rows);
        Ok(called)
    }

    fn look_up(&mut self) -> PyResult<()> {
        self.weights = self.network.get().borrow(&self.tensors)?;
        Ok(())
    }

    /// To be called when the weights were just looked up.
    fn prepare(&mut self, rows: usize) {
        // SAFETY: just looked up, with the interpreter lock held.
        let weights = unsafe { lent(&self.weights) };
        self.run.prepare(&self.network.get().program, &weights, rows);
    }

    /// At one time for all rows, or at one of each, whichever the network was compiled for.
    fn evaluate<T: Number>(&mut self, times: &[f64], x: &[T], out: &mut [T]) -> PyResult<()> {
        let network = self.network.get();
        let (_, precision, each) = &network.inputs[0];
        let rows = out.len() / network.program.len();
        if times.len() != if *each { rows } else { 1 } {
            return Err(PyValueError::new_err("the network takes another number of times"));
        }
        let single: Vec<f32>;
        let t = match precision {
            Precision::Single => {
                single = times.iter().map(|&t| t as f32).collect();
                Lent::Single(&single)
            }
            Precision::Double => Lent::Double(times),
        };
        // SAFETY: looked up when the run began and after every call of Python since; conditions are
        // tensors that the caller made for this run.
        let (weights, others) = unsafe {
            (lent(&self.weights), self.conditions.iter().map(|condition| condition.lent()))
        };
        let inputs: Vec<Lent> = [t, T::lend(x)].into_iter().chain(others).collect();
        network.evaluate(self.network.py(), &mut self.run, &weights, &inputs, out, self.threads)
    }
}

impl Drop for Called<'_> {
    fn drop(&mut self) {
        self.network.get().keep(std::mem::take(&mut self.run));
    }
}

impl<'py, T: Number> Native<'py, T> {
    pub fn new(py: Python<'py>, mut field: NativeField<'py>, rows: usize) -> PyResult<Self> {
        let reads = field.reads.take();
        let caller = match &field.source {
            Source::Network(network) => {
                let network = network.clone();
                Caller::Network(Box::new(Called::new::<T>(network, field, rows)?))
            }
            Source::Kernel(kernel) => Caller::Kernel(kernel.clone()),
        };
        let readings = VecDeque::new();
        Ok(Native { py, caller, reads, rows, scaled: Vec::new(), readings })
    }

    /// The readings of the run's clock at which the next slopes will be asked for.
    pub fn announce(&mut self, times: &[f64]) -> PyResult<()> {
        self.readings = self.read(times)?.into();
        Ok(())
    }

    fn read(&mut self, times: &[f64]) -> PyResult<Vec<Reading>> {
        let Some(reads) = &self.reads else {
            return Ok(times.iter().map(|&t| Reading::plain(t)).collect());
        };
        let read: Vec<(f64, f64, f64, f64)> = reads.call1((times.to_vec(),))?.extract()?;
        if read.len() != times.len() {
            return Err(PyValueError::new_err("`reads` gave another number of times"));
        }
        if let Caller::Network(called) = &mut self.caller {
            called.look_up()?;
        }
        let reading = |(t, inner, outer, own)| Reading { t, inner, outer, own };
        Ok(read.into_iter().map(reading).collect())
    }

    /// From here on states hold these rows of the batch alone.
    pub fn select(&mut self, rows: &[usize]) {
        self.rows = rows.len();
        if let Caller::Network(called) = &mut self.caller {
            // SAFETY: tensors that the caller made for this run; the interpreter lock is held.
            called.conditions.iter_mut().for_each(|condition| unsafe { condition.select(rows) });
        }
    }

    /// The slopes at `y`, each row at a time of its own.
    pub fn slope_at(&mut self, times: &[f64], y: &[T], out: &mut [T]) -> PyResult<()> {
        let readings = self.read(times)?;
        let row = y.len() / readings.len().max(1);
        self.scaled.resize(y.len(), T::ZERO);
        let rows = || readings.iter().zip(y.chunks(row.max(1)));
        for ((now, y), x) in rows().zip(self.scaled.chunks_mut(row.max(1))) {
            combine(x, &[(now.inner, y)]);
        }
        match &mut self.caller {
            Caller::Network(called) => {
                let times: Vec<f64> = readings.iter().map(|now| now.t).collect();
                called.evaluate(&times, &self.scaled, out)?;
            }
            Caller::Kernel(kernel) => {
                let each = self.scaled.chunks(row.max(1)).zip(out.chunks_mut(row.max(1)));
                for (now, (x, out)) in readings.iter().zip(each) {
                    kernel.get().evaluate(self.py, now.t, 1, x, out)?;
                }
            }
        }
        for ((now, y), out) in rows().zip(out.chunks_mut(row.max(1))) {
            if (now.outer, now.own) != (1.0, 0.0) {
                crate::kernels::rescale(out, now.outer, (now.own, y));
            }
        }
        Ok(())
    }

    /// Look the weights up anew after a callback, which may have changed them.
    pub fn renew(&mut self) -> PyResult<()> {
        if let Caller::Network(called) = &mut self.caller {
            called.look_up()?;
            called.prepare(self.rows);
        }
        Ok(())
    }

    /// The slope at `y` and the next announced time.
    pub fn slope(&mut self, y: &[T], out: &mut [T]) -> PyResult<()> {
        let now = self.readings.pop_front().ok_or_else(|| {
            PyValueError::new_err("`reads` gave fewer times than it was asked for")
        })?;
        let x = if now.inner == 1.0 {
            y
        } else {
            self.scaled.resize(y.len(), T::ZERO);
            combine(&mut self.scaled, &[(now.inner, y)]);
            &self.scaled
        };
        match &mut self.caller {
            Caller::Network(called) => called.evaluate(&[now.t], x, out)?,
            Caller::Kernel(kernel) => kernel.get().evaluate(self.py, now.t, self.rows, x, out)?,
        }
        if (now.outer, now.own) != (1.0, 0.0) {
            crate::kernels::rescale(out, now.outer, (now.own, y));
        }
        Ok(())
    }
}
