//! Noise for Python: normals, the Brownian path, and what keys them.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::brownian::{Path, Root, Value};
use crate::philox::{Rows, fill_normals, philox, stream_key};
use crate::recurrence::Source;
use crate::threads::share;

use super::borrowed::writable;

/// What keys the noise of a run.
#[derive(FromPyObject)]
pub struct NoiseNumbers {
    seed: u64,
    stream: u32,
    first_row: u32,
    pub span: (f64, f64),
    depth: u32,
}

impl NoiseNumbers {
    /// Where the normals of a run come from; `fresh` is the stream of those beside the path.
    pub fn source(&self, fresh: u32, row: usize, elements: usize) -> PyResult<Source> {
        Ok(Source {
            path: self.path(row, elements, &[])?,
            rows: Rows { len: row, first: self.first_row },
            key: stream_key(self.seed, fresh),
        })
    }

    /// The path of `elements` in rows of length `row`; its tree has to hold the `times`.
    pub fn path(&self, row: usize, elements: usize, times: &[f64]) -> PyResult<Path> {
        let (from, to) = self.span;
        let within = times.iter().all(|t| (from..=to).contains(t));
        if !within || from >= to || !(to - from).is_finite() || !(1..=48).contains(&self.depth) {
            return Err(PyValueError::new_err("a time outside the span of the Brownian tree"));
        }
        Ok(Path {
            root: Root { from, to, depth: self.depth },
            rows: Rows { len: row, first: self.first_row },
            key: stream_key(self.seed, self.stream),
            elements,
        })
    }
}

/// Fill a tensor of rows of length `row` with the normals of a node.
#[pyfunction]
pub fn normals(
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
pub fn brownian(
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
        path.at(&times, &mut values);
    });
    Ok(())
}

/// One block of Philox 4x32-10.
#[pyfunction]
#[pyo3(name = "philox")]
pub fn philox_words(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    philox(counter, key)
}
