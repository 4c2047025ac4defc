//! Chains on an energy as Python states them, and their runs.

use std::time::{Duration, Instant};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::chains::{Dynamics, Task, World, run};
use crate::philox::Rows;
use crate::real::{Precision, Real};

use super::borrowed::Outputs;
use super::memory::Buffer;
use super::tensor::{Pool, Torch};

/// A chain as Python states it: see `interp.solvers.chains`.
#[derive(FromPyObject)]
struct ChainNumbers<'py> {
    /// `energy(x) -> (value of each row or None, slope)` of each level.
    energies: Vec<Bound<'py, PyAny>>,
    y: Bound<'py, PyAny>,
    /// Elements in a row of the state.
    row: usize,
    xs: Bound<'py, PyAny>,
    saves: usize,
    dynamics: String,
    step_sizes: Vec<f64>,
    steps: u64,
    temperature: f64,
    friction: f64,
    leapfrog: usize,
    adapt: u64,
    target: f64,
    save_every: u64,
    key: [u32; 2],
    first_row: u32,
    /// At most so many elements of a row count for the effective size.
    columns: usize,
    /// `observer(step, x, nfe)` after each step; a true answer stops the chain there.
    observer: Option<Bound<'py, PyAny>>,
    /// Any kind of tensor made a contiguous one of torch's own class.
    plain: Bound<'py, PyAny>,
}

impl ChainNumbers<'_> {
    fn task(&self, count: usize) -> PyResult<Task> {
        let dynamics = match self.dynamics.as_str() {
            "langevin" => Dynamics::Langevin,
            "mala" => Dynamics::Mala,
            "underdamped" => Dynamics::Underdamped { friction: self.friction },
            "hmc" => Dynamics::Hmc { leapfrog: self.leapfrog },
            other => return Err(PyValueError::new_err(format!("dynamics called {other}"))),
        };
        if self.energies.is_empty() || self.energies.len() != self.step_sizes.len() {
            return Err(PyValueError::new_err("not one step size for each level"));
        }
        Ok(Task {
            dynamics,
            temperature: self.temperature,
            step_sizes: self.step_sizes.clone(),
            steps: self.steps,
            adapt: self.adapt,
            target: self.target,
            save_every: self.save_every,
            count,
            rows: Rows { len: self.row, first: self.first_row },
            key: self.key,
        })
    }
}

/// An energy in a run.
struct PyWorld<'py, T> {
    torch: Torch<'py>,
    /// What the energies of the rows are like.
    values: Torch<'py>,
    chain: ChainNumbers<'py>,
    outputs: Outputs<'py>,
    pool: Pool<T>,
    value_pool: Pool<f64>,
    nfe: u64,
    field_time: Duration,
}

impl<T: Real> World<T> for PyWorld<'_, T> {
    type Buffer = Buffer<T>;
    type Error = PyErr;

    fn buffer(&mut self) -> PyResult<Buffer<T>> {
        self.torch.buffer()
    }

    fn energy(
        &mut self,
        level: usize,
        x: &mut Buffer<T>,
        slope: &mut [T],
    ) -> PyResult<Option<Vec<f64>>> {
        self.torch.py.check_signals()?;
        self.nfe += 1;
        let arguments = (x.show(&self.torch)?,);
        let start = Instant::now();
        let told = self.chain.energies[level].call1(arguments);
        self.field_time += start.elapsed();
        let (value, made): (Option<Bound<'_, PyAny>>, Bound<'_, PyAny>) = told?.extract()?;
        let value =
            value.map(|value| self.values.take::<f64>(value, &self.value_pool, "the energy"));
        let value = value.transpose()?.map(|value| value.as_ref().to_vec());
        slope.copy_from_slice(self.torch.take(made, &self.pool, "the energy")?.as_ref());
        x.reclaim(&self.torch, "the energy")?;
        Ok(value)
    }

    fn compute<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        /// A shorter pass ends before another thread could have taken the lock.
        const RELEASE: usize = 1024;
        if self.torch.len < RELEASE { work() } else { self.torch.py.detach(work) }
    }

    fn save(&mut self, index: usize, x: &[T]) -> PyResult<()> {
        self.outputs.place(&self.torch, index)?.copy_from_slice(x);
        Ok(())
    }

    fn moved(&mut self, step: u64, x: &mut Buffer<T>) -> PyResult<bool> {
        let Some(observer) = &self.chain.observer else {
            return Ok(false);
        };
        let stop = observer.call1((step, x.show(&self.torch)?, self.nfe))?.is_truthy()?;
        x.reclaim(&self.torch, "the callback")?;
        Ok(stop)
    }
}

/// Run a chain on an energy.
#[pyfunction]
pub fn chain<'py>(chain: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyDict>> {
    fn typed<'py, T: Real>(
        chain: ChainNumbers<'py>,
        task: &Task,
        torch: Torch<'py>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let py = torch.py;
        let x = Buffer::<T>::of(&torch, &chain.y)?;
        let (double, shape) = (torch.library.float64.bind(py), PyTuple::new(py, [task.count])?);
        let values = Torch::of(double, shape, task.count, chain.plain.clone())?;
        let outputs = Outputs::new(&torch, chain.xs.clone(), chain.saves)?;
        let columns = chain.columns;
        let mut world = PyWorld {
            torch,
            values,
            chain,
            outputs,
            pool: Pool::default(),
            value_pool: Pool::default(),
            nfe: 0,
            field_time: Duration::ZERO,
        };
        let mut ended = run(&mut world, task, x, columns)?;
        let report = PyDict::new(py);
        report.set_item("y", ended.x.show(&world.torch)?)?;
        report.set_item("status", ended.status.name())?;
        report.set_item("step", ended.step)?;
        report.set_item("step_size", ended.step_size)?;
        report.set_item("acceptance", ended.acceptance)?;
        report.set_item("ess", ended.effective)?;
        report.set_item("saved", ended.saved)?;
        report.set_item("rows", ended.rows)?;
        report.set_item("nfe", world.nfe)?;
        report.set_item("field_s", world.field_time.as_secs_f64())?;
        Ok(report)
    }
    let chain: ChainNumbers = chain.extract()?;
    let torch = Torch::like(&chain.y, chain.plain.clone())?;
    let count: usize = torch.shape.get_item(0)?.extract()?;
    if count.checked_mul(chain.row) != Some(torch.len) {
        return Err(PyValueError::new_err("a state that is not whole rows"));
    }
    let task = chain.task(count)?;
    match torch.precision {
        Precision::Single => typed::<f32>(chain, &task, torch),
        Precision::Double => typed::<f64>(chain, &task, torch),
    }
}
