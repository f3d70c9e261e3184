//! The shipped real Q/K/V: the GPU's figures are the CPU's.

use sage_attn::metrics::Metrics;
use sage_attn::reference::{self, Options};
use sage_spec::ScaleGranularity;
use sage_spec::symbol::{Arch, STEMS};
use serde_json::json;

use crate::harness::{gpu, record};

#[test]
fn real_layers_have_the_same_accuracy_on_cpu_and_gpu() {
    use sage_attn::{Attention, Device, Layout, Precision, TensorView};
    let Some(gpu) = gpu() else { return };
    let file = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/data/rustlm_qkv.safetensors")).expect("test data");
    let tensors = safetensors::SafeTensors::deserialize(&file).expect("safetensors");
    let mut rows = Vec::new();
    for layer in [0, 4, 7] {
        let load = |name: &str| {
            let view = tensors.tensor(&format!("layer{layer}.{name}")).expect("tensor");
            let data: Vec<half::bf16> =
                view.data().chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]])).collect();
            (data, view.shape().to_vec())
        };
        let [(q, qs), (k, ks), (v, vs)] = ["q", "k", "v"].map(load);
        let view = |x, s| TensorView::new(x, s, Layout::Hnd).expect("view");
        let (q, k, v) = (view(&q, &qs), view(&k, &ks), view(&v, &vs));
        for precision in [Precision::Int8, Precision::Int4] {
            let attention = Attention::new().causal(true).precision(precision).smoothing(sage_attn::Smoothing {
                q: true,
                k: true,
                v: false,
            });
            let dims = *attention.problem(*q.spec(), *k.spec(), *v.spec(), *q.spec()).expect("problem").dims();
            let exact =
                sage_attn::reference::attention_f64(&dims, &q.host(), &k.host(), &v.host(), true, 1.0 / 128f64.sqrt());
            let output = attention.clone().device(Device::Cuda(0)).forward(&q, &k, &v).expect("forward");
            let on_gpu = &Metrics::compare(&output.out.to_f32(), &exact.out, dims.head_dim);
            // The CPU's numerics of the same kernel; the CPU's own back end rounds P less.
            let stem = STEMS.iter().find(|stem| stem.name == output.report.kernel).expect("a kernel of ours");
            let options = Options {
                causal: true,
                sm_scale: 1.0 / 128f32.sqrt(),
                precision: stem.qk,
                granularity: ScaleGranularity::PerThread,
                pv: stem.pv,
                smooth_q: true,
                smooth_k: true,
                smooth_v: false,
            };
            let quantized = reference::quantize(&dims, &q.host(), &k.host(), &v.host(), &options);
            let reference = match stem.arch {
                Arch::Sm90a => {
                    reference::attention_quantized_sm90(&dims, &quantized, &k.host(), &options, stem.exponential)
                }
                Arch::Sm80 | Arch::Sm89 => reference::attention_quantized(&dims, &quantized, &k.host(), &options),
            };
            let cpu = &Metrics::compare(&reference.out, &exact.out, dims.head_dim);
            println!("layer {layer} {precision:?} cpu {cpu:?} gpu {on_gpu:?}");
            let round = |x: f64| (x * 1000.0).round();
            assert_eq!(round(cpu.cosine), round(on_gpu.cosine), "cosine, layer {layer}");
            assert!(
                (cpu.rel_l1 - on_gpu.rel_l1).abs() < 5e-4,
                "relative L1, layer {layer}: {} {}",
                cpu.rel_l1,
                on_gpu.rel_l1
            );
            rows.push(json!({ "layer": layer, "precision": format!("{precision:?}"), "cpu": cpu, "gpu": on_gpu }));
        }
    }
    record("gpu_real_data", &json!({ "device": gpu.name(), "rows": rows }));
}
