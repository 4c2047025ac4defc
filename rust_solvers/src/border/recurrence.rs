//! Programmes as Python states them, and their runs.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::kernels::MAX_TERMS;
use crate::network::Number;
use crate::real::Precision;
use crate::recurrence::{Draw, Evaluation, Operand, Programme, Stage, integrate};

use super::noise::NoiseNumbers;
use super::system::{Posed, PySystem, by_dtype, pose};

/// A stage as Python states it; see [`Stage`].
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
pub struct ProgrammeNumbers {
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
        if self.slots > self.stages.len() {
            return Err(PyValueError::new_err("a programme with more slots than stages"));
        }
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
pub fn recurrence<'py>(
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
