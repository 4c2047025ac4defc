//! Memory that Rust and torch share, and when it is safe to touch.
//!
//! * A state lies in memory that Rust owns and torch sees as a tensor ([`super::memory::Buffer`]): nothing that
//!   Python does to the tensor (resizing, freeing, re-typing) can take that memory away. It is used
//!   again for the next state only if nobody else kept a reference; else its content moves on.
//! * What a field returns is looked at anew each time: type, dtype, device, shape, layout, strides,
//!   the lazy negation bit, and that its storage still covers its elements ([`Torch::locate`]). Then
//!   it is copied at once, while the interpreter lock is held ([`Torch::take`]). No pointer into
//!   torch's own memory outlives the call that found it.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::rc::Rc;

use pyo3::exceptions::{PyMemoryError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyTuple;

use crate::block::Block;
use crate::kernels::{CHUNK, all_finite};
use crate::real::{Precision, Real};
use crate::threads::share;

use super::dlpack::Exchange;

/// The parts of torch that the border uses, looked up once a process.
pub struct Library {
    pub tensor: Py<PyAny>,
    pub float32: Py<PyAny>,
    pub float64: Py<PyAny>,
    strided: Py<PyAny>,
    pub frombuffer: Py<PyAny>,
    /// References to a storage; absent in a torch that does not count them for us.
    pub storage_uses: Option<Py<PyAny>>,
    /// What does the same by one call; absent before torch 2.10.
    pub exchange: Option<Exchange>,
}

impl Library {
    pub fn get(py: Python<'_>) -> PyResult<&'static Self> {
        static LIBRARY: PyOnceLock<Library> = PyOnceLock::new();
        LIBRARY.get_or_try_init(py, || {
            let torch = py.import("torch")?;
            let tensor = torch.getattr("Tensor")?;
            Ok(Library {
                exchange: Exchange::of(&tensor),
                tensor: tensor.unbind(),
                float32: torch.getattr("float32")?.unbind(),
                float64: torch.getattr("float64")?.unbind(),
                strided: torch.getattr("strided")?.unbind(),
                frombuffer: torch.getattr("frombuffer")?.unbind(),
                storage_uses: torch
                    .getattr("_C")?
                    .getattr("_storage_Use_Count")
                    .ok()
                    .map(Bound::unbind),
            })
        })
    }
}

/// What the border needs of torch for tensors of one shape and dtype.
pub struct Torch<'py> {
    pub py: Python<'py>,
    pub library: &'static Library,
    pub precision: Precision,
    plain: Bound<'py, PyAny>,
    pub shape: Bound<'py, PyTuple>,
    /// The same shape.
    pub sizes: Vec<i64>,
    pub len: usize,
}

/// Why a tensor cannot be read where it lies.
pub enum Obstacle {
    /// It is of the wrong kind altogether; the words complete "... returned a tensor ...".
    Wrong(String),
    /// Its elements are not laid out one after the other as they stand.
    Scattered,
}

/// Memory of copies that are done with, for the next ones: asking the system for pages costs more
/// than filling them.
pub type Pool<T> = Rc<RefCell<Vec<Numbers<T>>>>;

/// Memory of ours for numbers that Python never sees.
pub struct Numbers<T> {
    block: Option<Block>,
    len: usize,
    of: PhantomData<T>,
}

impl<T> Default for Numbers<T> {
    fn default() -> Self {
        Numbers { block: None, len: 0, of: PhantomData }
    }
}

impl<T: Real> Numbers<T> {
    /// `len` numbers with whatever content, in the memory of others if it will do.
    fn renewed(self, len: usize) -> PyResult<Self> {
        let bytes = len * size_of::<T>();
        let block = match self.block {
            Some(block) if block.bytes() >= bytes => block,
            _ => Block::new(bytes).ok_or_else(|| no_room(bytes))?,
        };
        Ok(Numbers { block: Some(block), len, of: PhantomData })
    }
}

impl<T> AsRef<[T]> for Numbers<T> {
    fn as_ref(&self) -> &[T] {
        self.block.as_ref().map_or(&[], |block| {
            // SAFETY: the block holds `len` numbers or more (`renewed`), on a line and written,
            // and nobody else has it.
            unsafe { std::slice::from_raw_parts(block.address().cast(), self.len) }
        })
    }
}

impl<T> AsMut<[T]> for Numbers<T> {
    fn as_mut(&mut self) -> &mut [T] {
        self.block.as_mut().map_or(&mut [], |block| {
            // SAFETY: as for reading.
            unsafe { std::slice::from_raw_parts_mut(block.address().cast(), self.len) }
        })
    }
}

pub fn no_room(bytes: usize) -> PyErr {
    PyMemoryError::new_err(format!("no room for a state of {bytes} bytes"))
}

/// A copy of what a field returned.
pub struct Slope<T> {
    values: Numbers<T>,
    pool: Pool<T>,
}

impl<T: Real> Slope<T> {
    /// `len` numbers that `fill` writes, in memory from the pool.
    pub fn written(
        pool: &Pool<T>,
        len: usize,
        fill: impl FnOnce(&mut [T]) -> PyResult<()>,
    ) -> PyResult<Self> {
        let mut slope = Slope::reusing(pool, len)?;
        fill(slope.values.as_mut())?;
        Ok(slope)
    }

    fn reusing(pool: &Pool<T>, len: usize) -> PyResult<Self> {
        let values = pool.borrow_mut().pop();
        let values = values.unwrap_or_default().renewed(len)?;
        Ok(Slope { values, pool: Rc::clone(pool) })
    }
}

impl<T> AsRef<[T]> for Slope<T> {
    fn as_ref(&self) -> &[T] {
        self.values.as_ref()
    }
}

impl<T> Drop for Slope<T> {
    fn drop(&mut self) {
        self.pool.borrow_mut().push(std::mem::take(&mut self.values));
    }
}

impl<'py> Torch<'py> {
    /// Everything about tensors like `state`. `plain(result)` is Python's way to make a contiguous
    /// tensor of torch's own class out of whatever kind of tensor a field returned.
    pub fn like(state: &Bound<'py, PyAny>, plain: Bound<'py, PyAny>) -> PyResult<Self> {
        let py = state.py();
        let shape = state.getattr(intern!(py, "shape"))?.cast_into::<PyTuple>()?;
        let len = state.call_method0(intern!(py, "numel"))?.extract()?;
        Torch::of(&state.getattr(intern!(py, "dtype"))?, shape, len, plain)
    }

    /// The same for tensors of a `dtype` and of a `shape` of `len` elements.
    pub fn of(
        dtype: &Bound<'py, PyAny>,
        shape: Bound<'py, PyTuple>,
        len: usize,
        plain: Bound<'py, PyAny>,
    ) -> PyResult<Self> {
        let py = dtype.py();
        let library = Library::get(py)?;
        let precision = if dtype.is(&library.float32) {
            Precision::Single
        } else if dtype.is(&library.float64) {
            Precision::Double
        } else {
            return Err(PyValueError::new_err(format!("a state of dtype {}", dtype.str()?)));
        };
        let sizes = shape.extract()?;
        Ok(Torch { py, library, precision, plain, shape, sizes, len })
    }

    /// The same for tensors of another number of rows.
    pub fn with_rows(&self, rows: usize) -> PyResult<Self> {
        let shape = self.shape.to_list();
        let before: usize = shape.get_item(0)?.extract()?;
        shape.set_item(0, rows)?;
        let shape = shape.to_tuple();
        let len = self.len / before.max(1) * rows;
        Torch::of(self.dtype(), shape, len, self.plain.clone())
    }

    /// The same for a matrix of so many columns for each element of the rows.
    pub fn with_columns(&self, columns: usize) -> PyResult<Self> {
        let shape = self.shape.to_list();
        shape.append(columns)?;
        let len = self.len.checked_mul(columns).filter(|&len| len < 1 << 31);
        let len = len.ok_or_else(|| PyValueError::new_err("a diffusion of too many columns"))?;
        Torch::of(self.dtype(), shape.to_tuple(), len, self.plain.clone())
    }

    pub fn dtype(&self) -> &Bound<'py, PyAny> {
        match self.precision {
            Precision::Single => self.library.float32.bind(self.py),
            Precision::Double => self.library.float64.bind(self.py),
        }
    }

    /// The address of the first element of a tensor of torch's own class, all of whose `len`
    /// elements can be read there.
    pub fn locate<T: Real>(
        &self,
        tensor: &Bound<'py, PyAny>,
        shape: &Bound<'py, PyTuple>,
        len: usize,
    ) -> PyResult<Result<*mut T, Obstacle>> {
        let py = self.py;
        let seen = if shape.is(&self.shape) { self.dense(tensor) } else { None };
        let address = match seen {
            Some(address) => address,
            None => match self.asked(tensor, shape)? {
                Ok(address) => address,
                Err(obstacle) => return Ok(Err(obstacle)),
            },
        };
        if tensor.call_method0(intern!(py, "is_neg"))?.is_truthy()? {
            return Ok(Err(Obstacle::Scattered));
        }
        if len == 0 {
            return Ok(Ok(std::ptr::NonNull::dangling().as_ptr()));
        }
        let held = holder(tensor, address, len.saturating_mul(size_of::<T>()))?;
        if held.is_err() || !address.is_multiple_of(align_of::<T>()) {
            let bytes = held.err().unwrap_or(len.saturating_mul(size_of::<T>()));
            let what = format!("whose memory ({bytes} bytes) does not hold its {len} elements");
            return Ok(Err(Obstacle::Wrong(what)));
        }
        Ok(Ok(address as *mut T))
    }

    /// The address of a tensor that is dense and like ours in all else; None where it is not, or where
    /// this torch does not say so by one call.
    pub fn dense(&self, tensor: &Bound<'py, PyAny>) -> Option<usize> {
        self.library.exchange.as_ref()?.dense(tensor, self.precision, &self.sizes)
    }

    /// The same, asked attribute by attribute: what is in the way is named.
    fn asked(
        &self,
        tensor: &Bound<'py, PyAny>,
        shape: &Bound<'py, PyTuple>,
    ) -> PyResult<Result<usize, Obstacle>> {
        let py = self.py;
        let wrong = |what: String| Ok(Err(Obstacle::Wrong(what)));
        let dtype = tensor.getattr(intern!(py, "dtype"))?;
        if !dtype.is(self.dtype()) {
            return wrong(format!(
                "of dtype {} where the state is {}",
                dtype.str()?,
                self.dtype().str()?
            ));
        }
        let layout = tensor.getattr(intern!(py, "layout"))?;
        if !layout.is(&self.library.strided) {
            return wrong(format!("of layout {} where the state is torch.strided", layout.str()?));
        }
        if !tensor.getattr(intern!(py, "is_cpu"))?.is_truthy()? {
            let device = tensor.getattr(intern!(py, "device"))?;
            return wrong(format!("on the device {} where the state is on the cpu", device.str()?));
        }
        let found = tensor.getattr(intern!(py, "shape"))?;
        if !found.eq(shape)? {
            let show = |s: &Bound<'py, PyAny>| s.extract().map(|s: Vec<i64>| format!("{s:?}"));
            return wrong(format!(
                "of shape {} where the state is {}",
                show(&found)?,
                show(shape)?
            ));
        }
        if !tensor.call_method0(intern!(py, "is_contiguous"))?.is_truthy()? {
            return Ok(Err(Obstacle::Scattered));
        }
        Ok(Ok(tensor.call_method0(intern!(py, "data_ptr"))?.extract()?))
    }

    /// Copy what a field, or `who` it is, returned.
    pub fn take<T: Real>(
        &self,
        result: Bound<'py, PyAny>,
        pool: &Pool<T>,
        who: &str,
    ) -> PyResult<Slope<T>> {
        let mut result = result;
        if !result.get_type().is(&self.library.tensor) {
            if !result.is_instance(self.library.tensor.bind(self.py))? {
                let kind = result.get_type().name()?;
                return Err(self.error(format!("{who} returned a {kind}, not a tensor")));
            }
            result = self.made_plain(result, who)?;
        }
        let at = match self.locate_or_say(&result, who)? {
            Ok(at) => at,
            Err(Obstacle::Wrong(what)) => {
                return Err(self.error(format!("{who} returned a tensor {what}")));
            }
            Err(Obstacle::Scattered) => {
                result = self.made_plain(result, who)?;
                self.locate_or_say(&result, who)?.map_err(|_| self.without_memory(who))?
            }
        };
        let mut slope = Slope::reusing(pool, self.len)?;
        // SAFETY: `locate` has just shown that `len` elements lie at `at`, aligned, in a storage that
        // `result` keeps alive; the interpreter lock is held and no Python runs until the copy is
        // done.
        let result = unsafe { std::slice::from_raw_parts(at, self.len) };
        share(slope.values.as_mut(), CHUNK, 1, |from, out| {
            out.copy_from_slice(&result[from..from + out.len()]);
        });
        Ok(slope)
    }

    fn locate_or_say<T: Real>(
        &self,
        result: &Bound<'py, PyAny>,
        who: &str,
    ) -> PyResult<Result<*mut T, Obstacle>> {
        self.locate(result, &self.shape, self.len).map_err(|cause| self.caused(cause, who))
    }

    fn made_plain(&self, result: Bound<'py, PyAny>, who: &str) -> PyResult<Bound<'py, PyAny>> {
        self.plain.call1((result,)).map_err(|cause| self.caused(cause, who))
    }

    fn without_memory(&self, who: &str) -> PyErr {
        self.raise(format!(
            "{who} returned a tensor without memory of its own (of a subclass, or inside a \
             transform of torch.func). Return a plain tensor, or use backend=\"torch\"."
        ))
    }

    fn caused(&self, cause: PyErr, who: &str) -> PyErr {
        let error = self.without_memory(who);
        error.set_cause(self.py, Some(cause));
        error
    }

    fn error(&self, what: String) -> PyErr {
        let remedy = "Return a new tensor of the state's shape, dtype and device.";
        self.raise(format!("{what}. {remedy}"))
    }

    pub fn raise(&self, message: String) -> PyErr {
        let error = || self.py.import("interp.errors")?.getattr("FieldError")?.call1((message,));
        error().map_or_else(|e| e, PyErr::from_value)
    }
}

/// The storage of a tensor, if it holds so many bytes from `address` on: one can be made smaller than
/// the tensors on it believe it to be. How many it has, if it does not.
pub fn holder<'py>(
    tensor: &Bound<'py, PyAny>,
    address: usize,
    bytes: usize,
) -> PyResult<Result<Bound<'py, PyAny>, usize>> {
    let py = tensor.py();
    let storage = tensor.call_method0(intern!(py, "untyped_storage"))?;
    let start: usize = storage.call_method0(intern!(py, "data_ptr"))?.extract()?;
    let all: usize = storage.call_method0(intern!(py, "nbytes"))?.extract()?;
    let inside = start != 0
        && address >= start
        && address.checked_add(bytes).zip(start.checked_add(all)).is_some_and(|(a, b)| a <= b);
    Ok(if inside { Ok(storage) } else { Err(all) })
}

/// Whether a tensor holds neither NaN nor infinity; None where it is not a dense one of ours.
#[pyfunction]
pub fn finite(x: &Bound<'_, PyAny>) -> PyResult<Option<bool>> {
    let py = x.py();
    let dtype = x.getattr(intern!(py, "dtype"))?;
    let library = Library::get(py)?;
    if !dtype.is(&library.float32) && !dtype.is(&library.float64) {
        return Ok(None);
    }
    fn of<'py, T: Real>(torch: &Torch<'py>, x: &Bound<'py, PyAny>) -> PyResult<Option<bool>> {
        let found = torch.locate::<T>(x, &torch.shape, torch.len)?;
        // SAFETY: as in `Torch::take`.
        let values = found.map(|at| unsafe { std::slice::from_raw_parts(at, torch.len) });
        Ok(values.ok().map(all_finite))
    }
    let torch = Torch::like(x, py.None().into_bound(py))?;
    match torch.precision {
        Precision::Single => of::<f32>(&torch, x),
        Precision::Double => of::<f64>(&torch, x),
    }
}
