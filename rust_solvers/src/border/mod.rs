//! The one place where Rust and Python meet.

mod kernel;
mod native;
mod steps;
mod tensor;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::brownian::{Path, Root, Value};
use crate::kernels::{MAX_TERMS, Norm, Tolerance};
use crate::network::Number;
use crate::philox::{Rows, fill_normals, philox, stream_keys};
use crate::real::Precision;
use crate::recurrence::{Draw, Evaluation, Operand, Programme, Source, Stage, integrate};
use crate::rows;
use crate::runge_kutta::{Adaptive, Run, Steps};
use crate::stochastic as sde;
use crate::stochastic::{Ask, Basis, Layout, Scheme, Term};
use crate::system::{Outcome, Rows as _, System};
use crate::tableau::Tableau;
use crate::threads::share;
use native::{Native, NativeField};
pub(crate) use steps::decode;
use tensor::{Buffer, Outputs, Pool, Slope, Torch, writable};

/// From this many elements on, passes over the state run without the interpreter lock; a shorter
/// pass ends before another thread could have taken it.
const RELEASE: usize = 1024;

/// The Python side of a run, shared by all solvers: the callables, the state and where it is saved.
#[derive(FromPyObject)]
struct Problem<'py> {
    /// `field(t, x) -> tensor`.
    field: Bound<'py, PyAny>,
    /// The same without Python, where it can be had: then `field` is not called.
    native: Option<NativeField<'py>>,
    /// `diffusion(t, x) -> tensor`, where the noise is multiplied by more than a number.
    diffusion: Option<Bound<'py, PyAny>>,
    /// `correction(t, x) -> tensor`, the diffusion's derivative along itself.
    correction: Option<Bound<'py, PyAny>>,
    /// Columns of the diffusion, where it is a matrix a row.
    channels: Option<usize>,
    /// Elements in a row of the state.
    row: usize,
    /// Times at which to save, in order, and the tensor that takes the states.
    saves: Vec<f64>,
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

    fn tensor(&self) -> Option<&Py<PyAny>> {
        self.now.as_ref().map(|now| match now {
            Now::Single(buffer) => &buffer.tensor,
            Now::Double(buffer) => &buffer.tensor,
        })
    }
}

struct PySystem<'py, T> {
    py: Python<'py>,
    /// What states look like now, and what the whole batch does.
    torch: Torch<'py>,
    batch: Torch<'py>,
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
    fn new((mut problem, torch, y): Posed<'py>) -> PyResult<(Self, Buffer<T>)> {
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

    /// Call a Python function of (t, x) and take its result; the state is ours again afterwards.
    fn call(&mut self, function: &Bound<'py, PyAny>, y: &mut Buffer<T>) -> PyResult<Slope<T>> {
        self.py.check_signals()?;
        let start = Instant::now();
        let result = function.call1((self.time.tensor(), &y.tensor));
        self.field_time += start.elapsed();
        let slope = self.torch.take(result?, &self.pool)?;
        y.reclaim(&self.torch, "the field")?;
        Ok(slope)
    }

    /// What the field is told when the run's clock shows `times`.
    fn told(&self, times: &[f64]) -> PyResult<Vec<f64>> {
        match &self.problem.times {
            Some(read) => read.call1((times.to_vec(),))?.extract(),
            None => Ok(times.to_vec()),
        }
    }

    fn report(self, outcome: Outcome<Buffer<T>>) -> PyResult<Bound<'py, PyDict>> {
        let report = PyDict::new(self.py);
        report.set_item("y", outcome.y.tensor)?;
        report.set_item("status", outcome.status.name())?;
        report.set_item("t", outcome.t)?;
        report.set_item("accepted", outcome.accepted)?;
        report.set_item("rejected", outcome.rejected)?;
        report.set_item("step", outcome.step)?;
        report.set_item("rows", outcome.rows)?;
        report.set_item("nfe", self.nfe)?;
        report.set_item("field_s", self.field_time.as_secs_f64())?;
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
        if let Some(native) = &mut self.native {
            return native.announce(times);
        }
        self.times = self.told(times)?.into();
        Ok(())
    }

    fn slope(&mut self, y: &mut Buffer<T>) -> PyResult<Slope<T>> {
        if let Some(native) = &mut self.native {
            self.py.check_signals()?;
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
        self.call(&field, y)
    }

    fn diffusion(&mut self, y: &mut Buffer<T>) -> PyResult<Option<Slope<T>>> {
        let Some(diffusion) = self.problem.diffusion.clone() else {
            return Ok(None);
        };
        self.call(&diffusion, y).map(Some)
    }

    fn diffusion_at(&mut self, t: f64, correction: bool, y: &mut Buffer<T>) -> PyResult<Slope<T>> {
        let problem = &self.problem;
        let function = if correction { &problem.correction } else { &problem.diffusion };
        let Some(function) = function.clone() else {
            return Err(PyValueError::new_err("a method asked for a diffusion that there is not"));
        };
        self.time.set(&[t])?;
        self.py.check_signals()?;
        let start = Instant::now();
        let result = function.call1((self.time.tensor(), &y.tensor));
        self.field_time += start.elapsed();
        let slope = match &self.matrix {
            Some(matrix) if !correction => matrix.take(result?, &self.pool)?,
            _ => self.torch.take(result?, &self.pool)?,
        };
        y.reclaim(&self.torch, "the diffusion")?;
        Ok(slope)
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
        let stop = observer.call1((t, &y.tensor, self.nfe))?.is_truthy()?;
        y.reclaim(&self.torch, "the callback")?;
        self.native.as_mut().map_or(Ok(()), Native::renew)?;
        Ok(stop)
    }
}

impl<'py, T: Number> crate::system::Rows<T> for PySystem<'py, T> {
    fn select(&mut self, rows: &[usize]) -> PyResult<()> {
        self.torch = self.batch.with_rows(rows.len())?;
        self.time = Clock::new(&self.problem, Some(rows.len()))?;
        if let Some(cut) = &self.problem.cut {
            self.problem.field = cut.call1((rows.to_vec(),))?;
        }
        Ok(())
    }

    fn slope_at(&mut self, times: &[f64], y: &mut Buffer<T>) -> PyResult<Slope<T>> {
        let told = self.told(times)?;
        if told.len() != times.len() {
            return Err(PyValueError::new_err("`times` gave another number of times"));
        }
        self.time.set(&told)?;
        self.nfe += 1;
        let field = self.problem.field.clone();
        self.call(&field, y)
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
        let stopped = observer.call1((times.to_vec(), &y.tensor, self.nfe))?;
        y.reclaim(&self.batch, "the callback")?;
        if stopped.is_none() { Ok(Vec::new()) } else { stopped.extract() }
    }
}

/// A tableau as Python states it: lists of numbers, the extra stages after the others.
#[derive(FromPyObject)]
struct TableauNumbers {
    a: Vec<Vec<f64>>,
    b: Vec<f64>,
    c: Vec<f64>,
    error: Vec<Vec<f64>>,
    dense: Vec<Vec<f64>>,
    error_order: f64,
}

impl TableauNumbers {
    fn checked(self) -> PyResult<Tableau> {
        let TableauNumbers { a, b, c, error, dense, error_order } = self;
        let (s, all) = (b.len(), a.len());
        let wrong = |what: &str| Err(PyValueError::new_err(format!("{what}, of {s} stages")));
        if s == 0 || all < s || c.len() != all {
            return wrong("not a tableau");
        }
        if !a.iter().enumerate().all(|(i, row)| row.len() <= i) {
            return wrong("not an explicit tableau");
        }
        if error.len() > 2 || error.iter().any(|row| row.len() != s) {
            return wrong("error weights that are not one a stage");
        }
        if dense.len() > 4 || dense.iter().any(|row| row.len() != all) {
            return wrong("dense weights that are not one a stage");
        }
        let tableau = Tableau { a, b, c, error, dense, order: error_order };
        if tableau.terms() > MAX_TERMS || tableau.error_terms() > 8 {
            return wrong("a tableau with too many weights in a row");
        }
        if all > s && !tableau.fsal() {
            return wrong("extra stages without the slope at the end");
        }
        Ok(tableau)
    }
}

/// Ends, tolerances and control of an adaptive run.
#[derive(FromPyObject)]
struct AdaptiveNumbers {
    from_: f64,
    to: f64,
    rtol: f64,
    atol: f64,
    first_step: Option<f64>,
    max_steps: u64,
    gains: [f64; 3],
    norm: String,
}

impl AdaptiveNumbers {
    fn checked(self, tableau: &Tableau, row: usize) -> PyResult<Adaptive> {
        if tableau.error.is_empty() || !tableau.fsal() {
            return Err(PyValueError::new_err("adaptive steps need an embedded FSAL method"));
        }
        checked_grid(vec![self.from_, self.to])?;
        let norm = match self.norm.as_str() {
            "rms" => Norm::Rms,
            "max" => Norm::Max,
            "rows" => Norm::Rows(row.max(1)),
            other => return Err(PyValueError::new_err(format!("a norm called {other}"))),
        };
        Ok(Adaptive {
            from: self.from_,
            to: self.to,
            tolerance: Tolerance { rtol: self.rtol, atol: self.atol },
            first_step: self.first_step,
            max_steps: self.max_steps,
            gains: self.gains,
            norm,
        })
    }
}

/// A grid that a stepper can walk: two times or more, all finite.
fn checked_grid(grid: Vec<f64>) -> PyResult<Vec<f64>> {
    if grid.len() < 2 || grid.iter().any(|t| !t.is_finite()) {
        return Err(PyValueError::new_err("a grid needs two finite times or more"));
    }
    Ok(grid)
}

/// A problem, what its tensors are like, and its state.
type Posed<'py> = (Problem<'py>, Torch<'py>, Bound<'py, PyAny>);

/// Take in a problem, which gives up its state: `problem.y` is None afterwards.
fn pose<'py>(problem: &Bound<'py, PyAny>) -> PyResult<Posed<'py>> {
    let y = problem.getattr(intern!(problem.py(), "y"))?;
    problem.setattr(intern!(problem.py(), "y"), problem.py().None())?;
    let problem: Problem = problem.extract()?;
    let torch = Torch::like(&y, problem.plain.clone())?;
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

/// Integrate `problem` by an explicit Runge-Kutta method on `grid`, or adaptively.
#[pyfunction]
#[pyo3(signature = (problem, tableau, grid=None, adaptive=None))]
fn runge_kutta<'py>(
    problem: Bound<'py, PyAny>,
    tableau: TableauNumbers,
    grid: Option<Vec<f64>>,
    adaptive: Option<AdaptiveNumbers>,
) -> PyResult<Bound<'py, PyDict>> {
    let tableau = tableau.checked()?;
    let posed = pose(&problem)?;
    let steps = match (grid, adaptive) {
        (Some(grid), None) => Steps::Fixed(checked_grid(grid)?),
        (None, Some(adaptive)) => Steps::Adaptive(adaptive.checked(&tableau, posed.0.row)?),
        _ => return Err(PyValueError::new_err("either a grid or adaptive steps")),
    };
    fn run<'py, T: Number>(
        posed: Posed<'py>,
        tableau: &Tableau,
        steps: &Steps,
    ) -> PyResult<Bound<'py, PyDict>> {
        let (row, saves) = (posed.0.row, posed.0.saves.clone());
        let (mut system, y) = PySystem::<T>::new(posed)?;
        let outcome = Run::new(&mut system, tableau, row, &saves, y)?.integrate(steps)?;
        system.report(outcome)
    }
    by_dtype!(posed, run, &tableau, &steps)
}

/// Integrate each row of `problem` by an explicit Runge-Kutta method with steps of its own.
#[pyfunction]
fn runge_kutta_rows<'py>(
    problem: Bound<'py, PyAny>,
    tableau: TableauNumbers,
    adaptive: AdaptiveNumbers,
) -> PyResult<Bound<'py, PyDict>> {
    let tableau = tableau.checked()?;
    let posed = pose(&problem)?;
    let goal = adaptive.checked(&tableau, posed.0.row)?;
    fn run<'py, T: Number>(
        posed: Posed<'py>,
        tableau: &Tableau,
        goal: &Adaptive,
    ) -> PyResult<Bound<'py, PyDict>> {
        let (row, saves) = (posed.0.row, posed.0.saves.clone());
        let (mut system, y) = PySystem::<T>::new(posed)?;
        let count = system.batch.len.checked_div(row).unwrap_or(0);
        system.select(&(0..count).collect::<Vec<_>>())?;
        let run = rows::Run::new(&mut system, tableau, goal, row, &saves, y)?;
        let (outcome, ended) = run.integrate()?;
        let report = system.report(outcome)?;
        let each = PyDict::new(report.py());
        each.set_item("t", ended.iter().map(|row| row.t).collect::<Vec<_>>())?;
        each.set_item("accepted", ended.iter().map(|row| row.accepted).collect::<Vec<_>>())?;
        each.set_item("rejected", ended.iter().map(|row| row.rejected).collect::<Vec<_>>())?;
        each.set_item("nfe", ended.iter().map(|row| row.nfe).collect::<Vec<_>>())?;
        each.set_item("status", ended.iter().map(|row| row.status.name()).collect::<Vec<_>>())?;
        report.set_item("each", each)?;
        Ok(report)
    }
    by_dtype!(posed, run, &tableau, &goal)
}

/// What keys the noise of a run.
#[derive(FromPyObject)]
struct NoiseNumbers {
    seed: u64,
    stream: u32,
    first_row: u32,
    span: (f64, f64),
    depth: u32,
}

impl NoiseNumbers {
    /// Where the normals of a run come from; `fresh` is the stream of those beside the path.
    fn source(&self, fresh: u32, row: usize, elements: usize) -> PyResult<Source> {
        Ok(Source {
            path: self.path(row, elements, &[])?,
            rows: Rows { len: row, first: self.first_row },
            key: stream_keys(self.seed, fresh)[0],
        })
    }

    /// The path of `elements` in rows of length `row`; its tree has to hold the `times`.
    fn path(&self, row: usize, elements: usize, times: &[f64]) -> PyResult<Path> {
        let (from, to) = self.span;
        let within = times.iter().all(|t| (from..=to).contains(t));
        if !within || from >= to || !(to - from).is_finite() || !(1..=48).contains(&self.depth) {
            return Err(PyValueError::new_err("a time outside the span of the Brownian tree"));
        }
        Ok(Path {
            root: Root { from, to, depth: self.depth },
            rows: Rows { len: row, first: self.first_row },
            keys: stream_keys(self.seed, self.stream),
            elements,
        })
    }
}

/// Fill a tensor of rows of length `row` with the normals of a node.
#[pyfunction]
fn normals(
    mut out: Bound<'_, PyAny>,
    row: usize,
    first_row: u32,
    key: [u32; 2],
    node: u64,
) -> PyResult<()> {
    let py = out.py();
    let values = writable::<f32>(&mut out)?;
    let rows = Rows { len: row, first: first_row };
    py.detach(|| {
        share(values, NORMALS, 8, |from, out| fill_normals(out, from, rows, key, node));
    });
    Ok(())
}

/// Normals that one thread makes at least.
const NORMALS: usize = 1024;

/// Fill `w` and, unless it is empty, `integral` with the path at each of the `times`.
#[pyfunction]
fn brownian(
    mut w: Bound<'_, PyAny>,
    mut integral: Bound<'_, PyAny>,
    times: Vec<f64>,
    row: usize,
    noise: NoiseNumbers,
) -> PyResult<()> {
    let py = w.py();
    let (into, area) = (writable::<f64>(&mut w)?, writable::<f64>(&mut integral)?);
    if !into.len().is_multiple_of(times.len().max(1)) || ![0, into.len()].contains(&area.len()) {
        return Err(PyValueError::new_err("w and integral do not hold one state a time"));
    }
    let elements = into.len() / times.len().max(1);
    let path = noise.path(row, elements, &times)?;
    if elements == 0 {
        return Ok(());
    }
    py.detach(|| {
        let mut integrals = area.chunks_mut(elements);
        let values = into.chunks_mut(elements);
        let mut values: Vec<Value> =
            values.map(|w| Value { w, integral: integrals.next().unwrap_or_default() }).collect();
        path.at(&times, &mut values, |_| {});
    });
    Ok(())
}

/// A stage as Python states it; see [`recurrence::Stage`].
#[derive(FromPyObject)]
struct StageNumbers {
    /// (time, p, q, slot)
    evaluation: Option<(f64, f64, f64, usize)>,
    start: f64,
    here: f64,
    /// (slot, coefficient), the one just filled last.
    slopes: Vec<(usize, f64)>,
    /// (size, from, to, area), or (size, number, None, 0) for a fresh normal.
    noise: Vec<(f64, f64, Option<f64>, f64)>,
    end: Option<f64>,
    saves: usize,
}

/// A programme as Python states it.
#[derive(FromPyObject)]
struct ProgrammeNumbers {
    /// The stream of fresh normals.
    fresh: u32,
    start: f64,
    saves: usize,
    slots: usize,
    stages: Vec<StageNumbers>,
}

impl ProgrammeNumbers {
    /// The programme, whose slots exist and are filled before they are read, whose combinations have
    /// as many operands as there is room for, and whose noise lies on the tree.
    fn checked(self, noise: Option<&NoiseNumbers>, saves: usize) -> PyResult<Programme> {
        let wrong = |what: &str| PyValueError::new_err(format!("a stage {what}"));
        let mut filled = vec![false; self.slots];
        let mut stages = Vec::with_capacity(self.stages.len());
        let mut saved = self.saves;
        for stage in self.stages {
            let evaluation = match stage.evaluation {
                Some((time, p, q, slot)) if slot < self.slots => {
                    filled[slot] = true;
                    Some(Evaluation { time, p, q, slot })
                }
                Some(_) => return Err(wrong("keeps a slope in a slot that does not exist")),
                None => None,
            };
            let mut terms = Vec::with_capacity(stage.slopes.len() + 2);
            for (c, operand) in [(stage.start, Operand::Start), (stage.here, Operand::Here)] {
                if c != 0.0 {
                    terms.push((c, operand));
                }
            }
            for (slot, c) in stage.slopes {
                if !filled.get(slot).copied().unwrap_or(false) {
                    return Err(wrong("uses a slope before there is one"));
                }
                terms.push((c, Operand::Slope(slot)));
            }
            if terms.is_empty() {
                terms.push((0.0, Operand::Here));
            }
            if terms.len() > MAX_TERMS {
                return Err(wrong("adds up more than there is room for"));
            }
            let mut draws = Vec::with_capacity(stage.noise.len());
            for (size, from, to, area) in stage.noise {
                let (low, high) = noise.ok_or_else(|| wrong("has noise without a key"))?.span;
                let within = |t: f64| (low..=high).contains(&t);
                draws.push(match to {
                    Some(to) if from == to || !within(from) || !within(to) => {
                        return Err(wrong("leaves the span of the Brownian tree"));
                    }
                    Some(to) => Draw::Increment { from, to, size, area },
                    None => Draw::Fresh { number: from as u64, size },
                });
            }
            saved += stage.saves;
            let (end, saves) = (stage.end, stage.saves);
            stages.push(Stage { evaluation, terms, noise: draws, end, saves });
        }
        if stages.last().is_none_or(|stage| stage.end.is_none()) || saved != saves {
            return Err(PyValueError::new_err("a programme does not end, or saves too much"));
        }
        Ok(Programme { start: self.start, saves: self.saves, slots: self.slots, stages })
    }
}

/// Run `programme` on `problem`; see `interp.solvers.programme`.
#[pyfunction]
#[pyo3(signature = (problem, programme, noise=None))]
fn recurrence<'py>(
    problem: Bound<'py, PyAny>,
    programme: ProgrammeNumbers,
    noise: Option<NoiseNumbers>,
) -> PyResult<Bound<'py, PyDict>> {
    fn run<'py, T: Number>(
        posed: Posed<'py>,
        programme: &Programme,
        noise: Option<&NoiseNumbers>,
        fresh: u32,
    ) -> PyResult<Bound<'py, PyDict>> {
        let row = posed.0.row;
        let (mut system, y) = PySystem::<T>::new(posed)?;
        let source = noise.map(|noise| noise.source(fresh, row, system.torch.len)).transpose()?;
        let outcome = integrate(&mut system, programme, source, row, y)?;
        system.report(outcome)
    }
    let posed = pose(&problem)?;
    let fresh = programme.fresh;
    let programme = programme.checked(noise.as_ref(), posed.0.saves.len())?;
    by_dtype!(posed, run, &programme, noise.as_ref(), fresh)
}

/// (slope, basis, weight) of each term of a combination.
type TermNumbers = Vec<(usize, String, f64)>;
/// c, what is asked for, and where.
type AskNumbers = (f64, String, TermNumbers);

/// A stochastic scheme as Python states it.
#[derive(FromPyObject)]
struct SchemeNumbers {
    stages: Vec<AskNumbers>,
    end: TermNumbers,
    error: TermNumbers,
    ito: bool,
    area: bool,
}

impl SchemeNumbers {
    fn checked(self) -> PyResult<Scheme> {
        let wrong =
            |what: &str, name: &str| PyValueError::new_err(format!("a {what} called {name}"));
        let basis = |name: &str| match name {
            "h" => Ok(Basis::Step),
            "W" => Ok(Basis::W),
            "sqrt" => Ok(Basis::Root),
            "I10" => Ok(Basis::Area),
            "I11" => Ok(Basis::Double),
            "I11/sqrt" => Ok(Basis::DoubleOverRoot),
            "I111" => Ok(Basis::Triple),
            other => Err(wrong("basis", other)),
        };
        let terms = |terms: TermNumbers, known: usize| {
            let term = |(slope, name, weight): (usize, String, f64)| {
                let late = PyValueError::new_err("a slope that is not there yet");
                let basis = basis(&name)?;
                if slope < known { Ok(Term { slope, basis, weight }) } else { Err(late) }
            };
            terms.into_iter().map(term).collect::<PyResult<Vec<Term>>>()
        };
        let count = self.stages.len();
        let stage = |(i, (c, name, given)): (usize, AskNumbers)| {
            let ask = match name.as_str() {
                "drift" => Ask::Drift,
                "diffusion" => Ask::Diffusion,
                "correction" => Ask::Correction,
                other => return Err(wrong("function", other)),
            };
            Ok(sde::Stage { c, ask, terms: terms(given, i)? })
        };
        let stages = self.stages.into_iter().enumerate().map(stage).collect::<PyResult<_>>()?;
        let (end, error) = (terms(self.end, count)?, terms(self.error, count)?);
        Ok(Scheme { stages, end, error, ito: self.ito, area: self.area })
    }
}

/// Integrate `problem` by a stochastic scheme on `grid`, or adaptively.
#[pyfunction]
#[pyo3(signature = (problem, scheme, shared, noise, grid=None, adaptive=None))]
fn stochastic<'py>(
    problem: Bound<'py, PyAny>,
    scheme: SchemeNumbers,
    shared: bool,
    noise: NoiseNumbers,
    grid: Option<Vec<f64>>,
    adaptive: Option<AdaptiveNumbers>,
) -> PyResult<Bound<'py, PyDict>> {
    let scheme = scheme.checked()?;
    let (grid, goal) = match (grid, adaptive) {
        (Some(grid), None) => (checked_grid(grid)?, None),
        (None, Some(a)) if !scheme.error.is_empty() => (
            checked_grid(vec![a.from_, a.to])?,
            Some(sde::Adaptive {
                to: a.to,
                tolerance: Tolerance { rtol: a.rtol, atol: a.atol },
                first_step: a.first_step.unwrap_or((a.to - a.from_).abs() / 100.0),
                max_steps: a.max_steps,
                gains: a.gains,
                order: 1.0 / a.gains[0],
            }),
        ),
        _ => return Err(PyValueError::new_err("either a grid or adaptive steps")),
    };
    fn run<'py, T: Number>(
        posed: Posed<'py>,
        scheme: &Scheme,
        shared: bool,
        noise: &NoiseNumbers,
        (grid, goal): (&[f64], Option<&sde::Adaptive>),
    ) -> PyResult<Bound<'py, PyDict>> {
        let (row, saves) = (posed.0.row, posed.0.saves.clone());
        let layout = match (posed.0.channels, shared) {
            (Some(m), _) => Layout::Matrix(m),
            (None, true) => Layout::Scalar,
            (None, false) => Layout::Diagonal,
        };
        let (mut system, y) = PySystem::<T>::new(posed)?;
        let channels = layout.channels(row);
        let path = noise.path(channels, system.torch.len / row.max(1) * channels, grid)?;
        let run = sde::Run::new(&mut system, scheme, layout, row, &saves, y)?;
        let outcome = match goal {
            Some(goal) => run.adaptive(grid[0], goal, path)?,
            None => run.fixed(grid, path)?,
        };
        system.report(outcome)
    }
    by_dtype!(pose(&problem)?, run, &scheme, shared, &noise, (&grid[..], goal.as_ref()))
}

/// One block of Philox 4x32-10.
#[pyfunction]
#[pyo3(name = "philox")]
fn philox_words(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    philox(counter, key)
}

#[pymodule]
fn rust_solvers(module: &Bound<'_, PyModule>) -> PyResult<()> {
    crate::threads::own();
    module.add_class::<tensor::Memory>()?;
    module.add_class::<native::Network>()?;
    module.add_class::<kernel::UserKernel>()?;
    module.add_class::<steps::Decoder>()?;
    module.add_function(wrap_pyfunction!(steps::ddpm_step, module)?)?;
    module.add_function(wrap_pyfunction!(steps::flow_matching_step, module)?)?;
    module.add_function(wrap_pyfunction!(runge_kutta, module)?)?;
    module.add_function(wrap_pyfunction!(runge_kutta_rows, module)?)?;
    module.add_function(wrap_pyfunction!(recurrence, module)?)?;
    module.add_function(wrap_pyfunction!(stochastic, module)?)?;
    module.add_function(wrap_pyfunction!(normals, module)?)?;
    module.add_function(wrap_pyfunction!(brownian, module)?)?;
    module.add_function(wrap_pyfunction!(philox_words, module)?)
}
