//! Tensor maps of quantized tensors.

use std::ffi::c_void;
use std::mem::MaybeUninit;

use cudarc::driver::sys;
use sage_spec::sm90::TensorMap;

use super::{Gpu, TiledBytes};
use crate::error::DeviceError;

/// The map of `tensor`. What lies outside the tensor reads as zero.
///
/// Planning bounds the extents: rows and heads are below 2³¹, a row is a multiple of 64 bytes, and the whole
/// tensor is below 2⁶³ bytes; the driver checks the rest.
pub(super) fn encode(gpu: &Gpu, tensor: &TiledBytes) -> Result<TensorMap, DeviceError> {
    let TiledBytes { address, extents, box_extents } = *tensor;
    let strides = [extents[0], extents[0] * extents[1]];
    let box_extents = [box_extents[0], box_extents[1], 1];
    let element_strides = [1u32; 3];
    let swizzle = match box_extents[0] {
        64 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
        _ => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
    };
    let mut map = MaybeUninit::<sys::CUtensorMap>::zeroed();
    // SAFETY: all arrays have the three (strides: two) elements the call reads; `map` is a place for its result,
    // and all outlive the call. The address is only recorded.
    let result = unsafe {
        sys::cuTensorMapEncodeTiled(
            map.as_mut_ptr(),
            sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT8,
            3,
            address as *mut c_void,
            extents.as_ptr(),
            strides.as_ptr(),
            box_extents.as_ptr(),
            element_strides.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    gpu.check("making a tensor map", result.result())?;
    // SAFETY: zeroed before, and filled by the call; any bytes are a valid map here.
    Ok(TensorMap(unsafe { map.assume_init() }.opaque))
}
