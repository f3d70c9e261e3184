//! The operation on candle's CUDA tensors.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, DeviceRepr, ValidAsZeroBits};
use candle_core::cuda_backend::{CudaDType, CudaStorageSlice};
use candle_core::{CudaStorage, Error, Layout, Result, Shape, WithDType};
use half::{bf16, f16};

use super::{SageAttention, strides};
use crate::device::{Gpu, SliceArgs};
use crate::error::Operand;
use crate::plan::plan;
use crate::problem::{DType, Element, Layout as Strides, TensorSpec};

/// Computes attention on candle's stream.
pub(super) fn forward(op: &SageAttention, tensors: [(&CudaStorage, &Layout); 3]) -> Result<(CudaStorage, Shape)> {
    match &tensors[0].0.slice {
        CudaStorageSlice::F16(_) => typed::<f16>(op, tensors),
        CudaStorageSlice::BF16(_) => typed::<bf16>(op, tensors),
        CudaStorageSlice::F32(_) => typed::<f32>(op, tensors),
        _ => Err(Error::msg("q, k and v must be f16, bf16 or f32")),
    }
}

fn typed<T: Element + CudaDType + WithDType>(
    op: &SageAttention,
    tensors: [(&CudaStorage, &Layout); 3],
) -> Result<(CudaStorage, Shape)> {
    match op.out_dtype(<T as Element>::DTYPE) {
        DType::F16 => run::<T, f16>(op, tensors),
        DType::BF16 => run::<T, bf16>(op, tensors),
        DType::F32 => run::<T, f32>(op, tensors),
    }
}

fn run<T, O>(op: &SageAttention, tensors: [(&CudaStorage, &Layout); 3]) -> Result<(CudaStorage, Shape)>
where
    T: Element + CudaDType + WithDType,
    O: Element + CudaDType + WithDType + DeviceRepr + ValidAsZeroBits,
{
    let device = tensors[0].0.device().clone();
    let stream = device.cuda_stream();
    let gpu = Gpu::shared_with_context(stream.context()).map_err(Error::wrap)?;
    let [q, k, v] = tensors.map(|(storage, layout)| input::<T>(storage, layout));
    let ((q, q_spec), (k, k_spec), (v, v_spec)) = (q?, k?, v?);
    let shape = q_spec.output_shape(&v_spec);
    let out_spec = TensorSpec::new(Operand::Out, <O as Element>::DTYPE, &shape, Strides::Hnd).map_err(Error::wrap)?;
    let problem = op.attention.problem(q_spec, k_spec, v_spec, out_spec).map_err(Error::wrap)?;
    let plan = plan(&problem, gpu.capability()).map_err(Error::wrap)?;
    let len = out_spec.span_elems(Operand::Out).map_err(Error::wrap)?;
    let mut out: CudaSlice<O> = device.alloc_zeros(len.max(1))?;
    let mut workspace = gpu.alloc(&stream, plan.workspace().total_bytes()).map_err(Error::wrap)?;
    let args = SliceArgs { q, k, v, out: out.as_view_mut(), lse: None, workspace: workspace.as_view_mut() };
    gpu.launch_slices(&plan, args, &stream).map_err(Error::wrap)?;
    Ok((CudaStorage::wrap_cuda_slice(out, device), Shape::from(shape.to_vec())))
}

/// The elements of a tensor from its first on, and what they mean.
fn input<'a, T: Element + CudaDType>(
    storage: &'a CudaStorage,
    layout: &Layout,
) -> Result<(CudaView<'a, T>, TensorSpec)> {
    let slice = storage.as_cuda_slice::<T>()?;
    let view =
        slice.try_slice(layout.start_offset()..).ok_or_else(|| Error::msg("the tensor lies outside its storage"))?;
    let spec = TensorSpec::new(Operand::Tensor, <T as Element>::DTYPE, layout.dims(), strides(layout)?);
    Ok((view, spec.map_err(Error::wrap)?))
}
