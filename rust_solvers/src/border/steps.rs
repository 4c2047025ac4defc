//! The kernels on torch's tensors, in place.

use std::ffi::c_void;
use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::c::NO_DECODER;
use crate::decoder::{self, Weights};
use crate::network::{Lent, Number};
use crate::real::Precision;
use crate::steps::{Coefficients, ddpm, step};

use super::borrowed::{Borrowed, Role};
use super::native::Network;

fn precision_of(x: &Bound<'_, PyAny>) -> PyResult<Precision> {
    match x.getattr("dtype")?.str()?.to_str()? {
        "torch.float32" => Ok(Precision::Single),
        "torch.float64" => Ok(Precision::Double),
        other => Err(PyValueError::new_err(format!("x is of {other}. Give float32 or float64."))),
    }
}

fn like_x(name: &'static str) -> Role {
    Role { name, remedy: "Give contiguous tensors on the cpu, all of the shape and dtype of x." }
}

/// `x <- a x + b v + c z` in place; `slope` is the name of v.
fn in_place(
    x: &Bound<'_, PyAny>,
    (slope, v): (&'static str, &Bound<'_, PyAny>),
    z: Option<&Bound<'_, PyAny>>,
    by: Coefficients,
) -> PyResult<()> {
    fn typed<T: Number>(
        x: &Bound<'_, PyAny>,
        (slope, v): (&'static str, &Bound<'_, PyAny>),
        z: Option<&Bound<'_, PyAny>>,
        by: Coefficients,
    ) -> PyResult<()> {
        let shape: Vec<usize> = x.getattr("shape")?.extract()?;
        let look = |tensor, name| Borrowed::of(tensor, &shape, T::PRECISION, like_x(name));
        let (mut to, v) = (look(x, "x")?, look(v, slope)?);
        let z = z.map(|z| look(z, "z")).transpose()?;
        if to.overlaps(&v) || z.as_ref().is_some_and(|z| to.overlaps(z)) {
            return Err(PyValueError::new_err(
                "x shares memory with what it is stepped by. Clone it.",
            ));
        }
        // SAFETY: just looked at; `x` overlaps neither, and the lock is held until it is written.
        unsafe {
            let (v, z) = (v.numbers(), z.as_ref().map(|z| z.numbers()));
            let x = to.numbers_mut::<T>().unwrap_or_default();
            step(x, T::lent(v), z.map(|z| T::lent(z)), by);
        }
        Ok(())
    }
    match precision_of(x)? {
        Precision::Single => typed::<f32>(x, (slope, v), z, by),
        Precision::Double => typed::<f64>(x, (slope, v), z, by),
    }
}

/// One step of DDPM in place.
#[pyfunction]
#[pyo3(signature = (x, noise, alpha_bar, alpha_bar_next, z=None, eta=1.0))]
pub fn ddpm_step(
    x: &Bound<'_, PyAny>,
    noise: &Bound<'_, PyAny>,
    alpha_bar: f64,
    alpha_bar_next: f64,
    z: Option<&Bound<'_, PyAny>>,
    eta: f64,
) -> PyResult<()> {
    let by = ddpm(alpha_bar, alpha_bar_next, eta).ok_or_else(|| {
        PyValueError::new_err(format!(
            "there is no step from alpha_bar = {alpha_bar} to {alpha_bar_next} with eta = {eta}. Give \
             0 < alpha_bar <= alpha_bar_next <= 1 and eta in [0, 1]."
        ))
    })?;
    if by.c != 0.0 && z.is_none() {
        return Err(PyValueError::new_err(
            "the step adds noise and z is None. Give normals, or eta=0.",
        ));
    }
    in_place(x, ("noise", noise), z.filter(|_| by.c != 0.0), by)
}

/// One Euler step of a flow in place.
#[pyfunction]
pub fn flow_matching_step(
    x: &Bound<'_, PyAny>,
    velocity: &Bound<'_, PyAny>,
    h: f64,
) -> PyResult<()> {
    if !h.is_finite() {
        return Err(PyValueError::new_err(format!("h = {h} is not a step. Give a finite one.")));
    }
    in_place(x, ("velocity", velocity), None, Coefficients { a: 1.0, b: h, c: 0.0 })
}

impl Weights for Vec<Borrowed> {
    fn lent(&self) -> Vec<Lent<'_>> {
        // SAFETY: looked up when the decoder was made, which says for how long.
        self.iter().map(|w| unsafe { w.numbers() }).collect()
    }
}

/// What a handle points to.
#[repr(C)]
struct Handle {
    sign: u64,
    decoder: decoder::Decoder<Vec<Borrowed>>,
}

const SIGN: u64 = 0x696e_7465_7270_6465;

/// A decoder that C can call: its weights stay where they are for as long as it lives.
#[pyclass(frozen)]
pub struct Decoder {
    handle: Arc<Handle>,
}

#[pymethods]
impl Decoder {
    #[new]
    fn new(network: &Bound<'_, Network>, weights: Vec<Bound<'_, PyAny>>) -> PyResult<Self> {
        let weights = network.get().borrow(&weights)?;
        let made = decoder::Decoder::new(network.get().program(), weights);
        let decoder = made.map_err(PyValueError::new_err)?;
        Ok(Decoder { handle: Arc::new(Handle { sign: SIGN, decoder }) })
    }

    /// The address by which C knows it, for as long as this object lives.
    #[getter]
    fn handle(&self) -> usize {
        Arc::as_ptr(&self.handle) as usize
    }

    /// `out <- clamp(decode(z / scale + shift), -1, 1)`.
    fn decode(
        &self,
        out: &Bound<'_, PyAny>,
        z: &Bound<'_, PyAny>,
        scale: f64,
        shift: f64,
    ) -> PyResult<()> {
        if !scale.is_finite() || scale == 0.0 || !shift.is_finite() {
            return Err(PyValueError::new_err("scale or shift is not finite, or scale is 0"));
        }
        match self.handle.decoder.precision() {
            Precision::Single => self.typed::<f32>(out, z, (scale, shift)),
            Precision::Double => self.typed::<f64>(out, z, (scale, shift)),
        }
    }
}

impl Decoder {
    fn typed<T: Number>(
        &self,
        out: &Bound<'_, PyAny>,
        z: &Bound<'_, PyAny>,
        by: (f64, f64),
    ) -> PyResult<()> {
        let look = |tensor: &Bound<'_, PyAny>, name| {
            let remedy = "Give contiguous tensors on the cpu, of the decoder's dtype.";
            let shape: Vec<usize> = tensor.getattr("shape")?.extract()?;
            Borrowed::of(tensor, &shape, T::PRECISION, Role { name, remedy })
        };
        let (from, mut to) = (look(z, "z")?, look(out, "out")?);
        if to.overlaps(&from) {
            return Err(PyValueError::new_err("out shares memory with z. Give another."));
        }
        // SAFETY: just looked at, they do not overlap; other threads keep to torch's own rule while
        // the lock is released.
        let (from, to) = unsafe { (from.numbers(), to.numbers_mut::<T>().unwrap_or_default()) };
        let decoder = &self.handle.decoder;
        out.py().detach(|| decoder.decode(T::lent(from), to, by)).map_err(PyValueError::new_err)
    }
}

/// For C: see [`crate::c`].
///
/// # Safety
/// `decoder` is the handle of a living decoder; `z` and `out` point to `rows` times its lengths.
pub unsafe fn decode<T: Number>(
    decoder: *const c_void,
    z: *const T,
    out: *mut T,
    rows: usize,
    by: (f64, f64),
) -> i32 {
    let handle = decoder.cast::<Handle>();
    // SAFETY: the caller's promise; whatever else it is, its first word is looked at first.
    let handle = unsafe {
        if !handle.is_aligned() || handle.cast::<u64>().read() != SIGN {
            return NO_DECODER;
        }
        &*handle
    };
    let (from, to) = handle.decoder.lengths();
    if T::PRECISION != handle.decoder.precision() {
        return NO_DECODER;
    }
    // SAFETY: the caller's promise.
    let (z, out) = unsafe {
        (std::slice::from_raw_parts(z, rows * from), std::slice::from_raw_parts_mut(out, rows * to))
    };
    match handle.decoder.decode(z, out, by) {
        Ok(()) => 0,
        Err(_) => NO_DECODER,
    }
}
