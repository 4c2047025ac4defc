//! Reading and writing the memory of torch's tensors, and when that is safe.
//!
//! Nothing here trusts a pointer for longer than it can be sure of it:
//! * Every tensor that comes back from Python is looked at anew: type, dtype, device, shape, strides,
//!   the lazy negation bit, and that its storage still covers its elements ([`Torch::locate`]).
//! * A result is read in place only while nobody else can reach it: the only Python reference, the
//!   only C++ reference, the only view of its storage ([`Torch::exclusive`]). All else is copied
//!   while the interpreter lock is held.
//! * A buffer that was handed to Python is used again only if it came back whole and unshared; else
//!   its content moves to a new one ([`Buffer::reclaim`]).

use std::cell::RefCell;
use std::rc::Rc;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyInt, PyTuple};

use crate::real::Real;

/// Results of at most this many elements are copied without asking who else holds them: the copy is
/// cheaper than the question.
const SMALL: usize = 4096;

/// What the border needs of torch, looked up once a solve.
pub struct Torch<'py> {
    py: Python<'py>,
    tensor: Bound<'py, PyAny>,
    dtype: Bound<'py, PyAny>,
    strided: Bound<'py, PyAny>,
    empty_like: Bound<'py, PyAny>,
    /// References to a storage; absent in a torch that does not count them for us.
    storage_uses: Option<Bound<'py, PyAny>>,
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

impl<'py> Torch<'py> {
    /// Everything about tensors like `state`. `plain(result)` is Python's way to make a contiguous
    /// tensor of torch's own class out of whatever kind of tensor a field returned.
    pub fn like<T: Real>(state: &Bound<'py, PyAny>, plain: Bound<'py, PyAny>) -> PyResult<Self> {
        let py = state.py();
        let torch = py.import(intern!(py, "torch"))?;
        let shape = state.getattr(intern!(py, "shape"))?.cast_into::<PyTuple>()?;
        let uses = torch.getattr(intern!(py, "_C"))?.getattr(intern!(py, "_storage_Use_Count"));
        Ok(Torch {
            py,
            tensor: torch.getattr(intern!(py, "Tensor"))?,
            dtype: torch.getattr(T::DTYPE)?,
            strided: torch.getattr(intern!(py, "strided"))?,
            empty_like: torch.getattr(intern!(py, "empty_like"))?,
            storage_uses: uses.ok(),
            plain,
            len: state.call_method0(intern!(py, "numel"))?.extract()?,
            shape,
        })
    }

    fn yes(
        &self,
        tensor: &Bound<'py, PyAny>,
        method: &Bound<'py, pyo3::types::PyString>,
    ) -> PyResult<bool> {
        tensor.call_method0(method)?.is_truthy()
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
        let dtype = tensor.getattr(intern!(py, "dtype"))?;
        if !dtype.is(&self.dtype) {
            return wrong(format!("of dtype {dtype} where the state is {}", self.dtype));
        }
        if !tensor.getattr(intern!(py, "is_cpu"))?.is_truthy()? {
            let device = tensor.getattr(intern!(py, "device"))?;
            return wrong(format!("on the device {device} where the state is on the cpu"));
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
        let strided = tensor.getattr(intern!(py, "layout"))?.is(&self.strided);
        if !strided
            || !self.yes(tensor, intern!(py, "is_contiguous"))?
            || self.yes(tensor, intern!(py, "is_neg"))?
        {
            return Ok(Err(Obstacle::Scattered));
        }
        let address: usize = tensor.call_method0(intern!(py, "data_ptr"))?.extract()?;
        if len == 0 {
            return Ok(Ok(std::ptr::NonNull::dangling().as_ptr()));
        }
        let storage = tensor.call_method0(intern!(py, "untyped_storage"))?;
        let Extent { start, bytes } = Extent::of(&storage)?;
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

    /// Whether the given references are the only way, in Python or C++, to the tensor's memory.
    fn exclusive(&self, tensor: &Bound<'py, PyAny>, storage: &Bound<'py, PyAny>) -> PyResult<bool> {
        let py = self.py;
        let Some(uses) = &self.storage_uses else { return Ok(false) };
        if references(tensor) != 1 || references(storage) != 1 {
            return Ok(false);
        }
        let Ok(count) = tensor.call_method0(intern!(py, "_use_count")) else { return Ok(false) };
        let address = storage.getattr(intern!(py, "_cdata"))?;
        // The tensor and the Python object of its storage: two.
        Ok(count.extract::<usize>()? == 1 && uses.call1((address,))?.extract::<usize>()? == 2)
    }

    /// Whether a result's memory is torch's own and nobody else's.
    fn unshared(&self, result: &Bound<'py, PyAny>) -> PyResult<bool> {
        let storage = result.call_method0(intern!(self.py, "untyped_storage"))?;
        // Memory that is not torch's own (numpy's, say) may have owners that it does not know.
        Ok(self.exclusive(result, &storage)?
            && self.yes(&storage, intern!(self.py, "resizable"))?)
    }

    /// Take what a field returned: read it in place where that is safe, else copy it.
    pub fn take<T: Real>(&self, result: Bound<'py, PyAny>, pool: &Pool<T>) -> PyResult<Slope<T>> {
        let mut result = result;
        if !result.get_type().is(&self.tensor) {
            if !result.is_instance(&self.tensor)? {
                let kind = result.get_type().name()?;
                return Err(self.error(format!("the field returned a {kind}, not a tensor")));
            }
            result = self.plain.call1((result,))?;
        }
        let at = match self.locate::<T>(&result, &self.shape, self.len)? {
            Ok(at) => at,
            Err(Obstacle::Wrong(what)) => {
                return Err(self.error(format!("the field returned a tensor {what}")));
            }
            Err(Obstacle::Scattered) => {
                result = self.plain.call1((result,))?;
                match self.locate::<T>(&result, &self.shape, self.len)? {
                    Ok(at) => at,
                    Err(_) => {
                        return Err(self.error("the field returned a tensor without memory".into()));
                    }
                }
            }
        };
        if self.len > SMALL && self.unshared(&result)? {
            return Ok(Slope::Borrowed { at, len: self.len, _owner: result.unbind() });
        }
        let mut values = pool.borrow_mut().pop().unwrap_or_default();
        values.clear();
        // SAFETY: `locate` has just shown that `len` elements lie at `at`, aligned, in a storage that
        // `result` keeps alive; the interpreter lock is held and no Python runs until the copy is
        // done.
        values.extend_from_slice(unsafe { std::slice::from_raw_parts(at, self.len) });
        Ok(Slope::Copied { values, pool: Rc::clone(pool) })
    }

    pub fn error(&self, what: String) -> PyErr {
        let remedy = "Return a new tensor of the state's shape, dtype and device.";
        self.raise(format!("{what}. {remedy}"))
    }

    fn raise(&self, message: String) -> PyErr {
        let error = || self.py.import("interp.errors")?.getattr("FieldError")?.call1((message,));
        error().map_or_else(|e| e, |value| PyErr::from_value(value))
    }

    /// A new buffer beside another one, with whatever content.
    pub fn beside<T: Real>(&self, buffer: &Buffer<T>) -> PyResult<Buffer<T>> {
        Buffer::adopt(self, self.empty_like.call1((&buffer.tensor,))?)
    }
}

/// Memory of copies that are done with, for the next ones: asking the system for pages costs more
/// than filling them.
pub type Pool<T> = Rc<RefCell<Vec<Vec<T>>>>;

/// What a field returned: a tensor that only we can reach, or a copy.
pub enum Slope<T> {
    Borrowed { at: *const T, len: usize, _owner: Py<PyAny> },
    Copied { values: Vec<T>, pool: Pool<T> },
}

impl<T> Drop for Slope<T> {
    fn drop(&mut self) {
        if let Slope::Copied { values, pool } = self {
            pool.borrow_mut().push(std::mem::take(values));
        }
    }
}

impl<T> AsRef<[T]> for Slope<T> {
    fn as_ref(&self) -> &[T] {
        match self {
            // SAFETY: `Torch::take` found the tensor whole and exclusively ours; `_owner` keeps it
            // alive, and no Python code can reach it to change that.
            Slope::Borrowed { at, len, .. } => unsafe { std::slice::from_raw_parts(*at, *len) },
            Slope::Copied { values, .. } => values,
        }
    }
}

/// A state in a tensor of torch's: ours alone, except while it is handed to Python.
pub struct Buffer<T> {
    pub tensor: Py<PyAny>,
    storage: Py<PyAny>,
    extent: Extent,
    at: *mut T,
    len: usize,
    version: u64,
}

/// Where a storage lies and how long it is.
#[derive(PartialEq)]
struct Extent {
    start: usize,
    bytes: usize,
}

impl Extent {
    fn of(storage: &Bound<'_, PyAny>) -> PyResult<Self> {
        let py = storage.py();
        let start = storage.call_method0(intern!(py, "data_ptr"))?.extract()?;
        let bytes = storage.call_method0(intern!(py, "nbytes"))?.extract()?;
        Ok(Extent { start, bytes })
    }
}

impl<T: Real> Buffer<T> {
    /// Take over a tensor that nobody else uses.
    pub fn adopt<'py>(torch: &Torch<'py>, tensor: Bound<'py, PyAny>) -> PyResult<Self> {
        let Ok(at) = torch.locate(&tensor, &torch.shape, torch.len)? else {
            return Err(torch.raise("a state is not a contiguous cpu tensor. Pass one.".into()));
        };
        let storage = tensor.call_method0(intern!(torch.py, "untyped_storage"))?;
        Ok(Buffer {
            extent: Extent::of(&storage)?,
            storage: storage.unbind(),
            version: version(&tensor)?,
            tensor: tensor.unbind(),
            at,
            len: torch.len,
        })
    }

    /// After Python had the tensor: check that it is whole and unchanged, and if somebody kept a
    /// reference to it, leave it to them and go on in a copy.
    pub fn reclaim(&mut self, torch: &Torch<'_>, who: &str) -> PyResult<()> {
        let (tensor, storage) = (self.tensor.bind(torch.py), self.storage.bind(torch.py));
        // The storage is the one that was looked at when the buffer was made, and it is where and
        // what it was; so are the tensor's elements in it.
        let whole = Extent::of(storage)? == self.extent
            && tensor.getattr(intern!(torch.py, "shape"))?.eq(&torch.shape)?
            && tensor.call_method0(intern!(torch.py, "data_ptr"))?.extract::<usize>()?
                == if self.len == 0 { self.extent.start } else { self.at as usize }
            && torch.yes(tensor, intern!(torch.py, "is_contiguous"))?;
        if !whole {
            return Err(torch.raise(format!(
                "{who} changed the memory of the state that it was given (resized, freed or \
                 re-typed it). Work on a copy: x.clone()."
            )));
        }
        if version(tensor)? != self.version {
            return Err(torch.raise(format!(
                "{who} wrote into the state that it was given. Work on a copy: x.clone()."
            )));
        }
        if !torch.exclusive(tensor, storage)? {
            let mut copy = torch.beside(self)?;
            copy.as_mut().copy_from_slice(self.as_ref());
            *self = copy;
        }
        Ok(())
    }
}

/// Python references to an object.
fn references(object: &Bound<'_, PyAny>) -> isize {
    // SAFETY: `object` is a live reference, held with the interpreter lock.
    unsafe { pyo3::ffi::Py_REFCNT(object.as_ptr()) }
}

fn version(tensor: &Bound<'_, PyAny>) -> PyResult<u64> {
    tensor.getattr(intern!(tensor.py(), "_version"))?.extract()
}

impl<T> AsRef<[T]> for Buffer<T> {
    fn as_ref(&self) -> &[T] {
        // SAFETY: checked by `adopt`, and by `reclaim` each time Python had the tensor; in between
        // we hold the only reference to it.
        unsafe { std::slice::from_raw_parts(self.at, self.len) }
    }
}

impl<T> AsMut<[T]> for Buffer<T> {
    fn as_mut(&mut self) -> &mut [T] {
        // SAFETY: as for reading; `&mut self` is the only access from our side.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.len) }
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
            // to and that only the calling `solve` knows; `index < count` is checked below.
            Ok(at) if index < self.count => {
                Ok(unsafe { std::slice::from_raw_parts_mut(at.add(index * torch.len), torch.len) })
            }
            _ => Err(torch.raise("the tensor for output times does not hold them.".into())),
        }
    }
}
