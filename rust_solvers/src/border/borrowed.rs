//! Memory of torch's that is read or written where it lies.

use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyInt, PyTuple};

use crate::network::Lent;
use crate::real::{Precision, Real};

use super::tensor::{Library, Obstacle, Torch, holder};

/// A tensor that is read where it lies: a weight, or an input of a network.
pub struct Borrowed {
    _tensor: Py<PyAny>,
    _storage: Py<PyAny>,
    at: usize,
    len: usize,
    precision: Precision,
}

/// What a borrowed tensor is to its caller: its name, and what to do where it is not as it should be.
#[derive(Clone, Copy)]
pub struct Role {
    pub name: &'static str,
    pub remedy: &'static str,
}

/// What a network reads.
pub const READ: Role = Role {
    name: "a weight or an input of a native network",
    remedy: "It has to stay what it was when the network was compiled.",
};

impl Borrowed {
    /// A contiguous cpu tensor of this precision and shape.
    ///
    /// # Errors
    /// `FieldError` where it is not one.
    pub fn of(
        tensor: &Bound<'_, PyAny>,
        shape: &[usize],
        precision: Precision,
        Role { name, remedy }: Role,
    ) -> PyResult<Self> {
        let py = tensor.py();
        let library = Library::get(py)?;
        let len = shape.iter().product::<usize>();
        let (bytes, align) = match precision {
            Precision::Single => (len * size_of::<f32>(), align_of::<f32>()),
            Precision::Double => (len * size_of::<f64>(), align_of::<f64>()),
        };
        let borrowed = |storage: Bound<'_, PyAny>, at| Borrowed {
            _storage: storage.unbind(),
            _tensor: tensor.clone().unbind(),
            at,
            len,
            precision,
        };
        let sizes: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
        let seen = library.exchange.as_ref().and_then(|t| t.dense(tensor, precision, &sizes));
        if let Some(at) = seen.filter(|at| len > 0 && at.is_multiple_of(align))
            && !tensor.call_method0(intern!(py, "is_neg"))?.is_truthy()?
            && let Ok(storage) = holder(tensor, at, bytes)?
        {
            return Ok(borrowed(storage, at));
        }
        if !tensor.is_instance(library.tensor.bind(py))? {
            return Err(PyValueError::new_err(format!("{name} is not a tensor. {remedy}")));
        }
        let dtype = match precision {
            Precision::Single => library.float32.bind(py),
            Precision::Double => library.float64.bind(py),
        };
        let expected = PyTuple::new(py, shape)?;
        let torch = Torch::of(dtype, expected.clone(), len, py.None().into_bound(py))?;
        let found = match precision {
            Precision::Single => torch.locate::<f32>(tensor, &expected, len)?.map(|at| at as usize),
            Precision::Double => torch.locate::<f64>(tensor, &expected, len)?.map(|at| at as usize),
        };
        let wrong = |what: &str| torch.raise(format!("{name} is a tensor {what}. {remedy}"));
        match found {
            Ok(at) => Ok(borrowed(tensor.call_method0(intern!(py, "untyped_storage"))?, at)),
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
