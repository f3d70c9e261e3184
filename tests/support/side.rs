//! Random modifiers for random problems.

use sage_attn::problem::{BiasSpec, DType, Modifiers, PairSpec, Problem, Request, TensorSpec};
use sage_attn::reference::{self, HostMask, HostTensor};
use sage_attn::{Alignment, Window};

use crate::case::{Case, Tensor};
use crate::generate::Random;

/// Data of the modifiers of a case.
pub struct Side {
    /// Everything without data.
    pub modifiers: Modifiers,
    /// ALiBi slopes, `[B|1, Hq]`.
    pub alibi: Option<Vec<f32>>,
    /// The bias, perhaps with gaps between its rows.
    pub bias: Option<Tensor>,
    /// The mask.
    pub mask: Option<Vec<bool>>,
    /// Logits of the sinks.
    pub sinks: Option<Vec<f32>>,
}

impl Side {
    /// Random modifiers for `case`, whose problem gets them too. Some cases get none, which is a plain
    /// problem still.
    pub fn random(case: &mut Case, seed: u64) -> Side {
        let mut random = Random(seed ^ 0x51de);
        let dims = *case.problem.dims();
        let pick = |random: &mut Random, n: usize| (random.bits() % n as u64) as usize;
        let heads = dims.num_heads_q;
        let pairs = |random: &mut Random| {
            let one = |random: &mut Random, extent| if pick(random, 2) == 0 { 1 } else { extent };
            let shape = [one(random, dims.batch), one(random, heads), one(random, dims.seqlen_q), dims.seqlen_kv];
            let row = dims.seqlen_kv + pick(random, 3);
            let head = row * shape[2] + pick(random, 3);
            PairSpec { shape, strides: [(head * shape[1]) as i64, head as i64, row as i64, 1] }
        };
        let bound = |random: &mut Random| match pick(random, 3) {
            0 => None,
            1 => Some(pick(random, 40)),
            _ => Some(pick(random, 200)),
        };
        let mut modifiers = Modifiers {
            alignment: [Alignment::BottomRight, Alignment::TopLeft][pick(&mut random, 2)],
            window: Window { left: bound(&mut random), right: bound(&mut random) },
            ..Modifiers::default()
        };
        let flags = random.bits();
        if flags & 1 != 0 {
            modifiers.softcap = Some([0.5, 5.0, 30.0][pick(&mut random, 3)]);
        }
        let alibi = (flags & 2 != 0).then(|| {
            let batch = if flags & 4 != 0 { dims.batch } else { 1 };
            modifiers.alibi = Some([batch, heads]);
            (0..batch * heads).map(|_| random.unit() * 0.2).collect()
        });
        let bias = (flags & 8 != 0).then(|| {
            let dtype = [DType::F16, DType::BF16, DType::F32][pick(&mut random, 3)];
            let pairs = pairs(&mut random);
            modifiers.bias = Some(BiasSpec { dtype, pairs });
            let spec = TensorSpec { dtype, shape: pairs.shape, strides: pairs.strides };
            Tensor::fill(spec, |_, _, _| if random.unit() < 0.1 { f32::NEG_INFINITY } else { random.normal() })
        });
        let mask = (flags & 16 != 0).then(|| {
            let pairs = pairs(&mut random);
            modifiers.mask = Some(pairs);
            let span = pairs.span_elems(sage_attn::error::Operand::Mask).expect("test extents are small");
            let share = [0.05, 0.5, 0.9][pick(&mut random, 3)];
            (0..span).map(|_| random.unit() < share).collect()
        });
        let sinks = (flags & 32 != 0).then(|| {
            modifiers.sinks = Some(heads);
            (0..heads).map(|_| if random.unit() < 0.2 { f32::NEG_INFINITY } else { 2.0 * random.normal() }).collect()
        });
        let request = Request { modifiers, ..case.problem.request().clone() };
        case.problem = Problem::new(request).expect("valid modifiers");
        Side { modifiers, alibi, bias, mask, sinks }
    }

    /// As the reference takes them.
    pub fn reference(&self) -> reference::Modifiers<'_> {
        let Modifiers { alignment, window, softcap, .. } = self.modifiers;
        let bias = self.bias.as_ref().zip(self.modifiers.bias).map(|(tensor, spec)| {
            let [stride_batch, stride_head, stride_token] = spec.pairs.broadcast_strides();
            HostTensor { stride_batch, stride_head, stride_token, ..tensor.host() }
        });
        let mask = self.mask.as_ref().zip(self.modifiers.mask).map(|(data, spec)| {
            let [stride_batch, stride_head, stride_row] = spec.broadcast_strides();
            HostMask { data, stride_batch, stride_head, stride_row }
        });
        let (alibi, sinks) = (self.alibi.as_deref(), self.sinks.as_deref());
        reference::Modifiers { alignment, window, softcap, alibi, bias, mask, sinks }
    }

    /// Slopes, bias, mask and sinks as memory holds them.
    pub fn bytes(&self) -> [Option<Vec<u8>>; 4] {
        let floats = |x: &Vec<f32>| x.iter().flat_map(|x| x.to_le_bytes()).collect();
        [
            self.alibi.as_ref().map(floats),
            self.bias.as_ref().map(Tensor::bytes),
            self.mask.as_ref().map(|mask| mask.iter().map(|&seen| u8::from(seen)).collect()),
            self.sinks.as_ref().map(floats),
        ]
    }
}
