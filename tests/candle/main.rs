//! The candle operation on the CPU.

use candle_core::{DType, Device, Result, Tensor};
use sage_attn::candle::SageAttention;
use sage_attn::{Attention, Layout, Precision, TensorView};

/// Random queries `[2, 4, 9, 16]` and keys or values `[2, 2, 20, 16]`.
fn inputs() -> Result<[Tensor; 3]> {
    let random = |heads, tokens| Tensor::randn(0f32, 1.0, (2usize, heads, tokens, 16), &Device::Cpu);
    Ok([random(4usize, 9usize)?, random(2, 20)?, random(2, 20)?])
}

/// `softmax(Q Kᵀ / 4) V` out of candle's own operations.
fn exact([q, k, v]: &[Tensor; 3]) -> Result<Tensor> {
    let repeat = |x: &Tensor| -> Result<Tensor> { Tensor::stack(&[x, x], 2)?.reshape((2, 4, 20, 16)) };
    let scores = (q.matmul(&repeat(k)?.t()?)? * 0.25)?;
    let exp = scores.broadcast_sub(&scores.max_keepdim(3)?)?.exp()?;
    exp.broadcast_div(&exp.sum_keepdim(3)?)?.matmul(&repeat(v)?)
}

fn largest_difference(a: &Tensor, b: &Tensor) -> Result<f32> {
    (a.to_dtype(DType::F32)? - b.to_dtype(DType::F32)?)?.abs()?.max_all()?.to_scalar()
}

#[test]
fn the_operation_is_attention() -> Result<()> {
    let inputs = inputs()?;
    let [q, k, v] = &inputs;
    let expected = exact(&inputs)?;
    let out = SageAttention::new(Attention::new().precision(Precision::Exact)).forward(q, k, v)?;
    assert_eq!((out.dims(), out.dtype()), (&[2, 4, 9, 16][..], DType::F32));
    assert!(largest_difference(&out, &expected)? < 1e-5);
    let quantized = SageAttention::new(Attention::new()).forward(q, k, v)?;
    let difference = largest_difference(&quantized, &expected)?;
    assert!(difference > 0.0 && difference < 0.2, "{difference}");
    Ok(())
}

#[test]
fn the_bits_are_those_of_the_library() -> Result<()> {
    let [q, k, v] = inputs()?;
    let out = SageAttention::new(Attention::new()).forward(&q, &k, &v)?;
    let flat = |x: &Tensor| x.flatten_all()?.to_vec1::<f32>();
    let (q, k, v) = (flat(&q)?, flat(&k)?, flat(&v)?);
    let view = |x, shape: [usize; 4]| TensorView::new(x, &shape, Layout::Hnd).unwrap();
    let attention = Attention::new().device(sage_attn::Device::Cpu);
    let kv = [2, 2, 20, 16];
    let own = attention.forward(&view(&q, [2, 4, 9, 16]), &view(&k, kv), &view(&v, kv)).unwrap();
    assert_eq!(flat(&out)?, own.out.to_f32());
    Ok(())
}

#[test]
fn strides_offsets_and_types_are_followed() -> Result<()> {
    let inputs = inputs()?;
    let [q, k, v] = &inputs;
    let op = SageAttention::new(Attention::new().precision(Precision::Exact));
    let expected = op.forward(q, k, v)?;
    // Token-major memory, seen head-major.
    let turned = |x: &Tensor| x.transpose(1, 2)?.contiguous()?.transpose(1, 2);
    assert_eq!(largest_difference(&op.forward(&turned(q)?, &turned(k)?, &turned(v)?)?, &expected)?, 0.0);
    // The second batch entry, which starts inside the storage.
    let second = |x: &Tensor| x.narrow(0, 1, 1);
    let part = op.forward(&second(q)?, &second(k)?, &second(v)?)?;
    assert_eq!(largest_difference(&part, &second(&expected)?)?, 0.0);
    for dtype in [DType::F16, DType::BF16] {
        let narrow = |x: &Tensor| x.to_dtype(dtype);
        let out = op.forward(&narrow(q)?, &narrow(k)?, &narrow(v)?)?;
        assert_eq!(out.dtype(), dtype);
        assert!(largest_difference(&out, &expected)? < 0.05);
        let wide = SageAttention::new(Attention::new().out_dtype(sage_attn::DType::F32));
        assert_eq!(wide.forward(&narrow(q)?, &narrow(k)?, &narrow(v)?)?.dtype(), DType::F32);
    }
    Ok(())
}

#[test]
fn what_cannot_be_done_is_an_error() -> Result<()> {
    let [q, k, v] = inputs()?;
    let op = SageAttention::new(Attention::new());
    let message = |result: Result<Tensor>| result.unwrap_err().to_string();
    let lse = SageAttention::new(Attention::new().return_lse(true)).forward(&q, &k, &v);
    assert!(message(lse).contains("one result"));
    assert!(message(op.forward(&q, &k, &v.narrow(2, 0, 5)?)).contains("v has 5 tokens, but k has 20"));
    let flat = q.flatten(0, 1)?;
    assert!(message(op.forward(&flat, &flat, &flat)).contains("4 axes"));
    let double = q.to_dtype(DType::F64)?;
    assert!(message(op.forward(&double, &double, &double)).contains("must be f16, bf16 or f32"));
    let broadcast = q.narrow(1, 0, 1)?.broadcast_as((2, 4, 9, 16))?;
    assert!(message(op.forward(&broadcast, &k, &v)).contains("stride"), "a broadcast tensor has a stride of 0");
    Ok(())
}
