//! Runge-Kutta methods as Python states them, and their runs.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::kernels::{MAX_TERMS, Norm, Tolerance};
use crate::network::Number;
use crate::real::Precision;
use crate::rows;
use crate::runge_kutta::{Adaptive, Run, Steps};
use crate::system::Rows as _;
use crate::tableau::Tableau;

use super::system::{Posed, PySystem, by_dtype, pose};

/// A tableau as Python states it: lists of numbers, the extra stages after the others.
#[derive(FromPyObject)]
pub struct TableauNumbers {
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
pub struct AdaptiveNumbers {
    pub from_: f64,
    pub to: f64,
    pub rtol: f64,
    pub atol: f64,
    pub first_step: Option<f64>,
    pub max_steps: u64,
    pub gains: [f64; 3],
    pub norm: String,
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
pub fn checked_grid(grid: Vec<f64>) -> PyResult<Vec<f64>> {
    if grid.len() < 2 || grid.iter().any(|t| !t.is_finite()) {
        return Err(PyValueError::new_err("a grid needs two finite times or more"));
    }
    Ok(grid)
}

/// Integrate `problem` by an explicit Runge-Kutta method on `grid`, or adaptively.
#[pyfunction]
#[pyo3(signature = (problem, tableau, grid=None, adaptive=None))]
pub fn runge_kutta<'py>(
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
pub fn runge_kutta_rows<'py>(
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
