//! Stochastic schemes as Python states them, and their runs.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::kernels::Tolerance;
use crate::network::Number;
use crate::real::Precision;
use crate::stochastic::{Adaptive, Ask, Basis, Layout, Run, Scheme, Stage, Term};

use super::noise::NoiseNumbers;
use super::runge_kutta::{AdaptiveNumbers, checked_grid};
use super::system::{Posed, PySystem, by_dtype, pose};

/// (slope, basis, weight) of each term of a combination.
type TermNumbers = Vec<(usize, String, f64)>;
/// c, what is asked for, and where.
type AskNumbers = (f64, String, TermNumbers);

/// A stochastic scheme as Python states it.
#[derive(FromPyObject)]
pub struct SchemeNumbers {
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
            Ok(Stage { c, ask, terms: terms(given, i)? })
        };
        let stages = self.stages.into_iter().enumerate().map(stage).collect::<PyResult<_>>()?;
        let (end, error) = (terms(self.end, count)?, terms(self.error, count)?);
        Ok(Scheme { stages, end, error, ito: self.ito, area: self.area })
    }
}

/// Integrate `problem` by a stochastic scheme on `grid`, or adaptively.
#[pyfunction]
#[pyo3(signature = (problem, scheme, shared, noise, grid=None, adaptive=None))]
pub fn stochastic<'py>(
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
            Some(Adaptive {
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
    let way = match goal {
        Some(goal) => Way::Adaptive(goal),
        None => Way::Fixed,
    };
    by_dtype!(pose(&problem)?, run, &scheme, shared, &noise, (&grid[..], way))
}

/// Integrate `problem` by the reversible Heun method on `grid`.
#[pyfunction]
pub fn reversible_heun<'py>(
    problem: Bound<'py, PyAny>,
    shared: bool,
    noise: NoiseNumbers,
    grid: Vec<f64>,
) -> PyResult<Bound<'py, PyDict>> {
    let grid = checked_grid(grid)?;
    let none = Scheme { stages: vec![], end: vec![], error: vec![], ito: false, area: false };
    by_dtype!(pose(&problem)?, run, &none, shared, &noise, (&grid[..], Way::Reversible))
}

/// How a run takes its steps.
enum Way {
    Fixed,
    Adaptive(Adaptive),
    Reversible,
}

fn run<'py, T: Number>(
    posed: Posed<'py>,
    scheme: &Scheme,
    shared: bool,
    noise: &NoiseNumbers,
    (grid, way): (&[f64], Way),
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
    let run = Run::new(&mut system, scheme, layout, row, &saves, y)?;
    let outcome = match way {
        Way::Adaptive(goal) => run.adaptive(grid[0], &goal, path)?,
        Way::Fixed => run.fixed(grid, path)?,
        Way::Reversible => run.reversible(grid, path)?,
    };
    system.report(outcome)
}
