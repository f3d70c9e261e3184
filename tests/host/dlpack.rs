//! DLPack tensors, with this test as the library on the other side.

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sage_attn::device::DeviceTensor;
use sage_attn::dlpack::abi::{
    self, DlDataType, DlDevice, DlManagedTensor, DlManagedTensorVersioned, DlTensor, DlVersion,
};
use sage_attn::dlpack::{DlPackError, Export, Import, Place};
use sage_attn::error::{Error, Invalid};
use sage_attn::problem::TensorSpec;
use sage_attn::{Attention, DType, Device, Layout, Tensor, TensorView};

const F32: DlDataType = DlDataType { code: abi::FLOAT, bits: 32, lanes: 1 };
const CPU: DlDevice = DlDevice { device_type: abi::CPU, device_id: 0 };

/// A producer's tensor, with what its struct points to.
struct Producer {
    data: Vec<f32>,
    shape: Vec<i64>,
    strides: Option<Vec<i64>>,
    dtype: DlDataType,
    device: DlDevice,
    byte_offset: u64,
    version: DlVersion,
    flags: u64,
    deleted: Arc<AtomicUsize>,
}

impl Producer {
    fn new(shape: &[i64]) -> Producer {
        let len = shape.iter().product::<i64>().max(0) as usize;
        Producer {
            data: (0..len).map(|i| i as f32).collect(),
            shape: shape.to_vec(),
            strides: None,
            dtype: F32,
            device: CPU,
            byte_offset: 0,
            version: abi::VERSION,
            flags: 0,
            deleted: Arc::default(),
        }
    }

    fn tensor(&mut self) -> DlTensor {
        DlTensor {
            data: if self.data.is_empty() { std::ptr::null_mut() } else { self.data.as_mut_ptr().cast() },
            device: self.device,
            ndim: self.shape.len() as i32,
            dtype: self.dtype,
            shape: self.shape.as_mut_ptr(),
            strides: self.strides.as_mut().map_or(std::ptr::null_mut(), |strides| strides.as_mut_ptr()),
            byte_offset: self.byte_offset,
        }
    }

    fn versioned(self) -> *mut DlManagedTensorVersioned {
        unsafe extern "C" fn delete(tensor: *mut DlManagedTensorVersioned) {
            // SAFETY: both boxes were leaked below.
            let (tensor, producer) = unsafe {
                let tensor = Box::from_raw(tensor);
                let producer = Box::from_raw(tensor.manager_ctx.cast::<Producer>());
                (tensor, producer)
            };
            producer.deleted.fetch_add(1, Ordering::Relaxed);
            drop(tensor);
        }
        let mut producer = Box::new(self);
        let (version, flags, dl_tensor) = (producer.version, producer.flags, producer.tensor());
        let manager_ctx = Box::into_raw(producer).cast::<c_void>();
        let managed = DlManagedTensorVersioned { version, manager_ctx, deleter: Some(delete), flags, dl_tensor };
        Box::into_raw(Box::new(managed))
    }

    fn import(self, layout: Layout) -> Result<Import, Error> {
        // SAFETY: the struct was made above, for this call alone.
        unsafe { Import::versioned(self.versioned(), layout) }
    }

    /// The reason why the tensor is not taken; it must have been given back.
    fn refused(self, layout: Layout) -> Invalid {
        let deleted = self.deleted.clone();
        let error = self.import(layout).expect_err("must be refused");
        assert_eq!(deleted.load(Ordering::Relaxed), 1, "{error}");
        match error {
            Error::Invalid(invalid) => invalid,
            other => panic!("{other}"),
        }
    }
}

#[test]
fn attention_of_imported_tensors_is_that_of_their_elements() {
    let shape = [1, 2, 5, 8];
    let imported = Producer::new(&shape).import(Layout::Hnd).unwrap();
    assert_eq!((imported.place(), imported.is_writable()), (Place::Host, true));
    let elements: Vec<f32> = (0..80).map(|i| i as f32).collect();
    let own = TensorView::new(&elements, &[1, 2, 5, 8], Layout::Hnd).unwrap();
    let attention = Attention::new().device(Device::Cpu);
    let view = imported.view().unwrap();
    assert_eq!(attention.forward(&view, &view, &view).unwrap().out, attention.forward(&own, &own, &own).unwrap().out);
}

#[test]
fn an_imported_output_is_written_in_place() {
    let elements: Vec<f32> = (0..80).map(|i| (i % 7) as f32).collect();
    let own = TensorView::new(&elements, &[1, 2, 5, 8], Layout::Hnd).unwrap();
    let attention = Attention::new().device(Device::Cpu);
    let expected = attention.forward(&own, &own, &own).unwrap().out;
    let mut out = Producer::new(&[1, 2, 5, 8]).import(Layout::Hnd).unwrap();
    attention.forward_into(&own, &own, &own, &mut out.view_mut().unwrap()).unwrap();
    let written = out.view().unwrap();
    let mut row = [0.0f32; 8];
    for (i, expected) in expected.to_f32().chunks(8).enumerate() {
        written.host().row(0, i / 5, i % 5, &mut row);
        assert_eq!(row, expected);
    }
}

#[test]
fn strides_offsets_and_axis_order_are_followed() {
    // Token-major [1, 3, 2, 4] within rows of 5 elements, from the third element on.
    let mut producer = Producer::new(&[1, 3, 2, 4]);
    producer.data = (0..40).map(|i| i as f32).collect();
    producer.strides = Some(vec![99, 10, 5, 1]);
    producer.byte_offset = 8;
    let imported = producer.import(Layout::Nhd).unwrap();
    assert_eq!(imported.spec().shape, [1, 2, 3, 4]);
    let mut row = [0.0f32; 4];
    imported.view().unwrap().host().row(0, 1, 2, &mut row);
    assert_eq!(row, [27.0, 28.0, 29.0, 30.0]);
}

#[test]
fn the_producer_hears_once_that_its_tensor_is_no_longer_needed() {
    let producer = Producer::new(&[1, 1, 1, 4]);
    let deleted = producer.deleted.clone();
    let imported = producer.import(Layout::Hnd).unwrap();
    assert_eq!(deleted.load(Ordering::Relaxed), 0);
    drop(imported);
    assert_eq!(deleted.load(Ordering::Relaxed), 1);
}

#[test]
fn tensors_that_cannot_be_taken_are_given_back_with_a_reason() {
    let with = |change: &dyn Fn(&mut Producer)| {
        let mut producer = Producer::new(&[1, 2, 3, 4]);
        change(&mut producer);
        producer.refused(Layout::Hnd)
    };
    let dlpack = |change: &dyn Fn(&mut Producer)| match with(change) {
        Invalid::DlPack(error) => error,
        other => panic!("{other}"),
    };
    assert!(matches!(with(&|p| p.shape = vec![2, 3, 4]), Invalid::Rank { rank: 3, .. }));
    assert_eq!(dlpack(&|p| p.version = DlVersion { major: 2, minor: 0 }), DlPackError::Version { major: 2, minor: 0 });
    let e4m3 = DlDataType { code: 8, bits: 8, lanes: 1 };
    assert_eq!(dlpack(&|p| p.dtype = e4m3), DlPackError::DType { code: 8, bits: 8, lanes: 1 });
    assert!(matches!(dlpack(&|p| p.dtype.lanes = 4), DlPackError::DType { lanes: 4, .. }));
    assert!(matches!(dlpack(&|p| p.device.device_type = 10), DlPackError::Device { device_type: 10, .. }));
    let nowhere = DlDevice { device_type: abi::CUDA, device_id: -1 };
    assert!(matches!(dlpack(&|p| p.device = nowhere), DlPackError::Device { device_id: -1, .. }));
    assert!(matches!(dlpack(&|p| p.shape[2] = -3), DlPackError::Extent { shape: [1, 2, -3, 4] }));
    assert!(matches!(dlpack(&|p| p.byte_offset = 2), DlPackError::Misaligned { align: 4, .. }));
    assert_eq!(dlpack(&|p| p.data = vec![]), DlPackError::Null { what: "the data" });
    assert!(matches!(with(&|p| p.strides = Some(vec![24, 12, 4, 2])), Invalid::FeatureStride { .. }));
    assert!(matches!(with(&|p| p.strides = Some(vec![24, 12, -4, 1])), Invalid::NegativeStride { .. }));
    assert!(matches!(with(&|p| p.shape[1] = i64::MAX), Invalid::ElementsOverflow { .. }));
    let strides = Producer::new(&[1, 2, 3, 4]).refused(Layout::Strides([24, 12, 4, 1]));
    assert_eq!(strides, Invalid::DlPack(DlPackError::Strides));
    // SAFETY: a null pointer is an error.
    let null = unsafe { Import::versioned(std::ptr::null_mut(), Layout::Hnd) }.unwrap_err();
    assert_eq!(null.to_string(), "the address of the DLPack tensor is a null pointer");
}

#[test]
fn a_read_only_tensor_is_no_output() {
    let mut producer = Producer::new(&[1, 1, 1, 4]);
    producer.flags = abi::READ_ONLY;
    let mut imported = producer.import(Layout::Hnd).unwrap();
    assert!(!imported.is_writable() && imported.view().is_ok());
    assert_eq!(imported.view_mut().unwrap_err(), Error::Invalid(Invalid::DlPack(DlPackError::ReadOnly)));
}

#[test]
fn an_empty_tensor_may_have_no_memory() {
    let imported = Producer::new(&[1, 2, 0, 4]).import(Layout::Hnd).unwrap();
    assert_eq!(imported.view().unwrap().spec().shape, [1, 2, 0, 4]);
}

#[test]
fn exported_tensors_come_back_unchanged() {
    for dtype in [DType::F16, DType::BF16, DType::F32] {
        let pointer = Export::tensor(Tensor::zeros(dtype, [2, 3, 4, 5]).unwrap()).into_versioned();
        // SAFETY: exported a line above.
        let imported = unsafe { Import::versioned(pointer, Layout::Hnd) }.unwrap();
        assert_eq!(imported.spec(), Tensor::zeros(dtype, [2, 3, 4, 5]).unwrap().view().unwrap().spec());
        let pointer: *mut DlManagedTensor = Export::tensor(Tensor::zeros(dtype, [0, 3, 4, 5]).unwrap()).into_legacy();
        // SAFETY: exported a line above.
        let imported = unsafe { Import::legacy(pointer, Layout::Hnd) }.unwrap();
        assert_eq!((imported.spec().dtype, imported.spec().shape), (dtype, [0, 3, 4, 5]));
    }
}

#[test]
fn device_memory_travels_as_an_address() {
    struct Owner(Arc<AtomicUsize>);
    impl Drop for Owner {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let spec = TensorSpec { dtype: DType::BF16, shape: [1, 2, 3, 64], strides: [0, 64, 128, 1] };
    let tensor = DeviceTensor { ptr: 0x7000_0000_0100, spec };
    let freed = Arc::new(AtomicUsize::new(0));
    let pointer = Export::device(tensor, 3, Owner(freed.clone())).into_versioned();
    // SAFETY: exported a line above.
    let imported = unsafe { Import::versioned(pointer, Layout::Hnd) }.unwrap();
    assert_eq!(imported.place(), Place::Cuda(3));
    assert_eq!(imported.device_tensor().unwrap(), tensor);
    let error = imported.view().unwrap_err();
    assert_eq!(error.to_string(), "the DLPack tensor is on device type 2, index 3; needed is host memory (1 or 3)");
    assert_eq!(freed.load(Ordering::Relaxed), 0);
    drop(imported);
    assert_eq!(freed.load(Ordering::Relaxed), 1);
    let host = Export::tensor(Tensor::zeros(DType::F32, [1, 1, 1, 1]).unwrap()).into_versioned();
    // SAFETY: exported a line above.
    let host = unsafe { Import::versioned(host, Layout::Hnd) }.unwrap();
    assert!(matches!(host.device_tensor(), Err(Error::Invalid(Invalid::DlPack(DlPackError::Device { .. })))));
}
