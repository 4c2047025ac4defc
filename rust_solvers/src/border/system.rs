//! A run as the steppers see it: the callables, the state, and the clock that the field is told.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::network::Number;
use crate::real::Precision;
use crate::system::{Outcome, System};

use super::borrowed::Outputs;
use super::memory::Buffer;
use super::native::{Native, NativeField};
use super::tensor::{Pool, Slope, Torch};

/// From this many elements on, passes over the state run without the interpreter lock; a shorter
/// pass ends before another thread could have taken it.
const RELEASE: usize = 1024;

/// The Python side of a run, shared by all solvers: the callables, the state and where it is saved.
#[derive(FromPyObject)]
pub struct Problem<'py> {
    /// `field(t, x) -> tensor`.
    field: Bound<'py, PyAny>,
    /// The same without Python, where it can be had: then `field` is not called.
    native: Option<NativeField<'py>>,
    /// `diffusion(t, x) -> tensor`, where the noise is multiplied by more than a number.
    diffusion: Option<Bound<'py, PyAny>>,
    /// `correction(t, x) -> tensor`, the diffusion's derivative along itself.
    correction: Option<Bound<'py, PyAny>>,
    /// Columns of the diffusion, where it is a matrix a row.
    pub channels: Option<usize>,
    /// Elements in a row of the state.
    pub row: usize,
    /// Times at which to save, in order, and the tensor that takes the states.
    pub saves: Vec<f64>,
    xs: Bound<'py, PyAny>,
    /// `times([tau, ...]) -> [t, ...]`, from the run's clock to what the field is told; None where
    /// they are one.
    times: Option<Bound<'py, PyAny>>,
    /// The dtype in which the field is told the time.
    time: Bound<'py, PyAny>,
    /// Any kind of tensor made a contiguous one of torch's own class.
    plain: Bound<'py, PyAny>,
    /// `cut(rows) -> field`, the field of some of the rows; None where all always go together.
    cut: Option<Bound<'py, PyAny>>,
    /// `observer(t, x, nfe)`, called after each accepted step; a true answer stops the run there.
    observer: Option<Bound<'py, PyAny>>,
}

/// The tensor by which the field is told the time, or that of each row: one for the whole run, unless
/// somebody keeps it.
struct Clock<'py> {
    torch: Torch<'py>,
    now: Option<Now>,
}

enum Now {
    Single(Buffer<f32>),
    Double(Buffer<f64>),
}

impl<'py> Clock<'py> {
    /// One time, or one for each of `rows`.
    fn new(problem: &Problem<'py>, rows: Option<usize>) -> PyResult<Self> {
        let shape = PyTuple::new(problem.time.py(), rows)?;
        let torch = Torch::of(&problem.time, shape, rows.unwrap_or(1), problem.plain.clone())?;
        let now = Some(match torch.precision {
            Precision::Single => Now::Single(torch.buffer()?),
            Precision::Double => Now::Double(torch.buffer()?),
        });
        Ok(Clock { torch, now })
    }

    fn set(&mut self, times: &[f64]) -> PyResult<()> {
        self.now = match self.now.take() {
            Some(Now::Single(buffer)) => {
                let mut buffer = buffer.renewed(&self.torch)?;
                buffer.as_mut().iter_mut().zip(times).for_each(|(now, &t)| *now = t as f32);
                Some(Now::Single(buffer))
            }
            Some(Now::Double(buffer)) => {
                let mut buffer = buffer.renewed(&self.torch)?;
                buffer.as_mut().copy_from_slice(times);
                Some(Now::Double(buffer))
            }
            None => None,
        };
        Ok(())
    }

    fn show(&mut self) -> PyResult<Option<Bound<'py, PyAny>>> {
        let shown = self.now.as_mut().map(|now| match now {
            Now::Single(buffer) => buffer.show(&self.torch),
            Now::Double(buffer) => buffer.show(&self.torch),
        });
        shown.transpose()
    }
}

pub struct PySystem<'py, T> {
    py: Python<'py>,
    /// What states look like now, and what the whole batch does.
    pub torch: Torch<'py>,
    pub batch: Torch<'py>,
    problem: Problem<'py>,
    outputs: Outputs<'py>,
    times: VecDeque<f64>,
    time: Clock<'py>,
    nfe: u64,
    field_time: Duration,
    pool: Pool<T>,
    native: Option<Native<'py, T>>,
    /// What the diffusion's tensors are like, where they are a matrix a row.
    matrix: Option<Torch<'py>>,
}

impl<'py, T: Number> PySystem<'py, T> {
    pub fn new((mut problem, torch, y): Posed<'py>) -> PyResult<(Self, Buffer<T>)> {
        let rows = torch.len / problem.row.max(1);
        let native =
            problem.native.take().map(|field| Native::new(y.py(), field, rows)).transpose()?;
        let matrix = problem.channels.map(|m| torch.with_columns(m)).transpose()?;
        let outputs = Outputs::new(&torch, problem.xs.clone(), problem.saves.len())?;
        let py = y.py();
        let batch = Torch::like(&y, problem.plain.clone())?;
        let y = Buffer::of(&torch, &y)?;
        let time = Clock::new(&problem, None)?;
        let system = PySystem {
            py,
            torch,
            batch,
            problem,
            outputs,
            times: VecDeque::new(),
            time,
            nfe: 0,
            field_time: Duration::ZERO,
            pool: Pool::default(),
            native,
            matrix,
        };
        Ok((system, y))
    }

    /// Call a Python function of (t, x) and take its result, a matrix a row if `matrix`; the state is
    /// ours again afterwards.
    fn call(
        &mut self,
        function: &Bound<'py, PyAny>,
        y: &mut Buffer<T>,
        matrix: bool,
        who: &str,
    ) -> PyResult<Slope<T>> {
        self.py.check_signals()?;
        let arguments = (self.time.show()?, y.show(&self.torch)?);
        let start = Instant::now();
        let result = function.call1(arguments);
        self.field_time += start.elapsed();
        let like = self.matrix.as_ref().filter(|_| matrix).unwrap_or(&self.torch);
        let slope = like.take(result?, &self.pool, who)?;
        y.reclaim(&self.torch, who)?;
        Ok(slope)
    }

    /// What the field is told when the run's clock shows `times`.
    fn told(&self, times: &[f64]) -> PyResult<Vec<f64>> {
        match &self.problem.times {
            Some(read) => read.call1((times.to_vec(),))?.extract(),
            None => Ok(times.to_vec()),
        }
    }

    pub fn report(self, mut outcome: Outcome<Buffer<T>>) -> PyResult<Bound<'py, PyDict>> {
        let py = self.py;
        let report = PyDict::new(py);
        report.set_item(intern!(py, "y"), outcome.y.show(&self.batch)?)?;
        report.set_item(intern!(py, "status"), outcome.status.name())?;
        report.set_item(intern!(py, "t"), outcome.t)?;
        report.set_item(intern!(py, "accepted"), outcome.accepted)?;
        report.set_item(intern!(py, "rejected"), outcome.rejected)?;
        report.set_item(intern!(py, "step"), outcome.step)?;
        report.set_item(intern!(py, "rows"), outcome.rows)?;
        report.set_item(intern!(py, "nfe"), self.nfe)?;
        report.set_item(intern!(py, "field_s"), self.field_time.as_secs_f64())?;
        Ok(report)
    }
}

impl<'py, T: Number> System<T> for PySystem<'py, T> {
    type Buffer = Buffer<T>;
    type Slope = Slope<T>;
    type Error = PyErr;

    fn buffer(&mut self) -> PyResult<Buffer<T>> {
        self.torch.buffer()
    }

    fn announce(&mut self, times: &[f64]) -> PyResult<()> {
        if self.native.is_none() || self.problem.diffusion.is_some() {
            self.times = self.told(times)?.into();
        }
        self.native.as_mut().map_or(Ok(()), |native| native.announce(times))
    }

    fn slope(&mut self, y: &mut Buffer<T>) -> PyResult<Slope<T>> {
        if let Some(native) = &mut self.native {
            self.py.check_signals()?;
            if let Some(now) = self.times.pop_front() {
                self.time.set(&[now])?; // for the diffusion
            }
            let start = Instant::now();
            self.nfe += 1;
            let slope =
                Slope::written(&self.pool, self.torch.len, |out| native.slope(y.as_ref(), out));
            self.field_time += start.elapsed();
            return slope;
        }
        let now = self.times.pop_front().ok_or_else(|| {
            PyValueError::new_err("`times` gave fewer times than it was asked for")
        })?;
        self.time.set(&[now])?;
        self.nfe += 1;
        let field = self.problem.field.clone();
        self.call(&field, y, false, "the field")
    }

    fn diffusion(&mut self, y: &mut Buffer<T>) -> PyResult<Option<Slope<T>>> {
        let Some(diffusion) = self.problem.diffusion.clone() else {
            return Ok(None);
        };
        self.call(&diffusion, y, false, "the diffusion").map(Some)
    }

    fn diffusion_at(&mut self, t: f64, correction: bool, y: &mut Buffer<T>) -> PyResult<Slope<T>> {
        let problem = &self.problem;
        let function = if correction { &problem.correction } else { &problem.diffusion };
        let Some(function) = function.clone() else {
            return Err(PyValueError::new_err("a method asked for a diffusion that there is not"));
        };
        self.time.set(&[t])?;
        self.call(&function, y, !correction, "the diffusion")
    }

    fn compute<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        if self.torch.len < RELEASE { work() } else { self.py.detach(work) }
    }

    fn save<R>(&mut self, index: usize, write: impl FnOnce(&mut [T]) -> R) -> PyResult<R> {
        Ok(write(self.outputs.place(&self.torch, index)?))
    }

    fn accepted(&mut self, t: f64, y: &mut Buffer<T>) -> PyResult<bool> {
        let Some(observer) = &self.problem.observer else {
            return Ok(false);
        };
        let stop = observer.call1((t, y.show(&self.torch)?, self.nfe))?.is_truthy()?;
        y.reclaim(&self.torch, "the callback")?;
        self.native.as_mut().map_or(Ok(()), Native::renew)?;
        Ok(stop)
    }
}

impl<'py, T: Number> crate::system::Rows<T> for PySystem<'py, T> {
    fn select(&mut self, rows: &[usize]) -> PyResult<()> {
        self.torch = self.batch.with_rows(rows.len())?;
        if let Some(native) = &mut self.native {
            native.select(rows);
            return Ok(());
        }
        self.time = Clock::new(&self.problem, Some(rows.len()))?;
        if let Some(cut) = &self.problem.cut {
            self.problem.field = cut.call1((rows.to_vec(),))?;
        }
        Ok(())
    }

    fn slope_at(&mut self, times: &[f64], y: &mut Buffer<T>) -> PyResult<Slope<T>> {
        if let Some(native) = &mut self.native {
            self.py.check_signals()?;
            let start = Instant::now();
            self.nfe += 1;
            let (pool, len, y) = (&self.pool, self.torch.len, y.as_ref());
            let slope = Slope::written(pool, len, |out| native.slope_at(times, y, out));
            self.field_time += start.elapsed();
            return slope;
        }
        let told = self.told(times)?;
        if told.len() != times.len() {
            return Err(PyValueError::new_err("`times` gave another number of times"));
        }
        self.time.set(&told)?;
        self.nfe += 1;
        let field = self.problem.field.clone();
        self.call(&field, y, false, "the field")
    }

    fn save_row<R>(
        &mut self,
        index: usize,
        row: usize,
        write: impl FnOnce(&mut [T]) -> R,
    ) -> PyResult<R> {
        let len = self.problem.row;
        Ok(write(&mut self.outputs.place(&self.batch, index)?[row * len..(row + 1) * len]))
    }

    fn watched(&self) -> bool {
        self.problem.observer.is_some()
    }

    fn moved(&mut self, times: &[f64], y: &mut Buffer<T>) -> PyResult<Vec<usize>> {
        let Some(observer) = &self.problem.observer else {
            return Ok(Vec::new());
        };
        let stopped = observer.call1((times.to_vec(), y.show(&self.batch)?, self.nfe))?;
        y.reclaim(&self.batch, "the callback")?;
        self.native.as_mut().map_or(Ok(()), Native::renew)?;
        if stopped.is_none() { Ok(Vec::new()) } else { stopped.extract() }
    }
}

/// A problem, what its tensors are like, and its state.
pub type Posed<'py> = (Problem<'py>, Torch<'py>, Bound<'py, PyAny>);

/// Take in a problem, which gives up its state: `problem.y` is None afterwards.
pub fn pose<'py>(problem: &Bound<'py, PyAny>) -> PyResult<Posed<'py>> {
    let y = problem.getattr(intern!(problem.py(), "y"))?;
    problem.setattr(intern!(problem.py(), "y"), problem.py().None())?;
    let problem: Problem = problem.extract()?;
    let torch = Torch::like(&y, problem.plain.clone())?;
    // A state without elements has rows of any length.
    if torch.len > 0 && (problem.row == 0 || !torch.len.is_multiple_of(problem.row)) {
        return Err(PyValueError::new_err("a state that is not whole rows"));
    }
    Ok((problem, torch, y))
}

/// Call `$run` with the element type that the state has.
macro_rules! by_dtype {
    ($posed:expr, $run:ident, $($argument:expr),*) => {{
        let posed = $posed;
        match posed.1.precision {
            Precision::Single => $run::<f32>(posed, $($argument),*),
            Precision::Double => $run::<f64>(posed, $($argument),*),
        }
    }};
}

pub(super) use by_dtype;
