//! Tensors by one call of a C function: the table that torch puts on its tensor class.
//!
//! DLPack 1.3 (`__dlpack_c_exchange_api__`, torch 2.10 and later): what a tensor is, without asking it
//! attribute by attribute, and a tensor on memory of ours. Where there is no table, Python is asked.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;

use pyo3::ffi;
use pyo3::prelude::*;

use crate::real::{Precision, Real};

/// The name of the table's capsule.
const NAME: &std::ffi::CStr = c"dlpack_exchange_api";
/// The version whose layout is the one below; a minor one only adds to it.
const VERSION: [u32; 2] = [1, 3];
const CPU: i32 = 1;
const FLOAT: u8 = 2;

/// `DLTensor`.
#[repr(C)]
struct Description {
    data: *mut c_void,
    device: [i32; 2],
    ndim: i32,
    code: u8,
    bits: u8,
    lanes: u16,
    shape: *const i64,
    strides: *const i64,
    offset: u64,
}

/// `DLManagedTensorVersioned`.
#[repr(C)]
struct Managed {
    version: [u32; 2],
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Managed)>,
    flags: u64,
    tensor: Description,
}

/// `DLPackExchangeAPI`, as far as it is used here.
#[repr(C)]
struct Table {
    version: [u32; 2],
    previous: *const c_void,
    allocate: *const c_void,
    lend: *const c_void,
    adopt: Option<unsafe extern "C" fn(*mut Managed, *mut *mut c_void) -> c_int>,
    describe: Option<unsafe extern "C" fn(*mut c_void, *mut Description) -> c_int>,
}

/// Torch's functions.
pub struct Exchange(&'static Table);

// SAFETY: the table is constant, and its functions are called with the interpreter lock held.
unsafe impl Send for Exchange {}
// SAFETY: as above.
unsafe impl Sync for Exchange {}

impl Exchange {
    /// Those of torch's tensor class; None where it has none, or another version of them.
    pub fn of(class: &Bound<'_, PyAny>) -> Option<Self> {
        let capsule = class.getattr("__dlpack_c_exchange_api__").ok()?;
        // SAFETY: a live object; the call takes any.
        if unsafe { ffi::PyCapsule_IsValid(capsule.as_ptr(), NAME.as_ptr()) } == 0 {
            return None;
        }
        // SAFETY: just found valid under that name, which says what it points to, for as long as the
        // process lives. Every version begins with its version.
        let table = unsafe {
            let at = ffi::PyCapsule_GetPointer(capsule.as_ptr(), NAME.as_ptr());
            let version = at.cast::<[u32; 2]>().read();
            if version[0] != VERSION[0] || version[1] < VERSION[1] {
                return None;
            }
            &*at.cast::<Table>()
        };
        (table.adopt.is_some() && table.describe.is_some()).then_some(Exchange(table))
    }

    /// The address of a tensor of this precision and shape that lies dense on the cpu; None for any
    /// other, and for whatever is no tensor.
    pub fn dense(
        &self,
        tensor: &Bound<'_, PyAny>,
        precision: Precision,
        shape: &[i64],
    ) -> Option<usize> {
        let mut seen = MaybeUninit::<Description>::uninit();
        // SAFETY: a live object, and the lock is held. The function describes a tensor or raises.
        let seen = unsafe {
            if self.0.describe?(tensor.as_ptr().cast(), seen.as_mut_ptr()) != 0 {
                ffi::PyErr_Clear();
                return None;
            }
            seen.assume_init()
        };
        let same = seen.device[0] == CPU
            && (seen.code, seen.bits, seen.lanes) == (FLOAT, bits(precision), 1)
            && usize::try_from(seen.ndim) == Ok(shape.len());
        if !same {
            return None;
        }
        let mut dense = 1;
        for i in (0..shape.len()).rev() {
            // SAFETY: both point to `ndim` numbers of the tensor, which lives and has not been touched.
            let (size, stride) = unsafe { (*seen.shape.add(i), *seen.strides.add(i)) };
            if size != shape[i] || (size != 1 && stride != dense) {
                return None;
            }
            dense *= size;
        }
        (seen.data as usize).checked_add(usize::try_from(seen.offset).ok()?)
    }

    /// A tensor of this shape at `at`. `owner` is dropped with the last reference to its memory.
    ///
    /// # Safety
    /// As many numbers lie at `at`, writable for as long as `owner` lives.
    pub unsafe fn tensor<'py, T: Real, O: Send>(
        &self,
        py: Python<'py>,
        at: *mut T,
        shape: &[i64],
        owner: O,
    ) -> PyResult<Bound<'py, PyAny>> {
        /// What is kept for as long as torch has the tensor.
        struct Lent<O> {
            managed: Managed,
            shape: Vec<i64>,
            strides: Vec<i64>,
            _owner: O,
        }
        unsafe extern "C" fn done<O>(managed: *mut Managed) {
            // SAFETY: called once, with what was handed over below; the context is its box.
            drop(unsafe { Box::from_raw((*managed).context.cast::<Lent<O>>()) });
        }
        let mut strides = vec![1; shape.len()];
        for i in (1..shape.len()).rev() {
            strides[i - 1] = strides[i] * shape[i];
        }
        let tensor = Description {
            data: at.cast(),
            device: [CPU, 0],
            ndim: shape.len() as i32,
            code: FLOAT,
            bits: bits(T::PRECISION),
            lanes: 1,
            shape: std::ptr::null(),
            strides: std::ptr::null(),
            offset: 0,
        };
        let managed = Managed {
            version: VERSION,
            context: std::ptr::null_mut(),
            deleter: Some(done::<O>),
            flags: 0,
            tensor,
        };
        let lent = Lent { managed, shape: shape.to_vec(), strides, _owner: owner };
        let lent = Box::into_raw(Box::new(lent));
        // SAFETY: the box that was just made; it stays where it is until `done`.
        let managed = unsafe {
            (*lent).managed.context = lent.cast();
            (*lent).managed.tensor.shape = (*lent).shape.as_ptr();
            (*lent).managed.tensor.strides = (*lent).strides.as_ptr();
            &raw mut (*lent).managed
        };
        let mut made = std::ptr::null_mut::<c_void>();
        let Some(adopt) = self.0.adopt else { unreachable!("looked for in `of`") };
        // SAFETY: the tensor is torch's from here on; on success `made` is a new reference.
        unsafe {
            if adopt(managed, &raw mut made) != 0 {
                return Err(PyErr::fetch(py));
            }
            Bound::from_owned_ptr_or_err(py, made.cast())
        }
    }
}

fn bits(precision: Precision) -> u8 {
    match precision {
        Precision::Single => 32,
        Precision::Double => 64,
    }
}
