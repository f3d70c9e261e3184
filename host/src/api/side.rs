//! Data beside q, k and v that attention may take: slopes, biases, masks, sinks and packed sequences.

use half::{bf16, f16};
use sage_spec::Dims;

use crate::device::HostSide;
use crate::error::{ModifierError, Operand};
use crate::problem::{BiasSpec, DType, Element, Modifiers, PairSpec, Problem, Sequences};
use crate::reference::{self, Data, HostMask, HostTensor};

/// A borrowed additive bias, `[B|1, Hq|1, M|1, N]` of f16, bf16 or f32: what is added to the scaled (and
/// capped) score of each pair of a row and a key. −∞ hides the key.
///
/// Example: [`BiasView::new`].
#[derive(Clone, Copy, Debug)]
pub struct BiasView<'a> {
    spec: BiasSpec,
    data: Data<'a>,
}

impl<'a> BiasView<'a> {
    /// Views contiguous `elements` as a bias of `shape`; an extent of 1 serves every entry.
    ///
    /// # Errors
    ///
    /// [`ModifierError`] if the shape reaches beyond `elements`.
    ///
    /// ```
    /// use sage_attn::BiasView;
    /// // One bias for 2 heads, 3 queries and 5 keys, the same for every batch entry.
    /// let bias = BiasView::new(&[0.5f32; 2 * 3 * 5], [1, 2, 3, 5])?;
    /// assert_eq!(bias.spec().pairs.broadcast_strides(), [0, 15, 5]);
    /// # Ok::<(), sage_attn::Error>(())
    /// ```
    pub fn new<T: Element>(elements: &'a [T], shape: [usize; 4]) -> Result<Self, ModifierError> {
        Self::strided(elements, PairSpec::contiguous(Operand::Bias, shape)?)
    }

    /// Views `elements` as a bias with strides.
    ///
    /// # Errors
    ///
    /// [`ModifierError`] if a stride is negative, the last is not 1, or the view reaches beyond `elements`.
    pub fn strided<T: Element>(elements: &'a [T], pairs: PairSpec) -> Result<Self, ModifierError> {
        check_span(Operand::Bias, &pairs, elements.len())?;
        // T is the type its DTYPE names, so the casts change nothing.
        let data = match T::DTYPE {
            DType::F16 => Data::F16(bytemuck::cast_slice::<T, f16>(elements)),
            DType::BF16 => Data::BF16(bytemuck::cast_slice::<T, bf16>(elements)),
            DType::F32 => Data::F32(bytemuck::cast_slice::<T, f32>(elements)),
        };
        Ok(BiasView { spec: BiasSpec { dtype: T::DTYPE, pairs }, data })
    }

    /// Type, shape and strides.
    pub fn spec(&self) -> &BiasSpec {
        &self.spec
    }
}

/// A borrowed boolean mask, `[B|1, Hq|1, M|1, N]`: true where a row may see a key.
///
/// Example: [`MaskView::new`].
#[derive(Clone, Copy, Debug)]
pub struct MaskView<'a> {
    spec: PairSpec,
    data: &'a [bool],
}

impl<'a> MaskView<'a> {
    /// Views contiguous `elements` as a mask of `shape`; an extent of 1 serves every entry.
    ///
    /// # Errors
    ///
    /// [`ModifierError`] if the shape reaches beyond `elements`.
    ///
    /// ```
    /// use sage_attn::MaskView;
    /// // Padding: the second of two batch entries has only 3 of 5 keys.
    /// let keys = [true, true, true, true, true, true, true, true, false, false];
    /// let mask = MaskView::new(&keys, [2, 1, 1, 5])?;
    /// # Ok::<(), sage_attn::Error>(())
    /// ```
    pub fn new(elements: &'a [bool], shape: [usize; 4]) -> Result<Self, ModifierError> {
        Self::strided(elements, PairSpec::contiguous(Operand::Mask, shape)?)
    }

    /// Views `elements` as a mask with strides.
    ///
    /// # Errors
    ///
    /// [`ModifierError`] if a stride is negative, the last is not 1, or the view reaches beyond `elements`.
    pub fn strided(elements: &'a [bool], spec: PairSpec) -> Result<Self, ModifierError> {
        check_span(Operand::Mask, &spec, elements.len())?;
        Ok(MaskView { spec, data: elements })
    }

    /// Shape and strides.
    pub fn spec(&self) -> &PairSpec {
        &self.spec
    }
}

fn check_span(operand: Operand, pairs: &PairSpec, len: usize) -> Result<(), ModifierError> {
    let needed = pairs.span_elems(operand)?;
    if needed > len { Err(ModifierError::PairBeyondBuffer { operand, needed, len }) } else { Ok(()) }
}

/// The slopes of ALiBi (Press et al., arXiv 2108.12409, section 3) for `heads` heads: with a power of two
/// heads, 2^(−8/heads) and its powers; otherwise those of the next smaller power of two, then every
/// second one of the next larger.
///
/// ```
/// assert_eq!(sage_attn::alibi_slopes(4), [0.25, 0.0625, 0.015625, 0.00390625]);
/// assert_eq!(sage_attn::alibi_slopes(3), [0.0625, 0.00390625, 0.25]);
/// ```
pub fn alibi_slopes(heads: usize) -> Vec<f32> {
    let powers = |count: usize| (1..=count).map(move |i| (-8.0 * i as f32 / count as f32).exp2());
    match heads {
        0 => Vec::new(),
        _ if heads.is_power_of_two() => powers(heads).collect(),
        _ => {
            let larger = heads.next_power_of_two();
            powers(larger / 2).chain(powers(larger).step_by(2)).take(heads).collect()
        }
    }
}

/// Data beside q, k and v, all of it optional.
///
/// ```
/// use sage_attn::{Attention, Device, Layout, SideInputs, TensorView};
///
/// let q = vec![0.5f32; 2 * 4 * 64];
/// let q = TensorView::new(&q, &[1, 2, 4, 64], Layout::Hnd)?;
/// // A sink of logit 0 beside 4 keys of equal weight.
/// let side = SideInputs::new().sinks(&[0.0, f32::NEG_INFINITY]);
/// let output = Attention::new().sm_scale(0.0).device(Device::Cpu).forward_with(&q, &q, &q, &side)?;
/// let out = output.out.to_f32();
/// assert!((out[0] - 0.5 * 4.0 / 5.0).abs() < 0.01);
/// assert!((out[4 * 64] - 0.5).abs() < 0.01);
/// # Ok::<(), sage_attn::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct SideInputs<'a> {
    alibi: Option<&'a [f32]>,
    bias: Option<BiasView<'a>>,
    mask: Option<MaskView<'a>>,
    sinks: Option<&'a [f32]>,
    sequences: Option<&'a Sequences>,
}

impl<'a> SideInputs<'a> {
    /// Nothing.
    pub fn new() -> Self {
        SideInputs::default()
    }

    /// ALiBi slopes, `[Hq]` or `[B, Hq]`: a key at distance `d` from a row's position has its score
    /// lowered by `slope · d`.
    pub fn alibi(mut self, slopes: &'a [f32]) -> Self {
        self.alibi = Some(slopes);
        self
    }

    /// What is added to scores.
    pub fn bias(mut self, bias: BiasView<'a>) -> Self {
        self.bias = Some(bias);
        self
    }

    /// Which keys a row may see.
    pub fn mask(mut self, mask: MaskView<'a>) -> Self {
        self.mask = Some(mask);
        self
    }

    /// Logits `[Hq]` of attention sinks: each takes part in its head's denominator, and adds nothing to
    /// the output. The log-sum-exp includes it. −∞ is no sink.
    pub fn sinks(mut self, sinks: &'a [f32]) -> Self {
        self.sinks = Some(sinks);
        self
    }

    /// Sequences packed along the token axis. Bias, mask and slopes may then have an entry for each
    /// sequence, of the longest one's size.
    pub fn sequences(mut self, sequences: &'a Sequences) -> Self {
        self.sequences = Some(sequences);
        self
    }

    /// The packed sequences, if there are any.
    pub(super) fn packed(&self) -> Option<&'a Sequences> {
        self.sequences
    }

    /// Shapes of everything, over `modifiers` that need no data. Checks the values of slopes and sinks.
    pub(super) fn specs(&self, modifiers: Modifiers, heads: usize) -> Result<Modifiers, ModifierError> {
        for (index, &slope) in self.alibi.unwrap_or(&[]).iter().enumerate() {
            if !slope.is_finite() {
                return Err(ModifierError::AlibiNotFinite { index, slope });
            }
        }
        for (head, &sink) in self.sinks.unwrap_or(&[]).iter().enumerate() {
            if sink.is_nan() || sink == f32::INFINITY {
                return Err(ModifierError::SinkNotFinite { head, sink });
            }
        }
        let rows = |len: usize| match len {
            _ if heads > 0 && len.is_multiple_of(heads) => [len / heads, heads],
            _ => [1, len],
        };
        Ok(Modifiers {
            alibi: self.alibi.map(|slopes| rows(slopes.len())),
            bias: self.bias.map(|bias| bias.spec),
            mask: self.mask.map(|mask| mask.spec),
            sinks: self.sinks.map(<[f32]>::len),
            ..modifiers
        })
    }

    /// The data as bytes, from entry `entry` of `problem` on (a packed sequence; 0 otherwise).
    pub(super) fn bytes(&self, problem: &Problem, entry: usize) -> HostSide<'a> {
        let heads = problem.dims().num_heads_q;
        HostSide {
            alibi: self.alibi.map(|slopes| {
                let first = if slopes.len() > heads { entry * heads } else { 0 };
                bytemuck::cast_slice(&slopes[first..])
            }),
            bias: self.bias.map(|BiasView { spec, data }| {
                match data.from(entry * spec.pairs.broadcast_strides()[0] as usize) {
                    Data::F16(data) => bytemuck::cast_slice(data),
                    Data::BF16(data) => bytemuck::cast_slice(data),
                    Data::F32(data) => bytemuck::cast_slice(data),
                }
            }),
            mask: self.mask.map(|MaskView { spec, data }| {
                bytemuck::cast_slice(data.get(entry * spec.broadcast_strides()[0] as usize..).unwrap_or(&[]))
            }),
            sinks: self.sinks.map(bytemuck::cast_slice),
        }
    }

    /// The data as the CPU reference takes it, from batch entry `entry` on (a packed sequence). Shapes
    /// have been checked against `modifiers`.
    pub(super) fn host(&self, dims: &Dims, modifiers: &Modifiers, entry: usize) -> reference::Modifiers<'a> {
        let batch_stride = |strides: [i64; 3]| entry * strides[0] as usize;
        let slopes = self.alibi.map(|slopes| match slopes.len() > dims.num_heads_q {
            true => &slopes[entry * dims.num_heads_q..],
            false => slopes,
        });
        let alibi = slopes.map(|slopes| &slopes[..slopes.len().min(dims.batch * dims.num_heads_q)]);
        let bias = self.bias.map(|BiasView { spec, data }| {
            let strides = spec.pairs.broadcast_strides();
            let [stride_batch, stride_head, stride_token] = strides;
            HostTensor { data: data.from(batch_stride(strides)), stride_batch, stride_head, stride_token }
        });
        let mask = self.mask.map(|MaskView { spec, data }| {
            let strides = spec.broadcast_strides();
            let [stride_batch, stride_head, stride_row] = strides;
            let data = data.get(batch_stride(strides)..).unwrap_or(&[]);
            HostMask { data, stride_batch, stride_head, stride_row }
        });
        let &Modifiers { alignment, window, softcap, .. } = modifiers;
        reference::Modifiers { alignment, window, softcap, alibi, bias, mask, sinks: self.sinks }
    }
}
