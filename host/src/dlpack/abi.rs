//! The C structs of DLPack 1.1, field for field as in `dlpack.h` (github.com/dmlc/dlpack).

use std::ffi::c_void;

/// Version that exported tensors carry. Consumers compare the major number only: a change of the minor one
/// adds codes and leaves the structs alone.
pub const VERSION: DlVersion = DlVersion { major: 1, minor: 1 };

/// `kDLCPU`: ordinary host memory.
pub const CPU: i32 = 1;
/// `kDLCUDA`: memory of a CUDA device.
pub const CUDA: i32 = 2;
/// `kDLCUDAHost`: page-locked host memory.
pub const CUDA_HOST: i32 = 3;
/// `kDLCUDAManaged`: memory that host and device share.
pub const CUDA_MANAGED: i32 = 13;

/// `kDLFloat`: IEEE numbers.
pub const FLOAT: u8 = 2;
/// `kDLBfloat`: bfloat16.
pub const BFLOAT: u8 = 4;

/// Bit of [`DlManagedTensorVersioned::flags`]: the tensor must not be written.
pub const READ_ONLY: u64 = 1;

/// `DLPackVersion`.
///
/// Example: [`dlpack`](crate::dlpack).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DlVersion {
    /// Counts changes of the structs.
    pub major: u32,
    /// Counts additions of codes.
    pub minor: u32,
}

/// `DLDevice`.
///
/// Example: [`dlpack`](crate::dlpack).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DlDevice {
    /// `DLDeviceType`.
    pub device_type: i32,
    /// Index among the devices of that type.
    pub device_id: i32,
}

/// `DLDataType`.
///
/// Example: [`dlpack`](crate::dlpack).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DlDataType {
    /// `DLDataTypeCode`.
    pub code: u8,
    /// Bits of a number.
    pub bits: u8,
    /// Numbers of an element.
    pub lanes: u16,
}

/// `DLTensor`.
///
/// Example: [`dlpack`](crate::dlpack).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DlTensor {
    /// Base address; null if there are no elements.
    pub data: *mut c_void,
    /// Where the memory is.
    pub device: DlDevice,
    /// Number of axes.
    pub ndim: i32,
    /// Element type.
    pub dtype: DlDataType,
    /// `ndim` extents.
    pub shape: *mut i64,
    /// `ndim` strides in elements. Before version 1.2 null meant a contiguous tensor.
    pub strides: *mut i64,
    /// Bytes from `data` to the first element.
    pub byte_offset: u64,
}

/// `DLManagedTensorVersioned`, the current exchange struct.
///
/// Example: [`dlpack`](crate::dlpack).
#[repr(C)]
#[derive(Debug)]
pub struct DlManagedTensorVersioned {
    /// Version of the producer's header.
    pub version: DlVersion,
    /// The producer's own.
    pub manager_ctx: *mut c_void,
    /// Frees the tensor and the struct itself; may be null.
    pub deleter: Option<unsafe extern "C" fn(*mut DlManagedTensorVersioned)>,
    /// Bits such as [`READ_ONLY`].
    pub flags: u64,
    /// The tensor.
    pub dl_tensor: DlTensor,
}

/// `DLManagedTensor`, the exchange struct before version 1.
///
/// Example: [`dlpack`](crate::dlpack).
#[repr(C)]
#[derive(Debug)]
pub struct DlManagedTensor {
    /// The tensor.
    pub dl_tensor: DlTensor,
    /// The producer's own.
    pub manager_ctx: *mut c_void,
    /// Frees the tensor and the struct itself; may be null.
    pub deleter: Option<unsafe extern "C" fn(*mut DlManagedTensor)>,
}

// The layout of the header on 64-bit machines, where both sides must agree to the byte.
#[cfg(target_pointer_width = "64")]
const _: () = {
    assert!(size_of::<DlTensor>() == 48);
    assert!(size_of::<DlManagedTensorVersioned>() == 80);
    assert!(std::mem::offset_of!(DlManagedTensorVersioned, dl_tensor) == 32);
    assert!(size_of::<DlManagedTensor>() == 64);
    assert!(std::mem::offset_of!(DlTensor, byte_offset) == 40);
};
