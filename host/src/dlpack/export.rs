//! Giving a tensor away.

use std::any::Any;
use std::ffi::c_void;

use super::abi::{self, DlDevice, DlManagedTensor, DlManagedTensorVersioned, DlTensor};
use crate::api::Tensor;
use crate::device::DeviceTensor;

/// A tensor that another library may take. Shapes are `[B, H, tokens, D]`, with strides.
///
/// Example: [`dlpack`](crate::dlpack).
pub struct Export {
    shape: [i64; 4],
    strides: [i64; 4],
    /// Its shape and strides point nowhere until the tensor has its final address.
    tensor: DlTensor,
    /// Keeps the memory until the consumer's last use.
    owner: Box<dyn Any + Send>,
}

impl std::fmt::Debug for Export {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Export")
            .field("shape", &self.shape)
            .field("strides", &self.strides)
            .field("device", &self.tensor.device)
            .finish_non_exhaustive()
    }
}

/// What a consumer holds: the struct it knows, and behind it what the struct points to.
#[repr(C)]
struct Held<M> {
    managed: M,
    shape: [i64; 4],
    strides: [i64; 4],
    _owner: Box<dyn Any + Send>,
}

impl Export {
    /// Gives a tensor in host memory away.
    pub fn tensor(tensor: Tensor) -> Export {
        let (dtype, shape) = (tensor.dtype(), tensor.shape());
        // Boxed first: the address is taken where the tensor stays.
        let mut owner = Box::new(tensor);
        let data = owner.as_mut_ptr();
        let mut strides = [1i64; 4];
        for axis in (0..3).rev() {
            strides[axis] = strides[axis + 1].saturating_mul(shape[axis + 1].max(1) as i64);
        }
        let empty = shape.contains(&0);
        Export {
            shape: shape.map(|extent| extent as i64),
            strides,
            tensor: DlTensor {
                data: if empty { std::ptr::null_mut() } else { data },
                device: DlDevice { device_type: abi::CPU, device_id: 0 },
                ndim: 4,
                dtype: dtype.into(),
                shape: std::ptr::null_mut(),
                strides: std::ptr::null_mut(),
                byte_offset: 0,
            },
            owner,
        }
    }

    /// Gives a tensor in the memory of CUDA device `ordinal` away. `owner` is dropped when the consumer no
    /// longer needs the memory, on whichever thread says so; it is what keeps the memory allocated, for
    /// instance the cudarc slice.
    pub fn device(tensor: DeviceTensor, ordinal: usize, owner: impl Any + Send) -> Export {
        Export {
            shape: tensor.spec.shape.map(|extent| extent as i64),
            strides: tensor.spec.strides,
            tensor: DlTensor {
                data: std::ptr::without_provenance_mut(tensor.ptr as usize),
                device: DlDevice { device_type: abi::CUDA, device_id: ordinal as i32 },
                ndim: 4,
                dtype: tensor.spec.dtype.into(),
                shape: std::ptr::null_mut(),
                strides: std::ptr::null_mut(),
                byte_offset: 0,
            },
            owner: Box::new(owner),
        }
    }

    /// The tensor as a `DLManagedTensorVersioned`. Whoever gets the pointer must call its deleter once, or
    /// hand it to somebody who does.
    pub fn into_versioned(self) -> *mut DlManagedTensorVersioned {
        let managed = DlManagedTensorVersioned {
            version: abi::VERSION,
            manager_ctx: std::ptr::null_mut(),
            deleter: Some(delete_versioned),
            flags: 0,
            dl_tensor: self.tensor,
        };
        let held = self.hold(managed);
        // SAFETY: freshly allocated and not yet shared.
        unsafe {
            (*held).managed.manager_ctx = held.cast::<c_void>();
            (*held).managed.dl_tensor.shape = (&raw mut (*held).shape).cast();
            (*held).managed.dl_tensor.strides = (&raw mut (*held).strides).cast();
            &raw mut (*held).managed
        }
    }

    /// [`Export::into_versioned`] as a `DLManagedTensor`, for consumers older than version 1.
    pub fn into_legacy(self) -> *mut DlManagedTensor {
        let managed =
            DlManagedTensor { dl_tensor: self.tensor, manager_ctx: std::ptr::null_mut(), deleter: Some(delete_legacy) };
        let held = self.hold(managed);
        // SAFETY: freshly allocated and not yet shared.
        unsafe {
            (*held).managed.manager_ctx = held.cast::<c_void>();
            (*held).managed.dl_tensor.shape = (&raw mut (*held).shape).cast();
            (*held).managed.dl_tensor.strides = (&raw mut (*held).strides).cast();
            &raw mut (*held).managed
        }
    }

    fn hold<M>(self, managed: M) -> *mut Held<M> {
        Box::into_raw(Box::new(Held { managed, shape: self.shape, strides: self.strides, _owner: self.owner }))
    }
}

/// # Safety
///
/// `tensor` is null or comes from [`Export::into_versioned`], and this is its only call.
unsafe extern "C" fn delete_versioned(tensor: *mut DlManagedTensorVersioned) {
    if tensor.is_null() {
        return;
    }
    // SAFETY: the context is the box that `into_versioned` leaked.
    let held = unsafe { Box::from_raw((*tensor).manager_ctx.cast::<Held<DlManagedTensorVersioned>>()) };
    release(held);
}

/// # Safety
///
/// `tensor` is null or comes from [`Export::into_legacy`], and this is its only call.
unsafe extern "C" fn delete_legacy(tensor: *mut DlManagedTensor) {
    if tensor.is_null() {
        return;
    }
    // SAFETY: the context is the box that `into_legacy` leaked.
    let held = unsafe { Box::from_raw((*tensor).manager_ctx.cast::<Held<DlManagedTensor>>()) };
    release(held);
}

/// Drops what a consumer held. The owner is the caller's type, and a panic of its destructor must not cross
/// into C.
fn release<M>(held: Box<Held<M>>) {
    let dropped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || drop(held)));
    if let Err(payload) = dropped {
        std::mem::forget(payload); // its destructor may panic too
    }
}
