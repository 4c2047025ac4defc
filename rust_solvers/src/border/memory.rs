//! Memory of ours that torch sees as a tensor: states. torch cannot resize it, and it lives for as
//! long as anybody, here or there, refers to it.

use std::ffi::c_void;
use std::sync::Arc;

use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;

use crate::block::Block;
use crate::kernels::CHUNK;
use crate::real::Real;
use crate::threads::share;

use super::tensor::{Torch, no_room};

/// The memory as Python's buffer protocol lends it, to a torch without [`super::dlpack`].
#[pyclass(frozen)]
pub struct Lender(Arc<Block>);

#[pymethods]
impl Lender {
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
        let memory = &slf.get().0;
        let (at, len) = (memory.address().cast::<c_void>(), memory.bytes() as ffi::Py_ssize_t);
        // SAFETY: `at` is the start of `bytes` bytes that live as long as `slf`.
        let status = unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), at, len, 0, flags) };
        if status == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}

/// A state: memory of ours, and the tensor by which Python sees it, made when it is first shown.
pub struct Buffer<T> {
    shown: Option<Shown>,
    memory: Arc<Block>,
    at: *mut T,
    len: usize,
}

/// The tensor on a state, and what it was like when only the buffer had it.
struct Shown {
    tensor: Py<PyAny>,
    storage: Py<PyAny>,
    /// The ways to the memory.
    shares: Option<[usize; 4]>,
    version: u64,
    address: usize,
}

impl<T: Real> Buffer<T> {
    /// A buffer with the content of a contiguous tensor.
    pub fn of<'py>(torch: &Torch<'py>, tensor: &Bound<'py, PyAny>) -> PyResult<Self> {
        let Ok(at) = torch.locate::<T>(tensor, &torch.shape, torch.len)? else {
            return Err(torch.raise("a state is not a contiguous cpu tensor. Pass one.".into()));
        };
        let mut buffer = torch.buffer()?;
        // SAFETY: as in `Torch::take`.
        let content = unsafe { std::slice::from_raw_parts(at, torch.len) };
        share(buffer.as_mut(), CHUNK, 1, |from, out| {
            out.copy_from_slice(&content[from..from + out.len()]);
        });
        Ok(buffer)
    }

    /// The tensor by which Python sees it.
    pub fn show<'py>(&mut self, torch: &Torch<'py>) -> PyResult<Bound<'py, PyAny>> {
        let shown = match self.shown.take() {
            Some(shown) => shown,
            None => torch.shown(self)?,
        };
        Ok(self.shown.insert(shown).tensor.bind(torch.py).clone())
    }

    /// The buffer for another content: itself, or a new one where Python re-typed it or kept it.
    pub fn renewed(self, torch: &Torch<'_>) -> PyResult<Self> {
        let ours = match &self.shown {
            Some(shown) => shown.whole(torch)? && !shown.shared(torch)?,
            None => true,
        };
        if ours { Ok(self) } else { torch.buffer() }
    }

    /// After Python had the tensor: check that it is whole and unchanged, and if somebody kept a
    /// reference to it, leave it to them and go on in a copy.
    pub fn reclaim(&mut self, torch: &Torch<'_>, who: &str) -> PyResult<()> {
        let Some(shown) = &self.shown else { return Ok(()) };
        if !shown.whole(torch)? {
            return Err(torch.raise(format!(
                "{who} changed the memory of the state that it was given (resized, freed or \
                 re-typed it). Work on a copy: x.clone()."
            )));
        }
        if version(shown.tensor.bind(torch.py))? != shown.version {
            return Err(torch.raise(format!(
                "{who} wrote into the state that it was given. Work on a copy: x.clone()."
            )));
        }
        if shown.shared(torch)? {
            let mut copy = torch.buffer::<T>()?;
            copy.as_mut().copy_from_slice(self.as_ref());
            *self = copy;
        }
        Ok(())
    }
}

impl Shown {
    /// Whether the tensor still is what it was made as: our memory is safe whatever was done to it,
    /// but the next call must not see another tensor.
    fn whole(&self, torch: &Torch<'_>) -> PyResult<bool> {
        let (py, tensor) = (torch.py, self.tensor.bind(torch.py));
        if torch.dense(tensor) == Some(self.address) {
            return Ok(true);
        }
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
        // SAFETY: `at` is the start of `len` elements of `memory`, which is never resized and lives
        // as long as this buffer; it has been written, and any bits are a number.
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

impl<'py> Torch<'py> {
    /// A new buffer, with whatever content.
    pub fn buffer<T: Real>(&self) -> PyResult<Buffer<T>> {
        let bytes = self.len * size_of::<T>();
        let memory = Arc::new(Block::new(bytes).ok_or_else(|| no_room(bytes))?);
        let at = memory.address().cast::<T>();
        Ok(Buffer { shown: None, memory, at, len: self.len })
    }

    /// A tensor on a buffer that Python has not seen yet.
    fn shown<T: Real>(&self, buffer: &Buffer<T>) -> PyResult<Shown> {
        let memory = &buffer.memory;
        let tensor = match &self.library.exchange {
            // SAFETY: `len` numbers of the memory, which the tensor's owner keeps. Torch and we agree
            // on who writes when (`reclaim`).
            Some(torch) if self.len > 0 && self.len == buffer.len => unsafe {
                torch.tensor(self.py, buffer.at, &self.sizes, Arc::clone(memory))?
            },
            _ => self.lent(memory)?,
        };
        let storage = tensor.call_method0(intern!(self.py, "untyped_storage"))?;
        Ok(Shown {
            shares: self.shares(&tensor, &storage)?,
            version: version(&tensor)?,
            address: tensor.call_method0(intern!(self.py, "data_ptr"))?.extract()?,
            tensor: tensor.unbind(),
            storage: storage.unbind(),
        })
    }

    /// A tensor on this memory, by the buffer protocol.
    fn lent(&self, memory: &Arc<Block>) -> PyResult<Bound<'py, PyAny>> {
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
            let lender = Bound::new(self.py, Lender(Arc::clone(memory)))?;
            self.library.frombuffer.bind(self.py).call((lender,), Some(&keywords))?
        };
        flat.call_method1(intern!(self.py, "view"), (&self.shape,))
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
