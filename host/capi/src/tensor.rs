//! Tensors of the caller.

use std::ffi::c_void;

use sage_attn::device::DeviceTensor;
use sage_attn::error::Operand;
use sage_attn::half::{bf16, f16};
use sage_attn::problem::TensorSpec;
use sage_attn::{DType, Element, Layout, TensorView, TensorViewMut};

use crate::status::{Failure, object};

/// Elements are IEEE half precision.
pub const SAGE_F16: i32 = 0;
/// Elements are bfloat16.
pub const SAGE_BF16: i32 = 1;
/// Elements are IEEE single precision.
pub const SAGE_F32: i32 = 2;

/// A tensor of four axes: batch, heads, tokens, features.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SageTensor {
    /// Address of the first element, in host or device memory as the function says. May be null if there
    /// are no elements.
    pub data: *mut c_void,
    /// `SAGE_F16`, `SAGE_BF16` or `SAGE_F32`.
    pub dtype: i32,
    /// Extents: batch, heads, tokens, features.
    pub shape: [usize; 4],
    /// Elements from one entry to the next along each axis. The last is 1 and the others are positive.
    pub strides: [i64; 4],
}

/// Fills in the strides of a contiguous tensor.
///
/// # Safety
///
/// `tensor` is null or a tensor whose type and shape are set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sage_tensor_contiguous(tensor: *mut SageTensor) -> i32 {
    crate::status::guard(|| {
        // SAFETY: forwarded contract.
        let tensor = unsafe { crate::status::object_mut(tensor, "tensor") }?;
        let dtype = dtype(tensor.dtype)?;
        let spec =
            TensorSpec::new(Operand::Tensor, dtype, &tensor.shape, Layout::Hnd).map_err(sage_attn::Error::from)?;
        tensor.strides = spec.strides;
        Ok(())
    })
}

fn dtype(code: i32) -> Result<DType, Failure> {
    match code {
        SAGE_F16 => Ok(DType::F16),
        SAGE_BF16 => Ok(DType::BF16),
        SAGE_F32 => Ok(DType::F32),
        _ => Err(Failure::invalid(format!("dtype is {code}; it must be 0 (f16), 1 (bf16) or 2 (f32)"))),
    }
}

impl SageTensor {
    pub(crate) fn spec(&self) -> Result<TensorSpec, Failure> {
        Ok(TensorSpec { dtype: dtype(self.dtype)?, shape: self.shape, strides: self.strides })
    }

    /// The tensor as a launch takes it.
    pub(crate) fn device_tensor(&self) -> Result<DeviceTensor, Failure> {
        Ok(DeviceTensor { ptr: self.data.addr() as u64, spec: self.spec()? })
    }

    /// Elements from the first to the last, after checking that there can be any at the address.
    fn span<T>(&self, name: &str) -> Result<usize, Failure> {
        let len = self.spec()?.span_elems(Operand::Tensor).map_err(sage_attn::Error::from)?;
        if len > 0 && self.data.is_null() {
            return Err(Failure::invalid(format!("{name} has {len} elements at a null pointer")));
        }
        if len > 0 && !self.data.cast::<T>().is_aligned() {
            let (address, align) = (self.data.addr(), align_of::<T>());
            return Err(Failure::invalid(format!("{name} starts at {address:#x}; it must be a multiple of {align}")));
        }
        Ok(len)
    }

    unsafe fn elements<'a, T: Element>(&self, name: &str) -> Result<TensorView<'a>, Failure> {
        let elements: &[T] = match self.span::<T>(name)? {
            0 => &[],
            // SAFETY: the caller vouches for every element that the strides reach; the address is aligned.
            len => unsafe { std::slice::from_raw_parts(self.data.cast::<T>(), len) },
        };
        Ok(TensorView::new(elements, &self.shape, Layout::Strides(self.strides))?)
    }

    unsafe fn elements_mut<'a, T: Element>(&self, name: &str) -> Result<TensorViewMut<'a>, Failure> {
        let elements: &mut [T] = match self.span::<T>(name)? {
            0 => &mut [],
            // SAFETY: as for `elements`, and nobody else uses them.
            len => unsafe { std::slice::from_raw_parts_mut(self.data.cast::<T>(), len) },
        };
        Ok(TensorViewMut::new(elements, &self.shape, Layout::Strides(self.strides))?)
    }
}

/// The tensor in host memory that `tensor` describes.
///
/// # Safety
///
/// `tensor` is null or a tensor whose elements are readable and that nobody writes meanwhile.
pub(crate) unsafe fn view<'a>(tensor: *const SageTensor, name: &str) -> Result<TensorView<'a>, Failure> {
    // SAFETY: forwarded contract.
    unsafe {
        let tensor = object(tensor, name)?;
        match dtype(tensor.dtype)? {
            DType::F16 => tensor.elements::<f16>(name),
            DType::BF16 => tensor.elements::<bf16>(name),
            DType::F32 => tensor.elements::<f32>(name),
        }
    }
}

/// The tensor in host memory that `tensor` describes, to be written.
///
/// # Safety
///
/// `tensor` is null or a tensor whose elements nobody else uses meanwhile.
pub(crate) unsafe fn view_mut<'a>(tensor: *const SageTensor, name: &str) -> Result<TensorViewMut<'a>, Failure> {
    // SAFETY: forwarded contract.
    unsafe {
        let tensor = object(tensor, name)?;
        match dtype(tensor.dtype)? {
            DType::F16 => tensor.elements_mut::<f16>(name),
            DType::BF16 => tensor.elements_mut::<bf16>(name),
            DType::F32 => tensor.elements_mut::<f32>(name),
        }
    }
}
