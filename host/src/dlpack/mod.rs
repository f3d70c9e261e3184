//! Tensors exchanged with other libraries through [DLPack](https://dmlc.github.io/dlpack/latest/), the C
//! struct that PyTorch, JAX, CuPy, NumPy and others hand each other without copying.
//!
//! [`Import`] takes a tensor from elsewhere: in host memory it becomes a [`TensorView`], in the memory of a
//! GPU a [`DeviceTensor`] for [`Gpu::launch`](crate::device::Gpu::launch). [`Export`] gives one away. DLPack
//! says nothing of streams: whoever launches must know that the data is there, as for any raw address.
//!
//! ```
//! use sage_attn::dlpack::{Export, Import};
//! use sage_attn::{DType, Layout, Tensor};
//!
//! let exported = Export::tensor(Tensor::zeros(DType::BF16, [1, 2, 3, 64])?);
//! // Here the pointer would travel to another library, perhaps inside a Python capsule.
//! let pointer = exported.into_versioned();
//! // SAFETY: the pointer was exported a moment ago and is used once.
//! let imported = unsafe { Import::versioned(pointer, Layout::Hnd) }?;
//! assert_eq!(imported.view()?.spec().shape, [1, 2, 3, 64]);
//! # Ok::<(), sage_attn::Error>(())
//! ```

pub mod abi;
mod export;
mod import;

pub use export::Export;
pub use import::{Import, Place};

use thiserror::Error;

use crate::problem::DType;

#[cfg(doc)]
use crate::{TensorView, device::DeviceTensor};

/// Why a DLPack tensor cannot be taken.
///
/// Example: [`dlpack`](crate::dlpack).
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DlPackError {
    /// The pointer, or one inside the struct, is null.
    #[error("{what} of the DLPack tensor is a null pointer")]
    Null {
        /// Which pointer.
        what: &'static str,
    },
    /// The struct may be laid out differently.
    #[error("the DLPack tensor has version {major}.{minor}; supported are 1.0 and later with major version 1")]
    Version {
        /// Major version.
        major: u32,
        /// Minor version.
        minor: u32,
    },
    /// The elements are of another type.
    #[error(
        "the DLPack tensor has type code {code} with {bits} bits and {lanes} lanes; supported are f16 (2, 16, 1), \
         bf16 (4, 16, 1) and f32 (2, 32, 1)"
    )]
    DType {
        /// `DLDataTypeCode`.
        code: u8,
        /// Bits of a number.
        bits: u8,
        /// Numbers of an element.
        lanes: u16,
    },
    /// The memory is elsewhere.
    #[error("the DLPack tensor is on device type {device_type}, index {device_id}; needed is {needed}")]
    Device {
        /// `DLDeviceType`.
        device_type: i32,
        /// Index of the device.
        device_id: i32,
        /// What would be right.
        needed: &'static str,
    },
    /// An extent is negative.
    #[error("the DLPack tensor has shape {shape:?}; extents must not be negative")]
    Extent {
        /// The shape, in the order of the struct.
        shape: [i64; 4],
    },
    /// The first element is not where an element can be.
    #[error("the DLPack tensor starts at address {address:#x}; it must be a multiple of {align} bytes")]
    Misaligned {
        /// Address of the first element.
        address: usize,
        /// Bytes of an element.
        align: usize,
    },
    /// The producer forbids writing.
    #[error("the DLPack tensor is read-only and cannot be an output")]
    ReadOnly,
    /// Strides were given besides those of the tensor.
    #[error("a DLPack tensor has strides of its own; its layout must be given as Hnd or Nhd, the order of its axes")]
    Strides,
}

impl From<DType> for abi::DlDataType {
    fn from(dtype: DType) -> abi::DlDataType {
        let (code, bits) = match dtype {
            DType::F16 => (abi::FLOAT, 16),
            DType::BF16 => (abi::BFLOAT, 16),
            DType::F32 => (abi::FLOAT, 32),
        };
        abi::DlDataType { code, bits, lanes: 1 }
    }
}

impl TryFrom<abi::DlDataType> for DType {
    type Error = DlPackError;

    fn try_from(dtype: abi::DlDataType) -> Result<DType, DlPackError> {
        match (dtype.code, dtype.bits, dtype.lanes) {
            (abi::FLOAT, 16, 1) => Ok(DType::F16),
            (abi::BFLOAT, 16, 1) => Ok(DType::BF16),
            (abi::FLOAT, 32, 1) => Ok(DType::F32),
            (code, bits, lanes) => Err(DlPackError::DType { code, bits, lanes }),
        }
    }
}
