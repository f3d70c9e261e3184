//! Taking a tensor.

use std::ptr::NonNull;

use half::{bf16, f16};

use super::DlPackError;
use super::abi::{self, DlManagedTensor, DlManagedTensorVersioned, DlTensor};
use crate::api::{TensorView, TensorViewMut};
use crate::device::DeviceTensor;
use crate::error::{Error, Invalid, Operand};
use crate::problem::{DType, Element, Layout, TensorSpec};

/// Where the elements of a tensor are.
///
/// Example: [`dlpack`](crate::dlpack).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// Host memory, page-locked or not.
    Host,
    /// Memory of the CUDA device of this index.
    Cuda(usize),
}

/// A tensor of another library. Dropping it tells that library that it is no longer needed.
///
/// Example: [`dlpack`](crate::dlpack).
#[derive(Debug)]
pub struct Import {
    managed: Managed,
    spec: TensorSpec,
    place: Place,
    /// Address of element `[0, 0, 0, 0]`; null only without elements.
    first: *mut u8,
    writable: bool,
}

/// The struct that was handed over; freed exactly once, when dropped.
#[derive(Debug)]
enum Managed {
    Versioned(NonNull<DlManagedTensorVersioned>),
    Legacy(NonNull<DlManagedTensor>),
}

impl Drop for Managed {
    fn drop(&mut self) {
        // SAFETY: the producer promised a struct that lives until its deleter is called, once, which is here.
        unsafe {
            match *self {
                Managed::Versioned(tensor) => {
                    if let Some(deleter) = (*tensor.as_ptr()).deleter {
                        deleter(tensor.as_ptr());
                    }
                }
                Managed::Legacy(tensor) => {
                    if let Some(deleter) = (*tensor.as_ptr()).deleter {
                        deleter(tensor.as_ptr());
                    }
                }
            }
        }
    }
}

impl Import {
    /// Takes over `tensor`, a `DLManagedTensorVersioned` of four axes in the order that `layout` says: batch,
    /// heads, tokens, features ([`Layout::Hnd`]) or batch, tokens, heads, features ([`Layout::Nhd`]).
    ///
    /// # Safety
    ///
    /// `tensor` is null or a live struct laid out as its version says, which nobody else uses or frees from
    /// now on. The memory that its shape and strides reach stays valid until the deleter is called, and as
    /// long as a view of it is alive nobody writes it, nor reads it if the view is mutable.
    ///
    /// # Errors
    ///
    /// [`DlPackError`] or [`Invalid`]; the tensor is then given back to its producer.
    pub unsafe fn versioned(tensor: *mut DlManagedTensorVersioned, layout: Layout) -> Result<Import, Error> {
        let tensor = NonNull::new(tensor).ok_or(DlPackError::Null { what: "the address" }).map_err(Invalid::from)?;
        let managed = Managed::Versioned(tensor);
        // SAFETY: a live struct; its version and everything up to the flags never move.
        let version = unsafe { (*tensor.as_ptr()).version };
        if version.major != abi::VERSION.major {
            let (major, minor) = (version.major, version.minor);
            return Err(Invalid::from(DlPackError::Version { major, minor }).into());
        }
        // SAFETY: a live struct of the version we know.
        let (flags, inner) = unsafe { ((*tensor.as_ptr()).flags, (*tensor.as_ptr()).dl_tensor) };
        // SAFETY: forwarded contract.
        unsafe { Import::new(managed, &inner, flags & abi::READ_ONLY == 0, layout) }
    }

    /// [`Import::versioned`] of a `DLManagedTensor`, the struct before version 1.
    ///
    /// # Safety
    ///
    /// As [`Import::versioned`].
    ///
    /// # Errors
    ///
    /// As [`Import::versioned`].
    pub unsafe fn legacy(tensor: *mut DlManagedTensor, layout: Layout) -> Result<Import, Error> {
        let tensor = NonNull::new(tensor).ok_or(DlPackError::Null { what: "the address" }).map_err(Invalid::from)?;
        let managed = Managed::Legacy(tensor);
        // SAFETY: a live struct.
        let inner = unsafe { (*tensor.as_ptr()).dl_tensor };
        // SAFETY: forwarded contract.
        unsafe { Import::new(managed, &inner, true, layout) }
    }

    /// # Safety
    ///
    /// As [`Import::versioned`].
    unsafe fn new(managed: Managed, tensor: &DlTensor, writable: bool, layout: Layout) -> Result<Import, Error> {
        // SAFETY: forwarded contract.
        let spec = unsafe { spec(tensor, layout) }?;
        let place = place(tensor.device).map_err(Invalid::from)?;
        let first = tensor.data.cast::<u8>().wrapping_add(tensor.byte_offset as usize);
        if !spec.is_empty() {
            if tensor.data.is_null() {
                return Err(Invalid::from(DlPackError::Null { what: "the data" }).into());
            }
            let (address, align) = (first.addr(), spec.dtype.bytes());
            if !address.is_multiple_of(align) {
                return Err(Invalid::from(DlPackError::Misaligned { address, align }).into());
            }
        }
        Ok(Import { managed, spec, place, first, writable })
    }

    /// Type, shape `[B, H, tokens, D]` and strides.
    pub fn spec(&self) -> &TensorSpec {
        &self.spec
    }

    /// Where the elements are.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Whether the producer allows writing.
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// The tensor, if it is in host memory.
    ///
    /// # Errors
    ///
    /// [`DlPackError::Device`] if it is not.
    pub fn view(&self) -> Result<TensorView<'_>, Error> {
        self.check_host()?;
        match self.spec.dtype {
            DType::F16 => self.view_as::<f16>(),
            DType::BF16 => self.view_as::<bf16>(),
            DType::F32 => self.view_as::<f32>(),
        }
    }

    /// The tensor as an output, if it is in host memory.
    ///
    /// # Errors
    ///
    /// [`DlPackError::Device`] if it is not, [`DlPackError::ReadOnly`] if the producer forbids writing,
    /// [`Invalid::OutputOverlap`] if two entries may share memory.
    pub fn view_mut(&mut self) -> Result<TensorViewMut<'_>, Error> {
        self.check_host()?;
        if !self.writable {
            return Err(Invalid::from(DlPackError::ReadOnly).into());
        }
        match self.spec.dtype {
            DType::F16 => self.view_mut_as::<f16>(),
            DType::BF16 => self.view_mut_as::<bf16>(),
            DType::F32 => self.view_mut_as::<f32>(),
        }
    }

    /// The tensor as a launch takes it, if it is in the memory of a CUDA device. Keep the import until the
    /// stream has run the launch.
    ///
    /// # Errors
    ///
    /// [`DlPackError::Device`] if it is in host memory.
    pub fn device_tensor(&self) -> Result<DeviceTensor, Error> {
        match self.place {
            Place::Cuda(_) => Ok(DeviceTensor { ptr: self.first.addr() as u64, spec: self.spec }),
            Place::Host => Err(self.wrong_place("a CUDA device (2 or 13)")),
        }
    }

    fn check_host(&self) -> Result<(), Error> {
        match self.place {
            Place::Host => Ok(()),
            Place::Cuda(_) => Err(self.wrong_place("host memory (1 or 3)")),
        }
    }

    fn wrong_place(&self, needed: &'static str) -> Error {
        let tensor = match self.managed {
            // SAFETY: the struct lives until `managed` is dropped.
            Managed::Versioned(tensor) => unsafe { (*tensor.as_ptr()).dl_tensor },
            // SAFETY: as above.
            Managed::Legacy(tensor) => unsafe { (*tensor.as_ptr()).dl_tensor },
        };
        let abi::DlDevice { device_type, device_id } = tensor.device;
        Invalid::from(DlPackError::Device { device_type, device_id, needed }).into()
    }

    fn view_as<T: Element>(&self) -> Result<TensorView<'_>, Error> {
        let len = self.spec.span_elems(Operand::Tensor)?;
        let elements: &[T] = match len {
            0 => &[],
            // SAFETY: host memory that the producer keeps valid until `self` is dropped and that nobody
            // writes meanwhile; the address is a multiple of the element's size and the span was computed
            // from the producer's shape and strides. Every bit pattern is an element.
            _ => unsafe { std::slice::from_raw_parts(self.first.cast::<T>(), len) },
        };
        TensorView::new(elements, &self.spec.shape, Layout::Strides(self.spec.strides))
    }

    fn view_mut_as<T: Element>(&mut self) -> Result<TensorViewMut<'_>, Error> {
        let len = self.spec.span_elems(Operand::Out)?;
        let elements: &mut [T] = match len {
            0 => &mut [],
            // SAFETY: as for `view_as`; nobody else reads or writes it either, as the importer promised.
            _ => unsafe { std::slice::from_raw_parts_mut(self.first.cast::<T>(), len) },
        };
        TensorViewMut::new(elements, &self.spec.shape, Layout::Strides(self.spec.strides))
    }
}

/// Type, shape and strides of `tensor`.
///
/// # Safety
///
/// The shape has `ndim` extents and so have the strides, if they are not null.
unsafe fn spec(tensor: &DlTensor, layout: Layout) -> Result<TensorSpec, Error> {
    if tensor.ndim != 4 {
        return Err(Invalid::Rank { tensor: Operand::Tensor, rank: tensor.ndim.max(0) as usize }.into());
    }
    if matches!(layout, Layout::Strides(_)) {
        return Err(Invalid::from(DlPackError::Strides).into());
    }
    let dtype = DType::try_from(tensor.dtype).map_err(Invalid::from)?;
    if tensor.shape.is_null() {
        return Err(Invalid::from(DlPackError::Null { what: "the shape" }).into());
    }
    // SAFETY: four extents, as `ndim` says. They need not be aligned to be read.
    let extents: [i64; 4] = unsafe { tensor.shape.cast::<[i64; 4]>().read_unaligned() };
    let negative = || Invalid::from(DlPackError::Extent { shape: extents });
    let mut shape = [0usize; 4];
    for (to, &extent) in shape.iter_mut().zip(&extents) {
        *to = usize::try_from(extent).map_err(|_| negative())?;
    }
    let mut spec = TensorSpec::new(Operand::Tensor, dtype, &shape, layout)?;
    if !tensor.strides.is_null() {
        // SAFETY: as for the shape.
        let [batch, x, y, feature]: [i64; 4] = unsafe { tensor.strides.cast::<[i64; 4]>().read_unaligned() };
        spec.strides = match layout {
            Layout::Nhd => [batch, y, x, feature],
            _ => [batch, x, y, feature],
        };
    }
    spec.check(Operand::Tensor, false)?;
    Ok(spec)
}

fn place(device: abi::DlDevice) -> Result<Place, DlPackError> {
    let abi::DlDevice { device_type, device_id } = device;
    let unknown =
        || DlPackError::Device { device_type, device_id, needed: "host memory (1 or 3) or a CUDA device (2 or 13)" };
    match device_type {
        abi::CPU | abi::CUDA_HOST => Ok(Place::Host),
        abi::CUDA | abi::CUDA_MANAGED => Ok(Place::Cuda(usize::try_from(device_id).map_err(|_| unknown())?)),
        _ => Err(unknown()),
    }
}
