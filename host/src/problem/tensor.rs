//! Element types and strided shapes.

use std::fmt;

use crate::error::{Axis, Invalid, Operand};

/// Element type of a tensor.
///
/// ```
/// use sage_attn::DType;
/// assert_eq!((DType::BF16.name(), DType::BF16.bytes()), ("bf16", 2));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE 754 binary16.
    F16,
    /// bfloat16.
    BF16,
    /// IEEE 754 binary32.
    F32,
}

impl DType {
    /// Bytes of an element.
    pub const fn bytes(self) -> usize {
        match self {
            DType::F16 | DType::BF16 => 2,
            DType::F32 => 4,
        }
    }

    /// Name in kernel symbols, messages and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::F32 => "f32",
        }
    }

    /// Value of `out_dtype` in kernel parameters.
    pub const fn code(self) -> u32 {
        match self {
            DType::F16 => 0,
            DType::BF16 => 1,
            DType::F32 => 2,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
    impl Sealed for f32 {}
}

/// An element type: [`half::f16`], [`half::bf16`] or `f32`. The trait is sealed.
///
/// ```
/// use sage_attn::{DType, Element};
/// fn name<T: Element>() -> &'static str {
///     T::DTYPE.name()
/// }
/// assert_eq!(name::<sage_attn::half::f16>(), "f16");
/// ```
pub trait Element: bytemuck::Pod + sealed::Sealed {
    /// The type as a value.
    const DTYPE: DType;
}

impl Element for half::f16 {
    const DTYPE: DType = DType::F16;
}

impl Element for half::bf16 {
    const DTYPE: DType = DType::BF16;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
}

/// How the axes of a tensor lie in memory.
///
/// Example: [`TensorSpec`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Contiguous `[B, H, N, D]`; shapes are given in this order.
    #[default]
    Hnd,
    /// Contiguous `[B, N, H, D]`; shapes are given in this order.
    Nhd,
    /// Any strides, in elements, in the order `[B, H, N, D]`; the last is 1 and the others positive.
    /// Shapes are given as `[B, H, N, D]`.
    Strides([i64; 4]),
}

/// Type, shape and strides of a tensor, without its data.
///
/// ```
/// use sage_attn::error::Operand;
/// use sage_attn::problem::TensorSpec;
/// use sage_attn::{DType, Layout};
///
/// let spec = TensorSpec::new(Operand::Q, DType::BF16, &[2, 16, 4, 64], Layout::Nhd)?;
/// assert_eq!(spec.shape, [2, 4, 16, 64]); // [B, H, tokens, D], whatever lies where
/// assert_eq!(spec.strides, [16 * 4 * 64, 64, 4 * 64, 1]);
/// # Ok::<(), sage_attn::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TensorSpec {
    /// Element type.
    pub dtype: DType,
    /// Extents `[B, H, tokens, D]`.
    pub shape: [usize; 4],
    /// Elements from one entry to the next along each axis, `[B, H, tokens, D]`.
    pub strides: [i64; 4],
}

impl TensorSpec {
    /// Shape of the output of attention with these queries and the values `v`: `[B, Hq, M, Dv]`.
    pub fn output_shape(&self, v: &TensorSpec) -> [usize; 4] {
        let [batch, heads, tokens, _] = self.shape;
        [batch, heads, tokens, v.shape[3]]
    }

    /// A tensor of `shape` (in the order `layout` says) named `tensor` in errors.
    ///
    /// # Errors
    ///
    /// [`Invalid::Rank`] unless `shape` has four extents, [`Invalid::ElementsOverflow`] if a
    /// contiguous tensor of that shape does not fit `i64`.
    pub fn new(tensor: Operand, dtype: DType, shape: &[usize], layout: Layout) -> Result<TensorSpec, Invalid> {
        let &[batch, x, y, head_dim] = shape else {
            return Err(Invalid::Rank { tensor, rank: shape.len() });
        };
        let (shape, strides) = match layout {
            Layout::Hnd => ([batch, x, y, head_dim], dense([batch, x, y, head_dim])),
            Layout::Nhd => {
                let dense = dense([batch, x, y, head_dim]).map(|[b, n, h, d]| [b, h, n, d]);
                ([batch, y, x, head_dim], dense)
            }
            Layout::Strides(strides) => ([batch, x, y, head_dim], Some(strides)),
        };
        let strides = strides.ok_or(Invalid::ElementsOverflow { tensor, shape })?;
        Ok(TensorSpec { dtype, shape, strides })
    }

    /// `count` packed sequences of `tokens` tokens each, one after the other along the token axis, as a batch.
    pub(crate) fn sequence_batch(&self, tokens: usize, count: usize) -> TensorSpec {
        let ([_, heads, _, head_dim], [batch_stride, head_stride, token_stride, feature_stride]) =
            (self.shape, self.strides);
        // That of a single entry is never used. The product is within the tensor's span.
        let batch_stride = if count > 1 { token_stride.wrapping_mul(tokens as i64) } else { batch_stride };
        TensorSpec {
            shape: [count, heads, tokens, head_dim],
            strides: [batch_stride, head_stride, token_stride, feature_stride],
            ..*self
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }

    /// Elements from the first to the last, inclusive; 0 if there are none.
    ///
    /// # Errors
    ///
    /// [`Invalid::SpanOverflow`] if the span in bytes does not fit `i64`.
    pub fn span_elems(&self, tensor: Operand) -> Result<usize, Invalid> {
        if self.is_empty() {
            return Ok(0);
        }
        let last = self.shape.iter().zip(self.strides).try_fold(0i64, |sum, (&extent, stride)| match extent {
            1 => Some(sum), // the stride of a single entry is never used
            _ => sum.checked_add(i64::try_from(extent - 1).ok()?.checked_mul(stride)?),
        });
        last.and_then(|last| last.checked_add(1))
            .filter(|span| span.checked_mul(self.dtype.bytes() as i64).is_some())
            .and_then(|span| usize::try_from(span).ok())
            .ok_or(Invalid::SpanOverflow { tensor, strides: self.strides })
    }

    /// Checks extents and strides by themselves. `written` adds the rule that no two entries share
    /// memory.
    pub(crate) fn check(&self, tensor: Operand, written: bool) -> Result<(), Invalid> {
        let elems = self.shape.iter().try_fold(1i64, |n, &extent| n.checked_mul(i64::try_from(extent).ok()?));
        if elems.is_none() && !self.is_empty() {
            return Err(Invalid::ElementsOverflow { tensor, shape: self.shape });
        }
        if self.shape[3] > 1 && self.strides[3] != 1 {
            return Err(Invalid::FeatureStride { tensor, stride: self.strides[3] });
        }
        if self.is_empty() {
            return Ok(());
        }
        let head_dim = self.shape[3];
        for (axis, stride) in self.used_strides() {
            match stride {
                0 => return Err(Invalid::ZeroStride { tensor, axis }),
                ..0 => {
                    return Err(Invalid::NegativeStride { tensor, axis, stride });
                }
                _ if (stride as u64) < head_dim as u64 => {
                    return Err(Invalid::StrideBelowRow { tensor, axis, stride, head_dim });
                }
                _ => {}
            }
        }
        self.span_elems(tensor)?;
        if written { self.check_disjoint() } else { Ok(()) }
    }

    /// Strides of the batch, head and token axes that have more than one entry.
    fn used_strides(&self) -> impl Iterator<Item = (Axis, i64)> {
        let axes = [Axis::Batch, Axis::Head, Axis::Token];
        (0..3).filter(|&i| self.shape[i] > 1).map(move |i| (axes[i], self.strides[i]))
    }

    /// Checks that each axis steps over everything the axes of smaller stride span. The span of the
    /// whole tensor has been checked, so nothing here overflows.
    fn check_disjoint(&self) -> Result<(), Invalid> {
        let mut axes: Vec<(Axis, i64)> = self.used_strides().collect();
        axes.sort_by_key(|&(_, stride)| stride);
        let mut span = self.shape[3] as i64;
        for (axis, stride) in axes {
            if stride < span {
                return Err(Invalid::OutputOverlap { axis, stride, needed: span });
            }
            let extent = match axis {
                Axis::Batch => self.shape[0],
                Axis::Head => self.shape[1],
                _ => self.shape[2],
            };
            span += (extent as i64 - 1) * stride;
        }
        Ok(())
    }
}

/// Strides of a contiguous tensor; `None` if its elements do not fit `i64`. An empty tensor has no
/// elements, so its strides only need to be numbers.
fn dense(shape: [usize; 4]) -> Option<[i64; 4]> {
    let empty = shape.contains(&0);
    let mut strides = [1i64; 4];
    let mut elems = 1i64;
    for i in (0..4).rev() {
        strides[i] = elems;
        let extent = i64::try_from(shape[i].max(1)).ok();
        elems = match extent.and_then(|extent| elems.checked_mul(extent)) {
            Some(elems) => elems,
            None if empty => i64::MAX,
            None => return None,
        };
    }
    Some(strides)
}
