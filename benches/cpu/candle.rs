//! candle's attention on the CPU: its fused form, and softmax between two matrix products.

use std::error::Error;

use candle_core::{D, Device, Tensor};
use candle_nn::attention::{AttnMask, flash_attn};
use sage_spec::Dims;

use crate::contestant::{Contestant, time};

/// Most scores of the unfused form, which keeps them all: 2 GiB of f32.
const MAX_SCORES: usize = 1 << 29;

/// Both forms, on the same values; the fused one reads tokens before heads.
pub fn contestants<'a>(
    dims: &Dims,
    [q, k, v]: [&[f32]; 3],
    causal: bool,
    sm_scale: f32,
) -> Result<Vec<Contestant<'a>>, Box<dyn Error>> {
    let (offset, group) = (dims.seqlen_kv.saturating_sub(dims.seqlen_q), dims.gqa_group());
    let tensor = |x: &[f32], heads, tokens| Tensor::from_slice(x, (1, heads, tokens, dims.head_dim), &Device::Cpu);
    let q = tensor(q, dims.num_heads_q, dims.seqlen_q)?;
    let k = tensor(k, dims.num_heads_kv, dims.seqlen_kv)?;
    let v = tensor(v, dims.num_heads_kv, dims.seqlen_kv)?;

    let tokens_first = |x: &Tensor| x.transpose(1, 2)?.contiguous();
    let (q1, k1, v1) = (tokens_first(&q)?, tokens_first(&k)?, tokens_first(&v)?);
    let fused = move || {
        let mask = if causal { AttnMask::causal_with_offset(offset) } else { AttnMask::None };
        let (times, result) = time(|| flash_attn::<f32>(&q1, &k1, &v1, sm_scale, mask, None, None));
        result?;
        Ok(times)
    };
    let mut contestants = vec![Contestant::new("candle flash_attn".into(), fused)];
    if dims.num_heads_q * dims.seqlen_q * dims.seqlen_kv > MAX_SCORES {
        return Ok(contestants);
    }

    // What models do: heads repeated, a mask of zeros and −∞ added.
    let repeat = |x: &Tensor| {
        let shape = (1, dims.num_heads_q, dims.seqlen_kv, dims.head_dim);
        Tensor::cat(&vec![x; group], 2)?.reshape(shape)
    };
    let (k, v) = if group > 1 { (repeat(&k)?, repeat(&v)?) } else { (k, v) };
    let mask = match causal {
        true => {
            let sees = |row: usize, key: usize| if key <= row + offset { 0.0 } else { f32::NEG_INFINITY };
            let values = (0..dims.seqlen_q).flat_map(|row| (0..dims.seqlen_kv).map(move |key| sees(row, key)));
            Some(Tensor::from_iter(values, &Device::Cpu)?.reshape((1, 1, dims.seqlen_q, dims.seqlen_kv))?)
        }
        false => None,
    };
    let attend = move || {
        let scores = (q.matmul(&k.transpose(D::Minus2, D::Minus1)?)? * f64::from(sm_scale))?;
        let scores = match &mask {
            Some(mask) => scores.broadcast_add(mask)?,
            None => scores,
        };
        candle_nn::ops::softmax_last_dim(&scores)?.matmul(&v)
    };
    let unfused = move || {
        let (times, result) = time(&attend);
        result?;
        Ok(times)
    };
    contestants.push(Contestant::new("candle matmul".into(), unfused));
    Ok(contestants)
}
