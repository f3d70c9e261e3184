//! Tensors in host memory.

use std::ops::Range;

use half::{bf16, f16};

use crate::cpu::OutputMut;
use crate::error::{Axis, DeviceError, Error, Invalid, Operand};
use crate::problem::{DType, Element, Layout, TensorSpec};
use crate::reference::{Data, HostTensor};

/// A borrowed `[B, H, tokens, D]` tensor of f16, bf16 or f32.
///
/// Example: [`TensorView::new`].
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    spec: TensorSpec,
    data: Data<'a>,
}

impl<'a> TensorView<'a> {
    /// Views `elements` as a tensor of `shape`, four extents in the order `layout` says.
    ///
    /// # Errors
    ///
    /// [`Invalid`] if the shape has not four axes, a stride is not positive or the features are not
    /// contiguous, an extent overflows, or the tensor reaches beyond `elements`.
    ///
    /// ```
    /// use sage_attn::{Layout, TensorView};
    /// let elements = vec![0.0f32; 2 * 16 * 4 * 64];
    /// // Two sequences of 16 tokens, 4 heads of 64 features, token-major.
    /// let view = TensorView::new(&elements, &[2, 16, 4, 64], Layout::Nhd)?;
    /// assert_eq!(view.spec().shape, [2, 4, 16, 64]);
    /// # Ok::<(), sage_attn::Error>(())
    /// ```
    pub fn new<T: Element>(elements: &'a [T], shape: &[usize], layout: Layout) -> Result<Self, Error> {
        let spec = TensorSpec::new(Operand::Tensor, T::DTYPE, shape, layout)?;
        spec.check(Operand::Tensor, false)?;
        check_span(&spec, elements.len())?;
        // T is the type its DTYPE names, so the casts change nothing.
        let data = match T::DTYPE {
            DType::F16 => Data::F16(bytemuck::cast_slice(elements)),
            DType::BF16 => Data::BF16(bytemuck::cast_slice(elements)),
            DType::F32 => Data::F32(bytemuck::cast_slice(elements)),
        };
        Ok(TensorView { spec, data })
    }

    /// Type, shape and strides.
    pub fn spec(&self) -> &TensorSpec {
        &self.spec
    }

    /// The elements, starting with the first of the tensor.
    pub fn data(&self) -> Data<'a> {
        self.data
    }

    /// The part of the tensor with the entries `range` of `axis`; the memory stays where it is.
    ///
    /// # Errors
    ///
    /// [`Invalid::NarrowRange`] if `range` reaches beyond the axis or runs backwards.
    pub fn narrow(&self, axis: Axis, range: Range<usize>) -> Result<TensorView<'a>, Error> {
        let index = match axis {
            Axis::Batch => 0,
            Axis::Head => 1,
            Axis::Token => 2,
            Axis::Feature => 3,
        };
        let extent = self.spec.shape[index];
        if range.start > range.end || range.end > extent {
            return Err(Invalid::NarrowRange { axis, begin: range.start, end: range.end, extent }.into());
        }
        let mut spec = self.spec;
        spec.shape[index] = range.len();
        // The first element of a part that has elements lies within the span, which was checked.
        let offset = if spec.is_empty() { 0 } else { (range.start as i64 * self.spec.strides[index]) as usize };
        let data = match self.data {
            Data::F16(elements) => Data::F16(&elements[offset..]),
            Data::BF16(elements) => Data::BF16(&elements[offset..]),
            Data::F32(elements) => Data::F32(&elements[offset..]),
        };
        Ok(TensorView { spec, data })
    }

    /// The bytes from the first element of the tensor to the last.
    pub(super) fn span_bytes(&self) -> Result<&'a [u8], Invalid> {
        let len = self.spec.span_elems(Operand::Tensor)? * self.spec.dtype.bytes();
        let bytes: &[u8] = match self.data {
            Data::F16(elements) => bytemuck::cast_slice(elements),
            Data::BF16(elements) => bytemuck::cast_slice(elements),
            Data::F32(elements) => bytemuck::cast_slice(elements),
        };
        Ok(&bytes[..len]) // the constructor checked the span
    }

    /// The tensor as the CPU reference takes it.
    pub fn host(&self) -> HostTensor<'a> {
        let [stride_batch, stride_head, stride_token, _] = self.spec.strides;
        HostTensor { data: self.data, stride_batch, stride_head, stride_token }
    }
}

/// Elements of a tensor that is written.
#[derive(Debug)]
enum DataMut<'a> {
    F16(&'a mut [f16]),
    BF16(&'a mut [bf16]),
    F32(&'a mut [f32]),
}

/// A mutably borrowed `[B, H, tokens, D]` tensor of f16, bf16 or f32.
///
/// ```
/// use sage_attn::{Layout, TensorViewMut};
/// let mut elements = vec![0.0f32; 16 * 4 * 64];
/// let view = TensorViewMut::new(&mut elements, &[1, 16, 4, 64], Layout::Nhd)?;
/// assert_eq!(view.spec().shape, [1, 4, 16, 64]);
/// # Ok::<(), sage_attn::Error>(())
/// ```
#[derive(Debug)]
pub struct TensorViewMut<'a> {
    spec: TensorSpec,
    data: DataMut<'a>,
}

impl<'a> TensorViewMut<'a> {
    /// Views `elements` as a tensor of `shape`, four extents in the order `layout` says.
    ///
    /// # Errors
    ///
    /// As [`TensorView::new`]; also [`Invalid::OutputOverlap`] if two entries may share memory.
    pub fn new<T: Element>(elements: &'a mut [T], shape: &[usize], layout: Layout) -> Result<Self, Error> {
        let spec = TensorSpec::new(Operand::Out, T::DTYPE, shape, layout)?;
        spec.check(Operand::Out, true)?;
        check_span(&spec, elements.len())?;
        let data = match T::DTYPE {
            DType::F16 => DataMut::F16(bytemuck::cast_slice_mut(elements)),
            DType::BF16 => DataMut::BF16(bytemuck::cast_slice_mut(elements)),
            DType::F32 => DataMut::F32(bytemuck::cast_slice_mut(elements)),
        };
        Ok(TensorViewMut { spec, data })
    }

    /// Type, shape and strides.
    pub fn spec(&self) -> &TensorSpec {
        &self.spec
    }

    /// The elements `[B, H, tokens, D]`, if they lie in memory in this order without gaps.
    pub(super) fn contiguous(&mut self) -> Option<OutputMut<'_>> {
        let dense = TensorSpec::new(Operand::Out, self.spec.dtype, &self.spec.shape, Layout::Hnd).ok()?;
        if dense.strides != self.spec.strides {
            return None;
        }
        let len = dense.span_elems(Operand::Out).ok()?;
        Some(match &mut self.data {
            DataMut::F16(out) => OutputMut::F16(&mut out[..len]),
            DataMut::BF16(out) => OutputMut::BF16(&mut out[..len]),
            DataMut::F32(out) => OutputMut::F32(&mut out[..len]),
        })
    }

    /// Writes the tensor from contiguous f32 `[B, H, tokens, D]`, rounding to nearest even.
    pub(super) fn store_f32(&mut self, values: &[f32]) {
        match &mut self.data {
            DataMut::F16(out) => scatter(&self.spec, values, out, f16::from_f32),
            DataMut::BF16(out) => scatter(&self.spec, values, out, bf16::from_f32),
            DataMut::F32(out) => scatter(&self.spec, values, out, |value| value),
        }
    }

    /// Writes the tensor from the bytes of contiguous elements of its own type.
    pub(super) fn store_bytes(&mut self, bytes: &[u8]) {
        match &mut self.data {
            DataMut::F16(out) => scatter(&self.spec, &elements::<f16>(bytes), out, |value| value),
            DataMut::BF16(out) => scatter(&self.spec, &elements::<bf16>(bytes), out, |value| value),
            DataMut::F32(out) => scatter(&self.spec, &elements::<f32>(bytes), out, |value| value),
        }
    }
}

/// The elements in `bytes`, copied only if they are not aligned.
fn elements<T: Element>(bytes: &[u8]) -> std::borrow::Cow<'_, [T]> {
    match bytemuck::try_cast_slice(bytes) {
        Ok(elements) => elements.into(),
        Err(_) => bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect(),
    }
}

/// Copies contiguous rows to where `spec` puts them.
fn scatter<S: Copy, T>(spec: &TensorSpec, from: &[S], to: &mut [T], convert: impl Fn(S) -> T) {
    if spec.is_empty() {
        return;
    }
    let [_, heads, tokens, head_dim] = spec.shape;
    let [stride_batch, stride_head, stride_token, _] = spec.strides;
    for (index, row) in from.chunks_exact(head_dim).enumerate() {
        let (token, head, batch) = (index % tokens, index / tokens % heads, index / tokens / heads);
        // Within the span, which the constructor checked.
        let begin = batch as i64 * stride_batch + head as i64 * stride_head + token as i64 * stride_token;
        for (to, &from) in to[begin as usize..][..head_dim].iter_mut().zip(row) {
            *to = convert(from);
        }
    }
}

fn check_span(spec: &TensorSpec, len: usize) -> Result<(), Invalid> {
    let needed = spec.span_elems(Operand::Tensor)?;
    if needed > len { Err(Invalid::SpanBeyondBuffer { needed, len }) } else { Ok(()) }
}

/// An owned, contiguous `[B, H, tokens, D]` tensor.
///
/// ```
/// use sage_attn::{DType, Tensor};
/// let tensor = Tensor::zeros(DType::F16, [1, 2, 3, 64])?;
/// assert_eq!((tensor.shape(), tensor.dtype()), ([1, 2, 3, 64], DType::F16));
/// assert_eq!(tensor.view()?.spec().strides, [384, 192, 64, 1]);
/// assert_eq!(tensor.to_f32(), vec![0.0; 384]);
/// # Ok::<(), sage_attn::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    shape: [usize; 4],
    data: Elements,
}

#[derive(Clone, Debug, PartialEq)]
enum Elements {
    F16(Vec<f16>),
    BF16(Vec<bf16>),
    F32(Vec<f32>),
}

impl Tensor {
    /// A tensor of zeros.
    ///
    /// # Errors
    ///
    /// [`Invalid::ElementsOverflow`] if the shape does not fit `i64`, [`DeviceError::HostMemory`] if
    /// there is not enough memory.
    pub fn zeros(dtype: DType, shape: [usize; 4]) -> Result<Tensor, Error> {
        let spec = TensorSpec::new(Operand::Out, dtype, &shape, Layout::Hnd)?;
        let len = spec.span_elems(Operand::Out)?;
        let data = match dtype {
            DType::F16 => Elements::F16(zeros(len, f16::ZERO)?),
            DType::BF16 => Elements::BF16(zeros(len, bf16::ZERO)?),
            DType::F32 => Elements::F32(zeros(len, 0.0)?),
        };
        Ok(Tensor { shape, data })
    }

    /// Extents `[B, H, tokens, D]`.
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        match &self.data {
            Elements::F16(_) => DType::F16,
            Elements::BF16(_) => DType::BF16,
            Elements::F32(_) => DType::F32,
        }
    }

    /// The elements.
    pub fn data(&self) -> Data<'_> {
        match &self.data {
            Elements::F16(elements) => Data::F16(elements),
            Elements::BF16(elements) => Data::BF16(elements),
            Elements::F32(elements) => Data::F32(elements),
        }
    }

    /// Address of the first element, for consumers that write too.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut std::ffi::c_void {
        match &mut self.data {
            Elements::F16(elements) => elements.as_mut_ptr().cast(),
            Elements::BF16(elements) => elements.as_mut_ptr().cast(),
            Elements::F32(elements) => elements.as_mut_ptr().cast(),
        }
    }

    /// The elements as little-endian bytes, as files have them.
    pub fn to_le_bytes(&self) -> Vec<u8> {
        match &self.data {
            Elements::F16(elements) => elements.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Elements::BF16(elements) => elements.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Elements::F32(elements) => elements.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }

    /// The elements widened to f32, which is exact.
    pub fn to_f32(&self) -> Vec<f32> {
        match &self.data {
            Elements::F16(elements) => elements.iter().map(|x| x.to_f32()).collect(),
            Elements::BF16(elements) => elements.iter().map(|x| x.to_f32()).collect(),
            Elements::F32(elements) => elements.clone(),
        }
    }

    /// Borrows the tensor.
    ///
    /// # Errors
    ///
    /// None: a tensor is always a valid view of itself. The type is that of [`TensorView::new`].
    pub fn view(&self) -> Result<TensorView<'_>, Error> {
        match &self.data {
            Elements::F16(elements) => TensorView::new(elements, &self.shape, Layout::Hnd),
            Elements::BF16(elements) => TensorView::new(elements, &self.shape, Layout::Hnd),
            Elements::F32(elements) => TensorView::new(elements, &self.shape, Layout::Hnd),
        }
    }

    /// Borrows the tensor mutably.
    ///
    /// # Errors
    ///
    /// [`Invalid`] if the tensor cannot be an output, which only a zero extent's stride could cause.
    pub fn view_mut(&mut self) -> Result<TensorViewMut<'_>, Error> {
        match &mut self.data {
            Elements::F16(elements) => TensorViewMut::new(elements, &self.shape, Layout::Hnd),
            Elements::BF16(elements) => TensorViewMut::new(elements, &self.shape, Layout::Hnd),
            Elements::F32(elements) => TensorViewMut::new(elements, &self.shape, Layout::Hnd),
        }
    }
}

/// A vector of `len` zeros, or an error where `vec!` would abort.
pub(super) fn zeros<T: Clone>(len: usize, zero: T) -> Result<Vec<T>, DeviceError> {
    let mut elements = Vec::new();
    elements
        .try_reserve_exact(len)
        .map_err(|_| DeviceError::HostMemory { bytes: len.saturating_mul(size_of::<T>()) })?;
    elements.resize(len, zero);
    Ok(elements)
}
