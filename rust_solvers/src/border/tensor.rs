//! Memory that Rust and torch share, and when it is safe to touch.
//!
//! * A state lies in memory that Rust owns and torch sees as a tensor ([`Buffer`]): nothing that
//!   Python does to the tensor (resizing, freeing, re-typing) can take that memory away. It is used
//!   again for the next state only if nobody else kept a reference; else its content moves on.
//! * What a field returns is looked at anew each time: type, dtype, device, shape, layout, strides,
//!   the lazy negation bit, and that its storage still covers its elements ([`Torch::locate`]). Then
//!   it is copied at once, while the interpreter lock is held ([`Torch::take`]). No pointer into
//!   torch's own memory outlives the call that found it.

use std::cell::{RefCell, UnsafeCell};
use std::ffi::c_void;
use std::rc::Rc;

use pyo3::exceptions::{PyMemoryError, PyValueError};
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyInt, PyTuple};

use crate::kernels::CHUNK;
use crate::network::Lent;
use crate::real::{Precision, Real};
use crate::threads::share;

/// The parts of torch that the border uses, looked up once a process.
struct Library {
    tensor: Py<PyAny>,
    float32: Py<PyAny>,
    float64: Py<PyAny>,
    strided: Py<PyAny>,
    frombuffer: Py<PyAny>,
    /// References to a storage; absent in a torch that does not count them for us.
    storage_uses: Option<Py<PyAny>>,
}

impl Library {
    fn get(py: Python<'_>) -> PyResult<&'static Self> {
        static LIBRARY: PyOnceLock<Library> = PyOnceLock::new();
        LIBRARY.get_or_try_init(py, || {
            let torch = py.import("torch")?;
            Ok(Library {
                tensor: torch.getattr("Tensor")?.unbind(),
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
    py: Python<'py>,
    library: &'static Library,
    pub precision: Precision,
    plain: Bound<'py, PyAny>,
    shape: Bound<'py, PyTuple>,
    pub len: usize,
}

/// Why a tensor cannot be read where it lies.
enum Obstacle {
    /// It is of the wrong kind altogether; the words complete "the field returned a tensor ...".
    Wrong(String),
    /// Its elements are not laid out one after the other as they stand.
    Scattered,
}

/// Memory of copies that are done with, for the next ones: asking the system for pages costs more
/// than filling them.
pub type Pool<T> = Rc<RefCell<Vec<Vec<T>>>>;

/// A copy of what a field returned.
pub struct Slope<T> {
    values: Vec<T>,
    pool: Pool<T>,
}

impl<T: Real> Slope<T> {
    /// `len` numbers that `fill` writes, in memory from the pool.
    pub fn written(
        pool: &Pool<T>,
        len: usize,
        fill: impl FnOnce(&mut [T]) -> PyResult<()>,
    ) -> PyResult<Self> {
        let mut values = pool.borrow_mut().pop().unwrap_or_default();
        values.resize(len, T::ZERO);
        let mut slope = Slope { values, pool: Rc::clone(pool) };
        fill(&mut slope.values)?;
        Ok(slope)
    }
}

impl<T> AsRef<[T]> for Slope<T> {
    fn as_ref(&self) -> &[T] {
        &self.values
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
        Ok(Torch { py, library, precision, plain, shape, len })
    }

    /// The same for tensors of another number of rows.
    pub fn with_rows(&self, rows: usize) -> PyResult<Self> {
        let shape = self.shape.to_list();
        let before: usize = shape.get_item(0)?.extract()?;
        shape.set_item(0, rows)?;
        let shape = shape.to_tuple();
        let len = self.len / before.max(1) * rows;
        let Torch { py, library, precision, .. } = *self;
        Ok(Torch { py, library, precision, plain: self.plain.clone(), shape, len })
    }

    /// The same for a matrix of so many columns for each element of the rows.
    pub fn with_columns(&self, columns: usize) -> PyResult<Self> {
        let shape = self.shape.to_list();
        shape.append(columns)?;
        let (shape, len) = (shape.to_tuple(), self.len * columns);
        Ok(Torch { shape, len, plain: self.plain.clone(), ..*self })
    }

    fn dtype(&self) -> &Bound<'py, PyAny> {
        match self.precision {
            Precision::Single => self.library.float32.bind(self.py),
            Precision::Double => self.library.float64.bind(self.py),
        }
    }

    /// The address of the first element of a tensor of torch's own class, all of whose `len`
    /// elements can be read there.
    fn locate<T: Real>(
        &self,
        tensor: &Bound<'py, PyAny>,
        shape: &Bound<'py, PyTuple>,
        len: usize,
    ) -> PyResult<Result<*mut T, Obstacle>> {
        let py = self.py;
        let wrong = |what: String| Ok(Err(Obstacle::Wrong(what)));
        let yes = |method| -> PyResult<bool> { tensor.call_method0(method)?.is_truthy() };
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
        if !yes(intern!(py, "is_contiguous"))? || yes(intern!(py, "is_neg"))? {
            return Ok(Err(Obstacle::Scattered));
        }
        let address: usize = tensor.call_method0(intern!(py, "data_ptr"))?.extract()?;
        if len == 0 {
            return Ok(Ok(std::ptr::NonNull::dangling().as_ptr()));
        }
        let storage = tensor.call_method0(intern!(py, "untyped_storage"))?;
        let start: usize = storage.call_method0(intern!(py, "data_ptr"))?.extract()?;
        let bytes: usize = storage.call_method0(intern!(py, "nbytes"))?.extract()?;
        // A storage can be made smaller than the tensors on it believe it to be.
        let end = len.checked_mul(size_of::<T>()).and_then(|n| address.checked_add(n));
        let inside = start != 0
            && address >= start
            && end.zip(start.checked_add(bytes)).is_some_and(|(end, limit)| end <= limit);
        if !inside || !address.is_multiple_of(align_of::<T>()) {
            return wrong(format!("whose memory ({bytes} bytes) does not hold its {len} elements"));
        }
        Ok(Ok(address as *mut T))
    }

    /// Copy what a field returned.
    pub fn take<T: Real>(&self, result: Bound<'py, PyAny>, pool: &Pool<T>) -> PyResult<Slope<T>> {
        let mut result = result;
        if !result.get_type().is(&self.library.tensor) {
            if !result.is_instance(self.library.tensor.bind(self.py))? {
                let kind = result.get_type().name()?;
                return Err(self.error(format!("the field returned a {kind}, not a tensor")));
            }
            result = self.made_plain(result)?;
        }
        let at = match self.locate_or_say(&result)? {
            Ok(at) => at,
            Err(Obstacle::Wrong(what)) => {
                return Err(self.error(format!("the field returned a tensor {what}")));
            }
            Err(Obstacle::Scattered) => {
                result = self.made_plain(result)?;
                self.locate_or_say(&result)?.map_err(|_| self.without_memory())?
            }
        };
        let mut values = pool.borrow_mut().pop().unwrap_or_default();
        values.resize(self.len, T::ZERO);
        // SAFETY: `locate` has just shown that `len` elements lie at `at`, aligned, in a storage that
        // `result` keeps alive; the interpreter lock is held and no Python runs until the copy is
        // done.
        let result = unsafe { std::slice::from_raw_parts(at, self.len) };
        share(&mut values, CHUNK, 1, |from, out| {
            out.copy_from_slice(&result[from..from + out.len()]);
        });
        Ok(Slope { values, pool: Rc::clone(pool) })
    }

    fn locate_or_say<T: Real>(
        &self,
        result: &Bound<'py, PyAny>,
    ) -> PyResult<Result<*mut T, Obstacle>> {
        self.locate(result, &self.shape, self.len).map_err(|cause| self.caused(cause))
    }

    fn made_plain(&self, result: Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        self.plain.call1((result,)).map_err(|cause| self.caused(cause))
    }

    fn without_memory(&self) -> PyErr {
        self.raise(
            "the field returned a tensor without memory of its own (of a subclass, or inside a \
             transform of torch.func). Return a plain tensor, or use backend=\"torch\"."
                .into(),
        )
    }

    fn caused(&self, cause: PyErr) -> PyErr {
        let error = self.without_memory();
        error.set_cause(self.py, Some(cause));
        error
    }

    fn error(&self, what: String) -> PyErr {
        let remedy = "Return a new tensor of the state's shape, dtype and device.";
        self.raise(format!("{what}. {remedy}"))
    }

    fn raise(&self, message: String) -> PyErr {
        let error = || self.py.import("interp.errors")?.getattr("FieldError")?.call1((message,));
        error().map_or_else(|e| e, PyErr::from_value)
    }

    /// A new buffer, all zeros.
    pub fn buffer<T: Real>(&self) -> PyResult<Buffer<T>> {
        let memory = Memory::zeros(self.len * size_of::<T>())?;
        let at = memory.words.as_ptr().cast::<T>().cast_mut();
        let memory = Bound::new(self.py, memory)?;
        // torch makes no tensor of an empty buffer; an empty one has no memory to share.
        let flat = if self.len == 0 {
            self.library
                .tensor
                .bind(self.py)
                .call0()?
                .call_method1(intern!(self.py, "to"), (self.dtype(),))?
        } else {
            let keywords = pyo3::types::PyDict::new(self.py);
            keywords.set_item(intern!(self.py, "dtype"), self.dtype())?;
            self.library.frombuffer.bind(self.py).call((&memory,), Some(&keywords))?
        };
        let tensor = flat.call_method1(intern!(self.py, "view"), (&self.shape,))?;
        drop(flat);
        let storage = tensor.call_method0(intern!(self.py, "untyped_storage"))?;
        Ok(Buffer {
            shares: self.shares(&tensor, &storage)?,
            version: version(&tensor)?,
            address: tensor.call_method0(intern!(self.py, "data_ptr"))?.extract()?,
            tensor: tensor.unbind(),
            storage: storage.unbind(),
            _memory: memory.unbind(),
            at,
            len: self.len,
        })
    }

    /// How many ways lead to a tensor's memory: references to the tensor and its storage, in Python
    /// and in C++. None where this torch does not tell.
    fn shares(
        &self,
        tensor: &Bound<'py, PyAny>,
        storage: &Bound<'py, PyAny>,
    ) -> PyResult<Option<[usize; 4]>> {
        let Some(uses) = &self.library.storage_uses else { return Ok(None) };
        let Ok(count) = tensor.call_method0(intern!(self.py, "_use_count")) else {
            return Ok(None);
        };
        let address = storage.getattr(intern!(self.py, "_cdata"))?;
        Ok(Some([
            references(tensor),
            references(storage),
            count.extract()?,
            uses.bind(self.py).call1((address,))?.extract()?,
        ]))
    }
}

/// A tensor that is read where it lies: a weight, or an input of a network.
pub struct Borrowed {
    _tensor: Py<PyAny>,
    _storage: Py<PyAny>,
    at: usize,
    len: usize,
    precision: Precision,
}

impl Borrowed {
    /// A contiguous cpu tensor of this precision and shape.
    ///
    /// # Errors
    /// `FieldError` where it is not one.
    pub fn of(tensor: &Bound<'_, PyAny>, shape: &[usize], precision: Precision) -> PyResult<Self> {
        let py = tensor.py();
        let expected = PyTuple::new(py, shape)?;
        let library = Library::get(py)?;
        if !tensor.is_instance(library.tensor.bind(py))? {
            return Err(PyValueError::new_err("a weight or an input is not a tensor"));
        }
        let dtype = match precision {
            Precision::Single => library.float32.bind(py),
            Precision::Double => library.float64.bind(py),
        };
        let len = shape.iter().product();
        let torch = Torch::of(dtype, expected.clone(), len, py.None().into_bound(py))?;
        let found = match precision {
            Precision::Single => torch.locate::<f32>(tensor, &expected, len)?.map(|at| at as usize),
            Precision::Double => torch.locate::<f64>(tensor, &expected, len)?.map(|at| at as usize),
        };
        let wrong = |what: &str| {
            torch.raise(format!(
                "a weight or an input of a native network is a tensor {what}. It has to stay what it \
                 was when the network was compiled."
            ))
        };
        match found {
            Ok(at) => Ok(Borrowed {
                _storage: tensor.call_method0(intern!(py, "untyped_storage"))?.unbind(),
                _tensor: tensor.clone().unbind(),
                at,
                len,
                precision,
            }),
            Err(Obstacle::Wrong(what)) => Err(wrong(&what)),
            Err(Obstacle::Scattered) => Err(wrong("that is not contiguous")),
        }
    }

    /// Whether the two share memory.
    pub fn overlaps(&self, other: &Self) -> bool {
        let bytes = |v: &Self| match v.precision {
            Precision::Single => v.len * 4,
            Precision::Double => v.len * 8,
        };
        let empty = self.len == 0 || other.len == 0;
        !empty && self.at < other.at + bytes(other) && other.at < self.at + bytes(self)
    }

    /// Its numbers.
    ///
    /// # Safety
    /// Nobody may resize the tensor's storage while they are read. With the interpreter lock held
    /// nobody can; without it, it is the rule that torch's own operations rely on.
    pub unsafe fn numbers(&self) -> Lent<'_> {
        // SAFETY: `of` has shown that `len` elements of this type lie at `at`, aligned, in a storage
        // that we keep alive; that it has not been resized since is the caller's promise.
        unsafe {
            match self.precision {
                Precision::Single => {
                    Lent::Single(std::slice::from_raw_parts(self.at as *const f32, self.len))
                }
                Precision::Double => {
                    Lent::Double(std::slice::from_raw_parts(self.at as *const f64, self.len))
                }
            }
        }
    }

    /// The same to write to.
    ///
    /// # Safety
    /// As for [`Borrowed::numbers`], and nothing else may refer to them.
    pub unsafe fn numbers_mut<T: Real>(&mut self) -> Option<&mut [T]> {
        if T::PRECISION != self.precision {
            return None;
        }
        // SAFETY: as above.
        Some(unsafe { std::slice::from_raw_parts_mut(self.at as *mut T, self.len) })
    }
}

/// Memory that Rust owns and lends to torch by the buffer protocol. torch cannot resize it, and it
/// lives for as long as anybody, here or there, refers to it.
#[pyclass(frozen)]
pub struct Memory {
    words: Vec<UnsafeCell<u64>>,
    bytes: usize,
}

// SAFETY: nothing reads or writes the words through a `&Memory`; who uses its address answers for
// that (`Buffer` on our side, torch on the other, as with any two tensors on one storage).
unsafe impl Sync for Memory {}

impl Memory {
    /// Zeros, or an error where there is no room for them.
    fn zeros(bytes: usize) -> PyResult<Self> {
        let count = bytes.div_ceil(8);
        let mut words = Vec::new();
        words
            .try_reserve_exact(count)
            .map_err(|_| PyMemoryError::new_err(format!("no room for a state of {bytes} bytes")))?;
        words.resize_with(count, || UnsafeCell::new(0));
        Ok(Memory { words, bytes })
    }
}

#[pymethods]
impl Memory {
    /// Lend the memory, writable.
    ///
    /// # Safety
    /// Called by the interpreter with a valid `view`; the memory is never moved or freed before the
    /// last reference to `slf`, of which the view holds one.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: std::ffi::c_int,
    ) -> PyResult<()> {
        let memory = slf.get();
        let at = memory.words.as_ptr().cast::<c_void>().cast_mut();
        let len = memory.bytes as ffi::Py_ssize_t;
        // SAFETY: `at` is the start of `bytes` bytes that live as long as `slf`.
        let status = unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), at, len, 0, flags) };
        if status == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}

/// A state: memory of ours, and the tensor by which Python sees it.
pub struct Buffer<T> {
    pub tensor: Py<PyAny>,
    storage: Py<PyAny>,
    /// The ways to the memory when only this buffer had it.
    shares: Option<[usize; 4]>,
    version: u64,
    address: usize,
    _memory: Py<Memory>,
    at: *mut T,
    len: usize,
}

impl<T: Real> Buffer<T> {
    /// A buffer with the content of a contiguous tensor.
    pub fn of<'py>(torch: &Torch<'py>, tensor: &Bound<'py, PyAny>) -> PyResult<Self> {
        let Ok(at) = torch.locate::<T>(tensor, &torch.shape, torch.len)? else {
            return Err(torch.raise("a state is not a contiguous cpu tensor. Pass one.".into()));
        };
        let mut buffer = torch.buffer()?;
        // SAFETY: as in `Torch::take`.
        buffer.as_mut().copy_from_slice(unsafe { std::slice::from_raw_parts(at, torch.len) });
        Ok(buffer)
    }

    /// Whether the tensor still is what it was made as: our memory is safe whatever was done to it,
    /// but the next call must not see another tensor.
    fn whole(&self, torch: &Torch<'_>) -> PyResult<bool> {
        let (py, tensor) = (torch.py, self.tensor.bind(torch.py));
        let address: usize = tensor.call_method0(intern!(py, "data_ptr"))?.extract()?;
        Ok(address == self.address
            && tensor.getattr(intern!(py, "shape"))?.eq(&torch.shape)?
            && tensor.getattr(intern!(py, "dtype"))?.is(torch.dtype())
            && tensor.call_method0(intern!(py, "is_contiguous"))?.is_truthy()?)
    }

    /// Whether somebody else kept a reference to the memory.
    fn shared(&self, torch: &Torch<'_>) -> PyResult<bool> {
        let shares = torch.shares(self.tensor.bind(torch.py), self.storage.bind(torch.py))?;
        Ok(shares.is_none() || shares != self.shares)
    }

    /// The buffer for another use: itself, or a new one where Python did something to it or kept it.
    pub fn renewed(self, torch: &Torch<'_>) -> PyResult<Self> {
        let untouched = self.whole(torch)?
            && version(self.tensor.bind(torch.py))? == self.version
            && !self.shared(torch)?;
        if untouched { Ok(self) } else { torch.buffer() }
    }

    /// After Python had the tensor: check that it is whole and unchanged, and if somebody kept a
    /// reference to it, leave it to them and go on in a copy.
    pub fn reclaim(&mut self, torch: &Torch<'_>, who: &str) -> PyResult<()> {
        if !self.whole(torch)? {
            return Err(torch.raise(format!(
                "{who} changed the memory of the state that it was given (resized, freed or \
                 re-typed it). Work on a copy: x.clone()."
            )));
        }
        if version(self.tensor.bind(torch.py))? != self.version {
            return Err(torch.raise(format!(
                "{who} wrote into the state that it was given. Work on a copy: x.clone()."
            )));
        }
        if self.shared(torch)? {
            let mut copy = torch.buffer::<T>()?;
            copy.as_mut().copy_from_slice(self.as_ref());
            *self = copy;
        }
        Ok(())
    }
}

/// Python references to an object.
fn references(object: &Bound<'_, PyAny>) -> usize {
    // SAFETY: `object` is a live reference, held with the interpreter lock.
    unsafe { ffi::Py_REFCNT(object.as_ptr()) as usize }
}

fn version(tensor: &Bound<'_, PyAny>) -> PyResult<u64> {
    tensor.getattr(intern!(tensor.py(), "_version"))?.extract()
}

impl<T> AsRef<[T]> for Buffer<T> {
    fn as_ref(&self) -> &[T] {
        // SAFETY: `at` is the start of `len` elements of `_memory`, which is never resized and lives
        // as long as this buffer; it is zeroed, and any bits are a number.
        unsafe { std::slice::from_raw_parts(self.at, self.len) }
    }
}

impl<T> AsMut<[T]> for Buffer<T> {
    fn as_mut(&mut self) -> &mut [T] {
        // SAFETY: as for reading; between calls of Python only this buffer refers to the memory
        // (`reclaim`), and `&mut self` is the only access from our side.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.len) }
    }
}

/// The elements of a tensor that a caller of ours has made to be filled.
pub fn writable<'a, T: Real>(tensor: &'a mut Bound<'_, PyAny>) -> PyResult<&'a mut [T]> {
    let torch = Torch::like(tensor, tensor.py().None().into_bound(tensor.py()))?;
    if torch.precision != T::PRECISION {
        return Err(PyValueError::new_err(format!("a tensor to fill is not of {}", T::DTYPE)));
    }
    match torch.locate::<T>(tensor, &torch.shape, torch.len)? {
        // SAFETY: `len` elements lie at `at`, in the storage of a tensor that the caller holds and
        // has handed to nobody else.
        Ok(at) => Ok(unsafe { std::slice::from_raw_parts_mut(at, torch.len) }),
        Err(_) => Err(PyValueError::new_err("a tensor to fill is not contiguous on the cpu")),
    }
}

/// The tensor into which output times are written, one state after the other.
pub struct Outputs<'py> {
    tensor: Bound<'py, PyAny>,
    shape: Bound<'py, PyTuple>,
    count: usize,
}

impl<'py> Outputs<'py> {
    pub fn new(torch: &Torch<'py>, tensor: Bound<'py, PyAny>, count: usize) -> PyResult<Self> {
        let own = torch.shape.to_list();
        own.insert(0, PyInt::new(torch.py, count))?;
        Ok(Outputs { tensor, shape: own.to_tuple(), count })
    }

    /// The place of the `index`-th state, looked up anew.
    pub fn place<T: Real>(&mut self, torch: &Torch<'py>, index: usize) -> PyResult<&mut [T]> {
        let all = self.count * torch.len;
        match torch.locate::<T>(&self.tensor, &self.shape, all)? {
            // SAFETY: `all` elements lie at `at`, in the storage of a tensor that we hold a reference
            // to and that only the calling `solve` knows; the lock is held until it is written, and
            // `index < count` is checked here.
            Ok(at) if index < self.count => {
                Ok(unsafe { std::slice::from_raw_parts_mut(at.add(index * torch.len), torch.len) })
            }
            _ => Err(torch.raise("the tensor for output times does not hold them.".into())),
        }
    }
}
