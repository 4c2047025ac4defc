//! Kernels of a user's own: a function of C's calling convention, handed over in a capsule.

use std::ffi::c_void;
use std::sync::Mutex;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;

use crate::network::Number;
use crate::real::Precision;

use super::borrowed::{Borrowed, READ};

/// The version of [`Table`] that this engine understands.
const VERSION: u32 = 1;
/// The name of a capsule that holds one.
const NAME: &std::ffi::CStr = c"interp.kernel";

/// What a capsule points to. Later versions may only append; the version comes first in all.
#[repr(C)]
#[derive(Clone, Copy)]
struct Table {
    version: u32,
    /// The bytes of a number: 4 or 8.
    bytes: u32,
    /// The numbers in a row; 0 for any.
    row: usize,
    /// Handed to every call.
    state: *mut c_void,
    /// `call(state, t, rows, row, x, out)`: the slope at t and x, `rows * row` numbers each. 0 where
    /// that went well. Called without the interpreter lock, by one thread at a time.
    call: Option<
        unsafe extern "C" fn(*mut c_void, f64, usize, usize, *const c_void, *mut c_void) -> i32,
    >,
}

/// A user's field, called by the engine.
#[pyclass(frozen)]
pub struct UserKernel {
    /// Keeps the table, and what it points to, alive.
    _capsule: Py<PyAny>,
    table: Table,
    /// Whether each call writes between canaries, over NaN.
    debug: bool,
    guarded: Mutex<()>,
}

// SAFETY: the state is only handed to the user's function, by one thread at a time (`guarded`), as its
// contract in `Table` says.
unsafe impl Send for UserKernel {}
// SAFETY: as above.
unsafe impl Sync for UserKernel {}

#[pymethods]
impl UserKernel {
    #[new]
    fn new(capsule: &Bound<'_, PyAny>, debug: bool) -> PyResult<Self> {
        // SAFETY: a live object; the call takes any.
        if unsafe { ffi::PyCapsule_IsValid(capsule.as_ptr(), NAME.as_ptr()) } == 0 {
            return Err(PyTypeError::new_err("not a capsule named \"interp.kernel\""));
        }
        // SAFETY: just found valid under that name.
        let at = unsafe { ffi::PyCapsule_GetPointer(capsule.as_ptr(), NAME.as_ptr()) };
        if at.is_null() || !at.cast::<Table>().is_aligned() {
            return Err(PyValueError::new_err("a capsule that points to no table"));
        }
        // SAFETY: not null, and every version of the table begins with its version.
        let version = unsafe { at.cast::<u32>().read() };
        if version != VERSION {
            return Err(PyValueError::new_err(format!(
                "a kernel of version {version} where this engine takes version {VERSION}"
            )));
        }
        // SAFETY: of this version, so it is laid out as `Table`.
        let table = unsafe { at.cast::<Table>().read() };
        if ![4, 8].contains(&table.bytes) || table.call.is_none() {
            return Err(PyValueError::new_err("a kernel without a function, or of odd numbers"));
        }
        let guarded = Mutex::new(());
        Ok(UserKernel { _capsule: capsule.clone().unbind(), table, debug, guarded })
    }

    /// The bytes of a number, and the numbers of a row (0 for any).
    #[getter]
    fn layout(&self) -> (u32, usize) {
        (self.table.bytes, self.table.row)
    }

    /// Write the field at `t` and `x` into `out`, both contiguous and of one shape.
    fn call(&self, out: &Bound<'_, PyAny>, t: f64, x: &Bound<'_, PyAny>) -> PyResult<()> {
        if self.table.bytes == 4 {
            self.write::<f32>(out, t, x)
        } else {
            self.write::<f64>(out, t, x)
        }
    }
}

impl UserKernel {
    pub fn precision(&self) -> Precision {
        if self.table.bytes == 4 { Precision::Single } else { Precision::Double }
    }

    fn write<T: Number>(
        &self,
        out: &Bound<'_, PyAny>,
        t: f64,
        x: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let shape: Vec<usize> = x.getattr("shape")?.extract()?;
        let rows = shape.first().copied().unwrap_or(1);
        let x = Borrowed::of(x, &shape, T::PRECISION, READ)?;
        let mut into = Borrowed::of(out, &shape, T::PRECISION, READ)?;
        // SAFETY: just looked at; `out` was made by the caller for this call, and other threads keep
        // to torch's own rule while the lock is released.
        let (x, into) = unsafe { (x.numbers(), into.numbers_mut::<T>().unwrap_or_default()) };
        self.evaluate(out.py(), t, rows, T::lent(x), into)
    }

    /// The field at `t` and `x`, `rows` rows, into `out`.
    pub fn evaluate<T: Number>(
        &self,
        py: Python<'_>,
        t: f64,
        rows: usize,
        x: &[T],
        out: &mut [T],
    ) -> PyResult<()> {
        let row = out.len() / rows.max(1);
        if self.table.row != 0 && self.table.row != row {
            return Err(PyValueError::new_err(format!(
                "the kernel takes rows of {} numbers and x has {row}",
                self.table.row
            )));
        }
        if x.len() != out.len() || rows * row != out.len() || T::PRECISION != self.precision() {
            return Err(PyValueError::new_err("x is not what the kernel takes"));
        }
        let code = py.detach(|| {
            let _alone = self.guarded.lock();
            if self.debug {
                self.between_canaries(t, rows, row, x, out)
            } else {
                Ok(self.run(t, rows, row, x.as_ptr(), out.as_mut_ptr()))
            }
        });
        match code {
            Ok(0) => Ok(()),
            Ok(code) => Err(field_error(
                py,
                format!(
                    "the kernel gave the error {code} at t = {t}. Its author knows what that means."
                ),
            )),
            Err(what) => Err(field_error(
                py,
                format!(
                    "the kernel {what} at t = {t}. It may write rows * row numbers into `out`, and nothing \
                 else."
                ),
            )),
        }
    }

    fn run<T>(&self, t: f64, rows: usize, row: usize, x: *const T, out: *mut T) -> i32 {
        let Some(call) = self.table.call else { return -1 };
        // SAFETY: both point to `rows * row` numbers of the size that the table names, `out` to be
        // written; that the function keeps to them is what its author promises, and `debug` checks.
        unsafe { call(self.table.state, t, rows, row, x.cast(), out.cast()) }
    }

    /// The same in memory of its own, with marks before and after x and the result, which is NaN
    /// where the kernel does not write.
    fn between_canaries<T: Number>(
        &self,
        t: f64,
        rows: usize,
        row: usize,
        x: &[T],
        out: &mut [T],
    ) -> Result<i32, &'static str> {
        const MARGIN: usize = 256;
        let n = x.len();
        let mark = T::from_f64(-6.123_456_789e33);
        let marked = |content: &[T]| {
            let margin = std::iter::repeat_n(mark, MARGIN);
            margin.clone().chain(content.iter().copied()).chain(margin).collect::<Vec<T>>()
        };
        let (given, mut written) = (marked(x), marked(&vec![T::from_f64(f64::NAN); n]));
        // SAFETY (of the call inside): the content begins after the margin.
        let into = written[MARGIN..].as_mut_ptr();
        let code = self.run(t, rows, row, given[MARGIN..].as_ptr(), into);
        let whole = |v: &[T]| {
            v[..MARGIN].iter().chain(&v[MARGIN + n..]).all(|&m| m.to_f64() == mark.to_f64())
        };
        let same = |a: &T, b: &T| a.to_f64().to_bits() == b.to_f64().to_bits();
        if !whole(&written) {
            return Err("wrote outside its result");
        }
        if !whole(&given) || !given[MARGIN..MARGIN + n].iter().zip(x).all(|(a, b)| same(a, b)) {
            return Err("wrote into x, or beside it");
        }
        out.copy_from_slice(&written[MARGIN..MARGIN + n]);
        Ok(code)
    }
}

fn field_error(py: Python<'_>, message: String) -> PyErr {
    let error = || py.import("interp.errors")?.getattr("FieldError")?.call1((message,));
    error().map_or_else(|e| e, PyErr::from_value)
}
