//! What a launch reads beside q, k and v.

use cudarc::driver::sys::CUdeviceptr;
use sage_spec::modifiers::{ModifierParams, PairArg};
use sage_spec::quant::LOG2_E;

use super::args::Range;
use crate::error::{Invalid, Operand};
use crate::problem::{DType, PairSpec, Problem};

/// Addresses of the side inputs of a launch; shapes and strides are those the plan was made for. Each is
/// present exactly if the plan has it.
///
/// Example: [`LaunchArgs`](crate::device::LaunchArgs).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SideArgs {
    /// f32 `[B|1, Hq]` ALiBi slopes, contiguous and finite.
    pub alibi: Option<CUdeviceptr>,
    /// Element `[0, 0, 0, 0]` of the bias.
    pub bias: Option<CUdeviceptr>,
    /// Element `[0, 0, 0, 0]` of the mask: one byte for each pair, 0 hides the key.
    pub mask: Option<CUdeviceptr>,
    /// f32 `[Hq]` logits of the sinks, none of them NaN or +∞.
    pub sinks: Option<CUdeviceptr>,
}

/// Bytes that each side input of `problem` spans, and their alignment, in the order of the fields of
/// [`SideArgs`]. A problem without rows may have any number of heads, so that products saturate.
fn planned(problem: &Problem) -> [(Operand, Option<(usize, usize)>); 4] {
    let (modifiers, heads) = (problem.modifiers(), problem.dims().num_heads_q);
    let span = |operand, pairs: &PairSpec, bytes: usize| {
        // The problem was made from these pairs, so their span is known to fit.
        (pairs.span_elems(operand).map_or(usize::MAX, |elems| elems * bytes), bytes)
    };
    [
        (Operand::Alibi, modifiers.alibi.map(|[batch, heads]| (batch.saturating_mul(heads).saturating_mul(4), 4))),
        (Operand::Bias, modifiers.bias.map(|bias| span(Operand::Bias, &bias.pairs, bias.dtype.bytes()))),
        (Operand::Mask, modifiers.mask.map(|mask| span(Operand::Mask, &mask, 1))),
        (Operand::Sinks, modifiers.sinks.map(|_| (heads.saturating_mul(4), 4))),
    ]
}

impl SideArgs {
    /// The side inputs of the packed sequences of `problem` from `index` on.
    pub(super) fn of_entry(&self, problem: &Problem, index: usize) -> SideArgs {
        let modifiers = problem.modifiers();
        let offset = |pairs: &PairSpec, bytes: usize| {
            (index as i64).wrapping_mul(pairs.broadcast_strides()[0]).wrapping_mul(bytes as i64) as u64
        };
        let alibi = modifiers.alibi.map_or(0, |[batch, heads]| if batch == 1 { 0 } else { (index * heads * 4) as u64 });
        let bias = modifiers.bias.map_or(0, |bias| offset(&bias.pairs, bias.dtype.bytes()));
        let mask = modifiers.mask.map_or(0, |mask| offset(&mask, 1));
        let at = |ptr: Option<CUdeviceptr>, offset: u64| ptr.map(|ptr| ptr.wrapping_add(offset));
        SideArgs {
            alibi: at(self.alibi, alibi),
            bias: at(self.bias, bias),
            mask: at(self.mask, mask),
            sinks: self.sinks,
        }
    }

    /// Checks presence and addresses; the memory they read.
    pub(super) fn ranges(&self, problem: &Problem) -> Result<Vec<Range>, Invalid> {
        let mut ranges = Vec::new();
        let given = [self.alibi, self.bias, self.mask, self.sinks];
        for (ptr, (operand, planned)) in given.into_iter().zip(planned(problem)) {
            match (ptr, planned) {
                (Some(ptr), Some((bytes, align))) => ranges.extend(Range::new(operand, ptr, bytes, align)?),
                (None, None) => {}
                (_, planned) => return Err(Invalid::SidePresence { operand, planned: planned.is_some() }),
            }
        }
        Ok(ranges)
    }

    /// The parameters of the general kernels.
    pub(super) fn params(&self, problem: &Problem) -> ModifierParams {
        let (modifiers, dims) = (problem.modifiers(), problem.dims());
        let (first, end) = problem.band().params();
        let pairs = |ptr: Option<CUdeviceptr>, spec: Option<&PairSpec>| match (ptr, spec) {
            (Some(ptr), Some(spec)) => {
                let [stride_batch, stride_head, stride_row] = spec.broadcast_strides();
                PairArg { ptr, stride_batch, stride_head, stride_row }
            }
            _ => PairArg::default(),
        };
        let softcap = modifiers.softcap.unwrap_or(0.0);
        ModifierParams {
            bias: pairs(self.bias, modifiers.bias.as_ref().map(|bias| &bias.pairs)),
            mask: pairs(self.mask, modifiers.mask.as_ref()),
            alibi: self.alibi.unwrap_or(0),
            sinks: self.sinks.unwrap_or(0),
            alibi_stride_batch: match modifiers.alibi {
                Some([1, _]) | None => 0,
                Some([_, heads]) => heads as u32,
            },
            bias_dtype: modifiers.bias.map_or(DType::F32, |bias| bias.dtype).code(),
            first,
            end,
            // Both lengths are below 2³¹.
            offset: modifiers.alignment.offset(dims) as i32,
            softcap_log2: softcap * LOG2_E,
            softcap_argument: modifiers.softcap.map_or(0.0, |softcap| 2.0 / softcap),
        }
    }
}

/// Bytes of the side inputs in host memory, from the first element to the last.
///
/// Example: [`Gpu`](crate::device::Gpu).
#[derive(Clone, Copy, Debug, Default)]
pub struct HostSide<'a> {
    /// f32 `[B|1, Hq]` ALiBi slopes.
    pub alibi: Option<&'a [u8]>,
    /// The bias.
    pub bias: Option<&'a [u8]>,
    /// The mask.
    pub mask: Option<&'a [u8]>,
    /// f32 `[Hq]` logits of the sinks.
    pub sinks: Option<&'a [u8]>,
}

impl<'a> HostSide<'a> {
    /// The bytes the kernels read, in the order of the fields, after checking that they are there.
    pub(super) fn spans(&self, problem: &Problem) -> Result<[Option<&'a [u8]>; 4], Invalid> {
        let given = [self.alibi, self.bias, self.mask, self.sinks];
        let mut spans = [None; 4];
        for ((span, given), (operand, planned)) in spans.iter_mut().zip(given).zip(planned(problem)) {
            *span = match (given, planned) {
                (Some(bytes), Some((needed, _))) => {
                    let error = Invalid::SideTooShort { operand, bytes: bytes.len(), needed };
                    Some(bytes.get(..needed).ok_or(error)?)
                }
                (None, None) => None,
                (_, planned) => return Err(Invalid::SidePresence { operand, planned: planned.is_some() }),
            };
        }
        Ok(spans)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::problem::{BiasSpec, Layout, Modifiers, Request, TensorSpec};

    fn problem() -> Result<Problem, Error> {
        let spec = TensorSpec::new(Operand::Q, DType::F16, &[2, 3, 5, 64], Layout::Hnd)?;
        let pairs = PairSpec::contiguous(Operand::Bias, [1, 3, 5, 5])?;
        let mask = PairSpec::contiguous(Operand::Mask, [2, 1, 1, 5])?;
        let modifiers = Modifiers {
            softcap: Some(4.0),
            alibi: Some([2, 3]),
            bias: Some(BiasSpec { dtype: DType::BF16, pairs }),
            mask: Some(mask),
            sinks: Some(3),
            ..Modifiers::default()
        };
        Problem::new(Request { modifiers, ..Request::new(spec, spec, spec, spec) })
    }

    #[test]
    fn every_side_input_is_checked_and_passed_on() -> Result<(), Error> {
        let problem = problem()?;
        let good = SideArgs { alibi: Some(0x100), bias: Some(0x200), mask: Some(0x301), sinks: Some(0x400) };
        let ranges = good.ranges(&problem)?;
        let bytes: Vec<u64> = ranges.iter().map(|range| range.end - range.begin).collect();
        assert_eq!(bytes, [24, 150, 10, 12]);
        let params = good.params(&problem);
        assert_eq!(params.bias, PairArg { ptr: 0x200, stride_batch: 0, stride_head: 25, stride_row: 5 });
        assert_eq!(params.mask, PairArg { ptr: 0x301, stride_batch: 5, stride_head: 0, stride_row: 0 });
        assert_eq!((params.alibi_stride_batch, params.bias_dtype, params.softcap_argument), (3, 1, 0.5));
        assert_eq!((params.first, params.end, params.offset), (i32::MIN, i32::MAX, 0));

        let missing = SideArgs { mask: None, ..good }.ranges(&problem).err();
        assert_eq!(missing, Some(Invalid::SidePresence { operand: Operand::Mask, planned: true }));
        let null = SideArgs { sinks: Some(0), ..good }.ranges(&problem).err();
        assert_eq!(null, Some(Invalid::NullPointer { tensor: Operand::Sinks, bytes: 12 }));
        let odd = SideArgs { bias: Some(0x201), ..good }.ranges(&problem).err();
        assert_eq!(odd, Some(Invalid::Misaligned { tensor: Operand::Bias, address: 0x201, align: 2 }));
        Ok(())
    }
}
