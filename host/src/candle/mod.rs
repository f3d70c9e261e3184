//! Attention as an operation of [candle](https://docs.rs/candle-core), behind the feature `candle`.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use sage_attn::{Attention, candle::SageAttention};
//!
//! let q = Tensor::randn(0f32, 1.0, (1, 8, 100, 64), &Device::Cpu)?.to_dtype(DType::BF16)?;
//! let kv = Tensor::randn(0f32, 1.0, (1, 2, 100, 64), &Device::Cpu)?.to_dtype(DType::BF16)?;
//! let out = SageAttention::new(Attention::new().causal(true)).forward(&q, &kv, &kv)?;
//! assert_eq!(out.dims(), [1, 8, 100, 64]);
//! # Ok::<(), candle_core::Error>(())
//! ```
//!
//! Tensors in host memory are computed on the CPU. Tensors on a GPU need the feature `candle-cuda`; they are
//! computed on candle's own stream, with the context, the kernels and the memory pool shared, and without
//! waiting. That feature turns on candle's `cuda`, which needs nvcc to build candle's kernels.

use candle_core::{CpuStorage, CustomOp3, Error, Layout, Result, Shape, Tensor};

use crate::api::{Attention, TensorView, TensorViewMut};
use crate::error::Operand;
use crate::problem::{DType, Element, Layout as Strides, TensorSpec};

#[cfg(feature = "candle-cuda")]
mod cuda;

/// Attention with fixed options; q is `[B, Hq, M, D]`, k and v are `[B, Hkv, N, D]`, of f16, bf16 or f32 and
/// any strides (not broadcast). There is no backward pass.
///
/// Example: [`candle`](crate::candle).
#[derive(Clone, Debug)]
pub struct SageAttention {
    attention: Attention,
}

impl SageAttention {
    /// The operation with these options. Where it runs is where the tensors are: [`Attention::device`] has
    /// no effect. [`Attention::return_lse`] is an error when the operation runs, because candle's operations
    /// have one result.
    pub fn new(attention: Attention) -> SageAttention {
        SageAttention { attention }
    }

    /// Computes attention of `q` over `k` and `v`.
    ///
    /// # Errors
    ///
    /// candle's error around [`crate::Error`], or candle's own if the tensors are not on one device.
    pub fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        q.apply_op3_no_bwd(k, v, self)
    }

    /// Fails if the options ask for what the operation cannot return.
    fn check(&self) -> Result<()> {
        if self.attention.returns_lse() {
            return Err(Error::msg("a candle operation has one result; use Attention::forward for the log-sum-exp"));
        }
        Ok(())
    }

    /// Element type of the output.
    fn out_dtype(&self, q: DType) -> DType {
        self.attention.chosen_out_dtype().unwrap_or(q)
    }
}

impl CustomOp3 for SageAttention {
    fn name(&self) -> &'static str {
        "sage-attention"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.check()?;
        let (q, k, v) = (view(s1, l1)?, view(s2, l2)?, view(s3, l3)?);
        let attention = self.attention.clone().device(crate::Device::Cpu);
        let shape = q.spec().output_shape(v.spec());
        let out = match self.out_dtype(q.spec().dtype) {
            DType::F16 => CpuStorage::F16(run(&attention, &q, &k, &v)?),
            DType::BF16 => CpuStorage::BF16(run(&attention, &q, &k, &v)?),
            DType::F32 => CpuStorage::F32(run(&attention, &q, &k, &v)?),
        };
        Ok((out, Shape::from(shape.to_vec())))
    }

    #[cfg(feature = "candle-cuda")]
    fn cuda_fwd(
        &self,
        s1: &candle_core::CudaStorage,
        l1: &Layout,
        s2: &candle_core::CudaStorage,
        l2: &Layout,
        s3: &candle_core::CudaStorage,
        l3: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        self.check()?;
        cuda::forward(self, [(s1, l1), (s2, l2), (s3, l3)])
    }
}

/// Attention into a new contiguous buffer.
fn run<T: Element>(
    attention: &Attention,
    q: &TensorView<'_>,
    k: &TensorView<'_>,
    v: &TensorView<'_>,
) -> Result<Vec<T>> {
    let shape = q.spec().output_shape(v.spec());
    let spec = TensorSpec::new(Operand::Out, T::DTYPE, &shape, Strides::Hnd).map_err(Error::wrap)?;
    let mut out = vec![T::zeroed(); spec.span_elems(Operand::Out).map_err(Error::wrap)?];
    let mut target = TensorViewMut::new(&mut out, &shape, Strides::Hnd).map_err(Error::wrap)?;
    attention.forward_into(q, k, v, &mut target).map_err(Error::wrap)?;
    Ok(out)
}

/// The tensor that `layout` takes from `storage`.
fn view<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<TensorView<'a>> {
    match storage {
        CpuStorage::F16(elements) => view_of(elements, layout),
        CpuStorage::BF16(elements) => view_of(elements, layout),
        CpuStorage::F32(elements) => view_of(elements, layout),
        _ => Err(Error::msg("q, k and v must be f16, bf16 or f32")),
    }
}

fn view_of<'a, T: Element>(elements: &'a [T], layout: &Layout) -> Result<TensorView<'a>> {
    let elements = elements.get(layout.start_offset()..).unwrap_or_default();
    TensorView::new(elements, layout.dims(), strides(layout)?).map_err(Error::wrap)
}

/// The strides of a tensor of four axes.
fn strides(layout: &Layout) -> Result<Strides> {
    match *layout.stride() {
        [batch, head, token, feature] => {
            Ok(Strides::Strides([batch, head, token, feature].map(|stride| stride as i64)))
        }
        _ => Err(Error::msg(format!("q, k and v must have 4 axes, not shape {:?}", layout.dims()))),
    }
}
